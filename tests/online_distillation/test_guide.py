"""The guide's code runs from top to bottom, and its commands are methods and settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

from steppe.data.transforms.auto_augment import COMPOSITIONS
from steppe.methods import parse

GUIDE = (Path(__file__).parents[2] / "docs/how-to/distillation.md").read_text()


def test_the_guide_runs_from_top_to_bottom(capsys):
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(compile(block, "distillation.md", "exec"), names)
    assert capsys.readouterr().out == "['deployed', 'network 1', 'network 2', 'ensemble', 'hybrid']\n"


def test_the_guide_s_commands_exist():
    for spec in re.findall(r"--method (\S+?)[`\s]", GUIDE):
        parse(spec)
    assert all(f"`{name}`" in GUIDE for name in COMPOSITIONS)
