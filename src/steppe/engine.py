"""One run from its configuration to its result, in a folder of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from steppe import data, methods, records
from steppe.config import Run
from steppe.data.images import DataSet
from steppe.errors import InputError
from steppe.trainer import CHECKPOINT, Failed, Listener, Progress, Trainer, derive, evaluate, new_loader, new_model

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "RESULT",
    "Listener",
    "Progress",
    "check",
    "derive",
    "digest",
    "evaluate",
    "fit",
    "load_data",
]

CONFIG, RESULT = "config.json", "result.json"


def digest(run: Run) -> str:
    """Return the name of a run's folder."""
    return run.digest(repr(methods.parse(run.method)))


def check(run: Run, images: DataSet) -> None:
    """Raise InputError if this run cannot start: its model does not take the images, its batch is too large."""
    methods.parse(run.method)
    with torch.random.fork_rng():
        new_model(run, images)
    new_loader(run, images)


def fit(run: Run, folder: Path, images: DataSet, listen: Listener = lambda _: None) -> dict[str, Any]:
    """Train one run in ``folder``, going on from its checkpoint if there is one, and return its result.

    A finished run is returned as it is. A loss that is not finite ends the run with status 'failed'.

    Raises:
        InputError: The folder belongs to another configuration or its checkpoint is damaged.
        RunError: The disk is full or cannot be written; what was saved before is intact.
    """
    _claim(folder, run)
    done = folder / RESULT
    if done.exists():
        return _read(done, "delete it, and the run goes on from its checkpoint")
    with torch.random.fork_rng(), _threads(run.threads):
        trainer = Trainer(run, folder, images)
        trainer.resume()
        try:
            trainer.train(listen)
            result = trainer.result()
        except Failed as failure:
            result = trainer.result(str(failure))
    records.write_json(done, result)
    return result


def load_data(run: Run) -> DataSet:
    """Return the images of a run."""
    return data.load(run.dataset, run.data)


def _claim(folder: Path, run: Run) -> None:
    """Make the folder this run's own, or refuse one that is another's."""
    records.make_folder(folder)
    path = folder / CONFIG
    content = run.as_dict() | {"resolved": repr(methods.parse(run.method))}
    if path.exists():
        held = _read(path, f"delete the folder {folder} to start this run anew")
        if held["resolved"] != content["resolved"] or _plain(held) != _plain(content):
            raise InputError(f"folder {folder} belongs to another configuration; choose another folder")
    else:
        records.write_json(path, content)


def _read(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise InputError(f"{path} is damaged; {remedy}") from None
    return content


def _plain(config: dict[str, Any]) -> Any:
    """Return a configuration as JSON sees it, without the method's spelling."""
    return json.loads(json.dumps({k: v for k, v in config.items() if k != "method"}))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
