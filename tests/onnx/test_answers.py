"""What the chapters on ONNX answer: graphs by hand, what is refused, verdicts near each limit, cures"""

import collections
import dataclasses
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fsdl_tools.onnx import (
    compare as C,
    cures as K,
    decoder as D,
    export as E,
    graph as G,
    optimise as O,
    run as R,
    sources as S,
    stored as T,
    verify as V,
)
from fsdl_tools.onnx.run import InputSpec
from tests.answers import answer, same_answers

FLOAT, HALF, BRAIN, LONG = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64


def info(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name, array, kind=None):
    "An initialiser"
    return numpy_helper.from_array(np.asarray(array, kind or 'float32'), name)


def made(nodes, inputs, outputs, weights=(), **notes):
    "A model"
    graph = helper.make_graph(
        [helper.make_node(*n[:3], **(n[3] if len(n) > 3 else {})) for n in nodes], 'g', inputs, outputs, list(weights)
    )
    m = helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8, producer_name='hand', producer_version='1'
    )
    helper.set_model_props(m, notes)
    return m


def saved(model, path):
    "The model in a file"
    onnx.save(model, str(path))
    return path


def mlp(kind='float32', out=('batch', 2), **notes):
    "Two matrix products with a shortcut"
    draw = np.random.default_rng(5)
    weights = [
        constant('w', draw.standard_normal((3, 3)), kind),
        constant('v', draw.standard_normal((3, 2)), kind),
        constant('b', draw.standard_normal(2), kind),
    ]
    nodes = [
        ('MatMul', ['x', 'w'], ['h']),
        ('Relu', ['h'], ['r']),
        ('Add', ['r', 'x'], ['s']),
        ('Gemm', ['s', 'v', 'b'], ['y']),
    ]
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return made(nodes, [info('x', ['batch', 3], code)], [info('y', list(out), code)], weights, **notes)


def words(call, *args, folder='', **kw):
    "An answer without the folder that it speaks of, nor what other libraries say"
    text = json.dumps(answer(call, *args, **kw), ensure_ascii=False).replace(str(folder) or '\0', 'FOLDER')
    return json.loads(
        re.sub(
            r'(model: \w+: |, or it is truncated |cannot run [^:]*: \w+: |failed: \w+: |not JSON: |expected one of'
            r'|did you mean )[^"]*',
            r'\1',
            text,
        )
    )


# Graphs


def test_graphs(request, tmp_path):
    "Pictures, summaries, external data, and files that are none"
    found, m = {}, mlp()
    found['picture'] = G.graph_svg(m)
    found['boxes'] = [(b.name, b.label, b.row, [s.name for s in b.sources], b.node) for b in G._boxes(m)]
    found['too large'] = answer(G.graph_svg, m, 3), len(G.graph_svg(m, 4)) == len(G.graph_svg(m))
    old = mlp()
    old.graph.input.append(info('w', [3, 3]))
    found['old inputs'] = [i.name for i in G._true_inputs(old)]
    branch = helper.make_graph(
        [helper.make_node('Constant', [], ['c'], value=constant('t', [1.0]))],
        'b',
        [],
        [info('c', [1])],
        [constant('inner', [2.0, 3.0])],
    )
    whole = made(
        [('If', ['k'], ['z'], dict(then_branch=branch, else_branch=branch))],
        [info('k', [], TensorProto.BOOL)],
        [info('z', [1])],
        [constant('o', [1.0])],
    )
    found['tensors'] = [t.name for t in G._tensors(whole)], [t.name for t in G._tensors(m)]
    for location in ('a', 'a/b', '', '..', '../x', '/etc/x', 'a\\b', 'a\0b', './a', 'a/../b'):
        found[f'lies in {location!r}'] = G._lies_in(tmp_path, location)
    (tmp_path / 'data').write_bytes(bytes(40))
    for place in (
        dict(location='data', length='40'),
        dict(location='data', offset='1', length='40'),
        dict(location='data', offset='30', length='10'),
        dict(location='data', offset='-1'),
        dict(location='data', length='x'),
        dict(location='data', length='9' * 100),
        dict(location='gone'),
        dict(location='../x'),
        {},
    ):
        t = constant('t', [1.0])
        t.data_location = 1
        t.ClearField('raw_data')
        for k, v in place.items():
            t.external_data.add(key=k, value=v)
        found[f'placed {str(place)[:60]}'] = answer(G._placed, t, tmp_path)
    big = mlp()
    onnx.save(big, str(tmp_path / 'e.onnx'), save_as_external_data=True, location='e.data', size_threshold=0)
    for name, path in dict(inside=saved(mlp(note='x'), tmp_path / 'i.onnx'), outside=tmp_path / 'e.onnx').items():
        f = G.inspect_onnx(path).to_dict()
        found[f'inspected {name}'] = (
            {k: v for k, v in f.items() if k not in ('path', 'bytes')},
            f['bytes'] - sum((tmp_path / n).stat().st_size for n in (path.name, *f['external'])),
        )
    (tmp_path / 'empty.onnx').write_bytes(b'')
    (tmp_path / 'noise.onnx').write_bytes(b'\xff' * 50)
    (tmp_path / 'text.onnx').write_bytes(b'hello world')
    broken = mlp()
    broken.graph.node[0].input[0] = 'nothing'
    saved(broken, tmp_path / 'broken.onnx')
    headless = onnx.ModelProto(ir_version=8)
    for name, model in dict(
        headless=headless,
        half=onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid('', 17)]),
        none=onnx.ModelProto(opset_import=[helper.make_opsetid('', 17)], graph=m.graph),
    ).items():
        (tmp_path / f'{name}.onnx').write_bytes(model.SerializeToString())
    for name in ('empty', 'noise', 'text', 'broken', 'headless', 'half', 'none', 'missing'):
        found[f'read {name}'] = words(G.read_onnx, tmp_path / f'{name}.onnx', folder=tmp_path)
    found['read a folder'] = words(G.read_onnx, tmp_path, folder=tmp_path), words(G._check_plain, Path('/dev/null'))
    found['io'] = [
        answer(G._io, v)
        for v in (
            info('a', ['n', 3, None]),
            info('b', [], LONG),
            info('c', None),
            helper.make_tensor_sequence_value_info('d', FLOAT, [1]),
            onnx.ValueInfoProto(name='e'),
            info('f', [1], 0),
        )
    ]
    found['opsets'] = [
        G._opset(onnx.ModelProto(opset_import=[helper.make_opsetid(d, v) for d, v in o]))
        for o in ((), (('', 17),), (('x', 9),), (('ai.onnx', 5), ('', 4)))
    ]
    try:
        raise ValueError('a') from ValueError('\x1b[31m\n  deep \nmore')
    except ValueError as e:
        found['cause'] = G._cause(e), G._cause(ValueError()), len(G._cause(ValueError('x' * 400)))
    same_answers(request, 'graphs', found)


def test_runs(request, tmp_path):
    "Names, shapes and types of inputs, random inputs, specifications noted and told, and arrays sent to Node.js"
    found, x = {}, np.ones((2, 3), 'float32')
    sess = R.session(saved(mlp(), tmp_path / 'm.onnx'))
    for name, feed in dict(
        right=dict(x=x),
        list=dict(x=x.tolist()),
        shape=dict(x=x.T),
        rank=dict(x=x[0]),
        double=dict(x=x.astype('float64')),
        other=dict(y=x),
        both=dict(x=x, z=x),
        none={},
    ).items():
        found[f'infer {name}'] = words(lambda feed=feed: {k: np.round(v, 4) for k, v in R.infer(sess, feed).items()})
    found['takes'] = [
        R._takes(d, s)
        for d, s in ((['n', 3], (2, 3)), (['n', 3], (2, 4)), (['n'], (2, 3)), ([None, 3], (9, 3)), ([], ()))
    ]
    found['options'] = (
        [
            (o.intra_op_num_threads, o.inter_op_num_threads, o.log_severity_level, str(o.graph_optimization_level))
            for o in (R._options(2, True), R._options(1, False))
        ],
        answer(R._options, 0, True),
    )
    specs = [
        InputSpec('f', ('batch', 3)),
        InputSpec('i', ('batch', 'sequence'), 'int64', 50),
        InputSpec('m', ('batch', 'sequence'), 'int64', 2, True),
        InputSpec('h', ('target', 2), 'float16'),
        InputSpec('b', (4,), 'bool'),
        InputSpec('u', ('samples', 'else'), 'uint8', 0),
        InputSpec('z', (), 'bfloat16'),
    ]
    for seed, kw in ((0, {}), (1, dict(batch=3, sequence=9)), (0, dict(batch=1, samples=5))):
        found[f'random {seed} {kw}'] = {
            k: (
                str(v.dtype),
                list(v.shape),
                round(float(v.astype('float64').sum()), 3),
                int(v.astype('float64').max() * 10),
            )
            for k, v in R.random_inputs(specs, seed, **kw).items()
        }
    found['masks'] = [R._padded_mask(s).tolist() for s in ((1, 4), (2, 7), (3, 3), (2, 2), (4,), (2, 2, 3))]
    found['refused'] = (
        [answer(R._numbers, n, 'x') for n in ('complex64', 'nope', 'object')],
        answer(R.random_inputs, [InputSpec('x', (2**15, 2**15))][:0]),
        answer(R._shape_of, InputSpec('x', (2**15, 2**15)), {}),
        answer(R._shape_of, InputSpec('x', (2**15, 2**15 + 1)), {}),
    )
    found['axes'] = (
        R._axes(specs),
        R._size('q', {}),
        R._size('q', dict(q=2)),
        R._size(4, {}),
        R._only(dict(a=1, b=2), 'b'),
    )
    found['fitted'] = [
        R._fitted(InputSpec('x', ('batch', 3)), d).shape for d in (None, [1], [4, 'n'], ['n', 9], [None, 5])
    ]
    found['sound'] = [
        R._sound(InputSpec('x', s, 'float32', h))
        for s, h in (
            ((1, 'a'), 2),
            ((-1,), 2),
            ((2**30,), 2),
            ((2**30 - 1,), 2),
            ((0,), 1),
            ((1.5,), 2),
            ((1,), 0),
            ((1,), True),
            ((1,), 2**63),
            ((1,), 2**63 - 1),
        )
    ]
    look = made(
        [('Gather', ['t', 'ids'], ['y']), ('Gather', ['s', 'ids'], ['z'])],
        [info('ids', [None, 'n'], LONG), info('attention_mask', ['seed', 4], LONG)],
        [info('y', [None, 'n', 2]), info('z', [None, 'n', 2])],
        [constant('t', np.ones((9, 2))), constant('s', np.ones((7, 2)))],
    )
    found['high'] = R._high(look, 'ids'), R._high(look, 'other')
    found['told'] = (
        [s.to_dict() for s in R.specs_of_file(saved(look, tmp_path / 'look.onnx'))],
        [
            R._axis_name(*a)
            for a in ((None, 'x', 0), (None, 'x', 2), ('n', 'x', 0), ('seed', 'x', 1), ('specs', 'x', 1))
        ],
    )
    for note in (
        json.dumps([dict(name='x', shape=['batch', 3])]),
        json.dumps([dict(name='x', shape=['batch', 9])]),
        '[1]',
        'x',
        '[]',
        json.dumps([dict(name='x', shape=[-1])]),
        '{"a": 1}',
    ):
        found[f'noted {note}'] = words(
            lambda note=note: [
                s.to_dict() for s in R.specs_of_file(saved(mlp(**{'fsdl.inputs': note}), tmp_path / 'n.onnx'))
            ]
        )
    found['a sequence'] = answer(R._spec, look, helper.make_tensor_sequence_value_info('d', FLOAT, [1]))
    found['sent'] = [
        (s['dtype'], list(s['shape']), s['data'], R._received(s).tolist())
        for s in (R._sent('i', np.arange(3)), R._sent('x', x.T))
    ]
    (tmp_path / 'modules' / 'onnxruntime-web').mkdir(parents=True)
    found['no node'] = words(R.web_runner, tmp_path / 'm.onnx', tmp_path, folder=tmp_path)
    same_answers(request, 'runs', found)


