"""Images in the memory of a GPU, or on their way to it while the GPU is at work.

Images stay on the GPU as bytes if they take at most `SHARE` of its free memory. Larger sets are read batch by
batch into pinned memory and copied on a stream of their own. The host waits for neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from steppe.data.dataset import Images
from steppe.data.transforms.draws import Plan, map_arrays

SHARE = 0.1  # of the free memory of a GPU, which activations and other runs need
_CHUNK = 4096  # images that are copied at a time
_ALIGNED = 16  # bytes; a tensor starts at a multiple of its element's size
_DTYPES = {name: getattr(torch, name) for name in ("bool", "uint8", "int32", "int64", "float32", "float64")}
_Item = TypeVar("_Item")


def resident(images: Images, device: torch.device) -> Images | None:
    """Return the images on ``device``, None if they take more than `SHARE` of its free memory.

    They are copied by the first call.
    """
    device = torch.empty(0, device=device).device  # "cuda" may be "cuda:0"
    if device not in images.copies:
        fits = len(images) * images.pixels[:1].nbytes <= SHARE * _free_bytes(device)
        images.copies[device] = _copied(images, device) if fits else None
    return images.copies[device]


def _copied(images: Images, device: torch.device) -> Images:
    starts = range(0, len(images), _CHUNK) or [0]
    pixels = torch.cat([images.at(slice(start, start + _CHUNK)).to(device) for start in starts])
    return Images(pixels, images.y.to(device))


def _free_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if _is_gpu(device) else float("inf")


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()


def sent(plans: list[Plan], device: torch.device) -> Iterator[Plan]:
    """Yield the plans with their arrays as tensors on ``device``; all arrays are sent in one copy."""
    places: list[tuple[int, np.ndarray]] = []
    size = 0

    def place(array: np.ndarray) -> None:
        nonlocal size
        places.append((size, array))
        size += -(-array.nbytes // _ALIGNED) * _ALIGNED

    for plan in plans:
        map_arrays(place, plan)
    content = np.empty(size, np.uint8)
    for start, array in places:
        content[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    buffer, starts = torch.from_numpy(content), iter(places)
    on_device = (buffer.pin_memory() if _is_gpu(device) else buffer).to(device, non_blocking=True)

    def tensor(array: np.ndarray) -> Tensor:
        start, _ = next(starts)
        return on_device[start : start + array.nbytes].view(_DTYPES[array.dtype.name]).view(array.shape)

    for plan in plans:
        yield map_arrays(tensor, plan)


def ahead(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield the items, each after the next one has been made."""
    waiting: list[_Item] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


class CopyStream:
    """Copies tensors to a device while it is at work; the device waits for their arrival, the host does not."""

    def __init__(self, device: torch.device):
        self.device = device
        self._stream: Any = torch.cuda.Stream(device) if _is_gpu(device) else None  # type: ignore[no-untyped-call]

    def rows(self, images: Images, index: Tensor) -> Tensor:
        """Return the images of these rows in memory from which a GPU can copy by itself."""
        rows = index if images.rows is None else images.rows[index]
        shape = (len(rows), *images.pixels.shape[1:])
        buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=self._stream is not None)
        return torch.index_select(images.pixels, 0, rows, out=buffer)

    def send(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Start to copy the tensors; return the copies and the event of their arrival."""
        if self._stream is None:
            return {name: t.to(self.device) for name, t in tensors.items()}, None
        with torch.cuda.stream(self._stream):
            copies = {
                name: (t if t.is_pinned() else t.pin_memory()).to(self.device, non_blocking=True)
                for name, t in tensors.items()
            }
            return copies, self._stream.record_event()

    def arrived(self, sending: tuple[dict[str, Tensor], Any]) -> dict[str, Tensor]:
        """Return the copies; what the present stream does next waits for them."""
        copies, event = sending
        if event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for copy in copies.values():
                copy.record_stream(stream)
        return copies
