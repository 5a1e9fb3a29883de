"""No method combines tensors of two devices: every step runs on fake tensors of a device that is not there.

The device is a stand-in for a GPU: fake tensors of a GPU need a PyTorch that was built for one. It is registered
for a whole process, so that the steps run in another.
"""

import subprocess
import sys

import pytest

_STEPS = """
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from steppe.core import user_loss
from steppe.core.batch import Batch
from steppe.core.state import pass_rng, rng
from steppe.core.state.weight_average import WeightAverage
from steppe.methods import METHODS, api, make
from steppe.testing import fixtures

_setup_privateuseone_for_python_backend("npy")
torch.npy.get_amp_supported_dtype = lambda: [torch.float16]
# what the host draws, and checks of values, need values
user_loss.CHECKED_STEPS = 0
api.ESAM._tensors = lambda *_: None
pass_rng.drawn_seed = lambda _: 7
rng.global_generators = lambda _: [torch.default_generator]
made = rng.generator
rng.generator = lambda seed, purpose, number, _: made(seed, purpose, number, torch.device("cpu"))


def check(tensors, flag, one):
    assert {t.device.type for t in [*tensors, flag, one]} == {"npy"}


torch._amp_foreach_non_finite_check_and_unscale_ = check


def to(module, *_):
    for m in module.modules():
        for name, t in m._buffers.items():
            if t is not None:
                m._buffers[name] = torch.zeros(t.shape, dtype=t.dtype, device="npy")
    return module


nn.Module.to = to


def on_device(net):
    moved = {}
    for m in net.modules():
        for name, p in m._parameters.items():
            if p is not None:
                m._parameters[name] = moved.setdefault(id(p), nn.Parameter(p.detach().to("npy")))
    return to(net)


def network():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)),
        *(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 5)),
    )


for name in METHODS:
    if name == "saf":  # its logit bank is on the host
        continue
    with FakeTensorMode(allow_non_fake_inputs=True):
        method = make(name)
        net = on_device(method.build(network))
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, fused=False)
        step = method.bind(net, optimizer, steps=100, epoch=50, clip=1.0)
        step.runtime.on_device, step.runtime.checks.must_read = True, lambda *_: False
        for part in step.state.modules():
            if isinstance(part, WeightAverage):
                part.on_device, part._passes = True, 99
        for k in range(2):
            batch = fixtures.batch(k)
            step(Batch(batch.x.to("npy"), batch.y.to("npy"), batch.index))
        assert all(p.device.type == "npy" for p in net.parameters())
    print(name)
"""


@pytest.mark.slow
def test_no_step_combines_tensors_of_two_devices():
    done = subprocess.run([sys.executable, "-c", _STEPS], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) > 30
