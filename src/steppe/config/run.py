"""Configuration of a run and of a comparison: frozen dataclasses for the API, the YAML file and the options alike.

Every field is checked on construction, so an impossible configuration never reaches the data or the network.
``digest`` names a run: equal configurations share a folder, different ones never do.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import PurePath
from typing import Any, Literal

from steppe.config._checks import check_choice, check_choices, check_positive
from steppe.config.data import Data
from steppe.config.dataset_name import canonical_path, dataset_name
from steppe.config.fields import added, stored
from steppe.config.method_spec import SPEC, as_method
from steppe.config.optim import Optim
from steppe.errors import InputError

Match = Literal["epochs", "gradients", "seconds"]
PrecisionName = Literal["fp32", "bf16", "fp16", "fp64"]
SyncName = Literal["local", "global"]
Parallel = Literal["ddp", "fsdp"]
TaskName = Literal[
    "", "classification", "multi-label", "ordinal", "regression", "segmentation", "language modelling",
    "token classification",
]  # fmt: skip
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # with which cuBLAS is deterministic
TRACKERS = ("tensorboard", "wandb", "mlflow")

DataKey = tuple[str, Data, str]  # of `Run.data_key`

DEFAULT_METHODS = ("plain", "repeat-step", "two-step", "gc", "agc", "sam", "sadt-v1", "sadt-v2", "sadt-v3")


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
        graph: Make each step a CUDA graph (needs a GPU, and an optimizer with fused=True or capturable=True).
        watch: Measurements during training.
        track: Trackers that show the records too: any of tensorboard, wandb, mlflow.
        workers: Processes per run that prepare batches ahead of time; with 0 the training process does it.
        keep: Keep the optimizer's state in the checkpoint of a finished run, which no command needs.
        task: What is learned: classification, multi-label, ordinal, regression, segmentation, 'language modelling'
            or 'token classification'; that of the data if not given.
        loss: Training loss: cross-entropy, bce, mse, mae or huber, with :weight=balanced for rare classes; 'model'
            if the network returns its own; or module:function of output and target. The task's if not given.
        metric: What is reported and chooses the best epoch: its name, or module:name of a torchmetrics class or of
            a function of output and target, with :lower or :higher for its better direction. The task's if not
            given.
        init: Folder of a finished run whose last weights the network starts with, where name and shape of a tensor
            are equal; other layers start fresh, as a head for other classes does.
        deterministic: Use only algorithms that give the same bits in every run. On a GPU a run that was stopped
            then resumes bitwise, in more time; without it, its last digits differ. On a processor nothing differs.
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
    graph: bool = added(False)
    watch: Monitoring = field(default_factory=Monitoring)
    track: tuple[str, ...] = ()
    workers: int = 0
    keep: bool = False
    task: TaskName = added("")
    loss: str = added("")
    metric: str = added("")
    init: str = added("")
    deterministic: bool = added(False)

    def __post_init__(self) -> None:
        for name in ("batch", "epochs", "threads", "seconds", "microbatch", "m"):
            check_positive(name, getattr(self, name))
        check_positive("workers", self.workers, strict=False)
        check_choices(self)
        if self.init:
            object.__setattr__(self, "init", canonical_path(self.init))
        for tracker in self.track:
            check_choice("track", tracker, TRACKERS)
        if self.deterministic:
            # cuBLAS reads it at the first product on a GPU, which may be in a check before the training
            os.environ.setdefault(*WORKSPACE)
        if self.parallel == "fsdp" and self.sync != "global":
            raise InputError(
                f"parallel is 'fsdp' and sync is {self.sync!r}; "
                "FSDP gradients are already averaged over all ranks, add --sync global"
            )
        if self.m is not None and self.sync == "global":
            raise InputError(f"m is {self.m} and sync is 'global', which cannot be combined; set only one")
        if self.match == "seconds" and self.seconds is None:
            raise InputError("match is 'seconds' but seconds is not given; add --seconds N")
        if self.match != "seconds" and self.seconds is not None:
            raise InputError(f"seconds is {self.seconds} and match is {self.match!r}; add --match seconds")

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as plain data, a method as its text."""
        return {name: _plain(value) for name, value in stored(self).items()}


