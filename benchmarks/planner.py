"""Compare the planner with public estimators on published runs, and write fsdl_tools/data/results/planner.json.

usage: planner.py [RUNS.csv] [--peers FOLDER] [--out FILE] [--title TEXT] [--fresh]

The planner's figures are cross-validated: each run is predicted by constants that were fitted without its (model,
GPU count) cell.
Each peer runs in an environment of its own, FOLDER/<peer>, which is made when it is missing. RUNS.csv defaults to
the project's own table.
A peer that has a free efficiency gets, for each study, the value with which it does best on these very runs.
"""

import argparse, csv, json, os, platform, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path
import numpy as np
from fsdl_tools.core import data_path
from fsdl_tools.units import GiB
from fsdl_tools.files import write_atomic
from fsdl_tools.compute.gpus import find
from fsdl_tools.compute.columns import columns, complete_columns, resolve
from fsdl_tools.compute.hardware import time_constants
from fsdl_tools.compute.step_time import derive, step_time
from fsdl_tools.compute.validation import check_row
import fit_time

HERE = Path(__file__).parent
PEERS = {
    'llm-analysis': ['llm-analysis'],
    'ftuneai': ['ftuneai'],
    'deepspeed': ['deepspeed'],
    'accelerate': ['accelerate'],
}
TUNED = ('llm-analysis', 'ftuneai')  # Those that foretell seconds, with a free efficiency
SWEEP = [0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8]


def environment(folder, peer):
    "Python of a peer's environment, made when it is missing"
    where = Path(folder) / peer
    if not (where / 'bin' / 'python').exists():
        subprocess.run([sys.executable, '-m', 'venv', where], check=True)
        subprocess.run([where / 'bin' / 'python', '-m', 'pip', 'install', '-q', *PEERS[peer]], check=True)
    return where / 'bin' / 'python'


def request(rows, c, efficiency=0.5):
    "What a peer needs to know of every run"
    whole = (
        'layers hidden heads kv_heads ffn vocab seq gpus gpus_per_node tp pp dp zero micro_batch global_batch experts'
        ' topk lora_rank'.split()
    )
    params = c['layers'] * (c['layer_params'] + c['expert_params']) + c['vocab'] * c['hidden'] * np.where(
        c['tied'] > 0, 1, 2
    )
    out = [
        {k: int(c[k][i]) for k in whole}
        | dict(
            gpu=str(c['gpu'][i]),
            recompute=str(c['recompute'][i]),
            precision=str(c['precision'][i]),
            flash=bool(c['flash'][i]),
            gated_mlp=bool(c['gated_mlp'][i]),
            params=int(params[i]),
            largest_layer=int(max(c['layer_params'][i], c['vocab'][i] * c['hidden'][i])),
            efficiency=efficiency,
        )
        for i in range(len(rows))
    ]
    gpus = {n: find(n) for n in set(map(str, c['gpu']))}
    return dict(
        rows=out,
        gpus={
            n: dict(memory=g.memory, bandwidth=g.bandwidth, link=g.link_bandwidth, tflops=g.tflops['bf16'], nic=25e9)
            for n, g in gpus.items()
        },
    )


def ask(python, peer, question):
    "Answers of a peer, as arrays of bytes and seconds with nan where it has none"
    env = os.environ | {'DS_ACCELERATOR': 'cpu'}
    env.pop('PYTHONPATH', None)
    run = subprocess.run(
        [python, HERE / 'peer_estimators.py', peer],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        timeout=1200,
        env=env,
    )
    if run.returncode:
        raise RuntimeError(f'{peer} failed: {run.stderr[-600:]}')
    answer = json.loads(run.stdout.strip().splitlines()[-1])
    get = lambda k: np.array([r.get(k, np.nan) for r in answer['rows']], float)
    return get('memory'), get('seconds'), answer['version']


