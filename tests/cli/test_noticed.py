"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

from fsdl_tools.cli import apps, onnx


def test_one_size_is_a_number_and_several_are_a_list():
    assert (
        onnx._sizes(['height=32', 'width=32', 'width=64']) == dict(height=32, width=[32, 64])
        and onnx._sizes([]) is None
    )


def test_the_head_of_a_name_begins_with_its_def_and_ends_with_its_docstring():
    head = apps._head('fsdl_tools/cli/apps.py', '_head').splitlines()
    assert head[0] == 'def _head(' or head[0].startswith('def _head(file, name)')
    assert head[-1].strip().startswith('"The source of a name') and apps._head('fsdl_tools/cli/apps.py', 'nobody') == ''
