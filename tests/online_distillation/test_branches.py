"""Methods of branches: how any network is split, what the branches share, what each method adds to them."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from support.cohorts import Staged, Tokens, images, maker, views
from support.foreign import importable
from support.small import sgd, small_net
from torch import Tensor, nn

import steppe
from steppe.models.multi.branched import BranchedNetwork, build_branched
from steppe.models.multi.split_point import default_split

METHODS = [steppe.ONE(ramp=0), steppe.OKDDip(ramp=0, factor=2), steppe.FFL(ramp=0), steppe.PCL(ramp=0)]


def sequence() -> nn.Sequential:
    """The small network of `small`, with whatever weights are drawn next."""
    with torch.random.fork_rng():
        net = small_net()
    for layer in net:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return net


KINDS = {"stages": (Staged, "layer3"), "tokens": (Tokens, "blocks.3"), "sequence": (sequence, "4")}


def split(kind: str, count: int = 3, dtype: torch.dtype = torch.float64) -> tuple[BranchedNetwork, nn.Module]:
    """Return branches, and the first network as it was before it was split."""
    make, split_at = KINDS[kind]
    whole = maker(make, dtype=dtype)()
    return build_branched(maker(make, dtype=dtype), count, split_at), whole


def inputs(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(6, 2, 6, 6, dtype=dtype) if kind == "sequence" else images(count=6, dtype=dtype).x


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_computes_what_its_whole_network_would(kind):
    body, first = split(kind)
    x = inputs(kind)
    for net in (body, first):
        net.eval()
    logits = body(x).logits
    assert torch.equal(logits[0], first(x))
    for i, z in enumerate(logits):
        plain = body.plain(i, maker(KINDS[kind][0], 40, torch.float64)).eval()
        assert torch.equal(plain(x), z)
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_trains_as_its_whole_network_would(kind):
    """Gradients of one branch's loss alone: those of the trunk and of that branch, none of the others."""
    body, first = split(kind)
    x, y = inputs(kind), torch.arange(6) % 5
    torch.manual_seed(0)
    F.cross_entropy(body(x).logits[0], y).backward()
    torch.manual_seed(0)
    F.cross_entropy(first(x), y).backward()
    theirs = {k: p.grad for k, p in first.named_parameters()}
    ours = {k: p.grad for k, p in (*body.trunk.named_parameters(), *body.branches[0].named_parameters())}
    assert ours.keys() == theirs.keys()
    if kind != "sequence":  # whose dropout draws other masks from there on
        for key, g in theirs.items():
            assert torch.allclose(ours[key], g, rtol=1e-9, atol=1e-12), key
    trunk = {id(p) for p in body.trunk.parameters()}
    assert all(p.grad is None for b in body.branches[1:] for p in b.parameters() if id(p) not in trunk)


@pytest.mark.parametrize("kind", KINDS)
def test_branches_share_the_trunk_and_nothing_else(kind):
    body, first = split(kind)
    trunk = {id(p) for p in body.trunk.parameters()}
    own = [{id(p) for p in b.parameters()} - trunk for b in body.branches]
    assert all(own)
    assert not own[0] & own[1] and not own[0] & own[2] and not own[1] & own[2]
    whole = sum(p.numel() for p in first.parameters())
    tail = sum(p.numel() for p in body.parameters() if id(p) in own[0])
    assert sum(p.numel() for p in body.parameters()) == whole + 2 * tail
    shared = {id(p) for b in body.branches for p in b.parameters()} & trunk
    # class token and positions belong to the module that contains the split point
    assert shared == ({id(body.trunk.token), id(body.trunk.positions)} if kind == "tokens" else set())


@pytest.mark.parametrize("count", [1, 2])
def test_the_trunk_runs_once_per_view(count):
    body, _ = split("stages", 2, torch.float32)
    calls = []
    body.trunk.layer1.register_forward_hook(lambda module, args, output: calls.append(output))
    x = images().x
    body(x) if count == 1 else body(views=[x, 2 * x])
    assert len(calls) == count
    assert int(body.trunk.bn1.num_batches_tracked) == count
    assert [int(b.layer3[1].num_batches_tracked) for b in body.branches] == [1, 1]


def test_with_views_each_branch_gets_its_own():
    body, _ = split("stages", 2)
    body.eval()
    a, b = images(1, dtype=torch.float64).x, images(2, dtype=torch.float64).x
    both, first, second = body(views=[a, b]), body(a), body(b)
    assert torch.equal(both.logits[0], first.logits[0])
    assert torch.equal(both.logits[1], second.logits[1])
    assert torch.equal(both.entered, first.entered)


