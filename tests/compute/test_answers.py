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

from fsdl_tools.compute import calibrate, columns, cost, gpus, images, model_sizes, planner
from fsdl_tools.compute import search, step_memory, step_time, uncertainty, validation
from fsdl_tools.compute.gpus import Cluster, Gpu
from fsdl_tools.core import GiB
from fsdl_tools.parallel.layout import Layout
from tests.answers import answer, same_answers

NAMES = [g.name for g in gpus.gpus()]
OWN = Gpu('mine', 'me', 'Hopper', 2027, 64*GiB, 3e12, dict(fp16=500., bf16=500., fp8=900.), link_bandwidth=2e11, nvlink_domain=64)
BRIDGED = OWN.replace(name='bridged', nvlink_domain=7)
PLAIN = Gpu('plain', 'me', 'none', 2027, 64*GiB, 3e12, dict(fp32=50., tf32=100.), link_bandwidth=2e11)
MACHINES = [*NAMES, OWN.to_json(), BRIDGED.to_json(), 'A100', 'H100-SXM-80GB', 'H100-SXM-80GB', 'B200', 'GB200', 'GB300', 'MI355X', 'A100-SXM-40GB']
WRITTEN = ['', 'pytorch', 'torchtitan', 'torchtitan FSDP2', 'megatron-core', 'Megatron-Core r0.8', 'Megatron-Bridge 25.07', 'nanotron', 'composer',
           'megatron-deepspeed', 'megatron-lm', 'jax', 'transformers', 'accelerate', 'nemo 26.02', 'NeMo 25.11.01']


def chooser(seed):
    "A function that takes one of its arguments, the same on every machine"
    generator = random.Random(seed)
    return lambda *given: given[int(generator.random()*len(given))]


def can(gpu):
    "Precisions that a GPU computes in"
    return [p for p in columns._precisions if not columns.refused(gpu, p)]


def some_run(pick):
    "A row of a table of runs, of which half say more than they must"
    gpu = pick(*MACHINES)
    link = gpus.find(gpu).link_bandwidth
    tp, pp, cp, dp = (pick(1, 1, 2, 4), pick(1, 1, 2, 3, 8), pick(1, 1, 1, 2), pick(1, 2, 4, 6, 32)) if link else (1, 1, 1, 1)
    heads, micro = pick(8, 12, 16, 32), pick(1, 2, 4)
    experts, topk = pick((0, 1), (0, 1), (0, 1), (8, 2), (16, 4), (64, 8))
    hidden = heads*pick(64, 80, 100, 128)
    row = dict(layers=pick(2, 6, 12, 22, 48), hidden=hidden, heads=heads, ffn=pick(2, 3, 4)*hidden, vocab=pick(1000, 32000, 50257, 128256), seq=pick(512, 2048, 8192),
               gpus=tp*pp*cp*dp, tp=tp, pp=pp, dp=dp, cp=cp, global_batch=dp*micro*pick(1, 1, 2, 3, 8, 24), gpu=gpu, precision=pick(*can(gpu)), framework=pick(*WRITTEN))
    more = dict(kv_heads=heads//pick(1, 2, 4), gated_mlp=pick(0, 1), tied=pick(0, 1), flash=pick(0, 1, 1), compile=pick(0, 0, 1), seq_parallel=pick(0, 1), gpus_per_node=pick(1, 2, 4, 8, 9, 72),
                vp=pick(1, 1, 2) if pp > 1 else 1, zero=pick(0, 1, 2, 3, 3), micro_batch=micro, grad_bytes=pick(2, 4), shard=pick(0, 0, 1, 2, dp*cp, 64), offload=pick(0, 0, 1),
                nic_bandwidth=pick(2e9, 5e10), head_dim=pick(32, 64, 100, 128, 256), v_dim=pick(64, 128), full_attention=pick(.25, 1), layer_extra=pick(0, -5e3, 1e6), positions=pick(0, 1),
                document=pick(100, 512, 9000), software=pick(2022.5, 2025, 2026.2, 2026.3, 2026.5, 2026.7), recompute=pick('none', 'selective', 'every-other-layer', 'full'),
                schedule=pick('1f1b', 'gpipe', 'interleaved', 'zb1p'), cluster=pick('', '', 'jean-zay', 'eos', 'meta', 'generic'), kernel=pick('', 'sdpa', 'cudnn', 'fa2', 'fa3'),
                graphs=pick('', 'none', 'layers', 'whole'), dispatcher=pick('', 'alltoall', 'deepep'), recipe=pick('', 'mx', 'current'), optimizer=pick(*step_memory.optimizer_states),
                block=pick('', 'llama', 'gpt2', 'qwen3'))
    row |= {k: v for k, v in more.items() if pick(0, 1)}
    if pick(0, 0, 1): row |= dict(q_rank=pick(0, 256), kv_rank=128, rope_dim=32)
    if pick(0, 0, 1): row |= dict(lora_rank=pick(8, 64), weight_bits=pick(4, 8, 16))
    if not experts: return row
    row |= dict(experts=experts, topk=topk, ep=pick(1, 2, 4, 8))
    sizes = dict(expert_ffn=pick(768, 1000), shared_ffn=pick(0, 512), moe_layers=pick(1, row['layers']), dense_ffn=pick(1024, 3*hidden))
    return row | {k: v for k, v in sizes.items() if pick(0, 1)}


