"""The classifier of the HEAR benchmark (Turian et al., 2022): small networks on a vector per clip, cross-validated."""

from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .labels import MIN_FOLDS

LAYERS = (1, 2)
LEARNING_RATES = (3.2e-3, 1e-3, 3.2e-4, 1e-4)
INITIALISATIONS = ("uniform", "normal")
Search = Literal["first", "every"]


class GridPoint(NamedTuple):
    """The number of hidden layers, the learning rate of Adam, and the Xavier initialisation: uniform or normal."""

    layers: int
    learning_rate: float
    initialisation: str


class LabelledVectors(NamedTuple):
    """Vectors float32 (n, D) and their classes int64 (n,)."""

    x: Tensor
    y: Tensor

    def select(self, mask: NDArray[np.bool_]) -> "LabelledVectors":
        """Return the rows where the mask (n,) is true."""
        return LabelledVectors(self.x[mask], self.y[mask])


GRID = tuple(GridPoint(*point) for point in product(LAYERS, LEARNING_RATES, INITIALISATIONS))


@dataclass(frozen=True)
class MlpConfig:
    """Configuration of the classifier. The defaults are HEAR's. Raises ValueError if a value is out of range.

    Attributes:
        folds: number of folds.
        grid_points: number of grid points to try, drawn at random from all 16.
        search: "first" tries them in the first fold and uses the best one in all folds (HEAR); "every" tries them in
            every fold.
        hidden: width of hidden layers.
        dropout: dropout probability.
        batch: batch size.
        max_epochs: maximum number of epochs.
        validate_every: epochs between validations.
        patience: training ends after this many validations without a better accuracy.
        seed: seed of the grid and of the training.
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
        if self.folds < MIN_FOLDS:
            raise ValueError(f"folds must be at least {MIN_FOLDS}: for testing, validation and training")
        if not 1 <= self.grid_points <= len(GRID):
            raise ValueError(f"grid_points must be 1 to {len(GRID)}, not {self.grid_points}")
        if self.search not in get_args(Search):
            raise ValueError(f"search must be one of {', '.join(get_args(Search))}, not {self.search!r}")
        if min(self.hidden, self.max_epochs, self.validate_every, self.patience) < 1 or self.batch < 2:
            raise ValueError(f"sizes must be positive and batch at least 2: {self}")
        if not 0 <= self.dropout < 1 or self.seed < 0:
            raise ValueError(f"dropout must be in [0, 1) and seed at least 0, not {self.dropout} and {self.seed}")


class TrainedNetwork(NamedTuple):
    """A network after its best epoch: the highest validation accuracy, and the lowest validation loss among those."""

    model: nn.Module
    accuracy: float
    loss: float
    epoch: int

    @property
    def rank(self) -> tuple[float, float]:
        """A value that is larger for a better network: the accuracy, then the loss.

        HEAR ignores the loss, but many accuracies are equal in small folds.
        """
        return self.accuracy, -self.loss


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """The result of cross-validation. correct: bool (n,), for each clip; chosen: the grid point of each fold."""

    correct: NDArray[np.bool_]
    folds: NDArray[np.int64]
    chosen: tuple[GridPoint, ...]
    epochs: tuple[int, ...]
    validation: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Share of clips that are classified correctly."""
        return float(self.correct.mean())

    @property
    def fold_accuracies(self) -> list[float]:
        """Accuracy in each fold."""
        return [float(self.correct[self.folds == fold].mean()) for fold in range(len(self.chosen))]

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy for independent clips."""
        return float(self.correct.std() / np.sqrt(len(self.correct)))

    @property
    def fold_standard_error(self) -> float:
        """Standard error of the mean over the folds' accuracies."""
        return float(np.std(self.fold_accuracies, ddof=1) / np.sqrt(len(self.chosen)))

    def group_standard_error(self, groups: NDArray[np.str_]) -> float:
        """Return the standard error of the accuracy for independent `groups` (n,) of dependent clips."""
        _, group = np.unique(groups, return_inverse=True)
        sums = np.bincount(group, weights=self.correct - self.accuracy)
        return float(np.sqrt((sums**2).sum()) / len(self.correct))


def draw_grid(count: int, seed: int) -> list[GridPoint]:
    """Draw `count` of the 16 grid points in random order."""
    return [GRID[i] for i in np.random.default_rng(seed).permutation(len(GRID))[:count]]


