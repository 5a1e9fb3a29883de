"""The page of data is true: the data sets of its commands load, and its first comparison runs."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steppe import data
from steppe.cli import main
from steppe.config import Data

PAGE = (Path(__file__).parents[2] / "docs/how-to/data.md").read_text()
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if "cifar10:PATH" not in line
]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's files, with its columns and first rows."""
    monkeypatch.chdir(tmp_path)
    texts = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal(70, 9):.1f},{('Oslo', 'Rome')[i % 2]},{1950 + i},{200 + 3 * i}" for i in range(60)]
    Path("houses.csv").write_text(texts[0] + "\n".join(rows))
    Path("photos").mkdir()
    labels = [
        f"{i:04}.jpg,{('red', 'green')[i % 2]};{('round', 'square')[i % 3 % 2]},{i / 2}" for i in range(3, 40)
    ]
    Path("photos/labels.csv").write_text(texts[1] + "\n".join(labels))
    for i in range(1, 40):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(f"photos/{i:04}.jpg")
    Path("books").mkdir()
    for name in ("one.txt", "two.txt"):
        Path("books", name).write_text("It was a dark and stormy night. " * 200)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_data_sets_of_the_page_load(command: list[str]) -> None:
    name, size = command[command.index("--datasets") + 1], 32 if "--data.size" in command else None
    values = {a.removeprefix("--data."): b for a, b in pairwise(command)}
    options = {k: float(values[k]) for k in ("train", "imbalance", "label_noise") if k in values}
    loaded = data.load(name, Data(size=size, augment=(), **options))
    tasks = {"unit=": "regression", "=labels": "multi-label", "text": "language modelling"}
    assert loaded.task == next((task for key, task in tasks.items() if key in name), "classification")
    assert len(loaded.train) and len(loaded.val) and len(loaded.test)


@pytest.mark.slow
def test_the_first_comparison_runs(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*COMMANDS[0], "--out", "out"]
    command[command.index("--seeds") : command.index("--out")] = ["--seeds", "0", "1"]
    command[command.index("--epochs") + 1] = "2"
    assert main.main(command) == 0
    assert "test RMSE, kEUR (lower is better)" in " ".join(capsys.readouterr().out.split())
