"""Jobs on a Ray cluster of two nodes (one, where two do not fit), in a side environment: strings, a stop, our
trainer under Ray Train
"""

import contextlib, json, os, shutil, subprocess, time
from pathlib import Path
import psutil
import pytest
from fsdl_tools.environments import build_env, built
from fsdl_tools.operations.launch import Job, Secret
from fsdl_tools.operations.targets import TargetError
from fsdl_tools.operations.ray_jobs import Ray, RayTrain
from fsdl_tools.operations.slurm_cluster import free_ports
from .conftest import leftovers, ports, scratch
from .hostile import corpus, expected, probe, received, variables
from .test_training_everywhere import straight, training, weights  # noqa: F401 - a fixture

pytestmark = pytest.mark.timeout(900)
here = str(Path(__file__).parent.parent.parent)

start_nodes = '''
import sys
from ray.cluster_utils import Cluster
c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=4, include_dashboard=True, dashboard_host="127.0.0.1",
    dashboard_port=int(sys.argv[1])))
n = 1
try:
    second = c.add_node(num_cpus=4, wait=False)
    c.wait_for_nodes(timeout=120)
    n = 2
except Exception as e:
    print(f"one node only: {type(e).__name__}: {e}", flush=True)
print("up", n, flush=True)
sys.stdin.read()
c.shutdown()
'''


class Nodes:
    """A Ray cluster of two nodes, or one where a second does not come up in two minutes. Ray listens on every
    address of the machine, whatever one asks for
    """

    def __init__(self, python):
        self.python, self.top, self.process = (
            python,
            Path('/tmp') / f'fsdl-ray-{os.getpid()}',
            None,
        )  # Ray's sockets need a short path
        scratch.append(str(self.top))

    def start(self):
        self.top.mkdir()
        port = free_ports(1)[0]
        ports.append(port)
        env = dict(
            os.environ,
            RAY_TMPDIR=str(self.top),
            RAY_USAGE_STATS_ENABLED='0',
            RAY_raylet_start_wait_time_s='180',
            PYTHONPATH=here,
        )
        self.process = subprocess.Popen(
            [self.python, '-c', start_nodes, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            text=True,
            start_new_session=True,
        )
        said = []
        for line in self.process.stdout:
            said.append(line)
            if line.startswith('up '):
                break
        assert said and said[-1].startswith('up '), ''.join(said)[-2000:]
        self.count = int(said[-1].split()[1])
        if self.count == 1:
            print('\n' + ''.join(said)[-1000:])
        self.options = dict(
            python=self.python, address=f'http://127.0.0.1:{port}', patience=200.0
        )  # the nodes may need two minutes before one takes a job
        answers(Ray(**self.options))

    def alive(self):
        "Ray ends a node whose agent has died, also one that was only slow to answer on a busy machine"
        raylets = [q for q in leftovers(str(self.top)) if q.name() == 'raylet']
        return self.process is not None and self.process.poll() is None and len(raylets) == self.count

    def takes_jobs(self):
        "Nodes can be up while no agent of theirs takes a job, and stay so"
        t = Ray(**self.options | dict(patience=60.0))
        try:
            return t.wait(t.submit(Job('trial', ('true',), time=60)), 120).state == 'succeeded'
        except (TargetError, TimeoutError):
            return False

    def why(self):
        "The last lines of the nodes' own logs"
        logs = sorted(self.top.glob('**/logs/*raylet*.*')) + sorted(self.top.glob('**/logs/*agent*.*'))
        return '\n'.join(f'{log.name}: {log.read_text(errors="replace")[-500:]}' for log in logs)

    def stop(self):
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(40)
        for q in leftovers(str(self.top)):
            q.kill()
        psutil.wait_procs(leftovers(str(self.top)), 10)
        shutil.rmtree(self.top, ignore_errors=True)
        self.process = None


@pytest.fixture(scope='module')
def nodes():
    n = Nodes(str(built('ray') or build_env('ray')))
    try:
        yield n
    finally:
        n.stop()


@pytest.fixture
def ray(nodes):
    """(python of the environment, options of a target, nodes); nodes that Ray has ended are replaced, and what they
    said last is printed
    """
    for _ in range(3):
        if nodes.alive() and nodes.takes_jobs():
            break
        if nodes.process is not None:
            print('a node of Ray is gone:', nodes.why())
        nodes.stop()
        nodes.start()
    return nodes.python, nodes.options, nodes.count


def on(nodes, ranks=2):
    "Where the ranks are"
    return dict(nodes=nodes, processes=ranks // nodes)


def answers(t, timeout=150):
    "Wait for the job server, which comes up after the nodes"
    end = time.monotonic() + timeout
    while True:
        try:
            return t.ask('version')
        except TargetError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def test_strings_a_stop_and_a_secret(ray, tmp_path):
    python, options, nodes = ray
    t, strings, out = Ray(**options), corpus(), tmp_path / 'got-'
    (tmp_path / 'secret').write_text('canary-5d20')
    job = Job(
        'probe',
        (python, '-c', probe, str(out), *strings),
        env=variables(strings) | dict(PYTHONPATH=here),
        secrets=[Secret('SECRET', 'file', str(tmp_path / 'secret'))],
        time=300,
        **on(nodes),
    )
    h = t.submit(job, 'probe-1')
    assert t.submit(job, 'probe-1') == h
    assert t.wait(h, 300).state == 'succeeded', t.logs(h)
    for rank in (0, 1):
        assert received(out, rank) == expected(strings)
    assert 'canary-5d20' not in t.logs(h) + json.dumps(t.ask(f'jobs/{h.id}'))
    h = t.submit(Job('sleeps', ('sleep', '100'), env=dict(PYTHONPATH=here), time=300))
    end = time.monotonic() + 200
    while t.status(h).state == 'queued' and time.monotonic() < end:
        time.sleep(0.2)
    t.cancel(h)
    assert t.wait(h, 200).state == 'cancelled'
    h = t.submit(Job('fails', ('sh', '-c', 'exit 3'), env=dict(PYTHONPATH=here), time=300))
    assert t.wait(h, 300).state == 'failed'


@pytest.mark.parametrize('kind', [Ray, RayTrain])
def test_our_trainer(kind, ray, straight, tmp_path):  # noqa: F811
    python, options, nodes = ray
    t, job = kind(**options), training(tmp_path / 'run', **on(nodes))
    h = t.submit(job.replace(command=(python, *job.command[1:])))
    assert t.wait(h, 400).state == 'succeeded', t.logs(h)
    assert weights(tmp_path / 'run') == straight


def test_a_node_that_is_gone_is_replaced(nodes, ray):
    for q in leftovers(str(nodes.top)):
        if q.name() == 'raylet':
            q.kill()
    end = time.monotonic() + 60
    while nodes.alive() and time.monotonic() < end:
        time.sleep(0.2)
    assert not nodes.alive() and nodes.why()
