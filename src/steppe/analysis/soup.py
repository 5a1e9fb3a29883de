"""Soups: the mean of the weights of several finished runs (Wortsman et al., ICML 2022, arXiv:2203.05482)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steppe.analysis.load_run import TrainedRun, Which, load
from steppe.data.splits import subset
from steppe.diagnostics.loss_surface import SurfaceValue
from steppe.errors import InputError
from steppe.training import run as engine

Weights = dict[str, Tensor]
STATISTICS = 5000  # training images, at most, on which BatchNorm's statistics are measured


@dataclass(frozen=True)
class Soup:
    """The runs in the mean, its weights and buffers by name, and its loss and accuracy on the validation data.

    ``singles`` are the loss and accuracy of each run by itself.
    """

    members: list[Path]
    weights: Weights
    value: SurfaceValue
    singles: dict[Path, SurfaceValue]


def make_soup(
    folders: Sequence[Path],
    *,
    greedy: bool,
    which: Which = "best",
) -> Soup:
    """Return the mean of the networks that runs deploy.

    Uniform: of all. Greedy (their recipe 1): in the order of validation, best first, each is added if the mean is
    then not worse. Validation is by accuracy, ties by loss; by loss where the targets are no classes. BatchNorm's
    statistics are measured again at each mean, on training images without augmentation.

    Raises InputError unless the folders are at least two runs of one network, trained on the same images.
    """
    if len(set(folders)) < 2:
        raise InputError(f"a soup of {len(set(folders))} run; give at least two")
    _require_one_split(folders)
    first = load(folders[0], which)
    surface = first.surface(first.images.val)
    batches = first.batches(subset(first.images.train, min(STATISTICS, len(first.images.train))))
    networks = {folders[0]: _copy(first)}
    for folder in folders[1:]:
        networks[folder] = _copy(load(folder, which, first.images))
        _require_alike(networks[folder], networks[folders[0]], folder, folders[0])

    def evaluated(members: Sequence[Path]) -> tuple[SurfaceValue, Weights]:
        first.model.load_state_dict(_mean([networks[folder] for folder in members]))
        if len(members) == 1:
            return surface.value(), networks[members[0]]
        with surface.recalibrated(batches):
            return surface.value(), _copy(first)

    singles = {folder: evaluated([folder])[0] for folder in networks}
    order = sorted(networks, key=lambda folder: _rank(singles[folder]), reverse=True)
    members = order[:1] if greedy else list(networks)
    value, weights = evaluated(members)
    for folder in order[1:] if greedy else []:
        candidate, mean = evaluated([*members, folder])
        if _rank(candidate) >= _rank(value):
            members, value, weights = [*members, folder], candidate, mean
    return Soup(members, weights, value, singles)


def _copy(run: TrainedRun) -> Weights:
    return {name: t.detach().clone() for name, t in run.model.state_dict().items()}


def _mean(networks: Sequence[Weights]) -> Weights:
    """Return the mean of floating-point tensors, and the first network's others."""
    return {
        name: torch.stack([w[name] for w in networks]).mean(0) if t.is_floating_point() or t.is_complex() else t
        for name, t in networks[0].items()
    }


def _rank(value: SurfaceValue) -> tuple[float, float]:
    return value.accuracy or 0.0, -value.loss


def _require_one_split(folders: Sequence[Path]) -> None:
    """Refuse runs of several splits: what one validates on, another was trained on."""
    splits = []
    for folder in folders:
        run = engine.read_run(folder)
        splits.append((engine.stored_images(folder).get("fingerprint", run.dataset), run.data.split()))
    for folder, split in zip(folders, splits, strict=True):
        if split != splits[0]:
            raise InputError(
                f"{folder} has other data or another split than {folders[0]}; give runs that validate on the same "
                "samples"
            )


def _require_alike(weights: Weights, others: Weights, folder: Path, other: Path) -> None:
    if {k: t.shape for k, t in weights.items()} != {k: t.shape for k, t in others.items()}:
        raise InputError(f"{folder} has another network than {other}; give runs of one network")
