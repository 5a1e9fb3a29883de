"""SIGKILL at random moments of every command that trains or measures; what goes on ends with the same bits.

The sleeps choose the moment of a kill, as a share of the undisturbed duration; nothing is waited for with them,
so a wrong guess kills earlier or later and hides nothing.
"""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from faults.broken import says
from faults.command import environment, program
from faults.outcome import Case, Where
from faults.runs import TINY, different, every

TITLE = "SIGKILL at random moments"
FULL, SHORT, FEW = 200, 4, 3
AT_ONCE = 2  # commands, on two cores
PLANTED = says("fresh-noise")
PATIENCE = 900  # seconds for one command, on a machine that does much else


@dataclass(frozen=True)
class Job:
    """A command to be killed: its arguments, who dies, what it ends with, the share of all kills that it gets."""

    name: str
    arguments: tuple[str, ...]
    victims: tuple[str, ...]
    ended: Callable[[Path], dict[str, Any]]
    share: float
    launcher: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    needs: str = ""

    @property
    def possible(self) -> bool:
        return not self.needs or importlib.util.find_spec(self.needs) is not None


SEVERAL = (
    "compare", "--methods", "plain", "sadt-v1", "sam", "--seeds", "0", "--epochs", "5", "--jobs", "2", *TINY,
)  # fmt: skip
TOGETHER = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "0")


def measured(out: Path) -> dict[str, Any]:
    """Return what was measured of every run and of all together, without times."""
    results = {str(p.relative_to(out)): json.loads(p.read_text()) for p in sorted(out.rglob("diagnosis*.json"))}
    results |= {str(p.relative_to(out)): json.loads(p.read_text()) for p in sorted(out.glob("*.json"))}
    for content in results.values():
        for varying in ("took", "created", "command", "about"):
            content.pop(varying, None)
    return {name: content for name, content in results.items() if name != "compare.json"}


def jobs() -> list[Job]:
    train = ("train", "--method", "sadt-v1", "--epochs", "8", "--data.augment", "flip", "cutmix", *TINY)
    both = Job(
        "torchrun", train, ("worker", "worker", "all"), every, 0.1, launcher=("torch.distributed.run", *TOGETHER)
    )
    return [
        Job("train", train, ("all",), every, 0.4),
        Job("compare", SEVERAL, ("all", "all", "parent", "worker"), every, 0.35),
        # more images than there are, whatever they cost: the number then depends on no clock
        Job("diagnose", ("diagnose", "--seconds", "600"), ("all",), measured, 0.1, after=SEVERAL),
        both,
        Job("ray", (*SEVERAL, "--launcher", "ray"), ("all", "ray::_do", "ray::_do"), every, 0.05, needs="ray"),
    ]


def cases(count: int, where: Where) -> Iterator[Case]:
    """Kill ``count`` times in all; below a hundred only what starts soonest."""
    some = ("train",) if where.plant else ("train", "compare")
    chosen = [job for job in jobs() if count >= 100 or job.name in some]
    total = sum(job.share for job in chosen if job.possible)
    done: SimpleQueue[Case | None] = SimpleQueue()

    def work(job: Job) -> None:
        try:
            share = count if where.plant else max(2, round(count * job.share / total))
            for case in Killed(job, where, random.Random(f"{job.name} {count}")).times(share):
                done.put(case)
        finally:
            done.put(None)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun = [pool.submit(work, job) for job in chosen if job.possible]
        for job in chosen:
            if not job.possible:
                yield Case(f"{job.name}, any killed", "not run", f"{job.needs} is not installed")
        for _ in begun:
            yield from iter(done.get, None)
        for job_done in begun:
            job_done.result()


