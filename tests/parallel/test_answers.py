"""What the chapters on parallel training answer: timetables, layouts, messages, bytes, cuts, and the words of errors"""

import itertools
import math
import random
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from fsdl_tools.models.gpt import GPT, GPTConfig
from fsdl_tools.models.tiny import tiny_model
from fsdl_tools.parallel import collectives as C, ddp, layout as L, mesh, schedules as S, shares
from fsdl_tools.parallel import units, zero, zero_libraries as Z
from fsdl_tools.parallel import dtensor, model as M, pipeline as P, pipeline_gpt as G, ranks, real, tensor
from fsdl_tools.parallel.ranks import on_ranks
from tests.answers import answer, same_answers


# Collectives


def steps_of(schedule):
    "A timetable in a few letters: source, destination, chunk, and + where it is added"
    return (
        schedule.chunks,
        schedule.world,
        [' '.join(f'{s.src}{s.dst}{s.chunk}' + '+' * s.add for s in step) for step in schedule.steps],
    )


def test_timetables_of_collectives(request):
    "Every message of each algorithm, whose data is where, what it costs, and what each rank sends"
    found, makes = (
        {},
        dict(
            naive=C.naive_all_reduce,
            tree=C.tree_all_reduce,
            scatter=C.ring_reduce_scatter,
            gather=C.ring_all_gather,
            ring=C.ring_all_reduce,
        ),
    )
    for (name, make), n in itertools.product(makes.items(), (1, 2, 3, 4, 5, 8)):
        schedule = make(n)
        found[f'{name} {n}'] = steps_of(schedule)
        found[f'{name} {n} costs'] = (
            [C.schedule_seconds(schedule, size, 1e-5, 1e-9) for size in (0, 1e3, 1e9)],
            [C._busiest(s) for s in schedule.steps],
        )
        found[f'{name} {n} sends'] = [
            C.sent_by_rank(schedule, numel, width) for numel, width in ((0, 4), (1, 4), (7, 2), (24, 4), (29, 8))
        ]
        if n < 5:
            found[f'{name} {n} states'] = answer(C.simulate_ring, schedule)
    for n, root in itertools.product(range(1, 8), (0, 1, 6)):
        if root < n:
            found[f'broadcast {n} {root}'] = steps_of(C.tree_broadcast(n, root))
    twice, again = (
        C.Schedule('bad', 2, 1, ((C.Send(0, 1, 0, True),),) * 2),
        C.Schedule('over', 2, 1, ((C.Send(0, 1, 0, False),),) * 2),
    )
    found |= {
        'added twice': answer(C.simulate_ring, twice),
        'replaced twice': answer(C.simulate_ring, again),
        'default width': C.sent_by_rank(C.ring_all_reduce(4), 10),
    }
    same_answers(request, 'collectives', found)


def test_counting_messages(request):
    "Names of operators, factors of rings, sizes of arguments, differences, and a fit without noise"
    names = 'allreduce_ _allgather_base_ allgather_ reduce_scatter_ alltoall_base_ broadcast_ reduce_ gather_ scatter_ '
    names += 'send recv_ barrier wait_tensor all_to_all_single monitored_barrier_'
    found = {name: C._kind(f'c10d::{name}') for name in names.split()}
    found['factors'] = {k: [f(n) for n in (1, 2, 3, 8)] for k, f in C._factors.items()}
    found['sizes'] = [
        C._size(x)
        for x in (
            [torch.ones(3), [torch.zeros(2, dtype=torch.int64), 7]],
            'x',
            torch.ones(0),
            (torch.ones(2, 2, dtype=torch.bfloat16),),
        )
    ]
    found['apart'] = [
        C.largest_difference(torch.tensor(a), torch.tensor(b))
        for a, b in (([1.0, 2.0], [1.0, 4.0]), ([-8.0, 1.0], [-4.0, 2.0]), ([0.0], [5.0]), ([], []))
    ]
    for alpha, beta in ((1e-5, 1e-9), (3e-4, 2e-10), (1e-7, 1e-7)):
        found[f'fit {alpha} {beta}'] = [
            float(f'{v:.4g}') for v in C.fit_alpha_beta([(x, alpha + beta * x) for x in np.geomspace(8, 1e8, 15)])
        ]
    same_answers(request, 'counting', found)


def counted(step):
    "What a counter has seen of a step"
    with C.CommCounter() as c:
        step()
    return dict(c.calls), dict(c.payload), dict(c.sent), c.total


def messages_of_a_rank():
    "Each kind of message, counted; our own algorithms, counted; what execute refuses"
    n, r = dist.get_world_size(), dist.get_rank()
    x, part, whole = torch.ones(6 * n), torch.ones(6), [torch.empty(6) for _ in range(n)]
    functional = torch.distributed._functional_collectives
    pair = dist.new_group([0, 1])
    steps = dict(
        all_reduce=lambda: dist.all_reduce(x),
        all_gather=lambda: dist.all_gather(whole, part),
        into=lambda: units.all_gather(x, part),
        reduce_scatter=lambda: units.reduce_scatter(part, x),
        broadcast=lambda: dist.broadcast(x, 0),
        reduce=lambda: dist.reduce(x, 0),
        gather=lambda: dist.gather(part, whole if r == 0 else None),
        scatter=lambda: dist.scatter(part, whole if r == 0 else None),
        send=lambda: dist.send(part, 1) if r == 0 else dist.recv(part, 0) if r == 1 else None,
        barrier=lambda: dist.barrier(),
        functional=lambda: functional.all_gather_tensor(part, 0, list(range(n))).sum().item(),
        summed=lambda: functional.all_reduce(part, 'sum', list(range(n))).sum().item(),
        pair=lambda: dist.all_reduce(x, group=pair) if r < 2 else None,
    )
    found = {name: counted(step) for name, step in steps.items()}
    found |= {f'ours {name}': counted(lambda name=name: C.all_reduce(torch.ones(10), name)) for name in C.all_reduces}
    found['bytes'] = [C.measure_bytes(12, name)['counted'] for name in ('naive', 'tree', 'ring', 'torch')]
    found['refused'] = (
        answer(C.execute, C.ring_all_reduce(n + 1), x),
        answer(C.execute, C.ring_all_reduce(n), torch.ones(2, 3).t()),
        answer(C.all_reduce, x, 'rign'),
    )
    found['sums'] = [
        t.tolist()
        for t in (
            C.all_reduce(torch.arange(5.0) + r, 'tree'),
            C._reduce_scatter(torch.arange(7.0) * (r + 1)),
            C._all_gather(torch.arange(2.0) + r),
            C._broadcast(torch.tensor([float(r)]), n - 1),
        )
    ]
    found['groups of a number'] = (
        ddp.extremes(10 - 3 * r, 'cpu'),
        shares.over_ranks([torch.tensor(1.0 + r), torch.tensor(4.0)]),
    )
    flat = [torch.full((2, 2), 1.0 + r), torch.full((3,), 2.0 * r)]
    ddp.as_one(flat, dist.all_reduce)
    found['as one'] = [t.tolist() for t in flat]
    return found