# Cures


class Holder:
    "An object that hides a tensor"

    def __init__(self, x):
        self.x = x


class Slotted:
    "The same, in a slot"

    __slots__ = 'x'

    def __init__(self, x):
        self.x = x


class SomeCache(Holder):
    "A cache may hide what it likes"


Pair = collections.namedtuple('Pair', 'a b')
Point = dataclasses.make_dataclass('Point', ['x', 'y'])


class Fake(nn.Module):
    "A model that returns what it is told to"

    def __init__(self, out, config=None):
        super().__init__()
        self.out = out
        if config is not None:
            self.config = config

    def forward(self, input_ids=None, attention_mask=None, use_cache=True):
        return self.out(input_ids)


def test_cures(request):
    "Specifications of models, nests of outputs, constant weights, statistics, and ways to try"
    found, t = {}, torch.ones(1)
    text, vision = SimpleNamespace(vocab_size=33), SimpleNamespace(image_size=16)
    for name, c in dict(
        plain=SimpleNamespace(),
        text=text,
        parts=SimpleNamespace(text_config=text, vision_config=vision, backbone_config=dict(x=1)),
        bert=SimpleNamespace(vocab_size=9, type_vocab_size=2),
        sound=SimpleNamespace(max_length=5, num_mel_bins=4, frequency_stride=1),
        whisper=SimpleNamespace(num_mel_bins=8, max_source_positions=30),
        image=SimpleNamespace(in_chans=1, img_size=[2, 8, 9]),
    ).items():
        found[f'known {name}'] = {k: (s.shape, s.dtype, s.high, s.mask) for k, s in K._known_specs(c).items()}
    for args in (
        'input_ids attention_mask token_type_ids',
        'pixel_values input_values',
        'input_ids pixel_values decoder_input_ids',
        'input_features attention_mask',
        'x y',
    ):
        for c in (SimpleNamespace(type_vocab_size=2), SimpleNamespace(type_vocab_size=1), SimpleNamespace()):
            space = {}
            exec(f'def forward({", ".join(args.split())}): pass', space)
            found[f'specs {args} {vars(c)}'] = answer(
                lambda c=c, space=space: [
                    s.name for s in K._hf_specs(SimpleNamespace(config=c, forward=space['forward']))
                ]
            )
    nests = dict(
        tensor=t,
        list=[t, t],
        dict=dict(a=t, b=[t, dict(c=t)]),
        pair=Pair(t, (t,)),
        point=Point(t, 3),
        none=[None, 1, 'x'],
        empty=[],
        taken=dict(x=t, y=dict(x=t)),
        holder=[Holder(t)],
        held=Holder(Holder(t)),
        deep=Holder(Holder(Holder(Holder(Holder(t))))),
        slot=dict(s=Slotted(t)),
        cache=SomeCache(t),
        set=dict(s={1, 2}),
        hidden={3: Holder([t])},
        array=dict(a=np.ones(1)),
        generator=(x for x in (t, t)),
        numbers=dict(k=Holder(3)),
        again={'output.0': t, 0: [t]},
    )
    for name, nest in nests.items():
        found[f'nest {name}'] = answer(lambda nest=nest: list(K._flat(nest, taken=['x'])))
    found['taken'] = [list(K._flat(dict(x=t), taken=taken)) for taken in (['x', 'x.1'], ['x', 'x.1', 'x.2'])]
    found['holds'] = [
        K._holds_tensors(x, d) for x in (Holder(t), [t], dict(a=Holder(t)), 3, Holder, {Pair(1, 2)}) for d in (0, 1, 2)
    ]
    found['named'] = [
        list(K.named_outputs(Fake(f, c), dict(input_ids=t)))
        for f, c in (
            (lambda x: x, None),
            (lambda x: dict(last_hidden_state=x, past_key_values=[x]), SimpleNamespace()),
            (lambda x: dict(logits=x, past_key_values=[x]), SimpleNamespace()),
            (lambda x: dict(last_hidden_state=x, past_key_values=[x]), None),
        )
    ]
    found['by place'] = [
        answer(lambda feed=feed: len(K.named_outputs(Fake(lambda x: (x, x)), feed)))
        for feed in (dict(input_ids=t), dict(a=t), dict(input_ids=t, b=t))
    ]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.mul_(100)
    net[1].weight.data.fill_(8.0)
    before = {n: x.clone() for n, x in [*net.named_parameters(), *net.named_buffers()]}
    found['randomised'] = (
        K.randomise(net),
        [n for n, x in [*net.named_parameters(), *net.named_buffers()] if not torch.equal(x, before[n])],
        bool((net[1].running_var >= 1).all()),
        round((net[1].weight - 8).abs().max().item(), 1) < 0.5,
        K.randomise(net),
    )
    for w in ([8.0, 8.0], [0.3, 0.1], [0.0, 0.0], [1.4, 1.4], [1.5, 1.5], [-6.0, 3.0]):
        found[f'to one {w}'] = K._to_one(torch.tensor(w)).tolist()
    net[1].running_var.fill_(1e-9)
    done = K.calibrate(net[:2].eval(), [InputSpec('x', ('batch', 3, 6, 6))])
    out = net[:2](torch.from_numpy(R.random_inputs([InputSpec('x', ('batch', 3, 6, 6))], 3, batch=8)['x'])).detach()
    found['calibrated'] = (
        done,
        K.calibrate(nn.Linear(2, 2), []),
        0.3 < out.std().item() < 20,
        bool((net[1].running_mean == net[1].running_mean.bfloat16()).all()),
        bool((net[1].running_var.max() < 3 * net[1].running_var.min() * 100)),
        bool(0.7 <= net[1].weight.pow(2).mean().sqrt().item() <= 1.5),
    )
    norm, twin = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    twin.running_mean, twin.running_var = torch.tensor([3.0, 1.0]), torch.tensor([0.25, 8.0])
    K._take_statistics(norm, twin)
    found['statistics'] = norm.running_mean.tolist(), norm.running_var.tolist()
    found['not calibrated'] = (
        K.calibrate(
            nn.Sequential(nn.BatchNorm1d(3), Fake(lambda x: torch.ones(2) @ torch.ones(3))).eval(),
            [InputSpec('x', ('batch', 3))],
        ).partition('(')[0],
        K.calibrate(nn.BatchNorm1d(3, track_running_stats=False), []),
    )
    fused, eager, experts = nn.Linear(2, 2), Switching('attn'), Switching('experts')
    fused.fused_attn = True
    for name, m in dict(
        plain=nn.Linear(2, 2),
        fused=fused,
        eager=eager,
        experts=experts,
        masked=Fake(lambda x: x, SimpleNamespace()),
        both=nn.Sequential(fused, eager),
    ).items():
        for specs in ([InputSpec('x', ('batch', 3))], [InputSpec('x', ('batch', 'sequence', 'target'))]):
            found[f'attempts {name} {len(specs[0].shape)}'] = (
                K.attempts(m, specs),
                [K._way(*a) for a in K.attempts(m, specs)],
            )
    seen = []
    with K._cured(nn.Sequential(fused, eager), list(K._cures)[:2]):
        seen += [fused.fused_attn, eager.config._attn_implementation]
    found['cured'] = [*seen, fused.fused_attn, eager.config._attn_implementation]
    masked = Fake(lambda x: x, SimpleNamespace())
    masked.forward = lambda **kw: seen.append({k: str(v.dtype) for k, v in kw.items()})
    with K._float_mask(masked):
        masked(input_ids=t.long(), attention_mask=t.long())
    masked(input_ids=t.long(), attention_mask=t.long())
    found['masks'] = seen[2:]
    said = []

    def attempt(cures, fixed):
        if cures == ('a',):
            raise KeyError('bad')
        if cures == ('os',):
            raise OSError('gone')
        return len(cures), 'wrong' if cures == ('b',) else ''

    for ways in ([(('a',), ()), (('b',), ('x',)), ((), ('y', 'z'))], [(('b',), ())], [(('os',), ())], []):
        found[f'success {ways}'] = answer(K._first_success, ways, attempt, said.append)
    found['said'] = said
    same_answers(request, 'cures', found)


