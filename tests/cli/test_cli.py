"""The command line: what it prints, what it refuses, what it writes."""

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import types
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.table import Table

import steppe
from steppe import InputError, hardware, methods
from steppe.cli import console
from steppe.cli.commands import COMMANDS
from steppe.cli.main import main
from steppe.cli.progress import Display
from steppe.config import Data, Run
from steppe.config.docstrings import docstring
from steppe.distributed.forkserver import forkserver_context
from steppe.experiments.run_lock import locked_run
from steppe.methods import METHODS
from steppe.training.run import digest
from steppe.training.trainer import TrainingStatus

SMALL = ["--data.train", "200", "--data.test", "60", "--data.size", "18", "--epochs", "2", "--batch", "50"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must end with code 2 and one line; return the line."""
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("steppe: error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("comapre", "unknown command 'comapre'; did you mean 'compare'"),
        ("compare --print_config=-- --seeds x", "cannot parse the arguments"),
        ("compare --metods plain", "unknown setting 'metods'; did you mean 'methods'"),
        ("compare --lr 1", "did you mean 'optim.lr'?"),
        ("compare --data.trian 1", "did you mean 'data.train'"),
        ("compare stray", "unexpected 'stray'"),
        ("reproduce --plan", "not given: --datasets; add it"),
        (
            "reproduce --plan --datasets cifar10:nowhere",
            "cifar10 is not in nowhere; give cifar10:PATH",
        ),
        ("export", "not given: RUN, OUT; add it"),
        ("compare --data.tta twice", "data.tta is 'twice'; choose one of mirror, mirror-shift"),
        ("compare --batch many", "batch is 'many'; give a whole number"),
        ("compare --batch 1.5", "batch is '1.5'; give a whole number"),
        ("compare --optim.lr fast", "optim.lr is 'fast'; give a number"),
        ("compare --match fairness", "match is 'fairness'; choose one of epochs, gradients, seconds"),
        ("compare --seeds one", "seeds is 'one'; give a whole number"),
        ("compare --methods plian", "unknown method 'plian'; did you mean 'plain'"),
        ("compare --methods sam sam:rho=0.05", "'sam seed 0' and 'sam:rho=0.05 seed 0' are the same run"),
        ("compare --models simple-cn", "unknown model 'simple-cn'; did you mean 'simple-cnn'"),
        ("compare --models torchvision/nope", "torchvision"),
        ("compare --datasets cifar", "unknown data set 'cifar'; did you mean 'cifar10'"),
        ("compare --datasets folder:nowhere", "there is no nowhere"),
        ("compare --data.size 8", "simple-cnn needs images of at least 18x18"),
        ("compare --batch 5000", "batch is 5000 and only 1294 images are trained on"),
        ("compare --data.augment blur", "unknown augmentation in data.augment 'blur'"),
        ("compare --data.train 5000", "more than the 1438 training images of digits"),
        ("compare --jobs -1", "jobs is -1"),
        ("compare --config nowhere.yaml", "config is 'nowhere.yaml', and it cannot be read (No such file"),
        ("compare --config .", "config is '.', and it cannot be read (Is a directory)"),
        ("train --seconds 5", "seconds is 5.0 and match is 'epochs'; add --match seconds"),
        ("compare --match gradients --seconds 5", "seconds is 5.0 and match is 'gradients'"),
        ("train --method sam:start=300 --epochs 1", "'sam:start=300' is active in none of this run's 41 steps"),
        ("train --method sam:start=3,stop=0.01 --epochs 1", "is active in none of this run's 41 steps"),
        ("train --method sam+swa:start=41 --epochs 1", "is active in none of this run's 41 steps"),
        (
            "compare --methods plain gc:start=700+sam --match gradients",
            "is active in none of this run's 656 steps",
        ),
        ("compare --methods module:Class", "there is no module module here or installed"),
        ("compare --methods my/file.py:Class", "there is no file my/file.py; give the path of one"),
        ("show module:Class", "unknown method 'module:Class'; "),
        ("compare --zqxw 1", "unknown setting 'zqxw'; --help lists all\n"),
        ("compare --models zqxw", "unknown model 'zqxw'; "),
        ("train --method sadt-v4", "did you mean 'sadt-v"),
        ("show sum", "did you mean 'sam'"),
        ("report nowhere", "there is no folder nowhere; give the folder that `steppe compare` wrote"),
        ("list networks", "kind is 'networks'; choose one of methods, models, datasets"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments.split())
    assert not list(tmp_path.rglob("runs"))


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]\n" for a, b in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"metods: [plain]", "unknown setting 'metods'; did you mean 'methods'"),
        (b"data:\n  train: five", "data.train is 'five'; give a whole number"),
        (b"data:\n  trian: 5", "trian"),
        (b"data: [", "parsing"),
        (b"methods: 3", "methods"),
        (b"batch: " + b"9" * 5000, "parsing it fails"),
        ("batch: 3".encode("utf-16"), "parsing it fails"),
        (b"data: null", "data is None in"),
        (b"data: [1, 2]", "data is [1, 2] in"),
        (b"track:\n  val: [1, 2]\n  x: 1\n", "track"),
        (LAUGHS.encode(), "it has more than 10000 values"),
        (b"data: &a [*a]", "a value holds itself"),
        (b"data: " + b"[" * 3000, "it is too deep"),
        (b"- 1", "holds no settings"),
        (b"data: {augment: none}", "data.augment is 'none'; write a list, [none]"),
        (b"track: wandb", "track is 'wandb'; write a list, [wandb]"),
        (b"", "it is empty"),
        (b"method: !!python/object/apply:os.system ['touch attacked']", "parsing it fails"),
    ],
    ids=[
        "key", "value", "nested key", "not yaml", "no list", "long", "utf-16", "null", "list", "track", "laughs",
        "itself", "deep", "items", "nested string", "string", "empty", "program",
    ],
)  # fmt: skip
def test_a_wrong_or_hostile_file_is_one_line(content, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_bytes(content)
    assert message in refused(capsys, "compare", "--config", "study.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    "line", ["model: null", "batch: ~", "optim: {lr: null}", "method:", "data: {augment: null}"]
)
def test_null_in_a_file_is_refused_for_a_setting_that_needs_a_value(line, capsys, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"{line}\n")
    name = {"optim": "optim.lr", "data": "data.augment"}.get(line.partition(":")[0], line.partition(":")[0])
    message = refused(capsys, "train", "--plan", "--config", str(path))
    assert f"{name} is null in {path}; give a value, or leave the line out" in message


def test_aliases_and_null_for_an_optional_setting_are_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("microbatch: null\nbatch: &n 50\noptim: {lr: 0.1}\ndata: {train: null, test: *n}\n")
    assert main(["train", "--plan", "--config", str(path)]) == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("9 TiB"), "there is not enough memory (9 TiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 TiB"), "there is not enough memory ("),
        (RuntimeError("could not create a primitive 9 TiB"), "there is not enough memory ("),
        (OSError(errno.ENOMEM, "no memory for 9 TiB"), "there is not enough memory ("),
        (OSError(errno.EMFILE, "Too many open files"), "raise the limit (ulimit -n)"),
        (RuntimeError("shapes do not match"), None),
        (OSError(errno.EIO, "Input/output error"), None),
    ],
)
def test_too_little_memory_and_too_many_files_are_one_line(error, message, capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("steppe.training.run.load_data", fail)
    if message is None:
        with pytest.raises(type(error)):
            main(["train", "--plan"])
    else:
        assert message in refused(capsys, "train", "--plan")


def test_a_run_of_another_process_and_a_folder_in_the_way_are_refused(capsys, monkeypatch, tmp_path):
    arguments = ("train", "--out", str(tmp_path), *SMALL, "--epochs", "1")
    monkeypatch.setattr("steppe.experiments.run_lock.locked_run", partial(locked_run, patience=0.0))
    folder = tmp_path / "runs" / digest(Run(epochs=1, batch=50, data=Data(train=200, test=60, size=18)))
    with locked_run(folder):
        assert f"another process is at work in {folder}" in refused(capsys, *arguments)
    assert main(list(arguments)) == 0
    assert (folder / "result.json").exists()
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in refused(capsys, "compare", "--out", str(tmp_path / "file" / "out"), *SMALL)


@pytest.mark.parametrize(
    ("arguments", "is_demo"),
    [("", True), ("--seeds 5 --methods plain sam", True), ("--batch 32 --seeds 0", False)],
)
def test_a_comparison_without_settings_of_its_training_is_the_demo(tmp_path, capsys, arguments, is_demo):
    assert main(["show", "demo"]) == 0
    (tmp_path / "demo.yaml").write_text(capsys.readouterr().out)
    studies = []
    for config in ([], ["--config", str(tmp_path / "demo.yaml")]):
        command = ["compare", *config, *arguments.split(), "--within", "1e-3", "--out", str(tmp_path / "out")]
        assert main(command) == 0
        assert ("300 handwritten digits" in capsys.readouterr().out) is (is_demo and not config)
        studies.append(json.loads((tmp_path / "out/compare.json").read_text())["study"])
        shutil.rmtree(tmp_path / "out")
    assert (studies[0] == studies[1]) is is_demo
    assert studies[1]["seeds"] == ({"": list(range(12))}.get(arguments, [5] if is_demo else [0]))


def test_every_command_is_listed_and_has_help_with_examples(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"steppe {steppe.__version__}\n"
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[:4] == "    " and line[4] != " "] == list(COMMANDS)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"\n  steppe {command}" in capsys.readouterr().out


def test_a_plan_says_when_each_part_is_active_and_trains_nothing(capsys, tmp_path):
    spec = "sam:rho=linear(0,0.2,0.5),start=0.25,every=2+gc:stop=4"
    plan = ["train", "--plan", "--method", spec, *SMALL, "--epochs", "4", "--out", str(tmp_path)]
    assert main([*plan, "--optim.schedule", "constant"]) == 0
    images, *lines = capsys.readouterr().out.splitlines()
    assert images.startswith("digits: 200 training, 20 validation and 60 test images of 10 classes (0, 1,")
    assert lines == [
        "steps          16 steps, 4 an epoch",
        "learning rate  constant: 0.0001",
        "sam            steps 5-15, every 2nd (epochs 2-4), 6 in all; the others are plain",
        "  rho          linear(0,0.2,0.5): 0.1 at first, 0.2 halfway, 0.2 at last",
        "gc             steps 1-4 (epoch 1), 4 in all; the others are plain",
    ]
    assert main([*plan, "--match", "gradients"]) == 0
    assert "the number that gradients allow is known at the end" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_show_prints_the_cards_of_a_method_with_settings(capsys):
    assert main(["show", "sam:rho=0.1+gc"]) == 0
    card = capsys.readouterr().out
    assert card.count("Cost ") == 2 and "Settings On(rule=SAM(rho=0.1," in card


def test_show_prints_each_field_with_default_help_and_range(capsys):
    assert main(["show", "sam"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "Fields rho 0.05 radius of the ball; a number of at least 0 or a schedule",
        "ascents 1 ascent steps; at least 1",
        "norm 'global' one ball, one per network or tensor, or no ball; 'global', 'network', 'tensor' or 'none'",
        "stop None the first step without it; a step number, or a share of the training below 1",
    ):
        assert line in lines
    assert main(["show", "sadt-v2"]) == 0
    assert "variant    2        where the teachers are; 1, 2 or 3" in capsys.readouterr().out


def test_list_and_show_know_every_method(capsys):
    assert main(["list"]) == 0
    table = capsys.readouterr().out
    for name in METHODS:
        assert f"\n{name} " in "\n" + table
        assert main(["show", name]) == 0
        card = capsys.readouterr().out
        assert "Cost" in card
        assert all(f" {f.name} " in card.partition("\nFields ")[2] for f in dataclasses.fields(methods.make(name)))
        assert f"\nControls {', '.join(methods.make(name).controls) or 'none besides plain'}\n" in card


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small comparison and what it prints; one method diverges."""
    out = tmp_path_factory.mktemp("comparison")
    return out, compare(out)


def compare(out: Path) -> str:
    arguments = ["--methods", "plain", "sadt-v1", "sam:rho=1e30", "--seeds", "0", "1", *SMALL, "--out", str(out)]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "120")
        assert main(["compare", *arguments]) == 1  # a run failed, now or before
    return printed.getvalue()


