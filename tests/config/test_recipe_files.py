"""What recipes say: every value has a source, every published cell is there, every row is a run."""

from __future__ import annotations

import dataclasses
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from support.foreign import importable

from steppe import InputError, methods, models
from steppe.cli.main import main
from steppe.config import Data, Monitoring, Optim, Run, recipes

NAMES = [
    "cifar10-fast",
    "okdph-figure1", "okdph-figures2-5", "okdph-imagenet", "okdph-table3", "okdph-table4-1", "okdph-table4-10",
    "okdph-table4-noisy", "okdph-table5", "okdph-table6", "okdph-table7-1", "okdph-table7-10",
    "okdph-table7-noisy",
    "rwp-figure3", "rwp-figure7", "rwp-figure8", "rwp-table1", "rwp-table2", "rwp-table4", "rwp-table5",
    "rwp-table7", "rwp-table8", "rwp-table9", "sadt-table1-2048", "sadt-table1-512", "saf-table1",
]  # fmt: skip
every_recipe = pytest.mark.parametrize("name", NAMES)
NESTED = (("data", Data), ("optim", Optim), ("watch", Monitoring))
FIELDS = {f.name for f in dataclasses.fields(Run)} - {"method", "model", "dataset", "seed"}
FIELDS -= {name for name, _ in NESTED}
FIELDS |= {f"{part}.{f.name}" for part, cls in NESTED for f in dataclasses.fields(cls)}


def rows() -> list[tuple[str, str, str, str]]:
    return [
        (name, data, model, row)
        for name in NAMES
        for held in [recipes.load(name)]
        for data, model, row in product(held.data, held.models, held.methods)
    ]


def test_every_file_is_a_recipe_that_is_tested():
    assert recipes.names() == NAMES


@every_recipe
def test_every_value_is_a_field_and_has_a_source(name):
    held = recipes.load(name)
    assert set(held.settings) <= FIELDS
    assert {*held.settings, *held.methods} <= set(held.sources)
    assert all(text.strip() for text in held.sources.values())
    assert held.differs and all(case.source.strip() for case in held.where)
    for case in held.where:
        assert set(case.settings) <= FIELDS
        assert case.settings or case.methods
        assert case.rows or case.data or case.models


@every_recipe
def test_published_rows_are_rows_of_the_recipe_and_every_method_is_one(name):
    held = recipes.load(name)
    for data, model, row, *numbers in held.published.rows:
        assert data in held.data and model in held.models and row in held.methods
        assert len(numbers) == len(held.published.columns) - 3
        assert all(isinstance(n, int | float) for n in numbers)
    for model in held.models:
        assert model in models.names() or model.startswith(("torchvision/", "timm/"))
    cells = {tuple(row[:3]) for row in held.published.rows}
    assert len(cells) == len(held.published.rows)


@pytest.mark.parametrize(
    ("name", "count"),
    [("rwp-table1", 24), ("rwp-table2", 12), ("rwp-table4", 6), ("rwp-table5", 9), ("rwp-table7", 6),
     ("rwp-table8", 4), ("rwp-table9", 6), ("saf-table1", 23), ("okdph-table3", 80), ("okdph-table4-noisy", 12),
     ("okdph-table4-10", 12), ("okdph-table4-1", 12), ("okdph-table5", 40),
     ("sadt-table1-512", 21), ("sadt-table1-2048", 21)],
)  # fmt: skip
def test_no_cell_is_missing(name, count):
    assert len(recipes.load(name).published.rows) == count


def cell(name: str, *key: str) -> float:
    return next(row[3] for row in recipes.load(name).published.rows if row[:3] == key)