def test_features_and_maps_are_those_before_the_classifier():
    body, first = split("stages", 2)
    inner = {}
    first.fc.register_forward_pre_hook(lambda module, args: inner.update(h=args[0]))
    first.layer3.register_forward_hook(lambda module, args, output: inner.update(f=output))
    first.layer2.register_forward_hook(lambda module, args, output: inner.update(t=output))
    x = images(dtype=torch.float64).x
    outputs = body(x)
    first(x)
    assert torch.allclose(outputs.features[0], inner["h"])
    assert torch.allclose(outputs.maps[0], inner["f"])
    assert torch.allclose(outputs.entered, 0.5 * inner["t"].mean((2, 3)))
    tokens, _ = split("tokens", 2)
    outputs = tokens(x)
    assert outputs.features[0].shape == (12, 8)
    assert torch.equal(outputs.maps[1][:, :, 0, 0], outputs.features[1])
    assert outputs.entered.shape == (12, 8)


def test_the_usual_families_are_split_before_their_last_quarter():
    assert default_split(Staged()) == "layer3"
    assert default_split(Tokens()) == "blocks.3"
    assert default_split(small_net()) == "4"
    with pytest.raises(steppe.InputError, match="split_at is not given, and Odd has no family"):
        default_split(Odd())


class Reads(nn.Module):
    """Its forward iterates over a list before the split point, reads attributes, and calls methods of modules."""

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Conv2d(2, 8, 4, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.grid = 2

        def tokens(self, x: Tensor) -> Tensor:
            return self.project(x).flatten(2).transpose(1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.embed = Reads.Embedding()
        self.steps = nn.ModuleList([nn.Linear(8, 8), nn.Identity(), nn.Sequential(nn.Linear(8, 8), nn.ReLU())])
        self.named = nn.ModuleDict({"a": nn.Linear(8, 8)})
        self.middle = nn.LayerNorm(8)
        self.last = Reads.Two()
        self.head = nn.Linear(8, 5)
        self.act = nn.GELU()  # used before the split point

    class Two(nn.Module):
        """Called with a list, which it changes, and a token."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, maps: list[Tensor], token: Tensor) -> Tensor:
            maps[0] = self.a(maps[0])
            maps.append(self.b(maps[1]))
            return maps[0] + maps[2] + token

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed.tokens(x.to(self.embed.project.weight.dtype)) * self.embed.grid
        for step in self.steps:
            x = x if isinstance(step, nn.Identity) else step.forward(x)
        if "a" in self.named and len(self.steps) == 3 and self.named:
            x = self.act(self.named["a"](x))
        maps = [self.middle(x), self.steps[1](x)]
        z = self.last(maps, self.embed.token.expand(len(x), -1, -1))
        out: Tensor = self.head(z.mean(1))
        return out


@pytest.mark.parametrize("split_at", ["named", "named.a", "middle", "last", "head"])
def test_branches_of_the_network_s_weights_give_its_logits_and_its_gradient(split_at):
    """Whatever its forward does with the modules before the split point."""
    net = maker(Reads, dtype=torch.float64)()
    body = BranchedNetwork([copy.deepcopy(net), copy.deepcopy(net)], split_at)
    x, y = images(dtype=torch.float64).x, images().y
    for _ in range(2):
        assert all(torch.equal(z, net(x)) for z in body(x).logits)
    F.cross_entropy(net(x), y).backward()
    F.cross_entropy(copy.deepcopy(body)(x).logits[0], y).backward()
    F.cross_entropy(body(x).logits[1], y).backward()
    for name, p in (*body.trunk.named_parameters(), *body.branches[1].named_parameters()):
        assert torch.allclose(p.grad, net.get_parameter(name).grad, rtol=1e-12), name


class InPlace(nn.Module):
    """Adds to an activation of the trunk in place; calls the parts of ``unused``, not the list itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 8)
        self.unused = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
        self.late = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 5)
        self.early = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x += 1
        for part in self.unused:
            x = part(x)
        z: Tensor = self.fc(self.late(x))
        return z


class Odd(nn.Module):
    """Registered in another order than used: ``late`` comes first and is used last."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(8, 8)
        self.early = nn.Linear(128, 8)
        self.middle = nn.Linear(8, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.late(self.middle(self.early(x.flatten(1))).relu()))
        return z


class Late(nn.Sequential):
    """Its first layer is registered last, except for the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 8)
        self.fc = nn.Linear(4, 4)
        self.first = nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.fc(self.conv(self.first(x)).flatten(1)))
        return z


def tied() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 5))
    net[2].weight = net[1].weight
    return net


