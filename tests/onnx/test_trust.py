"""What "verified" must mean: comparisons that cannot be spoiled, names, declared shapes, sizes, formats, large
files, and files from strangers that decide nothing
"""

import json
import logging
import os
import random
import shutil
import stat
import sys
import time
from pathlib import Path
import numpy as np
import onnx
import pytest
from hypothesis import given, settings, strategies as st

torch = pytest.importorskip('torch')
pytest.importorskip('onnxruntime')
from torch import nn
from fsdl_tools.onnx import optimise as optimise_module
from fsdl_tools.onnx.compare import compare_outputs, declared_shapes, pair_outputs
from fsdl_tools.onnx.cures import _flat, _hf_specs, _segments, named_outputs
from fsdl_tools.onnx.sources import open_model, specs_of, tiny_config
from fsdl_tools.onnx.decoder import Decoder, export_decoder, greedy_torch, open_decoder
from fsdl_tools.onnx.export import export, install, staging
from fsdl_tools.onnx.graph import inspect_onnx, read_onnx
from fsdl_tools.onnx.run import InputSpec, infer, random_inputs, session, specs_of_file
from fsdl_tools.onnx.optimise import benchmark, quantise
from fsdl_tools.onnx.verify import torch_runner, verify, verify_runner
from tests.onnx.test_onnx import Net, fsdl, hostile, net_file

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
import onnx_mutations


class Padded(nn.Module):
    "Scores of 64 classes, and one class for padding that never wins"

    def __init__(self, low=-1e9):
        super().__init__()
        self.a, self.low = nn.Linear(6, 65), low

    def forward(self, x):
        padding = torch.zeros(65)
        padding[-1] = self.low
        return self.a(x) + padding


def made(m, path, inputs=None, **kw):
    export(m, path, inputs or dict(x=torch.randn(2, 6)), **kw)
    return path


# Comparison


@pytest.mark.timeout(300)
def test_a_padding_class_hides_nothing(tmp_path):
    torch.manual_seed(0)
    m, other = Padded(), Padded()
    p = made(m, tmp_path / 'a.onnx')  # the masked scores are the only output, and depend on the input
    assert verify(p, m).ok
    v = verify_runner(p, torch_runner(other), specs_of_file(p))
    assert not v.ok and min(r['top1'] for r in v.rows) < 0.5
    assert quantise(p, tmp_path / 'h.onnx', 'fp16').verified  # -1e9 is -65504 there
    low = Padded(-1e8)
    low.a = m.a
    assert 'relative difference' in verify(p, low).reason  # the same weights, another mask


@given(
    st.integers(2, 40),
    st.integers(2, 30),
    st.floats(1e-3, 1e3),
    st.sampled_from([0, -1e4, -1e9, 1e9, -3e38, -np.inf]),
    st.integers(0, 10**6),
)
def test_constant_columns_and_scale_change_no_verdict(inputs, columns, scale, constant, seed):
    """Rounding passes, a hundredth of the spread does not: whatever the unit, whatever stands in columns that say
    nothing
    """
    rng = np.random.default_rng(seed)
    b = scale * rng.standard_normal((inputs, columns))
    rounding = b * (1 + 1e-7 * rng.uniform(-1, 1, b.shape))
    wrong = b.copy()
    k = int(b.std(0, ddof=1).argmax())
    wrong[0, k] += 0.05 * (np.abs(b).max() + b.std(0).max())
    side = np.full((inputs, 1), constant)
    both = lambda x: np.concatenate([side, x], 1)
    assert compare_outputs(rounding, b)['ok'] and compare_outputs(both(rounding), both(b))['ok']
    assert not compare_outputs(wrong, b)['ok'] and not compare_outputs(both(wrong), both(b))['ok']


@pytest.mark.parametrize('constant', [0.0, 5.0, -1e9])
def test_a_constant_that_is_another_is_noticed(constant):
    b = np.random.default_rng(0).standard_normal((8, 5))
    b[:, 2] = constant
    a = b.copy()
    a[:, 2] = constant * 1.1 + 0.1
    assert not compare_outputs(a, b)['ok']


def outlier_file(path, factor):
    """A classifier one input of which is thousands of times as large as the others: one scale for all of them leaves
    nothing of the others
    """
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((32, 64)).astype('f4'), rng.standard_normal((64, 100)).astype('f4')
    w[:, 0] *= factor
    g = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[batch, 32] x) => (float[batch, 100] y) { h = MatMul(x, W) y'
        ' = MatMul(h, V) }'
    )
    v[0] /= factor
    g.graph.initializer.extend([onnx.numpy_helper.from_array(w, 'W'), onnx.numpy_helper.from_array(v, 'V')])
    onnx.save(g, path)
    return path


