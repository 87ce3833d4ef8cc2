"""Every strategy on every module of parallel.real, two ranks, against one process.

    python benchmarks/real_modules.py [name …]       # names begin a module's; the others keep their rows

Writes fsdl_tools/data/results/real_modules.json. Differences depend on nothing but rounding; no time is taken.
"""

import datetime, json, sys
from importlib.metadata import version
from pathlib import Path
import torch
from fsdl_tools.files import write_atomic
from fsdl_tools.parallel.ranks import RankError, on_ranks
from fsdl_tools.parallel.real import asks_unused, real_module, real_modules, real_strategies, train_real

out = Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'real_modules.json'


def row(name, strategy):
    "Largest differences over the ranks, or the reason why it was refused"
    kw = dict(find_unused_parameters=True) if asks_unused(name, strategy) else {}
    try:
        found = on_ranks(train_real, 2, name, strategy, timeout=120, **kw)
    except RankError as e:
        return dict(module=name, strategy=strategy, refused=str(e).splitlines()[0].partition('Error: ')[2])
    return dict(module=name, strategy=strategy) | {k: max(r[k] for r in found) for k in found[0]}


if __name__ == '__main__':
    torch.set_num_threads(1)
    names = [n for n in real_modules if not sys.argv[1:] or n.startswith(tuple(sys.argv[1:]))]
    before = json.loads(out.read_text())['rows'] if out.exists() else []
    rows = {(r['module'], r['strategy']): r for r in before if r['module'] in real_modules}
    for name in names:
        real_module(name)  # import once, in the parent
        for s in real_strategies:
            rows[name, s] = row(name, s)
    order = [rows[n, s] for n in real_modules for s in real_strategies if (n, s) in rows]
    versions = {p: version(p) for p in ('torch', 'timm', 'transformers')}
    write_atomic(
        out,
        json.dumps(dict(date=str(datetime.date.today()), versions=versions, ranks=2, steps=3, rows=order), indent=1)
        + '\n',
    )
    for r in order:
        print(r)
