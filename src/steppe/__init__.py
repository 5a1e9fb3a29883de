"""steppe: train networks into flat minima, with any method in any training loop, and compare them fairly."""

from steppe.batch import Batch
from steppe.combine import On, When
from steppe.errors import InputError, RunError
from steppe.method import Method
from steppe.methods import make, names, parse
from steppe.methods.agc import AGC
from steppe.methods.arwp import ARWP
from steppe.methods.asam import ASAM
from steppe.methods.dml import DML
from steppe.methods.dml_alternating import AlternatingDML
from steppe.methods.ema import EMA
from steppe.methods.esam import ESAM
from steppe.methods.ffl import FFL
from steppe.methods.friendly_sam import FriendlySAM
from steppe.methods.gc import GC
from steppe.methods.gsam import GSAM
from steppe.methods.kdcl import KDCL
from steppe.methods.looksam import LookSAM
from steppe.methods.lpf_sgd import LPFSGD
from steppe.methods.mesa import MESA
from steppe.methods.mixed_sam import MixedSAM
from steppe.methods.okddip import OKDDip
from steppe.methods.okdph import OKDPH
from steppe.methods.one import ONE
from steppe.methods.pcl import PCL
from steppe.methods.plain import Plain
from steppe.methods.r_sam import RSAM
from steppe.methods.random_sam import RandomSAM
from steppe.methods.repeat_step import RepeatStep
from steppe.methods.rwp import RWP
from steppe.methods.sadt import SADT
from steppe.methods.saf import SAF
from steppe.methods.sam import SAM
from steppe.methods.swa import SWA
from steppe.methods.two_step import TwoStep
from steppe.methods.wsam import WSAM
from steppe.runtime import Out, Passes, Runtime
from steppe.schedule import Cosine, Linear, Schedule, WithLR
from steppe.step import Step

__version__ = "0.1.0"

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
    "TwoStep",
    "When",
    "WithLR",
    "make",
    "names",
    "parse",
]