def test_int8_that_loses_the_answers_is_not_verified(tmp_path):
    x = [{'x': np.random.default_rng(i).standard_normal((64, 32)).astype('f4')} for i in range(2)]
    good = quantise(outlier_file(tmp_path / 'a.onnx', 1), tmp_path / 'b.onnx', feeds=x)
    bad = quantise(outlier_file(tmp_path / 'c.onnx', 3e4), tmp_path / 'd.onnx', feeds=x)
    assert good.verified and good.top1 > 0.5
    assert not bad.verified and bad.top1 < 0.5 and bad.note


# Names


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        return dict(y=self.a(x), h=self.b(x))


@pytest.mark.timeout(300)
def test_outputs_by_name(tmp_path):
    m = Both().eval()
    p = made(m, tmp_path / 'a.onnx')
    f = onnx.load(p)
    turned = onnx.ModelProto()
    turned.CopyFrom(f)
    outs = list(turned.graph.output)[::-1]
    del turned.graph.output[:]
    turned.graph.output.extend(outs)
    onnx.save(turned, tmp_path / 'turned.onnx')
    other = dict(y='h', h='y')
    for n in f.graph.node:
        n.output[:] = [other.get(o, o) for o in n.output]
    onnx.save(f, tmp_path / 'exchanged.onnx')
    assert verify(tmp_path / 'turned.onnx', m).ok and not verify(tmp_path / 'exchanged.onnx', m).ok
    assert verify(tmp_path / 'turned.onnx', p).ok and not verify(tmp_path / 'exchanged.onnx', p).ok
    del f.graph.output[1]
    onnx.save(f, tmp_path / 'one.onnx')
    v = verify(tmp_path / 'one.onnx', m)
    assert not v.ok and 'returns 1 outputs' in v.reason


def test_no_output_is_lost_by_its_name():
    y, h = torch.zeros(1), torch.ones(1)
    flat = _flat({'a': {'b': y}, 'a.b': h, 'x': y, 0: h}, taken={'x'})
    assert list(flat.values()) == [y, h, y, h] and len(flat) == 4 and 'x' not in flat
    from dataclasses import make_dataclass

    assert list(_flat(make_dataclass('Out', ['p', 'q'])(y, [h, None]))) == ['p', 'q.0']

    class Hidden:
        def __init__(self):
            self.t = y

    with pytest.raises(ValueError, match='Hidden'):
        _flat({'a': Hidden()})


def test_one_specification_is_a_list_of_one():
    spec = InputSpec('x', ('batch', 3))
    assert specs_of(spec) == specs_of([spec]) == specs_of((spec,)) == [spec]


@pytest.mark.timeout(300)
def test_names_that_collide_are_exported(tmp_path):
    class Same(nn.Module):
        def forward(self, x):
            return {'a': {'b': x * 2}, 'a.b': x.sin(), 'x': -x}

    r = export(Same(), tmp_path / 'a.onnx', dict(x=torch.randn(2, 3)))
    assert len(r.outputs) == 3 and verify(tmp_path / 'a.onnx', Same()).ok


# Shapes and sizes


@pytest.mark.timeout(300)
def test_declared_shapes_are_true(tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 6, bidirectional=True, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0]

    m = Both().eval()
    p = made(m, tmp_path / 'a.onnx', [InputSpec('x', ('batch', 'time', 4))])
    assert inspect_onnx(p).outputs == ('output: float32[batch, time, 12]',)
    for wrong in ([2, 7, 12], ['batch', 'time', 13], ['time', 'batch', 12], ['batch', 'time'], ['batch', '2*time', 12]):
        f = onnx.load(p)
        f.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info('output', 1, wrong))
        onnx.save(f, tmp_path / 'b.onnx')
        assert not verify(tmp_path / 'b.onnx', m).ok, wrong


def test_expressions_of_sizes():
    f = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[n, t] x) => (float[n, "2*t + 1"] y, float[k, "n // 2"] z,'
        ' float["odd(t)", k] w) { y = Relu(x) z = Relu(x) w = Relu(x) }'
    )
    feed = {'x': np.zeros((4, 3))}
    assert not declared_shapes(f, feed, dict(y=np.zeros((4, 7)), z=np.zeros((9, 2)), w=np.zeros((5, 9))))
    assert set(declared_shapes(f, feed, dict(y=np.zeros((4, 6)), z=np.zeros((9, 3)), w=np.zeros((5, 8))))) == {
        'y',
        'z',
        'w',
    }


