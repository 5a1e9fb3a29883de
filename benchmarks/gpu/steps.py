"""Time, launches and memory of a step: by hand, ours, of pytorch_optimizer, as one graph, compiled.

``python -m benchmarks.gpu.steps GROUP DEVICE END OUT`` prints a line of JSON for each result, and leaves out what
does not fit before END, in seconds since 1970.
"""

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import small_steps
from steppe import hardware, methods, models
from steppe.bench.memory import peak_bytes
from steppe.bench.methods import contestant
from steppe.bench.timing import per_step
from steppe.core.batch import Batch
from steppe.errors import InputError

Step = Callable[[], object]
_LR, _MOMENTUM = 1e-3, 0.9
METHODS = (
    "plain",
    "sam",
    "gsam",
    "rwp",
    "sadt-v1",
    "mesa",
    "saf",
    "looksam",
    "esam",
    "asam",
    "wsam",
    "friendly-sam",
)
OTHERS = {
    "sam": "SAM", "looksam": "LookSAM", "friendly-sam": "FriendlySAM",
}  # fmt: skip
BY_HAND = {"plain": small_steps.plain_by_hand, "sam": small_steps.sam_by_hand, "sadt-v1": small_steps.sadt_by_hand}


@dataclass(frozen=True)
class Sizes:
    """Network and batch of all steps; a timing is the median of ``repeats`` times ``steps`` steps."""

    model: str = "simple-cnn"
    batch: int = 512
    size: int = 32
    steps: int = 20  # whole periods of LookSAM
    repeats: int = 5


TINY = Sizes(batch=8, size=18, steps=10, repeats=1)


def network(sizes: Sizes) -> nn.Module:
    """Return the network, in the memory layout of training."""
    torch.manual_seed(0)
    net = models.build(sizes.model, classes=10, channels=3, size=sizes.size).to(hardware.device())
    channels_last: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return channels_last


