"""The planner on machines and models of today: each input that once misled it, with what is true of it"""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
import numpy as np
import pytest
from fsdl_tools.compute.calibrate import Calibration, fit_cluster
from fsdl_tools.compute.columns import complete_columns
from fsdl_tools.compute.hardware import kernel_of, kernels, refused
from fsdl_tools.compute.gpus import Cluster, find, gpus
from fsdl_tools.compute.planner import estimate
from fsdl_tools.compute.model_sizes import known, model_columns
from fsdl_tools.compute.search import search
from fsdl_tools.compute.choose import best_plan
from fsdl_tools.compute.step_memory import bytes_per_parameter, memory
from fsdl_tools.compute.step_time import step_time
from fsdl_tools.compute.uncertainty import (
    _fields,
    family_of,
    held_out,
    interval,
    nearest_runs,
    probability_to_fit,
    told_apart,
)
from fsdl_tools.compute.validation import check_row, plan_batch, predict_rows, unknown_columns
from fsdl_tools.core import read_data
from fsdl_tools.units import GiB
from fsdl_tools.models.spec import Input, Layer, ModelSpec
from fsdl_tools.parallel.layout import Layout

FRESH = read_data('published_runs_2026.csv', text=('date', 'release'))


def fsdl(*args, capsys):
    from fsdl_tools.cli.main import run

    code = run(list(args))
    out = capsys.readouterr()
    return code, out.out, out.err


# 1 NVLink domains


def test_a_rack_is_one_domain():
    e = estimate(
        'llama-3.1-70b',
        'dp64,tp1,pp1,zero=3,micro_batch=1,framework=megatron-core,precision=fp8',
        Cluster('GB200', 64, 64),
        128,
        8192,
    )
    assert e.fits and abs(e.step_time / 4.06 - 1) < 0.2, (e.step_time, e.why)  # published: 4.06 s
    assert e.step_low < 4.06 < e.step_high


@pytest.mark.parametrize(
    'gpu, gpus_, node',
    [('GB200', 64, 72), ('GB200', 128, 64), ('GB300', 144, 72), ('B200', 64, 8), ('H100', 2, 8), ('RTX A6000', 4, 8)],
)
def test_a_node_is_as_large_as_its_links_make_it(gpu, gpus_, node):
    assert Cluster(gpu, gpus_).gpus_per_node == node


def test_a_bridge_joins_two_and_a_rack_of_boards_is_another_part():
    c = complete_columns(
        dict(
            layers=2,
            hidden=64,
            heads=2,
            ffn=128,
            vocab=100,
            seq=64,
            gpus=64,
            gpus_per_node=64,
            tp=1,
            pp=1,
            dp=64,
            global_batch=64,
            gpu='B300',
        )
    )
    assert str(c['gpu']) == 'GB300'
    pair, four = (
        estimate('gpt2-xl', f'dp{n},zero=0', Cluster('A100 PCIe 80GB', n), 64, 1024).seconds['data_comm']
        for n in (2, 4)
    )
    assert four > 3 * pair


# 2 attention kernels


def test_the_rate_of_attention_is_the_kernels():
    assert kernel_of('megatron-core', 'H100') == kernel_of('pytorch', 'H100') == 'cudnn'
    assert kernel_of('pytorch', 'H100', software=2025.0) == kernel_of('megatron-core', 'A100') == 'fa2'
    assert kernel_of('nanotron', 'H100') == kernel_of('pytorch', 'A100') == 'fa2'
    assert kernel_of('pytorch', 'H100', 'fa3') == 'fa3' and kernel_of('pytorch', 'MI355X') == '' and 'sdpa' in kernels()
    run = dict(
        layers=32,
        hidden=4096,
        heads=32,
        ffn=11008,
        gated_mlp=True,
        vocab=32000,
        tied=False,
        seq=32768,
        gpu='H100',
        gpus=8,
        tp=1,
        pp=1,
        dp=8,
        global_batch=8,
    )
    at = lambda **kw: float(step_time(run | kw)['attention'])
    assert at(kernel='fa2') > at(kernel='cudnn') > at(kernel='fa3')
    assert at(kernel='fa3', heads=64, head_dim=64) > at(kernel='fa3')  # Small heads are slower
    with pytest.raises(ValueError, match='fa5'):
        at(kernel='fa5')


