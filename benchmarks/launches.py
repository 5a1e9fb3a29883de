"""Operations that a step launches on a GPU besides its passes, counted where there is none.

The steps run on fake tensors of a stand-in for a GPU, which have shapes and no values. An operation on two
devices, and a value that the host reads, raise an error there. The stand-in is registered for the whole process.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from steppe.core import runtime, user_loss
from steppe.core.batch import Batch
from steppe.core.execution import _operations
from steppe.core.method import Method
from steppe.core.numerics import vector
from steppe.core.state import pass_rng, rng, snapshot
from steppe.core.state.weight_average import WeightAverage
from steppe.methods import METHODS, make, parse
from steppe.methods.cheaper_sharpness.esam import ESAM

_DEVICE = "stand_in"
_STEPS = 5  # LookSAM's period
# what the host decides takes values; ESAM's choice of tensors is replaced
SPECS = tuple(name for name in METHODS if name == "esam" or not make(name).on_host)


@dataclass(frozen=True)
class Launches:
    """Operations in one step: those that copy or restore tensors, and all others; a mean over five steps."""

    method: str
    operations: float
    copies: float


def launches(specs: Sequence[str], *, progress: Callable[[str], None] = lambda _: None) -> list[Launches]:
    """Return what a step of each method launches, with SGD in one fused operation."""
    results = []
    with _stand_in():
        for spec in specs:
            progress(spec)
            results.append(_launches(spec))
    return results


def _network() -> nn.Sequential:
    """Return two convolutions and two linear layers; copies of running statistics would add to all methods."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 10)),
    )


class _Counter(TorchDispatchMode):
    """Counts operations while it is ``on``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on, self.operations, self.copies, self.depth = False, 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name()
        if self.on and _is_sent(func, args, result):
            raise RuntimeError(
                f"{name} sends a value from the host, which a GPU's host waits for, and a graph fixes"
            )
        if self.on and not self.depth and name.startswith("aten") and not func.is_view and "empty" not in name:
            copy = "copy" in name
            self.copies, self.operations = self.copies + copy, self.operations + (not copy)
        return result

    def launched(self, *_: Any, **__: Any) -> None:
        """Count a kernel that has no fake version."""
        self.operations += self.on and not self.depth

    def foreach(self, name: str) -> Callable[..., Any]:
        """Return a foreach operation that counts once; fake tensors run it tensor by tensor."""
        function = getattr(torch, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.on and not self.depth:
                copy = "copy" in name
                self.copies, self.operations = self.copies + copy, self.operations + (not copy)
            with self.passes():
                return function(*args, **kwargs)

        return counted

    def enter(self, more: int) -> None:
        """Begin or end a pass, whose operations do not count."""
        self.depth += more

    @contextmanager
    def passes(self) -> Iterator[None]:
        """Count nothing for a while."""
        self.enter(1)
        try:
            yield
        finally:
            self.enter(-1)


def _is_sent(func: Any, args: Any, result: Any) -> bool:
    """Return whether an operation copies a tensor of the host to the device; a batch's index may be there."""
    if not isinstance(result, torch.Tensor) or result.device.type != _DEVICE or func.is_view:
        return False
    name = func.name()
    source = args[1] if name == "aten::copy_" else args[0] if "to_copy" in name or "lift" in name else None
    return isinstance(source, torch.Tensor) and source.device.type == "cpu" and source.dtype != torch.int64


def _launches(spec: str) -> Launches:
    counter = _Counter()
    foreach = {name: counter.foreach(name) for name in dir(torch) if name.startswith("_foreach_")}
    original, method = _operations.make_pass, parse(spec)

    def make_pass(*args: Any, **kwargs: Any) -> Any:
        with counter.passes():
            return original(*args, **kwargs)

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.multiple(torch, **foreach),  # type: ignore[call-overload]
        mock.patch.object(torch, "_fused_sgd_", counter.launched),
        mock.patch.object(torch, "_amp_foreach_non_finite_check_and_unscale_", counter.launched),
        mock.patch.object(_operations, "make_pass", make_pass),
    ):
        net = _moved(method.build(_network))
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        for group in optimizer.param_groups:
            group["fused"] = True  # which is refused for a device that PyTorch does not know
        optimizer._step_supports_amp_scaling = True
        step = method.bind(net, optimizer, steps=100, epoch=50)
        rt = step.runtime
        rt.on_device, rt.checks.must_read = True, lambda *_: False  # type: ignore[method-assign]
        for part in step.state.modules():
            if isinstance(part, WeightAverage):
                part.on_device, part._passes = True, 99
        net.register_forward_pre_hook(lambda *_: counter.enter(1))
        net.register_forward_hook(lambda *_: counter.enter(-1))
        with counter:
            for k in range(_STEPS + 2):
                x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 10
                batch = Batch(x.to(_DEVICE), y.to(_DEVICE), torch.arange(8))
                counter.depth, counter.on = 0, k >= 2
                step(batch)
                counter.on = False
    return Launches(spec, counter.operations / _STEPS, counter.copies / _STEPS)


def _moved(net: nn.Module) -> nn.Module:
    """Move a network to the stand-in, which ``to`` cannot for fake parameters."""
    moved: dict[int, nn.Parameter] = {}
    for module in net.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = moved.setdefault(id(p), nn.Parameter(p.detach().to(_DEVICE)))
    return _with_buffers(net)


def _with_buffers(net: nn.Module, *_: Any) -> nn.Module:
    for module in net.modules():
        for name, t in module._buffers.items():
            if t is not None:
                module._buffers[name] = torch.zeros(t.shape, dtype=t.dtype, device=_DEVICE)
    return net


@contextmanager
def _stand_in() -> Iterator[None]:
    """Register the stand-in; what the host draws, and checks of values, need values and are left out."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(_DEVICE)
    own: Any = getattr(torch, _DEVICE)
    own.get_amp_supported_dtype = lambda: [torch.float16]
    generator = rng.generator

    def on_cpu(seed: int, purpose: str, number: int, device: torch.device) -> torch.Generator:
        return generator(seed, purpose, number, torch.device("cpu"))

    def tensors(method: Method, rt: runtime.Runtime) -> list[bool]:
        return [True, *(False for _ in rt.params[1:])]

    plain = vector.PLAIN | {FakeTensor}
    with (
        mock.patch.object(vector, "PLAIN", plain),
        mock.patch.object(snapshot, "PLAIN", plain),
        mock.patch.object(rng, "generator", on_cpu),
        mock.patch.object(rng, "global_generators", return_value=[torch.default_generator]),
        mock.patch.object(pass_rng, "drawn_seed", return_value=7),
        mock.patch.object(user_loss, "CHECKED_STEPS", 0),
        mock.patch.object(ESAM, "_tensors", tensors),
        mock.patch.object(nn.Module, "to", _with_buffers),
    ):
        yield
