"""What the chapters on frameworks cannot hold: every runner on both tasks, missing packages, corrupted mappings,
files and the command line.
"""

import json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from fsdl_tools.core import read_results
from fsdl_tools.frameworks import task as D
from fsdl_tools.frameworks import runners as F
from fsdl_tools.frameworks import convert as I
from fsdl_tools.frameworks import race as R

root = Path(__file__).parents[2]
eager = [n for n in F.runners if n != 'torch-compile']
tol = 1e-5


def need(name):
    if note := F.missing(name):
        pytest.skip(note)


@pytest.fixture(scope='module')
def task():
    return D.make_task('cnn', steps=3, batch=16)


@pytest.fixture(scope='module')
def reference(task):
    return F.train_with(task, 'torch')


@pytest.fixture(scope='module')
def live(task):
    "One runner a framework, built once: compiling is what takes time"
    return {n: F.runners[n](task) for n in eager if not F.missing(n)}


@pytest.mark.parametrize('name', eager)
def test_agrees_with_torch(name, task, reference, live):
    need(name)
    live[name].reset()
    assert F.check([F.finish(live[name])], reference, tol) <= tol


@pytest.mark.parametrize('name', eager)
@pytest.mark.parametrize('pair', [('conv2', 'conv3')])
def test_swapped_weights_are_caught(name, pair, task, reference, live):
    need(name)
    r, (a, b) = live[name], pair
    r.reset()
    w, pattern = r.dump(), D.dialects[r.dialect].weight.format
    assert w[pattern(a)].shape == w[pattern(b)].shape
    r.load(w | {pattern(a): w[pattern(b)], pattern(b): w[pattern(a)]})
    with pytest.raises(AssertionError, match=f'{name} and torch disagree'):
        F.check([F.finish(r)], reference, tol)


@pytest.mark.parametrize('name', eager)
def test_flipped_kernel_is_caught(name, task, reference, live):
    "Height and width exchanged: the shape is the same"
    need(name)
    r = live[name]
    r.reset()
    w, key = r.dump(), D.dialects[r.dialect].weight.format('conv1')
    r.load(
        w
        | {
            key: np.ascontiguousarray(
                w[key].transpose(1, 0, 2, 3) if D.dialects[r.dialect].last else w[key].transpose(0, 1, 3, 2)
            )
        }
    )
    with pytest.raises(AssertionError, match='disagree'):
        F.check([F.finish(r)], reference, tol)


@pytest.mark.parametrize('name', [n for n in eager if D.dialects[F.runners[n].dialect].last])
def test_forgotten_permutation_is_caught(name, task, reference, live):
    need(name)
    r = live[name]
    r.load(D.translate(task.weights, tuple(l.replace(grid=()) for l in task.model.layers), 'torch', r.dialect))
    with pytest.raises(AssertionError, match='disagree'):
        F.check([F.finish(r)], reference, tol)


@pytest.mark.parametrize('name', eager)
def test_mlp(name):
    need(name)
    mlp = D.make_task('mlp', steps=3, batch=8)
    F.check(F.train_all(mlp, ['torch', name]), tol=tol)


@pytest.mark.timeout(600)
def test_compiled_torch_agrees_and_swap_is_caught():
    need('torch-compile')
    mlp = D.make_task('mlp', steps=100)
    ref, r = F.train_with(mlp, 'torch'), F.runners['torch-compile'](mlp)
    F.check([F.finish(r)], ref, tol)
    r.reset()
    w = r.dump()
    r.load(w | {'fc2.weight': w['fc3.weight'], 'fc3.weight': w['fc2.weight']})
    with pytest.raises(AssertionError, match='torch-compile and torch disagree'):
        F.check([F.finish(r)], ref, tol)


def test_nan_is_not_agreement(reference):
    bad = replace(reference, framework='bad', losses=np.full_like(reference.losses, np.nan))
    with pytest.raises(AssertionError, match='bad and torch disagree'):
        F.check([bad], reference)


def test_missing_package_is_a_row(monkeypatch, task, reference):
    find = F.importlib.util.find_spec
    monkeypatch.setattr(F.importlib.util, 'find_spec', lambda m: None if m == 'haiku' else find(m))
    run = F.train_with(task, 'haiku')
    assert run.losses is None and run.note.startswith('not installed: pip install dm-haiku')
    assert F.compare_runs([reference, run]).column('note')[1] == run.note
    assert F.check([reference, run]) == 0
    short = D.make_task('mlp', steps=5, batch=4)
    last = list(R.race(short, ['torch', 'haiku'], laps=1))[-1]
    assert last[0].speed > 0 and last[1].speed is None and 'pip install dm-haiku' in last[1].note
    assert list(R.race(short, ['haiku'], laps=1))[-1][0].note == run.note


def test_missing_compiler_is_a_row(monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    assert 'C++ compiler' in F.missing('torch-compile')


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    model=st.sampled_from(sorted(D.models)),
    path=st.lists(st.sampled_from(sorted(D.dialects)), min_size=1, max_size=5),
)
def test_any_journey_returns_the_same_bits(seed, model, path):
    layers = D.models[model].layers
    start = D.init_weights(layers, np.random.default_rng(seed))
    w, here = start, 'torch'
    for d in path + ['torch']:
        w, here = D.translate(w, layers, here, d), d
    assert all(np.array_equal(w[k], v) and w[k].dtype == v.dtype for k, v in start.items())


