"""How many planted faults does `verify` find, and how many right files does it refuse?

    python benchmarks/onnx_mutations.py run [--seconds 400] [--backwards]    # resumable: stops after so long, goes
    on where it stopped
    python benchmarks/onnx_mutations.py run --kinds precision  # only these kinds again, and the right files
    python benchmarks/onnx_mutations.py collect                # writes fsdl_tools/data/results/onnx_mutations.json

Small networks of many kinds are exported. Then one thing at a time is changed in the file: a weight, an operator, an
attribute, a constant, the names of outputs, a branch,
a declared shape, a precision. A change matters when the answers to one of 64 inputs that `verify` does not use are
off by more than ten times the tolerance, relative to how
much an entry varies, or when the declared shape is wrong. What matters has to be refused. Beside it:
`np.allclose(rtol=1e-3, atol=1e-5)` on one random input of the size that
was traced. Right files come from two exporters, operator sets 11 to 23, optimisers and rewriters; none may be refused.
"""

import argparse
import contextlib
import copy
import datetime
import io
import json
import logging
import math
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

here = Path(__file__).resolve().parent
lines = here.parent / '.cache' / 'onnx_mutations.jsonl'
result = here.parent / 'fsdl_tools' / 'data' / 'results' / 'onnx_mutations.json'
unseen = 64  # inputs that decide whether a change matters
unseen_seed = 10**6  # verify draws with seeds below


# Networks


def networks():
    "Name -> (module, InputSpecs), the same for every call"
    import torch
    from torch import nn
    from fsdl_tools.onnx.run import InputSpec

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x):
            h = self.a(x).relu()
            return self.c(h + self.b(h).tanh())

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x):
            h = nn.functional.gelu(self.a(x))
            return dict(low=self.b(h), high=self.c(h).sigmoid())

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x):
            b, n, c = x.shape
            q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4)
            a = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
            return x + self.out((a @ v).transpose(1, 2).reshape(b, n, c))

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm, self.out = nn.Embedding(40, 16), nn.LayerNorm(16), nn.Linear(16, 7)

        def forward(self, ids):
            return self.out(self.norm(self.words(ids)).mean(1))

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 9)

        def forward(self, x):
            padding = torch.zeros(9)
            padding[-1] = -1e9
            return self.b(self.a(x).relu()) + padding

    class Gates(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 6)

        def forward(self, x):
            h = nn.functional.relu6(self.a(x) * 4)
            return torch.where(h.sum(-1, keepdim=True) > 20, self.b(h), nn.functional.leaky_relu(self.b(h), 0.1))

    class Wide(nn.Module):
        "Values of some thousands on the way, as residual streams have"

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.b((self.a(x) * 4096).relu() / 4096)

    def convolutions():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 6),
        )

    def one_dimensional():
        return nn.Sequential(
            nn.Conv1d(2, 6, 5, stride=2, padding=2),
            nn.GroupNorm(2, 6),
            nn.Hardswish(),
            nn.AvgPool1d(3, 1, 1),
            nn.Conv1d(6, 3, 1),
        )

    def upward():
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.ELU(),
            nn.Upsample(scale_factor=2),
            nn.ConvTranspose2d(6, 3, 2, stride=2),
            nn.Sigmoid(),
        )

    def deep():
        return nn.Sequential(
            *[k for _ in range(6) for k in (nn.Linear(12, 12), nn.LayerNorm(12), nn.Mish())],
            nn.Linear(12, 4),
            nn.LogSoftmax(-1),
        )

    row = lambda n: [InputSpec('x', ('batch', n))]
    made = dict(
        residual=(Residual, row(8)),
        two=(Two, row(6)),
        masked=(Masked, row(6)),
        clipped=(Clipped, row(6)),
        wide=(Wide, row(8)),
        deep=(deep, row(12)),
        attention=(Attention, [InputSpec('x', ('batch', 'time', 16))]),
        words=(Words, [InputSpec('ids', ('batch', 'time'), 'int64', high=40)]),
        gates=(Gates, [InputSpec('x', ('batch', 6, 5))]),
        convolutions=(convolutions, [InputSpec('x', ('batch', 3, 12, 12))]),
        one_dimensional=(one_dimensional, [InputSpec('x', ('batch', 2, 'time'))]),
        upward=(upward, [InputSpec('x', ('batch', 2, 6, 6))]),
    )
    out = {}
    for i, (name, (make, specs)) in enumerate(made.items()):
        torch.manual_seed(i)
        m = make().eval()
        for k in m.modules():
            if isinstance(k, nn.BatchNorm2d):
                k.running_mean.normal_()
                k.running_var.uniform_(0.5, 2)
        out[name] = m, specs
    return out