@pytest.mark.timeout(300)
def test_sizes_asked_are_sizes_checked(tmp_path):
    class Up(nn.Module):
        "Down by two twice and up again, with a sum across: only multiples of four"

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
            self.c, self.d = nn.ConvTranspose2d(8, 4, 2, 2), nn.ConvTranspose2d(4, 3, 2, 2)

        def forward(self, x):
            h = self.a(x).relu()
            return self.d(self.c(self.b(h).relu()) + h)

    m, specs = Up().eval(), [InputSpec('x', ('batch', 3, 'height', 'width'))]
    r = export(m, tmp_path / 'a.onnx', specs, sizes=dict(height=32, width=48))
    assert 'height, width' in r.inputs[0] and not any('fixed' in c for c in r.cures)
    assert {x['sizes'] for x in r.checked} == {
        f'batch {b}, height {h}, width {w}' for b in (1, 3) for h, w in ((32, 48), (64, 96))
    }
    assert verify(tmp_path / 'a.onnx', m).ok  # the sizes are in the file
    with pytest.raises(ValueError, match="did you mean 'height'"):
        export(m, tmp_path / 'b.onnx', specs, sizes=dict(heigth=32))


def test_the_mode_of_a_module_is_kept(tmp_path):
    m = Net()
    m.train()
    m.b.eval()
    made(m, tmp_path / 'a.onnx', dict(x=torch.randn(2, 8)))
    verify(tmp_path / 'a.onnx', m)
    assert m.training and m.a.training and not m.b.training


# Formats


@pytest.mark.timeout(300)
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_modules_of_other_formats(tmp_path, dtype):
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    m = Net(64).to(kind)
    r = export(m, tmp_path / 'a.onnx', dict(x=torch.randn(2, 8, dtype=kind)))
    assert r.verified and r.inputs == (f'x: {dtype}[batch, 8]',)
    f = onnx.load(tmp_path / 'a.onnx')
    t = next(t for t in f.graph.initializer if len(t.dims) == 2)
    a = onnx.numpy_helper.to_array(t)
    t.CopyFrom(onnx.numpy_helper.from_array((a.astype('float64') * -1).astype(a.dtype), t.name))
    onnx.save(f, tmp_path / 'b.onnx')
    assert not verify(tmp_path / 'b.onnx', m).ok


@pytest.mark.timeout(300)
def test_overflow_is_seen_on_a_cpu(tmp_path):
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.b((self.a(x) * 2.0**17).relu() * 2.0**-17)

    torch.manual_seed(0)
    p = made(Large(), tmp_path / 'a.onnx', dict(x=torch.randn(2, 8)))
    r = quantise(p, tmp_path / 'h.onnx', 'fp16')
    assert not r.verified and 'where float16 ends' in r.note
    v = verify(tmp_path / 'h.onnx', p)
    assert not v.ok and 'where float16 ends' in v.reason


@pytest.mark.timeout(300)
def test_overflow_is_looked_for_at_a_size_that_the_reference_takes(tmp_path):
    "Where the double of a size is too much for both, the file is still compared at the size itself"
    table = np.random.default_rng(0).standard_normal(6).astype('f2')
    m = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float16[batch, time] x) => (float16[batch, time] y) { y = Add(x,'
        ' table) }'
    )
    m.graph.initializer.append(onnx.numpy_helper.from_array(table, 'table'))
    onnx.save(m, tmp_path / 'a.onnx')
    v = verify_runner(
        tmp_path / 'a.onnx',
        lambda feed: dict(y=feed['x'] + table),
        [InputSpec('x', ('batch', 'time'), 'float16')],
        'numpy',
        sizes=dict(time=6),
    )
    assert v.ok and v.note == 'numpy does not take batch 1, time 12; numpy does not take batch 3, time 12'


# Large files


def external_file(path, n=64):
    w = np.random.default_rng(0).standard_normal((n, n)).astype('f4')
    m = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g (float[batch, {n}] x) => (float[batch, {n}] y) {{ h = MatMul(x, W)'
        ' y = Relu(h) }'
    )
    m.graph.initializer.append(onnx.numpy_helper.from_array(w, 'W'))
    onnx.save(m, path, save_as_external_data=True, location='weights.bin', size_threshold=0)
    return path


@pytest.mark.parametrize('limit', [None, 4000])
@pytest.mark.parametrize('kind', ['int8', 'static', 'fp16'])
def test_quantising_files_with_external_data(tmp_path, monkeypatch, kind, limit):
    "Also where the weights are too many for one protobuf: the limit is lowered, not the file enlarged"
    (tmp_path / 'in').mkdir()
    p = external_file(tmp_path / 'in' / 'a.onnx')
    if limit:
        monkeypatch.setattr(optimise_module, '_inside', limit)
    r = quantise(
        p, tmp_path / 'b.onnx', kind, calibration=[random_inputs(specs_of_file(p), seed=i, batch=8) for i in range(4)]
    )
    assert r.verified, r.note
    assert sorted(f.name for f in (tmp_path / 'in').iterdir()) == ['a.onnx', 'weights.bin']
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names == sorted(['b.onnx', 'in', *inspect_onnx(tmp_path / 'b.onnx').external])
    if limit and kind == 'fp16':
        assert inspect_onnx(tmp_path / 'b.onnx').external


@pytest.mark.timeout(300)
def test_what_is_quantised_already_is_refused_and_calibration_is_read(tmp_path):
    x, m = torch.randn(4, 6), nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 8))
    p = made(m, tmp_path / 'a.onnx', dict(input=x), external=True)
    small = {k: tmp_path / f'{k}.onnx' for k in ('int8', 'static', 'fp16')}
    for kind, out in small.items():
        for _ in range(2):
            assert quantise(
                p, out, kind, calibration=dict(input=x)
            ).verified  # over the file of before too, one dict of tensors is calibration data
    for first in small.values():
        for kind in small:
            with pytest.raises(ValueError, match='in fewer bits already'):
                quantise(first, tmp_path / 'c.onnx', kind, calibration=dict(input=x))
    with pytest.raises(TypeError, match='a list of dicts'):
        quantise(p, tmp_path / 'c.onnx', 'static', calibration=[x])
    with pytest.raises(ValueError, match='feeds is empty'):
        quantise(p, tmp_path / 'c.onnx', feeds=[])
    assert (
        quantise(p, p, 'int8').verified and not list(tmp_path.glob('*.data')) and not (tmp_path / 'c.onnx').exists()
    )  # over itself: its data goes with it


