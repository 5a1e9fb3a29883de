"""The ``steppe`` command with little of something left, from the moment that its modules are imported.

So the command runs out of it, not the interpreter that imports them.
"""

import importlib
import os
import pkgutil
import random
import resource
import time
from pathlib import Path

import steppe

STARVED = {
    "file": "FAULTS_FILE",  # bytes of the largest file
    "files": "FAULTS_FILES",  # more files to be opened
    "memory": "FAULTS_MEMORY",  # more bytes of memory
    "clock": "FAULTS_CLOCK",  # seconds that the clock jumps by at most, again and again
}
OPTIONAL = ("__main__", "integrations", "tracking", "ray", "slurm", "torchvision_timm")  # load other packages


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _jumping(seconds: float) -> None:
    # not to and fro: jumps that undo each other would hide
    true, chance = time.time, random.Random(0)

    def jumped() -> float:
        return true() + seconds * chance.random()

    time.time = jumped


def starve() -> None:
    # a module that is imported late would fail with the interpreter's message
    for module in pkgutil.walk_packages(steppe.__path__, "steppe."):
        if not set(module.name.split(".")) & set(OPTIONAL):
            importlib.import_module(module.name)
    importlib.import_module("sklearn.datasets")
    limits = {name: int(os.environ[variable]) for name, variable in STARVED.items() if variable in os.environ}
    if "file" in limits:
        _limit(resource.RLIMIT_FSIZE, limits["file"])
    if "memory" in limits:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, size + limits["memory"])
    if "files" in limits:
        _limit(resource.RLIMIT_NOFILE, max(int(n) for n in os.listdir("/proc/self/fd")) + limits["files"])
    if "clock" in limits:
        _jumping(limits["clock"])


if __name__ == "__main__":
    from faults import broken
    from faults.command import PLANT
    from steppe.cli.main import main

    starve()
    if os.environ.get(PLANT):
        broken.plant(os.environ[PLANT])
    raise SystemExit(main())
