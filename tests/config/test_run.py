"""Configurations: values that are refused, the digest of a run, the learning rate, the grid."""

import dataclasses
import math

import pytest

from steppe import InputError
from steppe.config import Data, Monitoring, Optim, Run, Study


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: Run(batch=0), "batch is 0; give a number above 0"),
        (lambda: Run(epochs=-1), "epochs is -1"),
        (lambda: Run(match="steps"), "match is 'steps'; choose one of epochs, gradients, seconds"),
        (lambda: Run(match="seconds"), "add --seconds"),
        (lambda: Optim(lr=float("nan")), "optim.lr is nan"),
        (lambda: Optim(lr=-1.0), "optim.lr is -1.0"),
        (lambda: Optim(name="adagrad"), "choose one of adam, adamw, sgd"),
        (lambda: Optim(momentum=1.0), "below 1"),
        (lambda: Optim(momentum=0, nesterov=True), "optim.nesterov is True and optim.momentum 0; give a momentum"),
        (lambda: Optim(warmup=3), "optim.warmup is 3; give a share from 0 to below 1"),
        (lambda: Optim(label_smoothing=1), "optim.label_smoothing is 1; give a share"),
        (lambda: Optim(min_lr=0.1, lr=0.01), "optim.min_lr is 0.1 and optim.lr 0.01; give at most that"),
        (lambda: Optim(warmup_lr=-1.0), "optim.warmup_lr is -1.0"),
        (lambda: Data(val=1.5), "a fraction below 1 or a whole number"),
        (lambda: Data(val=0), "data.val is 0"),
        (lambda: Data(size=4), "data.size is 4"),
        (lambda: Data(augment=("flip", "flip")), "name each once"),
        (lambda: Run(precision="int8"), "choose one of fp32, bf16, fp16, fp64"),
        (lambda: Run(microbatch=0), "microbatch is 0; give a number above 0"),
        (lambda: Run(m=-1), "m is -1"),
        (
            lambda: Run(parallel="fsdp"),
            "parallel is 'fsdp' and sync is 'local'; FSDP gradients.*add --sync global",
        ),
        (lambda: Run(m=4, sync="global"), "m is 4 and sync is 'global', which cannot be combined; set only one"),
        (lambda: Monitoring(sharpness=0), "watch.sharpness is 0; give a number of epochs, at least 1"),
        (lambda: Monitoring(weights=0), "watch.weights is 0; give a number of epochs, at least 1"),
        (lambda: Study(methods=()), "methods is empty"),
        (lambda: Study(seeds=(1, 1)), "seeds names one twice"),
        (lambda: Study(methods=("sam", "sam")), "methods names one twice: sam sam"),
        (lambda: Study(methods="sam"), "methods is 'sam'; give a list, \\['sam'\\]"),
    ],
)
def test_impossible_values_are_one_line_with_the_field_and_the_remedy(construct, message):
    with pytest.raises(InputError, match=message) as caught:
        construct()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "cifar10", "cifar100"])
def test_a_data_set_has_one_name_however_its_path_is_written(kind, tmp_path, monkeypatch):
    """Below the working folder, beside it, through links, as an archive in a cache without endings."""
    work = tmp_path / "photos"
    for folder in (work / "x", tmp_path / "y", tmp_path / "blobs"):
        folder.mkdir(parents=True)
    (tmp_path / "blobs" / "a1b2").write_bytes(b"")
    (work / "x.tar").symlink_to(tmp_path / "blobs" / "a1b2")
    (tmp_path / "to photos").symlink_to(work)
    (tmp_path / "to y").symlink_to(tmp_path / "y")
    (work / "link").symlink_to("x")
    (work / "data").symlink_to(tmp_path / "y")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path))

    def names(*paths):
        runs = {Run(dataset=f"{kind}:{path}") for path in map(str, paths)}
        assert {run.dataset for run in runs} == {Study(datasets=(run.dataset,)).datasets[0] for run in runs}
        assert len({run.digest() for run in runs}) == len(runs)
        return {run.dataset for run in runs}

    same = (
        "x",
        "x/",
        "./x/",
        "x//",
        "../photos/x",
        work / "x",
        tmp_path / "to photos/x",
        "~/photos/x",
        "link",
        "link/../x",
    )
    assert names(*same) == {f"{kind}:x"}
    assert names(tmp_path / "y", "../y/", tmp_path / "to y", "~/y", "data/../y") == {f"{kind}:{tmp_path / 'y'}"}
    assert names("data", "./data/", work / "data") == {f"{kind}:data"}
    assert names("x.tar", work / "x.tar", "./x.tar") == {f"{kind}:x.tar"}
    assert names(".", "./", work) == {f"{kind}:."}
    assert names("missing/", "./missing") == {f"{kind}:missing"}
    assert names("download") == {f"{kind}:download"} and names("") == {f"{kind}:"}
    with pytest.raises(InputError, match="datasets names one twice"):
        Study(datasets=(f"{kind}:x", f"{kind}:./x/"))


