"""Several processes: equal to one, without needless messages, and consistent about non-finite values."""

import pytest
import torch
from support.many import (
    accumulated,
    alone,
    farthest,
    labelled,
    messages,
    overlapped,
    partly_labelled,
    refusals,
    replicas,
    sgd,
    shards,
    smooth_net,
    spoiled,
    statistics,
    statistics_of_mean,
    together,
    unsupported,
    values,
    weighed,
)
from support.many import unused as unused_layers
from torch import nn

import steppe

CLOSE = 1e-6
EVEN, UNEVEN = (6, 6), (8, 4)

# what the conformance suite does not have: clipping, combinations, schedules, groups, windows, micro-batches
GLOBAL = [
    ("sam", {"clip": 0.5}),
    ("sam:rho=0.3+gc", {}),
    ("sam+agc", {}),
    ("sam:rho=linear(0,0.5,4)", {}),
    ("sam:rho=0.3", {"group_rho": 0.0}),
    ("sam:start=2+agc", {"microbatch": 2}),
]


@pytest.fixture(scope="module")
def by_one() -> list:
    return [alone(spec, options.get("group_rho"), clip=options.get("clip")) for spec, options in GLOBAL]


def same(a: list, b: list) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize("sizes", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("kind", [replicas, shards])
def test_replicas_with_a_common_perturbation_and_shards_are_one_process(kind, sizes, by_one):
    cases = [(spec, options | ({"sync": "global"} if kind is replicas else {})) for spec, options in GLOBAL]
    if kind is shards and sizes == UNEVEN:  # a sharded model needs equally many micro-batches on each process
        cases[-1][1].pop("microbatch")
    first, second = together(2, kind, sizes, cases)
    for (spec, _), a, b, one in zip(GLOBAL, first, second, by_one, strict=True):
        assert same(a, b), spec
        assert farthest(a, one) <= CLOSE, spec


def test_replicas_with_their_own_perturbations_are_m_sharpness_or_draw_their_own_noise():
    """Per replica is m = the replica's samples, and an explicit m does not know how many replicas there are."""
    cases = [
        ("sam:rho=0.5", {}),
        ("sam:rho=0.5", {"sync": "local", "clip": 0.3}),
        ("sam:rho=0.5", {"m": 3}),
        ("sam:rho=0.5", {"m": 2, "microbatch": 1}),
        ("sam:rho=0.5", {"wrapped": "compiled outside"}),
        ("sam:rho=0.5", {"wrapped": "compiled inside"}),
        ("sam:rho=0.5", {"wrapped": "bucket view"}),
        ("sam:rho=0.5", {"wrapped": "find unused"}),
    ]
    options = [{"m": 6}, {"m": 6, "clip": 0.3}, {"m": 3}, {"m": 2}, *[{"m": 6}] * 4]
    first, second = together(2, replicas, EVEN, cases)
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        assert same(a, b)
        assert farthest(a, alone("sam:rho=0.5", **options[k])) <= CLOSE
    assert farthest(first[0], alone("sam:rho=0.5")) > 1e-3  # what it is not
    cases = [("random-sam:rho=0.5", {}), ("random-sam:rho=0.5", {"sync": "global"})]
    first, second = together(2, replicas, EVEN, cases)
    assert same(first[0], second[0])
    one = alone("random-sam:rho=0.5")
    assert farthest(first[1], one) <= CLOSE
    assert farthest(first[0], one) > 1e-4


@pytest.mark.slow
def test_a_group_of_processes_shares_a_perturbation():
    processes = together(4, replicas, (3, 3, 3, 3), [("sam:rho=0.5", {"sync": 2})])
    assert all(same(processes[0][0], other[0]) for other in processes)
    assert farthest(processes[0][0], alone("sam:rho=0.5", m=6)) <= CLOSE


def test_the_first_pass_sends_nothing_when_it_need_not():
    sent = together(2, messages)[0]
    assert sent["plain"] == sent["sam"] == sent["repeat-step"] == ["all_reduce"]
    assert sent["sam global"] == sent["sadt-v1"] == ["all_reduce"] * 2  # each is used in common


@pytest.mark.parametrize(
    ("spec", "sizes", "options"),
    [
        ("sam:rho=0.3", UNEVEN, {}),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                ("plain", EVEN, {"precision": "fp16"}),
                ("sam:rho=0.3", UNEVEN, {"sync": "global", "microbatch": 3, "clip": 0.5}),
                ("two-step", EVEN, {"wrapped": "bucket view"}),
                ("looksam:k=2", UNEVEN, {"wrapped": "find unused"}),
                ("gsam", EVEN, {}),
            )
        ),
    ],
)
def test_the_last_pass_averages_its_gradient_during_the_backward_pass(spec, sizes, options):
    first, second = together(2, overlapped, spec, sizes, options)
    for own, other in zip(first, second, strict=True):
        assert same(own["values"], other["values"])
        assert own["skipped"] and other["skipped"]
        assert own["undone"] and other["undone"]
    in_pass, after = first
    assert farthest(in_pass["values"], after["values"]) <= CLOSE
    assert max(after["sent"]) > 1
    if "sam:rho=0.3" not in spec or "sync" not in options:
        # the total weight and the flag; DDP itself sends the gradients
        assert spec in ("gsam", "looksam:k=2") or in_pass["sent"] == [1] * len(in_pass["sent"])
    assert len(in_pass["sent"]) >= len(after["sent"])


