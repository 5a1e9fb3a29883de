"""Inputs and targets of any form in micro-batches: the whole batch's gradient, or a refusal."""

import dataclasses
import random
from collections import UserDict, namedtuple
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.small import sgd
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

import steppe
from steppe import Batch
from steppe.core.batch import as_batch
from steppe.diagnostics.loss_surface import LossSurface

Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass
class Fields:
    a: Tensor
    b: Tensor
    flag: bool = True


class Net(nn.Module):
    """Takes two inputs in any form, or a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rnn, self.a, self.b = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3), nn.Linear(4, 3)
        self.double()

    def forward(self, *inputs, flag: bool = True, **named) -> Tensor:
        assert flag is True
        x = named or inputs[0]
        if isinstance(x, PackedSequence):
            return self.a(self.rnn(x)[1][0])
        a, b = (x.a, x.b) if isinstance(x, Fields) else x.values() if isinstance(x, dict) else x
        return self.a(a) + self.b(torch.stack(list(b)))


def gradient(batch: tuple, **options) -> list[Tensor]:
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    steppe.Plain().bind(net, torch.optim.SGD(net.parameters(), 1.0), **options)(*batch)
    return [b - p.detach() for b, p in zip(before, net.parameters(), strict=True)]


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(s, t, rtol=1e-10, atol=1e-13) for s, t in zip(a, b, strict=True))


G = torch.Generator().manual_seed(0)
A, B = (torch.randn(7, d, generator=G, dtype=torch.float64) for d in (8, 4))
Y = torch.tensor([0, 1, 2, 0, 1, 1, 2])
SEQUENCES = [torch.randn(k, 4, generator=G, dtype=torch.float64) for k in (3, 7, 5, 5, 2, 1, 4)]
FORMS = {
    "tuple": lambda rows: (A[rows], B[rows]),
    "list": lambda rows: [A[rows], B[rows]],
    "named tuple": lambda rows: Pair(A[rows], B[rows]),
    "mapping with a flag": lambda rows: UserDict(a=A[rows], b=B[rows], flag=True),
    "mapping of a list": lambda rows: {"a": A[rows], "b": list(B[rows]), "flag": True},
    "dataclass": lambda rows: Fields(A[rows], B[rows]),
    "packed": lambda rows: pack_sequence(SEQUENCES[rows], enforce_sorted=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_parts_count_by_their_samples_and_are_the_whole_batch(form):
    x = FORMS[form]
    expected = gradient((x(slice(0, 7)), Y))
    listed = [(x(rows), Y[rows]) for rows in (slice(0, 1), slice(1, 4), slice(4, 7))]
    for options in ({}, {"microbatch": 3}, {"m": 3}):
        assert close(gradient((listed,) if not options else (x(slice(0, 7)), Y), **options), expected)


def mixed(z: Tensor, y: tuple[Tensor, Tensor, float]) -> Tensor:
    return y[2] * F.cross_entropy(z, y[0]) + (1 - y[2]) * F.cross_entropy(z, y[1])


TARGETS = {
    "list": (Y.tolist(), lambda z, y: F.cross_entropy(z, torch.tensor(y))),
    "list of mappings": (
        [{"k": k} for k in Y.tolist()],
        lambda z, y: F.cross_entropy(z, torch.tensor([t["k"] for t in y])),
    ),
    "mapping": ({"class": Y, "weight": 2.0}, lambda z, y: F.cross_entropy(z, y["class"])),
    "mixup": ((Y, Y, 0.3), mixed),
}


@pytest.mark.parametrize("form", TARGETS)
@pytest.mark.parametrize(
    ("name", "options"),
    [("plain", {"microbatch": 3}), ("sam", {"m": 3}), ("esam", {}), ("lpf-sgd", {}), ("rwp", {})],
)
def test_targets_of_any_form_stay_with_their_samples(form, name, options):
    weights = []
    for y, loss in ((Y, F.cross_entropy), TARGETS[form]):
        torch.manual_seed(0)
        net = nn.Linear(8, 3).double()
        step = steppe.make(name).bind(net, torch.optim.SGD(net.parameters(), 1.0), loss=loss, **options)
        step(A, y)
        weights.append(net.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (
            torch.randn(9, 5, 8),
            torch.zeros(5).long(),
            {"microbatch": 3},
            r"9 samples and a tensor \(5,\), which cannot",
        ),
        (
            [(torch.randn(9, 5, 8), torch.zeros(5).long())] * 2,
            None,
            {},
            "x has 9 samples and y 5; give bind weigh=",
        ),
        (
            (A[:2], B[:2]),
            Y[:2],
            {"microbatch": 1},
            "a tuple of 2 entries of 2 rows may be one per sample or one per",
        ),
        ((A, B[:3]), Y, {"m": 1}, r"2 samples and a tensor \(7,\), which cannot be cut"),
        (
            {"a": A, "b": B[:3]},
            None,
            {"microbatch": 2},
            "x is a dict and y a NoneType of unclear numbers of samples; give a steppe.Batch",
        ),
    ],
)
def test_what_cannot_be_counted_or_cut_is_refused(x, y, options, message):
    with pytest.raises(steppe.InputError, match=message):
        gradient((x, y), **options)


class Graph:
    """Inputs that do not say how many samples they have."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 3).double(), nn.Linear(4, 3).double()

    def forward(self, x):
        a, b = (x.a, x.b) if isinstance(x, Graph) else x
        return torch.stack([self.first(a), self.second(b)])


