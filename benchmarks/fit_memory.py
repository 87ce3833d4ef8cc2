"""Fit the constants of `fsdl_tools.compute.step_memory` on published runs, and cross-validate them over whole
(model, GPU count) cells.

usage: fit_memory.py [RUNS.csv] [--write] [--no-cv] [--out RESULTS.json] [--errors FILE]

RUNS.csv has the columns of fsdl_tools/data/published_runs.csv, which is the default; peak_mem_gib, mem_kind and set
may take the
place of peak_gib, peak_kind and study. --write stores the fitted values in fsdl_tools/data/planner_memory.csv.
"""

import csv, datetime, io, json, sys
from pathlib import Path
import numpy as np
from fsdl_tools.core import data_path
from fsdl_tools.files import write_atomic
from fsdl_tools.compute.validation import check_row
from fsdl_tools.compute.step_memory import memory
from fsdl_tools.compute.columns import columns, complete_columns, framework_of
import fit_time

SCALE = 0.05  # Residuals (natural logarithm) beyond this count less
FRAMEWORKS = ('nanotron', 'megatron-deepspeed', 'torchtitan')
SHARED = ('attention_units', 'mlp_units', 'fixed_gib')  # Constants of every framework, fitted on the nanotron runs
FROM_FAILURES = {
    ('fragmentation', 'nanotron'),
    ('context_gib', 'nanotron'),
}  # Set where runs begin to fail, not by peaks
TIED = {('work_single', 'megatron-deepspeed'): ('work_whole', 'megatron-deepspeed')}  # One quantity under two names
LIMIT = {'fragmentation': (1.0, 1.4), 'fp4_share': (0.2, 1.0)}


