"""Where the runs of a comparison are trained: on this machine, on a Ray cluster, or by Slurm."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steppe.config import parse_spec
from steppe.errors import unknown
from steppe.experiments.launchers.cluster import Cluster, launch_on_cluster
from steppe.experiments.launchers.local import launch
from steppe.experiments.launchers.ray import RayCluster
from steppe.experiments.launchers.slurm import SlurmCluster
from steppe.experiments.run_lock import J, Listen

NAMES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Launcher:
    """A launcher by name and with its settings: 'local', 'ray:gpus=0.5', 'slurm:partition=gpu,time=240'.

    It is no part of what a run is: the same runs, folders and results come of each.
    """

    name: str = "local"
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, spec: str) -> Launcher:
        """Return the launcher that ``spec`` names; raises InputError for an unknown name or setting."""
        name, settings = parse_spec(spec, "launcher")
        if name not in NAMES:
            raise unknown("launcher", name, NAMES)
        known = list(inspect.signature(RayCluster).parameters) if name == "ray" else []
        for key in settings:
            if name != "slurm" and key not in known:
                raise unknown(f"setting of launcher {name}", key, known)
        return cls(name, settings)

    def cluster(self, out: Path) -> Cluster | None:
        """Return the cluster that this means, None for this machine; a log of each worker goes below ``out``.

        Raises InputError if the cluster's package or commands are missing, or a setting is not usable.
        """
        if self.name == "local":
            return None
        return RayCluster(**self.settings) if self.name == "ray" else SlurmCluster(out / "slurm", **self.settings)


def run_on(cluster: Cluster | None, jobs: list[J], at_once: int, listen: Listen[J]) -> dict[J, str]:
    """Run all jobs there, at most ``at_once`` of them together; return the errors by job."""
    if cluster is None:
        return launch(jobs, at_once, listen)
    return launch_on_cluster(jobs, at_once, cluster, listen)
