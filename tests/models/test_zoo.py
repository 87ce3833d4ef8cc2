"""The zoo and the profiler: bad input, many architectures, and properties of search and of the arithmetic"""

import json, math, subprocess, sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fsdl_tools.models.spec import Layer, ModelSpec, TransformerShape, from_shape, human_flop
from fsdl_tools.models.zoo import index, search_models
from fsdl_tools.models.architectures import locate

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
words = st.sampled_from(
    [
        'vit',
        'resnet',
        'tiny',
        'base',
        'net',
        'gpt',
        'llama',
        'bert',
        'x',
        '224',
        'zzz',
        '*',
        'vit*',
        '?',
        '[',
        '\\',
        'é',
    ]
)


def test_import_is_light():
    code = (
        "import sys, fsdl_tools.models.zoo, fsdl_tools.models.profile; from fsdl_tools.models.zoo import search_models;"
        " search_models('vit'); print([m for m in ('torch', 'timm', 'transformers', 'matplotlib', 'numpy') if m in"
        " sys.modules])"
    )
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert (r.returncode, r.stdout.strip()) == (0, '[]'), r.stderr


# -- search


@few
@given(
    st.lists(words, max_size=3),
    st.sampled_from([None, 'timm', 'transformers']),
    st.one_of(st.none(), st.integers(1, 10**9)),
    st.sampled_from(['name', 'params', 'flops', 'activations', 'saved']),
)
def test_search_keeps_its_promises(ws, library, top, sort):
    t = search_models(' '.join(ws), library=library, max_params=top, sort=sort)
    names = {r['name'] for r in t}
    assert names <= {r['name'] for r in index()}
    assert all(r['library'] == library for r in t if library)
    assert all(r['params'] is not None and r['params'] <= top for r in t if top)
    values = [r[sort] for r in t if r[sort] is not None]
    assert values == sorted(values) and all(r[sort] is None for r in t.rows[len(values) :])
    assert bool(t.notes) == (not len(t))


@few
@given(st.text(max_size=12))
def test_search_takes_any_text(text):
    for r in search_models(text):
        assert r['name']


@few
@given(st.integers(1, 10**12), st.integers(0, 10**12))
def test_narrower_limits_find_less(high, less):
    wide = {r['name'] for r in search_models('', max_params=high)}
    assert {r['name'] for r in search_models('', max_params=max(high - less, 1))} <= wide


def test_index_is_sound():
    seen = set()
    for r in index():
        assert (r['library'], r['name']) not in seen
        seen.add((r['library'], r['name']))
        assert r['library'] in ('timm', 'transformers') and r['source'] is not None and r['date']
        for k in ('params', 'flops', 'activations', 'saved'):
            assert r[k] is None or (isinstance(r[k], int) and r[k] >= 0), r
    assert len(seen) > 2000


# -- arithmetic

shapes = st.builds(
    lambda l, d, h, kv, v, f, g, t, n, p, b, e: TransformerShape(
        l,
        d * h * kv,
        h * kv,
        v,
        ffn=f,
        kv_heads=kv,
        gated_mlp=g,
        tied=t,
        norm=n,
        positions=p,
        qkv_bias=b,
        out_bias=b,
        mlp_bias=b,
        experts=e,
        experts_per_token=min(e, 2),
    ),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 1000),
    st.integers(1, 64),
    st.booleans(),
    st.booleans(),
    st.sampled_from(['layernorm', 'rmsnorm']),
    st.sampled_from(['learned', 'rotary', 'none']),
    st.booleans(),
    st.sampled_from([0, 0, 1, 4]),
)


@few
@given(shapes, st.integers(1, 300))
def test_spec_is_the_sum_of_its_layers(shape, seq):
    spec = from_shape(shape, seq=seq)
    assert spec.params == sum(l.params for l in spec.layers) and spec.flops == sum(l.flops for l in spec.layers)
    assert 0 < spec.active <= spec.params
    assert ModelSpec.from_json(spec.to_json()) == spec
    more = from_shape(shape.replace(layers=shape.layers + 1), seq=seq)
    assert more.params > spec.params and more.flops > spec.flops
    assert from_shape(shape, seq=seq + 1).flops > spec.flops


