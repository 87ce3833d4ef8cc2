"""Jobs on a real SLURM of two nodes: arguments, answers that get lost, and everything that takes a node away"""

import contextlib, os, shutil, socket, subprocess, sys, time
from pathlib import Path
import psutil
import pytest
from fsdl_tools.operations import slurm_cluster
from fsdl_tools.operations.launch import Job, Secret
from fsdl_tools.operations.targets import TargetError
from fsdl_tools.operations.slurm import Slurm
from fsdl_tools.operations.slurm_answers import limits_of
from fsdl_tools.operations.slurm_cluster import SlurmCluster, nodes, slurm_missing
from .conftest import debian, ports, scratch
from .hostile import corpus, expected, probe, received, variables

pytestmark = pytest.mark.timeout(500)

counter = '''
import os, signal, sys, time
from pathlib import Path
rank, folder, steps = int(os.environ['RANK']), Path(sys.argv[1]), int(sys.argv[2])
f, asked = folder/f'step-{rank}', []
step = int(f.read_text()) if f.exists() else 0
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print(f'rank {rank} of {os.environ["WORLD_SIZE"]} starts at {step}', flush=True)
while step < steps:
    time.sleep(.25)
    if step == 8 and (folder/'hold').exists():
        if asked: sys.exit(143)
        continue
    step += 1
    f.with_suffix('.new').write_text(str(step))
    f.with_suffix('.new').rename(f)
    if asked: sys.exit(143)
print(f'rank {rank} done', flush=True)
'''


def test_a_process_that_ends_while_it_is_looked_at_has_no_parent(monkeypatch):
    "It may be gone after any look at it: a second one must not be needed"
    looks = iter(['7 (rank) S 42 7 7', ''])
    monkeypatch.setattr(slurm_cluster, '_read', lambda pid, what: next(looks))
    assert slurm_cluster._parent(7) == 42 and slurm_cluster._parent(7) == 0


@pytest.fixture(scope='module')
def installed():
    debian('slurm-wlm munge', ['munged', 'slurmctld', 'slurmd', 'sbatch'])
    if why := slurm_missing():
        pytest.skip(why)


def cluster_of(**kw):
    "A running cluster, which this process's SLURM commands reach"
    before = {k: os.environ.get(k) for k in ('SLURM_CONF', 'PATH')}
    with SlurmCluster(**kw) as c:
        scratch.append(str(c.root))
        ports.extend(c.ports)
        os.environ.update(SLURM_CONF=c.env['SLURM_CONF'], PATH=c.env['PATH'])
        (c.root / 'work').mkdir()
        try:
            yield c
        finally:
            for k, v in before.items():
                os.environ.pop(k, None) if v is None else os.environ.update({k: v})


@pytest.fixture(scope='module')
def cluster(installed):
    yield from cluster_of()


def target(c, **kw):
    return Slurm(python=sys.executable, output=str(c.root / 'work' / 'slurm-%j.out'), **kw)


def counting(c, steps=24, **kw):
    return Job(
        'counter',
        (sys.executable, '-c', counter, str(c.root / 'work'), str(steps)),
        **dict(nodes=2, time=600, grace=10) | kw,
    )


def fresh(c):
    [f.unlink() for f in (c.root / 'work').glob('step-*')]


def at_step_8(c):
    "Both ranks count to 8 and no further, while the file hold is there"
    return all(f.exists() and f.read_text() == '8' for f in (c.root / 'work' / 'step-0', c.root / 'work' / 'step-1'))


def test_a_job_on_two_nodes_with_520_strings(cluster, monkeypatch):
    monkeypatch.setenv('CANARY', 'canary-93bd1')
    out, strings, s = cluster.root / 'work' / 'got-', corpus(), target(cluster)
    job = Job(
        'probe',
        (sys.executable, '-c', probe, str(out), *strings),
        env=variables(strings),
        secrets=[Secret('CANARY')],
        nodes=2,
        time=200,
        grace=5,
    )
    h = s.submit(job, 'a1b2c3')
    assert s.submit(job, 'a1b2c3') == h  # the token is looked for before a second try
    assert 'canary-93bd1' not in cluster.call('scontrol', 'show', 'job', h.id) + cluster.call(
        'scontrol', 'write', 'batch_script', h.id, '-'
    )
    assert s.wait(h, 200).state == 'succeeded', s.logs(h)
    for rank in (0, 1):
        assert received(out, rank) == expected(strings)
    assert 'canary-93bd1' not in s.logs(h)