@functools.cache
def table_of(seed, count):
    "Rows and complete columns of random runs"
    pick = chooser(seed)
    rows = [some_run(pick) for _ in range(count)]
    return rows, columns.complete_columns(columns.columns(rows))


def digits(values):
    "Numbers with eight digits, texts as they are"
    return [float(f'{v:.8g}') if isinstance(v, float) else v for v in np.asarray(values).tolist()]


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
    other = lambda v: (v or .3)*(.6 + .8*generator.random())
    return {name: (by, {k: other(v) for k, v in values.items()}) for name, (by, values) in table.items()}


def test_columns(request):
    rows, c = table_of(0, 60)
    same_answers(request, 'columns', by_name({k: v for k, v in vars(c).items() if k not in rows[0] and not (k == 'gpu')}, 60)
                 | {'adapters': digits(columns.adapter_parameters(c)), 'gpus': [gpus.find(str(g)).name for g in c.gpu]})


def test_constants(request):
    c = table_of(1, 36)[1]
    same_answers(request, 'constants', by_name(columns.resolve(c, columns.time_constants()), 36))


@pytest.mark.parametrize('seed', [2, 3])
def test_times(request, seed):
    c = table_of(seed, 150)[1]
    table = shaken(columns.time_constants(), seed) if seed == 3 else None
    same_answers(request, f'times_{seed}', by_name(step_time.step_time(c, table, ready=True), 150))


@pytest.mark.parametrize('seed', [4, 5])
def test_memories(request, seed):
    c = table_of(seed, 120)[1]
    table = step_memory.memory_constants()
    if seed == 5: table = {k: v for k, (_, v) in shaken({k: ('', v) for k, v in table.items()}, 5).items()}
    found = step_memory.memory(c, table, ready=True)
    same_answers(request, f'memories_{seed}', by_name(found, 120) | {'parameters': digits(step_memory.parameters(c))})


def test_a_run_alone_is_what_it_is_among_others():
    rows, c = table_of(6, 60)
    t, m = step_time.step_time(c, ready=True), step_memory.memory(c, ready=True)
    for i, row in enumerate(rows):
        one = columns.columns([row])
        alone, room = step_time.step_time(one), step_memory.memory(one)
        for cause in t: np.testing.assert_allclose(alone[cause], t[cause][i], rtol=1e-12, atol=1e-15, err_msg=f'{i} {cause}')
        for what in ('allocated', 'reserved', 'device', 'margin', 'starts', 'fits', 'usable'):
            np.testing.assert_allclose(float(np.ravel(room[what])[0]), float(np.broadcast_to(m[what], 60)[i]), rtol=1e-12, err_msg=f'{i} {what}')


def grid(**values):
    "Every combination of some values, a dict each"
    return [dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())]


def asked(function, **values):
    "Answers of a function for every combination of arguments"
    return {f'{function.__name__} {list(one.values())}': answer(function, **one) for one in grid(**values)}


def told(function, *many):
    "Answers of a function of one argument"
    return {f'{function.__name__} {one!r}': answer(function, one) for one in many}


SIZES = dict(layers=12, hidden=768, heads=12, ffn=3072, vocab=50257, seq=1024, gpus=8, tp=1, pp=1, dp=8, global_batch=32)


def completed(**more):
    "The columns that a table of one run or several leads to, or the error"
    c = columns.complete_columns(SIZES | more)
    return {k: v for k, v in vars(c).items() if k in more or k in ('gpu', 'grad_bytes', 'graphs', 'dispatcher', 'micro_batch')}