class Killed:
    """One command, killed again and again, each time in the folder that the time before left."""

    def __init__(self, job: Job, where: Where, moments: random.Random):
        self.job, self.where, self.moments = job, where, moments
        self.home = where.scratch / job.name
        self.home.mkdir()
        self.begun = self.home / "begun"
        self.begun.mkdir()

    def start(self, arguments: tuple[str, ...], out: Path) -> subprocess.Popen[bytes]:
        place = (str(out),) if arguments[0] == "diagnose" else ("--out", str(out))
        line = program(self.where, arguments[0], *place, *arguments[1:])
        if self.job.launcher and arguments is self.job.arguments:
            line = [line[0], "-m", *self.job.launcher, *line[1:]]
        with (self.home / "output.txt").open("wb") as output:
            interval = {"STEPPE_SAVE_SECONDS": self.moments.choice(["0", "0.2", "1"])}
            place = {"env": environment(self.where, interval), "cwd": self.home}
            return subprocess.Popen(line, start_new_session=True, stdout=output, stderr=output, **place)

    def finish(self, arguments: tuple[str, ...], out: Path) -> str:
        """Run a command to its end; return what went wrong."""
        process = self.start(arguments, out)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"no end within {PATIENCE} s"
        text = (self.home / "output.txt").read_text(errors="replace")
        if code or "Traceback" in text:
            return f"exit code {code}: {''.join(text.splitlines()[-1:])[:200]}"
        return ""

    def times(self, count: int) -> Iterator[Case]:
        """Kill so many times, and compare each end that is reached."""
        if self.job.after:
            self.finish(self.job.after, self.begun)
        whole = self.home / "whole"
        shutil.copytree(self.begun, whole)
        began = time.monotonic()
        wrong = self.finish(self.job.arguments, whole)
        took = time.monotonic() - began
        if wrong:
            yield Case(f"{self.job.name}, undisturbed", "lost", wrong)
            return
        self.epochs = epochs_in(whole)
        expected, done, number = self.job.ended(whole), 0, 0
        while done < count:
            out = self.home / f"killed-{number}"
            shutil.copytree(self.begun, out)
            number += 1
            kills = self.killed(out, took, min(count - done, self.moments.randrange(1, 8)))
            wrong = self.finish(self.job.arguments, out)
            if not wrong:
                wrong = different(self.job.ended(out), expected) or ""
            for victim in kills:
                yield Case(f"{self.job.name}, {victim} killed", "lost" if wrong else "held", wrong)
            done += len(kills)
            shutil.rmtree(out)

    def killed(self, out: Path, took: float, count: int) -> list[str]:
        """Kill up to so many times in one folder; return who died. Fewer if the command ends before."""
        done: list[str] = []
        while len(done) < count:
            victim = self.moments.choice(self.job.victims)
            process = self.start(self.job.arguments, out)
            self.wait(out, process, took)
            if process.poll() is None:
                done.append(self.kill(process, victim))
            self.away(process)
            if process.returncode == 0:
                # nothing is left to be interrupted here
                break
        return done

    def wait(self, out: Path, process: subprocess.Popen[bytes], took: float) -> None:
        """Wait for the moment: some epochs on in most cases, as what comes before them is always the same."""
        now = epochs_in(out)
        if now < self.epochs and self.moments.random() < 0.8:
            goal = now + self.moments.randrange(1, self.epochs - now + 1)
            while process.poll() is None and epochs_in(out) < goal:
                time.sleep(0.005)
            time.sleep(self.moments.uniform(0, 0.1))
        else:
            time.sleep(self.moments.uniform(0, 0.6) * took)

    def kill(self, process: subprocess.Popen[bytes], victim: str) -> str:
        """Kill the command's parent, one of its processes, or all; return who it was."""
        below = children(process.pid)
        one = [pid for pid, arguments in below if victim == "worker" or victim in arguments]
        if victim == "parent":
            os.kill(process.pid, signal.SIGKILL)
            return victim
        if victim == "all" or not one:
            os.killpg(process.pid, signal.SIGKILL)
            # torchrun's processes are in groups of their own
            for pid, _ in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return "all"
        os.kill(self.moments.choice(one), signal.SIGKILL)
        return victim

    def away(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the command, and let workers whose parent is gone see it themselves."""
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def epochs_in(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("runs/*/metrics.jsonl"))


def children(parent: int) -> list[tuple[int, str]]:
    """Return the processes below a process, and their command lines."""
    above, below = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text()
            arguments = (path / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        above[int(path.name)] = (int(stat.rpartition(")")[2].split()[1]), arguments)
    for pid, (up, arguments) in above.items():
        while up > 1 and up != parent:
            up = above.get(up, (0, ""))[0]
        # the tracker of shared memory and the server of workers hold no run
        if up == parent and "resource_tracker" not in arguments:
            below.append((pid, arguments))
    return below