# Planted changes: each takes a copy of the model and a random generator, changes it, and says what it did; None where
# it does not apply


def weights_of(m):
    "Float initialisers"
    return [t for t in m.graph.initializer if t.data_type == 1]


def store(t, a):
    from onnx import numpy_helper

    t.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(a.astype('float32')), t.name))


def plant_weight(m, rng):
    "Something about one weight"
    from onnx import numpy_helper

    ts = [t for t in weights_of(m) if math.prod(t.dims) > 1]
    if not ts:
        return None
    t = rng.choice(ts)
    a = numpy_helper.to_array(t).copy()
    how = rng.choice(
        [
            'one entry',
            'sign of one',
            'scaled',
            'shifted',
            'zeroed',
            'rows exchanged',
            'transposed',
            'noise',
            'reversed',
            'one row zeroed',
        ]
    )
    k = rng.randrange(a.size)
    if how == 'one entry':
        a.flat[k] += rng.choice([0.03, 0.3, 3])
    if how == 'sign of one':
        a.flat[k] *= -1
    if how == 'scaled':
        a *= rng.choice([0.99, 1.01, 1.1, 2])
    if how == 'shifted':
        a += rng.choice([0.003, 0.03])
    if how == 'zeroed':
        a *= 0
    if how == 'rows exchanged' and len(a) > 1:
        a[[0, -1]] = a[[-1, 0]]
    if how == 'transposed' and a.ndim > 1:
        a = np.swapaxes(a, 0, 1).reshape(a.shape)
    if how == 'noise':
        a += rng.choice([0.01, 0.1]) * np.random.default_rng(rng.randrange(10**9)).standard_normal(a.shape)
    if how == 'reversed':
        a = a[::-1]
    if how == 'one row zeroed':
        a[rng.randrange(len(a))] = 0
    store(t, a)
    return f'{t.name}: {how}'


_other = dict(
    Relu=['Identity', 'LeakyRelu', 'Elu', 'Softplus'],
    Tanh=['Erf', 'Softsign', 'Sigmoid'],
    Sigmoid=['HardSigmoid', 'Tanh'],
    Add=['Sub', 'Max'],
    Sub=['Add'],
    Mul=['Add', 'Div'],
    Div=['Mul'],
    MaxPool=['AveragePool'],
    AveragePool=['MaxPool'],
    Softmax=['LogSoftmax', 'Hardmax'],
    LogSoftmax=['Softmax'],
    ReduceMean=['ReduceSum', 'ReduceMax'],
    GlobalAveragePool=['GlobalMaxPool'],
    LeakyRelu=['Relu', 'Elu'],
    Elu=['Relu', 'Selu'],
    HardSwish=['Relu', 'Identity'],
    Softplus=['Relu'],
    Mish=['Relu', 'HardSwish'],
    Gelu=['Relu', 'HardSwish'],
    Greater=['Less', 'GreaterOrEqual'],
    Erf=['Tanh'],
    Sqrt=['Identity', 'Abs'],
    Exp=['Identity'],
    Reciprocal=['Identity'],
)


def plant_operator(m, rng):
    "One node computes something else"
    ns = [n for n in m.graph.node if n.op_type in _other and n.domain in ('', 'ai.onnx')]
    if not ns:
        return None
    n = rng.choice(ns)
    to = rng.choice(_other[n.op_type])
    words = f'{n.name}: {n.op_type} to {to}'
    keep = dict(
        LeakyRelu=('alpha',),
        Elu=('alpha',),
        AveragePool=('kernel_shape', 'strides', 'pads'),
        MaxPool=('kernel_shape', 'strides', 'pads'),
    ).get(to, ('axis', 'keepdims'))
    if to in ('Softmax', 'LogSoftmax', 'Hardmax', 'ReduceSum', 'ReduceMax', 'AveragePool', 'MaxPool'):
        kept = [a for a in n.attribute if a.name in keep]
    else:
        kept = []
    del n.attribute[:]
    n.attribute.extend(kept)
    n.op_type = to
    return words


