"""What things cost, measured on this machine: steps, parameters, data, networks, stores, and how cost grows."""

from steppe.bench.data import DataCost, data_cost
from steppe.bench.end_to_end import EndToEndCost, end_to_end_cost
from steppe.bench.methods import StepCost, methods_cost
from steppe.bench.params import ParamsCost, params_cost
from steppe.bench.scaling import Growth, scaling
from steppe.bench.settings import SettingCost, settings_cost
from steppe.bench.store import StoreCost, store_cost
from steppe.bench.training import TrainingCost, models_cost

__all__ = [
    "DataCost",
    "EndToEndCost",
    "Growth",
    "ParamsCost",
    "SettingCost",
    "StepCost",
    "StoreCost",
    "TrainingCost",
    "data_cost",
    "end_to_end_cost",
    "methods_cost",
    "models_cost",
    "params_cost",
    "scaling",
    "settings_cost",
    "store_cost",
]
