"""Merged codebooks: rows and order, refused and missing parts."""

from pathlib import Path

import numpy as np
import pytest

from sctok.formats.codebooks import Codebook, CodebookInfo, Segment, codebook_path, load_codebook, save_codebook
from sctok.formats.stacking import stack_factor
from sctok.kmeans_tools.merging import (
    PAPER_RATIO,
    PAPER_SIZES,
    MergePlan,
    build_merged,
    choose_plans,
    merge_codebooks,
    split_size,
)

WIDTH = 4


def codebook(domain: str, k: int, rate: int = 100, encoder: str = "mini", seed: int = 0) -> Codebook:
    stack = stack_factor(rate)
    centroids = np.random.default_rng([seed, k, *domain.encode()]).normal(size=(k, WIDTH * stack))
    info = CodebookInfo(
        domain, (Segment(domain, 0, k),), stack, encoder, encoder[0] * 16, precision="exact", n_vectors=k
    )
    return Codebook(centroids.astype(np.float32), np.ones(k, np.int64), info)


def put(folder: Path, domain: str, k: int, rate: int = 100, encoder: str = "mini", seed: int = 0) -> Codebook:
    book = codebook(domain, k, rate, encoder, seed)
    save_codebook(codebook_path(folder, domain, k, rate), book)
    return book


