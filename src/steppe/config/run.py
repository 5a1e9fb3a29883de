"""Configuration of a run and of a comparison: frozen dataclasses for the API, the YAML file and the options alike.

Every field is checked on construction, so an impossible configuration never reaches the data or the network.
``digest`` names a run: equal configurations share a folder, different ones never do.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from steppe.errors import InputError

Optimizer = Literal["adam", "adamw", "sgd"]
ScheduleName = Literal["cosine", "constant", "step"]
Match = Literal["epochs", "gradients", "seconds"]
PrecisionName = Literal["fp32", "bf16", "fp16", "fp64"]
SyncName = Literal["local", "global"]
Parallel = Literal["ddp", "fsdp"]
Normalize = Literal["unit", "standard"]
TRACKERS = ("tensorboard", "wandb", "mlflow")

DEFAULT_METHODS = ("plain", "repeat-step", "two-step", "gc", "agc", "sam", "sadt-v1", "sadt-v2", "sadt-v3")


def _positive(name: str, value: float | None, least: float = 0.0, strict: bool = True) -> None:
    if value is None:
        return
    if not math.isfinite(value) or value < least or (strict and value == least):
        raise InputError(f"{name} is {value}; give a number {'above' if strict else 'of at least'} {least:g}")


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class Data:
    """How the images of a data set are chosen, split, sized and augmented.

    Attributes:
        train: Number of training images, sampled per class; all if not given.
        val: Training images held out for validation: a fraction below 1, or a count.
        test: Number of test images, sampled per class; all if not given.
        size: Side in pixels that images are resized to; the data set's own size if not given (digits: 24).
        augment: Augmentations of each training batch, in this order: any of flip, crop, resized-crop, jitter,
            cutout, rotate, randaugment, mixup, cutmix.
        views: Augmentation pipelines that replace augment, one per network of a method that trains several
            (and for OKDPH's hybrid), or one for all: plain, crop-flip, crop-flip-rotate, crop-flip-cutout,
            crop-randaugment, crop-autoaugment.
        noise: Standard deviation of Gaussian noise on every normalised pixel: new in each epoch and view for
            training images, fixed per image for validation and test; 1 is usual.
        legacy_share: Share of each class to train on, sampled with repetitions as in OKDPH's published lists (0.1
            and 0.01 there); train samples without repetitions.
        normalize: 'unit' gives values in [0, 1]; 'standard' subtracts the training images' mean per channel
            and divides by their standard deviation.
        split_seed: Seed of the split and of the subsets; the same for all runs of a comparison.
        skip_corrupt: Leave unreadable images out instead of stopping before training.
    """

    train: int | None = None
    val: float = 0.1
    test: int | None = None
    size: int | None = None
    augment: tuple[str, ...] = ("cutmix",)
    normalize: Normalize = "unit"
    split_seed: int = 0
    skip_corrupt: bool = False
    views: tuple[str, ...] = ()
    noise: float = 0.0
    legacy_share: float | None = None

    def __post_init__(self) -> None:
        for name in ("train", "val", "test", "legacy_share"):
            _positive(f"data.{name}", getattr(self, name))
        _positive("data.size", self.size, 8, strict=False)
        _choice("data.normalize", self.normalize, get_args(Normalize))
        if self.val >= 1 and self.val != int(self.val):
            raise InputError(f"data.val is {self.val}; give a fraction below 1 or a whole number of images")
        _positive("data.noise", self.noise, strict=False)
        if self.legacy_share is not None and (self.legacy_share >= 1 or self.train is not None):
            raise InputError(
                f"data.legacy_share is {self.legacy_share} and data.train {self.train}; give a share below 1, "
                "and only one of them"
            )
        if len(set(self.augment)) != len(self.augment):
            raise InputError(f"data.augment names a step twice: {', '.join(self.augment)}; name each once")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimizer and learning rate schedule.

    Attributes:
        name: adam, adamw or sgd.
        lr: Initial learning rate.
        momentum: Momentum of sgd; adam and adamw ignore it.
        nesterov: Use Nesterov momentum.
        weight_decay: Weight decay, applied by the optimizer.
        schedule: 'cosine' decays the rate to min_lr over the run's budget, once per step; 'constant' keeps it;
            'step' divides it by ten at half and again at three quarters of the budget.
        min_lr: Rate at which the cosine ends.
        warmup: Share of the budget in which the rate rises linearly from warmup_lr to lr; it replaces the
            first part of the schedule.
        warmup_lr: Rate at which the warm-up starts.
        label_smoothing: Share of each target that is spread evenly over all classes in the training loss.
        clip: Largest L2 norm of all gradients together; no clipping if not given.
        clip_each: Clip each network or branch of a method that trains several by its own norm.
    """

    name: Optimizer = "adam"
    lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: ScheduleName = "cosine"
    clip: float | None = None
    nesterov: bool = False
    warmup: float = 0.0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    label_smoothing: float = 0.0
    clip_each: bool = False

    def __post_init__(self) -> None:
        _choice("optim.name", self.name, get_args(Optimizer))
        _choice("optim.schedule", self.schedule, get_args(ScheduleName))
        for name in ("lr", "weight_decay", "momentum", "warmup_lr", "min_lr"):
            _positive(f"optim.{name}", getattr(self, name), strict=False)
        _positive("optim.clip", self.clip)
        if self.clip_each and self.clip is None:
            raise InputError("optim.clip_each is True and optim.clip is not given; give the largest norm")
        if self.momentum >= 1:
            raise InputError(f"optim.momentum is {self.momentum}; give a number below 1")
        if self.nesterov and not self.momentum:
            raise InputError("optim.nesterov is True and optim.momentum 0; give a momentum, 0.9 is usual")
        for name in ("warmup", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(f"optim.{name} is {value}; give a share from 0 to below 1")
        for name in ("warmup_lr", "min_lr"):
            if getattr(self, name) > self.lr:
                raise InputError(
                    f"optim.{name} is {getattr(self, name)} and optim.lr {self.lr}; give at most that"
                )

    def lr_at(self, share: float) -> float:
        """Return the learning rate once this share s of the budget is spent.

        Up to s = warmup it is warmup_lr + (lr - warmup_lr) s / warmup, then lr, or with the cosine schedule
        min_lr + (lr - min_lr) (1 + cos(pi s)) / 2.
        """
        if share < self.warmup:
            return self.warmup_lr + (self.lr - self.warmup_lr) * share / self.warmup
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return self.lr * (1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1)))