def two_tasks(z, y):
    return sum(F.cross_entropy(task, target) for task, target in zip(z, y, strict=True))


def task_weights(batch, name="sam", **options):
    net = TwoTasks()
    step = steppe.make(name).bind(net, torch.optim.SGD(net.parameters(), 1.0), loss=two_tasks, **options)
    step(*(batch if isinstance(batch, tuple) else (batch,)))
    return net.first.weight.detach()


@pytest.mark.parametrize("name", ["plain", "sam", "mesa", "friendly-sam"])
@pytest.mark.parametrize("form", [list, tuple, lambda pair: Graph(*pair)])
def test_a_batch_that_is_not_cut_needs_no_clear_size(form, name):
    y = (Y, Y.flip(0))
    whole = Batch((A, B), y, torch.arange(7))
    for options in ({}, {"microbatch": 64} if form in (list, tuple) else {}):
        weights = task_weights((form((A, B)), list(y)), name, **options)
        torch.testing.assert_close(weights, task_weights(whole, name), rtol=0, atol=0)


def test_a_batch_of_unclear_size_is_neither_cut_nor_weighed_without_a_remedy():
    """Two lists of two tensors may be two samples or seven."""
    batch, unclear = ([A, B], [Y, Y]), "of unclear numbers of samples; give a steppe.Batch with an index"
    for name, options in (("plain", {"microbatch": 3}), ("sam", {"m": 3}), ("lpf-sgd", {}), ("esam", {})):
        with pytest.raises(steppe.InputError, match=unclear):
            task_weights(batch, name, **options)
    parts = [([A[:4], B[:4]], [Y[:4], Y[:4]]), ([A[4:], B[4:]], [Y[4:], Y[4:]])]
    with pytest.raises(steppe.InputError, match=unclear):
        task_weights(parts)
    with pytest.raises(steppe.InputError, match="of unclear numbers"):
        LossSurface(TwoTasks(), parts, two_tasks)
    with pytest.raises(steppe.InputError, match="of unclear numbers"):
        next(Batch(Graph(A, B)).split(64))
    expected = task_weights(batch)
    weighed = task_weights(parts, weigh=lambda b: len(b.y[0]))
    torch.testing.assert_close(weighed, expected)
    loss = two_tasks(TwoTasks()([A, B]), [Y, Y]).item()
    assert LossSurface(TwoTasks(), [batch], two_tasks).loss() == pytest.approx(loss, rel=1e-12)


def test_an_index_tells_the_number_of_samples():
    x = torch.randn(9, 5, 8)
    assert len(Batch(x)) == 9
    assert len(Batch(x, index=torch.arange(5))) == 5
    assert len(Batch(object(), Y)) == 7


def test_a_batch_of_a_data_loader_is_a_pair():
    data = list(zip(A, B, Y, strict=True))
    x, y = next(iter(DataLoader([(a, y) for a, _, y in data], 7)))
    for batch in ([x, y], [Y, Y.tolist()]):
        assert as_batch(batch).parts()[0].x is batch[0]
    (a, b), y = next(iter(DataLoader([((a, b), y) for a, b, y in data], 7)))
    assert close(gradient(([[a, b], y],)), gradient(((A, B), Y)))
    assert len(as_batch([[x, y], [x, y]]).parts()) == 2


