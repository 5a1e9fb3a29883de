"""What is asked for: a run's configuration, and text that names a method."""

from steppe.config.run import DEFAULT_METHODS, TRACKERS, Data, Monitoring, Optim, Run, Study, essential, parse_spec

__all__ = ["DEFAULT_METHODS", "TRACKERS", "Data", "Monitoring", "Optim", "Run", "Study", "essential", "parse_spec"]
