import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.formats.codebooks import (
    Codebook,
    CodebookInfo,
    Segment,
    codebook_hash,
    codebook_path,
    export_npy,
    find_codebooks,
    load_codebook,
    load_named_codebook,
    load_npy,
    published_npy_name,
    round_codebook,
    save_codebook,
)
from sctok.formats.files import FormatError
from sctok.formats.tensors import save_tensors

INFO = CodebookInfo(
    domain="merged",
    segments=(Segment("general", 0, 4), Segment("speech", 4, 6), Segment("Musik ü", 6, 8)),
    stack_factor=2,
    encoder="mini",
    encoder_hash="0123456789abcdef",
    seed=7,
    algorithm="lloyd",
    precision="exact",
    n_vectors=36,
    inertia_history=(12.5, 0.1 + 0.2),
    certificate={"moved": 0.0, "passes": 3},
)


def example(**changes: Any) -> Codebook:
    centroids = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    return Codebook(centroids, np.arange(8), dataclasses.replace(INFO, **changes))


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(1, 40),
    width=st.integers(1, 12),
    stack=st.sampled_from([1, 2, 4]),
    domain=st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable()),
    history=st.lists(st.floats(0, allow_infinity=False), max_size=4),
    seed=st.integers(0, 2**32),
)
def test_round_trip(k: int, width: int, stack: int, domain: str, history: list[float], seed: int) -> None:
    centroids = np.random.default_rng(seed).standard_normal((k, width * stack)).astype(np.float32)
    info = CodebookInfo(domain, (Segment(domain, 0, k),), stack, "e", "h", seed=seed, inertia_history=tuple(history))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.safetensors"
        save_codebook(path, Codebook(centroids, np.arange(k), info))
        loaded = load_codebook(path)
    np.testing.assert_array_equal(loaded.centroids, centroids)
    np.testing.assert_array_equal(loaded.counts, np.arange(k))
    assert loaded.metadata == info
    assert (loaded.k, loaded.width, loaded.centroids.dtype, loaded.counts.dtype) == (k, width, np.float32, np.int64)


def test_equal_codebooks_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save_codebook(tmp_path / name, example())
    assert len({(tmp_path / name).read_bytes() for name in ("a", "b", "c")}) == 1
    assert load_codebook(tmp_path / "a").metadata == INFO


def test_float16_takes_half_the_space_and_keeps_the_hash(tmp_path: Path) -> None:
    book = round_codebook(example())
    save_codebook(tmp_path / "half", book, np.float16)
    save_codebook(tmp_path / "whole", book)
    sizes = [(tmp_path / name).stat().st_size for name in ("half", "whole")]
    assert sizes[1] - sizes[0] == 2 * book.centroids.size
    for name in ("half", "whole"):
        loaded = load_codebook(tmp_path / name)
        assert loaded.centroids.dtype == np.float32
        np.testing.assert_array_equal(loaded.centroids, book.centroids)
        assert codebook_hash(loaded) == codebook_hash(book)