class Switching(nn.Module):
    "A model whose attention or experts can be computed in another way"

    def __init__(self, what):
        super().__init__()
        self.config, self.part = (
            SimpleNamespace(**{f'_{what}_implementation': 'sdpa'}),
            type('MyExperts', (nn.Module,), {})(),
        )
        setattr(self, f'set_{what}_implementation', lambda to: setattr(self.config, f'_{what}_implementation', to))

    def forward(self, x):
        return x


# Sources


def test_sources(request, tmp_path):
    "Configurations of strangers, examples of inputs, sizes of models, and what is refused"
    found = {}
    for d in (
        dict(a=1, auto_map=2, b=[dict(trust_remote_code=1, c=2)]),
        dict(backbone='hf-hub:x'),
        dict(backbone='resnet', use_pretrained_backbone=True),
        dict(x=dict(backbone='a:b')),
        dict(pretrained_backbone=3, _name_or_path='x'),
        [1, 'x'],
    ):
        found[f'harmless {d}'] = answer(S._harmless, d)
    for fields in ({}, dict(model_type=3), dict(model_type='b'), dict(model_type='bert')):
        found[f'type {fields}'] = answer(S._model_type, fields, ['bert', 'bart'])
    for fields in (
        dict(num_hidden_layers=2, layer_types=['a', 'b', 'c']),
        dict(layer_types=['a']),
        dict(num_hidden_layers=2, layer_types='abc'),
        dict(num_hidden_layers='2', layer_types=['a', 'b', 'c']),
    ):
        found[f'shortened {fields}'] = S._shortened(fields)
    make = lambda d: SimpleNamespace(
        model_type='x',
        to_dict=lambda: dict(a=1, num_hidden_layers=3, layer_types=0),
        attribute_map=dict(layers='num_hidden_layers'),
        given=d,
    )
    for kw in ({}, dict(a=5), dict(layers=2), dict(b=1), dict(layers=2, layer_types=['x'] * 3)):
        found[f'with {kw}'] = words(lambda kw=kw: S._with_fields(make, dict(layer_types=['p', 'q', 'r']), kw).given)
    (tmp_path / 'c').mkdir()
    (tmp_path / 'c' / 'Config.json').write_text(
        '{"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 50}'
    )
    (tmp_path / 'list.json').write_text('[1]')
    (tmp_path / 'bad.json').write_text('{')
    (tmp_path / 'odd.json').write_text(
        '{"model_type": "bert", "hidden_size": "x", "num_attention_heads": [], "architectures": ["Nothing"]}'
    )
    for name in ('c', 'list.json', 'bad.json', 'gone.json', 'c/Config.json', 'list', '.'):
        found[f'read {name}'] = words(S._read_config, str(tmp_path / name), folder=tmp_path)
    found['called'] = (
        S._name_of('resnet18'),
        S._name_of(SimpleNamespace(model_type='m')),
        S._name_of(str(tmp_path / 'c')),
    )
    found['preparation'] = S._preparation(dict(mean=1, std=2, classes=3, crop_pct=4))
    found['labels'] = [
        S._labels(type(n, (), dict(config=SimpleNamespace(**kw)))())
        for n in ('XForImageClassification', 'X')
        for kw in (dict(), dict(id2label={0: 'a', 1: 'b'}))
    ]
    said = []
    for n, free in ((None, 1), (10, 79), (10, 80), (10, 10**9), (10**9, 8 * 10**9)):
        found[f'size {n} {free}'] = answer(S._say_size, 'm', n, said.append, free)
    found['said'] = said
    free = S._free_memory()
    found['free'] = free is None or 10**7 < free < 10**14
    for kind in ('llama', 'bert', 'gpt2', 't5'):
        c = S.tiny_config(kind)
        found[f'tiny {kind}'] = {
            k: getattr(c, k, None)
            for k in (
                'hidden_size',
                'd_model',
                'n_embd',
                'num_hidden_layers',
                'num_layers',
                'n_layer',
                'num_attention_heads',
                'intermediate_size',
                'd_ff',
                'd_kv',
                'vocab_size',
                'max_position_embeddings',
                'n_positions',
                'bos_token_id',
                'eos_token_id',
            )
        }
    found['tiny more'] = S.tiny_config('bert', hidden_size=8).hidden_size, words(S.tiny_config, 'brt')
    float_, ids, zeros = torch.randn(2, 3), torch.tensor([[0, 7]]), torch.zeros(2, 3, dtype=torch.long)
    module = Fake(lambda x: x)
    for name, inputs in dict(
        one=float_,
        several=(float_, ids),
        named=dict(a=float_, b=zeros),
        specs=[InputSpec('x', (1,))],
        spec=InputSpec('x', (1,)),
        array=np.ones((2, 2)),
        scalar=dict(s=torch.tensor(4)),
        none=[],
        many=[float_] * 5,
        bad=[3],
        worse=dict(a='x'),
        bool=torch.tensor([True]),
        empty=torch.zeros(0, 3),
    ).items():
        found[f'specs {name}'] = answer(
            lambda inputs=inputs: [(s.name, s.shape, s.dtype, s.high) for s in S.specs_of(inputs, module)]
        )
        found[f'specs {name} alone'] = answer(lambda inputs=inputs: [s.name for s in S.specs_of(inputs)])
    for name, inputs in dict(
        zeros=dict(input_ids=zeros),
        other=dict(k=zeros),
        beside=dict(x=float_, k=zeros),
        tokens=dict(x=float_, tokens=zeros),
        scalar=dict(x=float_, k=torch.tensor(0)),
        fine=dict(ids=ids),
        ones=dict(ids=ids, more=zeros),
    ).items():
        found[f'looked {name}'] = answer(lambda inputs=inputs: len(S._checked_specs(inputs, None)))
    found['sources'] = [
        answer(lambda a=a, kw=kw: S._source(*a, kw).name)
        for a, kw in (
            ((nn.Linear(3, 2), None), {}),
            ((nn.Linear(3, 2), float_), {}),
            ((nn.Linear(3, 2), float_), dict(opst=3)),
            ((nn.Linear(3, 2), float_), dict(hidden=3)),
            ((torch.jit.script(nn.Linear(1, 1)), float_), {}),
        )
    ]
    found['opened'] = [
        words(lambda w=w, kw=kw: (lambda s: (s.name, s.info.get('seed'), len(s.specs)))(S.open_model(w, **kw)))
        for w, kw in (
            (3, {}),
            (nn.Linear(2, 2), {}),
            ('zzz-nothing', {}),
            ('tests.onnx.test_answers:unknown', {}),
            ('tests.onnx.test_answers:known', dict(seed=4)),
        )
    ]
    found['seeded'] = (
        [
            S._own_source(known, s, {}).module.weight.sum().item()
            == S._own_source(known, 0, {}).module.weight.sum().item()
            for s in (0, 1)
        ],
        S._maker_name(known, 'u'),
        S._maker_name('a:b', 'u'),
        S._maker_name(SimpleNamespace(), 'u'),
        words(S._of_class, 'Nothing', None),
    )
    small = str(tmp_path / 'c')
    lines = []
    s = S.open_model(small, progress=lines.append, seed=2)
    again, other = S.open_model(small, seed=2), S.open_model(small, seed=3)
    found['bert'] = (
        s.name,
        [x.to_dict() for x in s.specs],
        s.info['seed'],
        s.info['pretrained'],
        s.info['architecture'],
        s.info['calibrated'],
        [re.sub(r'[\d.]+ \w+ in', 'N in', l) for l in lines],
        V.graph_fingerprint(s.module) == V.graph_fingerprint(again.module),
        V.graph_fingerprint(other.module) == V.graph_fingerprint(again.module),
        S._count_parameters(small),
        S.open_model(s) is s,
    )
    found['odd'] = words(S.open_model, str(tmp_path / 'odd.json'), folder=tmp_path)[:70]
    same_answers(request, 'sources', found)


def unknown():
    return nn.Linear(2, 2)


def known():
    "A module that says what it takes"
    m = nn.Linear(2, 2)
    m.config = SimpleNamespace(vocab_size=9, to_json_string=lambda: '{}')
    m.forward = lambda input_ids: input_ids
    return m


# Comparing


