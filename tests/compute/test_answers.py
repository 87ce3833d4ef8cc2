"""Answers of the planner, of GPUs, prices and models as they were: every cause and category of random layouts

Columns of the planner are asked for all runs at once, an answer a cause; texts, errors and edges one by one.
"""

import datetime
import functools
import itertools
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from fsdl_tools.compute import calibrate, choose, columns, cost, gpus, hardware, images, measured, model_sizes, planner
from fsdl_tools.compute import search, step_memory, step_time, uncertainty, validation
from fsdl_tools.compute.gpus import Cluster, Gpu
from fsdl_tools.units import GiB
from fsdl_tools.parallel.layout import Layout
from tests.answers import answer, same_answers

NAMES = [g.name for g in gpus.gpus()]
OWN = Gpu(
    'mine',
    'me',
    'Hopper',
    2027,
    64 * GiB,
    3e12,
    dict(fp16=500.0, bf16=500.0, fp8=900.0),
    link_bandwidth=2e11,
    nvlink_domain=64,
)
BRIDGED = OWN.replace(name='bridged', nvlink_domain=7)
PLAIN = Gpu('plain', 'me', 'none', 2027, 64 * GiB, 3e12, dict(fp32=50.0, tf32=100.0), link_bandwidth=2e11)
MACHINES = [
    *NAMES,
    OWN.to_json(),
    BRIDGED.to_json(),
    'A100',
    'H100-SXM-80GB',
    'H100-SXM-80GB',
    'B200',
    'GB200',
    'GB300',
    'MI355X',
    'A100-SXM-40GB',
]
WRITTEN = [
    '',
    'pytorch',
    'torchtitan',
    'torchtitan FSDP2',
    'megatron-core',
    'Megatron-Core r0.8',
    'Megatron-Bridge 25.07',
    'nanotron',
    'composer',
    'megatron-deepspeed',
    'megatron-lm',
    'jax',
    'transformers',
    'accelerate',
    'nemo 26.02',
    'NeMo 25.11.01',
]


def chooser(seed):
    "A function that takes one of its arguments, the same on every machine"
    generator = random.Random(seed)
    return lambda *given: given[int(generator.random() * len(given))]


def can(gpu):
    "Precisions that a GPU computes in"
    return [p for p in columns._precisions if not hardware.refused(gpu, p)]


def some_run(pick):
    "A row of a table of runs, of which half say more than they must"
    gpu = pick(*MACHINES)
    link = gpus.find(gpu).link_bandwidth
    tp, pp, cp, dp = (
        (pick(1, 1, 2, 4), pick(1, 1, 2, 3, 8), pick(1, 1, 1, 2), pick(1, 2, 4, 6, 32)) if link else (1, 1, 1, 1)
    )
    heads, micro = pick(8, 12, 16, 32), pick(1, 2, 4)
    experts, topk = pick((0, 1), (0, 1), (0, 1), (1, 1), (8, 2), (16, 4), (64, 8))
    hidden = heads * pick(64, 80, 100, 128)
    row = dict(
        layers=pick(2, 6, 12, 22, 48),
        hidden=hidden,
        heads=heads,
        ffn=pick(2, 3, 4) * hidden,
        vocab=pick(1000, 32000, 50257, 128256),
        seq=pick(512, 2048, 8192),
        gpus=tp * pp * cp * dp,
        tp=tp,
        pp=pp,
        dp=dp,
        cp=cp,
        global_batch=dp * micro * pick(1, 1, 2, 3, 8, 24),
        gpu=gpu,
        precision=pick(*can(gpu)),
        framework=pick(*WRITTEN),
    )
    more = dict(
        kv_heads=heads // pick(1, 2, 4),
        gated_mlp=pick(0, 1),
        tied=pick(0, 1),
        flash=pick(0, 1, 1),
        compile=pick(0, 0, 1),
        seq_parallel=pick(0, 1),
        gpus_per_node=pick(1, 2, 4, 8, 9, 72),
        vp=pick(1, 1, 2) if pp > 1 else 1,
        zero=pick(0, 1, 2, 3, 3),
        micro_batch=micro,
        grad_bytes=pick(2, 4),
        shard=pick(0, 0, 1, 2, dp * cp, 64),
        offload=pick(0, 0, 1),
        nic_bandwidth=pick(2e9, 5e10),
        head_dim=pick(32, 64, 100, 128, 256),
        v_dim=pick(64, 128),
        full_attention=pick(0.25, 1),
        layer_extra=pick(0, -5e3, 1e6),
        positions=pick(0, 1),
        document=pick(100, 512, 9000),
        software=pick(2022.5, 2025, 2026.2, 2026.3, 2026.5, 2026.7),
        recompute=pick('none', 'selective', 'every-other-layer', 'full'),
        schedule=pick('1f1b', 'gpipe', 'interleaved', 'zb1p'),
        cluster=pick('', '', 'jean-zay', 'eos', 'meta', 'generic'),
        kernel=pick('', 'sdpa', 'cudnn', 'fa2', 'fa3'),
        graphs=pick('', 'none', 'layers', 'whole'),
        dispatcher=pick('', 'alltoall', 'deepep'),
        recipe=pick('', 'mx', 'current'),
        optimizer=pick(*step_memory.optimizer_states),
        block=pick('', 'llama', 'gpt2', 'qwen3'),
    )
    row |= {k: v for k, v in more.items() if pick(0, 1)}
    if pick(0, 0, 1):
        row |= dict(q_rank=pick(0, 256), kv_rank=128, rope_dim=32)
    if pick(0, 0, 1):
        row |= dict(lora_rank=pick(8, 64), weight_bits=pick(4, 8, 16))
    if not experts:
        return row
    row |= dict(experts=experts, topk=topk, ep=pick(1, 2, 4, 8))
    sizes = dict(
        expert_ffn=pick(768, 1000),
        shared_ffn=pick(0, 512),
        moe_layers=pick(1, row['layers']),
        dense_ffn=pick(1024, 3 * hidden),
    )
    return row | {k: v for k, v in sizes.items() if pick(0, 1)}


@functools.cache
def table_of(seed, count):
    "Rows and complete columns of random runs"
    pick = chooser(seed)
    rows = [some_run(pick) for _ in range(count)]
    return rows, columns.complete_columns(columns.columns(rows))


def digits(values):
    "Numbers with seven digits, texts as they are"
    return [float(f'{v:.7g}') if isinstance(v, float) else v for v in np.asarray(values).tolist()]


def by_name(found, count, name=''):
    "Answers of a nest of arrays over runs: a line for each leaf"
    if hasattr(found, 'items'):
        return {k: v for part, inner in found.items() for k, v in by_name(inner, count, f'{name} {part}').items()}
    if isinstance(found, tuple):
        return {k: v for i, inner in enumerate(found) for k, v in by_name(inner, count, f'{name} {i}').items()}
    return {name.strip(): digits(np.broadcast_to(found, count) if np.size(found) == 1 else found)}


def shaken(table, seed):
    "Constants of which none is 0 or 1, so that each of them is seen"
    generator = random.Random(seed)
    other = lambda v: (v or 0.3) * (0.6 + 0.8 * generator.random())
    return {name: (by, {k: other(v) for k, v in values.items()}) for name, (by, values) in table.items()}


def test_columns(request):
    rows, c = table_of(0, 60)
    same_answers(
        request,
        'columns',
        by_name({k: v for k, v in vars(c).items() if k not in rows[0] and not (k == 'gpu')}, 60)
        | {'adapters': digits(columns.adapter_parameters(c)), 'gpus': [gpus.find(str(g)).name for g in c.gpu]},
    )


def test_constants(request):
    c = table_of(1, 30)[1]
    same_answers(request, 'constants', by_name(columns.resolve(c, hardware.time_constants()), 30))


@pytest.mark.parametrize('seed', [2, 3])
def test_times(request, seed):
    c = table_of(seed, 150)[1]
    table = shaken(hardware.time_constants(), seed) if seed == 3 else None
    same_answers(request, f'times_{seed}', by_name(step_time.step_time(c, table, ready=True), 150))


@pytest.mark.parametrize('seed', [4, 5])
def test_memories(request, seed):
    c = table_of(seed, 100)[1]
    table = step_memory.memory_constants()
    if seed == 5:
        table = {k: v for k, (_, v) in shaken({k: ('', v) for k, v in table.items()}, 5).items()}
    found = step_memory.memory(c, table, ready=True)
    same_answers(request, f'memories_{seed}', by_name(found, 100) | {'parameters': digits(step_memory.parameters(c))})


def test_a_run_alone_is_what_it_is_among_others():
    rows, c = table_of(6, 60)
    t, m = step_time.step_time(c, ready=True), step_memory.memory(c, ready=True)
    for i, row in enumerate(rows):
        one = columns.columns([row])
        alone, room = step_time.step_time(one), step_memory.memory(one)
        for cause in t:
            np.testing.assert_allclose(alone[cause], t[cause][i], rtol=1e-12, atol=1e-15, err_msg=f'{i} {cause}')
        for what in ('allocated', 'reserved', 'device', 'margin', 'starts', 'fits', 'usable'):
            np.testing.assert_allclose(
                float(np.ravel(room[what])[0]),
                float(np.broadcast_to(m[what], 60)[i]),
                rtol=1e-12,
                err_msg=f'{i} {what}',
            )


def grid(**values):
    "Every combination of some values, a dict each"
    return [dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())]


def asked(function, **values):
    "Answers of a function for every combination of arguments"
    return {f'{function.__name__} {list(one.values())}': answer(function, **one) for one in grid(**values)}


def told(function, *many):
    "Answers of a function of one argument"
    return {f'{function.__name__} {one!r}': answer(function, one) for one in many}


SIZES = dict(
    layers=12, hidden=768, heads=12, ffn=3072, vocab=50257, seq=1024, gpus=8, tp=1, pp=1, dp=8, global_batch=32
)


def completed(**more):
    "The columns that a table of one run or several leads to, or the error"
    c = columns.complete_columns(SIZES | more)
    return {
        k: v
        for k, v in vars(c).items()
        if k in more or k in ('gpu', 'grad_bytes', 'graphs', 'dispatcher', 'micro_batch')
    }