def test_same_seed_same_bits():
    a, b, c = (D.make_task('cnn', steps=2, seed=s) for s in (1, 1, 2))
    assert np.array_equal(a.xs, b.xs) and np.array_equal(a.ys, b.ys) and not np.array_equal(a.xs, c.xs)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda w: {k: v for k, v in w.items() if k != 'fc1.bias'}, 'fc1.bias'),
        (lambda w: w | {'extra': w['fc1.bias']}, 'extra'),
        (lambda w: w | {'conv1.weight': w['conv1.weight'][:4]}, 'conv1.weight must be'),
    ],
)
def test_translate_refuses(change, message, task):
    with pytest.raises(ValueError, match=message):
        D.translate(change(task.weights), task.model.layers, 'torch', 'flax')


def test_unknown_names(task):
    for call in (
        lambda: D.make_task('cnm'),
        lambda: F.missing('tensorflw'),
        lambda: D.translate(task.weights, task.model.layers, 'torch', 'flx'),
    ):
        with pytest.raises(ValueError, match='did you mean'):
            call()
    with pytest.raises(ValueError):
        D.make_task(steps=0)


def test_files_between_frameworks(tmp_path, task, live):
    x, path = task.xs[0], tmp_path / 'w.safetensors'
    for a in live.values():
        a.reset()
        a.fit(task.xs, task.ys)
        I.save_runner(a, path)
        for b in live.values():
            assert np.abs(I.load_runner(b, path).predict(x) - a.predict(x)).max() < tol, (a.name, b.name)


def test_truncated_file(tmp_path, task):
    path = D.save_weights(tmp_path / 'w', task.weights, 'torch', task.model)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(Exception, match='(?i)incomplete|invalid|header'):
        D.load_weights(path)
    with pytest.raises(FileNotFoundError):
        D.load_weights(tmp_path / 'none')


@pytest.mark.timeout(600)
@pytest.mark.parametrize('name', ['torch', 'lightning', 'keras', 'tensorflow', 'jax', 'flax', 'haiku'])
def test_onnx(name, tmp_path, task, live):
    need(name)
    pytest.importorskip('onnxruntime')
    if name in ('keras', 'tensorflow'):
        pytest.importorskip('tf2onnx')
    if name in ('jax', 'flax', 'haiku'):
        pytest.importorskip('jax2onnx')
    r = live[name]
    r.reset()
    path = I.to_onnx(r, tmp_path / 'm.onnx')
    for n in (1, 5):
        assert np.abs(I.run_onnx(path, r.images(task.xs[0][:n])) - r.predict(task.xs[0][:n])).max() < tol


def test_race_is_fair():
    names = [n for n in ('torch', 'jax-jit') if not F.missing(n)]
    last = list(R.race(D.make_task('mlp', steps=23), names))[-1]
    assert [s.framework for s in last] == names and last[0].ratio == 1 and last[0].gap == 0
    assert all(s.gap < tol and s.cores < 1.3 and s.low <= s.speed <= s.high for s in last)


def test_benchmark_results():
    b = read_results('frameworks')
    assert b['date'] and b['machine'] and {'torch', 'jax', 'flax', 'keras'} <= set(b['versions'])
    assert all(r['gap'] < tol for r in b['races'] if r['speed'])
    assert {r['framework'] for r in b['races']} == set(F.runners)


def fsdl(*args, timeout=300):
    env = os.environ | dict(
        COLUMNS='140', TERM='dumb', PYTHONPATH=f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    return subprocess.run(
        [sys.executable, '-c', 'from fsdl_tools.cli.main import main; main()', *args],
        capture_output=True,
        text=True,
        env=env,
        timeout=timeout,
    )


def test_import_is_light():
    code = (
        "import sys, fsdl_tools.frameworks.race, fsdl_tools.frameworks.convert; print([m for m in ('torch', 'jax',"
        " 'tensorflow', 'lightning', 'flax') if m in sys.modules])"
    )
    r = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(root)),
        timeout=120,
    )
    assert r.stdout.strip() == '[]', r.stdout + r.stderr


@pytest.mark.timeout(300)
def test_command_line():
    r = fsdl('race', '--framework', 'torch', 'jax-jit', '--model', 'cnn', '--steps', '13', '--json')
    rows = json.loads(r.stdout)
    assert r.returncode == 0 and {s['framework'] for s in rows} == {'torch', 'jax-jit'}
    assert fsdl('race', 'torch', '--steps', '13').returncode == 0
    bad = fsdl('race', '--framework', 'torhc')
    assert bad.returncode == 2 and 'did you mean' in bad.stderr and bad.stderr.count('\n') == 1
    few = fsdl('race', 'torch', '--steps', '3')
    assert few.returncode == 2 and few.stderr.count('\n') == 1
