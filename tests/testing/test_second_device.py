"""Training, diagnosis, export and the checks on a device of its own; see support/second_device.py."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from support.second_device import DEVICE, second_device
from support.tiny_steppe import tiny

from steppe import hardware, models
from steppe.analysis import endpoint_plane, mode_connectivity, suite, trajectories
from steppe.analysis.load_run import load, load_members
from steppe.config import Data, Monitoring, Run
from steppe.diagnostics import corruptions
from steppe.testing import CHECKS, CheckContext, examine
from steppe.testing.resolve import subjects_of
from steppe.training import factories
from steppe.training.export import export
from steppe.training.run import load_data, train_run

# in autocast, over processes, compiled and with checkpoints of torch.save this device has nothing to run
_WITHOUT = {"bf16", "fp16", "overflow", "resume", "ddp-local", "ddp-global", "fsdp2", "one-rank", "compile"}
SUITE = suite.SuiteSettings(
    32, steps=2, m=16, pairs=1, line=3, plane=3, top=1, products=3, probes=2, lanczos=2, trained=32, draws=1,
    halvings=1, bounds=True,
)  # fmt: skip


def test_operations_over_two_devices_fail_as_with_a_gpu():
    """The device is one: what a GPU refuses is refused, what it takes is taken."""
    with second_device() as mode:
        a, b = torch.ones(3, device=DEVICE), torch.ones(3)
        with pytest.raises(RuntimeError, match="two devices"):
            a + b
        with pytest.raises(RuntimeError, match="two devices"):
            b[torch.zeros(1, dtype=torch.long, device=DEVICE)]
        with pytest.raises(RuntimeError, match="two devices"):
            torch.equal(a, b)
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device=DEVICE, generator=torch.Generator())
        with pytest.raises(RuntimeError):
            a.numpy()
        assert (a * torch.tensor(2.0)).cpu().tolist() == [2, 2, 2]
        assert a[torch.tensor([0])].device == b.to(DEVICE).device == DEVICE
        assert b.copy_(a * 3).tolist() == [3, 3, 3] and mode.reads == 0
        assert float(a.sum()) == 3 and mode.reads == 1


# one or two methods of each kind of step and state; `make gpu` checks all on a GPU
KINDS = (
    "plain", "sam", "esam", "looksam", "rwp", "sadt-v2", "saf", "mesa", "ema", "averages", "dml", "pcl", "okdph",
    "focal-sam", "sampa", "bi-lora",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_checks_of_a_method_hold_on_a_second_device(name: str) -> None:
    (subject,) = subjects_of([name])
    with second_device(), torch.random.fork_rng(devices=[]), CheckContext(DEVICE.type) as context:
        results = [examine(subject, check, context) for k, check in CHECKS.items() if k not in _WITHOUT]
    assert not [(r.check, r.why) for r in results if r.status == "fail"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sam+ema", "kdcl"])
def test_a_run_is_trained_diagnosed_and_exported_on_a_second_device(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    for name, few in (("STANDARD", ("contrast",)), ("SEVERITIES", (1,)), ("FAMILIES", {"digital": ("contrast",)})):
        for module in (suite, corruptions):
            monkeypatch.setattr(module, name, few)
    monitors = Monitoring(test=True, sharpness=1, weights=1)
    run = Run(
        method=method, model="tiny", epochs=2, batch=32, data=Data(train=64, test=40, size=12), watch=monitors
    )
    images, folder = load_data(run), tmp_path / run.digest()
    resolution = endpoint_plane.Resolution(32, statistics=16, side=3, path=3)
    steps: list[str] = []
    # batches that are made on a device have tests of their own
    monkeypatch.setattr(factories, "data_device", lambda: torch.device("cpu"))
    with second_device():
        assert train_run(run, folder, images)["status"] == "ok"
        trained = load(folder, "best", images)
        assert all(t.device == DEVICE for t in trained.model.state_dict().values())
        result = suite.run_suite(trained, images.val, SUITE, suite.CorruptedImages(), steps.append)
        states = {
            "start": trained.start,
            "end": trained.model.state_dict(),
            **load_members(folder, "last", images),
        }
        mode_connectivity.losses_between(states, trained, images.val.part(slice(0, 16)), resolution, steps.append)
        trajectories.trajectories({method: folder}, trained, images.val, resolution, steps.append)
    assert result["sharpness"]["sam"] > 0 and len(steps) > 8
    with mock.patch.object(hardware, "device", return_value=DEVICE):
        assert export(folder, tmp_path / "flat")["epoch"] in (1, 2)
