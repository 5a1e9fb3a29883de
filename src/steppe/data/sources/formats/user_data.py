"""A user's data as a source: arrays, torch data sets, loaders, Hugging Face data sets, or several of them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from steppe.core.batch import as_batch
from steppe.data.dataset import DataSet, Fetched, Images, Samples, Source, Task, Tensors
from steppe.data.samples import seeded
from steppe.data.splits import split_off_test
from steppe.errors import InputError
from steppe.tasks.losses import IGNORED, TOKENS

_PARTS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "dev": "val", "test": "test"}
_TARGETS = ("labels", "label")
_MOST = 2 * 2**30  # bytes of a data set that is collected into memory
_PROBES = 16  # samples that are fetched twice, to see whether the data set draws random numbers


def user_source(value: Any, task: str = "", collate: Any = None) -> Source:
    """Return the source of a user's data.

    Args:
        value: A pair of inputs and targets (arrays, tensors, data frames, mappings of them by the network's
            arguments), a `torch.utils.data.Dataset`, a DataLoader or other iterable of batches, a Hugging Face
            ``Dataset`` or ``DatasetDict``, or a function that returns one of these; or several: a mapping of
            'train', 'val' and 'test', a tuple (train, test) or (train, val, test). Also a `steppe.data.Source`.
        task: The task; from the targets if not given.
        collate: Joins fetched samples to a batch.

    Raises InputError for what is none of these.
    """
    if inspect.isroutine(value) or isinstance(value, type):
        value = value()
    if isinstance(value, Source):
        return value
    if isinstance(value, DataSet):
        shared = {k: getattr(value, k) for k in ("skipped", "note", "fingerprint", "task", "outputs", "unit")}
        scale = {k: getattr(value, k) for k in ("target_mean", "target_std", "preparation")}
        shared["prepare"] = lambda data: replace(data, **scale)
        return Source(value.train, value.test, value.classes, val=value.val, **shared)
    parts = {name: _part(part, collate) for name, part in _parts(value).items()}
    train = parts["train"]
    for name, part in parts.items():
        if not len(part):
            raise InputError(f"the {name} part of the data has no sample; give at least one, or leave it out")
    if isinstance(train, Fetched) and train.sampler is not None and not {"val", "test"} <= parts.keys():
        raise InputError(
            "the loader has a sampler of all its samples, from which none can be split off; give validation and "
            "test data too, as (train, val, test)"
        )
    kind = task or _task(train)
    parts = {name: _checked(part, kind) for name, part in parts.items()}
    classes, outputs = _outputs(kind, parts)
    parts = {name: _as_task(part, kind, classes) for name, part in parts.items()}
    names = tuple(map(str, classes))
    shared = {"fingerprint": _fingerprint(parts), "task": kind, "outputs": outputs}
    notes = []
    if "test" not in parts:
        parts["train"], parts["test"] = split_off_test(parts["train"])
        stratum = " of every class" if kind == "classification" and isinstance(train, Images | Tensors) else ""
        notes.append(f"test samples: a fixed fifth{stratum}, as the data come without a test set")
    return Source(
        parts["train"],
        parts["test"],
        names,
        val=parts.get("val"),
        note="; ".join(notes),
        **shared,
    )


def _parts(value: Any) -> dict[str, Any]:
    """Return the parts of the data by name."""
    if isinstance(value, Mapping) and value and all(str(k) in _PARTS for k in value):
        parts = {_PARTS[str(k)]: part for k, part in value.items()}
        if "train" not in parts:
            raise InputError(f"data has {', '.join(map(str, value))} and no 'train'; name the training part so")
        return parts
    several = isinstance(value, tuple | list) and not any(map(_is_array, value[:1]))
    if isinstance(value, list) and all(isinstance(v, tuple | list | Mapping) for v in value):
        several = False  # batches
    if several and len(value) in (2, 3) and not isinstance(value[0], Mapping):
        return dict(zip(("train", "test") if len(value) == 2 else ("train", "val", "test"), value, strict=True))
    return {"train": value}


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) or hasattr(value, "to_numpy")


def _part(value: Any, collate: Any) -> Samples:
    """Return one part as samples."""
    if inspect.isroutine(value):
        value = value()
    if isinstance(value, Images | Tensors | Fetched):
        return value
    if (
        isinstance(value, tuple | list)
        and len(value) == 2
        and (_is_array(value[0]) or isinstance(value[0], Mapping))
    ):
        return _tensors(value[0], value[1])
    if isinstance(value, Mapping) or _is_array(value):
        return _tensors(value, None)
    if isinstance(value, TensorDataset) and len(value.tensors) in (1, 2) and collate is None:
        return _tensors(*value.tensors, *([None] if len(value.tensors) == 1 else []))
    if hasattr(value, "column_names") and hasattr(value, "with_format") and collate is None:
        return _hugging_face(value)
    sampler = None
    if isinstance(value, DataLoader):
        loader, value = value, value.dataset
        if isinstance(value, IterableDataset) or not hasattr(value, "__getitem__") or loader.batch_size is None:
            return _collected(loader)
        own = loader.sampler
        sampler = None if isinstance(own, RandomSampler | SequentialSampler) else own
        collate = collate or (None if loader.collate_fn is default_collate else loader.collate_fn)
        if isinstance(value, TensorDataset) and collate is None and sampler is None:
            return _part(value, None)
    by_index = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    if by_index and not isinstance(value, list | tuple | IterableDataset):
        fetched = Fetched(value, collate or default_collate, sampler=sampler)
        return fetched if collate or sampler is not None or _draws(fetched) else _in_memory(fetched)
    if isinstance(value, Iterable):
        return _collected(value)
    raise InputError(
        f"data is {type(value).__name__}; give inputs and targets, a torch Dataset, a DataLoader, or a Hugging "
        "Face data set"
    )


def _tensor(value: Any, what: str) -> Tensor:
    """Return an array as a tensor; raises InputError for texts and other objects."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    array = _array(value, what)
    if array.dtype.kind not in "biufc":
        raise InputError(f"{what} has values of {array.dtype}; give numbers (encode texts and categories first)")
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _array(value: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
    except ValueError:
        raise InputError(
            f"{what} is a {type(value).__name__} of parts of different shapes; give one array (names of "
            "inputs and their arrays are one data set; compare several with one call each)"
        ) from None


def _tensors(x: Any, y: Any) -> Tensors:
    if isinstance(x, Mapping):
        target = next((name for name in _TARGETS if name in x), None) if y is None else None
        y = x[target] if target else y
        x = {name: _tensor(value, f"input {name!r}") for name, value in x.items() if name != target}
    else:
        x = _tensor(x, "x")
    return Tensors(x, None if y is None else _target(y))


def _target(y: Any) -> Tensor:
    if not isinstance(y, Tensor):
        y = _array(y, "y")
        if y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind in "OUS":
            y = y[:, 0]
        if y.dtype.kind in "OUS":  # names of classes
            names, y = np.unique(y.astype(str), return_inverse=True)
            return _Named.of(torch.from_numpy(y.reshape(-1).astype(np.int64)), tuple(map(str, names)))
    return _tensor(y, "y")


class _Named(Tensor):
    """Class indices with the names of the classes."""

    names_of: tuple[str, ...]

    @staticmethod
    def of(y: Tensor, names: tuple[str, ...]) -> _Named:
        named = y.as_subclass(_Named)
        named.names_of = names
        return named


def _task(samples: Samples) -> str:
    """Return the task that inputs and targets suggest."""
    y = samples.y
    if isinstance(samples, Images) or y is None:
        return "classification"
    x = samples.x
    if isinstance(x, Mapping):
        x = x.get("input_ids", next(iter(x.values())))
    binary = y.ndim == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all())
    tokens = isinstance(x, Tensor) and not x.is_floating_point() and x.shape[:2] == y.shape[:2] and y.ndim == 2
    if tokens and not y.is_floating_point():
        assert isinstance(x, Tensor)
        following = y.shape[1] > 1 and bool((x[:, 1:] == y[:, :-1]).float().mean() > 0.99)
        same = bool((x == y).float().mean() > 0.5)
        return "language modelling" if following or same else "token classification"
    if binary:
        return "multi-label"
    if isinstance(samples.x, Mapping) and "input_ids" in samples.x and y.ndim == 2 and not y.is_floating_point():
        return "language modelling"  # a sequence of its own for each text, as a translation
    if y.is_floating_point():
        return "regression"
    if y.ndim == 1 or y.shape[1:] == (1,):
        return "classification"
    return "segmentation"


