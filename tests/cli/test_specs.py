"""A method is parsed once per command, and a run is named by its fields, not by their text or repr."""

import dataclasses
import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch

import steppe
from steppe import GC, SAM, Linear, On, experiments, methods
from steppe.cli import main
from steppe.config import Data, Optim, Run, Study
from steppe.core.composition import ActiveWindow
from steppe.core.method import registry
from steppe.experiments.recipe_scaling import scaled_study
from steppe.experiments.worker import train_job
from steppe.training.run import CONFIG, load_data, read_run, train_run

TINY = ("--model", "resnet-thin", "--epochs", "1", "--batch", "50", "--data.augment", "none")
TINY += ("--data.train", "100", "--data.val", "20.0", "--data.test", "20", "--data.size", "8")
DATA = Data(train=100, val=20.0, test=20, size=8, augment=())


@pytest.fixture
def counts(monkeypatch):
    """Count how often each text is parsed and each method is made from its settings."""
    counts: Counter = Counter()
    parse_spec, make_checked = registry.parse_spec, registry.make_checked

    def counted_parse(spec):
        counts["parsed", spec] += 1
        return parse_spec(spec)

    def counted_make(cls, name, settings):
        counts["made", name, str(settings)] += 1
        return make_checked(cls, name, settings)

    monkeypatch.setattr(registry, "parse_spec", counted_parse)
    monkeypatch.setattr(registry, "make_checked", counted_make)
    return counts


def parsed(counts: Counter) -> dict[str, int]:
    """Return the texts and their counts, and make sure that nothing else made a method."""
    texts = {key[1]: count for key, count in counts.items() if key[0] == "parsed"}
    assert sum(texts.values()) == sum(counts.values()) - sum(texts.values())
    counts.clear()
    return texts


def test_a_command_parses_its_method_once(counts, tmp_path):
    argv = ["train", "--method", "sam:rho=0.1+gc", "--out", str(tmp_path), *TINY]
    for more in (["--plan"], [], []):  # the last one finds the run finished
        assert main.main([*argv, *more]) == 0
        assert parsed(counts) == {"sam:rho=0.1": 1, "gc": 1}


def test_a_comparison_parses_each_method_once_and_so_does_each_worker(counts, tmp_path):
    study = Study(methods=("plain", "sam"), models=("resnet-thin",), seeds=(0,), epochs=1, batch=50, data=DATA)
    for retried in (False, True):
        grid = experiments.prepare(study, tmp_path, "command", retry=retried)
        assert [job.finished for job in grid.jobs] == [retried] * 2
        assert parsed(counts) == ({} if retried else {"plain": 1, "sam": 1})
        for job in grid.open:
            run = pickle.loads(pickle.dumps(job.run))  # as a worker gets it
            assert run == job.run
            assert isinstance(train_job(run, job.folder, lambda _: None, 0.0), dict)
            assert parsed(counts) == {run.label: 1}


def test_a_recipe_s_comparison_parses_each_method_once(counts):
    study, _ = scaled_study("rwp-table1", 1.0, {"datasets": ("digits",), "methods": ("plain", "sam")})
    texts = [methods.spec_of(method) for method in study.methods]
    assert parsed(counts) == dict.fromkeys(texts, 1)


@pytest.mark.slow
def test_a_search_parses_no_text_twice(counts, tmp_path):
    pytest.importorskip("optuna")
    argv = ["tune", "--method", "sam+gc", "--trials", "2", "--confirm", "1", "--out", str(tmp_path), *TINY]
    assert main.main([*argv, "--settings", "rho=0.01..1", "--epochs", "1"]) == 0
    parts = {key[1]: count for key, count in counts.items() if key[0] == "parsed" and key[1] != "gc"}
    assert set(parts.values()) == {1} and {"sam", "plain", "sam:rho=0.05"} < set(parts)


# -- identity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sam", "sam:rho=0.05"),
        ("sam:rho=1", "sam:rho=1.0"),
        ("sam:rho=0.1,ascents=2", "sam:ascents=2,rho=1e-1"),
        ("sam:rho=linear(0,0.1)", "sam:rho=linear(0.0,0.10)"),
        ("sam:start=0.5,every=1", "sam:start=0.5"),
        ("sadt-v1:preset=paper", "sadt-v1"),
        ("sadt-v2:preset=notebook", "sadt-v2:preset=notebook,sigma=0.1"),
        ("look-layersam", "looksam:layerwise=true"),
        ("sam:rho=0.1+gc", "sam:rho=1e-1+gc"),
        ("agc:clipping=Infinity", "agc:clipping=Infinity,eps=0.001"),
    ],
)
def test_equal_settings_are_one_run_in_any_spelling(one, other):
    assert Run(method=one).digest() == Run(method=other).digest()
    assert (Run(method=one).label, Run(method=other).label) == (one, other)
    assert Run(method=one).digest() != Run(method="sam:rho=0.07").digest()
    plain = Run(method=one).method.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_numbers_of_a_configuration_are_equal_as_numbers():
    one, other = Optim(lr=1, clip=2), Optim(lr=1.0, clip=2.0)
    assert Run(optim=one, data=Data(val=60)).digest() == Run(optim=other, data=Data(val=60.0)).digest()
    assert Run(seed=2**53).digest() != Run(seed=2**53 + 1).digest()
    assert Run(seed=np.int64(3), data=Data(train=np.int32(9))).digest() == Run(seed=3, data=Data(train=9)).digest()
    assert Run(keep=True).digest() == Run(keep=False).digest() != Run(compile=True).digest()


