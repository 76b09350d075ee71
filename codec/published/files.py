"""Where the files of a published codec are: in a folder, or in a repository of the Hugging Face hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sctok.formats.files import is_repository
from sctok.formats.stacking import TOKEN_RATES, stack_factor

ENCODER, DECODER = "encoder.ckpt", "decoder.ckpt"
# What the published code fetches from the hub, and lays out in folders in the same way.
HUB_REPOSITORY = "haoheliu/SemantiCodec"
HUB_NAMES = ("semanticodec",)  # short for that repository
CHECKPOINTS = "semanticodec_tokenrate_{rate}"
CODEBOOKS = "codebook_idx/combine_{tokens}_audioset_dominate"
CODEBOOK = "codebook_{share}_0.npy"
SHARES = (2048, 4096, 8192, 16384)  # rows from AudioSet, half of all
OWN_CODEBOOK = "codebook.npy"
_WINDOW_TOKENS = 512  # at stack factor 1


@dataclass(frozen=True)
class PublishedFiles:
    """The files of one codec; source: what the user called it."""

    source: str
    encoder: Path
    decoder: Path
    codebooks: tuple[Path, ...]


def find_published(source: str, rate: int | None = None, codebooks: Path | None = None) -> PublishedFiles:
    """Find the files of a published codec, fetching what is on the hub and not in its cache.

    Args:
        source: a folder with encoder.ckpt and decoder.ckpt, or with folders `semanticodec_tokenrate_100` … of them; a
            hub repository `owner/name`; or `semanticodec`.
        rate: token rate 100, 50 or 25; needed where there are several.
        codebooks: a `.npy` file, or a folder of them or of the published folders. Default: `codebook_idx` or
            `codebook.npy` in the source or beside it.

    Raises:
        ValueError: files are missing, or the hub is out of reach; the message says which and what to do.
    """
    if rate is not None:
        stack_factor(rate)
    path = Path(source)
    if path.is_dir():
        folder = _checkpoint_folder(path, rate)
        places = [codebooks] if codebooks else [folder, path, folder.parent]
    elif source in HUB_NAMES or is_repository(source):
        if rate is None:
            raise ValueError(f"{source} has codecs of several token rates: give --rate 100, 50 or 25")
        repository = HUB_REPOSITORY if source in HUB_NAMES else source
        folder = _fetch_checkpoints(repository, rate)
        places = [codebooks] if codebooks else [_fetch_codebooks(repository, rate, folder.parent)]
    else:
        what = "is a file, not" if path.exists() else "is neither"
        raise ValueError(f"{source} {what} a folder nor a hub repository owner/name, nor {', '.join(HUB_NAMES)}")
    return PublishedFiles(source, folder / ENCODER, folder / DECODER, tuple(_codebook_files(places)))


def codebooks_of_rate(files: Sequence[Path], rate: int) -> list[Path]:
    """Return the codebooks in published folders of this token rate, or those whose folder names no rate."""
    tokens = {_WINDOW_TOKENS // factor: known for factor, known in TOKEN_RATES.items()}
    folders = {CODEBOOKS.format(tokens=count).split("/")[1]: known for count, known in tokens.items()}
    return [path for path in files if folders.get(path.parent.name, rate) == rate]


def _checkpoint_folder(path: Path, rate: int | None) -> Path:
    """Return the folder that holds the two checkpoints."""
    rates = [rate] if rate else list(TOKEN_RATES.values())
    folders = [path, *(path / CHECKPOINTS.format(rate=each) for each in rates)]
    found = [folder for folder in folders if (folder / ENCODER).is_file() or (folder / DECODER).is_file()]
    if not found:
        raise ValueError(f"{path} has neither {ENCODER} and {DECODER} nor a folder {CHECKPOINTS.format(rate='…')}")
    if len(found) > 1 and found[0] != path:
        raise ValueError(f"{path} has codecs of several token rates: give --rate 100, 50 or 25")
    for name in (ENCODER, DECODER):
        if not (found[0] / name).is_file():
            raise ValueError(f"{found[0]} has no {name}: a codec needs {ENCODER} and {DECODER}")
    return found[0]


def _codebook_files(places: Sequence[Path]) -> list[Path]:
    """Return the codebooks of the first place that has any."""
    patterns = (CODEBOOK.format(share="*"), "/".join((CODEBOOKS.format(tokens="*"), CODEBOOK.format(share="*"))))
    for place in places:
        if place.is_file():
            return [place]
        found = [path for pattern in (*patterns, patterns[1].split("/", 1)[1]) for path in sorted(place.glob(pattern))]
        found = found or [path for path in [place / OWN_CODEBOOK] if path.is_file()]
        if found:
            return found
    where = " or ".join(map(str, places))
    raise ValueError(
        f"there are no codebooks in {where}: give a .npy file, or a folder like the published codebook_idx, with "
        "--codebooks"
    )


def _fetch_checkpoints(repository: str, rate: int) -> Path:
    folder = CHECKPOINTS.format(rate=rate)
    _fetch(repository, f"{folder}/{DECODER}")
    return _fetch(repository, f"{folder}/{ENCODER}").parent


def _fetch_codebooks(repository: str, rate: int, root: Path) -> Path:
    """Return the folder of the codebooks of a rate, all sizes."""
    folder = CODEBOOKS.format(tokens=_WINDOW_TOKENS // stack_factor(rate))
    for share in SHARES:
        _fetch(repository, f"{folder}/{CODEBOOK.format(share=share)}")
    return root / folder


def _fetch(repository: str, filename: str) -> Path:
    """Return the local path of a file of a hub repository, downloaded where it is not cached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename))
    except LocalEntryNotFoundError as error:
        reason = f"the hub is out of reach and the file is not in its cache: {_first_line(error)}"
    except EntryNotFoundError:
        reason = "the repository has no such file"
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = _first_line(error)
    raise ValueError(
        f"cannot fetch {filename} of {repository} from the Hugging Face hub ({reason}): download it where there is a "
        "network and give the folder"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
