"""The packages that checks and measurements import, installed from a folder of wheels where one is missing."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALLED = "out/gpu/packages"  # where wheels are unpacked, so that the machine's own packages stay as they are
_MODULES = {"typing-extensions": "typing_extensions", "docstring-parser": "docstring_parser", "pyyaml": "yaml"}
_MODULES |= {"scikit-learn": "sklearn", "pillow": "PIL"}
OPTIONAL = {"pytorch_optimizer": "pytorch_optimizer", "torchvision": "torchvision", "timm": "timm"}


def required() -> dict[str, str]:
    """Return the module of each distribution that is needed: those of pyproject.toml, and pytest."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = [re.split(r"[<>=!~\[; ]", line)[0].lower() for line in content["project"]["dependencies"]]
    return {name: _MODULES.get(name, name) for name in [*names, "pytest"]}


def missing(modules: dict[str, str]) -> list[str]:
    """Return the distributions whose module cannot be found."""
    return [name for name, module in modules.items() if importlib.util.find_spec(module) is None]


def prepare(wheels: Path) -> tuple[list[str], list[str]]:
    """Install what is missing from ``wheels``, without a network; return what is still missing, and optional.

    torch is never installed: the machine's own fits its driver.
    """
    folder = ROOT / INSTALLED
    sys.path.append(str(folder))
    absent = [name for name in missing(required() | OPTIONAL) if name != "torch"]
    if absent and wheels.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(wheels)]
        for name in absent:
            # one by one, because one that is not there must not stop the others
            wheel = subprocess.run(
                [*pip, "--no-deps", "--target", str(folder), name], capture_output=True, text=True
            )
            print(
                f"  {name}: {'from ' + str(wheels) if not wheel.returncode else 'not in ' + str(wheels)}",
                flush=True,
            )
        for name in _further(wheels, absent):
            subprocess.run([*pip, "--no-deps", "--target", str(folder), name], capture_output=True, text=True)
        importlib.invalidate_caches()
    return missing(required()), missing(OPTIONAL)


def _further(wheels: Path, installed: list[str]) -> list[str]:
    """Return the other distributions in the folder that this machine lacks: what the missing ones need."""
    names = {wheel.name.split("-")[0] for wheel in wheels.glob("*.whl")}
    done = {name.replace("-", "_").lower() for name in installed}
    present = importlib.util.find_spec
    return sorted(name for name in names if name.lower() not in done and name != "torch" and present(name) is None)
