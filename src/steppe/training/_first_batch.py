"""One batch before anything trains: whether network, data, loss, metric, optimizer and method fit together."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe import hardware
from steppe.config import Run
from steppe.core.amp import upcast_to_float32
from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.model_call import call_for_logits, extract_loss
from steppe.core.user_loss import calls_model, loss_value, own_loss
from steppe.data.dataset import DataSet
from steppe.data.samples import seeded
from steppe.errors import InputError, RunError
from steppe.tasks import losses
from steppe.tasks.meters import FunctionMeter, Meter
from steppe.tasks.metric import ACCURACY
from steppe.tasks.objective import Objective
from steppe.training.checkpoint.save_and_resume import derive
from steppe.training.evaluation import network_input
from steppe.training.factories import (
    bind_options,
    evaluated_batches,
    is_user_code,
    make_loader,
    make_model,
    make_network,
    make_objective,
    make_optimizer,
    model_names,
)

_SAMPLES = 8


def check_first_batch(run: Run, data: DataSet) -> None:
    """Raise InputError unless each network is the same under a seed and takes a batch, forward and backward."""
    goal = make_objective(run, data)
    _check_targets(run, data, goal)
    for number, name in enumerate(model_names(run)):
        with seeded(run.seed), hardware.fork_rng():
            _check_network(run, data, goal, name, number)


def _check_network(run: Run, data: DataSet, goal: Objective, name: str, number: int) -> None:
    net = _new_network(run, data, number)
    if is_user_code(name):
        _check_same(run, name, net, _new_network(run, data, number))
    net = net.to(hardware.device())
    batch = _first_batch(run, data, name, net)
    with _one_line(f"model {name} on a batch of {run.dataset}"):
        loss, output = _forward(net, batch, goal, data.outputs)
        if not math.isfinite(value := float(loss.detach())):
            raise InputError(f"the loss of the first batch is {value}; repair the data or the loss")
        loss.backward()  # type: ignore[no-untyped-call]
        if all(p.grad is None for p in net.parameters() if p.requires_grad):
            raise InputError("no parameter has a gradient of the loss; compute it from the network's output")
    with _one_line(f"metric {goal.metric.name} on a batch of {run.dataset}"), torch.no_grad():
        if (meter := _update(goal, output, batch)) and not _is_constant(batch.y):
            meter.value([meter.state()])
    net.eval()
    for part, samples in (("validation", data.val), ("test", data.test)):
        evaluated = evaluated_batches(run, data, samples.part(slice(0, _SAMPLES)))
        for batch in (network_input(run, one, next(net.parameters())) for one in evaluated):
            with _one_line(f"model {name} on {part} samples of {run.dataset}"), torch.no_grad():
                _, output = _forward(net, batch, goal, data.outputs)
                _update(goal, output, batch)


def check_step(run: Run, data: DataSet) -> None:
    """Raise InputError unless the method can make a step on a batch: it may be undefined for these outputs."""
    method: Method = run.method
    goal = make_objective(run, data)
    with seeded(run.seed), hardware.fork_rng():
        net = make_network(run, method, data)
        with _one_line(f"method {run.label} on {run.dataset}"):
            optimizer: Any = make_optimizer(run, net)
            of_task = {"loss": goal.loss, "weigh": goal.weigh, "outputs": goal.outputs}
            options = bind_options(run) | of_task | {"steps": 100, "epoch": 10}
            step = method.bind(net, optimizer, **options)
            method.allocate(step.state, len(data.train), data.outputs)
            step(_first_batch(run, data, run.model, net))


def _update(goal: Objective, output: Tensor, batch: Batch) -> Meter | None:
    """Return the metric's meter with a batch, None if there is none or the network returns its loss alone."""
    if goal.new_meter is None or not output.numel():
        return None
    meter = goal.new_meter()
    meter.update(output.detach(), batch.y)
    return meter


def _is_constant(y: Any) -> bool:
    """Return whether all samples are of one class, for which a metric may be undefined."""
    return isinstance(y, Tensor) and not y.is_floating_point() and bool((y == y.flatten()[0]).all())


def _check_targets(run: Run, data: DataSet, goal: Objective) -> None:
    """Raise InputError for targets that are no number, unless a loss of the user's takes them."""
    if not isinstance(goal.loss, losses.Regression | losses.BinaryCrossEntropy):
        return
    for name, part in (("training", data.train), ("validation", data.val), ("test", data.test)):
        y = part.y
        if y is not None and y.is_floating_point() and (count := int((~y.isfinite()).sum())):
            raise InputError(
                f"{count} of the {name} targets of {run.dataset} are NaN or infinite; leave these samples out, or "
                "give a loss and a metric that do"
            )


