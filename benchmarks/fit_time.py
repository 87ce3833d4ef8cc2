"""Fit the constants of `fsdl_tools.compute.step_time` on published runs, and cross-validate them over whole cells.

usage: fit_time.py [RUNS.csv] [--new] [--write] [--no-cv] [--errors FILE]

Two tables decide two groups of constants. published_runs.csv decides those marked `yes` in the column `fitted` of
planner_time.csv; a cell
is a model on a number of GPUs. published_runs_2026.csv (and the six runs of Megatron-Core) decide those marked
`2026`, while the others
stay as they are; a cell is a study, a model, a machine and a task. --new fits the second group, otherwise the first
is fitted. RUNS.csv
takes the place of the first table; a column step_time_s may take the place of step_seconds and set that of study.
--write stores the
values. --errors writes what every run was predicted to take without its cell, in the form of data/planner_errors.csv.
"""

import collections, csv, io, sys, time
import numpy as np
from fsdl_tools.core import data_path
from fsdl_tools.files import write_atomic
from fsdl_tools.compute.columns import columns, complete_columns, expert_parameters, layer_parameters
from fsdl_tools.compute.step_time import step_time
from fsdl_tools.compute.uncertainty import family_of
from fsdl_tools.compute.validation import check_row, strategy_of

CONSTANTS = 'planner_time.csv'
SCALE = 0.05  # Residuals (natural logarithm) beyond this count less
PRIOR = 0.075  # Weight of the distance from the start, in units of one e-fold
STIFF = dict(
    bubble_share=5,
    nic_efficiency=5,
    tensor_exposed=3,
    elementwise_passes=2,
    fsdp_exposed=2,
    step_seconds=2,
    matmul_efficiency=2,
    data_overlap=2,
    wave_loss=2,
    gemm_ramp=2,
    launch_seconds=2,
    clock=2,
    fp8_relative=2,
    attention_efficiency=2,
    cast_bytes=2,
)
STIFF_NEW = dict(
    bubble_share=2,
    nic_efficiency=5,
    fsdp_exposed=2,
    data_overlap=2,
    loss_bytes=2,
    product_share=0.5,
    recipe_share=2,
    ragged_share=4,
    alltoall_exposed=4,
    launch_experts=4,
    graph_experts=4,
)
LIMIT = dict(
    data_overlap=1.6,
    tensor_exposed=1,
    fsdp_exposed=1,
    hop_bytes=1,
    bubble_share=1,
    alltoall_exposed=1,
    **{'fp8_relative/pytorch/fp8': 0.9, 'product_share/pytorch/Ampere': 1.1, 'product_share/pytorch/Hopper': 1.27},
    attention_share=1.1,
    recipe_share=1,
    product_share=1.55,
    fp8_relative=1.05,
    matmul_efficiency=0.8,
)  # And 1 for everything called an efficiency; products stay below the best ever measured (0.87 A100, 0.80 H100)
# Runs that differ in nothing we can see differ up to thirtyfold in nanotron, and by a third in torchtitan, whose table
# does not name the
# recipe of its float8: such rows must not pull
HEAVY_TAILS = {'nanotron-ultrascale', 'torchtitan'}
BOTH = 'megatron-core-h100'  # Its six runs are of the second group's framework
WEIGHT_OF_BOTH = 5