def test_long_sequences_no_longer_exceed_the_step():
    rows = [r for r in FRESH if r['study'] == 'nemo-long' and r['seq'] >= 16384]
    for r, p in zip(rows, predict_rows(rows), strict=True):
        assert abs(float(p['step_time_s']) / r['step_seconds'] - 1) < 0.15, r['run']


# 3 bytes of gradients


def test_gradients_have_the_bytes_they_are_given():
    assert bytes_per_parameter('megatron-core', 'bf16', 2) == (2, 2, 12) and bytes_per_parameter(
        'megatron-core', 'bf16', 4
    ) == (2, 4, 12)
    base = dict(
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        ffn=14336,
        gated_mlp=True,
        vocab=128256,
        tied=False,
        seq=8192,
        gpu='H100',
        gpus=8,
        tp=1,
        pp=1,
        cp=2,
        dp=4,
        zero=1,
        micro_batch=1,
        global_batch=128,
    )
    two, four = (float(memory(base | dict(framework='megatron-core', grad_bytes=b))['allocated']) for b in (2, 4))
    assert 13 < (four - two) / GiB < 16 and abs(two / GiB / 65.97 - 1) < 0.15


def test_buckets_are_as_wide_as_the_gradients():
    internlm = dict(
        layers=32,
        hidden=4096,
        heads=32,
        ffn=11008,
        gated_mlp=True,
        vocab=103168,
        tied=False,
        seq=2048,
        gpu='A100',
        gpus=8,
        tp=1,
        pp=1,
        dp=8,
        zero=1,
        micro_batch=1,
        global_batch=64,
        precision='bf16',
    )
    m = memory(internlm)
    assert float(m['first']['communication']) == pytest.approx(float(m['first']['gradients'])) and bool(m['fits'])


# 4 the search


def test_the_search_finds_the_best_known_run():
    found = search('llama-3.1-405b', Cluster('H100', 16384), 2048, 8192, framework='megatron-core')
    assert 45 < found.best.days(15.6e12) < 90 and found.tried > 1000  # Meta's: 72 days
    assert any(l.pp == 16 and l.tp == 8 and l.vp > 1 for l in map(found.layout, range(min(len(found), 200))))
    said = found.table(1)._repr_markdown_()
    assert 'Not tried' in said and 'offload' in said


def test_the_search_splits_experts_and_refuses_what_a_layout_may_not():
    found = search('mixtral-8x7b', Cluster('H100', 64), 512, 4096, framework='megatron-core')
    assert any(found.layout(i).ep > 1 for i in range(min(50, len(found))))
    for gpu, precision in (('V100', 'bf16'), ('A100', 'fp8'), ('H100', 'fp4')):
        with pytest.raises(ValueError, match='does not compute in'):
            search('gpt2', Cluster(gpu, 8), 64, 1024, precision=precision)
        with pytest.raises(ValueError, match='does not compute in'):
            estimate('gpt2', f'dp8,precision={precision}', Cluster(gpu, 8), 64, 1024)


def test_shards_stay_in_a_node_when_that_is_faster():
    found = search('llama-3.1-8b', Cluster('H100', 64, interconnect='ethernet-100'), 256, 8192, zero=3, tp=1, pp=1)
    assert found.layout(int(np.argmin([found.estimate(i).step_time for i in range(min(5, len(found)))]))).shard == 8


# 5 experts


@pytest.mark.parametrize(
    'name, billions',
    [
        ('mixtral-8x7b', 46.7),
        ('deepseek-v2', 235.7),
        ('deepseek-v3', 671.0),
        ('qwen3-235b-a22b', 235.1),
        ('glm-4.5', 352.8),
        ('gpt-oss-120b', 116.8),
        ('llama-4-maverick', 400.7),
        ('kimi-k2', 1026.4),
    ],
)
def test_mixtures_have_their_published_parameters(name, billions):
    e = estimate(name, 'dp64,zero=3', Cluster('H100', 64), 64, 4096)
    assert e.parameters / 1e9 == pytest.approx(billions, rel=0.003) and 0 < e.mfu < 1