def _checked(samples: Samples, task: str) -> Samples:
    """Return the samples, whole numbers of classes as such; raises InputError for targets of another task."""
    y = samples.y
    if y is None:
        return samples
    if y.is_complex():
        raise InputError(f"the targets are {y.dtype}; give real numbers, such as torch.view_as_real(y)")
    one = y.ndim == 1 or y.shape[1:] == (1,)
    if task == "classification" and y.is_floating_point() and one:
        if isinstance(samples, Tensors) and bool((y % 1 == 0).all()):
            return Tensors(samples.x, y.long())
        expected = "whole numbers or names, one of each sample"
    elif task == "multi-label" and y.ndim != 2:
        expected = "0 and 1, (N, labels)"
    elif task == "segmentation" and y.ndim < 2:
        expected = "the class of each position, (N, ...)"
    elif task in TOKENS and (y.ndim != 2 or y.is_floating_point()):
        expected = "whole numbers, (N, tokens)"
    else:
        return samples
    raise InputError(f"task is {task!r} and the targets are {y.dtype} {tuple(y.shape)}; give {expected}")


def _outputs(task: str, parts: Mapping[str, Samples]) -> tuple[Sequence[Any], int]:
    """Return the classes, and the number of outputs that a network should have."""
    if task not in get_args(Task):
        raise InputError(f"task is {task!r}; choose one of {', '.join(get_args(Task))}")
    targets = [y for part in parts.values() if (y := part.y) is not None]
    if not targets:
        return (), 1
    first = targets[0]
    if task == "regression" or task == "ordinal":
        return (), int(first[0].numel())
    if task == "multi-label":
        return range(first.shape[1]), int(first.shape[1])
    if first.is_floating_point():
        return range(first.shape[1]) if first.ndim > 1 else (), int(first.shape[1]) if first.ndim > 1 else 1
    if isinstance(first, _Named):
        names = tuple(dict.fromkeys(n for y in targets for n in getattr(y, "names_of", ())))
        return names, len(names)
    values = torch.cat([y.reshape(-1) for y in targets])
    values = values[values != IGNORED]
    least, most = (int(values.min()), int(values.max())) if len(values) else (0, 1)
    if least < 0 and task == "classification":
        classes = sorted(set(values.tolist()))
        return classes, len(classes)
    return range(most + 1), most + 1


