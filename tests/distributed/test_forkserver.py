"""The server that workers are forked from, in a program of its own: a server is begun once per program."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from steppe.distributed import forkserver

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