def plant_attribute(m, rng):
    "One attribute has another value"
    pairs = [
        (n, a)
        for n in m.graph.node
        for a in n.attribute
        if a.name
        in (
            'axis',
            'epsilon',
            'alpha',
            'pads',
            'strides',
            'dilations',
            'perm',
            'group',
            'approximate',
            'num_groups',
            'linear_before_reset',
            'direction',
            'count_include_pad',
            'ceil_mode',
            'mode',
            'nearest_mode',
            'coordinate_transformation_mode',
            'transB',
            'beta',
            'keepdims',
        )
    ]
    if not pairs:
        return None
    n, a = rng.choice(pairs)
    before = str(a).replace('\n', ' ')
    if a.type == 1:
        a.f = a.f * rng.choice([0.5, 2, 10]) if a.f else 0.1
    elif a.type == 2:
        a.i = rng.choice([v for v in (-2, -1, 0, 1, 2) if v != a.i])
    elif a.type == 3:
        a.s = {
            b'none': b'tanh',
            b'tanh': b'none',
            b'forward': b'reverse',
            b'nearest': b'linear',
            b'floor': b'ceil',
            b'asymmetric': b'half_pixel',
            b'half_pixel': b'asymmetric',
            b'constant': b'reflect',
        }.get(a.s, a.s)
    elif a.type == 7:
        v = list(a.ints)
        if a.name == 'perm':
            i, j = rng.sample(range(len(v)), 2)
            v[i], v[j] = v[j], v[i]
        else:
            k = rng.randrange(len(v))
            v[k] = max(0, v[k] + rng.choice([-1, 1]))
        a.ints[:] = v
    return f'{n.name}: {before.strip()} changed'


def plant_constant(m, rng):
    "One number that is no weight: of a scalar, a shape, an index"
    from onnx import numpy_helper

    ts = [t for t in m.graph.initializer if math.prod(t.dims) <= 4]
    ts += [
        a.t
        for n in m.graph.node
        if n.op_type == 'Constant'
        for a in n.attribute
        if a.name == 'value' and math.prod(a.t.dims) <= 4
    ]
    if not ts:
        return None
    t = rng.choice(ts)
    a = numpy_helper.to_array(t).copy()
    if a.size == 0 or a.dtype.kind not in 'fi':
        return None
    k = rng.randrange(a.size)
    a.flat[k] = (
        a.flat[k] * rng.choice([0.5, 1.01, 2]) if a.dtype.kind == 'f' and a.flat[k] else a.flat[k] + rng.choice([-1, 1])
    )
    t.CopyFrom(numpy_helper.from_array(a, t.name))
    return f'{t.name}: one number changed'


def plant_names(m, rng):
    "The names of two outputs exchanged"
    names = [o.name for o in m.graph.output]
    if len(names) < 2:
        return None
    a, b = rng.sample(names, 2)
    other = {a: b, b: a}
    for n in m.graph.node:
        n.output[:] = [other.get(o, o) for o in n.output]
        n.input[:] = [other.get(i, i) for i in n.input]
    for o in m.graph.output:
        o.name = other.get(o.name, o.name)
    return f'{a} and {b} exchanged'


def plant_branch(m, rng):
    "A sum, a product or a choice keeps one of its sides; a node of one input is left out"
    from onnx import helper

    known = {t.name for t in m.graph.initializer} | {
        o for n in m.graph.node if n.op_type == 'Constant' for o in n.output
    }
    ns = [
        n
        for n in m.graph.node
        if n.op_type
        in (
            'Add',
            'Mul',
            'Sub',
            'Where',
            'Concat',
            'Relu',
            'Tanh',
            'Sigmoid',
            'LayerNormalization',
            'Softmax',
            'Gelu',
            'Transpose',
            'Clip',
            'HardSwish',
            'Mish',
            'Neg',
        )
    ]
    if not ns:
        return None
    n = rng.choice(ns)
    sides = [i for k, i in enumerate(n.input) if i not in known and not (n.op_type == 'Where' and k == 0)]
    if not sides:
        return None
    keep = rng.choice(sides)
    words = f'{n.name}: {n.op_type} keeps {keep}'
    n.CopyFrom(helper.make_node('Identity', [keep], list(n.output), name=n.name))
    return words


