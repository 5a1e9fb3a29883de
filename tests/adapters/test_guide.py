"""The guide's blocks run, one after another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs/how-to/adapters.md"
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("block", BLOCKS, ids=["optimizer", "hugging face", "accelerate", "lightning"])
def test_the_guide_s_blocks_run(block, capsys):
    if "transformers" in block or "accelerate" in block:
        pytest.importorskip("transformers")
    if "import lightning" in block:
        pytest.importorskip("lightning")
    exec(compile(block, str(GUIDE), "exec"), {"__name__": "guide"})