def test_logging_and_threads_stay_as_they_were(tmp_path):
    p, before = external_file(tmp_path / 'a.onnx'), torch.get_num_threads()
    logging.disable(logging.CRITICAL)
    try:
        quantise(p, tmp_path / 'b.onnx', 'fp16')
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)
    benchmark(nn.Linear(64, 64), dict(file=p), batches=(1,), threads=(before + 1,), n=2)
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('kind', ['int8', 'static', 'fp16'])
def test_a_file_beyond_two_gigabytes_is_quantised(tmp_path, kind):
    "For real: six matrices of 400 MB each, more than a protobuf can hold"
    if shutil.disk_usage(tmp_path).free < 12 * 2**30:
        pytest.skip('needs 12 GiB of disk')
    n, text = 10_000, 'h0 = MatMul(x, W0) '
    for i in range(1, 6):
        text += f'r{i} = Relu(h{i - 1}) h{i} = MatMul(r{i}, W{i}) '
    (tmp_path / 'in').mkdir()
    m = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g (float[batch, {n}] x) => (float[batch, {n}] y) {{ {text} y ='
        ' Identity(h5) }'
    )
    rng = np.random.default_rng(0)
    with open(tmp_path / 'in' / 'weights.bin', 'wb') as f:
        for i in range(6):
            t = m.graph.initializer.add(
                name=f'W{i}', data_type=onnx.TensorProto.FLOAT, dims=[n, n], data_location=onnx.TensorProto.EXTERNAL
            )
            for k, v in dict(location='weights.bin', offset=str(i * n * n * 4), length=str(n * n * 4)).items():
                t.external_data.add(key=k, value=v)
            f.write((rng.standard_normal((n, n), np.float32) / n**0.5).tobytes())
    onnx.save(m, tmp_path / 'in' / 'a.onnx')
    before = inspect_onnx(tmp_path / 'in' / 'a.onnx').bytes
    r = quantise(
        tmp_path / 'in' / 'a.onnx',
        tmp_path / 'b.onnx',
        kind,
        calibration=[random_inputs(specs_of_file(tmp_path / 'in' / 'a.onnx'), seed=i, batch=4) for i in range(2)],
    )
    assert r.verified and before > 2**31 and r.bytes < 0.6 * before, r.note
    assert sorted(f.name for f in (tmp_path / 'in').iterdir()) == ['a.onnx', 'weights.bin']


@pytest.mark.timeout(300)
def test_the_size_is_said_first(tmp_path, monkeypatch):
    said = []
    with pytest.raises(ValueError, match='set num_hidden_layers=2'):
        monkeypatch.setattr('fsdl_tools.onnx.sources._free_memory', lambda: 2**34)
        export('llama', tmp_path / 'a.onnx', progress=said.append)
    assert any('6,607,343,616 parameters' in s for s in said) and not list(tmp_path.iterdir())
    small = tiny_config('llama').to_dict()
    (tmp_path / 'config.json').write_text(
        json.dumps(small | dict(num_hidden_layers=4, architectures=['LlamaForCausalLM']))
    )
    src = open_model(tmp_path / 'config.json', num_hidden_layers=1)
    assert len(src.module.model.layers) == 1 and type(src.module).__name__ == 'LlamaForCausalLM'


def test_bert_has_segments():
    src = open_model(tiny_config('bert'))
    assert [(s.name, s.high) for s in src.specs] == [('input_ids', 99), ('attention_mask', 2), ('token_type_ids', 2)]
    feed = {k: torch.from_numpy(v) for k, v in random_inputs(src.specs).items()}
    with torch.no_grad():
        a, b = (
            named_outputs(src.module, feed | dict(token_type_ids=t))['last_hidden_state']
            for t in (feed['token_type_ids'], 1 - feed['token_type_ids'])
        )
    assert (a - b).abs().max() > 0.01
    assert (
        'token_type_ids' not in [s.name for s in _hf_specs(open_model(tiny_config('distilbert')).module)]
        and _segments(tiny_config('gpt2')) == 0
    )


# Files from strangers


def replaced(path):
    "Another file is put in the place of `path`"
    with staging(path) as tmp:
        install(external_file(tmp / 'new.onnx'), path)


def test_only_our_data_are_deleted(tmp_path):
    "A file that is replaced names other data as its own: they stay"
    for name in ('diary.txt', 'b.onnx.0123abcd.data', 'a.onnx.0123abcd.data'):
        (tmp_path / name).write_bytes(bytes(64))
    for name in ('diary.txt', 'b.onnx.0123abcd.data'):
        replaced(hostile(tmp_path / 'a.onnx', name))
        assert (tmp_path / name).is_file()
    replaced(hostile(tmp_path / 'a.onnx', 'a.onnx.0123abcd.data'))  # the name that export gives
    assert not (tmp_path / 'a.onnx.0123abcd.data').exists() and (tmp_path / 'weights.bin').is_file()
    assert infer(session(tmp_path / 'a.onnx'), {'x': np.ones((2, 64), 'f4')})['y'].shape == (2, 64)


@pytest.mark.timeout(300)
def test_devices_pipes_and_links_stay(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(OSError, match='a device or a pipe'):
        net_file(tmp_path / 'pipe')
    with pytest.raises(OSError, match='a device or a pipe'):
        net_file('/dev/null')
    assert stat.S_ISFIFO((tmp_path / 'pipe').stat().st_mode) and stat.S_ISCHR(os.stat('/dev/null').st_mode)
    (tmp_path / 'far').mkdir()
    (tmp_path / 'link.onnx').symlink_to(tmp_path / 'far' / 'a.onnx')
    replaced(tmp_path / 'link.onnx')
    assert (tmp_path / 'link.onnx').is_symlink() and inspect_onnx(tmp_path / 'far' / 'a.onnx').external
    assert (
        quantise(tmp_path / 'far' / 'a.onnx', tmp_path / 'link.onnx', 'fp16').verified
        and (tmp_path / 'link.onnx').is_symlink()
    )
    with pytest.raises(ValueError, match='a device or a pipe'):
        read_onnx(tmp_path / 'pipe')
    with pytest.raises(ValueError, match='a device or a pipe'):
        read_onnx('/dev/zero')


def told(path, notes, base=None):
    "A small file that says these things about itself"
    m = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[batch, 3, 32, 32] pixel_values) => (float[batch, 3, 32, 32]'
        ' output) { output = Relu(pixel_values) }'
    )
    for k, v in notes.items():
        m.metadata_props.add(key=f'fsdl.{k}', value=v if isinstance(v, str) else json.dumps(v))
    onnx.save(m, path)
    return path


NOTES = dict(
    pretrained=dict(source='resnet18', pretrained=True),
    hub=dict(source='hf-hub:someone/something'),
    checkpoint=dict(source='someone/something', pretrained=True),
    code=dict(config=dict(model_type='bert', auto_map={'AutoModel': 'evil--code.Model'}), architecture='pipeline'),
    function=dict(source='pipeline'),
    auto=dict(source='AutoModelForCausalLM'),
    architecture=dict(config=dict(model_type='bert', hidden_size=32, num_attention_heads=4), architecture='Trainer'),
    backbone=dict(
        config=dict(model_type='detr', backbone='hf-hub:someone/something', use_timm_backbone=True),
        architecture='DetrModel',
    ),
    no_type=dict(config={}),
    no_json=dict(config='{'),
    list=dict(config=[]),
    nested=dict(config='[' * 5000),
    text_seed=dict(source='test_resnet', seed='x'),
    big_seed=dict(source='test_resnet', seed=10**30),
    inputs=dict(source='test_resnet', inputs='[1]'),
    huge=dict(
        source='test_resnet',
        inputs=[dict(name='pixel_values', shape=[10**9, 10**9], dtype='float32', high=2, mask=False)],
    ),
    negative=dict(
        source='test_resnet', inputs=[dict(name='pixel_values', shape=[-1], dtype='float32', high=2, mask=False)]
    ),
    words=dict(
        source='test_resnet',
        inputs=[dict(name='pixel_values', shape=['batch', 3, 32, 32], dtype='object', high=2, mask=False)],
    ),
    sizes=dict(source='test_resnet', sizes=[3]),
    size=dict(source='test_resnet', sizes=dict(batch=-1)),
    width=dict(config=dict(model_type='bert', hidden_size='x'), architecture='BertModel'),
    null=dict(config=dict(model_type='bert', hidden_size=None), architecture='BertModel'),
    minus=dict(config=dict(model_type='bert', hidden_size=-5), architecture='BertModel'),
    activation=dict(config=dict(model_type='bert', hidden_act='[/x]'), architecture='BertModel'),
    weights=dict(source='test_resnet', weights='[/x]\x1b[31m'),
)


@pytest.fixture
def no_network(monkeypatch):
    "Every attempt to reach anybody is an error that nothing swallows"
    import socket

    class Called(BaseException):
        pass

    def called(*a, **k):
        raise Called(a)

    for name in ('connect', 'connect_ex'):
        monkeypatch.setattr(socket.socket, name, called)
    monkeypatch.setattr(socket, 'getaddrinfo', called)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize('case', NOTES)
def test_a_file_chooses_neither_network_nor_code(tmp_path, no_network, case):
    "One clear sentence, whatever a file says about itself"
    with pytest.raises((ValueError, OSError)) as e:
        verify(told(tmp_path / 'a.onnx', NOTES[case]))
    assert 5 < len(str(e.value)) < 1500


def odd_files(folder):
    "Name -> path of files that are odd in some way"
    parse = onnx.parser.parse_model
    head = '<ir_version: 10, opset_import: ["": 20]> g '
    texts = dict(
        text='(string[batch] x) => (string[batch] y) { y = Identity(x) }',
        sequence='(seq(float[n]) x) => (seq(float[n]) y) { y = Identity(x) }',
        huge='(float[1000000, 1000000] x) => (float[1000000, 1000000] y) { y = Relu(x) }',
        scalar='(float x) => (float y) { y = Relu(x) }',
        seed='(float[seed, specs] x) => (float[seed, specs] y) { y = Relu(x) }',
        none='() => (float[1] y) <float[1] y = {1}> {}',
        complex='(complex64[2] x) => (complex64[2] y) { y = Identity(x) }',
        markup='(float[2] x) => (float[2] "[/x]") { "[/x]" = Relu(x) }',
    )
    out = {}
    for k, t in texts.items():
        try:
            m = parse(head + t)
        except Exception:
            continue
        out[k] = folder / f'{k}.onnx'
        out[k].write_bytes(m.SerializeToString())
    m = parse(head + '(float[2] x) => (float[2] y) { y = Relu(x) }')
    m.graph.input[0].type.tensor_type.elem_type = 99
    out['element'] = folder / 'element.onnx'
    out['element'].write_bytes(m.SerializeToString())
    m = parse('<ir_version: 10, opset_import: ["ai.other": 1]> g (float[2] x) => (float[2] y) { y = ai.other.Relu(x) }')
    out['domain'] = folder / 'domain.onnx'
    out['domain'].write_bytes(m.SerializeToString())
    return out


def test_odd_files_end_in_one_sentence(tmp_path):
    files, answers = odd_files(tmp_path), {}
    assert len(files) > 6
    for name, p in files.items():
        try:
            answers[name] = verify(p, nn.ReLU()).ok
        except (ValueError, OSError) as e:
            answers[name] = str(e)
    assert all(v is True or isinstance(v, str) and 5 < len(v) < 800 for v in answers.values()), answers


def mutated(data, rng):
    "Bytes cut, changed, repeated or exchanged"
    b = bytearray(data)
    how = rng.randrange(5)
    if how == 0:
        return bytes(b[: rng.randrange(len(b))])
    for _ in range(rng.choice([1, 1, 2, 8])):
        i, j = sorted((rng.randrange(len(b)), rng.randrange(len(b))))
        if how == 1:
            b[i] = rng.randrange(256)
        elif how == 2:
            b[i] ^= 1 << rng.randrange(8)
        elif how == 3:
            b[i:i] = b[i : min(j, i + 20)]
        else:
            b[i : min(j, i + 20)] = b''
    return bytes(b)


def fuzzed(folder, rng, n):
    "Verify so many mutated files: how many were refused, how many verified"
    torch.manual_seed(0)
    net, seeds = nn.Sequential(nn.Linear(8, 4), nn.ReLU()), []
    text = (
        '<ir_version: 10, opset_import: ["": 20]> g (float[batch, 8] x) => (float[batch, 4] output) { h = Gemm<transB ='
        ' 1>(x, W, b) output = Relu(h) }'
    )
    m = onnx.parser.parse_model(text)
    m.graph.initializer.extend(
        onnx.numpy_helper.from_array(v.detach().numpy(), k) for k, v in zip('Wb', net[0].parameters())
    )
    for k, v in dict(
        seed='0', inputs=json.dumps([InputSpec('x', ('batch', 8)).to_dict()]), sizes='{"batch": 2}'
    ).items():
        m.metadata_props.add(key=f'fsdl.{k}', value=v)
    whole, counts = m.SerializeToString(), dict(refused=0, verified=0, different=0)
    for _ in range(n):
        seeds.append(rng.randrange(10**9))
        (folder / 'm.onnx').write_bytes(mutated(whole, random.Random(seeds[-1])))
        began = time.process_time()
        try:
            counts['verified' if verify(folder / 'm.onnx', net).ok else 'different'] += 1
        except (ValueError, OSError) as e:
            counts['refused'] += 1
            assert 5 < len(str(e)) < 1500, seeds[-1]
        except BaseException as e:
            raise AssertionError(f'seed {seeds[-1]}: {type(e).__name__}: {e}') from e
        assert time.process_time() - began < 10, f'seed {seeds[-1]} took longer'
    assert [f.name for f in folder.iterdir()] == ['m.onnx']
    return counts


@pytest.mark.timeout(300)
def test_mutated_files(tmp_path, rng):
    counts = fuzzed(tmp_path, rng, 60)
    assert counts['refused'] > 10 and sum(counts.values()) == 60, counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_mutated_files(tmp_path, rng):
    assert sum(fuzzed(tmp_path, rng, 2000).values()) == 2000


@pytest.mark.timeout(300)
def test_text_from_a_file_is_printed_as_text(tmp_path):
    p = told(tmp_path / 'a.onnx', NOTES['weights'])
    r = fsdl('verify', p, cwd=tmp_path)
    assert (
        r.returncode == 2
        and 'Traceback' not in r.stderr
        and '\x1b' not in r.stdout + r.stderr
        and r.stderr.count('\n') == 1
    ), r.stderr
    m = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[batch, 2] x) => (float[batch, 2] y) { y = Relu(x) }'
    )
    m.graph.output[0].name = m.graph.node[0].output[0] = '[/red]\x1b[31m'
    onnx.save(m, tmp_path / 'b.onnx')
    r = fsdl('verify', 'b.onnx', '--against', 'b.onnx', cwd=tmp_path)
    assert r.returncode == 0 and 'Traceback' not in r.stderr and '[/red]' in r.stdout and '\x1b' not in r.stdout, (
        r.stdout + r.stderr
    )


