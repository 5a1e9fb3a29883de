"""A comparison whose runs were watched while they trained, made once for the tests that look at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from steppe.config import Data, Monitoring, Optim, Study
from steppe.experiments import prepare
from steppe.records import load
from steppe.training import run


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("watched")
    study = Study(
        methods=("sam", "plain", "dml"), seeds=(0,), epochs=3, batch=20, optim=Optim(lr=1e-3),
        data=Data(train=60, val=20, test=20, size=18), watch=Monitoring(weights=2, sharpness=1),
    )  # fmt: skip
    for job in prepare(study, out, "steppe compare").jobs:
        assert run.train_run(job.run, job.folder, run.load_data(job.run))["status"] == "ok"
    return out


@pytest.fixture(scope="session")
def homes(watched: Path) -> dict[str, Path]:
    found = {r.method: watched / "runs" / r.digest for r in load(watched).records}
    return {name: found[name] for name in ("plain", "sam", "dml")}