def test_words_and_sizes_of_columns(request):
    bad = [
        dict(layers=0),
        dict(layers=-1),
        dict(hidden=math.inf),
        dict(hidden=math.nan),
        dict(seq=[1024, 0]),
        dict(seq=[1024, math.inf]),
        dict(tp=2),
        dict(gpus=[8, 4]),
        dict(vp=0),
        dict(recompute='some'),
        dict(recompute=''),
        dict(precision='fp9'),
        dict(kernel='x'),
        dict(graphs='all'),
        dict(framework='mine'),
        dict(recipe='nx'),
        dict(schedule=''),
        dict(schedule='zb'),
        dict(recompute=['none', 'Full']),
        dict(precision='mxfp8'),
        dict(precision=['mxfp8', 'bf16'], recipe=['', 'nv']),
        dict(precision='nvfp4', recipe='mx'),
        dict(gpus_per_node=8, gpu='B200'),
        dict(gpus_per_node=9, gpu='B200'),
        dict(gpus_per_node=72, gpu='B200'),
        dict(gpus_per_node=73, gpu='B200'),
        dict(gpus_per_node=64, gpu=['B200', 'B300']),
        dict(micro_batch=2),
        dict(pp=2, dp=4),
        dict(dp=[8, 4], gpus=[8, 4]),
        dict(lora_rank=1),
        dict(unknown=3),
        dict(gpu='A100', layers=[1, 2, 3]),
        dict(nic_bandwidth=1e9, cluster=['', 'eos']),
    ]
    found = {f'{b}': answer(completed, **b) for b in bad}
    found |= {
        f'without {k}': answer(columns.complete_columns, {n: v for n, v in SIZES.items() if n != k}) for k in SIZES
    }
    machines = [g for g in ('A100', 'H100', 'B300', 'K80', OWN.to_json()) for _ in (0,)]
    for one in grid(
        framework=['pytorch', 'torchtitan', 'megatron-core', 'jax', 'nanotron'],
        gpu=machines,
        kernel=['', 'sdpa', 'fa3'],
        software=[2026.1, 2026.2, math.inf],
    ):
        found[f'kernel {list(one.values())[0], one["gpu"][:9], *list(one.values())[2:]}'] = answer(
            hardware.kernel_of, **one
        )
    found |= told(
        columns._release,
        'pytorch',
        'Megatron-Core r0.8',
        'megatron-core 25.07',
        'nemo 25.00',
        'nemo 25.12 x',
        'nemo 26.01',
        'torchtitan 19.01',
        'megatron-core r0.6 26.04',
    )
    found |= asked(
        columns._two_byte_gradients,
        framework=['pytorch', 'megatron-core', 'jax', 'nemo'],
        precision=['fp16', 'amp_fp16', 'bf16', 'fp8', 'fp4', 'fp32'],
    )
    for one in grid(
        framework=['megatron-core', 'pytorch'],
        gpu=['GB200', 'B200', OWN.to_json()],
        precision=['fp8', 'bf16'],
        software=[2026.1, 2026.2, 2026.4, 2026.5],
        experts=[0, 1, 8],
    ):
        if not (one['precision'] == 'fp8' and one['framework'] == 'pytorch'):
            found[f'recipe {[str(v)[:9] for v in one.values()]}'] = [
                completed(**one)[k].tolist() for k in ('graphs', 'dispatcher')
            ]
    found |= asked(columns._home, framework=list(columns._frameworks), gpu=['A100', 'H100'], zero=[0, 1, 2])
    found |= {
        f'refused {g} {p}': hardware.refused(g, p)
        for g in ('K80', 'A100', 'B200', PLAIN)
        for p in ('fp32', 'tf32', 'bf16', 'mxfp8', 'nvfp4', 'amp_fp16')
    }
    found |= {
        f'hardware {g[:9]} {p}': answer(hardware.gpu_rates, g, p)
        for g in ('K80', 'A100', 'B200', 'RTX 3090', PLAIN.to_json())
        for p in ('fp32', 'tf32', 'bf16', 'fp8', 'fp4')
    }
    found |= {
        f'attention {g} {k} {d} {r}': hardware.attention_shares('pytorch', g, k, d, r)
        for g, k, d, r in itertools.product(
            ('A100', 'H100', 'K80', 'B300'), ('', 'fa3', 'cudnn'), (64, 100, 256), ('True', 'False')
        )
    }
    found |= {f'numbers {v!r}': answer(columns._number, v) for v in ('True', 'False', '1.5', 2, 'x', True)}
    found |= {
        f'{one}': answer(columns.columns, [one | SIZES])
        for one in ({}, dict(layers=None), dict(flash=''), dict(tied='True', kernel=None), dict(vp='2'))
    }
    found |= {f'codes {x}': answer(columns._codes, x) for x in ([], [1], [2, 2], [2, 1], ['b', 'a', 'b'], 3.0)}
    found |= {
        f'each {x}': answer(columns._each, lambda *a: '-'.join(a), *x)
        for x in ([['a', 'b'], 1], [['b', 'a', 'b'], [1, 2, 2]], ['a', 3], [['x', 'x'], 2])
    }
    same_answers(request, 'words', found)


def test_times_of_parts(request):
    found = asked(
        step_time.waves, m=[1, 127, 128, 129, 20_000], n=[128, 1000, 13_824], sms=[1, 108, 132], tile=[128, 64]
    )
    found |= {
        f'waves {m}': answer(step_time.waves, *m)
        for m in ((128, 128), (4096, 4096), (128 * 108, 128), (128 * 108, 129))
    }
    k = columns.resolve(
        columns.complete_columns(SIZES | dict(cluster='jean-zay', nic_bandwidth=math.nan)), hardware.time_constants()
    )
    k.ring, k.nic = 3e11, 2e10
    for n, local, nodes in itertools.product((0, 1e3, 1e9), (1, 2, 4, 5, 8), (1, 2, 9)):
        found[f'collective {n, local, nodes}'] = answer(step_time.collective, n, np.array(local), np.array(nodes), k)
    found |= {
        f'spans {x}': answer(step_time._spans, *x) for x in itertools.product((1, 2, 4, 16), (1, 2, 3, 16), (1, 4, 8))
    }
    found |= {
        f'smooth {x}': answer(step_time._smooth_max, *x) for x in ((0, 0), (1, 1), (1, 2), (2, 1.9), (1e-40, 0), (5, 0))
    }
    found |= {f'distinct {x}': answer(step_time._distinct, *x) for x in ((1, 1), (4, 1), (4, 2), (8, 8))}
    for c in (dict(gpu='RTX 3090'), dict(gpu=['A100', 'RTX 3090'])):
        found[f'{c}'] = answer(step_time.step_time, SIZES | c)
    for c in (dict(gpu='RTX 3090', gpus=1, dp=1), dict(gpu=['A100', 'RTX 3090'], gpus=[8, 1], dp=[8, 1])):
        found[f'{c}'] = answer(lambda c: by_name(step_time.step_time(c), np.size(c['gpus'])), SIZES | c)
    found |= {
        f'refused {c}': answer(step_time.step_time, SIZES | c)
        for c in (
            dict(gpu='A100', precision='fp8'),
            dict(gpu=['H100', 'A100', 'K80'], precision='fp8'),
            dict(gpu=['H100', 'K80'], precision=['fp8', 'bf16']),
        )
    }
    same_answers(request, 'times_of_parts', found)


def test_stages(request):
    shapes = np.array(
        list(itertools.product((1, 2, 5, 12, 13, 32), (256, 4096), (1000, 200_000), (1, 2, 3, 4, 7, 8, 16))), float
    ).T
    layers, hidden, vocab, pp = shapes
    found = {
        f'place {by}': digits(np.array(step_memory.place(layers, hidden, 4 * hidden, vocab, pp, np.array(by)), float).T)
        for by in (True, False)
    }
    rows = grid(pp=[1, 2, 3, 8], layers=[8, 9, 22], vocab=[1000, 200_000], vp=[1, 2], framework=['nanotron', 'pytorch'])
    c = columns.complete_columns(columns.columns([SIZES | r | dict(gpus=r['pp'] * 8, hidden=512) for r in rows]))
    k = columns.resolve(c, hardware.time_constants())
    step_time._need_links(c, k)
    step_time.derive(c, k)
    lay, end = step_time.layer(c, k), step_time.ends(c, k)
    found |= by_name(step_time._slowest(c, k, lay, end), len(rows), 'slowest') | by_name(
        step_time._slot(c, k, lay, end)[0], len(rows), 'slot'
    )
    rows = grid(pp=[1, 2, 3, 4], tp=[1, 2, 16, 32, 64], dp=[1, 4, 8], m=[1, 2, 3, 8], micro_batch=[1, 64])
    rows = [
        SIZES
        | r
        | dict(
            framework='nanotron',
            gpus=r['pp'] * r['tp'] * r['dp'],
            heads=64,
            hidden=4096,
            ffn=16384,
            layers=32,
            global_batch=r['dp'] * r['m'] * r['micro_batch'],
            gpu='H100',
        )
        for r in rows
    ]
    m = step_memory.memory(columns.columns([{k: v for k, v in r.items() if k != 'm'} for r in rows]))
    found |= {what: digits(m[what]) for what in ('margin', 'starts', 'fits')} | {
        'activations': digits(m['first']['activations'])
    }
    same_answers(request, 'stages', found)


def plain_run(pick):
    "A run of modules as transformers write them"
    tp, pp, dp, gpu = pick(1, 1, 2), pick(1, 1, 2), pick(1, 1, 4), pick('A100', 'H100', 'B200')
    row = SIZES | dict(
        framework=pick('transformers', 'accelerate'),
        gpu=gpu,
        precision=pick(*can(gpu)),
        hidden=pick(256, 1024),
        heads=16,
        ffn=pick(512, 4096),
        layers=pick(2, 8),
        vocab=pick(500, 50257),
        seq=pick(64, 1024),
        tp=tp,
        pp=pp,
        dp=dp,
        gpus=tp * pp * dp,
        gated_mlp=pick(0, 1),
        tied=pick(0, 1),
        block=pick('', 'llama', 'gpt2'),
    )
    row |= dict(
        micro_batch=pick(1, 8),
        zero=pick(0, 1, 2, 3),
        optimizer=pick(*step_memory.optimizer_states),
        offload=pick(0, 0, 1),
        grad_bytes=pick(2, 4),
        recompute=pick('none', 'full', 'every-other-layer', 'selective'),
        flash=pick(0, 1),
        compile=pick(0, 0, 0, 1),
        seq_parallel=pick(0, 1),
        schedule=pick('1f1b', 'gpipe'),
        shard=pick(0, 2),
        lora_rank=pick(0, 0, 0, 4),
    )
    return row | dict(global_batch=dp * row['micro_batch'] * pick(1, 1, 4))


def test_plain_modules(request):
    pick = chooser(8)
    m = step_memory.memory(columns.columns([plain_run(pick) for _ in range(100)]))
    same_answers(request, 'plain_modules', by_name({k: m[k] for k in ('first', 'last', 'device')}, 100))


def test_bytes_of_parameters(request):
    frameworks = [
        'pytorch',
        'torchtitan',
        'composer',
        'nanotron',
        'megatron-deepspeed',
        'megatron-lm',
        'megatron-core',
        'jax',
    ]
    found = {
        f'{f} {p} {g} {z}': step_memory.bytes_per_parameter(f, p, g, zero=z)
        for f, p, g, z in itertools.product(frameworks, ['fp32', 'tf32', 'fp16', 'bf16', 'amp_bf16'], [0, 2, 4], [0, 1])
    }
    found |= {
        f'optimizer {o}': answer(step_memory.bytes_per_parameter, 'pytorch', p, optimizer=o)
        for o in ('', 'rms', *step_memory.optimizer_states)
        for p in ('bf16', 'fp32')
    }
    found |= {
        f'sharded {x}': answer(step_memory.sharded, (2, 4, 12), *x)
        for x in itertools.product((0, 1, 2, 3), (1, 8), (0, 1))
    }
    found |= asked(step_memory.block_of, architecture=['', 'llama', 'gpt2', 'bert', 'no such'], gated=[True, False])
    found |= told(step_memory.as_written, 'transformers', 'Transformers 5', 'accelerate', 'pytorch', '', 'torchtitan')
    found |= {
        f'parameters {d}': answer(
            step_memory.parameters,
            {k: v for k, v in (SIZES | d).items() if k not in ('gpus', 'tp', 'pp', 'dp', 'global_batch', 'gpu')},
        )
        for d in grid(tied=[0, 1], positions=[0, 1], gated_mlp=[0, 1])
    }
    same_answers(request, 'bytes_of_parameters', found)


