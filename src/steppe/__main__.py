"""``python -m steppe`` is the ``steppe`` command."""

import atexit
import contextlib
import os
import sys


def main() -> int:
    """Run the command line; Ctrl-C is one line, also while it is imported."""
    try:
        from steppe.cli.main import main as run

        code = run()
    except KeyboardInterrupt:
        print("steppe: stopped", file=sys.stderr)
        return 130
    if code == 130:
        # freeing what a training had takes the interpreter seconds
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
