"""The data on the device, and runs that share it: ``python -m benchmarks.gpu.runs runs DEVICE END OUT``."""

import dataclasses
import io
import os
import pickle
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.steps import report
from steppe import experiments, hardware, records
from steppe.config import Data, Study
from steppe.training.factories import make_loader
from steppe.training.run import load_data
from steppe.training.trainer import TrainingStatus

_PARTS = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@dataclass(frozen=True)
class Sizes:
    """Images in each of the archive's six files, and what a run is."""

    images: int = 10_000
    batch: int = 512
    epochs: int = 3
    at_once: int = 9
    precision: str = "bf16"


TINY = Sizes(images=64, batch=32, epochs=1, at_once=2, precision="fp32")


def archive(path: Path, images: int) -> None:
    """Write random images as an archive of CIFAR-10's form."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name in _PARTS:
            pixels = rng.integers(0, 256, (images, 3072), np.uint8)
            content = pickle.dumps({b"data": pixels, b"labels": rng.integers(0, 10, images).tolist()}, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def measure_data(dataset: str, sizes: Sizes) -> None:
    """Report how long decoding and a second start take, and how fast batches are made."""
    run = Study(methods=("plain",), datasets=(dataset,), seeds=(0,), batch=sizes.batch).runs()[0]
    for row in ("decode the archive", "the same in a second start"):
        start = time.perf_counter()
        images = load_data(run)
        count = len(images.train) + len(images.val) + len(images.test)
        seconds = time.perf_counter() - start
        report({"row": row, "value": seconds, "unit": "s", "note": f"{count:,} images"})
    for augment in (("crop", "flip"), ("crop", "flip", "cutmix")):
        loader = make_loader(dataclasses.replace(run, data=Data(augment=augment)), images)
        seconds = _seconds(lambda loader=loader: sum(1 for _ in loader.epoch(1)))  # type: ignore[misc]
        name = f"batches: {' '.join(augment)}"
        report({"row": name, "value": len(loader) * sizes.batch / seconds, "unit": "images/s"})


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of work whose second time counts, with the GPU idle before and after."""
    work()
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_runs(dataset: str, sizes: Sizes, out: Path, end: float) -> None:
    """Report the speed of one run alone, and of several at once."""
    for count in (1, sizes.at_once):
        study = Study(
            methods=("plain",),
            datasets=(dataset,),
            seeds=tuple(range(count)),
            batch=sizes.batch,
            epochs=sizes.epochs,
            precision=sizes.precision,  # type: ignore[arg-type]
            data=Data(augment=("crop", "flip", "cutmix")),
        )
        folder, start = out / f"runs-{count}", time.perf_counter()
        shutil.rmtree(folder, ignore_errors=True)
        grid = experiments.prepare(study, folder, "make gpu")
        first: list[float] = []

        def progress(job: Any, news: Any, first: list[float] = first, start: float = start) -> None:
            if isinstance(news, TrainingStatus) and not first:
                first.append(time.perf_counter() - start)
            if time.time() > end:
                raise TimeoutError("no time was left")

        name = "one run" if count == 1 else f"{count} runs at once"
        try:
            errors = experiments.run(grid, count, progress)
            error = next(iter(errors.values()), "")
        except TimeoutError as reason:
            error = str(reason)
        wall, speeds = time.perf_counter() - start, _speeds(folder)
        about = f"Simple CNN, batch {sizes.batch}, {sizes.precision}, CutMix"
        if speeds:
            report({"row": f"{name}, together", "value": sum(speeds), "unit": "images/s", "note": about})
            report({"row": f"{name}, wall time", "value": wall, "unit": "s", "note": f"{sizes.epochs} epochs"})
        if first:
            report({"row": f"{name}, to the first report", "value": first[0], "unit": "s"})
        if error:
            report({"row": name, "error": error})


def _speeds(folder: Path) -> list[float]:
    """Return the images/s of each run, from its last finished epoch."""
    return [r.timing[-1]["images_per_second"] for r in records.load(folder).records if r.timing]


def main(arguments: Sequence[str]) -> None:
    """Measure the data, then the runs."""
    _, device, limit, out = arguments
    end = float(limit)
    sizes = TINY if device == "cpu" else Sizes()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    # decoded anew
    os.environ["STEPPE_CACHE"] = str(folder / "cache")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    path = folder / f"cifar10-{sizes.images}.tar.gz"
    if not path.exists():
        archive(path, sizes.images)
    dataset = f"cifar10:{path}"
    hardware.keep_freed_memory()
    measure_data(dataset, sizes)
    measure_runs(dataset, sizes, folder, end)


if __name__ == "__main__":
    main(sys.argv[1:])
