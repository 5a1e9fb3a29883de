"""What must happen before any test module is imported."""

import signal

from support.foreign import declare_operators

# a job begun in the background ignores Ctrl-C, and so would every process that a test starts and interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)

declare_operators()
