"""Models of every form: compiled, checkpointed, channels_last, with named inputs, frozen parameters, adapters."""

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from support.small import adam, bound, close, sgd, small_batch, small_net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import steppe


def steps_of(method: steppe.Method, net: nn.Module, inner: nn.Module | None = None, count: int = 3, **options):
    torch.manual_seed(3)
    step = method.bind(net, sgd(inner or net), **options)
    return [step(*small_batch(seed=k)) for k in range(count)]


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_compiled_loss_works():
    torch._dynamo.reset()
    loss = torch.compile(lambda z, y: nn.functional.cross_entropy(z, y), backend="eager")
    a, b = small_net(), small_net()
    steps_of(steppe.SAM(), a)
    steps_of(steppe.SAM(), b, loss=loss)
    assert close(a, b, atol=1e-7)


class Checkpointed(nn.Module):
    """Its middle is computed again in the backward pass instead of kept."""

    def __init__(self, net: nn.Sequential):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.net[:4], x, use_reentrant=False)
        z: Tensor = self.net[4:](x)
        return z


@pytest.mark.parametrize("name", ["sam", "rwp", "sadt-v1"])
def test_gradient_checkpointing_gives_the_same_weights_with_dropout(name):
    """The part that is computed twice runs at the perturbed weights both times, with the same masks."""

    def net() -> nn.Sequential:
        torch.manual_seed(0)
        head = [nn.Flatten(), nn.Linear(72, 5)]
        return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Dropout(0.4), nn.Conv2d(4, 2, 1), *head)

    plain, recomputed = net(), net()
    steps_of(steppe.make(name), plain)
    steps_of(steppe.make(name), Checkpointed(recomputed))
    assert close(plain, recomputed, atol=1e-6)


