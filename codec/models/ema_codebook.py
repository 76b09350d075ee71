"""A vector quantizer whose codebook is an exponential moving average of the vectors (van den Oord et al., 2017)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from sctok.kernels.assign import PreparedCentroids, nearest_centroid, prepare_centroids
from sctok.kernels.update import centroid_sums
from sctok.runtime.distributed import ALONE, Group

SMOOTHING = 1e-5  # Laplace smoothing of cluster sizes
INITS = ("random", "rows")
FRESH_SIZE = 1.0  # initial moving average of the uses of a code


@dataclass(frozen=True)
class VQConfig:
    """Sizes and training of a quantizer. The defaults are those of the published acoustic codebook, except for `dim`.

    decay: decay of the moving averages per step. commitment: weight of the commitment loss. restart_threshold: a code
    is replaced by a vector of the batch when its moving average of uses per step falls below this value; 0, as
    published, for never. init: "random", as published, or "rows" to take vectors of the first batches as codes.
    padding_counts: whether the averages and the loss include padded positions, as in the published code.
    """

    dim: int
    codebook_size: int = 8192
    decay: float = 0.9
    commitment: float = 1.0
    restart_threshold: float = 0.0
    init: str = "random"
    padding_counts: bool = True

    def __post_init__(self) -> None:
        if self.dim < 1 or self.codebook_size < 1:
            raise ValueError(f"dim {self.dim} and codebook_size {self.codebook_size} must be at least 1")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay {self.decay} must lie in [0, 1)")
        if self.commitment < 0 or not 0 <= self.restart_threshold < FRESH_SIZE:
            raise ValueError(
                f"commitment {self.commitment} must not be negative and restart_threshold {self.restart_threshold} "
                f"must lie in [0, {FRESH_SIZE:g})"
            )
        if self.init not in INITS:
            raise ValueError(f"init {self.init!r} is not one of {', '.join(INITS)}")


class Quantized(NamedTuple):
    """Vectors float32 (B, L, D), in training with a straight-through gradient; indices int64 (B, L); loss ()."""

    vectors: Tensor
    indices: Tensor
    commit_loss: Tensor


class _EMACodebook(nn.Module):
    """The codes and their moving averages, with the published names and shapes."""

    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        shape = (1, config.codebook_size, config.dim)
        random = config.init == "random"
        embed = nn.init.kaiming_uniform_(torch.empty(shape)) if random else torch.zeros(shape)
        self.register_buffer("initted", torch.tensor(random))
        # 0 marks codes that are not set yet. An average never falls to 0 while codes are being set.
        self.register_buffer("cluster_size", torch.full(shape[:2], FRESH_SIZE if random else 0.0))
        self.register_buffer("embed_avg", embed.clone())
        self.register_buffer("embed", embed)

    def set_codes(self, codes: Tensor, rows: Tensor) -> None:
        """Set codes (m,) to rows (m, D), as if each had been used once per step."""
        self.embed[0, codes] = rows
        self.embed_avg[0, codes] = rows * FRESH_SIZE
        self.cluster_size[0, codes] = FRESH_SIZE


class EMAVectorQuantizer(nn.Module):
    """Quantizes vectors to their nearest codes. In training, each code follows the vectors that are mapped to it.

    With `torch.distributed`, all ranks have the codebook that a single process with all their rows would have.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self._codebook = _EMACodebook(config)
        self._prepared: tuple[tuple[object, ...], PreparedCentroids] | None = None

    @property
    def codes(self) -> Tensor:
        """The codebook, float32 (codebook_size, dim)."""
        return self._codebook.embed[0]

    def decode(self, indices: Tensor) -> Tensor:
        """Return the codes (…, dim) of indices int64 (…). Raises ValueError if an index is out of range."""
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.codes):
            raise ValueError(
                f"acoustic tokens must lie in [0, {len(self.codes)}), "
                f"found {int(indices.min())} to {int(indices.max())}"
            )
        return F.embedding(indices, self.codes)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Quantized:
        """Quantize vectors. In training, update the codebook afterwards.

        Args:
            x: (B, L, dim) floating.
            padded: bool (B, L), True at positions without audio; see `VQConfig.padding_counts`.

        Raises:
            ValueError: a vector contains NaN or infinity, or the codebook has no codes yet.
        """
        x = x.float()
        rows = x.detach().reshape(-1, self.config.dim)
        counted = None if padded is None or self.config.padding_counts else ~padded.reshape(-1)
        seen = rows if counted is None else rows[counted]
        if self.training and not bool(self._codebook.initted):
            self._initialize(seen)
        indices = self._nearest(rows)
        vectors = F.embedding(indices, self.codes).view_as(x)
        loss = self.config.commitment * self._commit_loss(x, vectors, counted)
        if self.training:
            self._update(seen, indices if counted is None else indices[counted])
            vectors = x + (vectors - x).detach()
        return Quantized(vectors, indices.view(x.shape[:-1]), loss)

    def _commit_loss(self, x: Tensor, vectors: Tensor, counted: Tensor | None) -> Tensor:
        """Return the mean squared distance per value. As in the published code, it is a mean, not the sum of Eq. 4."""
        if counted is None:
            return F.mse_loss(x, vectors.detach())
        losses = (x - vectors.detach()).square().mean(dim=-1).reshape(-1)
        total = counted.sum()
        if self.training:  # so that the mean of the losses of all ranks is the loss of all rows
            group = _group()
            group.sum_(total)
            total = total / group.world
        return (losses * counted).sum() / total.clamp_min(1)

    def _nearest(self, rows: Tensor) -> Tensor:
        codes = self.codes
        if not bool(self._codebook.initted):
            codes = codes[: self._codes_set()]
            if not len(codes):
                raise ValueError("the acoustic codebook is empty: train the codec first")
        # In training the codes change at every step; changes of inference tensors cannot be detected.
        if self.training or codes.is_inference():
            return nearest_centroid(rows, codes).labels
        key = (codes.data_ptr(), codes.device, len(codes), codes._version)
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = key, prepare_centroids(codes)
        return nearest_centroid(rows, self._prepared[1]).labels

    def _codes_set(self) -> int:
        return int((self._codebook.cluster_size > 0).sum())

    @torch.no_grad()
    def _initialize(self, rows: Tensor) -> None:
        """Set the next codes to rows (n, dim) of all ranks, until all codes are set."""
        group, filled = _group(), self._codes_set()
        total = sum(group.gather(len(rows)))
        chosen = _draw(total, min(total, len(self.codes) - filled), seed=filled)
        codes = torch.arange(filled, filled + len(chosen), device=rows.device)
        self._codebook.set_codes(codes, _gather_rows(rows, chosen, group))
        self._codebook.initted.fill_(filled + len(chosen) == len(self.codes))

    @torch.no_grad()
    def _update(self, rows: Tensor, indices: Tensor) -> None:
        """Update the moving averages and the codes from rows (n, dim) and their codes (n,)."""
        book, group, decay = self._codebook, _group(), self.config.decay
        sums, counts = centroid_sums(rows, indices, len(self.codes))
        group.sum_(sums, counts)
        book.cluster_size[0].lerp_(counts.float(), 1 - decay)
        book.embed_avg[0].lerp_(sums.float(), 1 - decay)
        if not bool(book.initted):
            return  # codes that are not set yet would become 0 / 0
        sizes = book.cluster_size[0]
        total = sizes.sum()
        smoothed = (sizes + SMOOTHING) / (total + len(sizes) * SMOOTHING) * total
        book.embed[0] = book.embed_avg[0] / smoothed[:, None]
        dead = (sizes < self.config.restart_threshold).nonzero()[:, 0]
        if len(dead):
            self._restart(dead, rows, counts, group)

    def _restart(self, dead: Tensor, rows: Tensor, counts: Tensor, group: Group) -> None:
        """Replace dead codes by rows of the batch.

        The counts seed the choice, so that it depends neither on the number of ranks nor on a resume.
        """
        total = sum(group.gather(len(rows)))
        weights = torch.arange(1, len(counts) + 1, device=counts.device)
        chosen = _draw(total, min(total, len(dead)), seed=int((counts * counts * weights).sum()))
        self._codebook.set_codes(dead[: len(chosen)], _gather_rows(rows, chosen, group))


def _group() -> Group:
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Group(dist.get_rank(), dist.get_world_size())


def _draw(total: int, count: int, seed: int) -> Tensor:
    """Draw `count` different indices below `total`, int64 in random order."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]


def _gather_rows(rows: Tensor, indices: Tensor, group: Group) -> Tensor:
    """Return the rows at indices into the concatenated rows of all ranks, (len(indices), dim)."""
    start = sum(group.gather(len(rows))[: group.rank])
    own = (indices >= start) & (indices < start + len(rows))
    found = torch.zeros(len(indices), rows.shape[1], device=rows.device)
    found[own.to(rows.device)] = rows[(indices[own] - start).to(rows.device)]
    group.sum_(found)
    return found