WRITTEN_GPUS = [
    'h100',
    'NVIDIA H100 80GB HBM3',
    'NVIDIA A100-SXM4-40GB',
    'A100-PCIE-40GB',
    'A100',
    'Tesla V100-SXM2-32GB',
    'NVIDIA GeForce RTX 3090',
    '3090',
    '1080 Ti',
    'A100 SXM',
    'A100 90GB',
    'h100 pcie',
    'GH100 [H100 SXM5 80GB]',
    'H100 SXM 79GB',
    'H100 SXM 77GB',
    'AMD Instinct MI300X OAM',
    'Quadro RTX 6000',
    'RTX 6000',
    'V100',
    'T4 16GB',
    'TPU v4',
    'B200 180GB',
    'H100 NVL 94 GiB',
    '8x H100',
    'H100 x 8',
    'a100:4',
    'H100*8',
    '2 × A100 SXM 80GB',
    'p4d.24xlarge',
    'p3.8xlarge',
    'a2-highgpu-8g',
    'a3-megagpu-8g',
    'x9.xlarge',
    'Standard_ND96asr_v4',
    'gpu_8x_h100',
    'standard24',
    'A100 MIG 1g.5gb',
    'mig',
    '',
    ' ',
    'xyz',
    'H10',
    'A1000',
    'rtx 30',
    'RTX 9999',
    'gtx',
    '99',
    '7',
    'H1OO',
    'MI30',
    'L4O',
    'Ампер',
    'None',
    '{',
    '{"name": 1}',
    OWN.to_json(),
    'A100-SXM-80GB x',
    'v100 sxm3 32gb',
]


def test_gpus(request):
    found = {f'find {w!r}'[:60]: answer(lambda w: gpus.find(w).name, w) for w in WRITTEN_GPUS}
    found |= {f'parts {w!r}'[:60]: answer(gpus._parts, w) for w in WRITTEN_GPUS} | {
        f'nearest {w!r}'[:60]: answer(gpus._nearest, w) for w in WRITTEN_GPUS[-40:]
    }
    found |= {
        f'rack {g} {n}': gpus.rack_of(g, n)
        for g in ('A100', 'B200', 'H100', 'RTX 3090', 'GH200 96GB', 'B300', 'GB200')
        for n in (1, 2, 8, 9, 32, 64, '72.0', 73)
    }
    found |= {
        f'node {d} {n}': gpus._node_size(SimpleNamespace(nvlink_domain=d), n)
        for d in (None, 2, 8, 9, 12, 32, 72)
        for n in (1, 8, 9, 12, 64, 72, 80, 96, 100, 144)
    }
    for one in grid(
        gpu=['A100', 'GB200', OWN],
        gpus=[1, 8, 12, 64],
        gpus_per_node=[None, 4],
        interconnect=['nvlink-only', 'ethernet-25'],
        gpu_hour=[None, '$2.49/h'],
    ):
        made = lambda: Cluster(**one)
        shown = lambda: (
            made().price,
            made().nodes,
            made().memory,
            made().nic_bandwidth,
            made().gpus_per_node,
            made().bandwidth(4),
            made().bandwidth(5),
            made().bandwidth(64),
        )
        found[f'cluster {[getattr(v, "name", v) for v in one.values()]}'] = answer(shown)
    for kw in (
        dict(gpus=0),
        dict(gpus=2.5),
        dict(gpus=8, gpus_per_node=0),
        dict(interconnect='wifi'),
        dict(gpu_hour=0),
        dict(gpu_hour='x'),
        dict(nic_bandwidth=3e9, gpus=16),
    ):
        found[f'{kw}'] = answer(lambda kw: Cluster('H100', **kw).nic_bandwidth, kw)
    found |= {f'cost {s!r}': answer(Cluster('H100', 8, gpu_hour=3).cost, s) for s in (3600, '7d', 0, -1, 'x')} | {
        'cost': answer(Cluster('H100').cost, 5),
        'flops': Cluster('H100', 8).flops('fp8'),
    }
    found |= {
        f'peak {x}': answer(gpus.peak, *x)
        for x in itertools.product(
            ('A100', 'K80', 'H100', 'MI250'), ('bf16', 'fp32', 'fp8', 'half', 'x'), (False, True)
        )
    }
    found |= {
        f'first {x}': answer(gpus.first_peak, *x)
        for x in (('K80',), ('T4', 'bf16'), ('A100', 'fp8', 'tf32'), (PLAIN,), ('H100', 'fp8'))
    }
    found |= {
        f'roof {x}': answer(gpus.roofline, 'A100', *x)
        for x in ((1,), (0.0,), ([1, 152, 153, 1000],), (100, 'fp32'), (300, 'bf16', True))
    } | {f'ridge {p}': answer(gpus.ridge, 'H100', p) for p in ('bf16', 'fp8', 'x')}
    found |= {
        f'matmul {x}': answer(gpus.matmul_work, *x)
        for x in ((1, 2, 3), (128, 256, 512, 4), (0, 1, 1), (1, 0, 1), (1, 1, 0))
    } | told(measured.efficiency, 'A100', 'H100', 'K80')
    for name, precision in (
        ('A100', 'bf16'),
        ('RTX 3090', 'fp16'),
        ('RTX 2080 Ti', 'fp16'),
        ('H100', 'fp8'),
        ('V100', 'fp16'),
        ('RTX A5000', 'fp32'),
    ):
        dense = gpus.peak(name, precision) / 1e12
        for claimed in [dense * f for f in (0.9, 0.965, 0.975, 1, 1.025, 1.035, 2, 2.07, 4, 3, 0.5, 0.25)] + [
            19.5,
            35.6,
            624,
            0,
            -1,
        ]:
            found[f'explained {name} {claimed:.5g}'] = answer(measured.explain_peak, name, claimed, precision)
    found |= {
        f'same {x}': answer(measured._same, *x)
        for x in ((1, None), (1.03, 1), (1.0299, 1), (0.97, 1), (0.9701, 1), (1, 0))
    }
    found |= {
        f'of the table {kw}': gpus.find('H100').replace(**kw).usable
        for kw in (dict(tdp=1.0), dict(memory=5), dict(memory='9GB'))
    }
    found['text of the table'] = gpus.gpu_table(['A100', 'K80'])._repr_markdown_()
    shown = gpus.gpu_table(['A100', 'K80', 'H100', 'T4', 'MI250'])
    found |= {
        f'row {r["name"]}': {k: r[k] for k in ('GB', 'GB/s', '16 bit', 'fp8', 'best', 'W', 'each way')} for r in shown
    }
    found['page'] = [list(r.values()) for r in OWN._page()]
    found |= {
        f'own {kw}': answer(lambda kw: (OWN.replace(**kw).usable, OWN.replace(**kw).memory), kw)
        for kw in (
            dict(memory='80GB'),
            dict(driver_memory=5),
            dict(memory=7, driver_memory=6),
            dict(memory=0),
            dict(bandwidth=0),
            dict(tflops=dict(fp16=0)),
            dict(tflops=dict(fp1=1)),
            dict(achievable=dict(bf16=-1)),
            dict(colour=1),
        )
    }
    rows = [('8x RTX 3090', 'bert_large_squad'), ('p3.8xlarge', 'ssd'), ('9x A', 'ssd'), ('8x RTX 3090', 'x')]
    found |= {
        f'throughput {r} {p} {s}': answer(measured.throughput, *r, p, s)
        for r in rows
        for p in ('fp16', 'fp32', 'fp8')
        for s in (*measured.suites, 'x')
    }
    found |= {
        f'scaling {x}': answer(measured.scaling, 'RTX 3090', *x) for x in ((1,), (4,), (8,), (8, 'fp32'), (3,))
    } | {'speedup': answer(measured.speedup, '8x RTX 3090', '1x RTX 3090', 'fp32', ['ssd'])}
    found |= {
        f'row {r["name"]} {n}': gpus._scaled(n, f)
        for r in [dict(name='scaled')]
        for n, f in ((None, 2), (1.5, 3), (2, 1e9))
    }
    same_answers(request, 'gpus', found)


def pricelist(tmp_path, text):
    "What reading a price list gives: rows, or the error without its folder"
    path = tmp_path / 'prices.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return answer(lambda: [list(o.to_dict().values()) for o in cost.read_prices(path)])


