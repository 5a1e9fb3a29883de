"""The data sets of a comparison whose seeds have splits of their own: a few at a time."""

from collections.abc import Mapping

from steppe.config import Run
from steppe.config.run import DataKey
from steppe.data.dataset import DataSet
from steppe.training.run import load_data


class SplitCache:
    """The samples of runs: ``first`` is loaded already; of all others the ``size`` last ones are kept.

    The runs of a seed follow each other, so that each split is loaded about once.
    """

    def __init__(self, first: Mapping[DataKey, DataSet], size: int):
        self.first, self.size = first, size
        self._others: dict[DataKey, DataSet] = {}

    def get(self, run: Run) -> DataSet:
        """Return the samples of a run; raises InputError if they cannot be loaded."""
        key = run.data_key
        if key in self.first:
            return self.first[key]
        if key not in self._others:
            while len(self._others) >= self.size:
                del self._others[next(iter(self._others))]
            self._others[key] = load_data(run)
        return self._others[key]