def probe_folds(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    config: MlpConfig,
    device: torch.device | None = None,
) -> ProbeResult:
    """Cross-validate features: for each fold i, test on it, validate on fold i + 1, and train on the others.

    Args:
        features: float32 (n, D), one row per clip, finite; not scaled, as in HEAR.
        labels: int64 (n,), classes from 0.
        folds: int64 (n,), from 0 without gaps, three or more.
        config: the networks and their training; `config.folds` is not used.
        device: device of the training, None for the CPU.

    Raises:
        ValueError: shapes do not match, features are not finite, or there are too few folds.
    """
    count = int(folds.max()) + 1
    if not len(features) == len(labels) == len(folds) or features.ndim != 2:
        raise ValueError(f"shapes do not match: {features.shape}, {labels.shape}, {folds.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"{int((~np.isfinite(features).all(axis=1)).sum())} clips have features that are not finite")
    if count < MIN_FOLDS or len(np.unique(folds)) < count:
        raise ValueError(f"got {count} folds; at least {MIN_FOLDS} are needed, and none may be empty")
    clips = LabelledVectors(torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device))
    points = draw_grid(config.grid_points, config.seed)
    correct = np.zeros(len(labels), bool)
    chosen: list[GridPoint] = []
    best: list[TrainedNetwork] = []
    for fold in range(count):
        test, valid = folds == fold, folds == (fold + 1) % count
        splits = clips.select(~(test | valid)), clips.select(valid)
        tried = points if fold == 0 or config.search == "every" else [chosen[0]]
        classes = int(labels.max()) + 1
        results = [train_network(*splits, classes, point, config, _seed(config, fold, point)) for point in tried]
        winner = max(range(len(tried)), key=lambda i: results[i].rank)
        chosen.append(tried[winner])
        best.append(results[winner])
        correct[test] = _hits(best[-1].model, clips.select(test)).cpu().numpy()
    return ProbeResult(
        correct, folds, tuple(chosen), tuple(each.epoch for each in best), tuple(each.accuracy for each in best)
    )


def _seed(config: MlpConfig, fold: int, point: GridPoint) -> int:
    return int(np.random.SeedSequence([config.seed, fold, GRID.index(point)]).generate_state(1)[0])


def build_network(width: int, classes: int, point: GridPoint, config: MlpConfig) -> nn.Sequential:
    """Build a network from (n, width) to logits (n, classes)."""
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
    train: LabelledVectors, valid: LabelledVectors, classes: int, point: GridPoint, config: MlpConfig, seed: int
) -> TrainedNetwork:
    """Train one network on two or more clips. The same seed gives the same network."""
    device = train.x.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build_network(train.x.shape[1], classes, point, config).to(device)
        optimiser = torch.optim.Adam(model.parameters(), lr=point.learning_rate, fused=True)
        best, waited = TrainedNetwork(model, -1.0, np.inf, 0), 0
        best_state: dict[str, Tensor] = {}
        for epoch in range(1, config.max_epochs + 1):
            _train_epoch(model, optimiser, train, config.batch)
            if epoch % config.validate_every and epoch < config.max_epochs:
                continue
            validated = _validate(model, valid, epoch)
            waited = 0 if validated.accuracy > best.accuracy else waited + 1
            if validated.rank > best.rank:
                best = validated
                best_state = {name: value.clone() for name, value in model.state_dict().items()}
            if waited >= config.patience:
                break
        model.load_state_dict(best_state)
    return best


def _train_epoch(model: nn.Module, optimiser: torch.optim.Optimizer, train: LabelledVectors, batch: int) -> None:
    model.train()
    order = torch.randperm(len(train.x)).to(train.x.device)
    for rows in order.split(batch):
        if len(rows) < 2 <= len(train.x):  # too few rows for batch normalisation
            continue
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(train.x[rows]), train.y[rows]).backward()
        optimiser.step()


@torch.no_grad()
def _validate(model: nn.Module, valid: LabelledVectors, epoch: int) -> TrainedNetwork:
    model.eval()
    logits = model(valid.x)
    accuracy = (logits.argmax(dim=1) == valid.y).float().mean()
    return TrainedNetwork(model, float(accuracy), float(nn.functional.cross_entropy(logits, valid.y)), epoch)


@torch.no_grad()
def _hits(model: nn.Module, test: LabelledVectors) -> Tensor:
    model.eval()
    return model(test.x).argmax(dim=1) == test.y