def test_compare_prints_progress_a_table_conclusions_and_the_path_of_the_page(compared):
    out, printed = compared
    for text in ("plain", "sadt-v1", "sam:rho=1e30", "over 2 seeds"):
        assert text in printed.lower()
    assert f"report: {out / 'report.html'}" in printed
    text = (out / "report.html").read_text()
    assert "not finite" in text and "steppe compare --methods plain" in text
    for name in ("table.csv", "table.md", "table.tex", "curves.svg", "curves.png"):
        assert (out / name).stat().st_size > 0
    # progress in a log is plain lines
    assert "\x1b" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("plain seed 0: ")]
    assert any("epoch 1" in line and "loss" in line and "images/s" in line and "left" in line for line in lines)
    # a run that diverges is failed and the others finish
    for run in json.loads((out / "compare.json").read_text())["runs"]:
        result = json.loads((out / "runs" / run["digest"] / "result.json").read_text())
        assert result["status"] == ("failed" if run["method"] == "sam:rho=1e30" else "ok")
        assert result["status"] == "ok" or "step" in result["message"]
    assert "failed" in printed


def test_the_same_command_again_trains_nothing_and_the_report_is_written_again(compared, capsys):
    out, printed = compared
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*") if p.name != "lock"}
    again = compare(out)
    assert "0 runs" in again and "6 already finished" in again
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*") if p.name != "lock"}
    assert again.split("already finished")[1] in printed
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").exists()
    assert "report.html" in capsys.readouterr().out


