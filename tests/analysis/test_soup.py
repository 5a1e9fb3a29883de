"""``steppe soup``: the mean of runs' weights, its statistics, what greedy takes, and the files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import steppe
from steppe.analysis.load_run import load
from steppe.analysis.soup import make_soup
from steppe.cli.main import main
from steppe.data.splits import subset


def test_a_uniform_soup_is_the_mean_with_statistics_measured_at_it(homes: dict[str, Path], tmp_path: Path, capsys):
    folders = [homes["plain"], homes["sam"]]
    soup = make_soup(folders, greedy=False, which="last")
    runs = [load(folder, "last") for folder in folders]
    for name, p in runs[0].model.named_parameters():
        other = runs[1].model.get_parameter(name)
        assert torch.allclose(soup.weights[name], (p + other) / 2, atol=1e-7), name
    assert soup.members == folders and soup.singles[folders[1]] == runs[1].surface(runs[1].images.val).value()
    model = runs[0].model
    model.load_state_dict(soup.weights)
    images = runs[0].images
    batches = runs[0].batches(subset(images.train, len(images.train)))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.optim.swa_utils.update_bn([batch.x for batch in batches], model)
    for name, b in model.named_buffers():
        assert torch.allclose(b.float(), soup.weights[name].float(), atol=1e-5), name
    assert runs[0].surface(images.val).value().loss == pytest.approx(soup.value.loss, rel=1e-4)

    out = tmp_path / "flat"
    command = ["soup", *map(str, folders), "--kind", "uniform", "--weights", "last", "--out", str(out), "--json"]
    assert main(command) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["soup"]["runs"] == list(map(str, folders)) and content["soup"]["kind"] == "uniform"
    assert content == json.loads((out / "model.json").read_text())
    saved = load_file(out / "model.safetensors")
    assert all(torch.allclose(saved[k].float(), t.float(), atol=1e-6) for k, t in soup.weights.items())
    assert (out / "model.pt2").exists()


def test_a_greedy_soup_takes_what_does_not_worsen_the_validation(homes: dict[str, Path]):
    folders = list(homes.values())
    soup = make_soup(folders, greedy=True)

    def rank(value) -> tuple[float, float]:
        return value.accuracy, -value.loss

    first, *others = sorted(folders, key=lambda folder: rank(soup.singles[folder]), reverse=True)
    members, best = [first], rank(soup.singles[first])
    for folder in others:
        value = rank(make_soup([*members, folder], greedy=False).value)
        if value >= best:
            members, best = [*members, folder], value
    assert soup.members == members
    assert rank(soup.value) == pytest.approx(best, rel=1e-4)


def test_runs_of_two_splits_are_no_soup(homes: dict[str, Path], tmp_path: Path):
    config = json.loads((homes["sam"] / "config.json").read_text())
    for name, value in {"split_seed": 1, "val": 0.5}.items():
        other = tmp_path / name
        shutil.copytree(homes["sam"], other)
        (other / "config.json").write_text(json.dumps(config | {"data": config["data"] | {name: value}}))
        with pytest.raises(steppe.InputError, match="has other data or another split than"):
            make_soup([homes["plain"], other], greedy=True)
    other = tmp_path / "augmented"
    shutil.copytree(homes["sam"], other)
    changed = config["data"] | {"augment": ["flip"], "noise": 0.5}
    (other / "config.json").write_text(json.dumps(config | {"data": changed}))
    assert make_soup([homes["plain"], other], greedy=False).members == [homes["plain"], other]


def test_one_run_is_no_soup(homes: dict[str, Path]):
    with pytest.raises(steppe.InputError, match="a soup of 1 run; give at least two"):
        make_soup([homes["plain"]] * 2, greedy=True)
    assert main(["soup", str(homes["plain"]), "missing"]) == 2
