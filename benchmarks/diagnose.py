"""Faults planted in training loops: does diagnose name them first, leave healthy loops alone, and predict what
taking them out gains?

    python benchmarks/diagnose.py [--only NAME ...] [--repeats 5]

Each case runs in a process of its own, so that none finds what another left in the memory of its process. The result is
fsdl_tools/data/results/diagnose.json. The tests take their cases from here, and so does benchmarks/diagnose_peers.py.
"""

import argparse
import contextlib
import copy
import datetime
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.training.clock import _without
from fsdl_tools.training.diagnose import Diagnosis, _timed, _watched, diagnose, nothing


def burn(seconds):
    "Work of a CPU for a while"
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class Pictures(Dataset):
    def __init__(self, n=64, cost=0.0, slow_worker=None, dtype=torch.float32):
        self.n, self.cost, self.slow_worker, self.dtype = n, cost, slow_worker, dtype

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        info = torch.utils.data.get_worker_info()
        if self.cost and (self.slow_worker is None or info.id == self.slow_worker):
            time.sleep(self.cost)
        return torch.full((3, 24, 24), i / self.n, dtype=self.dtype), i % 10


def net(depth=2):
    return nn.Sequential(
        nn.Conv2d(3, 24, 3),
        nn.ReLU(),
        *[nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()) for _ in range(depth)],
        nn.Flatten(),
        nn.Linear(24 * 22 * 22, 32),
        nn.Linear(32, 10),
    )


around = lambda model: contextlib.nullcontext()  # each step runs inside it; another tool may put its own here


class Loop:
    "A training loop with hooks for faults; made anew for each call"

    def __init__(
        self,
        data=None,
        workers=0,
        batch=8,
        model=None,
        opt=torch.optim.SGD,
        each=None,
        call=None,
        before=None,
        wrap=None,
        steps=8,
        **kw,
    ):
        self.data, self.workers, self.batch, self.make, self.opt, self.each, self.before, self.steps, self.kw = (
            data or Pictures(),
            workers,
            batch,
            model or net,
            opt,
            each,
            before,
            steps,
            kw,
        )
        self.call, self.wrap = call or (lambda model, x: model(x)), wrap

    def __call__(self):
        torch.manual_seed(0)
        model = self.make()
        opt = self.opt(model.parameters(), lr=1e-3, **self.kw)
        for step, (x, y) in enumerate(DataLoader(self.data, self.batch, num_workers=self.workers)):
            if step >= self.steps:
                break
            with around(model):
                if self.before:
                    x = self.before(x)
                opt.zero_grad()
                loss = F.cross_entropy(self.call(model, x), y)
                loss.backward()
                if self.each:
                    self.each(step, model, opt, loss)
                opt.step()


@contextlib.contextmanager
def no_output():
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def save(times, every=1):
    def each(step, model, opt, loss):
        if step % every:
            return
        with tempfile.TemporaryDirectory() as d:
            for i in range(times):
                torch.save(dict(model=model.state_dict(), opt=opt.state_dict()), f'{d}/{i}')

    return each


def say(lines):
    text = [[i / 7 for i in range(40)] for _ in range(8)]

    def each(step, model, opt, loss):
        with no_output():
            for _ in range(lines):
                print(text)

    return each


def evaluate(step, model, opt, loss):
    model.eval()
    with torch.no_grad():
        for x, y in DataLoader(Pictures(48), 16):
            model(x)
    model.train()


def clip_by_hand(step, model, opt, loss):
    for _ in range(40):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)


def read_all(step, model, opt, loss):
    for _ in range(20_000):
        loss.item()


def weights_by_hand(step, model, opt, loss):
    with torch.no_grad():
        for p in model.parameters():
            for row in p.view(-1)[:2400]:
                row.sub_(1e-6)


def average(step, model, opt, loss):
    for _ in range(8):
        copy.deepcopy(model)


def collect(step, model, opt, loss):
    gc.collect()


def to_disk(step, model, opt, loss):
    with tempfile.TemporaryFile() as f:
        for _ in range(12):
            f.write(bytes(1 << 20))
            f.flush()
            os.fsync(f.fileno())


class Attention(nn.Module):
    def __init__(self, fused=False):
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(32, 96), nn.Linear(32, 10), fused

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.fused:
            a = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        else:
            a = (
                torch.softmax(
                    (q @ k.transpose(1, 2) / 32**0.5).masked_fill(
                        torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1), -torch.inf
                    ),
                    -1,
                )
                @ v
            )
        return self.out(a.mean(1))


class Tokens(Dataset):
    def __init__(self, length=384):
        self.length = length

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return torch.full((self.length, 32), i / 64), i % 10