@dataclass(frozen=True, kw_only=True)
class Run(RunOptions):
    """One training run.

    ``method`` may be a text or a `steppe.Method`; the field has a method, and ``label`` its text.

    Attributes:
        method: Name with optional settings: sam, sam:rho=0.1, sadt-v1:sigma=0, sam+gc.
        model: Name of the network, or module:function of one that makes yours from a seed; a+b for a method that
            trains several: the first is an a, the second a b.
        dataset: Name of the data set, or name:PATH if it is read from files (folder:PATH,
            table:PATH:target=COLUMN), or module:function of one that returns yours. However it is written, a path
            below the working folder is stored relative to it, any other without links.
        seed: Seed of initial weights, order of samples, augmentation, dropout and the method's noise.
    """

    method: Any = "plain"
    model: str = "simple-cnn"
    dataset: str = "digits"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "method", as_method(self.method))
        object.__setattr__(self, "dataset", dataset_name(self.dataset))

    def __getstate__(self) -> dict[str, Any]:
        # a worker gets the method as text, as a record does: pickle does not find every class that a script lists
        return vars(self) | {"method": self.label}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"method": as_method(state["method"])})

    @property
    def label(self) -> str:
        """The method as text, in the user's spelling."""
        return str(_plain(self.method))

    @property
    def title(self) -> str:
        """The method and the seed."""
        return f"{self.label} seed {self.seed}"

    @property
    def data_key(self) -> DataKey:
        """What the run's samples depend on; runs with equal keys have the same."""
        return self.dataset, self.data, self.task

    def digest(self) -> str:
        """Return the 12 hexadecimal digits that name this run.

        They depend on every hyper-parameter's value, defaults included, and on no spelling: ``sam`` and
        ``sam:rho=0.05`` are the same run, and a run under a changed default is another.
        """
        content = json.dumps(essential(self.as_dict()) | {"method": self.method.to_dict()})
        content = json.dumps(json.loads(content, parse_float=_shortest), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Study(RunOptions):
    """A comparison: methods x models x data sets x seeds. The fields are those of `Run`, in the plural.

    Attributes:
        methods: Methods to compare, each a name with optional settings (sam:rho=0.1).
        models: Networks, each a name or module:function.
        datasets: Data sets, each a name, name:PATH or module:function.
        seeds: Seeds; every method is trained once per seed, and methods are paired by seed.
        resplit: Give each seed a split of its own, data.split_seed + seed: other validation samples, and others in
            every subset. Intervals over seeds then cover the choice of the samples too.
    """

    methods: tuple[Any, ...] = DEFAULT_METHODS
    models: tuple[str, ...] = ("simple-cnn",)
    datasets: tuple[str, ...] = ("digits",)
    seeds: tuple[int, ...] = (0, 1, 2)
    resplit: bool = added(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "datasets", tuple(map(dataset_name, self.datasets)))
        for name in ("methods", "models", "datasets", "seeds"):
            values = getattr(self, name)
            if isinstance(values, str):
                raise InputError(f"{name} is {values!r}; give a list, [{values!r}]")
            object.__setattr__(self, name, tuple(map(as_method, values) if name == "methods" else values))
            values = _plain(getattr(self, name))
            if not values:
                raise InputError(f"{name} is empty; name at least one")
            if len(set(values)) != len(values):
                raise InputError(f"{name} names one twice: {' '.join(map(str, values))}; name each once")
        if self.resplit and min(self.seeds) < 0:  # the error would be that of a split
            raise InputError(f"seeds has {min(self.seeds)}; give 0 or positive whole numbers")

    def runs(self) -> list[Run]:
        """Return every run of the grid; the methods of one seed follow each other."""
        common = {k: getattr(self, k) for k in RunOptions.__dataclass_fields__ if k != "data"}
        return [
            Run(method=method, model=model, dataset=dataset, seed=seed, data=self.data_of(seed), **common)
            for dataset in self.datasets
            for model in self.models
            for seed in self.seeds
            for method in self.methods
        ]

    def data_of(self, seed: int) -> Data:
        """Return the options of the data for a seed."""
        return self.data.with_split(seed) if self.resplit else self.data


def _plain(value: Any) -> Any:
    """Return a field's value as plain data."""
    if isinstance(value, Data | Optim | Monitoring):
        return {name: _plain(v) for name, v in stored(value).items()}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    number = isinstance(value, Real) and hasattr(value, "item")  # NumPy's, as seeds from a range of its
    return value.item() if number else getattr(value, SPEC, value)


def _shortest(text: str) -> float:
    """Return the number of a text, whole if it can be: 1.0 and 1 have one text."""
    number = float(text)
    return int(number) if number.is_integer() else number


# Options that change no number of a run's records.
_NOT_ESSENTIAL = ("parallel", "track", "workers", "keep")


def essential(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration, as plain data, that a run's results depend on.

    The number of processes and how they share the network are not part of it: a run may resume with others. Of the
    run that another one starts from the name counts, which is its digest, and not the place.
    """
    content = {k: v for k, v in config.items() if k not in _NOT_ESSENTIAL}
    if re.fullmatch(r"[0-9a-f]{12}", name := PurePath(content.get("init", "")).name):
        content["init"] = name
    return content
