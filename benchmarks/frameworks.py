"""Time every framework on the tasks of 01_frameworks and write fsdl_tools/data/results/frameworks.json.

python benchmarks/frameworks.py [--batches 8 64 512] [--steps 63] [--models mlp cnn] [--skip torch-compile]
[--imports 3] [--add]
One core, interleaved laps, CPU seconds; import times in fresh processes. Takes several minutes.
"""

import argparse, datetime, importlib.metadata, json, os, platform, subprocess, sys
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
from fsdl_tools.files import write_atomic
from fsdl_tools.frameworks.task import make_task, models
from fsdl_tools.frameworks.runners import missing
from fsdl_tools.frameworks.interface import runners
from fsdl_tools.frameworks.race import race, race_table

packages = [
    'torch',
    'lightning',
    'tensorflow-cpu',
    'tensorflow',
    'keras',
    'jax',
    'jaxlib',
    'flax',
    'dm-haiku',
    'optax',
    'numpy',
]
modules = {
    'torch': 'torch',
    'lightning': 'lightning',
    'keras': 'keras',
    'tensorflow': 'tensorflow',
    'jax': 'jax',
    'haiku': 'haiku',
    'flax': 'flax.nnx',
}


def versions():
    "Installed versions of the frameworks"
    found = {}
    for p in packages:
        try:
            found[p] = importlib.metadata.version(p)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def cpu_name():
    "What the processor calls itself"
    info = Path('/proc/cpuinfo')
    names = (
        [l.split(':')[1].strip() for l in info.read_text().splitlines() if l.startswith('model name')]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def import_seconds(module, times):
    "CPU seconds, best of several imports, each in a fresh process"
    code = (
        'import time; t = time.process_time(); from fsdl_tools.core import fix_torchvision; fix_torchvision() if'
        f' {module == "lightning"} else None; import {module}; print(time.process_time() - t)'
    )
    return min(
        float(
            subprocess.run(
                [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=300
            ).stdout.split()[-1]
        )
        for _ in range(times)
    )


def measure(model, batch, steps, names):
    "The final standings of one race"
    for standings in race(make_task(model, steps=steps, batch=batch), names):
        pass
    print(f'{model}, batch {batch}\n{race_table(standings)}\n', flush=True)
    return [dict(model=model, batch=batch, steps=steps) | s.to_dict() for s in standings]


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument('--batches', type=int, nargs='+', default=[8, 64, 512])
    a.add_argument('--steps', type=int, default=63)
    a.add_argument('--models', nargs='*', choices=list(models), default=['mlp', 'cnn'])
    a.add_argument('--skip', nargs='*', choices=list(runners), default=[])
    a.add_argument(
        '--imports', type=int, default=3, help='times each framework is imported; 0 keeps the times in the file'
    )
    a.add_argument('--add', action='store_true', help='keep the other races that are in the file')
    a.add_argument(
        '--out', type=Path, default=Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'frameworks.json'
    )
    args = a.parse_args()
    names = [n for n in runners if n not in args.skip and not missing(n)]
    races = [r for m in args.models for b in args.batches for r in measure(m, b, args.steps, names)]
    old = json.loads(args.out.read_text()) if args.out.exists() and args.add else {}
    if old and old['versions'] != versions():
        raise SystemExit('other versions are installed now than when the file was written: measure everything again')
    fresh = {(r['model'], r['batch']) for r in races}
    races = sorted(
        [r for r in old.get('races', []) if (r['model'], r['batch']) not in fresh] + races,
        key=lambda r: (r['model'] != 'mlp', r['model'], r['batch']),
    )
    imports = (
        {n: import_seconds(m, args.imports) for n, m in modules.items() if not missing(n)}
        if args.imports
        else old.get('import_seconds', {})
    )
    result = dict(
        date=datetime.date.today().isoformat(),
        machine=cpu_name(),
        python=platform.python_version(),
        versions=versions(),
        conditions=(
            f'one core, float32, 3 steps of warm-up, then 5 interleaved laps; medians; per CPU second, because the'
            f' machine was shared with other work'
        ),
        batches=sorted({r['batch'] for r in races}),
        import_seconds=imports,
        races=races,
    )
    write_atomic(args.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
