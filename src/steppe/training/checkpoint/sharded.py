"""Checkpoints of sharded models: each process writes its shards to its own file, an index has the rest.

The index is a checkpoint file whose data names the shard files with their checksums. It is written last: until
then the previous checkpoint is valid. A checkpoint loads on any number of processes, sharded or not. Several
machines need one shared folder.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steppe.core.numerics.vector import sharded
from steppe.distributed import collectives
from steppe.errors import InputError
from steppe.training.checkpoint import file
from steppe.training.checkpoint.file import Checkpoint, CorruptCheckpoint, LazyTensors

PREFIX = "shard-"


def write(path: Path, saved: Checkpoint, mark: str) -> None:
    """Write a checkpoint, all processes together; ``mark`` distinguishes its shard files from others.

    Raises RunError, on all processes, if one of them cannot write; the previous checkpoint is intact.
    """
    world = collectives.current_world()
    plain = {k: t for k, t in saved.tensors.items() if not sharded(t)}
    data = saved.data
    if len(plain) < len(saved.tensors):
        name = f"{PREFIX}{mark}-{world.rank}of{world.size}.safetensors"
        pieces, places = {}, {}
        for k, t in saved.tensors.items():
            if k not in plain:
                start, local = file.shard_of(t)
                places[k] = {"start": start, "shape": list(t.shape)}
                pieces[k] = local
        shard = Checkpoint(pieces, {"pieces": places})
        checksum = world.on_every_process(lambda: file.write(path.parent / name, shard))
        data = {**data, "shards": dict(world.all_gather_object((name, checksum)))}
    world.on_main_process(lambda: file.write(path, Checkpoint(plain, data)) and None)


def read(path: Path) -> Checkpoint:
    """Verify all files of a checkpoint and return it; sharded tensors are assembled lazily.

    Raises CorruptCheckpoint, with the file and the remedy, if a file is damaged or missing, and InputError if the
    index names a file that cannot be a shard.
    """
    index, _ = file.opened(path)
    if "shards" not in index.data:
        return index
    # the checksum is right, so this was written on purpose: an older checkpoint must not replace it
    if not isinstance(index.data["shards"], dict):
        raise InputError(f"checkpoint {path} is damaged (its shards are not listed by name); {file.REMEDY}")
    pieces: dict[str, list[tuple[Checkpoint, dict[str, Any]]]] = {}
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
        for key, place in part.data["pieces"].items():
            pieces.setdefault(key, []).append((part, place))
    whole = {key: partial(index.tensors.__getitem__, key) for key in index.tensors}
    assembled = {key: partial(_assemble, of_key, key) for key, of_key in pieces.items()}
    return Checkpoint(LazyTensors({**assembled, **whole}), index.data)


def _assemble(pieces: list[tuple[Checkpoint, dict[str, Any]]], name: str) -> Tensor:
    """Return a whole tensor, put together from the pieces in the shard files."""
    shard, place = pieces[0]
    whole = torch.empty(place["shape"], dtype=shard.tensors[name].dtype)
    for shard, place in pieces:
        piece = shard.tensors[name]
        whole[place["start"] : place["start"] + len(piece)] = piece
    return whole