def test_a_list_of_micro_batches_is_shown_moved_and_compared(monkeypatch):
    batch = as_batch([((A[:3], B[:3]), Y[:3]), ((A[3:], B[3:]), Y[3:])])
    assert repr(batch).startswith("MicroBatches(pieces=[Batch(x=(tensor(")
    assert batch == batch != as_batch([(A, Y), (A, Y)])
    assert Batch(A) != Batch(A)
    assert torch.equal(batch.x[1], B)
    assert [len(part) for part in batch.to(torch.device("cpu")).parts()] == [3, 4]
    assert torch.equal(dataclasses.replace(batch, pieces=batch.pieces[:1]).y, Y[:3])
    with pytest.raises(ValueError, match="y is declared with init=False"):
        dataclasses.replace(batch, y=Y)
    ragged = as_batch([(torch.zeros(2, 3), Y[:2]), (torch.ones(2, 5), Y[2:4])])
    assert "MicroBatches" in repr(ragged) and ragged == ragged
    assert (
        [part.x.shape[1] for part in ragged.pin_memory().parts()] == [3, 5] if torch.cuda.is_available() else True
    )
    rows = ragged.take(torch.tensor([3, 0, 1]))
    assert [part.x.tolist() for part in rows.parts()] == [[[1.0] * 5], [[0.0] * 3] * 2]
    assert torch.equal(rows.y, Y[[3, 0, 1]])