def _check_classes(expected: int, goal: Objective, output: Tensor, y: Any) -> None:
    """Raise InputError for outputs of fewer classes than the data have."""
    if not isinstance(y, Tensor) or y.is_floating_point():
        return
    if output.numel() == y.numel() and expected > 2 and goal.task == "classification" and goal.metric == ACCURACY:
        raise InputError(
            f"the network returns one number and the data have {expected} classes; return one for each class, "
            "or give task='regression' or 'ordinal'"
        )
    built_in = isinstance(goal.loss, losses.CrossEntropy) or goal.loss is F.cross_entropy
    classes = losses.classes_second(output, y).shape[1] if output.ndim > 1 else 1
    # a target that only the user's loss leaves out would be counted as a class by a metric of ours
    dense = goal.task in ("segmentation", *losses.TOKENS)
    measured = dense and goal.metric.name in ("mean IoU", "token accuracy") and classes > 1
    measured = measured and goal.new_meter is not None and not isinstance(goal.new_meter(), FunctionMeter)
    if classes < expected and (built_in or measured):
        ignored = ", or write -100 for targets that are not counted" if dense else ""
        raise InputError(
            f"the network returns {classes} classes and the data have {expected}; return as many{ignored}"
        )


def _new_network(run: Run, data: DataSet, number: int) -> nn.Module:
    hardware.seed_all(derive(run.seed, "init"))
    net = make_model(run, data, number)
    return net.double() if run.precision == "fp64" else net


def _check_same(run: Run, name: str, net: nn.Module, again: nn.Module) -> None:
    own = set(net.parameters())
    if net is again or any(p in own for p in again.parameters() if p.requires_grad):
        raise InputError(
            f"model {name} returned a network with the same weights twice, so that each run would go on with "
            "those of the last; make a new one at each call, or return copy.deepcopy(net)"
        )
    first, second = net.state_dict(), again.state_dict()
    different = [k for k in first if k not in second or not _equal(first[k], second[k])]
    if different or first.keys() != second.keys():
        where = next(iter(different), "its parameters")
        raise InputError(
            f"model {name} is another each time under seed {run.seed} ({where} differs); draw all weights "
            "from torch's generator, which is seeded, or from the seed"
        )


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return True
    return a.shape == b.shape and torch.equal(a, b)


def _first_batch(run: Run, data: DataSet, name: str, net: nn.Module) -> Batch:
    batch = next(make_loader(run, data, run.method).epoch(1))
    if len(batch) > _SAMPLES:
        batch = batch.take(slice(0, _SAMPLES))
    trained = [p for p in net.parameters() if p.requires_grad]
    if not trained:
        raise InputError(f"model {name} has no trainable parameter; give one that has")
    return network_input(run, batch, trained[0])


def _forward(net: nn.Module, batch: Batch, goal: Objective, outputs: int) -> tuple[Tensor, Tensor]:
    try:
        return _loss_and_output(net, batch, goal, outputs)
    except (TypeError, InputError) as error:
        if not isinstance(batch.x, Mapping) or "unexpected keyword" not in str(error):
            raise
        arguments = ", ".join(inspect.signature(net.forward).parameters)
        raise InputError(
            f"the inputs are {', '.join(batch.x)} and its forward takes {arguments}; name the columns like these "
            "arguments, leave out others, and call the target's column 'labels'"
        ) from error


def _loss_and_output(net: nn.Module, batch: Batch, goal: Objective, outputs: int) -> tuple[Tensor, Tensor]:
    if calls_model(goal.loss):
        loss, output = extract_loss(own_loss(goal.loss, net, batch.x, batch.y))
        if goal.new_meter is not None and not output.numel():
            raise InputError(
                f"the network returns its loss alone, and metric {goal.metric.name} needs its outputs; return "
                "(loss, output), or give metric='loss'"
            )
        if output.numel():
            _check_classes(outputs, goal, output, batch.y)
        return loss, output
    try:
        output = upcast_to_float32(call_for_logits(net, batch.x))
    except (TypeError, ValueError) as error:
        if "labels" not in inspect.signature(net.forward).parameters:
            raise
        raise InputError(f"it cannot be called without targets ({error}); give loss='model'") from error
    if len(output) != len(batch):
        raise InputError(f"it returned {tuple(output.shape)} for {len(batch)} samples; return one row for each")
    _check_classes(outputs, goal, output, batch.y)
    return loss_value(goal.loss, output, batch.y), output


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Raise any error of the user's code as one line, and the warning that a loss broadcasts its targets."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size", UserWarning)
            yield
    except (torch.OutOfMemoryError, RunError):
        raise
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise InputError(f"{what}: {type(error).__name__}: {message}; make sure that they fit") from error