def test_schedules_that_differ_in_a_late_digit_are_two_runs():
    one, other = (Run(method=f"sam:rho=linear(0,0.123456{d})") for d in (7, 8))
    assert one.digest() != other.digest()


def test_how_a_method_is_printed_names_nothing(monkeypatch, tmp_path):
    run, net = Run(method="sam:rho=0.1+gc"), torch.nn.Linear(2, 2)
    name, state = run.digest(), run.method.bind(net, torch.optim.SGD(net.parameters(), 0.1)).state_dict()
    for cls in (SAM, GC, On, Linear):
        monkeypatch.setattr(cls, "__repr__", lambda self: "printed otherwise")
    again = Run(method="sam:rho=0.1+gc")
    step = again.method.bind(net, torch.optim.SGD(net.parameters(), 0.1))
    assert (again.digest(), step.state_dict()["method"]) == (name, state["method"])
    step.load_state_dict(state)


def test_a_run_resumes_in_another_spelling_and_keeps_the_first(tmp_path):
    run = Run(method="sam:rho=1e-1", model="resnet-thin", epochs=1, batch=50, data=DATA)
    images = load_data(run)
    first = train_run(run, tmp_path / "run", images)
    assert train_run(dataclasses.replace(run, method=SAM(rho=0.1)), tmp_path / "run", images) == first
    assert read_run(tmp_path / "run").label == "sam:rho=1e-1"


# -- text out and in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.names())
def test_a_method_s_text_makes_it_again(name):
    method = methods.make(name)
    text = methods.spec_of(method)
    assert text.partition(":")[0] == name
    assert methods.parse(text).to_dict() == method.to_dict()
    assert methods.spec_of(methods.parse(f"{name}")) == name


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (SAM(rho=0.1), "sam:rho=0.1"),
        (On(SAM(rho=0.1, norm="tensor"), GC()), "sam:rho=0.1,norm=tensor+gc"),
        (ActiveWindow(SAM(rho=1e20), start=0.5, every=2), "sam:rho=1e20,start=0.5,every=2"),
        (SAM(rho=Linear(0, 0.1234567, 0.5)), "sam:rho=linear(0,0.1234567,0.5)"),
        (steppe.LookSAM(layerwise=True), "look-layersam"),
        (steppe.AGC(clipping=float("inf")), "agc:clipping=Infinity"),
    ],
)
def test_a_run_takes_a_method_and_its_records_a_text(method, text):
    run = Run(method=method)
    assert (run.method, run.label, run.title) == (method, text, f"{text} seed 0")
    assert run.as_dict()["method"] == Study(methods=(method,)).as_dict()["methods"][0] == text
    assert Run(method=text).digest() == run.digest()
    # an edited method forgets the text of the one that it was made from
    assert dataclasses.replace(run, method=dataclasses.replace(run.method)).label == text


class Unlisted(SAM):
    """A method that is not in the list."""


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (SAM(rho=lambda t: 0.1), "rho=FunctionSchedule.*which no text names.*schedule by linear"),
        (Unlisted(), "enter its class in steppe.methods.METHODS"),
        (On(On(SAM(), GC()), steppe.EMA()), "which no text names"),
        (SAM, "give a method, or its name with settings such as sam:rho=0.1"),
        (3, "method is 3; give a method, or its name"),
        ("sam:roh=1", "unknown setting of sam 'roh'; did you mean 'rho'"),
    ],
)
def test_what_no_text_names_is_refused_before_training(method, message):
    for construct in (lambda: Run(method=method), lambda: Study(methods=("plain", method))):
        with pytest.raises(steppe.InputError, match=message) as caught:
            construct()
        assert "\n" not in str(caught.value)


def test_a_record_of_an_unlisted_method_is_refused_with_the_file(tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps(Run().as_dict() | {"method": "gone:rho=1"}))
    with pytest.raises(steppe.InputError, match=f"{CONFIG}: unknown method 'gone'"):
        read_run(tmp_path)