@few
@given(st.floats(0, 1e20, allow_nan=False))
def test_human_flop_reads_back(n):
    text = human_flop(n)
    assert text.endswith('FLOP')
    number, unit = (
        text.removesuffix('FLOP').split()
        if ' ' in text.removesuffix('FLOP').strip()
        else (text.removesuffix('FLOP').strip(), '')
    )
    back = float(number) * {'': 1, 'k': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12, 'P': 1e15, 'E': 1e18}[unit]
    assert math.isclose(back, n, rel_tol=0.06, abs_tol=0.6)


@pytest.mark.parametrize(
    'kw,message',
    [
        (dict(layers=0), 'layers'),
        (dict(hidden=-4), 'hidden'),
        (dict(heads=3), 'multiple'),
        (dict(kv_heads=3), 'multiple'),
        (dict(norm='batchnorm'), 'norm'),
        (dict(positions='absolute'), 'positions'),
        (dict(experts=4, experts_per_token=5), 'experts_per_token'),
        (dict(layers=True), 'layers'),
    ],
)
def test_bad_shapes_are_refused(kw, message):
    with pytest.raises((ValueError, TypeError), match=message):
        TransformerShape(**dict(layers=2, hidden=64, heads=4, vocab=100) | kw)


@pytest.mark.parametrize(
    'change', [dict(kind='decodr'), dict(source='tim'), dict(params=-1), dict(params='many'), dict(parms=1)]
)
def test_bad_specs_are_refused(change):
    good = from_shape(TransformerShape(1, 8, 1, 10)).to_dict()
    with pytest.raises((ValueError, TypeError)):
        ModelSpec.from_dict(good | change)


# -- names and files


@pytest.mark.parametrize(
    'name,near',
    [('resnet5O', 'resnet50'), ('vit_base_patch16_225', 'vit_base_patch16_224'), ('lama', 'llama'), ('gtp2', 'gpt2')],
)
def test_unknown_names_get_suggestions(name, near):
    with pytest.raises(ValueError, match='unknown model') as e:
        locate(name)
    assert near in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
    'text,message',
    [
        ('{', 'not JSON'),
        ('[1, 2]', 'no field model_type'),
        ('{}', 'no field model_type'),
        ('{"model_type": "lama"}', 'did you mean'),
        ('{"model_type": 3}', 'unknown model_type'),
        ('\x00', 'not JSON'),
    ],
)
def test_broken_config_files_are_one_line(tmp_path, text, message):
    from fsdl_tools.models.profile import profile

    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=message) as e:
        profile(str(tmp_path / 'config.json'))
    assert '\n' not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ['config.json']


def test_binary_and_missing_files(tmp_path):
    from fsdl_tools.models.profile import profile

    (tmp_path / 'config.json').write_bytes(b'\xff\xfe\x00PK')
    with pytest.raises(ValueError, match='is not JSON'):
        profile(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='there is no file'):
        profile(str(tmp_path / 'other.json'))


@pytest.mark.parametrize('size', ['abc', (1, 2, 3, 4), 0, -224, '224x', ''])
def test_unreadable_sizes(size):
    from fsdl_tools.models.build import build

    with pytest.raises(ValueError, match='cannot read input size'):
        build('resnet18', input_size=size, device='meta')


@pytest.mark.parametrize(
    'name,size',
    [
        ('vit_tiny_patch16_224', 225),
        ('swin_tiny_patch4_window7_224', 50),
        ('resnet18', (1, 1, 1, 1)),
        ('mixer_b16_224', 100),
    ],
)
def test_impossible_sizes_are_one_line(name, size):
    from fsdl_tools.models.profile import profile

    with pytest.raises(ValueError) as e:
        profile(name, input_size=size)
    assert '\n' not in str(e.value) and len(str(e.value)) < 400


