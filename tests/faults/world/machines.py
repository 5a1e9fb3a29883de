"""Commands in environments as machines have them: each ends as in an ordinary one, with the same bits."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from faults.command import environment, waited
from faults.outcome import Case, Where, compared
from faults.runs import TINY, different, every

ENTRY = Path(__file__).with_name("entry.py")
PATIENCE = 300
LOCKLESS = "the file system has no locks"
COMMANDS = (
    ("train", "--method", "sam", "--epochs", "1", *TINY),
    ("show", "sam"),
    ("train", "--method", "sadt-v1", "--epochs", "0.1", *TINY),
    ("train", "--epochs", "2", *TINY[:-4], "--batch", "1000"),
    ("train", "--epochs", "1", "--data.train", "10", "--data.test", "10", "--data.val", "10", "--batch", "10"),
    ("compare", "--methods", "plain", "sadt-v1", "--seeds", "0", "--epochs", "1", "--workers", "2", *TINY),
)
LIGHT = 2  # so many of them take few seconds
ODD: dict[str, dict[str, str | None]] = {
    "TMPDIR of 100 characters": {"TMPDIR": "t" * 100},
    "no HOME": {"HOME": None, "STEPPE_CACHE": None, "XDG_CACHE_HOME": None},
    "COLUMNS 0": {"COLUMNS": "0"},
    "PYTHONOPTIMIZE 2": {"PYTHONOPTIMIZE": "2"},
    "no locks": {"FAULTS_LOCKLESS": "1"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "other hashes": {"PYTHONHASHSEED": "7"},
    "no USER": {"USER": None, "LOGNAME": None, "TERM": None},
}
FILES = ("random.py", "json.py", "numpy.py", "steppe.py")
CLOSED = (">&-", "<&-", "2>&-", "<&- >&- 2>&-", ">/dev/null")


class Machines:
    """Runs commands in odd environments, and each once in an ordinary one."""

    def __init__(self, light: bool) -> None:
        """Make ``light`` ones run short commands only, without modules that have to be compiled first."""
        self.commands = COMMANDS[:LIGHT] if light else COMMANDS
        self.odd = sorted(name for name in ODD if not (light and name.startswith("PYTHONOPTIMIZE")))
        self.ordinary: dict[tuple[str, ...], tuple[int, Any]] = {}

    def situation(self, name: str, r: random.Random, where: Where) -> Case:
        """Draw a command and an environment, and compare the end with that in an ordinary environment."""
        command, odd = r.choice(self.commands), r.sample(self.odd, r.choice((1, 2, 3)))
        file, closed = r.choice((None, *FILES)), r.choice(("", "", *CLOSED))
        if where.plant:
            command, odd, file, closed = COMMANDS[-1], ["TMPDIR of 100 characters"], None, ""
        home = where.scratch / name.replace(" ", "-")
        home.mkdir()
        if file:
            (home / file).write_text("raise SystemExit('the wrong module')\n")
        changes: dict[str, str | None] = {}
        for one in odd:
            changes |= ODD[one]
        if "TMPDIR" in changes:
            changes["TMPDIR"] = str(home / ("t" * 100))
            (home / ("t" * 100)).mkdir()
        out = home / r.choice(("out", "my runs é"))
        if "PYTHONOPTIMIZE" in changes:  # compiled once for all
            changes |= {"PYTHONDONTWRITEBYTECODE": None, "PYTHONPYCACHEPREFIX": str(where.scratch / "compiled")}
        details = [
            " ".join(command[:3]),
            *odd,
            *([f"{file} in the folder"] if file else []),
            *([closed] if closed else []),
        ]
        name = f"{name}: {', '.join(details)}"
        code, err = self.run(command, out, home, changes, closed, where)
        if command not in self.ordinary:
            (place := home / "ordinary").mkdir()
            ordinary, _ = self.run(command, place / "out", place, {}, "", Where(where.scratch))
            self.ordinary[command] = ordinary, content(place / "out")
        expected, files = self.ordinary[command]
        lines = [line for line in err.splitlines() if not ("no locks" in odd and LOCKLESS in line)]
        if "Traceback" in err:
            return Case(name, "traceback", lines[-1][:200])
        if code != expected:
            return Case(name, "lost", f"exit code {code} for {expected}: {lines[-1:]}")
        if lines and not code:
            return Case(name, "traceback", f"printed {lines[0][:200]!r}")
        return compared(name, different(content(out), files))

    def run(
        self,
        command: tuple[str, ...],
        out: Path,
        cwd: Path,
        changes: dict[str, str | None],
        closed: str,
        where: Where,
    ) -> tuple[int, str]:
        own = environment(where) | changes
        line = [sys.executable, str(ENTRY), *command, *(["--out", str(out)] if command[0] != "show" else [])]
        process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *line],
            cwd=cwd,
            env={name: value for name, value in own.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        ended = waited(process, PATIENCE)
        return ended.code, ended.err


def content(out: Path) -> dict[str, Any]:
    return every(out) if (out / "runs").is_dir() else {}
