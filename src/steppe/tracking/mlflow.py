"""MLflow; where its store is and the experiment's name are what ``MLFLOW_TRACKING_URI`` and the like say."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param, RunTag

from steppe.tracking.base import RunInfo

logging.getLogger("mlflow").setLevel(logging.WARNING)  # how it makes its tables


class MLflowTracker:
    """A run in MLflow's store; one that goes on keeps its id, and epochs that are there are not taken twice."""

    def __init__(self, about: RunInfo, key: str | None, lines: int):
        self._client, experiment = _experiment()
        self.key: str | None = key
        self._epoch, self._status = lines, "KILLED"
        if key is None:
            self.key = self._client.create_run(experiment, run_name=about.name).info.run_id
            params = [Param(k, v) for k, v in about.settings().items()]
            self._client.log_batch(self.key, params=params, tags=[RunTag("digest", about.digest)])
        else:
            self._client.update_run(key, status="RUNNING")
            history = self._client.get_metric_history(key, "train_loss")
            self._epoch = max((m.step for m in history), default=lines)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Send one epoch's numbers in one batch."""
        if epoch > self._epoch:
            self._epoch = epoch
            self._put(values)

    def finish(self, values: Mapping[str, float], status: str) -> None:
        """Send what the run ended with, at its last epoch."""
        self._put(values)
        self._status = "FINISHED" if status == "ok" else "FAILED"

    def close(self) -> None:
        """Say that nothing more is coming for now."""
        self._client.set_terminated(self.key, self._status)

    def _put(self, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(re.sub(r"[^\w\-./ ]", "_", k), v, now, self._epoch) for k, v in values.items()]
        self._client.log_batch(self.key, metrics=metrics)


def _experiment() -> tuple[mlflow.MlflowClient, str]:
    """Return the store and the id of the experiment in it.

    Both are made where they are missing, which several runs may be about to do at the same moment.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "steppe")
    attempts = 5
    while True:
        try:
            client = mlflow.MlflowClient()
            found = client.get_experiment_by_name(name)
            return client, found.experiment_id if found else client.create_experiment(name)
        except Exception:
            attempts -= 1
            if not attempts:
                raise
            time.sleep(0.5 + os.getpid() % 16 / 8)  # others in step with this one would meet it again


def begin(place: Path, about: RunInfo, key: str | None, lines: int) -> MLflowTracker:
    """Begin a run in the store, or go on with the one of this id."""
    return MLflowTracker(about, key, lines)