@dataclass(frozen=True, kw_only=True)
class Monitoring:
    """Measurements during training, in addition to validation; they change no update.

    Attributes:
        test: Evaluate the test images after every epoch too. The report adds a column 'best of all', the highest
            accuracy of any network, branch or ensemble at any epoch, which several papers report. It chooses
            nothing.
        sharpness: Measure SAM's sharpness of the deployed model every so many epochs and after the last: the rise
            of the cross-entropy after one ascent step of length 0.05, on up to 500 training images without
            augmentation, the same ones in every run. It is recorded with the epoch and shown in the diagnosis.
        weights: Save the weights every so many epochs, and the initial and last ones, for the trajectories of the
            diagnosis: one file each in the run's folder.
    """

    test: bool = False
    sharpness: int | None = None
    weights: int | None = None

    def __post_init__(self) -> None:
        for name in ("sharpness", "weights"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"watch.{name} is {value}; give a number of epochs, at least 1, or leave it out")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that a run and a comparison share.

    Attributes:
        data: Split, size and augmentation of the images.
        optim: Optimizer and schedule, the same for every method.
        batch: Samples per batch, over all processes.
        epochs: Passes of plain training over the training images; the budget if match is not 'seconds'.
        match: What is equal between methods: 'epochs' (passes over the data), 'gradients' (gradient
            evaluations, as many as plain training makes in that many epochs) or 'seconds' (training time).
        seconds: Training seconds per run when match is 'seconds'.
        precision: fp32; bf16 or fp16 autocast with fp32 weights, fp16 with a loss scale; fp64 for images and
            network in double precision.
        threads: CPU threads per process; results are bit-identical only for equal counts.
        microbatch: Samples per forward pass of a process; its whole part of the batch if not given.
        m: Samples that share a perturbation (m-sharpness); a process's whole part of the batch if not given.
        sync: Which processes share a perturbation: 'local' (each has its own) or 'global' (all have one).
        parallel: How several processes share the network: 'ddp' (a replica each) or 'fsdp' (a shard each).
        compile: Compile the network with torch.compile.
        watch: Measurements during training.
        track: Trackers that show the records too: any of tensorboard, wandb, mlflow.
        workers: Processes per run that prepare batches ahead of time; with 0 the training process does it.
    """

    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    batch: int = 32
    epochs: int = 16
    match: Match = "epochs"
    seconds: float | None = None
    precision: PrecisionName = "fp32"
    threads: int = 1
    microbatch: int | None = None
    m: int | None = None
    sync: SyncName = "local"
    parallel: Parallel = "ddp"
    compile: bool = False
    watch: Monitoring = field(default_factory=Monitoring)
    track: tuple[str, ...] = ()
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "epochs", "threads", "seconds", "microbatch", "m"):
            _positive(name, getattr(self, name))
        _positive("workers", self.workers, strict=False)
        _choice("match", self.match, get_args(Match))
        _choice("precision", self.precision, get_args(PrecisionName))
        _choice("sync", self.sync, get_args(SyncName))
        _choice("parallel", self.parallel, get_args(Parallel))
        for tracker in self.track:
            _choice("track", tracker, TRACKERS)
        if self.parallel == "fsdp" and self.sync != "global":
            raise InputError(
                f"parallel is 'fsdp' and sync is {self.sync!r}; "
                "FSDP gradients are already averaged over all ranks, add --sync global"
            )
        if self.m is not None and self.sync == "global":
            raise InputError(f"m is {self.m} and sync is 'global', which cannot be combined; set only one")
        if self.match == "seconds" and self.seconds is None:
            raise InputError("match is 'seconds' but seconds is not given; add --seconds N")


@dataclass(frozen=True, kw_only=True)
class Run(RunOptions):
    """One training run.

    Attributes:
        method: Name with optional settings: sam, sam:rho=0.1, sadt-v1:sigma=0, sam+gc.
        model: Name of the network.
        dataset: Name of the data set, or name:PATH if it is read from files (folder:PATH, cifar10:PATH).
        seed: Seed of initial weights, order of samples, augmentation, dropout and the method's noise.
    """

    method: str = "plain"
    model: str = "simple-cnn"
    dataset: str = "digits"
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as plain data."""
        return asdict(self)

    def digest(self, resolved_method: str) -> str:
        """Return the 12 hexadecimal digits that name this run.

        ``resolved_method`` has every hyper-parameter, defaults included, so that ``sam`` and ``sam:rho=0.05`` are
        the same run, and a run under a changed default is another.
        """
        content = essential(self.as_dict()) | {"method": resolved_method}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Study(RunOptions):
    """A comparison: methods x models x data sets x seeds.

    Attributes:
        methods: Methods to compare, each a name with optional settings (sam:rho=0.1).
        models: Networks.
        datasets: Data sets, each a name or name:PATH.
        seeds: Seeds; every method is trained once per seed, and methods are paired by seed.
    """

    methods: tuple[str, ...] = DEFAULT_METHODS
    models: tuple[str, ...] = ("simple-cnn",)
    datasets: tuple[str, ...] = ("digits",)
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("methods", "models", "datasets", "seeds"):
            values = getattr(self, name)
            if not values:
                raise InputError(f"{name} is empty; name at least one")
            if len(set(values)) != len(values):
                raise InputError(f"{name} names one twice: {' '.join(map(str, values))}; name each once")

    def runs(self) -> list[Run]:
        """Return every run of the grid; the methods of one seed follow each other."""
        common = {k: getattr(self, k) for k in RunOptions.__dataclass_fields__}
        return [
            Run(method=method, model=model, dataset=dataset, seed=seed, **common)
            for dataset in self.datasets
            for model in self.models
            for seed in self.seeds
            for method in self.methods
        ]


# Options that change no number of a run's records.
_NOT_ESSENTIAL = ("parallel", "track", "workers")


def essential(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration, as plain data, that a run's results depend on.

    The number of processes and how they share the network are not part of it: a run may resume with others.
    """
    return {k: v for k, v in config.items() if k not in _NOT_ESSENTIAL}
