"""Followers: killed, doubled, hanging; and every sink that has a client, written through it and read back"""

import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from fsdl_tools.environments import built, run_in
from fsdl_tools.operations import tracking
from fsdl_tools.operations.sinks import JsonLines
from fsdl_tools.operations.tracker_clients import _flat, sinks
from fsdl_tools.operations.tracking import feed, follow
from fsdl_tools.operations.tracking_compare import compare, compare_html, convert, run_differences, serve, write_log
from fsdl_tools.operations.tracking_read import read, read_all
from fsdl_tools.training.runlog import start_run
from fsdl_tools.training.runs import Run, Series, read_log

clients = pytest.mark.skipif(not built('trackers'), reason="the side environment 'trackers' is not built")
there = [n for n, s in sinks.items() if not s.package or built(s.side)]
absent = lambda n: pytest.mark.skipif(n not in there, reason=f'the side environment {sinks[n].side!r} is not built')
ROOT = Path(__file__).parent.parent.parent
canary = 'hf_' + 'CanaryCanaryCanary'


def some_run(folder, rows=500, finish=True, **kw):
    "A run with two metrics; its log"
    log = start_run(folder, dict(lr=0.1, nested=dict(depth=3)), name='demo', project='p', packages=False, **kw)
    for step in range(rows):
        log.log(dict(loss=random.random() * 10 ** random.randrange(-300, 300), accuracy=step / 7), step)
    if finish:
        log.finish()
    return log


feeder = (
    'import sys; from fsdl_tools.operations import tracking; b = tracking._batches; tracking._batches = lambda log,'
    ' offset, size=7: b(log, offset, 7); print("ready", flush=True); tracking.feed(sys.argv[1], sys.argv[2])'
)