@pytest.mark.parametrize("size", [*PAPER_SIZES, 256])
def test_the_ratio_of_the_paper(size: int) -> None:
    assert split_size(size, PAPER_RATIO) == {"general": size // 2, "speech": size // 4, "music": size // 4}


@pytest.mark.parametrize(
    ("size", "ratio", "message"),
    [
        (4098, PAPER_RATIO, "size 4098 does not divide into general : speech : music = 2:1:1; use a multiple of 4"),
        (2, PAPER_RATIO, "size 2 does not divide"),
        (8, {"a": 0}, "ratio a=0"),
        (8, {"merged": 1}, "ratio merged=1"),
        (8, {}, "the ratio is empty"),
    ],
)
def test_sizes_that_the_ratio_does_not_divide_are_refused(size: int, ratio: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_size(size, ratio)


def test_rows_in_the_order_of_the_ratio_with_their_segments() -> None:
    books = {domain: codebook(domain, k) for domain, k in (("speech", 4), ("music", 4), ("general", 8))}
    merged = merge_codebooks(books, PAPER_RATIO, 16)
    assert merged.metadata.segments == (Segment("general", 0, 8), Segment("speech", 8, 12), Segment("music", 12, 16))
    for segment in merged.metadata.segments:
        assert np.array_equal(merged.centroids[segment.start : segment.stop], books[segment.domain].centroids)
    assert merged.metadata.domain == "merged"
    assert merged.metadata.n_vectors == 16
    assert merged.metadata.precision == "exact"


def test_different_encoders_and_stack_factors_are_named() -> None:
    good = {"general": codebook("general", 8), "speech": codebook("speech", 4)}
    names = {"general": "g.safetensors", "speech": "s.safetensors", "music": "m.safetensors"}
    with pytest.raises(ValueError, match=r"m\.safetensors was made with encoder base .*, g\.safetensors with mini"):
        merge_codebooks({**good, "music": codebook("music", 4, encoder="base")}, PAPER_RATIO, 16, names=names)
    with pytest.raises(ValueError, match=r"m\.safetensors has stack factor 2 .* g\.safetensors has 1"):
        merge_codebooks({**good, "music": codebook("music", 4, rate=50)}, PAPER_RATIO, 16, names=names)
    with pytest.raises(ValueError, match=r"m\.safetensors has 5 centroids, but its share of 16 is 4"):
        merge_codebooks({**good, "music": codebook("music", 5)}, PAPER_RATIO, 16, names=names)
    with pytest.raises(ValueError, match="no codebook of domain 'music'"):
        merge_codebooks(good, PAPER_RATIO, 16)


def fill(folder: Path, unit: int, rate: int) -> None:
    for domain, share in PAPER_RATIO.items():
        put(folder, domain, unit * share, rate)


def test_all_possible_sizes_at_each_rate_are_planned(tmp_path: Path) -> None:
    fill(tmp_path, 4, 100)
    fill(tmp_path, 2, 100)
    fill(tmp_path, 4, 25)
    put(tmp_path, "speech", 32)
    put(tmp_path, "other", 8)
    plans = choose_plans(tmp_path, PAPER_RATIO)
    assert [(plan.token_rate, plan.size) for plan in plans] == [(100, 8), (100, 16), (25, 16)]
    assert [plan.size for plan in choose_plans(tmp_path, PAPER_RATIO, rates=[25])] == [16]
    assert [plan.token_rate for plan in choose_plans(tmp_path, PAPER_RATIO, sizes=[16])] == [100, 25]
    results = build_merged(tmp_path, plans, PAPER_RATIO)
    assert [result.path.name for result in results] == [
        "merged-8-r100.safetensors", "merged-16-r100.safetensors", "merged-16-r25.safetensors"
    ]  # fmt: skip
    assert load_codebook(results[1].path).k == 16


def test_missing_codebooks_are_listed_with_their_command(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"general-2048-r100\.safetensors \(sctok cluster --domain general --k 2048 --tok"
    ):
        choose_plans(tmp_path, PAPER_RATIO)
    put(tmp_path, "general", 8, 50)
    put(tmp_path, "speech", 4, 50)
    with pytest.raises(ValueError, match=r"size 16 at 50 tokens/s lacks music-4-r50\.safetensors") as error:
        choose_plans(tmp_path, PAPER_RATIO)
    assert "general" not in str(error.value).split(":", 1)[1]
    with pytest.raises(ValueError, match=r"size 16 at 50 tokens/s lacks music-4-r50\.safetensors"):
        choose_plans(tmp_path, PAPER_RATIO, sizes=[16])
    with pytest.raises(ValueError, match=r"size 16 at 25 tokens/s lacks general-8-r25\.safetensors"):
        choose_plans(tmp_path, PAPER_RATIO, sizes=[16], rates=[25])
    assert choose_plans(tmp_path, {"speech": 1, "general": 2}, sizes=[12])[0].parts == {"speech": 4, "general": 8}


def test_building_again_keeps_equal_files_and_refuses_different_ones(tmp_path: Path) -> None:
    fill(tmp_path, 2, 100)
    plans = [MergePlan(8, 100, split_size(8, PAPER_RATIO))]
    (first,) = build_merged(tmp_path, plans, PAPER_RATIO)
    before = first.path.read_bytes()
    assert first.made
    assert not build_merged(tmp_path, plans, PAPER_RATIO)[0].made
    put(tmp_path, "music", 2, seed=1)
    with pytest.raises(ValueError, match=r"merged-8-r100\.safetensors was made from other codebooks; use --overwrite"):
        build_merged(tmp_path, plans, PAPER_RATIO)
    assert first.path.read_bytes() == before
    assert build_merged(tmp_path, plans, PAPER_RATIO, overwrite=True)[0].made
    assert first.path.read_bytes() != before


def test_overwrite_replaces_a_damaged_merged_codebook(tmp_path: Path) -> None:
    fill(tmp_path, 2, 100)
    plans = [MergePlan(8, 100, split_size(8, PAPER_RATIO))]
    path = build_merged(tmp_path, plans, PAPER_RATIO)[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"merged-8-r100\.safetensors is damaged"):
        build_merged(tmp_path, plans, PAPER_RATIO)
    assert build_merged(tmp_path, plans, PAPER_RATIO, overwrite=True)[0].made
    assert path.read_bytes() == whole


def test_a_part_with_the_file_name_of_another_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 2, 100)
    music, speech = (codebook_path(tmp_path, domain, 2, 100) for domain in ("music", "speech"))
    speech.write_bytes(music.read_bytes())
    with pytest.raises(ValueError, match=r"speech-2-r100\.safetensors holds the codebook music-2-r100, not"):
        build_merged(tmp_path, [MergePlan(8, 100, split_size(8, PAPER_RATIO))], PAPER_RATIO)
    assert not codebook_path(tmp_path, "merged", 8, 100).exists()


def test_a_merged_codebook_may_be_stored_as_float16(tmp_path: Path) -> None:
    for domain, k in (("speech", 4), ("music", 4), ("general", 8)):
        put(tmp_path, domain, k)
    plans = choose_plans(tmp_path, PAPER_RATIO, [16])
    (result,) = build_merged(tmp_path, plans, PAPER_RATIO, dtype=np.float16)
    whole = merge_codebooks(
        {domain: load_codebook(path) for domain, path in plans[0].paths(tmp_path).items()}, PAPER_RATIO, 16
    )
    stored = load_codebook(result.path)
    np.testing.assert_array_equal(stored.centroids, whole.centroids.astype(np.float16))
    assert stored.metadata.certificate is not None
    assert stored.metadata.certificate["rounded_to"] == "float16"
    assert not build_merged(tmp_path, plans, PAPER_RATIO, dtype=np.float16)[0].made
    with pytest.raises(ValueError, match="use --overwrite"):
        build_merged(tmp_path, plans, PAPER_RATIO)