def test_words_and_sizes_of_columns(request):
    bad = [dict(layers=0), dict(layers=-1), dict(hidden=math.inf), dict(hidden=math.nan), dict(seq=[1024, 0]), dict(seq=[1024, math.inf]), dict(tp=2), dict(gpus=[8, 4]), dict(vp=0),
           dict(recompute='some'), dict(recompute=''), dict(precision='fp9'), dict(kernel='x'), dict(graphs='all'), dict(framework='mine'), dict(recipe='nx'), dict(schedule=''),
           dict(schedule='zb'), dict(recompute=['none', 'Full']), dict(precision='mxfp8'), dict(precision=['mxfp8', 'bf16'], recipe=['', 'nv']), dict(precision='nvfp4', recipe='mx'),
           dict(gpus_per_node=8, gpu='B200'), dict(gpus_per_node=9, gpu='B200'), dict(gpus_per_node=72, gpu='B200'), dict(gpus_per_node=73, gpu='B200'), dict(gpus_per_node=64, gpu=['B200', 'B300']),
           dict(micro_batch=2), dict(pp=2, dp=4), dict(dp=[8, 4], gpus=[8, 4]), dict(lora_rank=1), dict(unknown=3), dict(gpu='A100', layers=[1, 2, 3]), dict(nic_bandwidth=1e9, cluster=['', 'eos'])]
    found = {f'{b}': answer(completed, **b) for b in bad}
    found |= {f'without {k}': answer(columns.complete_columns, {n: v for n, v in SIZES.items() if n != k}) for k in SIZES}
    machines = [g for g in ('A100', 'H100', 'B300', 'K80', OWN.to_json()) for _ in (0,)]
    for one in grid(framework=['pytorch', 'torchtitan', 'megatron-core', 'jax', 'nanotron'], gpu=machines, kernel=['', 'sdpa', 'fa3'], software=[2026.1, 2026.2, math.inf]):
        found[f'kernel {list(one.values())[0], one["gpu"][:9], *list(one.values())[2:]}'] = answer(columns.kernel_of, **one)
    found |= told(columns._release, 'pytorch', 'Megatron-Core r0.8', 'megatron-core 25.07', 'nemo 25.00', 'nemo 25.12 x', 'nemo 26.01', 'torchtitan 19.01', 'megatron-core r0.6 26.04')
    found |= asked(columns._two_byte_gradients, framework=['pytorch', 'megatron-core', 'jax', 'nemo'], precision=['fp16', 'amp_fp16', 'bf16', 'fp8', 'fp4', 'fp32'])
    found |= asked(columns._home, framework=list(columns._frameworks), gpu=['A100', 'H100'], zero=[0, 1, 2])
    found |= {f'refused {g} {p}': columns.refused(g, p) for g in ('K80', 'A100', 'B200', PLAIN) for p in ('fp32', 'tf32', 'bf16', 'mxfp8', 'nvfp4', 'amp_fp16')}
    found |= {f'hardware {g[:9]} {p}': answer(columns._hardware, g, p) for g in ('K80', 'A100', 'B200', 'RTX 3090', PLAIN.to_json()) for p in ('fp32', 'tf32', 'bf16', 'fp8', 'fp4')}
    found |= {f'attention {g} {k} {d} {r}': columns._attention('pytorch', g, k, d, r) for g, k, d, r in itertools.product(('A100', 'H100', 'K80', 'B300'), ('', 'fa3', 'cudnn'), (64, 100, 256), ('True', 'False'))}
    found |= {f'numbers {v!r}': answer(columns._number, v) for v in ('True', 'False', '1.5', 2, 'x', True)}
    found |= {f'{one}': answer(columns.columns, [one | SIZES]) for one in ({}, dict(layers=None), dict(flash=''), dict(tied='True', kernel=None), dict(vp='2'))}
    found |= {f'codes {x}': answer(columns._codes, x) for x in ([], [1], [2, 2], [2, 1], ['b', 'a', 'b'], 3.)}
    found |= {f'each {x}': answer(columns._each, lambda *a: '-'.join(a), *x) for x in ([['a', 'b'], 1], [['b', 'a', 'b'], [1, 2, 2]], ['a', 3], [['x', 'x'], 2])}
    same_answers(request, 'words', found)


