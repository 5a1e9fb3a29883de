"""Files made to attack: refused in a line, with nothing run and nothing written outside."""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults.broken import says
from faults.classes import pictures
from faults.classes.fuzz import limited
from faults.command import Ended, in_process, judged, went_back
from faults.guard import Guard
from faults.outcome import Case, Where, compared
from faults.runs import NOISY, TINY, different, ended, quietly, trained
from safetensors.torch import save

from steppe.training.checkpoint import file, save_and_resume

TITLE = "attacks: pickles, archives, headers, JSON"
FULL, SHORT, FEW = 1000, 1, 1
PLANTED = says("unpacked", "trusting", "no-checksum")
LIMIT = 120


class Attack:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def cases(count: int, where: Where) -> Iterator[Case]:
    """Try every attack on whatever reads such a file; ``count`` above 100 adds random variants of headers."""
    os.environ |= {"STEPPE_CACHE": str(where.scratch / "cache")}
    trial = Trial(Guard(), where, where.scratch / "attacked")
    os.chdir(where.scratch)
    parts: dict[str, Callable[[], Iterator[Case]]] = {
        "no-checksum": lambda: _checkpoints(trial, count),
        "unpacked": lambda: _archives(trial),
        "trusting": lambda: _pickles(trial),
        "": lambda: _json(trial, every=1 if count > 100 else 24),
    }
    for name, part in parts.items():
        if where.plant in (None, name):
            yield from part()


class Trial:
    """A finished comparison and a run left half way, copied afresh for every attack."""

    def __init__(self, guard: Guard, where: Where, mark: Path):
        self.guard, self.where, self.mark = guard, where, mark
        self.half = trained(where.scratch / "half", stop_after=2)
        self.whole = ended(trained(where.scratch / "whole"))
        self.done = where.scratch / "done"
        grid = ("--methods", "plain", "sam", "--seeds", "0", "--epochs", "1", "--jobs", "1")
        assert quietly("compare", *grid, *TINY, "--out", str(self.done)) == 0

    def fresh(self, of: Path) -> Path:
        to = self.where.scratch / "copy"
        shutil.rmtree(to, ignore_errors=True)
        return shutil.copytree(of, to)

    def run(self, name: str, arguments: list[str], *allowed: Path, codes: tuple[int, ...] = (2,)) -> Case:
        """Give a command in this process; nothing may be run, nothing written but in ``allowed`` places."""
        return judged(name, self.ended(arguments, *allowed), codes=codes)

    def ended(self, arguments: list[str], *allowed: Path) -> Ended:
        """Give a command in this process; a program of the attack's own counts as a write outside."""
        places = (self.where.scratch / "cache", Path(tempfile.gettempdir()), *allowed)
        with limited(LIMIT):
            done = in_process(self.guard, arguments, *places)
        if self.mark.exists():
            self.mark.unlink()
            return Ended(done.code, done.err, ("the attack's own program ran",))
        return done

    def resumed(self, name: str, content: bytes, *places: str) -> Case:
        """Go on with a run whose checkpoints are hostile: refused, or said and gone on from the one before."""
        out = self.fresh(self.half.parents[1])
        run = out / "runs" / self.half.name
        for place in places:
            (run / place).write_bytes(content)
        done = self.ended([*NOISY, "--out", str(out)], out)
        if done.code or done.outside or save_and_resume.BEFORE in places:
            return judged(name, done, says=(str(run / places[0]),))
        if not went_back(done.err, run / places[0]):
            return Case(name, "lost", f"taken, and said {done.err[:200]!r}")
        return compared(name, different(ended(run), self.whole))


def crafted(tensors: dict[str, torch.Tensor], data: Any) -> bytes:
    """Return a checkpoint whose checksum is right: an attacker can count too."""
    text = data if isinstance(data, str) else json.dumps(data)
    checksum = file._checksum(tensors, text)
    return save(tensors, {"data": text, "sha256": str(checksum)})


