"""The developers' benchmarks, small: each kind runs, and what it compares is comparable."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import decoding, logit_bank, param_ops, small_steps
from benchmarks.__main__ import main
from benchmarks.scaling import exponent, scaling
from steppe import hardware
from steppe.core.state.logit_bank import size_in_bytes

QUICK = ["--batch", "8", "--size", "18", "--steps", "1", "--repeats", "3"]
ONE = {"median": 1.0, "low": 1.0, "high": 1.0}


def results(capsys, *arguments: str) -> list[dict]:
    assert main([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["command"].startswith(f"python -m benchmarks {arguments[0]}")
    return content["results"]


def test_work_on_parameters_is_compared_with_the_usual_loops(capsys):
    plain, sam, ema = results(capsys, "params", "sam", "ema", "--model", "resnet32", *QUICK)
    assert (plain["method"], sam["method"], ema["method"]) == ("plain", "sam", "ema")
    assert plain["of_plain"] == ONE
    assert sam["of_plain"]["median"] > 1.2 and ema["of_plain"]["median"] > 1.0
    assert ema["loop"] is None and sam["loop"]["low"] <= sam["loop"]["median"] <= sam["loop"]["high"]


def test_the_time_to_assign_gradients_is_not_counted():
    gradients = param_ops.FixedGradients([nn.Parameter(torch.zeros(2))])

    def step() -> None:
        gradients.seconds += 1.0  # as if it had taken this long

    assert param_ops.ParamStep(step, gradients).time(3) == pytest.approx(-1.0, abs=0.01)


def test_the_usual_loop_makes_sam_s_update():
    """The loop that ours is compared with does the same work: after three steps both have the same weights."""
    torch.manual_seed(0)
    nets = [nn.Linear(5, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    start = nets[0].weight.detach().clone()
    for work in (param_ops.bound_method("sam", nets[0]), param_ops.usual_loop("sam", nets[1], fused=True)):
        for _ in range(3):
            work.step()
    for ours, loop in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(ours, loop, rtol=0, atol=1e-9)
    assert not torch.equal(nets[0].weight, start)


def test_augmentation_and_networks_are_compared_with_the_first(capsys):
    for kind, names, label, ratio in (
        ("data", ["none", "crop+flip", "cutmix"], "steps", "of_none"),
        ("models", ["simple-cnn", "cifar10-fast"], "model", "of_first"),
    ):
        rows = results(capsys, kind, *names, *QUICK)
        assert [r[label] for r in rows] == names and rows[0][ratio] == ONE
        assert all(0 < r[ratio]["low"] <= r[ratio]["median"] <= r[ratio]["high"] for r in rows)


@pytest.mark.slow
def test_loading_is_compared_with_threads(monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    threads, processes, cached = decoding.decoding_cost(None, repeats=1, count=1100)
    assert threads.of_threads.median == 1.0
    assert cached.seconds < min(threads.seconds, processes.seconds)


@pytest.mark.vision
def test_the_pipeline_is_compared_with_memory_and_with_torchvision(capsys, tmp_path, monkeypatch):
    """Every process imports a torchvision whose operators are declared, as this one does."""
    (tmp_path / "sitecustomize.py").write_text("import support.foreign as f\n\nf.declare_operators()\n")
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), tests, *sys.path]))
    rows = results(capsys, "end-to-end", "crop+flip+cutmix", *QUICK)
    names = ["a batch in memory", "crop+flip+cutmix", "PyTorch's loop, a batch in memory"]
    assert [r["batches"] for r in rows] == [*names, "PyTorch's loop, torchvision, 2 workers"]
    assert rows[0]["of_memory"] == rows[3]["of_torchvision"] == ONE
    assert all(0 < r["of_memory"]["low"] <= r["of_memory"]["high"] for r in rows)


@pytest.mark.slow
def test_faster_settings_make_the_same_step(capsys):
    names = ["memory", "ours", "ours-bf16"]
    rows = results(capsys, "settings", *names, "--model", "resnet-thin", *QUICK)
    assert [r["setting"] for r in rows] == ["pytorch", *names]
    assert rows[0]["speed"] == ONE
    pytorch, memory, ours, bf16 = (r["difference"] for r in rows)
    assert pytorch == memory == 0.0 < ours < 1e-5 < bf16 < 1e-2


@pytest.mark.parametrize("form", ["full", "half", "top:4"])
def test_a_logit_bank_allocates_what_it_declares(form):
    cost = logit_bank.store_cost(form, samples=3000, classes=20, past=3, batch=100)
    assert cost.allocated == cost.declared == size_in_bytes(3000, 20, 3, form)
    if form == "top:4":
        assert 0 < cost.kl_stored < cost.kl and 0.2 < cost.cosine < 0.99
    else:
        assert (cost.kl_stored, cost.cosine) == (pytest.approx(cost.kl, rel=1e-2), pytest.approx(1, abs=1e-3))


def test_the_fitted_exponent_is_that_of_a_power_law():
    sizes = [3, 30, 300]
    assert exponent(sizes, [2.0 * s**1.5 for s in sizes]) == pytest.approx(1.5)


def test_time_grows_with_the_number_of_records_and_not_with_the_data_set():
    data, runs = scaling(["data", "runs"], steps=1, repeats=3, largest=2)
    assert (data.sizes, data.ratios[0]) == ((2_000, 20_000), 1.0)
    assert -0.3 < data.exponent < 0.4 and 0.6 < runs.exponent < 1.4


def test_a_table_ends_with_the_command_and_the_machine(capsys):
    assert main(["store", "top:2", "--samples", "500", "--classes", "10"]) == 0
    *_, command, machine = capsys.readouterr().out.splitlines()
    assert command == "python -m benchmarks store top:2 --samples 500 --classes 10" and "torch" in machine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("store top:0", "form is 'top:0'"),
        ("params sadt-v1", "runs the network itself"),
        ("settings fast", "unknown setting 'fast'"),
        ("scaling depth", "unknown axis 'depth'"),
    ],
)
def test_what_cannot_be_measured_is_an_error_of_one_line(arguments, message, capsys):
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_step_s_path_is_that_of_the_package_alone(capsys):
    plain, sam = results(capsys, "path", "plain", "sam")
    assert "methods/sharpness/sam.py" in sam["files"] and "methods/sharpness/sam.py" not in plain["files"]
    assert all("core/runtime.py" in row["files"] for row in (plain, sam))
    assert len(sam["files"]) <= 10 and plain["calls"] < sam["calls"]


def test_the_loops_by_hand_make_the_methods_updates(capsys):
    """What a step on the trivial network is compared with does the same work: after three steps, equal weights."""
    for spec, by_hand in (
        ("plain", small_steps.plain_by_hand),
        ("sam", small_steps.sam_by_hand),
        ("sadt-v1", small_steps.sadt_by_hand),
    ):
        nets = [small_steps.network() for _ in range(2)]
        batch = small_steps.batch_of()
        for step in (small_steps.bound(spec, nets[0]), by_hand(nets[1], *batch)):
            for _ in range(3):
                step()
        # SADT's noise, of deviation 1e-4, is another one
        for ours, hand in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            assert torch.allclose(ours, hand, rtol=0, atol=1e-6)
    rows = results(capsys, "overhead", "sam", "sadt-v1", "--steps", "1", "--repeats", "2")
    assert [(row["method"], row["over"]) for row in rows] == [
        ("sam", "SAM in foreach"),
        ("sadt-v1", "two plain steps"),
        ("sadt-v1", "SADT in foreach"),
        ("SADT in foreach", "two plain steps"),
    ]
    assert all(row["ratio"]["median"] > 0 for row in rows)


@pytest.mark.slow
def test_sam_in_a_loop_of_one_s_own_is_measured_with_both_memory_settings(capsys):
    rows = results(capsys, "own-loop", "--size", "4", "--steps", "1", "--repeats", "2")
    assert [row["memory"] for row in rows] == ["glibc's defaults"] * 3 + ["kept"] * 3
    assert all(row["ratio"]["median"] > 0 for row in rows)
