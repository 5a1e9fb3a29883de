"""What runs and comparisons leave on disk; reading it needs no torch."""

from steppe.records.comparison import FORMAT, Comparison, Record, load, read_epochs, read_result
from steppe.records.files import (
    append_line,
    keep_as,
    keep_lines,
    make_folder,
    read_json,
    read_json_if_exists,
    read_lines,
    write_json,
    write_text,
)

__all__ = [
    "FORMAT", "Comparison", "Record", "append_line", "keep_as", "keep_lines", "load", "make_folder", "read_epochs",
    "read_json", "read_json_if_exists", "read_lines", "read_result", "write_json", "write_text",
]  # fmt: skip
