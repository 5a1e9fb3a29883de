"""Several processes on one run, started as people start them: real torchrun, real kills, files compared."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.tiny_steppe import tiny

from steppe import InputError, models, records
from steppe.cli.main import main
from steppe.training.checkpoint import file, sharded, store

HERE = Path(__file__).parents[1]
TINY_STEPPE = HERE / "support" / "tiny_steppe.py"
SMALL = ["--data.train", "201", "--data.test", "61", "--data.size", "18", "--batch", "51", "--optim.lr", "1e-3"]
TINY = [
    "train", "--model", "tiny", "--method", "sam", "--sync", "global", "--epochs", "3", *SMALL,
    "--data.augment", "flip", "crop", "cutmix",
]  # fmt: skip
FSDP = ["--parallel", "fsdp"]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | more


def torchrun(*command: str, restarts: int = 0, stop_after: int | None = None) -> subprocess.Popen[str]:
    """Start two processes of the steppe command; with the tiny network if its arguments name it."""
    program = [str(TINY_STEPPE)] if "tiny" in command else ["-m", "steppe"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, "--max-restarts", str(restarts), *program, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**({} if stop_after is None else {"STOP_AFTER": str(stop_after)})),
    )


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def folder_of(out: Path) -> Path:
    (folder,) = (out / "runs").iterdir()
    return folder


def metrics(out: Path) -> list[dict]:
    return records.read_lines(folder_of(out) / "metrics.jsonl")


def result(out: Path) -> dict:
    return json.loads((folder_of(out) / "result.json").read_text())


@pytest.fixture(autouse=True)
def _network(monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", tiny)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run by one process."""
    out = tmp_path_factory.mktemp("alone")
    done = subprocess.run([sys.executable, TINY_STEPPE, *TINY, "--out", out], env=environment())
    assert done.returncode == 0
    return out


