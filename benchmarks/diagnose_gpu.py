"""Faults planted in training loops on one GPU: does diagnose name them first there, and leave healthy loops alone?

    python benchmarks/diagnose_gpu.py --out diagnose_gpu.json [--only NAME ...] [--traces FOLDER]
    python benchmarks/diagnose_gpu.py --device cpu --only healthy --out …      # without one: shows that the script runs

With --traces each loop's trace is kept as NAME.json.gz, without the arguments of its events that diagnose does not
read.
"""

import argparse
import copy
import datetime
import gzip
import json
import os
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from fsdl_tools.training.diagnose import diagnose, nothing
from fsdl_tools.training.traces import profiled

DEVICE, STEPS, READ = 'cuda', 6, ('correlation', 'Input Dims', 'stream')


class Samples(Dataset):
    "Sequences of ids, or of vectors where a width is given, that take `cost` seconds each to read"

    def __init__(self, n=256, length=1024, width=0, cost=0.0):
        self.n, self.shape, self.cost = n, (length, width) if width else (length,), cost

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if self.cost:
            time.sleep(self.cost)
        x = torch.full(self.shape, i / self.n) if len(self.shape) > 1 else torch.arange(i, i + self.shape[0]) % 1000
        return x, i % 10


class Block(nn.Module):
    "One layer of a transformer; attention fused or written out"

    def __init__(self, width, fused=True):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm, self.norm2, self.fused = nn.LayerNorm(width), nn.LayerNorm(width), fused

    def attend(self, q, k, v):
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        later = torch.triu(torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device), 1)
        return torch.softmax((q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf), -1) @ v

    def forward(self, x):
        b, s, w = x.shape
        q, k, v = (t.view(b, s, w // 64, 64).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).reshape(b, s, w))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Net(nn.Module):
    "Layers and a head; with `again`, activations are computed twice"

    def __init__(self, layers=6, width=1024, fused=True, again=False):
        super().__init__()
        self.width, self.words = width, nn.Embedding(1000, width)
        self.body, self.head, self.again = (
            nn.ModuleList(Block(width, fused) for _ in range(layers)),
            nn.Linear(width, 10),
            again,
        )

    def forward(self, x):
        if x.dtype == torch.int64:
            x = self.words(x)
        for block in self.body:
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        return self.head(x.mean(1))


class Loop:
    "A training loop with hooks for faults; made anew for each call"

    def __init__(
        self, model=Net, data=None, workers=0, batch=32, each=None, before=None, call=None, opt=None, pin=True
    ):
        self.make, self.data, self.workers, self.batch = model, data or Samples(), workers, batch
        self.each, self.before, self.call, self.pin = each, before, call or (lambda model, x: model(x)), pin
        self.opt = opt or (lambda params: torch.optim.AdamW(params, lr=1e-4, fused=True))

    def __call__(self):
        torch.manual_seed(0)
        with torch.device(DEVICE):
            model = self.make()
        opt = self.opt(model.parameters())
        loader = DataLoader(self.data, self.batch, num_workers=self.workers, pin_memory=self.pin and DEVICE == 'cuda')
        for step, (x, y) in enumerate(loader):
            if step >= STEPS:
                break
            x, y = x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)
            if self.before:
                x = self.before(x)
            opt.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = F.cross_entropy(self.call(model, x), y)
            loss.backward()
            if self.each:
                self.each(step, model, opt, loss)
            opt.step()


def save(step, model, opt, loss):
    with tempfile.TemporaryDirectory() as d:
        torch.save(dict(model=model.state_dict(), opt=opt.state_dict()), f'{d}/state')


def evaluate(step, model, opt, loss):
    model.eval()
    with torch.no_grad():
        for x, _ in DataLoader(Samples(64), 16):
            model(x.to(DEVICE))
    model.train()


def read_all(step, model, opt, loss):
    for _ in range(2_000):
        loss.item()


def clip_by_hand(step, model, opt, loss):
    for _ in range(10):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)


def average(step, model, opt, loss):
    for _ in range(8):
        copy.deepcopy(model)


def recurrence(model, x):
    h = x[:, 0, :64]
    for _ in range(1500):
        h = torch.tanh(h * 0.5 + 0.1)
    return model(x) + h.mean()


def recompiling():
    "Another length in each step, of a function that is new each time"
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).to(DEVICE)

    def step(x):
        return model(x).sum()

    fresh = types.FunctionType(
        step.__code__.replace(co_name=f'step_{time.time_ns()}'), globals(), 'step', None, step.__closure__
    )
    fast = torch.compile(fresh, backend='eager', dynamic=False)
    for n in range(2, 8):
        fast(torch.randn(n, 64, device=DEVICE)).backward()


def pageable(x):
    "To the host and back, a few times, as one does who does not know where things are"
    for _ in range(6):
        x = x.cpu().to(DEVICE)
    return x


def deep(width, layers, inputs):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), *[nn.Linear(width, width) for _ in range(layers)], nn.Linear(width, 10)
    )


def clip_once(step, model, opt, loss):
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)


by_hand = lambda params: torch.optim.AdamW(params, lr=1e-4, foreach=False)