def drawn_pairs():
    "Name -> (answers, reference, format): numbers near each limit, masks, gaps, whole numbers and texts"
    for i in range(36):
        draw = np.random.default_rng(i)
        shape = [(8, 5), (8, 3, 6), (4, 1), (1, 6), (6, 2, 4, 3), (8,)][i % 6]
        kind = ['float32', 'float32', 'float16', 'bfloat16', 'float64'][i % 5]
        b = draw.standard_normal(shape) * 10.0 ** draw.integers(-3, 4)
        own = C._tolerances[kind][0]
        noise = draw.standard_normal(shape) * b.std() * own * draw.choice([0.01, 0.2, 0.5, 1, 3])
        yield f'noise {i}', b + noise, b, kind
        c, d = b.copy(), b.copy()
        what = i % 9
        if what == 0:
            c.flat[3], d.flat[3] = np.nan, np.nan
        if what == 1:
            c.flat[2] = np.inf
        if what == 2:
            c[..., -1], d[..., -1] = -1e38, -1e34
        if what == 3:
            c[..., 0], d[..., 0] = -np.inf, -np.inf
        if what == 4:
            d[..., 0] = c[..., 0] = 7.0
        if what == 5:
            c[0], d[0] = b[0] * 500, b[0] * 500 * (1 + own)
        if what == 6:
            c.flat[0] = -c.flat[0]
        if what == 7:
            c = c[..., ::-1].copy()
        if what == 8:
            d[:] = c[:] = b[:1]
        yield f'odd {i}', c, d, kind
    draw = np.random.default_rng(99)
    whole = draw.integers(0, 9, (20, 10))
    for off in (0, 1, 2, 3, 30):
        yield f'whole {off}', np.where(np.arange(200).reshape(20, 10) < off, whole + 1, whole), whole, 'float32'
    column = whole.copy()
    column[:11, 0] += 1
    yield 'whole column', column, whole, 'float32'
    yield 'texts', np.array([['a', 'b'], ['c', 'd']]), np.array([['a', 'b'], ['c', 'x']]), 'float32'
    yield 'same texts', np.array([['a'], ['c']]), np.array([['a'], ['c']]), 'float32'
    yield 'shapes', np.ones((2, 3)), np.ones((2, 4)), 'float32'
    yield 'kinds', np.ones((2, 3)), np.ones((2, 3), int), 'float32'
    yield 'signs', np.ones((2, 3), 'uint8'), np.ones((2, 3), int), 'float32'
    yield 'bools', np.array([True, False]), np.array([True, True]), 'float32'
    yield (
        'complex',
        np.ones((3, 2)) + 1j * np.arange(6).reshape(3, 2),
        np.ones((3, 2)) + 1j * np.arange(6).reshape(3, 2) * 1.001,
        'float32',
    )
    yield 'nothing', np.ones((0, 3)), np.ones((0, 3)), 'float32'
    big = draw.standard_normal((16, 4, 50))
    for k, by in itertools.product((0, 1), (0.05, 0.09, 0.11, 0.5)):
        off = big.copy()
        quiet = big.copy()
        quiet[:, 1 if k else slice(None), 2 if not k else slice(None)] *= 0.001
        off = quiet.copy()
        off[:, 1 if k else slice(None), 2 if not k else slice(None)] *= 1 + by
        yield f'channel {k} {by}', off, quiet, 'bfloat16'
    for rows in (97, 98, 99, 100):
        b = np.eye(4)[np.arange(100) % 4] + draw.standard_normal((100, 4)) * 0.001
        a = b.copy()
        a[rows:] = a[rows:, ::-1]
        yield f'winners {rows}', a, b, 'bfloat16'


def rounded(d):
    "A comparison with six digits of each number"
    return {k: float(f'{v:.5g}') if isinstance(v, float) else v for k, v in d.items()}


def test_comparisons(request):
    "Verdicts on drawn pairs, the default tolerance beside others; masks, winners, pairs of names"
    found = {}
    for name, a, b, kind in drawn_pairs():
        found[name] = rounded(C.compare_outputs(a, b, kind=kind))
        if 'noise' in name or 'channel' in name:
            found[f'{name} loose'] = C.compare_outputs(a, b, rtol=5.0, kind=kind)['why']
            exact = C.compare_outputs(a, b, kind=kind)['max_rel']
            if exact:
                found[f'{name} just'] = [
                    C.compare_outputs(a, b, rtol=exact * f, kind=kind)['ok'] for f in (0.999, 1.0, 1.001)
                ]
    found['format'] = answer(C.compare_outputs, np.ones(2), np.ones(2), kind='float31')
    found['floors'] = [C._floor(k) for k in C._tolerances]
    for sizes in (
        [],
        [1, 2],
        [1, 1e4, 1e4],
        [1, 1e4],
        [1, 1e4] + [1e4] * 3,
        [1, 50, 1e4, 1e4, 1e9, 1e9],
        [1] * 5 + list(1e4 * np.arange(1, 9)) * 2,
        [1] * 5 + list(1e4 * np.arange(1, 10)) * 2,
        [1, 999, 999],
        [1, 1000, 1000],
        [1e-3, 0.2, 0.2],
        [10, 1e3, 1e3],
        [9.9, 1e3, 1e3],
        [1, 1e4, 1.0009e4, 1e4],
        [1, 1e4, 1.002e4],
    ):
        found[f'mask {sizes}'] = C._mask_size(np.array(sizes, float))
    found['whole'] = [
        C._wrong_numbers(np.full((3, 2), d), C._Terms('float32', 0.1, True, 0.1)) for d in (0.9, 1.0, 1.05, 1.2)
    ]
    found['constants'] = [
        C._constant(np.array(x), 0.01).tolist()
        for x in ([[1.0, 2.0], [1.0, 2.5]], [[1.0, 100.0], [1.005, 101.0]], [[0.0], [0.0]])
    ]
    found['typical'] = (
        [C._typical(np.array(x, float)) for x in ([1, 2, 3, 100], [5, 5, 5, 9], [3])],
        C._typical_spread(np.array([1.0, 2.0, 9.0]), 1.0),
        C._typical_spread(np.array([1.0]), 1.0),
    )
    found['winners'] = [
        C._winners(np.array(a), np.array(b), s)
        for a, b, s in (
            ([[1.0, 2.0]], [[1.0, 2.0]], 0),
            ([[3.0, 2.0]], [[1.0, 2.0]], 0.9),
            ([[3.0, 2.0]], [[1.0, 2.0]], 1.0),
            ([[3.0, 2.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]], 0),
        )
    ]
    found['channels'] = [C._by_channel(np.arange(n).reshape(2, 1, -1), 2)[:, :3].tolist()[:2] for n in (8, 4)] + [
        list(C._by_channel(np.zeros((n, 2, k)), 1).shape) for n, k in ((1100, 3), (1024, 1), (1023, 1))
    ]
    used = np.array([[[True, True, False]], [[True, False, False]], [[True, False, False]]])
    found['means'] = [
        np.round(x, 6).tolist()
        for x in C._mean_and_spread(np.array([[[1.0, 5.0, 9.0]], [[2.0, 7.0, 9.0]], [[6.0, 7.0, 9.0]]]), used)
    ]
    found['medians'] = np.nan_to_num(
        C._medians(np.array([[1.0, 2.0, 9.0], [1.0, 2.0, 3.0]]), np.array([[True, True, False], [False] * 3])), nan=-1
    ).tolist()
    found['off'] = [
        C._first_off(np.array(o), np.array(w), np.array(f), 0.1)
        for o, w, f in (
            ([1.0, 1.0], [0.05, 0.2], [0.01, 0.01]),
            ([1.0, 1.0], [0.1, 0.1], [0.01, 0.01]),
            ([0.01, 1.0], [1.0, 0.2], [0.01, 0.3]),
        )
    ]
    found['pairs'] = [
        C.pair_outputs(*p)
        for p in ((['a', 'b'], ['b', 'a']), (['a'], ['x']), (['a', 'b'], ['b']), (['a', 'q'], ['p', 'a']), ([], []))
    ]
    for text in (
        '2*s + 1',
        's//2',
        's/2',
        's/3',
        'max(s, 9)',
        'Min(1, s)',
        's**2',
        's**9',
        '(2**33)**2',
        '-s',
        'q',
        's % 4',
        'floor(s/3)',
        'ceiling(s/3)',
        'abs(-s)',
        'Mod(s, 4)',
        'FloorDiv(s, 4)',
        's + ',
        'import os',
        's.x',
        '1.5',
        's/0',
        'True',
        'f(s)',
        'CeilToInt(s/4)',
        'x y',
    ):
        found[f'size {text}'] = C._size_of(text, {'s': 6, 'x y': 4})
    for dims, shape in (
        ([2, 's'], (2, 6)),
        ([2, 's'], (3, 6)),
        ([2, 's'], (2, 7)),
        (['n', 'n'], (4, 4)),
        (['n', 'n'], (4, 5)),
        ([None, 3], (8, 3)),
        ([2], (2, 6)),
        (['2*s', 2], (12, 2)),
        (['s/4', 2], (5, 2)),
    ):
        found[f'declared {dims} {shape}'] = C._misdeclared(info('o', dims), shape, dict(s=6))
    found['undeclared'] = (
        C._misdeclared(info('o', None), (1, 2), {}),
        C.declared_shapes(mlp(out=('batch', 3)), dict(x=np.ones((4, 3))), dict(y=np.ones((4, 2)))),
        C.declared_shapes(mlp(), dict(x=np.ones((4, 3))), dict(y=np.ones((5, 2)))),
    )
    same_answers(request, 'comparisons', found)


def ops(model):
    return [(n.op_type, list(n.input), list(n.output)) for n in model.graph.node]


