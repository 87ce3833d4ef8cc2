"""Jobs on a Ray cluster of two nodes (one, where two do not fit), in a side environment: strings, a stop, our trainer under Ray Train"""
import contextlib, json, os, shutil, subprocess, time
from pathlib import Path
import psutil
import pytest
from fsdl_tools.environments import build_env, built
from fsdl_tools.operations.launch import Job, Secret, TargetError
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
c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=4, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=int(sys.argv[1])))
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


@pytest.fixture(scope='module')
def ray(tmp_path_factory):
    "(python of the environment, options of a target, nodes): two nodes, or one where a second does not come up in two minutes. Ray listens on every address of the machine, whatever one asks for"
    python = str(built('ray') or build_env('ray'))
    top = Path('/tmp')/f'fsdl-ray-{os.getpid()}'                    # Ray's sockets need a short path
    top.mkdir()
    scratch.append(str(top))
    port = free_ports(1)[0]
    ports.append(port)
    env = dict(os.environ, RAY_TMPDIR=str(top), RAY_USAGE_STATS_ENABLED='0', RAY_raylet_start_wait_time_s='180', PYTHONPATH=here)
    p = subprocess.Popen([python, '-c', start_nodes, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True, start_new_session=True)
    try:
        said = []
        for line in p.stdout:
            said.append(line)
            if line.startswith('up '): break
        assert said and said[-1].startswith('up '), ''.join(said)[-2000:]
        nodes = int(said[-1].split()[1])
        if nodes == 1: print('\n' + ''.join(said)[-1000:])
        options = dict(python=python, address=f'http://127.0.0.1:{port}', patience=200.)      # the nodes may need two minutes before one takes a job
        answers(Ray(**options))
        yield python, options, nodes
    finally:
        with contextlib.suppress(OSError): p.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired): p.wait(40)
        for q in leftovers(str(top)): q.kill()
        psutil.wait_procs(leftovers(str(top)), 10)
        shutil.rmtree(top, ignore_errors=True)


def on(nodes, ranks=2):
    "Where the ranks are"
    return dict(nodes=nodes, processes=ranks//nodes)


def answers(t, timeout=150):
    "Wait for the job server, which comes up after the nodes"
    end = time.monotonic() + timeout
    while True:
        try: return t.ask('version')
        except TargetError:
            if time.monotonic() > end: raise
            time.sleep(1)


def test_strings_a_stop_and_a_secret(ray, tmp_path):
    python, options, nodes = ray
    t, strings, out = Ray(**options), corpus(), tmp_path/'got-'
    (tmp_path/'secret').write_text('canary-5d20')
    job = Job('probe', (python, '-c', probe, str(out), *strings), env=variables(strings) | dict(PYTHONPATH=here), secrets=[Secret('SECRET', 'file', str(tmp_path/'secret'))], time=300, **on(nodes))
    h = t.submit(job, 'probe-1')
    assert t.submit(job, 'probe-1') == h
    assert t.wait(h, 300).state == 'succeeded', t.logs(h)
    for rank in (0, 1): assert received(out, rank) == expected(strings)
    assert 'canary-5d20' not in t.logs(h) + json.dumps(t.ask(f'jobs/{h.id}'))
    h = t.submit(Job('sleeps', ('sleep', '100'), env=dict(PYTHONPATH=here), time=300))
    end = time.monotonic() + 200
    while t.status(h).state == 'queued' and time.monotonic() < end: time.sleep(.2)
    t.cancel(h)
    assert t.wait(h, 200).state == 'cancelled'
    h = t.submit(Job('fails', ('sh', '-c', 'exit 3'), env=dict(PYTHONPATH=here), time=300))
    assert t.wait(h, 300).state == 'failed'


@pytest.mark.parametrize('kind', [Ray, RayTrain])
def test_our_trainer(kind, ray, straight, tmp_path):  # noqa: F811
    python, options, nodes = ray
    t, job = kind(**options), training(tmp_path/'run', **on(nodes))
    h = t.submit(job.replace(command=(python, *job.command[1:])))
    assert t.wait(h, 400).state == 'succeeded', t.logs(h)
    assert weights(tmp_path/'run') == straight
