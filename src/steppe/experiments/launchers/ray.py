"""Runs as tasks on a Ray cluster."""

from collections.abc import Sequence
from typing import Any

from steppe.errors import InputError, RunError
from steppe.experiments.launchers.cluster import Task, TaskResult


class RayCluster:
    """Workers of the Ray cluster at ``address``, else of a running local one, else of one that is started.

    ``cpus`` and ``gpus`` are the resources of a run; by default its threads and no GPU. With a fraction of a GPU
    several runs share it.
    """

    sends_objects = True
    pause = 0.2

    def __init__(self, address: str | None = None, cpus: float | None = None, gpus: float = 0.0):
        try:
            import ray
        except ImportError:
            raise InputError("launcher 'ray' needs ray: pip install 'steppe[cluster]'") from None
        self.ray: Any = ray
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def submit(self, tasks: Sequence[Task]) -> list[Any]:
        """Submit the tasks; Ray starts each as soon as a machine has room for it."""
        if not self.ray.is_initialized():
            try:
                self.ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise RunError(f"no Ray cluster at {self.address or 'hand'} ({error})") from None
        return [self._remote(task).remote(task) for task in tasks]

    def _remote(self, task: Task) -> Any:
        # no retries by Ray: launch_on_cluster replaces killed workers, in the same way on every cluster
        needs = {"num_cpus": self.cpus or task.run.threads, "num_gpus": self.gpus, "max_retries": 0}
        # a new process per task, because peak memory is measured per process
        return self.ray.remote(**needs, max_calls=1)(_call)

    def ended(self, worker: Any) -> TaskResult | None:
        """Poll the task without waiting."""
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


def _call(task: Task) -> dict[str, Any] | str:
    return task()