def test_heads_may_be_wider_than_hidden_over_heads():
    sizes = model_columns('qwen3-32b')[1]
    wide, plain = (
        estimate({k: v for k, v in sizes.items() if k != 'head_dim'} | more, 'dp8,zero=3', Cluster('H100', 8), 8, 4096)
        for more in ({'head_dim': 128}, {})
    )
    assert wide.parameters > 1.05 * plain.parameters and wide.step_time > plain.step_time


def test_experts_cost_memory_and_few_of_them_time():
    base = {k: v for k, v in known()['qwen3-30b-a3b'].items() if k != 'max_seq'} | dict(
        seq=4096,
        gpu='H100',
        gpus=64,
        tp=1,
        pp=1,
        dp=64,
        ep=8,
        zero=1,
        micro_batch=1,
        global_batch=512,
        framework='megatron-core',
    )
    more = base | dict(experts=256)
    assert float(memory(more)['allocated']) > 1.3 * float(memory(base)['allocated'])
    a, b = step_time(base), step_time(more)
    assert float(b['matmul']) < 1.2 * float(a['matmul']) and float(b['data_comm'] + b['optimizer']) > float(
        a['data_comm'] + a['optimizer']
    )
    assert (
        float(step_time(base | dict(ep=64))['expert_comm']) > float(a['expert_comm']) > 0
    )  # Beyond a node they cross the network
    with pytest.raises(ValueError, match='needs experts'):
        estimate('gpt2', 'dp8,ep=8', Cluster('H100', 8), 64, 1024)
    with pytest.raises(ValueError, match='ep=3'):
        estimate('mixtral-8x7b', 'dp8,ep=3', Cluster('H100', 8), 64, 1024)


def test_a_configuration_of_a_mixture_is_counted_and_its_tokens_pay_for_few():
    tf = pytest.importorskip('transformers')
    config = tf.Qwen3MoeConfig(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        vocab_size=300,
    )
    name, sizes, _ = model_columns(config)
    assert (sizes['experts'], sizes['topk'], sizes['expert_ffn'], sizes['head_dim'], sizes['ffn']) == (8, 2, 32, 32, 64)
    assert abs(sizes['layer_extra']) < 600  # Norms and little else


def test_deepseeks_attention_is_of_low_rank():
    tf = pytest.importorskip('transformers')
    small = dict(
        num_hidden_layers=3,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=128,
        moe_intermediate_size=32,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        vocab_size=300,
        n_group=1,
        topk_group=1,
    )
    sizes = model_columns(tf.DeepseekV3Config(**small))[1]
    assert (
        sizes['kv_rank'],
        sizes['q_rank'],
        sizes['head_dim'],
        sizes['v_dim'],
        sizes['moe_layers'],
        sizes['dense_ffn'],
        sizes['shared_ffn'],
    ) == (16, 24, 24, 16, 2, 128, 32)
    assert abs(sizes['layer_extra']) < 400


# 6 adapters, frozen weights, optimizers


def test_adapters_spare_gradients_optimizer_and_a_third_of_the_products():
    full, lora, qlora = (
        estimate('llama-3.1-8b', f'dp8,zero=0{more}', Cluster('H100', 8), 32, 4096)
        for more in ('', ',lora_rank=16', ',lora_rank=16,weight_bits=4')
    )
    assert (
        lora.first['gradients'] < full.first['gradients'] / 50
        and lora.first['optimizer'] < full.first['optimizer'] / 50
    )
    assert (
        0.55 < lora.seconds['matmul'] / full.seconds['matmul'] < 0.75
        and qlora.first['weights'] < 0.35 * lora.first['weights']
    )
    assert qlora.step_time > lora.step_time and lora.parameters == full.parameters
    with pytest.raises(ValueError, match='lora_rank'):
        estimate('gpt2', 'dp8,weight_bits=4', Cluster('H100', 8), 64, 1024)


def test_packed_documents_make_attention_cheaper():
    long, short = (
        estimate('llama-3.1-8b', f'dp8,zero=3{more}', Cluster('H100', 8), 8, 8192).seconds['attention']
        for more in ('', ',document=512')
    )
    assert short == pytest.approx(long / 16, rel=0.01)


