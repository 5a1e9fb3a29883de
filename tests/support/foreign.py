"""Packages of models whose compiled parts do not load with a CPU-only build of torch.

The models do not need these parts. torchvision cannot be imported if two operators are missing; declaring them,
without an implementation, is enough.
"""

import importlib
import importlib.util

import pytest
import torch

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []


def declare_operators() -> None:
    """Declare torchvision's operators if it is installed and its compiled part does not load."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        declared = torch.library.Library("torchvision", "FRAGMENT")
        for operator in _OPERATORS:
            declared.define(operator + _SCHEMA)
        _declared.append(declared)
        importlib.import_module("torchvision")


def importable(package: str) -> None:
    """Skip the test if the package cannot be imported."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        pytest.skip(f"{package} cannot be imported: {error}")
