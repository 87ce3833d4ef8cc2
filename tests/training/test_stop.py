"""Asked to stop, nothing is lost: whichever signal, whoever gets it, one rank or two, as process 1, in a long step"""

import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import psutil
import pytest
from fsdl_tools.operations.slurm_cluster import free_ports
from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.training.elastic import rank_threads
from fsdl_tools.training.trainer import fit
from fsdl_tools.training.config import TrainConfig

pytestmark = pytest.mark.timeout(900)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests under nohup: what they start must hear it
start = (
    'import sys; from fsdl_tools.training.elastic import *; from fsdl_tools.training.config import *; from'
    ' fsdl_tools.training.trainer import *; train(TrainConfig.from_json(sys.argv[1]))'
)
slow_steps = (
    'import sys, time; from fsdl_tools.training import trainer; one = trainer.Trainer.one_step;'
    ' trainer.Trainer.one_step = lambda self, b: (time.sleep(SECONDS), one(self, b))[1]; ' + start[11:]
)
slow_eval = (
    'import sys, time; from fsdl_tools.training import trainer; from pathlib import Path; held ='
    ' trainer.Trainer._held_out; trainer.Trainer._held_out = lambda self, *a: (Path(self.c.folder,'
    ' "evaluates").touch(), time.sleep(1), held(self, *a))[2]; ' + start[11:]
)
slow_save = (
    'import sys, time; from fsdl_tools.training import checkpoint; from pathlib import Path; enter = checkpoint._enter;'
    ' checkpoint._enter = lambda p: (p.parent.parent.with_name("saves").touch(), time.sleep(1), enter(p))[2]; '
    + start[11:]
)
codes = dict(SIGTERM=143, SIGINT=130, SIGHUP=129, SIGUSR1=138)


def config(tmp_path, **kw):
    return TrainConfig(
        **dict(
            seq=16,
            global_batch=4,
            steps=4000,
            holdout=0.03,
            seed=3,
            folder=str(tmp_path / 'run'),
            lr_schedule='constant',
        )
        | kw
    )


def count(c):
    return (
        (Path(c.folder) / 'metrics.jsonl').read_text().count('\n') if (Path(c.folder) / 'metrics.jsonl').exists() else 0
    )


def saved(c):
    return sorted(int(p.name[5:]) for p in (Path(c.folder) / 'checkpoints').glob('step-*'))


def losses(c):
    return [json.loads(line)['loss'] for line in (Path(c.folder) / 'metrics.jsonl').read_text().splitlines()]


def until(true, timeout=250):
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, 'it did not happen in time'
        time.sleep(0.03)


