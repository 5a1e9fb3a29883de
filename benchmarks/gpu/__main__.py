"""Check and time steppe on this machine: ``make gpu``, or ``python -m benchmarks.gpu``; no network is used.

First the checks (tests/gpu, 4 minutes at most), then the speed (3 minutes at most): steps by hand and ours, other
packages, graphs, torch.compile, launches and memory, the data, and runs that share the GPU. Every result is
written as it comes, to out/gpu/results.jsonl and as a table into docs/performance.md. ``--device cpu`` tries every
line of it with tiny sizes and writes no document.

The machine needs torch 2.11 or newer, numpy, safetensors, Pillow and pytest. Without jsonargparse,
docstring-parser and rich the commands are not checked, without pytorch_optimizer its steps are not timed. What is
missing is taken from a folder of wheels, if it is there:

    pip download --no-deps -d wheels rich markdown-it-py mdurl pygments jsonargparse docstring-parser \\
        torchmetrics lightning-utilities cloudpickle pytorch_optimizer     # with a network
    make gpu GPU_WHEELS=wheels                                             # without one
"""

import argparse
import json
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import packages, table
from benchmarks.gpu.packages import ROOT

# each group in a process of its own: an error on a GPU spoils the process that it happens in
GROUPS = {"steps": 50, "graph": 20, "compile": 45, "runs": 65}  # and their seconds, of 180
_PATIENCE = 1200  # seconds on a processor, which may be busy
_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")  # in the last line of pytest
_GRACE = 15  # seconds after which a process that ignores its limit is killed


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and measure; return 1 if a check failed, 2 if the machine lacks something."""
    options = _parser().parse_args(arguments)
    for name, seconds in {"checks": 240, "speed": 180}.items():
        if getattr(options, name) is None:
            setattr(options, name, seconds if options.device == "cuda" else _PATIENCE)
    out = ROOT / options.out
    out.mkdir(parents=True, exist_ok=True)
    lacking, absent = packages.prepare(ROOT / options.wheels)
    fetch = f"with a network: pip download --no-deps -d wheels {' '.join(packages.wheels(lacking + absent))}"
    if lacking:
        folder = ROOT / options.wheels
        print(f"error: {' '.join(lacking)} not installed; {fetch}; copy it to {folder}", file=sys.stderr)
        return 2
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU; give GPU_DEVICE=cpu to try the scripts on the processor", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)])
    report = _Report(out, options, {"command": command, **_machine(options.device), "missing": absent})
    if absent:
        print(f"goes on without {', '.join(absent)}; to have them, {fetch}", flush=True)
    code = 0 if options.checks <= 0 else _check(options, report)
    for group, share in GROUPS.items():
        seconds = options.speed * share / sum(GROUPS.values())
        if seconds > 0 and (options.only is None or group in options.only):
            _measure(group, seconds, options, report)
    print(f"\n{table.render(report.rows, report.about)}\nwritten: {report.written()}", flush=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--wheels", default="wheels", help="folder of wheels for packages that are missing")
    parser.add_argument("--checks", type=float, help="seconds for the checks, 240 on a GPU; 0: none")
    parser.add_argument("--parts", type=int, help="processes of the checks; on a GPU one for 4 cores, at most 4")
    parser.add_argument("--speed", type=float, help="seconds for the speed, 180 on a GPU; 0: none")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="groups of measurements; all if not given")
    parser.add_argument("--out", default="out/gpu", help="folder of the results")
    parser.add_argument("--document", help="file with the table's markers; docs/performance.md on a GPU")
    return parser


class _Report:
    """The results so far: written whenever one comes."""

    def __init__(self, out: Path, options: argparse.Namespace, about: dict[str, Any]):
        self.rows: list[dict[str, Any]] = []
        self.about, self.lines = about, out / "results.jsonl"
        on_gpu = options.device == "cuda"
        self.document = ROOT / (options.document or "docs/performance.md") if options.document or on_gpu else None
        self.lines.write_text(json.dumps({"about": about}) + "\n")

    def add(self, row: dict[str, Any]) -> None:
        """Add a result and write all."""
        self.rows.append(row)
        with self.lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.document is not None:
            table.write(self.document, table.render(self.rows, self.about))

    def written(self) -> str:
        """Return where the results are."""
        return ", ".join(map(str, [self.lines, *([self.document] if self.document else [])]))


def _machine(device: str) -> dict[str, str]:
    import torch

    about = {"python": sys.version.split()[0], "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    if device == "cpu":
        return about | {"device": "the processor, tiny sizes"}
    return about | {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}


def _environment(device: str) -> dict[str, str]:
    paths = [str(ROOT / "src"), str(ROOT), str(ROOT / packages.INSTALLED), os.environ.get("PYTHONPATH", "")]
    names = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    # before the first product, for the checks that compare bits
    names["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return {**os.environ, **names, **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})}


def _check(options: argparse.Namespace, report: _Report) -> int:
    """Run the checks and print their progress; return 1 if one failed."""
    print(f"checks, {options.checks:.0f} s at most", flush=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/gpu",
        "-p",
        "no:benchmark",
        "-p",
        "no:cacheprovider",
        "-v",
        "-rfs",
        "-W",  # what another version of a package warns of is no failure
        "default",
    ]
    environment = {**_environment(options.device), "STEPPE_GPU_SECONDS": str(options.checks)}
    if options.device == "cuda":
        environment["STEPPE_GPU_ONLY"] = "1"  # what is parametrised by device ran on the processor before
    counts: Counter[str] = Counter()
    start, parts = time.monotonic(), options.parts or _parts(options.device)
    for line in _merged(command, environment, options.checks + _GRACE, parts):
        print(line, flush=True)
        results = _COUNTS.findall(line) if line.startswith("==") else []
        counts.update({kind.removesuffix("s"): int(number) for number, kind in results})
        counts["part"] += bool(results)
    text = ", ".join(f"{counts[kind]} {kind}" for kind in ("failed", "error", "passed", "skipped") if counts[kind])
    ended = counts["part"] == parts
    text = (text or "none ran") + f" in {time.monotonic() - start:.0f} s" + ("" if ended else ", not all ended")
    report.add({"group": "checks", "row": "checks", "text": text})
    return int(bool(counts["failed"] or counts["error"]) or not counts["passed"] or not ended)


def _parts(device: str) -> int:
    """Return in how many processes the checks run, which wait for the host and hardly for the GPU."""
    return max(1, min(4, (os.cpu_count() or 1) // 4)) if device == "cuda" else 1


def _merged(command: list[str], environment: dict[str, str], seconds: float, parts: int) -> Iterator[str]:
    """Yield the lines of several processes, each with its part of the tests, as they come."""
    lines: queue.Queue[str | None] = queue.Queue()

    def run(part: int) -> None:
        try:
            for line in _lines(command, environment | {"STEPPE_GPU_PART": f"{part}/{parts}"}, seconds):
                lines.put(line)
        finally:
            lines.put(None)

    for part in range(parts):
        threading.Thread(target=run, args=(part,), daemon=True).start()
    running = parts
    while running:
        line = lines.get()
        if line is None:
            running -= 1
        else:
            yield line


def _measure(group: str, seconds: float, options: argparse.Namespace, report: _Report) -> None:
    """Measure one group in a process and add its results as they come."""
    print(f"speed: {group}, {seconds:.0f} s at most", flush=True)
    module = "benchmarks.gpu.runs" if group == "runs" else "benchmarks.gpu.steps"
    end = str(time.time() + seconds)
    command = [sys.executable, "-m", module, group, options.device, end, str(ROOT / options.out)]
    for line in _lines(command, _environment(options.device), seconds + _GRACE):
        try:
            row = json.loads(line)
        except ValueError:
            if not line.startswith("USDT"):  # of the profiler
                print(f"  {line}", flush=True)
            continue
        report.add({"group": group, **row})
        print(f"  {table.line(row)}", flush=True)


def _lines(command: list[str], environment: dict[str, str], seconds: float) -> Iterator[str]:
    """Yield the lines that a process prints; it is killed after ``seconds``."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.rstrip("\n")
        if process.wait() == -9:
            yield f"stopped after {seconds:.0f} s"
    finally:
        timer.cancel()
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