@pytest.mark.parametrize(
    ("name", "data", "model", "better", "worse", "points"),
    [
        ("rwp-table1", "cifar100", "vgg16-bn", "rwp", "sam", 1.0),
        ("rwp-table1", "cifar100", "resnet18", "rwp", "sam", 0.6),
        ("rwp-table1", "cifar100", "wrn-16-8-rwp", "rwp", "sam", 0.07),
        ("rwp-table1", "cifar100", "wrn-28-10-rwp", "rwp", "sam", -0.19),
        ("rwp-table1", "cifar100", "resnet18", "rwp", "plain", 2.6),
        ("rwp-table1", "cifar10", "resnet18", "rwp", "plain", 0.6),
        ("rwp-table2", "cifar100", "vgg16-bn", "rwp", "plain", 0.8),
        ("rwp-table5", "folder", "torchvision/vgg16_bn", "rwp", "sam", 1.1),
        ("rwp-table7", "cifar10", "resnet18", "rwp-two", "rwp-same", 0.17),
        ("rwp-table9", "cifar10", "vit-cifar", "rwp", "plain", 1.56),
        ("rwp-table9", "cifar100", "vit-cifar", "rwp", "plain", 1.30),
        ("sadt-table1-512", "cifar10", "simple-cnn", "sadt-v3", "plain", 2.9),
        ("sadt-table1-2048", "cifar10", "inception-resnet-sadt", "sadt-v1", "plain", 4.7),
        # the supplement's text calls these relative gains 2.14 %, 2.36 % and 5.24 % points of accuracy
        ("okdph-table3", "cifar100", "vgg16-okdph", "okdph-2", "kdcl-2", 1.58),
        ("okdph-table3", "cifar100", "vgg16-okdph", "okdph-3", "pcl-3", 1.79),
        ("okdph-table3", "cifar100", "vgg16-okdph", "okdph-4", "dml-4", 3.89),
    ],
)
def test_published_numbers_differ_by_what_the_papers_text_says(name, data, model, better, worse, points):
    digits = len(str(points).partition(".")[2])
    found = cell(name, data, model, better) - cell(name, data, model, worse)
    assert found == pytest.approx(points, abs=0.6 * 10**-digits)


@pytest.mark.parametrize(
    ("model", "row", "percent"),
    [("resnet50", "sam", 49.3), ("resnet50", "saf", 99.1), ("resnet101", "esam", 62.4),
     ("resnet152", "mesa", 85.5), ("resnet152", "gsam", 48.5), ("vit_small_patch32_224", "looksam", 82.9)],
)  # fmt: skip
def test_published_speeds_are_the_printed_shares_of_plain_training(model, row, percent):
    held = {r[1:3]: r[4] for r in recipes.load("saf-table1").published.rows}
    assert 100 * held[f"timm/{model}", row] / held[f"timm/{model}", "plain"] == pytest.approx(percent, abs=0.06)


# -- what they choose ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "data", "model", "row"), rows())
def test_every_row_is_a_run_with_a_method_of_its_own(name, data, model, row):
    held = recipes.load(name)
    run = held.choose([data, row], {"model": model, "dataset": f"{data}:x"}).run()
    assert (run.model, run.dataset) == (model, f"{data}:x")
    assert methods.parse(run.method)
    others = [held.choose([data, o], {"model": model, "dataset": "x"}).values["method"] for o in held.methods]
    assert len(set(others)) == len(others)


