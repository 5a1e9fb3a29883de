"""The guide's blocks run, each on its own."""

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs/how-to/integrations.md"
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
NEEDS = {"optimizer": [], "hugging face": ["transformers", "accelerate"], "accelerate": ["accelerate"]}
NEEDS |= {"lightning": ["lightning"], "timm": ["timm.task"], "mean": []}
CASES = [
    pytest.param(block, needs, id=name, marks=pytest.mark.vision if name == "timm" else ())
    for block, (name, needs) in zip(BLOCKS, NEEDS.items(), strict=True)
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("block", "needs"), CASES)
def test_the_guide_s_blocks_run(block, needs):
    for package in needs:
        pytest.importorskip(package)
    exec(compile(block, str(GUIDE), "exec"), {"__name__": "guide"})
