"""State of methods: running averages, past outputs and vectors."""

import copy

import pytest
import torch
from support.many import saf_store, together
from support.small import bound, indexed, same, sgd, small_batch, small_net, trained
from torch import Tensor, nn

import steppe
from steppe.core.numerics.losses import kl_per_sample
from steppe.core.numerics.outputs import Outputs
from steppe.core.state.logit_bank import LogitBank, size_in_bytes
from steppe.core.state.param_state import ParamState


def measured(average: nn.Module, weights: list[Tensor], x: Tensor) -> list[Tensor]:
    """Give a reference its mean weights, and move its own running statistics by a training pass."""
    with torch.no_grad():
        for p, w in zip(average.parameters(), weights, strict=True):
            p.copy_(w)
        average.train()(x)
    return weights


@pytest.mark.parametrize("method", [steppe.EMA(decay=0.5), steppe.MESA(decay=0.5)], ids=repr)
def test_ema_is_the_mean_that_the_formula_says_with_running_statistics_of_its_own(method):
    net, step = bound(method, small_net(dropout=0.0))
    reference = copy.deepcopy(net)
    mean = [p.detach().clone() for p in net.parameters()]

    def moved(d: float) -> list[Tensor]:
        return [d * m + (1 - d) * p.detach() for m, p in zip(mean, net.parameters(), strict=True)]

    for t in range(6):
        d = min(0.5, (1 + t) / (10 + t))
        measured(reference, moved(d), indexed(t).x)
        step(indexed(t))
        mean = moved(d)
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(mean), reference.parameters())
    average = averaged(step, net)
    for (name, a), b in zip(average.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    assert not torch.allclose(average[1].running_var, net[1].running_var, atol=1e-4)
    assert step.passes.forward == (12 if isinstance(method, steppe.EMA) else 18)


@pytest.mark.parametrize(
    ("start", "every", "after"), [(6, 3, [9, 12, 15]), (0.4, 5, [10, 15]), (0, 1, range(1, 16))]
)
def test_swa_averages_at_the_end_of_each_period_and_has_running_statistics_of_its_own(start, every, after):
    """Izmailov et al., algorithm 1, and `torch.optim.swa_utils`; the statistics are measured at the mean."""
    net, step = bound(steppe.SWA(start=start, every=every), small_net(dropout=0.0), steps=15)
    theirs, reference = torch.optim.swa_utils.AveragedModel(net), None
    total: list[Tensor] = []
    for t in range(1, 16):
        if reference is not None:
            count = int(theirs.n_averaged)
            pairs = zip(total, net.parameters(), strict=True)
            measured(reference, [(s + p.detach()) / (count + 1) for s, p in pairs], indexed(t).x)
        step(indexed(t))
        if reference is None and t < after[0]:
            own = copy.deepcopy(net)
            with step.deployed_weights():
                assert same(net, own)
        if t in after:
            theirs.update_parameters(net)
        if t in after:
            reference = copy.deepcopy(net) if reference is None else reference
            total = [p.detach() * theirs.n_averaged for p in theirs.module.parameters()]
    average = averaged(step, net)
    for a, b in zip(average.parameters(), theirs.module.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for a, b in zip(average.buffers(), reference.buffers(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_mesa_s_teacher_has_neither_dropout_nor_a_gradient_and_serves_both_passes_of_sam():
    net, step = bound(steppe.MESA(decay=0.9), small_net(dropout=0.5))
    for t in range(3):
        step(indexed(t))
    modes = []
    step.state.measure = lambda *_: None  # the pass for the mean's own statistics
    net[-1].register_forward_hook(lambda module, x, y: modes.append((module.training, y.requires_grad)))
    step(indexed(3))
    assert modes == [(False, False), (True, True)]
    assert all(module.training for module in net.modules())
    assert not list(step.state.parameters())
    _, step = bound(steppe.On(steppe.SAM(), steppe.MESA()), small_net(dropout=0.0))
    step(indexed(0))
    assert step.passes.per_step() == (
        5,
        2,
        1,
    )  # the teacher has a pass for each of the two, and one for its statistics


def test_autocast_does_not_keep_the_teacher_s_weights_for_the_student():
    """It caches what it casts; the student's pass must not read the cast of the mean's weights."""
    net = small_net(dropout=0.0)
    step = steppe.MESA(decay=0.9).bind(net, sgd(net, lr=0.5), precision="bf16")
    for t in range(3):
        step(indexed(t))
    x, _ = small_batch(seed=3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = copy.deepcopy(net)(x)
    assert torch.equal(step(indexed(3)).logits, expected)


def test_an_average_swapped_in_leaves_the_network_as_it_was_also_in_inference_mode():
    net, step = bound(steppe.EMA(decay=0.5))
    step(indexed(0))
    before, places = copy.deepcopy(net.state_dict()), [p.data_ptr() for p in net.parameters()]

    def interrupted() -> None:
        with step.state.swapped_in(net):
            assert not torch.equal(net[0].weight, before["0.weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [p.data_ptr() for p in net.parameters()] == places
    net, step = bound(steppe.EMA(decay=0.5), small_net(dropout=0.0))
    x, y = small_batch()
    for _ in range(2):  # the storage is used again outside, where an inference tensor could not be written to
        step(x, y)
        trained = [p.detach().clone() for p in net.parameters()]
        with torch.inference_mode(), step.deployed_weights():
            inside = net(x)
        assert torch.equal(inside, step.predict(x))
        assert all(torch.equal(a, b) for a, b in zip(trained, net.parameters(), strict=True))


def test_a_combination_deploys_the_mean_of_either_part():
    """Of two methods that predict, the base does, with the weights that the rule deploys."""
    x, _ = small_batch()
    for spec in ("sam+ema:decay=0.5", "ema:decay=0.5+sam", "ema:decay=0.5+mesa", "sam:start=0+ema:decay=0.5"):
        net, step = bound(steppe.parse(spec), small_net(dropout=0.0), steps=4)
        for t in range(2):
            step(indexed(t))
        with step.deployed_weights():
            expected = net(x)
        assert torch.equal(step.predict(x), expected)
        assert not torch.equal(net.eval()(x), expected)
        alone = step.method.deployed_model(net, step.state, small_net).eval()
        assert torch.equal(alone(x), expected)
        assert torch.equal(step.method.outputs(net, step.state, x)["deployed"], expected)


def averaged(step: steppe.Step, net: nn.Module) -> nn.Module:
    with step.state.swapped_in(net):
        return copy.deepcopy(net)


@pytest.mark.parametrize("form", ["full", "half", "top:3", "top:9"])
def test_past_outputs_are_read_by_sample_and_visit(form):
    store = LogitBank(past=2, form=form, T=2.0)
    g = torch.Generator().manual_seed(0)
    outputs: dict[int, list[Tensor]] = {i: [] for i in range(20)}
    for _ in range(5):
        for index in torch.randperm(20, generator=g).split(6):
            past, visits = store.read(index)
            for row, i in enumerate(index.tolist()):
                assert int(visits[row]) == len(outputs[i])
                if len(outputs[i]) >= 2:
                    if past.classes is None:
                        assert torch.allclose(past.values[row], outputs[i][-2], atol=0 if form == "full" else 2e-3)
                        continue
                    most = torch.softmax(outputs[i][-2] / 2, 0).topk(int(form[4:]))
                    assert torch.equal(past.classes[row], most.indices)
                    assert torch.allclose(past.values[row], most.values, atol=1e-3)
            logits = torch.randn(len(index), 9, generator=g)
            store.write(index, logits)
            for row, i in enumerate(index.tolist()):
                outputs[i].append(logits[row])


def test_the_divergence_from_some_classes_is_that_of_the_lumped_distributions():
    store, g = LogitBank(past=1, form="top:3", T=2.0), torch.Generator().manual_seed(2)
    before, now = torch.randn(6, 9, generator=g), torch.randn(6, 9, generator=g).requires_grad_()
    store.write(torch.arange(6), before)
    divergence = store.read(torch.arange(6))[0].divergence(now, Outputs("classes"))
    p, q = (torch.softmax(z.detach().double() / 2, 1) for z in (before, now))
    top = p.topk(3).indices
    p, q = (torch.cat([r.gather(1, top), 1 - r.gather(1, top).sum(1, keepdim=True)], 1) for r in (p, q))
    assert torch.allclose(divergence.double(), (p * (p / q).log()).sum(1), atol=1e-3)
    whole = kl_per_sample(before, now.detach(), 2.0)
    assert (divergence.detach() <= whole + 1e-3).all()
    # within the lump the gradient only scales: its ratios are those of the present probabilities
    gradient = torch.autograd.grad(divergence.sum(), now)[0]
    rest = torch.ones(6, 9, dtype=torch.bool).scatter(1, top, False)
    share = gradient / torch.softmax(now.detach() / 2, 1)
    assert all(torch.allclose(share[i][rest[i]], share[i][rest[i]][0].expand(6), atol=1e-4) for i in range(6))


@pytest.mark.parametrize("form", ["full", "half", "top:3"])
@pytest.mark.parametrize("allocated", [True, False])
def test_the_size_of_the_bank_is_what_was_announced(form, allocated):
    bank = LogitBank(past=3, form=form, T=5.0)
    if allocated:
        bank.allocate(100, 10)
    for index in torch.randperm(100).split(7) if allocated else [torch.arange(100)]:
        bank.write(index, torch.randn(len(index), 10))
        size = sum(b.numel() * b.element_size() for b in bank.buffers())
        assert size == size_in_bytes(100, 10, 3, form) == steppe.SAF(store=form).memory_bytes(100, 10)


@pytest.mark.parametrize("store", ["half", "top:2"])
def test_saf_resumes_bit_for_bit(store):
    method, nets = steppe.SAF(start=1, past=2, store=store), [small_net(), small_net(9)]
    straight = trained(method, steps=8)
    torch.manual_seed(7)
    optimizers = [sgd(net) for net in nets]
    first, second = (method.bind(net, optimizer) for net, optimizer in zip(nets, optimizers, strict=True))
    for k in range(4):
        first(indexed(k))
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for k in range(4, 8):
        second(indexed(k))
    assert same(straight, nets[1])


def test_saf_stores_the_outputs_of_each_sample_on_two_shuffled_processes():
    for answer in together(2, saf_store):
        assert answer["wrong"] == 0
        assert answer["seen"] == 30 * 4


def test_saf_skips_mixed_batches_on_request_and_refuses_batches_without_an_index():
    x, y = small_batch()
    mixed = steppe.Batch(x, nn.functional.one_hot(y, 5).float(), torch.arange(12))
    for choice, equal in (("skip", True), ("accept", False)):
        nets = [small_net(dropout=0.0), small_net(dropout=0.0)]
        for net, method in zip(nets, (steppe.SAF(start=0, past=1, mixed=choice), steppe.Plain()), strict=True):
            step = method.bind(net, sgd(net))
            for _ in range(4):
                step(mixed)
        assert torch.equal(nets[0][0].weight, nets[1][0].weight) == equal
    net = small_net()
    with pytest.raises(steppe.InputError, match="give batches with an index"):
        steppe.SAF().bind(net, sgd(net))(*small_batch())


@pytest.mark.parametrize(
    ("form", "loss", "y"),
    [
        ("numbers", nn.functional.mse_loss, torch.randn(12, 5)),
        ("labels", nn.functional.binary_cross_entropy_with_logits, torch.ones(12, 5)),
    ],
)
def test_saf_does_not_take_targets_of_other_forms_than_classes_for_mixed(form, loss, y):
    """Each batch of them has floating-point targets: to skip them would be plain training."""
    batch = steppe.Batch(small_batch()[0], y, torch.arange(12))
    nets = []
    for method in (steppe.SAF(past=1), steppe.Plain()):
        net, step = bound(method, small_net(dropout=0.0), loss=loss)
        for _ in range(4):
            step(batch)
        nets.append(net)
    assert not same(*nets)
    with pytest.raises(
        steppe.InputError, match=f"mixed is 'skip' and the outputs are {form}; give mixed='accept'"
    ):
        bound(steppe.SAF(mixed="skip"), loss=loss)[1](batch)


class Flattened(nn.Module):
    """The tokens' logits of all samples in one dimension: (B T, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.body(x).flatten(0, 1)
        return z


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("saf", "3 samples have 6 rows of outputs; return one row per sample"),
        ("sadt-v1", r"clean has 12 rows and the micro-batches have 6 samples; give one row per sample"),
    ],
)
def test_outputs_of_all_positions_in_a_row_are_refused_where_they_are_kept_by_sample(spec, message):
    net = Flattened()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z, y.flatten())

    step = steppe.parse(spec).bind(net, sgd(net), loss=loss)
    x = torch.randint(0, 7, (6, 2), generator=torch.Generator().manual_seed(0))
    parts = [steppe.Batch(x[i : i + 3], x[i : i + 3] % 4, torch.arange(i, i + 3)) for i in (0, 3)]
    with pytest.raises(steppe.InputError, match=message):
        step(parts)


def read(state: ParamState, params: list[nn.Parameter], net: nn.Module) -> list[Tensor]:
    """Read the tensors of these parameters, as if an optimizer had them."""
    trained, state.trained = state.trained, lambda: (params, net)
    rows = state.read()
    state.trained = trained
    return rows


class Mean(ParamState):
    mean = ParamState.Vector()


def test_param_state_reads_writes_and_approaches_in_its_own_storage():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    state, params = Mean(net), list(net.parameters())
    state.mean = [torch.full_like(p, float(i)) for i, p in enumerate(params)]
    assert [float(m.mean()) for m in state.mean] == [0, 1, 2, 3]
    some = [params[3], params[0]]
    assert [float(m.mean()) for m in read(state, some, net)] == [3, 0]
    state.trained = lambda: (some, net)
    state.mean = [None, torch.full_like(params[0], 7.0)]
    assert [float(m.mean()) for m in read(state, params, net)] == [7, 1, 2, 3]
    assert state.writes == 2
    net = nn.Linear(2, 1)
    state, params = Mean(net), list(net.parameters())
    state.mean = [torch.ones_like(p) for p in params]
    stored = state.mean
    state.approach([torch.full_like(params[0], 3.0), None], 0.25)
    assert [m.tolist() for m in stored] == [[[1.5, 1.5]], [0.75]]
    assert all(a is b for a, b in zip(stored, state.mean, strict=True))


class Margin(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.scale * z, y)


STATEFUL = ["looksam:k=2", "look-layersam:k=2", "friendly-sam", "arwp"]


@pytest.mark.parametrize("spec", STATEFUL)
@pytest.mark.parametrize("change", ["exchange", "append", "insert"])
@pytest.mark.parametrize("resumed", [False, True])
def test_new_parameters_start_at_zero_and_the_others_keep_what_is_stored(spec, change, resumed):
    def changed(net: nn.Sequential) -> nn.Sequential:
        head = nn.Linear(net[11].in_features, 7)
        layers = list(net)
        if change == "exchange":
            return nn.Sequential(*layers[:11], head)
        extra = nn.Linear(5, 5) if change == "append" else nn.BatchNorm2d(layers[0].out_channels)
        return (
            nn.Sequential(*layers, extra) if change == "append" else nn.Sequential(layers[0], extra, *layers[1:])
        )

    net = small_net(dropout=0.0)
    whole = nn.Sequential()
    whole.body = net
    optimizer = sgd(whole)
    step = steppe.parse(spec).bind(whole, optimizer)
    x, y = small_batch()
    step(x, y)
    stored = dict(zip(map(id, whole.parameters()), [b.clone() for b in step.state.buffers()], strict=True))
    if resumed:
        saved = copy.deepcopy(step.state_dict())
        step = steppe.parse(spec).bind(whole, optimizer)
        step.load_state_dict(saved)
    whole.body = changed(net)
    old = {id(p) for group in optimizer.param_groups for p in group["params"]}
    optimizer.param_groups[0]["params"] = [p for p in whole.parameters() if id(p) in old]
    optimizer.add_param_group({"params": [p for p in whole.parameters() if id(p) not in old], "lr": 0.1})
    if resumed and change == "insert":
        return  # names have moved, as they have for the model's own state
    rows = read(step.state, list(whole.parameters()), whole)
    for p, row in zip(whole.parameters(), rows, strict=True):
        assert torch.equal(row, stored.get(id(p), torch.zeros_like(p)))
    for _ in range(3):
        assert not step(x, y).skipped
    assert len(list(step.state.buffers())) == len(list(whole.parameters()))


@pytest.mark.parametrize("spec", STATEFUL)
def test_parameters_of_a_loss_are_stored_too_and_resumed(spec):
    ends = []
    for interrupted in (False, True):
        net, loss = small_net(dropout=0.0), Margin()
        optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], 0.1, momentum=0.9)
        step = steppe.parse(spec).bind(net, optimizer, loss=loss)
        for k in range(4):
            if k == 3 and interrupted:
                saved = copy.deepcopy(step.state_dict())
                step = steppe.parse(spec).bind(net, optimizer, loss=loss)
                step.load_state_dict(saved)
            step(*small_batch(seed=k))
        assert len(list(step.state.buffers())) == len(list(net.parameters())) + 1
        ends.append([p.detach().clone() for p in (*net.parameters(), *loss.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("index", [[-1, 0], [0, 10**12], [0.0, 1.0], [True, False], [[0], [1]]])
def test_an_index_that_is_no_position_is_refused(index):
    bank = LogitBank(past=1, form="full", T=1.0)
    with pytest.raises(steppe.InputError, match="the batch's index .*position in the data set"):
        bank.write(torch.tensor(index), torch.randn(2, 5))
    with pytest.raises(steppe.InputError, match="the batch's index .*position in the data set"):
        bank.read(torch.tensor(index))
    assert sum(b.numel() for b in bank.buffers()) < 10


def test_logits_beyond_half_precision_keep_their_probabilities():
    bank = LogitBank(past=1, form="half", T=5.0)
    logits = torch.tensor([[70000.0, 70003.0, -70000.0], [1.0, 2.0, 3.0], [-9e4, -9e4, -9e4 - 2]])
    bank.write(torch.arange(3), logits)
    past, _ = bank.read(torch.arange(3))
    assert torch.isfinite(past.values).all()
    assert torch.equal(past.values[1], logits[1])
    expected = torch.softmax(logits.double() / 5, 1)
    assert torch.allclose(torch.softmax(past.values.double() / 5, 1), expected, atol=1e-3)


def released(net: nn.Module, t: int) -> None:
    """Have BatchNorm frozen in the first four steps."""
    net[1].train(t >= 4)


class LeftOut(nn.BatchNorm2d):
    """Not called in the first pass, as a layer of stochastic depth."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return x if self.calls <= 2 else super().forward(x)


@pytest.mark.parametrize("kind", ["released", "left out"])
@pytest.mark.parametrize("method", [steppe.EMA(decay=0.5), steppe.SWA(start=0)], ids=repr)
def test_an_average_has_statistics_of_its_own_of_layers_that_change_them_late(method, kind):
    net = small_net(dropout=0.0)
    if kind == "left out":
        net.append(nn.Unflatten(1, (5, 1, 1))).append(LeftOut(5, momentum=1.0)).append(nn.Flatten())
    layer = net[-2] if kind == "left out" else net[1]
    layer.momentum = 1.0  # the last pass alone counts
    net, step = bound(method, net, steps=12)
    for t in range(12):
        if kind == "released":
            released(net, t)
        if t == 11:  # statistics are measured before the update, which then changes nothing
            step.runtime.optimizer.param_groups[0]["lr"] = 0.0
        step(indexed(t, 40))
    average = averaged(step, net)
    mean = average[-2] if kind == "left out" else average[1]
    with torch.no_grad():
        values = (average[:-2] if kind == "left out" else average[:1]).train()(indexed(11, 40).x)
        assert torch.allclose(mean.running_mean, values.mean((0, 2, 3)), atol=1e-5)
    assert not torch.allclose(mean.running_mean, layer.running_mean, atol=1e-4)


def test_an_average_takes_the_statistics_of_layers_that_are_frozen_late():
    net, step = bound(steppe.EMA(decay=0.9), small_net(dropout=0.0))
    for t in range(8):
        for layer in (net[1], net[5]):
            layer.train(t < 4)
        step(indexed(t))
    assert torch.equal(averaged(step, net)[1].running_var, net[1].running_var)
    assert step.passes.forward == 13  # the first one after freezing shows that nothing changes


@pytest.mark.parametrize("store", ["full", "half", "top:2", "top:6"])
def test_saf_starts_anew_when_a_head_of_another_width_is_exchanged(store):
    net = small_net()
    step = steppe.SAF(past=1, store=store).bind(net, optimizer := sgd(net))
    for t in range(3):
        step(indexed(t))
    net[-1] = nn.Linear(net[-1].in_features, 7)
    optimizer.param_groups[0]["params"] = list(net.parameters())
    for t in range(3):
        assert torch.isfinite(step(indexed(t)).loss)
    assert step.state.total == 7 and int(step.state.visits[0]) == 3
