"""Loading of finished runs: the deployed network, the images and the initial weights."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from steppe import hardware
from steppe.config import Run
from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.numerics.complex_params import real_view, with_type_of
from steppe.data.dataset import DataSet, Samples
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError
from steppe.tasks.objective import Objective
from steppe.training import run as engine
from steppe.training.checkpoint import sharded
from steppe.training.checkpoint.file import REMEDY, TRAIN_AGAIN, Checkpoint, fill
from steppe.training.evaluation import network_input
from steppe.training.factories import evaluated_batches, make_model, make_network, make_objective
from steppe.training.monitor import DEPLOYED, networks

Which = Literal["last", "best"]


@dataclass(frozen=True)
class TrainedRun:
    """A finished run with its weights loaded.

    Attributes:
        folder, run: Its folder and its configuration.
        images: Its data, split as in training.
        model: The deployed network, which may have averaged weights.
        epoch: The epoch of the weights.
        start: The initial weights by name, as initialised from the run's seed.
    """

    folder: Path
    run: Run
    images: DataSet
    model: nn.Module
    epoch: int
    start: dict[str, Tensor]

    def surface(self, images: Samples) -> LossSurface:
        """Return the loss surface over these samples, normalised as in training and not augmented.

        The loss is cross-entropy for classes of images, else the training loss.
        """
        loss = F.cross_entropy if self.classifies else self.goal.loss
        return LossSurface(self.model, self.batches(images), loss, self.goal.weigh)

    @cached_property
    def goal(self) -> Objective:
        """The loss and the metric of the run."""
        return make_objective(self.run, self.images)

    @property
    def classifies(self) -> bool:
        """Whether the run learns classes, by cross-entropy and accuracy."""
        return self.goal.counts_hits

    def batches(self, images: Samples) -> list[Batch]:
        """Return batches of these samples as network inputs."""
        like = real_view(next(self.model.parameters()))
        batches = evaluated_batches(self.run, self.images, images)
        return [network_input(self.run, batch, like) for batch in batches]


def load(folder: Path, which: Which = "last", images: DataSet | None = None) -> TrainedRun:
    """Return a run with its last weights, or those of its best validation epoch.

    ``images`` avoids loading the run's data again.

    Raises InputError if the folder is not a run's, it was trained on other images, or it has no checkpoint or one
    that does not fit.
    """
    engine.require_code(folder, "model", "method")
    run = engine.read_run(folder)
    data = engine.load_images(folder) if images is None else images
    engine.check_images(folder, data)
    method, net, state = _build(run, data)
    start = _deployed_model(method, net, state, run, data).state_dict()
    saved = _read_and_fill(net, state, folder, which)
    model = _deployed_model(method, net, state, run, data)
    return TrainedRun(folder, run, data, model, int(saved.data["epoch"]), start)


def load_members(folder: Path, which: Which, data: DataSet) -> dict[str, dict[str, Tensor]]:
    """Return the weights and buffers of each of a run's several networks or branches by name; none if it has one.

    Raises the errors of `load`.
    """
    run = engine.read_run(folder)
    method, net, state = _build(run, data)
    _read_and_fill(net, state, folder, which)
    with hardware.fork_rng():
        members = networks(method, net, state, lambda number=0: make_model(run, data, number))
    return {name: member.state_dict() for name, member in members.items() if name != DEPLOYED}


def _build(run: Run, data: DataSet) -> tuple[Method, nn.Module, nn.Module]:
    """Return the method, the network as initialised from the run's seed, and the method's initial state."""
    method: Method = run.method
    with hardware.fork_rng():
        net = make_network(run, method, data)
    return method, net, method.init(net)


def _deployed_model(method: Method, net: nn.Module, state: nn.Module, run: Run, data: DataSet) -> nn.Module:
    with hardware.fork_rng():
        model = method.deployed_model(net, state, lambda: make_model(run, data))
    return with_type_of(model, net).eval()


def _weights_file(folder: Path, which: Which) -> Path:
    pattern = engine.CHECKPOINT if which == "last" else "best-*.safetensors"
    paths = sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))
    if not paths:
        content = "checkpoint" if which == "last" else "weights of a best epoch"
        raise InputError(f"{folder} has no {content}; train the run first")
    return paths[-1]


def _read_and_fill(net: nn.Module, state: nn.Module, folder: Path, which: Which) -> Checkpoint:
    """Load the weights and the method's state from a run's folder; return the file's content."""
    try:
        saved = sharded.read(_weights_file(folder, which))
        _fill(net, state, saved, folder)
    except InputError as error:
        raise InputError(str(error).replace(REMEDY, TRAIN_AGAIN)) from error
    return saved


def _fill(net: nn.Module, state: nn.Module, saved: Checkpoint, folder: Path) -> None:
    weights, saved_state = saved.part("net"), saved.part("state")
    for name, target in net.state_dict().items():
        if name not in weights:
            raise InputError(f"the checkpoint in {folder} has no {name}; it is of another version or network")
        fill(target, weights[name])
    # sizes of the state may have grown, so it loads them itself
    state.load_state_dict({name: saved_state[name] for name in state.state_dict() if name in saved_state})
