"""The list of checks, in the order of the table."""

from steppe.testing import mixed_precision, multi_process, single_process, torch_compile
from steppe.testing.context import Check

CHECKS: dict[str, Check] = {
    check.name: check
    for check in (
        *(single_process.reduces, single_process.reference, single_process.passes, single_process.restored),
        *(single_process.exception, single_process.batch_norm, single_process.random_stream),
        *(single_process.accumulation, single_process.masks),
        *(mixed_precision.bf16, mixed_precision.fp16, mixed_precision.overflow),
        *(single_process.clip, single_process.resume),
        *(multi_process.ddp_local, multi_process.ddp_global, multi_process.fsdp2, multi_process.non_finite),
        torch_compile.compiled,
    )
}