def test_a_secret_is_on_no_command_line_of_the_cluster(cluster, monkeypatch):
    """While the job runs: neither in the words of any process, nor in what the controller shows, nor in a file that
    it keeps readable
    """
    monkeypatch.setenv('CANARY', 'canary-51ab7')
    s, go = target(cluster), cluster.root / 'work' / 'go'
    code = (
        'import os, time; print("has it", len(os.environ["CANARY"]), flush=True)\nwhile not'
        f' os.path.exists({str(go)!r}): time.sleep(.1)'
    )
    h = s.submit(Job('keeps', (sys.executable, '-c', code), secrets=[Secret('CANARY')], nodes=2, time=300, grace=5))
    cluster.until(lambda: s.logs(h).count('has it 12') == 2)
    words = [' '.join(p.info['cmdline'] or []) for p in psutil.process_iter(['cmdline'])]
    assert any('has it' in w for w in words) and not any('canary-51ab7' in w for w in words)
    shown = [
        cluster.call(*c)
        for c in (['scontrol', 'show', 'job', h.id], ['squeue', '-o', '%all', '-j', h.id], ['scontrol', 'show', 'step'])
    ]
    assert not any('canary-51ab7' in x for x in shown)
    open_to_others = [
        f
        for f in cluster.root.rglob('*')
        if f.is_file() and f.stat().st_mode & 0o044 and b'canary-51ab7' in f.read_bytes()
    ]
    go.touch()
    assert s.wait(h, 200).state == 'succeeded' and not open_to_others


def test_cancelled_in_each_state_and_followed(cluster):
    fresh(cluster)
    s = target(cluster)
    first = s.submit(counting(cluster, 400, cpus=2))
    cluster.until(lambda: s.status(first).state == 'running')
    second = s.submit(Job('waits', ('true',), nodes=2, time=200, grace=5, cpus=2))
    third = target(cluster, array='0-2').submit(Job('array', ('sleep', '30'), time=200, grace=5))
    s.cancel(second)
    assert s.wait(second, 200).state == 'cancelled'
    s.cancel(first)
    assert s.wait(first, 200).state == 'cancelled'  # and it is not requeued
    s.cancel(first)
    assert len(s.facts(third)) in (1, 2, 3)
    s.cancel(third)
    assert s.wait(third, 200).state == 'cancelled'
    with pytest.raises(TargetError):
        s.status(first.replace(id='99999'))
    fourth = s.submit(Job('talks', ('echo', 'a word'), time=200, grace=5))
    assert 'a word' in ''.join(s.follow(fourth, 0.2))


def test_failures_are_retried_and_then_said(cluster):
    s = target(cluster)
    h = s.submit(Job('fails', ('sh', '-c', 'echo again; exit 7'), retries=1, time=200, grace=5))
    done = s.wait(h, 200)
    assert done.state == 'failed' and 'exit 7:0' in done.detail and s.logs(h).count('again\n') == 2


def test_a_rank_that_fails_is_no_preemption(cluster):
    """srun ends the other rank and returns its 143, the larger of the two codes: the job is not queued again, and
    its retries count
    """
    code = (
        'import os, sys, time; print("rank", os.environ["RANK"], flush=True); time.sleep(1 if os.environ["RANK"] == "0"'
        ' else 100); sys.exit(3)'
    )
    s = target(cluster)
    h = s.submit(Job('fails', (sys.executable, '-c', code), nodes=2, retries=1, time=120, grace=5))
    done = s.wait(h, 200)
    assert done.state == 'failed' and 'exit 143:0' in done.detail and 'restarts' not in done.detail, (done, s.logs(h))
    assert s.logs(h).count('rank 0\n') == 2, s.logs(h)


