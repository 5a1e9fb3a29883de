"""The text form of a method: its settings, and specs that are refused."""

import pytest

from steppe import InputError, make
from steppe.config import parse_spec
from steppe.methods import METHODS, parse


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
