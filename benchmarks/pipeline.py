"""Step time of our pipeline over PyTorch's, and the measured bubble over the simulated one.

    python benchmarks/pipeline.py speed bubble      # any of the parts; the others keep their results

Writes fsdl_tools/data/results/pipeline.json.
"""

import datetime, json, statistics, sys, time
from importlib.metadata import version
from pathlib import Path
import torch
import torch.distributed as dist
import torch.distributed.pipelining
from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.files import write_atomic
from fsdl_tools.models.gpt import gpt_config
from fsdl_tools.parallel.schedules import bubble_formula, simulate
from fsdl_tools.parallel.pipeline import sleep_trace
from fsdl_tools.parallel.pipeline_gpt import gpt_step, torch_step
from fsdl_tools.models.tiny import adamw, rule_batch

out = Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'pipeline.json'


def race(name, config, m, virtual, rounds):
    "Seconds of a step, ours and PyTorch's alternating"
    c, runs = gpt_config(config), []
    for make in (gpt_step, torch_step):
        modules, step, _ = make(name, m, virtual, c, 16, False)
        runs.append((step, adamw([p for x in modules for p in x.parameters()])))
    x, y = rule_batch(0, 16, c.ctx)
    times = [], []
    for i in range(rounds + 3):
        for k, (step, opt) in list(enumerate(runs))[:: 1 if i % 2 else -1]:
            dist.barrier()
            start = time.perf_counter()
            step(x, y)
            opt.step()
            opt.zero_grad()
            dist.barrier()
            if i >= 3:
                times[k].append(time.perf_counter() - start)
    return dict(
        ours=statistics.median(times[0]),
        theirs=statistics.median(times[1]),
        ratio=statistics.median(a / b for a, b in zip(*times)),
    )


def speed():
    cases = [('gpipe', 1), ('1f1b', 1), ('interleaved', 2)]
    return [
        dict(schedule=n, model=c, ranks=2, m=8, rounds=10) | on_ranks(race, 2, n, c, 8, v, 10, timeout=400)[0]
        for c in ('gpt-tiny', 'gpt-mini')
        for n, v in cases
    ]


def bubble():
    rows = []
    for n, v in (('naive', 1), ('gpipe', 1), ('1f1b', 1), ('interleaved', 2), ('zb1p', 1)):
        for m in (4, 8, 16):
            t = sleep_trace(n, 4, m, v, 0.04, 0.08, 3)
            rows.append(
                dict(
                    schedule=n,
                    ranks=4,
                    m=m,
                    formula=bubble_formula(n, 4, m, v),
                    simulated=simulate(t.timetable).ratio,
                    measured=t.ratio,
                    ratio=t.ratio / simulate(t.timetable).ratio,
                    sleep='40 and 80 ms, best of 3 steps',
                )
            )
    return rows


if __name__ == '__main__':
    torch.set_num_threads(1)
    result = json.loads(out.read_text()) if out.exists() else {}
    for part in sys.argv[1:] or ['speed', 'bubble']:
        result[part] = dict(
            date=str(datetime.date.today()),
            torch=version('torch'),
            python=sys.version.split()[0],
            machine='2 cores, gloo, one thread a rank',
            rows={'speed': speed, 'bubble': bubble}[part](),
        )
        write_atomic(out, json.dumps(result, indent=1) + '\n')
        for r in result[part]['rows']:
            print(r, flush=True)
