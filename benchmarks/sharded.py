"""DeepSpeed and FairScale against one process, and the step time of our ZeRO against PyTorch's.

    python benchmarks/sharded.py speed deepspeed fairscale      # any of the parts; the others keep their results

DeepSpeed and FairScale run in the side environment `sharding` (fsdl_tools.environments.build('sharding')). Writes
fsdl_tools/data/results/sharded.json.
"""

import datetime, json, statistics, sys, time
from importlib.metadata import version
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from fsdl_tools.parallel.collectives import CommCounter
from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.files import write_atomic
from fsdl_tools.parallel.ddp import DataParallel
from fsdl_tools.models.tiny import TinyGPT, adamw
from fsdl_tools.environments import run_in
from fsdl_tools.parallel.zero import Zero1, Zero2, Zero3
from fsdl_tools.parallel.zero_libraries import ddp, fsdp, zero_redundancy

out = Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'sharded.json'
couples = {
    'ZeRO-1': ((Zero1, adamw), (ddp, zero_redundancy)),
    'ZeRO-2': ((Zero2, adamw), (ddp, zero_redundancy)),
    'ZeRO-3': ((Zero3, adamw), (fsdp, adamw)),
    'DDP': ((DataParallel, adamw), (ddp, adamw)),
}


def make(name):
    "A model large enough for a step to be more than overhead"
    torch.manual_seed(0)
    if name == 'gpt':
        return TinyGPT(vocab=512, d=128, heads=4, layers=4, ctx=64), torch.randint(0, 512, (8, 64))
    return nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(512, 512), nn.ReLU())]), torch.randn(32, 512)


def race(name, couple, rounds):
    "Seconds of a step, ours and theirs alternating"
    runs = []
    for wrap, opt in couples[couple]:
        module, x = make(name)
        model = wrap(module)
        runs.append((model, opt(model.parameters()), x))
    times, sent = ([], []), {}
    for i in range(rounds + 3):
        for k, (model, opt, x) in list(enumerate(runs))[:: 1 if i % 2 else -1]:
            dist.barrier()
            start = time.perf_counter()
            with CommCounter() as c:
                model(x).square().mean().backward()
                opt.step()
                opt.zero_grad()
            dist.barrier()
            if i >= 3:
                times[k].append(time.perf_counter() - start)
            sent[k] = c.total
    return dict(
        ours=statistics.median(times[0]),
        theirs=statistics.median(times[1]),
        ratio=statistics.median(a / b for a, b in zip(*times)),
        sent_ours=sent[0],
        sent_theirs=sent[1],
    )


def speed():
    return [
        dict(couple=c, model=m, ranks=2, rounds=25) | on_ranks(race, 2, m, c, 25, timeout=280)[0]
        for m in ('mlp', 'gpt')
        for c in couples
    ]


def deepspeed():
    rows = run_in(
        'sharding',
        'fsdl_tools.parallel.zero_libraries:run_deepspeed',
        dict(ranks=2, models=['mlp', 'cnn', 'gpt'], stages=[0, 1, 2, 3]),
        timeout=560,
    )
    return rows + run_in(
        'sharding',
        'fsdl_tools.parallel.zero_libraries:run_deepspeed',
        dict(ranks=1, models=['mlp'], stages=[2], offload=True),
        timeout=560,
    )


def fairscale():
    return run_in(
        'sharding',
        'fsdl_tools.parallel.zero_libraries:run_fairscale',
        dict(ranks=2, models=['mlp', 'cnn', 'gpt']),
        timeout=560,
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    result = json.loads(out.read_text()) if out.exists() else {}
    for part in sys.argv[1:] or ['speed', 'deepspeed', 'fairscale']:
        result[part] = dict(
            date=str(datetime.date.today()),
            torch=version('torch'),
            python=sys.version.split()[0],
            machine='2 cores, gloo, one thread a rank',
            rows={'speed': speed, 'deepspeed': deepspeed, 'fairscale': fairscale}[part](),
        )
        write_atomic(out, json.dumps(result, indent=1) + '\n')
        for r in result[part]['rows']:
            print(r, flush=True)