CALLS = {"sam": 2, "two-step": 2, "sadt-v1": 1}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_bad_value_on_one_process_skips_the_step_on_all(kind):
    """In half precision and with a common perturbation; the conformance suite has the others.

    In the first pass and in the last of the third step; variant-1 SADT calls the loss in its first only.
    """
    passes = [(spec, 2 * n + last) for spec, n in CALLS.items() for last in {1, n}]
    cases = [(*at, {"precision": "fp16"}) for at in passes]
    if kind == "ddp":
        cases += [(*at, {"sync": "global"}) for at in passes]
    first, second = together(2, spoiled, kind, cases)
    for case, a, b in zip(cases, first, second, strict=True):
        assert a["skipped"] == b["skipped"] == [False, False, True, False], case
        assert a["held"] and b["held"], case
        assert a["scale"] == b["scale"] == (32.0 if case[2].get("precision") == "fp16" else None), case
        if kind == "ddp":
            assert same(a["values"], b["values"]), case


def test_a_layer_that_one_process_does_not_use_is_no_deadlock():
    first, second = together(2, unused_layers)
    assert same(first["values"], second["values"])
    assert not torch.equal(first["values"][2], first["same"][2])  # trained by the one that used it
    assert torch.equal(first["values"][4], first["same"][4])
    assert not first["never"]


def test_weights_that_vary_are_exact_and_keep_no_message_each():
    first, second = together(2, weighed)
    net = smooth_net()
    step = steppe.SAM().bind(net, sgd(net), weigh=labelled)
    for k in range(4):
        x, y = partly_labelled(k)
        step([(x[:8], y[:8]), (x[8:], y[8:])])
    assert same(first["values"], second["values"])
    assert farthest(first["values"], values(net)) <= CLOSE
    assert first["messages"] == second["messages"] == 1


def test_running_statistics_are_the_first_process_s_on_all():
    first, second = together(2, statistics)
    assert same(first, second)
    assert int(first[-1]) == 3


def test_the_statistics_of_a_mean_are_the_first_process_s_on_all():
    first, second = together(2, statistics_of_mean)
    assert same(first, second)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_unequal_micro_batches_on_unequal_processes_are_one_batch(kind):
    first, second = together(2, accumulated, kind)
    assert same(first, second)
    assert farthest(first, alone("sam:rho=0.3")) <= CLOSE


def test_impossible_options_are_refused_on_all_processes():
    for messages_of in together(2, refusals):
        assert "sync is 'local' on a sharded model" in messages_of[0]
        assert "m is 4 on a sharded model" in messages_of[1]
        assert "the processes were given [1, 2] micro-batches" in messages_of[2]
        assert "sync is 3 on 2 processes; give 'local', 'global' or a divisor of 2" in messages_of[3]
        assert "sync is 'all' on 2 processes" in messages_of[4]


def test_a_model_that_is_shared_in_another_way_is_refused():
    for errors in together(2, unsupported):
        assert "use FSDP2, which is fully_shard (in Accelerate fsdp_version: 2)" in errors["FSDP1"]
        assert errors["FSDP1 inside"] == errors["FSDP1"]
        assert "the model has a DistributedDataParallel" in errors["DDP inside"]
        assert "DDP has static_graph" in errors["static graph"]
        assert "DDP has a communication hook" in errors["hook"]


class DeepSpeedEngine(nn.Linear):
    """Has the name of an engine."""


class Pipeline(DeepSpeedEngine):
    """A kind of it."""


def test_wrappers_of_other_libraries_and_several_devices_are_refused():
    for model, message in (
        (DeepSpeedEngine(2, 2), "has a DeepSpeedEngine"),
        (nn.Sequential(Pipeline(2, 2)), "has a DeepSpeedEngine"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")), "the parameters are on cpu, meta"),
    ):
        with pytest.raises(steppe.InputError, match=message):
            steppe.SAM().bind(model, torch.optim.SGD(model.parameters(), 0.1))
    replicated = nn.DataParallel(smooth_net())
    assert len(replicated.device_ids) == 0  # on one device it only calls its module
    steppe.SAM().bind(replicated, torch.optim.SGD(replicated.parameters(), 0.1))
    replicated.device_ids = [0, 1]
    with pytest.raises(steppe.InputError, match="has a DataParallel.*use DistributedDataParallel"):
        steppe.SAM().bind(replicated, torch.optim.SGD(replicated.parameters(), 0.1))
