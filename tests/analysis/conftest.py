"""A comparison whose runs were monitored during training, shared by the tests of this folder."""

from pathlib import Path

import pytest

from steppe.config import Data, Monitoring, Optim, Study
from steppe.experiments import prepare
from steppe.records import load
from steppe.training import run


def train(out: Path, *methods: str) -> dict[str, Path]:
    """Train one run per method and return the runs' folders by method."""
    study = Study(
        methods=methods, seeds=(0,), epochs=3, batch=20, optim=Optim(lr=1e-3),
        data=Data(train=60, val=20, test=20, size=18), watch=Monitoring(weights=2, sharpness=1),
    )  # fmt: skip
    for job in prepare(study, out, "steppe compare").jobs:
        assert run.train_run(job.run, job.folder, run.load_data(job.run))["status"] == "ok"
    folders = {r.method: out / "runs" / r.digest for r in load(out).records}
    return {method: folders[method] for method in methods}


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train(tmp_path_factory.mktemp("comparison"), "plain", "sam", "dml")


@pytest.fixture(scope="session")
def comparison(homes: dict[str, Path]) -> Path:
    return homes["plain"].parents[1]
