"""The order of the tables, and the time that they take."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from steppe import hardware, records
from steppe.errors import InputError
from steppe.experiments.reproduction.cost import operations
from steppe.experiments.reproduction.queue import PaperTable
from steppe.experiments.run_lock import ComparisonRun
from steppe.training.trainer import TIMING

_ASSUMED = {"cuda": 1e13, "cpu": 3e10}  # operations per second, until an epoch is finished


@dataclass(frozen=True)
class _Spent:
    """The finished epochs of a run: the share of its training, its seconds, and its floating-point operations."""

    share: float
    seconds: float
    operations: float


@dataclass(frozen=True)
class Estimates:
    """Seconds that runs take, by the operations per second of finished epochs.

    They are those of the first that has any: the run itself, its row's other seeds, its table, all tables. Before
    any epoch is finished, they are `_ASSUMED`.
    """

    tables: Sequence[PaperTable]

    @cached_property
    def _spent(self) -> dict[tuple[str, str, str], _Spent]:
        """What is finished, by table, method and digest."""
        result = {}
        for table in self.tables:
            for job in table.jobs:
                if done := _finished_epochs(job):
                    work = _Spent(done[0] / job.run.epochs, done[1], operations(job.run, table.data))
                    result[table.name, job.run.label, job.folder.name] = work
        return result

    @property
    def measured(self) -> bool:
        """Whether an epoch of any run is finished."""
        return bool(self._spent)

    def left(self, table: PaperTable) -> float:
        """Return the seconds of training of a table's open runs, one after another."""
        return sum(self._run(table, job) for job in table.open)

    def _run(self, table: PaperTable, job: ComparisonRun) -> float:
        key, speed = (table.name, job.run.label, job.folder.name), 0.0
        for parts in (3, 2, 1, 0):
            some = [work for name, work in self._spent.items() if name[:parts] == key[:parts]]
            if seconds := sum(work.seconds for work in some):
                speed = sum(work.share * work.operations for work in some) / seconds
                break
        share = self._spent[key].share if key in self._spent else 0
        speed = speed or _ASSUMED["cuda" if hardware.device().type == "cuda" else "cpu"]
        return (1 - share) * operations(job.run, table.data) / speed

    def order(self) -> list[PaperTable]:
        """Return the tables in the order in which they are trained.

        Finished ones are last. Of the others those of `FIRST` come first, in its order; then, and among equals,
        the one with the most printed accuracies per second that is left.
        """

        def key(table: PaperTable) -> tuple[bool, int, float]:
            seconds = self.left(table)
            return not table.open, table.rank, -table.answers / seconds if seconds else 0.0

        return sorted(self.tables, key=key)


def _finished_epochs(job: ComparisonRun) -> tuple[int, float] | None:
    """Return the number of a run's recorded epochs and their seconds, None without any."""
    try:
        lines = records.read_epochs(job.folder / TIMING)
        return (len(lines), float(lines[-1]["seconds"])) if lines else None
    except (InputError, KeyError):  # a damaged file is reported when its table is trained
        return None
