"""The report's page, parsed without a browser."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from sctok.evaluation.report.clips import BINS, build_clip, choose_files, frequency_marks, levels_db
from sctok.evaluation.report.page import ReportConfig, write_report
from sctok.evaluation.report.runs import load_run
from sctok.formats.codebooks import Codebook, CodebookInfo, Segment, save_codebook

from .example_runs import ratings, tone, write_flac, write_run

VOID = {"meta", "link", "img", "input", "br", "progress"}


class Page(HTMLParser):
    """The elements of a page as (tag, attributes), its text, and the elements that are open."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def write_codebook(path, domain="speech", segments=None, history=(9.0, 4.0, 3.0)):
    rng = np.random.default_rng(0)
    parts = segments or (Segment(domain, 0, 8),)
    info = CodebookInfo(domain, parts, 2, "mini", "0" * 16, n_vectors=80, inertia_history=history)
    save_codebook(path, Codebook(rng.standard_normal((8, 6)), np.arange(8), info))
    return path


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Return a page with all parts: the folder of the run, the text of the page, and the result."""
    folder = tmp_path_factory.mktemp("report")
    run = write_run(folder / "run <1>", files=(("speech/one", "speech"), ("music/two", "music")))
    (run / "probe.json").write_text(
        json.dumps({"format": "sctok-probe", "format_version": 1, "tasks": [{"task": "esc-50", "accuracy": 0.5}]})
    )
    books = [
        write_codebook(folder / "speech-8-r50.safetensors"),
        write_codebook(
            folder / "merged-8-r50.safetensors", "merged", (Segment("speech", 0, 3), Segment("music", 3, 8)), ()
        ),
    ]
    (folder / "ratings.json").write_text(json.dumps(ratings("Ana", {"reference": [100, 95], "opus-6": [50, 60]})))
    result = write_report(
        folder / "out" / "report.html",
        [run],
        codebooks=books,
        ratings=[folder / "ratings.json"],
        plots=folder / "plots",
    )
    return run, result.path.read_text(), result


@pytest.fixture(scope="module")
def page(everything):
    return Page(everything[1])


def test_every_element_is_closed(page):
    assert page.open == []


def test_ids_are_unique_and_links_have_targets(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    wanted = {a["href"][1:] for a in page.all("a")} | {a.get("aria-labelledby", ids[0]) for _, a in page.elements}
    assert wanted <= set(ids)


def test_the_page_needs_no_network(page):
    sources = [a[name] for _, a in page.elements for name in ("src", "href", "xlink:href") if name in a]
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_the_page_has_all_parts(page):
    titles = ["run <1>", "Codebooks", "Listening test: ratings", "Listen and compare", "Listening test"]
    assert all(title in page.text for title in titles)
    assert "esc-50" in page.text
    assert "Centroids of merged-8-r50 by domain" in page.text


def test_tables_have_captions_and_scoped_heads(page):
    assert len(page.all("caption")) == len(page.all("table"))
    assert {a.get("scope") for a in page.all("th")} == {"col", "row"}


def test_names_are_escaped(everything):
    assert "<1>" not in everything[1]


def test_pictures_and_players_have_names(page):
    assert all(a["alt"] for a in page.all("img"))
    assert all(a["aria-label"] and "controls" in a for a in page.all("audio"))
    assert all(a["aria-label"] for a in page.all("svg"))


def test_each_clip_has_reference_anchor_and_every_codec(page):
    labels = [a["aria-label"] for a in page.all("audio")]
    assert labels == ["reference", "low-pass 3.5 kHz", "tiny", "opus-6", "opus-12"] * 2


def test_the_data_of_the_listening_test_has_roles(everything):
    text = everything[1]
    start = text.index('id="test-data">') + len('id="test-data">')
    data = json.loads(text[start : text.index("</script>", start)])
    assert len(data["clips"]) == 2
    assert [s["role"] for s in data["clips"][0]["stimuli"]] == ["reference", "anchor", "codec", "codec", "codec"]


def test_plots_are_also_written_as_files(everything):
    names = {path.name for path in everything[2].plots}
    stems = {"quality-1-run--1-", "inertia", "usage", "centroids-merged-8-r50", "ratings-1"}
    stems |= {f"spectrograms-{number}" for number in (1, 2)}
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    assert all(path.stat().st_size for path in everything[2].plots)


def test_missing_audio_is_named_in_its_row(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "audio" / "tiny" / "speech" / "one.flac").unlink()
    (run / "audio" / "opus-6" / "speech" / "one.flac").write_bytes(b"no flac")
    clip = build_clip(load_run(run), {"key": "speech/one", "domain": "speech"}, "c", 10.0)
    problems = {stimulus.name: stimulus.problem for stimulus in clip.stimuli if stimulus.problem}
    assert problems["tiny"] == "the decoded audio was not kept"
    assert "cannot be read" in problems["opus-6"]


def test_a_failed_codec_shows_the_reason_instead_of_audio(tmp_path):
    run = write_run(tmp_path / "run", files=(("one", "speech"),))
    (run / "audio" / "tiny" / "one.flac").unlink()
    text = (run / "scores.csv").read_text().splitlines()
    (run / "scores.csv").write_text("\n".join([text[0], text[1] + "out of memory", *text[2:]]))
    clip = build_clip(load_run(run), {"key": "one", "domain": "speech"}, "c", 10.0)
    assert next(s.problem for s in clip.stimuli if s.name == "tiny") == "failed: out of memory"


@pytest.mark.parametrize("kind", ["empty", "silent"])
def test_a_run_without_audio_has_a_note(tmp_path, kind):
    run = write_run(tmp_path / "run", **({"files": ()} if kind == "empty" else {"audio": False}))
    page = Page(write_report(tmp_path / "report.html", [run]).path.read_text())
    assert ("This evaluation is empty" if kind == "empty" else "has no audio") in page.text
    assert not page.all("audio")


def test_runs_and_codebooks_with_equal_names_are_all_shown(tmp_path):
    runs = [write_run(tmp_path / folder / "run", audio=False) for folder in "ab"]
    books = [write_codebook(tmp_path / folder / "speech-8-r50.safetensors") for folder in "ab"]
    page = Page(write_report(tmp_path / "report.html", runs, codebooks=books).path.read_text())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert len(page.all("table")) == 2 * 3 + 1
    assert all(str(path) in page.text for path in books)


def test_a_report_needs_an_input(tmp_path):
    with pytest.raises(ValueError, match="nothing to report on"):
        write_report(tmp_path / "report.html", [])


def test_a_listening_page_shows_no_results(tmp_path):
    run = write_run(tmp_path / "run")
    result = write_report(tmp_path / "listening.html", [run], config=ReportConfig(listening_only=True))
    page = Page(result.path.read_text())
    assert not page.all("table")
    assert not page.all("img")
    assert len(page.all("audio")) == 15
    assert not any("controls" in audio for audio in page.all("audio"))


def test_the_anchor_of_a_run_is_used_and_its_original_is_not(tmp_path):
    codecs = (("original", "original", 256.0, 5.0), ("dull", "lowpass:3500", 256.0, 2.0), ("tiny", "tiny", 0.6, 2.0))
    run = write_run(tmp_path / "run", files=(("one", "speech"),), codecs=codecs)
    clip = build_clip(load_run(run), {"key": "one", "domain": "speech"}, "c", 10.0)
    assert [(s.role, s.name) for s in clip.stimuli] == [
        ("reference", "reference"),
        ("anchor", "dull"),
        ("codec", "tiny"),
    ]


def test_sounds_are_cut_and_aligned_to_the_reference(tmp_path):
    run = write_run(tmp_path / "run", files=(("one", "speech"),), seconds=1.0)
    write_flac(run / "audio" / "opus-6" / "one.flac", tone("one", 0.7))
    clip = build_clip(load_run(run), {"key": "one", "domain": "speech"}, "c", 0.9)
    assert clip.seconds == 0.9
    assert {len(level) for level in clip.levels.values()} == {91}


def test_clips_are_balanced_over_domains(tmp_path):
    files = (*((f"s{i}", "speech") for i in range(5)), ("m", "music"), *((f"g{i}", "general") for i in range(5)))
    run = load_run(write_run(tmp_path / "run", files=files, seconds=0.1))
    assert [file["key"] for file in choose_files(run, 5)] == ["s0", "s2", "m", "g0", "g2"]
    assert len(choose_files(run, 100)) == 11


def test_keys_outside_of_the_run_are_not_read(tmp_path):
    run = write_run(tmp_path / "run", files=(("one", "speech"),))
    write_flac(tmp_path / "run" / "outside.flac", tone("one"))
    (run / "run.json").write_text((run / "run.json").read_text().replace('"one"', '"../../outside"'))
    assert choose_files(load_run(run), 3) == []


def test_spectrograms_show_a_tone_at_its_frequency():
    wave = np.sin(2 * np.pi * 2000 * np.arange(48_000) / 24_000).astype(np.float32)
    levels = levels_db(wave, 24_000)
    assert levels.shape == (201, BINS)
    np.testing.assert_allclose(levels[100].argmax() / BINS, frequency_marks()[2000.0], atol=0.02)


@pytest.mark.parametrize("change", [{"clips": -1}, {"seconds": 0}, {"listening_only": True, "clips": 0}])
def test_values_out_of_range_are_rejected(change):
    with pytest.raises(ValueError, match=r"clips|seconds"):
        ReportConfig(**change)
