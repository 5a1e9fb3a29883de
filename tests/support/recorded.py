"""A synthetic comparison on disk: the files that the engine writes, with seeded random curves."""

import io
import json
import random
from pathlib import Path
from typing import Any

from rich.console import Console

from steppe.records import load
from steppe.report.comparison import page
from steppe.report.comparison.summary import ResultRow, rows

METHODS = ("plain", "repeat-step", "two-step", "gc", "agc", "sam", "sadt-v1", "sadt-v2", "sadt-v3")
GAIN = dict(zip(METHODS, (0, 2.6, 2.2, 0.3, -0.2, 0.9, 2.9, 2.1, -2.5), strict=True))
PASSES = dict.fromkeys(METHODS, (1.0, 1.0, 1.0)) | {
    "repeat-step": (1.0, 1.0, 2.0),
    "two-step": (2.0, 2.0, 2.0),
    "sam": (2.0, 2.0, 1.0),
    "sadt-v1": (2.0, 2.0, 2.0),
    "sadt-v2": (2.0, 2.0, 1.0),
    "sadt-v3": (3.0, 2.0, 2.0),
}
ENVIRONMENT = {
    "steppe": "0.1.0", "python": "3.11.9", "torch": "2.15.0", "platform": "Linux-6.1-x86_64",
    "processor": "AMD EPYC 7B13", "cores": 2, "device": "cpu",
}  # fmt: skip


