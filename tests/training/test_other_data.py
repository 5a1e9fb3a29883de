"""Runs on a table, a text and long-tailed images: what is reported is what the network predicts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steppe.config import Data, Optim, Run
from steppe.data import DataSet
from steppe.data.splits import shot_groups
from steppe.errors import InputError
from steppe.tasks import losses
from steppe.training.run import check_run, load_data
from steppe.training.trainer import Trainer

RUN = Run(epochs=1, batch=64, optim=Optim(name="adamw", lr=0.01), data=Data(augment=("none",)))


def trained(tmp_path: Path, run: Run) -> tuple[Trainer, DataSet]:
    loaded = load_data(run)
    trainer = Trainer(run, tmp_path, loaded)
    trainer.train(lambda status: None)
    trainer.net.eval()
    return trainer, loaded


def test_a_table_s_error_is_in_the_target_s_unit(tmp_path: Path) -> None:
    trainer, loaded = trained(tmp_path, replace(RUN, dataset="diabetes", model="mlp-4x1"))
    assert isinstance(loaded.val.x, torch.Tensor) and loaded.val.y is not None
    with torch.no_grad():
        predicted = trainer.net(loaded.val.x).double() * loaded.target_std[0] + loaded.target_mean[0]
    truth = loaded.val.y.double() * loaded.target_std[0] + loaded.target_mean[0]
    assert float(truth.min()) >= 25 and float(truth.max()) <= 346
    assert trainer.val["metric"] == pytest.approx(float((predicted - truth).square().mean().sqrt()), rel=1e-5)
    assert trainer.val["loss"] * loaded.target_std[0] ** 2 == pytest.approx(trainer.val["metric"] ** 2, rel=1e-4)


def test_a_text_s_perplexity_is_that_of_each_character(tmp_path: Path) -> None:
    data = replace(RUN.data, train=64, val=7, test=2)
    trainer, loaded = trained(tmp_path, replace(RUN, dataset="pydoc-text:length=16", model="gpt-32x1", data=data))
    assert isinstance(loaded.val.x, torch.Tensor) and loaded.val.y is not None
    with torch.no_grad():
        log_probabilities = trainer.net(loaded.val.x).double().log_softmax(-1)
    nats = -log_probabilities.gather(2, loaded.val.y[..., None]).mean()
    assert trainer.val["metric"] == pytest.approx(float(nats.exp()), rel=1e-5)


def test_groups_of_a_long_tail_have_the_accuracies_of_their_classes(tmp_path: Path) -> None:
    data = replace(RUN.data, imbalance=5.0, size=8)
    trainer, loaded = trained(tmp_path, replace(RUN, dataset="digits", model="mlp-32x1", data=data))
    with torch.no_grad():
        hits = trainer.net(loaded.val.x.float() / 255).argmax(1) == loaded.val.y
    groups = shot_groups(loaded.class_counts)
    assert list(groups) == ["many", "medium", "few"]
    for c, accuracy in enumerate(trainer.val["per_class"]):
        assert accuracy == pytest.approx(float(hits[loaded.val.y == c].float().mean()))
    for name, classes in groups.items():
        rows = torch.tensor([int(y) in classes for y in loaded.val.y])
        assert trainer.val["groups"][name] == pytest.approx(float(hits[rows].float().mean()))


@pytest.mark.parametrize(
    ("dataset", "model", "outputs"), [("diabetes", "mlp-4x1", "numbers"), ("wine", "mlp-4x1", "classes")]
)
def test_a_method_gets_what_the_outputs_of_a_task_are(
    tmp_path: Path, dataset: str, model: str, outputs: str
) -> None:
    run = replace(RUN, dataset=dataset, model=model)
    assert Trainer(run, tmp_path, load_data(run)).step.runtime.options.outputs == outputs
    assert [losses.form_of("mine:loss", task) for task in ("multi-label", "ordinal", "segmentation")] == [
        "labels", "numbers", "classes",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "task", "message"),
    [
        ("digits", "regression", "task is 'regression' and that of digits is classification; leave it out"),
        ("digits", "language modelling", "that of digits is classification"),
        ("diabetes", "classification", "that of diabetes is regression"),
        ("table:houses.csv:target=price", "ordinal", "is classification; .* table:houses.csv:task=ordinal"),
    ],
)
def test_a_task_of_other_targets_is_refused_before_training(dataset, task, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("houses.csv").write_text("area,price\n" + "".join(f"{i},{'abc'[i % 3]}\n" for i in range(60)))
    with pytest.raises(InputError, match=message):
        load_data(replace(RUN, dataset=dataset, task=task))
    assert load_data(replace(RUN, dataset="diabetes", task="ordinal")).task == "regression"


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_losses_that_only_augmented_targets_fit_are_refused_before_training(loss):
    run = replace(RUN, dataset="digits", loss=loss, data=Data(augment=("mixup",)), optim=Optim())
    with pytest.raises(InputError, match=r"on validation samples of digits.*or choose cross-entropy, of classes"):
        check_run(run, load_data(run))
