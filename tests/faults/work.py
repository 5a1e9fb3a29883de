"""One class of faults in a process of its own: ``python -m faults.work CLASS COUNT SCRATCH [DEFECT]``.

Prints a case a line as JSON, and at the end the processor's seconds.
"""

import dataclasses
import importlib
import json
import resource
import signal
import sys
from pathlib import Path

from faults import broken
from faults.outcome import Where

MEMORY = 12 * 2**30  # what a size that is far too large may ask for in vain, bytes of address space


def main(name: str, count: str, scratch: str, plant: str | None = None) -> int:
    # begun in the background this process ignores Ctrl-C, and so would every command that it starts and interrupts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    faults = importlib.import_module(f"faults.classes.{name}")
    out = sys.stdout
    if plant is not None:
        broken.plant(plant)
    for case in faults.cases(int(count), Where(Path(scratch), plant)):
        print(json.dumps(dataclasses.asdict(case)), file=out, flush=True)
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"cpu": sum(u.ru_utime + u.ru_stime for u in used)}), file=out, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