def begin(c, code=start, prefix=()):
    return subprocess.Popen(
        [*prefix, sys.executable, '-c', code, c.to_json()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def goes_on(c, ranks):
    "What is left of the run has the losses of a run that nobody stopped"
    done = count(c)
    assert saved(c)[-1] == done
    longer = c.replace(steps=done + 2, save_every=0)
    for r in (longer.replace(resume=True), longer.replace(folder=c.folder + '-straight')):
        on_ranks(fit, ranks, r, timeout=250) if ranks > 1 else fit(r)
    assert losses(c) == losses(c.replace(folder=c.folder + '-straight'))


@pytest.mark.parametrize(
    'how', ['SIGTERM', 'SIGINT', *(pytest.param(h, marks=pytest.mark.slow) for h in ('SIGHUP', 'SIGUSR1'))]
)
def test_one_rank(how, tmp_path):
    c = config(tmp_path)
    p = begin(c)
    until(lambda: count(c) >= 3)
    p.send_signal(signal.Signals[how])
    assert p.wait(250) == codes[how]
    goes_on(c, 1)


@pytest.mark.parametrize(
    'how,group',
    [
        ('SIGINT', True),
        *(
            pytest.param(h, g, marks=pytest.mark.slow)
            for h, g in (('SIGTERM', False), ('SIGHUP', True), ('SIGUSR1', False), ('SIGINT', False), ('SIGTERM', True))
        ),
    ],
)
def test_two_ranks_and_the_command_waits_for_them(how, group, tmp_path):
    c = config(tmp_path, layout='dp2')
    p = begin(c)
    until(lambda: count(c) >= 3)
    os.killpg(p.pid, signal.Signals[how]) if group else p.send_signal(signal.Signals[how])
    assert p.wait(250) == codes[how]
    alive = [
        q
        for q in psutil.process_iter(['environ'])
        if (q.info['environ'] or {}).get('FSDL_RUN') == c.folder and q.status() != psutil.STATUS_ZOMBIE
    ]
    assert not alive, 'the ranks were gone before the command'
    goes_on(c, 2)


@pytest.mark.slow
@pytest.mark.parametrize('ranks,seconds', [(1, 6), (2, 6), (1, 65), (2, 65)])
def test_in_a_long_step(ranks, seconds, tmp_path):
    "Of six seconds, and of more than a minute"
    c, code = config(tmp_path, layout=f'dp{ranks}'), slow_steps.replace('SECONDS', str(seconds))
    p = begin(c, code if ranks == 1 else in_ranks(code))
    until(lambda: count(c) >= 1)
    time.sleep(1)
    p.send_signal(signal.SIGTERM)
    assert p.wait(250) == 143 and saved(c) == [2] and count(c) == 2


def in_ranks(code):
    "The same change in the ranks, which torchrun starts with a line of their own"
    change = code[: code.index('from fsdl_tools.training.elastic')]
    return start.replace(
        'train(',
        'from fsdl_tools.training import elastic; real = elastic._command; elastic._command = lambda *a:'
        f' [w.replace("from fsdl_tools.training.elastic import _main", {change!r} + "from fsdl_tools.training.elastic'
        ' import _main") for w in real(*a)]; train(',
    )


@pytest.mark.parametrize(
    'code,flag,kw',
    [(slow_eval, 'evaluates', dict(eval_every=3)), (slow_save, 'saves', dict(save_every=3))],
    ids=['evaluation', 'saving'],
)
def test_during_evaluation_and_saving(code, flag, kw, tmp_path):
    c = config(tmp_path, **kw)
    p = begin(c, code)
    until(lambda: (Path(c.folder) / flag).exists())
    p.send_signal(signal.SIGTERM)
    assert p.wait(250) == 143
    goes_on(c.replace(eval_every=0), 1)


@pytest.mark.slow
def test_in_the_last_evaluation_the_run_is_done(tmp_path):
    c = config(tmp_path, steps=3)
    p = begin(c, slow_eval)
    until(lambda: (Path(c.folder) / 'evaluates').exists())
    p.send_signal(signal.SIGTERM)
    assert p.wait(250) == 0 and saved(c) == [3] and (Path(c.folder) / 'model.safetensors').exists()


def test_nohup_goes_on_when_the_terminal_is_closed(tmp_path):
    c = config(tmp_path)
    p = begin(c, prefix=['nohup'])
    until(lambda: count(c) >= 3)
    p.send_signal(signal.SIGHUP)
    now = count(c)
    until(lambda: count(c) > now + 5)
    p.send_signal(signal.SIGTERM)
    assert p.wait(250) == 143 and saved(c)[-1] == count(c)


def test_as_process_1(tmp_path):
    unshare = ['unshare', '--pid', '--fork', '--kill-child']
    if not shutil.which('unshare') or subprocess.run([*unshare, 'true'], capture_output=True).returncode:
        pytest.skip('no process namespaces for this user')
    c = config(tmp_path)
    p = begin(c, prefix=unshare)
    until(lambda: count(c) >= 3)
    psutil.Process(p.pid).children()[0].send_signal(signal.SIGTERM)
    assert p.wait(250) == 143 and saved(c)[-1] == count(c)


@pytest.mark.slow
def test_a_rank_of_a_scheduler(tmp_path):
    "No torchrun: RANK and the rest in the environment, the configuration in the argument, a signal to one rank only"
    c = config(tmp_path, layout='dp2', resume=True)
    env = dict(
        os.environ,
        WORLD_SIZE='2',
        LOCAL_WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(free_ports(1)[0]),
        GLOO_SOCKET_IFNAME='lo',
    )
    code = 'from fsdl_tools.training.elastic import _main; _main()'
    ranks = [
        subprocess.Popen(
            [sys.executable, '-c', code, c.to_json()],
            env=env | dict(RANK=str(r), LOCAL_RANK=str(r)),
            stderr=subprocess.DEVNULL,
        )
        for r in (0, 1)
    ]
    until(lambda: count(c) >= 3)
    ranks[1].send_signal(signal.SIGUSR1)
    assert [r.wait(250) for r in ranks] == [143, 138]
    goes_on(c.replace(resume=False), 2)


def test_threads_are_those_that_were_given(monkeypatch):
    for name in ('SLURM_CPUS_PER_TASK', 'OMP_NUM_THREADS', 'LOCAL_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    cores = len(os.sched_getaffinity(0))
    assert rank_threads() == cores and rank_threads(cores + 1) == 1
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(cores))
    assert rank_threads() == 1
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert rank_threads() == 3
    monkeypatch.setenv('SLURM_CPUS_PER_TASK', '2')
    assert rank_threads() == 2
