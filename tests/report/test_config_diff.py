"""The settings in which methods and runs differ."""

import json
from typing import Any

import pytest
from support.recorded import html

from steppe import InputError
from steppe.records import load
from steppe.report.comparison import page
from steppe.report.comparison._config_diff import of_methods, of_runs


def test_settings_in_which_rows_of_one_kind_differ_are_marked(folder: Any) -> None:
    settings = {
        "plain": "Plain()",
        "sam": "SAM(rho=0.05, norm='global')",
        "sam:rho=0.2": "SAM(rho=0.2, norm='global')",
        "gsam": "GSAM(rho=0.05)",
        "odd": "SAM(rho=",
    }
    for label, resolved in settings.items():
        folder.method(label, resolved=resolved)
    folder.write()
    pieces_of = of_methods(load(folder.path))
    assert {label: "".join(piece for piece, _ in pieces) for label, pieces in pieces_of.items()} == settings
    marked = {label: [piece for piece, strong in pieces if strong] for label, pieces in pieces_of.items()}
    assert marked == {"plain": [], "sam": ["rho=0.05"], "sam:rho=0.2": ["rho=0.2"], "gsam": [], "odd": []}


@pytest.mark.parametrize("resplit", [True, False])
def test_splits_of_seeds_are_named_unless_each_seed_has_its_own(folder: Any, resplit: bool) -> None:
    folder.method("plain")
    for seed in (0, 1):
        config = {"method": "plain", "seed": seed, "data": {"split_seed": seed}}
        (folder.run("plain", seed, 0.9) / "config.json").write_text(json.dumps(config))
    folder.compare["study"]["resplit"] = resplit
    folder.write()
    assert bool(of_runs(load(folder.path))) is not resplit


def test_runs_that_were_not_configured_alike_are_named(folder: Any) -> None:
    for label, rate in (("plain", 0.1), ("sam", 0.1), ("rwp", 0.3)):
        folder.method(label)
        home = folder.run(label, 0, 0.9)
        config = {"method": label, "seed": 0, "batch": 64, "optim": {"lr": rate}, "resolved": label}
        (home / "config.json").write_text(json.dumps(config))
    folder.write()
    assert of_runs(load(folder.path)) == [("optim.lr", [("0.1", ["plain", "sam"]), ("0.3", ["rwp"])])]
    text = html(folder.path, "version")
    assert "are not equal in all runs" in text
    assert "differ only in the method" not in text


def test_a_configuration_that_cannot_be_read_is_named(folder: Any) -> None:
    folder.method("plain")
    home = folder.run("plain", 0, 0.9)
    folder.write()
    (home / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"config.json is damaged: not a JSON object; remove it"):
        page.write(folder.path)