def test_doctor_and_limits(cluster):
    said = repr(target(cluster).doctor())
    assert 'REQUEUE' in said and 'a preempted job comes back' in said and '5 s (cred_expire)' in said
    lim = limits_of(target(cluster, partition='debug'))
    assert (lim.nodes, lim.cpus, lim.time) == (2, 2, 3600)
    assert len(target(cluster, limits=lim).check(counting(cluster, nodes=3, time=7200))) == 2


def test_a_log_in_a_folder_with_a_blank(cluster, monkeypatch):
    "The controller's line is cut at names, not at blanks"
    folder = cluster.root / 'work' / 'my folder'
    folder.mkdir()
    monkeypatch.chdir(folder)
    s = Slurm(python=sys.executable)
    h = s.submit(Job('blank', ('echo', 'here it is'), time=200, grace=5))
    assert s.wait(h, 200).state == 'succeeded' and 'here it is' in s.logs(h)


def test_the_command_refuses_what_the_partition_has_not_before_it_is_queued(cluster, tmp_path):
    "It asks the cluster: SLURM itself would leave such a job in the queue for ever"
    too_long = Job('long', ('true',), nodes=3, time=7200, grace=5)
    too_long.to_json(tmp_path / 'job.json')
    words = [
        sys.executable,
        '-c',
        'from fsdl_tools.cli.main import main; main()',
        'launch',
        str(tmp_path / 'job.json'),
        '--on',
        'slurm',
        '--submit',
    ]
    r = subprocess.run(words, capture_output=True, text=True, timeout=200, env=os.environ | dict(COLUMNS='300'))
    assert (
        r.returncode == 2 and 'needs 3 nodes, the target has 2' in r.stderr and 'of time, the target has' in r.stderr
    ), r.stderr
    assert not [line for line in cluster.call('squeue', '-h', '--states=all', '-o', '%j').split() if line == 'long']
    too_long.replace(nodes=2, time=60).to_json(tmp_path / 'job.json')
    fits = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert fits.returncode == 0 and fits.stdout.startswith('slurm:'), fits.stderr


def test_an_answer_that_is_lost_queues_nothing_twice(cluster, tmp_path, monkeypatch):
    real = shutil.which('sbatch')
    for name, body in (('deaf', 'sleep 30'), ('mute', f'{real} "$@" >/dev/null; sleep 30')):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'sbatch').write_text(f'#!/bin/bash\n{body}\n')
        (tmp_path / name / 'sbatch').chmod(0o755)
    s, path, job = target(cluster, patience=5.0), os.environ['PATH'], Job('once', ('true',), time=200, grace=5)
    monkeypatch.setenv('PATH', f"{tmp_path / 'deaf'}:{path}")
    with pytest.raises(TargetError, match='no job with the token'):
        s.submit(job, 'deaf1')
    monkeypatch.setenv('PATH', f"{tmp_path / 'mute'}:{path}")
    h = s.submit(job, 'mute1')
    assert s.submit(job, 'mute1') == h
    assert cluster.call('squeue', '-h', '--states=all', '-o', '%k').split().count('fsdl-mute1') == 1
    assert s.wait(h, 200).state == 'succeeded'


takes_its_port = '''
import os, sys, time
import torch.distributed as dist
from datetime import timedelta
from fsdl_tools.training.elastic import _join
print('port', os.environ['MASTER_PORT'], flush=True)
try: _join('gloo')
except OSError as e: sys.exit(f'{type(e).__name__}: {e}')
dist.barrier()                      # the store lives in one of them
print('joined', dist.get_world_size(), flush=True)
time.sleep(1)
os._exit(0)
'''


