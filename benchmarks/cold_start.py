"""How long commands take to start, and the profiles that make one of them start at once.

    python benchmarks/cold_start.py specs --minutes 8     # profile what has no row yet; call again until nothing is
    left
    python benchmarks/cold_start.py collect               # fsdl_tools/data/specs.csv, from what was profiled
    python benchmarks/cold_start.py measure --rounds 9    # fsdl_tools/data/results/cold_start.json

Progress lives in .cache/specs/, which git does not keep. Times are of whole processes, interleaved, the page cache
warm; the ratios to a Python
that does nothing are what can be compared between machines.
"""

import argparse
import csv
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

from fsdl_tools.models.zoo import known_spec

here = Path(__file__).parent
work = here.parent / '.cache' / 'specs'
data = here.parent / 'fsdl_tools' / 'data'
texts = ('name', 'source', 'kind', 'family', 'library', 'precision')
counts = 'params trainable embedding buffers buffer_bytes flops activations saved traffic active'.split()


def plain(spec):
    "A spec as a row"
    inputs = ';'.join(f'{i.name}:{"x".join(map(str, i.shape))}:{i.dtype}' for i in spec.inputs)
    row = {k: getattr(spec, k) for k in (*texts, *counts)}
    lists = {k: ';'.join(getattr(spec, k)) for k in ('uncounted', 'unused')}
    made = dict(torch=version('torch').partition('+')[0], date=str(datetime.date.today()))
    return row | lists | dict(inputs=inputs, licence=spec.licence or '') | made


def rows():
    "What is in the table already by the versions of today, and what was profiled since"
    path, found = work / 'rows.jsonl', {}
    if (data / 'specs.csv').exists():
        with open(data / 'specs.csv', newline='', encoding='utf-8') as f:
            found = {row['name']: row for row in csv.DictReader(f) if known_spec(row['name']) is not None}
    if path.exists():
        found |= {row['name']: row for row in map(json.loads, path.read_text().splitlines())}
    return list(found.values())


def specs(minutes, first=()):
    "Profile every name of the zoo that has no row yet, as the command does it"
    warnings.filterwarnings('ignore')
    from fsdl_tools.core import fix_torchvision

    fix_torchvision()
    import transformers

    from fsdl_tools.models.profile import profile
    from fsdl_tools.models.zoo import index

    transformers.logging.set_verbosity_error()
    work.mkdir(parents=True, exist_ok=True)
    end, done = time.monotonic() + 60 * minutes, {row['name'] for row in rows()}
    names = [row['name'] for row in sorted(index(), key=lambda r: (r['name'] not in first, r['library'], r['name']))]
    left = [name for name in names if name not in done]
    with open(work / 'rows.jsonl', 'a', encoding='utf-8') as out:
        for number, name in enumerate(left):
            if time.monotonic() > end:
                print(f'{len(left) - number} of {len(left)} left: call again')
                return
            try:
                row = plain(profile(name))
            except Exception as why:  # a name that the command cannot profile has no row
                row = dict(name=name, error=f'{type(why).__name__}: {" ".join(str(why).split())[:200]}')
            out.write(json.dumps(row) + '\n')
            out.flush()
    print('nothing is left')


def collect():
    "The table that the package ships"
    good = sorted((row for row in rows() if 'error' not in row), key=lambda row: row['name'])
    failed = [row['name'] for row in rows() if 'error' in row]
    with open(data / 'specs.csv', 'w', newline='', encoding='utf-8') as out:
        writer = csv.DictWriter(out, list(good[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(good)
    print(f'{len(good)} rows; {len(failed)} names cannot be profiled: {failed[:20]}')


commands = {
    'python, doing nothing': None,
    'fsdl --help': ['--help'],
    'fsdl plan gpt2-xl': ['plan', 'gpt2-xl'],
    'fsdl guide gpt2-xl': ['guide', 'gpt2-xl'],
    'fsdl zoo search vit': ['zoo', 'search', 'vit'],
    'fsdl profile resnet50': ['profile', 'resnet50'],
    'fsdl memory gpt2, first': ['memory', 'gpt2'],
    'fsdl memory gpt2, again': ['memory', 'gpt2'],
}


def seconds(name, cache):
    "One process from start to end"
    words = commands[name]
    code = 'pass' if words is None else 'from fsdl_tools.cli.main import main; main()'
    env = os.environ | dict(XDG_CACHE_HOME=cache, TERM='dumb')
    if name.endswith('first'):
        env |= dict(FSDL_KEEP='0')
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *(words or [])], env=env, check=True, capture_output=True
    )
    return time.perf_counter() - start


def measure(rounds):
    "All commands, interleaved"
    took = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix='fsdl-cold-') as cache:
        subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', 'from fsdl_tools.cli.main import main; main()', 'memory', 'gpt2'],
            env=os.environ | dict(XDG_CACHE_HOME=cache),
            check=True,
            capture_output=True,
        )
        for _ in range(rounds):
            for name in commands:
                took[name].append(seconds(name, cache))
    base = took['python, doing nothing']
    found = []
    for name, each in took.items():
        ratios = sorted(t / b for t, b in zip(each, base, strict=True))
        low, high = ratios[round(0.1 * (len(ratios) - 1))], ratios[round(0.9 * (len(ratios) - 1))]
        found.append(
            dict(
                command=name,
                seconds=statistics.median(each),
                fastest=min(each),
                ratio=statistics.median(ratios),
                low=low,
                high=high,
            )
        )
        print(
            f'{name:28} {statistics.median(each):6.2f} s, fastest {min(each):.2f} s, {statistics.median(ratios):5.1f}'
            f' ({low:.1f} to {high:.1f}) times Python alone'
        )
    note = dict(
        date=str(datetime.date.today()),
        rounds=rounds,
        cpus=os.cpu_count(),
        load=round(os.getloadavg()[0], 1),
        python=sys.version.split()[0],
    )
    (data / 'results' / 'cold_start.json').write_text(json.dumps(dict(note=note, rows=found), indent=1) + '\n')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['specs', 'collect', 'measure'])
    parser.add_argument('--minutes', type=float, default=8)
    parser.add_argument('--first', nargs='*', default=[], help='names to begin with')
    parser.add_argument('--rounds', type=int, default=9)
    given = parser.parse_args()
    if given.what == 'specs':
        specs(given.minutes, given.first)
    elif given.what == 'collect':
        collect()
    else:
        measure(given.rounds)
