"""The global RNG in the passes of a step, from which dropout draws its masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steppe.core.state import rng


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

    It acts on ``generators``, the global ones. A step that is captured has another one, whose actions are repeated
    when the step is replayed.
    """

    def __init__(self, device: torch.device):
        self.generators = rng.global_generators(device)
        self._outer: list[list[Tensor]] = []
        self.begin_clean()

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
