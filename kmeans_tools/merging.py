"""Merging of domain codebooks into one, by default general : speech : music at 2 : 1 : 1, as in the paper.

A merged codebook is the concatenation of the rows of one codebook per domain, in the order of the ratio. A size of
32,768 at 2 : 1 : 1 has 16,384 general rows, then 8192 speech rows, then 8192 music rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from sctok.formats.codebooks import (
    MERGED_DOMAIN,
    Codebook,
    CodebookInfo,
    Segment,
    codebook_hash,
    codebook_path,
    find_codebooks,
    load_named_codebook,
    round_codebook,
    save_codebook,
)
from sctok.formats.files import FormatError, remove_stale_temporaries
from sctok.formats.stacking import TOKEN_RATES

PAPER_RATIO = {"general": 2, "speech": 1, "music": 1}  # section 3 of the SemantiCodec paper
PAPER_SIZES = (4096, 8192, 16_384, 32_768)


@dataclass(frozen=True)
class MergePlan:
    """The size and token rate of a merged codebook, and the number of rows of each domain, in row order."""

    size: int
    token_rate: int
    parts: dict[str, int]

    def paths(self, folder: Path) -> dict[str, Path]:
        """Return the path of the codebook of each domain, whether it exists or not."""
        return {domain: codebook_path(folder, domain, k, self.token_rate) for domain, k in self.parts.items()}

    def missing(self, folder: Path) -> list[str]:
        """Return the file name of each missing domain codebook, with the command that makes it."""
        return [
            f"{path.name} (sctok cluster --domain {domain} --k {self.parts[domain]} --token-rate {self.token_rate})"
            for domain, path in self.paths(folder).items()
            if not path.exists()
        ]


@dataclass(frozen=True, eq=False)
class MergedCodebook:
    """A merged codebook on disk; `made` is False if an equal file already existed."""

    path: Path
    codebook: Codebook
    made: bool


def split_size(size: int, ratio: Mapping[str, int]) -> dict[str, int]:
    """Return the number of rows of each domain in a merged codebook of `size` rows, in the order of `ratio`.

    Raises:
        ValueError: the ratio is empty, has a share below 1 or the domain "merged", or does not divide the size.
    """
    if not ratio:
        raise ValueError("the ratio is empty; give at least one domain")
    for domain, share in ratio.items():
        if share < 1 or domain == MERGED_DOMAIN:
            raise ValueError(f"ratio {domain}={share} is not a domain with a share of at least 1")
    total = sum(ratio.values())
    if size < total or size % total:
        shares = ":".join(str(share) for share in ratio.values())
        raise ValueError(f"size {size} does not divide into {' : '.join(ratio)} = {shares}; use a multiple of {total}")
    return {domain: size // total * share for domain, share in ratio.items()}


def choose_plans(
    folder: Path, ratio: Mapping[str, int], sizes: Sequence[int] = (), rates: Sequence[int] = ()
) -> list[MergePlan]:
    """Return the merged codebooks to build from the domain codebooks in a folder.

    sizes: requested sizes, each built at every possible token rate; by default all sizes whose parts exist.
    rates: requested token rates; by default those of the existing codebooks. If sizes and rates are given, every
    combination must be possible.

    Raises:
        ValueError: nothing can be built, or a requested size cannot; the error lists the missing domain codebooks and
            the commands that make them.
    """
    split_size(sum(ratio.values()), ratio)
    if not sizes:
        plans = [plan for plan in _possible_plans(folder, ratio) if not rates or plan.token_rate in rates]
        ready = [plan for plan in plans if not plan.missing(folder)]
        if not ready:
            plans = plans or [_smallest_plan(rate, ratio) for rate in rates or [max(TOKEN_RATES.values())]]
            fewest = min(len(plan.missing(folder)) for plan in plans)
            raise _nothing_to_build(folder, [plan for plan in plans if len(plan.missing(folder)) == fewest][-1:])
        return ready
    available = rates or sorted({plan.token_rate for plan in _possible_plans(folder, ratio)}, reverse=True)
    chosen = []
    for size in sizes:
        plans = [MergePlan(size, rate, split_size(size, ratio)) for rate in available or [max(TOKEN_RATES.values())]]
        ready = [plan for plan in plans if not plan.missing(folder)]
        if not ready or (rates and len(ready) < len(plans)):
            raise _nothing_to_build(folder, plans)
        chosen += ready
    return chosen


def _possible_plans(folder: Path, ratio: Mapping[str, int]) -> list[MergePlan]:
    """Return every plan with at least one existing part in the folder, by token rate (highest first) and size."""
    total = sum(ratio.values())
    plans = set()
    for found in find_codebooks(folder):
        share = ratio.get(found.domain)
        if share and found.k % share == 0:
            plans.add((-found.token_rate, found.k // share * total))
    return [MergePlan(size, -rate, split_size(size, ratio)) for rate, size in sorted(plans)]


def _smallest_plan(rate: int, ratio: Mapping[str, int]) -> MergePlan:
    size = sum(ratio.values()) * (PAPER_SIZES[0] // sum(PAPER_RATIO.values()))
    return MergePlan(size, rate, split_size(size, ratio))


def _nothing_to_build(folder: Path, plans: Sequence[MergePlan]) -> ValueError:
    needs = [
        f"size {plan.size} at {plan.token_rate} tokens/s lacks {', '.join(missing)}"
        for plan in plans
        if (missing := plan.missing(folder))
    ]
    return ValueError(f"{folder}: {'; '.join(needs)}")


def build_merged(
    folder: Path,
    plans: Sequence[MergePlan],
    ratio: Mapping[str, int],
    *,
    overwrite: bool = False,
    dtype: type[np.float16] | type[np.float32] = np.float32,
) -> list[MergedCodebook]:
    """Merge the domain codebooks in a folder and write `merged-<size>-r<rate>.safetensors` there for each plan.

    Temporary files of killed processes are removed from the folder. With `dtype` float16 the centroids are rounded and
    the file is half as large; the certificate records it. If an error is raised, nothing is written.

    Raises:
        ValueError: the parts do not fit together, or an existing merged codebook differs and must not be overwritten.
        FormatError: a part is damaged or does not match its file name.
    """
    remove_stale_temporaries(folder)
    results = []
    for plan in plans:
        paths = plan.paths(folder)
        parts = {domain: load_named_codebook(path) for domain, path in paths.items()}
        merged = merge_codebooks(parts, ratio, plan.size, names={domain: str(path) for domain, path in paths.items()})
        if dtype is np.float16:
            merged = _round_to_float16(merged)
        target = codebook_path(folder, MERGED_DOMAIN, plan.size, plan.token_rate)
        existing = find_same(target, partial(_is_equal, merged), overwrite, "codebooks")
        results.append(MergedCodebook(target, merged, existing is None))
    for result in results:
        if result.made:
            save_codebook(result.path, result.codebook, dtype)
    return results


def _round_to_float16(merged: Codebook) -> Codebook:
    rounded = round_codebook(merged)
    certificate = {**(rounded.metadata.certificate or {}), "rounded_to": "float16"}
    return replace(rounded, metadata=replace(rounded.metadata, certificate=certificate))


def find_same(path: Path, is_same: Callable[[Codebook], bool], overwrite: bool, inputs: str) -> Codebook | None:
    """Return the existing codebook at a path if it is the same as the one to write, or None if it must be written.

    Raises:
        ValueError: the existing codebook has other `inputs`, and must not be overwritten.
        FormatError: the existing file is damaged, and must not be overwritten.
    """
    if not path.exists():
        return None
    try:
        if is_same(book := load_named_codebook(path)):
            return book
    except FormatError:
        if not overwrite:
            raise
    if not overwrite:
        raise ValueError(f"{path} was made from other {inputs}; use --overwrite to replace it")
    return None


def _is_equal(one: Codebook, other: Codebook) -> bool:
    same_info = {**asdict(one.metadata), "sctok_version": ""} == {**asdict(other.metadata), "sctok_version": ""}
    return same_info and codebook_hash(one) == codebook_hash(other) and np.array_equal(one.counts, other.counts)


def merge_codebooks(
    codebooks: Mapping[str, Codebook], ratio: Mapping[str, int], size: int, *, names: Mapping[str, str] | None = None
) -> Codebook:
    """Concatenate one codebook per domain, in the order of `ratio`, to a codebook of `size` rows with segments.

    Args:
        codebooks: the codebook of each domain; with share s of a total t it must have size·s/t rows.
        ratio: share of each domain, such as PAPER_RATIO.
        size: number of rows of the result.
        names: name of each codebook in errors, such as its path; by default the domain.

    Raises:
        ValueError: a domain has no codebook or one of another size; or two codebooks, which are named, have different
            encoders or stack factors.
    """
    names = {domain: (names or {}).get(domain, domain) for domain in ratio}
    parts = split_size(size, ratio)
    segments, row = [], 0
    for domain, k in parts.items():
        if domain not in codebooks:
            raise ValueError(f"there is no codebook of domain {domain!r} with {k} centroids")
        if codebooks[domain].k != k:
            raise ValueError(f"{names[domain]} has {codebooks[domain].k} centroids, but its share of {size} is {k}")
        segments.append(Segment(domain, row, row + k))
        row += k
    chosen = {domain: codebooks[domain] for domain in parts}
    _check_same(chosen, names)
    return Codebook(
        centroids=np.concatenate([book.centroids for book in chosen.values()]),
        counts=np.concatenate([book.counts for book in chosen.values()]),
        metadata=_merged_info(chosen, tuple(segments)),
    )


def _merged_info(chosen: Mapping[str, Codebook], segments: tuple[Segment, ...]) -> CodebookInfo:
    infos = [book.metadata for book in chosen.values()]
    precisions = {info.precision for info in infos}
    return CodebookInfo(
        domain=MERGED_DOMAIN,
        segments=segments,
        stack_factor=infos[0].stack_factor,
        encoder=infos[0].encoder,
        encoder_hash=infos[0].encoder_hash,
        seed=infos[0].seed,
        algorithm="merged",
        precision=precisions.pop() if len(precisions) == 1 else "mixed",
        n_vectors=sum(info.n_vectors for info in infos),
        certificate={"parts": {domain: book.metadata.certificate for domain, book in chosen.items()}},
    )


def _check_same(chosen: Mapping[str, Codebook], names: Mapping[str, str]) -> None:
    first, *others = chosen
    one = chosen[first].metadata
    for domain in others:
        other = chosen[domain].metadata
        if other.encoder_hash != one.encoder_hash:
            raise ValueError(
                f"{names[domain]} was made with encoder {other.encoder} ({other.encoder_hash}), {names[first]} with "
                f"{one.encoder} ({one.encoder_hash}); cluster both from features of one encoder and one --padding"
            )
        if other.stack_factor != one.stack_factor or chosen[domain].width != chosen[first].width:
            raise ValueError(
                f"{names[domain]} has stack factor {other.stack_factor} and width {chosen[domain].width}, but "
                f"{names[first]} has {one.stack_factor} and {chosen[first].width}; merge codebooks of one token rate"
            )
