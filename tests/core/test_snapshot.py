"""Snapshots restore values bit for bit into the storage they were taken from, and modules their own buffers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import steppe
from steppe.core.state.snapshot import Buffers, Elsewhere, Snapshot, SnapshotPool, of_training

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.int16]
LAYOUTS = {
    "contiguous": lambda whole: whole,
    "channels_last": lambda whole: whole.contiguous(memory_format=torch.channels_last),
    "transposed": lambda whole: whole[:, 0, 0].clone().t(),
    "every second": lambda whole: whole.flatten()[::2],
    "a part": lambda whole: whole[1:3],
    "number": lambda whole: whole[0, 0, 0, 0].clone(),
    "empty": lambda whole: whole[:0],
    "one wide": lambda whole: whole[:, :1].clone().expand(4, 1, 5, 2),
}


def tensor(layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    """Return a tensor of some layout; its storage, where it is larger, is the tensor's base."""
    g = torch.Generator().manual_seed(seed)
    return LAYOUTS[layout](torch.randint(0, 2**15, (4, 3, 5, 2), generator=g).to(dtype))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([*LAYOUTS]), st.sampled_from(DTYPES)), max_size=6), st.integers(0, 99))
def test_nested_snapshots_restore_values_in_place(kinds: list[tuple[str, torch.dtype]], seed: int) -> None:
    tensors = [tensor(layout, dtype, seed + i) for i, (layout, dtype) in enumerate(kinds)]
    places = [t.data_ptr() for t in tensors]
    pool = SnapshotPool()
    first = [t.clone() for t in tensors]
    outer = pool.make(tensors)
    for t in tensors:
        t.zero_()
    second = [t.clone() for t in tensors]
    inner = pool.make(tensors)
    for t in tensors:
        t.fill_(1)
    for snapshot, expected in ((inner, second), (outer, first)):
        snapshot.restore()
        snapshot.release()
        assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
    assert [t.data_ptr() for t in tensors] == places


def test_every_bit_pattern_is_restored() -> None:
    patterns = torch.tensor([0x7FC00001, -0x00400000, -(2**31), 1, 0x7F800000], dtype=torch.int32)
    weights = nn.Parameter(patterns.view(torch.float32).clone())
    snapshot = Snapshot([weights])
    weights.data.zero_()
    snapshot.restore()
    assert torch.equal(weights.data.view(torch.int32), patterns)


def places(snapshot: Snapshot) -> list[int]:
    return [v.data_ptr() for _, values in snapshot._groups for v in values]


def test_a_pool_reuses_storage_of_the_same_shapes_and_types_only() -> None:
    tensors = [torch.randn(3), torch.randn(2, 2)]
    pool = SnapshotPool()
    first = pool.make(tensors)
    storage = places(first)
    assert places(pool.make(tensors)) != storage  # two at a time
    first.release()
    tensors[0].add_(1)
    expected = [t.clone() for t in tensors]
    again = pool.make(tensors)
    assert places(again) == storage
    tensors[1].zero_()
    again.restore()
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
    for others in ([torch.randn(3), torch.randn(4)], [torch.randn(3).double(), torch.randn(2, 2)], tensors[:1]):
        first.release()
        before, snapshot = [t.clone() for t in others], pool.make(others)
        for t in others:
            t.zero_()
        snapshot.restore()
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(others, before, strict=True))


@pytest.mark.parametrize("exchange", [Tensor.clone, Tensor.double])
def test_data_that_was_exchanged_after_the_snapshot_has_the_old_values_again(exchange) -> None:
    p = nn.Parameter(torch.randn(4, 3, 2, 2))
    before, snapshot = p.detach().clone(), Snapshot([p])
    p.data = exchange(p.data) + 1
    storage = p.data_ptr()
    snapshot.restore()
    assert p.data_ptr() == storage
    assert torch.equal(p, before.to(p.dtype))


