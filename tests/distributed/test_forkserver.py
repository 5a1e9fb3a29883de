"""The server that workers are forked from, in a program of its own: a server is begun once per program."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from steppe.distributed import forkserver

STARTS = """
from steppe.distributed.forkserver import forkserver_context
process = forkserver_context(1).Process(target=print, args=("worked",), kwargs={"flush": True})
process.start()
process.join()
"""
BLOCKED = "signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])"
PROGRAM = f"""
import signal
from steppe.distributed.forkserver import forkserver_context
if __name__ == "__main__":
    process = forkserver_context(1, "imported_by_the_server").Process(target=print)
    process.start()
    process.join()
    print("after", {BLOCKED})
"""
IMPORTED = f"""
import signal
print("while it imports", {BLOCKED}, flush=True)
"""


def test_ctrl_c_is_blocked_only_while_the_server_imports(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "imported_by_the_server.py").write_text(IMPORTED)
    paths = os.pathsep.join([str(tmp_path), str(Path(forkserver.__file__).parents[2])])
    command, environment = [sys.executable, tmp_path / "program.py"], os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert (lines[:1], lines[-1:]) == (["while it imports True"], ["after False"]), done.stdout + done.stderr
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def program(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script that lies elsewhere, in ``folder`` and in a program of its own."""
    script = folder.parent / "script.py"
    script.write_text(text)
    paths = {"PYTHONPATH": str(Path(forkserver.__file__).parents[2])}
    command, variables = [sys.executable, str(script)], os.environ | paths | environment
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_workers_start_with_a_long_tmpdir_among_files_named_as_modules(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    for name in ("random", "queue", "socket", "steppe"):
        (long / f"{name}.py").write_text("raise SystemExit('not the library')")
    guarded = "if __name__ == '__main__':" + textwrap.indent(STARTS, "    ")
    done = program(long, guarded, TMPDIR=str(long))
    assert (done.stdout, done.stderr, done.returncode) == ("worked\n", "", 0)
    assert not os.environ.get("PYTHONSAFEPATH")


def test_a_script_without_main_guard_is_refused_before_its_workers_import_it(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    done = program(tmp_path / "inner", f"print('once')\nif 1 > 0:{textwrap.indent(STARTS, '    ')}")
    assert done.stdout == "once\n"
    assert done.stderr.splitlines()[-1].endswith(
        "put the code that does so below the line `if __name__ == '__main__':`"
    )
    # a function that the guarded line calls, and code that no script calls
    called = f"def work():{textwrap.indent(STARTS, '    ')}\nif __name__ == '__main__':\n    work()"
    assert program(tmp_path / "inner", called).stdout == "worked\n"
    forkserver.check_main_guard()


@pytest.mark.parametrize("guard", ["if 1 > 0:", "if __name__ == '__main__':"])
def test_a_script_without_a_file_is_refused(tmp_path: Path, guard: str) -> None:
    text = f"{guard}{textwrap.indent(STARTS, '    ')}"
    environment = os.environ | {"PYTHONPATH": str(Path(forkserver.__file__).parents[2])}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, input=text, capture_output=True, text=True, check=False
        )

    for arguments in (["-"], []):
        done = python(*arguments)
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1].endswith("save the script to a file, or give 0 workers")
    assert python("-c", text).stdout == "worked\n"  # multiprocessing does not import the text of -c
