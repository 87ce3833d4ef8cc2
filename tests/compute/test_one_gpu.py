"What one GPU said of the planner: results/gpu_truth.json"

import numpy as np
import pytest

from fsdl_tools.compute.gpus import Cluster, find
from fsdl_tools.compute.images import (
    Profiled,
    _image_constants,
    _in_fp32,
    _product_share,
    _seconds_a_byte,
    _slow_kernel,
)
from fsdl_tools.compute.planner import estimate
from fsdl_tools.core import read_data, read_results
from fsdl_tools.units import GiB
from fsdl_tools.models.profile import profile
from fsdl_tools.models.spec import Layer
from fsdl_tools.parallel.layout import parse_layout

TRUTH = read_results('gpu_truth')
FITTED = {'resnet50', 'efficientnet_b0'}


def rows():
    return [
        r
        for r in TRUTH['rows']
        if r['what'] == 'model' and r['which'][0] not in ('gpt2', 'llama-160m', 'llama-1b', 'qwen2-small')
    ]


def now(name, batch, gpu='H200 SXM', **kw):
    layout = f'micro_batch={batch},precision={kw.pop("precision", "amp_bf16")}'
    return estimate(profile(name, train=True), layout, Cluster(gpu, 1), batch)


def test_networks_for_images_take_the_time_and_memory_that_they_took():
    off, held = [], []
    for r in rows():
        e = now(*r['which'])
        if r['which'][0] not in FITTED:
            off.append(abs(1e3 * e.step_time / r['measured_ms'] - 1))
        held.append(abs(e.allocated / GiB / r['measured_gib'] - 1))
        assert 'channels first' in e.assumed[0]
    assert len(off) >= 12 and np.median(off) <= 0.16 and max(off) <= 0.45
    assert np.median(held) <= 0.03 and max(held) <= 0.08


def test_products_were_predicted():
    off = [
        abs(r['predicted_ms'] / r['measured_ms'] - 1)
        for r in TRUTH['rows']
        if r['what'].startswith('product') and r['measured_ms'] > 0.3
    ]
    assert len(off) == 8 and max(off) <= 0.08


def test_a_small_batch_takes_as_long_as_starting_it():
    one, two = (now('resnet50', n) for n in (1, 2))
    assert one.seconds['launch'] > 0.8 * one.step_time and two.step_time == pytest.approx(one.step_time, rel=0.02)
    assert now('resnet50', 256).seconds['launch'] == 0


def layer(kind, channels, params=0, flops=1):
    return Layer(name='x', kind=kind, params=params, flops=flops, output=(1, channels, 8, 8), calls=1)


def seconds_a_byte(x, precision, gpu):
    p = Profiled(
        profile('resnet18', train=True), parse_layout(f'micro_batch=1,precision={precision}'), Cluster(gpu, 1), 1
    )
    return _seconds_a_byte(p, x)


def test_batchnorm_of_bf16_wants_as_many_channels_as_there_are_multiprocessors_and_no_memory():
    took = {
        (n, gpu): seconds_a_byte(layer('BatchNorm2d', n), 'amp_bf16', gpu)
        for n in (33, 132, 1024)
        for gpu in ('H100 SXM', 'H200 SXM')
    }
    assert (
        took[33, 'H200 SXM'] == pytest.approx(4 * took[132, 'H200 SXM'])
        and took[132, 'H200 SXM'] == took[1024, 'H200 SXM']
    )
    assert all(took[n, 'H100 SXM'] == took[n, 'H200 SXM'] for n in (33, 132, 1024))
    half, full = (seconds_a_byte(layer('BatchNorm2d', 33), p, 'H100 SXM') for p in ('amp_fp16', 'fp32'))
    assert (
        half
        == full
        == pytest.approx(
            _image_constants()['batchnorm_passes'] / _image_constants()['memory_share'] / find('H100 SXM').bandwidth
        )
    )


def test_a_kernel_is_slow_by_what_it_computes_not_by_its_name():
    assert [
        _slow_kernel(x) for x in (layer('Conv2d', 96, 96 * 9), layer('Conv2d', 96, 96 * 96), layer('BatchNormAct2d', 8))
    ] == ['thin', '', 'batchnorm']
    assert (
        not _slow_kernel(layer('ConvNeXtBlock', 128, 128, flops=0))
        and _slow_kernel(layer('StdConv2dSame', 96, 96 * 9)) == 'thin'
    )


def test_convolutions_in_fp32_use_tf32_and_other_products_do_not():
    conv = {p: now('resnet50', 256, 'H100 SXM', precision=p).seconds['matmul'] for p in ('fp32', 'tf32')}
    products = {p: now('vit_base_patch16_224', 64, 'H100 SXM', precision=p).seconds['matmul'] for p in ('fp32', 'tf32')}
    assert conv['fp32'] == pytest.approx(conv['tf32'], rel=0.03) and products['fp32'] > 5 * products['tf32']
    assert now('resnet50', 16, 'V100 SXM2 16GB', precision='fp32').seconds['matmul'] > 0  # has no TF32