def test_prices(request, tmp_path):
    head, row = 'provider,gpu,gpus,usd_per_hour', 'A,H100,8,$20.5'
    texts = [
        f'{head}\n{row}\n',
        f'{head}\n',
        '',
        f'{head}\n{row},5\n',
        f'{head}\nA,H100,8\n',
        f'{head.upper()}\n{row}\n',
        f'{head},gpu\n{row},T4\n',
        'provider,gpu\nA,T4\n',
        f'{head},colour\n{row},red\n',
        f'{head}\n' + 'A,XX,1,1\n' * 7,
        f'{head}\n' + 'A,XX,1,1\n' * 4 + row,
        f'{head}\n' + 'A,XX,1,1\n' * 5,
        f'{head}\nA,T4,0,1\nA,T4,1.5,1\nA,T4,1234567,1\nA,T4,999999,1\n',
        f'{head}\nA,T4,1,1000000\nA,T4,1,1000001\n',
        f'{head}\nA,T4,1,0\n,T4,1,1\nA,T4,1,-2\n',
        head.replace(',', ';') + '\nA;T4;1;"2,5"\n',
        head.replace(',', '\t') + '\nA\tT4\t1\t2\n',
        f'{head},tier,date\n{row},spot,2026-05\n{row},x,\n{row},spot,2026-13\n{row},reserved,26\n',
        b'\xef\xbb\xbf' + f'{head}\n{row}\n'.encode(),
        f'{head}\n{row}'.encode() + b'\xff',
        f' {head}\n {row} \n',
        f'{head},Usd per hour\n',
        f'{head},{"x" * 60}\n',
        f'\n\n{head}\n{row}\n',
        f'{head}\nA,T4,1,{"9" * 400}\n',
    ]
    found = {f'list {i}': pricelist(tmp_path, t) for i, t in enumerate(texts)} | told(
        cost._separator, 'a,b', 'a;b,c;d', 'a\tb\tc', '', '\n\na;b\n,,,,'
    )
    found |= told(cost._day, '2026', '2026-05', '2026-05-24', '2026-5', '26', '2026-02-30', '', '2026-05-24-01')
    offers = [
        cost.Offer(p, g, n, usd, t, i, date=d)
        for p, g, n, usd, t, i, d in [
            ('A', 'H100', 8, 24, 'on-demand', '', '2026-05'),
            ('A', 'A100', 8, 16, 'on-demand', '', '2026-05-24'),
            ('A', 'V100 SXM2 16GB', 8, 40.0, 'on-demand', 'p3.16xlarge', '2026'),
            ('B', 'H100', 1, 1.5, 'spot', '', '2025-11-30'),
            ('B', 'RTX 3090', 8, 2, 'reserved', '', ''),
            ('B', 'A100', 1, 1.5, 'on-demand', '', '2026-01-01'),
            ('C', 'V100 SXM2 16GB', 4, 12.24, 'on-demand', 'p3.8xlarge', ''),
            ('C', 'T4', 1, 0.35, 'spot', '', ''),
        ]
    ]
    found |= {
        f'age {n} {d}': answer(cost.price_age, offers[:n], datetime.date(2026, *d))
        for n in (0, 1, 2, 4, 8)
        for d in ((5, 1), (7, 30), (7, 31), (8, 22), (8, 23))
    }
    found['age of none'] = cost.price_age(offers[4:5])
    found |= {
        f'per gpu {i}': (o.per_gpu, o.cluster(2).price, o.cluster(2).gpus, o.cluster().gpus_per_node)
        for i, o in enumerate(offers)
        if o.gpus == 8
    }
    found |= {
        f'restarts {x}': answer(cost.with_restarts, *x)
        for x in itertools.product((3600, '20h'), (1, 600, '12h'), (1, 60, '5min'), (0, 300), (None, 100, '10h'))
    }
    found |= {
        f'restarts {x}': answer(cost.with_restarts, *x)
        for x in ((0, 1), (1, 0), (1, 1, 0), (1, 1, 1, -1), ('x', 1), (1, 1, 1, 1, -1), (1e9, 1e-2))
    } | {f'best {x}': cost._best_interval(*x) for x in ((1, 1), (7200, 60))}
    e = [
        SimpleNamespace(step_time=2.5, tokens_per_second=100),
        SimpleNamespace(step_time=2.5),
        SimpleNamespace(tokens_per_second=100),
        datetime.timedelta(hours=1),
        5,
        2.5,
        '12h',
        'x',
        0,
        None,
        [1],
    ]
    found |= {
        f'seconds {i} {kw}': answer(cost.seconds_of, t, **kw)
        for i, t in enumerate(e)
        for kw in (
            {},
            dict(steps=10),
            dict(steps='10k'),
            dict(tokens='26B'),
            dict(steps=4, tokens=7),
            dict(steps=0),
            dict(steps=-1),
        )
    }
    found |= {
        f'task {x}': answer(cost.task_named, *x)
        for x in itertools.product(
            ('bert-large', 'bert', 'resnet50', 'ssd', 'gnmt', 'BERT_large squad', 'x', ''),
            ('', 'squad', 'x'),
            ('Lambda 2023', 'Lambda 2025'),
        )
    }
    shown = lambda done: [(x.offer.provider, x.offer.gpu, x.offer.gpus, x.hours, x.wall_hours, x.dollars) for x in done]
    found |= {
        f'experiments {x}': answer(lambda x: shown(cost.experiments(offers, *x)), x)
        for x in (
            (),
            ('bert_large_squad', '10M'),
            ('resnet50', 1e6, 'fp32'),
            ('ssd', None, 'fp16', 'Lambda 2022'),
            ('x',),
            ('ssd', 0),
            ('ssd', -1),
            ('ssd', None, 'fp8'),
            ('ssd', None, 'fp16', 'x'),
        )
    }
    found |= {
        'none of them': answer(cost.experiments, offers[4:5] * 9, 'ssd', 1, 'fp16', 'Lambda 2025'),
        'none': answer(cost.experiments, []),
    }
    done = cost.priced(offers, lambda o: '20h' if o.gpu != 'T4' else None, '12h', checkpoint=30)
    found |= {
        'priced': shown(done),
        'frontier': shown(cost.frontier(done)),
        'upheld': cost.upheld(done),
        'table': [r | {} for r in cost.cost_table(done, 2)],
        'titles': [cost._title(o) for o in offers],
        'spot': answer(cost.priced, offers, lambda o: 1, 0),
    }
    found['upheld of one price'] = cost.upheld(
        [
            cost.Experiment(o.replace(usd_per_hour=usd, gpus=1), 1, 1, d)
            for o, usd, d in zip(offers[:3], (1, 0.999, 0.998), (1, 3, 2), strict=True)
        ]
    )
    found |= {
        f'upheld {usd}': cost.upheld(
            [
                cost.Experiment(o.replace(usd_per_hour=u, gpus=1), 1, 1, d)
                for o, u, d in zip(offers[:2], (1, usd), (1, 3), strict=True)
            ]
        )
        for usd in (0.9985, 0.999, 0.9995, 1.5)
    }
    found |= {
        f'ranks {x}': answer(cost.rank_correlation, *x)
        for x in (([1, 2, 3], [3, 2, 1]), ([1, 1, 2, 5], [3, 4, 4, 9]), ([1, 1], [1, 2]), ([1], [1]))
    } | {
        f'round {x}': cost._round_numbers(x)
        for x in ([1], [0.5, 40], [0.02, 3000], [1 / 0.6, 1 / 1.6], [9e5], [0.01], [5e5])
    }
    found |= {
        f'rule {i} {x}': answer(cost.transformer_seconds, offers[i], *x)
        for i in (0, 3, 4, 7)
        for x in (('1.3B', '26B'), (5e9, 1e9), (40e9, 1e9), (1e9, 1e9, 0.2, 4), (0, 1), (1, 0), (1, 1, 0))
    } | {'just fits': cost.transformer_seconds(offers[0], offers[0].cluster().memory / 16, 1e9)}
    found |= {
        f'picked {x}': answer(lambda x: [o.provider + o.gpu for o in cost.pick_offers(offers, *x)], x)
        for x in (
            (),
            ('spot',),
            ('all', 'A'),
            ('all', '', 'h100'),
            ('spot', 'B', 'T4'),
            ('x',),
            ('all', 'X'),
            ('all', '', 'X'),
        )
    }
    asks = [
        {},
        dict(model='resnet50', samples='1M', precision='fp32'),
        dict(params='1.3B', tokens='26B'),
        dict(params='1.3B'),
        dict(tokens=1),
        dict(params='900B', tokens=1),
        dict(within='30h'),
        dict(within=1),
        dict(suite=2025),
        dict(suite='x'),
        dict(params='1B', tokens='1B', mfu=0.2, within='1d', spot_mtbf='1h'),
        dict(within=3600 * 24),
    ]
    found |= {
        f'experiment {x}': answer(lambda x: (lambda d: (shown(d[0]), d[1]))(cost.price_experiment(offers, **x)), x)
        for x in asks
    }
    exact = cost.price_experiment(offers)[0][0].wall_hours * 3600
    found |= {
        f'within {f}': answer(lambda f: len(cost.price_experiment(offers, within=exact * f)[0]), f)
        for f in (0.999, 1, 1.001)
    }
    found |= {
        f'benchmark {o.gpus}x {o.gpu} {t}': answer(cost._benchmark_seconds, o, t, 1e6)
        for o in offers
        for t in ('ssd', 'x')
    } | {
        f'bad {kw}': answer(lambda kw: cost.Offer(**dict(provider='A', gpu='T4', gpus=1, usd_per_hour=1) | kw).gpu, kw)
        for kw in (
            dict(provider=''),
            dict(gpus=0),
            dict(usd_per_hour=0),
            dict(tier='x'),
            dict(date='x'),
            dict(date='2026'),
            dict(gpu='x'),
        )
    }
    found |= {
        'listed': len(cost.prices(gpu='H100')) > 3,
        'since': all(o.date >= '2026-05' for o in cost.prices(since='2026-05')),
        'until': all(o.date <= '2025' for o in cost.prices(until='2025')),
        'only': {(o.tier, o.provider) for o in cost.prices(tier='spot', provider='AWS')},
        'column': answer(cost.prices, tear=1),
    }
    same_answers(request, 'prices', found)


def errors_of(seed, count=90):
    "Published runs with their predictions, made up"
    pick, generator = chooser(seed), random.Random(seed)
    rows = []
    for i in range(count):
        rows.append(
            dict(
                run=f'r{i}',
                study=pick('x', 'y'),
                model=pick('m', 'n'),
                cell=pick(*'abcdefg'),
                generation=pick('Hopper', 'Ampere'),
                bits=pick('16 bits', '8 bits'),
                strategy=pick('dense', 'dense', 'moe', 'lora'),
                framework=pick('pytorch', 'jax', 'nanotron'),
                gpu=pick('A100 SXM 80GB', 'H100 SXM'),
                gpus=pick(8, 64),
                parameters=pick(1e9, 7e9, 7e10),
                seq=pick(2048, 8192),
                layout=pick('dp8', 'dp16', 'dp8,tp2', 'tp2,pp2', 'tp2'),
                predicted=1 + generator.random(),
                measured=1 + generator.random(),
            )
        )
    rows += [r | dict(cell='h', strategy='lora', framework='composer', generation='Blackwell') for r in rows[:5]]
    return rows, uncertainty._log_ratio(rows), np.array([r['cell'] for r in rows])


