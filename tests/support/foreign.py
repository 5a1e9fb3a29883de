"""Packages of models whose compiled parts do not load beside a torch built for processors only.

The models need none of those parts. torchvision refuses to be imported where two operators are missing; declaring
them, without an implementation, is enough.
"""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []


def declare_operators() -> None:
    """Let torchvision be imported, by whatever imports it, if it is here and its compiled part does not load."""
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
    """Skip the test if the package is not here."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        pytest.skip(f"{package} cannot be imported: {error}")
