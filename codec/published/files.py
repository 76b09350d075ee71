"""Finds the files of a published codec in a folder or in a repository of the Hugging Face hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sctok.formats.files import is_repository
from sctok.formats.stacking import TOKEN_RATES, stack_factor

ENCODER, DECODER = "encoder.ckpt", "decoder.ckpt"
# The published code downloads these from the hub, and uses the same layout for folders.
HUB_REPOSITORY = "haoheliu/SemantiCodec"
HUB_NAMES = ("semanticodec",)  # short names of that repository
CHECKPOINTS = "semanticodec_tokenrate_{rate}"
CODEBOOKS = "codebook_idx/combine_{tokens}_audioset_dominate"
CODEBOOK = "codebook_{share}_0.npy"
SHARES = (2048, 4096, 8192, 16384)  # number of rows from AudioSet, which is half of all rows
OWN_CODEBOOK = "codebook.npy"
_WINDOW_TOKENS = 512  # at stack factor 1


@dataclass(frozen=True)
class PublishedFiles:
    """The files of one codec. `source` is the user's name for them."""

    source: str
    encoder: Path
    decoder: Path
    codebooks: tuple[Path, ...]


def find_published(source: str, rate: int | None = None, codebooks: Path | None = None) -> PublishedFiles:
    """Find the files of a published codec. Download files of the hub that are not in its cache.

    Args:
        source: a folder with encoder.ckpt and decoder.ckpt, or with a folder `semanticodec_tokenrate_<rate>` of them
            for each rate; a hub repository `owner/name`; or `semanticodec`.
        rate: token rate 100, 50 or 25; required if the source has several rates.
        codebooks: a `.npy` file, a folder of such files, or a folder of the published folders. By default,
            `codebook_idx` or `codebook.npy` in the source or next to it.

    Raises:
        ValueError: files are missing, or the hub cannot be reached.
    """
    if rate is not None:
        stack_factor(rate)
    path = Path(source)
    if path.is_dir():
        folder = _checkpoint_folder(path, rate)
        candidates = [codebooks] if codebooks else [folder, path, folder.parent]
    elif source in HUB_NAMES or is_repository(source):
        if rate is None:
            raise ValueError(f"{source} has codecs with several token rates: give --rate 100, 50 or 25")
        repository = HUB_REPOSITORY if source in HUB_NAMES else source
        fetch_file(repository, f"{CHECKPOINTS.format(rate=rate)}/{DECODER}")
        folder = fetch_file(repository, f"{CHECKPOINTS.format(rate=rate)}/{ENCODER}").parent
        candidates = [codebooks] if codebooks else [_fetch_codebooks(repository, rate, folder.parent)]
    else:
        kind = "is a file, neither" if path.exists() else "is neither"
        raise ValueError(f"{source} {kind} a folder nor a hub repository owner/name, nor {', '.join(HUB_NAMES)}")
    return PublishedFiles(source, folder / ENCODER, folder / DECODER, tuple(_codebook_files(candidates)))


def codebooks_of_rate(files: Sequence[Path], rate: int) -> list[Path]:
    """Return the codebooks of a token rate, including those in folders without a rate in their name."""
    tokens = {_WINDOW_TOKENS // factor: each for factor, each in TOKEN_RATES.items()}
    folders = {CODEBOOKS.format(tokens=count).split("/")[1]: each for count, each in tokens.items()}
    return [path for path in files if folders.get(path.parent.name, rate) == rate]


def _checkpoint_folder(path: Path, rate: int | None) -> Path:
    """Return the folder that contains both checkpoints."""
    rates = [rate] if rate else list(TOKEN_RATES.values())
    folders = [path, *(path / CHECKPOINTS.format(rate=each) for each in rates)]
    found = [folder for folder in folders if (folder / ENCODER).is_file() or (folder / DECODER).is_file()]
    if not found:
        raise ValueError(f"{path} has neither {ENCODER} and {DECODER} nor a folder {CHECKPOINTS.format(rate='…')}")
    if len(found) > 1 and found[0] != path:
        raise ValueError(f"{path} has codecs with several token rates: give --rate 100, 50 or 25")
    for name in (ENCODER, DECODER):
        if not (found[0] / name).is_file():
            raise ValueError(f"{found[0]} has no {name}: a codec needs {ENCODER} and {DECODER}")
    return found[0]


def _codebook_files(paths: Sequence[Path]) -> list[Path]:
    """Return the codebooks of the first file or folder that has any."""
    patterns = (CODEBOOK.format(share="*"), "/".join((CODEBOOKS.format(tokens="*"), CODEBOOK.format(share="*"))))
    for path in paths:
        if path.is_file():
            return [path]
        found = [book for pattern in (*patterns, patterns[1].split("/", 1)[1]) for book in sorted(path.glob(pattern))]
        found = found or [book for book in [path / OWN_CODEBOOK] if book.is_file()]
        if found:
            return found
    where = " or ".join(map(str, paths))
    raise ValueError(
        f"there are no codebooks in {where}: with --codebooks, give a .npy file or a folder like the published "
        "codebook_idx"
    )


def _fetch_codebooks(repository: str, rate: int, root: Path) -> Path:
    """Return the folder of all codebooks of a rate."""
    folder = CODEBOOKS.format(tokens=_WINDOW_TOKENS // stack_factor(rate))
    for share in SHARES:
        fetch_file(repository, f"{folder}/{CODEBOOK.format(share=share)}")
    return root / folder


def fetch_file(repository: str, filename: str) -> Path:
    """Return the local path of a file of a hub repository, and download it if it is not cached. Raises ValueError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename))
    except LocalEntryNotFoundError as error:
        reason = f"the hub cannot be reached and the file is not in its cache: {first_line(error)}"
    except EntryNotFoundError:
        reason = "the repository has no such file"
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = first_line(error)
    raise ValueError(
        f"cannot fetch {filename} of {repository} from the Hugging Face hub ({reason}): download it on a machine with "
        "a network and give the folder"
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
