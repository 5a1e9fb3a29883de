"""Per-epoch monitors: sharpness of the deployed model, and weight snapshots for trajectory plots.

Both use plain copies of the network (`Method.deployed_model`), so training is unchanged: running statistics,
gradients, RNG states, counted passes and measured seconds are those of a run without monitors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from steppe import hardware
from steppe.config import Run
from steppe.core.method import Method
from steppe.core.multi_network import MultiNetwork
from steppe.core.numerics.complex_params import real_view
from steppe.core.numerics.vector import sharded
from steppe.core.step import Step
from steppe.data.dataset import DataSet
from steppe.data.splits import subset
from steppe.diagnostics.loss_surface import LossSurface
from steppe.diagnostics.sharpness import worst_case_sharpness
from steppe.distributed import collectives
from steppe.training.checkpoint import file
from steppe.training.checkpoint.file import Checkpoint
from steppe.training.evaluation import network_input
from steppe.training.factories import evaluated_batches, make_model, make_objective

RHO, SAMPLES = 0.05, 500
DEPLOYED = "deployed"


def weights_name(epoch: int | str) -> str:
    """Return the file name of an epoch's weights."""
    return f"weights-{epoch}.safetensors"


@dataclass(frozen=True)
class Monitor:
    """The monitors of one run; all processes of the run call `start` and `measure` together."""

    run: Run
    folder: Path
    images: DataSet
    method: Method
    net: nn.Module
    step: Step

    def start(self) -> None:
        """Save the initial weights as those of epoch 0, if weights are monitored."""
        if self.run.watch.weights:
            self._save_weights(0, *self._gathered())

    def measure(self, epoch: int, last: bool) -> dict[str, float]:
        """Save the weights and return the sharpness, each if it is due in this epoch; both are in the last one.

        'sharpness' is SAM's: one step of 0.05 on up to 500 training images without augmentation (SAF, figure 3b).
        Every process returns the same value.
        """
        watch = self.run.watch
        sharp, weights = (bool(k) and (last or epoch % k == 0) for k in (watch.sharpness or 0, watch.weights or 0))
        if not sharp and not weights:
            return {}
        net, state = self._gathered()
        if weights:
            self._save_weights(epoch, net, state)
        if not sharp:
            return {}
        return collectives.current_world().on_main_process(lambda: {"sharpness": self._sharpness(net, state)})

    def _sharpness(self, net: nn.Module, state: nn.Module) -> float:
        model = self.method.deployed_model(net, state, self._new_model)
        like = real_view(next(model.parameters()))
        samples = subset(self.images.train, SAMPLES)
        batches = [network_input(self.run, b, like) for b in evaluated_batches(self.run, self.images, samples)]
        goal = make_objective(self.run, self.images)
        loss = F.cross_entropy if goal.counts_hits else goal.loss
        return worst_case_sharpness(LossSurface(model, batches, loss, goal.weigh), RHO)

    def _save_weights(self, epoch: int, net: nn.Module, state: nn.Module) -> None:
        """Write the weights of the deployed model, and of each network or branch if there are several.

        This precedes the epoch's checkpoint, so that a run resumed from it has all weights up to it.
        """

        def write() -> None:
            models = networks(self.method, net, state, self._new_model)
            tensors = {f"{name}.{k}": t for name, model in models.items() for k, t in model.state_dict().items()}
            content = Checkpoint(tensors, {"digest": self.folder.name, "epoch": epoch})
            file.write(self.folder / weights_name(epoch), content)

        collectives.current_world().on_main_process(write)

    def _new_model(self, number: int = 0) -> nn.Module:
        """Return a network whose weights will be replaced; RNG states are unchanged."""
        with hardware.fork_rng():
            model = make_model(self.run, self.images, number).to(hardware.device())
        return model.double() if self.run.precision == "fp64" else model

    def _gathered(self) -> tuple[nn.Module, nn.Module]:
        """Return the network and the method's state; of a sharded network, unsharded copies."""
        local = (self.net, self.step.state)
        if not any(sharded(p) for p in self.net.parameters()):
            return local
        self.step.runtime.parallel.reshard()
        with hardware.fork_rng():
            net = self.method.build(self._new_model).to(hardware.device())
        state = self.method.init(net)
        for source, target in zip(local, (net, state), strict=True):
            tensors: dict[str, Any] = source.state_dict()
            target.load_state_dict({k: t.full_tensor() if sharded(t) else t for k, t in tensors.items()})
        return net, state


def networks(method: Method, net: nn.Module, state: nn.Module, new_model: Any) -> dict[str, nn.Module]:
    """Return the deployed model, and each network or branch if there are several, as plain networks by name.

    ``new_model`` makes a network, by its number from 0 if there are several, whose weights are replaced. Names are
    those of `Method.outputs`.
    """
    models = {DEPLOYED: method.deployed_model(net, state, new_model)}
    if isinstance(net, MultiNetwork):
        models |= {name: net.extract(name, partial(new_model, number_of(name))) for name in net.names}
    return models


def number_of(name: str) -> int:
    """Return the number, from 0, of the network of this name; branches are of the first."""
    kind, _, number = name.partition(" ")
    return int(number) - 1 if kind == "network" else 0


def load_weights(path: Path) -> dict[str, Mapping[str, Tensor]]:
    """Return the weights and buffers of each network in a file of an epoch's weights, by its name.

    Tensors are read lazily. Raises InputError if the file is damaged.
    """
    saved, _ = file.opened(path)
    return {name: saved.part(name) for name in dict.fromkeys(k.partition(".")[0] for k in saved.tensors)}