def table(path):
    "Timed runs of a table, under the names of published_runs.csv"
    with open(path, newline='', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    for r in rows:
        r['step_seconds'] = r.get('step_seconds') or r.get('step_time_s')
        r['study'], r['run'] = r.get('study') or r.get('set'), r.get('run') or r.get('row')
    whole = lambda r: float(r['gpus']) == float(r['tp']) * float(r['pp']) * float(r['cp'] or 1) * float(r['dp'])
    return [r for r in rows if r['step_seconds'] and whole(r)]


def read_runs(path=None, new=False):
    "The runs that decide a group of constants"
    old = table(path or data_path('published_runs.csv'))
    if not new:
        return old
    return table(data_path('published_runs_2026.csv')) + [r for r in old if r['study'] == BOTH]


def cells(rows, new=False):
    "Names of the cells: a cell is held out as a whole"
    if not new:
        return np.array(['|'.join((r['study'], r['layers'], r['hidden'], r['gpus'])) for r in rows])
    machine = lambda r: r.get('gpu_as_published') or r['gpu']
    return np.array(['|'.join((r['study'], r.get('model') or '', machine(r), r.get('task') or '')) for r in rows])


def read_constants():
    with open(data_path(CONSTANTS), newline='') as f:
        return list(csv.DictReader(f))


def table_of(const, keys=(), x=(), start=False):
    "Constants as step_time takes them, with those of `keys` replaced by exp(x)"
    out = {}
    for r in const:
        out.setdefault(r['name'], (r['by'], {}))[1][r['applies_to']] = float(r['start' if start else 'value'])
    for (n, a), v in zip(keys, np.exp(x)):
        out[n][1][a] = v
    return out


def select(c, rows):
    return {k: v[rows] if np.ndim(v) else v for k, v in c.items()}


def weights(study, cell, new):
    "How much each run counts: every study of the first group the same, cells of the second nearly so"
    if not new:
        names, count = np.unique(study, return_counts=True)
        return np.sqrt(len(study) / len(names) / count[np.searchsorted(names, study)])
    count = collections.Counter(cell)
    w = np.array([count[x] ** -0.35 for x in cell])
    return np.where(study == BOTH, WEIGHT_OF_BOTH, w * np.sqrt(len(w) / (w**2).sum()))


def limit(name, which):
    "The largest value a constant may take"
    return LIMIT.get(f'{name}/{which}', LIMIT.get(name, 1.0 if 'efficiency' in name else np.inf))


def fit(c, seconds, study, cell, const, new=False, rounds=25):
    "Constants of a group by robust least squares of log ratios"
    from scipy.optimize import least_squares

    free = [r for r in const if r['fitted'] == ('2026' if new else 'yes')]
    keys = [(r['name'], r['applies_to']) for r in free]
    x0 = np.log([float(r['start']) for r in free])
    top = np.log([limit(*key) for key in keys])
    stiff = PRIOR * np.array([(STIFF_NEW if new else STIFF).get(n, 1.0) for n, _ in keys])
    weight, tails = weights(study, cell, new), np.isin(study, list(HEAVY_TAILS))
    weight[tails] *= 1.5

    def residuals(x):
        r = np.log(step_time(c, table_of(const, keys, x), ready=True)['total'] / seconds)
        z = (r / SCALE) ** 2
        loss = np.where(tails, np.log1p(z), 2 * (np.sqrt(1 + z) - 1))
        return np.concatenate([np.sign(r) * SCALE * np.sqrt(loss) * weight, stiff * (x - x0)])

    begin = np.minimum(x0, top - 1e-3)
    best = least_squares(residuals, begin, bounds=(-np.inf, top), max_nfev=rounds, diff_step=1e-3, x_scale='jac').x
    return table_of(const, keys, best), dict(zip(keys, np.exp(best)))


def cross_validate(c, seconds, study, cell, const, new=False, rounds=12):
    """Predictions of every run by constants fitted without its cell: alone in the second group, among an eighth in
    the first
    """
    names = np.array(sorted(set(cell)))
    folds = len(names) if new else 8
    np.random.default_rng(0).shuffle(names)
    out = np.full(len(seconds), np.nan)
    for i in range(folds):
        held = np.isin(cell, names[i::folds])
        kept, _ = fit(select(c, ~held), seconds[~held], study[~held], cell[~held], const, new, rounds)
        out[held] = step_time(select(c, held), kept, ready=True)['total']
    return out


def summary(predicted, seconds, study):
    "Median and 90th percentile of the relative error of each study"
    e = np.abs(predicted / seconds - 1)
    part = lambda s: e[study == s]
    return {
        s: dict(runs=len(part(s)), median=float(np.median(part(s))), p90=float(np.quantile(part(s), 0.9)))
        for s in dict.fromkeys(study)
    }


def show(title, s):
    print(title)
    for k, v in s.items():
        print(f"  {k:22} {v['runs']:5} runs   median {v['median']:6.1%}   p90 {v['p90']:6.1%}")


def write(const, found):
    "Store fitted values in the data file"
    for r in const:
        if (r['name'], r['applies_to']) in found:
            r['value'], r['date'] = f"{found[r['name'], r['applies_to']]:.4g}", time.strftime('%Y-%m')
    f = io.StringIO()
    w = csv.DictWriter(f, const[0], lineterminator='\n')
    w.writeheader()
    w.writerows(const)
    write_atomic(data_path(CONSTANTS), f.getvalue())


def layout_text(r):
    "The layout of a run in a few letters"
    sizes = [f'{k}{float(r[k]):g}' for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'vp') if r.get(k) and float(r[k]) > 1]
    return ','.join(sizes) or 'dp1'