def test_times_of_parts(request):
    found = asked(step_time.waves, m=[1, 127, 128, 129, 20_000], n=[128, 1000, 13_824], sms=[1, 108, 132], tile=[128, 64])
    found |= {f'waves {m}': answer(step_time.waves, *m) for m in ((128, 128), (4096, 4096), (128*108, 128), (128*108, 129))}
    k = columns.resolve(columns.complete_columns(SIZES | dict(cluster='jean-zay', nic_bandwidth=math.nan)), columns.time_constants())
    k.ring, k.nic = 3e11, 2e10
    for n, local, nodes in itertools.product((0, 1e3, 1e9), (1, 2, 4, 5, 8), (1, 2, 9)):
        found[f'collective {n, local, nodes}'] = answer(step_time.collective, n, np.array(local), np.array(nodes), k)
    found |= {f'spans {x}': answer(step_time._spans, *x) for x in itertools.product((1, 2, 4, 16), (1, 2, 3, 16), (1, 4, 8))}
    found |= {f'smooth {x}': answer(step_time._smooth_max, *x) for x in ((0, 0), (1, 1), (1, 2), (2, 1.9), (1e-40, 0), (5, 0))}
    found |= {f'distinct {x}': answer(step_time._distinct, *x) for x in ((1, 1), (4, 1), (4, 2), (8, 8))}
    for c in (dict(gpu='RTX 3090'), dict(gpu=['A100', 'RTX 3090'])): found[f'{c}'] = answer(step_time.step_time, SIZES | c)
    for c in (dict(gpu='RTX 3090', gpus=1, dp=1), dict(gpu=['A100', 'RTX 3090'], gpus=[8, 1], dp=[8, 1])): found[f'{c}'] = answer(lambda c: by_name(step_time.step_time(c), np.size(c['gpus'])), SIZES | c)
    found |= {f'refused {c}': answer(step_time.step_time, SIZES | c) for c in (dict(gpu='A100', precision='fp8'), dict(gpu=['H100', 'A100', 'K80'], precision='fp8'), dict(gpu=['H100', 'K80'], precision=['fp8', 'bf16']))}
    same_answers(request, 'times_of_parts', found)


def test_stages(request):
    shapes = np.array(list(itertools.product((1, 2, 5, 12, 13, 32), (256, 4096), (1000, 200_000), (1, 2, 3, 4, 7, 8, 16))), float).T
    layers, hidden, vocab, pp = shapes
    found = {f'place {by}': digits(np.array(step_memory.place(layers, hidden, 4*hidden, vocab, pp, np.array(by)), float).T) for by in (True, False)}
    rows = grid(pp=[1, 2, 3, 8], layers=[8, 9, 22], vocab=[1000, 200_000], vp=[1, 2], framework=['nanotron', 'pytorch'])
    c = columns.complete_columns(columns.columns([SIZES | r | dict(gpus=r['pp']*8, hidden=512) for r in rows]))
    k = columns.resolve(c, columns.time_constants())
    step_time._need_links(c, k)
    step_time.derive(c, k)
    lay, end = step_time.layer(c, k), step_time.ends(c, k)
    found |= by_name(step_time._slowest(c, k, lay, end), len(rows), 'slowest') | by_name(step_time._slot(c, k, lay, end)[0], len(rows), 'slot')
    rows = grid(pp=[1, 2, 3, 4], tp=[1, 2, 16, 32, 64], dp=[1, 4, 8], m=[1, 2, 3, 8], micro_batch=[1, 64])
    rows = [SIZES | r | dict(framework='nanotron', gpus=r['pp']*r['tp']*r['dp'], heads=64, hidden=4096, ffn=16384, layers=32, global_batch=r['dp']*r['m']*r['micro_batch'], gpu='H100') for r in rows]
    m = step_memory.memory(columns.columns([{k: v for k, v in r.items() if k != 'm'} for r in rows]))
    found |= {what: digits(m[what]) for what in ('margin', 'starts', 'fits')} | {'activations': digits(m['first']['activations'])}
    same_answers(request, 'stages', found)


