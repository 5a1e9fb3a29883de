"""The ``steppe`` command, short of something from the moment that it has been imported.

So that it is the command that runs out and not the interpreter on its way to it.
"""

from __future__ import annotations

import importlib
import os
import random
import resource
import time
from pathlib import Path

STARVED = {
    "file": "FAULTS_FILE",  # bytes of the largest file
    "files": "FAULTS_FILES",  # more files to be opened
    "memory": "FAULTS_MEMORY",  # more bytes of memory
    "clock": "FAULTS_CLOCK",  # seconds that the clock jumps by at most, again and again
}
USED = ("engine", "compare.live", "data.decode", "voice", "examine.verb", "report.page", "verbs", "testing.verb")


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _jumping(seconds: float) -> None:
    # not to and fro: jumps that undo each other would hide
    true, chance = time.time, random.Random(0)

    def jumped() -> float:
        return true() + seconds * chance.random()

    time.time = jumped


def starve() -> None:
    """Set the limits that the environment names."""
    # what is imported late would fail in the interpreter's words
    for name in USED:
        importlib.import_module(f"steppe.{name}")
    importlib.import_module("sklearn.datasets")
    given = {name: int(os.environ[word]) for name, word in STARVED.items() if word in os.environ}
    if "file" in given:
        _limit(resource.RLIMIT_FSIZE, given["file"])
    if "memory" in given:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, size + given["memory"])
    if "files" in given:
        _limit(resource.RLIMIT_NOFILE, max(int(n) for n in os.listdir("/proc/self/fd")) + given["files"])
    if "clock" in given:
        _jumping(given["clock"])


if __name__ == "__main__":
    from faults import broken
    from faults.command import PLANT
    from steppe.cli.main import main

    starve()
    if os.environ.get(PLANT):
        broken.plant(os.environ[PLANT])
    raise SystemExit(main())