@pytest.mark.slow
def test_a_port_that_is_taken_is_said_and_a_retry_takes_another(cluster):
    """Somebody listens where the ranks are to meet: the reason stands in the log, nothing goes on running; with a
    retry the job succeeds
    """
    s = target(cluster)
    here = Path(__file__).parent.parent.parent
    job = Job(
        'meet',
        (sys.executable, '-c', takes_its_port),
        env=dict(GLOO_SOCKET_IFNAME='lo', PYTHONPATH=str(here)),
        nodes=2,
        time=120,
        grace=5,
    )
    with contextlib.ExitStack() as held:
        number = int(s.submit(Job('last', ('true',), time=200, grace=5)).id)
        for n in range(number + 1, number + 4):
            held.enter_context(socket.create_server(('127.0.0.1', 20000 + n % 12000)))
        once, again = s.submit(job), s.submit(job.replace(retries=1, name='again'))
        assert s.wait(once, 200).state == 'failed', s.logs(once)
        taken = 20000 + int(once.id) % 12000
        assert f'OSError: port {taken} of 127.0.0.2 is taken' in s.logs(
            once
        ) or f'OSError: port {taken} of 127.0.0.1 is taken' in s.logs(once), s.logs(once)
        assert s.wait(again, 200).state == 'succeeded', s.logs(again)
        tried = {int(line.split()[1]) for line in s.logs(again).splitlines() if line.startswith('port ')}
        assert (
            tried == {20000 + int(again.id) % 12000, 20000 + (int(again.id) + 101) % 12000}
            and s.logs(again).count('joined 2') == 2
        )
    assert not [p for p in cluster.left() if 'takes_its_port' in ' '.join(psutil.Process(p).cmdline())]


def test_a_log_that_is_gone_is_said(cluster, tmp_path):
    s = target(cluster)
    h = s.submit(Job('talks', ('echo', 'a word'), time=200, grace=5))
    assert s.wait(h, 200).state == 'succeeded' and 'a word' in s.logs(h)
    (cluster.root / 'work' / f'slurm-{h.id}.out').unlink()
    with pytest.raises(TargetError, match='its log .* is not there'):
        s.logs(h)
    nowhere = Slurm(python=sys.executable, output=str(tmp_path / 'none' / 'slurm-%j.out'))
    h = nowhere.submit(Job('mute', ('true',), time=200, grace=5))
    nowhere.wait(h, 200)
    with pytest.raises(TargetError, match='does its folder exist'):
        nowhere.logs(h)


def test_a_controller_with_a_full_disk(cluster, small_disk):
    "What it cannot keep it does not queue; when there is room again the same token queues one job"
    s = target(cluster)
    disk = small_disk(cluster.root / 'state')
    with open(disk / 'full', 'wb') as f, contextlib.suppress(OSError):
        f.write(bytes(1 << 20))
    then = time.monotonic()
    with pytest.raises(TargetError, match='sbatch (failed|did not answer)'):
        s.submit(Job('once', ('true',), time=200, grace=5), 'full1')
    assert time.monotonic() - then < 5 and s.find('full1') is None
    subprocess.run(['umount', '--lazy', str(disk)], check=True)
    h = s.submit(Job('once', ('true',), time=200, grace=5), 'full1')
    assert s.wait(h, 200).state == 'succeeded'
    assert cluster.call('squeue', '-h', '--states=all', '-o', '%k').split().count('fsdl-full1') == 1


# ---- what takes a node away ----


def preempted(c):
    "A job of two nodes that an urgent one pushes out: (its last status, its log)"
    fresh(c)
    (c.root / 'work' / 'hold').touch()
    s, urgent = target(c), Slurm(partition='urgent', output=str(c.root / 'work' / 'urgent.out'))
    h = s.submit(counting(c))
    c.until(lambda: at_step_8(c), 120)
    urgent.submit(Job('urgent', ('sleep', '2'), nodes=2, cpus=2, time=200, grace=5))
    c.until(lambda: s.status(h).state == 'queued', 120)
    (c.root / 'work' / 'hold').unlink()
    return s.wait(h, 200), s.logs(h)


def went_on(done, log):
    "Done after a restart that did not begin again"
    starts = [int(line.split()[-1]) for line in log.splitlines() if 'starts at' in line]
    assert done.state == 'succeeded' and 'restarts' in done.detail, (done, log)
    assert starts.count(0) == 2 and len(starts) >= 4 and all(n for n in starts[2:]), log
    assert log.count('done') >= 2


def test_preempted_with_requeue(cluster):
    went_on(*preempted(cluster))


@pytest.mark.slow
def test_preempted_with_cancel(installed):
    for c in cluster_of(preempt='cancel'):
        assert 'a preempted job comes back' in repr(target(c).doctor())
        went_on(*preempted(c))


