"""`steppe.ModelLoss`: a loss that calls the model itself, in every pass of every method."""

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
    with pytest.raises(steppe.InputError, match="dict without logits; .* or with a steppe.ModelLoss"):
        trained("mesa:decay=0.5", TwoHeads(), steppe.ModelLoss(both), {"class": Y, "size": X[:, 0]})
    with pytest.raises(steppe.InputError, match="give a function of model, x and y"):
        steppe.ModelLoss("cross_entropy")