# Over random modules


class Random(nn.Module):
    "Layers drawn by chance; outputs are a tensor, a tuple or a dict in some order"

    def __init__(self, width, layers, form, dtype):
        super().__init__()
        self.layers, self.form = nn.ModuleList(), form
        for kind in layers:
            self.layers.append(
                dict(
                    linear=lambda: nn.Linear(width, width),
                    norm=lambda: nn.LayerNorm(width),
                    relu=nn.ReLU,
                    gelu=nn.GELU,
                    tanh=nn.Tanh,
                    softmax=lambda: nn.Softmax(-1),
                )[kind]()
            )
        self.head = nn.Linear(width, 3)
        self.to(dtype)

    def forward(self, x):
        h = x
        for l in self.layers:
            h = h + l(h)
        y = self.head(h)
        return {
            'tensor': lambda: y,
            'tuple': lambda: (y, h),
            'dict': lambda: dict(y=y, h=h),
            'turned': lambda: dict(h=h, y=y),
            'nested': lambda: dict(a=dict(b=y), **{'a.b': h}),
            'list': lambda: [h, dict(y=y)],
        }[self.form]()


MODULES = st.fixed_dictionaries(
    dict(
        width=st.integers(2, 9),
        layers=st.lists(st.sampled_from(['linear', 'norm', 'relu', 'gelu', 'tanh', 'softmax']), max_size=5),
        form=st.sampled_from(['tensor', 'tuple', 'dict', 'turned', 'nested', 'list']),
    )
)


