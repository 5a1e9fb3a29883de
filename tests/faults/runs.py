"""Small runs that faults happen to, and all of what they end with."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from support.tiny_steppe import stopping

from steppe import records
from steppe.cli.main import main
from steppe.training.checkpoint import sharded

TINY = (
    "--data.train", "60", "--data.test", "20", "--data.val", "20", "--data.size", "18", "--batch", "20",
    "--optim.lr", "1e-3",
)  # fmt: skip
NOISY = ("train", "--method", "sadt-v1", "--epochs", "3", *TINY)
VARYING = ("seconds", "peak_memory_mb")


class Stopped(BaseException):
    """Raised in the place of a kill."""


def quietly(*arguments: str) -> int:
    """Run a command in this process and keep its words."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main(list(arguments))


def trained(out: Path, stop_after: int | None = None) -> Path:
    """Train the noisy run, or leave it right after an epoch's checkpoint; return its folder."""
    with contextlib.suppress(Stopped), stopping(stop_after, Stopped):
        quietly(*NOISY, "--out", str(out))
    (folder,) = (out / "runs").iterdir()
    return folder


def ended(folder: Path) -> dict[str, Any]:
    """Return all that must not depend on interruptions, of one run, by file."""
    contents: dict[str, Any] = {"metrics": (folder / "metrics.jsonl").read_bytes()}
    result = json.loads((folder / "result.json").read_text())
    contents["result"] = {k: v for k, v in result.items() if k not in VARYING}
    contents["lines"] = len(records.read_lines(folder / "timing.jsonl"))
    last = sharded.read(folder / "checkpoint.safetensors")
    best = sharded.read(folder / f"best-{result['val']['best']['epoch']}.safetensors")
    for name, saved in (("last", last), ("best", best)):
        contents[name] = content(saved)
    return contents


def content(saved: Any) -> dict[str, Any]:
    """Return the bits of a checkpoint by tensor, and its data without times."""
    tensors = {k: (str(t.dtype), tuple(t.shape), _bits(t)) for k, t in saved.tensors.items()}
    return tensors | {"data": {k: v for k, v in saved.data.items() if k not in VARYING}}


def _bits(t: Any) -> bytes:
    return bytes(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()) if t.numel() else b""


def every(out: Path) -> dict[str, Any]:
    return {folder.name: ended(folder) for folder in sorted((out / "runs").iterdir())}


def different(a: dict[str, Any], b: dict[str, Any], where: str = "") -> str | None:
    """Name the first thing in which two ends differ, None if they are the same bits."""
    if a.keys() != b.keys():
        return f"{where}{sorted(a.keys() ^ b.keys())[0]} is there in only one"
    for key, value in a.items():
        if isinstance(value, dict):
            inner = different(value, b[key], f"{where}{key}/")
            if inner:
                return inner
        elif value != b[key]:
            return f"{where}{key} differs"
    return None
