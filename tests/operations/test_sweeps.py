"""Sweeps: files that mislead, controllers that are killed, trials that stand still, engines that take over from each
other
"""

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time

import pytest
from hypothesis import given, strategies as st

from fsdl_tools.environments import built
from fsdl_tools.operations import sweep_trials
from fsdl_tools.operations.launch import Job
from fsdl_tools.operations.targets import Status, TargetError, target
from fsdl_tools.operations.local import Local
from fsdl_tools.operations.sweep_space import Parameter, Space, command_of, distributions, parse_sweep, read_sweep
from fsdl_tools.operations.sweep_engines import bands, should_stop, suggest
from fsdl_tools.operations.sweep_results import best, importance, learning_curves, parallel_coordinates
from fsdl_tools.operations.sweeps import Budget, books, sweep
from fsdl_tools.operations.sweep_ray import tune_on_ray
from fsdl_tools.operations.sweep_trials import hourly_price, job_ended, nest, start_job, verdict
from .test_slurm import cluster, installed  # noqa: F401 - fixtures

toy = '''
import time, os, sys
def train(params, log):
    for step in range(params.get('steps', 2)):
        log.log(dict(loss=(params['x'] - .3)**2 + 1/(step + 1)), step)
        time.sleep(params.get('pause', 0))
    with open(os.environ['COUNT'], 'a') as f: f.write(repr(params['x']) + chr(10))
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with a toy training that notes every time it reaches its end"
    (tmp_path / 'toy.py').write_text(toy)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv('COUNT', str(tmp_path / 'count'))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    return tmp_path


def counted(place):
    return (place / 'count').read_text().split() if (place / 'count').exists() else []


def grid(n, **more):
    return parse_sweep(
        dict(
            method='grid',
            metric=dict(name='loss'),
            parameters=dict(x=dict(values=[i / 10 for i in range(n)])) | {k: dict(value=v) for k, v in more.items()},
        )
    )


controller = (
    'import sys, json; from fsdl_tools.operations.sweep_space import Space; from fsdl_tools.operations.sweeps import'
    ' sweep; sweep(Space.from_dict(json.loads(sys.argv[1])), sys.argv[2], "toy:train", workers=int(sys.argv[3]),'
    ' poll=.02)'
)


def start(space, folder, workers):
    return subprocess.Popen(
        [sys.executable, '-c', controller, json.dumps(space.to_dict()), str(folder), str(workers)],
        stderr=subprocess.PIPE,
        text=True,
    )


def end(p):
    "Wait for a controller; what it said"
    said = p.communicate(timeout=250)[1]
    assert p.returncode == 0, said
    assert 'locked' not in said


@pytest.mark.sweep(2)
@pytest.mark.parametrize('workers', range(1, 9))
def test_each_point_of_a_grid_once(place, workers):
    sweep(grid(10), place / 's', 'toy:train', workers=workers, poll=0.02)
    assert sorted(map(float, counted(place))) == [i / 10 for i in range(10)]
    assert [r['state'] for r in books(place / 's')] == ['finished'] * 10


def test_eight_controllers_on_one_database(place):
    jobs = [start(grid(16), place / 's', 1) for _ in range(8)]
    for p in jobs:
        end(p)
    assert sorted(map(float, counted(place))) == [i / 10 for i in range(16)] and len(books(place / 's')) == 16


def kill_and_go_on(place, kills, n):
    "Kill the controller at random moments; at the end nothing is lost and nothing done twice"
    space = grid(n, steps=3, pause=0.1)
    for _ in range(kills):
        p = start(space, place / 's', 2)
        time.sleep(0.4 + random.random() * 0.8)
        p.kill()
        p.communicate()
    end(start(space, place / 's', 2))
    rows = books(place / 's')
    assert len(rows) == n and {r['state'] for r in rows} == {'finished'}
    assert sorted(map(float, counted(place))) == [i / 10 for i in range(n)]


def test_a_controller_killed_again_and_again(place):
    kill_and_go_on(place, 5, 14)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_controller_killed_twenty_times(place):
    kill_and_go_on(place, 20, 60)


def test_a_trial_that_stands_still_is_not_failed(place):
    "A trial is stopped (SIGSTOP), its controller killed; the next controller waits for it instead of starting a twin"
    space = grid(1, steps=8, pause=0.3)
    p = start(space, place / 's', 1)
    while not (pids := [int(d) for d in os.listdir('/proc') if d.isdecimal() and _runs(d, str(place / 's'))]):
        time.sleep(0.02)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    p.kill()
    p.communicate()
    q = start(space, place / 's', 1)
    time.sleep(2)
    assert q.poll() is None and [r['state'] for r in books(place / 's')] == ['running']
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    end(q)
    assert len(counted(place)) == 1 and books(place / 's')[0]['attempt'] == 1


def _runs(pid, folder):
    "Is this the process of a trial (not its keeper, not its controller)?"
    try:
        words, env = open(f'/proc/{pid}/cmdline').read(), open(f'/proc/{pid}/environ').read()
    except OSError:
        return False
    return f'FSDL_RUN_FOLDER={folder}' in env and 'toy:train' in words and 'subprocess.call' not in words


def test_a_trial_that_is_killed_starts_again(place):
    (place / 'dies.py').write_text(
        'import os, signal\ndef train(params, log):\n    log.log(dict(loss=1.), 0)\n    if'
        ' log.folder.name.endswith("-1"): os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    rows = list(sweep(grid(2), place / 's', 'dies:train', poll=0.02))
    assert [(r['state'], r['attempt']) for r in rows] == [('finished', 2)] * 2


def test_trials_that_fail(place):
    (place / 'bad.py').write_text(
        'def train(params, log):\n    if params["x"] == 0: raise RuntimeError("no")\n   '
        ' log.log(dict(loss=float("nan")) if params["x"] == .1 else dict(other=1), 0)\n'
    )
    rows = list(sweep(grid(3), place / 's', 'bad:train', poll=0.02))
    assert [r['state'] for r in rows] == ['failed'] * 3
    assert [r['reason'] for r in rows] == ['exit code 1', 'loss is nan', "it logged no 'loss'"]
    with pytest.raises(ValueError, match='no trial'):
        best(place / 's')


def test_a_program_that_only_prints(tmp_path):
    (tmp_path / 'train.py').write_text(
        'import sys, json\nx = float([a for a in sys.argv if a.startswith("--x=")][0][4:])\nprint("hello");'
        ' print(json.dumps(dict(loss=x*2)))\n'
    )
    space = grid(3).replace(program=str(tmp_path / 'train.py'))
    assert [r['value'] for r in sweep(space, tmp_path / 's', poll=0.02)] == [0.0, 0.2, 0.4]
    assert best(tmp_path / 's')['trial'] == 0


def bayes(n):
    return parse_sweep(
        dict(
            method='bayes',
            metric=dict(name='loss'),
            run_cap=n,
            parameters=dict(
                x=dict(min=0.0, max=1.0),
                n=dict(min=1, max=5),
                k=dict(values=['a', 'b']),
                q=dict(distribution='normal', mu=0, sigma=1),
            ),
        )
    )


def test_optuna_finds_the_valley(place):
    done = sweep(bayes(16), place / 's', 'toy:train', poll=0.02)
    assert len(done) == 16 and best(place / 's')['value'] < 0.6
    b = best(place / 's')
    assert b['low'] <= b['value'] <= b['high'] and len(importance(place / 's')) >= 1


def test_another_engine_goes_on(place):
    space = bayes(4)
    sweep(space, place / 's', 'toy:train', poll=0.02)
    rows = list(sweep(space.replace(method='random', cap=6), place / 's', 'toy:train', poll=0.02))
    assert len(rows) == 6 and len(counted(place)) == 6
    if built('wandb_sweeps'):
        rows = list(sweep(space.replace(cap=7), place / 's', 'toy:train', engine='wandb', poll=0.02))
        assert (
            [r['engine'] for r in rows][-1] == 'wandb' and rows[-1]['state'] == 'finished' and 0 <= rows[-1]['x'] <= 1
        )
    with pytest.raises(ValueError, match='other parameters'):
        sweep(grid(3), place / 's', 'toy:train')


job_controller = controller.replace(
    'import sys, json;', 'import sys, json; from fsdl_tools.operations.launch import Job;'
).replace('poll=.02', 'poll=.1, job=Job("toy", ("python",), time=300)')


@pytest.fixture
def jobs(place, monkeypatch):
    "Local jobs are on record in the test's own folder"
    monkeypatch.setenv('XDG_STATE_HOME', str(place / 'state'))
    return place


def test_trials_that_are_jobs(jobs):
    "Their controller is killed between and during submissions: each point of the grid once, each job on record once"
    space = grid(4, steps=3, pause=0.2)
    for _ in range(2):
        p = subprocess.Popen(
            [sys.executable, '-c', job_controller, json.dumps(space.to_dict()), str(jobs / 's'), '2'],
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(1 + random.random() * 2)
        p.kill()
        p.communicate()
    done = sweep(space, jobs / 's', 'toy:train', poll=0.1, job=Job('toy', ('python',), time=300))
    assert [r['state'] for r in done] == [
        'finished'
    ] * 4  # an attempt more, where the controller died before it had handed the job over
    assert sorted(map(float, counted(jobs))) == [0.0, 0.1, 0.2, 0.3]
    assert len(list((jobs / 'state' / 'fsdl_tools' / 'jobs').iterdir())) == 4
    assert all(0 < r['seconds'] < 300 for r in books(jobs / 's'))


def test_a_job_whose_answer_was_lost(jobs, monkeypatch):
    "The controller hears nothing of what it submitted: the next look finds the job by its token"
    real, lost = Local.submit, []

    def submit(self, job, token=''):
        h = real(self, job, token)
        if not lost:
            lost.append(token)
            raise TargetError('the answer was lost')
        assert token == lost[0]
        return h

    monkeypatch.setattr(Local, 'submit', submit)
    trial = start_job(
        Job('toy', ('python',), time=60), target('local'), Space([]), jobs / 's', 'toy:train', 0, 1, dict(x=0.5)
    )
    assert json.loads((trial.place / 'job.json').read_text())['id'] == ''
    end = time.monotonic() + 200
    while not job_ended(trial.place) and time.monotonic() < end:
        time.sleep(0.1)
    assert verdict(trial.place, 'loss', 1, 2)[0] == 'finished' and len(counted(jobs)) == 1


@pytest.mark.parametrize(
    ('said', 'state', 'reason'),
    [
        (Status('failed', 'exit 3', 'no'), 'failed', 'failed no'),
        (Status('timeout', 'exit -15'), 'failed', 'timeout'),
        (Status('preempted', 'PREEMPTED'), 'waiting', None),
        (Status('lost'), 'waiting', None),
        (Status('running'), None, None),
    ],
)
def test_what_a_scheduler_says(jobs, monkeypatch, said, state, reason):
    monkeypatch.setattr(Local, 'submit', lambda self, job, token='': type('H', (), dict(id='7'))())
    monkeypatch.setattr(Local, 'status', lambda self, handle: said)
    monkeypatch.setattr(Local, 'logs', lambda self, handle: '')
    trial = start_job(Job('toy', ('python',)), target('local'), Space([]), jobs / 's', 'toy:train', 0, 1, dict(x=0.5))
    assert job_ended(trial.place) == (state is not None)
    if state:
        assert (verdict(trial.place, 'loss', 1, 2)[0], verdict(trial.place, 'loss', 1, 2)[3]) == (state, reason)


def test_a_scheduler_that_knows_nothing(jobs, monkeypatch):
    """It has forgotten the job: while the log is young the trial counts as running, an end in the log counts,
    silence is a loss
    """

    def forgotten(self, handle):
        raise TargetError('Invalid job id specified')

    monkeypatch.setattr(Local, 'submit', lambda self, job, token='': type('H', (), dict(id='7'))())
    monkeypatch.setattr(Local, 'status', forgotten)
    places = [
        start_job(Job('toy', ('python',)), target('local'), Space([]), jobs / 's', 'toy:train', n, 1, {}).place
        for n in range(3)
    ]
    head = '{"schema": "fsdl-run/1", "id": "a", "started": 5.0}\n{"t": 7.0, "step": 0, "m": {"loss": 0.5}}\n'
    for p in places:
        (p / 'log.jsonl').write_text(head)
    with pytest.warns(RuntimeWarning, match='counts as running'):
        assert not job_ended(places[0])
    (places[1] / 'log.jsonl').write_text(head + '{"t": 9.0, "end": "finished", "dropped": 0}\n')
    assert job_ended(places[1]) and verdict(places[1], 'loss', 1, 2) == ('finished', 0.5, 4.0, None)
    old = time.time() - sweep_trials._silent - 5
    os.utime(places[2] / 'log.jsonl', (old, old))
    assert (
        job_ended(places[2])
        and verdict(places[2], 'loss', 1, 2)[0] == 'waiting'
        and verdict(places[2], 'loss', 3, 2)[3].startswith('lost')
    )


def test_dollars_of_jobs(jobs):
    "The price of the pattern's GPUs bounds the sweep; a job that cannot run is refused before anything starts"
    pattern = Job('toy', ('python',), gpus=1, gpu='A100', time=60)
    price = hourly_price(pattern)
    assert 0.3 < price < 10 and hourly_price(pattern.replace(gpus=2)) >= price
    done = sweep(
        grid(8, steps=2, pause=0.3),
        jobs / 's',
        'toy:train',
        workers=1,
        poll=0.1,
        job=pattern,
        budget=Budget(dollars=price / 3600 * 1.6, price=price),
    )
    *before, last = [r['seconds'] for r in books(jobs / 's')]
    assert (
        1 <= len(done) < 8 and sum(before) < 1.6 and (not before or sum(before) + statistics.median(before) <= 1.6)
    )  # the last one was expected to fit in
    with pytest.raises(ValueError, match='no folder'):
        sweep(grid(2), jobs / 't', 'toy:train', job=pattern.replace(folder='/nowhere'))


slurm_controller = controller.replace(
    'import sys, json;',
    'import os, sys, json; from fsdl_tools.operations.launch import Job; from fsdl_tools.operations.slurm import'
    ' Slurm;',
).replace(
    'poll=.02',
    'poll=.5, job=Job("toy", ("python",), env=dict(COUNT=os.environ["COUNT"]), time=300),'
    ' where=Slurm(python=sys.executable, output=sys.argv[4])',
)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_trials_on_slurm(place, cluster):  # noqa: F811
    "Jobs of a real SLURM: the controller is killed while they wait and run, another goes on, each point once"
    words = [
        sys.executable,
        '-c',
        slurm_controller,
        json.dumps(grid(5, steps=3, pause=0.5).to_dict()),
        str(place / 's'),
        '2',
        str(cluster.root / 'work' / 'slurm-%j.out'),
    ]
    p = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    stop = time.monotonic() + 120
    while not list(place.glob('s/trials/*/job.json')) and time.monotonic() < stop:
        time.sleep(0.1)
    time.sleep(random.random() * 3)
    p.kill()
    p.communicate()
    end(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
    assert [r['state'] for r in books(place / 's')] == ['finished'] * 5
    assert sorted(map(float, counted(place))) == [i / 10 for i in range(5)]


ray_driver = (
    'import sys, json; from fsdl_tools.operations.sweep_space import Space; from fsdl_tools.operations.sweep_ray import'
    ' tune_on_ray; tune_on_ray(Space.from_dict(json.loads(sys.argv[1])), sys.argv[2], "toy:train", timeout=400)'
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not built('ray'), reason="the side environment 'ray' is not built")
def test_under_ray_tune_and_back(place):
    "A grid begun by us goes on under Ray Tune, which is killed with its trials running, and is ended by us"
    space = grid(9, steps=8, pause=0.5)
    sweep(space, place / 's', 'toy:train', budget=Budget(trials=2), poll=0.02)
    p = subprocess.Popen(
        [sys.executable, '-c', ray_driver, json.dumps(space.to_dict()), str(place / 's')], start_new_session=True
    )
    end = time.monotonic() + 300
    while len(books(place / 's')) < 4 and time.monotonic() < end and p.poll() is None:
        time.sleep(0.2)
    assert len(books(place / 's')) >= 4
    for pid in _whole_tree(p.pid):
        os.kill(pid, signal.SIGKILL)
    p.wait()
    sweep(space, place / 's', 'toy:train', poll=0.02, budget=Budget(trials=7))
    tune_on_ray(space, place / 's', 'toy:train', timeout=400)
    rows = books(place / 's')
    assert {r['state'] for r in rows} == {'finished'} and {r['engine'] for r in rows} == {'grid', 'ray-tune'}
    assert sorted(map(float, counted(place))) == [i / 10 for i in range(9)]


def _whole_tree(pid):
    "A process and all it started, without the keepers and trials"
    import psutil

    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return [q.pid for q in family if not 'FSDL_RUN_FOLDER' in q.environ()]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not built('ray'), reason="the side environment 'ray' is not built")
def test_ray_tune_stops_early_and_asks_optuna(place):
    (place / 'slow.py').write_text(
        'import time\ndef train(params, log):\n    for step in range(8):\n        log.log(dict(loss=params["x"]),'
        ' step)\n        log.flush()\n        time.sleep(.3)\n'
    )
    with pytest.raises(ValueError, match="no distribution 'normal'"):
        tune_on_ray(bayes(6), place / 's', 'slow:train')
    space = bayes(6).replace(early=dict(min_iter=2, eta=2))
    space = space.replace(parameters=[p for p in space.parameters if p.kind != 'normal'])
    rows = list(tune_on_ray(space, place / 's', 'slow:train', timeout=500))
    assert (
        len(rows) == 6
        and {r['state'] for r in rows} <= {'finished', 'stopped'}
        and 'stopped' in {r['state'] for r in rows}
    )
    assert all(0 <= r['x'] <= 1 and r['k'] in 'ab' for r in rows)
    more = sweep(space.replace(cap=8, early={}), place / 's', 'slow:train', poll=0.02)
    assert len(more) == 8 and [r['engine'] for r in more][-1] == 'optuna'


@pytest.mark.skipif(not built('ray'), reason="the side environment 'ray' is not built")
def test_rays_search_space():
    space = bayes(4).replace(method='random')
    a, b = (suggest(space, [], n, engine='ray')[0] for n in (0, 1))
    assert a != b and all(0 <= p['x'] <= 1 and p['n'] in range(1, 6) and p['k'] in 'ab' for p in (a, b))


def test_hyperband_stops_the_hopeless(place):
    (place / 'slow.py').write_text(
        'import time\ndef train(params, log):\n    for step in range(12):\n        log.log(dict(loss=params["x"]),'
        ' step)\n        log.flush()\n        time.sleep(.1)\n'
    )
    space = grid(6).replace(early=dict(min_iter=2, eta=2))
    rows = list(sweep(space, place / 's', 'slow:train', workers=2, poll=0.02))
    assert (
        rows[0]['state'] == 'finished' and 'stopped' in {r['state'] for r in rows} and best(place / 's')['value'] == 0.0
    )
    assert all(r['seconds'] > 0 for r in books(place / 's'))  # who is stopped early has cost something, too


def test_budgets(place):
    assert (
        Budget.parse('20usd', 3.0) == Budget(dollars=20.0, price=3.0)
        and Budget.parse('50').trials == 50
        and Budget.parse('2h').seconds == 7200
    )
    with pytest.raises(ValueError, match='price'):
        Budget.parse('20usd')
    with pytest.raises(ValueError, match='no end'):
        sweep(bayes(4).replace(cap=0), place / 's', 'toy:train')
    rows = list(
        sweep(
            grid(10, steps=2, pause=0.3),
            place / 's',
            'toy:train',
            workers=1,
            budget=Budget(dollars=0.003, price=3600 / 1000),
            poll=0.02,
        )
    )
    assert 1 <= len(rows) < 10
    rows = [dict(state='finished', seconds=10.0)] * 3
    assert (
        Budget(seconds=45).left(rows, 0)
        and not Budget(seconds=45).left(rows, 1)
        and not Budget(dollars=1, price=90).left(rows, 1)
    )


@given(
    st.sampled_from([d for d in distributions if d not in ('constant', 'categorical')]),
    st.floats(1e-6, 5),
    st.floats(1e-3, 5),
    st.floats(0, 1),
)
def test_values_stay_in_their_range(kind, low, width, u):
    whole = kind == 'int_uniform'
    p = Parameter(
        'x', kind, low=math.floor(low) if whole else low, high=math.ceil(low + width) if whole else low + width, q=0.5
    )
    v = p.value(u)
    assert math.isfinite(v)
    if kind.startswith('q_'):
        assert abs(v / 0.5 - round(v / 0.5)) < 1e-6
    elif kind in ('uniform', 'int_uniform', 'log_uniform_values', 'inv_log_uniform'):
        assert p.low - 1e-9 <= v <= p.high + 1e-9
    elif kind == 'log_uniform':
        assert math.exp(p.low) - 1e-9 <= v <= math.exp(p.high) * (1 + 1e-9)


hostile = [
    '',
    'a',
    '[]',
    '{}',
    'parameters: 3',
    'parameters: {}',
    'parameters: {a: 3}',
    'parameters: {a: {}}',
    'parameters: {a: {values: []}}',
    'parameters: {a: {min: 1}}',
    'parameters: {a: {min: 2, max: 1}}',
    'parameters: {a: {min: .nan, max: 1}}',
    'parameters: {a: {min: 0, max: .inf}}',
    'parameters: {a: {distribution: log_uniform_values, min: 0, max: 1}}',
    'parameters: {a: {distribution: log_uniform, min: 0, max: 9999}}',
    'parameters: {a: {distribution: nonsense, min: 0, max: 1}}',
    'method: bays\nparameters: {a: {value: 1}}',
    'method: grid\nparameters: {a: {min: 0.0, max: 1.0}}',
    'method: grid\nparameters: {a: {min: 0, max: 99999999}}',
    'metric: 3\nparameters: {a: {value: 1}}',
    'metric: {goal: up}\nparameters: {a: {value: 1}}',
    'run_cap: -1\nparameters: {a: {value: 1}}',
    'run_cap: many\nparameters: {a: {value: 1}}',
    'command: ls\nparameters: {a: {value: 1}}',
    'early_terminate: {type: median}\nparameters: {a: {value: 1}}',
    'early_terminate: {type: hyperband}\nparameters: {a: {value: 1}}',
    'early_terminate: {type: hyperband, min_iter: 0}\nparameters: {a: {value: 1}}',
    'parameters: {a: {values: [1, 2], probabilities: [1]}}',
    'parameters: {a: {values: [1, 2], probabilities: [x, y]}}',
    'parameters: {a: {min: 1, max: 2, q: 0, distribution: q_uniform}}',
    'x: 1\nparameters: {a: {value: 1}}',
    '!!python/object/apply:os.system ["true"]',
    '{' * 3000,
    'a: &a [*a]\nparameters: *a',
    'a: &a ["x"]\n'
    + '\n'.join(f'b{i}: &b{i} [*{"a" if not i else f"b{i - 1}"}, *{"a" if not i else f"b{i - 1}"}]' for i in range(40)),
    'parameters: ' + ''.join('{a: {parameters: ' for _ in range(60)) + '{b: {value: 1}}' + '}}' * 60,
    '\x00',
    'parameters: {a: {min: ' + '9' * 400 + ', max: 1e400}}',
]


@pytest.mark.parametrize('text', hostile, ids=range(len(hostile)))
def test_hostile_sweep_files_are_one_line(tmp_path, text):
    (tmp_path / 's.yaml').write_text(text)
    t0 = time.process_time()
    with pytest.raises(ValueError) as e:
        read_sweep(tmp_path / 's.yaml')
    assert '\n' not in str(e.value) and len(str(e.value)) < 400 and time.process_time() - t0 < 5


def test_commands_are_lists(monkeypatch, tmp_path):
    params = {'lr': 0.1, 'flag': True, 'off': False, 'name': '; rm -rf "$HOME" `x`', 'a.b': [1, 2]}
    s = lambda *c: command_of(Space([], program='t.py', command=list(c)), params, tmp_path)
    assert s('${env}', 'python3', '${program}', '${args}') == [
        '/usr/bin/env',
        'python3',
        't.py',
        '--lr=0.1',
        '--flag=true',
        '--off=false',
        '--name=; rm -rf "$HOME" `x`',
        '--a.b=[1, 2]',
    ]
    assert s('${args_no_hyphens}')[0] == 'lr=0.1' and s('${args_no_boolean_flags}')[:3] == [
        '--lr=0.1',
        '--flag',
        '--name=; rm -rf "$HOME" `x`',
    ]
    assert json.loads(s('${args_json}')[0]) == params and json.loads(open(s('${args_json_file}')[0]).read()) == params
    monkeypatch.setenv('WHERE', '/data')
    assert s('--data=${envvar:WHERE}') == ['--data=/data']
    for bad in ('${nonsense}', '${envvar:NOT_SET_ANYWHERE}'):
        with pytest.raises(ValueError):
            s(bad)
    assert nest({'a.b': 1, 'a.c.d': 2, 'e': 3}) == dict(a=dict(b=1, c=dict(d=2)), e=3)


def test_hyperband_rules():
    assert bands(dict(max_iter=27, s=2, eta=3)) == [3, 9]
    assert not should_stop([9.0], [[1.0, 1.0]], dict(min_iter=2), 'minimize') and not should_stop(
        [9.0, 9.0], [], dict(min_iter=2), 'minimize'
    )
    assert should_stop([1.0, 1.0], [[9.0, 9.0], [8.0, 8.0]], dict(min_iter=2), 'maximize') and not should_stop(
        [9.0, 9.0], [[1.0, 1.0]], dict(min_iter=2), 'maximize'
    )
    assert not should_stop([9.0, 9.0, 9.0], [[1.0] * 3], dict(min_iter=2), 'minimize') and should_stop(
        [9.0, 9.0, 9.0], [[1.0] * 3] * 3, dict(min_iter=2, strict=True), 'minimize'
    )


def test_exponents_that_no_float_holds_are_refused():
    from fsdl_tools.operations.sweep_space import parse_sweep

    for kind in ('log_uniform', 'q_log_uniform'):
        wide = dict(parameters=dict(x=dict(distribution=kind, min=0, max=800)))
        with pytest.raises(
            ValueError, match=f'{kind} takes exponents of e: max 800 is too large; did you mean {kind}_values'
        ):
            parse_sweep(wide)


def test_the_words_of_a_parameter_are_said_in_order():
    from fsdl_tools.operations.sweep_space import parse_sweep

    with pytest.raises(
        ValueError,
        match='expected one of value, values, probabilities, min, max, mu, sigma, a, b, distribution, q, parameters',
    ):
        parse_sweep(dict(parameters=dict(x=dict(zz=1))))


def test_wandb_is_told_the_steps_of_every_kind_that_has_them():
    from fsdl_tools.operations.sweep_engines import _as_wandb

    words = dict(
        q_uniform=dict(min=0, max=9),
        q_normal=dict(mu=0, sigma=1),
        q_log_normal=dict(mu=0, sigma=1),
        q_beta=dict(a=1, b=2),
    )
    for kind, numbers in words.items():
        axis = dict(distribution=kind, q=0.5, **numbers)
        assert _as_wandb(parse_sweep(dict(parameters=dict(x=axis))))['parameters']['x'] == axis


def test_a_folder_whose_name_holds_marks_of_addresses(tmp_path):
    "A sweep's books are opened by an address, in which these mean something"
    from fsdl_tools.operations.sweeps import _open_books

    folder = tmp_path / 'a#b?mode=c%41'
    _open_books(folder, Space([Parameter('x', 'uniform')]))
    assert books(folder) == []


@pytest.mark.parametrize('look', [best, importance, parallel_coordinates, learning_curves])
def test_a_folder_without_a_sweep_stays_as_it_was(tmp_path, look):
    for folder in (tmp_path, tmp_path / 'none'):
        with pytest.raises(FileNotFoundError, match='holds no sweep'):
            look(folder)
    assert not list(tmp_path.iterdir())