def plant_shape(m, rng):
    "An output declares another shape"
    o = rng.choice(list(m.graph.output))
    dims = o.type.tensor_type.shape.dim
    how = rng.choice(['size', 'pinned', 'one more', 'one less', 'name'])
    k = rng.randrange(len(dims))
    if how == 'size':
        fixed = [d for d in dims if d.HasField('dim_value')]
        if not fixed:
            return None
        rng.choice(fixed).dim_value += rng.choice([1, 3])
    elif how == 'pinned':
        free = [d for d in dims if d.dim_param]
        if not free:
            return None
        rng.choice(free).dim_value = 2
    elif how == 'one more':
        dims.add().dim_value = 1
    elif how == 'one less':
        del dims[k]
    else:
        names = {d.dim_param for i in m.graph.input for d in i.type.tensor_type.shape.dim if d.dim_param}
        fixed = [d for d in dims if d.HasField('dim_value')]
        if not names or not fixed:
            return None
        rng.choice(fixed).dim_param = rng.choice(sorted(names))
    del m.graph.value_info[:]
    return f'{o.name}: {how}'


def plant_precision(m, rng):
    "A value is stored in float16, after it was scaled so that it may overflow; the scale is taken back afterwards"
    from onnx import helper, numpy_helper

    ns = [
        n
        for n in m.graph.node
        if n.op_type in ('Gemm', 'MatMul', 'Conv', 'Add', 'Relu', 'LayerNormalization', 'Gelu', 'Tanh', 'Mul')
    ]
    if not ns:
        return None
    n = rng.choice(ns)
    factor, out = float(rng.choice([2**8, 2**12, 2**16, 2**18])), n.output[0]
    n.output[0] = f'{out}_before'
    steps = [
        ('Mul', [f'{out}_before', 'planted_up'], f'{out}_up', {}),
        ('Cast', [f'{out}_up'], f'{out}_half', dict(to=10)),
        ('Cast', [f'{out}_half'], f'{out}_wide', dict(to=1)),
        ('Mul', [f'{out}_wide', 'planted_down'], out, {}),
    ]
    i = list(m.graph.node).index(n)
    for k, (op, ins, made, attrs) in enumerate(steps):
        m.graph.node.insert(i + 1 + k, helper.make_node(op, ins, [made], **attrs))
    m.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(factor, 'float32'), 'planted_up'),
            numpy_helper.from_array(np.array(1 / factor, 'float32'), 'planted_down'),
        ]
    )
    return f'{n.name}: stored in float16, times {factor:,.0f}'


kinds = dict(
    weight=(plant_weight, 80),
    operator=(plant_operator, 20),
    attribute=(plant_attribute, 24),
    constant=(plant_constant, 24),
    outputs=(plant_names, 4),
    branch=(plant_branch, 18),
    shape=(plant_shape, 12),
    precision=(plant_precision, 20),
)  # kind -> what plants it, how often a network is tried
more = dict(outputs=10)  # only one network has two outputs


# What matters


def answers(path, feeds):
    "What a file answers, stored in 16 bits where it stores in 16 bits; raises ValueError where it does not run"
    from fsdl_tools.onnx.stored import _file_ways

    with _file_ways(path) as file:
        return [list(file.ways.values())[-1](f) for f in feeds]


def scale_of(right, name):
    "How much each entry of an output varies, and at least how much a typical one does"
    b = np.stack([r[name] for r in right]).astype('float64')
    spread = b.std(0)
    varied = spread[spread > 1e-6 * np.abs(b).max(0)]
    return b, np.maximum(spread, np.median(varied) if varied.size else 0) + 0.04 * np.abs(b).max(0)


def matters(path, feeds, right, kind):
    """Are the answers off by more than ten times the tolerance on one of the inputs? None where the file does not
    run: that is found by anybody
    """
    try:
        got = answers(path, feeds)
    except ValueError:
        return None
    if kind == 'shape':
        return True
    for name in right[0]:
        b, scale = scale_of(right, name)
        if name not in got[0] or any(g[name].shape != b.shape[1:] for g in got):
            return True
        a = np.stack([g[name] for g in got]).astype('float64')
        with np.errstate(invalid='ignore'):
            off = np.abs(a - b) / np.where(scale > 0, scale, 1e-30)
        if not np.isfinite(a).all() or off.max() > 10 * 1e-4:
            return True
    return False