def test_bytes_of_parameters(request):
    frameworks = ['pytorch', 'torchtitan', 'composer', 'nanotron', 'megatron-deepspeed', 'megatron-lm', 'megatron-core', 'jax']
    found = {f'{f} {p} {g} {z}': step_memory.bytes_per_parameter(f, p, g, zero=z) for f, p, g, z in itertools.product(frameworks, ['fp32', 'tf32', 'fp16', 'bf16', 'amp_bf16'], [0, 2, 4], [0, 1])}
    found |= {f'optimizer {o}': answer(step_memory.bytes_per_parameter, 'pytorch', p, optimizer=o) for o in ('', 'rms', *step_memory.optimizer_states) for p in ('bf16', 'fp32')}
    found |= {f'sharded {x}': answer(step_memory.sharded, (2, 4, 12), *x) for x in itertools.product((0, 1, 2, 3), (1, 8), (0, 1))}
    found |= asked(step_memory.block_of, architecture=['', 'llama', 'gpt2', 'bert', 'no such'], gated=[True, False])
    found |= told(step_memory.as_written, 'transformers', 'Transformers 5', 'accelerate', 'pytorch', '', 'torchtitan')
    found |= {f'parameters {d}': answer(step_memory.parameters, {k: v for k, v in (SIZES | d).items() if k not in ('gpus', 'tp', 'pp', 'dp', 'global_batch', 'gpu')}) for d in grid(tied=[0, 1], positions=[0, 1], gated_mlp=[0, 1])}
    same_answers(request, 'bytes_of_parameters', found)


WRITTEN_GPUS = ['h100', 'NVIDIA H100 80GB HBM3', 'NVIDIA A100-SXM4-40GB', 'A100-PCIE-40GB', 'A100', 'Tesla V100-SXM2-32GB', 'NVIDIA GeForce RTX 3090', '3090', '1080 Ti', 'A100 SXM', 'A100 90GB', 'h100 pcie',
                'GH100 [H100 SXM5 80GB]', 'H100 SXM 79GB', 'H100 SXM 77GB', 'AMD Instinct MI300X OAM', 'Quadro RTX 6000', 'RTX 6000', 'V100', 'T4 16GB', 'TPU v4', 'B200 180GB', 'H100 NVL 94 GiB',
                '8x H100', 'H100 x 8', 'a100:4', 'H100*8', '2 × A100 SXM 80GB', 'p4d.24xlarge', 'p3.8xlarge', 'a2-highgpu-8g', 'a3-megagpu-8g', 'x9.xlarge', 'Standard_ND96asr_v4', 'gpu_8x_h100', 'standard24',
                'A100 MIG 1g.5gb', 'mig', '', ' ', 'xyz', 'H10', 'A1000', 'rtx 30', 'RTX 9999', 'gtx', '99', '7', 'H1OO', 'MI30', 'L4O', 'Ампер', 'None', '{', '{"name": 1}', OWN.to_json(), 'A100-SXM-80GB x', 'v100 sxm3 32gb']