def _as_task(samples: Samples, task: str, classes: Sequence[Any]) -> Samples:
    """Return the samples with targets of the type that the task's loss takes, and images as images."""
    if not isinstance(samples, Tensors):
        return samples
    x, y = samples.x, samples.y
    pixels = isinstance(x, Tensor) and x.ndim == 4 and x.dtype == torch.uint8
    if y is not None:
        if isinstance(y, _Named):
            code = torch.tensor([classes.index(name) for name in y.names_of])
            y = code[y.as_subclass(Tensor)]
        elif task == "regression":
            y = y if y.is_floating_point() else y.float()
        elif task == "multi-label":
            y = y.float()
        elif not y.is_floating_point():
            y = y.long()
            y = y[:, 0] if task == "classification" and y.shape[1:] == (1,) else y
            if task == "classification" and len(y) and int(y.min()) < 0:
                y = torch.searchsorted(torch.tensor(classes), y)
    if pixels:
        assert isinstance(x, Tensor)
        if task == "classification" and y is not None and y.ndim == 1 and x.shape[1] in (1, 3):
            return Images(x, y)
        x = x.float() / 255
    return Tensors(x, y)


def _hugging_face(dataset: Any) -> Samples:
    """Return the columns of a data set as tensors; rows of unequal length are padded."""
    if getattr(dataset, "format", {}).get("type") == "custom":  # transformed when it is read
        fetched = Fetched(dataset, default_collate)
        return fetched if _draws(fetched) else _in_memory(fetched)
    target = next((name for name in _TARGETS if name in dataset.column_names), None)
    columns: dict[str, Tensor] = {}
    for name, feature in dataset.features.items():
        if getattr(feature, "dtype", "") in ("string", "large_string"):
            continue
        columns[name] = _column(dataset.with_format(None)[name], name, padding=IGNORED if name == target else 0)
    named = {k: v for k, v in columns.items() if k != target}
    if not named:
        raise InputError("the data set has no column of numbers; tokenize its texts first, with map")
    return Tensors(named, columns[target] if target else None)