def test_formats(request, tmp_path):
    "Which format a file computes in, the same graph stored in 16 bits, what overflows, and ways to run"
    found = {}
    models = dict(
        float=mlp(),
        double=mlp('float64'),
        half=mlp('float16'),
        few=made(
            [
                ('Cast', ['x'], ['h'], dict(to=HALF)),
                ('MatMul', ['h', 'w'], ['p']),
                ('Cast', ['p'], ['y'], dict(to=FLOAT)),
                ('MatMul', ['y', 'v'], ['z']),
                ('MatMul', ['z', 'v'], ['q']),
            ],
            [info('x', [2, 2])],
            [info('q', [2, 2])],
            [constant('w', np.ones((2, 2)), 'float16'), constant('v', np.ones((2, 2)))],
        ),
        bare=made([('Relu', ['x'], ['y'])], [info('x', [2], HALF)], [info('y', [2], HALF)]),
        ints=made([('Abs', ['x'], ['y'])], [info('x', [2], LONG)], [info('y', [2], LONG)]),
    )
    for name, m in models.items():
        found[f'format {name}'] = (
            T._format(T._typed(m)),
            T._main_type(m),
            sorted(T._has_short(T._typed(m))),
            dict(T._elements(m)),
        )
    path = saved(models['half'], tmp_path / 'half.onnx')
    wide = onnx.load(str(T.stored_in_format(path, tmp_path)))
    found['stored'] = (
        ops(wide),
        [t.data_type for t in wide.graph.initializer],
        [v.type.tensor_type.elem_type for v in (*wide.graph.input, *wide.graph.output)],
        T._wide_values(wide),
    )
    found['stored few'] = ops(onnx.load(str(T.stored_in_format(saved(models['few'], tmp_path / 'few.onnx'), tmp_path))))
    noted = made(
        [('Constant', [], ['k'], dict(value_int=10)), ('Cast', ['x'], ['y'], dict(to=HALF))],
        [info('x', [2])],
        [info('k', [], LONG), info('y', [2], HALF)],
    )
    found['attributes'] = [
        (a.name, a.i)
        for n in onnx.load(str(T.stored_in_format(saved(noted, tmp_path / 'noted.onnx'), tmp_path))).graph.node
        for a in n.attribute
    ]
    big = made(
        [('Mul', ['x', 'w'], ['h']), ('Mul', ['h', 'v'], ['y'])],
        [info('x', ['n', 2], HALF)],
        [info('y', ['n', 2], HALF)],
        [constant('w', [1e4, 1.0], 'float16'), constant('v', [1e-3, 1.0], 'float16')],
    )
    saved(big, tmp_path / 'big.onnx')
    for scale in (1.0, 6.0, 7.0, 50.0):
        x = np.full((1, 2), scale, 'float16')
        with T._file_ways(tmp_path / 'big.onnx') as file:
            found[f'overflow {scale}'] = (
                list(file.ways),
                file.overflow(dict(x=x)),
                {k: np.round(run(dict(x=x))['y'].astype(float), 2) for k, run in file.ways.items()},
                file.note,
            )
    with T._file_ways(saved(mlp(), tmp_path / 'plain.onnx')) as file:
        found['plain'] = list(file.ways), file.overflow(dict(x=np.ones((1, 3), 'float32'))), file.note
    found['widened'] = {
        k: str(v.dtype)
        for k, v in T._widened(
            dict(a=np.ones(1, 'float16'), b=np.ones(1, 'float32'), c=np.ones(1, 'int16'), d=np.ones(1, 'float64'))
        ).items()
    }
    found['reach'] = T._reach(np.array([1.0, -5.0, np.inf])), T._reach(np.array([]))
    same_answers(request, 'formats', found)


# Verifying


def affine(factor=1.0, bias=0.0, count=None):
    "A reference for the two products, perhaps not quite"
    m = mlp()
    w, v, b = (numpy_helper.to_array(t).astype('float64') for t in m.graph.initializer)

    def run(feed):
        x = feed['x'].astype('float64')
        if count is not None:
            count.append(len(x))
        if len(x) > 5:
            raise KeyError('too many')
        return dict(y=((np.maximum(x @ w, 0) + x) @ v + b) * factor + bias)

    return lambda feed: {k: o.astype('float32') for k, o in run(feed).items()}


def verdict(v):
    return (
        v.ok,
        re.sub(r'\d\.\de[+-]\d+', 'N', v.reason),
        v.rtol,
        v.note,
        [(r['output'], r['sizes'], r['ok']) for r in v.rows],
        v.against,
    )


class Takes(nn.Linear):
    "A linear layer whose input is called x"

    def forward(self, x):
        return super().forward(x)


def test_verification(request, tmp_path):
    "Grids, passes, inputs of several sizes, verdicts of whole comparisons, notes in files and what they may not decide"
    found = {}
    s = InputSpec
    specs = dict(
        plain=[s('x', ('batch', 3))],
        text=[s('i', ('batch', 'sequence'), 'int64')],
        sound=[s('w', ('batch', 'samples')), s('t', ('batch', 'target'))],
        fixed=[s('x', (2, 3))],
    )
    for (name, sp), sizes in itertools.product(
        specs.items(),
        (
            None,
            dict(batch=4),
            dict(sequence=6),
            dict(samples=[7, 8, 9], target=2),
            dict(other=3),
            dict(batch=[1, 2, 5]),
        ),
    ):
        found[f'grid {name} {sizes}'] = V._grid(sp, (1, 3), (5, 12), sizes)
    found['refused'] = [answer(V._grid, specs['plain'], (1,), (5,), dict(batch=b)) for b in (0, [1, -1], 1.5)]
    for rows, size, shape in (
        (64, 10, (3,)),
        (8, 10, (3,)),
        (4, 10, (3,)),
        (64, 2**30, (3,)),
        (64, 10, (2**17,)),
        (64, 10, (2**18 + 1,)),
        (1000, 10, (2**14,)),
        (64, 0, ()),
        (64, 2**27, (3,)),
        (64, 2**26, (3,)),
        (64, 10, (2**15,)),
        (64, 10, (2**14 + 1,)),
        (64, 1, ()),
    ):
        found[f'passes {rows} {size} {shape}'] = (
            V._passes([s('x', ('batch', *shape))], V._grid(specs['plain'], (1, 3), (5,)), rows, size),
            V._passes([s('x', ('batch', *shape))], V._grid(specs['plain'], (2,), (5,)), rows, size),
        )
    feeds = V._feeds(
        [s('x', ('batch', 2)), s('k', ('batch',), 'int64', 9), s('m', ('batch', 3), 'float32', mask=True)],
        dict(batch=2),
        5,
        7,
    )
    found['feeds'] = [{k: round(float(x.sum()), 3) for k, x in f.items()} for f in feeds]
    path = saved(mlp(), tmp_path / 'm.onnx')
    wrong = saved(mlp(out=('batch', 'n')), tmp_path / 'n.onnx')
    cases = dict(
        right=(path, affine()),
        near=(path, affine(1 + 1e-5)),
        far=(path, affine(1.01)),
        moved=(path, affine(bias=0.3)),
        named=(path, lambda f: {'z': affine()(f)['y']}),
        more=(path, lambda f: {'y': affine()(f)['y'], 'q': f['x']}),
        declared=(wrong, affine()),
        still=(path, lambda f: dict(y=np.zeros((len(f['x']), 2), 'float32'))),
    )
    for name, (p, run) in cases.items():
        found[f'verdict {name}'] = verdict(V.verify_runner(p, run, specs['plain'], rows=8))
    for kw in (
        dict(batches=(2, 9)),
        dict(sizes=dict(batch=3)),
        dict(sizes=dict(batch=4)),
        dict(rtol=1.0),
        dict(rtol=1e-12),
    ):
        found[f'how {kw}'] = words(
            lambda kw=kw: verdict(V.verify_runner(path, affine(1.001), specs['plain'], rows=8, **kw))
        )
    exact = lambda f: {k: x.astype('float64') for k, x in affine()(f).items()}
    found['exact'] = [
        verdict(V.verify_runner(path, affine(f), specs['plain'], rows=8, exact=exact))[:2] for f in (1.0, 1.0005, 1.5)
    ]
    other_shape = lambda f: {k: x[:, :1] for k, x in exact(f).items()}
    found['no exact'] = [
        verdict(V.verify_runner(path, affine(1.0005), specs['plain'], rows=8, exact=e))[0]
        for e in (lambda f: None, other_shape)
    ]
    count = []
    V.verify_runner(path, affine(count=count), specs['plain'], rows=20)
    found['count'] = count
    net, other = Takes(3, 2), Takes(3, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.arange(p.numel()).view(p.shape) / 4 - 0.5)
    own = made(
        [('Gemm', ['x', 'w', 'b'], ['y'], dict(transB=1))],
        [info('x', ['batch', 3])],
        [info('y', ['batch', 2])],
        [constant('w', net.weight.detach().numpy()), constant('b', net.bias.detach().numpy())],
    )
    saved(own, tmp_path / 'own.onnx')
    x = torch.randn(2, 3)
    for name, a in dict(
        right=(tmp_path / 'own.onnx', net, x),
        other=(tmp_path / 'own.onnx', other, x),
        swapped=(net, tmp_path / 'own.onnx', x),
        alone=(tmp_path / 'own.onnx',),
        file=(tmp_path / 'own.onnx', tmp_path / 'own.onnx'),
        another=(tmp_path / 'own.onnx', path),
    ).items():
        found[f'verify {name}'] = words(lambda a=a: verdict(V.verify(*a))[:4], folder=tmp_path)
    for key, notes in enumerate(
        (
            dict(source='a/b'),
            dict(source='x.onnx'),
            dict(source='zzz-none'),
            {'fsdl.source': 'bert', 'fsdl.pretrained': 'true'},
            {'fsdl.seed': 'x'},
            {'fsdl.seed': '1.5', 'fsdl.source': 'tests.onnx.test_answers:unknown'},
            {'fsdl.sizes': '[1]'},
            {'fsdl.sizes': '{"batch": 0}'},
            {'fsdl.config': '3', 'fsdl.source': 'x'},
            {'fsdl.weights': 'abc'},
        )
    ):
        p = saved(mlp(**notes), tmp_path / 'noted.onnx')
        found[f'noted {notes}'] = (
            words(lambda p=p: verdict(V.verify(p))[:2], folder=tmp_path),
            words(lambda p=p: verdict(V.verify(p, net, x))[:2], folder=tmp_path),
        )
    found['sizes'] = [V._is_size(v) for v in (1, 0, -1, [1, 2], [], [0], 2**31, 2**31 - 1, True, '3')]
    found['names'] = (
        [
            answer(V.noted_source, dict(source=x))
            for x in ('resnet18', 'a/b', 'a:b', 'a\\b', 'x.json', '', str(tmp_path))[:6]
        ],
        V.noted_source({}),
        V.noted_source({'fsdl.source': 'q'}),
    )
    found['finger'] = (
        len(V.graph_fingerprint(net)),
        V.graph_fingerprint(net) == V.graph_fingerprint(other),
        V.graph_fingerprint(net) == V.graph_fingerprint(net.double()),
    )
    plain = nn.Linear(2, 1, bias=False)
    plain.weight.data = torch.tensor([[1.0, 2.0]])
    found['fingerprint'] = V.graph_fingerprint(plain)
    found['rounding'] = [
        bool(V._Trial._may_be_rounding(SimpleNamespace(exact=e, rtol=0.001), dict(ok=ok, max_rel=r)))
        for e in (None, 1)
        for ok in (True, False)
        for r in (None, 0.5, 0.999, 1.0, 1.1)
    ]
    found['table'] = (
        str(
            V.Verification(
                'a/b.onnx',
                'torch',
                0.1,
                False,
                'why',
                ({'output': 'y', 'max_abs': 0.5, 'max_rel': 0.01, 'spread': 2.0, 'top1': 0.5},),
                'note',
            ).table()
        ),
        V.Verification('b', 't', 0.1, True, '', ()).table().notes,
    )
    found['numbers'] = (
        {
            k: str(v.dtype)
            for k, v in V._in_double(dict(a=np.ones(1, 'float32'), b=np.ones(1, 'int64'), c=np.ones(1, bool))).items()
        },
        V.exact_runner(Fake(lambda x: x.nothing if x.dtype == torch.float64 else x))(
            dict(input_ids=np.ones(1, 'float32'))
        )
        is None,
        str(V.exact_runner(nn.Linear(1, 1))(dict(x=np.ones((1, 1), 'float32')))['output'].dtype),
        str(V._as_numpy(torch.ones(1, dtype=torch.bfloat16)).dtype),
    )
    same_answers(request, 'verification', found)


