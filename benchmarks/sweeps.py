"""Search methods on three problems: mean of the best value over seeds, with bootstrap intervals, and whether it
differs from random search.

    python benchmarks/sweeps.py [--seeds 20] [--trials 25] [--methods random,tpe,gp,wandb]

The result is fsdl_tools/data/results/sweeps.json; methods that are not asked for stay there as they are. W&B's own
engine runs in the side environment `wandb_sweeps`.
"""

import argparse
import math
import json
import random
import statistics
import time

from fsdl_tools.core import data_path, read_results
from fsdl_tools.files import write_atomic
from fsdl_tools.environments import built, run_in
from fsdl_tools.operations import sweep_engines
from fsdl_tools.operations.sweep_space import parse_sweep


def branin(p):
    "Two smooth parameters, three equal minima of 0.398"
    x, y = p['x'], p['y']
    return (
        (y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6) ** 2
        + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x)
        + 10
    )


def training(p):
    "What a training looks like: learning rate on a logarithm, depth, optimizer; noise of a seed"
    best = dict(adam=-3, sgd=-1)[p['optimizer']]
    noise = random.Random(f"{p['lr']}{p['depth']}").gauss(0, 0.02)
    return (
        0.3
        + 0.1 * (math.log10(p['lr']) - best) ** 2
        + 0.01 * (p['depth'] - 6) ** 2
        + (0.05 if p['optimizer'] == 'sgd' else 0)
        + noise
    )


def needle(p):
    "Nothing to learn from: one narrow hole in a plain"
    return 0.0 if all(abs(p[k] - 0.7) < 0.05 for k in 'abcd') else 1 - 0.01 * random.Random(str(p)).random()


unit = dict(min=0.0, max=1.0)
problems = {
    'branin': (branin, dict(x=dict(min=-5.0, max=10.0), y=dict(min=0.0, max=15.0))),
    'training': (
        training,
        dict(
            lr=dict(distribution='log_uniform_values', min=1e-5, max=1.0),
            depth=dict(min=2, max=12),
            optimizer=dict(values=['adam', 'sgd']),
        ),
    ),
    'needle': (needle, dict(a=unit, b=unit, c=unit, d=unit)),
}


def search(space, f, method, seed, trials):
    "Best value after so many trials"
    history = []
    for n in range(trials):
        if method == 'random':
            params, units = sweep_engines._random(space, n, seed), {}
        else:
            params, units = sweep_engines._optuna(space, history, n, seed * 1000, method)
        history.append(dict(params=params, state='finished', value=f(params), note=json.dumps(units)))
    return min(r['value'] for r in history)


wandb_code = '''
def main(call):
    import math, random, numpy, sweeps, json, statistics, warnings
    warnings.simplefilter('ignore')
    scope = dict(math=math, random=random)
    exec(call['source'], scope)
    f, out = scope[call['name']], []
    for seed in range(call['seeds']):
        random.seed(seed); numpy.random.seed(seed)
        runs = []
        for n in range(call['trials']):
            run = sweeps.next_run(call['config'], runs)
            value = f({k: v['value'] for k, v in run.config.items()})
            runs.append(sweeps.SweepRun(name=str(n), config=run.config, state=sweeps.RunState('finished'),
                summary_metrics={'loss': value}))
        out.append(min(r.summary_metrics['loss'] for r in runs))
    return out
'''


def interval(values, draws=4000):
    "Mean and its 95 % bootstrap interval"
    r = random.Random(0)
    again = sorted(statistics.fmean(r.choices(values, k=len(values))) for _ in range(draws))
    return statistics.fmean(values), again[int(0.025 * draws)], again[int(0.975 * draws)]


def verdict(values, base, draws=4000):
    "Better or worse than random search where the interval of the difference leaves zero out"
    r = random.Random(0)
    again = sorted(
        statistics.fmean(r.choices(values, k=len(values))) - statistics.fmean(r.choices(base, k=len(base)))
        for _ in range(draws)
    )
    low, high = again[int(0.025 * draws)], again[int(0.975 * draws)]
    return 'better' if high < 0 else 'worse' if low > 0 else 'no difference'


def together(rows, note):
    "These rows, and those of other methods that are on record with as many seeds and trials"
    kept = read_results('sweeps')
    if any(kept['note'][k] != note[k] for k in ('seeds', 'trials')):
        return rows
    new = {(r['problem'], r['method']) for r in rows}
    every = rows + [r for r in kept['rows'] if (r['problem'], r['method']) not in new]
    order = {'random': 0, 'tpe': 1, 'gp': 2, 'wandb': 3}
    return sorted(every, key=lambda r: (list(problems).index(r['problem']), order[r['method']]))


def main():
    import inspect

    p = argparse.ArgumentParser()
    p.add_argument('--seeds', type=int, default=20)
    p.add_argument('--trials', type=int, default=25)
    p.add_argument('--methods', default='random,tpe,gp,wandb')
    a = p.parse_args()
    rows = []
    for name, (f, axes) in problems.items():
        space = parse_sweep(dict(method='bayes', metric=dict(name='loss'), parameters=axes))
        found = {}
        for method in a.methods.split(','):
            if method == 'wandb' and not built('wandb_sweeps'):
                continue
            t0 = time.process_time()
            if method == 'wandb':
                found[method] = run_in(
                    'wandb_sweeps',
                    wandb_code,
                    dict(
                        source=inspect.getsource(f),
                        name=f.__name__,
                        seeds=a.seeds,
                        trials=a.trials,
                        config=sweep_engines._as_wandb(space),
                    ),
                    timeout=1800,
                )
            else:
                found[method] = [search(space, f, method, seed, a.trials) for seed in range(a.seeds)]
            mean, low, high = interval(found[method])
            rows.append(
                dict(
                    problem=name,
                    method=method,
                    mean=mean,
                    low=low,
                    high=high,
                    verdict='' if method == 'random' else verdict(found[method], found['random']),
                    seconds=time.process_time() - t0,
                )
            )
            print(rows[-1], flush=True)
    note = dict(date=time.strftime('%Y-%m-%d'), seeds=a.seeds, trials=a.trials)
    rows = together(rows, note)
    write_atomic(data_path('results/sweeps.json'), json.dumps(dict(note=note, rows=rows), indent=1) + '\n')


if __name__ == '__main__':
    main()