def test_the_digest_depends_on_every_field_but_those_that_change_no_result():
    digest = Run.digest
    base = Run(method="sam", match="seconds", seconds=1.0)
    assert digest(base) == digest(dataclasses.replace(base, method="sam:rho=0.05"))
    changes = {
        "method": "sam:rho=0.1", "model": "m", "dataset": "d", "seed": 1, "batch": 3, "epochs": 3,
        "seconds": 2.0, "precision": "bf16", "threads": 2,
        "data": Data(val=0.2), "optim": Optim(lr=0.3), "microbatch": 4, "m": 4, "sync": "global", "compile": True,
        "watch": Monitoring(test=True), "deterministic": True, "graph": True, "task": "ordinal", "loss": "mse",
        "metric": "mae", "init": "i",
    }  # fmt: skip
    no_result = {"parallel": "fsdp", "track": ("mlflow",), "workers": 2, "keep": True}
    assert set(changes) | set(no_result) | {"match"} == {f.name for f in dataclasses.fields(Run)}
    digests = [digest(dataclasses.replace(base, **{k: v})) for k, v in changes.items()]
    digests.append(digest(dataclasses.replace(base, match="gradients", seconds=None)))
    assert len({digest(base), *digests}) == len(digests) + 1
    shared = dataclasses.replace(base, sync="global")
    assert digest(dataclasses.replace(shared, **no_result)) == digest(shared)


def test_the_learning_rate_follows_warm_up_and_schedule():
    optim = Optim(lr=0.4, warmup=0.25, warmup_lr=0.1, min_lr=0.05)
    assert [optim.lr_at(s) for s in (0, 0.125, 0.25)] == pytest.approx(
        [0.1, 0.25, 0.05 + 0.35 * (1 + 0.5**0.5) / 2]
    )
    assert [optim.lr_at(s) for s in (0.5, 1, 1.2)] == pytest.approx([0.225, 0.05, 0.05])
    constant = dataclasses.replace(optim, schedule="constant")
    assert [constant.lr_at(s) for s in (0, 0.2, 0.25, 1)] == pytest.approx([0.1, 0.34, 0.4, 0.4])
    assert Optim(lr=0.3).lr_at(0.7) == 0.3 * 0.5 * (1 + math.cos(math.pi * 0.7))


def test_the_grid_has_every_combination_once():
    study = Study(methods=("plain", "sam"), seeds=(0, 1, 2), models=("a", "b"))
    runs = study.runs()
    assert len(set(runs)) == len(runs) == 12
    assert {r.label for r in runs[:2]} == {"plain", "sam"}


def test_with_resplit_each_seed_has_its_own_split_and_without_it_names_stay():
    study = Study(methods=("plain", "sam"), seeds=(0, 4), data=Data(split_seed=2))
    assert {r.data.split_seed for r in study.runs()} == {2}
    assert "resplit" not in study.as_dict()
    with pytest.raises(InputError, match="seeds has -1; give 0 or positive whole numbers"):
        dataclasses.replace(study, resplit=True, seeds=(-1, 0))
    own = dataclasses.replace(study, resplit=True)
    assert [r.data.split_seed for r in own.runs()] == [2, 2, 6, 6]
    assert own.runs()[0].digest() == study.runs()[0].digest()
    assert (
        Run(data=Data(augment=["flip"])).data_key
        == Run(method="sam", seed=3, data=Data(augment=("flip",))).data_key
    )


def test_no_augmentation_has_a_name() -> None:
    assert Data(augment=("none",)) == Data(augment=())
    assert Run(data=Data(augment=("none",))).digest() == Run(data=Data(augment=())).digest()
