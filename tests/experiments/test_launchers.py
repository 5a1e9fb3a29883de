"""Runs on clusters: a real Ray cluster on this machine, and scripts in place of Slurm's commands.

The records do not depend on the launcher, and the run of a killed worker is resumed.
"""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.interrupted import process_with

from steppe import InputError, experiments, records
from steppe.cli.main import main
from steppe.config import Data, Run, Study
from steppe.experiments.launchers.cluster import PROGRESS, Task, TaskResult, launch_on_cluster
from steppe.training.run import RESULT, TrainingStatus

SMALL = [
    "--methods", "plain", "sam", "--seeds", "0", "--data.train", "200", "--data.test", "60",
    "--data.size", "18", "--epochs", "3", "--batch", "50",
]  # fmt: skip
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'steppe[cluster]'"
)
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed: pip install 'steppe[cluster]'"
)


def start(out: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "steppe", "compare", *SMALL, "--out", str(out), *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def metrics(out: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in out.glob("runs/*/metrics.jsonl")}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison by the local launcher."""
    out = tmp_path_factory.mktemp("local")
    finished(start(out))
    return out


def kill_the_first_that_reports(out: Path) -> None:
    """Kill the process that trains a run as soon as it reports progress."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for report in out.glob(f"runs/*/{PROGRESS}"):
            if worker := process_with(report.parent / "lock"):
                os.kill(worker, signal.SIGKILL)
                return
        time.sleep(0.02)
    raise AssertionError("no run reported progress")


def accuracies(out: Path) -> list[list[str]]:
    """Return the table of the report without times and memory."""
    with (out / "table.csv").open() as file:
        rows = list(csv.reader(file))
    timed = [i for i, head in enumerate(rows[0]) if "second" in head or "time" in head or "memory" in head]
    return [[cell for i, cell in enumerate(row) if i not in timed] for row in rows]


def assert_as_local(out: Path, output: str, local: Path) -> None:
    assert metrics(out) == metrics(local)
    assert len(accuracies(out)) > 2 and accuracies(out) == accuracies(local)
    assert f"report: {out / 'report.html'}" in output
    assert not list(out.glob(f"runs/*/{PROGRESS}"))


@needs_ray
@pytest.mark.slow
def test_ray_trains_the_same_runs_and_resumes_a_killed_one(local, tmp_path):
    """A cluster of two workers, one of which is killed while it trains."""
    code = (
        "import sys, ray; from steppe.cli.main import main; "
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='ERROR'); "
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "compare", *SMALL, "--out", str(tmp_path), "--launcher", "ray"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    kill_the_first_that_reports(tmp_path)
    output = finished(process)
    assert "2 runs, as many as ray has room for at a time" in output
    assert_as_local(tmp_path, output, local)


SBATCH = """#!/bin/sh
# runs every task of the array at once, one after another
cat "$1" > {home}/job.sh
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
echo "Submitted batch job 77"
(
  for task in $(seq 0 ${{last:-0}}); do
    while [ ! -e {folder}/77_${{task}}_submitted.pkl ]; do sleep 0.1; done
    export SLURM_JOB_ID=77 SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$task SLURM_PROCID=0 SLURM_LOCALID=0
    export SLURM_NODEID=0 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1
    sh {home}/job.sh
  done
) > {home}/log 2>&1 &
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do
  case "$1" in --output|--error) shift ;; esac
  shift
done
exec "$@"
"""


@needs_submitit
@pytest.mark.slow
def test_slurm_gets_an_array_of_jobs_and_trains_the_same_runs(local, tmp_path):
    home, out = tmp_path / "bin", tmp_path / "out"
    home.mkdir()
    scripts = {"sbatch": SBATCH.format(home=home, folder=out / "slurm"), "srun": SRUN, "sacct": "#!/bin/sh\n"}
    for name, content in scripts.items():
        (home / name).write_text(content)
        (home / name).chmod(0o755)
    spec = "slurm:partition=gpu,time=90,gpus_per_node=1,mem=8GB"
    path = f"{home}:{os.environ['PATH']}"
    output = finished(start(out, "--launcher", spec, PATH=path))
    job = (home / "job.sh").read_text()
    options = ("array=0-1%2", "cpus-per-task=1", "gpus-per-node=1", "job-name=steppe", "mem=8GB", "partition=gpu")
    for option in (*options, "time=90"):
        assert f"#SBATCH --{option}\n" in job
    assert f"{sys.executable} -u -m submitit.core._submit {out / 'slurm'}" in job
    assert_as_local(out, output, local)


@needs_submitit
def test_unknown_options_of_sbatch_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InputError, match="colour.*give options of sbatch") as caught:
        experiments.Launcher.parse("slurm:colour=red").cluster(tmp_path)
    assert "\n" not in str(caught.value)


