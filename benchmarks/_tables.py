"""Tables of the results, for the terminal."""

from collections.abc import Sequence

import torch

from benchmarks.augmentation import DataCost
from benchmarks.cpu_settings import SettingCost
from benchmarks.decoding import DecodingCost
from benchmarks.launches import Launches
from benchmarks.logit_bank import StoreCost
from benchmarks.models import ModelCost
from benchmarks.own_loop import OwnLoopCost
from benchmarks.param_ops import ParamsCost
from benchmarks.pipeline import EndToEndCost
from benchmarks.scaling import Growth
from benchmarks.small_steps import SmallStepCost
from benchmarks.step_path import StepPath
from steppe.bench.timing import TimingSpread
from steppe.cli.tables import aligned


def params(costs: Sequence[ParamsCost], model: str) -> str:
    """Return a line per method."""
    lines = [("method", "of plain", "quartiles", "loop", "quartiles", "loop, fused", "quartiles", "ms")]
    for c in costs:
        cells = (cell for s in (c.of_plain, c.loop, c.loop_fused) for cell in _cells(s))
        lines.append((c.method, *cells, f"{c.milliseconds:.2f}"))  # type: ignore[arg-type]
    return (
        f"{aligned(lines)}\n\nwork on the parameters of {model} alone, with given gradients; loop: time of the "
        "usual loop over tensors, over ours,\nwith the optimizer's default implementation and with the fused one"
    )


def data(costs: Sequence[DataCost]) -> str:
    """Return a line per chain of augmentation steps."""
    lines = [("steps", "of none", "quartiles", "ms")]
    lines += [(c.steps, *_cells(c.of_none), f"{c.milliseconds:.2f}") for c in costs]
    return f"{aligned(lines)}\n\ntime to make a batch, as a multiple of one that is only read and normalised"


def decode(costs: Sequence[DecodingCost]) -> str:
    """Return a line per way of loading."""
    lines = [("images from", "of threads", "quartiles", "seconds")]
    lines += [(c.way, *_cells(c.of_threads), f"{c.seconds:.2f}") for c in costs]
    return f"{aligned(lines)}\n\nprocessor time of the command until the images of an archive are at hand"


def models(costs: Sequence[ModelCost]) -> str:
    """Return a line per network."""
    lines = [("model", f"of {costs[0].model}", "quartiles", "parameters", "ms")]
    lines += [(c.model, *_cells(c.of_first), f"{c.parameters:,}", f"{c.milliseconds:.1f}") for c in costs]
    return f"{aligned(lines)}\n\ntime of a step of plain training"


def end_to_end(costs: Sequence[EndToEndCost]) -> str:
    """Return a line per source of batches."""
    lines = [("batches", "images/s over memory's", "quartiles", "over torchvision's", "quartiles", "ms a step")]
    lines += [(c.batches, *_cells(c.of_memory), *_cells(c.of_torchvision), f"{c.milliseconds:.1f}") for c in costs]
    missing = "" if costs[0].of_torchvision else "\ntorchvision is not installed, or not for this torch"
    return (
        f"{aligned(lines)}\n\nwall-clock time of epochs of plain training, each line in a process of its own with "
        f"{torch.get_num_threads()} threads{missing}"
    )


def settings(costs: Sequence[SettingCost]) -> str:
    """Return a line per setting."""
    lines = [("settings", "images/s over pytorch's", "quartiles", "weights differ by", "ms")]
    lines += [(c.setting, *_cells(c.speed), f"{c.difference:.1e}", f"{c.milliseconds:.1f}") for c in costs]
    return f"{aligned(lines)}\n\na step of plain training, each setting in a process of its own"


def stores(costs: Sequence[StoreCost]) -> str:
    """Return a line per form of the logit bank."""
    lines = [("form", "declared, MB", "allocated, MB", "write, ms", "read, ms", "KL kept", "direction kept")]
    for c in costs:
        sizes = (f"{c.declared / 1e6:.1f}", f"{c.allocated / 1e6:.1f}", f"{c.write:.1f}", f"{c.read:.1f}")
        lines.append((c.form, *sizes, f"{c.kl_stored / c.kl:.1%}", f"{c.cosine:.3f}"))
    return (
        f"{aligned(lines)}\n\nms: per batch of 1024; KL kept: KL from the stored outputs, over that from exact "
        "ones;\ndirection kept: cosine between the two gradients (synthetic logits, T = 5)"
    )


def small_steps(costs: Sequence[SmallStepCost]) -> str:
    """Return a line per method."""
    lines = [("method", "by hand", "over it", "quartiles", "us")]
    lines += [(c.method, c.over, *_cells(c.ratio), f"{c.microseconds:.0f}") for c in costs]
    return f"{aligned(lines)}\n\na step on a trivial network, over the loop that one writes by hand"


def step_paths(paths: Sequence[StepPath]) -> str:
    """Return a line per method, and the files of each."""
    lines = [("method", "files", "functions", "calls")]
    lines += [(p.method, str(len(p.files)), str(p.functions), str(p.calls)) for p in paths]
    files = "\n".join(f"{p.method}: {' '.join(p.files)}" for p in paths)
    return f"{aligned(lines)}\n\n{files}"


def launches(counts: Sequence[Launches]) -> str:
    """Return a line per method."""
    lines = [("method", "operations", "copies")]
    lines += [(c.method, f"{c.operations:.3g}", f"{c.copies:.3g}") for c in counts]
    return f"{aligned(lines)}\n\na step besides its passes, with a fused optimizer; foreach operations count once"


def own_loop(costs: Sequence[OwnLoopCost]) -> str:
    """Return a line per step and memory setting."""
    lines = [("step", "freed memory", "over two passes", "quartiles", "page faults", "ms")]
    lines += [(c.step, c.memory, *_cells(c.ratio), f"{c.page_faults:.0f}", f"{c.milliseconds:.1f}") for c in costs]
    return f"{aligned(lines)}\n\neach step in a process of its own, with one thread"


def scaling(growths: Sequence[Growth]) -> str:
    """Return a line per axis."""
    lines = [("axis", "sizes", "time over the first", "exponent")]
    for g in growths:
        sizes, ratios = ", ".join(f"{s:,}" for s in g.sizes), ", ".join(f"{r:.2f}" for r in g.ratios)
        lines.append((g.axis, sizes, ratios, f"{g.exponent:.2f}"))
    return f"{aligned(lines)}\n\nexponent b of time ~ size^b; 1 is proportional"


def _cells(s: TimingSpread | None) -> tuple[str, str]:
    return ("", "") if s is None else (f"{s.median:.3f}", f"{s.low:.3f}-{s.high:.3f}")