def test_without_grace_doctor_says_it(installed):
    for c in cluster_of(preempt='cancel', grace=0):
        assert 'without grace no script can help' in repr(target(c).doctor())


@pytest.mark.slow
def test_the_naive_script_is_lost_with_143(installed):
    "Within its grace, which is long here: SLURM would queue again what it had to end itself"
    for c in cluster_of(grace=100):
        is_lost(c)


def is_lost(cluster):
    fresh(cluster)
    (cluster.root / 'work' / 'hold').touch()
    (cluster.root / 'counter.py').write_text(counter)
    head = (
        f'#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --requeue\n#SBATCH --output={cluster.root}/work/naive.out\nexport'
        ' WORLD_SIZE=2\n'
    )
    naive = (
        f"{head}srun bash -c 'RANK=$SLURM_PROCID exec {sys.executable} {cluster.root}/counter.py {cluster.root}/work"
        " 60'\n"
    )
    (cluster.root / 'naive.sh').write_text(naive)
    number = cluster.call('sbatch', '--parsable', str(cluster.root / 'naive.sh')).strip()
    cluster.until(lambda: at_step_8(cluster), 120)
    Slurm(partition='urgent', output=str(cluster.root / 'work' / 'urgent.out')).submit(
        Job('urgent', ('sleep', '2'), nodes=2, cpus=2, time=200, grace=5)
    )
    state = lambda: dict(
        w.split('=', 1) for w in cluster.call('scontrol', '-o', 'show', 'job', number).split() if '=' in w
    )
    cluster.until(lambda: state()['JobState'] not in ('RUNNING', 'COMPLETING', 'SIGNALING'), 120)
    (cluster.root / 'work' / 'hold').unlink()
    last = state()
    assert last['JobState'] == 'FAILED' and last['ExitCode'] == '143:0' and last['Restarts'] == '0', (
        last,
        cluster.tail(40),
        (cluster.root / 'work' / 'naive.out').read_text(),
    )


@pytest.mark.slow
def test_a_node_is_killed_and_comes_back(cluster):
    fresh(cluster)
    (cluster.root / 'work' / 'hold').touch()
    s = target(cluster)
    h = s.submit(counting(cluster))
    cluster.until(lambda: at_step_8(cluster), 120)
    assert len(cluster.kill_node(nodes[1])) >= 3  # the daemon, the step's keeper, a rank
    cluster.until(lambda: s.status(h).state == 'queued', 120)
    (cluster.root / 'work' / 'hold').unlink()
    cluster.start_node(nodes[1])
    went_on(s.wait(h, 200), s.logs(h))


@pytest.mark.slow
def test_a_node_that_never_returns_is_lost(cluster):
    fresh(cluster)
    s = target(cluster)
    h = s.submit(counting(cluster, 400, on_preempt='stop'))
    cluster.until(lambda: (cluster.root / 'work' / 'step-1').exists())
    cluster.kill_node(nodes[1])
    assert s.wait(h, 200).state == 'lost'
    cluster.start_node(nodes[1])
    cluster.until(lambda: cluster.call('sinfo', '-h', '-N', '-p', 'debug', '-o', '%t').split() == ['idle', 'idle'], 120)


@pytest.mark.slow
def test_the_time_limit(cluster):
    fresh(cluster)
    s = target(cluster)
    (cluster.root / 'work' / 'hold').touch()
    h = s.submit(counting(cluster, time=60, grace=25))
    cluster.until(lambda: at_step_8(cluster), 120)
    cluster.until(lambda: s.status(h).state == 'queued', 120)
    (cluster.root / 'work' / 'hold').unlink()
    went_on(s.wait(h, 200), s.logs(h))


def test_a_controller_that_is_down_is_said_at_once(cluster):
    s = target(cluster)
    os.kill(int((cluster.root / 'run' / 'slurmctld.pid').read_text()), 9)
    for call in (lambda: s.submit(Job('a', ('true',), time=200, grace=5)), lambda: s.find('x')):
        then = time.monotonic()
        with pytest.raises(TargetError):
            call()
        assert time.monotonic() - then < 5
    assert len(s.doctor()) == 1