def test_uncertainty(request, monkeypatch):
    made = {'time': errors_of(1), 'memory': errors_of(2, 40)}
    monkeypatch.setattr(uncertainty, '_errors', made.get)
    families = [
        tuple(f.values())
        for f in grid(
            g=['Hopper', 'Blackwell', 'other'],
            b=['16 bits', '8 bits'],
            s=['dense', 'moe', 'lora'],
            f=['pytorch', 'jax', 'composer'],
        )
    ]
    found = {}
    for f in families:
        asks = [('time', f, 0.8), ('time', f, 0.5)] if f[2] != 'moe' else [('memory', f)]
        found |= {f'{ask}': list(uncertainty.interval.__wrapped__(*ask).to_dict().values()) for ask in asks}
        found[f'apart {f}'] = answer(uncertainty.told_apart.__wrapped__, f)
    small = [r | dict(measured=r['predicted'] * (1 + i / 4000)) for i, r in enumerate(made['time'][0])]
    made['time'] = small, uncertainty._log_ratio(small), made['time'][2]
    found |= {f'apart in the small {f}': answer(uncertainty.told_apart.__wrapped__, f) for f in families[::5]}
    found |= {
        f'enough {n} {k}': bool(uncertainty._is_enough(np.arange(n) % k, np.arange(n) >= 0))
        for n in (11, 12, 13)
        for k in (3, 4, 5)
    }
    found |= {f'spread {f}': uncertainty._spread.__wrapped__(f) for f in ('pytorch', 'jax', 'composer', 'x')} | {
        f'tail {x}': uncertainty._tail(*x) for x in ((0.8, 4), (0.8, 100), (0.5, 1), (0.9, 7))
    }
    found |= {
        f'weights {m}': answer(uncertainty._weights, np.array(m, bool), np.array(list('aabcc')))
        for m in ([1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0])
    }
    found |= {
        f'quantile {q}': uncertainty._quantile(np.array([3.0, 1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3, 0.4]), q)
        for q in (0, 0.1, 0.16, 0.5, 0.84, 1)
    }
    monkeypatch.setattr(uncertainty, '_spread', lambda f: 0.1)
    found |= {
        f'fits {d}': answer(uncertainty.probability_to_fit, d, 80e9, 'nanotron')
        for d in (1, 79e9, 80e9, 81e9, 90e9, [70e9, 1e30], 0)
    } | {f'below {x}': float(uncertainty._share_below(x)) for x in (-99, -31, -30, -1, 0, 0.5, 30)}
    for n, what in ((3, 'time'), (20, 'memory'), (0, 'time')):
        found[f'nearest {n}'] = [
            list(r.values()) for r in uncertainty.nearest_runs(families[0], 'H100 SXM', 3e9, 32, 4096, n, what)
        ]
    found |= {
        f'shown {what}': uncertainty.nearest_runs(families[0], 'H100 SXM', 3e9, 32, 4096, 1, what)._repr_markdown_()
        for what in ('time', 'memory')
    }
    found['held out'] = [list(r.values()) for r in uncertainty.held_out('memory', 0.5)]
    found |= {
        f'family {x}': uncertainty.family_of(*x)
        for x in itertools.product(
            ('A100', 'B300', 'T4', 'GB200'), ('bf16', 'fp8', 'mxfp8', 'fp4', 'amp_fp16', 'nvfp4'), ('', 'nemo')
        )
    } | {f'wider {f}': uncertainty._wider(f) for f in families[:2]}
    same_answers(request, 'uncertainty', found)


def test_calibration(request):
    rows = [
        SIZES
        | dict(
            heads=8,
            global_batch=8 * m * b,
            micro_batch=b,
            layers=l,
            hidden=h,
            ffn=4 * h,
            tp=t,
            dp=8 // t,
            framework='pytorch',
            gpu='H100',
            seq=s,
        )
        for m, b, l, h, t, s in (
            (1, 1, 12, 768, 1, 1024),
            (2, 2, 24, 1024, 2, 2048),
            (1, 4, 12, 1536, 1, 512),
            (4, 1, 6, 768, 4, 4096),
            (2, 8, 12, 768, 2, 1024),
        )
    ]
    factors = dict.fromkeys(calibrate._levers, 1.0) | dict(products=0.8, memory=0.9, host=1.3)
    kept = dict.fromkeys(calibrate._memory_levers, 1.0) | dict(activations=1.2, context=1.5)
    c = columns.complete_columns(columns.columns(rows))
    seconds, room = (
        calibrate._seconds(c, factors),
        step_memory.memory(c, calibrate.Calibration('', 0, {}, memory=kept).memory_table(), ready=True),
    )
    timed = [r | dict(step_time_s=float(s)) for r, s in zip(rows, seconds, strict=True)]
    peaks = [
        r | dict(peak_gib=float(room[k][i]) / GiB, peak_kind=k)
        for i, (r, k) in enumerate(zip(rows, ('device', 'allocated', 'reserved', 'device', 'device'), strict=True))
    ]
    noisy = [r | dict(step_time_s=r['step_time_s'] * f) for r, f in zip(timed, (1, 1.3, 0.8, 1.1, 0.7), strict=True)]
    plain = lambda made: {k: v for k, v in made.to_dict().items() if k != 'date'}
    asks = dict(
        timed=timed,
        peaks=peaks,
        noisy=noisy,
        three=timed[:3],
        two=timed[:2],
        twos=[*timed[:2], *peaks[:2]],
        none=[],
        other=[r | dict(step_seconds=r.pop('step_time_s')) for r in map(dict, timed[:3])],
        empty=[timed[0] | dict(step_time_s=' '), *timed[1:]],
        wrong=[timed[0], timed[1] | dict(step_time_s='x')],
        zero=[timed[0] | dict(step_time_s=0)],
        infinite=[timed[0] | dict(step_time_s='inf')],
        negative=[timed[0] | dict(peak_mem_gib=-1)],
        layers=[timed[0] | dict(layers=0)],
        kind=[r | dict(mem_kind='x') for r in peaks],
        own=[{k: v for k, v in r.items() if k != 'peak_kind'} for r in peaks[:3]],
    )
    found = {k: answer(lambda rows: plain(calibrate.fit_cluster(rows, 'x')), rows) for k, rows in asks.items()}
    table = dict(matmul_efficiency=('gpu', dict(any=2.0, x=3.0)), other=('any', dict(any=5.0)))
    one = calibrate.Calibration('x', 3, factors, memory=kept)
    found |= {
        'table': one.table(table),
        'room': one.memory_table(dict(context_gib=dict(any=2.0), scale_share=dict(any=1.0))),
        'usual': len(one.table()),
        'usual room': len(one.memory_table()),
        'wrong': answer(calibrate.Calibration, 'x', 3, dict(products=0)),
        'wrong room': answer(calibrate.Calibration, 'x', 3, {}, memory=dict(context=-1)),
    }
    away = lambda goal: lambda x: x - np.array(goal)
    found |= {
        f'lower {m}': answer(
            calibrate._lower, away([1.0, 2.0]), np.zeros(2), away([1.0, 2.0])(np.zeros(2)), np.array(m)
        )
        for m in (
            [1.0, 2.0],
            [3.0, 6.0],
            [5.0, 10.0],
            [12.0, 24.0],
            [30.0, 60.0],
            [-1.0, 0.0],
            [2.0, 4.0],
            [2.1, 4.2],
            [4.0, 8.0],
            [8.0, 16.0],
        )
    }
    found |= {
        f'trust {x}': (calibrate._sure_gain(*map(np.array, x)), calibrate._trust(*map(np.array, x)))
        for x in (
            ([0.2, 0.3, 0.4], [0.1, 0.1, 0.1]),
            ([0.2, 0.3, 0.4], [0.19, 0.29, 0.38]),
            ([0.1, 0.1, 0.2], [0.2, 0.2, 0.2]),
            ([0.4, 0.5, 0.5], [0.35, 0.47, 0.42]),
        )
    }
    found |= {
        f'slope {s}': calibrate._slope(lambda x: x**2, np.array([1.0, 2.0]), np.array([1.0, 4.0]), s)
        for s in (1e-3, 0.5)
    } | {
        f'residuals {x}': calibrate._residuals(
            np.array(x),
            {},
            np.array([1.0, 2.0, 3.0]),
            lambda c, f: np.array([1.01, 1.5, 3 * f['b']]),
            dict(a=0.5, b=0.1),
        )
        for x in ([0.0, 0.0], [0.3, -0.2])
    }
    same_answers(request, 'calibration', found)


class ModelSpec(SimpleNamespace):
    "What stands for a profile: it is known by its name"


def network(kinds, inputs=((4, 3, 32, 32), 'float32'), precision='fp32'):
    "A profile of a network of some kinds of layers"
    layers = [
        SimpleNamespace(kind=k, saved=1000 * (i + 1), flops=f, params=p, traffic=5e7 * (i + 1), output=o, calls=1 + i)
        for i, (k, f, p, o) in enumerate(kinds)
    ]
    total = lambda name: sum(getattr(x, name) for x in layers)
    shapes = [SimpleNamespace(shape=inputs[0], dtype=inputs[1])] if inputs else []
    return ModelSpec(
        name='net',
        layers=layers,
        saved=total('saved') + 5e5,
        flops=total('flops'),
        params=total('params'),
        traffic=total('traffic') + 1e6,
        inputs=shapes,
        precision=precision,
        buffer_bytes=4096,
        shape=None,
    )


KINDS = [
    ('Conv2d', 5e9, 9408, (4, 64, 16, 16)),
    ('BatchNorm2d', 0, 128, (4, 64, 16, 16)),
    ('BatchNorm1d', 0, 40, (4, 20)),
    ('Conv2d', 2e9, 640, (4, 64, 8, 8)),
    ('ConvNextBlock', 0, 5000, (4, 256, 8, 8)),
    ('LayerNorm2d', 1, 512, (4, 256, 8, 8)),
    ('Linear', 3e9, 256_000_000, (4, 1000)),
    ('RMSNorm', 0, 8, (4,)),
    ('Softmax', 0, 0, ()),
]


def test_networks(request):
    layouts = [
        dict(dp=1),
        dict(dp=8),
        dict(dp=8, zero=1),
        dict(dp=8, zero=2),
        dict(dp=8, zero=3),
        dict(dp=8, zero=3, shard=4),
        dict(dp=8, recompute='full'),
        dict(dp=4, precision='amp_bf16'),
        dict(dp=4, precision='fp16'),
        dict(dp=1, precision='fp32', optimizer='sgd'),
        dict(dp=2, precision='tf32', micro_batch=4),
        dict(dp=1, offload='optimizer'),
        dict(dp=16, precision='bf16', framework='torchtitan'),
    ]
    specs = [
        network(KINDS),
        network(KINDS[:3], precision='bf16'),
        network(KINDS[6:], ((2, 128), 'int64')),
        network(KINDS[7:], None),
        network(KINDS[:1] * 3, ((1, 3, 8, 8), 'float32')),
    ]
    found = {}
    for (i, spec), l, (gpu, fabric) in itertools.product(
        enumerate(specs),
        layouts,
        (('A100', 'infiniband-3200'), ('RTX 3090', 'ethernet-10'), ('T4', 'ethernet-25'), ('H100', 'efa-400')),
    ):
        l = dict(precision=can(gpu)[-1], micro_batch=2) | l
        if (i and gpu != 'A100') or (gpu == 'T4' and l['dp'] > 1):
            continue
        e = lambda: planner.estimate(spec, Layout(**l), Cluster(gpu, l['dp'], interconnect=fabric), 64)
        shown = lambda e: (
            *map(
                digits,
                (
                    list(e.first.values()),
                    list(e.seconds.values()),
                    [e.reserved / 1, e.device / 1, e.margin / 1, e.step_time, e.tokens_per_second, e.mfu, e.hfu],
                ),
            ),
            e.fits,
            e.why,
            e.assumed,
        )
        found[f'{i} {gpu} {l}'] = answer(lambda: shown(e())[: 7 if i == 0 else 3])
    small = Cluster(OWN.replace(memory=10**9), 1)
    found |= {
        f'wrong {l} {b} {s}': answer(lambda: planner.estimate(specs[2], l, Cluster('A100', 8), b, s).seq)
        for l, b, s in (
            ('tp2,dp4', 64, None),
            ('cp2,dp4', 64, None),
            ('pp2,dp4', 64, None),
            ('dp8', 64, 100),
            ('dp8', 64, 128),
            ('dp8', 63, None),
            ('dp8', 0, None),
            ('dp8,ep2', 64, None),
            ('dp4', 64, None),
        )
    }
    found['no room'] = answer(
        lambda: (lambda e: (e.why, e.fits))(planner.estimate(network(KINDS), Layout(micro_batch=64), small, 64))
    )
    found |= {
        f'fp32 {k}': images._in_fp32.__wrapped__(k)
        for k in (
            'LayerNorm',
            'LayerNorm2d',
            'GroupNorm',
            'RmsNorm',
            'LlamaRMSNorm',
            'Softmax',
            'Conv2d',
            'BatchNorm1d',
            'Linear',
        )
    }
    share = images._product_share
    found |= {f'share {b}': share(OWN.replace(tflops=dict(fp16=b), bandwidth=1e12)) for b in (50.0, 76.0, 77.0, 300.0)}
    same_answers(request, 'networks', found)


