"""Tables and lists of images as files: CSV, JSON lines, and the text lists of well-known data sets."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from steppe.data.sources._part_names import part_of
from steppe.data.sources.listing import IMAGES

# what a model said, and what is measured on the images
_NO_LABELS = re.compile("submi|predict|(^|[^a-z])preds?([^a-z]|$)|feature|embedding")
_ENDING = re.compile(rf"^(.*?(?:{'|'.join(map(re.escape, IMAGES))}))(?:[\s,]+(.*))?$", re.I)
_MOST_COLUMNS = 6  # of a text list; longer rows are attributes or landmarks


@dataclass(frozen=True)
class Table:
    """A file that may name images: its columns, its rows, and the ``part`` that its name or folder says.

    ``others`` counts the rows that do not fit the columns, and ``joined`` names the files that it has columns of.
    ``is_text`` for a text list, which may be about anything.
    """

    name: str
    header: list[str]
    rows: list[list[str]]
    others: int = 0
    is_text: bool = False
    joined: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The folder of the file, with a slash; empty at the top."""
        return self.name[: self.name.rfind("/") + 1]

    @property
    def part(self) -> str | None:
        """The part that the file's name says, or the nearest folder around it that is one."""
        path = PurePosixPath(self.name)
        if token := part_of(path.stem):
            return token[0]
        tokens = (part_of(folder) for folder in reversed(path.parts[:-1]))
        return next((token[0] for token in tokens if token and not token[1]), None)

    def names_any(self, images: ImageNames) -> bool:
        """Return whether one of the first rows names an image."""
        return any(images.matches(cell, self.folder) for row in self.rows[:100] for cell in row)

    @property
    def has_no_labels(self) -> bool:
        """Whether the file's name says that it has a model's answers, is the form for them, or has features."""
        return _NO_LABELS.search(PurePosixPath(self.name).stem.lower()) is not None


class ImageNames:
    """Finds the image that a table means: by its path or the end of it, with or without its ending."""

    def __init__(self, images: Iterable[str]):
        self._ends: dict[str, list[str]] = defaultdict(list)
        for image in images:
            key = _key(image)
            parts = key.rsplit("/", 2)
            self._ends[parts[-1]].append(image)
            if len(parts) > 1:
                self._ends["/".join(parts[-2:])].append(image)

    def matches(
        self, text: str, folder: str = "", among: Container[str] | None = None, is_whole: bool = False
    ) -> list[str]:
        """Return the images ``among`` these that a cell of a table in ``folder`` may mean.

        The cell may be the path on another machine, with folders above those of this one, unless it ``is_whole``.
        """
        key = _key(text)
        parts = [part for part in key.split("/") if part not in ("", ".", "..")]
        for i in range(1 if is_whole else max(1, len(parts) - 1)):
            end = "/".join(parts[i:])
            images = self._ends.get("/".join(parts[i:][-2:]), [])
            if len(parts) - i > 2:
                images = [image for image in images if f"/{_key(image)}".endswith(f"/{end}")]
            if among is not None:
                images = [image for image in images if image in among]
            if images:
                break
        else:
            return []
        if len(images) > 1:
            images = [image for image in images if image.startswith(folder)] or images
        if len(images) > 1:
            images = [image for image in images if image.endswith(text.strip())] or images
        return images


def read_tables(contents: Mapping[str, bytes], images: ImageNames) -> list[Table]:
    """Return the tables with rows, sorted by name; those of CUB-200's kind are joined to one."""
    tables = []
    texts = {name: decoded_text(content) for name, content in contents.items()}
    for name in sorted(texts):
        ending = PurePosixPath(name).suffix.lower()
        if ending == ".txt":
            table = _joined(name, texts) or _list(name, texts[name], images)
        elif ending == ".jsonl":
            table = _json_lines(name, texts[name])
        else:
            table = _csv(name, texts[name], images)
        if table is not None:
            tables.append(table)
    return tables


