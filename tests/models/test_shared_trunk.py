from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from steppe.core.numerics.filters import last_of
from steppe.models import build, names
from steppe.models.multi.shared_trunk import share, split_at


def last_conv(net: nn.Module) -> nn.Module | None:
    return last_of(net, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def last_dense(net: nn.Module) -> nn.Module | None:
    return last_of(net, nn.Linear)


def net_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, classes=5, channels=3, size=32)


def halves(net: nn.Module, child: nn.Module | None) -> tuple[nn.Sequential, nn.Sequential]:
    assert child is not None
    cut = split_at(net, child)
    assert cut is not None
    return cut


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("last", [last_conv, last_dense])
def test_above_of_below_is_bitwise_the_whole_network(name: str, last: type) -> None:
    net = net_of(name).eval()
    below, above = halves(net, last(net))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(above(below(x)), net(x))


@pytest.mark.parametrize("name", names())
def test_halves_hold_the_very_parameters_and_names_of_the_network(name: str) -> None:
    net = net_of(name)
    below, above = halves(net, last_conv(net))
    parts = dict(below.named_parameters()) | dict(above.named_parameters())
    whole = dict(net.named_parameters())
    assert parts.keys() == whole.keys()
    assert all(parts[key] is value for key, value in whole.items())


@pytest.mark.parametrize(
    ("name", "first"),
    [("simple-cnn", "conv3"), ("vgg16-sadt", "conv5_3"), ("inception-resnet-sadt", "module3")],
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


def test_a_module_used_in_two_places_stays_in_both() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    below, above = halves(net, net[2])
    x = torch.randn(3, 2)
    assert torch.equal(above(below(x)), net(x))


def test_a_first_part_leaves_nothing_below() -> None:
    net = small()
    below, above = halves(net, net[0])
    assert (len(below), len(above)) == (0, 5)
    assert share(net, below, torch.zeros(1, 1, 6, 6)) == 0


class Own(nn.Sequential):
    pass


def test_a_network_that_is_no_plain_sequential_is_not_cut() -> None:
    inner = small()
    own = Own(OrderedDict(inner.named_children()))
    assert split_at(own, inner[2]) is None
    assert split_at(nn.ModuleList(inner), inner[2]) is None


@pytest.mark.parametrize(
    "register",
    [
        nn.Module.register_forward_hook,
        nn.Module.register_forward_pre_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
    ],
)
def test_a_network_with_hooks_of_its_own_is_not_cut(register: type) -> None:
    net = small()
    handle = register(net, lambda *_: None)
    assert split_at(net, net[2]) is None
    handle.remove()
    assert split_at(net, net[2]) is not None


def test_a_network_with_a_replaced_forward_or_compiled_in_place_is_not_cut() -> None:
    net = small()
    net.forward = lambda x: x  # type: ignore[method-assign]
    assert split_at(net, net[2]) is None
    net = small()
    net.compile()
    assert split_at(net, net[2]) is None


def test_a_module_outside_the_network_or_the_network_itself_gives_no_cut() -> None:
    net = small()
    assert split_at(net, nn.Conv2d(2, 2, 3)) is None
    assert split_at(net, net) is None


def test_a_child_that_shares_weights_with_a_part_below_gives_no_cut() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    assert split_at(net, net[2]) is None


@pytest.mark.parametrize("name", names())
def test_shares_of_both_halves_lie_in_0_to_1_and_sum_to_1(name: str) -> None:
    net = net_of(name)
    x = torch.rand(1, 3, 32, 32)
    last = last_dense if name == "vit-cifar" else last_conv  # its one convolution has nothing below it
    parts = [share(net, half, x) for half in halves(net, last(net))]
    assert all(0 < part < 1 for part in parts)
    assert sum(parts) == pytest.approx(1)
    assert share(net, net, x) == 1


def test_share_is_the_ratio_of_multiply_adds_counted_by_hand() -> None:
    net = small()
    first, second, dense = 16 * 2 * 9, 4 * 2 * 2 * 9, 8 * 3
    expected = second / (first + second + dense)
    assert share(net, net[2], torch.zeros(1, 1, 6, 6)) == pytest.approx(expected)


def test_share_counts_a_part_in_a_network_that_cannot_be_cut() -> None:
    inner = small()
    own = Own(OrderedDict(inner.named_children()))
    x = torch.zeros(1, 1, 6, 6)
    assert share(own, inner[2], x) == share(inner, inner[2], x)


def test_share_leaves_flags_buffers_hooks_gradients_and_random_state_alone() -> None:
    net = net_of("vgg16-sadt")
    net.get_submodule("bn2_1").eval()
    flags = [m.training for m in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    share(net, halves(net, last_conv(net))[1], torch.zeros(2, 3, 32, 32))
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_share_leaves_flags_alone_when_the_pass_fails() -> None:
    net = small()
    with pytest.raises(RuntimeError):
        share(net, net[2], torch.zeros(1, 7, 6, 6))
    assert all(m.training for m in net.modules())
    assert not net[2]._forward_hooks


def test_share_of_a_stranger_is_an_error_and_of_a_network_without_products_is_0() -> None:
    with pytest.raises(ValueError, match="no part of net"):
        share(small(), nn.Linear(1, 1), torch.zeros(1, 1, 6, 6))
    net = nn.Sequential(nn.ReLU())
    assert share(net, net[0], torch.zeros(1)) == 0


def test_last_conv_and_last_dense_follow_registration_and_may_be_missing() -> None:
    net = small()
    assert last_conv(net) is net[2]
    assert last_dense(net) is net[4]
    assert last_conv(nn.Sequential(nn.Linear(1, 1))) is None
    assert last_dense(nn.Sequential(nn.ReLU())) is None


@pytest.mark.parametrize("name", names())
def test_last_dense_is_the_head(name: str) -> None:
    net = net_of(name)
    assert last_dense(net) is net.get_submodule("head")