def _column(values: Any, name: str, padding: int) -> Tensor:
    rows = list(values)
    if rows and isinstance(rows[0], list) and len({len(row) for row in rows}) > 1:
        longest = max(map(len, rows))
        rows = [row + [padding] * (longest - len(row)) for row in rows]
    try:
        return torch.tensor(rows)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"column {name!r} cannot be a tensor; remove it (remove_columns), or give a collate function"
        ) from None


def _draws(samples: Fetched) -> bool:
    """Return whether the data set draws random numbers, or its samples have unequal shapes."""
    rows = torch.arange(min(_PROBES, len(samples)))
    try:
        batches = []
        for seed in (1, 2):
            with seeded(seed):
                batches.append(samples.batch(rows))
    except (RuntimeError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        raise InputError(f"the samples cannot be joined ({reason}); give a collate function") from error
    first, second = (_leaves(batch.x) + _leaves(batch.y) for batch in batches)
    return any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        return [leaf for v in value.values() for leaf in _leaves(v)]
    return [value] if isinstance(value, Tensor) else []


def _in_memory(samples: Fetched) -> Samples:
    """Return the samples in memory if they fit and are tensors of equal shapes, else as they are."""
    first = samples.batch(torch.arange(min(_PROBES, len(samples))))
    size = sum(t.numel() * t.element_size() for t in _leaves(first.x) + _leaves(first.y)) / max(1, len(first))
    plain = isinstance(first.x, Tensor) or (
        isinstance(first.x, Mapping) and all(isinstance(v, Tensor) for v in first.x.values())
    )
    if not plain or size * len(samples) > _MOST:
        return samples
    rows = [torch.arange(i, min(i + 256, len(samples))) for i in range(0, len(samples), 256)]
    with seeded(0):
        try:
            return _joined([samples.batch(index) for index in rows])
        except RuntimeError:  # shapes differ
            return samples


def _collected(batches: Iterable[Any]) -> Tensors:
    """Return the samples of an iterable of batches."""
    with seeded(0):
        content = [as_batch(tuple(b) if isinstance(b, list) else b) for b in batches]
    if not content:
        raise InputError("the loader yields no batch; give data")
    try:
        return _joined(content)
    except (RuntimeError, TypeError):
        raise InputError(
            "the data's batches cannot be joined; give a data set that is fetched by index, or, of single samples "
            "of equal shapes, torch.utils.data.DataLoader(data, batch_size=32)"
        ) from None


def _joined(batches: Sequence[Any]) -> Tensors:
    x = [b.x for b in batches]
    joined = {k: torch.cat([v[k] for v in x]) for k in x[0]} if isinstance(x[0], Mapping) else torch.cat(x)
    return Tensors(joined, None if batches[0].y is None else torch.cat([b.y for b in batches]))


def _fingerprint(parts: Mapping[str, Samples]) -> str:
    """Return a hash of all samples in memory, and of the first ones of fetched data."""
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        digest.update(f"{name} {len(part)}".encode())
        with seeded(0):
            content = [part.pixels, part.y] if isinstance(part, Images) else [*_leaves(part.x), *_leaves(part.y)]
        for tensor in content:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.contiguous().reshape(-1)
            if flat.numel():
                digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
