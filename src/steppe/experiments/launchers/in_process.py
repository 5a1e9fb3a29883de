"""Runs one after another in the calling process: for small networks, notebooks and tests."""

from collections.abc import Callable, Sequence
from functools import partial

from steppe.config import Run
from steppe.data.dataset import DataSet
from steppe.experiments.run_lock import PATIENCE, ComparisonRun, Progress
from steppe.experiments.worker import train_job


def launch_here(
    jobs: Sequence[ComparisonRun], progress: Progress, load: Callable[[Run], DataSet]
) -> dict[ComparisonRun, str]:
    """Run all jobs in order, and return the errors by job; an interrupted run resumes when it is launched again.

    ``progress(job, news)`` as in `steppe.experiments.launchers.local.launch`; ``load`` returns a run's data.
    """
    errors: dict[ComparisonRun, str] = {}
    for job in jobs:
        news = train_job(job.run, job.folder, partial(progress, job), PATIENCE, load)
        if isinstance(news, str):
            errors[job] = news
        progress(job, news)
    return errors
