"""What a comparison leaves on disk, read without torch."""

from steppe.records.comparison import (
    FORMAT,
    Comparison,
    Record,
    append_line,
    keep_as,
    keep_lines,
    load,
    make_folder,
    read_epochs,
    read_json,
    read_lines,
    read_result,
    write_json,
    write_text,
)

__all__ = [
    "FORMAT",
    "Comparison",
    "Record",
    "append_line",
    "keep_as",
    "keep_lines",
    "load",
    "make_folder",
    "read_epochs",
    "read_json",
    "read_lines",
    "read_result",
    "write_json",
    "write_text",
]
