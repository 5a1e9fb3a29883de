"""Text files as windows of characters or bytes, each to be predicted from those before it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe.data.dataset import DataSet, Samples, Source, Tensors
from steppe.data.sources._part_names import part_of
from steppe.data.sources.listing import list_files
from steppe.errors import InputError

LENGTH = 128
_JOIN = "\n\n"
_CODES = 0x110000  # of Unicode


def load(path: Path, options: Mapping[str, str]) -> Source:
    """Return the text of a file, or of all text files of a folder in the order of their names, as windows.

    Parts are sub-folders or files called train, val and test (``val`` is the test part without one). Else the last
    tenth of the text is the test part, and validation windows are the last ones before it, so that neither is part
    of the text that is trained on. ``by`` is characters (those of the training part, and one token for all others)
    or bytes (256 tokens), ``length`` the tokens of a window.

    Raises InputError for a missing path, no text, and a text that is too short.
    """
    by = options.get("by", "characters")
    if by not in ("characters", "bytes"):
        raise InputError(f"by is {by!r} for text {path}; give characters or bytes")
    texts, notes = _read(path)
    mark = hashlib.sha256("\0".join([by, *(f"{k}\0{v}" for k, v in sorted(texts.items()))]).encode()).hexdigest()
    tokens = {part: _codes(text, by) for part, text in texts.items()}
    numbered = (256, {"tokens": "bytes of UTF-8"}) if by == "bytes" else None
    return windows_source(tokens, window_length(options), str(path), notes, mark[:16], numbered)


def window_length(options: Mapping[str, str]) -> int:
    """Return the option ``length``; raises InputError unless it is a whole number from 2."""
    text = options.get("length", str(LENGTH))
    if not text.isdecimal() or int(text) < 2:
        raise InputError(f"length is {text!r}; give the tokens of a window, 2 or more")
    return int(text)


def windows(tokens: Tensor, length: int) -> Tensors:
    """Return consecutive windows of ``tokens`` (N,) as views: x (M, length), and y, the token after each of x.

    M = (N - 1) // length; the remainder at the end is not used.
    """
    count = max(0, len(tokens) - 1) // length
    x, y = (tokens[i : i + count * length].view(count, length) for i in (0, 1))
    return Tensors(x, y)


def windows_source(
    tokens: Mapping[str, Tensor],
    length: int,
    where: str,
    notes: list[str],
    mark: str,
    numbered: tuple[int, Mapping[str, Any]] | None = None,
) -> Source:
    """Return the source of tokens by part (``train`` alone, or with ``test`` and perhaps ``val``).

    ``numbered`` has the size of the vocabulary and what the tokens are; without it the tokens are code points, and
    those of the training part are numbered.
    """
    parts = {part: windows(codes, length) for part, codes in tokens.items()}
    if "test" not in parts:
        everything = parts["train"]
        first = len(everything) - max(1, round(0.1 * len(everything)))
        parts |= {"train": everything.part(slice(0, first)), "test": everything.part(slice(first, None))}
        notes = ["test windows: the last tenth of the text", *notes]
    if min(map(len, parts.values())) < 1 or len(parts["train"]) < 2:
        count = sum(map(len, tokens.values()))
        raise InputError(
            f"text {where} has {count} tokens, too few for windows of {length}; give a smaller length"
        )

    def prepare(data: DataSet) -> DataSet:
        return replace(data, outputs=numbered[0], preparation=numbered[1]) if numbered else _numbered(data)

    return Source(
        parts["train"], parts["test"], (), note="; ".join(notes), val=parts.get("val"), fingerprint=mark,
        task="language modelling", contiguous=True, prepare=prepare,
    )  # fmt: skip


def _numbered(data: DataSet) -> DataSet:
    """Return code points as indices into the training part's characters; any other is the index after the last."""
    assert isinstance(data.train.x, Tensor)
    assert data.train.y is not None
    counts = sum(torch.bincount(t.reshape(-1), minlength=_CODES) for t in (data.train.x, data.train.y))
    codes = torch.as_tensor(counts).nonzero()[:, 0]
    numbers = torch.full((_CODES,), len(codes))
    numbers[codes] = torch.arange(len(codes))

    def renumbered(part: Samples) -> Tensors:
        assert isinstance(part.x, Tensor)
        assert part.y is not None
        return Tensors(numbers[part.x], numbers[part.y])

    note = f"{len(codes)} different characters in training"
    about = {"characters": "".join(map(chr, codes.tolist())), "other": len(codes)}
    note = "; ".join(filter(None, (data.note, note)))
    return data.with_parts(renumbered, outputs=len(codes) + 1, preparation=about, note=note)


def _codes(text: str, by: str) -> Tensor:
    """Return the code points or bytes of a text (N,) int64."""
    if by == "bytes":
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).astype(np.int64))
    return torch.from_numpy(np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64))


def _read(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return the text of each part, and notes on what is not read."""
    if path.is_file():
        text = _text(path)
        if not text:
            what = "no text in UTF-8; convert it, or give" if path.stat().st_size else "empty; give"
            raise InputError(f"{path} is {what} a text file or a folder of them")
        return {"train": text}, []
    if not path.is_dir():
        raise InputError(f"there is no text {path}; give a text file or a folder of them")
    listing = list_files(path)
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    hidden = tuple(f"{name}/" for name in listing.system)
    names = [name for name in names if name not in listing.system and not name.startswith(hidden)]
    texts = {name: text for name in names if (text := _text(path / name))}
    others = Counter(PurePosixPath(name).suffix or "extensionless" for name in names if name not in texts)
    notes = [f"{len(texts)} file{'s' * (len(texts) > 1)}"]
    notes += [f"left out: {', '.join(f'{n} {kind} files' for kind, n in others.most_common(4))}"] if others else []
    if not texts:
        raise InputError(f"{path} has no text files in UTF-8; give a text file or a folder of them")
    part = {name: _part(name) for name in texts}
    if "train" in part.values() and {"test", "val", "eval"} & {*part.values()}:
        if unused := [name for name, value in part.items() if value is None]:
            notes.append(f"left out: {len(unused)} texts in no part ({', '.join(unused[:3])})")
        joined = {
            p: _JOIN.join(t for name, t in texts.items() if part[name] == p)
            for p in ("train", "val", "eval", "test")
        }
        joined = {p: text for p, text in joined.items() if text}
        for other in ("eval", "val"):
            if "test" not in joined and other in joined:
                joined["test"] = joined.pop(other)
        if "eval" in joined:
            joined["val"] = _JOIN.join(filter(None, (joined.get("val"), joined.pop("eval"))))
        return joined, notes
    return {"train": _JOIN.join(texts.values())}, notes


def _part(name: str) -> str | None:
    """Return the part that the first folder of a path, or a file at the top, is called."""
    path = PurePosixPath(name)
    token = part_of(path.parts[0] if len(path.parts) > 1 else path.name.removesuffix(path.suffix))
    return token[0] if token else None


def _text(path: Path) -> str:
    """Return the text of a file in UTF-8 with newlines as line ends; empty if it is none."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    if b"\0" in content:
        return ""
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return ""
