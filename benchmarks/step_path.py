"""What one step runs through: the package's files, functions and Python calls, counted on a warm step."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import steppe
from benchmarks.small_steps import batch_of, network, sgd
from steppe import methods

_WARM = 20  # steps before: the first ones check the loss and fill caches
_PACKAGE = Path(steppe.__file__).parent


@dataclass(frozen=True)
class StepPath:
    """Files entered, functions entered, and Python calls in one step, the package's own only."""

    method: str
    files: list[str]
    functions: int
    calls: int


def step_paths(specs: Sequence[str]) -> list[StepPath]:
    """Return the path of a step of each method on the trivial network of `benchmarks.small_steps`."""
    return [_path(spec) for spec in specs]


def _path(spec: str) -> StepPath:
    net = network()
    step = methods.parse(spec).bind(net, sgd(net), steps=10**6)
    x, y = batch_of()
    for _ in range(_WARM):
        step(x, y)
    codes: list[CodeType] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and _PACKAGE in Path(frame.f_code.co_filename).parents:
            codes.append(frame.f_code)

    sys.setprofile(profile)
    try:
        step(x, y)
    finally:
        sys.setprofile(None)
    files = sorted({str(Path(code.co_filename).relative_to(_PACKAGE)) for code in codes})
    return StepPath(spec, files, len(set(codes)), len(codes))
