"""Answers of the memory chapters as they were: the allocator, traces made by hand, what operations keep, small steps

Bytes and names are kept, and numbers of float64 arithmetic or rounded ones; no ticks, which follow what a version of
PyTorch allocates.
"""

import itertools
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsdl_tools.units import MiB
from fsdl_tools.memory import adapters, gpu, measure, predict, states, tracker
from fsdl_tools.memory import kept as kept_of
from tests.answers import answer, same_answers


def drawn(*shape, seed=0):
    "A tensor of numbers that are the same on every machine"
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)


def meta(*shape, dtype=torch.float32, grad=False):
    "A tensor without data"
    return torch.empty(*shape, dtype=dtype, device='meta', requires_grad=grad)


def few(t):
    "Sum, magnitude and some entries of a tensor, to five digits"
    flat = t.detach().double().flatten()
    return [float(f'{v:.5g}') for v in (flat.sum(), flat.abs().sum(), *flat[:: max(len(flat) // 5, 1)][:5])]


def test_adapters(request):
    found = {
        f'bytes {n}': adapters.four_bit_bytes(n) for n in (0, 1, 2, 63, 64, 65, 128, 129, 16384, 16385, 4096 * 4096)
    } | {f'rows {n} {s}': adapters._rows(torch.ones(n), s).tolist() for n in (1, 3, 4, 5) for s in (2, 4)}
    for out, inside, bias in ((8, 8, True), (7, 33, False), (128, 300, True)):
        linear = nn.Linear(inside, out, bias=bias)
        linear.weight.data, y = drawn(out, inside), drawn(3, inside, seed=1)
        if bias:
            linear.bias.data = drawn(out, seed=2)
        packed, x = adapters.Frozen4bit(linear), y.double().requires_grad_()
        made = packed(x)
        made.sum().backward()
        found[f'four bits {out} {inside}'] = [
            few(t) for t in (packed.packed, packed.scales, packed.outer, packed.weight_as(x), made, x.grad)
        ] + [packed.backward_bytes(2), packed.weight_as(x.half()).dtype]
        assert (packed.weight_as(x) - linear.weight).abs().max() <= packed.outer.max() / 14 and (
            F.linear(y, packed.weight_as(y), packed.bias) - made
        ).abs().max() < 1e-4
        low = adapters.LowRank(packed, 2, like=linear.weight.double())
        low.down.data, low.up.data = drawn(2, inside, seed=3).double(), drawn(out, 2, seed=4).double()
        found[f'low rank {out} {inside}'] = [
            few(low(y.double())),
            low.scale,
            adapters.LowRank(linear, 4, 3, linear.weight).scale,
            bool(adapters.LowRank(linear, 4, like=linear.weight).up.any()),
        ]
    wide = adapters.LowRank(nn.Linear(400, 4), 50, like=torch.ones(1)).down
    assert 0.99 / 20 < wide.abs().max() <= 1 / 20
    zero = nn.Linear(64, 2)
    zero.weight.data.zero_()
    found['zeros'] = few(adapters.Frozen4bit(zero).weight_as(torch.ones(1)))
    found['meta'] = str(adapters.Frozen4bit(nn.Linear(64, 8, device='meta')).weight_as(meta(1)).shape)

    class Conv1D(nn.Module):
        def __init__(self, inside, out):
            super().__init__()
            self.nf, self.weight, self.bias = out, nn.Parameter(drawn(inside, out)), nn.Parameter(torch.zeros(out))

        def forward(self, x):
            return x @ self.weight + self.bias

    class ModuleDict(nn.ModuleDict):
        def forward(self, x):
            y = self['inner']['q'](self['a'](x) + self['turned'](x))
            return self['lm_head'](y + self['inner']['fc'](x[..., :2]).sum())

    net = ModuleDict(
        dict(
            a=nn.Linear(8, 6),
            turned=Conv1D(8, 6),
            lm_head=nn.Linear(6, 9),
            inner=nn.ModuleDict(dict(fc=nn.Linear(2, 2), q=nn.Linear(6, 6, bias=False))),
        )
    )
    turned = adapters._as_linear(net['turned'])
    found |= {
        'adaptable': adapters._adaptable(net),
        'turned': [
            list(turned.weight.shape),
            few(turned.weight),
            turned.weight.requires_grad,
            adapters._is_turned(net['a']),
            adapters._as_linear(net['a']) is net['a'],
        ],
    }
    for rank, bits, names in (
        (2, 16, None),
        (2, 4, None),
        (1, 16, ['inner.q']),
        (0, 16, None),
        (2, 8, None),
        (2, 16, []),
    ):
        shown = lambda made: {
            n: [type(m).__name__, sum(p.numel() for p in m.parameters(recurse=False) if p.requires_grad)]
            for n, m in made.named_modules()
        }
        found[f'added {rank} {bits} {names}'] = answer(lambda: shown(adapters.add_adapters(net, rank, bits, names)))
    found['nothing to adapt'] = answer(adapters.add_adapters, nn.ReLU())
    assert all(p.requires_grad for p in net.parameters()) and type(net['a']) is nn.Linear
    same_answers(request, 'adapters', found)


def story(seed):
    "Blocks of a made-up step, and its trace"
    generator, blocks, phases, tick = random.Random(seed), [], [], 0
    for phase in ('forward', 'loss', 'backward', 'step', 'forward', 'loss', 'backward', 'step', 'end'):
        tick += 1
        phases.append((tick, phase))
        for _ in range(6):
            tick += 1
            kind = tracker.categories[int(generator.random() * 10)]
            blocks.append(
                tracker._Block(
                    int(generator.random() * 3e6) + 1,
                    kind,
                    phase,
                    generator.choice('ab'),
                    '',
                    (4, int(generator.random() * 3)),
                    tick,
                )
            )
            alive = [b for b in blocks if b.died is None]
            if generator.random() < 0.6:
                tick += 1
                alive[int(generator.random() * len(alive))].died = tick
    start = phases[4][0] - 1
    return tracker.MemoryTrace(blocks, [p for p in phases if p[0] > start], start, tick)


def test_traces(request):
    found = {
        f'segment {n} {s}': tracker._segment_bytes(n, s)
        for n in (1, MiB, 10 * MiB - 1, 10 * MiB, 10 * MiB + 1, 12 * MiB, 13 * MiB)
        for s in (True, False)
    }
    for seed in range(4):
        a, held, generator = tracker.Allocator(), [], random.Random(seed)
        sizes = [
            0,
            1,
            512,
            513,
            MiB - 511,
            MiB,
            MiB + 1,
            2 * MiB,
            9 * MiB,
            10 * MiB,
            21 * MiB,
            19 * MiB - 512,
            700_000,
            3 * MiB,
        ]
        for _ in range(120):
            if held and generator.random() < 0.47:
                a.free(held.pop(int(generator.random() * len(held))))
            else:
                held.append(a.malloc(sizes[int(generator.random() * len(sizes))]))
        found[f'allocator {seed}'] = [
            a.reserved,
            a.allocated,
            a.segments,
            [list(b) for b in a.free_blocks[True]],
            [list(b) for b in a.free_blocks[False]],
            [list(h) for h in held[-5:]],
        ]
        trace = story(seed)
        found |= {
            f'reserved {seed}': tracker.reserved(trace),
            f'peak {seed}': trace.peak,
            f'events {seed}': [e[:2] for e in trace.events()][::5],
            f'at {seed}': [{k: v for k, v in trace.at(t).items() if v} for t in range(trace.start, trace.end, 9)],
        }
        found |= {
            f'phases {seed}': [trace.phase(t) for t in range(trace.start + 1, trace.end + 1, 3)],
            f'begins {seed}': [answer(trace.begins, p) for p in ('forward', 'loss', 'end', 'x')],
            f'alive {seed}': [len(trace.alive(b.born)) for b in trace.blocks[::4]]
            + [len(trace.alive(b.died)) for b in trace.blocks[::4] if b.died],
        }
        found |= {
            f'summary {seed}': measure.summary(trace).to_dict(),
            f'explained {seed} ': [list(r.values()) for r in measure.explain_memory(trace, 5)],
            f'levels {seed}': {k: v[::6] for k, v in tracker._levels(trace)[1].items()},
        }
        table = measure.explain_memory(trace, 5)
        found |= {
            f'table {seed}': [table.caption, table.notes],
            f'few rows {seed}': len(measure.explain_memory(trace)),
            f'rows {seed}': [list(r.values()) for r in measure.summary(trace).rows[:3]],
            f'page {seed}': measure.summary(trace)._page().caption,
        }
    tr = tracker.Tracker()
    with tr:
        x = torch.ones(300)
        tr.begin('forward')
        y = x * 2 + 1
        nothing = tr.watch(torch.empty(0))
        tr.watch(y, 'logits')
        z = y.view(3, 100)
        tr.begin('end')
    found |= {
        'watched': [(b.bytes, b.kind, b.phase, b.op, b.shape, b.died is None) for b in tr.blocks],
        'of': [tr.of(x) is tr.of(x.view(30, 10)), tr.of(z).kind, nothing, tr.of(torch.ones(3))],
    }
    net, stack, seen = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())), [''], []
    with tracker.in_modules(net, stack, lambda name, args, kw: seen.append((name, len(args), list(stack)))):
        net(torch.ones(1, 2))
    net(torch.ones(1, 2))
    found |= {
        'in modules': [seen, stack],
        'tensors': [
            len(tracker.tensors(t)) for t in ([1, torch.ones(1), {'a': (torch.ones(1),)}], None, torch.ones(2))
        ],
    }
    found |= {f'one {d}': repr(tracker._one(torch.ones(1, dtype=d))) for d in (torch.bool, torch.int64, torch.float16)}
    for a, b, offs in (
        ((6, 4), (3, 4, 5), 3),
        ((6, 4), (4, 5), 3),
        ((3, 6, 4), (4, 5), 3),
        ((3, 6, 4), (3, 4, 5), None),
    ):
        found[f'grouped {a} {b}'] = answer(
            lambda: (lambda t: (list(t.shape), t.dtype))(
                tracker._grouped_product(meta(*a), meta(*b), None if offs is None else meta(offs))
            )
        )
    found['grouped in another type'] = str(
        tracker._grouped_product(meta(6, 4), meta(3, 4, 5), meta(3), out_dtype=torch.bfloat16).dtype
    )
    same_answers(request, 'traces', found)


def test_ways_of_asking(request):
    i, f = torch.ones(2, dtype=torch.long), torch.ones(3)
    record = lambda **kw: SimpleNamespace(**kw)
    found = {
        f'logits {k}': list(measure.logits_of(o).shape)
        for k, o in dict(
            tensor=f,
            tuple=(i, f),
            named=type('Out', (dict,), {'logits': torch.ones(4)})(a=f),
            pair=[None, i, torch.ones(5), f],
        ).items()
    }
    found['named'] = [
        list(measure.logits_of(record(logits=l, last_hidden_state=h)).shape)
        for l, h in ((torch.ones(7), f), (None, torch.ones(8)), (i, torch.ones(9)))
    ]
    found['cross entropy'] = [
        float(measure.cross_entropy(drawn(2, 3, 5).to(d))) > 0 for d in (torch.float32, torch.bfloat16)
    ] + [round(float(measure.cross_entropy(drawn(2, 3, 5))), 3)]
    takes = dict(
        none=lambda: 0,
        one=lambda x: x,
        two=lambda x, y=1: x,
        many=lambda *a: a,
        words=lambda x, *, y: x,
        both=lambda x, y: x,
        mse=nn.MSELoss(),
        entropy=nn.CrossEntropyLoss(),
        linear=nn.Linear(1, 1),
        bilinear=nn.Bilinear(1, 1, 1),
    )
    found |= {
        f'arguments {k}': [measure._arguments(t), measure._needs_target(t), measure._is_of_classes(t)]
        for k, t in takes.items()
    } | {f'classes {t.__name__}': measure._is_of_classes(t) for t in (F.cross_entropy, F.nll_loss, F.mse_loss)}
    found |= {
        f'target {k} {n}': answer(lambda: [type(x).__name__ for x in measure.with_target(takes[k], given)])
        for k in ('linear', 'bilinear')
        for n, given in dict(pair=(f, i), list=[f, i], one=(f,), three=(f, i, i), alone=f).items()
    }
    for k, loss, target in (
        ('entropy', nn.CrossEntropyLoss(), None),
        ('entropy', nn.CrossEntropyLoss(), torch.tensor([[1, 2], [0, 3]])),
        ('function', F.cross_entropy, torch.tensor([1, 2])),
        ('nll', F.nll_loss, None),
        ('mse', nn.MSELoss(), torch.ones(2, 2, 4).double()),
        ('mse', nn.MSELoss(), None),
        ('mine', lambda x: x.sum(), None),
        ('two', lambda x, y: x.sum() + y, torch.tensor(1.0).double()),
        ('soft', F.cross_entropy, torch.full((2, 2), 0.5).double()),
    ):
        found[f'loss {k} {None if target is None else tuple(target.shape)}'] = answer(
            lambda: float(
                measure.loss_against(loss, target)(
                    drawn(*((2, 2) if k in ('function', 'soft') else (2, 2, 4))).double()
                )
            )
        )
    block = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    class Block(nn.Module):
        def __init__(self, n=4):
            super().__init__()
            self.a, self.b = nn.Linear(n, n), nn.LayerNorm(n)

    class Small(Block):
        pass

    nets = dict(
        none=nn.Linear(2, 2),
        one=nn.ModuleList([Block()]),
        two=nn.ModuleList([Block(), Block()]),
        mixed=nn.ModuleList([Block(), Block(), Small(1), Small(1), Small(1)]),
        even=nn.ModuleList([Block(), Block(), Small(), Small()]),
        more=nn.ModuleList([Block(), Block(), Small(3), Small(3), Small(3)]),
        plain=nn.Sequential(block(), block()),
        adapted=nn.ModuleList(
            [
                Block(),
                Block(),
                adapters.LowRank(nn.Linear(90, 90), 1, like=f),
                adapters.LowRank(nn.Linear(90, 90), 1, like=f),
            ]
        ),
    )
    found |= {f'blocks {k}': measure.blocks_of(n) for k, n in nets.items()} | {
        f'recompute {r!r} {k}': answer(measure.to_recompute, nets[k], r)
        for k in ('two', 'none')
        for r in (True, False, None, '', 'none', 'full', 'Full', 'some', ['0'], ['x'], ())
    }
    p, Adam = [nn.Parameter(torch.ones(2))], torch.optim.Adam
    kinds = dict(
        name='adam',
        upper='AdamW',
        word='x',
        cls=torch.optim.SGD,
        made=torch.optim.SGD(p, 0.1),
        momentum=torch.optim.SGD(p, 0.1, momentum=0.9),
        partial=partial(torch.optim.AdamW, lr=1),
        amsgrad=partial(Adam, amsgrad=True),
        part=partial(torch.optim.SGD, momentum=0.5),
        other=torch.optim.RMSprop,
        function=lambda p: Adam(p),
        masters=states.MasterAdamW,
        eight=states.AdamW8bit,
    )
    found |= {f'kind {k}': answer(states.optimizer_kind, o) for k, o in kinds.items()} | {
        f'rule {k}': answer(states.known_optimizer, o) for k, o in kinds.items()
    }
    found |= {
        f'made {k}': answer(
            lambda: (
                lambda made: [
                    type(made).__name__,
                    {n: v for n, v in made.defaults.items() if n in ('momentum', 'amsgrad', 'lr')},
                ]
            )(states.optimizer_of(o)(p))
        )
        for k, o in kinds.items()
        if k not in ('cls', 'other')
    }
    lowered, kept = (
        measure.prepare(nn.Linear(2, 2), (f, i), 'bf16', real=True)[1],
        measure.prepare(nn.Linear(2, 2), (f, i), 'amp'),
    )
    found |= {
        'lowered': [t.dtype for t in lowered],
        'kept': [[t.dtype for t in kept[1]], kept[0].training],
        'precision': answer(measure.prepare, nn.Linear(2, 2), f, 'fp17'),
        'autocast': [measure.autocast(nn.Linear(1, 1), q)._enabled for q in ('amp', 'fp32')],
    }
    found |= {
        f'called {n}': answer(lambda: list(measure.call(nn.Linear(3, 2), given).shape))
        for n, given in dict(dict={'input': f}, tuple=(f,), one=f, wrong=i.float(), list=[f]).items()
        if n != 'wrong'
    }
    same_answers(request, 'asked', found)


def test_eight_bits_and_masters(request):
    found = {}
    for n, least in ((100, 4096), (300, 64), (64, 64), (63, 64)):
        w = nn.Parameter(drawn(n).double() if least == 4096 else drawn(n))
        o = states.AdamW8bit([w], lr=0.1, block=32, min_size=least)
        for i in range(3):
            w.grad = drawn(n, seed=i).to(w.dtype)
            o.step()
        found[f'eight {n} {least}'] = [few(w), sorted(o.state[w]), o.state[w]['t'], type(o.state[w]['m']).__name__]
    packed = o.pack(drawn(5, 13))
    found['packed'] = [
        list(packed[0].shape),
        packed[0].flatten()[:6].tolist(),
        few(packed[1]),
        few(o.unpack(packed, drawn(5, 13))),
    ]
    low, high = nn.Parameter(drawn(40).bfloat16()), nn.Parameter(drawn(40).bfloat16().float())
    a, b = states.MasterAdamW([low, nn.Parameter(torch.ones(2))], lr=0.1), torch.optim.AdamW([high], lr=0.1)
    for i in range(3):
        low.grad, high.grad = drawn(40, seed=i).bfloat16(), drawn(40, seed=i).bfloat16().float()
        a.step()
        b.step()
    assert torch.equal(low, high.bfloat16()) and torch.equal(a.state[low]['master'], high) and a.high[0].grad is None
    t = torch.tensor
    found['change'] = [float(states._change(t(1.0), t(4.0), dict(betas=(0.9, 0.99), eps=0.5), n)) for n in (1, 2, 9)]
    same_answers(request, 'optimizers', found)


class Block(nn.Module):
    "Attention and an MLP, as simple as they come"

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.up, self.down, self.drop = (
            nn.LayerNorm(64),
            nn.Linear(64, 192),
            nn.Linear(64, 96),
            nn.Linear(96, 64),
            nn.Dropout(0.1),
        )

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.drop(self.down(F.gelu(self.up(x))))


class Words(nn.Module):
    "A little language model"

    def __init__(self):
        super().__init__()
        self.words, self.blocks, self.out = nn.Embedding(50, 64), nn.ModuleList([Block(), Block()]), nn.Linear(64, 50)
        self.register_buffer('seen', torch.zeros(33))

    def forward(self, x):
        x = self.words(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def images():
    "A network of convolutions"
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(True),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 20, 3, bias=False),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(20, 10),
    )


def sizes_of(made):
    "Bytes by category"
    return [v for v in made.to_dict().values() if isinstance(v, (int, str))]


def test_steps_of_small_networks(request):
    words, pictures, found = torch.zeros(4, 7, dtype=torch.long), torch.zeros(4, 3, 12, 12), {}
    asks = [
        ('words', dict()),
        ('words', dict(precision='amp')),
        ('words', dict(precision='bf16', optimizer='mixed')),
        ('words', dict(optimizer='sgd', recompute=True)),
        ('words', dict(optimizer='adafactor', accumulation=2)),
        ('words', dict(optimizer='momentum', precision='amp', accumulation=4, recompute=True)),
        ('pictures', dict(optimizer='adamw8bit')),
        ('pictures', dict(precision='amp', accumulation=2)),
    ]
    for name, kw in asks:
        net, x = (Words(), words) if name == 'words' else (images(), pictures)
        found |= {
            f'{name} {kw} {k}': sizes_of(predict.breakdown(net, inputs=x, kernels=k, **kw)) for k in ('cuda', 'cpu')
        }
        measured, made = (
            measure.summary(measure.measure(net, x, **kw)),
            predict.breakdown(net, inputs=x, kernels='cpu', **kw),
        )
        for k in ('parameters', 'gradients', 'optimizer', 'buffers', 'batch', 'activations', 'logits', 'casts'):
            assert getattr(measured, k) == getattr(made, k), (name, kw, k)
        assert abs(measured.peak / made.peak - 1) < 0.1
    frozen = adapters.add_adapters(nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)), 2, 4, ['0', '2'])
    found |= {
        'adapted': sizes_of(predict.breakdown(frozen, inputs=torch.zeros(5, 64))),
        'pair': sizes_of(
            predict.breakdown(nn.Linear(8, 3), inputs=(torch.zeros(6, 8), torch.zeros(6, 3)), loss=F.mse_loss)
        ),
        'more samples': sizes_of(predict.breakdown(nn.Linear(8, 3), 9, inputs=torch.zeros(6, 8))),
    }
    wrong = dict(
        cut=dict(batch=5, accumulation=2),
        batch=dict(batch=0),
        parts=dict(accumulation=0),
        precision=dict(precision='x'),
        optimizer=dict(optimizer='x'),
        kernels=dict(kernels='tpu'),
        blocks=dict(recompute='full'),
        module=dict(recompute=['x']),
        loss=dict(loss=F.mse_loss),
        samples=dict(inputs=torch.tensor(1.0)),
        rule=dict(optimizer=torch.optim.RMSprop),
    )
    found |= {
        f'wrong {k}': answer(lambda: predict.breakdown(nn.Linear(8, 3), **dict(inputs=torch.zeros(6, 8)) | kw))
        for k, kw in wrong.items()
    }
    same_answers(request, 'steps', found)