MODELS = {
    'gpt2': dict(layers=12, hidden=768, heads=12, vocab=50257, max_seq=1024, positions=1.0, block='gpt2'),
    'llama': dict(
        name='llama',
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        ffn=14336,
        gated_mlp=1,
        vocab=128256,
        tied=0,
        max_seq=131072,
        block='llama',
    ),
    'far': dict(
        layers=4,
        hidden=512,
        heads=8,
        vocab=1000,
        max_seq=8192,
        full_attention=0.25,
        head_dim=65,
        ffn=2048,
        experts=1,
        topk=1,
        expert_ffn=2048,
    ),
    'mixture': dict(
        layers=24,
        hidden=2048,
        heads=16,
        kv_heads=4,
        ffn=8 * 768,
        gated_mlp=1,
        vocab=151936,
        tied=0,
        experts=128,
        topk=8,
        expert_ffn=768,
        max_seq=32768,
    ),
}
PLANS = [
    ('gpt2', 'dp8', 'A100', 8, 64, {}),
    ('far', 'dp8', 'A100', 8, 64, dict(recompute='full')),
    ('far', 'dp8', 'A100', 8, 64, dict(recompute='selective', flash=False)),
    ('gpt2', 'dp8', 'T4', 8, 64, dict(precision='fp16')),
    ('gpt2', 'dp2', 'A100 PCIe 80GB', 2, 64, {}),
    ('far', 'dp8', 'A100', 8, 64, dict(framework='transformers')),
    ('gpt2', 'dp4,tp2', 'RTX 3080', 8, 64, dict(compile=True)),
    ('gpt2', 'dp1', 'T4', 1, 4, dict(precision='amp_fp16', framework='transformers')),
    ('llama', 'dp1,tp8', 'H100', 8, 8, dict(recompute='full')),
    ('llama', 'dp8,zero3', 'H100', 8, 16, dict(lora_rank=16)),
    ('llama', 'dp8', 'A100', 8, 64, dict(weight_bits=4, lora_rank=8, framework='accelerate')),
    ('llama', 'dp2,tp2,pp4,vp2', 'H100', 16, 32, dict(framework='megatron-core')),
    ('llama', 'dp2,pp8', 'H100', 16, 32, dict(recompute='selective', flash=False)),
    ('llama', 'dp2,pp3', 'H100', 6, 32, dict(framework='nanotron')),
    ('llama', 'dp2,pp8', 'H100', 16, 4, dict(framework='nanotron', micro_batch=1, recompute='full')),
    ('llama', 'dp1,pp32', 'H100', 32, 64, dict(framework='nanotron')),
    ('mixture', 'dp16,zero1,ep8', 'H100', 16, 64, dict(framework='megatron-core', precision='fp8')),
    ('mixture', 'dp64,zero1,ep64', 'GB200', 64, 256, dict(framework='megatron-core')),
    ('mixture', 'dp72,zero3,ep8', 'GB200', 72, 144, dict(graphs='none', dispatcher='alltoall')),
    ('mixture', 'dp1', 'H100', 1, 1, dict(offload='optimizer')),
    ('llama', 'dp8,ep2', 'H100', 8, 8, {}),
    ('llama', 'dp8', 'A100', 8, 8, dict(precision='fp8')),
    ('llama', 'dp4,pp2', 'A100 PCIe 80GB', 8, 8, dict(grad_bytes=4)),
    ('llama', 'dp3,tp3', 'H100', 9, 9, {}),
    ('llama', 'dp8', 'H100', 8, 9, {}),
    ('llama', 'dp8', 'H100', 8, 0, {}),
    ('gpt2', 'dp8', 'K80', 8, 64, dict(precision='fp32')),
    ('gpt2', 'dp2,pp16', 'H100', 32, 64, {}),
    ('gpt2', 'dp2,pp5', 'H100', 10, 64, {}),
    ('llama', 'dp64,tp2,zero3,shard8', 'H100', 128, 128, dict(framework='torchtitan')),
]


def test_plans(request):
    found, kept = {}, []
    for model, layout, gpu, n, batch, more in PLANS:
        cluster = Cluster(gpu, n, gpus_per_node=8 if n % 8 == 0 or n < 3 else n, gpu_hour=2.5 if n > 8 else None)
        plan = lambda: planner.estimate(
            MODELS[model], planner.parse_layout(layout, n, **more), cluster, batch, network='eos' if n == 128 else ''
        )
        made = answer(lambda: kept.append(plan()) or {k: v for k, v in kept[-1].to_dict().items() if k != 'layout'})
        found[f'{model} {layout} {gpu} {more}'] = (
            {k: digits(list(v.values())) if k in ('first', 'last', 'seconds') else v for k, v in made.items()}
            if isinstance(made, dict)
            else made
        )
        if isinstance(made, dict):
            found[f'page {model} {layout} {gpu} {more}'] = [r['value'] for r in kept[-1]._page()][2:]
    priced = next(e for e in kept if e.price)
    for e, name in ((priced, 'priced'), (kept[0], 'unpriced')):
        found[f'{name}, not whole'] = e.days(2.5)
        found |= {
            f'{name} {t!r}': (answer(e.days, t), answer(e.cost, t), answer(e.cost_between, t), e.dollars)
            for t in ('26B', 1e9, 0, 'x')
        }
    found |= {
        'near': [r['run'] for r in kept[0].nearest(2)],
        'near of none': answer(kept[0].replace(family=()).nearest),
        'between of none': answer(priced.replace(step_low=None).cost_between, 1),
    }
    found |= {
        f'largest {p}': planner._largest(dict(zip('abcd', p, strict=True)), '{:.3g}'.format)
        for p in ((1, 2, 3, 4), (0, 0, 0, 0), (0.005, 0.005, 0.005, 0.985), (0.0051, 0.0049, 0.1, 0.89))
    }
    found |= {
        f'visible {x}': planner._visible([dict(a=1, b=x, c=0.5), dict(a=0, b=0, c=100)]) for x in (0.9, 1.0, 1.001, 1.1)
    }
    c = SimpleNamespace(recompute=np.array(['none', 'full', 'selective', 'selective']), flash=np.array([0, 0, 1, 0]))
    found |= {
        'repeated': planner._repeated_flops(c, 9.0, 6.0),
        'share of the peak': planner._utilization(1e12, 2.0, Cluster('H100', 4), 'mxfp8'),
    }
    found |= {f'room {m}': planner._no_room(Cluster('H100'), m) for m in (-(2**30), -1, -0.4, 0, 5)}
    same_answers(request, 'plans', found)


def columns_of_search(found):
    "Figures of a search: how many layouts, the best five, and digests of all"
    best = [str(found.layout(i)) for i in range(min(5, len(found)))]
    return [
        len(found),
        found.tried,
        best,
        found.alike,
        found.untried,
        float(found.seconds['total'].sum()),
        float(found.found['device'].sum()),
        str(found.fastest.layout),
        choose.explain(found),
        [list(r.values()) for r in found.table(2)][-1],
    ]