def test_messages_of_ranks(request):
    found = {
        f'{n} ranks: rank {r} {k}': v
        for n in (2, 3)
        for r, one in enumerate(on_ranks(messages_of_a_rank, n))
        for k, v in one.items()
    }
    same_answers(request, 'messages', found)


# Schedules of pipelines


def test_pipelines(request):
    "Order of work, times, bubbles, peaks and formulas; costs by stage; what is refused"
    found, draw = {}, random.Random(0)
    letters = lambda t: [' '.join(f'{o.kind}{o.micro}' + f'.{o.stage}' * (t.virtual > 1) for o in ops) for ops in t.ops]
    for name, p, m in itertools.product(S.timetables, (1, 2, 3, 4), (1, 2, 3, 4, 6)):
        for v in (2, 3) if name == 'interleaved' else (1,):
            t = answer(S.timetable, name, p, m, v)
            if isinstance(t, str) and 'Timetable' not in t:
                found[f'{name} {p} {m} {v}'] = t
            else:
                found[f'{name} {p} {m} {v}'] = timed(S.timetable(name, p, m, v), letters)
            found[f'{name} {p} {m} {v} formula'] = (
                answer(S.bubble_formula, name, p, m, v),
                answer(S.bubble_formula, name, p, m, v, 1.5, 3.5, 0.75),
            )
    t = S.timetable('zb1p', 3, 4)
    for f, b, w, send in (
        ([1, 2, 3], [2, 4, 6], None, 0),
        (1, 2, 1.5, 0.25),
        (1, 2, 2, 0),
        (1, 2, 2.5, 0),
        ([1, 2], 2, None, 0),
        (1, 2, [0.5, 0.25, 0.5], 0),
        (0, 2, None, 0),
        (1, 2, None, -1),
        (1, 2, None, float('nan')),
    ):
        found[f'costs {f} {b} {w} {send}'] = answer(
            lambda f=f, b=b, w=w, send=send: outline(S.simulate(t, f, b, w, send))
        )
    for t in (S.timetable('1f1b', 3, 4), S.timetable('zb1p', 2, 3), S.timetable('interleaved', 2, 4, 2)):
        found |= {f'mangled {t.name} {i}': answer(lambda t=t: outline(S.simulate(mangled(t, draw)))) for i in range(25)}
        found[f'needs {t.name}'] = [[str(o), list(map(str, S._needs(t, o)))] for ops in t.ops for o in ops][::3]
    for name, p, m, v in (
        ('1f1', 2, 2, 1),
        ('1f1b', 2, 2, 2),
        ('interleaved', 2, 2, 1),
        ('1f1b', 0, 1, 1),
        ('1f1b', 1, 0, 1),
        ('interleaved', 4, 6, 2),
        ('interleaved', 4, 9, 2),
        ('interleaved', 3, 7, 2),
        ('interleaved', 2, 5, 2),
    ):
        found[f'refused {name} {p} {m} {v}'] = (
            answer(S.timetable, name, p, m, v),
            answer(S.bubble_formula, name, p, m, v),
        )
    found['beside'] = [S._beside(i, many) for many in (1, 2, 3) for i in range(many)]
    same_answers(request, 'schedules', found)


def outline(trace):
    "A trace in a few numbers"
    return (
        trace.seconds,
        trace.busy,
        trace.share,
        trace.ratio,
        trace.active,
        trace.peaks,
        sum(s.start * (i + 1) for i, s in enumerate(trace.spans)),
    )


def timed(t, letters):
    "A timetable, and what becomes of it with and without messages that take time"
    return (
        letters(t) if t.micro_batches in (1, 3, 4) else t.stages,
        t.split,
        outline(S.simulate(t)),
        outline(S.simulate(t, 1.5, 2.5, 0.5, send=0.25)),
        str(t.ops[-1][-1]),
    )


def mangled(t, draw):
    "A timetable in which one thing is wrong"
    r, ops = draw.randrange(t.ranks), [list(o) for o in t.ops]
    i, j = sorted(draw.randrange(len(ops[r])) for _ in range(2))
    what = draw.randrange(5)
    if what < 2:
        ops[r][i], ops[r][j] = ops[r][j], ops[r][i]
    if what == 2:
        del ops[r][i]
    if what == 3:
        ops[r].append(ops[r][j])
    if what == 4:
        ops[r].insert(i, S.Op('F', (r + 1) % t.ranks, 0) if t.ranks > 1 else S.Op('W', 0, 0))
    return t.replace(ops=tuple(map(tuple, ops[: t.ranks - (what == 3 and i == j)])))


def test_balance(request):
    "Cuts of drawn costs, ties and zeros among them; costs of layers; bounds of stages"
    draw, found = np.random.default_rng(1), {}
    for i in range(40):
        costs = (
            draw.integers(0, 9, draw.integers(1, 9)).tolist()
            if i % 2
            else draw.random(draw.integers(1, 8)).round(3).tolist()
        )
        found |= {f'{costs} {k}': answer(S.balance, costs, k) for k in (1, 2, 3, len(costs), len(costs) + 1)}
    for costs, k in (
        ([1, -1], 1),
        ([1, math.inf], 1),
        ([1, math.nan], 2),
        ([0, 0, 0], 2),
        ([], 1),
        ([1], 0),
        ([1, 2], 1.5),
    ):
        found[f'odd {costs} {k}'] = answer(S.balance, costs, k)
    for c in (GPTConfig(3, 48, 4, 32, 100), GPTConfig(1, 64, 8, 64), GPTConfig(5, 32, 2, 16, 5000, 77)):
        found[f'{c} costs'] = S.layer_costs(c)
        found[f'{c} bounds'] = [answer(M.stage_bounds, c, k) for k in range(1, 7)]
    same_answers(request, 'balance', found)


