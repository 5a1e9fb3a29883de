"""What people really have, of independent choices: layouts of images, pixels, steps, environments."""

import os
import random
from collections.abc import Callable, Iterator

from faults.broken import says
from faults.outcome import Case, Where
from faults.world import colours, machines, reading, whole

TITLE = "what people have: layouts of images, pixels, batches and losses, environments"
FULL, SHORT, FEW = 310, 40, 40
PLANTED = says("exact-parts", "exif-ignored", "by-length", "own-keys", "long-sockets")
SHARES = {"layout": 0.55, "pixels": 0.2, "step": 0.2, "environment": 0.05}
OF_PLANTED = {
    "exact-parts": "layout",
    "exif-ignored": "pixels",
    "by-length": "step",
    "own-keys": "step",
    "long-sockets": "environment",
}


def cases(count: int, where: Where) -> Iterator[Case]:
    """Try ``count`` situations, each drawn from its own number; with a defect only those of its kind."""
    os.environ["STEPPE_CACHE"] = str(where.scratch / "cache")
    situations: dict[str, Callable[[str, random.Random, Where], Case]] = {
        "layout": reading.situation,
        "pixels": colours.situation,
        "step": whole.situation,
        "environment": machines.Machines(light=count < FULL).situation,
    }
    for kind, share in SHARES.items():
        number = round(count * share)
        if where.plant:
            number = (1 if kind == "environment" else count) if kind == OF_PLANTED[where.plant] else 0
        for i in range(number):
            yield situations[kind](f"{kind} {i}", random.Random(f"{kind} {i}"), where)
