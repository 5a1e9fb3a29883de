"""Pack a comparison's folder into a file of docs/records: python docs/pack_records.py NAME FOLDER [MORE ...]

The file has the command, and for each run its accuracies and counted passes. `make_ledger.py` reads it. Paths are
left out, and so are times, because other work ran on the machine. MORE are folders of the same comparison with
other seeds.
"""

import json
import sys
from pathlib import Path
from typing import Any

from steppe import records

FOLDER = Path(__file__).parent / "records"


def packed(folder: Path, *more: Path) -> dict[str, Any]:
    """Return a comparison's finished runs as plain data; accuracies are percent.

    Raises SystemExit if a further folder has other images or methods, or repeats a run.
    """
    first = _packed(folder)
    for added in map(_packed, more):
        packed_runs = {(r["method"], r["model"], r["dataset"], r["seed"]) for r in first["runs"]}
        twice = [r for r in added["runs"] if (r["method"], r["model"], r["dataset"], r["seed"]) in packed_runs]
        differs = added["images"] != first["images"] or not added["controls"].keys() <= first["controls"].keys()
        if differs or twice:
            raise SystemExit(f"{added['command']} is no other part of {first['command']}")
        first["command"] += f"; {added['command']}"
        first["runs"] += added["runs"]
    return first


def _packed(folder: Path) -> dict[str, Any]:
    comparison = records.load(folder)
    return {
        "command": comparison.command.partition(" --out ")[0],
        "torch": comparison.environment.get("torch"),
        "device": comparison.environment.get("device"),
        "images": {
            name: {k: about.get(k) for k in ("train", "val", "test")} for name, about in comparison.data.items()
        },
        "controls": {name: about.get("controls") or [] for name, about in comparison.methods.items()},
        "runs": [_run(record) for record in comparison.records if record.status == "ok"],
    }


def _run(record: records.Record) -> dict[str, Any]:
    assert record.result is not None
    test, passes = record.result["test"], record.result["passes"]
    one = {
        "method": record.method,
        "model": record.model,
        "dataset": record.dataset,
        "seed": record.seed,
        "epochs": record.result["epochs"],
        "steps": record.result["steps"],
        "last": _percent(test["last"]["accuracy"]),
        "best_val": _percent(test["best"]["accuracy"]),
        "passes": [round(passes[k], 4) for k in ("forward", "backward", "updates")],
    }
    outputs = {k: _percent(v["accuracy"]) for k, v in test["last"].get("outputs", {}).items()}
    best = [line["test_accuracy"] for line in record.metrics if "test_accuracy" in line]
    best += [v["accuracy"] for line in record.metrics for v in line.get("test_outputs", {}).values()]
    return one | ({"outputs": outputs} if outputs else {}) | ({"best_of_all": _percent(max(best))} if best else {})


def _percent(share: float) -> float:
    return round(100 * share, 4)


if __name__ == "__main__":
    target = FOLDER / f"{sys.argv[1]}.json"
    target.write_text(json.dumps(packed(*map(Path, sys.argv[2:])), indent=1) + "\n")
    print(target)