class Recomputing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = (
            nn.Sequential(*[nn.Sequential(nn.Linear(1728, 512), nn.GELU(), nn.Linear(512, 1728)) for _ in range(3)]),
            nn.Linear(1728, 10),
        )

    def forward(self, x):
        x = x.flatten(1)
        for block in self.body:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def recompiling():
    "Another length in each step, of a function that is new each time"
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

    def step(x):
        return model(x).sum()

    fresh = types.FunctionType(
        step.__code__.replace(co_name=f'step_{time.time_ns()}'), globals(), 'step', None, step.__closure__
    )
    fast = torch.compile(fresh, backend='eager', dynamic=False)
    for n in range(2, 8):
        with around(model):
            fast(torch.randn(n, 16)).backward()


def new_buffers(x):
    for _ in range(6):
        torch.ones(24_000_000)  # 96 MB that the system clears page by page
    return x


def many_small(model, x):
    "A recurrent network by hand"
    h = x.flatten(1)[:, :16]
    for _ in range(600):
        h = torch.tanh(h * 0.5 + 0.1)
    return model(x) + h.mean()


def ddp(slow=None, barrier=0, bucket=25.0, sync_often=False, burn_for=0.02):
    def loop():
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(
            nn.Sequential(*[nn.Linear(384, 384) for _ in range(4)]), bucket_cap_mb=bucket
        )
        opt = torch.optim.SGD(model.parameters(), lr=0.01)
        x = torch.randn(16 if sync_often else 192, 384)
        for step in range(6):
            with around(model):
                if dist.get_rank() == slow:
                    time.sleep(burn_for)
                for _ in range(barrier):
                    dist.barrier()
                for _ in range(8 if sync_often else 1):
                    model(x).square().mean().backward()
                opt.step()
                opt.zero_grad()

    return loop


# name -> (loop, what diagnose must say first, ranks)
CASES = {
    'slow decode': (Loop(Pictures(cost=0.006)), 'slow decoding', 1),
    'slow decode, half as bad': (Loop(Pictures(cost=0.003)), 'slow decoding', 1),
    'too few workers': (Loop(Pictures(cost=0.01), workers=1), 'too few workers', 1),
    'two workers, still too few': (Loop(Pictures(cost=0.015), workers=2), 'too few workers', 1),
    'two workers for samples that cost nothing': (
        Loop(Pictures(128), workers=2, model=lambda: net(6), steps=16),
        'handing over',
        1,
    ),
    'one slow worker of two': (Loop(Pictures(cost=0.03, slow_worker=1), workers=2), 'one slow worker', 1),
    'checkpoint in each step': (Loop(each=save(6)), 'checkpoint', 1),
    'checkpoint in every other step': (Loop(each=save(10, 2)), 'checkpoint', 1),
    'printing in each step': (Loop(each=say(120)), 'printing', 1),
    'evaluation in each step': (Loop(each=evaluate), 'evaluation', 1),
    'clipping again and again': (Loop(each=clip_by_hand), 'clipping', 1),
    '.item() again and again': (Loop(each=read_all), 'reading results', 1),
    'a loop over parameters in Python': (Loop(each=weights_by_hand), 'small operations', 1),
    'average of weights by deepcopy': (Loop(each=average), 'copying weights', 1),
    'gc.collect() in each step': (Loop(each=collect), 'garbage collection', 1),
    'fsync in each step': (Loop(each=to_disk), 'disk', 1),
    'sleeping between steps': (Loop(each=lambda *a: time.sleep(0.03)), 'sleeping', 1),
    'data in float64': (
        Loop(before=lambda x: [x.to(torch.float64).to(torch.float32) for _ in range(60)][0]),
        'casts',
        1,
    ),
    'AdamW over a thousand small parameters': (
        Loop(
            model=lambda: nn.Sequential(
                nn.Flatten(), *[nn.Linear(1728 if i == 0 else 8, 8) for i in range(150)], nn.Linear(8, 10)
            ),
            opt=torch.optim.AdamW,
            foreach=False,
        ),
        'optimizer',
        1,
    ),
    'attention written out': (Loop(Tokens(), model=Attention), 'unfused attention', 1),
    'recomputation left on': (Loop(model=Recomputing), 'recomputation', 1),
    'another shape in each step': (recompiling, 'recompiling', 1),
    'large buffers made anew': (Loop(before=new_buffers), 'allocator', 1),
    'a recurrence by hand': (Loop(call=many_small), 'small operations', 1),
    'slow decode and checkpoints': (Loop(Pictures(cost=0.012), each=save(2)), 'slow decoding', 1),
    'checkpoints and slow decode': (Loop(Pictures(cost=0.001), each=save(12)), 'checkpoint', 1),
    'a slow rank': (ddp(slow=1, burn_for=0.05), 'slow rank', 2),
    'a barrier in each step': (ddp(barrier=60), 'barrier', 2),
    'small buckets, gradients sent five times': (ddp(bucket=0.02, sync_often=True), 'communication', 2),
}
HEALTHY = {
    'plain': Loop(),
    'deeper': Loop(model=lambda: net(4)),
    'with two workers': Loop(Pictures(256, cost=0.001), workers=2, batch=32, model=lambda: net(6)),
    'AdamW, fused': Loop(opt=torch.optim.AdamW, fused=True, model=lambda: net(3)),
    'fused attention': Loop(Tokens(), model=lambda: Attention(True)),
    'one line printed a step': Loop(each=say(1)),
    'clipped once a step': Loop(each=lambda step, model, opt, loss: nn.utils.clip_grad_norm_(model.parameters(), 1.0)),
    'the loss read each step': Loop(each=lambda step, model, opt, loss: loss.item()),
    'cheap decoding': Loop(Pictures(cost=0.00001), model=lambda: net(10)),
    'larger batches': Loop(Pictures(256), batch=32, model=lambda: net(1)),
}


