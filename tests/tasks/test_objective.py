"""Losses and metrics against formulas written here, scikit-learn, and the same data in parts."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sk

from steppe.config import user_code
from steppe.core.batch import Batch
from steppe.errors import InputError
from steppe.tasks import losses, meters, objective
from steppe.tasks.metric import ACCURACY, Metric

DRAW = torch.Generator().manual_seed(0)


def goal(task, *, loss="", metric="", outputs=3, y=None, unit="", smoothing=0.0):
    return objective.make(task, loss, metric, outputs=outputs, unit=unit, y=y, smoothing=smoothing)


def measured(text, task, outputs, output, y, cuts=()):
    """Return a metric, added in batches by several processes."""
    _, make = meters.make(text, task, outputs, "")
    states, edges = [], [0, *cuts, len(output)]
    last = None
    for a, b in pairwise(edges):
        last = make()
        for i in range(a, b, 4):
            last.update(output[i : min(i + 4, b)], y[i : min(i + 4, b)])
        states.append(last.state())
    return last.value(states)


def test_the_mean_of_a_weighted_loss_is_the_mean_over_the_parts_of_a_batch():
    y = torch.tensor([0, 0, 0, 1, 2, 0])
    output = torch.randn(6, 3, generator=DRAW)
    loss = goal("classification", loss="cross-entropy:weight=balanced", y=y).loss
    weight = torch.tensor([6 / (3 * 4), 6 / 3, 6 / 3])
    terms = -output.double().log_softmax(1)[range(6), y] * weight[y]
    assert float(loss(output, y)) == pytest.approx(float(terms.mean()))
    parts = (2 * loss(output[:2], y[:2]) + 4 * loss(output[2:], y[2:])) / 6
    assert float(parts) == pytest.approx(float(terms.mean()))
    assert torch.allclose(loss(output, y, reduction="none").double(), terms)


def test_a_batch_of_padded_tokens_weighs_by_its_tokens():
    y = torch.tensor([[1, 0, -100, -100], [2, 1, 0, 2]])
    output = torch.randn(2, 4, 3, generator=DRAW)
    one = goal("token classification", y=y)
    assert one.weigh(Batch(output, y)) == 6 and not one.counts_hits
    chosen = y != -100
    expected = F.cross_entropy(output[chosen], y[chosen])
    assert torch.allclose(one.loss(output, y), expected)
    weights = [one.weigh(Batch(output[i : i + 1], y[i : i + 1])) for i in (0, 1)]
    halves = sum(w * one.loss(output[i : i + 1], y[i : i + 1]) for i, w in enumerate(weights)) / 6
    assert torch.allclose(halves, expected)
    assert goal("token classification", y=y.clamp(min=0)).weigh is len


def test_the_column_of_a_regression_is_compared_with_the_row_of_its_targets():
    y, output = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([[1.0], [0.0], [1.0]])
    one = goal("regression", outputs=1, y=y, unit="m")
    assert float(one.loss(output, y)) == pytest.approx((0 + 4 + 9) / 3)
    assert one.metric == Metric("RMSE", "m", higher=False, percent=False)
    assert measured("rmse", "regression", 1, output, y) == pytest.approx((13 / 3) ** 0.5)
    assert measured("mae", "regression", 1, output, y) == pytest.approx(5 / 3)
    with pytest.raises(InputError, match="return one number for each"):
        one.loss(torch.randn(3, 2), y)


@pytest.mark.parametrize("cuts", [(), (9,), (5, 20)], ids=["one process", "two", "three"])
def test_metrics_are_those_of_scikit_learn_on_any_number_of_processes(cuts):
    y = torch.randint(3, (30,), generator=DRAW)
    output = torch.randn(30, 3, generator=DRAW) + F.one_hot(y, 3)
    chosen, p = output.argmax(1).numpy(), output.softmax(1).numpy()
    expected = {
        "accuracy": sk.accuracy_score(y, chosen),
        "macro-f1": sk.f1_score(y, chosen, average="macro"),
        "balanced-accuracy": sk.balanced_accuracy_score(y, chosen),
        "mean-iou": sk.jaccard_score(y, chosen, average="macro"),
        "kappa": sk.cohen_kappa_score(y, chosen, weights="quadratic"),
        "auroc": sk.roc_auc_score(y, p, multi_class="ovr"),
    }
    for name, value in expected.items():
        assert measured(name, "classification", 3, output, y, cuts) == pytest.approx(value, abs=1e-6), name
    assert measured("top-5", "classification", 3, output, y, cuts) == 1
    many, of_many = torch.randn(30, 8, generator=DRAW), torch.randint(8, (30,), generator=DRAW)
    share = sk.top_k_accuracy_score(of_many, many, k=5, labels=range(8))
    assert 0.3 < share < 0.9
    assert measured("top-5", "classification", 8, many, of_many, cuts) == pytest.approx(share)
    numbers, target = output[:, 0], output[:, 1] + output[:, 0]
    r2 = measured("r2", "regression", 1, numbers[:, None], target, cuts)
    assert r2 == pytest.approx(sk.r2_score(target, numbers), abs=1e-5)
    spearman = [np.argsort(np.argsort(t.numpy())) for t in (numbers, target)]
    value = measured("spearman", "regression", 1, numbers[:, None], target, cuts)
    assert value == pytest.approx(np.corrcoef(*spearman)[0, 1], abs=1e-5)


def test_labels_are_decided_at_one_half_and_text_is_measured_by_perplexity():
    y = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    output = torch.tensor([[0.3, -2.0], [-0.1, 0.2], [0.4, 0.9]])
    expected = sk.f1_score(y, (output > 0).int(), average="macro")
    assert measured("macro-f1", "multi-label", 2, output, y) == pytest.approx(expected)
    assert goal("multi-label", outputs=2, y=y).metric.name == "macro F1"
    tokens, logits = torch.tensor([[0, 2, -100]]), torch.randn(1, 3, 4, generator=DRAW)
    nats = -logits.double().log_softmax(2)[0, [0, 1], [0, 2]].mean()
    value = measured("perplexity", "language modelling", 4, logits, tokens)
    assert value == pytest.approx(float(nats.exp()), rel=1e-6)


def test_the_direction_of_a_users_metric_is_known_or_refused():
    def distance(output, y):
        return (output - y).abs().max()

    with user_code.registered({("metric", "mine:distance"): distance}):
        with pytest.raises(InputError, match="no direction; write mine:distance:lower or mine:distance:higher"):
            meters.make("mine:distance", "regression", 1, "")
        metric, make = meters.make("mine:distance:lower", "regression", 1, "")
        assert metric == Metric("distance", higher=False, percent=False)
        one = make()
        one.update(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 1.0]))
        assert one.value([one.state()]) == 4
    with pytest.raises(InputError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        meters.make("acuracy", "classification", 3, "")
    with pytest.raises(InputError, match="metric is 'mean-iou', of classes, and"):
        meters.make("mean-iou", "regression", 1, "")


def test_a_torchmetrics_object_brings_its_direction_and_scale():
    torchmetrics = pytest.importorskip("torchmetrics")
    objects = {
        ("metric", "m:f1"): torchmetrics.classification.MulticlassF1Score(3),
        ("metric", "m:mae"): torchmetrics.MeanAbsoluteError(),
    }
    with user_code.registered(objects):
        assert meters.make("m:f1", "classification", 3, "m")[0] == Metric("f1 score", "", True, True)
        assert meters.make("m:mae", "regression", 1, "m")[0] == Metric("mean absolute error", "m", False, False)


def test_the_default_of_classes_is_what_it_was():
    y = torch.tensor([0, 1])
    one = goal("classification", y=y)
    assert one.loss is F.cross_entropy and one.metric == ACCURACY and one.counts_hits and one.weigh is len
    assert goal("classification", y=y, smoothing=0.1).loss.keywords == {"label_smoothing": 0.1}
    assert losses.default("segmentation") == "cross-entropy" and meters.default("segmentation") == "mean-iou"


def test_kappa_of_ordinal_ranks_is_that_of_the_outputs_rounded_within_their_range():
    rng = np.random.default_rng(0)
    y = rng.integers(2, 7, 60)
    output = y + rng.normal(0, 1.5, 60)
    expected = sk.cohen_kappa_score(y, output.round().clip(2, 6).astype(int), weights="quadratic")
    _, new_meter = meters.make("kappa", "ordinal", 1, "")
    meter = new_meter()
    for part in (slice(0, 25), slice(25, 60)):
        meter.update(torch.from_numpy(output[part])[:, None], torch.from_numpy(y[part]))
    assert meter.value([meter.state()]) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InputError, match="metric is 'kappa', of classes, and the task is regression; choose rmse"):
        meters.make("kappa", "regression", 1, "")
