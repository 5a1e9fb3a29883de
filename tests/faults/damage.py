"""Files of a run, damaged in every way a disk knows: noticed, named, never gone on from as if they were sound."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.broken import says
from faults.command import Ended, here, judged
from faults.guard import Guard
from faults.outcome import Case, Where
from faults.runs import NOISY, content, different, ended, trained
from steppe import InputError, checkpoint, shards

TITLE = "damage: a byte flipped, a file cut, blocks lost"
FULL, SHORT, FEW = 2000, 100, 60
PLANTED = says("no-checksum")
WHOLE = 40  # of so many damaged checkpoints one is also resumed by the command

Damage = Callable[[bytes, random.Random], bytes]


def flipped(sound: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(sound))
    return sound[:at] + bytes([sound[at] ^ (1 << r.randrange(8))]) + sound[at + 1 :]


def replaced(sound: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(sound))
    return sound[:at] + bytes([(sound[at] + r.randrange(1, 256)) % 256]) + sound[at + 1 :]


def cut(sound: bytes, r: random.Random) -> bytes:
    return sound[: r.randrange(len(sound))]


def grown(sound: bytes, r: random.Random) -> bytes:
    return sound + r.randbytes(r.randrange(1, 100))


def zeroed(sound: bytes, r: random.Random) -> bytes:
    """Lose a block, as a file system does whose journal holds names and not contents."""
    at = r.randrange(len(sound))
    count = min(r.choice((16, 512, 4096)), len(sound) - at)
    return sound[:at] + bytes(count) + sound[at + count :]


def header(sound: bytes, r: random.Random) -> bytes:
    """Flip a bit where sizes, names and places stand."""
    at = r.randrange(min(len(sound), 8 + int.from_bytes(sound[:8], "little")))
    return sound[:at] + bytes([sound[at] ^ (1 << r.randrange(8))]) + sound[at + 1 :]


WAYS: tuple[Damage, ...] = (flipped, replaced, cut, grown, zeroed, header)


def cases(count: int, where: Where) -> Iterator[Case]:
    """Damage a checkpoint ``count`` times, then each other file of the run."""
    guard, r = Guard(), random.Random(count)
    whole = ended(trained(where.scratch / "whole"))
    folder = trained(where.scratch / "half", stop_after=2)
    path = folder / "checkpoint.safetensors"
    sound = path.read_bytes()
    expected = content(checkpoint.read(path))
    for number in range(count):
        way = WAYS[number % len(WAYS)]
        path.write_bytes(way(sound, r))
        yield _read(f"checkpoint, {way.__name__}", path, expected)
        if number % WHOLE == 0:
            yield _resumed(f"checkpoint, {way.__name__}, resumed", folder, path, whole, guard, where)
    path.write_bytes(sound)
    for name, ways in OTHERS.items():
        for way in ways if count > 99 else ways[:1]:
            yield _other(name, way, folder, whole, guard, r, where)


def _read(name: str, path: Path, expected: dict[str, object]) -> Case:
    """Read a damaged checkpoint: refused with its name, or what was meant is all there."""
    try:
        found = content(shards.read(path))
    except InputError as error:
        said = str(error)
        fine = str(path) in said and "delete it" in said and "\n" not in said
        return Case(name, "held") if fine else Case(name, "lost", f"said {said[:200]}")
    except Exception as error:
        return Case(name, "traceback", f"{type(error).__name__}: {error}")
    # a flip in the padding of the header means the same
    wrong = different(found, expected)
    return Case(name, "lost", f"taken for sound, {wrong}") if wrong else Case(name, "held")


def _resumed(name: str, folder: Path, damaged: Path, whole: dict[str, object], guard: Guard, where: Where) -> Case:
    """Start the command again in a copy: it names the file and stops, or ends with the right bits."""
    out = where.scratch / "again"
    shutil.rmtree(out, ignore_errors=True)
    to = shutil.copytree(folder, out / "runs" / folder.name)
    done = here(guard, [*NOISY, "--out", str(out)], out)
    if done.code == 0 and not done.outside:
        wrong = different(ended(to), whole)
        if wrong:
            return Case(name, "lost", f"ended in another state, {wrong}")
        done = Ended(0, "")  # it may say what it did instead
    named = str(to / damaged.name)
    case = judged(name, done, codes=(0, 2), says=() if done.code == 0 else (named,))
    if case.verdict != "held" or done.code == 0:
        return case
    # what the line tells people to do must work
    (to / damaged.name).unlink()
    done = here(guard, [*NOISY, "--out", str(out)], out)
    wrong = different(ended(to), whole) if done.code == 0 else f"exit code {done.code}: {done.err[-200:]}"
    return Case(name, "lost", f"the remedy does not help: {wrong}") if wrong else case


def emptied(sound: bytes, r: random.Random) -> bytes:
    return b""


def foreign(sound: bytes, r: random.Random) -> bytes:
    return b"\xff\xfe not text \x00"


def listed(sound: bytes, r: random.Random) -> bytes:
    return b"[1, 2]"


def bare(sound: bytes, r: random.Random) -> bytes:
    return b"{}"


def torn(sound: bytes, r: random.Random) -> bytes:
    """Lose the end of the last line."""
    return sound[:-7]


OTHERS: dict[str, tuple[Damage, ...]] = {
    "config.json": (emptied, foreign, listed, bare, cut),
    "result.json": (emptied, foreign, listed, bare, cut),
    "metrics.jsonl": (torn, emptied, foreign, cut),
    "timing.jsonl": (torn, emptied, foreign, cut),
    "best-*.safetensors": (emptied, flipped, cut),
}


def _other(
    name: str, way: Damage, folder: Path, whole: dict[str, object], guard: Guard, r: random.Random, where: Where
) -> Case:
    """Damage another file: the command stops with a line that names it, or ends with the right bits."""
    out = where.scratch / "other"
    shutil.rmtree(out, ignore_errors=True)
    to = shutil.copytree(folder, out / "runs" / folder.name)
    if name == "result.json":
        shutil.copy(where.scratch / "whole" / "runs" / folder.name / name, to / name)
    path = next(iter(to.glob(name)))
    path.write_bytes(way(path.read_bytes(), r))
    done = here(guard, [*NOISY, "--out", str(out)], out)
    label = f"{name}, {way.__name__}"
    if done.code != 0:
        return judged(label, done, says=(str(path),))
    if name == "result.json":
        return Case(label, "lost", "a damaged result was taken for one")
    wrong = different(ended(to), whole)
    return Case(label, "lost", wrong) if wrong else judged(label, done, codes=(0,))