@pytest.mark.parametrize("name", ["sam", "gc", "lpf-sgd"])
def test_channels_last_gives_the_same_weights(name):
    a, b = small_net(dropout=0.0), small_net(dropout=0.0).to(memory_format=torch.channels_last)
    steps_of(steppe.make(name), a)
    steps_of(steppe.make(name), b)
    assert b[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert close(a, b, atol=1e-5)


def test_parameters_unfrozen_or_added_later_are_trained_and_perturbed():
    net = small_net(dropout=0.0)
    net[0].requires_grad_(False)
    optimizer = sgd(net[:9])
    with pytest.warns(UserWarning, match="parameters of the model are in no group of the optimizer"):
        step = steppe.SAM(rho=0.5).bind(net, optimizer)
    step(*small_batch())
    first = net[0].weight.detach().clone()
    head = net[9].weight.detach().clone()
    net[0].requires_grad_(True)
    optimizer.add_param_group({"params": net[9].parameters()})
    step(*small_batch())
    assert not torch.equal(first, net[0].weight)
    assert not torch.equal(head, net[9].weight)
    assert len(step.runtime.params) == len(list(net[:10].parameters()))
    frozen = net[4].weight.detach().clone()
    net[4].requires_grad_(False)
    step(*small_batch())
    assert torch.equal(frozen, net[4].weight)


class Output(NamedTuple):
    loss: Tensor | None
    logits: Tensor


@dataclass(slots=True)
class Slots:
    value: Tensor | None
    logits: Tensor

    @property
    def loss(self) -> Tensor | None:
        return self.value


class Named(nn.Module):
    """Takes named inputs and, given labels, returns its own loss, as Hugging Face models do."""

    def __init__(self, form: str = "object"):
        super().__init__()
        self.net, self.form = small_net(dropout=0.0), form

    def forward(self, pixels: Tensor, scale: Tensor, labels: Tensor | None = None):
        z = self.net(pixels * scale[:, None, None, None])
        loss = None if labels is None else nn.functional.cross_entropy(z, labels)
        if self.form == "tuple":
            return (loss, z)
        if self.form == "mapping":
            return {"loss": loss, "logits": z}
        if self.form == "losses":
            return {"a": 0.25 * loss, "b": 0.75 * loss}
        if self.form == "named tuple":
            return Output(loss, z)
        if self.form == "slots":
            return Slots(loss, z)
        return loss if self.form == "tensor" else SimpleNamespace(loss=loss, logits=z)


def named_batch(k: int) -> dict[str, Tensor]:
    x, y = small_batch(seed=k)
    return {"pixels": x, "scale": torch.ones(len(x)), "labels": y}


@pytest.mark.parametrize("form", ["object", "tuple", "mapping", "losses", "tensor", "named tuple", "slots"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_model_s_own_loss_on_named_inputs_is_the_loss_on_tensors(form, listed):
    ours, named = small_net(dropout=0.0), Named(form)
    torch.manual_seed(3)
    a = steppe.SAM().bind(ours, sgd(ours), microbatch=6)
    b = steppe.SAM().bind(named, sgd(named), loss="model", microbatch=None if listed else 6)
    for k in range(3):
        batch = named_batch(k)
        halves = [{n: t[i : i + 6] for n, t in batch.items()} for i in (0, 6)]
        out, own = a(*small_batch(seed=k)), b(halves if listed else batch)
        assert torch.allclose(out.loss, own.loss)
        assert own.logits.shape == ((0,) if form in ("losses", "tensor") else (12, 5))
    assert close(ours, named, atol=1e-6)


@pytest.mark.parametrize("name", ["esam", "sadt-v2", "lpf-sgd", "mesa", "rwp"])
def test_methods_take_named_inputs_with_the_user_s_loss(name):
    _, step = bound(steppe.make(name), Named())
    out = step(named_batch(0))
    assert not out.skipped
    assert out.logits.shape == (12, 5)
    assert step.predict({k: v for k, v in named_batch(0).items() if k != "labels"}).shape == (12, 5)


@pytest.mark.parametrize(
    ("batch", "loss", "message"),
    [
        ({"pixels": torch.zeros(2, 2, 6, 6), "scale": torch.ones(2)}, None, "no targets"),
        ({"pixels": torch.zeros(2, 2, 6, 6), "scale": torch.ones(2)}, "model", "model that returns its loss"),
        ({"labels": torch.zeros(2)}, None, "no inputs"),
    ],
)
def test_incomplete_named_batches_are_refused(batch, loss, message):
    _, step = bound(steppe.Plain(), Named(), **({"loss": loss} if loss else {}))
    with pytest.raises(steppe.InputError, match=message):
        step(batch)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.a(image) + self.b(text)


def test_calls_of_a_step_that_cannot_work_are_one_line():
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    net = Two()
    step = steppe.SAM().bind(net, sgd(net))
    with pytest.raises(steppe.InputError, match=r"on one tuple .*step\(\{'image': ..., 'text': ...\}, y\)"):
        step((x, x), y)
    inputs = {"image": x, "text": x}
    for off in (torch.no_grad, torch.inference_mode):
        with off(), pytest.raises(steppe.InputError, match="gradients are off; call the step outside of torch.no"):
            step(inputs, y)
    averaged = steppe.EMA().bind(net, sgd(net))
    averaged(inputs, y)
    with averaged.deployed_weights(), pytest.raises(steppe.InputError, match="outside of .*deployed_weights"):
        averaged(inputs, y)
    assert not step(inputs, y).skipped


def test_weights_without_values_or_of_another_type_than_in_bind_are_refused():
    empty = nn.Linear(4, 3, device="meta")
    with pytest.raises(steppe.InputError, match="the model is on the meta device"):
        steppe.SAM().bind(empty, sgd(empty))
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    net = nn.Linear(4, 3)
    step = steppe.parse("looksam+ema").bind(net, sgd(net))
    step(x, y)
    net.double()
    with pytest.raises(steppe.InputError, match="float64 and were torch.float32 in bind; bind the method again"):
        step(x.double(), y)
    again = steppe.parse("looksam+ema").bind(net, sgd(net))
    assert again(x.double(), y).loss.dtype == torch.float64


def test_a_part_of_another_type_may_be_released_later():
    net = nn.Sequential(nn.Linear(4, 4).bfloat16().requires_grad_(False), ToFloat32(), nn.Linear(4, 3))
    step = steppe.parse("looksam:k=2").bind(net, sgd(net))
    x, y = torch.randn(6, 4, dtype=torch.bfloat16), torch.arange(6) % 3
    step(x, y)
    net.requires_grad_(True)
    for _ in range(3):
        assert not step(x, y).skipped


class ToFloat32(nn.Module):
    def forward(self, x):
        return x.float()


def test_a_state_of_another_device_or_without_a_generator_loads_nothing():
    net = small_net()
    step, other = (steppe.LookSAM().bind(net, sgd(net)) for _ in range(2))
    step(*small_batch())
    before = copy.deepcopy(other.state_dict())
    content = step.state_dict()
    for generators, message in (
        ({**content["generators"], "noise": torch.zeros(16, dtype=torch.uint8)}, "'noise' is not of a cpu"),
        ({"masks": content["generators"]["masks"]}, "no generator 'noise'"),
    ):
        with pytest.raises(steppe.InputError, match=message):
            other.load_state_dict(content | {"generators": generators})
    after = other.state_dict()
    assert all(torch.equal(after["state"][k], v) for k, v in before["state"].items())
    assert after["passes"] == before["passes"]
    other.load_state_dict(content)
    assert other.passes.steps == 1


def test_models_losses_and_optimizers_that_do_not_fit_are_refused():
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor):
            return {"scores": self.net(x)}

    net = Scores()
    with pytest.raises(steppe.InputError, match=r"returned dict without logits.*loss='model'"):
        steppe.Plain().bind(net, sgd(net))(*small_batch())
    with pytest.raises(steppe.InputError, match="loss is 'mse'; give a function, or 'model'"):
        steppe.Plain().bind(net, sgd(net), loss="mse")
    net.requires_grad_(False)
    with pytest.raises(steppe.InputError, match="no trainable parameter"):
        steppe.Plain().bind(net, sgd(net))


class Prodigal(torch.optim.SGD):
    """An optimizer that keeps plain numbers in its group and its state, and puts new tensors in place of old."""

    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state["momentum_buffer"] = state["momentum_buffer"].clone()
        self.param_groups[0]["count"] = self.param_groups[0].get("count", 0) + 1
        for p in self.param_groups[0]["params"]:
            self.state[p]["steps"] = self.state[p].get("steps", 0) + 1


@pytest.mark.parametrize("good", [0, 2], ids=["at the first step", "later"])
def test_undoing_a_step_restores_weights_and_whatever_an_optimizer_keeps(good):
    calls = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return nn.functional.cross_entropy(z, y) * (float("nan") if len(calls) == 2 * good + 2 else 1.0)

    net = small_net()
    optimizer = Prodigal(net.parameters(), torch.tensor(0.1), momentum=0.9)
    lr = optimizer.param_groups[0]["lr"]
    step = steppe.TwoStep().bind(net, optimizer, loss=loss)
    for _ in range(good):
        assert not step(*small_batch()).skipped
    before = copy.deepcopy(optimizer.state_dict())
    weights = [p.detach().clone() for p in net.parameters()]
    assert step(*small_batch()).skipped
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"] and optimizer.param_groups[0]["lr"] is lr
    assert after["param_groups"][0].get("count", 0) == 2 * good
    assert after["state"].keys() == before["state"].keys()
    for index, state in before["state"].items():
        assert state["steps"] == after["state"][index]["steps"]
        assert torch.equal(state["momentum_buffer"], after["state"][index]["momentum_buffer"])
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), weights, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam", "lpf-sgd", "sadt-v3"])
def test_an_adapted_model_trains_its_adapters_only(name):
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 5))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["1", "3"], lora_dropout=0.1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    step = steppe.make(name).bind(model, adam(model))
    for k in range(2):
        assert not step(*small_batch(seed=k)).skipped
    changed = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert changed
    assert all("lora_" in k for k in changed)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "own_loss"), [("sam", True), ("sadt-v1", False)])
def test_a_hugging_face_model_trains_on_its_own_batches(name, own_loss):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=50, num_labels=3, **sizes)
    model = transformers.BertForSequenceClassification(config)
    g = torch.Generator().manual_seed(1)

    def batch(rows: int, length: int) -> dict[str, Tensor]:
        ids = torch.randint(0, 50, (rows, length), generator=g)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 3}

    options = {"loss": "model"} if own_loss else {}
    step = steppe.make(name).bind(model, adam(model, 1e-2), **options)
    losses = []
    for _ in range(40):
        out = step([batch(6, 5), batch(6, 9)])  # padded to different lengths
        assert out.logits.shape == (12, 3)
        losses.append(float(out.loss))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