def framed(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with a header of one's own."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def _headers() -> dict[str, bytes]:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    metadata = {"__metadata__": {"data": "{}", "sha256": hashlib.sha256(b"{}").hexdigest()}}

    def of(*tensors: dict[str, Any], body: bytes = bytes(16)) -> bytes:
        return framed(json.dumps(metadata | {f"t{i}": t for i, t in enumerate(tensors)}).encode(), body)

    return {
        "header claims 2^63 bytes": framed(b"{}", length=2**63),
        "header claims more than there is": framed(b"{}", length=99_000_000),
        "header of 90 MB": framed(b" " * 90_000_000),
        "header is deep": framed(b"[" * 50_000),
        "header is no object": framed(b"[]"),
        "offsets overlap": of(one, one),
        "offsets outside": of({**one, "data_offsets": [8, 2**40]}),
        "offsets backward": of({**one, "data_offsets": [8, 0]}),
        "offsets negative": of({**one, "data_offsets": [-8, 0]}),
        "shape overflows": of({**one, "shape": [2**62, 4]}),
        "shape claims much": of({**one, "shape": [2**40]}),
        "unknown type": of({**one, "dtype": "OBJECT"}),
        "a hole": of(one, {**one, "data_offsets": [12, 20]}, body=bytes(20)),
        "a name twice": framed(
            b'{"a":' + json.dumps(one).encode() + b',"a":' + json.dumps(one).encode() + b"}", bytes(8)
        ),
        "no metadata": framed(json.dumps({"t": one}).encode(), bytes(8)),
        "metadata is deep": framed(json.dumps({"__metadata__": {"data": "[" * 9000, "sha256": "x"}}).encode()),
    }


def _checkpoints(trial: Trial, count: int) -> Iterator[Case]:
    """A checkpoint with code, with a hostile header, and ones whose checksum is right and whose content is not."""
    path = trial.half / "checkpoint.safetensors"
    saved = file.read(path)
    tensors, data = dict(saved.tensors), saved.data
    zipped = io.BytesIO()
    torch.save({"net": Attack(trial.mark)}, zipped)
    name = sorted(k for k in tensors if k.startswith("net."))[0]
    loose = {k: v for k, v in data.items() if k != "optimizer"}
    short, outside = torch.zeros(3, dtype=torch.uint8), {**data["best"], "epoch": "../../../x"}
    groups = {**data, "optimizer": {**data["optimizer"], "groups": []}}
    files = {
        "a pickle": pickle.dumps(Attack(trial.mark)),
        "a file of torch.save": zipped.getvalue(),
        **_headers(),
        "right checksum, data is a list": crafted(tensors, [1]),
        "right checksum, data is deep": crafted(tensors, "[" * 100_000),
        "right checksum, no digest": crafted(tensors, {}),
        "right checksum, another digest": crafted(tensors, {**data, "digest": "../../x"}),
        "right checksum, no optimizer": crafted(tensors, loose),
        "right checksum, no groups": crafted(tensors, groups),
        "right checksum, strange state": crafted({**tensors, "optimizer.99999.x": torch.ones(2)}, data),
        "right checksum, state of no number": crafted({**tensors, "optimizer.x.y": torch.ones(2)}, data),
        "right checksum, a tensor is missing": crafted({k: v for k, v in tensors.items() if k != name}, data),
        "right checksum, another shape": crafted({**tensors, name: torch.ones(7)}, data),
        "right checksum, another type": crafted({**tensors, name: torch.ones(7, dtype=torch.int8)}, data),
        "right checksum, short random stream": crafted({**tensors, "generators.noise": short}, data),
        "right checksum, best outside": crafted(tensors, {**data, "best": outside}),
        "right checksum, shards outside": crafted(tensors, {**data, "shards": {"../../x": "0"}}),
        "right checksum, shards are a number": crafted(tensors, {**data, "shards": 3}),
        "right checksum, shards name itself": crafted(tensors, {**data, "shards": {path.name: "0"}}),
        "right checksum, epoch is text": crafted(tensors, {**data, "epoch": "many"}),
        "right checksum, epoch below 0": crafted(tensors, {**data, "epoch": -5}),
        "right checksum, passes are text": crafted(tensors, {**data, "passes": "x"}),
    }
    for label, content in files.items():
        yield trial.resumed(f"checkpoint: {label}", content, save_and_resume.CHECKPOINT)
        if count > 100:
            name = f"checkpoint, and the one before: {label}"
            yield trial.resumed(name, content, save_and_resume.CHECKPOINT, save_and_resume.BEFORE)
    yield from _weights(trial, {k: v for k, v in files.items() if "checksum" not in k})
    r = random.Random(count)
    sound = path.read_bytes()
    size = 8 + int.from_bytes(sound[:8], "little")
    for _ in range(count if count > 100 else 0):
        yield _rewritten(trial, json.loads(sound[8:size]), sound[size:], file.read(path), r)


def _rewritten(
    trial: Trial, header: dict[str, Any], body: bytes, sound: file.Checkpoint, r: random.Random
) -> Case:
    """Give some tensors of a checkpoint other types, shapes and places, at random."""
    names = [k for k in header if k != "__metadata__"]
    for name in r.sample(names, r.randrange(1, 4)):
        place = header[name]
        way = r.randrange(4)
        if way == 0:
            place["dtype"] = r.choice(("F64", "U8", "BF16", "I64", "BOOL", "C64", ""))
        elif way == 1:
            place["shape"] = [r.choice((0, 1, 3, 2**31, 2**63, -1)) for _ in range(r.randrange(4))]
        elif way == 2:
            place["data_offsets"] = [r.randrange(-9, len(body) + 99) for _ in range(2)]
        else:
            place["data_offsets"] = header[r.choice(names)]["data_offsets"]
    path = trial.where.scratch / "rewritten.safetensors"
    path.write_bytes(framed(json.dumps(header).encode(), body))
    label = "checkpoint: places in the header at random"
    try:
        taken = file.read(path)
    except file.InputError as error:
        fine = str(path) in str(error) and "\n" not in str(error)
        return Case(label, "held" if fine else "lost", str(error)[:200])
    except Exception as error:
        return Case(label, "traceback", f"{type(error).__name__}: {error}")
    # a place may have been given what it had, or what another has that holds the same
    wrong = [k for k, t in sound.tensors.items() if k not in taken.tensors or not _same(t, taken.tensors[k])]
    return Case(label, "lost", f"taken with another {wrong[0]}") if wrong else Case(label, "held")


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def _weights(trial: Trial, files: dict[str, bytes]) -> Iterator[Case]:
    """The same in finished runs, which are diagnosed and exported."""
    for label, content in files.items():
        out = trial.fresh(trial.done)
        run = next(iter((out / "runs").iterdir()))
        (run / "checkpoint.safetensors").write_bytes(content)
        yield trial.run(f"checkpoint, diagnosed: {label}", ["diagnose", str(run), "--seconds", "1"], out)
        yield trial.run(f"checkpoint, exported: {label}", ["export", str(run), str(out / "flat")], out)


def _archives(trial: Trial) -> Iterator[Case]:
    """Archives whose members lead outside, link, are devices, or are named as programs."""
    r = random.Random(0)
    image = pictures.encoded(pictures.Image.fromarray(pictures.noise(r)), "PNG")
    members = pictures.hostile(image, trial.where.scratch, trial.mark.name)
    for label, member in members.items():
        place = trial.where.scratch / "arch"
        place.mkdir(exist_ok=True)
        path = place / "photos.tar"
        path.write_bytes(pictures.two_classes(r) + member + bytes(1024))
        arguments = ["train", "--plan", "--dataset", f"folder:{path}", "--batch", "4", "--data.val", "2"]
        case = trial.run(f"archive: {label}", [*arguments, "--data.size", "18"], codes=(0, 2))
        extra = [p.name for p in place.iterdir() if p != path]
        yield Case(case.name, "outside", f"left {extra}") if extra else case
        shutil.rmtree(place)


def _pickles(trial: Trial) -> Iterator[Case]:
    """CIFAR files are pickles: what is no array, number or text is refused."""
    rows = np.zeros((20, 3072), np.uint8)
    batch = {b"data": rows, b"labels": [i % 10 for i in range(20)]}
    hidden = {**batch, b"more": Attack(trial.mark)}
    contents = {
        "runs a program": pickle.dumps(Attack(trial.mark)),
        "hides a program": pickle.dumps(hidden),
        "in an old protocol": pickle.dumps(hidden, 0),
        "calls by number": b"\x82\x01.",
        "asks for a persistent object": b"Pattacked\n.",
        "builtins.eval": b"cbuiltins\neval\n(S'1'\ntR.",
        "an array of objects": pickle.dumps({b"data": np.array([Attack(trial.mark)], object), b"labels": [1]}),
        "claims a huge array": _claims(),
        "claims a huge text": b"\x8d" + struct.pack("<Q", 2**40) + b"x.",
        "deep": b"(" * 200_000 + b".",
        "nothing": b"",
        "cut": pickle.dumps(batch)[:200],
        "labels out of range": pickle.dumps({**batch, b"labels": [99] * 20}),
        "other shapes": pickle.dumps({**batch, b"data": rows[:, :5]}),
    }
    place = trial.where.scratch / "cifar"
    for label, content in contents.items():
        place.mkdir(exist_ok=True)
        for name in (*(f"data_batch_{i}" for i in range(2, 6)), "test_batch"):
            (place / name).write_bytes(pickle.dumps(batch))
        (place / "data_batch_1").write_bytes(content)
        arguments = ["train", "--plan", "--dataset", f"cifar10:{place}", "--batch", "4", "--data.val", "10"]
        yield trial.run(f"pickle: {label}", arguments)
        shutil.rmtree(place)


def _claims() -> bytes:
    """Return a pickle of an array that claims terabytes."""
    content = pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [1, 2, 3]}, 2)
    return content.replace(struct.pack("<H", 3072), b"\xff\xff").replace(b"K\x03M", b"J\xff\xff\xff\x7fM")