def check_random(folder, drawn, dtype, time, seed):
    "Exported and verified; not verified against other weights"
    (folder / 'a.onnx').unlink(missing_ok=True)
    torch.manual_seed(seed)
    kind = getattr(torch, dtype)
    a, b = (Random(**drawn, dtype=kind).eval() for _ in range(2))
    spec = InputSpec('x', ('batch', 'time', drawn['width']) if time else ('batch', drawn['width']), dtype)
    if dtype == 'float64' and 'gelu' in drawn['layers']:  # no kernel for it: refused, and said what helps
        with pytest.raises(ValueError, match=r'no Erf in float64 on a CPU: export model.float\(\) instead'):
            export(a, folder / 'a.onnx', [spec])
        assert not (folder / 'a.onnx').exists()
        return
    r = export(a, folder / 'a.onnx', [spec])
    assert r.verified and r.cures == () and len(r.outputs) == (1 if drawn['form'] == 'tensor' else 2)
    assert not verify_runner(folder / 'a.onnx', torch_runner(b), [spec]).ok
    feed = random_inputs([spec], seed=77, batch=4)
    got, ref = infer(session(folder / 'a.onnx'), feed) if dtype != 'bfloat16' else None, torch_runner(a)(feed)
    if got:
        assert list(got) == list(ref) and all(
            np.allclose(got[k], ref[k], rtol=1e-2, atol=1e-2 if dtype == 'float16' else 1e-5) for k in ref
        )


