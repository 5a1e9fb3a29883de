"""Configuration of a run and of a comparison, and the text form of a method."""

from steppe.config.data import Data
from steppe.config.dataset_name import parse_dataset, with_path
from steppe.config.demo import demo, demo_text
from steppe.config.fields import field_types, from_dict
from steppe.config.method_spec import as_method, parse_spec
from steppe.config.optim import Optim
from steppe.config.run import DEFAULT_METHODS, TRACKERS, Monitoring, Run, Study, essential
from steppe.config.tuning import TuningBudget

__all__ = [
    "DEFAULT_METHODS", "TRACKERS", "Data", "Monitoring", "Optim", "Run", "Study", "TuningBudget", "as_method",
    "demo", "demo_text", "essential", "field_types", "from_dict", "parse_dataset", "parse_spec", "with_path",
]  # fmt: skip
