"""The blocks of the guide run from top to bottom, and its commands are valid."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs/how-to/diagnose.md"


def test_the_guide_runs_from_top_to_bottom(capsys):
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(compile(block, "diagnose.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == ["48 True", "10 True", "True 2", "True", "9 True"]
    assert len(lines) == 8 and all("vacuous" in line for line in lines[5:])


def test_the_guide_s_commands_are_understood(capsys):
    from steppe.cli.main import main

    for line in re.findall(r"^steppe (diagnose [^#\n]*)", GUIDE.read_text(), re.MULTILINE):
        assert main(line.split()) == 2
        assert "has no config.json" in capsys.readouterr().err
