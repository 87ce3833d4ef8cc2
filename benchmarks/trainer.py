"""The trainer's step against a loop written by hand in the same strategy, and what metrics and checkpoints cost.

    python benchmarks/trainer.py steps overhead       # any of the parts; the others keep their results

Both sides train gpt-mini on the same data in the same processes, in turn. Writes fsdl_tools/data/results/trainer.json.
"""

import datetime, json, statistics, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.utils import clip_grad_norm_, get_total_norm
from fsdl_tools.training.data import Feed
from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.files import write_atomic
from fsdl_tools.models.gpt import GPT, keep_layers, lm_loss
from fsdl_tools.parallel.dtensor import parallelize
from fsdl_tools.training.trainer import Trainer
from fsdl_tools.training.config import TrainConfig

out = Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'trainer.json'
run = dict(model='gpt-mini', global_batch=16, seq=128, steps=10**6, lr_schedule='constant')


def plain(wrap):
    "A loop over one batch a rank"
    model = wrap(GPT('gpt-mini'))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(batches):
        ((x, y),) = batches
        opt.zero_grad()
        loss = lm_loss(model(x), y)
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        loss = loss.detach()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        return loss.item(), getattr(norm, 'full_tensor', lambda: norm)().item()

    return step


def sharded(model):
    for block in model.layers.values():
        fully_shard(block)
    return fully_shard(model)


def pipeline():
    "Two stages under torch's schedule"
    rank, n = dist.get_rank(), 4
    stage = keep_layers(GPT('gpt-mini'), *[(0, 3), (3, 6)][rank])
    opt = torch.optim.AdamW(stage.parameters(), lr=1e-3)
    schedule = Schedule1F1B(PipelineStage(stage, rank, 2, torch.device('cpu')), n, lm_loss)

    def step(batches):
        x, y = (torch.cat(t) for t in zip(*batches))
        opt.zero_grad()
        losses = []
        schedule.step(
            *[x] if rank == 0 else [], target=y if rank else None, losses=losses if rank else None, return_outputs=False
        )
        total = get_total_norm([p.grad for p in stage.parameters()]) ** 2
        dist.all_reduce(total)
        torch._foreach_mul_([p.grad for p in stage.parameters()], (1 / (total.sqrt() + 1e-6)).clamp(max=1.0))
        opt.step()
        loss = torch.stack([v.detach() for v in losses]).mean() if rank else torch.zeros(())
        dist.all_reduce(loss)
        return loss.item(), total.sqrt().item()

    return step


strategies = {
    'dp1': lambda: plain(lambda m: m),
    'dp2': lambda: plain(torch.nn.parallel.DistributedDataParallel),
    'dp2,zero=3': lambda: plain(sharded),
    'dp1,tp2': lambda: plain(lambda m: parallelize(m, init_device_mesh('cpu', (2,)))),
    'dp1,pp2,micro_batch=4': pipeline,
}


def race(layout, rounds):
    """Seconds of a step, the trainer's and by hand, alternating; cpu_ratio compares processor seconds, which other
    load does not change
    """
    torch.set_num_threads(1)
    ours, hand = Trainer(TrainConfig(layout=layout, **run)), strategies[layout]()
    feed = lambda: iter(Feed(ours.data, 16, ours.layout.micro_batch, ours.run.at['dp'], ours.layout.dp))
    sides, times, work, losses = [(feed(), ours.one_step), (feed(), hand)], ([], []), ([], []), ([], [])
    for i in range(rounds + 3):
        for k in (0, 1) if i % 2 else (1, 0):
            if dist.is_initialized():
                dist.barrier()
            start, cpu = time.perf_counter(), time.process_time()
            losses[k].append(sides[k][1](next(sides[k][0]))[0])
            if dist.is_initialized():
                dist.barrier()
            if i >= 3:
                times[k].append(time.perf_counter() - start)
                work[k].append(time.process_time() - cpu)
    assert max(abs(a / b - 1) for a, b in zip(*losses)) < 1e-3, 'they do not train the same'
    ratios = sorted(a / b for a, b in zip(*times))
    return dict(
        layout=layout,
        rounds=rounds,
        ours=statistics.median(times[0]),
        by_hand=statistics.median(times[1]),
        ratio=statistics.median(ratios),
        cpu_ratio=sum(work[0]) / sum(work[1]),
        low=ratios[len(ratios) // 4],
        high=ratios[3 * len(ratios) // 4],
    )


rounds = 15


def steps():
    return [
        (
            on_ranks(race, 2, s, rounds, timeout=500)[0]
            if s != 'dp1'
            else on_ranks(race, 1, s, rounds, timeout=500, init=False)[0]
        )
        for s in strategies
    ]


def block(trainer, n):
    "Seconds of the next n steps"
    trainer.c = trainer.c.replace(steps=trainer.step + n)
    trainer._close = lambda: None  # the last checkpoint is waited for at the end of a run, not in each block
    start = time.perf_counter()
    trainer._train()  # train() also gives the folder free at its end
    return time.perf_counter() - start


def overhead():
    "Blocks of six steps: without a folder, with metrics, with a checkpoint in each block"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        kinds = {
            'nothing': {},
            'metrics': dict(folder=f'{d}/m'),
            'metrics and a checkpoint every 6 steps': dict(folder=f'{d}/c', save_every=3),
        }
        base = run | dict(holdout=0.0)
        trainers = {k: Trainer(TrainConfig(layout='dp1', **base, **kw)) for k, kw in kinds.items()}
        times = {k: [] for k in kinds}
        for i in range(6):
            for k in list(kinds)[:: 1 if i % 2 else -1]:
                times[k].append(block(trainers[k], 6))
        for t in trainers.values():
            if t.saver:
                t.saver.wait()
    rest = {k: [t / n for t, n in zip(times[k][1:], times['nothing'][1:])] for k in kinds}
    return [dict(kept=k, seconds=statistics.median(times[k][1:]) / 6, ratio=statistics.median(rest[k])) for k in kinds]


if __name__ == '__main__':
    result = json.loads(out.read_text()) if out.exists() else {}
    for part in sys.argv[1:] or ['steps', 'overhead']:
        result[part] = dict(
            date=str(datetime.date.today()),
            torch=version('torch'),
            python=sys.version.split()[0],
            machine='2 cores, gloo, one thread a rank',
            model='gpt-mini, 16 sequences of 128 tokens',
            rows={'steps': steps, 'overhead': overhead}[part](),
        )
        write_atomic(out, json.dumps(result, indent=1) + '\n')
        for r in result[part]['rows']:
            print(r, flush=True)
