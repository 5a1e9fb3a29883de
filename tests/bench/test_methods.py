"""`steppe bench methods`: each method as a ratio to plain training and to the floor of its passes."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import steppe
from steppe.bench.memory import peak_bytes
from steppe.bench.methods import _Contestant, _measure
from steppe.bench.passes import TimedSteps
from steppe.bench.timing import alternating_with_reference, now
from steppe.cli.main import main

QUICK = ["--batch", "8", "--size", "18", "--steps", "1", "--repeats", "3"]


def spin(seconds: float) -> None:
    end = now() + seconds
    while now() < end:
        pass


class Spinning(nn.Module):
    """A network whose forward pass takes 4 ms and whose backward pass takes 8; the inner module is no pass."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        y = self.inner(x * 1.0)
        if y.requires_grad:
            y.register_hook(lambda g: spin(0.008))
        spin(0.004)
        return self.inner(y)


class KnownCost(_Contestant):
    """Steps of so many passes, so much time outside them, and so much memory."""

    def __init__(self, forward: int, backward: int, outside: float):
        self.net, self.counts, self.outside = Spinning(), (forward, backward, 1), outside
        self.weights = torch.ones(1000 * forward)

    def forward(self):
        with torch.no_grad():
            self.net(torch.ones(2))

    def step(self):
        forward, backward, _ = self.counts
        x = torch.ones(2, requires_grad=True)
        for _ in range(forward - backward):
            self.forward()
        self.net(x).sum().backward()
        for _ in range(backward - 1):
            torch.autograd.grad(self.net(x).sum(), [x])
        spin(self.outside)

    def passes_per_step(self):
        return self.counts


@pytest.mark.skipif(torch.cuda.is_available(), reason="the known times are those of a CPU")
def test_ratio_floor_overhead_and_memory_are_those_of_known_steps():
    steps = {"plain": (1, 1, 0.001), "other": (3, 2, 0.004)}
    plain, other = _measure(list(steps), lambda name: KnownCost(*steps[name]), 1, 5, lambda repeat: None)
    assert (plain.method, plain.floor, plain.memory) == ("plain", 1.0, 1.0)
    assert plain.ratio == pytest.approx(1, abs=0.05) and plain.overhead.median == pytest.approx(0, abs=0.02)
    # a plain step takes 13 ms, of which the forward pass is 4
    assert plain.milliseconds == pytest.approx(13, rel=0.1)
    assert other.ratio == pytest.approx(32 / 13, rel=0.05) and other.low <= other.ratio <= other.high
    assert other.floor == pytest.approx(30 / 13, rel=0.05)
    assert other.over_floor == pytest.approx(other.ratio / other.floor)
    assert other.overhead.median == pytest.approx(2 / 30, abs=0.01)
    assert 2.5 < other.memory < 3
    hooks = torch.nn.modules.module
    assert not hooks._global_forward_hooks and not hooks._global_forward_pre_hooks


def test_on_a_gpu_steps_run_without_hooks():
    counts = []
    timed = TimedSteps(lambda: counts.append(len(torch.nn.modules.module._global_forward_hooks)), 2, hooked=False)
    assert timed() >= 0 and counts == [0, 0] and timed.outside == []


def test_a_work_is_compared_with_the_reference_right_before_and_after_it():
    """On a machine that slows down steadily, a ratio to the repeat's first timing would grow."""
    clock = [0.0]

    def timed(cost):
        def work():
            clock[0] += 1.0
            return cost * clock[0]

        return work

    costs = {"one": 1.0, "two": 2.0, "three": 3.0}
    times, references = alternating_with_reference(timed(1.0), {k: timed(v) for k, v in costs.items()}, 4)
    for name, ratio in costs.items():
        assert [t / r for t, r in zip(times[name], references[name], strict=True)] == pytest.approx([ratio] * 4)


def test_peak_memory_is_that_of_tensors_alive_at_once():
    def make():
        w = torch.ones(1000, requires_grad=True)

        def step():
            h = w
            for _ in range(5):
                h = h.exp()  # its output is what its gradient needs
            h[5:].sum().backward()  # a view has no memory of its own, and its gradient has
            w.grad = None

        return step

    # weights, five outputs, the incoming and the outgoing gradient; the sum and its gradient
    assert peak_bytes(make) == 4_000 * (1 + 5 + 2) + 8


def test_methods_and_other_packages_optimizers_are_measured_next_to_plain(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    names = ["sam", "looksam:k=2", "support.thirdparties:TwoStep", "support.thirdparties:Closure"]
    assert main(["bench", "methods", *names, *QUICK, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["command"].startswith("steppe bench methods sam") and content["environment"]["torch"]
    _, sam, looksam, *others = content["results"]
    assert [r["method"] for r in content["results"]] == ["plain", *names]
    assert looksam["forward"] == pytest.approx(1.5, abs=0.3)
    for row in (sam, *others):
        assert (row["forward"], row["backward"], row["updates"], row["floor"]) == (2, 2, 1, sam["floor"])
        assert row["memory"] == pytest.approx(sam["memory"], rel=0.35)


def test_the_table_ends_with_the_command_and_the_machine(capsys):
    assert main(["bench", "methods", "gc", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "overhead" in out and "steppe bench methods gc --batch 8" in out and "torch" in out.splitlines()[-1]


@pytest.mark.slow
def test_every_method_can_be_measured(capsys):
    assert main(["bench", "methods", *QUICK[:-1], "1", "--json"]) == 0
    rows = {r["method"]: r for r in json.loads(capsys.readouterr().out)["results"]}
    assert list(rows) == steppe.methods.names()
    assert rows["okdph"]["forward"] == 3.0 and 1.0 < rows["one"]["floor"] < 2.0 and rows["dml"]["memory"] > 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("methods --batch 0", "batch is 0"),
        ("methods nowhere:SAM", "there is no module nowhere"),
        ("speed", "kind is 'speed'"),
    ],
)
def test_what_cannot_be_measured_is_an_error_of_one_line(arguments, message, capsys):
    assert main(["bench", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