@pytest.mark.parametrize('to', ['jsonl', 'tensorboard'])
def test_a_follower_killed_at_any_moment_loses_and_doubles_nothing(tmp_path, to):
    log = some_run(tmp_path, 1500)
    whole = open(feed(log.folder, to)['where'], 'rb').read()
    for p in (log.folder / 'sinks').iterdir():
        if p.is_file():
            p.unlink()
    for p in (log.folder / 'sinks' / to).iterdir():
        p.unlink()
    for _ in range(6):
        p = subprocess.Popen([sys.executable, '-c', feeder, str(log.folder), to], stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        time.sleep(random.random() * 0.3)
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
    done = feed(log.folder, to)
    assert open(done['where'], 'rb').read() == whole and done['events'] == 1501
    assert not run_differences(read(log.folder), read(done['where']))


def test_a_follower_of_a_live_run_ends_with_it(tmp_path):
    log, out = some_run(tmp_path, 10, finish=False), {}
    thread = threading.Thread(target=lambda: out.update(feed(log.folder, 'jsonl', poll=0.05)))
    thread.start()
    for step in range(10, 30):
        log.log(dict(loss=step), step)
        time.sleep(0.02)
    assert thread.is_alive()
    log.finish('failed')
    thread.join(150)
    assert out['status'] == 'failed' and len(read(out['where']).metrics['loss']) == 30


def test_a_follower_of_a_killed_run_ends_too(tmp_path):
    code = (
        'import sys, time; from fsdl_tools.training.runlog import start_run; log = start_run(sys.argv[1],'
        ' packages=False); log.log(dict(x=1), 0); log.flush(); print(log.folder, flush=True); time.sleep(60)'
    )
    p = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    folder, out = p.stdout.readline().strip(), {}
    thread = threading.Thread(target=lambda: out.update(feed(folder, 'jsonl', poll=0.05)))
    thread.start()
    time.sleep(0.3)
    p.kill()
    p.wait()
    p.stdout.close()
    thread.join(150)
    assert out['status'] == 'killed' and out['done']


def test_two_followers_exclude_each_other(tmp_path):
    log = some_run(tmp_path, 5)
    with tracking._alone(log.folder / 'sinks' / 'jsonl'), pytest.raises(BlockingIOError, match='another process'):
        feed(log.folder, 'jsonl')


def test_a_hanging_sink_holds_up_nobody(tmp_path, monkeypatch):
    log = some_run(tmp_path, 50)
    real = tracking._child
    hang = (
        'import sys, json, time; call = sys.stdin.read(); d = json.loads(call); time.sleep(600 if d["to"] == "jsonl"'
        ' else 0); import io; sys.stdin = io.StringIO(call)\n'
    )
    monkeypatch.setattr(tracking, '_child', hang + real)
    t0 = time.monotonic()
    rows = {r['sink']: r for r in follow(log.folder, ('jsonl', 'tensorboard'), timeout=20)}
    assert (
        rows['tensorboard']['status'] == 'finished'
        and rows['jsonl']['status'] == 'stopped'
        and time.monotonic() - t0 < 100
    )
    monkeypatch.undo()
    assert follow(log.folder, ('jsonl',), timeout=200)[0]['status'] == 'finished'


def test_mistakes_are_found_before_anything_starts(tmp_path, monkeypatch):
    log = some_run(tmp_path, 1)
    with pytest.raises(ValueError, match="did you mean 'tensorboard'"):
        follow(log.folder, ('tensorbord',))
    with pytest.raises(FileNotFoundError):
        follow(tmp_path / 'none', ('jsonl',))
    monkeypatch.setattr(tracking, 'built', lambda name: None)
    if not tracking.importlib.util.find_spec('wandb'):
        with pytest.raises(FileNotFoundError, match='fsdl env build trackers'):
            follow(log.folder, ('wandb',))


def test_a_database_is_named_from_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking._absolute(dict(uri='sqlite:///here.db', experiment='e')) == dict(
        uri=f'sqlite:///{tmp_path}/here.db', experiment='e'
    )
    for same in (None, {}, dict(uri='http://127.0.0.1:5000'), dict(uri=f'sqlite:///{tmp_path}/a.db')):
        assert tracking._absolute(same) == same


def test_a_log_cannot_name_files_outside_the_run(tmp_path):
    secret = tmp_path / 'secret'
    secret.write_text('x')
    sink = JsonLines(tmp_path / 'out', dict(id='a'), {}, dict(run=str(tmp_path)))
    for bad in ('../secret', str(secret), '', 'a' * 64):
        assert sink.kept(dict(sha256=bad, path='../secret')) is None
    assert sink.lost


def test_secrets_reach_no_sink_and_no_page(tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_API_KEY', 'plain-canary-words')
    with start_run(tmp_path, dict(key=canary, w='plain-canary-words'), packages=False, name=canary) as log:
        log.log({'x': 1.0, f'y {canary}': 2.0}, 0)
    follow(log.folder, ('jsonl', 'tensorboard'), timeout=200)
    page = compare_html(log.folder) + repr(compare(log.folder)) + repr(read(log.folder))
    data = b''.join(p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()) + page.encode()
    assert b'Canary' not in data and b'plain-canary' not in data


def bits(values):
    return struct.pack(f'<{len(values)}d', *values)


@pytest.fixture(scope='module')
def through_all(tmp_path_factory):
    "Ten thousand scalars through every client at once: the log, and what follow said"
    folder = tmp_path_factory.mktemp('all')
    log = some_run(folder, 5000, finish=False, tags=dict(kind='test'))
    (folder / 'a.txt').write_text('hello')
    log.artifact(folder / 'a.txt')
    log.finish()
    return log.folder, {
        r['sink']: r for r in follow(log.folder, tuple(n for n in there if n != 'clearml'), timeout=280)
    }  # ClearML's client takes a minute to close


@clients
@pytest.mark.parametrize('to', [pytest.param(s, marks=absent(s)) for s in sinks if s not in ('determined', 'clearml')])
def test_ten_thousand_scalars_through_every_client(through_all, to):
    folder, done = through_all
    assert done[to]['status'] == 'finished', done[to]
    whole, back = read_log(folder), read_all(folder / 'sinks' / to)[0]
    for name, s in whole.metrics.items():
        assert back.metrics[name].steps == s.steps and bits(back.metrics[name].values) == bits(s.values)
        if to != 'comet':
            assert max(abs(a - b) for a, b in zip(back.metrics[name].times, s.times)) < 0.0011
    assert str(_flat(back.params)['lr']) == '0.1' and back.id == whole.id


@absent('clearml')
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ten_thousand_scalars_through_clearml(tmp_path):
    "Values, steps, times, parameters with their types, tags; the sign of minus infinity is what is lost, and named"
    log = some_run(tmp_path, 5000, finish=False, tags=dict(kind='test'))
    log.log(dict(odd=float('nan')), 5000)
    log.log(dict(odd=float('-inf')), 5001)
    log.finish()
    done = follow(log.folder, ('clearml',), timeout=350)[0]
    whole, (back,) = read_log(log.folder), read_all(log.folder / 'sinks' / 'clearml')
    assert done['status'] == 'finished' and 'minus infinity' in done['lost'], done
    assert (back.id, back.status, back.tags, back.name, back.project) == (
        whole.id,
        'finished',
        whole.tags,
        'demo',
        'p',
    ) and not back.warnings
    assert run_differences(whole, back) == ['odd: 1 of 2 values differ, such as -inf and inf']


@clients
def test_determined_takes_every_report(through_all):
    folder, done = through_all
    assert (
        done['determined']['status'] == 'finished'
        and json.loads((folder / 'sinks' / 'determined.json').read_text())['reported'] == 5000
    )


@clients
def test_tensorboards_own_reader_agrees(through_all):
    code = '''
def main(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray
    e = EventAccumulator(folder, size_guidance=dict(tensors=0)).Reload()
    return [[x.step, float(make_ndarray(x.tensor_proto)), x.wall_time] for x in e.Tensors('loss')]
'''
    folder, _ = through_all
    rows, loss = run_in('trackers', code, str(folder / 'sinks' / 'tensorboard')), read_log(folder).metrics['loss']
    assert (
        [r[0] for r in rows] == loss.steps
        and bits([r[1] for r in rows]) == bits(loss.values)
        and [r[2] for r in rows] == loss.times
    )


@clients
@pytest.mark.slow
@pytest.mark.parametrize(
    'to', [pytest.param(s, marks=absent(s)) for s in ('mlflow', 'wandb', 'comet', 'clearml', 'trackio')]
)
def test_a_client_killed_and_started_again(tmp_path, to):
    log = some_run(tmp_path, 4000)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            tracking,
            '_child',
            tracking._child.replace(
                'result =',
                'import fsdl_tools.operations.tracking as t; b = t._batches; t._batches = lambda log, offset, size=50:'
                ' b(log, offset, 50); result =',
            ),
        )
        for wait in (8, 11, 14):
            follow(log.folder, (to,), timeout=wait + random.random() * 3)
    done = follow(log.folder, (to,), timeout=250)[0]
    assert done['status'] == 'finished', (done, (log.folder / 'sinks' / f'{to}.out').read_text()[-2000:])
    back, whole = read_all(log.folder / 'sinks' / to)[0], read_log(log.folder)
    for name, s in whole.metrics.items():
        assert back.metrics[name].steps == s.steps and bits(back.metrics[name].values) == bits(s.values)


@clients
@pytest.mark.slow
def test_a_follower_killed_while_it_makes_a_database(tmp_path):
    """MLflow makes its tables one after the other, for seconds: who is killed meanwhile leaves nothing that would
    stand in the way
    """
    log = some_run(tmp_path, 50)
    place = log.folder / 'sinks' / 'mlflow'
    (tmp_path / 'lib').mkdir()
    p = tracking._spawn(log.folder, 'mlflow', None, True, tracking._library(tmp_path / 'lib'))
    end = time.monotonic() + 200
    while not list(place.glob('.mlflow.db.*/new.db')):
        assert time.monotonic() < end and p.poll() is None, p.stdout.read()
        time.sleep(0.02)
    tracking._end(p)
    p.stdout.close()
    assert not (place / 'mlflow.db').exists()
    assert follow(log.folder, ('mlflow',), timeout=250)[0]['status'] == 'finished'
    assert not list(place.glob('.mlflow.db.*')) and run_differences(read_log(log.folder), read(place)) == [
        'parameters became text: lr, nested.depth'
    ]


@clients
@pytest.mark.slow
def test_a_server_that_never_answers(tmp_path):
    "The follower hangs and is stopped; the training, which logs all the while, notices nothing"
    import statistics

    medians = []
    with socket.create_server(('127.0.0.1', 0)) as s:
        log, rows = some_run(tmp_path, 100, finish=False), []
        options = dict(mlflow=dict(uri=f'http://127.0.0.1:{s.getsockname()[1]}'))
        thread = threading.Thread(
            target=lambda: rows.extend(follow(log.folder, ('mlflow',), options=options, timeout=20))
        )
        thread.start()
        while thread.is_alive():
            took = []
            for step in range(2000):
                t0 = time.perf_counter()
                log.log(dict(loss=0.5, accuracy=0.25), step)
                took.append(time.perf_counter() - t0)
            medians.append(statistics.median(took))
            time.sleep(0.2)
        log.finish()
    assert rows[0]['status'] == 'stopped' and 'did not end' in rows[0]['error']
    assert len(medians) > 20 and statistics.median(medians) < 5e-6 and log.dropped == 0


odd_names = [
    'ключ',
    'a/b c',
    'quote"\'',
    'x' * 300,
    'step',
    'a.b',
    'percent%s',
    'tab\tline\nbreak',
    '日本語',
    '_private',
    'A',
    'a',
]
odd_values = [float('nan'), float('inf'), float('-inf'), 5e-324, 1.7976931348623157e308, -0.0, 2.0**60, 1 / 3]


@pytest.mark.parametrize(
    'to',
    [
        pytest.param(s, marks=() if s in ('jsonl', 'tensorboard') else (absent(s), pytest.mark.slow))
        for s in sinks
        if s != 'determined'
    ],
)
def test_odd_numbers_and_names_survive_or_are_named(tmp_path, to):
    metrics = {
        name: Series(list(range(len(odd_values))), list(odd_values), [float(1000 + i) for i in range(len(odd_values))])
        for name in odd_names
    }
    r = Run('odd', source='x', params={'größe': 1, 'lr': 0.1, 'deep': {'a.b': 'c'}}, metrics=metrics)
    c = convert(r, to, tmp_path / to, timeout=200)
    back, said = read_all(c.where)[0], ' '.join(c.differs + c.lost)
    for name, s in metrics.items():
        same = (
            name in back.metrics
            and bits(back.metrics[name].values) == bits(s.values)
            and back.metrics[name].steps == s.steps
        )
        assert same or name[:50] in said or repr(name[:50])[1:-1] in said, (name, c.differs, c.lost)
    plain = [n for n in ('A', 'a', 'a.b') if not any(d.startswith(f'{n}: missing') for d in c.differs)]
    assert len(plain) == 3, c.differs


@clients
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_canary_reaches_no_file_of_any_client(tmp_path, monkeypatch):
    """Keys in the environment and in the command, parameters, names, an error: what the clients write holds none,
    unpacked archives included
    """
    import zipfile

    monkeypatch.setenv('MY_SERVICE_PASSWORD', 'plain-canary-words')
    monkeypatch.setenv('HF_TOKEN', canary)
    monkeypatch.setattr(sys, 'argv', ['train.py', '--api-key', canary])
    with (
        pytest.raises(RuntimeError),
        start_run(
            tmp_path / 'runs',
            dict(key=canary, w='plain-canary-words'),
            name=canary,
            packages=False,
            tags=dict(t=canary),
        ) as log,
    ):
        log.log({'x': 1.0, f'y {canary}': 2.0}, 0)
        raise RuntimeError(f'no access with {canary}')
    done = follow(log.folder, tuple(there), timeout=280)
    assert {r['status'] for r in done} == {'failed'} and not any(r['error'] for r in done), list(done)
    found = []
    for p in tmp_path.rglob('*'):
        if not p.is_file():
            continue
        parts = [p.read_bytes()]
        if zipfile.is_zipfile(p):
            with zipfile.ZipFile(p) as z:
                parts += [z.read(n) for n in z.namelist()]
        if any(b'Canary' in d or b'plain-canary' in d for d in parts):
            found.append(str(p.relative_to(tmp_path)))
    assert found == []


@clients
def test_a_model_from_a_run_to_onnx(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file, save_file
    from fsdl_tools.onnx.export import export
    from fsdl_tools.onnx.graph import inspect_onnx
    from fsdl_tools.operations.tracking_compare import fetch, register

    monkeypatch.chdir(tmp_path)  # a database is named from where one stands, as the page does it
    model, uri = torch.nn.Linear(4, 2), 'sqlite:///mlflow.db'
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    with start_run(tmp_path / 'runs', dict(width=4), packages=False) as log:
        a = log.artifact(tmp_path / 'model.safetensors', kind='model')
    assert str(register(log.folder, 'model.safetensors', 'demo', uri=uri)) == '1'
    assert (tmp_path / 'mlflow.db').is_file() and list((tmp_path / 'artifacts').rglob('model.safetensors'))
    path, lineage = fetch('demo', uri, tmp_path / 'here')
    other = torch.nn.Linear(4, 2)
    other.load_state_dict(load_file(path))
    assert torch.equal(other.weight, model.weight)
    export(other, tmp_path / 'model.onnx', dict(x=torch.zeros(2, 4)), metadata=lineage)
    kept = inspect_onnx(tmp_path / 'model.onnx').metadata
    assert kept['fsdl.lineage.sha256'] == a.sha256 and kept['fsdl.lineage.fsdl.run'] == log.id
    path.write_bytes(b'another model')
    with pytest.raises(ValueError, match='no run|artifact'):
        register(log.folder, 'none', 'demo', uri=uri)


@pytest.fixture(scope='module')
def mlflow_server(tmp_path_factory):
    "A real MLflow server on 127.0.0.1: (address, process, its folder)"
    from fsdl_tools.operations.slurm_cluster import free_ports

    top, port = tmp_path_factory.mktemp('server'), free_ports(1)[0]
    words = [
        'server',
        '--host',
        '127.0.0.1',
        '--port',
        str(port),
        '--workers',
        '1',
        '--backend-store-uri',
        f'sqlite:///{top}/mlflow.db',
        '--artifacts-destination',
        str(top / 'artifacts'),
    ]
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(MLFLOW_DISABLE_TELEMETRY='true')
    with open(top / 'out', 'wb') as out:
        p = subprocess.Popen(
            [str(built('trackers')), '-m', 'mlflow', *words],
            env=env,
            stdout=out,
            stderr=out,
            cwd=top,
            start_new_session=True,
        )
    url, end = f'http://127.0.0.1:{port}', time.monotonic() + 240
    try:
        while True:
            try:
                urllib.request.urlopen(url + '/health', timeout=5).read()
                break
            except OSError:
                assert p.poll() is None and time.monotonic() < end, (top / 'out').read_text()[-3000:]
                time.sleep(0.5)
        yield url, p, top
    finally:
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()


@clients
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_of_mlflow(mlflow_server, tmp_path):
    """Written through the client, read through REST: the same bits; followed again, nothing is doubled; a server
    that stands still holds up nobody
    """
    url, p, _ = mlflow_server
    log = some_run(tmp_path, 5000, tags=dict(kind='test'))
    options = dict(mlflow=dict(uri=url))
    os.killpg(p.pid, signal.SIGSTOP)
    row = follow(log.folder, ('mlflow',), options=options, timeout=20)[0]
    os.killpg(p.pid, signal.SIGCONT)
    assert row['status'] == 'stopped'
    assert follow(log.folder, ('mlflow',), options=options, timeout=250)[0]['status'] == 'finished'
    whole, back = read_log(log.folder), read(url, log.id)
    for name, s in whole.metrics.items():
        assert back.metrics[name].steps == s.steps and bits(back.metrics[name].values) == bits(s.values)
    assert (
        back.id == log.id
        and back.status == 'finished'
        and back.tags['kind'] == 'test'
        and str(_flat(back.params)['nested.depth']) == '3'
    )
    (log.folder / 'sinks' / 'mlflow.json').unlink()  # as if the follower had been killed before it wrote its offset
    assert follow(log.folder, ('mlflow',), options=options, timeout=250)[0]['status'] == 'finished'
    assert sum(r.id == log.id for r in read_all(url)) == 1 and len(read(url, log.id).metrics['loss']) == 5000
    odd = some_run(tmp_path / 'odd', 0, finish=False)
    odd.log(dict(n=float('nan'), i=float('inf')), 0)
    odd.finish()
    c = convert(odd.folder, 'mlflow', tmp_path / 'converted', options=dict(uri=url))
    assert any('infinite' in x for x in c.lost) and [d for d in c.differs if d.startswith('n:')] == []


@clients
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_registry_of_a_server(mlflow_server, tmp_path):
    """Two versions of a model; the alias moves; what is fetched is what was logged, and a file that was changed is
    refused
    """
    from fsdl_tools.operations.tracking_compare import fetch, register

    url, _, top = mlflow_server
    made = []
    for n in (1, 2):
        (tmp_path / 'model.bin').write_bytes(b'weights' * n)
        with start_run(tmp_path / 'runs', dict(n=n), packages=False) as log:
            log.artifact(tmp_path / 'model.bin', kind='model')
        assert str(register(log.folder, 'model.bin', 'served', uri=url)) == str(n)
        made.append(log.id)
    path, lineage = fetch('served', url, tmp_path / 'here')
    assert (
        path.read_bytes() == b'weights' * 2
        and lineage['lineage.fsdl.run'] == made[1]
        and lineage['lineage.version'] == '2'
    )
    stored = [p for p in (top / 'artifacts').rglob('model.bin') if p.read_bytes() == b'weights' * 2]
    stored[0].write_bytes(b'changed')
    with pytest.raises(ValueError, match='SHA-256'):
        fetch('served', url, tmp_path / 'again')


def tabs(chapter, title):
    "Name -> code of the tabs of a page's section"
    cells = json.loads((ROOT / 'nbs' / 'operations' / chapter).read_text())['cells']
    text = next(s for c in cells if c['cell_type'] == 'markdown' and title in (s := ''.join(c['source'])))
    return {name.strip(): code for name, code in re.findall(r'^## ([^\n]+)\n.*?```python\n(.*?)```', text, re.M | re.S)}


loop = 'def train(log):\n    for step in range(STEPS): log(dict(loss=1/(step + 1), accuracy=step/100), step)\n'
left = {
    'TensorBoard': 'runs',
    'MLflow': 'mlflow.db',
    'W&B': 'wandb',
    'Comet': 'comet',
    'trackio': 'trackio',
    'SwanLab': 'swanlab',
    'Neptune': '.neptune',
    'Determined': None,
}


@clients
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('tracker', left)
def test_the_loops_in_the_tabs(tmp_path, tracker):
    """The code that the page shows runs, and ten thousand scalars that it leaves are read back (two hundred of
    MLflow, whose every call writes to a database)
    """
    steps = 100 if tracker == 'MLflow' else 5000
    code = tabs('10_tracker_clients.ipynb', 'group="loop"')[tracker]
    python, more = str(built('trackers')), ''
    if tracker == 'TensorBoard':  # it is part of torch, which the trackers' environment lacks
        python, more = (
            sys.executable,
            (
                'import sys;'
                f' sys.path.append({str(next(built("trackers").parent.parent.glob("lib/python*/site-packages")))!r})\n'
            ),
        )
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(
        HOME=str(tmp_path), TRACKIO_DIR=str(tmp_path / 'trackio'), MLFLOW_DISABLE_TELEMETRY='true', WANDB_SILENT='true'
    )
    p = subprocess.run(
        [python, '-c', f'{more}STEPS = {steps}\n{loop}{code}'],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert p.returncode == 0, p.stderr[-3000:]
    if tracker == 'Determined':
        return
    r = read(tmp_path / left[tracker])
    want = [1 / (i + 1) for i in range(steps)]
    if tracker == 'TensorBoard':
        want = [struct.unpack('<f', struct.pack('<f', v))[0] for v in want]
    name = next(k for k in r.metrics if k.endswith('loss'))
    assert bits(r.metrics[name].values) == bits(want) and r.metrics[name].steps == list(range(steps))
    if tracker == 'TensorBoard':
        return
    name = next(k for k in r.metrics if k.endswith('accuracy'))
    assert bits(r.metrics[name].values) == bits([i / 100 for i in range(steps)]) and r.metrics[name].steps == list(
        range(steps)
    )


def test_convert_says_what_is_lost(tmp_path):
    r = Run(
        'r',
        source='x',
        params=dict(a=1),
        metrics={
            'b c': Series([0, 0.5], [float('nan'), 1.0], [1.0, 2.0]),
            'back': Series([5, 3], [1.0, 2.0], [9.0, 4.0]),
        },
    )
    c = convert(r, 'jsonl', tmp_path / 'lines')
    assert c.differs == [] and c.lost == []
    c = convert(r, 'tensorboard', tmp_path / 'board')
    assert c.lost == ['decimal steps were rounded down (1)'] and c.differs == [
        'b c: 1 of 2 steps differ, the first at 0.5'
    ]
    with pytest.raises(FileExistsError):
        convert(r, 'jsonl', tmp_path / 'lines')
    assert read(write_log(r, tmp_path / 'again')).metrics['back'].steps == [5, 3]


def test_what_a_trainer_leaves_goes_into_any_tracker(tmp_path):
    "The way out that exit_cost promises for runs: metrics.jsonl, every number read back with the same bits"
    from fsdl_tools.training.trainer import fit
    from fsdl_tools.training.config import TrainConfig

    rows = fit(TrainConfig(seq=16, global_batch=4, steps=4, holdout=0.0, seed=3, folder=str(tmp_path / 'run')))
    r = read(tmp_path / 'run' / 'metrics.jsonl')
    assert bits(r.metrics['loss'].values) == bits([row['loss'] for row in rows]) and r.metrics['loss'].steps == [
        row['step'] for row in rows
    ]
    for to in ('jsonl', 'tensorboard'):
        c = convert(tmp_path / 'run' / 'metrics.jsonl', to, tmp_path / to)
        assert c.points == r.points() > 8 and c.differs == [] and c.lost == [], c


def test_pages_escape_what_others_wrote(tmp_path, browser):
    evil = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
    r = Run(
        evil,
        name=evil,
        source='x',
        params={evil: evil},
        metrics={evil: Series([0, 1], [1.0, 2.0], [0.0, 0.0])},
        warnings=[evil],
    )
    compare_html([r, Run('b', metrics={evil: Series([0], [float('inf')], [0.0])})], tmp_path / 'page.html')
    page = browser.new_page()
    page.goto(f'file://{tmp_path}/page.html')
    assert (
        page.title() == 'Runs'
        and page.locator('script').count() == 0
        and page.locator('img').count() == 0
        and page.locator('svg').count() == 1
    )
    page.close()


def test_serve_only_for_this_machine(tmp_path):
    some_run(tmp_path, 20)
    server = serve(tmp_path, background=True)
    try:
        assert '1 runs' in urllib.request.urlopen(server.url, timeout=100).read().decode()
        for path, host, code in (('/', 'evil.example', 403), ('/../../etc/passwd', None, 404)):
            request = urllib.request.Request(server.url.rstrip('/') + path, headers={'Host': host} if host else {})
            with pytest.raises(urllib.error.HTTPError) as e:
                urllib.request.urlopen(request, timeout=100)
            assert e.value.code == code
    finally:
        server.shutdown()
        server.server_close()


def test_nothing_is_left(tmp_path):
    "A follower's scratch folder goes with it (others on this machine may have theirs)"
    log = some_run(tmp_path, 50)
    (tmp_path / 'scratch').mkdir()
    subprocess.run(
        [sys.executable, '-c', feeder, str(log.folder), 'jsonl'],
        env=dict(os.environ, TMPDIR=str(tmp_path / 'scratch')),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert not list((tmp_path / 'scratch').iterdir())