def rule_of_thumb(c, k, seconds, study):
    "Six operations a parameter and token (eight with recomputation) at the share of the peak that fits each study best"
    n = (
        c['layers'] * (c['layer_params'] + c['expert_params'] * c['topk'] / np.maximum(c['experts'], 1))
        + c['vocab'] * c['hidden']
    )
    work = (6 + 2 * (c['recompute'] == 'full')) * n * c['global_batch'] * c['seq'] / c['gpus'] / k['peak']
    for s in set(study):
        work[study == s] *= np.median((seconds / work)[study == s])
    return work


def errors(predicted, truth, study):
    "Runs, answers, median and 90th percentile of the relative error by study; no answer counts as an error of 100 %"
    e = np.where(np.isfinite(predicted), np.abs(predicted / truth - 1), 1.0)
    one = lambda m: dict(
        runs=int(m.sum()),
        answered=int(np.isfinite(predicted[m]).sum()),
        median=round(float(np.median(e[m])), 4),
        p90=round(float(np.quantile(e[m], 0.9)), 4),
    )
    return {s: one(study == s) for s in dict.fromkeys(study)}


def best_of(python, peer, rows, c, seconds, study):
    "A peer with, for each study, the efficiency that has the lowest median error there"
    tried = [ask(python, peer, request(rows, c, e))[1:] for e in SWEEP]
    out, chosen = np.full(len(rows), np.nan), {}
    for s in dict.fromkeys(study):
        m = study == s
        e, (guess, _) = min(
            zip(SWEEP, tried),
            key=lambda t: np.median(np.where(np.isfinite(t[1][0][m]), abs(t[1][0][m] / seconds[m] - 1), 1)),
        )
        out[m], chosen[s] = guess[m], e
    return out, tried[0][1], chosen


def tuned_peers(peers, rows, full, seconds, study):
    "Step times by peer, each with the efficiency that suits a study best, and those efficiencies"
    by, chosen = {}, {}
    for peer in TUNED:
        guess, v, efficiency = best_of(environment(peers, peer), peer, rows, full, seconds, study)
        by[f'{peer} {v}'], chosen[peer] = guess, efficiency
    return by, chosen


def time_part(path, peers):
    "Errors of step time by estimator and study"
    rows = fit_time.read_runs(path)
    c, seconds, study = (
        columns(rows),
        np.array([float(r['step_seconds']) for r in rows]),
        np.array([r['study'] for r in rows], object),
    )
    full = complete_columns(c)
    k = resolve(full, time_constants())
    derive(full, k)
    held = fit_time.cross_validate(complete_columns(c), seconds, study, fit_time.cells(rows), fit_time.read_constants())
    others, efficiency = tuned_peers(peers, rows, full, seconds, study)
    by = {
        'fsdl_tools, held-out cells': held,
        'fsdl_tools, fitted on all': step_time(c)['total'],
        **others,
        'rule of thumb 6N': rule_of_thumb(full, k, seconds, study),
    }
    return dict(runs=len(rows), efficiency=efficiency, estimators={n: errors(p, seconds, study) for n, p in by.items()})


def group_of(r):
    "Group of a run of 2023 to 2026"
    if r['kind'] == 'moe' or r['task'] == 'lora':
        return 'experts' if r['kind'] == 'moe' else 'adapters'
    if 'A100' in r['gpu']:
        return 'A100'
    if r['gpu'].startswith(('H100', 'H200')):
        return 'H100, fp8' if r['precision'] == 'fp8' else 'H100, 16 bits'
    return 'Blackwell' if r['gpu'].startswith(('B', 'G')) else 'other'