class Assigning(nn.Module):
    """Keeps its statistics by assignment, as many modules do that are not PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("later", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.count = self.count + 1
        return x - self.mean


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), Assigning(), nn.Linear(3, 2))


def data(n: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=g), torch.arange(n) % 2


@pytest.mark.parametrize("spec", ["sam:rho=0.5", "rwp:gamma=0.5", "sadt-v1", "mesa"])
def test_buffers_assigned_in_a_perturbed_pass_or_a_skipped_step_are_restored(spec: str) -> None:
    plain, net = network(), network()
    plain(data()[0])
    step = steppe.parse(spec).bind(net, torch.optim.SGD(net.parameters(), 0.1))
    step(*data())
    assert torch.equal(net[1].mean, plain[1].mean) and int(net[1].count) == 1
    step(*data())
    mean = net[1].mean.clone()
    x, y = data()
    x[0, 0] = float("nan")
    assert step(x, y).skipped
    assert torch.equal(net[1].mean, mean) and int(net[1].count) == 2


def test_a_buffer_snapshot_has_values_and_tensors_of_its_own_time() -> None:
    net = network()
    buffers = Buffers(net)
    outer, mean = buffers.snapshot(), net[1].mean
    net(data()[0])
    inner, assigned = buffers.snapshot(), net[1].mean
    value = assigned.clone()
    assigned += 1
    inner.restore()
    assert net[1].mean is assigned and torch.equal(assigned, value) and bool((value != 0).any())
    outer.restore()
    assert net[1].mean is mean and torch.equal(mean, torch.zeros(3)) and int(net[1].count) == 0
    net = nn.Module()
    net.register_buffer("table", torch.zeros(2))
    snapshot = Buffers(net).snapshot()
    net.table = torch.arange(7.0)
    snapshot.restore()
    assert torch.equal(net.table, torch.arange(7.0))


class FirstForward(nn.Module):
    """Registers its buffer in the first forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "count"):
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.count += 1
        return x


@pytest.mark.parametrize("spec", ["plain", "sam", "two-step", "sam+ema"])
def test_a_buffer_that_the_first_forward_pass_registers_counts_each_batch_once(spec: str) -> None:
    net = nn.Sequential(FirstForward(), nn.Linear(4, 2))
    step = steppe.parse(spec).bind(net, torch.optim.SGD(net.parameters(), 0.1))
    for k in range(1, 4):
        step(*data())
        assert int(net[0].count) == k


@pytest.mark.parametrize("spec", ["plain", "sam", "sam+ema", "lookahead"])
def test_a_buffer_made_by_expand_is_restored(spec: str) -> None:
    class Expanded(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.register_buffer("table", torch.zeros(1, 2, 1).expand(3, 2, 5))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.table[:1, :, :1] += 1
            return super().forward(x)

    net = Expanded()
    step = steppe.parse(spec).bind(net, torch.optim.SGD(net.parameters(), 0.1))
    for k in range(1, 4):
        step(*data())
        assert bool((net.table == k).all()) and net.table.stride() == (0, 1, 0)
    step.predict(data()[0])
    assert bool((net.table == 3).all())
    table = net.table
    snapshot = Snapshot([table])
    assert sum(v.numel() for _, values in snapshot._groups for v in values) == 2
    table[:1, 0, :1] = 9
    snapshot.restore_where(torch.tensor(False))
    assert bool((table[:, 0] == 9).all())
    snapshot.restore_where(torch.tensor(True))
    assert bool((table == 3).all())


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_as_a_buffer_is_refused(layout: torch.layout) -> None:
    net = nn.Linear(4, 2)
    net.register_buffer("spans", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout))
    with pytest.raises(steppe.InputError, match="the buffer spans is a nested tensor.*pad it"):
        steppe.Plain().bind(net, torch.optim.SGD(net.parameters(), 0.1))


@pytest.mark.parametrize("stepped", [False, True])
def test_what_an_optimizer_keeps_is_as_it_was_with_lists_and_without_new_entries(stepped):
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    optimizer.param_groups[0]["history"] = [1]
    weight.grad = torch.ones(2)
    if stepped:
        optimizer.step()
        optimizer.state[weight]["trials"] = [1]
    before = copy.deepcopy((optimizer.state_dict(), weight))
    snapshot = of_training([weight], [optimizer.state], optimizer.param_groups, SnapshotPool())
    optimizer.param_groups[0]["history"].append(2)
    optimizer.param_groups[0]["added"] = 3
    optimizer.step()
    optimizer.state[weight].setdefault("trials", []).append(2)
    snapshot.restore()
    assert torch.equal(weight, before[1])
    after = optimizer.state_dict()
    assert after["param_groups"] == before[0]["param_groups"]
    assert after["state"].keys() == before[0]["state"].keys()
    if stepped:
        assert after["state"][0]["trials"] == [1]
        assert torch.equal(after["state"][0]["momentum_buffer"], before[0]["state"][0]["momentum_buffer"])


def test_weights_are_restored_if_the_change_itself_fails():
    weight, generator = torch.ones(2), torch.Generator().manual_seed(0)
    state = generator.get_state()

    def change() -> None:
        weight.add_(1)
        torch.rand(1, generator=generator)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), Elsewhere([weight], change, generators=[generator]):
        pass
    assert torch.equal(weight, torch.ones(2)) and torch.equal(generator.get_state(), state)
