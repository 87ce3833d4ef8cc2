"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

import json
import re
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import nn

from fsdl_tools.onnx import compare, decoder, export, graph, run, sources, verify


def test_just_as_far_as_is_allowed_is_not_too_far():
    terms = SimpleNamespace(rtol=0.1, least=0.9)
    assert not compare._too_far(0.1, 0.9, terms) and not compare._too_far(0.05, None, terms)
    assert 'relative difference' in compare._too_far(0.11, None, terms) and '89%' in compare._too_far(0.05, 0.89, terms)


def test_outputs_whose_shapes_change_are_compared_one_by_one():
    terms = compare._Terms('float32', 1e-4, True)
    a = [np.ones((2, 3)), np.arange(8.0).reshape(4, 2)]
    assert verify._first_wrong(a, a, terms)['ok']
    assert not verify._first_wrong(a, [a[0], a[1] + 1], terms)['ok']
    assert not verify._first_wrong([a[0][:1], a[1]], a, terms)['ok']


def test_what_node_is_asked_and_answers(monkeypatch, tmp_path):
    asked = []
    said = SimpleNamespace(returncode=0, stdout='noise\n{"y": 1}\n', stderr='')

    def answered(command, **kw):
        asked.append(
            (command[0], command[-1], json.loads(kw['input']), kw['timeout'], kw['text'], kw['capture_output'])
        )
        return said

    monkeypatch.setattr(run.subprocess, 'run', answered)
    assert run._in_node(tmp_path, 'm.onnx', dict(x=2), 9) == dict(y=1)
    assert asked == [('node', 'm.onnx', dict(x=2), 9, True, True)]
    for stderr, words in (('a\nlast line\n', 'last line'), ('', 'no message'), ('x' * 400, 'x' * 300)):
        said.returncode, said.stderr = 1, stderr
        with pytest.raises(ValueError) as e:
            run._in_node(tmp_path, 'm.onnx', {}, 9)
        assert str(e.value) == f'onnxruntime-web failed: {words}'


def test_what_node_says_is_the_error_and_not_its_version():
    "Node.js ends what it prints with places in programs and with its own version"
    said = 'noise\n\nError: input x is missing\n    at w (file.js:6:4695)\n    at async y\n\nNode.js v20.20.2\n'
    assert run._told_by_node(said) == 'Error: input x is missing'
    assert run._told_by_node('TypeError: a\n  at b') == 'TypeError: a'
    assert run._told_by_node('Node.js v20.20.2') == 'Node.js v20.20.2'


@pytest.mark.parametrize('kind', ['float64', 'bool', 'uint8', 'float16'])
def test_an_input_that_is_not_sent_to_node_is_named(kind):
    with pytest.raises(ValueError, match=f"input 'x' is {kind}; Node.js is sent float32, int64, int32"):
        run._sent('x', np.ones(3, kind))


