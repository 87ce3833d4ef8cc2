"""Train with the real Horovod in its side environment (built if need be) and record the run in
fsdl_tools/data/horovod_runs.csv.

usage: python benchmarks/horovod_run.py
"""

import csv, datetime, json, platform
from pathlib import Path
from fsdl_tools.environments import build_env, run_in

ROOT = Path(__file__).parent.parent


def chapter(*words):
    "What the cells of the chapter on collectives that hold `words` define"
    scope = {}
    for c in json.loads((ROOT / 'nbs' / 'parallel/02_collectives.ipynb').read_text())['cells']:
        src = ''.join(c['source'])
        if c['cell_type'] == 'code' and any(w in src for w in words):
            exec('import torch\n' + src, scope)
    return scope


if __name__ == '__main__':
    found = chapter('horovod_code = ', 'def horovod_reference')
    build_env('horovod')
    run = run_in('horovod', found['horovod_code'], dict(ranks=2, steps=20), timeout=300)
    ref = found['horovod_reference'](20)
    row = dict(
        date=datetime.date.today().isoformat(),
        horovod=run['horovod'],
        torch=run['torch'],
        python=platform.python_version(),
        ranks=2,
        steps=20,
        largest_relative_difference=f'{max(abs(a - b) / b for a, b in zip(run["losses"], ref, strict=True)):.1e}',
        losses=' '.join(map(repr, run['losses'])),
        conditions=(
            f'gloo controller, {platform.machine()} CPU, one thread a rank; MLP 20-64-10, batch 16, SGD 0.1 with'
            ' momentum 0.9'
        ),
        source='benchmarks/horovod_run.py',
    )
    with open(ROOT / 'fsdl_tools' / 'data' / 'horovod_runs.csv', 'w', newline='') as f:
        w = csv.DictWriter(f, row, lineterminator='\n')
        w.writeheader()
        w.writerow(row)
    print(row)
