"""Record the operations of a function and repeat them: as a CUDA graph, or one by one on a processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from steppe.core.state.pass_rng import MaskSeed, NumPyRandom, PassRNG, PythonRandom, same_state
from steppe.core.state.rng import global_generators
from steppe.core.step_state import StepOutput
from steppe.errors import InputError

_MOST, _SPARE = 64, 2  # states of the global generator in a step
_STRIDE = 2**24  # of a generator's offset between two passes: more than one can draw
_READS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"}


class Backend(Protocol):
    """Makes steps, records one, and replays it."""

    def warm_up(self, make: Callable[[], StepOutput]) -> StepOutput:
        """Make a step as usual."""

    def begin(self, rng: PassRNG, generators: Sequence[torch.Generator], recording: bool) -> Any:
        """Begin a step; return the global RNG of its passes."""

    def fill(self, number: Tensor, value: float) -> None:
        """Give a tensor that the recording reads its value, if the step is also made while it is recorded."""

    def record(self, make: Callable[[], StepOutput]) -> StepOutput:
        """Make a step that is recorded."""

    def finish(self) -> Callable[[], None]:
        """Return what replays the step that was recorded last."""

    def forget(self) -> None:
        """Prepare for other graphs, after all that were recorded are released."""


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations with their tensors, whose storage stays: each replay writes its results into it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._actions: list[Callable[[], object]] = []

    def warm_up(self, make: Callable[[], StepOutput]) -> StepOutput:
        return make()

    def begin(self, rng: PassRNG, generators: Sequence[torch.Generator], recording: bool) -> Any:
        if not recording:
            return rng
        self._actions = []
        return _TapedRNG(rng, self._actions)

    def fill(self, number: Tensor, value: float) -> None:
        with _disable_current_modes():
            number.fill_(value)

    def record(self, make: Callable[[], StepOutput]) -> StepOutput:
        with _without_draws_of_the_host(), self:
            return make()

    def finish(self) -> Callable[[], None]:
        actions, self._actions = self._actions, []
        return partial(_repeat, actions)

    def forget(self) -> None:
        pass

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in _READS:
            raise InputError(f"graph is True, and the host reads a value ({func.name()}); leave graph out")
        options = kwargs or {}
        results = func(*args, **options)
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, options)) if isinstance(t, Tensor)}
        results_flat = [t for t in tree_leaves(results) if isinstance(t, Tensor)]
        fresh = [t.untyped_storage()._cdata not in before for t in results_flat]
        if func._schema.is_mutable or any(fresh):  # else it is a view
            self._actions.append(partial(_again, func, args, options, results_flat, fresh))
        return results


@contextmanager
def _without_draws_of_the_host(*more: Any) -> Iterator[None]:
    """Raise InputError if what is recorded draws from a generator of the host, which no replay would repeat."""
    generators = (PythonRandom(), NumPyRandom(), *more)
    before = [g.get_state() for g in generators]
    yield
    if not all(map(same_state, before, [g.get_state() for g in generators])):
        raise InputError("graph is True, and the model draws numbers on the host; leave graph out")


def _again(func: Any, args: Any, kwargs: Any, results: list[Tensor], fresh: list[bool]) -> None:
    again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
    for into, new, own in zip(results, again, fresh, strict=True):
        if own and new.numel():
            into.detach().copy_(new)


def _repeat(actions: list[Callable[[], object]]) -> None:
    with torch.no_grad():
        for action in actions:
            action()


class _TapedRNG:
    """Acts on a step's global RNG, and notes what it did."""

    def __init__(self, rng: PassRNG, actions: list[Callable[[], object]]):
        self._rng, self._actions = rng, actions

    def _do(self, action: Callable[[], object]) -> None:
        with _disable_current_modes():
            action()
        self._actions.append(action)

    def begin_clean(self) -> None:
        self._do(self._rng.begin_clean)

    def enter(self, seed: Any) -> None:
        self._do(partial(self._rng.enter, seed))

    def leave(self) -> None:
        self._do(self._rng.leave)

    @contextmanager
    def restored(self) -> Iterator[None]:
        self._do(self._rng.save)
        try:
            yield
        finally:
            self.leave()

    def draw_seed(self, generator: torch.Generator) -> MaskSeed:
        with _disable_current_modes():
            seed = MaskSeed(generator)
        self._actions.append(seed.draw)
        return seed