@pytest.mark.parametrize(
    ("kind", "split_at", "message"),
    [
        (Staged, "layer4", "unknown module for split_at 'layer4'; did you mean 'layer3'"),
        (Staged, "conv1", "before which there are no weights"),
        (Odd, "middle", "late is registered before split_at and used after it"),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 5, 6), nn.Flatten()), "1", "no dense layer"),
        (tied, "2", "weights before it are used after it too"),
        (InPlace, "late", "changes an activation before it in place; name another module, or train whole"),
        (InPlace, "unused", r"split_at is 'unused', which is not called itself; name 'unused.0'"),
        (InPlace, "early", "split_at is 'early', which the network does not use"),
        (Late, "fc", "fc', and first is called before it though registered after it; name another module, or"),
    ],
)
def test_what_cannot_be_split_is_refused(kind, split_at, message):
    with pytest.raises(steppe.InputError, match=message):
        build_branched(maker(kind), 2, split_at)(images().x)


def test_a_copy_of_a_split_network_is_independent():
    body, _ = split("stages", 2)
    other = copy.deepcopy(body)
    x = images(dtype=torch.float64).x
    with torch.no_grad():
        for p in body.parameters():
            p.zero_()
    assert not torch.equal(body(x).logits[0], other(x).logits[0])
    assert {id(p) for p in body.parameters()}.isdisjoint(id(p) for p in other.parameters())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_every_method_trains_a_transformer(method):
    net = method.build(maker(Tokens))
    step = method.bind(net, torch.optim.Adam(net.parameters(), 1e-2))
    losses = [float(step(images()).loss) for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]
    outputs = method.outputs(net.eval(), step.state, images().x)
    assert torch.equal(outputs["deployed"], step.predict(images().x))
    assert all(z.shape == (12, 5) for z in outputs.values())


def test_the_mean_s_decay_rises_from_0_to_its_limit_and_its_first_branch_is_deployed():
    method = steppe.PCL(branches=2, ramp=0, decay=0.9)
    net = method.build(maker(Staged))
    step = method.bind(net, sgd(net))
    for k in range(12):
        before = step.state.get_buffer("0").clone()
        step(images(k))
        now, weight = step.state.get_buffer("0"), next(net.parameters()).detach()
        d = min(0.9, 1 - 1 / (k + 1))
        assert torch.allclose(now, d * before + (1 - d) * weight, atol=1e-6)
    with torch.no_grad():
        outputs = method.outputs(net.eval(), step.state, images().x)
    assert torch.equal(outputs["deployed"], outputs["mean's branch 1"])
    assert not torch.equal(outputs["mean's branch 1"], outputs["branch 1"])


@pytest.mark.parametrize("rule", [None, steppe.SAM()], ids=repr)
def test_pcl_s_mean_runs_in_training_mode_and_deploys_running_statistics_of_its_own(rule):
    """As both codes do; SAM's perturbed pass and a skipped step move no statistics."""
    method = steppe.PCL(branches=2, ramp=0, decay=0.9)
    method = method if rule is None else steppe.On(rule, method)
    net = method.build(maker(Staged))
    step, mean = method.bind(net, sgd(net)), copy.deepcopy(net)
    for k in range(8):
        if k == 5:
            assert step(steppe.Batch(images(k).x * float("nan"), images(k).y)).skipped
        mean(images(k).x)
        step(images(k))
        d = min(0.9, 1 - 1 / (k + 1))
        with torch.no_grad():
            for v, w in zip(mean.parameters(), net.parameters(), strict=True):
                v.copy_(d * v + (1 - d) * w)
    with step.deployed_weights():
        for name, b in mean.named_buffers():
            assert torch.allclose(net.get_buffer(name), b, atol=1e-5), name
        deployed = net(images().x).logits[0]
    assert torch.equal(step.predict(images().x), deployed)


def test_pcl_gives_each_branch_its_view():
    method = steppe.PCL(branches=2, ramp=0)
    net = method.build(maker(Staged))
    step = method.bind(net, sgd(net))
    step(views(2, 1))  # the first step also measures the relative cost
    inputs = []
    net.body.trunk.conv1.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    batch = views(2)
    step(batch)
    assert [int(torch.equal(x, batch.x)) for x in inputs] == [1, 0, 1, 0]  # the mean, then the weights
    assert torch.equal(inputs[1], batch.extra["view 2"])