BOMBS: dict[str, bytes] = {
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "a long number": b'{"format": ' + b"9" * 100_000 + b"}",
    "not a number": b'{"format": NaN}',
    "nothing": b"",
    "a list": b"[]",
    "an empty object": b"{}",
    "not text": b"\xff\xfe\xfa",
    "zero bytes": bytes(100),
    "a word": b'"word"',
    "null": b"null",
}


def _json(trial: Trial, every: int) -> Iterator[Case]:
    """Bombs in the place of a comparison's files, and files whose values are of other types; of all, some."""
    uses: dict[str, list[Callable[[Path, Path], list[str]]]] = {
        "compare.json": [lambda out, run: ["report", str(out)]],
        "result.json": [lambda out, run: ["report", str(out)], lambda out, run: _again(out)],
        "config.json": [lambda out, run: ["export", str(run), str(out / "flat")]],
        "metrics.jsonl": [lambda out, run: ["report", str(out)]],
        "timing.jsonl": [lambda out, run: ["report", str(out)]],
    }
    trials = [
        (name, label, content, command)
        for name, commands in uses.items()
        for command in commands
        for label, content in {**BOMBS, **_changed(trial, name)}.items()
    ]
    trials += [
        (name, label, content, lambda out, run: ["diagnose", str(run), "--seconds", "60"])
        for name in ("result.json", "config.json")
        for label, content in BOMBS.items()
    ]
    for name, label, content, command in trials[::every]:
        out = trial.fresh(trial.done)
        run = next(iter((out / "runs").iterdir()))
        (out / name if name == "compare.json" else run / name).write_bytes(content)
        arguments = command(out, run)
        # the report can do without some of it, and with a torn last line
        yield trial.run(f"{name} for {arguments[0]}: {label}", arguments, out, codes=(0, 1, 2))


