"""What a run looks at while it trains: how sharp the network is that it deploys, and where its weights went.

Both are looked at on plain copies (`Method.single`) that are made for the purpose and dropped, so that nothing of
it reaches training: no running statistic, gradient, random stream, pass or second is other than without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steppe import hardware
from steppe.config import Run
from steppe.core.method import Method, with_weights
from steppe.core.numerics.vector import sharded
from steppe.core.step import Step
from steppe.data.dataset import DataSet
from steppe.data.loader import evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.data.splits import subset
from steppe.diagnostics.loss_surface import LossSurface
from steppe.diagnostics.sharpness import worst_case_sharpness
from steppe.distributed import collectives
from steppe.models.multi.base import MultiHeadNetwork
from steppe.models.multi.branched import SeparateNetworks
from steppe.models.multi.ensemble import Ensemble, HybridEnsemble
from steppe.training.checkpoint import file
from steppe.training.checkpoint.file import Checkpoint
from steppe.training.evaluation import BATCH, to_model_format
from steppe.training.factories import make_model

RHO, SAMPLES = 0.05, 500
DEPLOYED = "deployed"


def weights_name(epoch: int | str) -> str:
    """Return the name of the file of an epoch's weights."""
    return f"weights-{epoch}.safetensors"


@dataclass(frozen=True)
class Monitor:
    """What a run is asked to look at; all processes of a run call `begin` and `look` together."""

    run: Run
    folder: Path
    images: DataSet
    method: Method
    net: nn.Module
    step: Step
    normalize: Normalizer

    def begin(self) -> None:
        """Keep the initial weights, as those of epoch 0, if weights are kept."""
        if self.run.watch.weights:
            self._keep(0, *self._whole())

    def look(self, epoch: int, last: bool) -> dict[str, float]:
        """Return what goes into the epoch's line, and keep its weights, each where it is asked for now.

        'sharpness' is SAM's, one step of 0.05 on up to 500 training images, not augmented (SAF, figure 3b). It is
        the same on every process. The last epoch is always looked at.
        """
        watch = self.run.watch
        sharp, weights = (bool(k) and (last or epoch % k == 0) for k in (watch.sharpness or 0, watch.weights or 0))
        if not sharp and not weights:
            return {}
        net, state = self._whole()
        if weights:
            self._keep(epoch, net, state)
        return (
            collectives.current_world().on_main_process(lambda: {"sharpness": self._sharpness(net, state)})
            if sharp
            else {}
        )

    def _sharpness(self, net: nn.Module, state: nn.Module) -> float:
        alone = self.method.deployed_model(net, state, self._new_model)
        chosen = subset(self.images.train, SAMPLES)
        like = next(alone.parameters())
        batches = [to_model_format(b, like) for b in evaluation_batches(chosen, BATCH, self.normalize)]
        return worst_case_sharpness(LossSurface(alone, batches), RHO)

    def _keep(self, epoch: int, net: nn.Module, state: nn.Module) -> None:
        """Write the weights of what is deployed, and of each of several networks or branches.

        Before the checkpoint of that epoch, so that a run which goes on from one has all weights up to it.
        """

        def write() -> None:
            found = networks(self.method, net, state, self._new_model)
            tensors = {f"{name}.{k}": t for name, one in found.items() for k, t in one.state_dict().items()}
            content = Checkpoint(tensors, {"digest": self.folder.name, "epoch": epoch})
            file.write(self.folder / weights_name(epoch), content)

        collectives.current_world().on_main_process(write)

    def _new_model(self) -> nn.Module:
        """Return a network to be filled, without a trace in the random streams."""
        with torch.random.fork_rng():
            model = make_model(self.run, self.images).to(hardware.device())
        return model.double() if self.run.precision == "fp64" else model

    def _whole(self) -> tuple[nn.Module, nn.Module]:
        """Return the network and what the method remembers; of shards, whole ones put together from all."""
        ours = (self.net, self.step.state)
        if not any(sharded(p) for p in self.net.parameters()):
            return ours
        self.step.runtime.parallel.reshard()
        with torch.random.fork_rng():
            net = self.method.build(self._new_model).to(hardware.device())
        state = self.method.init(net)
        for mine, whole in zip(ours, (net, state), strict=True):
            whole.load_state_dict({k: _full(t) for k, t in mine.state_dict().items()})
        return net, state


def networks(method: Method, net: nn.Module, state: nn.Module, new_model: Any) -> dict[str, nn.Module]:
    """Return plain networks with the weights of what is deployed, and of each of several networks or branches.

    ``new_model`` makes one to be filled. Names are those of `Method.outputs`.
    """
    found = {DEPLOYED: method.deployed_model(net, state, new_model)}
    if isinstance(net, Ensemble | HybridEnsemble):
        return found | {
            f"network {i}": with_weights(new_model(), one.state_dict()) for i, one in enumerate(net.networks, 1)
        }
    if isinstance(net, MultiHeadNetwork):
        kind = "network" if isinstance(net.body, SeparateNetworks) else "branch"
        return found | {f"{kind} {i + 1}": net.plain(i, new_model) for i in range(net.size)}
    return found


def kept(path: Path) -> dict[str, Mapping[str, Tensor]]:
    """Return the weights and buffers of each network in a file of an epoch's weights, by its name.

    A tensor is read when it is asked for. Raises InputError if the file is damaged.
    """
    saved, _ = file.opened(path)
    return {name: saved.part(name) for name in dict.fromkeys(k.partition(".")[0] for k in saved.tensors)}


def _full(t: Tensor) -> Tensor:
    return t.full_tensor() if sharded(t) else t  # type: ignore[attr-defined]
