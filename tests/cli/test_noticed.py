"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"
from fsdl_tools.cli import onnx


def test_one_size_is_a_number_and_several_are_a_list():
    assert onnx._sizes(['height=32', 'width=32', 'width=64']) == dict(height=32, width=[32, 64]) and onnx._sizes([]) is None
