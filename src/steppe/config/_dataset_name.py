"""One name for each data set, however its path is written."""

import os

_WITH_PATH = ("folder", "cifar10", "cifar100")


def dataset_name(dataset: str) -> str:
    """Return ``name:PATH`` with the path relative to the working folder if it is in it, else absolute.

    ``x``, ``./x/``, ``~/photos/x`` and a link to ``x`` become the same path. A link in the working folder that
    leads out of it keeps its name, as it may lead elsewhere on another machine or in the next job.
    """
    name, _, path = dataset.partition(":")
    if name not in _WITH_PATH or path in ("", "download"):
        return dataset
    try:
        folder = os.getcwd()
    except OSError:  # it was removed
        return dataset
    written = os.path.join(folder, os.path.expanduser(path))
    resolved = _resolved(written)
    candidates = [(resolved, os.path.realpath(folder))]
    if os.pardir not in written.split(os.sep):  # behind a link it leads elsewhere than it reads
        candidates.append((written, folder))
    for inside, root in candidates:
        relative = os.path.relpath(inside, root)
        if relative.partition(os.sep)[0] != os.pardir:
            return f"{name}:{relative}"
    return f"{name}:{resolved}"


def _resolved(path: str) -> str:
    """Return a path without links; an archive keeps its ending, which a cache's file may lack."""
    path = path.rstrip(os.sep)
    resolved = os.path.realpath(path)
    if os.path.splitext(resolved)[1] == os.path.splitext(path)[1] or os.path.isdir(path):
        return resolved
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