@pytest.mark.parametrize('axis, rows', [(0, 9), (1, 2), (-1, 2)])
def test_what_is_looked_up_lies_along_the_axis_of_the_table(axis, rows, tmp_path):
    "A Gather along another axis than the first has other numbers of rows, and refuses those beyond"
    shape = '9, n' if axis else 'n, 2'
    text = f"""<ir_version: 10, opset_import: ["": 20]> g (int64[n] ids) => (float[{shape}] y)
    <float[9, 2] table = {{{', '.join('0' * 18)}}}> {{ y = Gather<axis = {axis}>(table, ids) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / 'm.onnx')
    specs = run.specs_of_file(tmp_path / 'm.onnx')
    assert specs[0].high == rows
    for seed in range(5):
        run.infer(run.session(tmp_path / 'm.onnx'), run.random_inputs(specs, seed, n=20))


def test_an_optional_value_that_is_left_out_joins_no_boxes():
    "Outputs and inputs without a name are not one value"
    made = [
        onnx.helper.make_node('LSTM', ['x', 'W', 'R'], ['', 'h'], hidden_size=2),
        onnx.helper.make_node('Clip', ['x', '', 'hi'], ['y']),
    ]
    io = [onnx.helper.make_tensor_value_info(n, 1, [1, 1, 2]) for n in 'xy']
    model = onnx.helper.make_model(onnx.helper.make_graph(made, 'g', io[:1], io[1:]))
    assert [(b.name, [s.name for s in b.sources]) for b in graph._boxes(model)][1:3] == [('n0', ['x']), ('n1', ['x'])]


class Still(nn.Module):
    "A module whose output does not depend on its input until its scale is disturbed"

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(3, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.linear(x) * self.scale


@pytest.mark.parametrize(
    'make, on', [(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()), 'these weights'), (Still, 'a randomised copy')]
)
def test_small_modules_are_exported(make, on, tmp_path):
    module, x, said = make(), torch.randn(4, 3), []
    first = [p.clone() for p in module.parameters()]
    r = export.export(module, tmp_path / 'm.onnx', x, progress=said.append, metadata=dict(k='v'))
    assert (
        (r.verified, r.on, r.opset, r.cures, r.tried) == (True, on, 20, (), ())
        and 0 <= r.max_rel < 1e-4
        and r.seconds > 0
    )
    assert (
        r.parameters == sum(p.numel() for p in module.parameters()) and r.bytes == (tmp_path / 'm.onnx').stat().st_size
    )
    assert [re.sub(r'^.*: ', '', i) for i in (*r.inputs, *r.outputs)] == [
        'float32[batch, 3]',
        f'float32[batch, {len(list(module.parameters())[1])}]',
    ]
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), first, strict=True)) and module.training
    assert said[0] == f'building {type(module).__name__}' and said[1] == 'tracing as it is'
    notes = graph.inspect_onnx(tmp_path / 'm.onnx').metadata
    assert (
        notes['fsdl.k'] == 'v'
        and notes['fsdl.cures'] == '[]'
        and notes['fsdl.weights'] == verify.graph_fingerprint(module)
    )
    if make is Still:
        return
    fixed = export.export(module, tmp_path / 'f.onnx', x, dynamic=False, external=True)
    assert fixed.cures == ('batch fixed at 2',) and [p.name for p in tmp_path.glob('f.onnx.*.data')] == list(
        graph.inspect_onnx(tmp_path / 'f.onnx').external
    )
    with pytest.raises(ValueError, match="unknown axis 'btch'"):
        export.export(module, tmp_path / 'n.onnx', x, sizes=dict(btch=3))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] == 'n') == []


def test_weights_go_beside_where_they_are_many(monkeypatch):
    saved = []
    value = lambda n: SimpleNamespace(const_value=None if n is None else SimpleNamespace(nbytes=n))
    prog = SimpleNamespace(
        model=SimpleNamespace(graph=SimpleNamespace(initializers=dict(a=value(6), b=value(4), c=value(None))))
    )
    prog.save = lambda path, external_data: saved.append((path, external_data))
    for limit, external in ((9, None), (10, None), (9, False), (10, True)):
        monkeypatch.setattr(export, '_inside', limit)
        export._save(prog, 'p', external)
    assert saved == [('p', True), ('p', False), ('p', False), ('p', True)]


def test_a_small_decoder_is_exported(tmp_path):
    config, said = sources.tiny_config('llama', max_position_embeddings=32), []
    r = decoder.export_decoder(config, tmp_path / 'd.onnx', n=4, progress=said.append)
    assert (r.verified, r.source, r.layers, r.tokens, r.opset) == (True, 'llama', 2, 12, 20) and r.distinct > 2
    assert r.cache == ((2, 8), (2, 8)) and 0 < r.max_rel < 1e-4 and r.seconds > 0 and 'parameters' in said[0]
    assert abs(r.bytes - (tmp_path / 'd.onnx').stat().st_size) < 100
    model = decoder.open_decoder(config)
    assert decoder.check_decoder(tmp_path / 'd.onnx', model, 3)['equal']
    twin, other = decoder.open_decoder(config), decoder.open_decoder(config, seed=1)
    assert verify.graph_fingerprint(model) == verify.graph_fingerprint(twin) != verify.graph_fingerprint(other)
    file = decoder.Decoder(tmp_path / 'd.onnx')
    assert [n for n in file.takes if '1' in n] == ['past_key_values.1.key', 'past_key_values.1.value']
    assert file.gives == ['logits', *(f'present.{i}.{k}' for i in (0, 1) for k in ('key', 'value'))]


def test_the_first_channel_off_is_wrong_by_a_part_of_its_own():
    own, wrong = np.array([4.0, 0.1, 4.0, 4.0]), np.array([0.9, 9.0, 1.1, 3.0])  # a quarter of 4 is 1
    assert compare._first_off(own, wrong, 0.5, 0.25) == 2
    assert compare._first_off(own, wrong, 0.5, 0.8) is None and compare._first_off(own, wrong, 0.05, 0.25) == 1