def test_a_missing_package_is_named(monkeypatch):
    import importlib

    real = importlib.import_module

    def without(name, *a):
        if name.split('.')[0] == 'transformers':
            raise ModuleNotFoundError("No module named 'transformers'", name='transformers')
        return real(name, *a)

    monkeypatch.setattr(importlib, 'import_module', without)
    from fsdl_tools.models.architectures import load_config

    with pytest.raises(ImportError, match='pip install'):
        load_config('gpt2')


# -- the profiler against torch's own counter and against real tensors


@pytest.mark.parametrize(
    'name',
    [
        'resnet18',
        'mobilenetv3_small_100',
        'convnext_atto',
        'vit_tiny_patch16_224',
        'swin_tiny_patch4_window7_224',
        'poolformer_s12',
        'regnety_002',
        'xcit_nano_12_p16_224',
    ],
)
def test_flops_equal_torch(name):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from fsdl_tools.models.profile import profile
    from fsdl_tools.models.build import build, example_inputs

    m = build(name, device='meta')
    with FlopCounterMode(display=False) as c, torch.no_grad(), torch.device('meta'):
        m(**example_inputs(m))
    assert profile(name).flops == c.get_total_flops()


@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv3_small_100', 'poolformer_s12'])
def test_saved_bytes_equal_real_tensors(name):
    "What autograd keeps of a real forward pass, counted by storage"
    import torch
    from fsdl_tools.models.profile import profile
    from fsdl_tools.models.build import build, example_inputs

    m = build(name)
    x, kept = example_inputs(m, device='cpu')['x'], {}
    skip = {t.untyped_storage().data_ptr() for t in [*m.parameters(), *m.buffers(), x]}

    def pack(t):
        if t.untyped_storage().data_ptr() not in skip:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = m(x)
    real = sum(s.nbytes() for s in kept.values())
    assert math.isclose(profile(name).saved, real, rel_tol=0.01), (profile(name).saved, real)


def test_profile_leaves_the_module_alone():
    import torch
    from fsdl_tools.models.profile import profile

    m = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    before = {k: v.clone() for k, v in m.state_dict().items()}
    m.train()
    s = profile(m, (3, 4))
    assert m.training and s.params == 28 and not m._forward_hooks and not m[0]._forward_pre_hooks
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_seven_billion_in_a_fresh_process():
    # VmHWM, not ru_maxrss: that one is inherited from the process that starts this one
    code = (
        "from pathlib import Path; from fsdl_tools.models.profile import profile; print(profile('llama',"
        " seq=2048).flops, next(line.split()[1] for line in Path('/proc/self/status').read_text().splitlines() if"
        " line.startswith('VmHWM')))"
    )
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=180)
    assert r.returncode == 0, r.stderr
    flops, rss = map(int, r.stdout.split())
    assert (
        flops
        == from_shape(TransformerShape(32, 4096, 32, 32000, ffn=11008, gated_mlp=True, norm='rmsnorm'), seq=2048).flops
        and rss * 1024 < 2 * 2**30
    )


def test_shared_modules_count_once():
    import torch
    from fsdl_tools.models.profile import profile

    lin = torch.nn.Linear(8, 8)
    s = profile(torch.nn.Sequential(lin, lin), (1, 8))
    assert s.params == 72 and s.flops == 2 * 2 * 64 and s.layers[0].calls == 2


def test_values_cannot_be_read():
    import torch
    from fsdl_tools.models.profile import profile

    class Peek(torch.nn.Module):
        def forward(self, x):
            return x[: int(x.sum().item())]

    with pytest.raises(ValueError, match='depends on the values'):
        profile(Peek(), (4,))


@pytest.mark.parametrize(
    'name,task',
    [
        ('bert', 'masked-lm'),
        ('t5', 'seq2seq-lm'),
        ('vit', 'image-classification'),
        ('mixtral', 'causal-lm'),
        ('gemma2', 'causal-lm'),
        ('gpt_neox', 'causal-lm'),
        ('convnext', 'image-classification'),
    ],
)
def test_transformers_families(name, task):
    from fsdl_tools.models.profile import profile

    s = profile(name, task=task, tiny=True, seq=32)
    assert s.params > 0 and s.flops > 0 and s.saved > 0 and s.source == 'transformers'
    assert ModelSpec.from_json(s.to_json()) == s