def test_settings_follow_the_data_the_row_and_the_method():
    held = recipes.load("rwp-table1")
    pick = lambda *words, **given: held.choose(words, given).values  # noqa: E731
    assert pick("sam")["method"] == "sam:rho=0.05"
    assert pick("sam", "cifar100")["method"] == "sam:rho=0.1"
    assert pick(method="sam", dataset="cifar100:somewhere")["method"] == "sam:rho=0.1"
    assert (pick("sam")["batch"], pick("sam")["epochs"]) == (256, 200)
    assert (pick("rwp")["batch"], pick("rwp")["epochs"]) == (512, 400)
    own = pick(method="rwp:gamma=0.02")
    assert methods.parse(own["method"]) == methods.parse("rwp:gamma=0.02,alpha=0.5,batches=2")
    assert own["batch"] == 512
    assert pick(method="rwp+gc")["batch"] == 512
    assert (pick(method="gsam")["method"], pick(method="gsam")["batch"]) == ("gsam", 256)
    assert held.choose([], {"method": "gsam"}).row is None
    assert pick("wrn-28-10-rwp", "cifar100")["model"] == "wrn-28-10-rwp"
    assert pick("rwp", batch=64)["batch"] == 64
    large = recipes.load("saf-table1").choose(["vit_small_patch32_224", "gsam"], {"dataset": "folder:x"})
    assert methods.parse(str(large.values["method"])) == methods.parse(
        "gsam:rho=with-lr(0.6,0.003,0,0.00003),alpha=0.4"
    )
    assert (large.values["optim.name"], large.values["epochs"]) == ("adamw", 300)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("rwp") and n != "rwp-figure3"])
def test_rows_of_rwp_make_as_many_steps_as_the_others(name):
    """Two batches a step are one of twice the size, and twice the epochs; table 2 has its own budgets."""
    held = recipes.load(name)
    steps = {}
    for row in held.methods:
        values = held.choose([row], {"dataset": "x"}).values
        steps[row] = values["epochs"] * math.ceil(49_500 / values["batch"])
        batches = getattr(methods.parse(str(values["method"])), "batches", 1)
        assert values["batch"] == held.settings["batch"] * batches
    plain = steps.pop("plain", max(steps.values()))
    halved = name == "rwp-table2"
    assert all(s == pytest.approx(plain / 2 if halved else plain, rel=0.005) for s in steps.values())


PARAMETERS = {  # as the packages' documents have them, for ImageNet
    "torchvision/resnet18": 11_689_512,
    "torchvision/resnet50": 25_557_032,
    "torchvision/vgg16_bn": 138_365_992,
    "timm/resnet50": 25_557_032,
    "timm/resnet101": 44_549_160,
    "timm/resnet152": 60_192_808,
    "timm/vit_small_patch32_224": 22_878_952,
    "timm/deit_small_patch16_224": 22_050_664,
}


def test_every_network_of_another_package_is_known_by_its_size():
    outside = {m.removesuffix(":pretrained") for name in NAMES for m in recipes.load(name).models if "/" in m}
    assert outside == set(PARAMETERS)


@pytest.mark.vision
@pytest.mark.parametrize("model", PARAMETERS)
def test_networks_of_other_packages_are_there_and_take_the_recipe_s_images(model):
    importable(model.partition("/")[0])
    with torch.device("meta"):
        net = models.build(model, classes=1000, channels=3, size=224)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[model]


@every_recipe
def test_a_recipe_is_listed_and_shown_with_everything_it_says(name, capsys):
    held = recipes.load(name)
    assert main(["list", "recipes"]) == 0
    assert f"{name:<{max(map(len, NAMES))}}  {held.title}\n" in capsys.readouterr().out
    assert main(["show", name]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in [
        held.title,
        held.source,
        *held.differs,
        *(held.sources[k] for k in (*held.settings, *held.methods)),
    ]:
        assert " ".join(text.split()) in shown
    for row in held.published.rows:
        assert " ".join(map(str, row)) in shown
    for case in held.where:
        of_a_row = any(r in held.methods for r in (*case.rows, *case.methods))
        everywhere = case.settings and not case.rows
        assert (case.source in shown) or not (of_a_row or everywhere)
    if "sam" not in held.methods:
        assert "sam sam:rho=0.1 (" not in shown


def test_the_guide_names_every_recipe():
    text = (Path(__file__).parents[2] / "docs/how-to/recipes.md").read_text()
    for name in NAMES:
        assert f"| `{name}` |" in text


def test_an_impossible_recipe_is_refused_where_it_is_used():
    held = recipes.load("rwp-table1")
    with pytest.raises(InputError, match="batch is 0"):
        held.choose([], {"batch": 0}).run()
