"""What is measured about cost: ratios side by side, and a store's memory to the byte."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import steppe
from steppe import InputError, bench
from steppe.bench import params
from steppe.bench.memory import peak_bytes
from steppe.bench.passes import Timed, above
from steppe.bench.scaling import exponent
from steppe.bench.timing import beside, now
from steppe.cli.main import main
from steppe.core.state.logit_bank import size_in_bytes

QUICK = ["--batch", "8", "--size", "18", "--steps", "1", "--repeats", "3"]


def test_methods_are_measured_beside_plain_which_comes_first(capsys):
    assert main(["bench", "methods", "sam", "looksam:k=2", *QUICK, "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given["command"].startswith("steppe bench methods sam")
    assert given["environment"]["torch"]
    plain, sam, looksam = given["results"]
    assert (plain["method"], plain["floor"]) == ("plain", 1.0)
    assert plain["ratio"] == pytest.approx(1, abs=0.5)  # plain beside plain
    assert (sam["forward"], sam["backward"], sam["floor"]) == (2, 2, pytest.approx(2))
    assert looksam["forward"] == pytest.approx(1.5, abs=0.3)
    for row in given["results"]:
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["over_floor"] == pytest.approx(row["ratio"] / row["floor"])


def spin(seconds: float) -> None:
    end = now() + seconds
    while now() < end:
        pass


class Spinning(nn.Module):
    """A network whose forward and backward passes take a known time; a module within is no pass of its own."""

    def __init__(self, forward: float, backward: float):
        super().__init__()
        self.inner, self.seconds, self.restore = nn.Identity(), forward, backward

    def forward(self, x):
        x = self.inner(x * 1.0)
        x.register_hook(lambda g: spin(self.restore))
        spin(self.seconds)
        return self.inner(x)


@pytest.mark.parametrize("functional", [False, True])
def test_what_a_step_does_beside_its_passes_is_told_from_them(functional):
    net, x = Spinning(0.02, 0.03), torch.ones(2, requires_grad=True)

    def step() -> None:
        loss = net(x).sum()
        torch.autograd.grad(loss, [x]) if functional else loss.backward()
        spin(0.01)

    timed = Timed(step, 2, watched=True)
    assert timed() == pytest.approx(0.06, rel=0.2)
    assert timed.beside == [pytest.approx(0.01, abs=0.004)]
    hooks = torch.nn.modules.module
    assert not hooks._global_forward_hooks and not hooks._global_forward_pre_hooks
    added = above([0.03, 0.05, 0.04], [0.01, 0.01], backward=2, floor=2.0)
    assert added.median == pytest.approx(0.01)


def test_steps_that_are_not_watched_run_without_hooks():
    seen = []
    timed = Timed(lambda: seen.append(len(torch.nn.modules.module._global_forward_hooks)), 2, watched=False)
    assert timed() >= 0
    assert seen == [0, 0] and timed.beside == []


def test_a_second_update_is_work_beside_the_passes():
    _, repeat = bench.methods_cost(["repeat-step"], batch=4, size=18, steps=2, repeats=7)
    assert repeat.beside is not None and repeat.beside.median > 0


def test_the_floor_of_a_forward_pass_is_below_half_a_step():
    """Mesa adds one forward pass, which is cheaper than the backward one that plain also makes."""
    _, mesa = bench.methods_cost(["mesa"], batch=16, size=24, steps=2, repeats=5)
    assert 1.0 < mesa.floor < 1.6
    assert (mesa.forward, mesa.backward) == (2, 1)


def test_every_method_can_be_measured(capsys):
    assert main(["bench", "methods", *QUICK[:-1], "1", "--json"]) == 0
    results = {r["method"]: r for r in json.loads(capsys.readouterr().out)["results"]}
    assert list(results) == steppe.methods.names()
    assert results["okdph"]["forward"] == 3.0
    assert 1.0 < results["one"]["floor"] < 2.0
    assert results["gc"]["memory"] == pytest.approx(1, abs=0.02)
    assert results["dml"]["memory"] > 1.5


def test_another_package_s_optimizer_stands_beside_ours(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    names = ["support.thirdparties:TwoStep", "support.thirdparties:Closure"]
    assert main(["bench", "methods", "sam", *names, *QUICK, "--json"]) == 0
    _, sam, *theirs = json.loads(capsys.readouterr().out)["results"]
    assert [r["method"] for r in theirs] == names
    for row in theirs:
        assert (row["forward"], row["backward"], row["updates"], row["floor"]) == (2, 2, 1, sam["floor"])
        assert row["memory"] == pytest.approx(sam["memory"], rel=0.35)


def test_memory_is_that_of_what_lives_at_once():
    def make():
        kept = torch.zeros(1000)  # 4,000 bytes

        def step():
            a = torch.ones(10_000)  # 40,000, and twice as much while it is multiplied
            a = a * 2
            view = a[5:]  # no memory of its own
            return a.add_(view.sum() + kept[0])

        return step

    assert peak_bytes(make) == 4_000 + 2 * 40_000


def test_memory_holds_what_the_backward_pass_needs():
    def make():
        w = torch.ones(1000, requires_grad=True)

        def step():
            h = w
            for _ in range(5):
                h = h.exp()  # its output is what its gradient needs
            h.sum().backward()
            w.grad = None

        return step

    # weights, five outputs, the gradient that goes back and the one that becomes; the sum and where it starts
    assert peak_bytes(make) == 4_000 * (1 + 5 + 2) + 8


@pytest.mark.parametrize("form", ["full", "half", "top:4"])
def test_a_store_holds_what_it_declares(form):
    cost = bench.store_cost(form, samples=3000, classes=20, past=3, batch=100)
    assert cost.held == cost.declared == size_in_bytes(3000, 20, 3, form)
    if form == "top:4":
        assert 0 < cost.kl_stored < cost.kl
        assert 0.2 < cost.angle < 0.99
    else:
        assert cost.kl_stored == pytest.approx(cost.kl, rel=1e-2)
        assert cost.angle == pytest.approx(1, abs=1e-3)


def test_a_table_is_shown_with_the_command_and_the_machine(capsys):
    assert main(["bench", "store", "top:2", "--samples", "500", "--classes", "10"]) == 0
    out = capsys.readouterr().out
    assert "direction kept" in out
    assert "steppe bench store top:2 --samples 500 --classes 10" in out
    assert "torch" in out
    assert main(["bench", "methods", "gc", *QUICK]) == 0
    assert "of plain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("methods sma", "unknown method 'sma'"),
        ("methods --batch 0", "batch is 0"),
        ("methods nowhere:SAM", "there is no module nowhere"),
        ("store top:0", "form is 'top:0'"),
        ("store --samples 0", "samples is 0"),
        ("speed", "kind is 'speed'"),
        ("params sma", "unknown method 'sma'"),
        ("params sadt-v1", "runs its network for more than its objective; use `steppe bench methods`"),
        ("params --repeats 0", "repeats is 0"),
        ("data crop+flop", "unknown augmentation in data.augment 'flop'"),
        ("data --size 0", "size is 0"),
        ("models resnt32", "unknown model 'resnt32'"),
        ("models --steps 0", "steps is 0"),
        ("end-to-end blur", "unknown augmentation in data.augment 'blur'"),
        ("settings fast", "unknown setting 'fast'"),
        ("settings --model resnt32", "unknown model 'resnt32'"),
        ("scaling depth", "unknown axis 'depth'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments, message, capsys):
    assert main(["bench", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_numbers_are_checked_before_anything_is_built():
    with pytest.raises(InputError, match="repeats is 0"):
        bench.methods_cost(["sam"], repeats=0)


def test_work_on_parameters_is_that_of_a_step_and_stands_beside_the_loops_in_use(capsys):
    assert main(["bench", "params", "sam", "ema", "--model", "resnet32", *QUICK, "--json"]) == 0
    plain, sam, ema = json.loads(capsys.readouterr().out)["results"]
    assert (plain["method"], sam["method"], ema["method"]) == ("plain", "sam", "ema")
    assert plain["of_plain"]["median"] == 1.0
    assert sam["of_plain"]["median"] > 1.2 and ema["of_plain"]["median"] > 1.0
    assert ema["loop"] is None and sam["loop"]["low"] <= sam["loop"]["median"] <= sam["loop"]["high"]
    assert main(["bench", "params", *QUICK, "--model", "resnet32"]) == 0
    assert "loop, fused" in capsys.readouterr().out


def test_the_time_for_placing_gradients_is_not_counted():
    given = params.Given([nn.Parameter(torch.zeros(2))])

    def step() -> None:
        given.place()
        spin(0.01)
        given.spent += 0.01  # as if placing had taken it

    assert params.Work(step, given).time(3) == pytest.approx(0, abs=0.003)
    before = given.spent
    given.place()
    assert given.spent > before


def test_the_loop_that_sam_is_timed_against_makes_sam_s_update():
    """The competitor does the work: after three steps both have moved the weights alike."""
    ends = []
    for kind in ("ours", "loop"):
        torch.manual_seed(0)
        net = nn.Linear(5, 3)
        work = params.ours("sam", net) if kind == "ours" else params.loop("sam", net, fused=True)
        for _ in range(3):
            work.step()
        ends.append([p.detach().clone() for p in net.parameters()])
    start = nn.Linear(5, 3)
    for ours, loop in zip(*ends, strict=True):
        assert torch.allclose(ours, loop, rtol=0, atol=1e-9)
    assert not torch.equal(ends[0][0], start.weight)


def test_data_models_and_the_whole_pipeline_are_measured_against_their_first(capsys):
    for kind, names, first in (
        ("data", ["crop+flip", "cutmix"], "none"),
        ("models", ["simple-cnn", "cifar10-fast"], "simple-cnn"),
    ):
        assert main(["bench", kind, *names, *QUICK, "--json"]) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        what = [r.get("what") or r["steps"] for r in results]
        assert what[0] == first
        assert [n for n in names if n != first] == [w for w in what if w in names and w != first]
        ratios = [r.get("of_first") or r["of_none"] for r in results]
        assert ratios[0] == {"median": 1.0, "low": 1.0, "high": 1.0}
        assert all(0 < r["low"] <= r["median"] <= r["high"] for r in ratios)


def test_from_images_to_weights_is_measured_in_processes_of_their_own(capsys):
    assert main(["bench", "end-to-end", "crop+flip+cutmix", *QUICK, "--json"]) == 0
    memory, fed, loop = json.loads(capsys.readouterr().out)["results"][:3]
    assert (memory["what"], fed["what"]) == ("a batch in memory", "crop+flip+cutmix")
    assert loop["what"] == "PyTorch's loop, a batch in memory"
    assert memory["of_memory"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert all(0 < r["of_memory"]["low"] <= r["of_memory"]["high"] for r in (fed, loop))


@pytest.mark.vision
def test_torchvision_s_workers_feed_the_usual_loop(capsys, tmp_path, monkeypatch):
    """Its process finds a torchvision that can be imported, as this one does."""
    here = Path(__file__).parents[1]
    (tmp_path / "sitecustomize.py").write_text("from foreign import declare_operators\n\ndeclare_operators()\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(here), *sys.path]))
    assert main(["bench", "end-to-end", "none", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "PyTorch's loop, torchvision, 2 workers" in out
    assert "torchvision is not installed" not in out


def test_settings_are_measured_in_processes_of_their_own_and_make_the_same_step(capsys):
    names = ["memory", "ours", "ours-bf16"]
    assert main(["bench", "settings", *names, "--model", "resnet-thin", *QUICK, "--json"]) == 0
    pytorch, memory, ours, bf16 = json.loads(capsys.readouterr().out)["results"]
    assert [r["setting"] for r in (pytorch, memory, ours, bf16)] == ["pytorch", *names]
    assert pytorch["speed"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert pytorch["differs"] == memory["differs"] == 0.0
    assert 0 < ours["differs"] < 1e-5 < bf16["differs"] < 1e-2
    assert main(["bench", "settings", "memory", *QUICK]) == 0
    assert "images/s over pytorch's" in capsys.readouterr().out


def test_a_work_is_set_against_what_was_timed_right_beside_it():
    """On a machine that gets slower all the time, a ratio to the repeat's first timing would grow."""
    clock = [0.0]

    def timed(cost):
        def work():
            clock[0] += 1.0
            return cost * clock[0]

        return work

    works = {name: timed(cost) for name, cost in {"one": 1.0, "two": 2.0, "three": 3.0}.items()}
    times, bases = beside(timed(1.0), works, 4)
    for name, ratio in {"one": 1.0, "two": 2.0, "three": 3.0}.items():
        assert [t / b for t, b in zip(times[name], bases[name], strict=True)] == pytest.approx([ratio] * 4)


def test_the_fitted_exponent_is_that_of_a_power_law():
    sizes = [3, 30, 300]
    assert exponent(sizes, [2.0 * s**1.5 for s in sizes]) == pytest.approx(1.5)
    assert exponent(sizes, [5.0, 5.0, 5.0]) == pytest.approx(0.0)


def test_cost_grows_with_records_as_it_should_and_not_with_the_data_set():
    seen: list[str] = []
    data, runs = bench.scaling(["data", "runs"], steps=1, repeats=3, largest=2, tell=seen.append)
    assert seen == ["data", "runs"]
    assert data.sizes == (2_000, 20_000) and runs.sizes == (10, 100)
    assert data.ratios[0] == runs.ratios[0] == 1.0
    assert -0.3 < data.exponent < 0.4
    assert 0.6 < runs.exponent < 1.4
