"""The public names of ``steppe``."""

from steppe.core.batch import Batch
from steppe.core.composition import ActiveWindow, On
from steppe.core.method import Method
from steppe.core.runtime import Passes, Runtime, StepOutput
from steppe.core.schedules import Cosine, Linear, Schedule, WithLR
from steppe.core.step import Step
from steppe.errors import InputError, RunError
from steppe.methods import make, names, parse
from steppe.methods.averaging.ema import EMA
from steppe.methods.averaging.swa import SWA
from steppe.methods.baselines.plain import Plain
from steppe.methods.baselines.repeat_step import RepeatStep
from steppe.methods.baselines.two_step import TwoStep
from steppe.methods.gradients.agc import AGC
from steppe.methods.gradients.gc import GC
from steppe.methods.online_distillation.dml import DML
from steppe.methods.online_distillation.dml_alternating import AlternatingDML
from steppe.methods.online_distillation.ffl import FFL
from steppe.methods.online_distillation.kdcl import KDCL
from steppe.methods.online_distillation.okddip import OKDDip
from steppe.methods.online_distillation.okdph import OKDPH
from steppe.methods.online_distillation.one import ONE
from steppe.methods.online_distillation.pcl import PCL
from steppe.methods.self_distillation.mesa import MESA
from steppe.methods.self_distillation.sadt import SADT
from steppe.methods.self_distillation.saf import SAF
from steppe.methods.sharpness.asam import ASAM
from steppe.methods.sharpness.esam import ESAM
from steppe.methods.sharpness.friendly_sam import FriendlySAM
from steppe.methods.sharpness.gsam import GSAM
from steppe.methods.sharpness.looksam import LookSAM
from steppe.methods.sharpness.mixed_sam import MixedSAM
from steppe.methods.sharpness.r_sam import RSAM
from steppe.methods.sharpness.random_sam import RandomSAM
from steppe.methods.sharpness.sam import SAM
from steppe.methods.sharpness.wsam import WSAM
from steppe.methods.weight_noise.arwp import ARWP
from steppe.methods.weight_noise.lpf_sgd import LPFSGD
from steppe.methods.weight_noise.rwp import RWP

Out, When = StepOutput, ActiveWindow  # short names for user code

__all__ = [
    "AGC",
    "ARWP",
    "ASAM",
    "DML",
    "EMA",
    "ESAM",
    "FFL",
    "GC",
    "GSAM",
    "KDCL",
    "LPFSGD",
    "MESA",
    "OKDPH",
    "ONE",
    "PCL",
    "RSAM",
    "RWP",
    "SADT",
    "SAF",
    "SAM",
    "SWA",
    "WSAM",
    "ActiveWindow",
    "AlternatingDML",
    "Batch",
    "Cosine",
    "FriendlySAM",
    "InputError",
    "Linear",
    "LookSAM",
    "Method",
    "MixedSAM",
    "OKDDip",
    "On",
    "Out",
    "Passes",
    "Plain",
    "RandomSAM",
    "RepeatStep",
    "RunError",
    "Runtime",
    "Schedule",
    "Step",
    "StepOutput",
    "TwoStep",
    "When",
    "WithLR",
    "make",
    "names",
    "parse",
]
