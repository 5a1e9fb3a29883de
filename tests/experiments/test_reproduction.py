"""The queue of the papers' tables: order, estimates, archive, and a real queue that is stopped and moved."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from data.test_cifar import cifar_folder
from PIL import Image

from steppe.cli.main import main
from steppe.errors import InputError
from steppe.experiments.reproduction import Estimates, PaperTable, operations, pack, queue, unpack
from steppe.training.checkpoint import file
from steppe.training.run import _content

DOCS = Path(__file__).parents[2] / "docs"
SMALL = ("sadt-table1-512:simple-cnn:plain:sam:sadt-v1", "okdph-table3:resnet32-okdph:plain:dml-2")


def tables(out: Path, dataset: str = "cifar10:x", *names: str, **options: Any) -> list[PaperTable]:
    return queue([dataset], out, tables=names or SMALL, **options).tables


def note(folder: Path, epochs: int, seconds: float) -> None:
    """Write the records of so many finished epochs."""
    folder.mkdir(parents=True)
    for name in ("timing", "metrics"):
        lines = [json.dumps({"epoch": i + 1, "seconds": seconds * (i + 1) / epochs}) for i in range(epochs)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def finish(job: Any, epochs: int = 3) -> None:
    note(job.folder, epochs, 10.0)
    (job.folder / "config.json").write_text(json.dumps(_content(job.run)))
    (job.folder / "result.json").write_text(json.dumps({"status": "ok", "epochs": epochs}))


def begin(job: Any, epochs: int, seconds: float, numbers: int, digest: str = "") -> None:
    """Write a made-up checkpoint of so many numbers, and of the best weights of epoch 1."""
    note(job.folder, epochs, seconds)
    (job.folder / "config.json").write_text(json.dumps(_content(job.run)))
    tensors = {"net.w": torch.randn(numbers)}
    data = {"digest": digest or job.run.digest(), "epoch": epochs, "best": {"epoch": 1}}
    file.write(job.folder / "checkpoint.safetensors", file.Checkpoint(tensors, data))
    file.write(job.folder / "best-1.safetensors", file.Checkpoint({}, {"epoch": 1}))


def test_the_stated_tables_come_first_then_the_most_answers_per_second(tmp_path):
    names = ["okdph-table4-10:dml-2", "okdph-table4-1:dml-2", SMALL[1], "rwp-table1:resnet18:sam", SMALL[0]]
    several = queue(["cifar10:x"], tmp_path, tables=[*names, "rwp-table2"])
    assert [table.name.partition("-cifar10-")[0] for table in Estimates(several.tables).order()] == [
        "sadt-table1-512", "rwp-table1", "okdph-table3",
        "okdph-table4-1", "okdph-table4-10",  # a hundredth of the images, a tenth
    ]  # fmt: skip
    assert several.missing["rwp-table2:cifar100:resnet18"] == "give --datasets cifar100:PATH"
    assert several.missing["rwp-table1:cifar100:resnet18"] == "give --datasets cifar100:PATH"
    (table,) = tables(tmp_path, "cifar10:x", "sadt-table1-512:simple-cnn")
    assert [job.name.split(", ")[1] for job in table.jobs[:3]] == [
        "plain seed 0", "repeat-step seed 0", "two-step seed 0",
    ]  # fmt: skip
    assert (len(table.jobs), table.answers, table.controls) == (27, 7, ["repeat-step", "two-step"])


def test_a_folder_stands_for_the_data_with_as_many_classes(tmp_path):
    for classes in (3, 10):
        for name in range(classes):
            (tmp_path / str(classes) / str(name)).mkdir(parents=True)
            for i in range(5):
                file = tmp_path / str(classes) / str(name) / f"{i}.png"
                Image.new("RGB", (32, 32), (20 * name, 50 * i, 0)).save(file)
    (table,) = tables(tmp_path, f"folder:{tmp_path}/10", SMALL[0])
    assert (table.name, table.protocol) == ("sadt-table1-512-cifar10-simple-cnn", "full, images of a folder")
    assert {run.data.augment for run in table.rows.values()} == {("cutmix",)}
    with pytest.raises(InputError, match="with 3 classes; the tables have 10, 100 or 1000"):
        tables(tmp_path, f"folder:{tmp_path}/3", SMALL[0])


def test_the_time_is_that_of_finished_epochs(tmp_path):
    first, second = tables(tmp_path, seeds=(0, 1))
    plain, sam, sadt = first.jobs[:3]
    assert plain.run.epochs == 200 and (sam.run.label, sadt.run.label) == ("sam", "sadt-v1")
    note(plain.folder, 50, 100.0)  # 2 seconds an epoch
    times = Estimates([first, second])
    # 150 epochs of the run itself, 200 of the other seed; the others compute two gradients a step
    assert times.left(first) == pytest.approx(150 * 2 + 200 * 2 + 4 * 200 * 4)
    rate = operations(plain.run, "cifar10") / 400
    assert times.left(second) == pytest.approx(sum(operations(job.run, "cifar10") for job in second.jobs) / rate)
    note(sam.folder, 10, 30.0)
    # SAM's own 3 seconds an epoch; SADT's are those of the table
    speed = (0.25 * operations(plain.run, "cifar10") + 0.05 * operations(sam.run, "cifar10")) / 130
    expected = 150 * 2 + 200 * 2 + 190 * 3 + 200 * 3 + 2 * operations(sadt.run, "cifar10") / speed
    assert Estimates([first]).left(first) == pytest.approx(expected)
    for job in first.jobs:
        shutil.rmtree(job.folder, ignore_errors=True)
        finish(job)
    assert [t.name for t in Estimates([first, second]).order()] == [second.name, first.name]
    assert Estimates([first]).left(first) == 0


def test_runs_are_packed_by_the_seconds_that_they_save_per_byte(tmp_path):
    (table,) = tables(tmp_path / "a", "cifar10:x", SMALL[0], seeds=(0, 1))
    finish(table.jobs[0])
    (table.jobs[0].folder / "checkpoint.safetensors").write_bytes(bytes(10**6))  # not needed, not packed
    for job, seconds, numbers in zip(table.jobs[1:5], (50, 400, 30, 1), (10, 10_000, 10_000, 10), strict=True):
        begin(job, 2, float(seconds), numbers)
    archive, command = tmp_path / "runs.zip", "steppe reproduce"
    left_out = pack([table], archive, command, 0.07)
    assert [name.partition(" (")[0] for name in left_out] == [table.jobs[3].name]
    assert archive.stat().st_size <= 70_000
    begin(table.jobs[5], 2, 1.0, 10)
    (table.jobs[5].folder / "checkpoint.safetensors").write_bytes(b"half")
    assert pack([table], archive, command) == [f"{table.jobs[5].name} (its checkpoint is damaged)"]
    pack([table], archive, command, 0.07)
    with pytest.raises(InputError, match=r"megabytes is 0\.001 and the records of finished runs take 0\.0;"):
        pack([table], archive, command, 0.001)
    # another folder, another path of the data
    (other,) = tables(tmp_path / "b", "cifar10:y", SMALL[0], seeds=(0, 1))
    begin(other.jobs[1], 7, 1.0, 10)  # further than the archive
    assert unpack(archive, [other]) == (3, 0)
    assert {*(tmp_path / "b").iterdir()} == {other.out}
    assert [job.folder.exists() for job in other.jobs] == [True, True, True, False, True, False]
    assert not {job.folder.name for job in other.jobs} & {job.folder.name for job in table.jobs}
    assert {p.name for p in other.jobs[0].folder.iterdir()} == {
        "config.json", "metrics.jsonl", "timing.jsonl", "result.json",
    }  # fmt: skip
    saved, before = (file.read(t.jobs[2].folder / "checkpoint.safetensors") for t in (other, table))
    assert torch.equal(saved.tensors["net.w"], before.tensors["net.w"])
    assert saved.data == before.data | {"digest": other.jobs[2].run.digest()}
    assert file.read(other.jobs[1].folder / "checkpoint.safetensors").data["epoch"] == 7
    # fewer tables than the archive has, and none of them
    (sam,) = tables(tmp_path / "c", "cifar10:y", "sadt-table1-512:simple-cnn:sam", seeds=(0,))
    assert unpack(archive, [sam]) == (1, 3)
    with pytest.raises(InputError, match=r"none of the runs of this command; .* packed by: steppe reproduce"):
        unpack(archive, tables(tmp_path / "d", "cifar10:y", SMALL[1]))
    with pytest.raises(InputError, match="none of the runs of this command"):
        unpack(archive, tables(tmp_path / "d", "cifar10:y", SMALL[0], changes={"precision": "bf16"}))


def rewritten(archive: Path, change: dict[str, bytes | None], more: dict[str, bytes] | None = None) -> Path:
    """Return a copy of an archive in which entries that end so are other bytes or missing, with more entries."""
    path = archive.with_name("changed.zip")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = next((v for k, v in change.items() if name.endswith(k)), old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in (more or {}).items():
            new.writestr(name, content)
    return path


def test_a_damaged_or_foreign_archive_is_refused_in_one_line_and_nothing_is_written(tmp_path, capsys):
    (table,) = tables(tmp_path / "a", "cifar10:x", SMALL[0], seeds=(0,))
    finish(table.jobs[0])
    begin(table.jobs[1], 2, 5.0, 1000)
    archive = tmp_path / "runs.zip"
    pack([table], archive, "steppe reproduce")
    content, key = archive.read_bytes(), f"{table.name}/0123456789ab"
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    middle = content.index(b"net.w") + 200
    (tmp_path / "bits.zip").write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    (tmp_path / "text.zip").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as foreign:
        foreign.writestr("photo.txt", "x")
    config = json.loads((table.jobs[1].folder / "config.json").read_text())
    cases: list[tuple[Path, str]] = [
        (tmp_path / "none.zip", "there is no such file"),
        (tmp_path / "cut.zip", "is damaged or no archive"),
        (tmp_path / "bits.zip", "is damaged or no archive (Bad CRC-32"),
        (tmp_path / "text.zip", "is damaged or no archive (File is not a zip file)"),
        (tmp_path / "foreign.zip", "is no archive of runs"),
    ]
    for path, message in cases:
        refused(capsys, tmp_path, path, message)
    for change, more, message in [
        ({}, {"../../evil.json": b"x"}, "has the entry '../../evil.json', no file of a run"),
        ({}, {"/tmp/evil.json": b"x"}, "has the entry '/tmp/evil.json', no file of a run"),
        ({}, {f"{table.name}/../{'a' * 12}/config.json": b"x"}, "no file of a run"),
        ({}, {f"{key}/code.pkl": b"x"}, "no file of a run"),
        ({}, {f"{key}/config.json": bytes(10**7)}, "too large for a file of a run"),
        ({"checkpoint.safetensors": b"xyz"}, {}, "is damaged: sadt-table1-512-cifar10-simple-cnn, sam seed 0"),
        ({"best-1.safetensors": None}, {}, "is damaged"),
        ({"config.json": b"[]"}, {}, "is damaged"),
        ({"config.json": json.dumps(config | {"epochs": 7}).encode()}, {}, "that of another run on cifar10"),
        ({"metrics.jsonl": b'{"epoch": 1}\n'}, {}, "and metrics.jsonl "),
        ({"result.json": b"{"}, {}, "is damaged"),
    ]:  # fmt: skip
        refused(capsys, tmp_path, rewritten(archive, change, more), message)
    begin(table.jobs[2], 2, 5.0, 10, digest="of another")
    pack([table], archive, "steppe reproduce")
    refused(capsys, tmp_path, archive, "its checkpoint belongs to run of another")


def refused(capsys: Any, folder: Path, archive: Path, message: str) -> None:
    out = folder / "out"
    arguments = ["--datasets", "cifar10:x", "--tables", SMALL[0], "--out", str(out), "--from", str(archive)]
    assert main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not [p for p in out.rglob("*") if p.is_file() and p.name != "reproduce.lock"]
    assert not list(folder.rglob("evil*")) and not Path("/tmp/evil.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--datasets digits", "datasets is 'digits', which no table has; give cifar10, cifar100 or folder:PATH"),
        ("--datasets cifar10:x --tables rwp-table", "unknown table 'rwp-table'; did you mean 'rwp-table"),
        ("--datasets cifar10:x --tables rwp-table1:resnet19", "unknown part of table rwp-table1 'resnet19'"),
        ("--datasets cifar10:x --tables rwp-table2", "no table can run with these data; give --datasets cifar100"),
        (f"--datasets cifar10:x --tables {SMALL[0]} sadt-table1-512:sam", "twice; join its rows"),
        ("--datasets cifar10:x --within 0", "within is 0; give a number above 0"),
        ("--datasets cifar10:x --pack x --megabytes -1", "megabytes is -1; give a number above 0"),
        ("--datasets cifar10:x --jobs -1", "jobs is -1"),
        ("--datasets cifar10:x --scale 2", "scale is 2; give a share of the recipe's computation"),
        ("--tables rwp-table2", "datasets"),
    ],
)
def test_what_a_queue_cannot_do_is_refused_in_one_line(tmp_path, capsys, arguments, message):
    assert main(["reproduce", *arguments.split(), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_files_are_one_line_before_any_table_begins(tmp_path, capsys):
    assert main(["reproduce", "--datasets", "cifar10:x", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "cifar10 is not in x; give cifar10:PATH" in error and error.count("\n") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["reproduce.lock"]


def steppe(folder: Path, dataset: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "steppe", "reproduce", "--datasets", dataset, "--seeds", "0", "1", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(folder: Path) -> dict[str, Any]:
    """Return what every run measured, by table, method and seed, without its times."""
    result = {}
    for path in folder.glob("*/runs/*/config.json"):
        config = json.loads(path.read_text())
        end = json.loads((path.parent / "result.json").read_text())
        key = f"{path.parents[2].name} {config['method']} {config['seed']}"
        result[key] = (path.parent / "metrics.jsonl").read_bytes(), end["test"], end["val"], end["steps"]
    return result


@pytest.mark.slow
def test_a_queue_that_is_stopped_and_moved_ends_with_the_same_bits(tmp_path):
    cifar_folder(tmp_path / "cifar")
    names = ("--tables", "sadt-table1-512:simple-cnn:plain:sam", "--scale", "0.01")
    stop, runs = ("--out", "a", "--pack"), tmp_path / "a" / "sadt-table1-512-cifar10-simple-cnn" / "runs"
    for seconds in range(1, 100, 5):  # until it stops in the middle of a run; a busy machine starts slowly
        stopped = steppe(tmp_path, "cifar10:cifar", *names, *stop, "a.zip", "--within", str(seconds))
        assert "1. sadt-table1-512-cifar10-simple-cnn: 4 runs, 2 printed accuracies, about" in stopped
        assert "stopped in time; the same command goes on" in stopped
        if any(not (path.parent / "result.json").exists() for path in runs.glob("*/checkpoint.safetensors")):
            break
    assert "from the finished epochs" in stopped
    assert (tmp_path / "a.zip").stat().st_size < 60e6
    # stopped once more, where a file has no room for a checkpoint
    tight = steppe(tmp_path, "cifar10:cifar", *names, *stop, "c.zip", "--megabytes", "5", "--within", "1")
    assert "left out, they start anew: sadt-table1-512-cifar10-simple-cnn, " in tight
    # on another machine: another folder, and the data elsewhere
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "cifar", tmp_path / "b" / "images")
    out = steppe(tmp_path / "b", "cifar10:images", *names, "--from", "../a.zip", "--pack", "b.zip")
    assert "runs from ../a.zip" in out and "no run is left" in out
    steppe(tmp_path, "cifar10:cifar", *names, "--out", "whole")
    whole = measured(tmp_path / "whole")
    assert len(whole) == 4 and measured(tmp_path / "b" / "reproduce") == whole
    # back where it began, where the finished records replace the checkpoints
    again = steppe(tmp_path, "cifar10:cifar", *names, "--from", "b/b.zip", "--out", "a")
    assert "runs from b/b.zip" in again and measured(tmp_path / "a") == whole
    assert main(["report", str(tmp_path / "a" / "sadt-table1-512-cifar10-simple-cnn")]) == 0
    check_ledger(tmp_path, whole)


def check_ledger(folder: Path, whole: dict[str, Any]) -> None:
    """Records, ledger and results have the runs' accuracies after one command, and nothing of this machine."""
    docs = folder / "docs"
    (docs / "results").mkdir(parents=True)
    shutil.copytree(DOCS / "records", docs / "records")
    for name in ("make_ledger.py", "pack_records.py", "performance.md"):
        shutil.copy(DOCS / name, docs)
    name = "sadt-table1-512-cifar10-simple-cnn-scaled"
    for arguments in (["a"], []):
        subprocess.run([sys.executable, docs / "make_ledger.py", *arguments], cwd=folder, check=True)
        text = (docs / "records" / f"{name}.json").read_text()
        # the row of a full protocol replaces others in the ledger
        (docs / "records" / f"{name}.json").write_text(text.replace("scale 0.01", "full"))
    accuracy = [100 * test["last"]["accuracy"] for key, (_, test, *_) in whole.items() if " sam " in key]
    cell = f"{sum(accuracy) / 2:.2f} ± {abs(accuracy[0] - accuracy[1]) / 2**0.5:.2f} (n=2)"
    assert f"| `sam` | 78.40 | {cell} |" in (docs / "results/reproduction.md").read_text()
    (line,) = [x for x in (docs / "ledger.md").read_text().splitlines() if "simple-cnn | sam | 78.40 | +0.10" in x]
    assert cell in line and "scaled" not in line
    assert "cifar10:PATH" in text and str(folder) not in text and "cifar10:cifar" not in text
