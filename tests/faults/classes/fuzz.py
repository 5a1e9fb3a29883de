"""Input that makes no sense: command lines, files of settings, folders and archives of images."""

import importlib
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from faults.broken import says
from faults.classes import pictures
from faults.command import alone, in_process, judged
from faults.guard import Guard, listed
from faults.outcome import Case, Where

TITLE = "input: command lines, YAML files, folders and archives of images"
FULL, SHORT, FEW = 2000, 80, 40
PLANTED = says("unchecked", "open-images", "unpacked")
LIMIT = 120  # seconds for one command
SAMPLED = 23  # of so many cases one is also given to a process of its own

ODD = (
    "", " ", "nan", "inf", "-inf", "1e400", "1e-400", "-1", "0", "-0", "1", "2", "0.5", "9" * 30, "9" * 5000,
    "0x10", "1_000", "true", "null", "None", "yes", "[]", "{}", "[1, 2]", "{a: 1}", "é", "\U0001f4a5", "\udcff",
    "../..", "/", "~", ".", "/dev/null", "/dev/full", "a" * 5000, "1,2", "--", "-", "-x", "@x", "$HOME", "%s",
    "{0}", "a\nb", "\t", "sam", "sam:rho=", "sam:rho=nan", "sam:rho=[[", "sam:rho=" + "[" * 5000, "sam:=1",
    "sam+", "+", "sam+sam", ":", "sam:rho=linear(", "sam:rho=linear(0,1,0)", "sam:every=0", "plain", "digits",
    "digits:x", "folder:", "folder:.", "cifar10:.", "cifar10:/dev/null", "simple-cnn", "torchvision/", "timm/x",
    "/x", "2001-01-01", "1:20", "*", "&a", "!!python/object/apply:os.system [touch attacked]", "sgd", "cosine",
    "seconds", "fp64", "flip", "local",
)  # fmt: skip
COMMAND_NAMES = (
    "train", "compare", "report", "list", "show", "bench", "tune", "diagnose", "export", "conformance", "", "x",
)  # fmt: skip
# what makes sure that a command which would otherwise work for hours is refused
BAD = {
    "compare": ("--seeds", "x"), "tune": ("--trials", "x"), "bench": ("--batch", "x"),
    "conformance": ("nothing-of-this-name",), "diagnose": ("nowhere",), "export": ("nowhere", "nowhere"),
    "report": ("nowhere",), "show": ("nothing",), "list": ("nothing",),
}  # fmt: skip