def allclose(path, module, specs):
    "What most people do: one random input of the size that was traced"
    from fsdl_tools.onnx.run import infer, random_inputs, session
    from fsdl_tools.onnx.verify import torch_runner

    feed = random_inputs(specs, seed=0)
    try:
        got = infer(session(path), feed)
    except ValueError:
        return False
    ref = torch_runner(module)(feed)
    return len(got) == len(ref) and all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-5)
        for a, b in zip(got.values(), ref.values(), strict=True)
    )


_known = {}


def remembered(run, key):
    "A reference that is asked the same question for every mutant: answers of one network are kept"
    if _known.get('key') != key:
        _known.clear()
        _known['key'] = key

    def ask(feed):
        question = tuple((k, v.shape, v.tobytes()) for k, v in feed.items())
        if question not in _known:
            _known[question] = run(feed)
        return _known[question]

    return ask


def verified(path, module, specs):
    "The verdict of the library: (verified, why not)"
    from fsdl_tools.onnx.verify import exact_runner, torch_runner, verify_runner

    try:
        v = verify_runner(path, remembered(torch_runner(module), id(module)), specs, exact=exact_runner(module))
    except ValueError as e:
        return False, str(e)[:200]
    return v.ok, v.reason[:200]


def mutants(name, module, specs, path, feeds, right, tries=None, chosen=()):
    "One record for each planted change of a network"
    import onnx

    whole, seen = onnx.load(str(path)), set()
    for kind, (plant, n) in kinds.items():
        if chosen and kind not in chosen:
            continue
        for k in range(tries or n * more.get(kind, 1) if kind != 'outputs' or len(whole.graph.output) > 1 else 0):
            rng, m = random.Random(f'{name} {kind} {k}'), copy.deepcopy(whole)
            words = plant(m, rng)
            data = m.SerializeToString()
            if words is None or data in seen:
                continue
            seen.add(data)
            target = path.with_name('mutant.onnx')
            target.write_bytes(data)
            try:
                onnx.checker.check_model(str(target))
            except onnx.checker.ValidationError:
                continue  # refused by anybody
            hit = matters(target, feeds, right, kind)
            ok, why = verified(target, module, specs) if hit else (None, '')
            yield dict(
                network=name,
                kind=kind,
                number=k,
                what=words,
                matters=hit,
                refused=None if ok is None else not ok,
                why=why,
                allclose=not allclose(target, module, specs) if hit else None,
            )


# Right files


@contextlib.contextmanager
def quiet():
    old = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(old)


def by_torchscript(module, specs, path, opset):
    "The exporter before the present one, which traces"
    import torch
    from fsdl_tools.onnx.cures import named_outputs
    from fsdl_tools.onnx.run import random_inputs

    feed = {k: torch.from_numpy(v) for k, v in random_inputs(specs).items()}
    names = list(named_outputs(module, feed))
    axes = {s.name: {i: d for i, d in enumerate(s.shape) if isinstance(d, str)} for s in specs}
    outs = {n: {0: 'batch'} for n in names}

    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = module

        def forward(self, *xs):
            return tuple(named_outputs(self.m, dict(zip(feed, xs, strict=True))).values())

    with torch.no_grad():
        torch.onnx.export(
            Flat().eval(),
            tuple(feed.values()),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=list(feed),
            output_names=names,
            dynamic_axes=axes | outs,
        )