def test_what_operations_keep(request):
    found, names = (
        {},
        sorted(
            {
                *kept_of._keep_input,
                *kept_of._keep_output,
                *kept_of._keep_both,
                *kept_of._keep_factors,
                *kept_of._keep_inputs,
                *kept_of._keep_stats,
                *kept_of._keep_index,
                *kept_of._cases,
                '_scaled_dot_product_x',
                'pow',
                'unknown',
                'add',
                'view',
                'copy',
            }
        ),
    )
    for name in names:
        asked = []
        for grads in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0)):
            args, outs = [meta(2, grad=bool(g)) for g in grads], [meta(3), meta(4)]
            which = {id(t): n for t, n in zip((*args, *outs), 'abcyz', strict=True)}
            kept = answer(lambda: [which[id(t)] for t in kept_of.kept_by(name, args, outs)])
            asked.append(''.join(kept) if isinstance(kept, list) else kept[:9])
        found[f'keeps {name}'] = asked
    x = meta(2, grad=True)
    found |= {
        f'number {name} {args}': answer(
            lambda: len(kept_of.kept_by(name, [x if a == 'x' else a for a in args], [meta(2)]))
        )
        for name in ('div', 'pow', 'mul', 'clamp', 'add')
        for args in (('x', 2), (2, 'x'), ('x', 'x'))
    }
    found |= {f'block {a}': kept_of.block_bytes(*a) for a in ((128, 2, 64, 4), (128, 2, 64, 4, True), (100, 1, 30, 7))}
    shapes = [(3,), (5, 7), (64, 64), (4, 32, 32), (4095,), (257,)]
    for kind, dtype in itertools.product(states._states, (torch.float32, torch.bfloat16)):
        params = [nn.Parameter(meta(*s, dtype=dtype)) for s in shapes] + [nn.Parameter(meta(9), requires_grad=False)]
        found[f'optimizer {kind} {dtype}'] = [
            states.optimizer_bytes(params, kind),
            *[states.update_bytes(params[:n], kind, k) for k in ('cuda', 'cpu') for n in (1, 3, 6)],
        ]
    found |= {
        f'samples {shape} {n}': answer(
            lambda: [
                list(t.shape)
                for t in predict._with_samples([torch.zeros(shape), torch.zeros(3, 2), torch.tensor(1)], n)
            ]
        )
        for shape in ((3, 4), (2,), (), (0, 2))
        for n in (1, 3, 7)
    } | {'no samples': answer(predict._with_samples, [torch.tensor(1)], 3)}
    found |= {
        f'micro {a}': answer(predict._micro_batch, *a)
        for a in (
            (None, 1, None),
            (None, 2, torch.zeros(6, 1)),
            (None, 1, torch.tensor(1.0)),
            (6, 4, None),
            (6, 3, None),
            (0, 1, None),
            (4, 0, None),
        )
    }
    sizes = {1: 10, 2: 20, 3: 30, 4: 40, 5: 5, 6: 60, 7: 7, 8: 8, -1: 11}
    op = lambda name, where, ins, grads, outs, kept, phase='forward': kept_of._Op(
        name, where, phase, ins, grads, outs, kept
    )
    ops = [
        op('mm', 'a', (1, 2), (1,), (3,), (1, 2)),
        op('relu', 'a.b', (3,), (3,), (4,), (4,)),
        op('add', 'ab', (4, 3), (4, 3), (5,), ()),
        op('gelu', 'c', (5,), (5,), (6,), (5, -1)),
        op('view', '', (6,), (6,), (7,), ()),
        op('nll', '', (7,), (7,), (8,), (7,), 'loss'),
    ]
    params = [SimpleNamespace(requires_grad=True, key=1), SimpleNamespace(requires_grad=False, key=2)]
    rec = SimpleNamespace(
        ops=ops,
        sizes=sizes,
        casts={3},
        entered=dict(a=(1,), c=(5,)),
        keys=lambda ts: tuple(getattr(t, 'key', 2) for t in ts),
    )
    model = SimpleNamespace(parameters=lambda: params, buffers=lambda: [])
    for recompute, again in itertools.product(((), ('a',), ('a', 'c')), (False, True)):
        lived = predict._lifetimes(rec, 6, model, [], recompute, {1} if again else ())
        found[f'lifetimes {recompute} {again}'] = [
            sorted(lived['kept']),
            lived['forward'],
            lived['backward'],
            predict._kept_bytes(rec, 6, lived['kept']),
        ]
    found |= {
        f'block of {w}': [predict._block_of(n, SimpleNamespace(where=w)) for n in ((), ('a',), ('ab', 'a'))]
        for w in ('a', 'a.b', 'ab', '', 'b')
    } | {
        'first uses': predict._first_uses(ops),
        'made again': predict._made_again(ops, partial(predict._block_of, ('a',)), 'a'),
    }
    found |= {f'largest {n}': predict._largest(lambda m, n=n: m <= n, 4, 8) for n in (4, 5, 6, 7)} | {
        f'spec {s}': answer(lambda: predict._architecture(SimpleNamespace(name='x', source=s)))
        for s in ('timm', 'transformers', 'own')
    }
    same_answers(request, 'kept', found)


