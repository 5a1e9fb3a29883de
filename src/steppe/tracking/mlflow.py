"""MLflow; its environment variables, such as ``MLFLOW_TRACKING_URI``, give the store and the experiment."""

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param, RunTag

from steppe.tracking.base import RunInfo

logging.getLogger("mlflow").setLevel(logging.WARNING)  # hides the log of creating the store's tables


class MLflowTracker:
    """A run in MLflow's store; a resumed run keeps its id, and epochs in the store are not sent again."""

    def __init__(self, folder: Path, info: RunInfo, key: str | None, lines: int):
        self._client, experiment = _experiment()
        self.key: str | None = key
        self._epoch, self._status = lines, "KILLED"
        if key is None:
            self.key = self._client.create_run(experiment, run_name=info.name).info.run_id
            params = [Param(k, v) for k, v in info.settings().items()]
            self._client.log_batch(self.key, params=params, tags=[RunTag("digest", info.digest)])
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
        """Send the run's result at its last epoch."""
        self._put(values)
        self._status = "FINISHED" if status == "ok" else "FAILED"

    def close(self) -> None:
        """Set the run's status in the store."""
        self._client.set_terminated(self.key, self._status)

    def _put(self, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(re.sub(r"[^\w\-./ ]", "_", k), v, now, self._epoch) for k, v in values.items()]
        self._client.log_batch(self.key, metrics=metrics)


def _experiment() -> tuple[mlflow.MlflowClient, str]:
    """Return a client and the experiment's id.

    Store and experiment are created if they are missing, perhaps by several runs at the same moment.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "steppe")
    attempts = 5
    while True:
        try:
            client = mlflow.MlflowClient()
            experiment = client.get_experiment_by_name(name)
            return client, experiment.experiment_id if experiment else client.create_experiment(name)
        except Exception:
            attempts -= 1
            if not attempts:
                raise
            time.sleep(0.5 + os.getpid() % 16 / 8)  # a different delay per process, or they would collide again


begin = MLflowTracker
