"""`steppe.compare`, `steppe.tune` and `steppe.diagnose` on a network, data, loss and metric of the caller's."""

import json
import pickle
import random
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor, nn

import steppe
from steppe.config import Run, user_code
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError
from steppe.experiments.launchers.cluster import Task, launch_on_cluster
from steppe.training.export import export

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(60, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0]) + 3).astype(np.float32)
CLASSES = np.digitize(Y, np.quantile(Y, [0.3, 0.6]))
FAST = {"epochs": 2, "batch": 12, "lr": 0.05, "progress": False}


def make(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def three(seed):
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def worst(output, y):
    return (output.squeeze(1) - y).abs().max()


class Uphill(steppe.Method):
    """Plain training in the other direction."""

    def transform(self, grads, rt):
        return [None if g is None else -g for g in grads]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison")
    return steppe.compare(make, (X, Y), ["plain", "sam"], seeds=3, out=out, **FAST)


def test_the_difference_is_that_of_the_records_paired_by_seed(result):
    values = {}
    for file in result.folder.glob("runs/*/config.json"):
        config = json.loads(file.read_text())
        value = json.loads((file.parent / "result.json").read_text())["test"]["last"]["metric"]
        values.setdefault(config["method"], {})[config["seed"]] = value
    pairs = np.array([values["sam"][s] - values["plain"][s] for s in range(3)])
    d = result.difference("sam", "plain")
    low, high = stats.t.interval(0.95, 2, pairs.mean(), stats.sem(pairs))
    assert (d.mean, d.low, d.high, d.n) == (
        pytest.approx(pairs.mean()),
        pytest.approx(low),
        pytest.approx(high),
        3,
    )
    assert not d.higher and d.metric == "RMSE"
    assert d.better == (None if low <= 0 <= high else "plain" if low > 0 else "sam")
    assert result.values("sam") == values["sam"]
    text = str(result)
    assert "RMSE" in text and "lower is better" in text and "accuracy" not in text
    frame = result.to_frame()
    assert frame.loc["sam", "mean"] == pytest.approx(np.mean([*values["sam"].values()]))
    means = {m: np.mean([*result.values(m, part="val").values()]) for m in ("plain", "sam")}
    assert result.best() == min(means, key=means.get)


def test_the_reported_error_is_that_of_the_weights_on_the_test_samples(result, tmp_path):
    net = make(0)
    net.load_state_dict(load_file(result.export("sam", tmp_path, seed=1, which="last") / "model.safetensors"))
    test = steppe.data.sources.formats.user_data.user_source((X, Y)).test
    with torch.no_grad():
        error = float((net(test.x).squeeze(1) - test.y).square().mean().sqrt())
    assert result.values("sam")[1] == pytest.approx(error, rel=1e-5)


def test_called_again_it_trains_only_what_is_missing(result, caplog):
    results = {f: f.stat().st_mtime_ns for f in result.folder.glob("runs/*/result.json")}
    again = steppe.compare(make, (X, Y), ["plain", "sam"], seeds=4, out=result.folder, **FAST)
    assert len(again.values("sam")) == 4
    assert all(f.stat().st_mtime_ns == time for f, time in results.items())
    with pytest.raises(InputError, match="trained on other data than data has now"):
        steppe.compare(make, (X + 1, Y), ["plain", "sam"], seeds=3, out=result.folder, **FAST)


@pytest.mark.slow
def test_two_calls_are_the_same_bits_in_this_process_and_in_workers_without_importable_code():
    def call(**options):
        return steppe.compare(
            lambda: nn.Linear(4, 1), (X, Y), ["plain", Uphill], seeds=2, loss=lambda o, y: nn.functional.mse_loss(
                o.squeeze(1), y), metric=(lambda o, y: worst(o, y), "lower"), resplit=True, **FAST, **options
        )  # fmt: skip

    here, workers = call(), call(jobs=2)
    name = list(here.to_dict()["groups"][0]["methods"])[1]
    assert name.endswith(":Uphill")
    for method in ("plain", name):
        assert here.values(method) == workers.values(method)
    assert here.values("plain") != here.values(name)


class DrawsOfTheHost(nn.Module):
    """Initial weights and a mask that are not torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(np.random.randn(3, 1), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.tensor(np.random.rand(*x.shape) < 0.5) if self.training else torch.tensor(True)
        return x * mask @ self.weight * random.uniform(0.5, 1.5)


def test_what_networks_draw_from_numpy_and_python_is_of_the_seed_and_leaves_their_states(tmp_path):
    x = torch.randn(80, 3)

    def values(folder: str) -> tuple[list, list]:
        result = steppe.compare(
            DrawsOfTheHost,
            (x, x[:, 0]),
            ["plain", "sam:rho=0"],
            seeds=1,
            epochs=2,
            progress=False,
            out=tmp_path / folder,
        )
        return result.values("plain"), result.values("sam:rho=0")

    plain, sam = values("a")
    assert plain == sam  # without a radius SAM's second pass, which has the first one's draws, changes nothing
    np.random.seed(1), random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    assert values("b") == (plain, sam)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_an_optimizer_keeps_its_rate_and_several_train_one_network():
    def bits(**options):
        one = steppe.compare(make, (X, Y), ["plain"], seeds=1, **{**FAST, "lr": None} | options)
        return one.values("plain")[0]

    adamw = partial(torch.optim.AdamW, lr=0.05, weight_decay=0.0)
    assert bits(optimizer=adamw) == bits(optimizer="torch.optim:AdamW", lr=0.05, optim={"weight_decay": 0.0})
    assert bits(optimizer=adamw) != bits(optimizer=partial(adamw, lr=0.01))

    def two(model):
        return [adamw(model[0].parameters()), adamw(model[2].parameters())]

    assert bits(optimizer=two) == bits(optimizer=adamw)
    assert bits(optimizer=lambda p: adamw(p)) == bits(optimizer=adamw)


def test_a_model_with_its_own_loss_and_data_without_targets():
    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return (self.layer(x) - x).square().mean()

    result = steppe.compare(Coder, X, ["plain", "sam"], loss="model", seeds=2, **FAST)
    metric = result.to_dict()["groups"][0]["metric"]
    assert metric["name"] == "loss" and not metric["higher"]
    assert all(v > 0 for v in result.values("sam").values())


class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, y):
        return nn.functional.cross_entropy(self.layer(x), y)


class Judge(nn.Module):
    """Returns its loss and its logits, and needs the targets for that."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, y):
        z = self.layer(x)
        return nn.functional.cross_entropy(z, y), z


def judged(model, x, y):
    return nn.functional.cross_entropy(model.layer(x), y), model.layer(x)


def test_a_loss_that_calls_the_model_is_the_model_s_own(tmp_path):
    def run(loss, out):
        return steppe.compare(
            Judge, (X, CLASSES), ["plain", "ema"], loss=loss, metric="loss", seeds=1, out=out, **FAST
        )

    own, called = run("model", tmp_path / "own"), run(steppe.ModelLoss(judged), tmp_path / "called")
    assert [own.values(m) for m in ("plain", "ema")] == [called.values(m) for m in ("plain", "ema")]
    config = json.loads(next(called.folder.glob("runs/*/config.json")).read_text())
    assert config["loss"].endswith(":judged") and config["code"]["loss"]["source"] == user_code.fingerprint(judged)
    flat = called.export("ema", tmp_path / "flat")  # the network has no prediction without targets
    about = json.loads((flat / "model.json").read_text())
    assert "cannot be called on inputs alone" in about["program"] and (flat / "model.safetensors").exists()
    surface = LossSurface(Judge(), [(torch.tensor(X), torch.tensor(CLASSES))], "model")
    again = LossSurface(surface.net, [(torch.tensor(X), torch.tensor(CLASSES))], steppe.ModelLoss(judged))
    assert again.loss() == surface.loss()


def test_a_translation_is_learned_by_its_tokens():
    data = {"input_ids": torch.arange(100).reshape(20, 5), "labels": torch.arange(60).reshape(20, 3)}
    assert steppe.data.sources.formats.user_data.user_source(data).task == "language modelling"


REFUSED = {
    "returns its loss alone, and metric accuracy needs": {
        "data": (X, CLASSES),
        "new_model": Alone,
        "loss": "model",
    },
    "is another each time under seed 0": {"new_model": lambda: nn.Linear(4, int(DRAW.integers(1, 9)))},
    "mat1 and mat2 shapes cannot be multiplied": {"new_model": lambda: nn.Linear(5, 1)},
    "return one number for each": {"new_model": lambda: nn.Linear(4, 2)},
    "give a function that makes the network": {"new_model": nn.Linear(4, 1)},
    "returned int; return a torch.nn.Module": {"new_model": lambda: 3},
    "the loss has no gradient": {"loss": lambda o, y: (o.detach().squeeze(1) - y).square().mean()},
    "Using a target size": {"loss": nn.functional.mse_loss},
    "has no direction": {"metric": worst},
    "is a SGD of one network's parameters": {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)},
    "unknown option 'epoch'; did you mean 'epochs'": {"epoch": 3},
    "the loss of the first batch is nan": {"data": (X * np.nan, Y)},
    "store is 'half' and the outputs are numbers": {"methods": ["saf:store=half"]},
    "target is 'linear', which needs the class": {"methods": ["gc+kdcl:target=linear"]},
    "resplit is true and all seeds have the same samples of data": {
        "data": ((X, Y), (X + 1, Y), (X - 1, Y)),
        "resplit": True,
        "seeds": 2,
    },
    "input 'a' is a tuple of parts of different shapes; give one array": {"data": {"a": (X, Y), "b": (X, Y)}},
    "unknown option of optim 'scheduel'; did you mean 'schedule'": {"optim": {"scheduel": "wsd"}},
    "unknown option of data 'seed'": {"split": {"val": 0.2, "seed": 5}},
    "budget is 'soon'": {"budget": "soon", "epochs": None},
    "return one for each class, or give task='regression'": {"data": (X, CLASSES)},
    "returns 1 classes and the data have 2": {"data": (X, CLASSES % 2)},
    "returns 3 classes and the data have 5": {"data": ((X, CLASSES), (X, CLASSES + 2)), "new_model": three},
    "on test samples of data: RuntimeError: mat1": {"data": ((X, Y), (X[:, :3], Y))},
    " of the training targets of data are NaN or infinite": {"data": (X, np.where(np.arange(60) < 9, np.nan, Y))},
    "the targets are torch.complex64; give real": {"data": (X, Y + 1j)},
    "task is 'multi-label' and the targets are torch.int64": {"data": (X, CLASSES), "task": "multi-label"},
    "task is 'segmentation' and": {"data": (X, CLASSES), "task": "segmentation"},
    "task is 'language modelling' and": {"data": (X, CLASSES), "task": "language modelling"},
    "task is 'classification' and": {"task": "classification"},
    "metric is 'r2', of numbers, and": {"data": (X, CLASSES), "new_model": three, "metric": "r2"},
    "or choose cross-entropy, of classes": {"data": (X, CLASSES), "new_model": three, "loss": "mse"},
    "the inputs are measured, klass and its forward takes input; name .* 'labels'": {
        "data": {"measured": X, "klass": CLASSES}
    },
    "which only cross-entropy and bce have": {"loss": "mse:weight=balanced"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_one_line_before_anything_trains(message, tmp_path):
    arguments = {
        "new_model": make,
        "data": (X, Y),
        "methods": ["plain"],
        "seeds": 1,
        "out": tmp_path / "out",
        **FAST,
    }
    with pytest.raises(InputError, match=message) as error:
        steppe.compare(**arguments | REFUSED[message])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/runs/*/metrics.jsonl"))


def test_a_record_runs_no_code_unless_it_is_passed_again(tmp_path):
    steppe.compare(make, (X, Y), ["plain"], seeds=1, out=tmp_path, **FAST)
    with pytest.raises(InputError, match="is code that only a file names"):
        steppe.diagnose(tmp_path, seconds=0.01)
    with pytest.raises(InputError, match="is code that only a file names"):
        steppe.training.export.export(next(tmp_path.glob("runs/*")), tmp_path / "flat")
    config = json.loads(next(tmp_path.glob("runs/*/config.json")).read_text())
    assert config["code"]["model"]["object"].endswith("test_compare:make")
    assert config["code"]["model"]["source"] and not config["code"]["dataset"]["source"]


def test_a_task_brings_its_code_to_another_process_and_slurm_refuses_what_it_cannot_import(tmp_path):
    class Jobs:
        pause, sends_objects = 0.0, False

    with user_code.registered({("model", "here:make"): lambda: nn.Linear(4, 1), ("method", "here:Up"): Uphill}):
        with pytest.raises(InputError, match="here:make, here:Up|here:make cannot be imported by another process"):
            launch_on_cluster([], 1, Jobs(), print)
        content = pickle.dumps(Task(Run(model="here:make", method="here:Up"), tmp_path))
    with user_code.registered({}):
        assert not user_code.is_registered("model", "here:make")
        task = pickle.loads(content)
        assert isinstance(task.run.method, steppe.Method) and type(task.run.method).__name__ == "Uphill"
        assert isinstance(user_code.get("model", "here:make")(), nn.Linear)


def test_a_changed_source_is_named(tmp_path, caplog):
    class First(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)

    def second():
        return First()

    options = {"methods": ["plain"], "out": tmp_path, **FAST}
    steppe.compare({"net": First}, (X, Y), seeds=1, **options)
    result = next(tmp_path.glob("runs/*/result.json"))
    result.unlink()
    steppe.compare({"net": second}, (X, Y), seeds=1, **options)
    assert "the source of model net has changed" in caplog.text


def test_a_changed_source_is_named_of_finished_runs_and_by_an_export(tmp_path, caplog):
    class First(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)

    def second():
        return First()

    options = {"methods": ["plain", "sam"], "seeds": 1, **FAST}
    results = [steppe.compare({"net": First}, (X, Y), out=tmp_path / name, **options) for name in "ab"]
    assert not caplog.text
    steppe.compare({"net": second}, (X, Y), out=tmp_path / "a", **options)
    assert caplog.text.count("the source of model net has changed") == 1  # not once for each run
    run = next(results[1].folder.glob("runs/*"))
    with user_code.registered({("model", "net"): second}):
        export(run, tmp_path / "flat")
    assert caplog.text.count("the source of model net has changed") == 2


def test_tune_goes_on_and_prefers_lower_errors(tmp_path):
    pytest.importorskip("optuna")
    options = {"confirm": 2, "out": tmp_path, "epochs": 1, "batch": 12, "lr": 0.05, "pruner": "none"}
    first = steppe.tune(make, (X, Y), "sam", {"rho": (0.01, 0.5)}, trials=2, **options)
    again = steppe.tune(make, (X, Y), "sam", {"rho": (0.01, 0.5)}, trials=3, **options)
    trials = again.to_dict()["trials"]
    assert [t["values"] for t in trials[:2]] == [t["values"] for t in first.to_dict()["trials"]]
    assert again.values == min(trials, key=lambda t: t["mean"])["values"]
    assert "RMSE" in str(again) and (tmp_path / "tune.svg").exists()


def test_different_networks_learn_from_each_other_and_each_is_exported(tmp_path):
    y = (Y > 3).astype(int)
    result = steppe.compare("mlp-8x1+mlp-16x2", (X, y), ["plain", "dml"], seeds=1, **FAST)
    shapes = []
    for network in (1, 2):
        path = result.export("dml", tmp_path / str(network), network=network)
        assert json.loads((path / "model.json").read_text())["model"] == ("mlp-8x1", "mlp-16x2")[network - 1]
        shapes.append({tuple(t.shape) for t in load_file(path / "model.safetensors").values()})
    assert (8, 4) in shapes[0] and (16, 4) in shapes[1] and (16, 16) in shapes[1]
    with pytest.raises(InputError, match="network is 3 and dml trains 2"):
        result.export("dml", tmp_path / "3", network=3)
    with pytest.raises(InputError, match="network is 1 and plain trains one network"):
        result.export("plain", tmp_path / "4", network=1)


def test_a_collection_of_metrics_is_refused_with_their_names():
    import torchmetrics

    several = torchmetrics.MetricCollection(
        {"mae": torchmetrics.MeanAbsoluteError(), "r2": torchmetrics.R2Score()}
    )
    with pytest.raises(InputError, match="is a collection of several, 'mae' or 'r2'; give one of them"):
        steppe.compare(make, (X, Y), ["plain"], metric=several, seeds=1, **FAST)


def test_each_of_different_networks_is_tried_before_training(tmp_path):
    code = tmp_path / "nets.py"
    code.write_text("import torch\nwide = lambda: torch.nn.Linear(5, 2)\nfew = lambda: torch.nn.Linear(4, 1)\n")
    y = (Y > 3).astype(int)
    for name, message in (
        ("wide", "on a batch of data: RuntimeError: mat1"),
        ("few", "on a batch of data: the network returns 1 classes and the data"),
    ):
        with pytest.raises(InputError, match=f"^model .*nets.py:{name} {message}"):
            steppe.compare(f"mlp-8x1+{code}:{name}", (X, y), ["dml"], seeds=1, out=tmp_path / "out", **FAST)
    assert not list(tmp_path.glob("out/runs/*/metrics.jsonl"))


def test_networks_that_are_no_better_than_a_constant_are_said_to_be_hardly_trained():
    train, test = (X[:40], Y[:40] + 100), (X[40:], Y[40:] + 100)
    options = {**FAST, "epochs": 1, "lr": None}
    far = steppe.compare(make, (train, train, test), ["plain"], seeds=1, **options)
    error = np.sqrt(np.mean((test[1].astype(np.float64) - train[1].mean(dtype=np.float64)) ** 2))
    assert far._rows[0].constant == pytest.approx(error, rel=1e-6)
    assert "hardly trained" in str(far)
    optim = json.loads((far.folder / "compare.json").read_text())["study"]["optim"]
    assert (optim["name"], optim["lr"]) == ("adamw", 1e-3)  # what a call without an optimizer has
    near = steppe.compare(make, ((X, Y), (X, Y), (X, Y)), ["plain"], seeds=1, **FAST | {"epochs": 30})
    assert "hardly trained" not in str(near)


def test_a_class_keeps_its_own_rate_and_a_loader_its_batch():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)), 7)
    options = {"optimizer": torch.optim.NAdam, "epochs": 1, "seeds": 1, "progress": False}
    result = steppe.compare(make, (loader, (X, Y)), ["plain"], **options)
    study = json.loads((result.folder / "compare.json").read_text())["study"]
    assert (study["optim"]["lr"], study["batch"]) == (0.002, 7)


