"""Runs one after another, each trained by all processes of a torchrun job together."""

from collections.abc import Sequence
from functools import partial

from steppe import hardware
from steppe.config.run import DataKey
from steppe.data.dataset import DataSet
from steppe.distributed import collectives
from steppe.errors import InputError, RunError
from steppe.experiments.run_lock import ComparisonRun, Progress, locked_run
from steppe.training.run import load_data, train_run


def run_in_torchrun(jobs: Sequence[ComparisonRun], progress: Progress) -> dict[ComparisonRun, str]:
    """Run all jobs in order, and return the errors by job, the same on every process.

    ``progress(job, news)`` is called with each status, result and error, on every process. A lost process ends all
    runs with `ProcessLost`; each resumes from its last checkpoint when the torchrun job is started again.
    """
    world = collectives.current_world()
    hardware.keep_freed_memory()
    errors: dict[ComparisonRun, str] = {}
    cached: dict[DataKey, DataSet] = {}
    for job in jobs:
        hardware.forget_peak_memory()
        try:
            with world.held_by_main_process(partial(locked_run, job.folder)):
                key = job.run.data_key
                if key not in cached:
                    cached = {key: world.main_process_first(partial(load_data, job.run))}
                images = cached[key]
                progress(job, train_run(job.run, job.folder, images, partial(progress, job)))
        except collectives.ProcessLost:
            raise
        except (InputError, RunError) as error:
            errors[job] = str(error)
            progress(job, str(error))
    return errors