# Layouts

TEXTS = """dp2,tp2,pp2|dp8|fsdp8|ddp|fsdp|ddp4|zero3|deepspeed_stage_2|zero2|dp2 tp4, pp1
dp8,tp4,pp12,zero=1,micro_batch=2|tp=2|dp=2,zero=3,shard=2|dp4,zero=3,shard=3|dp4,zero=2,shard=2
dp4,cp2,zero=3,shard=8
dp2,cp2,ep4|dp2,ep3|ep2,tp2|pp2,vp2|vp2|pp2,schedule=interleaved|pp2,vp2,schedule=gpipe
pp2,vp2,schedule=interleaved|pp2,schedule=zb1p|dp0|dp-2|dq2|dp2,dp4|dp=x|zero=4|zero=3|flash=maybe|flash=FALSE
compile=true
seq_parallel=false,tp2|precision=bfloat16|precision=fp16|precision=fp9|recompute=true|recompute=full
recompute=selctive|optimizer=AdamW|optimizer=adma|recipe=mx|recipe=zz|weight_bits=8|weight_bits=8,lora_rank=4
lora_rank=16
weight_bits=5|grad_bytes=3|grad_bytes=4|document=100|kernel=fa2|kernel=nope|graphs=layers|graphs=x
dispatcher=deepep|dispatcher=y|framework=megatron|framework=foo|offload=optimizer|offload=x|micro_batch=0
schedule=1f1|2dp|fsdp8,dp4
fsdp,tp2|fsdp,tp3|fsdp,zero=3|hsdp|zero=1,dp2||dp2,,tp2|shard=4|cp2|pp2,vp0|dp3,micro_batch=5|ep8,dp8""".replace(
    '\n', '|'
).split('|')


def of_layout(text, world=None):
    "What one can ask a layout"
    l = L.read_layout(text, world)
    said = l.settled()
    return (
        str(l),
        l.text(),
        str(said),
        said.text(),
        l.world,
        l.is_open,
        L.read_layout(l.text()) == l,
        ' '.join(f'{v}' for v in said.to_dict().values()),
    )


def test_layouts(request):
    "Texts, fields, copies, what is given twice and what is refused"
    found = {
        f'{text} of {world}': answer(of_layout, text, world)
        for text in TEXTS
        for world in ((None, 8) if 'ddp' in text or 'fsdp' in text or text in ('zero3', 'hsdp') else (None,))
    }
    fields = [
        dict(dp=2.0),
        dict(zero=True),
        dict(zero=-1),
        dict(zero=4),
        dict(shard=True),
        dict(shard=-1),
        dict(shard=0),
        dict(flash=1),
        dict(flash=2),
        dict(compile=0),
        dict(seq_parallel='x'),
        dict(micro_batch=None),
        dict(micro_batch=0),
        dict(dp='dp2'),
        dict(precision=None),
        dict(precision='amp-bf16'),
        dict(recompute=True),
        dict(recompute=False),
        dict(recompute=3),
        dict(kernel=None),
        dict(framework=None),
        dict(framework=''),
        dict(lora_rank=-1),
        dict(lora_rank=1.5),
        dict(document=True),
        dict(recipe='mx'),
        dict(recipe=3),
        dict(recipe=L.Recipe(scales='mx')),
        dict(recipe=L.Recipe(precision='fp8'), precision='fp8'),
        dict(recipe=L.Recipe(precision='fp8'), precision='bf16'),
        dict(precison='fp8'),
        dict(weight_bits=8.0),
    ]
    for kw in fields:
        found[f'fields {kw}'] = answer(lambda kw=kw: repr(L.Layout(**kw)))
    for kw in (
        dict(tp=2),
        dict(precision='fp32'),
        dict(recipe='mx'),
        dict(recipe=L.Recipe(flash=False), dp=3),
        dict(recipe=L.Recipe(flash=False), compile=True),
        dict(dq=1),
        dict(zero=9),
    ):
        found[f'replaced {kw}'] = answer(lambda kw=kw: str(L.Layout(dp=4, compile=True).replace(**kw)))
        found[f'beside {kw}'] = (
            answer(lambda kw=kw: str(L.read_layout('dp4,compile=true', **kw))),
            answer(lambda kw=kw: str(L.parse_layout(L.Layout(dp=4), **kw))),
        )
    for d in ({}, dict(dp=2, precision='fp8'), dict(dp=2, recipe='mx'), dict(x=1), 'dp2', None):
        found[f'from dict {d}'] = answer(lambda d=d: str(L.Layout.from_dict(d)))
    l = L.Layout(micro_batch=None, precision='fp32')
    found['settled'] = (
        [
            str(x)
            for x in (
                l.settled(),
                l.settled(micro_batch=4),
                l.settled(micro_batch=4, precision='fp8'),
                L.Layout(dp=2).settled(micro_batch=4),
            )
        ],
        answer(getattr, l, 'nothing'),
        l.flash,
    )
    names = 'nanotron|Megatron-Core r0.8|torchtitan FSDP2|llm-foundry|deepspeed||None|maxtext|megatron-lm|'
    for name in (names + 'Megatron|keras|megatron-deepspeed|Nemo 2|timm|jax').split('|'):
        found[f'framework {name}'] = answer(L.framework_of, name)
    found['framework None'] = answer(L.framework_of, None)
    same_answers(request, 'layouts', found)