@pytest.mark.timeout(300)
def test_random_modules(tmp_path):
    @settings(max_examples=4, derandomize=False)
    @given(
        MODULES,
        st.sampled_from(['float32', 'float32', 'float64', 'float16', 'bfloat16']),
        st.booleans(),
        st.integers(0, 10**6),
    )
    def one(drawn, dtype, time, seed):
        check_random(tmp_path, drawn, dtype, time, seed)

    one()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_modules(tmp_path):
    @settings(max_examples=150)
    @given(
        MODULES,
        st.sampled_from(['float32', 'float32', 'float64', 'float16', 'bfloat16']),
        st.booleans(),
        st.integers(0, 10**6),
    )
    def one(drawn, dtype, time, seed):
        check_random(tmp_path, drawn, dtype, time, seed)

    one()


# Planted faults


@pytest.mark.timeout(300)
@pytest.mark.sweep(1)
@pytest.mark.parametrize('name', onnx_mutations.networks())
def test_planted_faults(name):
    "A sample of benchmarks/onnx_mutations.py: what matters is refused, what is right is not"
    module, specs = onnx_mutations.networks()[name]
    rows = list(onnx_mutations.of_network(name, module, specs, tries=2))
    hit = [r for r in rows if r.get('matters')]
    assert hit and all(r['refused'] for r in hit), [r for r in hit if not r['refused']]
    assert not [r for r in rows if r.get('verified') is False]