def decoded_text(content: bytes) -> str:
    """Return the text of a file: UTF-8, UTF-16 with its mark, else Latin-1."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text"
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _csv(name: str, text: str, images: ImageNames) -> Table | None:
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    try:
        header, *lines = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except (csv.Error, ValueError):
        return None
    if any(cell.lower().endswith(IMAGES) and images.matches(cell) for cell in header):
        header, lines = [f"column {i}" for i in range(len(header))], [header, *lines]
    rows = [row for row in lines if len(row) == len(header)]
    others = len(lines) - len(rows)
    titles = [_title(title) for title in header]
    if "predictionstring" in titles and "solution" in name.lower():  # ILSVRC's: the class, then its box, ...
        at = titles.index("predictionstring")
        header = [*header[:at], "label", *header[at + 1 :]]
        rows = [[*row[:at], row[at].split(" ")[0], *row[at + 1 :]] for row in rows]
    return Table(name, header, rows, others)


def _json_lines(name: str, text: str) -> Table | None:
    """Read objects, one a line; entries that are lists or objects, such as boxes, are no columns."""
    try:
        entries = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(entry, dict) for entry in entries):
        return None
    header = [
        key
        for key in dict.fromkeys(key for entry in entries for key in entry)
        if not any(isinstance(entry.get(key), dict | list) for entry in entries)
    ]
    rows = [["" if entry.get(key) is None else str(entry[key]) for key in header] for entry in entries]
    return Table(name, header, rows, is_text=True) if header else None


def _list(name: str, text: str, images: ImageNames) -> Table | None:
    """Read a text list: a file a line, perhaps with its class before or behind it, and a box behind that."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    split = [_split(line, images) for line in lines]
    if not split:
        return None
    has_spaces = not any(re.search("[\t,]", line) for line in lines) and any(len(row) > 2 for row in split)
    if has_spaces and not all(re.fullmatch(r"\d+( \d+)*|\S+( \d+){4}", " ".join(row[1:])) for row in split):
        split = [[row[0], " ".join(row[1:])] for row in split]  # classes have spaces in their names
    width = Counter(map(len, split)).most_common(1)[0][0]
    rows = [row for row in split if len(row) == width]
    is_box = width == 5 and all(re.fullmatch(r"-?[\d.]+", cell) for row in rows for cell in row[1:])
    if is_box or width > _MOST_COLUMNS:
        return None
    title = "split" if re.search("split|partition", PurePosixPath(name).stem.lower()) else "label"
    header = [title, title, *(f"column {i}" for i in range(2, width))][:width]
    return Table(name, header, rows, len(lines) - len(rows), is_text=True)


def _split(line: str, images: ImageNames) -> list[str]:
    if images.matches(line, is_whole=True):
        return [line]
    if "\t" in line:
        return line.split("\t")
    if (match := _ENDING.match(line)) and images.matches(match[1], is_whole=" " in match[1]):
        return [match[1], *((match[2] or "").split())]
    return re.split(r"\s*,\s*", line) if "," in line else line.split()


def _joined(name: str, texts: Mapping[str, str]) -> Table | None:
    """Read images.txt with the files beside it, as in CUB-200: a line has the number of an image and a value."""
    path = PurePosixPath(name)
    if path.name.lower() != "images.txt":
        return None
    columns, joined = [], []
    for file in (path.name, "image_class_labels.txt", "train_test_split.txt", "classes.txt"):
        other = str(path.with_name(file))
        pairs = [line.split(maxsplit=1) for line in texts.get(other, "").splitlines()]
        columns.append({pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2})
        joined += [other] if columns[-1] and other != name else []
    files, labels, is_training, classes = columns
    if not files or not (labels or is_training):
        return None
    named = {"label": {k: classes.get(v, v) for k, v in labels.items()}, "istrain": is_training}
    named = {title: values for title, values in named.items() if values}
    rows = [[file, *(values.get(number, "") for values in named.values())] for number, file in files.items()]
    return Table(name, ["file", *named], rows, is_text=True, joined=tuple(joined))


def _title(text: str) -> str:
    return re.sub("[^a-z]", "", text.lower())


def _key(text: str) -> str:
    text = text.strip().replace("\\", "/").removeprefix("./")
    path = PurePosixPath(text)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGES else text
