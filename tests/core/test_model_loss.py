"""`steppe.ModelLoss`: a loss that calls the model itself, in every pass of every method."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steppe

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


def usual(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = model(x)
    return F.cross_entropy(z, y), z


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.trunk(x))
        return {"class": self.a(h), "size": self.b(h)[:, 0]}


def both(model: nn.Module, x: Tensor, y: dict[str, Tensor]) -> Tensor:
    out = model(x)
    return F.cross_entropy(out["class"], y["class"]) + F.mse_loss(out["size"], y["size"])


def rebuilt(model: nn.Module, x: Tensor, y: None) -> Tensor:
    assert y is None
    return ((model(x) - x) ** 2).mean()


def trained(method: str, net: nn.Module, loss: object, y: object, **options: object) -> list[Tensor]:
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    step = steppe.parse(method).bind(net, optimizer, loss=loss, seed=1, **options)
    for _ in range(3):
        step(steppe.Batch(X, y, torch.arange(12)))
    return [p.detach().clone() for p in net.parameters()]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.parametrize("method", ["plain", "sam:rho=0.5", "sadt-v1:sigma=0.1", "mesa:decay=0.5", "saf:past=1"])
@pytest.mark.parametrize("options", [{}, {"microbatch": 4}], ids=str)
def test_it_trains_as_the_same_loss_function_does(method, options):
    own = trained(method, net(), steppe.ModelLoss(usual), Y, **options)
    function = trained(method, net(), F.cross_entropy, Y, **options)
    assert all(map(torch.equal, own, function))


def test_several_outputs_and_no_targets():
    """The reference is the same training with the loss in the model's forward pass."""

    class Own(nn.Module):
        def __init__(self, inner: nn.Module, loss: object):
            super().__init__()
            self.inner, self.loss = inner, loss

        def forward(self, x: Tensor, y: object = None) -> Tensor:
            return self.loss(self.inner, x, y)

    for new, loss, y in (
        (TwoHeads, both, {"class": Y, "size": X[:, 0]}),
        (lambda: nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 6)), rebuilt, None),
    ):
        torch.manual_seed(0)
        own = trained("sam:rho=0.5", new(), steppe.ModelLoss(loss), y)
        torch.manual_seed(0)
        inside = trained("sam:rho=0.5", Own(new(), loss), "model", y)
        assert all(map(torch.equal, own, inside))


def test_what_it_is_not_for_is_said():
    with pytest.raises(steppe.InputError, match="returns only its loss; return the logits too"):
        trained("mesa:decay=0.5", TwoHeads(), steppe.ModelLoss(both), {"class": Y, "size": X[:, 0]})
    with pytest.raises(steppe.InputError, match="give a function of model, x and y"):
        steppe.ModelLoss("cross_entropy")
    method = steppe.DML()
    peers = method.build(Causal)
    step = method.bind(peers, torch.optim.SGD(peers.parameters(), 0.1), loss="model")
    with pytest.raises(steppe.InputError, match="this method computes losses itself; bind it with a function"):
        step(torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long))
    own = Causal()
    step = steppe.SAM().bind(own, torch.optim.SGD(own.parameters(), 0.1), loss="model")
    with pytest.raises(steppe.InputError, match="on the inputs alone .*'y'.*; let forward take no"):
        step.predict(torch.zeros(3, 4, dtype=torch.long))


class Causal(nn.Module):
    """A language model of one layer that needs targets to be called, as some do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(7, 5), nn.BatchNorm1d(4), nn.Linear(5, 7)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.head(self.norm(self.embedding(x)))
        return F.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten()), z


@pytest.mark.parametrize(
    "loss", ["model", steppe.ModelLoss(lambda net, x, y: net(x, y))], ids=["model", "function"]
)
@pytest.mark.parametrize("microbatch", [None, 1])
def test_outputs_are_those_of_the_losss_own_call_and_count_before_their_targets(loss, microbatch):
    x = torch.arange(12).reshape(3, 4) % 7
    y = torch.tensor([[0, 1, 2, 3], [-100, -100, 5, 6], [-100, -100, -100, 1]])
    torch.manual_seed(0)
    net = Causal().double()
    net.norm.eval()  # so that micro-batches are exact
    teacher, lam, lr = copy.deepcopy(net), 5.0, 0.5
    step = steppe.parse(f"mesa:lam={lam},T=1,decay=0.9").bind(
        net, torch.optim.SGD(net.parameters(), lr), loss=loss, microbatch=microbatch,
        weigh=lambda batch: float((batch.y[:, 1:] != -100).sum()),
    )  # fmt: skip
    state, own = torch.get_rng_state(), copy.deepcopy(net)
    for t in range(3):
        step(x, y)
        value, z = own(x, y)
        with torch.no_grad():
            before = teacher(x, y)[1]
        counts = y[:, 1:] != -100
        each = F.kl_div(z.log_softmax(2), before.log_softmax(2), reduction="none", log_target=True).sum(2)
        total = value + lam * each[:, :-1][counts].mean()
        grads = torch.autograd.grad(total, list(own.parameters()), allow_unused=True)
        with torch.no_grad():
            for p, g in zip(own.parameters(), grads, strict=True):
                p -= lr * (0 if g is None else g)
            d = min(0.9, (1 + t) / (10 + t))
            for v, p in zip(teacher.parameters(), own.parameters(), strict=True):
                v.copy_(d * v + (1 - d) * p)
        pairs = zip(net.parameters(), own.parameters(), strict=True)
        assert all(torch.allclose(p, q, rtol=1e-12, atol=1e-12) for p, q in pairs)
    assert torch.equal(torch.get_rng_state(), state)
