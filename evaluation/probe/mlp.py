"""The probe of the HEAR benchmark (Turian et al., 2022): small networks on one vector per clip, tested fold by fold."""

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .labels import FEWEST_FOLDS

LAYERS = (1, 2)
LEARNING_RATES = (3.2e-3, 1e-3, 3.2e-4, 1e-4)
INITIALISATIONS = ("uniform", "normal")
Search = Literal["first", "every"]


class GridPoint(NamedTuple):
    """Hidden layers, learning rate of Adam, and Xavier initialisation, uniform or normal."""

    layers: int
    learning_rate: float
    initialisation: str


GRID = tuple(GridPoint(*point) for point in product(LAYERS, LEARNING_RATES, INITIALISATIONS))


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of a probe; the defaults are those of HEAR.

    grid_points: how many of the 16 are tried, drawn at random. search: whether they are tried in the first fold, and
    the one chosen there used in all (HEAR), or in every fold. patience: validations without a better accuracy after
    which training ends; validations come every `validate_every` epochs. Raises ValueError for values out of range.
    """

    folds: int = 5
    grid_points: int = 8
    search: Search = "first"
    hidden: int = 1024
    dropout: float = 0.1
    batch: int = 1024
    max_epochs: int = 500
    validate_every: int = 3
    patience: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < FEWEST_FOLDS:
            raise ValueError(f"folds must be at least {FEWEST_FOLDS}: one to test, one to choose by, one to train on")
        if not 1 <= self.grid_points <= len(GRID):
            raise ValueError(f"grid_points must be 1 to {len(GRID)}, not {self.grid_points}")
        if self.search not in get_args(Search):
            raise ValueError(f"search must be one of {', '.join(get_args(Search))}, not {self.search!r}")
        if min(self.hidden, self.max_epochs, self.validate_every, self.patience) < 1 or self.batch < 2:
            raise ValueError(f"sizes must be positive and batch at least 2: {self}")
        if not 0 <= self.dropout < 1 or self.seed < 0:
            raise ValueError(f"dropout must be in [0, 1) and seed at least 0, not {self.dropout} and {self.seed}")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a JSON object."""
        return asdict(self)


class TrainedProbe(NamedTuple):
    """A network after the epoch with the best accuracy on the validation fold, of equals the lowest loss there."""

    model: nn.Module
    accuracy: float
    loss: float
    epoch: int

    @property
    def rank(self) -> tuple[float, float]:
        """What is larger for a better network. HEAR takes the first of equals, which are many in small folds."""
        return self.accuracy, -self.loss


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """correct: bool (n,), of each clip when its fold was tested. chosen: the grid point of each fold."""

    correct: NDArray[np.bool_]
    folds: NDArray[np.int64]
    chosen: tuple[GridPoint, ...]
    epochs: tuple[int, ...]
    validation: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Share of clips that are told right."""
        return float(self.correct.mean())

    @property
    def fold_accuracies(self) -> list[float]:
        """Accuracy in each fold."""
        return [float(self.correct[self.folds == fold].mean()) for fold in range(len(self.chosen))]

    @property
    def standard_error(self) -> float:
        """Of the accuracy, over clips as if each were independent."""
        return float(self.correct.std() / np.sqrt(len(self.correct)))

    @property
    def fold_standard_error(self) -> float:
        """Of the mean of the folds' accuracies, over folds."""
        return float(np.std(self.fold_accuracies, ddof=1) / np.sqrt(len(self.chosen)))

    def group_standard_error(self, groups: NDArray[np.str_]) -> float:
        """Return the standard error of the accuracy where clips of one of `groups` (n,) stand or fall together."""
        _, group = np.unique(groups, return_inverse=True)
        sums = np.bincount(group, weights=self.correct - self.accuracy)
        return float(np.sqrt((sums**2).sum()) / len(self.correct))


def draw_grid(count: int, seed: int) -> list[GridPoint]:
    """Return `count` of the 16 grid points in random order."""
    return [GRID[i] for i in np.random.default_rng(seed).permutation(len(GRID))[:count]]