def test_layouts_on_models(request):
    "Which layouts suit a model, a batch and the ranks; who stands where, who speaks to whom, and how much"
    found = {}
    shapes = [
        dict(gpus=8),
        dict(gpus=4),
        dict(global_batch=8),
        dict(global_batch=6),
        dict(layers=2),
        dict(layers=3),
        dict(layers=3, uneven=True),
        dict(layers=4),
        dict(heads=4),
        dict(heads=3),
        dict(ffn=6),
        dict(ffn=5),
        dict(seq=8),
        dict(seq=7),
        dict(heads=8, kv_heads=1),
        dict(heads=8, kv_heads=3),
        dict(heads=8, kv_heads=8),
        dict(heads=8, kv_heads=6),
        dict(),
    ]
    for text, kw in itertools.product(('dp2,tp2,pp2', 'dp8,micro_batch=1', 'tp4,cp2', 'pp2,vp2,dp2', 'tp2'), shapes):
        found[f'{text} {kw}'] = answer(lambda text=text, kw=kw: str(L.check_layout(text, **kw)))
    for text in ('dp2,tp2,pp2', 'dp3', 'dp2,cp2,tp3', 'pp3,tp2'):
        l = L.parse_layout(text)
        found[f'{text} places'] = (
            [answer(mesh.coordinates, text, r) for r in range(-1, l.world + 1)],
            [answer(mesh.groups, text, a) for a in (*mesh.axes, 'zp')],
        )
        found[f'{text} corners'] = [mesh._corner(l, r) for r in range(l.world)]
    for text in ('dp1', 'dp2,tp2,pp2', 'dp4,micro_batch=2', 'tp8,pp2,micro_batch=4'):
        found[f'{text} bytes'] = (
            answer(mesh.axis_bytes, text, 24, 1024, 512, 3e8, 32),
            answer(mesh.axis_bytes, text, 3, 100, 7, 1e6, 8, 4),
        )
    c = GPTConfig(4, 32, 4, 16, 64, 96)
    texts = 'dp2|tp2|tp2,seq_parallel=false|tp4|tp3|pp2|pp4|pp5|pp2,schedule=gpipe|pp2,vp2|cp2|ep2,dp2|lora_rank=4|'
    texts += 'offload=optimizer|flash=false|precision=fp16|precision=amp_bf16|precision=fp8|pp4,dp2|'
    for text in (texts + 'pp4,schedule=gpipe,micro_batch=2').split('|'):
        for kw in (
            dict(),
            dict(global_batch=8, seq=16),
            dict(global_batch=2, seq=15),
            dict(global_batch=3),
            dict(world=2),
        ):
            found[f'run {text} {kw}'] = answer(lambda text=text, kw=kw: str(L.check_runnable(text, c, **kw)))
        found[f'run {text} of a zoo'] = answer(lambda text=text: str(L.check_runnable(text)))
    odd = GPTConfig(4, 32, 4, 15, 63)
    found['odd tables'] = (
        answer(L.check_runnable, 'tp2', odd),
        answer(L.check_runnable, 'tp2', GPTConfig(4, 32, 4, 15, 64)),
        answer(L.check_runnable, 'tp2', GPTConfig(4, 32, 4, 16, 64, 95)),
        answer(L.check_runnable, 'tp8', c),
    )
    same_answers(request, 'layouts_of_models', found)


# Units, buckets and stages of ZeRO


class Own(nn.Module):
    "A module of this file, so no part of torch's"

    def __init__(self, *parts):
        super().__init__()
        for i, p in enumerate(parts):
            setattr(self, f'p{i}', p)

    def forward(self, x):
        for m in self.children():
            x = m(x)
        return x


def nets():
    "Modules of many shapes: containers, sizes beside the limits, shared and frozen parts"
    line = lambda a, b=1: nn.Linear(a, b, bias=False)
    yield 'mlp', tiny_model('mlp')
    yield 'cnn', tiny_model('cnn')
    yield 'gpt', tiny_model('gpt')
    for a, b in ((8, 56), (9, 56), (7, 56), (4, 4), (5, 4), (3, 5)):
        yield f'list in own {a} {b}', Own(Own(nn.ModuleList([line(a), line(1)])), line(b))
    for a, b in ((5, 4), (4, 5), (4, 4), (10, 2)):
        yield f'own in own {a} {b}', Own(Own(line(a), line(1)), line(b))
    for a, b in ((5, 4), (30, 3)):
        yield f'member {a} {b}', nn.ModuleList([Own(line(a), line(1)), line(b)])
    yield 'torch', nn.TransformerEncoderLayer(8, 2, 16)
    yield 'leaf', line(4)
    shared, frozen = (
        Own(line(4, 4), line(4, 4), line(4, 4)),
        Own(line(4, 4), line(4, 4), nn.ModuleDict(dict(a=line(3), b=Own(line(3), line(2))))),
    )
    shared.p2.weight = shared.p0.weight
    frozen.p0.requires_grad_(False)
    frozen.loose = nn.Parameter(torch.ones(2))
    yield 'shared', shared
    yield 'frozen', frozen
    alias = Own(line(4, 4), line(4, 4))
    alias.again = alias.p1.weight
    yield 'alias', alias
    yield 'nothing', Own(nn.ReLU())


def named_units(net):
    "Units by name: the module, its parameters"
    modules, params = {m: n for n, m in net.named_modules()}, {p: n for n, p in net.named_parameters()}
    return [(modules.get(m), [params[p] for p in ps]) for m, ps in units.units_of(net)], [
        modules[m] for m in Z._whole_blocks(net)
    ]


def test_units(request):
    "What is gathered together, which functions look at numbers, buckets, names in one line, refusals, memory"
    found = {f'units {name}': named_units(net) for name, net in nets()}
    get = [
        getattr(torch.Tensor, n).__get__ for n in ('shape', 'dtype', 'grad', 'data', 'T', 'is_leaf', 'device', 'real')
    ]
    found['looks'] = [
        units._uses_values(f)
        for f in [
            *get,
            torch.Tensor.size,
            torch.Tensor.add,
            torch.Tensor.numel,
            torch.matmul,
            torch.Tensor.requires_grad_,
            torch.Tensor.is_floating_point,
        ]
    ]
    draw = random.Random(2)
    for i in range(20):
        params = [
            nn.Parameter(
                torch.zeros(draw.randint(1, 40), dtype=draw.choice([torch.float32, torch.float32, torch.float64]))
            )
            for _ in range(draw.randint(0, 9))
        ]
        size, first = draw.choice([1, 40, 80, 160, 400]), draw.choice([1, 40, 100])
        found[f'buckets {i}'] = (
            [p.nbytes for p in params],
            size,
            first,
            [len(b.params) for b in ddp._make_buckets(params, size, first)],
        )
    found['default buckets'] = [
        [len(b.params) for b in ddp._make_buckets([nn.Parameter(torch.zeros(n)) for n in sizes])]
        for sizes in ([1 << 18, 1, 1], [(1 << 18) - 1, 1, 1], [1 << 18, 25 << 18, 1], [1 << 18, (25 << 18) - 1, 1, 1])
    ]
    found['names'] = [
        shares.named((f'n{i}' for i in range(k)), most) for k in (0, 1, 2, 3, 8, 9, 11) for most in (2, 8)
    ]
    for name, net in dict(
        sparse=nn.Sequential(nn.Embedding(3, 2, sparse=True)),
        bag=nn.EmbeddingBag(3, 2, sparse=True),
        dense=nn.Embedding(3, 2),
        lazy=nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d()),
    ).items():
        found[f'check {name}'] = answer(shares.check_module, net)
    for stage, n in itertools.product((0, 1, 2, 3, 4), (1, 4)):
        found[f'memory {stage} {n}'] = (
            answer(zero.zero_memory, 1000, n, stage),
            answer(zero.zero_memory, 7e9, n, stage, 8, 4, 1),
        )
    found['memory alone'] = zero.zero_memory(1000), answer(zero.zero_memory, 1, 0, 1)
    for stage, offload in itertools.product(range(4), (False, True)):
        found[f'deepspeed {stage} {offload}'] = Z._deepspeed_config(stage, 3, offload)
    one = torch.zeros(10)
    found['storages'] = (
        zero.storage_bytes([one, one[2:], None, torch.zeros(3, dtype=torch.int64), torch.zeros(0)]),
        zero.storage_bytes([]),
    )
    same_answers(request, 'units', found)