def test_float16_refuses_values_that_it_would_change(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are not float16 values; round the codebook first"):
        save_codebook(tmp_path / "c", example(), np.float16)
    assert not (tmp_path / "c").exists()


def test_centroids_beyond_float16_are_not_rounded() -> None:
    with pytest.raises(ValueError, match="centroid 0 is not finite"):
        round_codebook(dataclasses.replace(example(), centroids=np.full((8, 6), 70_000.0)))


@pytest.mark.parametrize(
    ("centroids", "counts", "info", "message"),
    [
        (np.zeros((8, 5)), np.zeros(8), INFO, "width 5 is not a multiple of stack factor 2"),
        (np.zeros((8, 6)), np.zeros(7), INFO, "counts"),
        (np.zeros((8, 6)), np.full(8, -1), INFO, "counts"),
        (np.zeros((9, 6)), np.zeros(9), INFO, "segments end at row 8 of 9"),
        (np.zeros(8), np.zeros(8), INFO, "shape"),
        (np.zeros((0, 6)), np.zeros(0), INFO, "shape"),
        (np.vstack([np.zeros((3, 6)), np.full((5, 6), np.nan)]), np.zeros(8), INFO, "centroid 3 is not finite"),
    ],
)
def test_codebooks_are_checked_when_built(centroids: Any, counts: Any, info: CodebookInfo, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Codebook(centroids, counts, info)


@pytest.mark.parametrize(
    "segments", [(Segment("a", 1, 4),), (Segment("a", 0, 4), Segment("b", 5, 8)), (Segment("a", 0, 0),)]
)
def test_segments_have_no_gaps(segments: tuple[Segment, ...]) -> None:
    with pytest.raises(ValueError, match="segment"):
        dataclasses.replace(INFO, segments=segments)


def test_the_hash_covers_everything_that_decides_tokens() -> None:
    base = codebook_hash(example())
    assert codebook_hash(example(seed=8, algorithm="other", domain="x")) == base
    assert len({base, codebook_hash(example(stack_factor=1)), codebook_hash(example(encoder_hash="other"))}) == 3
    moved = dataclasses.replace(example(), centroids=example().centroids + 1)
    assert codebook_hash(moved) != base


def test_paths_and_listing(tmp_path: Path) -> None:
    for domain, k, rate in (("speech", 4096, 100), ("speech", 512, 100), ("my-domain", 16, 25)):
        save_codebook(codebook_path(tmp_path, domain, k, rate), example())
    (tmp_path / "speech-4096.safetensors").write_bytes(b"")
    (tmp_path / "speech-4096-r75.safetensors").write_bytes(b"")
    found = find_codebooks(tmp_path)
    assert [(book.domain, book.k, book.token_rate) for book in found] == [
        ("my-domain", 16, 25),
        ("speech", 512, 100),
        ("speech", 4096, 100),
    ]
    assert found[0].path == tmp_path / "my-domain-16-r25.safetensors"
    assert find_codebooks(tmp_path / "missing") == []
    with pytest.raises(ValueError, match="cannot be the name of a domain"):
        codebook_path(tmp_path, "../speech", 4, 100)


def test_npy_export_uses_the_published_names(tmp_path: Path) -> None:
    assert published_npy_name(example()) == Path("combine_256_audioset_dominate/codebook_4_0.npy")
    assert published_npy_name(example(segments=(), stack_factor=1)).parts[0] == "combine_512_audioset_dominate"
    written = export_npy(example(), tmp_path)
    assert written == tmp_path / "combine_256_audioset_dominate" / "codebook_4_0.npy"
    np.testing.assert_array_equal(np.load(written), example().centroids)
    assert export_npy(example(), tmp_path / "own.npy").read_bytes() == written.read_bytes()


def test_published_arrays_load_with_the_facts_of_the_caller(tmp_path: Path) -> None:
    path = export_npy(example(), tmp_path / "c.npy")
    loaded = load_npy(path, stack_factor=2, encoder="mini", encoder_hash=INFO.encoder_hash)
    assert codebook_hash(loaded) == codebook_hash(example())
    assert (loaded.metadata.segments, loaded.metadata.n_vectors, loaded.counts.sum()) == ((), 0, 0)
    with pytest.raises(FormatError, match=r"c\.npy is not an array of centroids for stack factor 4"):
        load_npy(path, stack_factor=4, encoder="mini", encoder_hash="x")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(path.read_bytes()[:150])
    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "labels.npy", np.zeros((8, 4), np.int64))
    for name in ("objects", "cut", "text", "labels"):
        with pytest.raises(FormatError, match=rf"{name}\.npy is not an array of centroids"):
            load_npy(tmp_path / f"{name}.npy", stack_factor=2, encoder="mini", encoder_hash="x")


def test_a_codebook_must_match_its_file_name(tmp_path: Path) -> None:
    right = codebook_path(tmp_path, "merged", 8, 50)
    save_codebook(right, example())
    assert load_named_codebook(right).metadata == INFO
    for domain, k, rate in (("merged", 8, 100), ("merged", 16, 50), ("speech", 8, 50)):
        path = right.rename(codebook_path(tmp_path, domain, k, rate))
        with pytest.raises(FormatError, match=rf"{path.name} holds the codebook merged-8-r50, not .* name") as caught:
            load_named_codebook(path)
        assert "\n" not in str(caught.value)
        path.rename(right)


@pytest.mark.parametrize("length", [60, 500, -8, -1])
def test_truncated_codebooks_are_refused(tmp_path: Path, length: int) -> None:
    save_codebook(tmp_path / "c.safetensors", example())
    content = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(content[:length])
    with pytest.raises(FormatError, match=r"c\.safetensors is damaged") as caught:
        load_codebook(tmp_path / "c.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"fLaC", b"fLaC\0\0\0\x22{ and more audio", b"RIFF$\0\0\0WAVEfmt ", b'{"a": {"b']
)
def test_files_of_other_formats_are_not_called_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.flac").write_bytes(content)
    with pytest.raises(FormatError, match=r"mine\.flac is not a file that sctok writes.*; check the path") as caught:
        load_codebook(tmp_path / "mine.flac")
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("array", ["centroids", "counts"])
def test_a_flipped_bit_is_found(tmp_path: Path, array: str) -> None:
    book = example()
    save_codebook(tmp_path / "c.safetensors", book)
    content = bytearray((tmp_path / "c.safetensors").read_bytes())
    content[content.find(getattr(book, array)[3].tobytes())] ^= 1
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=r"c\.safetensors is damaged .*content_hash"):
        load_codebook(tmp_path / "c.safetensors")


def test_changed_metadata_is_found(tmp_path: Path) -> None:
    save_codebook(tmp_path / "c.safetensors", example())
    content = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(content.replace(b"0123456789abcdef", b"0123456789abcdee"))
    with pytest.raises(FormatError, match=r"c\.safetensors is damaged .*content_hash"):
        load_codebook(tmp_path / "c.safetensors")


def save_changed(path: Path, *, version: int = 1, name: str = "sctok-codebook", drop: str = "", **changes: Any) -> None:
    book = example()
    arrays = {"centroids": book.centroids, "counts": book.counts}
    metadata = {**dataclasses.asdict(book.metadata), **changes}
    metadata.pop(drop, None)
    arrays.pop(drop, None)
    save_tensors(path, arrays, format_name=name, version=version, metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2 of sctok-codebook, this sctok reads version 1; update sctok"),
        ({"name": "sctok-encoder"}, "is not a file that sctok writes .expected: sctok-codebook"),
        ({"drop": "counts"}, "damaged .*counts.* is missing"),
        ({"drop": "stack_factor"}, "damaged .*stack_factor.* is missing"),
        ({"stack_factor": 3}, "damaged .*stack factor 3"),
        ({"segments": [{"domain": "a", "start": 0, "stop": 9}]}, "damaged .*segments end at row 9 of 8"),
        ({"segments": [{"name": "a"}]}, "damaged"),
        ({"segments": 5}, "damaged"),
        ({"inertia_history": ["x"]}, "damaged"),
        ({}, "damaged .*content_hash.* is missing"),
    ],
)
def test_changed_codebooks_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_changed(tmp_path / "c.safetensors", **changes)
    with pytest.raises(FormatError, match=rf"c\.safetensors .*{message}"):
        load_codebook(tmp_path / "c.safetensors")


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"w": np.zeros(3)}, tmp_path / "w.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match="not a file that sctok writes"):
        load_codebook(tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError):
        load_codebook(tmp_path / "missing.safetensors")
