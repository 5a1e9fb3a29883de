"""The command ``steppe bench``: what is measured, and the table that is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from steppe import listing, methods
from steppe.bench.methods import methods_cost
from steppe.bench.store import store_cost


def measure(given: Mapping[str, Any], tell: Callable[[str], None]) -> tuple[list[dict[str, Any]], str]:
    """Measure what the arguments ask for; return results as plain data, and as a table.

    Raises InputError for a number or a name that is not usable.
    """
    if given["kind"] == "store":
        wanted = {k: given[k] for k in ("samples", "classes", "past")}
        stores = []
        for form in given["names"] or ("top:32", "top:48"):
            tell(form)
            stores.append(store_cost(form, **wanted))
        return [s.as_dict() for s in stores], listing.stores(stores)
    wanted = {k: given[k] for k in ("model", "batch", "size", "steps", "repeats")}
    costs = methods_cost(
        given["names"] or methods.names(),
        **wanted,
        tell=lambda done: tell(f"repeat {done} of {given['repeats']}"),
    )
    return [c.as_dict() for c in costs], listing.costs(costs)