# Exporting


def test_exporting(request, tmp_path):
    "Names and notes of files, places to work in, data that is put in place, and declarations made true"
    found = {}
    found['first'] = E._first(None), E._first(dict(a=3, b=[4, 5]))
    size = lambda expr: SimpleNamespace(node=SimpleNamespace(expr=expr))
    ranges = {
        k: SimpleNamespace(lower=a, upper=b)
        for k, (a, b) in dict(p=(0, 2**40), q=(2, 2**31), r=(3, 2**31 - 1), s=(5, 8)).items()
    }
    found['limits'] = (
        [list(E._limits_of(axis, size(k), ranges)) for k in 'pqrsx' for axis in ('batch', 3)],
        list(E._limits_of('batch', 4, ranges)),
    )
    found['opset'] = [answer(E._check_opset, o) for o in (17, 18, 23, 24, 20.0, '20')]
    found['title'] = E._title('a'), E._title(nn.Linear(1, 1)), E._title(SimpleNamespace(name='n'))
    found['notes'] = E._as_notes(dict(a='x', b=None, c=[1], d=0, e={'k': True}))
    specs = [InputSpec('x', ('batch', 'sequence', 4, 'else'))]
    found['fixed'] = [
        E._fixed(specs, f, s)[0].shape
        for f in ((), ('batch',), ('sequence', 'else'))
        for s in (None, dict(sequence=[9, 3], batch=5))
    ]
    found['axis'] = [E._named_axis(v, dict(batch=[1, 3], n=[3, 5]), 'new') for v in ([2, 2], [1, 3], [3, 5], [3, 1])]
    found['ours'] = [
        E._is_ours(n, Path('m.onnx'))
        for n in (
            'm.onnx.0123abcd.data',
            'm.onnx.0123abcde.data',
            'm.onnx.data',
            'mxonnx.0123abcd.data',
            'm.onnx.0123ABCD.data',
            'm.onnx.0123abcd.data.x',
        )
    ]
    name = E._name_for(tmp_path / 'm.onnx')
    found['name'] = re.sub('[0-9a-f]{8}$', 'HEX', name), len(E._name_for(tmp_path / ('x' * 200)))
    found['targets'] = [words(E._target, p, folder=tmp_path) for p in (tmp_path, '/dev/null')]

    def stage(path, error=None):
        with E.staging(path) as tmp:
            (tmp / 'f').write_text('x')
            inside = tmp.parent == path.parent, tmp.is_dir(), tmp.name.startswith(f'.{path.name[:20]}')
            if error:
                raise error
        return inside, tmp.exists()

    for error in (None, OSError(28, 'No space left'), OSError('plain'), OSError(2, 'gone', 'file'), ValueError('v')):
        found[f'staged {error!r}'] = words(stage, tmp_path / 'm.onnx', error, folder=tmp_path)
    found['staged nowhere'] = words(stage, tmp_path / 'no' / 'm.onnx', folder=tmp_path)
    goal = tmp_path / 'goal'
    goal.mkdir()
    listing = []
    for k in range(3):
        with E.staging(goal / 'm.onnx') as tmp:
            part = tmp / E._name_for(goal / 'm.onnx')
            if k < 2:
                onnx.save(mlp(), str(part), save_as_external_data=True, location=f'{part.name}.data', size_threshold=0)
            else:
                saved(mlp(), part)
            E.install(part, goal / 'm.onnx')
        listing.append(sorted(re.sub('[0-9a-f]{8}', 'HEX', p.name) for p in goal.iterdir()))
    (goal / 'm.onnx.data').write_text('not ours')
    E._remove(['m.onnx.data', 'm.onnx.0123abcd.data'], goal / 'm.onnx')
    found['installed'] = listing, (goal / 'm.onnx.data').exists(), E._inspect_external(goal / 'nothing.onnx')
    for out in (('batch', 2), ('n', 2), ('batch', 'k'), (5, 2), ('batch', 3)):
        p = saved(mlp(out=out), tmp_path / 'd.onnx')
        found[f'declared {out}'] = (
            E._declare(p, [InputSpec('x', ('batch', 3))], None),
            [G._io(o) for o in onnx.load(str(p)).graph.output],
        )
    runs = E._runs(
        saved(mlp(), tmp_path / 'r.onnx'),
        [InputSpec('x', ('batch', 3)), InputSpec('gone', ('batch',))],
        dict(batch=2),
        {'x'},
    )
    found['runs'] = (
        [({k: v.shape for k, v in f.items()}, {k: v.shape for k, v in g.items()}) for f, g in runs],
        E._runs(saved(mlp(), tmp_path / 'r.onnx'), [InputSpec('x', ('batch', 4))], None, {'x'}),
    )
    both = saved(
        made([('Relu', ['x'], ['y'])], [info('x', ['batch', 'sequence'])], [info('y', ['batch', 'sequence'])]),
        tmp_path / 'both.onnx',
    )
    found['runs of both'] = [
        [list(v.shape) for v in f.values()]
        for f, g in E._runs(both, [InputSpec('x', ('batch', 'sequence'))], None, {'x'})
    ]
    found['sizes declared'] = E._sizes_declared(mlp().graph.input, [dict(x=np.ones((2, 3))), dict(x=np.ones((5, 3)))])
    source = lambda m: S.Source(m, [InputSpec('x', ('batch', 2))], 'n', dict(a=1))
    half = nn.Linear(2, 2).half()
    found['kernel'] = [
        E._no_kernel(source(m), t)
        for m in (half, nn.Linear(2, 2))
        for t in (
            [],
            ['Could not find an implementation for Gemm(13) node'],
            [
                'Could not find an implementation for Add',
                'Could not find an implementation for Add and Could not find an implementation for Mul',
            ],
        )
    ]
    found['random'] = (
        [E._is_random(source(m), None) for m in (nn.Linear(2, 2), Fake(torch.rand_like), Fake(lambda x: x.nothing))],
        E._beyond(source(Fake(torch.rand_like)), None, []),
        E._beyond(source(nn.Linear(2, 2)), None, []),
    )
    found['differ'] = [
        E._differ([torch.ones(1), torch.ones(a)], [torch.ones(1), torch.zeros(b)]) for a, b in ((0, 0), (1, 1))
    ]
    job = E._Job(source(nn.Linear(2, 2)), Path('x'), 20, dict(batch=[4, 2]), None, None, None)
    found['told'] = (
        E._told(job, []).info,
        E._told(
            E._Job(
                *[
                    getattr(job, f) if f != 'sizes' else None
                    for f in ('source', 'made', 'opset', 'sizes', 'external', 'rtol', 'metadata')
                ]
            ),
            [],
        ).info,
    )
    notes = E._metadata(job.source, ('c',), dict(more='x', a=None))
    found['metadata'] = {k: v for k, v in notes.items() if k not in ('fsdl.torch', 'fsdl.onnx', 'fsdl.weights')}
    found['disturbed'] = E._disturbed(job.source).name, E._disturbed(job.source).module is job.source.module
    program = SimpleNamespace(
        exported_program=SimpleNamespace(
            range_constraints=ranges,
            graph_signature=SimpleNamespace(user_inputs=['a', 'b']),
            graph=SimpleNamespace(
                nodes=[
                    SimpleNamespace(
                        op='placeholder', name=n, meta=dict(val=SimpleNamespace(shape=[size(k), size('p')]))
                    )
                    for n, k in (('w', 's'), ('a', 'r'), ('b', 's'))
                ]
                + [SimpleNamespace(op='call', name='a')]
            ),
        )
    )
    found['limits of a trace'] = (
        E.limits(program, [InputSpec('a', ('batch', 'x')), InputSpec('b', ('batch', 3))]),
        E._changes(program, job, ('cure',), ('batch', 'q')),
        len(E._traced_inputs(program.exported_program)),
    )
    same_answers(request, 'exporting', found)