class Late(BaseException):
    """A command took longer than any refusal may."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Late(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def flags(command: str) -> list[str]:
    from steppe.cli.main import command_parser

    options = [option for action in command_parser(command)._actions for option in action.option_strings]
    return [o for o in options if o.startswith("--") and o not in ("--help", "--config", "--live")]


WRONG = (
    *(("--batch", "0"), ("--epochs", "-1"), ("--threads", "0"), ("--workers", "-1")),
    *(("--optim.lr", "-1"), ("--data.size", "0"), ("--microbatch", "0")),
)


class CommandLines:
    """Command lines wrong in one number, then some at random; of `train` only the plan, so that none trains."""

    def __init__(self, r: random.Random):
        self.r = r
        self.flags = {command: flags(command) for command in COMMAND_NAMES if command in BAD or command == "train"}
        self.wrong = list(WRONG)

    def line(self) -> tuple[list[str], bool]:
        """Return the arguments of a command, and whether it may be in order."""
        if self.wrong:
            name, value = self.wrong.pop()
            return ["train", "--plan", name, value], False
        r = self.r
        command = r.choice(COMMAND_NAMES[:2]) if r.random() < 0.7 else r.choice(COMMAND_NAMES)
        if command not in self.flags:
            return [command, *r.sample(ODD, r.randrange(3))], True
        arguments = [command]
        for _ in range(r.choice((1, 1, 2, 3, 6))):
            name = r.choice(self.flags[command] or ["--x"])
            if r.random() < 0.05:
                name = name[:-1] or "--"
            style = r.random()
            value = r.choice(ODD)
            arguments += [f"{name}={value}"] if style < 0.3 else [name] if style < 0.4 else [name, value]
            if r.random() < 0.05:
                arguments.append(r.choice(ODD))
        if command == "train":
            return [*arguments, "--plan"], True
        return [*arguments, *BAD[command]], False


def settings(r: random.Random, depth: int = 0) -> str:
    keys = ("data", "optim", "batch", "epochs", "method", "model", "dataset", "seed", "track", "watch", "m", "out")
    inner = ("train", "val", "size", "augment", "lr", "clip", "name", "test", "x", "legacy_share", "views")
    lines = []
    for key in r.sample(keys, r.randrange(1, 4)):
        if r.random() < 0.4:
            lines += [f"{key}:", *(f"  {k}: {scalar(r)}" for k in r.sample(inner, r.randrange(1, 4)))]
        else:
            lines.append(f"{key}: {scalar(r)}")
    return "\n".join(lines) + "\n"


def scalar(r: random.Random) -> str:
    style = r.random()
    text = r.choice(ODD)
    if style < 0.2:
        return "[" + ", ".join(repr(v) for v in r.sample(ODD, 2)) + "]"
    return repr(text) if style < 0.4 else text


def _laughs() -> bytes:
    """Return a few lines that mean a thousand million values, each line nine times the one above it."""
    names = "abcdefghij"
    lines = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise(names)]
    return "\n".join(["a: &a [x, x]", *lines, ""]).encode()


FILES: dict[str, bytes] = {
    "nothing": b"",
    "a comment": b"# nothing\n",
    "a list": b"- 1\n- 2\n",
    "a word": b"word",
    "a number": b"3",
    "two documents": b"batch: 3\n---\nbatch: 4\n",
    "open bracket": b"data: [",
    "tab": b"data:\n\ttrain: 3\n",
    "a key twice": b"batch: 3\nbatch: x\n",
    "a key of a list": b"? [1, 2]\n: 3\n",
    "a key of a number": b"3: 4\n",
    "runs a program": b"method: !!python/object/apply:os.system ['touch attacked']\n",
    "makes an object": b"data: !!python/object:steppe.config.Data {}\n",
    "itself": b"data: &a [*a]\n",
    "itself as settings": b"data: &a {train: *a}\n",
    "laughs": _laughs(),
    "deep": b"data: " + b"[" * 3000,
    "deep maps": b"{data: " * 1000,
    "not text": b"\xff\xfe\x00\x01",
    "another encoding": "batch: 3".encode("utf-16"),
    "zero bytes": b"batch: 3\x00",
    "a long number": b"batch: " + b"9" * 5000,
    "a long line": b"method: " + b"x" * 200_000,
    "a date": b"batch: 2001-01-01\n",
    "another file": b"config: other.yaml\n",
    "includes itself": b"config: same.yaml\n",
    "merge": b"<<: {batch: 3}\n",
    "null": b"data: null\noptim: ~\n",
    "JSON": b'{"batch": "x"}',
}  # fmt: skip


def cases(count: int, where: Where) -> Iterator[Case]:
    """Give ``count`` inputs: command lines, files of settings, folders and archives, 8 to 4 to 4 to 4."""
    guard, r = Guard(), random.Random(count)
    home, cache = where.scratch / "home", where.scratch / "cache"
    home.mkdir(exist_ok=True)
    os.environ |= {"STEPPE_CACHE": str(cache), "HOME": str(home)}
    os.chdir(home)
    importlib.import_module("matplotlib.font_manager")  # which lists the fonts of the machine, once
    inputs = Inputs(guard, r, where, home, cache)
    kinds = [inputs.line, inputs.line, inputs.file, inputs.folder, inputs.archive]
    for number in range(count):
        yield from kinds[number % 20 // 4](number)
    # a defect would unpack them, which takes minutes and gigabytes
    for path in pictures.bombs(where.scratch) if where.plant is None else ():
        yield inputs.images(f"archive: {path.name}", path, True)
        path.unlink()


class Inputs:
    """Inputs, each judged in this process and some in one of their own too."""

    def __init__(self, guard: Guard, r: random.Random, where: Where, home: Path, cache: Path):
        self.guard, self.r, self.where, self.home, self.cache = guard, r, where, home, cache
        self.lines = CommandLines(r)
        self.files = sorted(FILES)

    def line(self, number: int) -> Iterator[Case]:
        arguments, fine = self.lines.line()
        yield self.tried("command", arguments, (0, 2) if fine else (2,))
        if number % SAMPLED == 0:
            yield self.apart("command", arguments, (0, 2) if fine else (2,))

    def file(self, number: int) -> Iterator[Case]:
        path = self.home / "same.yaml"
        name = self.files[number // 20 * 4 % len(self.files) + number % 4 - len(self.files)]
        if number % 3:
            path.write_text(settings(self.r), errors="surrogateescape")
            name = repr(path.read_bytes()[:80])
        else:
            path.write_bytes(FILES[name])
        arguments = ["train", "--config", str(path), "--plan"]
        yield self.tried(f"file {name}", arguments, (0, 2))
        if number % SAMPLED == 0:
            yield self.apart(f"file {name}", arguments, (0, 2))

    def folder(self, number: int) -> Iterator[Case]:
        root = self.where.scratch / "photos"
        how = pictures.spoiled(root, self.r)
        yield self.images(f"folder: {how}", root, number % SAMPLED == 0)
        shutil.rmtree(root)

    def archive(self, number: int) -> Iterator[Case]:
        path = self.where.scratch / self.r.choice(("photos.tar", "photos.tar.gz"))
        how = pictures.archive(path, self.r)
        yield self.images(f"archive: {how}", path, number % SAMPLED == 0)
        path.unlink()

    def images(self, name: str, path: Path, apart: bool) -> Case:
        arguments = ["train", "--plan", "--dataset", f"folder:{path}", "--batch", "4", "--data.val", "2"]
        arguments += ["--data.size", "18"] if self.r.random() < 0.8 else []
        arguments += ["--data.skip_corrupt", "true"] if self.r.random() < 0.5 else []
        case = self.tried(name, arguments, (0, 2))
        if case.verdict == "held" and apart:
            return self.apart(name, arguments, (0, 2))
        return case

    def tried(self, name: str, arguments: list[str], codes: tuple[int, ...]) -> Case:
        with limited(LIMIT):
            ended = in_process(self.guard, arguments, self.cache)
        return judged(_short(f"{name} {' '.join(arguments)}"), ended, codes=codes)

    def apart(self, name: str, arguments: list[str], codes: tuple[int, ...]) -> Case:
        name = _short(f"{name} {' '.join(arguments)}, in a process")
        caches = (self.cache, self.home / "cache", self.home / "mpl")
        before = listed(self.where.scratch, but=caches)
        ended = alone(self.where, arguments, self.home)
        after = listed(self.where.scratch, but=caches)
        if before != after:
            return Case(name, "outside", f"{sorted(set(before.items()) ^ set(after.items()))[0]}")
        return judged(name, ended, codes=codes)


def _short(name: str) -> str:
    text = name.encode("unicode_escape", "backslashreplace").decode("ascii")
    return text if len(text) < 240 else f"{text[:120]}...{text[-100:]}"
