"""What is asked for: a run's configuration, and text that names a method."""

from steppe.config.run import METHODS, TRACKERS, Data, Optim, Run, Study, Watch, essential, parse_spec

__all__ = ["METHODS", "TRACKERS", "Data", "Optim", "Run", "Study", "Watch", "essential", "parse_spec"]