class Folder:
    """A comparison's folder under construction; ``accuracy`` remembers what was written.

    ``about`` has the descriptions of data sets that are not images of 10 classes, their metrics included.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.accuracy: dict[tuple[str, str], dict[int, float]] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.compare: dict[str, Any] = {
            "format": 1,
            "created": "2026-03-01T12:00:00+00:00",
            "command": "steppe compare --methods plain sam --seeds 0 1 2 --out out/digits",
            "environment": ENVIRONMENT,
            "study": {
                "batch": 64, "epochs": 12, "match": "epochs", "seeds": [0, 1, 2],
                "data": {"augment": ["cutmix"], "val": 0.1}, "optim": {"name": "adam", "lr": 1e-3},
            },
            "data": {}, "runs": [], "methods": {},
        }  # fmt: skip

    def method(self, label: str, **about: Any) -> None:
        controls = ["repeat-step", "two-step"] if label.startswith("sadt") else []
        self.compare["methods"][label] = {
            "summary": f"One sentence about {label}.",
            "resolved": f"{label.title()}(sigma=0.0001)",
            "controls": controls,
        } | about

    def run(
        self,
        label: str,
        seed: int,
        accuracy: float | None,
        status: str = "ok",
        message: str | None = None,
        dataset: str = "digits",
        epochs: int = 12,
        outputs: tuple[str, ...] = (),
        watch: bool = False,
    ) -> Path:
        """Write a run; ``outputs`` can be deployed too, ``watch`` evaluates the test images after each epoch.

        On a data set with a metric of its own ``accuracy`` is the value of that metric.
        """
        digits = {"train": 1294, "val": 143, "test": 360, "classes": 10, "note": "8x8 scans"}
        about = self.about.get(dataset, digits)
        metric = about.get("metric")
        key = "metric" if metric else "accuracy"
        draw = random.Random(f"{label} {seed} {dataset}")
        digest = f"{len(self.compare['runs']):012x}"
        run = {"digest": digest, "method": label, "model": "simple-cnn", "dataset": dataset, "seed": seed}
        self.compare["runs"].append(run)
        self.compare["data"].setdefault(dataset, about)
        home = self.path / "runs" / digest
        home.mkdir(parents=True)
        (home / "config.json").write_text(json.dumps(run))
        forward, backward, updates = PASSES.get(label, (1.0, 1.0, 1.0))
        end = accuracy if accuracy is not None else 0.9
        lines, times = [], []
        for epoch in range(1, epochs + 1):
            risen = end - 0.75 * 0.72**epoch + draw.gauss(0, 0.006)
            if metric:
                risen = end * (1 + (-0.75 if metric["higher"] else 2) * 0.72**epoch + draw.gauss(0, 0.006))
            line = {
                "epoch": epoch, "progress": epoch / epochs, "lr": 1e-3, "steps": 21, "skipped": 0,
                "train_loss": 2.3 * 0.86**epoch + 0.35 + draw.gauss(0, 0.01),
                f"train_{key}": risen - (0.0 if metric else 0.2),
                "val_loss": 2.2 * 0.78**epoch + 1.2 * (1 - end) + draw.gauss(0, 0.01), f"val_{key}": risen,
                "gradients": 21.0 * backward * epoch,
            }  # fmt: skip
            if watch:
                line[f"test_{key}"] = risen - 0.01
                line |= {"test_outputs": self.several(outputs, risen, key)} if outputs else {}
            lines.append(line)
            times.append({"epoch": epoch, "seconds": 0.9 * forward * epoch + draw.random() * 0.05})
        (home / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        (home / "timing.jsonl").write_text("".join(json.dumps(x) + "\n" for x in times))
        if status == "unfinished":
            return home
        test = None
        if status == "ok" and accuracy is not None:
            self.accuracy.setdefault((dataset, label), {})[seed] = accuracy
            test = {
                "last": {key: accuracy, "loss": 0.2},
                "best": {"epoch": 9, key: accuracy + 0.002, "loss": 0.2},
            }
            for i, tested in enumerate(test.values() if outputs else ()):
                tested |= {"outputs": self.several(outputs, accuracy + 0.001 * i, key)}
                tested |= {"diversity": 0.1 + 0.01 * seed}
        result = {
            "format": 1, "status": status, "message": message, "epochs": epochs, "steps": 21 * epochs,
            "test": test, "val": {}, "passes": {"forward": forward, "backward": backward, "updates": updates},
            "seconds": times[-1]["seconds"] if times else 0.0, "peak_memory_mb": 480.0 + 60 * forward,
            "parameters": 635576, "environment": ENVIRONMENT,
        }  # fmt: skip
        result |= {"metric": metric} if metric else {}
        (home / "result.json").write_text(json.dumps(result))
        return home

    @staticmethod
    def several(names: tuple[str, ...], accuracy: float, key: str = "accuracy") -> dict[str, Any]:
        """Return outputs, each half a point above the one before it."""
        return {name: {key: accuracy + 0.005 * i, "loss": 0.2} for i, name in enumerate(names)}

    def simple(self, accuracies: Any, controls: Any = None) -> list[ResultRow]:
        """Write methods with these test accuracies (percent), one per seed, and return their rows."""
        for label, values in accuracies.items():
            self.method(label, controls=(controls or {}).get(label, []))
            for seed, value in enumerate(values):
                self.run(label, seed, value / 100)
        return rows(load(self.write()))

    def write(self) -> Path:
        (self.path / "compare.json").write_text(json.dumps(self.compare))
        return self.path


def html(folder: Path, version: str = "") -> str:
    """Return a comparison's page, with a version without the static curves."""
    comparison = load(folder)
    return page.html(comparison, rows(comparison), version)


def terminal(*renderables: Any, width: int = 120) -> str:
    file = io.StringIO()
    for renderable in renderables:
        Console(width=width, file=file).print(renderable)
    return file.getvalue()


def grid(folder: Folder, dataset: str = "digits", seeds: int = 3) -> None:
    """Add nine methods with ``seeds`` seeds: one agc run fails, one sadt-v3 run is unfinished."""
    for label in METHODS:
        folder.method(label)
    draw = random.Random(7)
    for seed in range(seeds):
        shared = draw.gauss(0, 0.8)
        for label in METHODS:
            count = round((92.5 + GAIN[label] + shared + draw.gauss(0, 0.45)) * 3.6)
            if (label, seed) == ("agc", 1):
                message = "loss is not finite at step 123 (epoch 4)"
                folder.run(label, seed, None, "failed", message, dataset, epochs=3)
            elif (label, seed) == ("sadt-v3", 2):
                folder.run(label, seed, None, "unfinished", dataset=dataset, epochs=5)
            else:
                folder.run(label, seed, count / 360, dataset=dataset)
