"""The words that folders and tables have for training, validation and test images."""

from __future__ import annotations

import re
import unicodedata

_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}
_FILLERS = (
    "set",
    "data",
    "dataset",
    "images",
    "image",
    "imgs",
    "img",
    "labels",
    "label",
    "folder",
    "split",
    "pictures",
    "list",
)


def part_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return 'train', 'val', 'test' or 'eval', and the other words of a name; None if it names no part.

    Capitals, digits, and words such as set and images do not count: ``Training Set``, ``trainset`` and
    ``train_images`` are ('train', ()), ``seg_train`` is ('train', ('seg',)).
    """
    parts, rest = [], []
    for token in re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower()):
        stem = next((token.removesuffix(f) for f in _FILLERS if token.removesuffix(f) in _WORDS), token)
        if stem in _WORDS:
            parts.append(_WORDS[stem])
        elif token not in _FILLERS:
            rest.append(token)
    return (parts[0], tuple(rest)) if len(parts) == 1 else None


def folded(name: str) -> str:
    """Return a name that is equal for names that differ in capitals, outer spaces or the form of accents only."""
    return unicodedata.normalize("NFC", name).casefold().strip()
