"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"
from types import SimpleNamespace

from fsdl_tools.onnx import compare


def test_just_as_far_as_is_allowed_is_not_too_far():
    terms = SimpleNamespace(rtol=.1, least=.9)
    assert not compare._too_far(.1, .9, terms) and not compare._too_far(.05, None, terms)
    assert 'relative difference' in compare._too_far(.11, None, terms) and '89%' in compare._too_far(.05, .89, terms)
