"""Runs as Slurm jobs, submitted by submitit."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steppe.errors import InputError, RunError
from steppe.experiments.launchers.cluster import Task, TaskResult

_POLL = 30.0  # seconds between two queries of Slurm's accounting, which covers all jobs at once


class SlurmCluster:
    """Slurm jobs, one array for the runs that start together; settings are options of sbatch.

    Raises InputError if submitit or Slurm's commands are missing, or submitit does not know an option.
    """

    sends_objects = False
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
            raise InputError("launcher 'slurm' finds no srun; start it on a machine of the cluster") from None
        try:
            self.executor.update_parameters(**{"job_name": "steppe", "time": 24 * 60, **settings})
        except (ValueError, TypeError) as error:
            first = str(error).splitlines()[0]
            raise InputError(f"launcher 'slurm': {first}; give options of sbatch, such as partition=gpu") from None
        self.settings = settings
        self.queried = time.monotonic()

    def submit(self, tasks: Sequence[Task]) -> list[Any]:
        """Write the job file and submit it by sbatch: one job, or one array of jobs."""
        if "cpus_per_task" not in self.settings:
            self.executor.update_parameters(cpus_per_task=max(task.run.threads for task in tasks))
        self.executor.update_parameters(array_parallelism=len(tasks))
        try:
            with self.executor.batch():
                return [self.executor.submit(_Requeued(**vars(task))) for task in tasks]
        except self.submitit.core.utils.FailedSubmissionError as error:
            raise RunError(f"sbatch refused: {' '.join(str(error).split())}") from None

    def ended(self, worker: Any) -> TaskResult | None:
        """Read the job's result, and every `_POLL` seconds query Slurm whether it still runs."""
        query = time.monotonic() - self.queried > _POLL
        if query:
            self.queried = time.monotonic()
        if not worker.done(force_check=query):
            return None
        try:
            return TaskResult(worker.result())
        except self.submitit.core.utils.FailedJobError as error:
            return TaskResult(f"its worker failed: {str(error).strip().splitlines()[-1]}")
        except self.submitit.core.utils.UncompletedJobError:
            return TaskResult(None, f"Slurm ({worker.state.lower()}, see {worker.paths.stderr})")

    def cancel(self, worker: Any) -> None:
        """Cancel the job."""
        worker.cancel(check=False)


class _Requeued(Task):
    """A task that is requeued at its time limit or when it is preempted."""

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)