@pytest.mark.slow
@pytest.mark.parametrize("method", [steppe.DML(), steppe.OKDPH(same_start=False), steppe.PCL(ramp=0)], ids=repr)
def test_a_language_model_with_named_inputs_is_split_and_trained(method):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    def make() -> nn.Module:
        sizes = {"vocab_size": 50, "dim": 16, "hidden_dim": 32, "n_layers": 4, "n_heads": 2, "num_labels": 3}
        return DistilBertForSequenceClassification(DistilBertConfig(max_position_embeddings=16, **sizes))

    torch.manual_seed(0)
    if hasattr(method, "split_at"):
        method = dataclasses.replace(method, split_at="distilbert.transformer.layer.2")
    net = method.build(make)
    step = method.bind(net, torch.optim.AdamW(net.parameters(), 1e-2))
    ids = torch.randint(0, 50, (8, 10))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 3}
    losses = [float(F.cross_entropy(step(batch).logits, batch["labels"])) for _ in range(12)]
    assert losses[-1] < losses[0]
    predicted = step.predict({k: v for k, v in batch.items() if k != "labels"})
    assert predicted.shape == (8, 3)


@pytest.mark.vision
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/hrnet_w18_small", 64),
        ("timm/eva02_tiny_patch14_224", 224),
        ("timm/pit_xs_224", 224),
        ("timm/tnt_s_legacy_patch16_224", 224),
        ("timm/mobilenetv3_small_050", 64),
        ("timm/test_byobnet", 64),
        ("torchvision/densenet121", 32),
        ("torchvision/shufflenet_v2_x0_5", 64),
        ("torchvision/googlenet", 64),
    ],
)
def test_branches_of_any_network_s_weights_give_its_logits(name, size):
    importable(name.partition("/")[0])
    torch.manual_seed(0)
    net = steppe.models.build(name, classes=5, channels=3, size=size).eval()
    body = BranchedNetwork([copy.deepcopy(net), copy.deepcopy(net)]).eval()
    with torch.no_grad():
        x = torch.randn(2, 3, size, size)
        assert all(torch.equal(z, net(x)) for z in body(x).logits)


@pytest.mark.vision
@pytest.mark.parametrize("kind", [steppe.ONE, steppe.PCL])
@pytest.mark.parametrize(
    ("name", "size", "split_at"),
    [
        ("timm/vit_tiny_patch16_224", 224, "blocks.6"),
        ("torchvision/densenet121", 32, "features.denseblock4"),
        ("timm/convnext_atto", 32, "stages.3"),
    ],
)
def test_networks_of_other_packages_are_split_at_a_path(name, size, split_at, kind):
    """A transformer, a network of dense blocks, and one with channels-last blocks."""
    importable(name.partition("/")[0])

    def make() -> nn.Module:
        return steppe.models.build(name, classes=5, channels=3, size=size)

    torch.manual_seed(0)
    method = kind(branches=2, ramp=0, split_at=split_at)
    net = method.build(make)
    assert not {id(p) for p in net.body.branches[0].get_submodule(split_at).parameters()} & {
        id(p) for p in net.body.branches[1].get_submodule(split_at).parameters()
    }
    step = method.bind(net, torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9))
    x, y = torch.randn(6, 3, size, size), torch.arange(6) % 5
    losses = [float(step(x, y).loss) for _ in range(4)]
    assert losses[-1] < losses[0]
    net.eval()
    with torch.no_grad():
        alone = net.body.plain(1, make).eval()(x)
        assert torch.allclose(alone, net(x).logits[1], atol=1e-5)


def test_whole_networks_of_okddip_may_differ_in_all_but_their_features():
    method = steppe.OKDDip(branches=3, form="network", ramp=0, factor=2)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 5))
    kinds = iter([Staged(), mlp, Staged()])
    net = method.build(lambda: next(kinds))
    step = method.bind(net, torch.optim.Adam(net.parameters(), 1e-2))
    losses = [float(step(images()).loss) for _ in range(10)]
    assert losses[-1] < losses[0]
    with pytest.raises(steppe.InputError, match="are not those of a Sequential"):
        method.deployed_model(net, step.state, lambda: mlp)
    kinds = iter([Staged(), nn.Sequential(nn.Flatten(), nn.Linear(128, 5)), Staged()])
    with pytest.raises(steppe.InputError, match="the networks' classifiers take 8, 128, 8 features"):
        method.build(lambda: next(kinds))


def test_one_refuses_a_split_point_that_is_not_called_with_one_row_per_sample():
    class Folded(Staged):
        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = super().forward(torch.cat([x, x])).unflatten(0, (2, -1)).mean(0)
            return z

    net = steppe.ONE(branches=2).build(Folded)
    with pytest.raises(
        steppe.InputError, match=r"is \(24, 6\), not \(12, 6\); name another module, or use okddip"
    ):
        net(images().x)