def test_gpus(request):
    found = {f'find {w!r}'[:60]: answer(lambda w: gpus.find(w).name, w) for w in WRITTEN_GPUS}
    found |= {f'parts {w!r}'[:60]: answer(gpus._parts, w) for w in WRITTEN_GPUS} | {f'nearest {w!r}'[:60]: answer(gpus._nearest, w) for w in WRITTEN_GPUS[-40:]}
    found |= {f'rack {g} {n}': gpus.rack_of(g, n) for g in ('A100', 'B200', 'H100', 'RTX 3090', 'GH200 96GB', 'B300', 'GB200') for n in (1, 2, 8, 9, 32, 64, '72.0', 73)}
    found |= {f'node {d} {n}': gpus._node_size(SimpleNamespace(nvlink_domain=d), n) for d in (None, 2, 8, 9, 12, 32, 72) for n in (1, 8, 9, 12, 64, 72, 80, 96, 100, 144)}
    for one in grid(gpu=['A100', 'GB200', OWN], gpus=[1, 8, 12, 64], gpus_per_node=[None, 4, 8], interconnect=['nvlink-only', 'ethernet-25', 'infiniband-3200'], gpu_hour=[None, '$2.49/h']):
        made = lambda: Cluster(**one)
        shown = lambda: (made().price, made().nodes, made().memory, made().nic_bandwidth, made().gpus_per_node, made().bandwidth(4), made().bandwidth(5), made().bandwidth(64))
        found[f'cluster {[getattr(v, "name", v) for v in one.values()]}'] = answer(shown)
    for kw in (dict(gpus=0), dict(gpus=2.5), dict(gpus=8, gpus_per_node=0), dict(interconnect='wifi'), dict(gpu_hour=0), dict(gpu_hour='x'), dict(nic_bandwidth=3e9, gpus=16)):
        found[f'{kw}'] = answer(lambda kw: Cluster('H100', **kw).nic_bandwidth, kw)
    found |= {f'cost {s!r}': answer(Cluster('H100', 8, gpu_hour=3).cost, s) for s in (3600, '7d', 0, -1, 'x')} | {'cost': answer(Cluster('H100').cost, 5), 'flops': Cluster('H100', 8).flops('fp8')}
    found |= {f'peak {x}': answer(gpus.peak, *x) for x in itertools.product(('A100', 'K80', 'H100', 'MI250'), ('bf16', 'fp32', 'fp8', 'half', 'x'), (False, True))}
    found |= {f'first {x}': answer(gpus.first_peak, *x) for x in (('K80',), ('T4', 'bf16'), ('A100', 'fp8', 'tf32'), (PLAIN,), ('H100', 'fp8'))}
    found |= {f'roof {x}': answer(gpus.roofline, 'A100', *x) for x in ((1,), (0.,), ([1, 152, 153, 1000],), (100, 'fp32'), (300, 'bf16', True))} | {f'ridge {p}': answer(gpus.ridge, 'H100', p) for p in ('bf16', 'fp8', 'x')}
    found |= {f'matmul {x}': answer(gpus.matmul_work, *x) for x in ((1, 2, 3), (128, 256, 512, 4), (0, 1, 1), (1, 0, 1), (1, 1, 0))} | told(gpus.efficiency, 'A100', 'H100', 'K80')
    for name, precision in (('A100', 'bf16'), ('RTX 3090', 'fp16'), ('RTX 2080 Ti', 'fp16'), ('H100', 'fp8'), ('V100', 'fp16'), ('RTX A5000', 'fp32')):
        dense = gpus.peak(name, precision)/1e12
        for claimed in [dense*f for f in (.9, .965, .975, 1, 1.025, 1.035, 2, 2.07, 4, 3, .5, .25)] + [19.5, 35.6, 624, 0, -1]: found[f'explained {name} {claimed:.5g}'] = answer(gpus.explain_peak, name, claimed, precision)
    found |= {f'same {x}': answer(gpus._same, *x) for x in ((1, None), (1.03, 1), (1.0299, 1), (.97, 1), (.9701, 1), (1, 0))}
    shown = gpus.gpu_table(['A100', 'K80', 'H100', 'T4', 'MI250'])
    found |= {f'row {r["name"]}': {k: r[k] for k in ('GB', 'GB/s', '16 bit', 'fp8', 'best', 'W', 'each way')} for r in shown}
    found['page'] = [list(r.values()) for r in OWN._page()]
    found |= {f'own {kw}': answer(lambda kw: (OWN.replace(**kw).usable, OWN.replace(**kw).memory), kw) for kw in (dict(memory='80GB'), dict(driver_memory=5), dict(memory=7, driver_memory=6), dict(memory=0), dict(bandwidth=0), dict(tflops=dict(fp16=0)), dict(tflops=dict(fp1=1)), dict(achievable=dict(bf16=-1)), dict(colour=1))}
    rows = [('8x RTX 3090', 'bert_large_squad'), ('p3.8xlarge', 'ssd'), ('9x A', 'ssd'), ('8x RTX 3090', 'x')]
    found |= {f'throughput {r} {p} {s}': answer(gpus.throughput, *r, p, s) for r in rows for p in ('fp16', 'fp32', 'fp8') for s in (*gpus.suites, 'x')}
    found |= {f'scaling {x}': answer(gpus.scaling, 'RTX 3090', *x) for x in ((1,), (4,), (8,), (8, 'fp32'), (3,))} | {'speedup': answer(gpus.speedup, '8x RTX 3090', '1x RTX 3090', 'fp32', ['ssd'])}
    found |= {f'row {r["name"]} {n}': gpus._scaled(n, f) for r in [dict(name='scaled')] for n, f in ((None, 2), (1.5, 3), (2, 1e9))}
    same_answers(request, 'gpus', found)


def pricelist(tmp_path, text):
    "What reading a price list gives: rows, or the error without its folder"
    path = tmp_path/'prices.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return answer(lambda: [list(o.to_dict().values()) for o in cost.read_prices(path)])


