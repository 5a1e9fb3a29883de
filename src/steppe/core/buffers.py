"""A network's buffers (running statistics, counters) as they were: values, and which tensors the modules hold.

Most modules write into their buffers. Some put a new tensor in place of one (``self.seen = self.seen + 1``), and
what such a pass did is taken back by giving the module its tensor again.
"""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn

from steppe.core.snapshot import CopyPool, TensorCopy

_Home = dict[str, Tensor | None]


class Buffers:
    """The buffers of one network, kept as often as needed."""

    def __init__(self, net: nn.Module):
        # looking for the modules that have any takes longer than all else here
        self._homes: list[_Home] = [m._buffers for m in net.modules() if m._buffers]
        self._copies = CopyPool()
        self._look()

    def keep(self) -> BufferCopy:
        """Return what they are now."""
        if self._present() != self.held:
            self._look()
        return BufferCopy(self, self._copies)

    def _look(self) -> None:
        self.held = self._present()
        self.homes = [(home, dict(home)) for home in self._homes]
        self.tensors = tuple(t for _, was in self.homes for t in was.values() if t is not None)

    def _present(self) -> list[int]:
        """Return which tensors there are, by identity; those of the last look are alive, and so not mistaken."""
        return list(map(id, chain.from_iterable(map(dict.values, self._homes))))


class BufferCopy:
    """Buffers as they were."""

    def __init__(self, buffers: Buffers, copies: CopyPool):
        self._buffers, self._copies = buffers, copies
        self._held, self._homes = buffers.held, buffers.homes
        self._values: TensorCopy = copies.make(buffers.tensors)

    def restore(self) -> None:
        """Return to it: modules have their tensors again, and these their values, bit for bit.

        A tensor that another of a different shape or type has taken the place of (a table that has grown) is not
        put back: the module counts on the new one.
        """
        if self._buffers._present() != self._held:
            for home, was in self._homes:
                for name, t in was.items():
                    now = home.get(name)
                    if now is not t and now is not None and t is not None and _alike(now, t):
                        home[name] = t
        self._values.restore()

    def close(self) -> None:
        """Let go of it."""
        self._copies.release(self._values)


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