def test_optimizers_have_their_bytes_and_their_time():
    of = lambda name: estimate('llama-3.1-8b', f'dp8,zero=1,optimizer={name}', Cluster('H100', 8), 32, 4096)
    adam, muon, small = of('adam'), of('muon'), of('adam8bit')
    assert muon.first['optimizer'] == pytest.approx(adam.first['optimizer'] * 2 / 3, rel=0.01) and small.first[
        'optimizer'
    ] == pytest.approx(adam.first['optimizer'] / 2, rel=0.01)
    assert small.seconds['optimizer'] < adam.seconds['optimizer'] < muon.seconds['optimizer']


# 7 number formats


def test_formats_have_peaks_of_their_own():
    e8, e4 = (
        estimate(
            'llama-3.1-8b',
            f'dp8,zero=1,micro_batch=2,framework=megatron-core,precision={p}',
            Cluster('B200', 8),
            128,
            8192,
        )
        for p in ('fp8', 'fp4')
    )
    assert e4.seconds['matmul'] < 0.85 * e8.seconds['matmul']
    mx, plain = (
        estimate(
            'llama-3.1-8b', f'dp8,zero=1,framework=megatron-core,precision={p}', Cluster('B200', 8), 128, 8192
        ).step_time
        for p in ('mxfp8', 'fp8')
    )
    assert mx > plain and refused('A100', 'mxfp8') and not refused('B200', 'nvfp4') and refused('H100', 'nvfp4')


# 8 rows of GPUs


def test_gpus_of_today_are_there_with_sources():
    for name in ('GB300', 'H800', 'A800', 'H20', 'B300', 'MI355X'):
        g = find(name)
        assert g.source and g.seen and g.date >= '2026-11' and g.link_bandwidth, name
    assert find('H800').link_bandwidth < find('H100').link_bandwidth and find('GB300').tflops['fp4'] == 15000


def test_a_missing_figure_is_an_error():
    for name in ('MI250', 'TPU v4'):
        with pytest.raises(ValueError, match='no rate of the link'):
            estimate('gpt2', 'dp8', Cluster(name, 8), 64, 1024)
    assert estimate('gpt2', 'dp1', Cluster('MI250', 1), 8, 1024).step_time > 0
    assert estimate('gpt2', 'dp8', Cluster(find('MI250').replace(link_bandwidth=50e9), 8), 64, 1024).step_time > 0


def test_unknown_gpus_get_names_near_in_meaning():
    with pytest.raises(ValueError, match="did you mean 'H100 SXM'"):
        find('H1000')
    with pytest.raises(ValueError, match='A100'):
        find('Hopper9')


# 9 the given record


def test_a_gpu_of_ones_own_is_used():
    small = find('H100').replace(memory=20 * GiB, bandwidth=1e11, tflops={'bf16': 100.0})
    a, b = (estimate('llama-3.1-8b', 'dp8,zero=3', Cluster(g, 8), 8, 4096) for g in ('H100', small))
    assert b.usable == 20 * GiB and not b.fits and b.step_time > 4 * a.step_time and b.mfu < 1
    mine = find('H100').replace(name='X9000', memory=500 * GiB)
    assert estimate('llama-3.1-8b', 'dp8', Cluster(mine, 8), 8, 4096).usable == 500 * GiB
    assert search('gpt2-xl', Cluster(small, 8), 64, 1024).best.usable == 20 * GiB


@pytest.mark.parametrize('gpu', [g.name for g in gpus() if g.vendor == 'NVIDIA' and g.year >= 2020])
def test_nothing_reaches_its_peak(gpu):
    for precision in ('bf16', 'fp16', 'fp8', 'fp4', 'fp32'):
        if find(gpu).tflops.get(precision):
            e = estimate(
                'llama-3.1-8b',
                f'dp1,precision={precision},micro_batch=8,framework=megatron-core',
                Cluster(gpu, 1),
                8,
                8192,
            )
            assert e.hfu < 1


# 10 columns nobody knows


