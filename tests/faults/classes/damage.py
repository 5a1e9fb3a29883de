"""Files of a run, damaged in every way a disk knows: noticed, named, the checkpoint before it used instead."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.broken import says
from faults.command import Ended, in_process, judged, went_back
from faults.guard import Guard
from faults.outcome import Case, Where, compared
from faults.runs import NOISY, content, different, ended, trained

from steppe import InputError
from steppe.training.checkpoint import save_and_resume, sharded

TITLE = "damage: a byte flipped, a file cut, blocks lost"
FULL, SHORT, FEW = 2000, 100, 60
PLANTED = says("no-checksum", "forgetful")
WHOLE = 40  # of so many damaged checkpoints one is also resumed by the command

Damage = Callable[[bytes, random.Random], bytes]


def flipped(sound: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(sound))
    return sound[:at] + bytes([sound[at] ^ (1 << r.randrange(8))]) + sound[at + 1 :]


def zeroed(sound: bytes, r: random.Random) -> bytes:
    """Lose a block, as a file system does whose journal holds names and not contents."""
    at = r.randrange(len(sound))
    count = min(r.choice((16, 512, 4096)), len(sound) - at)
    return sound[:at] + bytes(count) + sound[at + count :]


def header(sound: bytes, r: random.Random) -> bytes:
    """Flip a bit where sizes, names and places stand."""
    size = 8 + int.from_bytes(sound[:8], "little")
    return flipped(sound[:size], r) + sound[size:]


def replaced(sound: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(sound))
    return sound[:at] + bytes([(sound[at] + r.randrange(1, 256)) % 256]) + sound[at + 1 :]


DAMAGES: dict[str, Damage] = {
    "flipped": flipped,
    "replaced": replaced,
    "cut": lambda sound, r: sound[: r.randrange(len(sound))],
    "grown": lambda sound, r: sound + r.randbytes(r.randrange(1, 100)),
    "zeroed": zeroed,
    "header": header,
    "emptied": lambda sound, r: b"",
    "foreign": lambda sound, r: b"\xff\xfe not text \x00",
    "listed": lambda sound, r: b"[1, 2]",
    "bare": lambda sound, r: b"{}",
    "torn": lambda sound, r: sound[:-7],  # the end of the last line is lost
}
WAYS = ("flipped", "replaced", "cut", "grown", "zeroed", "header")
# which ways for the other files of a run
OTHERS: dict[str, tuple[str, ...]] = {
    "config.json": ("emptied", "foreign", "listed", "bare", "cut"),
    "result.json": ("emptied", "foreign", "listed", "bare", "cut"),
    "metrics.jsonl": ("torn", "emptied", "foreign", "cut"),
    "timing.jsonl": ("torn", "emptied", "foreign", "cut"),
    "best-*.safetensors": ("emptied", "flipped", "cut"),
    save_and_resume.BEFORE: ("emptied", "flipped", "cut"),
}


def cases(count: int, where: Where) -> Iterator[Case]:
    """Damage a checkpoint ``count`` times, then each other file of the run."""
    r = random.Random(count)
    half = Half.trained(where)
    paths = half.folder / save_and_resume.CHECKPOINT, half.folder / save_and_resume.BEFORE
    sound = {path: path.read_bytes() for path in paths if path.exists()}
    for number in range(count):
        way = WAYS[number % len(WAYS)]
        for path, what in sound.items():
            # what is used in a damaged one's place is no longer kept beside it
            path.unlink(missing_ok=True)
            path.write_bytes(DAMAGES[way](what, r) if path == paths[0] else what)
        if number % WHOLE == 0:
            yield half.resumed(f"checkpoint, {way}, resumed", save_and_resume.CHECKPOINT)
        yield half.noticed(f"checkpoint, {way}")
    for path, what in sound.items():
        path.unlink(missing_ok=True)
        path.write_bytes(what)
    for way in WAYS:
        yield half.both(f"checkpoint and the one before it, {way}", way, r)
    for name, ways in OTHERS.items():
        for way in ways if count > 99 else ways[:1]:
            yield half.other(name, way, r)


@dataclass(frozen=True)
class Half:
    """A run left after its second epoch: its folder, what its checkpoints mean, and how the whole one ends."""

    folder: Path
    newest: dict[str, Any]
    before: dict[str, Any]
    result: bytes
    whole: dict[str, Any]
    guard: Guard
    again: Path

    @classmethod
    def trained(cls, where: Where) -> Half:
        whole = trained(where.scratch / "whole")
        folder = trained(where.scratch / "half", stop_after=2)
        newest, before = (
            content(sharded.read(folder / name)) if (folder / name).exists() else {}
            for name in (save_and_resume.CHECKPOINT, save_and_resume.BEFORE)
        )
        result = (whole / "result.json").read_bytes()
        return cls(folder, newest, before, result, ended(whole), Guard(), where.scratch / "again")

    def noticed(self, name: str) -> Case:
        """Look at the damaged checkpoint: it is named, and what it was before is in its place."""
        path = self.folder / save_and_resume.CHECKPOINT
        try:
            sharded.read(path)
        except InputError as error:
            if str(path) not in str(error) or "delete it" not in str(error) or "\n" in str(error):
                return Case(name, "lost", f"said {str(error)[:200]}")
        except Exception as error:
            return Case(name, "traceback", f"{type(error).__name__}: {error}")
        try:
            with contextlib.redirect_stderr(io.StringIO()) as output:
                save_and_resume.verify(self.folder)
            saved = content(sharded.read(path))
        except InputError as error:
            return Case(name, "lost", f"the one before it is not used: {str(error)[:200]}")
        # a flip in the padding of the header means the same, and nothing is said
        wrong = different(saved, self.before if output.getvalue() else self.newest)
        if wrong:
            return Case(name, "lost", f"taken for sound, {wrong}")
        fine = not output.getvalue() or went_back(output.getvalue(), path)
        return Case(name, "held") if fine else Case(name, "lost", f"said {output.getvalue()[:200]}")

    def resumed(self, name: str, *damaged: str) -> Case:
        """Start the command again in a copy: it says what is damaged, and ends with the right bits."""
        to, done = self.command()
        if done.code or done.outside:
            return judged(name, done, codes=(0,))
        if done.err and not went_back(done.err, *(to / one for one in damaged)):
            return Case(name, "traceback", f"said {done.err[:200]}")
        return compared(name, different(ended(to), self.whole))

    def command(self) -> tuple[Path, Ended]:
        shutil.rmtree(self.again, ignore_errors=True)
        to = shutil.copytree(self.folder, self.again / "runs" / self.folder.name)
        return to, self.go_on()

    def go_on(self) -> Ended:
        return in_process(self.guard, [*NOISY, "--out", str(self.again)], self.again)

    def both(self, name: str, way: str, r: random.Random) -> Case:
        """Damage both checkpoints: refused with a name; what the line tells people to do works."""
        names = (save_and_resume.CHECKPOINT, save_and_resume.BEFORE)
        sound = {one: (self.folder / one).read_bytes() for one in names if (self.folder / one).exists()}
        try:
            for one, what in sound.items():
                (self.folder / one).write_bytes(DAMAGES[way](what, r))
            to, done = self.command()
        finally:
            for one, what in sound.items():
                (self.folder / one).write_bytes(what)
        if done.code == 0:
            return compared(name, different(ended(to), self.whole))
        case = judged(name, done, says=(str(to / save_and_resume.CHECKPOINT), "delete it"))
        if case.verdict != "held":
            return case
        (to / save_and_resume.CHECKPOINT).unlink()
        done = self.go_on()
        wrong = different(ended(to), self.whole) if done.code == 0 else f"exit code {done.code}: {done.err[-200:]}"
        return Case(name, "lost", f"the remedy does not help: {wrong}") if wrong else case

    def other(self, name: str, way: str, r: random.Random) -> Case:
        """Damage another file: the command stops with a line that names it, or ends with the right bits."""
        path = max(self.folder.glob(name), default=self.folder / name)
        sound = path.read_bytes() if path.exists() else None
        path.write_bytes(DAMAGES[way](sound or self.result, r))
        try:
            to, done = self.command()
        finally:
            path.unlink() if sound is None else path.write_bytes(sound)
        label = f"{name}, {way}"
        if done.code != 0:
            return judged(label, done, says=(str(to / path.name),))
        if name == "result.json":
            return Case(label, "lost", "a damaged result was taken for one")
        wrong = different(ended(to), self.whole)
        return Case(label, "lost", wrong) if wrong else judged(label, done, codes=(0,))