@needs_submitit
def test_a_job_that_slurm_stops_is_requeued_unchanged(tmp_path):
    from steppe.experiments.launchers.slurm import _Requeued

    task = Task(Run(seed=3), tmp_path)
    again = _Requeued(**vars(task)).checkpoint()
    assert vars(again.function) == vars(task)


# -- the loop that all clusters share ----------------------------------------------


@dataclass
class Scripted:
    """A cluster whose workers end in the given ways, one poll after they were submitted."""

    ends: list[TaskResult]
    pause: float = 0.0
    sends_objects: bool = True
    submitted: list[list[str]] = field(default_factory=list)
    cancelled: list[Any] = field(default_factory=list)
    status: TrainingStatus | None = None

    def submit(self, tasks):
        self.submitted.append([task.run.label for task in tasks])
        if self.status:
            for task in tasks:
                task.folder.mkdir(parents=True, exist_ok=True)
                (task.folder / PROGRESS).write_text(json.dumps(vars(self.status)))
        return [[self.ends.pop(0)] for _ in tasks]

    def ended(self, worker):
        return worker.pop() if worker else None

    def cancel(self, worker):
        self.cancelled.append(worker)


def grid_of(tmp_path: Path) -> experiments.ComparisonPlan:
    study = Study(methods=("plain", "sam"), seeds=(0,), epochs=1, batch=50, data=Data(train=100, test=30, size=18))
    return experiments.prepare(study, tmp_path, "steppe compare")


def test_a_killed_run_goes_to_another_worker_and_is_an_error_after_three(tmp_path):
    grid, killed = grid_of(tmp_path), TaskResult(None, "a lost machine")
    cluster = Scripted([killed, TaskResult({"status": "ok"}), TaskResult({"status": "ok"})])
    reports: list[Any] = []
    assert experiments.run(grid, 1, lambda job, news: reports.append((job.run.label, news)), cluster) == {}
    assert cluster.submitted == [["plain"], ["plain"], ["sam"]]
    assert reports == [("plain", {"status": "ok"}), ("sam", {"status": "ok"})]
    cluster = Scripted([killed, TaskResult("refused"), killed, killed])
    errors = experiments.run(grid, 0, lambda job, news: None, cluster)
    assert cluster.submitted == [["plain", "sam"], ["plain"], ["plain"]]
    messages = {job.run.label: text for job, text in errors.items()}
    assert messages["sam"] == "refused"
    assert messages["plain"].startswith(
        "gave up after 3 workers were killed (last: a lost machine); start the same"
    )


def test_progress_is_reported_once_and_a_stop_cancels_the_workers(tmp_path):
    grid = grid_of(tmp_path)
    status = TrainingStatus(2, 0.5, 1.25, 0.75, 100.0, 3.0)
    cluster = Scripted([TaskResult({}), TaskResult({})], status=status)
    reports: list[Any] = []

    def progress(job, news):
        reports.append(news)
        if len(reports) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch_on_cluster(grid.jobs, 0, cluster, progress)
    assert reports == [status, {}, status]
    assert len(cluster.cancelled) == 1


def test_a_task_reports_progress_and_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    grid = grid_of(tmp_path)
    reports: list[bytes] = []
    monkeypatch.setattr("steppe.experiments.launchers.cluster._INTERVAL", 0.0)
    write = records.write_json

    def recorded(path: Path, content: Any) -> None:
        write(path, content)
        if path.name == PROGRESS:
            reports.append(path.read_bytes())

    monkeypatch.setattr("steppe.experiments.launchers.cluster.records.write_json", recorded)
    monkeypatch.chdir(tmp_path)
    job = grid.jobs[0]
    result = Task(job.run, job.folder, tmp_path)()
    assert isinstance(result, dict) and result["status"] == "ok"
    assert reports and TrainingStatus(**json.loads(reports[-1])).share == 1.0
    assert not (job.folder / PROGRESS).exists()
    before = (job.folder / RESULT).stat().st_mtime_ns
    assert Task(job.run, job.folder, tmp_path)() == result
    assert (job.folder / RESULT).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rey", "unknown launcher 'rey'; did you mean 'ray'"),
        ("ray:gpu=1", "unknown setting of launcher ray 'gpu'"),
        ("local:jobs=2", "unknown setting of launcher local 'jobs'"),
        ("ray:", "launcher 'ray:' ends in a colon"),
    ],
)
def test_unknown_launchers_and_settings_are_one_line(spec, message, capsys, tmp_path):
    assert main(["compare", *SMALL, "--out", str(tmp_path / "out"), "--launcher", spec]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_missing_package_of_a_launcher_is_named_with_its_installation(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, {"ray": "ray", "slurm": "submitit"}[name], None)
    with pytest.raises(InputError, match=r"pip install 'steppe\[cluster\]'"):
        experiments.Launcher.parse(name).cluster(tmp_path)