def test_searches(request, monkeypatch):
    monkeypatch.setattr(search, 'told_apart', lambda family: dict(dense=0.05, moe=0.02, lora=0.01)[family[2]])
    asks = [
        ('gpt2', 'A100', 8, 64, {}),
        ('llama', 'H100', 8, 32, dict(seq=8192)),
        ('llama', 'H100', 16, 64, dict(framework='megatron-core', tp=[1, 2, 4], zero=1, micro_batch=[1, 2], vp=[1, 2])),
        ('llama', 'H100', 32, 64, dict(uneven=False, cp=1, tp=[2, 4], seq=2048)),
        ('mixture', 'H100', 16, 64, dict(framework='megatron-core', seq=4096, zero=[1, 3])),
        ('llama', 'A100', 1, 4, {}),
        ('llama', 'A100', 1, 4, dict(offload='none')),
        ('llama', 'A100', 1, 4, dict(lora_rank=16, seq=2048)),
        ('llama', 'A100', 2, 4, dict(offload='optimizer', seq=1024)),
        ('llama', 'A100', 8, 8, dict(min_spare=30 * GiB, seq=1024)),
        ('gpt2', 'A100', 8, 7, {}),
        ('gpt2', 'A100', 8, 8, dict(min_spare=79 * GiB)),
        ('gpt2', 'T4', 8, 8, dict(precision='bf16')),
        ('gpt2', 'T4', 1, 8, dict(precision='fp16', recompute='none', micro_batch=8)),
        ('gpt2', 'A100', 8, 64, dict(depth=3)),
        ('gpt2', 'A100', 8, 64, dict(offload='x')),
        ('gpt2', 'A100', 8, 0, {}),
        ('gpt2', 'A100', 8, 64, dict(pp=(2, 5), zero=0, recompute='none')),
    ]
    found = {
        f'{a}': answer(lambda a: columns_of_search(search.search(MODELS[a[0]], Cluster(a[1], a[2]), a[3], **a[4])), a)
        for a in asks
    }
    for model, n, node, seq in (
        ('gpt2', 8, 8, 1024),
        ('llama', 64, 8, 32768),
        ('mixture', 64, 4, 8191),
        ('llama', 72, 72, 4096),
        ('mixture', 24, 8, 8192),
    ):
        sizes, cluster = model_sizes.model_columns(MODELS[model])[1], Cluster('GB200', n, gpus_per_node=node)
        found |= {f'usual {model} {n} {u}': search._usual_values(sizes, cluster, seq, u) for u in (True, False)}
        for u, more in (
            (True, {}),
            (False, dict(zero=[0, 3])),
            (True, dict(ep=[1, 2, 8], pp=[1, 2, 3, 4, 6], vp=[1, 2, 3])),
        ):
            c = answer(
                lambda: {
                    k: v if k == 'recompute' else v.astype(int)
                    for k, v in search.enumerate_layouts(sizes, cluster, 96, seq, u, **more).items()
                }
            )
            found[f'layouts {model} {n} {u} {more}'] = (
                {k: [len(v), sum(v[::7]), sum(v)] if k != 'recompute' else v[:9] for k, v in c.items()}
                if isinstance(c, dict)
                else c
            )
    found |= {
        f'most {m}': answer(
            lambda m: len(
                search.enumerate_layouts(
                    MODELS['gpt2'] | dict(kv_heads=12, ffn=3072),
                    Cluster('A100', 8),
                    64,
                    1024,
                    most=m,
                    tp=[1, 2],
                    pp=[1],
                    cp=[1],
                    micro_batch=[1, 2],
                    ep=[1],
                    vp=[1],
                    zero=[0, 1],
                    shard=[0],
                    recompute=['none'],
                )['tp']
            ),
            m,
        )
        for m in (3, 7, 8, 9)
    }
    found |= {
        f'stages {l} {n} {u}': search._usual_pipeline(l, n, u)
        for l in (1, 2, 7, 12, 22, 126, 200)
        for n in (1, 6, 8, 128)
        for u in (True, False)
    }
    few, narrow = Cluster('A100', 8, gpus_per_node=8), Cluster('GB200', 64, gpus_per_node=64)
    found |= {
        f'tensor {h} {k} {f} {c.gpus} {e}': search._usual_tensor(dict(heads=h, kv_heads=k, ffn=f, experts=e), c)
        for h, k, f in ((32, 8, 96), (32, 2, 96), (6, 6, 4), (64, 64, 4096), (12, 4, 12))
        for c in (few, narrow, Cluster('A100', 6, gpus_per_node=6))
        for e in (0, 8)
    }
    can = grid(zero=[0, 1, 2, 3], shard=[0, 1, 2, 3, 4, 8], pp=[1, 2], ranks=[1, 2, 4, 6])
    c, ranks = {k: np.array([r[k] for r in can]) for k in ('zero', 'shard', 'pp')}, np.array([r['ranks'] for r in can])
    found |= {'shards': ''.join('01'[int(x)] for x in search._can_shard(c, ranks))} | {
        f'experts divide {e} {r} {t}': bool(search._experts_divide(dict(ep=np.array(e), tp=np.array(t)), r))
        for e in (1, 2, 3, 8)
        for r in (1, 2, 3, 8)
        for t in (1, 2, 4)
    }
    divides = grid(dp=[0.5, 1, 1.5, 2, 4], micro_batch=[1, 2, 3, 16], cp=[1, 3], tp=[1, 3], pp=[1, 8, 9, 5])
    found |= {
        f'divides {u}': ''.join(
            '01'[int(x)]
            for x in search._divides(
                {k: np.array([r[k] for r in divides]) for k in divides[0]}, dict(heads=8, layers=8), 16, 1024, u
            )
            & np.ones(len(divides), bool)
        )
        for u in (True, False)
    }
    found |= {
        f'powers {x}': search._powers(*x) for x in ((1,), (8,), (9,), (0,), (64, 4), (64, 5), (3, 4), (7.9, 2))
    } | {f'divisors {x}': search.divisors(*x) for x in ((12,), (12, 4), (12, 0), (1,), (7, 99))}
    c = dict(
        tp=np.array([1, 2, 2, 1.0]),
        pp=np.array([1, 1, 2, 1.0]),
        cp=np.ones(4),
        ep=np.array([1, 1, 4, 1.0]),
        vp=np.ones(4),
        zero=np.array([0, 0, 1, 3.0]),
        shard=np.array([0, 0, 0, 8.0]),
        recompute=np.array(['none', 'none', 'full', 'none']),
        offload=np.array([0, 0, 0, 1.0]),
    )
    found |= {'simplicity': search._simplicity(c)} | {
        f'ranked {a} {s}': search._ranked(c, np.array(s), np.array([4, 3, 2, 1.0]), a)
        for a in (0, 0.01, 0.05)
        for s in ([1.1, 1, 1.01, 1.04], [1, 1, 1, 1.0], [2, 1.01, 1, 1.0])
    }
    found |= {
        f'full {n} {s}': search._fast_and_full(np.random.default_rng(s).permutation(n).astype(float))
        for n in (1, 9, 10, 19, 20, 100)
        for s in (0, 1)
    } | {
        f'interleaves {p}': bool(
            search._can_interleave(
                {k: np.array(v) for k, v in dict(dp=1, micro_batch=1, pp=p, vp=2).items()}, dict(layers=8), 8
            )
        )
        for p in (1, 2, 4, 8)
    }
    found |= {
        f'left {o}': search._left_out(
            dict(tp=[1, 4, 2], pp=[1], cp=[2], micro_batch=[1, 8]), dict(precision='a', optimizer='b', framework='c'), o
        )
        for o in (None, 'none', 'optimizer')
    }
    found |= {
        f'two largest {least}': choose._two_largest(dict(matmul=3.0, bubble=1.0, launch=0.5, optimizer=-1.0), least)
        for least in (0, 0.5, 0.6, 1, 4)
    } | {f'listed {v}': search._listed(v) for v in (1, [1], (2, 3), range(3), 'none')}
    monkeypatch.setattr(choose, '_error', lambda: 0.1)
    plans = [
        planner.estimate(MODELS['llama'], l, Cluster('H100', 8), 64, 2048)
        for l in ('dp1,tp8', 'dp8,zero3', 'dp8,zero3,recompute=full', 'dp2,tp4', 'dp4,tp2,zero1')
    ]
    found |= {
        f'compared {i} {j}': choose._compare(plans[i], plans[j]) for i, j in itertools.product(range(5), range(5))
    }
    found |= {
        f'as far apart as the error {f}': choose._compare(plans[0], plans[0].replace(step_time=plans[0].step_time * f))
        for f in (1, 1.0999, 1.1001)
    }
    rows = [
        dict(gpu=g, gpus=n, usd_per_hour=usd, tier=t, date=d)
        for g, n, usd, t, d in (
            ('H100', 8, 24.0, 'on-demand', '2026-01'),
            ('H100', 1, 2.0, 'on-demand', '2025'),
            ('H100', 1, 9.0, 'spot', '2026'),
            ('A100', None, 1.5, 'on-demand', '2024-12-31'),
            ('A100', 0, 1.2, 'on-demand', '2026-02'),
            ('XX', 1, 5.0, 'on-demand', '2026'),
            ('T4', 1, 0, 'on-demand', '2026'),
        )
    ]
    monkeypatch.setattr(choose, 'read_data', lambda name, **kw: rows)
    found |= {f'market {x}': choose.market(*x) for x in ((), ('2024',), ('2026',), ('2025', 'spot'))} | {
        f'clusters {x}': answer(lambda x: [(c.gpu.name, c.gpus, c.price) for c in choose.clusters(*x)], x)
        for x in ((('H100',), (8, 16)), (), (('T4', 'H100'),), (('T4',), (1,), {'T4': 1}))
    }
    over = [Cluster('H100', n, gpu_hour=2) for n in (1, 8, 16)] + [Cluster('T4', 8, gpu_hour=0.1)]
    found |= {
        f'cheapest {x}': answer(
            lambda x: [list(r.values()) for r in choose.cheapest(MODELS['llama'], *x, over, 16, 1024)], x
        )
        for x in (('26M', '7d'), ('2B', '1d'), (0, 1), (1, 0), ('x', 1))
    }
    limit = search.search(MODELS['llama'], over[1], 16, 1024).best.days(1e9) / 0.5 * 86400
    found |= {
        f'until {f}': [r['note'] for r in choose.cheapest(MODELS['llama'], 1e9, limit * f, over[1:2], 16, 1024, 0.5)]
        for f in (0.999, 1, 1.001)
    }
    best = lambda **kw: (lambda s, e: (s is None, str(e.layout), e.step_time))(*choose.best_plan(**kw))
    plain = dict(cluster=Cluster('A100', 8), global_batch=64)
    for name, model, kw in (
        ('text', 'gpt2', dict(layout='dp8')),
        ('fp32', 'gpt2', dict(layout='dp8', precision='fp32')),
        ('search', 'gpt2', dict(precision='fp32', tp=1)),
        ('net', network(KINDS), {}),
        ('net, odd', network(KINDS), dict(global_batch=63)),
        ('net, small', network(KINDS), dict(cluster=Cluster(OWN.replace(memory=10**9), 1))),
        ('network', 'gpt2', dict(layout='dp8', network='eos')),
    ):
        found[f'best {name}'] = answer(
            lambda: best(model=MODELS.get(model, model) if isinstance(model, str) else model, **plain | kw)
        )
    found |= {
        f'layouts of images {n} {b}': [str(l) for l in choose._image_layouts(n, b, 'pytorch', 'bf16')]
        for n, b in ((1, 6), (2, 8), (3, 8))
    }
    same_answers(request, 'searches', found)


def shape_of(**more):
    "The shape of a transformer, as the zoo finds it"
    usual = dict(
        layers=12,
        hidden=512,
        heads=8,
        kv_heads=4,
        ffn=1024,
        gated_mlp=True,
        vocab=1000,
        tied=False,
        positions='rope',
        max_seq=2048,
        head_dim=64,
        decoder_layers=0,
        experts=0,
    )
    return SimpleNamespace(**usual | more)


def configuration(**more):
    "What a configuration of transformers says"
    c = SimpleNamespace(**dict(model_type='x', num_hidden_layers=12, intermediate_size=1024) | more)
    c.get_text_config = lambda: c
    return c


def placed(name):
    "What stands for the zoo, which would be asked for names"
    raise ValueError(
        {
            'slip': 'x is no checkpoint of the Hub',
            'llama-3.1-8B': 'a checkpoint of the Hub',
            'own': 'a function of your own',
            'gpt22': 'neither',
        }.get(name, 'unknown')
    )


