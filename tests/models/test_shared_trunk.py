from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

from steppe.core.numerics.filters import last_of
from steppe.models import build
from steppe.models.multi.shared_trunk import flops_share, split_sequential

NAMES = ["simple-cnn", "vgg16-sadt", "inception-resnet-sadt", "densenet40-12", "resnet-thin"]


def last_conv(net: nn.Module) -> nn.Module | None:
    return last_of(net, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def last_dense(net: nn.Module) -> nn.Module | None:
    return last_of(net, nn.Linear)


def net_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, classes=5, channels=3, size=32)


def halves(net: nn.Module, child: nn.Module | None) -> tuple[nn.Sequential, nn.Sequential]:
    assert child is not None
    parts = split_sequential(net, child)
    assert parts is not None
    return parts


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("last", [last_conv, last_dense])
def test_above_of_below_is_bitwise_the_network_with_its_very_parameters(name: str, last: type) -> None:
    net = net_of(name).eval()
    below, above = halves(net, last(net))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(above(below(x)), net(x))
    parts = dict(below.named_parameters()) | dict(above.named_parameters())
    whole = dict(net.named_parameters())
    assert parts.keys() == whole.keys()
    assert all(parts[key] is value for key, value in whole.items())


@pytest.mark.parametrize(
    ("name", "first"), [("simple-cnn", "conv3"), ("vgg16-sadt", "conv5_3"), ("inception-resnet-sadt", "module3")]
)
def test_above_starts_with_the_part_that_holds_the_last_convolution(name: str, first: str) -> None:
    net = net_of(name)
    _, above = halves(net, last_conv(net))
    assert next(iter(above.named_children()))[0] == first


def test_halves_follow_the_training_mode_of_the_parts() -> None:
    net = net_of("simple-cnn")
    below, _ = halves(net, last_conv(net))
    net.eval()
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(below(x), below(x))
    assert net.get_submodule("bn1").num_batches_tracked == 0


def test_a_module_used_in_two_places_stays_in_both_and_a_first_part_leaves_nothing_below() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    below, above = halves(net, net[2])
    x = torch.randn(3, 2)
    assert torch.equal(above(below(x)), net(x))
    net = small()
    below, above = halves(net, net[0])
    assert (len(below), len(above)) == (0, 5)
    assert flops_share(net, below, torch.zeros(1, 1, 6, 6)) == 0


class Own(nn.Sequential):
    pass


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.register_forward_hook(print),
        lambda net: net.register_forward_pre_hook(print),
        lambda net: net.register_full_backward_hook(print),
        lambda net: net.register_full_backward_pre_hook(print),
        lambda net: setattr(net, "forward", lambda x: x),
        lambda net: net.compile(backend="eager"),
        lambda net: setattr(net[0], "weight", net[2].weight),
    ],
)
def test_a_network_that_is_more_than_its_parts_or_shares_weights_is_not_split(change: Callable) -> None:
    net = small()
    change(net)
    assert split_sequential(net, net[2]) is None


def test_only_a_part_of_a_plain_sequential_is_split() -> None:
    net = small()
    own = Own(OrderedDict(net.named_children()))
    for module, child in ((own, net[2]), (nn.ModuleList(net), net[2]), (net, nn.Conv2d(2, 2, 3)), (net, net)):
        assert split_sequential(module, child) is None
    assert split_sequential(net, net[2]) is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_shares_of_both_halves_are_between_0_and_1_and_sum_to_1(name: str) -> None:
    net = net_of(name)
    x = torch.rand(1, 3, 32, 32)
    shares = [flops_share(net, half, x) for half in halves(net, last_conv(net))]
    assert all(0 < share < 1 for share in shares)
    assert sum(shares) == pytest.approx(1)
    assert flops_share(net, net, x) == 1


def test_share_is_the_ratio_of_multiply_adds_also_where_a_network_cannot_be_split() -> None:
    net = small()
    first, second, dense = 16 * 2 * 9, 4 * 2 * 2 * 9, 8 * 3
    for whole in (net, Own(OrderedDict(net.named_children()))):
        share = flops_share(whole, net[2], torch.zeros(1, 1, 6, 6))
        assert share == pytest.approx(second / (first + second + dense))
    with pytest.raises(ValueError, match="no part of net"):
        flops_share(small(), nn.Linear(1, 1), torch.zeros(1, 1, 6, 6))
    net = nn.Sequential(nn.ReLU())
    assert flops_share(net, net[0], torch.zeros(1)) == 0


def test_share_changes_no_state_even_if_the_pass_fails() -> None:
    net = net_of("vgg16-sadt")
    net.get_submodule("bn2_1").eval()
    flags = [m.training for m in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    part = halves(net, last_conv(net))[1]
    flops_share(net, part, torch.zeros(2, 3, 32, 32))
    with pytest.raises(RuntimeError):
        flops_share(net, part, torch.zeros(1, 7, 32, 32))
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())
