"""How many runs train at a time on one GPU, by the images that all of them together train on per second.

The number is doubled while that rate grows by more than `GAIN` and the GPU's memory has room. It is measured over
`WINDOW` seconds in which that many runs report. The kernels of small networks leave most of a GPU idle, and each
run is launched by a core of its own: the rate grows until the GPU or the cores are busy.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

GAIN = 0.05
WINDOW = 3.0
_PATIENCE = 30.0  # seconds until a number of runs is measured although some have not reported: they are very short
_MEMORY = re.compile("out of memory|OutOfMemoryError|ALLOC_FAILED|busy or unavailable", re.IGNORECASE)


@dataclass
class Packing:
    """The number of runs that train at a time, ``target``, which grows from 1 to at most ``most``.

    `report` is called with each run's progress, `ended` when its worker has ended.
    """

    most: int
    clock: Callable[[], float] = time.monotonic
    target: int = 1
    grows: bool = True
    is_fixed: bool = False
    rates: dict[int, float] = field(default_factory=dict)  # images/s by number of runs

    def __post_init__(self) -> None:
        self._room: dict[Hashable, int] = {}
        self._restart()

    @classmethod
    def fixed(cls, workers: int) -> Packing:
        """Return a packing of always so many runs."""
        return cls(workers, target=workers, grows=False, is_fixed=True)

    def _restart(self) -> None:
        self._reports: dict[Hashable, list[tuple[float, int]]] = defaultdict(list)
        self._ends: dict[Hashable, float] = {}
        self._since, self._start = self.clock(), -1.0

    def report(self, run: Hashable, images: int, room: int | None = None) -> None:
        """Note that a run has trained on so many images, and that memory has room for ``room`` more like it."""
        if room is not None:
            self._room[run] = room
        if not self.grows:
            return
        now, reports = self.clock(), self._reports[run]
        reports.append((now, images))
        if self._start < 0:
            # the first interval of a run may include what happens once, such as the choice of algorithms
            ready = sum(len(of_run) > 1 for of_run in self._reports.values())
            if ready >= self.target or now - self._since > _PATIENCE:
                self._start = now
                self._reports = defaultdict(list, {key: of_run[-1:] for key, of_run in self._reports.items()})
        elif now - self._start >= WINDOW:
            self._decide()

    def ended(self, run: Hashable) -> None:
        """Note that the worker of a run has ended."""
        self._room.pop(run, None)
        self._ends[run] = self.clock()

    def blames(self, message: str, active: int) -> bool:
        """Return whether a run failed for lack of memory while others run; fewer will then train at a time."""
        if self.is_fixed or active < 2 or not _MEMORY.search(message):
            return False
        self.target, self.grows = active - 1, False
        return True

    def _decide(self) -> None:
        """Compare the rate with that of fewer runs, and grow or stop."""
        n, smaller = self.target, max(self.rates, default=None)
        self.rates[n] = sum(map(self._rate, self._reports))
        room = min(self._room.values(), default=self.most)
        following = min(2 * n, self.most, n + room)
        if smaller is not None and self.rates[n] <= (1 + GAIN) * self.rates[smaller]:
            self.target, self.grows = smaller, False
        elif following == n:
            self.grows = False
        else:
            self.target = following
        self._restart()

    def _rate(self, run: Hashable) -> float:
        """Return a run's images per second, times the share of the window in which it trained."""
        (start, before), (end, after) = self._reports[run][0], self._reports[run][-1]
        now = self.clock()
        trained = self._ends.get(run, now) - (start if start > self._start + 1 else self._start)
        return (after - before) / (end - start) * trained / (now - self._start) if end > start else 0.0
