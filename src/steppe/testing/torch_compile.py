"""The check of a compiled model: it trains as the eager one, and nothing is compiled after the second step."""

import os
import shutil
from typing import cast

import torch
from torch import nn

from steppe.testing import fixtures
from steppe.testing.context import CheckContext, check
from steppe.testing.result import CheckFailed
from steppe.testing.subjects import Session, Subject

TOLERANCE = 1e-5
COMPILERS = {
    "cpu": ("CXX", "c++", "g++", "clang++"),
    "cuda": ("CC", "cc", "gcc", "clang"),
}  # for Triton, that of C


@check("compile", "Compilation changes the training or is repeated again and again.")
def compiled(subject: Subject, context: CheckContext) -> str | None:
    """A model under torch.compile trains as the eager one, to 1e-5, and nothing is compiled after step 2."""
    import torch._inductor.config as inductor
    from torch._dynamo.utils import counters

    backend = backend_for(context.device)
    if context.device == "cuda" and not _trains_network_itself(subject):
        # Inductor makes kernels of networks, not of methods; that of one network takes as long as all other checks
        backend = "aot_eager"
    try:
        session = _compiled_session(subject, context, backend)
        eager = subject.start(fixtures.smooth, context.options())
        warm = 0
        # a few small kernels are compiled before a pool of compiling processes has started
        threads = inductor.compile_threads if context.device == "cpu" else 1
        with inductor.patch(compile_threads=threads):
            for k in range(5):
                session.step(fixtures.batch(k))
                eager.step(fixtures.batch(k))
                if k == 1:
                    warm = counters["stats"]["unique_graphs"]
        again = counters["stats"]["unique_graphs"] - warm
        if again:
            raise CheckFailed(f"compiles {again} more times in steps 3 to 5")
        error = fixtures.distance(fixtures.weights(eager.net), fixtures.weights(session.net))
        if not error <= TOLERANCE:
            raise CheckFailed(f"after 5 steps the compiled model's weights are {error:.1e} from the eager one's")
    except BaseException:
        # a failure may have left graphs behind that hide it from the next subject
        context.compiled = None
        raise
    if backend == "inductor":
        return None
    no_compiler = backend_for(context.device) == "aot_eager"
    missing = "there is no compiler" if no_compiler else "it trains several networks"
    return f"with backend aot_eager: {missing}"


def _compiled_session(subject: Subject, context: CheckContext, backend: str) -> Session:
    """Compile the network, once for all subjects that train the network itself, from the same weights."""

    def compile_network(net: nn.Module) -> nn.Module:
        torch._dynamo.reset()
        return cast(nn.Module, torch.compile(net, backend=backend))

    if not _trains_network_itself(subject):
        return subject.start(fixtures.smooth, context.options(wrap=compile_network))
    if context.compiled is None:
        context.compiled = compile_network(fixtures.smooth().to(context.device))
    shared = context.compiled
    return subject.start(lambda: _reset(shared), context.options(wrap=lambda net: shared))


def _trains_network_itself(subject: Subject) -> bool:
    return type(subject.build(fixtures.smooth)) is nn.Sequential


def _reset(model: nn.Module) -> nn.Module:
    """Return the network below a compiled model, with its initial weights."""
    net: nn.Module = model.get_submodule("_orig_mod")
    net.load_state_dict(fixtures.smooth().state_dict())
    for p in net.parameters():
        p.requires_grad_(True)
        p.grad = None
    return net


def backend_for(device: str) -> str:
    """Return the default backend of torch.compile where it can work, else aot_eager."""
    variable, *commands = COMPILERS[device]
    can_compile = os.environ.get(variable) or any(map(shutil.which, commands))
    return "inductor" if can_compile else "aot_eager"
