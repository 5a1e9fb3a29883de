"""Settings of the optimizer and the loss, compared with a training loop written by hand in float64."""

import math
from dataclasses import fields, replace

import pytest
import torch
from support.tiny_steppe import tiny
from torch import Tensor, nn

from steppe import InputError, ModelLoss, models
from steppe.config import Data, Optim, Run, user_code
from steppe.core.batch import Batch
from steppe.core.step_state import BindOptions
from steppe.training.evaluation import to_model_format
from steppe.training.factories import bind_options, make_objective
from steppe.training.run import load_data
from steppe.training.trainer import Trainer

OPTIM = Optim(
    name="sgd", lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.01, warmup=0.4, warmup_lr=0.05, min_lr=0.02,
    label_smoothing=0.1,
)  # fmt: skip


def smoothed(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy to targets of which a tenth is spread over all classes."""
    logp = logits - logits.exp().sum(1, keepdim=True).log()
    target = y if y.ndim == 2 else torch.eye(10, dtype=logits.dtype)[y]
    return -((0.9 * target + 0.1 / 10) * logp).sum(1).mean()


@pytest.mark.parametrize("classes", [100, 101])
def test_of_more_than_100_classes_the_best_five_are_counted_too(classes, tmp_path):
    run = Run(model="mlp-8x1", data=Data(train=60, test=60, size=8), threads=1)
    images = load_data(run)
    test = replace(images.test, y=torch.arange(60))
    images = replace(images, test=test, classes=tuple(map(str, range(classes))), outputs=classes)
    trainer = Trainer(run, tmp_path, images)
    value = trainer._evaluate(images.test)
    batch = to_model_format(Batch(images.test.x.float() / 255, images.test.y), next(trainer.net.parameters()))
    with torch.no_grad():
        order = trainer.net.eval()(batch.x).argsort(1, descending=True)
    hits = [int(y) in row[:5].tolist() for y, row in zip(batch.y, order, strict=True)]
    assert value.get("top-5") == (None if classes == 100 else pytest.approx(sum(hits) / len(hits)))
    assert 0 < sum(hits) < len(hits)


@pytest.mark.parametrize("augment", [(), ("cutmix",)])
def test_training_follows_its_settings(augment, tmp_path, monkeypatch):
    """Two epochs of nesterov momentum, warm-up, a cosine to a floor and smoothed labels, mixed ones too."""
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    data = Data(train=40, test=10, size=8, augment=augment)
    run = Run(model="tiny", epochs=2, batch=10, data=data, optim=OPTIM, precision="fp64")
    with torch.random.fork_rng():
        trainer = Trainer(run, tmp_path, load_data(run))
        net = tiny(10, 1, 8).double()
        net.load_state_dict(trainer.net.state_dict())
        trainer.train(lambda _: None)
    w = [*net.parameters()]
    velocity: list[Tensor] = []
    for step, batch in enumerate(b for epoch in (1, 2) for b in trainer.loader.epoch(epoch)):
        share = step / 8
        rate = 0.02 + 0.18 * (1 + math.cos(math.pi * share)) / 2
        if share < 0.4:
            rate = 0.05 + 0.15 * share / 0.4
        batch = to_model_format(batch, w[0])
        g = torch.autograd.grad(smoothed(net(batch.x), batch.y), w)
        with torch.no_grad():
            slope = [a + 0.01 * p for a, p in zip(g, w, strict=True)]
            velocity = [0.9 * v + s for v, s in zip(velocity, slope, strict=True)] if velocity else slope
            for p, s, v in zip(w, slope, velocity, strict=True):
                p -= rate * (s + 0.9 * v)
    for p, q in zip(w, trainer.net.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12)


def test_without_smoothing_the_loss_is_cross_entropy_itself():
    run = Run()
    assert make_objective(run, load_data(run)).loss is nn.functional.cross_entropy


def test_accuracy_and_loss_of_an_epoch_are_those_of_the_clean_pass(tmp_path, monkeypatch):
    """RWP with two batches outputs the logits of its first half; at rate 0 the network stays the initial one."""
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    data = Data(train=45, test=10, size=8, augment=())
    run = Run(model="tiny", method="rwp:batches=2", epochs=1, batch=10, data=data, optim=Optim(lr=0.0))
    with torch.random.fork_rng():
        trainer = Trainer(run, tmp_path, load_data(run))
        means = trainer._train_epoch(lambda _: None, 0.0, 0.0)
    trainer.net.eval()
    halves = [b.halves()[0] for b in trainer.loader.epoch(trainer.epoch)]
    x, y = torch.cat([b.x for b in halves]), torch.cat([b.y for b in halves])
    logits = trainer.net(x).detach()
    assert means["train_accuracy"] == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    assert means["train_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)


def test_every_option_of_bind_that_a_configuration_has_is_passed_on():
    optim = Optim(clip=1.0, clip_each=True)
    run = Run(precision="bf16", microbatch=4, m=8, seed=3, optim=optim)
    options = bind_options(run)
    names = {f.name for f in fields(BindOptions)} - {"loss"}  # a text in a configuration
    computed = {"decay_start"}  # from the schedule
    assert options.keys() == names & {f.name for part in (Run, Optim) for f in fields(part)} | computed
    assert options == {
        "clip": 1.0, "clip_each": True, "precision": "bf16", "microbatch": 4, "m": 8, "sync": "local", "seed": 3,
        "graph": False,
        "decay_start": None,
    }  # fmt: skip
    assert bind_options(Run(optim=Optim(schedule="wsd", decay_share=0.25)))["decay_start"] == 0.75


@pytest.mark.parametrize(("tta", "weights"), [("mirror", {0: 1.0}), ("mirror-shift", {0: 0.5, -1: 0.25, 1: 0.25})])
def test_mean_logits_over_views_of_an_image_are_evaluated(tta, weights, tmp_path, monkeypatch):
    """Views by index: pixel (i + s, j + s), reflected at the border, and its mirror image."""
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    data = Data(train=40, test=40, size=8, augment=(), tta=tta)
    run = Run(model="tiny", epochs=1, batch=10, data=data, precision="fp64", optim=Optim(lr=0.01))
    with torch.random.fork_rng():
        trainer = Trainer(run, tmp_path, load_data(run))
        trainer.train(lambda _: None)
        test = trainer._evaluate(trainer.images.test)
    x, y = trainer.images.test.x.double() / 255, trainer.images.test.y
    mean = torch.zeros(40, 10, dtype=torch.float64)
    for shift, weight in weights.items():
        place = [min(abs(i + shift), 14 - abs(i + shift)) for i in range(8)]
        view = x[:, :, place][:, :, :, place]
        for one in (view, view.flip(3)):
            mean += weight / 2 * trainer.net(one).detach()
    alone = trainer.net(x).detach()
    for logits, result in ((mean, test), (alone, test["outputs"]["one view"])):
        assert result["accuracy"] == pytest.approx(float((logits.argmax(1) == y).double().mean()))
        assert result["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-6)
    assert test["loss"] != test["outputs"]["one view"]["loss"]
    assert run.digest() != Run(**vars(run) | {"data": Data(train=40, test=40, size=8, augment=())}).digest()
    own = {("loss", "own:loss"): ModelLoss(lambda model, x, y: model(x).mean())}
    for loss in ("model", "own:loss"):
        refused = pytest.raises(InputError, match="data.tta is 'mirror.*' and the loss is the network's own")
        with refused, user_code.registered(own):
            make_objective(replace(run, loss=loss), trainer.images)
