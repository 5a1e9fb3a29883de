"""What must happen before any test module is imported."""

import os
import signal

from support.foreign import declare_operators

# a job begun in the background ignores Ctrl-C, and so would every process that a test starts and interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)

# many tests stop a run at an epoch and expect its checkpoint; epochs of tests are shorter than the usual interval
os.environ["STEPPE_SAVE_SECONDS"] = "0"

declare_operators()
