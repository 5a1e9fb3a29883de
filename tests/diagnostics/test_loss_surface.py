"""The loss as a function of the weights, for models of all kinds."""

import pytest
import torch
import torch.nn.functional as F
from support.small import small_batch, small_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import steppe
from steppe import Batch
from steppe.diagnostics import loss_surface
from steppe.diagnostics.hessian import eigenvalues
from steppe.diagnostics.loss_surface import LossSurface
from steppe.diagnostics.sharpness import worst_case_sharpness
from steppe.errors import InputError


class Tagger(nn.Module):
    """Named inputs, tied weights, an unused part, and a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.idle = nn.Linear(2, 2)

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor | None]:
        logits = self.head(self.embed(ids).mean(1))
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


def tagged() -> tuple[Tagger, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    net, ids = Tagger().double(), torch.randint(0, 7, (10, 5))
    return net, [{"ids": ids[:4], "labels": ids[:4, 0]}, {"ids": ids[4:], "labels": ids[4:, 0]}]


def test_the_model_s_own_loss_and_named_inputs_are_used():
    net, data = tagged()
    ids, labels = (torch.cat([d[k] for d in data]) for k in ("ids", "labels"))
    outputs = net(ids, labels)
    for loss in ("model", F.cross_entropy):
        surface = LossSurface(net, data, loss)
        assert surface.value().loss == pytest.approx(float(outputs["loss"].detach()), rel=1e-12)
        assert surface.value().accuracy == pytest.approx(
            float((outputs["logits"].argmax(1) == labels).double().mean())
        )
        assert worst_case_sharpness(surface, 0.1) > 0
    torch.testing.assert_close(LossSurface(net, data).outputs(), outputs["logits"].detach())


def test_tied_weights_count_once_and_unused_ones_have_no_gradient():
    net, data = tagged()
    surface = LossSurface(net, data)
    assert [tuple(p.shape) for p in surface.params] == [(7, 4), (2, 2), (2,)]
    _, grads = surface.gradient()
    assert [float(g.abs().sum()) > 0 for g in grads] == [True, False, False]
    ids, labels = (torch.cat([d[k] for d in data]) for k in ("ids", "labels"))

    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(w[ids].mean(1) @ w.T, labels)

    w = net.embed.weight.detach()
    whole = torch.func.hessian(loss)(w).reshape(28, 28)
    assert eigenvalues(surface, 1).values[0] == pytest.approx(float(torch.linalg.eigvalsh(whole)[-1]), rel=1e-9)


def test_batches_of_all_kinds_are_one_set_of_samples():
    net = small_net(dtype=torch.float64)
    x, y = small_batch(dtype=torch.float64)
    expected = LossSurface(net, [(x, y)]).value()
    for data in ([Batch(x[:5], y[:5]), (x[5:], y[5:])], [[(x[:3], y[:3]), (x[3:], y[3:])]], iter([(x, y)])):
        surface = LossSurface(net, data)
        assert len(surface) == 12
        assert surface.value().loss == pytest.approx(expected.loss, rel=1e-12)
        assert surface.value().accuracy == expected.accuracy
    soft = F.one_hot(y, 5).double()
    assert LossSurface(net, [(x, soft)]).value().loss == pytest.approx(expected.loss)
    assert LossSurface(net, [(x, soft)]).value().accuracy is None


def test_the_wrapper_of_a_compiled_model_is_removed_and_frozen_parameters_are_left_out():
    net, batch = small_net(), small_batch()
    net[0].weight.requires_grad_(False)
    wrapped = torch.compile(net, backend="eager")
    surface = LossSurface(wrapped, [batch])
    assert surface.net is net
    assert len(surface.params) == len(list(net.parameters())) - 1


def test_weights_and_buffers_are_restored_after_an_error():
    net = small_net()
    surface = LossSurface(net, [small_batch()])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    offset = [torch.ones_like(p) for p in surface.params]

    def interrupted() -> None:
        moved = {"1.running_mean": state["1.running_mean"]}
        with surface.with_values(None, moved), surface.at(offset), surface.recalibrated([small_batch()]):
            assert not torch.equal(net[0].weight, before["0.weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net[1].momentum == 0.1 and all(m.training for m in net.modules())


class Counter(nn.Module):
    """Counts its passes in a buffer, in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


@pytest.mark.parametrize("collated", [False, True])
def test_a_data_loader_is_data_and_evaluations_change_no_buffer(collated):
    torch.manual_seed(0)
    x, y, net = torch.randn(8, 8), torch.randint(0, 3, (8,)), Counter()
    loader = DataLoader(TensorDataset(x, y), 4, collate_fn=None if collated else tuple_of)
    surface = LossSurface(net, loader)
    assert surface.value().loss == pytest.approx(F.cross_entropy(net.linear(x), y).item(), rel=1e-6)
    surface.gradient(), surface.outputs(), surface.hvp([torch.ones_like(p) for p in surface.params])
    with surface.recalibrated(loader):
        pass
    assert int(net.calls) == 0


def tuple_of(samples: list) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