def probe_folds(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    config: ProbeConfig,
    device: torch.device | None = None,
) -> ProbeResult:
    """Test features fold by fold: fold i is tested, fold i + 1 chooses the network, the others train it.

    Args:
        features: float32 (n, D), one row per clip, finite; they are not scaled, as in HEAR.
        labels: int64 (n,), classes from 0.
        folds: int64 (n,), from 0 without gaps, three or more.
        config: of the networks and their training; `config.folds` is not used.
        device: where to train, the CPU where None.

    Raises:
        ValueError: shapes do not fit, features are not finite, or folds are too few.
    """
    count = int(folds.max()) + 1
    if not len(features) == len(labels) == len(folds) or features.ndim != 2:
        raise ValueError(f"shapes do not fit: {features.shape}, {labels.shape}, {folds.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"{int((~np.isfinite(features).all(axis=1)).sum())} clips have features that are not finite")
    if count < FEWEST_FOLDS or len(np.unique(folds)) < count:
        raise ValueError(f"{count} folds; {FEWEST_FOLDS} or more are needed, none of them empty")
    x, y = torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device)
    points = draw_grid(config.grid_points, config.seed)
    correct = np.zeros(len(labels), bool)
    chosen: list[GridPoint] = []
    best: list[TrainedProbe] = []
    for fold in range(count):
        test, valid = folds == fold, folds == (fold + 1) % count
        train = ~(test | valid)
        tried = points if fold == 0 or config.search == "every" else [chosen[0]]
        results = [
            train_network(
                x[train], y[train], x[valid], y[valid], int(labels.max()) + 1, point, config, _seed(config, fold, point)
            )
            for point in tried
        ]
        winner = max(range(len(tried)), key=lambda i: results[i].rank)
        chosen.append(tried[winner])
        best.append(results[winner])
        correct[test] = _hits(best[-1].model, x[test], y[test]).cpu().numpy()
    return ProbeResult(
        correct, folds, tuple(chosen), tuple(each.epoch for each in best), tuple(each.accuracy for each in best)
    )


def _seed(config: ProbeConfig, fold: int, point: GridPoint) -> int:
    return int(np.random.SeedSequence([config.seed, fold, GRID.index(point)]).generate_state(1)[0])


def build_network(width: int, classes: int, point: GridPoint, config: ProbeConfig) -> nn.Sequential:
    """Return a network from (n, width) to logits (n, classes)."""
    fill = nn.init.xavier_uniform_ if point.initialisation == "uniform" else nn.init.xavier_normal_
    layers: list[nn.Module] = []
    gain = 1.0
    for _ in range(point.layers):
        linear = nn.Linear(width, config.hidden)
        fill(linear.weight, gain)
        layers += [linear, nn.BatchNorm1d(config.hidden), nn.Dropout(config.dropout), nn.ReLU()]
        width, gain = config.hidden, nn.init.calculate_gain("relu")
    last = nn.Linear(width, classes)
    fill(last.weight, gain)
    return nn.Sequential(*layers, last)


def train_network(
    x: Tensor,
    y: Tensor,
    valid_x: Tensor,
    valid_y: Tensor,
    classes: int,
    point: GridPoint,
    config: ProbeConfig,
    seed: int,
) -> TrainedProbe:
    """Train one network on x float32 (n, D) and y int64 (n,), n > 1; the same seed gives the same network."""
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build_network(x.shape[1], classes, point, config).to(x.device)
        optimiser = torch.optim.Adam(model.parameters(), lr=point.learning_rate, fused=True)
        best, waited = TrainedProbe(model, -1.0, np.inf, 0), 0
        kept: dict[str, Tensor] = {}
        for epoch in range(1, config.max_epochs + 1):
            _train_epoch(model, optimiser, x, y, config.batch)
            if epoch % config.validate_every and epoch < config.max_epochs:
                continue
            found = _validate(model, valid_x, valid_y, epoch)
            waited = 0 if found.accuracy > best.accuracy else waited + 1
            if found.rank > best.rank:
                best = found
                kept = {name: value.clone() for name, value in model.state_dict().items()}
            if waited >= config.patience:
                break
        model.load_state_dict(kept)
    return best


def _train_epoch(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, batch: int) -> None:
    model.train()
    order = torch.randperm(len(x)).to(x.device)
    for rows in order.split(batch):
        if len(rows) < 2 <= len(x):  # batch normalisation has nothing to go by
            continue
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()


@torch.no_grad()
def _validate(model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> TrainedProbe:
    model.eval()
    logits = model(x)
    accuracy = (logits.argmax(dim=1) == y).float().mean()
    return TrainedProbe(model, float(accuracy), float(nn.functional.cross_entropy(logits, y)), epoch)


@torch.no_grad()
def _hits(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.eval()
    return model(x).argmax(dim=1) == y
