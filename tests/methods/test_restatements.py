"""Every method against its restatement in float64, from the papers' equations (`steppe.testing.oracles`)."""

import pytest
import torch

import steppe
from steppe.methods import METHODS
from steppe.testing import OurMethod, fixtures
from steppe.testing.oracles import REFERENCES
from steppe.testing.oracles.harness import DECAY, LR, MOMENTUM, Reference

# larger noise than the papers', so that it matters in every term
STRONG = {"sadt-v1": {"sigma": 0.1}, "sadt-v2": {"sigma": 0.1}, "sadt-v3": {"sigma": 0.1, "ascent": 0.05}}


def test_every_method_is_stated_again():
    assert set(METHODS) <= {restated.name for restated in REFERENCES.values()}


@pytest.mark.parametrize("key", REFERENCES)
def test_five_steps_equal_the_restatement(key: str):
    restated = REFERENCES[key]
    method = steppe.make(restated.name, **restated.settings, **STRONG.get(key, {}))
    net = OurMethod(method).build(lambda: fixtures.small(dtype=torch.float64, dropout=0.0))
    optimizer = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY)
    step, reference = method.bind(net, optimizer, seed=11), Reference(vars(method.resolved), net)
    if key == "sadt-v2 notebook":  # position 7 in this network is the second convolution's bias
        assert list(net.state_dict())[8] == "4.bias"
    reference.noise.set_state(step.runtime.rng.get_state())
    for k in range(5):
        step(fixtures.batch(k, dtype=torch.float64))
        restated.step(reference, *fixtures.data(k, dtype=torch.float64))
    for name, p in net.named_parameters():
        assert torch.allclose(p, reference.w[name], rtol=1e-9, atol=1e-11), name
