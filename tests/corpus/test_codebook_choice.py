"""The codebook for a size and a rate: first the user's own, then the bundled one of the same encoder."""

from pathlib import Path

import pytest
from fakes import fake_codebook
from tests.training.trainings import codebook, encoder

from sctok.corpus.codebook_choice import choose_codebook
from sctok.corpus.runs.run_folder import RunError
from sctok.features.checkpoints import load_weights, save_weights
from sctok.formats.bundled import bundled_codebook
from sctok.formats.codebooks import codebook_path, save_codebook


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Codebooks of the fake encoder."""
    for domain, k, stack in (("merged", 16, 2), ("merged", 32, 2), ("merged", 64, 1), ("speech", 128, 2)):
        save_codebook(codebook_path(tmp_path, domain, k, 100 // stack), fake_codebook(k=k, stack=stack))
    return tmp_path


@pytest.mark.parametrize(("size", "rate", "k"), [(None, 50, 32), (16, 50, 16), (None, 100, 64)])
def test_the_largest_codebook_or_one_of_a_size_is_chosen(folder: Path, size: int | None, rate: int, k: int) -> None:
    book, message = choose_codebook(folder, size, rate)
    assert (book.k, book.metadata.token_rate, message) == (k, rate, "")


@pytest.mark.parametrize("rate", [100, 50, 25])
@pytest.mark.parametrize(("size", "encoder"), [(None, None), (4096, None), (None, "mini")])
def test_an_empty_folder_gives_the_bundled_codebook(
    tmp_path: Path, size: int | None, encoder: str | None, rate: int
) -> None:
    book, message = choose_codebook(tmp_path / "nothing", size, rate, encoder)
    assert book is bundled_codebook(rate)
    assert message == (
        f"using the bundled codebook merged-4096-r{rate} (encoder mini); "
        "run sctok cluster and sctok merge to make your own"
    )


def test_codebooks_of_another_rate_give_the_bundled_codebook(folder: Path) -> None:
    book, message = choose_codebook(folder, None, 25)
    assert book is bundled_codebook(25)
    assert f"none in {folder} fits, only merged-16 at 50, merged-32 at 50, merged-64 at 100" in message


def test_codebooks_of_another_encoder_give_the_bundled_codebook(folder: Path) -> None:
    book, message = choose_codebook(folder, None, 50, "mini")
    assert book is bundled_codebook(50)
    assert "merged-32 at 50 of another encoder" in message
    assert "speech-128 at 50 exist there;" in message


def test_codebooks_are_chosen_by_encoder(folder: Path) -> None:
    mini = load_weights("mini")
    save_codebook(codebook_path(folder, "merged", 8, 25), codebook(8, 0, f"{mini.hash}-cut"))
    for given in ("mini", mini):
        assert choose_codebook(folder, None, 25, given)[0].metadata.encoder_hash.endswith("-cut")


def test_a_copy_of_the_bundled_encoder_counts_as_the_bundled_encoder(tmp_path: Path) -> None:
    mini = load_weights("mini")
    save_weights(tmp_path / "copy.safetensors", mini.build(), {})
    assert choose_codebook(tmp_path, None, 100, str(tmp_path / "copy.safetensors"))[0] is bundled_codebook(100)


@pytest.mark.parametrize("name", ["base", "owner/name"])
def test_another_encoder_is_refused_without_downloading_it(folder: Path, name: str) -> None:
    with pytest.raises(
        RunError, match=rf"at 100 .* for the encoder {name}; it has .*Run sctok extract --encoder {name}"
    ):
        choose_codebook(folder, None, 100, name)


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "own.safetensors", encoder(), {})
    with pytest.raises(
        RunError, match=r"nor any other codebook\. The bundled codebook has 4096 centroids and is for the encoder mini"
    ):
        choose_codebook(tmp_path / "codebooks", None, 25, load_weights(tmp_path / "own.safetensors"))


def test_an_unknown_size_is_refused(folder: Path) -> None:
    with pytest.raises(RunError, match=r"no merged codebook of 8 centroids at 50 tokens per second; it has merged-16"):
        choose_codebook(folder, 8, 50)
