"""What a method is, and what it may use besides the functions of `steppe.core.numerics`.

- the contract: `Method` and its `hyper`-parameters, `Cost`, `Batch`, `StepOutput`, `Runtime`, `ScheduleValue`;
- `Perturbing`, the base class of methods that perturb the weights, all or some (``where``);
- `OnlineDistillation`, the base class of methods of several networks;
- what it keeps between steps: `ParamState`, a vector of parameter space; `WeightAverage`, `WindowAverage`,
  `SlowWeights`; `AuxiliaryAdapters`; `ClassCounts`; `LogitBank` (and `logit_bank`, its sizes and forms);
- `steppe.core.method.periods`, of ``every`` in steps or epochs;
- `require` and `InputError`, for what relates several fields; `plain_step`; `with_weights`; `value_at`, a
  schedule's value now;
- `look_ahead` and `preconditioned`, from the optimizer's rule and moments;
- `call_model`, `call_for_logits`, `extract_logits` and `join_logits`, for passes made by hand;
  `upcast_to_float32` and `autocast_disabled`, for mixed precision.
"""

from steppe.core.amp import autocast_disabled, upcast_to_float32
from steppe.core.batch import Batch, join_logits
from steppe.core.method._auxiliary_adapters import AuxiliaryAdapters
from steppe.core.method.contract import (
    Cost,
    Method,
    State,
    make_checked,
    name_of,
    overrides,
    plain_step,
    require,
)
from steppe.core.method.hyperparameters import hyper
from steppe.core.method.online_distillation import OnlineDistillation
from steppe.core.method.optimizer_state import look_ahead, preconditioned
from steppe.core.method.perturbing import Perturbing
from steppe.core.model_call import call_for_logits, call_model, extract_logits, with_weights
from steppe.core.runtime import Runtime, StepOutput
from steppe.core.schedules import ScheduleValue, due, is_moment, value_at
from steppe.core.state import logit_bank
from steppe.core.state._class_counts import ClassCounts
from steppe.core.state.logit_bank import LogitBank
from steppe.core.state.param_state import ParamState
from steppe.core.state.weight_average import SlowWeights, WeightAverage, WindowAverage
from steppe.errors import InputError, unknown

__all__ = [
    "AuxiliaryAdapters",
    "Batch",
    "ClassCounts",
    "Cost",
    "InputError",
    "LogitBank",
    "Method",
    "OnlineDistillation",
    "ParamState",
    "Perturbing",
    "Runtime",
    "ScheduleValue",
    "SlowWeights",
    "State",
    "StepOutput",
    "WeightAverage",
    "WindowAverage",
    "autocast_disabled",
    "call_for_logits",
    "call_model",
    "due",
    "extract_logits",
    "hyper",
    "is_moment",
    "join_logits",
    "logit_bank",
    "look_ahead",
    "make_checked",
    "name_of",
    "overrides",
    "plain_step",
    "preconditioned",
    "require",
    "unknown",
    "upcast_to_float32",
    "value_at",
    "with_weights",
]
