"""The list of checks, in the order of the table."""

from __future__ import annotations

from steppe.testing import mixed_precision, multi_process, single_process
from steppe.testing.context import Check
from steppe.testing.torch_compile import compiled

_ALL = [
    Check(
        "reduces",
        "At the settings that it declares as its limit (rho = 0, say) it is plain training bit for bit: weights, "
        "running statistics, the optimizer's state, the random stream.",
        "A comparison with the baseline then measures more than the method: something differs even when it is "
        "switched off.",
        single_process.reduces,
    ),
    Check(
        "reference",
        "Two steps in float64 are its equation, written again by hand, to 1e-9.",
        "It computes something else than its equation, or in lower precision than the weights have.",
        single_process.reference,
    ),
    Check(
        "passes",
        "The forward and backward passes and updates that it declares are those that hooks on every layer count.",
        "Its cost is stated wrongly, so comparisons at equal cost are not.",
        single_process.passes,
    ),
    Check(
        "restored",
        "At learning rate 0 every weight is afterwards bit for bit what it was, in the same memory; tied, frozen "
        "and idle ones too.",
        "Weights drift with every step, or whatever holds their memory (optimizers, shards, CUDA graphs) loses "
        "them.",
        single_process.restored,
    ),
    Check(
        "exception",
        "An exception in any pass leaves the weights as they were before the step.",
        "Who catches out-of-memory or Ctrl-C and goes on, or saves, does so with perturbed weights.",
        single_process.exception,
    ),
    Check(
        "batch-norm",
        "BatchNorm's running statistics are those of the clean pass, and count each batch once.",
        "The statistics that evaluation uses are also those of perturbed weights, and count every batch twice; "
        "the user has to switch them off in the second pass.",
        single_process.batch_norm,
    ),
    Check(
        "random-stream",
        "The global random stream ends where plain training leaves it.",
        "Runs that share a seed do not share dropout masks, data order or augmentation with the baseline.",
        single_process.random_stream,
    ),
    Check(
        "accumulation",
        "A batch in micro-batches gives the update of the whole batch (float64, 1e-9).",
        "A batch that does not fit in memory cannot be trained on in parts without changing the method.",
        single_process.accumulation,
    ),
    Check(
        "masks",
        "Every pass sees each micro-batch with that micro-batch's own dropout masks if the method repeats masks, "
        "with new ones if it draws fresh masks.",
        "With accumulation, passes are compared that drop different units than they do without.",
        single_process.masks,
    ),
    Check(
        "bf16",
        "Three steps under bf16 autocast follow those in fp32, to a tenth of the way.",
        "It cannot be used in mixed precision.",
        mixed_precision.bf16,
    ),
    Check(
        "fp16",
        "Three steps under fp16 autocast with a loss scale follow those in fp32, and the perturbation is as long "
        "at scale 2**16 as at 2**4.",
        "The loss scale, which changes during training, changes the method.",
        mixed_precision.fp16,
    ),
    Check(
        "overflow",
        "A loss that is not finite, in any pass, leaves weights and optimizer as they were before the step, backs "
        "the loss scale off once, and the next step works.",
        "fp16 training overflows as a matter of course while the loss scale is found; one such step ends the run "
        "with weights that are not finite, unless the user guards both passes by hand.",
        mixed_precision.overflow,
    ),
    Check(
        "clip-once",
        "A clipping threshold acts on the gradient that the optimizer gets, and on nothing before it.",
        "Clipping changes the perturbation, or lets a longer gradient through.",
        single_process.clip,
    ),
    Check(
        "resume",
        "Saved through bytes, made anew and loaded, it goes on bit for bit.",
        "A run that is interrupted and resumed is another run.",
        single_process.resume,
    ),
    Check(
        "ddp-local",
        "With DDP and a perturbation per process, two processes hold the same weights after every step, and those "
        "of one process that perturbs per half batch, to 1e-6.",
        "Replicas drift apart, or the perturbation is not each process's own.",
        multi_process.ddp_local,
    ),
    Check(
        "ddp-global",
        "With DDP and a common perturbation, two processes are one process with the whole batch, to 1e-6.",
        "The result depends on the number of processes.",
        multi_process.ddp_global,
    ),
    Check(
        "fsdp2",
        "With fully_shard, two processes are one process with the whole batch, to 1e-6.",
        "It cannot train a sharded model, or trains it wrongly.",
        multi_process.fsdp2,
    ),
    Check(
        "one-rank",
        "If one process alone meets a value that is not finite, in any pass, all skip that step and go on "
        "together (DDP and FSDP2).",
        "Processes wait for each other for ever, or go on with different weights.",
        multi_process.non_finite,
    ),
    Check(
        "compile",
        "A model under torch.compile trains as the eager one, to 1e-5, and nothing is compiled after step 2.",
        "Compilation changes the training or starts again and again.",
        compiled,
    ),
]

CHECKS: dict[str, Check] = {check.name: check for check in _ALL}
DISTRIBUTED = ("ddp-local", "ddp-global", "fsdp2", "one-rank")
