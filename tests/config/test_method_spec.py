"""The text form of a method: its settings, and specs that are refused."""

import pytest

import steppe
from steppe import InputError, make
from steppe.config import parse_spec
from steppe.core.composition import ActiveWindow
from steppe.methods import METHODS, controls_of, parse


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smm", "unknown method 'smm'; did you mean 'sam'"),
        ("sam:rh=0.1", "unknown setting of sam 'rh'; did you mean 'rho'?"),
        ("sam:rho", "'rho' is not key=value"),
        ("sam:", "ends in a colon"),
        ("sam:rho=abc", "rho is 'abc'; give a number or a schedule"),
        ("sam:rho=true", "rho is True; give a number"),
        ("sam:rho=-1", "rho is -1; give a number of at least 0"),
        ("agc:clipping=0", "clipping is 0"),
        ("sadt-v1:preset=blog", "'paper' or 'notebook'"),
        ("sadt-v1:scope=head", "scope is 'head'"),
        ("sadt-v1:updates=3", "1 or 2"),
    ],
)
def test_specs_that_name_no_method_are_refused_with_the_remedy(spec, message):
    with pytest.raises(InputError, match=message):
        parse(spec)


def test_presets_of_sadt_set_its_fields():
    paper, notebook = make("sadt-v2").resolved, make("sadt-v2", preset="notebook").resolved
    assert (paper.sigma, paper.scope, paper.direction) == (1e-4, "last-conv last-dense", "pre-aux")
    assert (notebook.sigma, notebook.scope, notebook.direction) == (0.1, "last-bias* tensor:7", "aux-pre")
    assert make("sadt-v1", sigma=1e-4).to_dict() == make("sadt-v1").to_dict()
    assert make("sadt-v1", preset="notebook").resolved.scope == "kernels"


def test_values_are_numbers_texts_or_booleans():
    assert parse_spec("agc:clipping=0.02,clip_head=true") == ("agc", {"clipping": 0.02, "clip_head": True})
    assert parse_spec("plain") == ("plain", {})
    assert all(parse(name) is not None for name in METHODS)


@pytest.mark.parametrize(
    ("spec", "controls"),
    [
        ("plain", []),
        ("sam", ["two-step"]),
        ("sam+gc", ["two-step+gc"]),
        ("sam+ema", ["two-step+ema"]),
        ("rwp+ema", ["ema", "two-step+ema"]),
        ("gc+ema", []),
        ("sam:every=5", ["two-step:every=5"]),
        ("rwp:every=5", ["plain", "two-step:every=5"]),
        ("looksam:stop=0.5", ["plain"]),
        ("sam:start=0.5,rho=0.1+gc", ["two-step:start=0.5+gc"]),
        ("sam:tail=0.3", ["sam:rho=0.05,spread=0.3"]),  # in its spelling there
        ("sam:tail=0.3+gc", ["sam:spread=0.3+gc"]),
        ("sam:tail=0.4,every=2", ["sam:spread=0.2"]),
        ("sam:tail=decay,rho=0.1", ["sam:rho=0.1,spread=0.2"]),  # the rate decays in the last fifth
        ("sam:tail=0.2,rho=cosine(0,0.1)", ["sam:rho=cosine(0,0.1),spread=0.2"]),
    ],
)
def test_the_controls_of_a_method_in_some_steps_are_in_as_many(spec, controls):
    method = parse(spec)
    assert controls_of(method, 0.8, [parse("sam:rho=0.05,spread=0.3"), parse("plain")]) == controls
    steps = {
        name: len(window.active_steps(1000, lambda share: 0.1, 0.8))
        for name in (spec, *controls)
        for window in _windows(parse(name))
    }
    assert len(set(steps.values())) <= 1, steps


def _windows(method):
    if isinstance(method, ActiveWindow):
        yield method
    for part in vars(method).values():
        if isinstance(part, steppe.Method):
            yield from _windows(part)
