"""Columns of a table file: numbers or texts, with missing values."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

import numpy as np

from steppe.data.sources._part_names import part_of
from steppe.data.sources._table_files import decoded_text
from steppe.errors import InputError, unknown

ENDINGS = (".csv", ".tsv", ".txt", ".data", ".jsonl", ".parquet", ".csv.gz", ".tsv.gz")
# cells without a value, as pandas reads them, and UCI's question mark
MISSING = frozenset({"", "?", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none"})
_PART_TITLES = {"split", "subset", "partition", "part", "set", "usage"}


@dataclass(frozen=True)
class Column:
    """A column of a table; cells are texts, None where a value is missing."""

    name: str
    cells: tuple[str | None, ...]

    @cached_property
    def numbers(self) -> np.ndarray | None:
        """The cells (N,) float64, NaN where missing; None if one of them is no number, or all are missing."""
        if all(cell is None for cell in self.cells):
            return None
        try:
            return np.array([np.nan if cell is None else float(cell) for cell in self.cells])
        except ValueError:
            return None

    @cached_property
    def values(self) -> list[str]:
        """The distinct texts, sorted; numbers by value."""
        distinct = {cell for cell in self.cells if cell is not None}
        return sorted(distinct, key=float) if self.numbers is not None else sorted(distinct)

    def take(self, rows: Sequence[int]) -> Column:
        """Return the column with these rows only."""
        return Column(self.name, tuple(self.cells[i] for i in rows))


def read_columns(path: Path) -> dict[str, Column]:
    """Return the columns of a CSV, TSV, JSON lines or Parquet file by name, in the file's order.

    The first line of a CSV file has the names; if all of its cells are numbers, columns are called ``column 1``
    and so on. Commas, semicolons or tabs divide cells; between semicolons a comma may be the decimal mark.

    Raises InputError for a missing or damaged file, a line of another length, two columns of one name, and for
    Parquet without pyarrow.
    """
    name = path.name.lower()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"table {path} {what}; give a file ({', '.join(ENDINGS)})")
    try:
        if name.endswith(".parquet"):
            header, columns = _parquet(path)
        elif name.endswith(".jsonl"):
            header, columns = _json_lines(path)
        else:
            header, columns = _csv(path)
    except (OSError, EOFError) as error:
        raise InputError(f"table {path} cannot be read ({error}); repair or replace it") from None
    if twice := [title for title, count in Counter(header).items() if count > 1]:
        raise InputError(f"table {path} has two columns {twice[0]!r}; rename one")
    if not columns or not columns[0]:
        raise InputError(f"table {path} has no rows; give a file with a line of names and lines of values")
    return {title: Column(title, tuple(cells)) for title, cells in zip(header, columns, strict=True)}


def _csv(path: Path) -> tuple[list[str], list[list[str | None]]]:
    content = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.decompress(content)
    text = decoded_text(content)
    delimiter = max(",;\t", key=text.lstrip("\r\n").partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if row:
                if rows and len(row) != len(rows[0]):
                    raise InputError(
                        f"line {reader.line_num} of {path} has {len(row)} cells, and the first line has "
                        f"{len(rows[0])}; repair it"
                    )
                rows.append(row)
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} of {path} cannot be read ({error}); repair it") from None
    if not rows:
        return [], []
    if all(map(_is_number, rows[0])):
        rows.insert(0, [f"column {i}" for i in range(1, len(rows[0]) + 1)])
    header = [cell.strip() or f"column {i}" for i, cell in enumerate(rows[0], 1)]
    columns = [[_cell(row[i]) for row in rows[1:]] for i in range(len(header))]
    if delimiter == ";":
        columns = [_with_points(cells) for cells in columns]
    return header, columns


def _with_points(cells: list[str | None]) -> list[str | None]:
    """Return numbers with a decimal point if all cells are numbers with a comma or none."""
    if any(cell is not None and not re.fullmatch(r"[-+]?\d+(,\d+)?([eE][-+]?\d+)?", cell) for cell in cells):
        return cells
    return [cell and cell.replace(",", ".") for cell in cells]


def _json_lines(path: Path) -> tuple[list[str], list[list[str | None]]]:
    entries = []
    for number, line in enumerate(decoded_text(path.read_bytes()).splitlines(), 1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except (ValueError, RecursionError):
                entries.append(None)
            if not isinstance(entries[-1], dict):
                raise InputError(f"line {number} of {path} is no JSON object; repair it")
    header = list(dict.fromkeys(key for entry in entries for key in entry))
    return header, [[_plain(entry.get(key)) for entry in entries] for key in header]


def _parquet(path: Path) -> tuple[list[str], list[list[str | None]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"table {path} is a Parquet file, which needs pyarrow; run pip install 'steppe[tables]'"
        ) from None
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"table {path} cannot be read ({reason}); repair or replace it") from None
    titles = [name for name in table.column_names if not re.fullmatch(r"__index_level_\d+__", name)]
    return titles, [[_plain(value) for value in table.column(name).to_pylist()] for name in titles]


def _plain(value: object) -> str | None:
    """Return a value of JSON or Parquet as the text that a CSV file would have; a list's items with spaces."""
    if isinstance(value, list | tuple):
        return _cell(" ".join(str(item) for item in value))
    return None if value is None else _cell(str(value))


def _cell(text: str) -> str | None:
    text = text.strip()
    return None if text.lower() in MISSING else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def choose(columns: Iterable[str], text: str, where: str, option: str) -> list[str]:
    """Return the columns that an option names: one by its name, or several as ``a+b`` or ``tag_*``.

    Raises InputError for a name that is no column's.
    """
    names = list(columns)
    chosen: list[str] = []
    for name in [text] if text in names else text.split("+"):
        matches = [n for n in names if n == name] or [n for n in names if fnmatchcase(n, name)]
        if not matches:
            error = unknown("column", name, names)
            raise InputError(f"{option} of {where}: {error}")
        chosen += [n for n in matches if n not in chosen]
    return chosen


def parts_of(columns: dict[str, Column], named: str | None, where: str) -> tuple[str | None, list[str]]:
    """Return the column that has each row's part and the parts: train, val or test; all train without one.

    It is the one that is ``named``, or one called split, subset or the like whose cells all name parts, train
    among them.

    Raises InputError if the named column has another text.
    """
    titles = choose(columns, named, where, "split") if named else [n for n in columns if n.lower() in _PART_TITLES]
    for title in titles:
        cells = columns[title].cells
        parts = [part_of(cell or "") for cell in cells]
        wrong = next((c for c, p in zip(cells, parts, strict=True) if p is None), None)
        if all(p is not None for p in parts) and "train" in {p[0] for p in parts if p is not None}:
            return title, [p[0] for p in parts if p is not None]
        if named:
            raise InputError(
                f"split of {where}: column {title!r} has {wrong!r}; write train, val or test into every row"
            )
    return None, ["train"] * len(next(iter(columns.values())).cells)


def fingerprint(*content: np.ndarray | Sequence[str]) -> str:
    """Return a hash of arrays and texts."""
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(list(part)).encode())
    return digest.hexdigest()[:16]