def on_a_rank(name, repeats):
    return diagnose(CASES[name][0], repeats).to_dict()


def run(name, repeats=3):
    "(diagnosis, what it should say)"
    if name in HEALTHY:
        return diagnose(HEALTHY[name], repeats), nothing
    loop, expected, ranks = CASES[name]
    if ranks == 1:
        return diagnose(loop, repeats), expected
    return Diagnosis.from_dict(on_ranks(on_a_rank, ranks, name, repeats, timeout=120)[0]), expected


def row(name, repeats):
    d, expected = run(name, repeats)
    check = d.checks[0] if d.checks and d.checks[0]['cause'] == d.first else {}
    first = d.suspects[0] if d.suspects else {}
    return dict(
        name=name,
        expected=expected,
        found=d.first,
        right=d.first == expected,
        share=first.get('share'),
        by_share=first['gain'] if check else None,  # what advice() shows
        predicted=first.get('expected') if check else None,  # None too where only the least is said
        measured=check.get('measured'),
        low=check.get('low'),
        high=check.get('high'),
        overhead=d.overhead,
        suspects=[(s['cause'], round(s['share'], 3)) for s in d.suspects],
    )


def alone(name, repeats):
    "The row of a case, from a process of its own"
    words = [sys.executable, __file__, '--row', name, '--repeats', str(repeats)]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, timeout=600).stdout.splitlines()[-1])


kept = dict(
    MALLOC_MMAP_THRESHOLD_=str(32 << 20), MALLOC_TRIM_THRESHOLD_=str(8 << 30)
)  # bytes; glibc gives nothing back to the system


def walls(name, without):
    "Seconds of a loop in seven turns, and of the loop with a part taken out"
    loop = CASES[name][0]
    loop()
    clock = _watched(loop)[0]
    whole, bare = [], []
    for _ in range(7):
        whole.append(_timed(loop)[0])
        with _without(without, clock):
            bare.append(_timed(loop)[0])
    return whole, bare


def heap(name='recomputation left on', without='recomputation'):
    """The case in which the heap is the larger fault: seconds as it is and without what was planted, with the heap
    given back and kept
    """
    found = dict(name=name, without=without)
    for how, variables in (('given back', {}), ('kept', kept)):
        out = subprocess.run(
            [sys.executable, __file__, '--walls', name, without],
            env=os.environ | variables,
            check=True,
            stdout=subprocess.PIPE,
            timeout=600,
        ).stdout
        found[how] = json.loads(out.splitlines()[-1])
    return found


def told(r):
    "A row in a line"
    gain = ' '.join(f'{r[k]:.2f}' for k in ('by_share', 'predicted', 'measured') if r[k])
    return ' '.join(
        [
            'ok   ' if r['right'] else 'WRONG',
            r['name'],
            '->',
            r['found'],
            str(r['suspects']),
            gain,
            f"{r['overhead']:+.0%}",
        ]
    )


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--only', nargs='*', metavar='NAME')
    p.add_argument('--row', metavar='NAME', help='print the row of this case, and write nothing')
    p.add_argument(
        '--walls',
        nargs=2,
        metavar=('NAME', 'PART'),
        help='print the seconds of this case, and without a part; write nothing',
    )
    p.add_argument('--add', action='store_true', help='only cases that the file does not have')
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--out', default=str(Path(__file__).parent.parent / 'fsdl_tools/data/results/diagnose.json'))
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.walls:
        print(json.dumps(walls(*a.walls)))
        return
    if a.row:
        print(json.dumps(row(a.row, a.repeats)))
        return
    names, out = [*CASES, *HEALTHY], Path(a.out)
    unknown = sorted(set(a.only or []) - set(names))
    if unknown:
        p.error(f'no case is named {unknown[0]!r}; they are {", ".join(names)}')
    rows = json.loads(out.read_text())['cases'] if (a.add or a.only) and out.exists() else []
    conditions = f'{a.repeats} repeats; a process for each case, one thread in it, on 2 cores'
    for name in a.only or [n for n in names if n not in {r['name'] for r in rows}]:
        rows = [r for r in rows if r['name'] != name] + [alone(name, a.repeats)]
        print(told(rows[-1]), file=sys.stderr, flush=True)
        rows.sort(key=lambda r: names.index(r['name']))
        write(out, conditions, rows)
    write(out, conditions, rows, heap=heap())


def write(out, conditions, rows, **more):
    found = dict(
        date=datetime.date.today().isoformat(), torch=torch.__version__, conditions=conditions, cases=rows, **more
    )
    out.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