def books_of_a_rank():
    "Units by hand, what a step holds and sends, what each stage refuses"
    r, n, found = dist.get_rank(), dist.get_world_size(), {}
    for keep in (True, False):
        params = [nn.Parameter(torch.full((2, 2), 1.0)), nn.Parameter(torch.tensor([5.0, 6.0, 7.0]))]
        u = units.Unit(['a', 'b'], params, keep)
        parts = [
            u.numel,
            len(u.flat),
            len(u.shard),
            u.shard.tolist(),
            u._empty().shape,
            u.own(u.flat).tolist(),
            [list(t.shape) for t in u.split(u.flat)],
        ]
        for g in (1.0, 2.0):
            for p in params:
                u.put(p, None if g == 2.0 and p is params[1] else torch.full_like(p, g * (r + 1)))
            parts.append(len(u.waiting))
            u.reduce(torch.empty_like(u.shard))
            u.reduced()
            parts.append(u.shard.grad.tolist())
            u.restart()
        with torch.no_grad():
            u.shard += r
        u.release()
        parts.append(params[0].tolist())
        u.gather().wait()
        found[f'unit {keep}'] = [*parts, [p.tolist() for p in params], len(u.waiting)]
    for stage, name in itertools.product((1, 2, 3), ('mlp', 'cnn') if n == 2 else ('gpt',)):
        book = zero.accounted(stage, name)
        found[f'books {stage} {name}'] = {k: v for k, v in book.items() if k != 'whole'} | dict(
            log=' '.join(event[0] for event, _ in book['whole'])
        )
    for stage, make in zero.zeros.items():
        found[f'words {stage}'] = words_of(make)
    found['nothing'] = answer(zero.Zero1, Own(nn.ReLU()))
    return found


def words_of(make):
    "Names of shards, and what a stage says to what it cannot do"
    out, m = [], make(tiny_model('mlp'))
    out.append([(n, p.numel()) for n, p in m.named_parameters('x.')])
    out.append(answer(make, m.module))
    m(torch.ones(2, 20)).sum().backward()
    for change in (
        lambda: m.module[0].weight.sum().item() > -1e9,
        lambda: m.load_state_dict(m.state_dict(), assign=True),
        lambda: m.module.load_state_dict(m.module.state_dict(), assign=True),
        lambda: repr(m.module[0].weight),
    ):
        out.append(answer(change))
    with m.gathered() as whole:
        out.append(list(whole[0].weight.shape))
    out.append(answer(lambda: m.module[0](torch.ones(2, 20)).shape))
    partly = make(Own(nn.Linear(2, 2), nn.Linear(2, 2)))
    out.append(answer(lambda: partly.module.p0(torch.ones(1, 2)).sum().backward() if make is not zero.Zero3 else None))
    out.append(answer(lambda: Half(partly.module)(partly)))
    return out


class Half:
    "Uses one of the two layers of a module"

    def __init__(self, module):
        self.module = module

    def __call__(self, model):
        self.module.forward = lambda x: self.module.p0(x)
        model(torch.ones(1, 2)).sum().backward()


def test_books_of_ranks(request):
    found = {
        f'{n} ranks: rank {r} {k}': v
        for n in (2, 3)
        for r, one in enumerate(on_ranks(books_of_a_rank, n, timeout=120))
        for k, v in one.items()
        if r in (0, n - 1)
    }
    same_answers(request, 'books', found)


# Matrices that are cut

SMALL = GPTConfig(2, 16, 4, 8, 24, 20)


def place(p):
    return 'whole' if p.is_replicate() else f'cut {p.dim}'


def style(s):
    "A style of parallelize_module, in words that do not depend on the version"
    known = {
        k: v
        for k, v in vars(s).items()
        if k in ('input_layouts', 'output_layouts', 'desired_input_layouts', 'sequence_sharding', 'use_local_output')
    }
    return type(s).__name__, {k: [place(p) for p in v] if isinstance(v, tuple) else v for k, v in sorted(known.items())}


