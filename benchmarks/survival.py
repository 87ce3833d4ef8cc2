"""A training on a real SLURM of two nodes, one of which is killed: loss against the clock, and what the queue says.

    python benchmarks/survival.py [--steps 48] [--kill 16]

The result is fsdl_tools/data/results/survival.json. It needs root and slurm-wlm and munge of Debian. Steps are slowed
down to a quarter of a second, so that a run of a tiny model lasts as long as a node needs to die and to come back.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path

from fsdl_tools.core import data_path
from fsdl_tools.files import write_atomic
from fsdl_tools.operations.launch import Job
from fsdl_tools.operations.slurm import Slurm
from fsdl_tools.operations.slurm_cluster import SlurmCluster, nodes
from fsdl_tools.training.config import TrainConfig

slowly = (
    'import time; from fsdl_tools.training import trainer; step = trainer.Trainer.one_step; '
    'trainer.Trainer.one_step = lambda self, b: (time.sleep(.25), step(self, b))[1]; '
)


def training(folder, steps):
    "The job of a tiny GPT on two nodes"
    c = TrainConfig(layout='dp2', steps=steps, seq=32, save_every=5, lr=3e-3, seed=3, folder=str(folder))
    here = str(Path(__file__).resolve().parent.parent)
    env = dict(GLOO_SOCKET_IFNAME='lo', PYTHONPATH=here)
    job = Job.from_plan(None, c, name='tiny-gpt', time=900, grace=20, env=env, nodes=2, processes=1)
    return job.replace(command=(sys.executable, '-c', slowly + job.command[2], *job.command[3:]))


def rows_of(folder):
    "Metrics on record"
    f = Path(folder) / 'metrics.jsonl'
    lines = f.read_text().splitlines() if f.exists() else []
    return [json.loads(line) for line in lines if line.endswith('}')]


def watch(slurm, handle, folder, events):
    "Until the job is done: each step and each state with the second it was first seen in; events may break things"
    began, steps, states = time.monotonic(), [], []
    while True:
        now, status = time.monotonic() - began, slurm.status(handle)
        if not states or states[-1]['state'] != status.state:
            states.append(dict(seconds=round(now, 1), state=status.state, word=status.word))
        rows = rows_of(folder)
        last = steps[-1]['step'] if steps else 0
        if rows and rows[-1]['step'] < last:  # it has gone back to a checkpoint
            last = rows[-1]['step'] - 1
        steps += [dict(seconds=round(now, 1), step=r['step'], loss=r['loss']) for r in rows if r['step'] > last]
        for what in events(rows[-1]['step'] if rows else 0, status.state):
            states.append(dict(seconds=round(time.monotonic() - began, 1), state=status.state, word=what))
        if status.done:
            return steps, states, status
        time.sleep(0.1)


def killer(cluster, at):
    "Kill a node at a step, bring it back when the job is in the queue again"
    done = []

    def events(step, state):
        if step >= at and not done:
            cluster.kill_node(nodes[1])
            done.append('killed')
            return ['a node is killed']
        if done == ['killed'] and state == 'queued':
            cluster.start_node(nodes[1])
            done.append('back')
            return ['the node is back']
        return []

    return events


def main():
    "Run, and write the result"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--steps', type=int, default=48)
    p.add_argument('--kill', type=int, default=16)
    a = p.parse_args()
    with SlurmCluster() as c:
        os.environ.update(SLURM_CONF=c.env['SLURM_CONF'], PATH=c.env['PATH'])
        s = Slurm(python=sys.executable, output=str(c.root / 'slurm-%j.out'))
        version = c.call('sinfo', '--version').split()[-1]
        out = {}
        for name, events in (('quiet', lambda *_: []), ('killed', killer(c, a.kill))):
            folder = c.root / name
            h = s.submit(training(folder, a.steps))
            steps, states, status = watch(s, h, folder, events)
            if status.state != 'succeeded':
                raise RuntimeError(f'{name}: {status}\n{s.logs(h)[-2000:]}')
            weights = (folder / 'model.safetensors').read_bytes()
            losses = [r['loss'] for r in rows_of(folder)]
            out[name] = dict(steps=steps, states=states, restarts=status.detail, losses=losses, weights=weights)
    equal = out['quiet'].pop('weights') == out['killed'].pop('weights')
    note = dict(
        date=datetime.date.today().isoformat(),
        slurm=version,
        python=platform.python_version(),
        weights_equal=equal,
        machine='two nodes of a SLURM on one machine of two cores, which did other work as well',
    )
    result = json.dumps(dict(note=note, **out), indent=1) + '\n'
    write_atomic(data_path('tables.csv').parent / 'results' / 'survival.json', result)
    print(note, [(x['seconds'], x['word']) for x in out['killed']['states']])


if __name__ == '__main__':
    main()