def fresh_part(peers):
    """Errors of step time on the runs of 2023 to 2026 by estimator and group; the planner's are of predictions
    without a run's cell
    """
    with open(data_path('published_runs_2026.csv'), newline='', encoding='utf-8') as f:
        rows = [r for r in csv.DictReader(f) if r['step_seconds']]
    with open(data_path('planner_errors.csv'), newline='', encoding='utf-8') as f:
        unseen = {r['run']: float(r['predicted']) for r in csv.DictReader(f) if r['what'] == 'time'}
    full = complete_columns(columns([check_row(r) for r in rows]))
    k = resolve(full, time_constants())
    derive(full, k)
    seconds, group = np.array([float(r['step_seconds']) for r in rows]), np.array([group_of(r) for r in rows], object)
    full = {n: np.broadcast_to(v, len(rows)) for n, v in full.items()}
    others, efficiency = tuned_peers(peers, rows, full, seconds, group)
    by = {
        'fsdl_tools, held-out cells': np.array([unseen[r['run']] for r in rows]),
        'fsdl_tools, fitted on all': step_time(full, ready=True)['total'],
        **others,
        'rule of thumb 6N': rule_of_thumb(full, k, seconds, group),
    }
    return dict(runs=len(rows), efficiency=efficiency, estimators={n: errors(p, seconds, group) for n, p in by.items()})


def memory_part(path, peers):
    "Errors of peak memory by public estimator and study; what each calls memory is compared with what was measured"
    with open(path or data_path('published_runs.csv'), newline='') as f:
        rows = list(csv.DictReader(f))
    rows = [
        r | dict(study=r.get('study') or r['set'])
        for r in rows
        if (r.get('peak_gib') or r.get('peak_mem_gib'))
        and float(r['gpus']) == float(r['tp']) * float(r['pp']) * float(r['cp']) * float(r['dp'])
    ]
    truth, study = (
        np.array([float(r.get('peak_gib') or r['peak_mem_gib']) for r in rows]) * GiB,
        np.array([r['study'] for r in rows], object),
    )
    c = complete_columns(columns(rows))
    derive(c, resolve(c, time_constants()))
    out = {}
    for peer in ('llm-analysis', 'deepspeed', 'accelerate'):
        memory, _, v = ask(environment(peers, peer), peer, request(rows, c))
        out[f'{peer} {v}'] = errors(memory, truth, study)
    return dict(runs=len(rows), estimators=out)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('runs', nargs='?')
    p.add_argument('--peers', default=str(Path.home() / '.cache' / 'fsdl_tools' / 'peers'))
    p.add_argument('--title', help='what the table is, for the record')
    p.add_argument('--out', default=str(HERE / 'results' / 'planner.json'))
    p.add_argument('--fresh', action='store_true', help='only the runs of 2023 to 2026; writes planner_2026.json')
    a = p.parse_args()
    if a.fresh:
        found = dict(
            date=time.strftime('%Y-%m-%d'),
            method=(
                'relative error of step time by group; a peer with a free efficiency gets the best one for each group'
                ' on these very runs'
            ),
            time=fresh_part(a.peers),
        )
        write_atomic(data_path('gpus.csv').parent / 'results' / 'planner_2026.json', json.dumps(found, indent=1) + '\n')
        return [
            print(n, {g: f"{e['median']:.1%}" for g, e in by.items()}) for n, by in found['time']['estimators'].items()
        ]
    result = dict(
        date=time.strftime('%Y-%m-%d'),
        python=platform.python_version(),
        numpy=version('numpy'),
        scipy=version('scipy'),
        table=a.title or Path(a.runs or 'published_runs.csv').name,
        method='relative error; planner cross-validated over whole (study, model, GPU count) cells, 8 folds',
        time=time_part(a.runs, a.peers),
        memory=memory_part(a.runs, a.peers),
    )
    write_atomic(a.out, json.dumps(result, indent=1) + '\n')
    for what in ('time', 'memory'):
        for name, by in result[what]['estimators'].items():
            print(
                f'{what:6} {name:28}',
                '  '.join(
                    f"{s.split('-')[0]}{'-' + s.split('-')[1][:6] if '-' in s else ''} {v['median']:.1%}"
                    for s, v in by.items()
                ),
            )


if __name__ == '__main__':
    main()
