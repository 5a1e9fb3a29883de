"""The plan agrees with the steps of the training."""

from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import sgd, small_batch, small_net

import steppe
from steppe import methods
from steppe.config import Optim
from steppe.training.dry_run import describe, phases


def lines(spec: str, total: int = 20, per_epoch: int = 5) -> dict[str, str]:
    return dict(describe(methods.parse(spec), total, per_epoch, lambda share: 0.1 * (1 - share)))


def test_every_part_and_every_scheduled_value_has_a_line():
    assert lines("sam:rho=linear(0,0.2,0.5),start=0.25,every=2+gc:stop=10") == {
        "learning rate": "0.1 at first, 0.055 halfway, 0.005 at last",
        "sam": "steps 7-19, every 2nd (epochs 2-4), 7 in all; the others are plain",
        "  rho": "linear(0,0.2,0.5): 0.12 at first, 0.2 halfway, 0.2 at last",
        "gc": "steps 1-10 (epochs 1-2), 10 in all; the others are plain",
    }
    assert lines("sadt-v2") == {
        "learning rate": "0.1 at first, 0.055 halfway, 0.005 at last",
        "sadt-v2": "steps 1-20 (epochs 1-4)",
    }
    assert lines("sam:start=30")["sam"] == "never: no step of 20 is in its window"
    assert lines("sam:rho=with-lr(1,0.1)")["  rho"] == "with-lr(1,0.1,0,0): 1 at first, 0.55 halfway, 0.05 at last"
    assert lines("sam:spread=0.3,stop=10")["sam"] == (
        "steps 4-10, evenly spread (epochs 1-2), 3 in all; the others are plain"
    )
    assert lines("sam:tail=0.25,rho=ramp(0,0.4,0.5)") | {"learning rate": ""} == {
        "learning rate": "",
        "sam": "steps 16-20 (epoch 4), 5 in all; the others are plain",
        "  rho": "ramp(0,0.4,0.5): 0 at first, 0.32 halfway, 0.4 at last",
    }
    wsd = Optim(lr=0.1, schedule="wsd", decay_share=0.4)
    assert dict(describe(methods.parse("sam:tail=decay"), 20, 5, wsd.lr_at, wsd)) == {
        "learning rate": "wsd: 0.1 at first, 0.1 halfway, 0.0125 at last",
        "  decay": "steps 13-20",
        "sam": "steps 13-20 (epochs 3-4), 8 in all; the others are plain",
    }
    assert lines("sam:start=19")["sam"].startswith("step 20 (epoch 4)")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 6), st.one_of(st.none(), st.integers(7, 12)), st.integers(1, 4))
def test_a_method_is_active_in_the_planned_steps(start, stop, every):
    method = steppe.ActiveWindow(steppe.SAM(), start=start, stop=stop, every=every)
    net = small_net()
    step = method.bind(net, sgd(net), steps=10)
    active = []
    for k in range(10):
        before = step.passes.backward
        step(*small_batch(seed=k))
        if step.passes.backward - before == 2:
            active.append(k + 1)
    (phase,) = phases(method, 10, lambda share: 0.1)
    assert list(range(phase.first, phase.last + 1, phase.every)) == active


def test_a_method_has_its_listed_name_and_an_own_method_its_class_name():
    class Mine(steppe.Method):
        pass

    assert {name: methods.label(steppe.make(name)) for name in methods.names()} == {n: n for n in methods.names()}
    assert methods.label(Mine()) == "Mine"
