"""A second device on the processor: operations over two devices fail as they do with a GPU.

Its tensors claim to be on 'meta' and compute on the processor. As with a GPU, numbers without dimensions, indices
and copies may be on the processor; any other tensor beside one of the device raises RuntimeError. ``.numpy()`` is
refused, ``.item()`` is counted in ``reads``.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from steppe import hardware
from steppe.core.numerics import vector
from steppe.core.state import snapshot

DEVICE = torch.device("meta")
_aten = torch.ops.aten
# what CUDA takes from several devices: copies, and indices on the processor
_ACROSS = {"aten::copy_", "aten::_to_copy", "aten::_foreach_copy_", "aten::copy", "aten::_foreach_copy"}
_INDEXED = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}


class DeviceTensor(Tensor):
    """A tensor of the second device; ``raw`` has its values."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> DeviceTensor:
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        wrapper.raw = raw
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self) -> list:
        """Return the values, as a GPU's tensor does."""
        return self.raw.tolist()

    def cpu(self, *_: object) -> Tensor:
        """Return a copy on the processor."""
        return self.to("cpu")

    def __deepcopy__(self, memo: dict) -> Tensor:
        if id(self) not in memo:
            with torch.no_grad():
                copy = self.detach().clone().requires_grad_(self.requires_grad)
            copy._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = copy
        return memo[id(self)]


_Generator = torch.Generator
_DEVICES: dict[int, torch.device] = {}  # of generators, which an operation gets without their class


class DeviceGenerator(torch.Generator):
    """A generator of either device."""

    def __new__(cls, device: object = "cpu") -> DeviceGenerator:
        generator = super().__new__(cls, "cpu")
        _DEVICES[generator._cdata] = generator.of = torch.device(device)
        return generator

    @property
    def device(self) -> torch.device:
        """The device that it was made for."""
        return self.of


class SecondDevice(TorchDispatchMode):
    """Makes tensors on the second device where they are requested; ``reads`` counts values read by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is _aten._local_scalar_dense.default and isinstance(args[0], DeviceTensor):
            self.reads += 1
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    """Run an operation on the values, on the device that a GPU would run it on."""
    name, leaves = func._schema.name, tree_leaves((args, kwargs))
    ours = [t for t in leaves if isinstance(t, DeviceTensor)]
    theirs = [t for t in leaves if isinstance(t, Tensor) and not isinstance(t, DeviceTensor)]
    device = kwargs.get("device")
    target = torch.device(device) if device is not None else DEVICE if ours else torch.device("cpu")
    if ours and name not in _ACROSS:
        if name in _INDEXED:
            first = args[0]
            others = theirs if not isinstance(first, DeviceTensor) else [t for t in args[2:3] if t in theirs]
        else:
            others = theirs
        wrong = [t for t in others if t.ndim]
        if wrong:
            raise RuntimeError(
                f"{name}: tensors on two devices, {[tuple(t.shape) for t in wrong]} on the processor"
            )
    for generator in (v for v in leaves if isinstance(v, _Generator)):
        own = _DEVICES.get(generator._cdata, target)
        if own.type != target.type:
            raise RuntimeError(f"{name}: expected a generator of {target}, got one of {own}")
    if name == "aten::copy_" or name == "aten::_foreach_copy_":
        target = DEVICE if ours else target
    wrappers = {id(t.raw): t for t in ours}
    plain = tree_map(lambda t: t.raw if isinstance(t, DeviceTensor) else t, (args, kwargs))
    if device is not None:
        plain[1]["device"] = torch.device("cpu")
    out = func(*plain[0], **plain[1])
    inputs = {id(t) for t in theirs}

    def wrapped(t):
        if not isinstance(t, Tensor) or isinstance(t, DeviceTensor):
            return t
        if id(t) in wrappers:
            return wrappers[id(t)]
        if id(t) in inputs or target.type == "cpu":
            return t
        return DeviceTensor(t)

    if name == "aten::_to_copy" and ours and target.type == "cpu" and any(out is t.raw for t in ours):
        out = out.clone()
    return tree_map(wrapped, out)


_real_autocast = torch.autocast


def _autocast(device_type: str, **options: object) -> contextlib.AbstractContextManager:
    """Return autocast, which this device has not: it only leaves it off."""
    if device_type != DEVICE.type:
        return _real_autocast(device_type, **options)
    assert not options.get("enabled", True), "this device has no autocast"
    return contextlib.nullcontext()


@contextlib.contextmanager
def second_device() -> Iterator[SecondDevice]:
    """Make `steppe.hardware.device` the second device within the context."""
    supported = ["cpu", DEVICE.type]
    before = torch.__future__.get_overwrite_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    with contextlib.ExitStack() as stack:
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before[0])
        stack.callback(torch._C._set_only_lift_cpu_tensors, before[1])
        fused = "torch.optim.optimizer._get_fused_kernels_supported_devices"
        stack.enter_context(mock.patch(fused, return_value=supported))
        stack.enter_context(mock.patch.object(hardware, "device", return_value=DEVICE))
        stack.enter_context(mock.patch.object(torch, "Generator", DeviceGenerator))
        stack.enter_context(mock.patch.object(torch, "autocast", _autocast))
        # like a GPU's, these tensors are neither sharded nor copied one by one
        for module in (vector, snapshot):
            stack.enter_context(mock.patch.object(module, "PLAIN", vector.PLAIN | {DeviceTensor}))
        # torch takes tensors of this device for empty ones
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", ".*no-op", UserWarning)
        yield stack.enter_context(SecondDevice())
