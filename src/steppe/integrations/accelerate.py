"""A method in a training loop prepared by Accelerate.

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    step = bind(steppe.SAM(rho=0.05), accelerator, model, optimizer)
    for x, y in loader:
        step(x, y)

Precision and loss scale are the accelerator's. For gradient accumulation, give the step a list of micro-batches.
The loop does not call the accelerator's ``accumulate``, ``backward`` and ``clip_grad_norm_``: the step replaces
them. Needs ``pip install accelerate``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from steppe.core.method import Method
from steppe.core.step import Step
from steppe.errors import InputError
from steppe.integrations import check_accelerator, ready


def bind(
    method: Method | str,
    accelerator: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    **options: Any,
) -> Step:
    """Bind a method, or its text, to a model and an optimizer, or a list of several, of ``accelerator.prepare``.

    ``options`` are those of `Method.bind`. Raises InputError for fp8, DeepSpeed, FSDP1, and
    ``gradient_accumulation_steps`` other than 1.
    """
    precision = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}.get(accelerator.mixed_precision)
    if precision is None:
        raise InputError(f"mixed_precision is {accelerator.mixed_precision!r}; use 'no', 'bf16' or 'fp16'")
    check_accelerator(accelerator)
    if accelerator.gradient_accumulation_steps != 1:
        raise InputError(
            f"gradient_accumulation_steps is {accelerator.gradient_accumulation_steps}; leave it at 1 and give "
            "the step a list of micro-batches, which it replays in every pass"
        )
    several: Any = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    inner: list[torch.optim.Optimizer] = [getattr(one, "optimizer", one) for one in several]
    scaler = accelerator.scaler if precision == "fp16" else None
    return ready(method).bind(model, inner, precision=precision, scaler=scaler, **options)
