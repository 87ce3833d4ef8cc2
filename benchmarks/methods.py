"""The methods of training.methods: beside Composer's code, and what they change on the digits.

    python benchmarks/methods.py [--seeds 6]

Composer runs in the side environment `composer`; the result is fsdl_tools/data/results/methods.json.
"""

import argparse
import datetime
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np
import torch
from torch import nn

from fsdl_tools.environments import build_env, run_in
from fsdl_tools.training import methods as M
from fsdl_tools.training.speedups import DigitRun, paired_ratio

STEPS, EPOCHS = 60, 2
ALGORITHMS = [
    ('', {}),
    ('LabelSmoothing', dict(smoothing=0.1)),
    ('MixUp', dict(alpha=0.2)),
    ('CutMix', dict(alpha=1.0)),
    ('ProgressiveResizing', dict(initial_scale=0.5)),
    ('BlurPool', {}),
    ('GhostBatchNorm', dict(ghost_batch_size=16)),
    ('EMA', dict(half_life='20ba')),
    ('SAM', dict(rho=0.05)),
    ('SWA', dict(swa_start='0.7dur')),
    ('LayerFreezing', dict(freeze_start=0.5)),
    ('ChannelsLast', {}),
    ('CutOut', {}),
    ('ColOut', {}),
    ('SelectiveBackprop', {}),
    ('RandAugment', {}),
    ('AugMix', {}),
]


class Ghosts:
    "Every batch norm becomes a ghost batch norm, before the first step"

    def start(self, run):
        for block in run.model.blocks:
            block[1] = M.GhostBatchNorm2d(block[1].num_features, 16)


class Blurred:
    def start(self, run):
        M.with_blurpool(run.model)


METHODS = {
    'label smoothing': lambda: M.LabelSmoothing(0.1),
    'MixUp': lambda: M.MixUp(0.2),
    'CutMix': lambda: M.CutMix(1.0),
    'progressive resizing': M.GrowingPictures,
    'EMA': lambda: M.EMA(0.95),
    'SWA': lambda: M.SWA(0.7),
    'SAM': lambda: M.SAM(0.05),
    'BlurPool': Blurred,
    'ghost batch norm': Ghosts,
    'layer freezing': lambda: M.FreezeLayers(0.5),
}


def one(name, seed):
    "(accuracy, seconds of the run)"
    method = [METHODS[name]()] if name else []
    run = DigitRun(seed=seed, steps=STEPS, methods=method)
    start = time.process_time()
    for _ in range(STEPS):
        run.step()
    took = time.process_time() - start
    if name == 'SWA':
        method[0].settle(run.x[:512])
    return run.accuracy(getattr(method[0], 'average', None) if method else None), took


def gained(base, other, draws=2000):
    d = np.array(other) - np.array(base)
    again = np.random.default_rng(0).integers(0, len(d), (draws, len(d)))
    low, high = np.percentile(np.median(d[again], axis=1), [2.5, 97.5])
    return dict(mid=float(np.median(d)), low=float(low), high=float(high))


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--seeds', type=int, default=6)
    p.add_argument('--out', default=str(Path(__file__).parent.parent / 'fsdl_tools/data/results/methods.json'))
    a = p.parse_args()
    torch.set_num_threads(1)
    out = Path(a.out)
    build_env('composer')
    composer = run_in('composer', 'fsdl_tools.training.methods:composer_apart', dict(seed=0), timeout=200)
    print(composer, file=sys.stderr, flush=True)
    trainer = run_in(
        'composer',
        'fsdl_tools.training.methods:composer_train',
        dict(algorithms=ALGORITHMS, epochs=EPOCHS),
        timeout=400,
    )
    print(trainer, file=sys.stderr, flush=True)
    names = ['', *METHODS]
    right, took = ({k: [] for k in names} for _ in range(2))
    for seed in range(a.seeds):
        for name in random.Random(seed).sample(names, len(names)):
            accuracy, seconds = one(name, seed)
            right[name].append(accuracy)
            took[name].append(seconds)
        print(seed, {k: round(v[-1], 3) for k, v in right.items()}, file=sys.stderr, flush=True)
        if seed:
            write(out, seed + 1, right, took, composer, trainer)


def write(out, seeds, right, took, composer, trainer):
    rows = [
        dict(
            method=k,
            gained=gained(right[''], right[k]),
            step=paired_ratio(took[''], took[k]).to_dict(),
            accuracy=right[k],
        )
        for k in METHODS
    ]
    conditions = (
        'one CPU thread of a machine that had other work, seconds of the processor; accuracy on 297 test pictures, of'
        ' which one is 0.3 points'
    )
    found = dict(
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        seeds=seeds,
        steps=STEPS,
        epochs=EPOCHS,
        baseline=statistics.median(right['']),
        conditions=conditions,
        methods=rows,
        composer=composer,
        trainer=trainer,
    )
    out.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