def test_prices(request, tmp_path):
    head, row = 'provider,gpu,gpus,usd_per_hour', 'A,H100,8,$20.5'
    texts = [f'{head}\n{row}\n', f'{head}\n', '', f'{head}\n{row},5\n', f'{head}\nA,H100,8\n', f'{head.upper()}\n{row}\n', f'{head},gpu\n{row},T4\n', 'provider,gpu\nA,T4\n', f'{head},colour\n{row},red\n',
             f'{head}\n' + 'A,XX,1,1\n'*7, f'{head}\n' + 'A,XX,1,1\n'*4 + row, f'{head}\n' + 'A,XX,1,1\n'*5, f'{head}\nA,T4,0,1\nA,T4,1.5,1\nA,T4,1234567,1\nA,T4,999999,1\n', f'{head}\nA,T4,1,1000000\nA,T4,1,1000001\n',
             f'{head}\nA,T4,1,0\n,T4,1,1\nA,T4,1,-2\n', head.replace(',', ';') + '\nA;T4;1;"2,5"\n', head.replace(',', '\t') + '\nA\tT4\t1\t2\n', f'{head},tier,date\n{row},spot,2026-05\n{row},x,\n{row},spot,2026-13\n{row},reserved,26\n',
             b'\xef\xbb\xbf' + f'{head}\n{row}\n'.encode(), f'{head}\n{row}'.encode() + b'\xff', f' {head}\n {row} \n', f'{head},Usd per hour\n', f'{head},{"x"*60}\n', f'\n\n{head}\n{row}\n', f'{head}\nA,T4,1,{"9"*400}\n']
    found = {f'list {i}': pricelist(tmp_path, t) for i, t in enumerate(texts)} | told(cost._separator, 'a,b', 'a;b,c;d', 'a\tb\tc', '', '\n\na;b\n,,,,')
    found |= told(cost._day, '2026', '2026-05', '2026-05-24', '2026-5', '26', '2026-02-30', '', '2026-05-24-01')
    offers = [cost.Offer(p, g, n, usd, t, i, date=d) for p, g, n, usd, t, i, d in [('A', 'H100', 8, 24, 'on-demand', '', '2026-05'), ('A', 'A100', 8, 16, 'on-demand', '', '2026-05-24'), ('A', 'V100 SXM2 16GB', 8, 40., 'on-demand', 'p3.16xlarge', '2026'),
              ('B', 'H100', 1, 1.5, 'spot', '', '2025-11-30'), ('B', 'RTX 3090', 8, 2, 'reserved', '', ''), ('B', 'A100', 1, 1.5, 'on-demand', '', '2026-01-01'), ('C', 'V100 SXM2 16GB', 4, 12.24, 'on-demand', 'p3.8xlarge', ''), ('C', 'T4', 1, .35, 'spot', '', '')]]
    found |= {f'age {n} {d}': answer(cost.price_age, offers[:n], datetime.date(2026, *d)) for n in (0, 1, 2, 4, 8) for d in ((5, 1), (7, 30), (7, 31), (8, 22), (8, 23))}
    found['age of none'] = cost.price_age(offers[4:5])
    found |= {f'per gpu {i}': (o.per_gpu, o.cluster(2).price, o.cluster(2).gpus, o.cluster().gpus_per_node) for i, o in enumerate(offers) if o.gpus == 8}
    found |= {f'restarts {x}': answer(cost.with_restarts, *x) for x in itertools.product((3600, '20h'), (1, 600, '12h'), (1, 60, '5min'), (0, 300), (None, 100, '10h'))}
    found |= {f'restarts {x}': answer(cost.with_restarts, *x) for x in ((0, 1), (1, 0), (1, 1, 0), (1, 1, 1, -1), ('x', 1), (1, 1, 1, 1, -1), (1e9, 1e-2))} | {f'best {x}': cost._best_interval(*x) for x in ((1, 1), (7200, 60))}
    e = [SimpleNamespace(step_time=2.5, tokens_per_second=100), SimpleNamespace(step_time=2.5), SimpleNamespace(tokens_per_second=100), datetime.timedelta(hours=1), 5, 2.5, '12h', 'x', 0, None, [1]]
    found |= {f'seconds {i} {kw}': answer(cost.seconds_of, t, **kw) for i, t in enumerate(e) for kw in ({}, dict(steps=10), dict(steps='10k'), dict(tokens='26B'), dict(steps=4, tokens=7), dict(steps=0), dict(steps=-1))}
    found |= {f'task {x}': answer(cost.task_named, *x) for x in itertools.product(('bert-large', 'bert', 'resnet50', 'ssd', 'gnmt', 'BERT_large squad', 'x', ''), ('', 'squad', 'x'), ('Lambda 2023', 'Lambda 2025'))}
    shown = lambda done: [(x.offer.provider, x.offer.gpu, x.offer.gpus, x.hours, x.wall_hours, x.dollars) for x in done]
    found |= {f'experiments {x}': answer(lambda x: shown(cost.experiments(offers, *x)), x) for x in ((), ('bert_large_squad', '10M'), ('resnet50', 1e6, 'fp32'), ('ssd', None, 'fp16', 'Lambda 2022'), ('x',), ('ssd', 0), ('ssd', -1), ('ssd', None, 'fp8'), ('ssd', None, 'fp16', 'x'))}
    found |= {'none of them': answer(cost.experiments, offers[4:5]*9, 'ssd', 1, 'fp16', 'Lambda 2025'), 'none': answer(cost.experiments, [])}
    done = cost.priced(offers, lambda o: '20h' if o.gpu != 'T4' else None, '12h', checkpoint=30)
    found |= {'priced': shown(done), 'frontier': shown(cost.frontier(done)), 'upheld': cost.upheld(done), 'table': [r | {} for r in cost.cost_table(done, 2)], 'titles': [cost._title(o) for o in offers], 'spot': answer(cost.priced, offers, lambda o: 1, 0)}
    found['upheld of one price'] = cost.upheld([cost.Experiment(o.replace(usd_per_hour=usd, gpus=1), 1, 1, d) for o, usd, d in zip(offers[:3], (1, .999, .998), (1, 3, 2), strict=True)])
    found |= {f'upheld {usd}': cost.upheld([cost.Experiment(o.replace(usd_per_hour=u, gpus=1), 1, 1, d) for o, u, d in zip(offers[:2], (1, usd), (1, 3), strict=True)]) for usd in (.9985, .999, .9995, 1.5)}
    found |= {f'ranks {x}': answer(cost.rank_correlation, *x) for x in (([1, 2, 3], [3, 2, 1]), ([1, 1, 2, 5], [3, 4, 4, 9]), ([1, 1], [1, 2]), ([1], [1]))} | {f'round {x}': cost._round_numbers(x) for x in ([1], [.5, 40], [.02, 3000], [1/.6, 1/1.6], [9e5], [.01], [5e5])}
    found |= {f'rule {i} {x}': answer(cost.transformer_seconds, offers[i], *x) for i in (0, 3, 4, 7) for x in (('1.3B', '26B'), (5e9, 1e9), (40e9, 1e9), (1e9, 1e9, .2, 4), (0, 1), (1, 0), (1, 1, 0))} | {'just fits': cost.transformer_seconds(offers[0], offers[0].cluster().memory/16, 1e9)}
    found |= {f'picked {x}': answer(lambda x: [o.provider + o.gpu for o in cost.pick_offers(offers, *x)], x) for x in ((), ('spot',), ('all', 'A'), ('all', '', 'h100'), ('spot', 'B', 'T4'), ('x',), ('all', 'X'), ('all', '', 'X'))}
    asks = [{}, dict(model='resnet50', samples='1M', precision='fp32'), dict(params='1.3B', tokens='26B'), dict(params='1.3B'), dict(tokens=1), dict(params='900B', tokens=1), dict(within='30h'), dict(within=1), dict(suite=2025), dict(suite='x'), dict(params='1B', tokens='1B', mfu=.2, within='1d', spot_mtbf='1h'), dict(within=3600*24)]
    found |= {f'experiment {x}': answer(lambda x: (lambda d: (shown(d[0]), d[1]))(cost.price_experiment(offers, **x)), x) for x in asks}
    exact = cost.price_experiment(offers)[0][0].wall_hours*3600
    found |= {f'within {f}': answer(lambda f: len(cost.price_experiment(offers, within=exact*f)[0]), f) for f in (.999, 1, 1.001)}
    found |= {f'benchmark {o.gpus}x {o.gpu} {t}': answer(cost._benchmark_seconds, o, t, 1e6) for o in offers for t in ('ssd', 'x')} | {f'bad {kw}': answer(lambda kw: cost.Offer(**dict(provider='A', gpu='T4', gpus=1, usd_per_hour=1) | kw).gpu, kw) for kw in (dict(provider=''), dict(gpus=0), dict(usd_per_hour=0), dict(tier='x'), dict(date='x'), dict(date='2026'), dict(gpu='x'))}
    found |= {'listed': len(cost.prices(gpu='H100')) > 3, 'since': all(o.date >= '2026-05' for o in cost.prices(since='2026-05')), 'until': all(o.date <= '2025' for o in cost.prices(until='2025')), 'only': {(o.tier, o.provider) for o in cost.prices(tier='spot', provider='AWS')}, 'column': answer(cost.prices, tear=1)}
    same_answers(request, 'prices', found)