def cuts_of_a_rank():
    "Parts of parameters, owners of tokens, what each way of cutting sends, where DTensors lie, and refusals"
    n, r, found = dist.get_world_size(), dist.get_rank(), {}
    t = torch.arange(48.0).view(8, 6)
    found['parts'] = (
        [
            (list(p.shape), p.cut, p.sum().item())
            for p in (tensor._part(t, 0), tensor._part(t, 1), tensor._part(t, None))
        ],
        tensor._part(None, 0),
    )
    found['owners'] = [[x.tolist() for x in tensor._owned(torch.arange(9), size, None)] for size in (1, 3, 4)]
    found['gathered'] = (
        tensor.gather(torch.arange(6.0).view(1, 2, 3) + r, 1).tolist(),
        tensor.gather(torch.tensor([[float(r)]]), 0).tolist(),
        tensor._scatter(torch.arange(4.0).view(1, 4), 1).tolist(),
    )
    logits, y = torch.arange(24.0).view(1, 3, 8) / 7 + r, torch.tensor([[0, 7, 8]])
    found['loss'] = (
        answer(lambda: round(tensor.vocab_parallel_loss(logits, y).item(), 4)),
        [
            answer(tensor.vocab_parallel_loss, logits, torch.tensor([[0, bad, 1]]))
            for bad in (-1, 8 * n, 8 * n - 1)
            if bad != 8 * n - 1
        ],
    )
    for mode in tensor.modes:
        model = tensor.tensor_parallel(GPT(SMALL), mode)
        found[f'shapes {mode}'] = {
            name: (list(p.shape), p.cut) for name, p in model.named_parameters() if '1.' not in name
        }
        found[f'long {mode}'] = answer(lambda model=model: list(model(torch.zeros(1, 7, dtype=torch.long)).shape))
    found['refused'] = [
        answer(tensor.tensor_parallel, *args)
        for args in (
            (GPT(SMALL), 'tensr'),
            (nn.Linear(2, 2),),
            (GPT(GPTConfig(1, 15, 3, 8, 24)),),
            (GPT(GPTConfig(1, 16, 4, 8, 25)),),
            (GPT(GPTConfig(1, 16, 4, 8, 24, 21)),),
        )
    ]
    mesh = dtensor.init_device_mesh('cpu', (n,))
    for sequence, loss in ((True, False), (False, False), (True, True)):
        model = dtensor.parallelize(GPT(SMALL), mesh, sequence, loss)
        found[f'placed {sequence} {loss}'] = {
            name: [place(x) for x in p.placements] for name, p in model.named_parameters() if '1.' not in name
        }
        found[f'out {sequence} {loss}'] = [
            answer(
                lambda model=model, time=time: (
                    type(out := model(torch.zeros(1, time, dtype=torch.long))).__name__,
                    list(out.shape),
                )
            )
            for time in (8, 7)
        ]
    found['not placed'] = (
        answer(dtensor.parallelize, GPT(SMALL), dtensor.init_device_mesh('cpu', (1, n))),
        answer(dtensor.parallelize, nn.Linear(2, 2), mesh),
    )
    for mode in tensor.modes:
        found[f'sent {mode}'] = {
            k: v for k, v in dtensor.watched(*dtensor._one_layer(SMALL, mode, 2, 8)).items() if k != 'wire'
        }
    return found


def test_cuts_of_ranks(request):
    "Two ranks that share matrices; what a layer sends by the formula; plans of whole models and of stages"
    found = {f'rank {r} {k}': v for r, one in enumerate(on_ranks(cuts_of_a_rank, 2)) for k, v in one.items()}
    for tp, mode in itertools.product((1, 2, 8), tensor.modes):
        found[f'traffic {tp} {mode}'] = (
            dtensor.layer_traffic(96, 24, tp, mode),
            dtensor.layer_traffic(8, 5, tp, mode, 2),
        )
    for sequence in (True, False):
        found[f'plan {sequence}'] = {name: style(s) for name, s in dtensor.layer_plan(sequence).items()}
    for sequence, loss, (a, b) in itertools.product((True, False), (True, False), ((0, 2), (0, 1), (1, 2))):
        plan = dtensor._plan(M.keep_layers(GPT(SMALL), a, b), sequence, loss)
        found[f'plan {sequence} {loss} {a} {b}'] = [
            (type(m).__name__, style(s) if not isinstance(s, dict) else len(s)) for m, s in plan
        ]
    found |= {f'length {time} {tp}': answer(tensor.check_length, time, tp) for time, tp in ((8, 4), (7, 2), (3, 8))}
    found |= {
        f'divide {tp} {vocab}': [
            answer(tensor.check_divisible, c, tp, vocab) for c in (SMALL, GPTConfig(1, 12, 6, 8, 25, 24))
        ]
        for tp in (1, 2, 3, 5, 6)
        for vocab in (True, False)
    }
    same_answers(request, 'cuts', found)


# Pipelines that run, and models laid out


def stage_work(split):
    "What a stage keeps, in micro-batches, and what comes out of it"
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.arange(p.numel()).view(p.shape) / 8 - 0.5)
    stage, out = P.ModuleStage(net, lambda out, y: (out - y).square().mean(), watch=True), []
    stage.split = split
    for i in range(3):
        out.append(
            (
                stage.forward(i, torch.tensor([[1.0, -2.0, i]]), torch.ones(1, 2)).item(),
                stage.most,
                sum(stage.bytes.values()),
            )
        )
    for i in (1, 0, 2):
        out.append(
            (
                stage.backward(i, torch.tensor(0.5)).tolist(),
                sorted(stage.kept),
                sum(stage.bytes.values()),
                len(stage.later[i]),
            )
        )
        if split:
            out.append((stage.weight(i), sum(stage.bytes.values()), sorted(stage.later)))
    return (
        out,
        [p.grad if p.grad is None else p.grad.tolist() for p in net.parameters()],
        stage.most,
        P.ModuleStage(net).forward(0, torch.ones(2, 3)).requires_grad,
    )


def test_pieces_of_pipelines(request):
    "Stages in micro-batches, what they wait for and hand on, traces put together, and what is refused"
    found = {f'stage {split}': stage_work(split) for split in (False, True)}
    for name, v in (('1f1b', 1), ('interleaved', 2), ('zb1p', 1)):
        t = S.timetable(name, 2, 4, v)
        pipe = SimpleNamespace(t=t, stages={0: 0, 2: 2})
        found[f'source {name}'] = [f'{o}: {P.Pipeline.source(pipe, o)} {P.Pipeline._tag(pipe, o)}' for o in t.ops[0]]
        spans = [[S.Span(r, o, 5.0 + i, 5.5 + i + r) for i, o in enumerate(ops)] for r, ops in enumerate(t.ops)]
        found[f'trace {name}'] = outline(P.as_trace(t, spans))
    y = torch.tensor([1, -100, 2, -100, -100, -100, 3, 4])
    found['parts'] = [
        P._parts(x)
        for x in (
            [None, None],
            y.chunk(4),
            y.view(2, 4).chunk(2),
            torch.zeros(6, 2).chunk(3),
            torch.full((4,), -100).chunk(2),
            torch.arange(4).chunk(4),
        )
    ]
    bad = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    found['checked'] = (
        [
            answer(P._check_stage, P.ModuleStage(m))
            for m in (bad, bad[0], nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval())
        ],
        answer(P._check_stage, P.SleepStage(1, 2)),
    )
    found['tuple'] = answer(P.ModuleStage(nn.LSTM(2, 2)).forward, 0, torch.zeros(1, 1, 2))
    found['sleep'] = [P.SleepStage(*a).times for a in ((1, 2), (1, 2, 0.5), (1, 2, 0))]
    found['cut'] = [
        sorted((s, len(m.module.layers), m.watch) for s, m in G.gpt_stages(c, k, own, watch).items())
        for c, k, own, watch in ((SMALL, 2, [0, 1], True), (GPTConfig(5, 16, 4), 3, range(3), False))
    ]
    found['equal'] = [
        answer(G._check_equal_parts, y, k)
        for y, k in (
            (y.view(8, 1), 2),
            (y.view(8, 1), 4),
            (y.view(8, 1), 1),
            (torch.zeros(4, 2, dtype=torch.long), 4),
            (torch.tensor([[1, -100], [-100, 2]]), 2),
        )
    ]
    same_answers(request, 'pieces', found)