# Decoders

VOCAB = 7


def counting_decoder(**notes):
    "A decoder that counts: after token t comes t + 1, whatever is in its cache, which keeps the tokens"
    table = np.eye(VOCAB, dtype='float32')[(np.arange(VOCAB) + 1) % VOCAB] * 5
    nodes = [
        ('Gather', ['table', 'input_ids'], ['logits']),
        ('Cast', ['input_ids'], ['f'], dict(to=FLOAT)),
        ('Unsqueeze', ['f', 'ends'], ['k']),
    ]
    nodes += [('Concat', [f'past_key_values.0.{n}', 'k'], [f'present.0.{n}'], dict(axis=2)) for n in ('key', 'value')]
    past = [info(f'past_key_values.0.{n}', ['batch', 1, 'past', 1]) for n in ('key', 'value')]
    inputs = [info('input_ids', ['batch', 'sequence'], LONG), info('attention_mask', ['batch', 'total'], LONG), *past]
    outputs = [
        info('logits', ['batch', 'sequence', VOCAB]),
        *(info(f'present.0.{n}', ['batch', 1, 'past + sequence', 1]) for n in ('key', 'value')),
    ]
    return made(nodes, inputs, outputs, [constant('table', table), constant('ends', [1, 3], 'int64')], **notes)


class Counter(nn.Module):
    "The same as a model of transformers would be"

    def __init__(self, longest=None, by=1):
        super().__init__()
        self.table = nn.Parameter(torch.eye(VOCAB)[(torch.arange(VOCAB) + by) % VOCAB] * 5)
        self.config = SimpleNamespace(
            model_type='counter',
            get_text_config=lambda decoder=False: SimpleNamespace(
                vocab_size=VOCAB, max_position_embeddings=longest, model_type='x', alibi=longest is None
            ),
        )
        self.main_input_name = 'input_ids'

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
        keys = input_ids[:, None, :, None].float()
        return SimpleNamespace(
            logits=self.table[input_ids],
            past_key_values=SimpleNamespace(layers=[SimpleNamespace(keys=keys, values=keys)] * 2),
        )


def test_decoders(request, tmp_path):
    "Token ids and masks, room, stops, prompts, and the text that a graph built by hand writes"
    found = {}
    found['positions'] = D._positions(np.array([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist()
    for ids in (
        [[1, 2], [3]],
        [[1.5]],
        [[1, 2]],
        [1, 2],
        [[]],
        [[-1, 2]],
        [[1, 7]],
        [[1, 6]],
        [['a']],
        [[True]],
        np.array([[1]], 'uint8'),
    ):
        found[f'ids {ids}'] = (
            words(lambda ids=ids: [a.tolist() for a in D._padded(ids, None, VOCAB)]),
            words(lambda ids=ids: [a.tolist() for a in D._padded(ids, None, None)]),
        )
    for mask in ([[1, 1]], [[0, 1]], [[1, 0]], [[0, 0]], [[2, 2]], [[1]], [[1, 1], [1, 1]]):
        found[f'mask {mask}'] = answer(lambda mask=mask: D._padded([[1, 2]], mask, None)[1].tolist())
    for longest, n in ((None, 5), (8, 6), (8, 7), (8, 8), (2, 1), (3, 1)):
        found[f'room {longest} {n}'] = answer(D._check_room, longest, np.array([[0, 1, 1], [1, 1, 1]]), n)
    found['noted'] = [D._noted_length(t) for t in ('5', '0', '12345678', '1234567890', 'x', '', None, '05')]
    found['stops'] = [
        answer(lambda s=s: D._stops(s).tolist())
        for s in (
            None,
            3,
            [1, 2],
            'x',
            True,
            -1,
            np.array(4),
            np.array([4, 5]),
            (x for x in [1]),
            126,
            200,
            2**63,
            1.5,
            [],
        )
    ]
    ids, mask = D._prompt(np.random.default_rng(0), [6, 3], 50)
    found['prompt'] = ids.tolist(), mask.tolist()
    found['wrong'] = [
        D._what_is_wrong(dict(equal=e, tokens=5, declared=d), 4) for e in (True, False) for d in ({}, dict(a='x'))
    ]
    found['step'] = (
        [
            list(t.shape) if hasattr(t, 'shape') else [list(x.shape) for x in t]
            for t in D._step_arguments([(2, 4), (2, 5)])
        ],
        D._step_arguments([])[2].tolist(),
        D._step_axes(2),
    )
    path = saved(counting_decoder(**{'fsdl.longest': '9'}), tmp_path / 'd.onnx')
    d = D.Decoder(path)
    found['decoder'] = d.takes, d.gives, d.longest, d.past, {k: v.shape for k, v in d.empty(3).items()}
    for ids, kw in (
        ([[0]], dict(n=4)),
        ([[5, 6], [1, 2]], dict(n=3)),
        ([[0, 0], [1, 2]], dict(n=3, mask=[[0, 1], [1, 1]])),
        ([[0]], dict(n=6, stop=3)),
        ([[0], [2]], dict(n=6, stop=[3, 5])),
        ([[0], [2]], dict(n=6, stop=4)),
        ([[0]], dict(n=0)),
        ([[0]], dict(n=9)),
        ([[0]], dict(n=10)),
        ([[9]], dict(n=1)),
        ([[0]], dict(n=2, stop='x')),
    ):
        found[f'text {ids} {kw}'] = answer(lambda ids=ids, kw=kw: d.generate(ids, **kw).tolist())
    logits, past = d.step(
        np.array([[2]]), np.ones((1, 3), 'int64'), {k: np.ones((1, 1, 2, 1), 'float32') for k in d.past}
    )
    found['stepped'] = logits.argmax(-1).tolist(), {k: v.ravel().tolist() for k, v in past.items()}
    found['no cache'] = words(D.Decoder, saved(mlp(), tmp_path / 'm.onnx'), folder=tmp_path)
    for longest, n in ((None, 3), (6, 3), (6, 5), (6, 6)):
        found[f'greedy {longest} {n}'] = answer(
            lambda longest=longest, n=n: D.greedy_torch(Counter(longest), [[1, 2]], n).tolist()
        )
    found['greedy padded'] = D.greedy_torch(Counter(), [[0, 2], [1, 2]], 2, [[0, 1], [1, 1]]).tolist()
    found['room'] = [answer(D._room, Counter(l), n) for l in (None, 7, 8, 20) for n in (2, 9, 0)]
    found['cache'] = D.cache_shapes(Counter()), answer(D.cache_shapes, Fake(lambda x: SimpleNamespace()))
    found['checked'] = (
        [
            {k: v for k, v in D.check_decoder(path, Counter(by=b), n).items() if k != 'max_rel'}
            for b, n in ((1, 3), (2, 3), (1, 2))
        ],
        D.check_decoder(path, Counter(), 2)['max_rel'] < 1e-6,
    )
    found['keys'] = [
        D._has_keys(SimpleNamespace(**kw))
        for kw in (dict(keys=np.ones((1, 1, 1, 1))), dict(keys=np.ones((1, 1, 1))), dict(), dict(keys=None))
    ]
    fed = SimpleNamespace(_feed=lambda *a: a, _zeros=lambda *a: a, _run=lambda feed: 'got')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            D, 'declared_shapes', lambda model, feed, got: [x.shape if hasattr(x, 'shape') else x for x in feed] + [got]
        )
        found['fed'] = D._misdeclared_cache(path, fed)
    found['misdeclared'] = D._misdeclared_cache(path, d)
    wide = D._stir(nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300)))
    found['stirred'] = 0.083 < wide[0].weight.std().item() < 0.087, wide[1].weight.sum().item()
    found['opened'] = (
        [words(D.open_decoder, w) for w in ('brt', 'tests.onnx.test_answers:unknown')],
        [type(D.open_decoder(Counter().train())).__name__, D.open_decoder(Counter().train()).training],
    )
    same_answers(request, 'decoders', found)


# Rewriting and timing


