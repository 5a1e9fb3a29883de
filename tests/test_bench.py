"""What is measured about cost: ratios side by side, and a store's memory to the byte."""

from __future__ import annotations

import json

import pytest

from steppe import InputError, bench
from steppe.cli import main
from steppe.past_outputs import size_in_bytes

QUICK = ["--batch", "8", "--size", "18", "--steps", "1", "--repeats", "3"]


def test_methods_are_measured_beside_plain_which_comes_first(capsys):
    assert main(["bench", "methods", "sam", "looksam:k=2", *QUICK, "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given["command"].startswith("steppe bench methods sam")
    assert given["environment"]["torch"]
    plain, sam, looksam = given["results"]
    assert (plain["method"], plain["ratio"], plain["floor"]) == ("plain", 1.0, 1.0)
    assert (sam["forward"], sam["backward"], sam["floor"]) == (2, 2, pytest.approx(2))
    assert looksam["forward"] == pytest.approx(1.5, abs=0.3)
    for row in given["results"]:
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["over_floor"] == pytest.approx(row["ratio"] / row["floor"])


def test_the_floor_of_a_forward_pass_is_below_half_a_step():
    """Mesa adds one forward pass, which is cheaper than the backward one that plain also makes."""
    _, mesa = bench.methods_cost(["mesa"], batch=16, size=24, steps=2, repeats=5)
    assert 1.0 < mesa.floor < 1.6
    assert (mesa.forward, mesa.backward) == (2, 1)


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
        ("store top:0", "form is 'top:0'"),
        ("store --samples 0", "samples is 0"),
        ("data", "kind is 'data'"),
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
