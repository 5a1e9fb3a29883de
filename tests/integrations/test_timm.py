"""timm's loop with SteppeScaler: timm's own training for plain, and a bound loop's for other methods."""

import copy
import inspect
from typing import Any

import pytest
import torch
from support.many import farthest, smooth_net, together
from support.small import small_batch, small_net
from torch import nn

import steppe

pytest.importorskip("timm.task")

from support.timm_loop import Matching, batches, epoch, of_process, of_timm
from timm.task import MultiLabelClassificationTask, resume_task_checkpoint
from timm.utils import CheckpointSaver, NativeScaler

from steppe.integrations.timm import SteppeScaler

pytestmark = [
    pytest.mark.vision,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def distance(a: nn.Module, b: nn.Module) -> float:
    return farthest(list(a.parameters()), list(b.parameters()))


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3, "clip": 0.3}], ids=str)
def test_plain_is_timm_s_own_loop(settings):
    theirs, ours = of_timm(), of_timm()
    their_losses = epoch(*theirs, None, batches(), **settings)
    scaler = SteppeScaler(steppe.Plain(), *ours)
    losses = epoch(*ours, scaler, batches(), **settings)
    assert distance(theirs[0].trainable_module, ours[0].trainable_module) < 1e-6
    if "accumulate" not in settings:
        assert losses == pytest.approx(their_losses, rel=1e-5)
    assert scaler.step.passes.updates == (3 if "accumulate" in settings else 7)
    if "clip" in settings:
        unclipped = of_timm()
        epoch(*unclipped, None, batches(), **settings | {"clip": None})
        assert distance(unclipped[0].trainable_module, ours[0].trainable_module) > 1e-3


@pytest.mark.parametrize("name", ["sam", "sadt-v1", "esam"])
def test_every_pass_sees_every_micro_batch(name):
    task, optimizer = of_timm()
    logged = epoch(task, optimizer, SteppeScaler(name, task, optimizer, seed=4), batches(6), 2)
    net = small_net(dropout=0.0)
    step = steppe.methods.parse(name).bind(
        net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-2), seed=4
    )
    data = batches(6)
    losses = [float(step(data[i : i + 2]).loss) for i in (0, 2, 4)]
    assert distance(task.trainable_module, net) == 0
    assert logged[1::2] == pytest.approx(losses)
    assert logged[2::2] == pytest.approx(losses[:-1])  # the step's loss is not known yet


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_the_step_s(precision):
    task, optimizer = of_timm()
    scaler = SteppeScaler(steppe.SAM(rho=0.1), task, optimizer, precision=precision)
    with torch.autocast("cpu", torch.bfloat16):  # timm's loop opens it around the task, where nothing is computed
        epoch(task, optimizer, scaler, batches())
    net = small_net(dropout=0.0)
    step = steppe.SAM(rho=0.1).bind(
        net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-2), precision=precision
    )
    with torch.autocast("cpu", torch.bfloat16):
        for batch in batches():
            step(*batch)
    assert distance(task.trainable_module, net) == 0


def test_soft_and_multi_label_targets():
    task, optimizer = of_timm()
    soft = [(x, torch.softmax(torch.randn(6, 5), 1)) for x, _ in batches(2)]
    epoch(task, optimizer, SteppeScaler(steppe.SAM(), task, optimizer), soft)
    net = small_net(dropout=0.0)
    task = MultiLabelClassificationTask(net, verbose=False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    many = [(x, (torch.rand(6, 5) > 0.5).float()) for x, _ in batches(2)]
    assert all(0 < loss < 5 for loss in epoch(task, optimizer, SteppeScaler(steppe.SAM(), task, optimizer), many))


def test_a_task_with_a_loss_of_its_own_is_called_in_each_pass():
    def of_task() -> tuple[Any, Any]:
        task = Matching(small_net(dropout=0.0), smooth_net())
        return task, torch.optim.SGD(task.trainable_module.parameters(), 0.1)

    theirs, ours, sam = of_task(), of_task(), of_task()
    epoch(*theirs, None, batches(4))
    epoch(*ours, SteppeScaler(steppe.Plain(), *ours), batches(4))
    assert distance(theirs[0], ours[0]) < 1e-6
    scaler = SteppeScaler(steppe.SAM(rho=0.1), *sam)
    epoch(*sam, scaler, batches(4))
    assert scaler.step.passes.forward == 8 and distance(sam[0], ours[0]) > 1e-5


def test_evaluation_calls_the_task_as_before():
    task, optimizer = of_timm()
    before = copy.deepcopy(task)
    SteppeScaler(steppe.SAM(), task, optimizer)
    with torch.no_grad():
        assert torch.equal(task.eval()(*small_batch())["output"], before.eval()(*small_batch())["output"])


@pytest.mark.parametrize("method", [steppe.RWP(gamma=0.05), steppe.LookSAM(k=3)], ids=repr)
def test_timm_s_checkpoints_resume_bitwise(method, tmp_path):
    whole = of_timm()
    scaler = SteppeScaler(method, *whole, precision="fp16")
    for _ in range(2):
        epoch(*whole, scaler, batches(4))
    first = of_timm()
    scaler = SteppeScaler(method, *first, precision="fp16")
    epoch(*first, scaler, batches(4))
    saver = CheckpointSaver(first[0].trainable_module, first[1], amp_scaler=scaler, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    second = of_timm(small_net(seed=8, dropout=0.0))
    scaler = SteppeScaler(method, *second, precision="fp16")
    checkpoint = str(tmp_path / "last.pth.tar")
    assert resume_task_checkpoint(second[0], checkpoint, second[1], scaler, log_info=False) == 1
    epoch(*second, scaler, batches(4))
    assert distance(whole[0].trainable_module, second[0].trainable_module) == 0


def test_two_processes_train_as_one():
    net = smooth_net()
    task, optimizer = of_timm(net)
    epoch(task, optimizer, SteppeScaler(steppe.SAM(rho=0.1), task, optimizer), batches(4), 2)
    for weights in together(2, of_process):
        assert farthest(weights, list(net.parameters())) < 1e-6


def test_what_cannot_be_trained_is_an_error():
    task, optimizer = of_timm()
    scaler = SteppeScaler(steppe.SAM(), task, optimizer)
    with pytest.raises(steppe.InputError, match="clip_mode is 'value'"):
        epoch(task, optimizer, scaler, batches(1), clip=1.0, mode="value")
    with pytest.raises(steppe.InputError, match="needs create_graph"):
        scaler(torch.zeros(()), optimizer, create_graph=True)


def test_its_arguments_are_those_of_timm_s_own_scaler():
    assert list(inspect.signature(SteppeScaler.__call__).parameters) == list(
        inspect.signature(NativeScaler.__call__).parameters
    )