CASES = {
    'slow decode': (Loop(data=Samples(cost=0.004)), 'slow decoding'),
    'too few workers': (Loop(data=Samples(cost=0.01), workers=2), 'too few workers'),
    'checkpoint in each step': (Loop(model=lambda: Net(2, 512), each=save), 'checkpoint'),
    'evaluation in each step': (Loop(each=evaluate), 'evaluation'),
    '.item() again and again': (Loop(each=read_all), 'reading results'),
    'clipping again and again': (Loop(model=lambda: Net(4), each=clip_by_hand), 'clipping'),
    'average of weights by deepcopy': (Loop(model=lambda: Net(2), each=average), 'copying weights'),
    'sleeping between steps': (Loop(each=lambda *a: time.sleep(0.15)), 'sleeping'),
    'to the host and back': (
        Loop(model=lambda: Net(1, 512), data=Samples(width=512), before=pageable, pin=False),
        'transfers',
    ),
    'AdamW over many small parameters': (
        Loop(model=lambda: deep(8, 200, 4096), data=Samples(length=64, width=64), opt=by_hand),
        'optimizer',
    ),
    'attention written out': (
        Loop(model=lambda: Net(3, fused=False), data=Samples(length=2048), batch=8),
        'unfused attention',
    ),
    'recomputation left on': (Loop(model=lambda: Net(again=True)), 'recomputation'),
    'another shape in each step': (recompiling, 'recompiling'),
    'a recurrence by hand': (
        Loop(model=lambda: Net(1, 512), data=Samples(width=512), call=recurrence),
        'small operations',
    ),
    'a model too small for the card': (Loop(model=lambda: Net(24, 64), data=Samples(length=16)), 'small operations'),
}
HEALTHY = {
    'healthy': Loop(workers=4),
    'healthy, no workers': Loop(),
    'healthy, the loss read each step': Loop(workers=4, each=lambda step, model, opt, loss: loss.item()),
    'healthy, clipped once a step': Loop(workers=4, each=clip_once),
    'healthy, decoding hidden behind the card': Loop(model=lambda: Net(12), data=Samples(cost=0.0002)),
}


def wall(loop, repeats=3):
    "Median seconds of the loop, all kernels included"
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        loop()
        if DEVICE == 'cuda':
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def keep_trace(folder, name, loop, marked):
    "Write the trace of a loop, with what diagnose reads of it"
    loop()
    events = profiled(marked(loop))
    lean = [
        {k: v for k, v in e.items() if k in ('ph', 'cat', 'name', 'pid', 'tid', 'ts', 'dur')}
        | ({'args': {k: v for k, v in e['args'].items() if k in READ}} if 'args' in e else {})
        for e in events
        if e.get('ph') == 'X'
    ]
    path = Path(folder) / f"{name.replace(' ', '_').replace(',', '').strip('._()')}.json.gz"
    path.write_bytes(gzip.compress(json.dumps(dict(wall=wall(loop), traceEvents=lean)).encode(), 9))


def row(name, repeats):
    loop, expected = CASES[name] if name in CASES else (HEALTHY[name], nothing)
    start = time.perf_counter()
    d = diagnose(loop, repeats)
    check = next((c for c in d.checks if c['cause'] == d.first), {})
    suspects = [(s['cause'], round(s['share'], 3)) for s in d.suspects]
    parts = [(p['part'], round(p['share'], 3)) for p in d.parts]
    return dict(
        name=name,
        expected=expected,
        found=d.first,
        right=d.first == expected,
        predicted=check.get('predicted'),
        measured=check.get('measured'),
        overhead=d.overhead,
        wall=d.wall,
        suspects=suspects,
        parts=parts,
        notes=d.notes,
        took=time.perf_counter() - start,
    )


def main():
    global DEVICE
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    p.add_argument('--only', nargs='*')
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--traces', help='folder for the traces of the loops; nothing is diagnosed')
    p.add_argument('--out')
    a = p.parse_args()
    DEVICE = a.device
    if DEVICE == 'cuda' and not torch.cuda.is_available():
        sys.exit('there is no CUDA device here; --device cpu shows that the script runs')
    names = a.only or [*CASES, *HEALTHY]
    if a.traces:
        from fsdl_tools.training.diagnose import _marked

        os.makedirs(a.traces, exist_ok=True)
        for name in names:
            keep_trace(a.traces, name, CASES[name][0] if name in CASES else HEALTHY[name], _marked)
            print('kept', name, flush=True)
        return
    rows = []
    card = torch.cuda.get_device_name(0) if DEVICE == 'cuda' else 'none'
    for name in names:
        try:
            rows.append(r := row(name, a.repeats))
        except Exception as e:  # the next case is not this one's
            rows.append(r := dict(name=name, right=False, found=None, error=f'{type(e).__name__}: {e}'[:300]))
        print(
            'ok   ' if r['right'] else 'WRONG',
            name,
            '->',
            {k: v for k, v in r.items() if k not in ('name', 'right')},
            flush=True,
        )
        if a.out:
            doc = dict(
                date=datetime.date.today().isoformat(),
                card=card,
                torch=torch.__version__,
                repeats=a.repeats,
                cases=rows,
            )
            Path(a.out).write_text(json.dumps(doc, indent=1) + '\n')


if __name__ == '__main__':
    main()
