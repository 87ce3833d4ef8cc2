"""Other tools on the loops with planted faults: what TraceML says of each, and what Holistic Trace Analysis reads in
a trace

    pip install traceml-ai==0.5.0 HolisticTraceAnalysis==0.5.0     # into an environment of their own that has
    fsdl_tools
    python benchmarks/diagnose_peers.py [--only NAME ...]

TraceML names one of a few classes. It is counted as right where the planted fault belongs to the class it names,
which asks
less of it than of diagnose. The result is fsdl_tools/data/results/diagnose_peers.json.
"""

import argparse
import datetime
import gzip
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import diagnose as planted  # noqa: E402

TRACE = HERE.parent / 'fsdl_tools/data/results/gpu_trace.json.gz'
STEPS = 80  # TraceML wants 20 to be confident
CLASSES = {
    'INPUT_BOUND': {'slow decoding', 'too few workers', 'one slow worker', 'handing over'},
    'RESIDUAL_HEAVY': {
        'checkpoint',
        'printing',
        'evaluation',
        'reading results',
        'sleeping',
        'garbage collection',
        'copying weights',
        'disk',
        'clipping',
        'casts',
        'barrier',
        'small operations',
        'allocator',
        'recompiling',
    },
    'COMPUTE_BOUND': {
        'optimizer',
        'unfused attention',
        'recomputation',
        'communication',
        'small operations',
        'allocator',
        'recompiling',
        planted.nothing,
    },
    'BALANCED': {planted.nothing},
    'NO_CLEAR_PERFORMANCE_BOTTLENECK': {planted.nothing},
}


def train(name):
    "Under TraceML: the loop of a case, again and again until there were enough steps"
    import torch
    import torch.distributed as dist
    import traceml_ai

    torch.set_num_threads(1)
    loop, _, ranks = planted.CASES.get(name) or (planted.HEALTHY[name], planted.nothing, 1)
    if ranks > 1:
        dist.init_process_group('gloo')
    traceml_ai.init(mode='auto')
    planted.around = traceml_ai.trace_step
    for _ in range(max(1, STEPS // getattr(loop, 'steps', 6))):
        loop()


def of_traceml(name):
    "(class, why) that TraceML gives a case"
    _, expected, ranks = planted.CASES.get(name) or (None, planted.nothing, 1)
    with tempfile.TemporaryDirectory() as d:
        words = [
            Path(sys.executable).parent / 'traceml',
            'run',
            __file__,
            '--logs-dir',
            d,
            '--run-name',
            'case',
            '--nproc-per-node',
            str(ranks),
        ]
        done = subprocess.run([*words, '--args', '--train', name], capture_output=True, text=True, timeout=600, cwd=d)
        found = list(Path(d).rglob('final_summary.json'))
        if not found:
            raise SystemExit(f'{name}: {done.stdout[-600:]}{done.stderr[-600:]}')
        said = json.loads(found[0].read_text())['primary_diagnosis']
    kind = said['kind']
    right = expected == 'slow rank' if 'STRAGGLER' in kind else expected in CLASSES.get(kind, ())
    return dict(name=name, expected=expected, said=kind, why=said['summary'], right=right)


def of_hta():
    """Microseconds in which the GPU was idle, and why, as Holistic Trace Analysis has it, of the trace that ships
    with the library
    """
    from hta.trace_analysis import TraceAnalysis

    trace = json.loads(gzip.decompress(TRACE.read_bytes()))
    events = [e for e in trace['traceEvents'] if e.get('ph') == 'X']
    for e in events:
        e.setdefault('args', {})
        if e['cat'] in ('kernel', 'gpu_memcpy', 'gpu_memset'):
            e['args'] |= dict(stream=e['tid'], device=0)  # left out of the shipped file
    begin, end = min(e['ts'] for e in events), max(e['ts'] + e['dur'] for e in events)
    step = dict(
        ph='X',
        cat='user_annotation',
        name='ProfilerStep#1',
        pid=events[0]['pid'],
        tid=events[0]['tid'],
        ts=begin,
        dur=end - begin,
        args={},
    )
    with tempfile.TemporaryDirectory() as d:
        Path(d, 'trace.json').write_text(
            json.dumps(dict(traceEvents=[*events, step], distributedInfo=dict(rank=0, world_size=1)))
        )
        reasons = TraceAnalysis(trace_dir=d).get_idle_time_breakdown(visualize=False)[0]
    return {r.idle_category: float(r.idle_time) for r in reasons.itertuples()}


def of_hta_on_cpu():
    "What Holistic Trace Analysis says of a trace without a GPU"
    from hta.trace_analysis import TraceAnalysis

    from fsdl_tools.training.traces import profiled

    with tempfile.TemporaryDirectory() as d:
        events = profiled(planted.CASES['slow decode'][0])
        Path(d, 'trace.json').write_text(
            json.dumps(dict(traceEvents=events, distributedInfo=dict(rank=0, world_size=1)))
        )
        try:
            return str(TraceAnalysis(trace_dir=d).get_temporal_breakdown(visualize=False).to_dict('records'))
        except Exception as e:
            return f'{type(e).__name__}: {e}'  # what a user would see


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--only', nargs='*', metavar='NAME')
    p.add_argument('--train', metavar='NAME', help='what TraceML runs')
    p.add_argument('--out', type=Path, default=HERE.parent / 'fsdl_tools/data/results/diagnose_peers.json')
    a = p.parse_args()
    if a.train:
        train(a.train)
        return
    versions = {n: importlib.metadata.version(n) for n in ('traceml-ai', 'HolisticTraceAnalysis', 'torch')}
    names = [*planted.CASES, *planted.HEALTHY]
    rows = json.loads(a.out.read_text())['traceml'] if a.only and a.out.exists() else []
    hta = dict(idle=of_hta(), without_gpu=of_hta_on_cpu())
    for name in a.only or names:
        rows = [r for r in rows if r['name'] != name] + [of_traceml(name)]
        print(rows[-1], file=sys.stderr, flush=True)
        rows.sort(key=lambda r: names.index(r['name']))
        found = dict(date=datetime.date.today().isoformat(), versions=versions, steps=STEPS, hta=hta, traceml=rows)
        a.out.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