def read_runs(path=None):
    "Runs that the planner can express, as (row, checked row); those without a peak count only for fitting or not"
    with open(path or data_path('published_runs.csv'), newline='', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    out = []
    for r in rows:
        r |= dict(
            peak=r.get('peak_gib') or r.get('peak_mem_gib'),
            kind=r.get('peak_kind') or r.get('mem_kind'),
            study=r.get('study') or r.get('set'),
        )
        try:
            out.append((r, check_row({k: v for k, v in r.items() if k not in ('peak', 'kind')})))
        except ValueError:
            continue  # contradictions of the sources; plan_batch names them
    return out


def read_constants():
    with open(data_path('planner_memory.csv'), newline='', encoding='utf-8') as f:
        return list(csv.DictReader(f))


def free(const, framework):
    "(name, framework) of the constants that the runs of `framework` decide"
    mine = [(r['name'], r['framework']) for r in const if r['fitted'] == 'yes']
    own = [k for k in mine if k[1] == framework and k not in FROM_FAILURES and k not in TIED]
    return own + ([k for k in mine if k[0] in SHARED and k[1] == 'any'] if framework == 'nanotron' else [])


def table_of(const, keys=(), x=()):
    "Constants as memory takes them, with those of `keys` replaced"
    out = {}
    for r in const:
        out.setdefault(r['name'], {})[r['framework']] = float(r['value'])
    for (n, f), v in zip(keys, x):
        out[n][f] = v
    for (n, f), (m, g) in TIED.items():
        out[n][f] = out[m][g]
    return out


def predict(c, kind, table):
    "The quantity that was measured, in GiB"
    m = memory(c, table)
    return (
        np.select([kind == k for k in ('allocated', 'reserved')], [m['allocated'], m['reserved']], m['device']) / 2**30
    )


def fit(c, kind, peak, const, framework, rounds=40):
    "Constants by robust least squares of log ratios"
    from scipy.optimize import least_squares

    keys = free(const, framework)
    start = np.array([table_of(const)[n][f] for n, f in keys])
    low, high = np.array([LIMIT.get(n, (0.0, np.inf)) for n, _ in keys]).T
    high = np.where(np.isinf(high), 4 * np.maximum(start, 0.5), high)
    run = lambda x: np.log(predict(c, kind, table_of(const, keys, x)) / peak)
    best = least_squares(
        run,
        np.clip(start, low + 1e-6, high - 1e-6),
        bounds=(low, high),
        loss='soft_l1',
        f_scale=SCALE,
        x_scale=np.maximum(start, 0.1),
        max_nfev=rounds,
    ).x
    return table_of(const, keys, best), dict(zip(keys, best))


def part(c, i):
    return {k: v[i] for k, v in c.items()}


def cross_validate(c, kind, peak, cell, const, framework):
    "Predictions of every run by constants fitted without its cell"
    out = np.full(len(peak), np.nan)
    for held in np.unique(cell):
        i = cell == held
        out[i] = predict(part(c, i), kind[i], fit(part(c, ~i), kind[~i], peak[~i], const, framework, 6)[0])
    return out


def summary(predicted, peak):
    e = np.abs(predicted / peak - 1)
    return dict(runs=len(e), median=round(float(np.median(e)), 4), p90=round(float(np.quantile(e, 0.9)), 4))


def fits(pairs, const):
    "Balanced accuracy of fits or does not fit, by study and over all"
    c = columns([r for _, r in pairs])
    said, done = memory(c, table_of(const))['fits'], np.array([r['finished'] in ('1', 'True') for r, _ in pairs])
    return dict(
        finished=round(float(said[done].mean()), 4),
        failed=round(float((~said[~done]).mean()), 4),
        balanced=round(float((said[done].mean() + (~said[~done]).mean()) / 2), 4),
        runs=len(done),
    )


def main(args):
    path = next(
        (
            a
            for i, a in enumerate(args)
            if not a.startswith('--') and (i == 0 or args[i - 1] not in ('--out', '--errors'))
        ),
        None,
    )
    const, pairs, found, results, unseen = read_constants(), read_runs(path), {}, {}, []
    for f in FRAMEWORKS:
        mine = [(r, s) for r, s in pairs if r['peak'] and framework_of(s['framework']) == f]
        if not mine:
            continue
        c, kind, peak = (
            columns([s for _, s in mine]),
            np.array([r['kind'] for r, _ in mine]),
            np.array([float(r['peak']) for r, _ in mine]),
        )
        cell = np.array(['|'.join((r['layers'], r['hidden'], r['gpus'])) for r, _ in mine])
        table, values = fit(c, kind, peak, const, f)
        found |= values
        results[f] = dict(
            cells=len(set(cell)),
            shipped=summary(predict(c, kind, table_of(const)), peak),
            fitted=summary(predict(c, kind, table), peak),
        )
        if '--no-cv' not in args:
            held = cross_validate(c, kind, peak, cell, const, f)
            results[f]['cross_validated'] = summary(held, peak)
            named = [r | dict(run=r.get('run') or r.get('row')) for r, _ in mine]
            unseen += fit_time.errors(
                named, [s for _, s in mine], complete_columns(c), cell, held * 2**30, peak * 2**30, 'memory'
            )
        print(f, json.dumps(results[f]), {f'{n}': round(float(v), 3) for (n, _), v in values.items()}, flush=True)
    results['fits'] = fits(pairs, const)
    if '--errors' in args:
        fit_time.write_errors(args[args.index('--errors') + 1], unseen)
    print('fits', results['fits'])
    if '--write' in args:
        for r in const:
            v = found.get((r['name'], r['framework']), found.get(TIED.get((r['name'], r['framework']))))
            if v is not None:
                r |= dict(value=f'{v:.3g}', date=datetime.date.today().strftime('%Y-%m'))
        text = io.StringIO()
        w = csv.DictWriter(text, const[0], lineterminator='\n')
        w.writeheader()
        w.writerows(const)
        write_atomic(data_path('planner_memory.csv'), text.getvalue())
    if '--out' in args:
        doc = dict(
            date=datetime.date.today().isoformat(),
            method=(
                'each (layers, hidden, GPU count) cell is predicted by constants fitted on the runs of all other cells'
            ),
            results=results,
        )
        write_atomic(args[args.index('--out') + 1], json.dumps(doc, indent=1) + '\n')


if __name__ == '__main__':
    main(sys.argv[1:])
