"""What a machine runs out of, or does behind one's back: one line, nothing lost, and the same command goes on."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.broken import says
from faults.command import Ended, alone, environment, judged, program
from faults.kills import SEVERAL, children
from faults.outcome import Case, Where
from faults.runs import NOISY, TINY, different, every
from faults.starved import STARVED

TITLE = "resources: disk, permissions, descriptors, memory, clock, company, hangs"
FULL, SHORT, FEW = 60, 8, 4
PLANTED = says("raw-errors")
PATIENCE = 240
GRID = ("compare", "--methods", "plain", "sadt-v1", "--seeds", "0", "--epochs", "3", "--jobs", "2", *TINY)


def cases(count: int, where: Where) -> Iterator[Case]:
    """Try each shortage; ``count`` says with how many different limits in all."""
    each = max(1, count // 8)
    machine = Machine(where)
    yield from machine.files_too_large(each)
    yield from machine.disk_full(each)
    if where.plant is not None:
        return
    yield from machine.read_only()
    yield from machine.descriptors(2 * each)
    yield from machine.memory(2 * each)
    yield from machine.clock()
    yield from machine.company()
    yield from machine.hang()


@contextmanager
def mounted(place: Path, size: int) -> Iterator[Callable[[str], bool]]:
    """Have a small file system there, if this user may; give a way to mount it anew with other options."""
    place.mkdir(parents=True, exist_ok=True)

    def mount(options: str) -> bool:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
        )
        return done.returncode == 0

    if not mount(f"size={size}k"):
        yield lambda options: False
        return
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        _unmount(place)


def _unmount(place: Path) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    library.umount2(os.fsencode(place), 2)  # MNT_DETACH: also if a process is still inside


class Machine:
    """Where commands run out of things."""

    def __init__(self, where: Where):
        self.where = where
        self.home = where.scratch / "machine"
        self.home.mkdir()
        self.expected: dict[tuple[str, ...], dict[str, Any]] = {}

    def start(self, words: tuple[str, ...], out: Path, **starved: object) -> subprocess.Popen[str]:
        """Start a command; ``starved`` names what its process is short of."""
        line = program(self.where, *words, "--out", str(out))
        if starved:
            line = [sys.executable, "-m", "faults.starved", *words, "--out", str(out)]
        more = {STARVED[name]: str(value) for name, value in starved.items()}
        return subprocess.Popen(
            line,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment(self.where, more),
            cwd=self.home,
        )

    def run(self, words: tuple[str, ...], out: Path, **starved: object) -> Ended:
        """Run a command to its end."""
        return self.wait(self.start(words, out, **starved))

    def wait(self, process: subprocess.Popen[str], patience: float = PATIENCE) -> Ended:
        try:
            _, err = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, err = process.communicate()
            err += f"no end within {patience} s"
        return Ended(process.returncode, err)

    def after(self, name: str, words: tuple[str, ...], out: Path, case: Case) -> Case:
        """Give the command again, short of nothing: it ends with the bits of one that never was."""
        if case.verdict != "held":
            return case
        again = self.run(words, out)
        if again.code != 0:
            return Case(name, "lost", f"does not go on: {again.err[-200:]}")
        wrong = different(every(out), self.whole(words))
        return Case(name, "lost", wrong) if wrong else case

    def whole(self, words: tuple[str, ...]) -> dict[str, Any]:
        """Return how the undisturbed command ends."""
        if words not in self.expected:
            out = self.home / f"whole-{len(self.expected)}"
            ended = self.run(words, out)
            assert ended.code == 0, ended.err
            self.expected[words] = every(out)
        return self.expected[words]

    def files_too_large(self, count: int) -> Iterator[Case]:
        """Refuse files above a size, as quotas do."""
        for kilobytes in [60, 400, 1, 150, 20, 250, 5, 100][:count]:
            out = self.home / f"large-{kilobytes}"
            name = f"train, files of at most {kilobytes} KB"
            case = judged(name, self.run(NOISY, out, file=kilobytes * 1024), codes=(0, 2))
            yield self.after(name, NOISY, out, case)

    def disk_full(self, count: int) -> Iterator[Case]:
        """Give all commands a small disk, then a larger one."""
        for number, kilobytes in enumerate([300, 700, 4, 100, 1500, 40, 12, 2200, 500][:count]):
            words = GRID if number % 2 else NOISY
            out = self.home / f"disk-{kilobytes}"
            with mounted(out, kilobytes) as again:
                if not again(f"size={kilobytes}k"):
                    return
                name = f"{words[0]}, disk of {kilobytes} KB"
                ended = self.run(words, out)
                case = judged(name, _first_line(ended), codes=(0, 1, 2), says=() if ended.code == 0 else ("writ",))
                again("size=100m")
                yield self.after(name, words, out, case)

    def read_only(self) -> Iterator[Case]:
        """Let every command meet a folder that it may not write to."""
        out = self.home / "only"
        with mounted(out, 50_000) as again:
            if not again("size=50m"):
                return
            assert self.run(GRID, out).code == 0
            (run, *_) = sorted((out / "runs").iterdir())
            again("ro")
            for words in ((*NOISY, "--seed", "9"), GRID):
                yield judged(f"{words[0]}, read-only folder", self.run(words, out), says=("cannot write",))
            for words in (("report", str(out)), ("diagnose", str(run), "--seconds", "0.1")):
                yield judged(f"{words[0]}, read-only folder", self.plain(*words), says=("cannot write",))
            yield judged(
                "export, read-only folder",
                self.plain("export", str(run), str(out / "flat")),
                says=("cannot write",),
            )

    def plain(self, *words: str) -> Ended:
        """Run a command that takes no --out."""
        return alone(self.where, words, self.home, timeout=PATIENCE)

    def descriptors(self, count: int) -> Iterator[Case]:
        """Leave a process only so many files to open."""
        for left in [2, 6, 0, 1, 3, 4, 9, 14, 20, 30][:count]:
            out = self.home / f"files-{left}"
            name = f"train, {left} more files"
            yield self.after(name, NOISY, out, judged(name, self.run(NOISY, out, files=left), codes=(0, 2)))

    def memory(self, count: int) -> Iterator[Case]:
        """Leave a process only so much memory."""
        for left in [2, 40, 0, 10, 20, 80, 5, 120, 200, 400][:count]:
            out = self.home / f"memory-{left}"
            name = f"train, {left} MB more memory"
            yield self.after(
                name, NOISY, out, judged(name, self.run(NOISY, out, memory=left * 2**20), codes=(0, 2))
            )

    def clock(self) -> Iterator[Case]:
        """Let the clock jump while a run trains."""
        for days in (-4000, 4000):
            out = self.home / f"clock{days}"
            ended = self.run(NOISY, out, clock=days * 86400)
            case = judged(f"train, clock jumps by {days} days", ended, codes=(0,))
            wrong = different(every(out), self.whole(NOISY)) if case.verdict == "held" else None
            yield Case(case.name, "lost", wrong) if wrong else case

    def company(self) -> Iterator[Case]:
        """Start two comparisons in one folder at once, and two trainings of one run."""
        for words in (GRID, NOISY):
            out = self.home / f"company-{words[0]}"
            both = [self.start(words, out) for _ in range(2)]
            ended = [self.wait(process) for process in both]
            cases = [judged(f"{words[0]} twice at once", e, codes=(0, 2)) for e in ended]
            bad = [case for case in cases if case.verdict != "held"]
            if bad or all(e.code for e in ended):
                yield bad[0] if bad else Case(f"{words[0]} twice at once", "lost", f"both refused: {ended[0].err}")
                continue
            yield self.after(cases[0].name, words, out, cases[0])

    def hang(self) -> Iterator[Case]:
        """Stop a worker in its tracks: Ctrl-C still ends all of it, and what is started again goes on."""
        out = self.home / "hang"
        process = self.start(SEVERAL, out)
        if not self.stopped(process, out):
            yield Case("compare, a worker hangs", "lost", "no worker to stop")
            self.wait(process)
            return
        time.sleep(2)
        os.kill(process.pid, signal.SIGINT)
        ended = self.wait(process, 60)
        case = judged("compare, a worker hangs, Ctrl-C", ended, codes=(130,), says=("go on with",))
        yield self.after(case.name, SEVERAL, out, case)
        shutil.rmtree(out)
        process = self.start(SEVERAL, out)
        pid = self.stopped(process, out)
        time.sleep(2)
        if pid:
            os.kill(pid, signal.SIGCONT)
        case = judged("compare, a worker sleeps for a while", self.wait(process), codes=(0,))
        wrong = different(every(out), self.whole(SEVERAL)) if case.verdict == "held" else None
        yield Case(case.name, "lost", wrong) if wrong else case

    def stopped(self, process: subprocess.Popen[str], out: Path) -> int:
        """Stop a worker that trains; return its number."""
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            if list(out.glob("runs/*/metrics.jsonl")):
                below = children(process.pid)
                parents = {_parent(pid) for pid, _ in below}
                # workers are the leaves below the server that makes them
                leaves = [pid for pid, _ in below if pid not in parents and _parent(pid) != process.pid]
                if leaves:
                    os.kill(leaves[0], signal.SIGSTOP)
                    return leaves[0]
            time.sleep(0.02)
        return 0


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _first_line(ended: Ended) -> Ended:
    """Return a comparison's end with one of its lines: it says one for each run that stopped."""
    lines = ended.err.splitlines()
    if ended.code == 1 and all(line.startswith("steppe: ") for line in lines):
        return Ended(1, lines[0] + "\n")
    return ended