def rewriters():
    "Name -> function from a source and a target path: files that compute the same"
    import onnx

    def load(p):
        return onnx.load(str(p))

    def convert(to):
        return lambda a, b: onnx.save(onnx.version_converter.convert_version(load(a), to), str(b))

    def slim(a, b):
        import onnxslim

        onnx.save(onnxslim.slim(load(a)), str(b))

    def ort(level):
        def make(a, b):
            import onnxruntime as rt

            o = rt.SessionOptions()
            o.graph_optimization_level, o.optimized_model_filepath, o.log_severity_level = (
                getattr(rt.GraphOptimizationLevel, level),
                str(b),
                4,
            )
            rt.InferenceSession(str(a), o, providers=['CPUExecutionProvider'])

        return make

    def script(a, b):
        import onnxscript.optimizer

        onnx.save(onnxscript.optimizer.optimize(load(a)), str(b))

    def inferred(a, b):
        onnx.save(onnx.shape_inference.infer_shapes(load(a)), str(b))

    def bare(a, b):
        m = load(a)
        del m.graph.value_info[:], m.metadata_props[:]
        onnx.save(m, str(b))

    def beside(a, b):
        onnx.save(
            load(a), str(b), save_as_external_data=True, location=f'{Path(b).name}.data', size_threshold=64
        )  # onnxruntime wants shapes and axes inside

    def constants(a, b):
        m = load(a)
        nodes = [onnx.helper.make_node('Constant', [], [t.name], value=t) for t in m.graph.initializer]
        del m.graph.initializer[:]
        for n in reversed(nodes):
            m.graph.node.insert(0, n)
        onnx.save(m, str(b))

    def turned(a, b):
        m = load(a)
        outs = list(m.graph.output)[::-1]
        del m.graph.output[:]
        m.graph.output.extend(outs)
        onnx.save(m, str(b))

    def renamed(a, b):
        m = load(a)
        keep = {v.name for v in (*m.graph.input, *m.graph.output)}
        new = lambda n: n if n in keep or not n else f'v_{n}'
        for n in m.graph.node:
            n.input[:], n.output[:] = map(new, n.input), map(new, n.output)
        for t in (*m.graph.initializer, *m.graph.value_info):
            t.name = new(t.name)
        onnx.save(m, str(b))

    def half(a, b):
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        m = OnnxModel(convert_float_to_float16(str(a), keep_io_types=True))
        m.topological_sort()
        onnx.save(m.model, str(b))

    return dict(
        slim=slim,
        onnxscript=script,
        ort_basic=ort('ORT_ENABLE_BASIC'),
        ort_extended=ort('ORT_ENABLE_EXTENDED'),
        inferred=inferred,
        bare=bare,
        external=beside,
        constants=constants,
        turned=turned,
        renamed=renamed,
        float16=half,
    ) | {f'opset {k}': convert(k) for k in (19, 21, 22, 23)}


def rights(name, module, specs, path):
    "One record for each right file of a network"
    for opset in (11, 13, 15, 17):
        target = path.with_name('right.onnx')
        try:
            with quiet():
                by_torchscript(module, specs, target, opset)
        except Exception as e:  # this exporter cannot: no file, no verdict
            yield dict(network=name, by=f'torchscript, opset {opset}', verified=None, why=str(e)[:200])
            continue
        ok, why = verified(target, module, specs)
        yield dict(network=name, by=f'torchscript, opset {opset}', verified=ok, why=why)
    for by, make in rewriters().items():
        target = path.with_name('right.onnx')
        try:
            with quiet():
                make(path, target)
        except Exception as e:
            yield dict(network=name, by=by, verified=None, why=str(e)[:200])
            continue
        ok, why = verified(target, module, specs)
        yield dict(network=name, by=by, verified=ok, why=why)


def of_network(name, module, specs, tries=None, only=None, chosen=()):
    "Everything about one network"
    from fsdl_tools.onnx.export import export
    from fsdl_tools.onnx.run import infer, random_inputs, session

    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / 'right-one.onnx'
        export(module, path, inputs=specs)
        own = session(path)
        feeds = [random_inputs(specs, seed=unseen_seed + i) for i in range(unseen)]
        right = [infer(own, f) for f in feeds]
        yield dict(network=name, by='export, opset 20', verified=True, why='')
        if only != 'mutants':
            yield from rights(name, module, specs, path)
        if only != 'rights':
            yield from mutants(name, module, specs, path, feeds, right, tries, chosen)


def done():
    "Networks that are finished"
    return {json.loads(l)['done'] for l in lines.read_text().splitlines() if '"done"' in l} if lines.exists() else set()


