"""The frame in which the scan on CPUs compares points and centroids: all dimensions or a few leading directions."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from sctok.kernels.certify import gamma

from .encode import CODE_LIMIT
from .vnni import LANES

WIDTHS = (32, 64)  # numbers of directions to try

_SAMPLE_ROWS, _SAMPLE_CENTROIDS = 16, 512
_BASIS_ROUNDS, _BASIS_SPARE = 2, 8
_BETTER_CENTROIDS = 2048  # sample for a better basis, computed if it saves more time than it costs
_GAINED = 0.25  # approximate share of the candidates that it excludes
# Nanoseconds on one thread, measured: a byte product in the scan, the rest of the scan per score, an exact distance and
# a refined bound per dimension, a multiplication of the projection.
_PRODUCT, _SCORE, _EXACT, _REFINED, _PROJECTED = 0.003, 0.06, 0.4, 0.02, 0.009


@dataclass(frozen=True)
class ScanFrame:
    """How points and centroids are compared. Every frame gives the same labels; a suitable one gives them faster.

    center, scale: (D,) float32 and a power of two, y = (x - center) scale.
    basis: (D, d) float32 with nearly orthonormal columns, or None for all dimensions.
    refined: whether codes in all dimensions check the candidates that the projection leaves.
    defect: distance of the basis from an orthonormal one.
    """

    center: Tensor
    scale: float
    basis: Tensor | None = None
    refined: bool = False
    defect: float = 0.0

    @property
    def product_error(self) -> float:
        """Error bound of a float32 product with the basis, relative to the norm of the vector."""
        if self.basis is None:
            return 0.0
        dim, width = self.basis.shape
        return gamma(dim) * math.sqrt(width) * (1 + self.defect)

    def center_rows(self, rows: Tensor) -> Tensor:
        """Return y (n, D) float32 of float32 or float64 rows."""
        shifted = rows - self.center
        return (shifted if self.scale == 1 else shifted.to(torch.float64).mul_(self.scale)).to(torch.float32)


def choose_frame(points: Tensor, centroids: Tensor, center: Tensor, scale: float) -> ScanFrame:
    """Choose between all dimensions and projections by the estimated cost of a few points on one thread.

    The choice never changes a result.

    Args:
        points: (n, D) float32 or float64, finite, n at least 1.
        centroids: (k, D) float32 or float64, finite.
        center, scale: as in `ScanFrame`.
    """
    whole = ScanFrame(center, scale)
    k, dim = centroids.shape
    widths = [width for width in WIDTHS if 2 * width <= dim]
    if not widths:
        return whole
    y = whole.center_rows(points[_spread(len(points), _SAMPLE_ROWS)])
    w = whole.center_rows(centroids[_spread(k, _SAMPLE_CENTROIDS)])
    block = _leading_space(w, widths[-1])
    basis = _leading_directions(w, block)[:, : widths[-1]]
    costs = {(0, False): k * (_PRODUCT * dim + _SCORE) + 2 * dim * _EXACT}
    costs |= _projected_costs(y, w, k, _nearest_scores(y, centroids, whole), basis, widths)
    width, refined = min(costs, key=lambda key: costs[key])
    if width == 0:
        return whole
    better, products = min(k, _BETTER_CENTROIDS), k * (_PRODUCT * width + _SCORE)
    price = 3 * better * dim * block.shape[1] * _PROJECTED
    if better > len(w) and _GAINED * len(points) * (costs[width, refined] - products) > price:
        w = whole.center_rows(centroids[_spread(k, better)])
        basis = _leading_directions(w, _improved(w, block))
    chosen = (basis[:, :width] @ rotation(width)).contiguous()
    wide = chosen.to(torch.float64)
    defect = float(torch.linalg.matrix_norm(wide.T @ wide - torch.eye(width, dtype=torch.float64))) * (1 + 1e-6)
    return ScanFrame(center, scale, chosen, refined, defect)


def _spread(count: int, most: int) -> Tensor:
    """Return at most `most` of `count` places at random, always the same ones."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]


def _leading_space(rows: Tensor, width: int) -> Tensor:
    """Return orthonormal columns (D, width + _BASIS_SPARE) float32 near the leading principal directions of rows."""
    block = torch.randn(rows.shape[1], width + _BASIS_SPARE, generator=torch.Generator().manual_seed(0))
    for _ in range(_BASIS_ROUNDS):
        block = _improved(rows, block)
    return block


def _improved(rows: Tensor, block: Tensor) -> Tensor:
    """Return orthonormal columns nearer to the leading principal directions of rows (n, D) than those of `block`."""
    return torch.linalg.qr(rows.T @ (rows @ block))[0]


def _leading_directions(rows: Tensor, block: Tensor) -> Tensor:
    """Return the principal directions of rows within the space of `block`, in order: orthonormal columns (D, m)."""
    small = (rows @ block).to(torch.float64)  # for few distinct rows, the float32 solver does not converge
    return block @ torch.linalg.eigh(small.T @ small)[1].flip(1).to(torch.float32)


@cache
def rotation(width: int) -> Tensor:
    """Return a random rotation (d, d). Rotated coordinates have similar sizes, so their codes lose less."""
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)))[0]


def _nearest_scores(y: Tensor, centroids: Tensor, frame: ScanFrame) -> Tensor:
    """Return the approximate smallest |w|^2 - 2 y.w (n, 1) of centered points y (n, D) over all centroids w + center.

    The centroids are not copied, so a distant center makes the result less accurate.
    """
    narrow = (centroids * frame.scale if frame.scale != 1 else centroids).to(torch.float32)
    center = frame.center * frame.scale
    squares = torch.linalg.vector_norm(narrow, dim=1).square() - 2 * (narrow @ center) + center @ center
    scores = torch.addmm(squares, y, narrow.T, alpha=-2)
    return (scores + 2 * (y @ center)[:, None]).amin(dim=1, keepdim=True)


def _projected_costs(
    y: Tensor, w: Tensor, k: int, limit: Tensor, basis: Tensor, widths: list[int]
) -> dict[tuple[int, bool], float]:
    """Estimate the nanoseconds per point for each width, with and without refinement, from a sample.

    y: (n, D) points. w: (m, D), a sample of k centroids. limit: (n, 1), |w|^2 - 2 y.w of the nearest of all k.
    """
    dim = y.shape[1]
    z, e = y @ basis, w @ basis
    squares, row_squares = w.square().sum(dim=1), y.square().sum(dim=1)
    loss = 3.3 / CODE_LIMIT / math.sqrt(12)  # relative loss of the codes of rotated coordinates
    costs = {}
    for width in widths:
        inner, outer = z[:, :width], e[:, :width]
        left = (row_squares - inner.square().sum(dim=1)).clamp_min(0).sqrt()
        right = (squares - outer.square().sum(dim=1)).clamp_min(0).sqrt()
        reach = torch.outer(left, right) + 2 * loss * torch.outer(inner.norm(dim=1), outer.norm(dim=1))
        bounds = squares - 2 * (inner @ outer.T) - 2 * reach
        candidates = float((bounds <= limit).sum(dim=1, dtype=torch.float32).mean()) * k / len(w)
        tiles = min(2 * candidates, k / LANES)
        scan = dim * width * _PROJECTED + k * (_PRODUCT * width + _SCORE)
        scan += tiles * (20 + width * LANES * _PRODUCT * 2)
        costs[width, False] = scan + 2 * candidates * dim * _EXACT
        costs[width, True] = scan + 1.2 * candidates * (8 + dim * _REFINED) + 3 * dim * _EXACT
    return costs
