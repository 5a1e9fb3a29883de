"""Launchers: train runs on this machine, on a Ray cluster, or by Slurm."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steppe.config import parse_spec
from steppe.errors import unknown
from steppe.experiments.launchers.cluster import Cluster
from steppe.experiments.launchers.ray import RayCluster
from steppe.experiments.launchers.slurm import SlurmCluster

NAMES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Launcher:
    """A launcher by name and settings: 'local', 'ray:gpus=0.5', 'slurm:partition=gpu,time=240'.

    Runs, folders and results do not depend on it.
    """

    name: str = "local"
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, spec: str) -> Launcher:
        """Return the launcher that ``spec`` names; raises InputError for an unknown name or setting."""
        name, settings = parse_spec(spec, "launcher")
        if name not in NAMES:
            raise unknown("launcher", name, NAMES)
        parameters = list(inspect.signature(RayCluster).parameters) if name == "ray" else []
        for key in settings:
            if name != "slurm" and key not in parameters:
                raise unknown(f"setting of launcher {name}", key, parameters)
        return cls(name, settings)

    def cluster(self, out: Path) -> Cluster | None:
        """Return the cluster, None for this machine; Slurm's logs are written below ``out``.

        Raises InputError if the cluster's package or commands are missing, or a setting is not usable.
        """
        if self.name == "local":
            return None
        return RayCluster(**self.settings) if self.name == "ray" else SlurmCluster(out / "slurm", **self.settings)