# -- the command line


@pytest.fixture
def fsdl(capsys):
    def call(*args):
        from fsdl_tools.cli.main import run

        capsys.readouterr()
        code = run(list(args))
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    'args',
    [
        ('profile', 'resnet5O'),
        ('profile', 'no/such/config.json'),
        ('profile', 'resnet18', '--input-size', 'big'),
        ('profile', 'gpt2', '--precision', 'fp4'),
        ('zoo', 'search', '--max-params', 'many'),
        ('zoo', 'search', '--task', 'sleeping'),
        ('zoo', 'search', '--sort', 'colour'),
        ('zoo', 'tags', 'resnet5O'),
        ('profile',),
        ('zoo', 'serch'),
    ],
)
def test_a_users_mistake_is_one_line(fsdl, args):
    code, out, err = fsdl(*args)
    assert (code, out, err.count('\n')) == (2, '', 1), (code, out, err)


@pytest.mark.parametrize(
    'args, option',
    [
        (('memory', 'resnet18', '--seq', '10'), '--seq'),
        (('memory', 'vit', '--seq', '10'), '--seq'),
        (('memory', 'gpt2', '--input-size', '224'), '--input-size'),
        (('memory', 'torch.nn:ReLU', '--input-size', '32', '--seq', '5'), '--seq'),
        (('memory', 'resnet18', '--measure', '--kernels', 'cuda'), '--kernels'),
        (('profile', 'resnet18', 'vit', '--seq', '10'), '--seq'),
        (('profile', 'resnet18', '--task', 'causal-lm'), '--task'),
    ],
)
def test_an_option_that_a_model_has_no_use_for_is_refused(fsdl, args, option):
    code, out, err = fsdl(*args)
    assert (code, out, err.count('\n')) == (2, '', 1) and option in err, (code, out, err)


def test_a_length_is_for_those_that_have_one(fsdl):
    code, out, _ = fsdl('profile', 'resnet18', 'gpt2', '--seq', '10', '--json')
    assert code == 0 and [d['inputs'][0]['shape'] for d in json.loads(out)] == [[1, 3, 224, 224], [1, 10]]


def test_json_output_is_json(fsdl):
    code, out, _ = fsdl('zoo', 'search', 'vit', '--max-params', '30M', '--sort', 'flops', '--json')
    rows = json.loads(out)
    assert code == 0 and rows and all(r['params'] <= 30e6 for r in rows)
    code, out, _ = fsdl('profile', 'resnet18', 'gpt2', '--json')
    assert code == 0 and [ModelSpec.from_dict(d).params for d in json.loads(out)] == [11_689_512, 124_439_808]


def test_computing_for_real_counts_the_same():
    from fsdl_tools.models.profile import profile

    real, meta = (profile('gpt2', task='causal-lm', seq=16, tiny=True, real=r, fused=False) for r in (True, False))
    assert (real.params, real.flops) == (meta.params, meta.flops)


def test_a_model_that_looks_at_values_is_told_how():
    import torch
    from fsdl_tools.models.profile import profile

    class Early(torch.nn.Module):
        def __init__(self, limit):
            super().__init__()
            self.small, self.big, self.limit = (
                torch.nn.Linear(64, 64),
                torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(10)]),
                limit,
            )

        def forward(self, x):
            y = self.small(x)
            return self.big(y) if y.abs().max() < self.limit else y

    x = torch.ones(4, 64)
    for limit, layers in ((1e9, 11), (0.0, 1)):
        with pytest.raises(ValueError, match='depends on the values.*real=True'):
            profile(Early(limit), x)
        assert profile(Early(limit), x, real=True).flops == layers * 2 * 4 * 64 * 64


def test_reformer_needs_no_values():
    from fsdl_tools.models.profile import profile

    meta, real = (profile('reformer', task='masked-lm', seq=64, tiny=True, real=r, fused=False) for r in (False, True))
    assert meta.flops == real.flops > 1e8 and meta.params == real.params
