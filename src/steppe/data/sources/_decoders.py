"""Processes that decode images.

Several threads decode small images no faster than one: most of the time goes to the interpreter, which one thread
uses at a time. The processes are programs of their own, not of multiprocessing: so a user's script needs no
main guard, and nothing is forked.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from steppe.data.sources import pixels
from steppe.data.sources.pixels import Decoded, decode_one

_CRASHED = "its decoder crashed"


class Decoder:
    """Decodes groups of images in a process of its own, which is started for the first group.

    Where no process can be started, and for large images, which are decoded one at a time, this process decodes.
    An image that ends its process is reported as unreadable.
    """

    def __init__(self, size: int | None):
        self.size = size
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = True

    def __call__(self, group: Sequence[tuple[str, bytes | OSError]]) -> list[Decoded]:
        """Return the images of a group."""
        if self._starts and self._process is None:
            self._start()
        if self._process is None:
            return [decode_one(name, content, self.size) for name, content in group]
        try:
            answers = self._ask(group)
        except (OSError, EOFError, pickle.UnpicklingError):
            self.close()
            if len(group) > 1:
                return [image for single in group for image in self([single])]
            return [Decoded(group[0][0], None, _CRASHED)]
        return [
            Decoded(*answer) if answer is not None else decode_one(name, content, self.size)
            for (name, content), answer in zip(group, answers, strict=True)
        ]

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # a file beside the program may be named random.py
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                [sys.executable, pixels.__file__], stdin=pipe, stdout=pipe, stderr=null, env=environment
            )
            pickle.load(self._process.stdout)  # type: ignore[arg-type]
        except (OSError, EOFError, pickle.UnpicklingError):
            self.close()
            self._starts = False

    def _ask(self, group: Sequence[tuple[str, bytes | OSError]]) -> list[tuple[Any, ...] | None]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump((group, self.size), process.stdin, protocol=5)
        process.stdin.flush()
        answers: list[tuple[Any, ...] | None] = pickle.load(process.stdout)
        return answers

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # for what was not written yet
                    pipe.close()
        process.wait()
