"""The papers' tables as a queue of runs, in pieces and on several machines."""

from steppe.experiments.reproduction.archive import MEGABYTES, pack, unpack
from steppe.experiments.reproduction.cost import operations
from steppe.experiments.reproduction.estimates import Estimates
from steppe.experiments.reproduction.queue import PaperTable, Queue, queue

__all__ = ["MEGABYTES", "Estimates", "PaperTable", "Queue", "operations", "pack", "queue", "unpack"]
