"""Data sets by name, split and ready for a run."""

from collections.abc import Callable

from steppe import user_code
from steppe.config import Data
from steppe.data import splits
from steppe.data.dataset import DataSet, Images, Samples, Source, Tensors
from steppe.data.loader import Loader, evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.data.sources import builtin, cache, cifar, image_folder, user_data
from steppe.errors import InputError, unknown

__all__ = [
    "DataSet", "Images", "Loader", "Normalizer", "Samples", "Source", "Tensors", "evaluation_batches", "load",
    "names",
]  # fmt: skip


def names() -> list[str]:
    """Return the names of the data sets; PATH is the folder or archive with the files."""
    return ["digits", "cifar10:PATH", "cifar100:PATH", "folder:PATH", "synthetic"]


def load(
    dataset: str, options: Data, *, task: str = "", progress: Callable[[int, int], None] | None = None
) -> DataSet:
    """Return the data set ``name`` or ``name:PATH``, or the user's own, split as the options say.

    ``task`` is that of the user's own data; from its targets if not given.

    ``progress`` is called with the amount done and the total while a folder or archive is decoded, which happens
    once. ``cifar10:download`` and ``cifar100:download`` fetch the published files.

    Raises InputError for an unknown name, missing or damaged files, or an impossible split.
    """
    name, _, path = dataset.partition(":")
    if name in ("digits", "synthetic"):
        if path:
            raise InputError(f"data set {dataset!r}: {name} has no files; write only {name!r}")
        source = (builtin.digits if name == "digits" else builtin.synthetic)(options)
    elif name in ("cifar10", "cifar100"):
        source = cifar.load(name, path, options)
    elif name == "folder":
        if not path:
            raise InputError("data set 'folder' needs its path; write folder:PATH")
        source = image_folder.load(cache.expanded(path), options, progress)
    elif user_code.is_registered("dataset", dataset) or user_code.reference_in(dataset):
        source = user_data.user_source(user_code.get("dataset", dataset), task)
    else:
        raise unknown("data set", name, [entry.partition(":")[0] for entry in names()])
    return splits.apply(dataset, source, options)