def errors(rows, checked, c, cell, predicted, measured, what):
    "Rows of planner_errors.csv"
    total = c['layers'] * (layer_parameters(c) + expert_parameters(c)) + 2 * c['vocab'] * c['hidden']
    for i, (r, q) in enumerate(zip(rows, checked)):
        family = family_of(str(c['gpu'][i]), str(c['precision'][i]), q['framework'], strategy_of(q))
        yield dict(
            what=what,
            run=r['run'],
            study=r['study'],
            model=r.get('model') or '',
            cell=cell[i],
            **dict(zip(('generation', 'bits', 'strategy', 'framework'), family)),
            gpu=str(c['gpu'][i]),
            gpus=f"{c['gpus'][i]:g}",
            parameters=f'{total[i]:.3g}',
            seq=f"{c['seq'][i]:g}",
            layout=layout_text(q),
            predicted=f'{predicted[i]:.5g}',
            measured=f'{measured[i]:.5g}',
        )


def thinned(found, most=500, step=5):
    "Errors with every fifth run only of studies that have more than 500: near copies of each other would fill the file"
    count, seen, kept = collections.Counter(r['study'] for r in found), collections.Counter(), []
    for r in found:
        if count[r['study']] <= most or seen[r['study']] % step == 0:
            kept.append(r)
        seen[r['study']] += 1
    return kept


def write_errors(path, found):
    "Replace in a file of errors the rows of the same studies and the same quantity"
    try:
        with open(path, newline='', encoding='utf-8') as f:
            old = list(csv.DictReader(f))
    except FileNotFoundError:
        old = []
    same = {(r['what'], r['study']) for r in found}
    kept = [r for r in old if (r['what'], r['study']) not in same]
    rows = sorted([*kept, *found], key=lambda r: (r['what'], r['study'], r['run']))
    f = io.StringIO()
    w = csv.DictWriter(f, found[0], lineterminator='\n')
    w.writeheader()
    w.writerows(rows)
    write_atomic(path, f.getvalue())


def main(argv):
    paths = [a for i, a in enumerate(argv) if not a.startswith('--') and argv[i - 1] != '--errors']
    new = '--new' in argv
    rows, const = read_runs(paths[0] if paths else None, new), read_constants()
    checked = [check_row(r) if new else r for r in rows]
    c = complete_columns(columns(checked))
    seconds, study = np.array([float(r['step_seconds']) for r in rows]), np.array([r['study'] for r in rows])
    cell = cells(rows, new)
    kept, found = fit(c, seconds, study, cell, const, new)
    show(f'fitted: {len(found)} constants on {len(rows)} runs', summary(step_time(c, kept)['total'], seconds, study))
    for k, v in found.items():
        print('   ', *k, f'{v:.4g}')
    if '--write' in argv:
        write(const, found)
    if '--no-cv' in argv:
        return
    held = cross_validate(c, seconds, study, cell, const, new)
    show('cross-validated over cells', summary(held, seconds, study))
    if '--errors' in argv:
        own = thinned(
            [
                r
                for r in errors(rows, [check_row(r) for r in rows], c, cell, held, seconds, 'time')
                if not (new and r['study'] == BOTH)
            ]
        )
        write_errors(argv[argv.index('--errors') + 1], own)


if __name__ == '__main__':
    main(sys.argv[1:])
