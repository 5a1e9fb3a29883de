"""The work on one run, on any machine: lock its folder, train it, return the result or the error."""

import contextlib
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steppe import hardware
from steppe.config import Run
from steppe.data.dataset import DataSet
from steppe.errors import InputError, RunError
from steppe.experiments.run_lock import locked_run
from steppe.training.run import ProgressCallback, load_data, train_run

WORKERS = 3  # workers that a run is given if they are killed


def train_job(
    run: Run,
    folder: Path,
    progress: ProgressCallback,
    patience: float,
    load: Callable[[Run], DataSet] = load_data,
    data: bytes | None = None,
) -> dict[str, Any] | str:
    """Train one run and return its result, or the error message.

    ``data`` is the run's pickled data set, which is loaded without it.

    The result of a finished run is returned without training, so a run may be given to two workers: one trains,
    and the other waits for ``patience`` seconds.
    """
    hardware.keep_freed_memory()
    hardware.forget_peak_memory()
    try:
        with locked_run(folder, patience):
            return train_run(run, folder, _data_set(run, data, load), progress)
    except (InputError, RunError) as error:
        return str(error)
    except Exception as error:
        with contextlib.suppress(OSError):
            (folder / "error.log").write_text(traceback.format_exc())
        first = str(error).splitlines()[0] if str(error) else ""
        return f"{type(error).__name__}: {first} (details in {folder / 'error.log'})"


def _data_set(run: Run, data: bytes | None, load: Callable[[Run], DataSet]) -> DataSet:
    if data is not None:
        with contextlib.suppress(Exception):  # the file that it maps is gone, or a class is the script's own
            images: DataSet = pickle.loads(data)
            return images
    return load(run)


def killed_message(last: str) -> str:
    """Return the error of a run whose workers were all killed, the last one by ``last``."""
    return f"gave up after {WORKERS} workers were killed (last: {last}); start the same command again to go on"