def laid_out_rank(texts):
    "Where a model lies on this rank, what it sends in a step, and what is refused"
    out = []
    for text in texts:
        l = L.parse_layout(text)
        run = M.Parallel(GPT(GPTConfig(4, 16, 4, 8, 24)), l, 4 // (l.dp * l.micro_batch))
        said = dict(
            at=run.at,
            last=run.last,
            kinds=[type(m).__name__ for m in run.stages],
            schedule=type(run.schedule).__name__,
            mesh=run.mesh and list(run.mesh.shape),
            numbers=[sum(p.numel() for p in m.parameters()) for m in run.stages],
        )
        batch = torch.arange(32).view(4, 8) % 24, (torch.arange(32).view(4, 8) + 1) % 24
        micro = M._micro_batches(batch, l, run.at)
        loss = run.step(micro)
        said |= dict(
            loss=round(loss.item(), 3),
            micro=[[x[0, 0].item(), len(x)] for x, _ in micro],
            norm=round(M.clip_gradients(run.parameters(), 0.01, run.mesh).item(), 3),
        )
        said |= dict(
            after=round(M.clip_gradients(run.parameters(), float('inf'), run.mesh).item(), 4),
            short=answer(run.step, micro[1:]),
        )
        held, count = run.evaluate(micro[:1])
        said |= dict(held=round(held, 3), count=count, training=[m.training for m in run.stages])
        out.append(said)
    return out


LAID = [
    'dp2',
    'dp2,zero=1',
    'dp2,zero=3',
    'tp2',
    'tp2,seq_parallel=false',
    'pp2',
    'pp2,vp2',
    'pp2,schedule=gpipe',
    'pp2,schedule=zb1p',
    'dp2,zero=3,shard=1,micro_batch=2',
    'dp2,recompute=full',
]


def test_models_laid_out(request):
    "Two ranks in every way, four in some; cross-checks of outputs, meshes and losses"
    texts = [f'{t},precision=fp32' for t in LAID]
    found = {
        f'{texts[i]} rank {r}': said
        for r, one in enumerate(on_ranks(laid_out_rank, 2, texts, timeout=200))
        for i, said in enumerate(one)
    }
    four = [f'{t},precision=fp32' for t in ('dp2,tp2', 'dp2,pp2', 'dp4,zero=3,shard=2')]
    found |= {
        f'{four[i]} rank {r}': said
        for r, one in enumerate(on_ranks(laid_out_rank, 4, four, timeout=200))
        for i, said in enumerate(one)
        if r in (1, 2)
    }
    found['alone'] = laid_out_rank(
        ['dp1,precision=fp32', 'dp1,precision=fp32,micro_batch=4', 'dp1,zero=1,precision=fp32']
    )
    x = torch.arange(12.0).view(2, 2, 3)
    for name, out in dict(
        plain=x,
        dict=dict(logits=x, loss=1),
        named=SimpleNamespace(logits=x),
        tuple=(x, 1),
        empty=(),
        flat=torch.ones(3),
        text='x',
        nothing=dict(scores=x),
    ).items():
        found[f'scores {name}'] = answer(lambda out=out: list(M._logits(out).shape))
    loss, y = M.Loss(), torch.tensor([[0, 2], [-100, 1]])
    found['loss'] = [round(loss(x.to(t), y).item(), 4) for t in (torch.float32, torch.float64)]
    loss.scale = 0.5
    found['half'] = round(loss((x,), y).item(), 4), M._targets_that_count([(x, y), (x, y)]).item()
    same_answers(request, 'laid_out', found)


# Ranks seen from outside


def fake_rank(rank, kind, what='', when=0.0, detail=''):
    return SimpleNamespace(
        rank=rank,
        said=kind and (kind, what, detail),
        when=when,
        failed=kind not in (None, 'result'),
        proc=SimpleNamespace(pid=99_999_999),
    )


def test_words_about_ranks(request, tmp_path, monkeypatch, capsys):
    "How ranks die, who is blamed, where they are, and what cannot be started"
    found = {f'death {c}': ranks._death(c) for c in (None, 0, 1, 7, -9, -6, -11)}
    words = [
        'raised ValueError: x',
        'was killed by SIGABRT',
        'raised RuntimeError: Connection closed by peer',
        'Broken pipe',
        'ncclRemoteError: y',
        'reset by peer',
        'remote process exited',
    ]
    found['suspicion'] = [ranks._suspicion(fake_rank(0, 'error', w, 0.5)) for w in words]
    stack = 'Thread 0x1 (most recent call first):\n  File "/x/other.py", line 1 in f\n\n'
    stack += 'Current thread 0x2 (most recent call first):\n{}  File "/y/ranks.py", line 5 in _rank_main\n'
    lines = dict(
        waits='  File "/s/torch/distributed/c10d.py", line 7 in all_reduce\n'
        '  File "/s/torch/distributed/log.py", line 8 in wrapper\n  File "/h/mine.py", line 9 in work\n',
        computes='  File "/s/torch/nn/f.py", line 3 in linear\n  File "/h/mine.py", line 4 in work\n',
        own='',
        torch='  File "/s/torch/distributed/c.py", line 7 in wrapper\n',
    )
    for i, (name, text) in enumerate(lines.items()):
        (tmp_path / f'{i}.stack').write_text(stack.format(text))
        found[f'where {name}'] = ranks._where(i, str(tmp_path)), ranks._frames(stack.format(text))
    (tmp_path / '0.out').write_text('one\ntwo\n')
    (tmp_path / '1.out').write_text('three')
    (tmp_path / '2.log').write_bytes(b'\xffend of it')
    call = SimpleNamespace(world_size=4, folder=str(tmp_path), timeout=2.5)
    ranks._forward(call)
    found['forwarded'] = capsys.readouterr().out
    found['outside'] = (
        ranks._where(9, str(tmp_path)),
        ranks._frames(''),
        ranks._written(tmp_path, 2, 'log'),
        ranks._written(tmp_path, 7, 'log'),
    )
    found['last words'] = (
        [ranks._last_words(log) for log in ('abc', 'Fatal Python error: x', 'yFatal Python error: x')],
        [
            (len(w := ranks._last_words(log)), w[:3], w[-3:])
            for log in (
                '0' * 1999 + 'ab',
                '0' * 100 + 'ab' * 1500,
                'zFatal Python error' + '1' * 3000,
                'Fatal Python error' + '1' * 3000,
            )
        ],
    )
    found['failed'] = [
        (str(e), e.rank)
        for e in (
            ranks._failed(fake_rank(2, 'died', 'was killed'), call),
            ranks._failed(fake_rank(1, 'error', 'raised X', detail='trace'), call),
            ranks.RankError('alone'),
        )
    ]
    asked, slept = [], []
    monkeypatch.setattr(ranks.os, 'kill', lambda pid, sign: asked.append((pid, sign.name)))
    monkeypatch.setattr(ranks.time, 'sleep', slept.append)
    late = ranks._timed_out([fake_rank(0, None), fake_rank(1, None), fake_rank(2, 'result'), fake_rank(3, None)], call)
    found['late'] = str(late), late.rank, type(late).__name__, asked, slept
    monkeypatch.undo()
    for args in (
        (0, 1, 'cpu', 'gloo'),
        (64, 1, 'cpu', 'gloo'),
        (65, 1, 'cpu', 'gloo'),
        (2, 0, 'cpu', 'gloo'),
        (2, 0.5, 'cpu', 'gloo'),
        (2, 1, 'gpu', 'gloo'),
        (1.5, 1, 'cpu', 'gloo'),
    ):
        found[f'check {args}'] = answer(ranks._check, *args)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    found['nccl'] = [answer(ranks._check, n, 1, 'cuda', 'nccl') for n in (1, 2, 3)]
    monkeypatch.setattr(ranks.dist, 'is_initialized', lambda: True)
    found['inside'] = answer(ranks._check, 1, 1, 'cpu', 'gloo')
    monkeypatch.undo()
    found['meant'] = [ranks._meant(names) for names in ((), ['time_out'], ['devise', 'prt'], ['zzz'], ['fn'])]
    found['calls'] = [
        answer(ranks._check_call, f, a, k)
        for f, a, k in (
            (math.sqrt, (1, 2), {}),
            (max, (), {}),
            (fake_rank, (1,), dict(timeout=3)),
            (fake_rank, (1, 2), {}),
            (fake_rank, (1, 2), dict(prt=3)),
        )
    ]
    found['importable'] = [
        answer(ranks._importable, f) for f in (math.sqrt, fake_rank, lambda: 0, SimpleNamespace(func=fake_rank))
    ]
    found['methods'] = [ranks._start_method(d) for d in ('cpu', 'cuda')]
    same_answers(
        request,
        'ranks',
        {k: v if k != 'importable' else [w and w.partition(':')[2] for w in v] for k, v in found.items()},
    )


# Real modules


def test_pieces_of_real_modules(request):
    "Batches, losses, distances, parts of a pipeline, and who asks for unused parameters"
    found = {
        f'asks {name} {s}': True
        for name, s in itertools.product(real.real_modules, real.real_strategies)
        if real.asks_unused(name, s)
    }
    (x,), y = real._tokens(1, 3)
    (image,), label = real._images(8)(2, 5)
    encoder = real._t5_tokens(1, 3)
    found['batches'] = [
        list(x.shape),
        list(y.shape),
        (x[:, 1:] == y[:, :-1]).all().item(),
        x.max().item() < 97,
        list(image.shape),
        image.dtype,
        list(label.shape),
        label.max().item() < 10,
        len(encoder[0]),
        encoder[0][1],
        (encoder[0][2] == encoder[1]).all().item(),
    ]
    found['labels'] = [
        sorted(set(real._images(2)(0, 500)[1].tolist())),
        int(real._tokens(0, 400, 5, 7)[1].max()),
        list(real._tokens(0, 2, 5, 7)[0][0].shape),
    ]
    scores, goal = torch.arange(12.0).view(2, 2, 3), torch.tensor([[0, 2], [1, 1]])
    found['losses'] = (
        [round(real._score(o, goal).item(), 4) for o in (scores, (scores, 1), SimpleNamespace(logits=scores))],
        round(real._hidden(SimpleNamespace(last_hidden_state=scores), goal).item(), 4),
    )
    a = dict(w=torch.tensor([3.0, 4.0]), b=torch.tensor([0.0, 1e-4]))
    for name, b in dict(
        same=a,
        far=dict(a, w=torch.tensor([3.0, 4.5])),
        tiny=dict(a, b=torch.tensor([0.0, 2e-4])),
        less=dict(w=a['w']),
        more=dict(a, c=a['w']),
    ).items():
        found[f'apart {name}'] = answer(real._apart, b, a)
    found['apart nothing'] = real._apart({}, {})
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    found['bytes'] = (
        real._trained_bytes(net),
        sorted(real._gradients(net)),
        len(real._pipeline_parts(net)),
        answer(real._pipeline_parts, nn.LSTM(2, 2)),
        [(p['lr'], p['momentum']) for p in real._sgd(net.parameters()).param_groups],
    )
    tagger, routed = real._Tagger(), real._Routed()
    found['models'] = (
        {n: list(p.shape) for m in (tagger, routed) for n, p in m.named_parameters()},
        list(tagger(x)[0].shape),
        list(routed(x).shape),
    )
    with torch.no_grad():
        together, alone = routed(x), [routed(x[i : i + 1]) for i in range(3)]
    found['routed'] = (
        [torch.allclose(together[i : i + 1], one, atol=1e-6) for i, one in enumerate(alone)],
        (routed.block['experts'][0](routed.emb(x)) + routed.emb(x) - routed.emb(x)).shape,
    )
    found['modules'] = (
        answer(real.real_module, 'lst'),
        [
            sum(p.sum().item() for p in real.real_module('lstm (tuple)', s)[0].parameters())
            == sum(p.sum().item() for p in real.real_module('lstm (tuple)', 0)[0].parameters())
            for s in (0, 1)
        ],
    )
    same_answers(request, 'real', found)