def test_a_table_names_the_columns_it_would_ignore(tmp_path, capsys):
    assert unknown_columns(['layers', 'recompte', 'lora_rank', 'note', 'wings']) == {
        'recompte': unknown_columns(['recompte'])['recompte'],
        'wings': [],
    }
    assert unknown_columns(['recompte'])['recompte'][0] == 'recompute' and not unknown_columns(FRESH[0])
    row = {k: v for k, v in FRESH[0].items() if v not in (None, '')} | dict(recompte='full')
    with open(tmp_path / 'x.csv', 'w', newline='') as f:
        w = csv.DictWriter(f, row)
        w.writeheader()
        w.writerow(row)
    code, out, err = fsdl('plan', '--batch', str(tmp_path / 'x.csv'), capsys=capsys)
    assert code == 0 and "'recompte'" in err and 'recompute' in err


# 11 text models and prices


def test_a_profiled_text_model_is_priced_by_its_tokens():
    spec = ModelSpec(
        'mine',
        'module',
        'other',
        10_000_000,
        10_000_000,
        flops=8_000_000_000,
        saved=2**27,
        traffic=2**29,
        inputs=(Input('ids', (1, 256), 'int64'),),
        layers=(Layer('lin', 'Linear', output=(1, 256, 64), flops=1),),
    )
    e = estimate(spec, 'dp8,micro_batch=8', Cluster('A100', 8, gpu_hour=2.0), 64)
    assert (
        e.seq == 256
        and e.tokens_per_second == pytest.approx(64 * 256 / e.step_time)
        and e.cost(1e9) == pytest.approx(1e9 / e.tokens_per_second / 3600 * 16)
    )
    with pytest.raises(ValueError, match='profiled at 256'):
        estimate(spec, 'dp8,micro_batch=8', Cluster('A100', 8), 64, 512)


def test_a_price_is_of_one_gpu_and_hour(capsys):
    assert Cluster('H100', 64, gpu_hour=2.5).price == 160 and Cluster('H100', 64).price is None
    e = estimate('gpt2', 'dp64', Cluster('H100', 64, gpu_hour=2.5), 64, 1024)
    assert e.dollars == pytest.approx(160 * e.step_time / 3600) and '× 64' in e._repr_markdown_()
    code, out, _ = fsdl(
        'plan',
        'gpt2',
        '--gpus',
        '8',
        '--global-batch',
        '64',
        '--seq',
        '1024',
        '--price',
        '2.5',
        '--layout',
        'dp8',
        capsys=capsys,
    )
    assert code == 0 and '$20.00/h' in out


# 12 intervals


def test_intervals_hold_what_they_say():
    rows = list(held_out('time'))
    assert 0.77 <= np.mean([r['inside'] for r in rows]) <= 0.83
    by = {}
    for r in rows:
        by.setdefault(tuple(r[k] for k in _fields), []).append(r['inside'])
    for family, inside in by.items():
        if len(inside) >= 20:
            assert _binomial_tail(sum(inside), len(inside), 0.8) > 0.01, (family, np.mean(inside))


def _binomial_tail(k, n, p):
    "Two-sided probability of a count as far from its mean"
    chance = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)]
    return sum(c for c in chance if c <= chance[k] * (1 + 1e-9))


def test_an_estimate_says_how_sure_it_is_and_what_was_measured_nearby():
    e = estimate('llama-3.1-70b', 'dp64,zero=3,precision=fp8,framework=megatron-core', Cluster('GB200', 64), 128, 8192)
    assert (
        e.step_low < e.step_time < e.step_high and 0 <= e.fits_probability <= 1 and type(e).from_json(e.to_json()) == e
    )
    near = list(e.nearest())
    assert len(near) == 3 and all(r['measured'] for r in near) and near[0]['distance'] <= near[-1]['distance']
    tight, loose = (
        interval('time', family_of('GB200', 'fp8', 'megatron-core')),
        interval('time', family_of('MI300X', 'bf16', 'torchtitan', 'lora')),
    )
    assert loose.high / loose.low > tight.high / tight.low
    assert probability_to_fit(60, 80, 'pytorch') > 0.9 > 0.1 > probability_to_fit(120, 80, 'pytorch')
    assert (
        nearest_runs(family_of('A100', 'fp16', 'megatron-deepspeed'), 'A100-SXM-80GB', 1e11, 384, 2048, what='memory')[
            0
        ]['study']
        == 'bloom-prequel'
    )
    assert 0 < told_apart(family_of('H100', 'bf16', 'nanotron')) <= 0.05


# 13 calibration