def test_text_in_a_notebook_is_returned_and_not_shown(monkeypatch):
    from rich import console

    from steppe.api._text import rendered

    monkeypatch.setattr(console, "_is_jupyter", lambda: True)
    assert rendered("a table") == "a table"


@pytest.mark.parametrize(
    ("options", "message"), [({"metric": "accuracy"}, "rmse"), ({"loss": "cross-entropy"}, "mse")]
)
def test_numbers_are_no_classes(options, message):
    with pytest.raises(InputError, match=f"of classes, and the task is regression; choose {message}"):
        steppe.compare(make, (X, Y), ["plain"], seeds=1, **FAST | options)


@pytest.mark.parametrize("kind", [np.float32, bool])
def test_one_logit_for_numbers_0_and_1_is_measured_as_two_classes(kind, tmp_path):
    data = X, (Y > 3).astype(kind)
    options = {"loss": "bce", "seeds": 1, **FAST}
    result = steppe.compare(make, data, ["plain"], out=tmp_path / "out", **options)
    assert result.to_dict()["groups"][0]["metric"]["name"] == "accuracy"
    ranked = steppe.compare(make, data, ["plain"], metric="auroc", **options)
    net = make(0)
    net.load_state_dict(load_file(result.export("plain", tmp_path / "flat", which="last") / "model.safetensors"))
    test = steppe.data.sources.formats.user_data.user_source(data).test
    with torch.no_grad():
        z, y = net(test.x)[:, 0], test.y > 0
    assert result.values("plain")[0] == pytest.approx(100 * float(((z > 0) == y).float().mean()))
    assert ranked.values("plain")[0] == pytest.approx(float((z[y][:, None] > z[~y]).float().mean()), rel=1e-6)


SHARED = three(0)


@pytest.mark.parametrize("shared", [lambda seed: SHARED, lambda seed: nn.Sequential(SHARED)])
def test_a_network_that_runs_would_share_is_refused(shared):
    with pytest.raises(InputError, match="the same weights twice.* or return copy.deepcopy"):
        steppe.compare(shared, (X, (Y > 3).astype(int)), ["plain"], seeds=1, **FAST)


def test_targets_that_only_the_users_loss_leaves_out_are_named():
    masks = np.where(np.arange(8) < 2, 255, CLASSES[:, None] % 3)

    def loss(output, y):
        return nn.functional.cross_entropy(output, y, ignore_index=255)

    def of_positions(seed):
        return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Linear(4, 24), nn.Unflatten(2, (3, 8)), nn.Flatten(1, 2))

    options = {"task": "segmentation", "loss": loss, "seeds": 1, **FAST}
    with pytest.raises(InputError, match="returns 3 classes and the data have 256; .* or write -100 for targets"):
        steppe.compare(of_positions, (X, masks), ["plain"], **options)
    masks[masks == 255] = -100
    result = steppe.compare(of_positions, (X, masks), ["plain"], **options | {"loss": "cross-entropy"})
    assert 0 <= result.values("plain")[0] <= 100
