"""steppe: train networks into flat minima, with any method in any training loop, and compare them fairly."""

from steppe.batch import Batch
from steppe.combine import On, When
from steppe.errors import InputError, RunError
from steppe.method import Method
from steppe.methods import make, names
from steppe.methods.agc import AGC
from steppe.methods.gc import GC
from steppe.methods.plain import Plain
from steppe.methods.random_sam import RandomSAM
from steppe.methods.repeat_step import RepeatStep
from steppe.methods.sadt import SADT
from steppe.methods.sam import SAM
from steppe.methods.two_step import TwoStep
from steppe.runtime import Out, Passes, Runtime
from steppe.schedule import Cosine, Linear, Schedule, WithLR
from steppe.step import Step

__version__ = "0.1.0"

__all__ = [
    "AGC",
    "GC",
    "SADT",
    "SAM",
    "Batch",
    "Cosine",
    "InputError",
    "Linear",
    "Method",
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
]