class CudaGraph:
    """CUDA graphs that share memory; steps are made and recorded on a stream of their own."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._passes = 0

    def warm_up(self, make: Callable[[], StepOutput]) -> StepOutput:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            try:
                out = make()
            finally:
                self._rng.end()
        self._passes = max(self._passes, self._rng.states)
        current.wait_stream(self._stream)
        for t in tree_leaves((out.loss, out.logits, out.skip_flag)):
            if isinstance(t, Tensor) and t.device.type == "cuda":
                t.record_stream(current)
        return out

    def begin(self, rng: PassRNG, generators: Sequence[torch.Generator], recording: bool) -> Any:
        # a replay sets each state that the graph knows, with two launches
        states = self._passes + _SPARE if recording else _MOST
        self._rng = _CudaRNG(global_generators(self._device)[-1], recording, states)
        if not recording:
            return self._rng
        self._graph = torch.cuda.CUDAGraph()
        for generator in (*self._rng.all, *(g for g in generators if g.device.type == "cuda")):
            self._graph.register_generator_state(generator)
        return self._rng

    def fill(self, number: Tensor, value: float) -> None:
        pass  # nothing is computed before the first replay

    def record(self, make: Callable[[], StepOutput]) -> StepOutput:
        current = torch.cuda.current_stream(self._device)
        current.synchronize()
        options: Any = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        # a recording that fails would leave its own stream behind
        outer = torch.cuda.stream(current)
        try:
            graph = torch.cuda.graph(self._graph, **options)
            with (
                _without_draws_of_the_host(torch.default_generator),
                torch.cuda.device(self._device),
                outer,
                graph,
            ):
                return make()
        finally:
            self._rng.end()

    def finish(self) -> Callable[[], None]:
        replay = partial(_replay, self._graph, self._rng)
        replay()  # nothing was computed while it was recorded
        return replay

    def forget(self) -> None:
        # the memory of graphs that are gone must not be asked for again
        self._pool, self._passes = torch.cuda.graph_pool_handle(), 0


def _replay(graph: Any, rng: _CudaRNG) -> None:
    rng.set()
    graph.replay()


class _CudaRNG:
    """The global generator of a GPU while a step is recorded.

    A graph knows a generator by its state. Each pass has a state of its own, and all passes with the same masks
    have states with the same seed and offset, which are set before each replay.
    """

    def __init__(self, generator: torch.Generator, recording: bool, states: int):
        self._generator, self._recording = generator, recording
        self._first, self._offset = generator.initial_seed(), generator.get_offset()
        self._own = generator.graphsafe_get_state()
        self.all = [generator.clone_state() for _ in range(states)]
        self._free = list(self.all)
        self._used: list[
            tuple[torch.Generator, int | MaskSeed]
        ] = []  # with its stretch of random numbers, or a seed
        self._outer: list[tuple[torch.Generator, int | MaskSeed | None]] = []
        # what is done once, as in the first step after resuming, must not move the numbers of later steps
        self._clean = self._restored = 0
        self._seeds: list[MaskSeed] = []
        self._switch(0)

    @property
    def states(self) -> int:
        """How many states the step has used."""
        return len(self._used)

    def _switch(self, source: int | MaskSeed) -> None:
        if not self._free:
            raise InputError("graph is True, and the step has too many passes to be recorded; leave graph out")
        state = self._free.pop()
        self._used.append((state, source))
        if not self._recording:
            self._place(state, source)
        self._now: torch.Generator = state
        self._generator.graphsafe_set_state(state)

    def begin_clean(self) -> None:
        """Remember the stretch of the pass that begins now."""
        self._clean += 1
        self._switch(self._clean)

    def enter(self, seed: int | MaskSeed | None) -> None:
        """Begin with the numbers of the last clean pass, or with a seed's."""
        self._outer.append((self._now, None))
        if isinstance(seed, int):
            raise InputError("graph is True, and a seed of masks is a number; take that of rt.draw_mask_seed()")
        self._switch(self._clean if seed is None else seed)

    def leave(self) -> None:
        """Go on as before `enter`; after `restored` with the numbers that it had."""
        state, again = self._outer.pop()
        if again is None:
            self._now = state
            self._generator.graphsafe_set_state(state)
        else:
            self._switch(again)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Have what follows see the numbers of what is within."""
        stretch, self._restored = _MOST + self._restored, self._restored + 1
        self._outer.append((self._now, stretch))
        self._switch(stretch)
        try:
            yield
        finally:
            self.leave()

    def draw_seed(self, generator: torch.Generator) -> MaskSeed:
        """Return a seed that is drawn anew for each replay."""
        self._seeds.append(MaskSeed(generator))
        self._seeds[-1].fresh = True
        return self._seeds[-1]

    def end(self) -> None:
        """Give the generator its own state, past what a step that was not recorded drew."""
        self._generator.graphsafe_set_state(self._own)
        if not self._recording:
            self._advance()

    def _place(self, state: torch.Generator, source: int | MaskSeed) -> None:
        if isinstance(source, MaskSeed):
            state.manual_seed(source.value)
        else:
            state.manual_seed(self._first)
            state.set_offset(self._offset + source * _STRIDE)

    def _advance(self) -> None:
        self._generator.set_offset(self._offset + 2 * _MOST * _STRIDE)

    def set(self) -> None:
        """Set every state for a replay, and advance the generator's own."""
        for seed in self._seeds:
            if seed.fresh:
                seed.fresh = False  # the first replay has what was drawn while recording
            else:
                seed.draw()
        self._first, self._offset = self._generator.initial_seed(), self._generator.get_offset()
        for state, source in self._used:
            self._place(state, source)
        self._advance()
