"""The ``steppe`` command as its console script starts it, without file locks if FAULTS_LOCKLESS is set."""

import errno
import fcntl
import os


def _refuse(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


if os.environ.get("FAULTS_LOCKLESS"):
    fcntl.flock = _refuse

if __name__ == "__main__":
    from steppe.cli.main import main

    if os.environ.get("FAULTS_PLANT"):
        from faults import broken

        broken.plant(os.environ["FAULTS_PLANT"])
    raise SystemExit(main())