def data(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Return random images and classes."""
    device = hardware.device()
    x = torch.randn(sizes.batch, 3, sizes.size, sizes.size, device=device)
    return x.contiguous(memory_format=torch.channels_last), torch.arange(sizes.batch, device=device) % 10


def optimizer(net: nn.Module) -> torch.optim.SGD:
    """Return the optimizer of all steps."""
    return torch.optim.SGD(net.parameters(), _LR, momentum=_MOMENTUM, fused=True)


def ours(
    spec: str,
    sizes: Sizes,
    precision: str = "fp32",
    wrap: Callable[[nn.Module], Any] = lambda net: net,
    **options: Any,
) -> Step:
    """Return a step of a bound method."""
    method = methods.parse(spec)
    net = method.build(lambda: network(sizes)).to(hardware.device())
    bound = method.bind(wrap(net), optimizer(net), steps=10**6, precision=precision, **options)
    x, y = data(sizes)
    index = torch.arange(sizes.batch, device=x.device)
    batch = Batch(x, y, index, {f"view {i}": x for i in range(2, method.views + 1)})
    return lambda: bound(batch)


class _Autocast(nn.Module):
    """A network in bf16 autocast, for the loops by hand."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            logits: Tensor = self.net(x)
        return logits.float()


def by_hand(spec: str, sizes: Sizes, precision: str = "fp32") -> Step:
    """Return the loop that one writes by hand."""
    net = network(sizes)
    return BY_HAND[spec](_Autocast(net) if precision == "bf16" else net, *data(sizes), optimizer)


def captured(step: Step) -> Step:
    """Return a loop by hand captured whole in a CUDA graph; on a processor the loop itself."""
    if hardware.device().type != "cuda":
        return step
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def milliseconds(make: Callable[[], Step], sizes: Sizes) -> float:
    """Return the time of a step in ms, after a warm-up."""
    step = make()
    for _ in range(sizes.steps):
        step()
    return 1000 * median(per_step(step, sizes.steps) for _ in range(sizes.repeats))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that are dispatched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(step: Step) -> int:
    """Return how many operations a step dispatches; a foreach operation counts once."""
    with _Operations() as mode:
        step()
    return int(mode.count)


def launches(step: Step) -> int:
    """Return how many kernels, copies and graphs a step starts on the GPU; on a processor its operations."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = hardware.device().type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    starts = ("cudaLaunch", "cuLaunch", "cudaMemcpy", "cudaMemset", "cudaGraphLaunch") if on_gpu else ("aten::",)
    return sum(event.name.startswith(starts) for event in profiler.events() or ())


def reads(step: Step) -> int:
    """Return how often a step waits for the GPU, such as to read a number; on a processor 0."""
    if hardware.device().type != "cuda":
        step()
        return 0
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # the mode itself warns that it is a prototype
    return sum("called a synchronizing" in str(w.message) for w in caught)


def counted(count: Callable[[Step], float], make: Callable[[], Step], warm: int = 5) -> float:
    """Return a count of one step, after a warm-up: the period of LookSAM, whose next step makes both passes."""
    step = make()
    for _ in range(warm):
        step()
    return count(step)


Item = tuple[str, str, Callable[[], float]]  # row, column, measurement


def step_items(sizes: Sizes) -> Iterator[Item]:
    """Yield what is measured of steps, the most important first."""
    for spec in METHODS:
        for column, make in {"by hand": by_hand, "ours": ours}.items():
            if column == "ours" or spec in BY_HAND:
                yield spec, column, partial(milliseconds, partial(make, spec, sizes), sizes)
        if spec in OTHERS and find_spec("pytorch_optimizer"):
            other = partial(contestant, f"pytorch_optimizer:{OTHERS[spec]}", sizes.model, sizes.batch, sizes.size)
            yield spec, "pytorch_optimizer", lambda other=other: milliseconds(lambda: other().step, sizes)  # type: ignore[misc]
    for spec in BY_HAND:
        for column, make in {"by hand": by_hand, "ours": ours}.items():
            bf16 = partial(make, spec, sizes, "bf16")
            yield f"{spec}, bf16", column, partial(milliseconds, bf16, sizes)
    counts = {"launches": launches, "operations": operations, "reads": reads}
    for spec in METHODS:
        make = partial(ours, spec, sizes)
        for column, count in counts.items():
            yield spec, column, partial(counted, count, make)
        yield spec, "memory", lambda make=make: peak_bytes(make) / 2**20  # type: ignore[misc]


def graph_items(sizes: Sizes) -> Iterator[Item]:
    """Yield what is measured of steps that are captured whole."""
    for spec in BY_HAND:
        if spec != "sadt-v1":  # whose noise by hand comes from no registered generator
            hand = partial(by_hand, spec, sizes)
            yield spec, "by hand, graph", lambda hand=hand: milliseconds(lambda: captured(hand()), sizes)  # type: ignore[misc]
    for spec in METHODS:
        yield spec, "graph", partial(milliseconds, partial(ours, spec, sizes, graph=True), sizes)
    for spec in BY_HAND:
        whole = partial(ours, spec, sizes, graph=True)
        yield spec, "graph launches", partial(counted, launches, whole, 20)
    for spec in BY_HAND:
        half = partial(ours, spec, sizes, "bf16", graph=True)
        yield f"{spec}, bf16", "graph", partial(milliseconds, half, sizes)


def compile_items(sizes: Sizes) -> Iterator[Item]:
    """Yield what is measured of compiled networks."""
    for mode in ("default", "reduce-overhead"):
        column = "compile" if mode == "default" else mode
        wrap = partial(_compiled, mode=mode)
        for spec in ("plain", "sam", "sadt-v1", "mesa"):
            yield spec, column, partial(milliseconds, partial(ours, spec, sizes, wrap=wrap), sizes)


def _compiled(net: nn.Module, mode: str) -> Any:
    torch._dynamo.reset()  # otherwise each network counts as a new compilation of the first one's code
    return torch.compile(net, mode=mode)


GROUPS = {"steps": step_items, "graph": graph_items, "compile": compile_items}


def report(row: dict[str, Any]) -> None:
    """Print a result."""
    print(json.dumps(row), flush=True)


def measure(items: Iterator[Item], end: float) -> None:
    """Measure as many items as fit, and report each; one that fails is reported with its error."""
    for row, column, work in items:
        if time.time() > end:
            report({"row": row, "column": column, "error": "no time was left, nor for what follows"})
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                report({"row": row, "column": column, "value": work()})
        except Exception as error:
            first = " ".join(str(error).split())[:160]
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "  # what is refused says why
            report({"row": row, "column": column, "error": f"{kind}{first}"})
        with contextlib.suppress(Exception):
            torch.cuda.empty_cache()


def main(arguments: Sequence[str]) -> None:
    """Measure one group."""
    group, device, end, _ = arguments
    if device == "cpu":
        torch.set_num_threads(1)
    measure(GROUPS[group](TINY if device == "cpu" else Sizes()), float(end))


if __name__ == "__main__":
    main(sys.argv[1:])