def test_three_runs_correct_a_cluster_and_contradictions_do_not(tmp_path, capsys):
    bloom = [
        r
        for r in read_data('published_runs.csv', text=('date',))
        if r['study'] == 'bloom-prequel' and r['step_seconds']
    ]
    slow = [r | dict(step_seconds=1.25 * r['step_seconds']) for r in bloom[:5]]
    mine = fit_cluster(slow[:3], 'slow')
    ratio = lambda rows, k=None: np.median(
        [float(p['step_time_s']) / r['step_seconds'] for r, p in zip(rows, predict_rows(rows, k), strict=True)]
    )
    assert abs(ratio(slow[3:], mine) - 1) < abs(ratio(slow[3:]) - 1) / 2
    torn = fit_cluster(
        [r | dict(step_seconds=f * r['step_seconds']) for r, f in zip(bloom[:4], (1.3, 0.75, 1.3, 0.75), strict=True)]
    )
    assert all(abs(math.log(f)) < 0.08 for f in torn.factors.values())
    with pytest.raises(ValueError, match='3 runs'):
        fit_cluster(bloom[:2])
    for bad in ('fast', '-1', 'nan', 'inf'):
        with pytest.raises(ValueError, match=f'run 2: step_seconds must be a positive number, not {bad!r}'):
            fit_cluster([slow[0], slow[1] | dict(step_seconds=bad), *slow[2:]])
    with pytest.raises(ValueError, match='run 3: layers'):
        fit_cluster([*slow[:2], slow[2] | dict(layers='many'), *slow[3:]])
    with open(tmp_path / 'runs.csv', 'w', newline='') as f:
        w = csv.DictWriter(f, slow[0])
        w.writeheader()
        w.writerows(slow)
    code, out, _ = fsdl(
        'plan', 'calibrate', str(tmp_path / 'runs.csv'), '--save', str(tmp_path / 'mine.json'), capsys=capsys
    )
    assert code == 0 and '5 runs' in out and Calibration.from_json(tmp_path / 'mine.json').runs == 5
    code, out, _ = fsdl(
        'plan',
        'gpt2',
        '--gpus',
        '8',
        '--global-batch',
        '64',
        '--seq',
        '1024',
        '--layout',
        'dp8',
        '--calibration',
        str(tmp_path / 'mine.json'),
        capsys=capsys,
    )
    assert code == 0 and 'constants of runs, from 5 runs' in ' '.join(out.split())
    assert fsdl('plan', 'gpt2', 'more', capsys=capsys)[0] == fsdl('plan', 'calibrate', capsys=capsys)[0] == 2


# The published runs

GOALS = {'A100': 0.08, '16 bits': 0.08, '8 bits': 0.08, 'Blackwell': 0.12, 'lora': 0.15, 'moe': 0.15}


@pytest.mark.parametrize('group', GOALS)
def test_fresh_runs_are_predicted(group):
    rows = [r for r in FRESH if r['step_seconds'] and _group(r) == group]
    off = [abs(float(p['step_time_s']) / r['step_seconds'] - 1) for r, p in zip(rows, predict_rows(rows), strict=True)]
    assert len(off) >= 14 and np.median(off) <= GOALS[group], np.median(off)


def _group(r):
    if r['kind'] == 'moe' or r['task'] == 'lora':
        return 'moe' if r['kind'] == 'moe' else 'lora'
    if 'A100' in r['gpu']:
        return 'A100'
    if r['gpu'].startswith(('H100', 'H200')):
        return '8 bits' if r['precision'] in ('fp8', 'fp4') else '16 bits'
    return 'Blackwell' if r['gpu'].startswith(('B', 'GB')) else 'other'


def test_dense_runs_that_finished_are_said_to_fit():
    rows = [r for r in FRESH if r['kind'] == 'dense' and r['task'] != 'lora']
    assert np.mean([p['fits'] for p in predict_rows(rows)]) >= 0.95


def test_what_a_table_leaves_open_is_said():
    lora = next(r for r in FRESH if r['task'] == 'lora')
    assert 'lora_rank 16' in predict_rows([lora])[0]['assumed'] and check_row(lora)['lora_rank'] == 16
    assert json.loads(json.dumps(predict_rows([lora])[0]))['low'] > 0
    assert best_plan('gpt2', Cluster('A100', 8), 64, 1024, lora_rank=8)[1].layout.lora_rank == 8
    assert plan_batch


