"""The codebooks in the package match their names and the bundled encoder."""

import numpy as np
import pytest

from sctok.features.checkpoints import load_weights
from sctok.formats.bundled import BUNDLED_CODEBOOKS, BUNDLED_NAMES, bundled_codebook, bundled_name, bundled_place
from sctok.formats.codebooks import Segment, codebook_hash
from sctok.formats.describe import describe_file


@pytest.mark.parametrize("rate", [100, 50, 25])
def test_a_bundled_codebook_has_4096_rows_that_differ(rate: int) -> None:
    book = bundled_codebook(rate)
    assert book.centroids.shape == (4096, 192 * 100 // rate)
    assert np.isfinite(book.centroids).all()
    assert len(np.unique(book.centroids, axis=0)) == 4096


@pytest.mark.parametrize("rate", [100, 50, 25])
def test_a_bundled_codebook_has_the_segments_of_the_paper(rate: int) -> None:
    segments = (Segment("general", 0, 2048), Segment("speech", 2048, 3072), Segment("music", 3072, 4096))
    assert bundled_codebook(rate).metadata.segments == segments


@pytest.mark.parametrize("rate", [100, 50, 25])
def test_a_bundled_codebook_names_the_bundled_encoder(rate: int) -> None:
    info = bundled_codebook(rate).metadata
    assert (info.encoder, info.encoder_hash, info.token_rate) == ("mini", load_weights("mini").hash, rate)


@pytest.mark.parametrize("name", BUNDLED_CODEBOOKS)
def test_a_bundled_codebook_is_recognised_by_its_hash(name: str) -> None:
    assert bundled_name(codebook_hash(bundled_codebook(BUNDLED_CODEBOOKS[name]))) == name


def test_other_hashes_name_no_bundled_codebook() -> None:
    assert bundled_name("0123456789abcdef") is None


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_bundled_files_can_be_described_by_name(name: str) -> None:
    with bundled_place(name) as place:
        assert place is not None
        facts = describe_file(place)
    assert facts.get("bundled_codebook", name) == name


def test_other_names_are_not_bundled() -> None:
    with bundled_place("merged-4096-r75") as place:
        assert place is None
