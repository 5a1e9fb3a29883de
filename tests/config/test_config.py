"""Configurations: what is refused, and what names a run."""

from __future__ import annotations

import dataclasses
import math

import pytest

from steppe import InputError, make
from steppe.config import Data, Monitoring, Optim, Run, Study, essential, parse_spec
from steppe.methods import METHODS, parse


@pytest.mark.parametrize(
    ("make_it", "message"),
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
        (lambda: Run(parallel="fsdp"), "parallel is 'fsdp' and sync is 'local'.*add --sync global"),
        (lambda: Run(m=4, sync="global"), "m is 4 and sync is 'global'"),
        (lambda: Study(methods=()), "methods is empty"),
        (lambda: Study(seeds=(1, 1)), "seeds names one twice"),
    ],
)
def test_impossible_values_are_one_line_with_the_field_and_the_remedy(make_it, message):
    with pytest.raises(InputError, match=message) as caught:
        make_it()
    assert "\n" not in str(caught.value)


def test_the_digest_is_the_same_for_the_same_run_and_differs_for_every_field():
    def digest(run: Run) -> str:
        return run.digest(repr(parse(run.method)))

    base = Run(method="sam", match="epochs", seconds=1.0)
    assert digest(base) == digest(dataclasses.replace(base, method="sam:rho=0.05"))
    changes = {
        "method": "sam:rho=0.1", "model": "m", "dataset": "d", "seed": 1, "batch": 3, "epochs": 3,
        "match": "seconds", "seconds": 2.0, "precision": "bf16", "threads": 2,
        "data": Data(val=0.2), "optim": Optim(lr=0.3), "microbatch": 4, "m": 4, "sync": "global", "compile": True,
        "watch": Monitoring(test=True),
    }  # fmt: skip
    assert set(changes) | {"parallel", "track", "workers"} == {f.name for f in dataclasses.fields(Run)}
    digests = [digest(dataclasses.replace(base, **{k: v})) for k, v in changes.items()]
    assert len({digest(base), *digests}) == len(changes) + 1


def test_runs_of_before_keep_their_names():
    """Comparisons on disk stay valid: settings that are younger count only where they are used."""
    run = Run(method="sam", data=Data(train=200), optim=Optim(lr=1e-3))
    assert run.digest("SAM(rho=0.05)") == "2b359c4093f2"
    younger = {
        "nesterov": True, "warmup": 0.1, "warmup_lr": 1e-5, "min_lr": 1e-5, "label_smoothing": 0.1,
    }  # fmt: skip
    older = {
        k: v
        for k, v in run.as_dict().items()
        if k not in ("microbatch", "m", "sync", "parallel", "compile", "watch", "track", "workers")
    }
    older["optim"] = {k: v for k, v in older["optim"].items() if k not in (*younger, "clip_each")}
    older["data"] = {k: v for k, v in older["data"].items() if k not in ("views", "noise", "legacy_share")}
    assert essential(run.as_dict()) == older
    assert essential(older) == older
    others = [run, *(dataclasses.replace(run, optim=Optim(lr=1e-3, **{k: v})) for k, v in younger.items())]
    assert len({one.digest("") for one in others}) == len(others)


def test_the_learning_rate_rises_falls_and_ends_where_it_is_told_to():
    optim = Optim(lr=0.4, warmup=0.25, warmup_lr=0.1, min_lr=0.05)
    assert [optim.lr_at(s) for s in (0, 0.125, 0.25)] == pytest.approx(
        [0.1, 0.25, 0.05 + 0.35 * (1 + 0.5**0.5) / 2]
    )
    assert [optim.lr_at(s) for s in (0.5, 1, 1.2)] == pytest.approx([0.225, 0.05, 0.05])
    constant = dataclasses.replace(optim, schedule="constant")
    assert [constant.lr_at(s) for s in (0, 0.2, 0.25, 1)] == pytest.approx([0.1, 0.34, 0.4, 0.4])
    assert Optim(lr=0.3).lr_at(0.7) == 0.3 * 0.5 * (1 + math.cos(math.pi * 0.7))


def test_how_a_network_is_shared_out_is_not_part_of_a_run_s_name():
    replicas = Run(sync="global")
    assert replicas.digest("") == dataclasses.replace(replicas, parallel="fsdp").digest("")


def test_the_grid_has_every_combination_once():
    study = Study(methods=("plain", "sam"), seeds=(0, 1, 2), models=("a", "b"))
    runs = study.runs()
    assert len(set(runs)) == len(runs) == 12
    assert {r.method for r in runs[:2]} == {"plain", "sam"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smm", "unknown method 'smm'; did you mean 'sam'"),
        ("sam:rh=0.1", "unknown setting of sam 'rh'; did you mean 'rho'?"),
        ("sam:rho", "'rho' is not key=value"),
        ("sam:", "ends in a colon"),
        ("sam:rho=abc", "rho is 'abc'; give a number or a schedule"),
        ("sam:rho=true", "rho is True; give a number"),
        ("sam:rho=-1", "rho is -1; give a number of at least 0"),
        ("agc:clipping=0", "clipping is 0"),
        ("sadt-v1:preset=blog", "'paper' or 'notebook'"),
        ("sadt-v1:scope=head", "scope is 'head'"),
        ("sadt-v1:updates=3", "1 or 2"),
        ("sam+sadt-v1", "both define the step"),
    ],
)
def test_method_texts_that_mean_nothing_are_refused_with_the_way_out(spec, message):
    with pytest.raises(InputError, match=message):
        parse(spec)


def test_presets_of_sadt_state_what_they_stand_for():
    paper, notebook = make("sadt-v2"), make("sadt-v2", preset="notebook")
    assert (paper.sigma, paper.scope, paper.direction) == (1e-4, "last-conv last-dense", "pre-aux")
    assert (notebook.sigma, notebook.scope, notebook.direction) == (0.1, "last-bias* tensor:7", "aux-pre")
    assert make("sadt-v1", sigma=1e-4) == make("sadt-v1")
    assert make("sadt-v1", preset="notebook").scope == "kernels"


def test_settings_are_read_as_numbers_words_and_truth_values():
    assert parse_spec("agc:clipping=0.02,clip_head=true") == ("agc", {"clipping": 0.02, "clip_head": True})
    assert parse_spec("plain") == ("plain", {})
    assert all(parse(name) is not None for name in METHODS)