# Text that a decoder is given


@pytest.fixture(scope='module')
def short(tmp_path_factory):
    "A GPT-2 of sixteen positions and its file"
    model = open_decoder(tiny_config('gpt2', n_positions=16))
    path = tmp_path_factory.mktemp('decoder') / 'g.onnx'
    assert export_decoder(model, path).tokens == 33  # of 32 asked for, as many as it reads
    return model, Decoder(path)


@pytest.mark.parametrize(
    'ids, kw, error, says',
    [
        ([[1, 2], [1]], {}, ValueError, 'differ in length: pad them on the left'),
        ('hello', {}, TypeError, 'whole numbers'),
        ([[1.5, 2]], {}, TypeError, 'whole numbers'),
        ([[-1, 2]], {}, ValueError, 'token ids are 0 to 98, not -1'),
        ([[99]], {}, ValueError, 'not 99'),
        ([[]], {}, ValueError, 'batch, length'),
        ([[1, 2, 3]], dict(n=15), ValueError, 'n is at most 14'),
        ([[1] * 17], dict(n=1), ValueError, 'at most 0'),
        ([[1]], dict(n=0), ValueError, 'positive'),
        ([[1, 0]], dict(mask=[[1, 0]]), ValueError, 'on the left'),
        ([[0, 1]], dict(mask=[[0.5, 1]]), ValueError, 'on the left'),
        ([[0, 1]], dict(mask=[[0, 0]]), ValueError, 'on the left'),
    ],
)
def test_a_prompt_that_cannot_be_read_is_one_line(short, ids, kw, error, says):
    model, decoder = short
    with pytest.raises(error, match=says) as e:
        decoder.generate(ids, **dict(n=3) | kw)
    assert len(str(e.value)) < 200
    if 'n' not in kw or kw['n']:
        with pytest.raises(error, match=says):
            greedy_torch(model, ids, **dict(n=3) | kw)


def test_texts_of_any_length_stop_where_they_are_told_to(short):
    model, decoder = short
    ids, mask = [[0, 0, 1, 2], [4, 1, 2, 3]], np.array([[0, 0, 1, 1], [1, 1, 1, 1]], bool)
    both = decoder.generate(ids, 6, mask)
    assert (both == greedy_torch(model, ids, 6, mask)).all() and (both[0, 2:] == decoder.generate([[1, 2]], 6)[0]).all()
    assert decoder.generate([[1] * 4], 13).shape == (1, 17)  # the last token is not read
    text = decoder.generate([[4, 1, 2, 3]], 6)[0, 4:].tolist()
    for stop in (text[2], np.int64(text[2]), torch.tensor(text[2]), (text[2], 98), {text[2]}, np.array([text[2]])):
        assert decoder.generate([[4, 1, 2, 3]], 6, stop=stop)[0, 4:].tolist() == text[: text.index(text[2]) + 1]
    for stop in ('.', 1.5, -1, True, [[1, 2]], 10**20):
        with pytest.raises(TypeError, match='a token id, or several'):
            decoder.generate([[1, 2]], 6, stop=stop)
    with pytest.raises(ValueError, match='reads 4 tokens, and a decoder is checked with 8'):
        export_decoder(tiny_config('gpt2', n_positions=4), 'never.onnx')
