"""A compiled model: the same training as the eager one, and no compilation after the second step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from steppe.testing import fixtures
from steppe.testing.context import CheckContext
from steppe.testing.result import CheckFailed
from steppe.testing.subjects import Subject, SubjectOptions

CLOSE = 1e-5
COMPILERS = ("c++", "g++", "clang++")


def compiled(subject: Subject, lab: CheckContext) -> str | None:
    """Train the compiled and the eager network for five steps; count the graphs that are compiled."""
    from torch._dynamo.utils import counters

    backend = backend_for(lab.device)
    if lab.compiled is None:
        torch._dynamo.reset()
        # one compilation serves all subjects, because they train the same module from the same weights
        lab.compiled = cast(nn.Module, torch.compile(fixtures.smooth().to(lab.device), backend=backend))
    shared = lab.compiled
    try:
        if type(subject.build(fixtures.smooth)) is type(fixtures.smooth()):
            setup = SubjectOptions(wrap=lambda net: shared, device=lab.device)
            session = subject.start(lambda: _renewed(shared), setup)
        else:
            session = subject.start(fixtures.smooth, SubjectOptions(wrap=_compiler(backend), device=lab.device))
        eager = subject.start(fixtures.smooth, SubjectOptions(device=lab.device))
        warm = 0
        for k in range(5):
            session.step(fixtures.batch(k))
            eager.step(fixtures.batch(k))
            if k == 1:
                warm = counters["stats"]["unique_graphs"]
        again = counters["stats"]["unique_graphs"] - warm
        if again:
            raise CheckFailed(f"compiles {again} more times in steps 3 to 5")
        off = fixtures.distance(fixtures.weights(eager.net), fixtures.weights(session.net))
        if not off <= CLOSE:
            raise CheckFailed(f"after 5 steps the compiled model's weights are {off:.1e} from the eager one's")
    except BaseException:
        # what went wrong may have left graphs behind that hide it from the next subject
        lab.compiled = None
        raise
    return None if backend == "inductor" else "with backend aot_eager: there is no C++ compiler"


def _compiler(backend: str) -> Callable[[nn.Module], nn.Module]:
    def wrap(net: nn.Module) -> nn.Module:
        torch._dynamo.reset()
        return cast(nn.Module, torch.compile(net, backend=backend))

    return wrap


def _renewed(model: nn.Module) -> nn.Module:
    """Return the network below a compiled model, as it was at first."""
    net: nn.Module = model.get_submodule("_orig_mod")
    net.load_state_dict(fixtures.smooth().state_dict())
    for p in net.parameters():
        p.requires_grad_(True)
        p.grad = None
    return net


def backend_for(device: str) -> str:
    """Return the compiler's backend: the default one where it can work."""
    found = device != "cpu" or os.environ.get("CXX") or any(map(shutil.which, COMPILERS))
    return "inductor" if found else "aot_eager"
