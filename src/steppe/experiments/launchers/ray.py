"""Runs as tasks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steppe.errors import InputError, RunError
from steppe.experiments.launchers.cluster import Task, TaskResult


class RayCluster:
    """Workers of Ray: of the cluster at ``address``, of one that runs here, or of one started on this machine.

    ``cpus`` and ``gpus`` are what a run is given; its threads and no GPU if not stated. A fraction of a GPU lets
    several runs share it.
    """

    pause = 0.2

    def __init__(self, address: str | None = None, cpus: float | None = None, gpus: float = 0.0):
        try:
            import ray
        except ImportError:
            raise InputError("launcher 'ray' needs ray: pip install 'steppe[cluster]'") from None
        self.ray: Any = ray
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def submit(self, tasks: Sequence[Task]) -> list[Any]:
        """Hand the tasks over; Ray starts each as soon as a machine has room for it."""
        if not self.ray.is_initialized():
            try:
                self.ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise RunError(f"no Ray cluster at {self.address or 'hand'} ({error})") from None
        return [self._remote(task).remote(task) for task in tasks]

    def _remote(self, task: Task) -> Any:
        # a killed worker is replaced by whoever asked for it, in the same way on every cluster
        needs = {"num_cpus": self.cpus or task.run.threads, "num_gpus": self.gpus, "max_retries": 0}
        # a worker used again would measure the memory of the run before
        return self.ray.remote(**needs, max_calls=1)(_do)

    def ended(self, worker: Any) -> TaskResult | None:
        """Look whether the task is done, without waiting for it."""
        ready, _ = self.ray.wait([worker], timeout=0)
        if not ready:
            return None
        try:
            return TaskResult(self.ray.get(worker))
        except self.ray.exceptions.RayError as error:
            return TaskResult(None, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")

    def cancel(self, worker: Any) -> None:
        """Kill the worker's process."""
        self.ray.cancel(worker, force=True)


def _do(task: Task) -> dict[str, Any] | str:
    return task()
