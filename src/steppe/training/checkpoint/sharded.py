"""Checkpoints of sharded models: each process writes its shards to its own file, an index holds the rest.

The index is a checkpoint like any other (see `steppe.training.checkpoint.file`) whose data names the shard files
with their checksums. It is written last, so that the checkpoint before it stays valid until then. Every file is
tensors and JSON only. A checkpoint loads on any number of processes, sharded or not: a tensor is put together from
its pieces when it is asked for, one at a time. The files of several machines must be in one shared folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steppe.core.numerics.vector import sharded
from steppe.distributed import collectives
from steppe.errors import InputError
from steppe.training.checkpoint import file
from steppe.training.checkpoint.file import Checkpoint, CorruptCheckpoint

PREFIX = "shard-"


def write(path: Path, saved: Checkpoint, mark: str) -> None:
    """Write a checkpoint, all processes together; what is not sharded is the lead's.

    ``mark`` tells the shard files from those of other checkpoints in the folder.

    Raises RunError, on all processes, if one of them cannot write; the checkpoint before is intact.
    """
    here = collectives.current_world()
    plain = {k: t for k, t in saved.tensors.items() if not sharded(t)}
    data = saved.data
    if len(plain) < len(saved.tensors):
        name = f"{PREFIX}{mark}-{here.rank}of{here.size}.safetensors"
        pieces, places = {}, {}
        for k, t in saved.tensors.items():
            if k not in plain:
                start, local = file.shard_of(t)
                places[k] = {"start": start, "shape": list(t.shape)}
                pieces[k] = local
        own = Checkpoint(pieces, {"pieces": places})
        checksum = here.on_every_process(lambda: file.write(path.parent / name, own))
        data = {**data, "shards": dict(here.all_gather_object((name, checksum)))}
    here.on_main_process(lambda: file.write(path, Checkpoint(plain, data)) and None)


def read(path: Path) -> Checkpoint:
    """Verify all files of a checkpoint and return it, its sharded tensors put together when asked for.

    Raises Damaged, naming the file and the remedy, if one is not what was written, or missing, and InputError if
    the index names what no shard can be.
    """
    index, _ = file.opened(path)
    if "shards" not in index.data:
        return index
    # its checksum is right: whoever wrote this meant it, so nothing older is taken in its place
    if not isinstance(index.data["shards"], dict):
        raise InputError(f"checkpoint {path} is damaged (its shards have no names); {file.REMEDY}")
    parts = []
    for name, expected in index.data["shards"].items():
        # the name becomes a path: a damaged or hostile index must not reach outside its folder
        if Path(name).name != name:
            raise InputError(f"checkpoint {path} is damaged (it names {name!r}); {file.REMEDY}")
        try:
            part, checksum = file.opened(path.parent / name)
        except CorruptCheckpoint as error:
            reason = str(error).removesuffix(f"; {file.REMEDY}")
            raise CorruptCheckpoint(f"{path} is incomplete: {reason}; {file.REMEDY}") from None
        if checksum != expected:
            raise CorruptCheckpoint(
                f"checkpoint {path} is damaged ({name} belongs to another checkpoint); {file.REMEDY}"
            )
        parts.append(part)
    return Checkpoint(_Assembled(index.tensors, parts), index.data)


class _Assembled(Mapping[str, Tensor]):
    """The tensors of an index and of its shard files."""

    def __init__(self, plain: Mapping[str, Tensor], parts: list[Checkpoint]):
        self.plain = plain
        self.pieces: dict[str, list[tuple[Checkpoint, dict[str, Any]]]] = {}
        for part in parts:
            for name, place in part.data["pieces"].items():
                self.pieces.setdefault(name, []).append((part, place))

    def __getitem__(self, name: str) -> Tensor:
        if name in self.plain:
            return self.plain[name]
        whole: Tensor | None = None
        for part, place in self.pieces[name]:
            piece = part.tensors[name]
            if whole is None:
                whole = torch.empty(place["shape"], dtype=piece.dtype)
            whole[place["start"] : place["start"] + len(piece)] = piece
        assert whole is not None
        return whole

    def __contains__(self, name: object) -> bool:
        return name in self.plain or name in self.pieces

    def __iter__(self) -> Iterator[str]:
        yield from self.plain
        yield from self.pieces

    def __len__(self) -> int:
        return len(self.plain) + len(self.pieces)