def test_rewriting(request, tmp_path):
    "Files that agree or do not, what is stored in fewer bits, and shares that are kept"
    found = {}
    found['stackable'] = [
        O._stackable([np.ones(s) for s in shapes])
        for shapes in (((2, 3), (4, 3)), ((2, 3), (2, 4)), ((), (1,)), ((2,), (3,)))
    ]
    runs = [dict(a=np.ones((2, 3)), s=np.float64(1)), dict(a=np.ones((4, 3)), s=np.float64(2))]
    found['samples'] = (
        [[list(x.shape) for x in O._samples(runs, n)] for n in 'as'],
        [list(x.shape) for x in O._samples([dict(a=np.ones((2, 3))), dict(a=np.ones((2, 4)))], 'a')],
    )
    terms = C._Terms('float32', 1e-3, True)
    other = [dict(a=np.arange(6.0).reshape(2, 3)), dict(a=np.arange(12.0).reshape(4, 3) * 0.7)]
    found['compared'] = (
        [rounded({k: v for k, v in r.items()}) for r in O._compared(other, other, terms)],
        O._compared([dict(a=1, b=2)], [dict(a=1)], terms),
        [r['n'] for r in O._compared([dict(s=np.float64(1))], [dict(s=np.float64(1))], terms)],
    )
    found['kept'] = [
        O._kept(rows)
        for rows in ([], [dict(top1=None, n=3)], [dict(top1=1.0, n=1), dict(top1=0.5, n=3), dict(top1=None, n=9)])
    ]
    found['feeds'] = [
        {k: v.shape for k, v in f.items()} for f in O._random_feeds([InputSpec('i', ('batch', 'sequence'), 'int64')])
    ]
    path = saved(mlp(), tmp_path / 'a.onnx')
    near, far = mlp(), mlp()
    for m, by in ((near, 1e-5), (far, 0.2)):
        w = numpy_helper.to_array(m.graph.initializer[0])
        m.graph.initializer[0].CopyFrom(constant('w', w * (1 + by)))
    specs = [InputSpec('x', ('batch', 3))]
    for name, m in dict(near=near, far=far).items():
        for kw in (
            dict(),
            dict(rtol=2.0),
            dict(feeds=[dict(x=np.ones((4, 3), 'float32'))]),
            dict(feeds=[]),
            dict(least=0.2, rtol=2.0, kind='k'),
        ):
            found[f'agreement {name} {[*kw]} {len(kw.get("feeds", "a"))}'] = words(
                lambda m=m, kw=kw: (
                    lambda r: (
                        r.verified,
                        re.sub(r'[\d.]+(e[+-]\d+|%)', 'N', r.note),
                        r.rtol,
                        r.kind,
                        r.nodes,
                        r.nodes_before,
                        r.top1 > 0.5,
                        r.max_rel > 0,
                    )
                )(O._agreement(saved(m, tmp_path / 'b.onnx'), path, specs, **dict(rtol=None) | kw))
            )
    found['calibration'] = [
        answer(lambda c=c: [{k: v.tolist() for k, v in f.items()} for f in O._calibration(c)])
        for c in (None, [], dict(x=[1]), [dict(x=[1]), dict(x=[2])], [3])
    ]
    reader = O._Reader([1, 2])
    found['reader'] = reader.get_next(), reader.get_next(), reader.get_next()
    models = dict(
        plain=mlp(),
        half=mlp('float16'),
        double=mlp('float64'),
        q=made(
            [('QuantizeLinear', ['x', 's'], ['q']), ('DequantizeLinear', ['q', 's'], ['y'])],
            [info('x', [2])],
            [info('y', [2])],
            [constant('s', 1.0)],
        ),
        i=made(
            [('MatMulInteger', ['x', 'w'], ['y'])],
            [info('x', [1, 2], TensorProto.UINT8)],
            [info('y', [1, 1], TensorProto.INT32)],
            [constant('w', [[1], [2]], 'uint8')],
        ),
    )
    for name, m in models.items():
        found[f'stored {name}'] = (
            O._stored_in(m),
            words(O._check_fresh, saved(m, tmp_path / 's.onnx'), 'name', folder=tmp_path),
        )
    for kind in ('int8', 'fp16', 'static', 'int4'):
        r = words(
            lambda kind=kind: (lambda r: (r.kind, r.verified, r.rtol, r.top1 >= 0.5))(
                O.quantise(
                    path,
                    tmp_path / 'q.onnx',
                    kind,
                    calibration=[
                        dict(x=np.random.default_rng(i).standard_normal((4, 3)).astype('float32')) for i in range(4)
                    ]
                    if kind == 'static'
                    else None,
                )
            ),
            folder=tmp_path,
        )
        found[f'quantised {kind}'] = (
            r,
            (tmp_path / 'q.onnx').exists()
            and sorted(
                {re.sub('Linear|Integer|Dynamic', '', o) for o in G.inspect_onnx(tmp_path / 'q.onnx').operators}
                & {'Quantize', 'MatMul', 'Dequantize', 'Gemm', 'Cast'}
            ),
        )
    idle = made(
        [('Identity', ['x'], ['i']), ('Relu', ['i'], ['y'])], [info('x', ['batch', 3])], [info('y', ['batch', 3])]
    )
    r = O.optimise(saved(idle, tmp_path / 'idle.onnx'), tmp_path / 'slim.onnx')
    found['optimised'] = r.kind, r.verified, r.nodes_before, r.nodes, r.max_rel, r.note, r.rtol, Path(r.path).name
    found['refused'] = (
        words(
            O._rewrite,
            path,
            tmp_path / 'out.onnx',
            'name',
            lambda a, b: saved(far, b),
            None,
            specs,
            None,
            folder=tmp_path,
        ),
        words(O._rewrite, path, tmp_path / 'out.onnx', 'name', lambda a, b: 1 / 0, None, specs, None, folder=tmp_path),
        (tmp_path / 'out.onnx').exists(),
        words(
            lambda: (
                O._rewrite(
                    path, tmp_path / 'out.onnx', 'name', lambda a, b: saved(far, b), 0.001, specs, None, 0.5
                ).verified
            )
        ),
        (tmp_path / 'out.onnx').exists(),
    )
    onnx.save(mlp(), str(tmp_path / 'ext.onnx'), save_as_external_data=True, location='ext.data', size_threshold=0)
    (tmp_path / 'copy').mkdir()
    found['whole'] = (
        O._whole(tmp_path / 'ext.onnx', tmp_path / 'copy').name,
        sorted(p.name for p in (tmp_path / 'copy').iterdir()),
    )
    heavy = made([('Add', ['x', 'w'], ['y'])], [info('x', [400])], [info('y', [400])], [constant('w', np.ones(400))])
    beside = []
    for limit in (1600, 1599):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(O, '_inside', limit)
            O._write(heavy, tmp_path / f'{limit}.onnx')
            beside.append((tmp_path / f'{limit}.onnx.data').exists())
            patch.setattr(O, '_inside', path.stat().st_size - (limit == 1599))
            beside.append(O._large(path))
    found['beside'] = beside
    O._write(mlp(), tmp_path / 'w.onnx')
    found['written'] = (tmp_path / 'w.onnx.data').exists(), O._has_convolutions(path), O._large(path)
    same_answers(request, 'rewriting', found)


def test_stopwatches(request, tmp_path, monkeypatch):
    "Rounds, repetitions, medians and ratios by a clock that moves when work is done"
    found, clock = {}, [0.0]
    monkeypatch.setattr(O, 'time', SimpleNamespace(perf_counter=lambda: clock[0]))
    calls = []

    def work(name, seconds):
        def f():
            calls.append(name)
            clock[0] += seconds

        return f

    for seconds, span in ((0.004, 0.02), (0.03, 0.02), (0.0, 0.02), (0.01, 0.02)):
        found[f'often {seconds} {span}'] = O._repetitions(work('r', seconds), span)
    found['a call'] = O._seconds_a_call(work('c', 0.5), 4)
    calls.clear()
    found['rounds'] = (
        {
            k: [round(s, 6) for s in v]
            for k, v in O.rounds(dict(a=work('a', 0.01), b=work('b', 0.004), c=work('c', 1.0)), n=3).items()
        },
        ''.join(calls),
        answer(O.rounds, dict(a=work('a', 1)), 0),
    )
    found['started'] = O._started(lambda s: work('s', s), 2.0)[1]
    durations = iter([1.0, 2.0, 4.0, 3.0, 10.0, 1.0, 2.0, 1.0, 5.0, 2.0] * 2)
    monkeypatch.setattr(O, 'rounds', lambda runners, n: {k: [next(durations) for _ in range(n)] for k in runners})
    timings = O._timings(dict(eager=(None, 0.5), file=(None, 0.25)), dict(model='m', batch=2, threads=1, rounds=5))
    found['timings'] = [t.to_dict() for t in timings]
    found['table'] = str(O.timing_table(timings))
    path = saved(mlp(), tmp_path / 'm.onnx')
    durations, said = iter(range(1, 1000)), []
    threads = torch.get_num_threads()
    many = O.benchmark(
        Fake(lambda x: x), dict(file=path), batches=(1, 4), threads=(1, 2), n=3, progress=said.append, name=None
    )
    found['benchmark'] = (
        [(t.model, t.runner, t.batch, t.threads, t.rounds, round(t.ratio, 6)) for t in many],
        said,
        torch.get_num_threads() == threads,
        words(O.benchmark, nn.Linear(1, 1), dict(f=tmp_path / 'no.onnx'), folder=tmp_path),
    )
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda m: compiled.append(1) or m)
    found['compiled'] = (
        list(O._runners(Fake(lambda x: x), dict(file=path), dict(x=np.ones((1, 3), 'float32')), 1, True)),
        compiled,
        list(O._runners(Fake(lambda x: x), {}, dict(x=np.ones((1, 3), 'float32')), 1, False)),
    )
    torch.set_num_threads(threads)
    data = json.loads(Path(O.save_timings(timings, tmp_path / 't.json')).read_text())
    found['kept'] = sorted(data), sorted(data['versions']), data['timings'] == [t.to_dict() for t in timings]
    same_answers(request, 'stopwatches', found)
