"""Step time of our tensor parallelism against DTensor's and one process, and bytes of a layer over the formula.

    python benchmarks/tensor.py speed bytes      # any of the parts; the others keep their results

Writes fsdl_tools/data/results/tensor.json.
"""

import datetime, json, statistics, sys, time
from importlib.metadata import version
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from fsdl_tools.parallel.collectives import CommCounter
from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.files import write_atomic
from fsdl_tools.models.gpt import GPT, GPTConfig, lm_loss
from fsdl_tools.parallel.tensor import tensor_parallel, vocab_parallel_loss
from fsdl_tools.models.tiny import rule_batch
from fsdl_tools.parallel.dtensor import layer_traffic, parallelize, traffic

out = Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'tensor.json'
config = GPTConfig(
    layers=4, hidden=256, heads=8, ctx=128, vocab=512
)  # large enough for a step to be more than overhead
couples = {'tensor': ('tensor', False), 'sequence': ('sequence', True)}  # name -> our mode, DTensor's sequence_parallel


def seconds(model, loss, x, y):
    "Forward, backward and an optimizer step"
    dist.barrier()
    start = time.perf_counter()
    loss(model(x), y).backward()
    model.opt.step()
    model.opt.zero_grad()
    dist.barrier()
    return time.perf_counter() - start


def race(mode, sequence_parallel, rounds):
    "Seconds of a step, ours and theirs alternating"
    mesh, (x, y) = init_device_mesh('cpu', (dist.get_world_size(),)), rule_batch(0, 4, 128, config.vocab)
    runs = [
        (tensor_parallel(GPT(config), mode), vocab_parallel_loss),
        (parallelize(GPT(config), mesh, sequence_parallel), lm_loss),
    ]
    for m, _ in runs:
        m.opt = torch.optim.AdamW(m.parameters())
    times, sent = ([], []), []
    for i in range(rounds + 3):
        for k in (0, 1) if i % 2 else (1, 0):
            t = seconds(*runs[k], x, y)
            if i >= 3:
                times[k].append(t)
    for m, loss in runs:
        with CommCounter() as c:
            loss(m(x), y).backward()
        sent.append(c.total)
    return dict(
        ours=statistics.median(times[0]),
        theirs=statistics.median(times[1]),
        ratio=statistics.median(a / b for a, b in zip(*times)),
        sent_ours=sent[0],
        sent_theirs=sent[1],
    )


def speed():
    return [
        dict(couple=c, ranks=2, rounds=25) | on_ranks(race, 2, *args, 25, timeout=280)[0] for c, args in couples.items()
    ]


def counted():
    rows = []
    for n in (2, 4):
        for mode, b in on_ranks(traffic, n, config, timeout=200)[0].items():
            want = sum(
                v
                for _, v in layer_traffic(
                    8 * 64, config.hidden, n, {'dtensor': 'tensor', 'dtensor sequence': 'sequence'}.get(mode, mode)
                ).values()
            )
            rows.append(
                dict(
                    mode=mode,
                    ranks=n,
                    calls=b['calls'],
                    counted=b['total'],
                    formula=round(want),
                    ratio=b['total'] / want,
                    wire_over_counted=b['wire'] / b['total'],
                )
            )
    return rows


if __name__ == '__main__':
    torch.set_num_threads(1)
    result = json.loads(out.read_text()) if out.exists() else {}
    for name in sys.argv[1:] or ['speed', 'bytes']:
        result[name] = dict(
            date=str(datetime.date.today()),
            torch=version('torch'),
            python=sys.version.split()[0],
            machine='2 cores, gloo, one thread a rank',
            model=config.to_dict(),
            rows={'speed': speed, 'bytes': counted}[name](),
        )
        write_atomic(out, json.dumps(result, indent=1) + '\n')
        for r in result[name]['rows']:
            print(r, flush=True)
