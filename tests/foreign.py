"""Packages of models whose compiled parts do not load beside a torch built for processors only.

The models need none of those parts. torchvision refuses to be imported where two operators are missing; declaring
them, without an implementation, is enough.
"""

from __future__ import annotations

import importlib

import pytest
import torch

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []


def importable(package: str) -> None:
    """Make the package importable, or skip the test, saying why."""
    try:
        importlib.import_module(package)
        return
    except ModuleNotFoundError as error:
        pytest.skip(f"{package} cannot be imported: {error}")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        declared.define(operator + _SCHEMA)
    _declared.append(declared)
    importlib.import_module(package)