@pytest.fixture(scope="module")
def stopped_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run sharded over two processes, ended after the second of its three epochs."""
    out = tmp_path_factory.mktemp("shards")
    finished(torchrun(*TINY, *FSDP, "--out", str(out), stop_after=2))
    assert len(metrics(out)) == 2
    return out


def copied(out: Path, to: Path) -> Path:
    folder = to / "runs" / folder_of(out).name
    folder.mkdir(parents=True)
    for path in folder_of(out).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return to


def assert_same_training(a: Path, b: Path) -> None:
    """Equal to 1e-6, the differences of sums in another order; accuracies exactly."""
    for one, other in zip(metrics(a), metrics(b), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            exact = name != "val_loss" and name != "train_loss"
            assert value == other[name] if exact else value == pytest.approx(other[name], rel=1e-6), name
    for which in ("last", "best"):
        assert result(a)["test"][which]["accuracy"] == result(b)["test"][which]["accuracy"]
        assert result(a)["test"][which]["loss"] == pytest.approx(result(b)["test"][which]["loss"], rel=1e-6)


def test_two_replicas_train_as_one_process_and_one_of_them_prints(alone, tmp_path):
    out, _ = finished(torchrun(*TINY, "--out", str(tmp_path)))
    assert_same_training(alone, tmp_path)
    assert result(tmp_path)["environment"]["processes"] == 2
    assert result(alone)["environment"]["processes"] == 1
    assert out.count("test accuracy") == out.count("records: ") == 1
    assert len(re.findall("epoch 3 ", out)) == 1


def test_what_one_process_began_two_sharded_ones_end(alone, tmp_path):
    env = environment(STOP_AFTER="1")
    subprocess.run([sys.executable, TINY_STEPPE, *TINY, "--out", tmp_path], env=env, check=True)
    assert len(metrics(tmp_path)) == 1
    finished(torchrun(*TINY, *FSDP, "--out", str(tmp_path)))
    assert_same_training(alone, tmp_path)
    names = {p.name for p in folder_of(tmp_path).glob("*.safetensors")}
    best = result(tmp_path)["test"]["best"]["epoch"]
    expected = {f"shard-checkpoint-3-{rank}of2.safetensors" for rank in range(2)}
    expected |= {"checkpoint.safetensors", f"best-{best}.safetensors"}
    if best > 1:  # the first epoch's were written by one process
        expected |= {f"shard-best-{best}-{rank}of2.safetensors" for rank in range(2)}
    assert names == expected


def test_what_two_sharded_processes_began_one_ends(alone, stopped_shards, tmp_path, capsys):
    out = copied(stopped_shards, tmp_path)
    assert main([*TINY, "--out", str(out)]) == 0
    assert_same_training(alone, out)
    assert not list(folder_of(out).glob("shard-checkpoint*"))


def test_what_sharded_processes_began_replicas_end(alone, stopped_shards, tmp_path):
    out = copied(stopped_shards, tmp_path)
    finished(torchrun(*TINY, "--out", str(out)))
    assert_same_training(alone, out)


def test_each_process_holds_only_its_rows(stopped_shards):
    """The two files together are as large as the state is, neither holds all of it."""
    folder = folder_of(stopped_shards)
    whole = sharded.read(folder / "checkpoint.safetensors")
    for rank in range(2):
        part = file.read(folder / f"shard-checkpoint-2-{rank}of2.safetensors")
        assert set(part.tensors) == {k for k in whole.tensors if k.startswith(("net.", "optimizer."))} - {
            k for k in whole.tensors if k.endswith(".step")
        }
        for name, piece in part.tensors.items():
            assert len(piece) < len(whole.tensors[name])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is incomplete: .*1of2.safetensors is missing; delete it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is incomplete: .* is damaged .*; delete it"),
        (
            lambda path: path.write_bytes(path.with_name("shard-checkpoint-2-0of2.safetensors").read_bytes()),
            "1of2.safetensors belongs to another checkpoint",
        ),
    ],
    ids=["missing", "cut", "another"],
)
def test_a_shard_that_is_missing_or_damaged_is_one_line(damage, message, stopped_shards, tmp_path, capsys):
    out = copied(stopped_shards, tmp_path)
    (folder_of(out) / store.BEFORE).unlink()
    damage(folder_of(out) / "shard-checkpoint-2-1of2.safetensors")
    with pytest.raises(InputError, match=message):
        sharded.read(folder_of(out) / "checkpoint.safetensors")
    assert main([*TINY, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_of_a_damaged_shard_all_go_back_to_the_checkpoint_before(alone, stopped_shards, tmp_path):
    out = copied(stopped_shards, tmp_path)
    (folder_of(out) / "shard-checkpoint-2-1of2.safetensors").unlink()
    _, said = finished(torchrun(*TINY, *FSDP, "--out", str(out)))
    assert_same_training(alone, out)
    assert "goes on from the one before it, of epoch 1" in said


def test_an_index_that_points_outside_its_folder_is_refused(stopped_shards, tmp_path):
    out = copied(stopped_shards, tmp_path)
    path = folder_of(out) / "checkpoint.safetensors"
    index = file.read(path)
    outside = {"../elsewhere.safetensors": "0" * 64}
    file.write(path, file.Checkpoint(index.tensors, index.data | {"shards": outside}))
    with pytest.raises(InputError, match="it names '../elsewhere.safetensors'"):
        sharded.read(path)


def processes(*command: str) -> list[tuple[int, str, str]]:
    """Start two processes as a cluster's scheduler does, which sees each one's exit code and words."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "steppe", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, ended, strict=True)]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --batch 3", "batch is 3 on 2 processes; give at least 4"),
        ("compare --methods plian", "unknown method 'plian'; did you mean 'plain'"),
        ("train --out /dev/null/out --epochs 1", "cannot write /dev/null/out"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_everywhere(command, message, tmp_path):
    first, second = processes(*command.split(), *([] if "--out" in command else ["--out", str(tmp_path)]))
    assert (first[0], second[0]) == (2, 2)
    assert first[2].startswith("steppe: error: ") and message in first[2]
    assert first[2].count("\n") == 1
    assert first[1] == second[1] == second[2] == ""


def test_equal_seconds_end_together(tmp_path):
    """The lead's clock decides; a process that went on alone would wait for ever."""
    ended = processes("train", *SMALL, "--match", "seconds", "--seconds", "1", "--out", str(tmp_path))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert 1.0 <= result(tmp_path)["seconds"] < 3.0


def test_compare_does_its_runs_together_and_reports_once(tmp_path):
    arguments = ["--methods", "plain", "sam:rho=1e30", "--seeds", "0", "--epochs", "2", *SMALL]
    out, _ = finished(torchrun("compare", *arguments, "--out", str(tmp_path)))
    assert "2 runs, 1 (on 2 processes) at a time" in out
    assert out.count("report: ") == out.count("[2/2]") == 1
    assert "not finite" in (tmp_path / "report.html").read_text()
    comparison = records.load(tmp_path)
    assert [r.status for r in comparison.records] == ["ok", "failed"]
    assert comparison.environment["processes"] == 2


ELASTIC = ["train", "--method", "sadt-v1", "--epochs", "8", *SMALL, "--data.augment", "flip", "cutmix"]


COMES_AND_SAYS_NOTHING = """
import sys
from torch.distributed.rendezvous import rendezvous
held = next(rendezvous("env://"))
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("torchruns", "company", "said"),
    [
        ("False", False, "waiting for clients"),
        ("False", True, "1/2 clients joined"),
        ("True", False, "trying to connect"),
    ],
)
def test_a_process_that_nobody_meets_gives_up_with_a_line(torchruns, company, said, tmp_path):
    """They meet where one of them waits, or where torchrun does, which may have been killed before."""
    code = (
        "import datetime, sys; from steppe import cli, joining;"
        "joining._MEETING = datetime.timedelta(seconds=int(sys.argv.pop(1))); sys.exit(cli.main(sys.argv[1:]))"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    names = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    names |= {"TORCHELASTIC_USE_AGENT_STORE": torchruns}
    # company needs its time to import torch
    words = [sys.executable, "-c", code, "30" if company else "1", *TINY, "--out", tmp_path]
    other = [sys.executable, "-c", COMES_AND_SAYS_NOTHING if company else ""]
    # it goes when its input is closed, which leaving the context does, whatever happens within
    beside = {
        "env": environment(**(names | {"RANK": "1"})),
        "stdin": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    with subprocess.Popen(other, **beside):
        done = subprocess.run(words, env=environment(**names), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("steppe: ")]
    assert said in line and line.endswith("or let torchrun do it with --max-restarts")


def test_a_job_whose_process_is_killed_starts_again_and_ends_with_the_same_bits(tmp_path):
    """Dropout, BatchNorm, noise of each process's own, augmentation: all as in an undisturbed job."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finished(torchrun(*ELASTIC, "--out", str(whole)))
    job = torchrun(*ELASTIC, "--out", str(parts), restarts=1)
    while not list(parts.glob("runs/*/checkpoint.safetensors")):
        assert job.poll() is None
        time.sleep(0.01)
    os.kill(worker(job.pid, rank=1), signal.SIGKILL)
    assert not list(parts.glob("runs/*/result.json"))
    _, err = finished(job)
    assert "Traceback" not in err, err
    assert (folder_of(parts) / "metrics.jsonl").read_bytes() == (folder_of(whole) / "metrics.jsonl").read_bytes()
    assert result(parts)["test"] == result(whole)["test"]
    a, b = (file.read(folder_of(out) / "checkpoint.safetensors").tensors for out in (whole, parts))
    assert {"generators.noise.1", "generators.masks.1"} < a.keys() == b.keys()
    assert all(a[k].equal(b[k]) for k in a)


def worker(parent: int, rank: int) -> int:
    """Return the process of this rank among those that a launcher started."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "status").read_text()
            if f"\nPPid:\t{parent}\n" in status and f"\0RANK={rank}\0" in (process / "environ").read_text():
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"the launcher has no worker of rank {rank}")
