"""The global RNG in the passes of a step, from which dropout draws its masks."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from steppe.core.state import rng

_WATCHED = 10  # steps


class PythonRandom:
    """The generator of Python's `random`, with the methods of one of torch."""

    get_state = staticmethod(random.getstate)
    set_state = staticmethod(random.setstate)
    manual_seed = staticmethod(random.seed)


class NumPyRandom:
    """The global generator of NumPy, with the methods of one of torch."""

    set_state = staticmethod(np.random.set_state)

    @staticmethod
    def get_state() -> Any:
        """Return the state."""
        return np.random.get_state(legacy=False)

    @staticmethod
    def manual_seed(seed: int) -> None:
        """Set the state to that of a seed, of which NumPy takes 32 bits."""
        np.random.seed(seed % 2**32)


class MaskSeed:
    """A seed of dropout masks that is drawn anew in each step, for steps that are recorded once and replayed."""

    def __init__(self, generator: torch.Generator):
        self._generator = generator
        self.fresh = False
        self.draw()

    def draw(self) -> None:
        """Draw the seed of this step."""
        self.value = drawn_seed(self._generator)


def drawn_seed(generator: torch.Generator) -> int:
    """Return a seed from a generator of the host."""
    # numpy() reads it without an operation, which a test of reads would count
    return int(torch.randint(2**62, (), generator=generator).numpy())


class PassRNG:
    """Gives passes after the clean one its masks, or fresh ones, and puts the state back that they found.

    It acts on ``generators``, the global ones: torch's, and Python's and NumPy's if the clean passes of the first
    ten steps draw from them (``watched`` counts down). To save NumPy's state takes as long as a pass of a small
    network. A step that is captured has another one, whose actions are repeated when the step is replayed; it
    cannot repeat draws of the host, so ``host`` is False there.
    """

    def __init__(self, device: torch.device, host: bool = True):
        self._host: dict[str, Any] = {"python": PythonRandom(), "numpy": NumPyRandom()} if host else {}
        self._own = rng.global_generators(device)
        self._clean: list[Any] = []
        self._outer: list[list[Any]] = []
        self.load_state_dict({"watched": _WATCHED, "names": []})

    def state_dict(self) -> dict[str, Any]:
        """Return which of the host's generators are drawn from, and how many steps are still watched."""
        return {"watched": self.watched, "names": sorted(self._names)}

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.watched = int(content["watched"]) if self._host else 0
        self._names = {*content["names"]} & self._host.keys()
        self._choose()

    def _choose(self) -> None:
        used = [g for name, g in self._host.items() if self.watched or name in self._names]
        self.generators: list[Any] = [*self._own, *used]
        self.begin_clean()

    def end_watched(self) -> None:
        """End one of the first steps; after the last of them, leave out the generators that are not drawn from."""
        states = dict(zip(self.generators, self._clean, strict=True))
        self._names |= {name for name, g in self._host.items() if not same_state(g.get_state(), states[g])}
        self.watched -= 1
        if not self.watched:
            self._choose()

    def begin_clean(self) -> None:
        """Remember the state: passes within `enter` begin with it."""
        self._clean = [g.get_state() for g in self.generators]

    def enter(self, seed: int | MaskSeed | None) -> None:
        """Begin with the state of the last clean pass, or with a seed's."""
        self._outer.append([g.get_state() for g in self.generators])
        number = seed.value if isinstance(seed, MaskSeed) else seed
        for generator, state in zip(self.generators, self._clean, strict=True):
            # torch.manual_seed also formats a traceback for each backend
            generator.set_state(state) if number is None else generator.manual_seed(number)

    def leave(self) -> None:
        """Put the state back that there was before `enter` or `save`."""
        for generator, state in zip(self.generators, self._outer.pop(), strict=True):
            generator.set_state(state)

    def save(self) -> None:
        """Go on from the present state until `leave`."""
        self._outer.append([g.get_state() for g in self.generators])

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the state on leaving, so that what follows sees the same masks."""
        self.save()
        try:
            yield
        finally:
            self.leave()

    def draw_seed(self, generator: torch.Generator) -> Any:
        """Return a seed for `enter` from the step's own generator."""
        return drawn_seed(generator)


def same_state(a: Any, b: Any) -> bool:
    """Return whether two states of a generator are equal."""
    return a == b if isinstance(a, tuple) else all(map(np.array_equal, tree_leaves(a), tree_leaves(b)))
