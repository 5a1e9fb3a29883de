"""Data sets by name, split and ready for a run."""

from collections.abc import Callable

from steppe.config import Data, parse_dataset, user_code
from steppe.data import splits
from steppe.data.dataset import DataSet, Images, Samples, Source, Tensors
from steppe.data.loader import Loader, evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.data.sources import builtin, cache, cifar, image_folder
from steppe.data.sources.formats import image_list, table, text, user_data
from steppe.errors import InputError, unknown
from steppe.tasks.losses import NUMBERS, TOKENS

__all__ = [
    "DataSet", "Images", "Loader", "Normalizer", "Samples", "Source", "Tensors", "evaluation_batches", "load",
    "names",
]  # fmt: skip


def names() -> list[str]:
    """Return the names of the data sets; PATH is the folder or archive with the files."""
    return [
        "digits", "cifar10:PATH", "cifar100:PATH", "folder:PATH", "images:PATH", "table:PATH", "text:PATH",
        *builtin.TABLES, "pydoc-text", "synthetic",
    ]  # fmt: skip


def load(
    dataset: str, options: Data, *, task: str = "", progress: Callable[[int, int], None] | None = None
) -> DataSet:
    """Return a data set, split as the options say.

    It is called ``name``, ``name:PATH`` or ``name:PATH:option=value``, or is the user's own.
    ``task`` is that of the user's own data; from its targets if not given. Others have their own.

    ``progress`` is called with the amount done and the total while a folder or archive is decoded, which happens
    once. ``cifar10:download`` and ``cifar100:download`` fetch the published files.

    Raises InputError for an unknown name, missing or damaged files, another task, or an impossible split.
    """
    name, path, settings = parse_dataset(dataset)
    if name in ("digits", "synthetic", "pydoc-text", *builtin.TABLES):
        if path:
            raise InputError(f"data set {dataset!r}: {name} has no files; write only {name!r}")
        if name in builtin.TABLES:
            source = builtin.table(name)
        elif name == "pydoc-text":
            source = builtin.pydoc_text(settings)
        elif name == "digits":
            source = builtin.digits(options, settings)
        else:
            source = builtin.synthetic(options)
    elif name in ("cifar10", "cifar100"):
        source = cifar.load(name, path, options)
    elif name in ("folder", "images", "table", "text"):
        if not path:
            raise InputError(f"data set {name!r} needs its path; write {name}:PATH")
        file = cache.expanded(path)
        if name == "folder":
            source = image_folder.load(file, options, progress)
        elif name == "images":
            source = image_list.load(file, options, settings, progress)
        else:
            source = (table if name == "table" else text).load(file, settings)
    elif user_code.is_registered("dataset", dataset) or user_code.reference_in(dataset):
        source = user_data.user_source(user_code.get("dataset", dataset), task)
    else:
        raise unknown("data set", name, [entry.partition(":")[0] for entry in names()])
    if task and task != source.task and not any({task, source.task} <= set(kind) for kind in (NUMBERS, TOKENS)):
        remedy = (
            f"a table says it itself, {name}:{path}:task={task}" if name in ("table", "images") else "leave it out"
        )
        raise InputError(f"task is {task!r} and that of {dataset} is {source.task}; {remedy}")
    return splits.apply(dataset, source, options)