# -- streams, systems, the first seconds -------------------------------------------------------------------------


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("comapre", 2)])
def test_without_streams_nothing_is_printed_and_the_command_works(argument, code):
    command = f"{sys.executable} -m steppe {argument} <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, check=False).returncode == code


def test_closed_descriptors_are_opened_before_any_other_file():
    command = "python -c 'import sys; from steppe.cli.console import open_streams; open_streams(); " + (
        'f = open(sys.executable); print(f.fileno(), file=open(sys.argv[1], "w"))\' '
    )
    with tempfile.NamedTemporaryFile("r") as file:
        command = command.replace("python", sys.executable, 1)
        subprocess.run(f"{command} {file.name} <&- >&- 2>&-", shell=True, check=True)
        assert int(file.read()) > 2


@pytest.mark.parametrize(("columns", "width"), [("0", 120), ("", 120), ("90", 90), (None, 120)])
def test_a_file_has_120_columns_unless_the_environment_has_others(columns, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns) if columns is not None else monkeypatch.delenv("COLUMNS", raising=False)
    assert console.console().width == console.console(stderr=True).width == width


@pytest.mark.parametrize(("epochs", "text"), [(1, "after 1 epoch, "), (2, "after 2 epochs, ")])
def test_the_end_of_a_run_counts_its_epochs(epochs, text, capsys):
    with Display(1, console.console()) as display:
        display.update(
            "sam", {"status": "ok", "test": {"last": {"accuracy": 0.5}}, "epochs": epochs, "seconds": 1.0}
        )
    assert text in capsys.readouterr().out