def run(seconds, backwards=False, chosen=()):
    "Network after network; a network that was begun is done again. A second process may come from the other end"
    import torch

    torch.set_num_threads(1)
    lines.parent.mkdir(exist_ok=True)
    t0, todo = time.time(), list(networks().items())
    for name, (module, specs) in todo[::-1] if backwards else todo:
        if name in done():
            continue
        if time.time() - t0 > seconds:
            print('to be continued')
            sys.exit(3)
        rows = list(of_network(name, module, specs, chosen=chosen))
        with open(lines, 'a') as f:
            f.writelines(json.dumps(r) + '\n' for r in [*rows, dict(done=name)])
        planted = [r for r in rows if 'kind' in r]
        hit = [r for r in planted if r['matters']]
        print(
            name,
            f'{len(planted)} planted, {len(hit)} matter, {sum(r["refused"] for r in hit)} refused;',
            [r for r in rows if r.get('verified') is False],
            round(time.time() - t0),
            flush=True,
        )
        for r in hit:
            if not r['refused']:
                print('   missed:', r, flush=True)


def summary(rows):
    "Counts of one kind"
    rows = [r for r in rows if r['matters'] is not None]
    hit = [r for r in rows if r['matters']]
    found, close = sum(r['refused'] for r in hit), sum(r['allclose'] for r in hit)
    return dict(planted=len(rows), matter=len(hit), refused=found, allclose=close)


def collect():
    import importlib.metadata as md

    every = [json.loads(l) for l in lines.read_text().splitlines()]
    rows = list(
        {(r['network'], r.get('kind'), r.get('number'), r.get('by')): r for r in every if 'network' in r}.values()
    )
    planted, right = [r for r in rows if 'kind' in r], [r for r in rows if r.get('verified') is not None]
    fresh = {r['kind'] for r in planted}
    before = json.loads(result.read_text(encoding='utf-8')) if fresh < set(kinds) else dict(kinds=[])
    by_kind = {
        k['kind']: dict(
            planted=k['planted'],
            matter=k['matter'],
            refused=round(k['refused'] * k['matter']),
            allclose=round(k['allclose'] * k['matter']),
            date=k.get('date', before['date']),
        )
        for k in before['kinds']
    }
    by_kind |= {
        k: summary([r for r in planted if r['kind'] == k]) | dict(date=str(datetime.date.today())) for k in fresh
    }
    missed = [m for m in before.get('missed', []) if m['kind'] not in fresh] + [
        r for r in planted if r['matters'] and not r['refused']
    ]
    share = lambda s: dict(
        planted=s['planted'],
        matter=s['matter'],
        refused=s['refused'] / s['matter'] if s['matter'] else 1.0,
        allclose=s['allclose'] / s['matter'] if s['matter'] else 1.0,
    )
    who = list(dict.fromkeys(r['by'] for r in right))
    out = dict(
        date=str(datetime.date.today()),
        versions={p: md.version(p) for p in ('torch', 'onnx', 'onnxruntime', 'onnxscript', 'onnxslim')},
        conditions=(
            f'{len(networks())} small networks with random weights, seeds by name; {unseen} unseen inputs; planted:'
            ' those that run; matter: off by more than ten tolerances (10⁻³ of the spread)'
        ),
        kinds=[dict(kind=k) | share(by_kind[k]) | dict(date=by_kind[k]['date']) for k in kinds],
        total={f: sum(s[f] for s in by_kind.values()) for f in ('planted', 'matter', 'refused', 'allclose')},
        right=[
            dict(
                by=w,
                files=sum(r['by'] == w for r in right),
                refused=sum(r['by'] == w and not r['verified'] for r in right),
            )
            for w in who
        ],
        could_not=[r for r in rows if 'verified' in r and r['verified'] is None],
        missed=missed,
        refused_right=[r for r in right if not r['verified']],
    )
    result.write_text(json.dumps(out, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    print(json.dumps(dict(total=out['total'], kinds=out['kinds'], right=out['right']), indent=1))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('command', choices=['run', 'collect'])
    p.add_argument('--seconds', type=float, default=400)
    p.add_argument('--backwards', action='store_true', help='begin with the last network')
    p.add_argument(
        '--kinds', nargs='+', default=(), choices=list(kinds), help='only these; the others keep what was recorded'
    )
    a = p.parse_args()
    run(a.seconds, a.backwards, a.kinds) if a.command == 'run' else collect()
