"""Tables of what was measured, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steppe.bench.data import DataCost
from steppe.bench.end_to_end import EndToEndCost
from steppe.bench.params import ParamsCost
from steppe.bench.scaling import Growth
from steppe.bench.settings import SettingCost
from steppe.bench.timing import TimingSpread
from steppe.bench.training import TrainingCost
from steppe.cli.tables import aligned


def params(costs: Sequence[ParamsCost], model: str) -> str:
    """Return a line per method."""
    lines = [("method", "of plain", "quartiles", "loop", "quartiles", "loop, fused", "quartiles", "ms")]
    for c in costs:
        cells = (cell for s in (c.of_plain, c.loop, c.loop_fused) for cell in _cells(s))
        lines.append((c.method, *cells, f"{c.milliseconds:.2f}"))  # type: ignore[arg-type]
    return (
        f"{aligned(lines)}\n\nwork on the parameters of {model} alone, gradients given; loop: time of the usual "
        "loop over tensors over ours,\nits optimizer in the default form and in the fused form that ours has"
    )


def data(costs: Sequence[DataCost]) -> str:
    """Return a line per chain of augmentation."""
    lines = [("steps", "of none", "quartiles", "ms")]
    lines += [(c.steps, *_cells(c.of_none), f"{c.milliseconds:.2f}") for c in costs]
    return f"{aligned(lines)}\n\ntime to make a batch, as a multiple of one that is only read and scaled"


def training(costs: Sequence[TrainingCost]) -> str:
    """Return a line per network."""
    lines = [("model", f"of {costs[0].what}", "quartiles", "parameters", "ms")]
    lines += [(c.what, *_cells(c.of_first), f"{c.parameters:,}", f"{c.milliseconds:.1f}") for c in costs]
    return f"{aligned(lines)}\n\ntime of a step of plain training"


def end_to_end(costs: Sequence[EndToEndCost]) -> str:
    """Return a line per way that batches come about."""
    lines = [("batches", "images/s over memory's", "quartiles", "over torchvision's", "quartiles", "ms a step")]
    lines += [(c.what, *_cells(c.of_memory), *_cells(c.of_torchvision), f"{c.milliseconds:.1f}") for c in costs]
    theirs = "" if costs[0].of_torchvision else "\ntorchvision is not installed, or not for this torch"
    return (
        f"{aligned(lines)}\n\nepochs of plain training by the clock, each in a process of its own, with "
        f"{torch.get_num_threads()} threads{theirs}"
    )


def settings(costs: Sequence[SettingCost]) -> str:
    """Return a line per setting."""
    lines = [("settings", "images/s over pytorch's", "quartiles", "weights differ by", "ms")]
    lines += [(c.setting, *_cells(c.speed), f"{c.differs:.1e}", f"{c.milliseconds:.1f}") for c in costs]
    return f"{aligned(lines)}\n\na step of plain training, each setting in a process of its own"


def scaling(grown: Sequence[Growth]) -> str:
    """Return a line per axis."""
    lines = [("axis", "sizes", "time over the first", "exponent")]
    for g in grown:
        sizes, ratios = ", ".join(f"{s:,}" for s in g.sizes), ", ".join(f"{r:.2f}" for r in g.ratios)
        lines.append((g.axis, sizes, ratios, f"{g.exponent:.2f}"))
    return f"{aligned(lines)}\n\nexponent: of the power of the size that time grows with; 1 is proportional"


def _cells(s: TimingSpread | None) -> tuple[str, str]:
    return ("", "") if s is None else (f"{s.median:.3f}", f"{s.low:.3f}-{s.high:.3f}")