# One GPU's truth


def test_the_script_for_one_gpu_predicts_before_it_measures(tmp_path):
    script = Path(__file__).parents[2] / 'benchmarks' / 'gpu_truth.py'
    done = subprocess.run(
        [sys.executable, str(script), '--device', 'cpu', '--out', str(tmp_path / 'truth.json')],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-500:]
    before, after = (json.loads((tmp_path / n).read_text()) for n in ('truth.json.predicted', 'truth.json'))
    assert [r['predicted_seconds'] for r in before['rows']] == [r['predicted_seconds'] for r in after['rows']]
    assert (
        not any('measured_seconds' in r for r in before['rows'])
        and before['gpu'] == 'H100 SXM'
        and after['versions']['torch']
    )
    assert {r['what'] for r in after['rows'] if r.get('measured_seconds')} == {
        'product',
        'attention forward',
        'attention backward',
        'update',
    }


def test_peaks_of_memory_correct_the_memory_model_too(tmp_path):
    peaks = [
        r
        for r in read_data('published_runs.csv', text=('date',))
        if r['study'] == 'bloom-prequel' and r['peak_gib'] and r['step_seconds']
    ][:6]
    more = [r | dict(peak_gib=1.1 * r['peak_gib']) for r in peaks]
    mine = fit_cluster(more[:4], 'full')
    off = lambda k=None: np.median(
        [
            abs(float(p['device_gib']) / r['peak_gib'] - 1)
            for r, p in zip(more[4:], predict_rows(more[4:], k), strict=True)
        ]
    )
    assert mine.memory_runs == 4 and mine.memory_after < mine.memory_before and off(mine) < off() / 2
    only = fit_cluster([{k: v for k, v in r.items() if k != 'step_seconds'} for r in more[:4]], 'peaks')
    assert only.runs == 0 and only.factors == {} and only.memory == mine.memory
    cluster = Cluster('A100', 8)
    plain, own = (estimate('llama-3.1-8b', 'dp8,zero=3', cluster, 16, 4096, calibration=k) for k in (None, only))
    assert own.device > plain.device and own.step_time == plain.step_time and 'from 4 runs' in own.assumed[-1]
    assert Calibration.from_json(mine.to_json()).memory == mine.memory


# CUDA graphs and the way of tokens to their experts


def test_a_mixture_waits_less_where_graphs_are_captured():
    at = lambda **kw: estimate(
        'qwen3-30b-a3b',
        Layout(dp=8, ep=8, micro_batch=4, framework='megatron-core', **kw),
        Cluster('GB200', 8),
        512,
        4096,
    )
    none, layers, whole = (at(graphs=g).step_time for g in ('none', 'layers', 'whole'))
    assert none > layers > whole and at().step_time == layers and 'CUDA graphs: layers' in at().assumed
    assert at(precision='fp8').step_time == at(precision='fp8', graphs='whole').step_time
    assert not any('graphs' in a for a in at(graphs='none').assumed)
    with pytest.raises(ValueError, match='graphs'):
        at(graphs='some')


def test_a_token_crosses_the_network_once_for_each_node():
    at = lambda **kw: estimate(
        'qwen3-30b-a3b', Layout(dp=16, ep=16, framework='megatron-core', **kw), Cluster('H100', 16), 512, 4096
    )
    assert at(dispatcher='deepep').seconds['expert_comm'] < at(dispatcher='alltoall').seconds['expert_comm'] / 2
    assert at().step_time == at(dispatcher='deepep').step_time  # Recipes of 2026


def test_a_search_offloads_only_where_it_must():
    at = lambda **kw: search('llama-3.1-70b', Cluster('A100', 16), 64, 4096, **kw)
    found, without = at(), at(offload='none')
    away = found.columns['offload'] > 0
    assert found.tried == without.tried + away.sum() and not (without.columns['offload'] > 0).any()
    assert away.sum() == (~without.found['fits']).sum() and len(found) > len(without)
    assert any(found.layout(i).offload == 'optimizer' for i in range(len(found)))
    assert 'offload where a layout fits without' in found.untried and 'offload' in without.untried
    with pytest.raises(ValueError, match='offload'):
        at(offload='disk')
