"""What a machine runs out of, or does behind one's back: one line, nothing lost, and the same command goes on.

The sleeps only give what is stopped or still at work time to be waited for; what is judged comes after them.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from faults.broken import says
from faults.classes.kills import SEVERAL, TOGETHER, children
from faults.command import Ended, alone, environment, judged, program, waited
from faults.outcome import Case, Where, compared
from faults.runs import NOISY, TINY, different, every
from faults.starved import STARVED

TITLE = "resources: disk, permissions, descriptors, memory, clock, two commands in one folder, hangs"
FULL, SHORT, FEW = 60, 8, 4
PLANTED = says("wall-clock", "raw-errors", "torn-writes", "unlocked")
PATIENCE = 900
AT_ONCE = 2  # kinds of shortage, on two cores
TWO = ("train", "--method", "sadt-v1", "--epochs", "6", *TINY)


def cases(count: int, where: Where) -> Iterator[Case]:
    """Try each shortage; ``count`` says with how many different limits in all."""
    each = max(1, count // 8)
    machine = Machine(where)
    writes = [machine.files_too_large(each), machine.disk_full(each)]
    company = [machine.company(NOISY), machine.latecomer(SEVERAL)]
    of_planted = {
        "raw-errors": writes,
        "torn-writes": writes,
        "wall-clock": [machine.clock(each)],
        "unlocked": company,
    }
    every_one = [*writes, company[1], machine.read_only(each), machine.descriptors(2 * each - 1)]
    every_one += [machine.memory(2 * each - 1), machine.clock(each), machine.hang()]
    if each > 1:
        every_one += [machine.wake(), machine.hang_together()]
        every_one += [company[0], machine.company(SEVERAL), machine.latecomer(TWO)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for some in pool.map(list, every_one if where.plant is None else of_planted[where.plant]):
            yield from some


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
        self.wholes: dict[tuple[str, ...], Path] = {}
        self.making = Lock()

    def start(self, arguments: tuple[str, ...], out: Path, **starved: object) -> subprocess.Popen[str]:
        """Start a command; ``starved`` names what its process is short of."""
        line = program(self.where, *arguments, "--out", str(out), module="faults.starved" if starved else None)
        return self.begin(line, {STARVED[name]: str(value) for name, value in starved.items()})

    def begin(self, line: list[str], more: dict[str, str]) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        place = {"env": environment(self.where, more), "cwd": self.home}
        return subprocess.Popen(line, start_new_session=True, **pipes, **place)

    def run(self, arguments: tuple[str, ...], out: Path, **starved: object) -> Ended:
        return self.wait(self.start(arguments, out, **starved))

    def wait(self, process: subprocess.Popen[str], patience: float = PATIENCE) -> Ended:
        return waited(process, patience)

    def after(self, name: str, arguments: tuple[str, ...], out: Path, case: Case) -> Case:
        """Give the command again, short of nothing: it ends with the bits of one that never was."""
        if case.verdict != "held":
            return case
        again = self.run(arguments, out)
        if again.code != 0:
            return Case(name, "lost", f"does not go on: {again.err[-200:]}")
        return compared(name, different(every(out), self.whole(arguments)))

    def undisturbed(self, arguments: tuple[str, ...]) -> Path:
        """Give the command, short of nothing; return its folder."""
        with self.making:
            if arguments not in self.wholes:
                out = self.home / f"whole-{len(self.wholes)}"
                ended = self.run(arguments, out)
                assert ended.code == 0, ended.err
                self.wholes[arguments] = out
            return self.wholes[arguments]

    def whole(self, arguments: tuple[str, ...]) -> dict[str, Any]:
        return every(self.undisturbed(arguments))

    def files_too_large(self, count: int) -> Iterator[Case]:
        """Refuse files above a size, as quotas do."""
        # in turn the first that is refused is the checkpoint, the best weights, the settings
        for kilobytes in [1000, 60, 1, 1700, 400, 20, 5, 150][:count]:
            out = self.home / f"large-{kilobytes}"
            name = f"train, files of at most {kilobytes} KB"
            case = judged(name, self.run(NOISY, out, file=kilobytes * 1024), codes=(0, 2))
            yield self.after(name, NOISY, out, case)

    def disk_full(self, count: int) -> Iterator[Case]:
        """Give all commands a small disk, then a larger one."""
        # 3000: the second checkpoint has no room beside the first
        for number, kilobytes in enumerate([3000, 700, 4, 100, 300, 9000, 1500, 40, 12][:count]):
            arguments = SEVERAL if number % 2 else NOISY
            out = self.home / f"disk-{kilobytes}"
            with mounted(out, kilobytes) as again:
                if not again(f"size={kilobytes}k"):
                    yield Case("a small disk", "not run", "no file system may be mounted here")
                    return
                name = f"{arguments[0]}, disk of {kilobytes} KB"
                ended = self.run(arguments, out)
                case = judged(name, _first_line(ended), codes=(0, 1, 2), says=() if ended.code == 0 else ("writ",))
                again("size=100m")
                yield self.after(name, arguments, out, case)

    def read_only(self, count: int) -> Iterator[Case]:
        """Let commands meet a folder that they may not write to."""
        out = self.home / "only"
        with mounted(out, 50_000) as again:
            if not again("size=50m"):
                yield Case("a read-only folder", "not run", "no file system may be mounted here")
                return
            shutil.copytree(self.undisturbed(SEVERAL), out, dirs_exist_ok=True)
            (run, *_) = sorted((out / "runs").iterdir())
            again("ro")
            for arguments in ((*NOISY, "--seed", "9"), SEVERAL):
                yield judged(f"{arguments[0]}, read-only folder", self.run(arguments, out), says=("cannot write",))
            reader = ("diagnose", str(run), "--seconds", "0.1")
            readers = ("report", str(out)), reader, ("export", str(run), str(out / "flat"))
            for arguments in readers[:count]:
                ended = alone(self.where, arguments, self.home, timeout=PATIENCE)
                yield judged(f"{arguments[0]}, read-only folder", ended, says=("cannot write",))

    def descriptors(self, count: int) -> Iterator[Case]:
        """Leave a process only so many files to open."""
        one = [(left, NOISY) for left in (2, 6, 0, 1, 3, 4, 9, 14, 20, 30)]
        for left, arguments in [(6, SEVERAL), *one, (14, SEVERAL)][:count]:
            yield self.starved(f"{arguments[0]}, {left} more files", arguments, files=left)

    def memory(self, count: int) -> Iterator[Case]:
        """Leave a process only so much memory."""
        one = [(left, NOISY) for left in (40, 2, 0, 10, 20, 80, 5, 120, 200, 400)]
        for left, arguments in [*one, (40, SEVERAL), (120, SEVERAL)][:count]:
            yield self.starved(f"{arguments[0]}, {left} MB more memory", arguments, memory=left * 2**20)

    def starved(self, name: str, arguments: tuple[str, ...], **short: object) -> Case:
        """Run a command short of something: it works, or stops with a line; then it goes on."""
        out = self.home / name.replace(" ", "-")
        ended = _first_line(self.run(arguments, out, **short))
        codes = (0, 1, 2) if arguments is SEVERAL else (0, 2)
        return self.after(name, arguments, out, judged(name, ended, codes=codes))

    def clock(self, count: int) -> Iterator[Case]:
        """Let the clock jump while a run trains."""
        for days in (-4000, 4000)[:count]:
            out = self.home / f"clock{days}"
            ended = self.run(NOISY, out, clock=days * 86400)
            case = judged(f"train, clock jumps by up to {days} days", ended, codes=(0,))
            if case.verdict == "held":
                case = compared(case.name, _untimely(out) or different(every(out), self.whole(NOISY)))
            yield case

    def company(self, *commands: tuple[str, ...]) -> Iterator[Case]:
        """Start a command twice in one folder at once."""
        for arguments in commands:
            name, out = f"{arguments[0]} twice at once", self.home / f"company-{arguments[0]}"
            both = [self.start(arguments, out) for _ in range(2)]
            ended = [self.wait(process) for process in both]
            cases = [judged(name, e, codes=(0, 2)) for e in ended]
            bad = [case for case in cases if case.verdict != "held"]
            if bad or all(e.code for e in ended):
                yield (bad[0] if bad else Case(name, "lost", f"both refused: {ended[0].err}"))
                continue
            yield self.after(name, arguments, out, cases[0])

    def latecomer(self, *commands: tuple[str, ...]) -> Iterator[Case]:
        """Start a command again while it is at work and gets nowhere: the second gives up, the first ends well."""
        for arguments in commands:
            name, out = f"{arguments[0]} again while one is at work", self.home / f"late-{arguments[0]}"
            first = self.start(arguments, out)
            # written under the lock, before any training
            if not self.until(first, partial(_written, out, "config.json")):
                yield Case(name, "lost", f"the first did not begin: {self.wait(first).err[-200:]}")
                continue
            os.killpg(first.pid, signal.SIGSTOP)
            try:
                case = judged(name, self.run(arguments, out), says=("at work in",))
            finally:
                os.killpg(first.pid, signal.SIGCONT)
            ended = judged(name, self.wait(first), codes=(0,))
            bad = [c for c in (case, ended) if c.verdict != "held"]
            wrong = None if bad else different(every(out), self.whole(arguments))
            yield Case(name, "lost", wrong) if wrong else [*bad, case][0]

    def until(self, process: subprocess.Popen[str], reached: Callable[[], bool]) -> bool:
        """Wait for something that a process does; return whether it came to it."""
        last = time.monotonic() + PATIENCE
        while not reached():
            if process.poll() is not None or time.monotonic() > last:
                return False
            time.sleep(0.02)
        return True

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
        ended = self.wait(process, 120)
        case = judged("compare, a worker hangs, Ctrl-C", ended, codes=(130,), says=("go on with",))
        yield self.after(case.name, SEVERAL, out, case)

    def wake(self) -> Iterator[Case]:
        """Stop a worker for a while: all of it waits, and then ends as ever."""
        out = self.home / "wake"
        process = self.start(SEVERAL, out)
        pid = self.stopped(process, out)
        time.sleep(2)
        if pid:
            os.kill(pid, signal.SIGCONT)
        case = judged("compare, a worker sleeps for a while", self.wait(process), codes=(0,))
        yield compared(case.name, different(every(out), self.whole(SEVERAL))) if case.verdict == "held" else case

    def hang_together(self) -> Iterator[Case]:
        """Stop one of two processes of a training in its tracks: Ctrl-C ends both, and all goes on later."""
        name, out, whole = "train on two processes, one hangs, Ctrl-C", self.home / "two", self.home / "two-whole"
        process = self.together(out)
        pid = self.stopped(process, out, below_server=False)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        ended = self.wait(process)
        if not pid or ended.code == 0 or "no end within" in ended.err:
            yield Case(name, "lost", f"stopped {pid}, exit code {ended.code}: {ended.err[-200:]}")
            return
        again = [self.wait(self.together(place)) for place in (out, whole)]
        bad = [f"exit code {e.code}: {e.err[-200:]}" for e in again if e.code]
        yield compared(name, bad[0] if bad else different(every(out), every(whole)))

    def together(self, out: Path) -> subprocess.Popen[str]:
        line = program(self.where, *TWO, "--out", str(out))
        return self.begin([line[0], "-m", "torch.distributed.run", *TOGETHER, *line[1:]], {})

    def stopped(self, process: subprocess.Popen[str], out: Path, *, below_server: bool = True) -> int:
        """Stop a worker that trains; return its number."""
        leaves: list[int] = []

        def trains() -> bool:
            if not _written(out, "metrics.jsonl"):
                return False
            below = children(process.pid)
            parents = {_parent(pid) for pid, _ in below}
            # workers are the leaves below the server that makes them
            above = {pid: _parent(pid) for pid, _ in below if pid not in parents}
            leaves[:] = [pid for pid, up in above.items() if not below_server or up != process.pid]
            return bool(leaves)

        if not self.until(process, trains):
            return 0
        os.kill(leaves[0], signal.SIGSTOP)
        return leaves[0]


def _written(out: Path, name: str) -> bool:
    return any(out.glob(f"runs/*/{name}"))


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


def _untimely(out: Path) -> str:
    """Say so if a run's time is not one that a stopwatch can have measured."""
    (result,) = (json.loads(path.read_text()) for path in out.glob("runs/*/result.json"))
    return "" if 0 < result["seconds"] < PATIENCE else f"it took {result['seconds']} s"
