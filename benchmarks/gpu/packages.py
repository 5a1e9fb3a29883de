"""The packages that checks and measurements import, installed from a folder of wheels where one is missing."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALLED = "out/gpu/packages"  # where wheels are unpacked, so that the machine's own packages stay as they are
_MODULES = {"typing-extensions": "typing_extensions", "docstring-parser": "docstring_parser", "pyyaml": "yaml"}
_MODULES |= {"scikit-learn": "sklearn", "pillow": "PIL"}
# what they need in turn; not torch, which is the machine's own
_WITH = {
    "rich": "markdown-it-py mdurl pygments",
    "torchmetrics": "lightning-utilities packaging",
    "jinja2": "markupsafe",
    "scikit-learn": "joblib threadpoolctl",
    "matplotlib": "contourpy cycler fonttools kiwisolver packaging pyparsing python-dateutil six",
    "pytest": "iniconfig packaging pluggy pygments",
}
NEEDED = ("torch", "numpy", "safetensors", "pillow", "pytest")  # the others are imported where they are used
OPTIONAL = {"pytorch_optimizer": "pytorch_optimizer"}  # timed beside ours


def required() -> dict[str, str]:
    """Return the module of each distribution that everything needs."""
    return {name: _MODULES.get(name, name) for name in NEEDED}


def optional() -> dict[str, str]:
    """Return the module of each distribution that only some of the checks and measurements need."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = [re.split(r"[<>=!~\[; ]", line)[0].lower() for line in content["project"]["dependencies"]]
    return {name: _MODULES.get(name, name) for name in names if name not in NEEDED} | OPTIONAL


def wheels(names: list[str]) -> list[str]:
    """Return the distributions, and what they need in turn, each once."""
    return list(dict.fromkeys(name for one in names for name in [one, *_WITH.get(one, "").split()]))


def missing(modules: dict[str, str]) -> list[str]:
    """Return the distributions whose module cannot be found."""
    return [name for name, module in modules.items() if importlib.util.find_spec(module) is None]


def prepare(folder: Path) -> tuple[list[str], list[str]]:
    """Install what the machine lacks from a folder of wheels; return what is still missing, and optional.

    torch is never installed: the machine's own fits its driver.
    """
    target = ROOT / INSTALLED
    sys.path.append(str(target))
    if missing(required() | optional()):
        # one by one, because one that does not fit must not stop the others
        for wheel in sorted(folder.glob("*.whl")):
            name = wheel.name.split("-")[0]
            if name != "torch" and not _is_installed(name):
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
                job = subprocess.run([*pip, str(target), str(wheel)], capture_output=True, text=True)
                print(f"  {name}: {'installed' if not job.returncode else job.stderr.strip()}", flush=True)
        importlib.invalidate_caches()
    return missing(required()), missing(optional())


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
