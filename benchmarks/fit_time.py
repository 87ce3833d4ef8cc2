"""Fit the constants of `fsdl_tools.compute.step_time` on published runs, and cross-validate them over whole (model, GPU count) cells.

usage: fit_time.py [RUNS.csv] [--write] [--no-cv]

RUNS.csv has the columns of fsdl_tools/data/published_runs.csv, which is the default; a column step_time_s may take the place of
step_seconds and set that of study. --write stores the fitted values in fsdl_tools/data/planner_time.csv.
"""
import csv, io, sys, time
from pathlib import Path
import numpy as np
from fsdl_tools.core import data_path, write_atomic
from fsdl_tools.compute.step_time import columns, step_time

CONSTANTS = 'planner_time.csv'
SCALE = .05 # Residuals (natural logarithm) beyond this count less
PRIOR = .075 # Weight of the distance from the start, in units of one e-fold
STIFF = dict(bubble_share=5, nic_efficiency=5, tensor_exposed=3, elementwise_passes=2, fsdp_exposed=2, step_seconds=2, matmul_efficiency=2,
             data_overlap=2, wave_loss=2, gemm_ramp=2, launch_seconds=2,
             clock=2, fp8_relative=2, attention_efficiency=2)
LIMIT = dict(data_overlap=1.6, tensor_exposed=1, fsdp_exposed=1, hop_bytes=1, bubble_share=1) # And 1 for everything called an efficiency
HEAVY_TAILS = {'nanotron-ultrascale'} # Identical runs there differ up to thirtyfold: such rows must not pull


def read_runs(path=None):
    "Timed runs of a table whose degrees multiply to the GPU count"
    with open(path or data_path('published_runs.csv'), newline='') as f: rows = list(csv.DictReader(f))
    for r in rows: r['step_seconds'], r['study'] = r.get('step_seconds') or r.get('step_time_s'), r.get('study') or r.get('set')
    whole = lambda r: float(r['gpus']) == float(r['tp']) * float(r['pp']) * float(r['cp'] or 1) * float(r['dp'])
    return [r for r in rows if r['step_seconds'] and whole(r)]


def cells(rows):
    "Names of the (study, model, GPU count) cells: a cell is held out as a whole"
    return np.array(['|'.join((r['study'], r['layers'], r['hidden'], r['gpus'])) for r in rows])


def read_constants():
    with open(data_path(CONSTANTS), newline='') as f: return list(csv.DictReader(f))


def table_of(const, keys=(), x=(), start=False):
    "Constants as step_time takes them, with those of `keys` replaced by exp(x)"
    out = {}
    for r in const: out.setdefault(r['name'], (r['by'], {}))[1][r['applies_to']] = float(r['start' if start else 'value'])
    for (n, a), v in zip(keys, np.exp(x)): out[n][1][a] = v
    return out


def select(c, rows): return {k: v[rows] for k, v in c.items()}


def fit(c, seconds, study, const, rounds=25):
    "Constants marked as fitted, by robust least squares of log ratios; every study weighs the same"
    from scipy.optimize import least_squares
    free = [r for r in const if r['fitted'] == 'yes']
    keys = [(r['name'], r['applies_to']) for r in free]
    x0 = np.log([float(r['start']) for r in free])
    top = np.log([LIMIT.get(n, 1. if 'efficiency' in n else np.inf) for n, _ in keys])
    stiff = PRIOR * np.array([STIFF.get(n, 1.) for n, _ in keys])
    names, count = np.unique(study, return_counts=True)
    weight = np.sqrt(len(study) / len(names) / count[np.searchsorted(names, study)])
    tails = np.isin(study, list(HEAVY_TAILS)); weight[tails] *= 1.5
    def residuals(x):
        r = np.log(step_time(c, table_of(const, keys, x, start=True))['total'] / seconds)
        z = (r / SCALE)**2
        return np.concatenate([np.sign(r) * SCALE * np.sqrt(np.where(tails, np.log1p(z), 2*(np.sqrt(1 + z) - 1))) * weight, stiff * (x - x0)])
    best = least_squares(residuals, np.minimum(x0, top - 1e-3), bounds=(-np.inf, top), max_nfev=rounds, diff_step=1e-3, x_scale='jac').x
    return table_of(const, keys, best, start=True), dict(zip(keys, np.exp(best)))


def cross_validate(c, seconds, study, cell, const, folds=8, rounds=12):
    "Predictions of every run by constants fitted without its cell"
    names = np.array(sorted(set(cell))); np.random.default_rng(0).shuffle(names)
    out = np.full(len(seconds), np.nan)
    for i in range(folds):
        held = np.isin(cell, names[i::folds])
        table, _ = fit(select(c, ~held), seconds[~held], study[~held], const, rounds)
        out[held] = step_time(select(c, held), table)['total']
    return out


def summary(predicted, seconds, study):
    "Median and 90th percentile of the relative error of each study"
    e = np.abs(predicted / seconds - 1)
    return {s: dict(runs=int((study == s).sum()), median=float(np.median(e[study == s])), p90=float(np.quantile(e[study == s], .9))) for s in dict.fromkeys(study)}


def show(title, s):
    print(title)
    for k, v in s.items(): print(f"  {k:22} {v['runs']:5} runs   median {v['median']:6.1%}   p90 {v['p90']:6.1%}")


def write(const, found, note):
    "Store fitted values in the data file"
    for r in const:
        if (r['name'], r['applies_to']) in found: r['value'], r['date'] = f"{found[r['name'], r['applies_to']]:.4g}", time.strftime('%Y-%m')
    f = io.StringIO(); w = csv.DictWriter(f, const[0], lineterminator='\n'); w.writeheader(); w.writerows(const)
    write_atomic(data_path(CONSTANTS), f.getvalue())


def main(argv):
    paths = [a for a in argv if not a.startswith('--')]
    rows, const = read_runs(paths[0] if paths else None), read_constants()
    c, seconds, study = columns(rows), np.array([float(r['step_seconds']) for r in rows]), np.array([r['study'] for r in rows])
    show('start', summary(step_time(c, table_of(const, start=True))['total'], seconds, study))
    table, found = fit(c, seconds, study, const)
    show(f'fitted: {len(found)} constants on {len(rows)} runs', summary(step_time(c, table)['total'], seconds, study))
    for k, v in found.items(): print('   ', *k, f'{v:.4g}')
    if '--write' in argv: write(const, found, len(rows))
    if '--no-cv' not in argv: show('cross-validated over cells', summary(cross_validate(c, seconds, study, cells(rows), const), seconds, study))


if __name__ == '__main__': main(sys.argv[1:])
