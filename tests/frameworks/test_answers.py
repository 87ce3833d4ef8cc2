"""What the chapters on frameworks answer: tasks and layouts, gaps between runs, standings of races, poolings"""

import itertools
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fsdl_tools.frameworks import convert, interface, pytorch, race, runners, task
from tests.answers import answer, same_answers


def digest(a):
    "Shape, type, sum and a few entries of an array"
    a = np.asarray(a)
    return (
        list(a.shape),
        str(a.dtype),
        round(float(a.astype('f8').sum()), 4),
        np.round(a.astype('f8').ravel()[:: max(1, a.size // 3)][:4], 5).tolist(),
    )


def test_tasks(request, tmp_path):
    "Data, initial weights, layouts and names in every dialect, files, and what is refused"
    found = {}
    for name, kw in itertools.product(task.models, (dict(steps=3, batch=4), dict(steps=2, batch=3, seed=5, lr=0.5))):
        t = task.make_task(name, **kw)
        found[f'task {name} {kw}'] = (
            digest(t.xs),
            digest(t.ys),
            t.lr,
            {k: digest(w) for k, w in t.weights.items() if 'fc2' not in k},
        )
    found['default'] = [digest(x)[:2] for x in (task.make_task(batch=1).xs, task.make_task(steps=1).ys)]
    t = task.make_task('cnn', 1, 1)
    for a, b in itertools.product(task.dialects, ('torch', 'jax')):
        there = task.translate(t.weights, t.model.layers, 'torch', a)
        back = task.translate(there, t.model.layers, a, b)
        if b == 'torch':
            found[f'dialect {a}'] = (
                {k: digest(w) for k, w in there.items()},
                all(np.array_equal(back[k], w) for k, w in t.weights.items()),
                task._shapes(t.model.layers, task.dialects[a]),
            )
        else:
            found[f'{a} to {b}'] = {k: digest(w)[2:] for k, w in back.items() if 'fc1' in k or 'conv2' in k}
    less = {k: w for k, w in t.weights.items() if k != 'fc1.bias'}
    for name, w in dict(
        less=less, more=t.weights | dict(x=1), shape=t.weights | {'fc1.bias': np.ones(3)}, both=less | dict(x=1)
    ).items():
        found[f'refused {name}'] = answer(task.translate, w, t.model.layers, 'torch', 'jax')
    found['unknown'] = (
        answer(task.make_task, 'cnm'),
        answer(task.make_task, steps=0),
        answer(task.make_task, batch=0),
        answer(task.translate, {}, (), 'trch', 'jax'),
        answer(task.translate, {}, (), 'torch', 'jx'),
    )
    path = task.save_weights(tmp_path / 'w', t.weights, 'torch', t.model)
    for target in (None, 'jax', 'torch', 'x'):
        found[f'loaded {target}'] = answer(
            lambda target=target: (lambda w, m: ([*w][:2], m.name, digest(w[[*w][0]])))(
                *task.load_weights(path, target)
            )
        )
    from safetensors.numpy import save_file

    for meta in (None, dict(dialect='torch'), dict(model='mlp'), dict(model='cnn', dialect='torch')):
        save_file({'a': np.ones(1)}, str(tmp_path / 'odd'), metadata=meta)
        found[f'odd {meta}'] = answer(task.load_weights, tmp_path / 'odd')
    found['not saved'] = answer(task.save_weights, tmp_path / 'v', less, 'torch', t.model), (tmp_path / 'v').exists()
    same_answers(request, 'tasks', found)


class Plain(interface.Runner):
    "A runner that keeps what it is given, by a clock of its own"

    clock = SimpleNamespace(wall=0.0, cpu=0.0)
    name = 'plain'

    def build(self):
        self.seen = []

    def load(self, w):
        self.w = dict(w)

    def dump(self):
        return self.w

    def batches(self, xs, ys):
        return list(zip(xs, ys, strict=True))

    def predict(self, x):
        return x.reshape(len(x), -1)[:, :10] + float(len(self.seen))

    def train(self, batches):
        for x, y in batches:
            busy = 1 + len(self.seen) % 3
            self.clock.wall += self.cost[0] * busy
            self.clock.cpu += self.cost[1] * busy
            self.seen.append((x.shape, y.shape))
            yield self.scale * (1 + y.sum() % 5)

    cost, scale = (2.0, 1.0), 1.0


class Last(Plain):
    "The same with channels last"

    dialect, cost, scale, name = 'jax', (1.0, 1.0), 1.25, 'last'


def clocked(monkeypatch):
    "Runners by that clock"
    Plain.clock = SimpleNamespace(wall=0.0, cpu=0.0)
    monkeypatch.setattr(
        interface, 'time', SimpleNamespace(perf_counter=lambda: Plain.clock.wall, process_time=lambda: Plain.clock.cpu)
    )
    monkeypatch.setattr(race, '_cpu', lambda: Plain.clock.cpu)
    known = dict(plain=Plain, last=Last)
    for module in (race, runners):
        monkeypatch.setattr(module, 'runners', known)
    monkeypatch.setattr(race, 'missing', lambda name: 'not here' if name == 'gone' else '')


def test_runs(request, monkeypatch):
    "Clocks, channels, gaps between runs, tables and verdicts; what is missing"
    found = {}
    clocked(monkeypatch)
    for cls, name in itertools.product((Plain, Last), ('cnn', 'mlp')):
        r = cls(task.make_task(name, 3, 2))
        found[f'{cls.__name__} {name}'] = (
            r.images(r.task.xs).shape,
            digest(r.images(r.task.xs))[2:],
            [*r.w][:2],
            r.fit(r.task.xs, r.task.ys).tolist(),
            r.seconds,
            r.cpu_seconds,
            r.seen,
            all(np.array_equal(w, r.task.weights[k]) for k, w in r.weights().items()),
        )
        r.w = {}
        r.reset()
        found[f'{cls.__name__} {name} reset'] = len(r.w)
    t = task.make_task('mlp', 4, 2)
    run = runners.finish(Plain(t), 2)
    found['finished'] = (
        run.framework,
        run.losses.tolist(),
        digest(run.logits),
        len(run.weights),
        len(runners.finish(Plain(t)).losses),
    )
    found['all'] = (
        [(r.framework, r.note, len(r.losses)) for r in runners.train_all(t)],
        [r.framework for r in runners.train_all(t, ['last'])],
    )
    weights = {k: w.astype('f8') for k, w in t.weights.items()}
    ref = runners.TrainedRun('ref', np.array([3.0, 2.0]), weights, np.zeros((1, 10)))
    cases = dict(
        same=ref,
        loss=replace(ref, losses=np.array([3.0, 2.5])),
        weight=replace(ref, weights=weights | {'fc2.bias': weights['fc2.bias'] - 0.25}),
        logits=replace(ref, logits=np.ones((1, 10))),
        nan=replace(ref, losses=np.array([3.0, np.nan])),
        inf=replace(ref, weights=weights | {'fc1.bias': weights['fc1.bias'] + np.inf}),
        noted=runners.TrainedRun('gone', note='not here'),
    )
    for name, r in cases.items():
        r = replace(r, framework=name)
        found[f'gaps {name}'] = (
            answer(runners._gaps, r, ref) if not r.note else '',
            answer(runners.check, [r], ref),
            answer(runners.check, [ref, r], tol=0.5),
            answer(runners.check, [ref, r], tol=0.25),
        )
    found['compared'] = (
        str(runners.compare_runs([ref, *cases.values()])),
        runners.compare_runs([cases['loss'], ref]).rows,
        runners.compare_runs([cases['loss']], ref).notes,
    )
    found['double'] = (
        digest(runners.as_double(t).xs),
        digest(runners.as_double(t).ys)[:2],
        {str(w.dtype) for w in runners.as_double(t).weights.values()},
        runners.as_double(t).lr,
    )
    monkeypatch.undo()
    for lacks, cxx in (
        ((), 'sh'),
        (('haiku',), 'sh'),
        (('haiku', 'jax'), 'sh'),
        (('tensorflow', 'lightning', 'torch'), 'sh'),
        ((), 'no-such-compiler'),
    ):
        monkeypatch.setattr(runners.importlib.util, 'find_spec', lambda m, lacks=lacks: None if m in lacks else 1)
        monkeypatch.setenv('CXX', cxx)
        found[f'missing {lacks} {cxx}'] = {n: note for n in runners.runners if (note := runners.missing(n))}
    found['who'] = (
        {n: (c.dialect, c.modules, c.extra) for n, c in runners.runners.items()},
        answer(runners.missing, 'tensorflw'),
    )
    monkeypatch.setattr(runners, 'missing', lambda name: 'gone')
    found['not run'] = runners.train_with(t, 'torch').note
    same_answers(request, 'runs', found)


def test_torch(request):
    "Layers of PyTorch by name, and training in double precision"
    found = {}
    for name in task.models:
        t = task.make_task(name, 4, 3)
        found[f'net {name}'] = [(n, str(m)) for n, m in pytorch.torch_net(t.model).named_children()]
        r = pytorch.TorchRunner(runners.as_double(t))
        found[f'trained {name}'] = (
            r.fit(r.task.xs, r.task.ys).tolist(),
            digest(r.predict(r.task.xs[0])),
            {k: digest(w)[2:] for k, w in r.dump().items() if '1' in k},
            str(r.batches(t.xs, t.ys)[0][1].dtype),
            len(r.batches(t.xs, t.ys)),
        )
        r.reset()
        found[f'again {name}'] = all(np.array_equal(w, t.weights[k]) for k, w in r.weights().items())
    same_answers(request, 'torch', found)


def test_races(request, monkeypatch):
    "Laps, turns, standings after each event, tables; the cost of a step"
    found = {}
    clocked(monkeypatch)
    monkeypatch.setattr(race, 'fix_torchvision', lambda: None)
    for steps, laps in ((23, 5), (9, 3), (5, 1), (7, 5), (8, 5)):
        found[f'race {steps} {laps}'] = answer(
            lambda steps=steps, laps=laps: [
                [tuple(v for v in vars(s).values()) for s in standing]
                for standing in race.race(task.make_task('mlp', steps, 2), ['last', 'plain'], laps)
            ][-2:]
        )
    for names in (['plain'], None, ['last', 'last'], ['plan']):
        found[f'named {names}'] = answer(
            lambda names=names: [
                [s.framework for s in standing] for standing in race.race(task.make_task('mlp', 9, 2), names, 2)
            ]
        )
    race.runners['gone'] = Plain
    for names in (['gone', 'plain'], ['gone']):
        found[f'gone {names}'] = [
            [(s.framework, s.ratio, s.note) for s in standing]
            for standing in race.race(task.make_task('mlp', 9, 2), names, 2)
        ]
    last = list(race.race(task.make_task('mlp', 23, 2), ['plain', 'gone', 'last']))[-1]
    found['table'] = str(race.race_table(last)), race.race_table(last[1:2]).notes, race.race_table(last).rows
    entries = list('abc')
    found['turns'] = (
        [race._in_turn(entries, k) for k in range(5)],
        [
            answer(race._lap_steps, SimpleNamespace(xs=range(n)), laps, 3)
            for n, laps in ((8, 5), (7, 5), (13, 5), (12, 5), (4, 1))
        ],
    )
    a, b = (SimpleNamespace(losses=np.array(x)) for x in ([1.0, 2.0], [1.0, 2.5]))
    found['gap'] = [race._Entry.gap(x, y) for x, y in ((a, b), (a, a), (a, SimpleNamespace(losses=np.array([1.0]))))]
    for t0, t1 in ((0.01, 0.001), (0.5, 0.0), (0.0, 2.0)):
        found[f'overhead {t0} {t1}'] = [
            round(x, 9) for x in race.overhead([1, 8, 64], [n / (t0 + t1 * n) for n in (1, 8, 64)])
        ]
    found['noisy'] = [round(x, 9) for x in race.overhead([1, 2, 4, 8], [90, 150, 260, 300])]
    monkeypatch.undo()
    pinned, used = [], os.times()
    monkeypatch.setattr(race.os, 'sched_getaffinity', lambda pid: {pid, 3, 1}, raising=False)
    monkeypatch.setattr(race.os, 'sched_setaffinity', lambda t, cores: pinned.append(sorted(cores)), raising=False)
    monkeypatch.setattr(race.os, 'listdir', lambda path: ['7', '8'])
    monkeypatch.setattr(race.os.path, 'isdir', lambda path: True)
    with race.one_core():
        inside = list(pinned)
    found['pinned'] = inside, pinned
    monkeypatch.setattr(race.os.path, 'isdir', lambda path: False)
    with race.one_core():
        found['not pinned'] = len(pinned)
    monkeypatch.undo()
    monkeypatch.setattr(
        race.os, 'times', lambda: SimpleNamespace(user=1, system=20, children_user=300, children_system=4000, elapsed=5)
    )
    found['cpu'] = race._cpu(), used is not None
    same_answers(request, 'races', found)


# Files


def pool(shape, kernel, **kw):
    "A model with one pooling"
    node = helper.make_node('MaxPool', ['x'], ['y'], kernel_shape=kernel, **kw)
    value = lambda n, s: helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
    shape = [1, 1, *shape] if len(kernel) == 4 else shape
    graph = helper.make_graph(
        [helper.make_node('Relu', ['r'], ['x']), node], 'g', [value('r', shape)], [value('y', None)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


def nodes_of(m):
    return [
        (n.op_type, list(n.input), list(n.output), {a.name: list(a.ints) for a in n.attribute if a.ints})
        for n in m.graph.node
    ]


def test_files(request, tmp_path, monkeypatch):
    "Poolings over batch and channels as poolings over space, files of runners, exporters and the shapes they are told"
    found = {}
    for name, (shape, kernel, kw) in dict(
        jax=([2, 4, 6, 3], (1, 2, 2, 1), dict(strides=(1, 2, 2, 1))),
        pads=([1, 4, 4, 2], (1, 2, 2, 1), dict(strides=(1, 2, 2, 1), pads=(0, 1, 0, 0, 0, 0, 1, 0))),
        space=([1, 2, 4, 4], (2, 2), {}),
        one=([2, 4, 6, 3], (1, 2, 1, 1), {}),
        three=([2, 4, 6, 3], (1, 2, 3, 2), {}),
        all=([2, 2, 2, 2], (2, 2, 2, 2), {}),
        dilated=([1, 5, 5, 1], (1, 2, 2, 1), dict(dilations=(1, 2, 1, 1))),
    ).items():
        m = pool(shape, kernel, **kw)
        onnx.save(m, str(tmp_path / 'p.onnx'))
        convert._pool_in_space(str(tmp_path / 'p.onnx'))
        new = onnx.load(str(tmp_path / 'p.onnx'))
        found[f'pool {name}'] = (
            convert._window(m.graph.node[1]),
            nodes_of(new),
            [numpy_helper.to_array(a.t).tolist() for n in new.graph.node for a in n.attribute if a.name == 'value'],
        )
        x = np.random.default_rng(0).standard_normal([1, 1, *shape]).astype('f4')
        if name in ('jax', 'pads', 'dilated'):
            found[f'pool {name} runs'] = digest(whole_pool(new, x))
    t = task.make_task('mlp', 1, 1)
    r = pytorch.TorchRunner(t)
    path = convert.save_runner(r, tmp_path / 'w')
    other = pytorch.TorchRunner(task.make_task('mlp', 1, 1, seed=3))
    found['carried'] = (
        np.array_equal(convert.load_runner(other, path).predict(t.xs[0]), r.predict(t.xs[0])),
        answer(convert.load_runner, pytorch.TorchRunner(task.make_task('cnn', 1, 1)), path),
    )
    told = []
    monkeypatch.setattr(
        convert,
        'exporters',
        {k: ('', lambda r, shape, path: told.append((shape, os.path.basename(path)))) for k in ('torch', 'jax')},
    )
    for cls, name in itertools.product((Plain, Last), ('cnn', 'mlp')):
        told.append(os.path.basename(convert.to_onnx(cls(task.make_task(name, 1, 1)), tmp_path / 'm.onnx')))
    found['exported'] = told
    value = lambda n, s: helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
    two = helper.make_model(
        helper.make_graph(
            [helper.make_node('Neg', ['in'], ['a']), helper.make_node('Abs', ['in'], ['b'])],
            'g',
            [value('in', ['n', 2])],
            [value('a', ['n', 2]), value('b', ['n', 2])],
        ),
        opset_imports=[helper.make_opsetid('', 17)],
        ir_version=8,
    )
    onnx.save(two, str(tmp_path / 'two.onnx'))
    found['run'] = convert.run_onnx(tmp_path / 'two.onnx', np.array([[1.0, -2.0]], 'f4')).tolist()
    found['exporters'] = sorted(convert.exporters)
    same_answers(request, 'files', found)


def whole_pool(model, x):
    "What a rewritten pooling makes of an array whose first two axes are one"
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, dict(r=x))[0]
