"""Runs as jobs of Slurm, through submitit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steppe.errors import InputError, RunError
from steppe.experiments.launchers.cluster import Task, TaskResult

_LOOK = 30.0  # seconds between two questions to Slurm's accounting, which answers for all jobs at once


class SlurmCluster:
    """Jobs of Slurm, an array of them for the runs that start together; settings are options of sbatch.

    Raises InputError if submitit or Slurm's commands are not there, or an option is unknown to submitit.
    """

    pause = 2.0

    def __init__(self, folder: Path, **settings: Any):
        try:
            import submitit
        except ImportError:
            raise InputError("launcher 'slurm' needs submitit: pip install 'steppe[cluster]'") from None
        self.submitit: Any = submitit
        try:
            self.executor: Any = submitit.SlurmExecutor(folder.resolve())
        except RuntimeError:
            raise InputError("launcher 'slurm' finds no srun here; start it on a machine of the cluster") from None
        try:
            self.executor.update_parameters(**{"job_name": "steppe", "time": 24 * 60, **settings})
        except (ValueError, TypeError) as error:
            first = str(error).splitlines()[0]
            raise InputError(f"launcher 'slurm': {first}; give options of sbatch, such as partition=gpu") from None
        self.settings = settings
        self.asked = time.monotonic()

    def submit(self, tasks: Sequence[Task]) -> list[Any]:
        """Write the job file and hand it to sbatch: one job, or one array of jobs."""
        if "cpus_per_task" not in self.settings:
            self.executor.update_parameters(cpus_per_task=max(task.run.threads for task in tasks))
        self.executor.update_parameters(array_parallelism=len(tasks))
        try:
            with self.executor.batch():
                return [self.executor.submit(_Requeued(task)) for task in tasks]
        except self.submitit.core.utils.FailedSubmissionError as error:
            raise RunError(f"sbatch refused: {' '.join(str(error).split())}") from None

    def ended(self, worker: Any) -> TaskResult | None:
        """Look for the job's result, and now and then ask Slurm whether it still runs."""
        ask = time.monotonic() - self.asked > _LOOK
        if ask:
            self.asked = time.monotonic()
        if not worker.done(force_check=ask):
            return None
        try:
            return TaskResult(worker.result())
        except self.submitit.core.utils.FailedJobError as error:
            return TaskResult(f"its worker failed: {str(error).strip().splitlines()[-1]}")
        except self.submitit.core.utils.UncompletedJobError:
            return TaskResult(None, f"Slurm ({worker.state.lower()}, see {worker.paths.stderr})")

    def cancel(self, worker: Any) -> None:
        """Tell Slurm to cancel the job."""
        worker.cancel(check=False)


class _Requeued:
    """A task that is put back into the queue when its time is over or its place is taken."""

    def __init__(self, task: Task):
        self.task = task

    def __call__(self) -> dict[str, Any] | str:
        return self.task()

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)