@pytest.mark.parametrize(
    'limit, step, best',
    [(0, 1, 0), (99, 1, 0), (100, 1, 1), (199, 1, 1), (200, 1, 2), (1250, 1, 12), (1600, 4, 64), (799, 4, 28)],
)
def test_the_largest_batch_is_found_by_halving(monkeypatch, limit, step, best):
    monkeypatch.setattr(
        predict, 'breakdown', lambda model, n, **kw: SimpleNamespace(peak=100 * n // kw.get('accumulation', 1))
    )
    if limit:
        assert predict.largest_batch('x', limit, **(dict(accumulation=step) if step > 1 else {})) == best


def test_a_batch_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(predict, 'breakdown', lambda model, n, **kw: SimpleNamespace(peak=1))
    with pytest.raises(
        ValueError, match=r'a batch of 2,097,152 still fits: .* 5 B|a batch of 1,048,576 still fits: .* 5 B'
    ):
        predict.largest_batch('x', 5)


def test_kernels_of_attention(request):
    found, lower = {}, torch.float16
    for q, k, v, dtype in itertools.product(
        ((2, 4, 8, 64), (2, 4, 8, 256), (2, 4, 8, 264), (2, 4, 8, 20), (4, 8, 64)),
        ((2, 4), (2, 2), (2, 3), (1, 4)),
        (0, 8),
        (torch.float32, lower),
    ):
        shape = (*k, 8, q[-1]) if len(q) == 4 else q
        given = meta(*q, dtype=dtype), meta(*shape, dtype=dtype), meta(*shape[:-1], shape[-1] + v, dtype=dtype)
        found[f'{q} {k} {v} {dtype}'] = [
            [gpu._has_fused_kernel(*given, mask, g), gpu._is_flash(*given, mask, g) if len(q) == 4 else None]
            for mask in (None, meta(8, 8, dtype=dtype))
            for g in (False, True)
        ]
    q = meta(2, 4, 8, 64, dtype=lower)
    found |= {
        'strides': [
            gpu._has_fused_kernel(q.mT.contiguous().mT, q, q, None),
            gpu._has_fused_kernel(q, q, q, meta(8, 8).mT),
        ],
        'heads': [
            gpu._same_heads(q, meta(*s), meta(*t), g)
            for s, t in (
                ((2, 4, 8, 64),) * 2,
                ((2, 2, 8, 64),) * 2,
                ((2, 3, 1, 1),) * 2,
                ((2, 4, 1, 1), (2, 2, 1, 1)),
                ((1, 4, 1, 1),) * 2,
            )
            for g in (False, True)
        ],
    }
    full, half, double, whole = (
        torch.ones(2),
        torch.ones(2).half(),
        torch.ones(2).double(),
        torch.ones(2, dtype=torch.long),
    )
    found |= {
        'eligible': [gpu._eligible(t) for t in (full, half, double, whole, 3)],
        'cast': [getattr(t, 'dtype', t) for t in gpu._cast([full, half, double, whole, 3], torch.bfloat16)],
    }
    aten = torch.ops.aten
    told = lambda made: made.dtype
    found |= {
        'output': [
            told(gpu._with_output(aten.sum.default, (t,), kw))
            for t, kw in ((half, {}), (half, dict(dtype=lower)), (whole, {}), (double, {}))
        ]
        + [told(gpu._with_output(aten.softmax.int, a, {})) for a in ((half, 0), (half, 0, lower), (half, 0, None))]
    }
    found |= {
        'norm': [told(gpu._norm(aten.norm.ScalarOpt_dim, (t, 2, [0]), {})) for t in (half, double)]
        + [list(gpu._norm(aten.norm.ScalarOpt_dim, (half, 2, [0], k), {}).shape) for k in (True, False)],
        'promoted': [told(gpu._promoted(aten.add.Tensor, a, {})) for a in ((half, full), (half, half), (half, 3))],
    }
    found |= {
        'types': [told(gpu._casts[p](aten.mul.Tensor, (half, half), {})) for p in ('lower', 'fp32', 'promote', 'none')],
        'operations': [str(gpu._operation(n)) for n in ('pow.Tensor_Scalar', 'mm')],
    }
    calls = []
    monkey = pytest.MonkeyPatch()
    monkey.setattr(gpu, '_efficient', lambda *a: calls.append('efficient') or full)
    monkey.setattr(gpu, '_attend', SimpleNamespace(decompose=lambda *a, **kw: calls.append(f'usual {a[4]}') or full))
    for mask, width, dtype in itertools.product(
        (None, meta(8, 8, dtype=lower), meta(8, 8, dtype=lower, grad=True)), (64, 72, 20), (lower,)
    ):
        v = meta(2, 4, 8, width, dtype=dtype)
        made = gpu._as_cuda_attends(
            meta(2, 4, 8, 64 if width != 20 else 20, dtype=dtype),
            meta(2, 4, 8, 64 if width != 20 else 20, dtype=dtype),
            v,
            mask,
            0.5,
            False,
            scale=None,
            enable_gqa=False,
        )
        if made is not full:
            calls.append(f'written out {tuple(made.shape)}')
    monkey.undo()
    same_answers(request, 'attention', found | {'taken': calls})
