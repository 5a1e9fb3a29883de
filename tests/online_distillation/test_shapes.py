"""Methods of branches on outputs of any shape: one number per sample, tokens, pixels."""

import pytest
import torch
import torch.nn.functional as F
from support.cohorts import maker
from torch import Tensor, nn

import steppe
from steppe.errors import InputError

METHODS = [
    steppe.ONE(ramp=0), steppe.OKDDip(ramp=0, factor=2), steppe.OKDDip(ramp=0, factor=2, form="network"),
    steppe.FFL(ramp=0), steppe.PCL(ramp=0),
]  # fmt: skip


class Numbers(nn.Module):
    """One number for each sample (B, 5): (B, 1), or (B,) if it is ``flat``."""

    flat = False

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.body(x))
        return z.squeeze(1) if self.flat else z


class FlatNumbers(Numbers):
    flat = True


class Tagger(nn.Module):
    """Four classes for each token (B, T): (B, T, 4), or (B, 4, T) if classes come ``second``."""

    second = False

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.body(self.embedding(x)))
        return z.movedim(-1, 1) if self.second else z


class SecondTagger(Tagger):
    second = True


def trained(method, kind, x, y, loss):
    """Return losses and predictions of three steps, in float64."""
    net = method.build(maker(kind, dtype=torch.float64))
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1), loss=loss, steps=3)
    losses = [step(x, y).loss for _ in range(3)]
    return torch.stack(losses).detach(), step.predict(x).detach()


@pytest.mark.parametrize("loss", [F.mse_loss, F.binary_cross_entropy_with_logits], ids=["numbers", "labels"])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_one_number_per_sample_is_the_same_with_and_without_a_dimension_of_its_own(method, loss):
    torch.manual_seed(1)
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64)
    losses, z = trained(method, Numbers, x, y[:, None], loss)
    flat_losses, flat = trained(method, FlatNumbers, x, y, loss)
    assert flat.shape == (6,) and z.shape == (6, 1)
    assert torch.allclose(flat_losses, losses, rtol=1e-12) and torch.allclose(flat, z[:, 0], rtol=1e-12)


def test_a_gate_and_attention_mix_the_branches_of_each_sample_at_every_position():
    torch.manual_seed(2)
    x = torch.randint(0, 7, (6, 3))
    one = steppe.ONE().build(maker(Tagger, dtype=torch.float64))
    entered: list[Tensor] = []
    one.gate.register_forward_hook(lambda module, args, output: entered.append(output))
    out = one(x)
    gates = torch.softmax(entered[0], 1)
    expected = sum(gates[:, i, None, None] * z for i, z in enumerate(out.logits))
    assert torch.allclose(out.ensemble, expected, rtol=1e-12)

    dip = steppe.OKDDip(factor=2, form="network").build(maker(Tagger, dtype=torch.float64))
    out = dip(x)
    h = [net.body(net.embedding(x)).mean(1) for net in dip.body.networks][:-1]  # averaged over tokens
    for own, target in zip(h, out.targets, strict=True):
        scores = torch.stack([(dip.query(own) * dip.key(other)).sum(1) for other in h], 1)
        weights = torch.softmax(scores, 1)
        expected = sum(weights[:, k, None, None] * z for k, z in enumerate(out.logits[:-1]))
        assert torch.allclose(target, expected, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_positions_are_learned_or_refused_with_the_methods_that_take_them(method):
    torch.manual_seed(3)
    x, y = torch.randint(0, 7, (6, 3)), torch.randint(0, 4, (6, 3))

    def tokens(z: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(z.flatten(0, 1), target.flatten())

    if isinstance(method, steppe.FFL | steppe.PCL):  # whose classifier takes the features of a sample
        with pytest.raises(InputError, match=r"4 numbers per sample, and the network returns \(3, 4\).*use one"):
            trained(method, Tagger, x, y, tokens)
        return
    losses, z = trained(method, Tagger, x, y, tokens)
    second_losses, second = trained(method, SecondTagger, x, y, F.cross_entropy)
    assert torch.allclose(second_losses, losses, rtol=1e-12)
    assert torch.allclose(second, z.movedim(-1, 1), rtol=1e-12)


@pytest.mark.parametrize(
    "method", [steppe.DML(), steppe.KDCL(), steppe.OKDDip(factor=2, ramp=0, form="network")], ids=repr
)
@pytest.mark.parametrize("case", ["a dimension of its own", "classes"])
def test_networks_with_outputs_of_different_shapes_are_refused(method, case):
    """(B,) and (B, 1) would be broadcast to (B, B)."""

    def flat_or_not() -> nn.Module:
        return FlatNumbers() if len(calls) == 2 else Numbers()

    def of_classes() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3 if len(calls) == 1 else 4))

    calls: list[nn.Module] = []

    def make() -> nn.Module:
        calls.append(nn.Identity())
        return flat_or_not() if case != "classes" else of_classes()

    net = method.build(make)
    y, loss = (torch.zeros(6), F.mse_loss) if case != "classes" else (torch.zeros(6).long(), F.cross_entropy)
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1), loss=loss, steps=3)
    shapes = r"\(6, 1\) and another \(6,\)" if case != "classes" else r"\(6, 3\) and another \(6, 4\)"
    with pytest.raises(InputError, match=f"one network returns {shapes}.*; give networks whose outputs have one"):
        step(torch.randn(6, 5), y)
