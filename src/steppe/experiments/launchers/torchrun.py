"""Runs one after another, each by all processes of a torchrun job together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from steppe import hardware
from steppe.data.dataset import DataSet
from steppe.distributed import collectives
from steppe.errors import InputError, RunError
from steppe.experiments.run_lock import J, Listen, locked_run
from steppe.training import run


def run_in_torchrun(jobs: Sequence[J], listen: Listen[J]) -> dict[J, str]:
    """Do all jobs in order; ``listen(job, news)`` hears of progress, results and errors on every process.

    Returns the errors by job, the same on every process. A process that is lost ends all: `team.Lost` goes on,
    and each run resumes from its last checkpoint when the job is started again.
    """
    here = collectives.current_world()
    hardware.keep_freed_memory()
    errors: dict[J, str] = {}
    held: dict[str, DataSet] = {}
    for job in jobs:
        hardware.forget_peak_memory()
        try:
            with here.held_by_main_process(partial(locked_run, job.folder)):
                if job.run.dataset not in held:
                    held = {job.run.dataset: here.main_process_first(partial(run.load_data, job.run))}
                images = held[job.run.dataset]
                listen(job, run.train_run(job.run, job.folder, images, partial(listen, job)))
        except collectives.ProcessLost:
            raise
        except (InputError, RunError) as error:
            errors[job] = str(error)
            listen(job, str(error))
    return errors
