"""One training, two ranks: its last weights are equal to the bit wherever it runs, and whatever happens to it there"""

import os, sys, time
from pathlib import Path
import pytest
from fsdl_tools.operations.launch import Job
from fsdl_tools.operations.local import Local
from fsdl_tools.operations.slurm import Slurm
from fsdl_tools.operations.slurm_cluster import nodes
from fsdl_tools.training.config import TrainConfig
from .test_containers import pod  # noqa: F401 - a fixture
from .test_slurm import cluster, installed, target  # noqa: F401 - fixtures

pytestmark = pytest.mark.timeout(600)
here = str(Path(__file__).parent.parent.parent)
python = str(Path(os.path.realpath(sys.prefix)) / 'bin' / 'python')


def training(folder, steps=60, **kw):
    "The job of a tiny GPT on two ranks"
    c = TrainConfig(
        layout='dp2',
        steps=steps,
        seq=16,
        global_batch=8,
        save_every=5,
        lr_schedule='constant',
        seed=3,
        folder=str(folder),
    )
    job = Job.from_plan(
        None, c, name='tiny-gpt', time=300, grace=20, env=dict(GLOO_SOCKET_IFNAME='lo', PYTHONPATH=here), **kw
    )
    return job.replace(command=(python, *job.command[1:]))


def weights(folder):
    return (Path(folder) / 'model.safetensors').read_bytes()


def steps_of(folder):
    return (Path(folder) / 'metrics.jsonl').read_text().count('\n') if (Path(folder) / 'metrics.jsonl').exists() else 0


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    "Weights after torchrun on this machine"
    top = tmp_path_factory.mktemp('straight')
    os.environ['XDG_STATE_HOME'] = str(top / 'state')
    h = Local(python=python).submit(training(top / 'run'))
    assert Local().wait(h, 300).state == 'succeeded', Local().logs(h)
    del os.environ['XDG_STATE_HOME']
    return weights(top / 'run')


def on_two_nodes(folder):
    return training(folder, nodes=2, processes=1)


def test_on_slurm(straight, cluster):  # noqa: F811
    s, folder = target(cluster), cluster.root / 'plain'
    h = s.submit(on_two_nodes(folder))
    assert s.wait(h, 300).state == 'succeeded', s.logs(h)
    assert weights(folder) == straight


holds = '''
import sys, time
from pathlib import Path
from fsdl_tools.training import trainer
step, hold = trainer.Trainer.one_step, Path(sys.argv.pop())
def one_step(self, batches):
    while self.step == 30 and not self.stop and hold.exists(): time.sleep(.05)
    return step(self, batches)
trainer.Trainer.one_step = one_step
'''


def holding(job, hold):
    "The same job, which waits before its 31st step until it is asked to stop, or the file hold is gone"
    hold.touch()
    return job.replace(command=(*job.command[:2], holds + job.command[2], *job.command[3:], str(hold)))


def test_on_slurm_preempted(straight, cluster):  # noqa: F811
    s, folder = target(cluster), cluster.root / 'preempted'
    h = s.submit(holding(on_two_nodes(folder), cluster.root / 'work' / 'hold'))
    cluster.until(lambda: steps_of(folder) >= 30, 200)
    Slurm(partition='urgent', output=str(cluster.root / 'work' / 'urgent.out')).submit(
        Job('urgent', ('sleep', '2'), nodes=2, cpus=2, time=60, grace=5)
    )
    cluster.until(lambda: s.status(h).state == 'queued', 200)
    done = s.wait(h, 300)
    assert done.state == 'succeeded' and 'restarts' in done.detail, s.logs(h)
    assert weights(folder) == straight


def test_on_slurm_with_a_node_killed(straight, cluster):  # noqa: F811
    s, folder = target(cluster), cluster.root / 'killed'
    hold = cluster.root / 'work' / 'hold'
    h = s.submit(holding(on_two_nodes(folder), hold))
    cluster.until(lambda: steps_of(folder) >= 30, 200)
    cluster.kill_node(nodes[1])
    cluster.until(lambda: s.status(h).state == 'queued', 200)
    hold.unlink()
    cluster.start_node(nodes[1])
    done = s.wait(h, 300)
    assert done.state == 'succeeded' and 'restarts' in done.detail, s.logs(h)
    assert weights(folder) == straight


def test_on_slurm_after_the_time_limit(straight, cluster):  # noqa: F811
    "25 s before its time is over the script is warned"
    s, folder = target(cluster), cluster.root / 'limit'
    job = on_two_nodes(folder).replace(
        time=60 if os.getloadavg()[0] < 4 else 120, grace=25
    )  # on a busy machine a minute may go before the first step
    h = s.submit(holding(job, cluster.root / 'work' / 'hold'))
    done = s.wait(h, 400)
    assert done.state == 'succeeded' and 'restarts' in done.detail, s.logs(h)
    assert steps_of(folder) == 60 and weights(folder) == straight


def test_in_two_containers(straight, pod):  # noqa: F811
    t, work = pod
    h = t.submit(on_two_nodes(work / 'run').replace(image='localhost/fsdl-test:1'))
    assert t.wait(h, 300).state == 'succeeded', t.logs(h)
    t.cancel(h)
    assert weights(work / 'run') == straight
