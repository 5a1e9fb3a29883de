"""The list of checks, in the order of the table."""

from __future__ import annotations

from steppe.testing.context import Check
from steppe.testing.mixed_precision import bf16, fp16, overflow
from steppe.testing.multi_process import ddp_global, ddp_local, fsdp2, non_finite
from steppe.testing.single_process import (
    accumulation,
    batch_norm,
    clip,
    exception,
    masks,
    passes,
    random_stream,
    reduces,
    reference,
    restored,
    resume,
)
from steppe.testing.torch_compile import compiled

CHECKS: dict[str, Check] = {
    check.name: check
    for check in (
        *(reduces, reference, passes, restored, exception, batch_norm, random_stream, accumulation, masks),
        *(bf16, fp16, overflow, clip, resume, ddp_local, ddp_global, fsdp2, non_finite, compiled),
    )
}
