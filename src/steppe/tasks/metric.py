"""The reported metric: its name, its unit and whether larger values are better; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from steppe.errors import InputError


@dataclass(frozen=True)
class Metric:
    """What a comparison reports and chooses by.

    Attributes:
        name: Name as it is shown, such as RMSE.
        unit: Unit of the value, such as m or years; empty if it has none.
        higher: Larger values are better.
        percent: The value is a share from 0 to 1, shown times 100 with the sign %.
    """

    name: str = "accuracy"
    unit: str = ""
    higher: bool = True
    percent: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the metric as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any] | None) -> Metric:
        """Return the metric of a record; nothing (an older record) is accuracy. Raises InputError if damaged."""
        if content is None:
            return ACCURACY
        types = {f.name: type(getattr(ACCURACY, f.name)) for f in fields(cls)}
        wrong = [n for n, v in dict(content).items() if n not in types or not isinstance(v, types[n])]
        if wrong:
            raise InputError(f"metric has {wrong[0]} {content[wrong[0]]!r:.40}; the record is damaged")
        return cls(**content)

    def better(self, a: float, b: float) -> bool:
        """Return whether the value ``a`` is better than ``b``."""
        return a > b if self.higher else a < b


ACCURACY = Metric()