def test_model_sizes(request, monkeypatch):
    monkeypatch.setattr('fsdl_tools.models.architectures.locate', placed)
    mixture = dict(experts=8, experts_per_token=2)
    shapes = [
        dict(),
        dict(positions='learned'),
        dict(decoder_layers=2),
        dict(kv_rank=64, q_rank=32, rope_dim=16),
        dict(value_dim=64),
        dict(value_dim=32),
        dict(max_seq=0),
        mixture,
        mixture | dict(shared_ffn=256, dense_ffn=4096, has_experts=lambda i: i % 3 > 0),
    ]
    found = {
        f'shape {i} {p}': answer(model_sizes._from_shape, shape_of(**s), p, m)
        for i, s in enumerate(shapes)
        for p, m in ((None, None), (30_000_000, dict(block='x')))
    }
    kinds = ['full_attention', 'sliding_attention']
    configs = [
        dict(),
        dict(num_local_experts=8, num_experts_per_tok=2),
        dict(n_routed_experts=8, moe_intermediate_size=256, n_shared_experts=2, first_k_dense_replace=3),
        dict(num_experts=4, moe_k=3, shared_expert_intermediate_size=512, decoder_sparse_step=2),
        dict(num_local_experts=4, model_type='llama4_text', intermediate_size_mlp=4096, moe_layers=[1, 3, 5]),
        dict(num_experts=4, mlp_layer_types=['dense', 'sparse', 'sparse']),
        dict(num_experts=4, expert_layer_period=5),
        dict(kv_lora_rank=64, qk_rope_head_dim=16, qk_nope_head_dim=48, v_head_dim=32),
        dict(kv_lora_rank=64, q_lora_rank=8, qk_rope_head_dim=16, qk_nope_head_dim=48, v_head_dim=32),
        dict(layer_types=kinds * 3),
        dict(layer_types=kinds[:1] * 4),
        dict(layer_types=kinds[1:] * 4),
        dict(layers_block_type=['attention', 'mamba', 'mamba']),
    ]
    found |= {f'configuration {i}': answer(model_sizes._mixture, configuration(**c)) for i, c in enumerate(configs)}
    asks = [
        'gpt2',
        'llama-3.1-8b',
        'gpt22',
        'llama-3.1-8B',
        'slip',
        'own',
        'no such model',
        '',
        5,
        None,
        {},
        dict(layers=2),
        dict(layers=0, hidden=8, heads=2, vocab=10),
        dict(layers=2, hidden=8, heads=2, vocab=10, depth=3),
        dict(MODELS['llama'], kv_heads=2),
        network(KINDS),
        ModelSpec(name='spec', shape=shape_of(), params=30_000_000),
        dict(layers=2, hidden=8, heads=2, vocab=10, name='mine'),
    ]
    found |= {
        f'columns {i}': answer(lambda m: (lambda n, s, spec: (n, s, spec is None))(*model_sizes.model_columns(m)), m)
        for i, m in enumerate(asks)
    }
    found |= {
        f'length {m} {s}': answer(model_sizes.usual_length, dict(max_seq=m), s)
        for m in (0, 1024, 8192, 131072)
        for s in (None, 0, 1, 100_000, -1)
    }
    found |= {
        f'cluster {f} {n}': model_sizes.cluster_columns(Cluster('A100', 8, interconnect=f), n)
        for f in ('nvlink-only', 'ethernet-10')
        for n in ('', 'eos')
    }
    found |= {
        f'own {i}': (model_sizes._own(g), model_sizes._gpu_column(g)[:9])
        for i, g in enumerate((OWN, gpus.find('A100').replace(tdp=1.0), gpus.find('A100')))
    }
    for where in ('own', 'timm', 'hub'):
        monkeypatch.setattr('fsdl_tools.models.architectures.locate', lambda name, where=where: (where, name))
        monkeypatch.setattr('fsdl_tools.models.architectures.load_config', lambda name: f'configuration of {name}')
        for name in ('_built', '_profiled', '_from_config'):
            monkeypatch.setattr(model_sizes, name, lambda *a, name=name: f'{name} {a}')
        found[f'of the zoo, {where}'] = model_sizes._of_zoo('x')
    of_module = model_sizes._of_module
    for name, module in dict(
        config=SimpleNamespace(config=SimpleNamespace(model_type='a')),
        timm=SimpleNamespace(pretrained_cfg={}),
        bare=SimpleNamespace(config=None),
    ).items():
        found[f'module {name}'] = answer(lambda: str(of_module(module, 'x')).replace('namespace', ''))
    found |= {
        f'first {n}': model_sizes._first(SimpleNamespace(a=0, b=2, c=3), *n)
        for n in (('a',), ('a', 'b'), ('x', 'c', 'b'), ())
    } | {
        'models': len(model_sizes.known()) > 20,
        'sizes': model_sizes._sizes_in(dict(name='a', layers=2, heads='', kv=None, date='x', tied=0)),
    }
    same_answers(request, 'model_sizes', found)


def test_tables_of_runs(request, tmp_path, monkeypatch):
    base = dict(
        layers='12',
        hidden='768',
        heads='12',
        ffn='3072',
        vocab='50257',
        seq='1024',
        gpus='8',
        tp='1',
        pp='1',
        dp='8',
        global_batch='64',
        gpu='A100',
    )
    more = [
        {},
        dict(layers='0'),
        dict(layers='x'),
        dict(layers=''),
        dict(layers='1.5'),
        dict(layers='1e15'),
        dict(layers='2e15'),
        dict(layers='inf'),
        dict(layers='-3'),
        dict(layers='１２'),
        dict(layers=12),
        dict(layers=[1]),
        dict(layers='1e400'),
        dict(zero='4'),
        dict(zero='3'),
        dict(zero='0'),
        dict(tp='2'),
        dict(heads='7'),
        dict(heads='7', head_dim='64'),
        dict(kv_heads='5'),
        dict(tp='8', dp='1'),
        dict(tp='5', dp='8', gpus='40'),
        dict(global_batch='4'),
        dict(global_batch='8'),
        dict(micro_batch='9'),
        dict(micro_batch='2'),
        dict(vocab='1000000', seq='16384', micro_batch='1'),
        dict(vocab='400000', seq='16384', micro_batch='1'),
        dict(flash='true'),
        dict(flash='no'),
        dict(flash='1.0'),
        dict(flash='0'),
        dict(compile=True),
        dict(recompute='Full'),
        dict(recompute='full'),
        dict(precision='bf15'),
        dict(precision='fp8'),
        dict(schedule='x'),
        dict(framework='torchtitan'),
        dict(framework='torchtitan', recompute='none'),
        dict(framework='x'),
        dict(gpu='x'),
        dict(gpu=''),
        dict(gpu='n/a', precision='fp8'),
        dict(gpu='B200', gpus_per_node='72', gpus='72', dp='72', global_batch='720'),
        dict(experts='8', topk='2', ep='4'),
        dict(experts='0', ep='4'),
        dict(ep='4'),
        dict(experts='8', graphs='none', framework='megatron-core'),
        dict(task='lora'),
        dict(task='sft', seq='256'),
        dict(task='sft', document='77'),
        dict(task='lora', lora_rank='4'),
        dict(date='2026-05-24'),
        dict(date='2024'),
        dict(date='x'),
        dict(software='2024.5', date='2026'),
        dict(grad_bytes='2'),
        dict(grad_bytes='4'),
        dict(framework='megatron-core'),
        dict(model='gpt2'),
        dict(model='mixtral-8x7b'),
        dict(model='mixtral-8x7b', layers='32', hidden='4096', heads='32'),
        dict(pp='16', gpus='16', dp='1'),
        dict(pp='4', dp='2', framework='nanotron', global_batch='2'),
        dict(cp='2', dp='4'),
        dict(row='mine'),
        dict(hidden='769', head_dim='64'),
        dict(hidden='770'),
        dict(nic_bandwidth='1e9'),
        dict(full_attention='.5'),
        dict(vp='0'),
        dict(kv_rank='0'),
        {None: ['a', 'b']},
    ]
    rows = [base | m for m in more]
    shown = {f'row {m}': dict(p) for m, p in zip(more, validation.predict_rows(rows), strict=True)}
    found = {
        k: {n: v for n, v in p.items() if v != '' and n not in ('low', 'high', 'allocated_gib')}
        for k, p in shown.items()
    }
    found |= {
        'bounds': {n: shown['row {}'][n] for n in ('low', 'high', 'allocated_gib')},
        'none': validation.predict_rows([]),
        'wrong ones only': len(validation.predict_rows(rows[1:3])),
    }
    found |= {
        f'checked {m}': answer(
            lambda r: {k: v for k, v in validation.check_row(r).items() if k not in base or k in m}, base | m
        )
        for m in more[::2]
    }
    found |= {
        f'year {d}': validation._year_of(d)
        for d in ('2026', '2026-01', '2026-12-31', '1999', '26', '2026-1', ' 2025-06 ', 2026, '')
    } | {'unknown': validation.unknown_columns(['layers', 'layer', 'note', '', None, 'xyz', 'gpu', 'precison'])}
    found |= {
        f'number {v!r}': answer(validation._as_number, 'k', v)
        for v in ('1', ' 1.5 ', '.5', '1.', '1_0', '0x1', 'nan', '1e5', None, 2, float('inf'), '+3', '--3', '1e-3')
    }
    found |= {
        f'size {v!r} {k} {z}': answer(validation._size, {k: v}, k, z)
        for v in (0, -1, 1e15, 1e15 + 1, 1.5, float('inf'), float('-inf'), float('nan'))
        for k, z in (('layers', False), ('zero', True), ('software', False))
    }
    runs = [
        base | dict(study=s, peak_gib=p, peak_kind=k, step_seconds=t, finished=f)
        for s, p, k, t, f in (
            ('a', 5.0, 'device', None, 1),
            ('a', 9.0, 'allocated', 0.1, 1),
            ('b', None, 'device', 0.2, 0),
            ('b', 3.0, 'reserved', 0.15, 1),
            ('a', 7.0, 'device', 0.3, 0),
        )
    ] + [base | dict(study='b', layers='x', peak_gib=1.0, peak_kind='device', step_seconds=0.1, finished=0)]
    found |= {
        'scores': [list(r.values()) for r in validation.scores(runs)],
        'scores of none': list(validation.scores([])),
        'accuracy': validation.fit_accuracy(runs),
        'accuracy of finished': validation.fit_accuracy([r for r in runs if r['finished']]),
        'errors': [
            list(validation._errors_of(dict(peak_gib=2, peak_kind='device', step_seconds=t), p))
            for t in (None, 4.0)
            for p in ({}, dict(device_gib=3.0, step_time_s=3.0))
        ],
    }
    head = ','.join(base)
    texts = [
        f'{head}\n' + ','.join(base.values()),
        head,
        '',
        f'{head},layers\n',
        head.replace('vocab,', '').replace('tp,', ''),
        f'{head}\n1,2\n',
        f'{head}\n' + '1,' * 20,
        b'\xff\xfe',
        f'{head}\0',
        f'\ufeff{head}\n',
        f'{head},layers,tp\n',
        f'{head}\n"{"x" * 200_000}"',
    ]
    for i, text in enumerate(texts):
        (tmp_path / 'runs.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
        found[f'file {i}'] = str(answer(lambda: [len(r) for r in validation.read_runs(tmp_path / 'runs.csv')])).replace(
            str(tmp_path), ''
        )
    (tmp_path / 'runs.csv').write_text(texts[0])
    for kw in (
        {},
        dict(out=tmp_path / 'out.csv'),
        dict(calibration=calibrate.Calibration('x', 3, dict(products=0.5), memory=dict(context=2.0))),
    ):
        found[f'batch {list(kw)}'] = [p['device_gib'] for p in validation.plan_batch(tmp_path / 'runs.csv', **kw)] + [
            (tmp_path / 'out.csv').exists()
        ]
    found['written'] = (tmp_path / 'out.csv').read_text().splitlines()[0]
    usual = dict(
        what='w',
        layers='',
        hidden='',
        heads='',
        vocab='',
        model='gpt2',
        gpu='A100',
        gpus=8,
        layout='dp8',
        global_batch=64,
        seq=1024,
        network='',
        source='s',
        published=0.5,
    )
    found |= {
        f'known {k} {m}': answer(lambda r: list(validation._known_answer(r).values()), usual | dict(kind=k) | m)
        for k in ('seconds', 'GiB allocated', 'GiB device')
        for m in ({}, dict(layers=4, hidden=512, heads=8, vocab=1000), dict(network='eos'))
    }
    found |= {
        f'strategy {r}': validation.strategy_of(r)
        for r in ({}, dict(experts=8), dict(experts=8, lora_rank=1), dict(lora_rank=0))
    } | {f'results {n}': bool(validation._results(n)) for n in ('no such',)}
    same_answers(request, 'tables', found)
