"""The ``steppe`` command, in this process or in one of its own, and what is promised of how it ends."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.guard import Guard
from faults.outcome import Case, Where

ROOT = Path(__file__).parents[2]
PLANT = "FAULTS_PLANT"


@dataclass(frozen=True)
class Ended:
    """Exit code and error output of a command; ``outside`` is what it wrote where it may not."""

    code: int
    err: str
    outside: tuple[str, ...] = ()


def in_process(guard: Guard, arguments: Sequence[str], *allowed: Path) -> Ended:
    """Run a command in this process, which may write below the ``allowed`` places only."""
    from steppe.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:  # torch makes it when a process exports for the first time
        allowed = (*allowed, Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), guard.watching(*allowed) as events:
        try:
            code = main(list(arguments))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            code = 1
            err.write(traceback.format_exc())
    return Ended(code, err.getvalue(), tuple(events))


def program(where: Where, *arguments: str, module: str | None = None) -> list[str]:
    """Return the command line; with a defect to plant, the program that plants it first."""
    module = module or ("steppe" if where.plant is None else "faults.broken")
    return [sys.executable, "-m", module, *arguments]


def environment(where: Where, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a command whose home and temporary files are in the scratch folder."""
    home = where.scratch / "home"
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    own = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "STEPPE_CACHE": str(home / "cache"), "COLUMNS": "120"}
    own["STEPPE_SAVE_SECONDS"] = "0"  # the trainings here are shorter than the usual interval
    own |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    own["MPLCONFIGDIR"] = str(home / "mpl")
    own["TORCHINDUCTOR_CACHE_DIR"] = str(home / "inductor")
    own |= {PLANT: where.plant} if where.plant else {}
    return os.environ | own | dict(more or {})


def waited(process: subprocess.Popen[str], patience: float) -> Ended:
    """Return how a process ended that leads a group; after ``patience`` seconds all of the group is killed."""
    try:
        _, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, err = process.communicate()
        err += f"no end within {patience} s"
    return Ended(process.returncode, err)


def alone(where: Where, arguments: Sequence[str], cwd: Path, *, timeout: float = 300) -> Ended:
    pipes = {"capture_output": True, "text": True, "errors": "backslashreplace"}
    line = program(where, *arguments)
    done = subprocess.run(line, cwd=cwd, env=environment(where), timeout=timeout, **pipes)
    return Ended(done.returncode, done.stderr)


def judged(name: str, ended: Ended, *, codes: tuple[int, ...] = (2,), says: Sequence[str] = ()) -> Case:
    """Judge how a command ended: code 0 silently, else one line that begins as promised; ``says`` is in it."""
    if ended.outside:
        return Case(name, "outside", "; ".join(ended.outside[:3]))
    lines = ended.err.splitlines()
    last = lines[-1][:200] if lines else ""
    if "Traceback (most recent call last)" in ended.err:
        return Case(name, "traceback", last)
    if ended.code not in codes:
        return Case(name, "lost" if ended.code >= 0 else "traceback", f"exit code {ended.code}: {last}")
    if ended.code == 0:
        return Case(name, "held") if not lines else Case(name, "traceback", f"printed {last}")
    if len(lines) != 1 or (ended.code == 2 and not last.startswith("steppe: error: ")):
        return Case(name, "traceback", f"{len(lines)} lines, the last {last!r}")
    missing = [text for text in says if text not in ended.err]
    return Case(name, "lost", f"{missing} not in {last!r}") if missing else Case(name, "held")


def went_back(output: str, *damaged: Path) -> bool:
    """Return whether this is the one line that names what is damaged and says what was used instead."""
    lines = output.splitlines()
    return (
        len(lines) == 1
        and all(str(path) in output for path in damaged)
        and "goes on from the one before" in output
    )
