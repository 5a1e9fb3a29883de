"""Pack a comparison's folder into a file of docs/records: python docs/pack_records.py NAME FOLDER [MORE ...]

The file has the command, and for each run its accuracies and counted passes. `make_ledger.py` reads it. Paths are
left out, and so are times, because other work ran on the machine. MORE are folders of the same comparison with
other seeds. A suite is packed as a whole, finished or not; pack it again under the same name as it grows. Tasks
that its folder lacks, trained on another machine, stay as they were packed.
`make_ledger.py` packs the folder of `steppe reproduce` table by table.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from steppe import records
from steppe.records.comparison import COMPARISON
from steppe.records.suite import SUITE, load_suite
from steppe.report.comparison.summary import groups, metric_of, runs_of
from steppe.report.diagnosis.summary import DIAGNOSIS
from steppe.report.metric_text import ACCURACY_TEXT, MetricText

FOLDER = Path(__file__).parent / "records"


def packed(folder: Path, *more: Path) -> dict[str, Any]:
    """Return the finished runs of a comparison or a suite as plain data; shares are percent.

    Raises SystemExit if a further folder has other images or methods, or repeats a run.
    """
    if (folder / SUITE).exists():
        return packed_suite(folder)
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


def packed_suite(folder: Path) -> dict[str, Any]:
    """Return a suite's tuning, and the values of each view, task and row in the order of the seeds."""
    suite = load_suite(folder)
    content: dict[str, Any] = {"title": suite.title, "seeds": suite.seeds, "tuning": suite.tuning, "views": {}}
    for view, comparison in suite.views.items():
        content |= {k: comparison.environment.get(k) for k in ("torch", "device")}
        command = comparison.command.partition(" --out ")[0].partition(" --tasks ")[0]
        content["command"] = re.sub(r"(\w+):\S*/\S*", r"\1:PATH", command)
        tasks: dict[str, Any] = {}
        for group in groups(comparison):
            text = metric_of(comparison, group[0])
            rows = {}
            for method in comparison.methods:
                runs = [
                    _run(r, comparison.folder / "runs" / r.digest, text)
                    for r in runs_of(comparison, group, method)
                    if r.status == "ok"
                ]
                if runs:
                    lists = {key: [run[key] for run in runs] for key in ("seed", "last", "best_val", "epochs")}
                    rows[method] = lists | {"passes": runs[0]["passes"]}
            tasks[group[0]] = {"metric": text.name, "higher": text.metric.higher, "rows": rows}
        content["views"][view] = tasks
    return content


def with_tasks_of(before: dict[str, Any], suite: dict[str, Any]) -> dict[str, Any]:
    """Return a packed suite with the tasks of an earlier file which it lacks.

    Raises SystemExit if the two are not of the same command, seeds, torch and device.
    """
    differs = [k for k in ("title", "command", "seeds", "torch", "device") if before[k] != suite[k]]
    if differs:
        raise SystemExit(
            f"the packed suite has another {differs[0]}: {before[differs[0]]!r}, not {suite[differs[0]]!r}"
        )
    views = {view: before["views"].get(view, {}) | tasks for view, tasks in suite["views"].items()}
    return suite | {"tuning": before["tuning"] | suite["tuning"], "views": views}


def _packed(folder: Path) -> dict[str, Any]:
    comparison = records.load(folder)
    table = records.read_json(folder / COMPARISON).get("table")  # of a paper, which `steppe reproduce` trained
    return ({"table": table} if table else {}) | {
        "command": comparison.command.partition(" --out ")[0],
        "torch": comparison.environment.get("torch"),
        "device": comparison.environment.get("device"),
        "images": {
            name: {k: about.get(k) for k in ("train", "val", "test")} for name, about in comparison.data.items()
        },
        "controls": {name: about.get("controls") or [] for name, about in comparison.methods.items()},
        "runs": [
            _run(record, folder / "runs" / record.digest, metric_of(comparison, record.dataset))
            for record in comparison.records
            if record.status == "ok"
        ],
    }


def _run(record: records.Record, home: Path, text: MetricText = ACCURACY_TEXT) -> dict[str, Any]:
    assert record.result is not None
    test, passes = record.result["test"], record.result["passes"]
    one = {
        "method": record.method,
        "model": record.model,
        "dataset": record.dataset,
        "seed": record.seed,
        "epochs": record.result["epochs"],
        "steps": record.result["steps"],
        "last": _printed(test["last"][text.key()], text),
        "best_val": _printed(test["best"][text.key()], text),
        "passes": [round(passes[k], 4) for k in ("forward", "backward", "updates")],
    }
    outputs = {k: _printed(v[text.key()], text) for k, v in test["last"].get("outputs", {}).items()}
    more = {"top_5": round(100 * test["last"]["top-5"], 4)} if "top-5" in test["last"] else {}
    more |= {"severity_5": round(100 * severities[4], 4)} if (severities := _severities(home)) else {}
    best = [line[text.key("test")] for line in record.metrics if text.key("test") in line]
    best += [v[text.key()] for line in record.metrics for v in line.get("test_outputs", {}).values()]
    of_all = {"best_of_all": _printed(text.best(best), text)} if best else {}
    return one | ({"outputs": outputs} if outputs else {}) | of_all | more


def _severities(home: Path) -> list[float] | None:
    """Return the accuracies of a run's last weights on published corrupted images by severity, if measured."""
    diagnosis = records.read_json_if_exists(home / DIAGNOSIS) or {}
    published = diagnosis.get("corruptions") and diagnosis.get("which") == "last"
    return diagnosis["robustness"]["severities"] if published and diagnosis.get("robustness") else None


def _printed(value: float, text: MetricText) -> float:
    return round(text.scale * value, 4)


def write(name: str, content: dict[str, Any]) -> None:
    """Write a packed comparison as a file of docs/records."""
    target = FOLDER / f"{name}.json"
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(target)


def pack_tables(folder: Path) -> None:
    """Pack every table of a folder that `steppe reproduce` wrote, if a run of it is finished."""
    tables = sorted(path.parent for path in folder.glob(f"*/{COMPARISON}"))
    if not tables:
        raise SystemExit(f"{folder} has no table; give the folder that steppe reproduce wrote")
    for path in tables:
        content = packed(path)
        if "table" in content and content["runs"]:
            full = content["table"]["protocol"].startswith("full")
            text = re.sub(r"\b(cifar10|cifar100|folder):[^\s\"']+", r"\1:PATH", json.dumps(content))
            write(path.name if full else f"{path.name}-scaled", json.loads(text))


def pack(name: str, *folders: Path) -> None:
    """Pack folders under a name, beside the packed tasks of a suite which its folder lacks."""
    content = packed(*folders)
    before = records.read_json_if_exists(FOLDER / f"{name}.json")
    write(name, with_tasks_of(before, content) if before and "tuning" in content else content)


if __name__ == "__main__":
    pack(sys.argv[1], *map(Path, sys.argv[2:]))
