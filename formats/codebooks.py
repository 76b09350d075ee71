"""Codebooks: centroids, how often each was chosen, and how they were made."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import sctok

from .files import FormatError, atomic_path, damaged, hash_arrays, hash_json
from .npy import read_npy
from .stacking import TOKEN_RATES, token_rate
from .tensors import read_tensors, save_tensors

CODEBOOK_FORMAT = "sctok-codebook"
CODEBOOK_VERSION = 1
MERGED_DOMAIN = "merged"

_FILE_NAME = re.compile(rf"(.+)-(\d+)-r({'|'.join(map(str, TOKEN_RATES.values()))})\.safetensors")
_PATCH_TOKENS = 512  # patches of a window; published folders are named after 512 / stack factor


@dataclass(frozen=True)
class Segment:
    """Rows start … stop - 1 of a codebook, which come from the codebook of `domain`."""

    domain: str
    start: int
    stop: int


@dataclass(frozen=True)
class CodebookInfo:
    """How a codebook was made.

    domain: "speech", "music", "general", any other name, or "merged". segments: which rows came from which domain,
    in row order and without gaps; empty if unknown. n_vectors: vectors that were counted, 0 if there are no counts.
    inertia_history: sum of squared distances after each pass. certificate: what the clustering proved about its
    result, or None.

    Raises ValueError for a stack factor other than 1, 2, 4 and for segments with gaps.
    """

    domain: str
    segments: tuple[Segment, ...]
    stack_factor: int
    encoder: str
    encoder_hash: str
    seed: int = 0
    algorithm: str = ""
    precision: str = ""
    n_vectors: int = 0
    inertia_history: tuple[float, ...] = ()
    certificate: dict[str, Any] | None = None
    sctok_version: str = field(default=sctok.__version__)
    format_version: int = CODEBOOK_VERSION

    def __post_init__(self) -> None:
        token_rate(self.stack_factor)
        row = 0
        for segment in self.segments:
            if segment.start != row or segment.stop <= segment.start:
                raise ValueError(
                    f"segment {segment.domain!r} has rows {segment.start} to {segment.stop}; "
                    f"it must start at {row} and not be empty"
                )
            row = segment.stop

    @property
    def token_rate(self) -> int:
        """Tokens per second of both streams together: 100, 50 or 25."""
        return token_rate(self.stack_factor)


@dataclass(frozen=True, eq=False)
class Codebook:
    """Centroids float32 (k, E·stack_factor), counts int64 (k,), metadata.

    Raises ValueError for other shapes, types that do not convert, values that are not finite, negative counts, and
    segments that do not cover all rows.
    """

    centroids: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    metadata: CodebookInfo

    def __post_init__(self) -> None:
        centroids = np.ascontiguousarray(self.centroids, np.float32)
        counts = np.ascontiguousarray(self.counts, np.int64)
        if centroids.ndim != 2 or 0 in centroids.shape:
            raise ValueError(f"centroids have shape {centroids.shape}, not (k, width)")
        if centroids.shape[1] % self.metadata.stack_factor:
            raise ValueError(
                f"centroid width {centroids.shape[1]} is not a multiple of stack factor {self.metadata.stack_factor}"
            )
        if counts.shape != centroids.shape[:1] or (counts < 0).any():
            raise ValueError(f"counts of shape {counts.shape} do not match {len(centroids)} centroids, or are negative")
        if not np.isfinite(centroids).all():
            raise ValueError(f"centroid {int(np.flatnonzero(~np.isfinite(centroids).all(1))[0])} is not finite")
        if self.metadata.segments and self.metadata.segments[-1].stop != len(centroids):
            raise ValueError(f"segments end at row {self.metadata.segments[-1].stop} of {len(centroids)}")
        object.__setattr__(self, "centroids", centroids)
        object.__setattr__(self, "counts", counts)

    @property
    def k(self) -> int:
        """Number of centroids."""
        return len(self.centroids)

    @property
    def width(self) -> int:
        """Values of one unstacked patch embedding."""
        return int(self.centroids.shape[1]) // self.metadata.stack_factor


def round_codebook(codebook: Codebook) -> Codebook:
    """Round the centroids of a codebook to float16 values, kept as float32 (k, E·stack_factor).

    Raises ValueError if a centroid exceeds the range of float16.
    """
    with np.errstate(over="ignore"):
        return replace(codebook, centroids=codebook.centroids.astype(np.float16).astype(np.float32))


def save_codebook(
    path: str | os.PathLike[str], codebook: Codebook, dtype: type[np.float16] | type[np.float32] = np.float32
) -> None:
    """Write a codebook to a safetensors file, atomically; equal codebooks give equal bytes.

    dtype: of the stored centroids. float16 takes half the space but needs centroids from `round_codebook`.

    Raises ValueError for centroids that `dtype` cannot represent exactly; DiskFullError.
    """
    with np.errstate(over="ignore"):
        stored = codebook.centroids.astype(dtype)
    if not np.array_equal(stored, codebook.centroids):
        raise ValueError(f"{path}: centroids are not float16 values; round the codebook first")
    arrays: dict[str, npt.NDArray[Any]] = {"centroids": stored, "counts": codebook.counts}
    metadata = asdict(codebook.metadata)
    del metadata["format_version"]  # save_tensors adds it
    save_tensors(
        path,
        arrays,
        format_name=CODEBOOK_FORMAT,
        version=CODEBOOK_VERSION,
        metadata={**metadata, "content_hash": _content_hash(arrays, metadata)},
    )


def load_codebook(path: str | os.PathLike[str]) -> Codebook:
    """Read and check a codebook, whose centroids may be stored as float16.

    Raises FileNotFoundError; FormatError for another format or version, or a damaged file.
    """
    arrays, metadata = read_tensors(path, format_name=CODEBOOK_FORMAT, version=CODEBOOK_VERSION)
    try:
        centroids, counts = arrays["centroids"], arrays["counts"]
        if centroids.dtype not in (np.float32, np.float16) or counts.dtype != np.int64:
            raise ValueError(f"centroids are {centroids.dtype} and counts {counts.dtype}")
        codebook = Codebook(centroids, counts, _info_from_json(metadata))
        recorded = metadata.pop("content_hash")
        if recorded != _content_hash(arrays, metadata):
            raise ValueError("its values do not match its content_hash")
        return codebook
    except KeyError as error:
        raise damaged(path, f"{error} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error) from None


def _content_hash(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any]) -> str:
    return hash_json([hash_arrays(arrays), metadata])


def _info_from_json(metadata: Mapping[str, Any]) -> CodebookInfo:
    known = {entry.name for entry in fields(CodebookInfo)} - {"format_version"}
    values: dict[str, Any] = {name: metadata[name] for name in known}
    values["segments"] = tuple(Segment(**segment) for segment in metadata["segments"])
    values["inertia_history"] = tuple(float(value) for value in metadata["inertia_history"])
    return CodebookInfo(**values)


def codebook_hash(codebook: Codebook) -> str:
    """Return the hash of everything that determines tokens: centroids, stack factor and encoder weights."""
    return hash_json(
        {
            "centroids": hash_arrays({"centroids": codebook.centroids}),
            "stack_factor": codebook.metadata.stack_factor,
            "encoder_hash": codebook.metadata.encoder_hash,
        }
    )


def codebook_path(folder: str | os.PathLike[str], domain: str, k: int, rate: int) -> Path:
    """Return `<folder>/<domain>-<k>-r<rate>.safetensors`. Raises ValueError if `domain` cannot be in a file name."""
    if not domain or domain.startswith(".") or any(character in domain for character in "/\\\0\n"):
        raise ValueError(f"{domain!r} cannot be the name of a domain; use letters, digits, '-' and '_'")
    return Path(folder) / f"{domain}-{k}-r{rate}.safetensors"


@dataclass(frozen=True, order=True)
class CodebookFile:
    """A codebook described by its file name only."""

    domain: str
    k: int
    token_rate: int
    path: Path


def find_codebooks(folder: str | os.PathLike[str]) -> list[CodebookFile]:
    """Return the codebooks in a folder, ordered by domain, k and token rate; none if the folder is missing."""
    return sorted(book for path in Path(folder).glob("*.safetensors") if (book := _named_codebook(path)))


def _named_codebook(path: Path) -> CodebookFile | None:
    name = _FILE_NAME.fullmatch(path.name)
    return CodebookFile(name[1], int(name[2]), int(name[3]), path) if name else None


def load_named_codebook(path: Path) -> Codebook:
    """Read a codebook with `load_codebook` and check that it matches its file name.

    Raises as `load_codebook`, and FormatError if the name has another domain, size or token rate than the content.
    """
    codebook = load_codebook(path)
    info = codebook.metadata
    if _named_codebook(path) != CodebookFile(info.domain, codebook.k, info.token_rate, path):
        raise FormatError(
            f"{path} holds the codebook {info.domain}-{codebook.k}-r{info.token_rate}, not the one in its name; "
            "rename it, or make the right one"
        )
    return codebook


def published_npy_name(codebook: Codebook) -> Path:
    """Return the published relative name, such as `combine_512_audioset_dominate/codebook_2048_0.npy`.

    The number counts the rows of the domain `general` (AudioSet), or half of all rows if that is unknown.
    """
    general = [part.stop - part.start for part in codebook.metadata.segments if part.domain == "general"]
    share = sum(general) or codebook.k // 2
    tokens = _PATCH_TOKENS // codebook.metadata.stack_factor
    return Path(f"combine_{tokens}_audioset_dominate") / f"codebook_{share}_0.npy"


def export_npy(codebook: Codebook, path: str | os.PathLike[str]) -> Path:
    """Write the centroids as `.npy`, float32 (k, width), atomically; return the path of the file.

    path: a name that ends in `.npy`, or a folder in which the file gets its published name.
    """
    target = Path(path)
    if target.suffix != ".npy":
        target = target / published_npy_name(codebook)
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        np.save(file, codebook.centroids, allow_pickle=False)
    return target


def load_npy(path: str | os.PathLike[str], *, stack_factor: int, encoder: str, encoder_hash: str) -> Codebook:
    """Read published centroids (`.npy`, float (k, E·stack_factor)), which have no counts and no segments.

    Raises FileNotFoundError; FormatError if the file is not such an array.
    """
    try:
        with Path(path).open("rb") as file:
            centroids = read_npy(file, os.fstat(file.fileno()).st_size)
        if centroids.dtype.kind != "f":
            raise ValueError(f"its values are {centroids.dtype}")
        info = CodebookInfo(MERGED_DOMAIN, (), stack_factor, encoder, encoder_hash, algorithm="published")
        return Codebook(centroids, np.zeros(len(centroids), np.int64), info)
    except (ValueError, TypeError, EOFError) as error:
        raise FormatError(f"{path} is not an array of centroids for stack factor {stack_factor} ({error})") from None