def test_progress_speaks_the_metric_of_the_run(capsys):
    metric = {"name": "RMSE", "unit": "mm", "higher": False, "percent": False}
    with Display(1, console.console()) as display:
        display.update("sam", TrainingStatus(1, 0.5, 0.25, None, 1234.0, 3.0, 2.34567, metric, "samples"))
        test = {"last": {"metric": 2.0}}
        display.update("sam", {"status": "ok", "test": test, "epochs": 2, "seconds": 1.0, "metric": metric})
    first, second = capsys.readouterr().out.splitlines()
    assert "loss 0.250  val RMSE 2.346 mm  1,234 samples/s" in first
    assert "sam: test RMSE 2 mm after 2 epochs" in second


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("classes [v2]", title="folder:dog: [b]")
    table.add_row(":cat: [red]")
    console.print_text(console.console(), "folder:dog: [b]")
    console.console().print(table)
    output = capsys.readouterr().out
    assert output.count("folder:dog: [b]") == 2 and ":cat: [red]" in output and "classes [v2]" in output


def test_a_stream_without_the_character_prints_a_question_mark(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    console.open_streams()
    console.print_text(console.console(), "1 ± 2")
    sys.stdout.flush()
    assert printed.getvalue() == b"1 ? 2\n"


@pytest.mark.slow
def test_stripped_docstrings_are_read_from_the_source():
    lines = [[sys.executable, *flags, "-m", "steppe", "show", "sam"] for flags in ([], ["-OO"])]
    outputs = [subprocess.run(line, capture_output=True, text=True, check=True).stdout for line in lines]
    assert outputs[0] == outputs[1]


def test_docstrings_from_the_source_are_the_docstrings(monkeypatch):
    things = [sys.modules["steppe.methods.sharpness.sam"], Run, Data, main]
    expected = [docstring(thing) for thing in things]
    assert all(expected)
    monkeypatch.setattr(sys, "flags", types.SimpleNamespace(optimize=2))
    assert [docstring(thing) for thing in things] == expected


@pytest.mark.parametrize("command", ["compare", "train", "tune"])
def test_windows_is_refused_in_one_line_by_the_commands_that_train(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    assert f"steppe {command} needs Linux or macOS; on Windows use WSL" in refused(capsys, command)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert math.isnan(hardware.peak_memory_mb()) or torch.cuda.is_available()
    with pytest.raises(InputError, match="worker processes need Linux or macOS"):
        forkserver_context(1)


def test_ctrl_c_while_the_command_is_imported_is_one_line(tmp_path):
    (tmp_path / "jsonargparse.py").write_text("raise KeyboardInterrupt")
    paths = os.pathsep.join([str(tmp_path), str(Path(steppe.__file__).parents[1])])
    command, environment = [sys.executable, "-m", "steppe", "list"], os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "steppe: stopped\n")


def test_a_full_disk_of_the_output_is_one_line(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("steppe.cli.commands.list.run", full)
    assert "the disk is full ([Errno 28] No space left on device); free some space" in refused(capsys, "list")