class Detector(nn.Module):
    """Takes images and their boxes, as torchvision's do; its loss is a mean over images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 4, 1).double()

    def forward(self, images, targets):
        z = torch.stack([self.conv(image).mean((1, 2)) for image in images])
        loss = torch.stack([(z[k] - t["boxes"]).square().mean() for k, t in enumerate(targets)]).mean()
        return loss, z


@pytest.mark.parametrize("boxes", [[3, 3], [2, 2], [3], [3, 3, 3], [2, 3, 1], [3, 3, 3, 3]])
@pytest.mark.parametrize("kind", [list, tuple])
def test_images_with_any_number_of_boxes_each_are_counted_and_cut_by_image(boxes, kind):
    """Three colours and three boxes are no three samples."""
    images = kind(torch.randn(3, 4, 4 + k, generator=G).double() for k in range(len(boxes)))
    targets = kind({"boxes": torch.rand(n, 4, generator=G).double()} for n in boxes)
    weights = []
    for options in ({}, {"microbatch": 1}, {"m": 1}):
        net = Detector()
        steppe.Plain().bind(net, sgd(net), loss="model", **options)(images, targets)
        weights.append([p.detach() for p in net.parameters()])
    assert len(Batch(images, targets)) == len(boxes)
    assert close(weights[1], weights[0]) and close(weights[2], weights[0])


def ctc(z: Tensor, y: tuple[Tensor, Tensor]) -> Tensor:
    times = torch.full((z.size(1),), len(z))
    return F.ctc_loss(z.log_softmax(2), y[0], times, y[1])


def test_targets_in_a_row_next_to_their_lengths_belong_to_as_many_samples():
    class Times(nn.Linear):
        def forward(self, x):
            return super().forward(x).transpose(0, 1)

    x, lengths = torch.randn(6, 9, 8, generator=G), torch.tensor([2, 3, 1, 2, 3, 2])
    y, nets = torch.randint(1, 3, (13,), generator=G), []
    parts = [(x[:3], (y[:6], lengths[:3])), (x[3:], (y[6:], lengths[3:]))]
    for batch in ((x, (y, lengths)), (parts,)):
        torch.manual_seed(0)
        steppe.SAM().bind(net := Times(8, 3), sgd(net), loss=ctc)(*batch)
        nets.append(net.weight.detach())
    torch.testing.assert_close(nets[0], nets[1])


def test_what_mappings_of_targets_name_may_be_an_array():
    step = steppe.SAM().bind(
        net := nn.Linear(8, 3).double(), sgd(net), loss=lambda z, y: F.cross_entropy(z, y["k"])
    )
    assert not step(A, {"k": Y, "size": np.array([4, 4])}).skipped


def pairs(z: Tensor, y: Tensor) -> Tensor:
    one, other = z.chunk(2)
    return ((one - other).square().sum(1) * y).mean()


class Views(nn.Linear):
    def forward(self, x):
        return torch.cat([super().forward(x), super().forward(x.square())])


MEANS = {
    "of pairs": (Views, pairs),
    "random at times": (nn.Linear, lambda z, y: F.cross_entropy(z, y) * (2 if random.random() < 0.4 else 1)),
    "numpy": (nn.Linear, lambda z, y: F.cross_entropy(z, y) * (2 if np.random.rand() < 0.4 else 1)),
    "torch": (nn.Linear, lambda z, y: F.cross_entropy(z, y) * (2 if torch.rand(()) < 0.4 else 1)),
    "float16": (nn.Linear, lambda z, y: F.cross_entropy(z, y).half()),
    "bfloat16": (nn.Linear, lambda z, y: F.cross_entropy(z, y).bfloat16()),
    "of no more than 3": (
        nn.Linear,
        lambda z, y: F.cross_entropy(z, y) + F.mse_loss(z, torch.zeros(3, 3)[: len(z)]),
    ),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_loss_that_cannot_be_compared_is_not_refused_in_parts(name):
    kind, loss = MEANS[name]
    step = steppe.SAM().bind(net := kind(8, 3).double(), sgd(net), loss=loss, microbatch=3)
    for _ in range(12):
        assert not step(A, Y).skipped


SUMS = {
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "function": partial(F.cross_entropy, reduction="sum"),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]).double()),
    "divided": lambda z, y: F.cross_entropy(z, y, reduction="sum") / (1 + (y == 1).sum()),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("options", [{"microbatch": 3}, {"microbatch": 1}, {"m": 3}, {"m": 1}, {}])
def test_a_loss_that_is_no_mean_over_samples_is_refused_in_parts(name, options):
    net = nn.Linear(8, 3).double()
    before = net.weight.detach().clone()
    step = steppe.SAM().bind(net, sgd(net), loss=SUMS[name], **options)
    with pytest.raises(
        steppe.InputError, match="and the mean over .* parts .* give a loss that is a mean over samples"
    ):
        step(*((A, Y) if options else ([(A[:3], Y[:3]), (A[3:], Y[3:])],)))
    assert torch.equal(net.weight, before)


def test_a_loss_that_is_no_mean_over_samples_may_be_weighed():
    weights = SUMS["class weights"].weight
    nets = []
    for batch, options in (((A, Y), {}), ((A, Y), {"microbatch": 3}), (([(A[:3], Y[:3]), (A[3:], Y[3:])],), {})):
        torch.manual_seed(0)
        net = nn.Linear(8, 3).double()
        steppe.SAM().bind(
            net, sgd(net), loss=SUMS["class weights"], weigh=lambda b: weights[b.y].sum(), **options
        )(*batch)
        nets.append(net.weight.detach())
    torch.testing.assert_close(nets[0], nets[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(nets[0], nets[2], rtol=1e-10, atol=1e-12)
    with pytest.raises(steppe.InputError, match="weigh returned 0 for the batch; return a finite number above 0"):
        steppe.SAM().bind(net, sgd(net), weigh=lambda _: 0)(A, Y)


class Own(nn.Module):
    def __init__(self, reduction: str):
        super().__init__()
        self.linear, self.reduction = nn.Linear(8, 3).double(), reduction

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(x), y, reduction=self.reduction)


class TrainingOnly(Own):
    """Returns detections in evaluation mode, and no loss."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) if self.training else [{"boxes": self.linear(x)}].items()


def test_a_model_that_has_a_loss_in_training_mode_only_is_trained_in_parts():
    step = steppe.SAM().bind(net := TrainingOnly("mean"), sgd(net), loss="model", microbatch=3)
    assert not step(A, Y).skipped


def test_the_model_s_own_loss_is_a_mean_too():
    for reduction in ("mean", "sum"):
        step = steppe.SAM().bind(net := Own(reduction), sgd(net), loss="model", microbatch=3)
        if reduction == "mean":
            assert not step(A, Y).skipped
        else:
            with pytest.raises(steppe.InputError, match="the loss of 4 samples is .* mean over 2 parts"):
                step(A, Y)