def test_a_loss_that_is_no_mean_is_refused_in_batches():
    x, y = torch.randn(8, 8), torch.randint(0, 3, (8,))
    net, loss = nn.Linear(8, 3), nn.CrossEntropyLoss(reduction="sum")
    assert LossSurface(net, [(x, y)], loss).loss() == pytest.approx(loss(net(x), y).item())
    for evaluate in (
        lambda: LossSurface(net, [(x[:4], y[:4]), (x[4:], y[4:])], loss).loss(),
        lambda: worst_case_sharpness(LossSurface(net, [(x, y)], loss), 0.1, m=4),
    ):
        with pytest.raises(InputError, match="give a loss that is a mean over samples"):
            evaluate()
    with pytest.raises(InputError, match="loss is 3; give a function"):
        LossSurface(net, [(x, y)], 3)


def _tokens() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))
    net[1].weight.data.mul_(4)
    x, y = torch.randint(0, 11, (8, 10)), torch.randint(0, 11, (8, 10))
    y[4:, 2:] = -100
    y[6:] = -100
    return net, x, y


def of_tokens(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten())


def own_loss(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = model(x)
    return of_tokens(z, y), z


@pytest.mark.parametrize("loss", [of_tokens, steppe.ModelLoss(own_loss)])
def test_a_mean_over_tokens_is_weighed_by_them_or_refused_in_batches(loss):
    net, x, y = _tokens()
    batches = [(x[i : i + 2], y[i : i + 2]) for i in range(0, 8, 2)]
    whole = LossSurface(net, [(x, y)], loss)
    if loss is of_tokens:
        with pytest.raises(InputError, match="or weigh="):
            LossSurface(net, batches, loss).gradient()
    with pytest.raises(InputError, match="or weigh="):
        LossSurface(net, [batches[1], batches[2]], loss).loss()
    parts = LossSurface(net, batches, loss, weigh=lambda batch: int((batch.y != -100).sum()))
    assert parts.loss() == pytest.approx(whole.loss(), rel=1e-6)
    assert worst_case_sharpness(parts, 0.1) == pytest.approx(worst_case_sharpness(whole, 0.1), rel=1e-4)
    ones = [torch.ones_like(p) for p in whole.params]
    for a, b in ((parts.gradient()[1], whole.gradient()[1]), (parts.hvp(ones), whole.hvp(ones))):
        assert all(torch.allclose(s, t, atol=1e-6) for s, t in zip(a, b, strict=True))
    with pytest.raises(InputError, match="weigh returned 0"):
        LossSurface(net, batches[3:], loss, weigh=lambda batch: int((batch.y != -100).sum()))


@pytest.mark.parametrize("loss", [of_tokens, steppe.ModelLoss(own_loss)])
def test_padded_batches_of_several_lengths_and_a_padded_one_among_many_are_noticed(loss):
    net, x, y = _tokens()
    y[4:6, :2] = net(x[4:6, :2]).argmax(-1)  # the padded rows have a lower loss
    whole = (x[:2], y[:2])  # nothing of it is padding
    of_lengths = [whole, (x[4:6, :7], y[4:6, :7].clone())]
    of_lengths[1][1][0, 1], of_lengths[1][1][1, 1] = -100, 0
    for batches in (of_lengths, [*[whole] * 9, (x[4:6], y[4:6]), *[whole] * 9]):
        with pytest.raises(InputError, match="or weigh="):
            LossSurface(net, batches, loss).loss()


def test_few_logits_are_kept_for_the_check_that_a_loss_is_a_mean(monkeypatch):
    monkeypatch.setattr(loss_surface, "_CHECKED", 100)
    calls = []
    net = nn.Linear(4, 60)
    net.register_forward_hook(lambda *_: calls.append(1))
    x, y = torch.randn(40, 4), torch.arange(40)
    LossSurface(net, list(zip(x.split(2), y.split(2), strict=True))).loss()
    assert len(calls) == 20 + 2


def test_a_loss_with_class_weights_of_its_own_is_refused_in_batches_of_any_size():
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3), torch.randn(30, 4), torch.arange(30) // 10
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 20.0]))
    for size in (1, 10):
        with pytest.raises(InputError, match="give a loss that is a mean over samples"):
            LossSurface(net, list(zip(x.split(size), y.split(size), strict=True)), loss).loss()
    weight = torch.tensor([1.0, 5.0, 20.0])
    parts = LossSurface(net, [(x[:10], y[:10]), (x[10:], y[10:])], loss, lambda b: float(weight[b.y].sum()))
    assert parts.loss() == pytest.approx(loss(net(x), y).item(), rel=1e-6)


def test_accuracy_is_of_classes_that_count_and_not_of_one_output():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 0, -100])
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.eye(2))
    assert LossSurface(net, [(x, y)]).value().accuracy == pytest.approx(2 / 3)

    def binary(z: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z.squeeze(1), y.float())

    assert LossSurface(nn.Linear(2, 1), [(x[:3], y[:3])], binary).value().accuracy is None


def test_weights_of_half_precision_are_warned_about(caplog):
    x, y = torch.randn(6, 4, dtype=torch.bfloat16), torch.arange(6) % 3
    LossSurface(nn.Linear(4, 3).bfloat16(), [(x, y)])
    assert "measure model.float()" in caplog.text
    caplog.clear()
    LossSurface(nn.Linear(4, 3), [(x.float(), y)])
    assert not caplog.text
