"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fsdl_tools.frameworks import convert, jax_family, pytorch, race, runners, task, tensorflow_keras
from tests.frameworks import stand_ins


def test_clocks_count_from_the_start_of_a_fit():
    work, began, used = task.make_task('mlp', steps=3, batch=8), time.perf_counter(), time.process_time()
    runner = runners.runners['numpy' if 'numpy' in runners.runners else 'torch'](work)
    runner.fit(work.xs, work.ys)
    assert (
        0 <= runner.seconds <= time.perf_counter() - began
        and 0 <= runner.cpu_seconds <= time.process_time() - used + 0.05
    )


def test_the_first_step_of_a_race_is_timed_from_its_start():
    entry, before = race._Entry(task.make_task('mlp', steps=3, batch=8), 'torch'), race._cpu()
    entry.start()
    assert 0 <= entry.first <= race._cpu() - before + 0.05


def test_digits_of_a_task_are_ten_patterns():
    work = task.make_task('mlp', steps=200, batch=8)
    assert set(work.ys.flatten().tolist()) == set(range(10))
    again = task.make_task('mlp', steps=200, batch=8)
    assert (again.xs == work.xs).all() and (again.ys == work.ys).all()


@pytest.mark.parametrize('model', task.models)
@pytest.mark.parametrize('name', [n for n in runners.runners if n != 'torch'])
def test_runners_on_stand_ins_agree_with_torch(name, model, monkeypatch):
    "Losses, weights and predictions; names of parameters; twice the same after a reset"
    modules = stand_ins.installed(monkeypatch)
    monkeypatch.setattr(torch, 'compile', lambda net, dynamic: net)
    work = task.make_task(model, steps=4, batch=5)
    want, r = runners.finish(runners.runners['torch'](work)), runners.runners[name](work)
    got = runners.finish(r)
    assert (
        runners.check([got], want, 1e-4) < 1e-4
        and np.abs(got.logits - want.logits).max() < 1e-4
        and len(got.losses) == 4
    )
    assert set(r.dump()) == set(task.translate(work.weights, r.layers, 'torch', r.dialect)) and r.predict(
        work.xs[0]
    ).shape == (5, 10)
    r.reset()
    assert all(np.array_equal(w, work.weights[k]) for k, w in r.weights().items()) and not np.array_equal(
        r.weights()['fc1.bias'], got.weights['fc1.bias']
    )
    again = r.fit(work.xs[:2], work.ys[:2])
    assert np.allclose(again, want.losses[:2], atol=1e-4) and 0 <= r.seconds < 60 and 0 <= r.cpu_seconds < 60
    if name == 'jax-jit':
        assert len(modules['jax'].compiled) == 1
    if name == 'jax':
        assert not modules['jax'].compiled
    if name == 'tf-function':
        assert modules['tensorflow'].graphs == [False]


def test_layers_of_stand_ins_are_those_of_the_architecture(monkeypatch):
    stand_ins.installed(monkeypatch)
    for model in task.models.values():
        net = tensorflow_keras.keras_net(model)
        assert [type(p).__name__ for p in net.parts].count('Dense') == len(model.layers)
        w = {
            f'{l.name}.{k}': getattr(getattr(jax_family.nnx_net(model), l.name), k)[...]
            for l in model.layers
            for k in ('kernel', 'bias')
        }
        assert {k: tuple(v.shape) for k, v in w.items()} == task._shapes(model.layers, task.dialects['flax'])


def test_files_written_through_stand_ins(monkeypatch, tmp_path):
    "What each exporter is told"
    modules, told = stand_ins.installed(monkeypatch), []
    work = task.make_task('cnn', steps=1, batch=2)
    modules['jax2onnx'] = stand_ins.module(
        'jax2onnx',
        to_onnx=lambda f, inputs, return_mode, output_path: told.append(
            (f(work.xs[0].transpose(0, 2, 3, 1)).shape, inputs, return_mode, output_path)
        ),
    )
    monkeypatch.setitem(sys.modules, 'jax2onnx', modules['jax2onnx'])
    monkeypatch.setattr(convert, '_pool_in_space', lambda path: told.append(path))
    for name in ('jax', 'flax', 'haiku'):
        path = convert.to_onnx(runners.runners[name](work), tmp_path / name)
        assert told == [((2, 10), [('B', 12, 8, 3)], 'file', str(path)), str(path)]
        told.clear()
    monkeypatch.setattr(
        convert,
        '_tf2onnx',
        lambda: SimpleNamespace(
            convert=SimpleNamespace(
                from_function=lambda f, specs, output_path: told.append(
                    (f(work.xs[0].transpose(0, 2, 3, 1)).shape, specs, output_path)
                )
            )
        ),
    )
    monkeypatch.setattr(modules['tensorflow'], 'function', lambda f: f)
    modules['tensorflow'].TensorSpec, modules['tensorflow'].float32 = (
        (lambda shape, kind, name: (shape, kind, name)),
        'f4',
    )
    convert.to_onnx(runners.runners['tensorflow'](work), tmp_path / 'tf')
    assert told == [((2, 10), [((None, 12, 8, 3), 'f4', 'x')], str(tmp_path / 'tf'))]
    r = runners.runners['keras'](work)
    r.net.export = lambda path, format, verbose: told.append((path, format, verbose))
    convert.to_onnx(r, tmp_path / 'k')
    assert told[1:] == [(str(tmp_path / 'k'), 'onnx', False)]
    asked = []
    monkeypatch.setattr(
        torch.onnx, 'export', lambda net, args, path, **kw: asked.append((net.training, args[0].shape, path, kw))
    )
    convert.to_onnx(runners.runners['torch'](work), tmp_path / 't')
    assert asked == [
        (
            False,
            (2, 3, 12, 8),
            str(tmp_path / 't'),
            dict(dynamo=True, dynamic_shapes=({0: 'batch'},), external_data=False, verbose=False),
        )
    ]


def test_a_rule_for_erfc_is_added_once(monkeypatch):
    known, made = {'': [{}]}, []

    def tf_op(name):
        return lambda cls: known[''][0].update({name: cls}) or cls

    tf_op.get_opsets = lambda: known
    for name, m in {
        'tf2onnx': stand_ins.module('tf2onnx'),
        'tf2onnx.handler': stand_ins.module('tf2onnx.handler', tf_op=tf_op),
    }.items():
        monkeypatch.setitem(sys.modules, name, m)
    assert convert._tf2onnx() is sys.modules['tf2onnx'] and list(known[''][0]) == ['Erfc']
    rule = known[''][0]['Erfc']
    convert._tf2onnx()
    assert known[''][0]['Erfc'] is rule
    ctx = SimpleNamespace(
        make_node=lambda kind, inputs, **kw: made.append((kind, inputs, kw)) or SimpleNamespace(output=['e']),
        make_const=lambda name, v: made.append((name, v.tolist())) or SimpleNamespace(output=['one']),
        remove_node=made.append,
    )
    rule.version_9(ctx, SimpleNamespace(input=['x'], name='n', output=['y']))
    assert made == [('Erf', ['x'], {}), ('n_one', 1.0), 'n', ('Sub', ['one', 'e'], dict(name='n', outputs=['y']))]


@pytest.mark.skipif(bool(runners.missing('lightning')), reason='lightning is not installed')
def test_a_run_of_lightning_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = task.make_task('mlp', steps=3, batch=8)
    assert len(runners.finish(pytorch.LightningRunner(work)).losses) == 3 and not any(tmp_path.iterdir())