def test_products_get_less_of_a_peak_that_is_high_beside_its_memory():
    shares = [_product_share(find(n)) for n in ('RTX 3090', 'A100 SXM 80GB', 'H100 SXM')]
    assert (
        shares == sorted(shares, reverse=True) and shares[0] <= _image_constants()['product_share'] and shares[-1] > 0.3
    )


def test_an_h100_takes_what_it_took():
    for r in read_results('speedups_gpu')['rows']['resnet50']:
        precision = dict(baseline='fp32', tf32='tf32', bf16='amp_bf16').get(r['switch'])
        if precision and r['how'] == 'alone':
            e = now('resnet50', 128, 'H100 SXM', precision=precision)
            assert 1e3 * e.step_time == pytest.approx(r['ms'], rel=0.15) and e.allocated / GiB == pytest.approx(
                r['peak_gib'], rel=0.03
            )


def test_half_of_the_published_networks_gave_constants_and_the_other_half_is_right_to_an_eighth():
    images = read_results('images')
    off = {
        part: np.array([abs(r['ratio'] - 1) for r in images['rows'] if r['part'] == part])
        for part in ('fit', 'held out')
    }
    assert (
        len(off['held out']) >= 90 and np.median(off['held out']) <= 0.125 and np.quantile(off['held out'], 0.9) <= 0.35
    )
    for r in images['rows'][::17]:
        run = next(x for x in read_data('image_runs.csv') if x['network'] == r['network'])
        layout = f"micro_batch={run['batch']},precision={run['precision']}"
        e = estimate(profile(r['network'], train=True, fused=False), layout, Cluster(run['gpu'], 1), run['batch'])
        assert (
            1e3 * e.step_time == pytest.approx(r['predicted_ms'], rel=0.01)
            and run['part'] == r['part']
            and run['step_ms'] == r['measured_ms']
        )


def test_norms_stay_in_fp32_under_autocast():
    half, full = (now('vit_small_patch16_224', 64, precision=p).first['activations'] for p in ('amp_bf16', 'fp32'))
    assert 0.5 < half / full < 0.7
    assert now('resnet18', 64).first['activations'] == pytest.approx(
        0.5 * now('resnet18', 64, precision='fp32').first['activations'], rel=0.01
    )


def test_which_modules_autocast_computes_in_fp32():
    whole = 'LayerNorm LayerNorm2d T5LayerNorm GroupNorm GroupNorm1 LlamaRMSNorm RmsNorm RmsNorm2d Softmax'.split()
    halved = 'BatchNorm2d BatchNormAct2d Conv1d Conv2d Linear ReLU GELU Embedding Attention'.split()
    assert [k for k in whole if not _in_fp32(k)] == [k for k in halved if _in_fp32(k)] == []


def test_an_update_moves_what_its_optimizer_moves():
    at = lambda optimizer: estimate(
        profile('resnet18', train=True), f'micro_batch=8,optimizer={optimizer}', Cluster('H200 SXM', 1), 8
    ).seconds['optimizer']
    assert at('adam') > at('momentum') > at('sgd')


def test_every_constant_has_a_source_and_a_date():
    for r in read_data('planner_images.csv', text=('date',)):
        assert r['source'] and r['date'] and r['unit'] and r['meaning'], r
    assert find('H200 SXM').name == TRUTH['gpu']


def test_compiling_fuses_what_transformers_writes_out():
    held = {
        (framework, compiled): estimate(
            'gpt2',
            f'micro_batch=8,precision=fp32,framework={framework},compile={compiled}',
            Cluster('H100 SXM', 1),
            8,
            1024,
        )
        for framework in ('pytorch', 'transformers')
        for compiled in ('true', 'false')
    }
    activations = {k: e.first['activations'] for k, e in held.items()}
    assert (
        activations['transformers', 'true']
        == activations['pytorch', 'true']
        < 0.65 * activations['transformers', 'false']
    )
    assert any('fused kernels' in x for x in held['transformers', 'true'].assumed) and not any(
        'fused kernels' in x for x in held['transformers', 'false'].assumed
    )
    measured = {r['switch']: r['peak_gib'] for r in read_results('speedups_gpu')['rows']['gpt2'] if r['how'] == 'alone'}
    assert held['transformers', 'true'].allocated / GiB == pytest.approx(measured['compile'], rel=0.05)
    assert held['transformers', 'false'].allocated / GiB == pytest.approx(measured['baseline'], rel=0.15)
