"""Step time of our DataParallel against torch's DistributedDataParallel, interleaved; writes
fsdl_tools/data/results/data_parallel.json.

usage: python benchmarks/data_parallel.py [steps]
"""

import datetime, json, platform, statistics, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.parallel.ddp import strategies
from fsdl_tools.parallel.shares import sync_batchnorm
from fsdl_tools.models.tiny import TinyGPT, tiny_batch, tiny_loss, tiny_model

models = {
    'mlp 8 × 512': (lambda: nn.Sequential(*[nn.Linear(512, 512) for _ in range(8)]), lambda: torch.randn(64, 512)),
    'mlp 4 × 1536': (lambda: nn.Sequential(*[nn.Linear(1536, 1536) for _ in range(4)]), lambda: torch.randn(64, 1536)),
    'cnn with sync batch-norm': (lambda: sync_batchnorm(tiny_model('cnn')), lambda: tiny_batch('cnn', 32)[0]),
    'gpt 4 layers of 256': (
        lambda: TinyGPT(vocab=1000, d=256, layers=4, ctx=64),
        lambda: torch.randint(0, 1000, (4, 64)),
    ),
}


def compare(name, steps):
    "Run on every rank: seconds a step, our DDP and torch's in turn"
    make, data = models[name]
    torch.manual_seed(0)
    nets, x, times = {k: wrap(make()) for k, wrap in strategies.items()}, data(), {k: [] for k in strategies}
    opts = {k: torch.optim.SGD(m.parameters(), lr=1e-3) for k, m in nets.items()}
    for i in range(steps + 3):
        for k in sorted(nets, reverse=i % 2):
            dist.barrier()
            t0 = time.perf_counter()
            opts[k].zero_grad()
            nets[k](x).square().mean().backward()
            opts[k].step()
            dist.barrier()
            times[k].append(time.perf_counter() - t0)
    ratios = [a / b for a, b in zip(*[times[k][3:] for k in strategies])]
    return dict(
        model=name,
        parameters=sum(p.numel() for p in nets['torch'].parameters()),
        **{f'{k}_ms': 1e3 * statistics.median(v[3:]) for k, v in times.items()},
        ratio=statistics.median(ratios),
        steps=steps,
    )


if __name__ == '__main__':
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    rows = [dict(ranks=n) | on_ranks(compare, n, name, steps, timeout=300)[0] for name in models for n in (2, 4)]
    where = (
        f'gloo, {platform.machine()} CPU, one thread a rank, PyTorch {torch.__version__}, Python'
        f' {platform.python_version()}, {steps} steps of each, taken in turn; ratio is the median of pairs'
    )
    out = Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'data_parallel.json'
    out.write_text(
        json.dumps(
            dict(date=datetime.date.today().isoformat(), conditions=where, rows=rows), indent=1, ensure_ascii=False
        )
        + '\n'
    )
    for r in rows:
        print(r)