def _again(out: Path) -> list[str]:
    arguments = json.loads((out / "compare.json").read_text())["command"].split()[1:]
    return [*arguments[: arguments.index("--out")], "--out", str(out)]


def _changed(trial: Trial, name: str) -> dict[str, bytes]:
    """Return a file's content with each of its values replaced by one of another type, and each left out."""
    run = next(iter((trial.done / "runs").iterdir()))
    text = (trial.done / name if name == "compare.json" else run / name).read_text()
    content = json.loads(text.splitlines()[0] if name.endswith("l") else text)
    changed = {}
    for key, value in content.items():
        other: Any = 3 if isinstance(value, str | dict | list) else "x"
        changed[f"{key} of another type"] = json.dumps({**content, key: other}).encode()
        changed[f"{key} left out"] = json.dumps({k: v for k, v in content.items() if k != key}).encode()
        changed[f"{key} is null"] = json.dumps({**content, key: None}).encode()
    if name == "compare.json":
        for digest in ("../../etc", "/etc", "", ".", "a/b", "\u0000"):
            runs = [{**content["runs"][0], "digest": digest}]
            changed[f"digest {digest!r}"] = json.dumps({**content, "runs": runs}).encode()
        changed["script in a name"] = text.replace('"sam"', '"</script><script>alert(1)</script>"').encode()
        changed["many runs"] = json.dumps({**content, "runs": content["runs"] * 2000}).encode()
    return {label: (data + b"\n" if name.endswith("l") else data) for label, data in changed.items()}
