"What one GPU said of the planner: results/gpu_truth.json"
import numpy as np
import pytest

from fsdl_tools.compute.gpus import Cluster, find
from fsdl_tools.compute.planner import _image_constants, _in_fp32, _passes, estimate
from fsdl_tools.core import GiB, read_data, read_results
from fsdl_tools.models.profile import profile
from fsdl_tools.models.spec import Layer

TRUTH = read_results('gpu_truth')
FITTED = {'resnet50', 'efficientnet_b0'}


def rows():
    return [r for r in TRUTH['rows'] if r['what'] == 'model' and r['which'][0] not in ('gpt2', 'llama-160m', 'llama-1b', 'qwen2-small')]


def now(name, batch, gpu='H200 SXM', **kw):
    layout = f'micro_batch={batch},precision={kw.pop("precision", "amp_bf16")}'
    return estimate(profile(name, train=True), layout, Cluster(gpu, 1), batch)


def test_networks_for_images_take_the_time_and_memory_that_they_took():
    off, held = [], []
    for r in rows():
        e = now(*r['which'])
        if r['which'][0] not in FITTED:
            off.append(abs(1e3*e.step_time/r['measured_ms'] - 1))
        held.append(abs(e.allocated/GiB/r['measured_gib'] - 1))
        assert 'channels first' in e.assumed[0]
    assert len(off) >= 12 and np.median(off) <= .12 and max(off) <= .45
    assert np.median(held) <= .03 and max(held) <= .08


def test_products_were_predicted():
    off = [abs(r['predicted_ms']/r['measured_ms'] - 1) for r in TRUTH['rows'] if r['what'].startswith('product') and r['measured_ms'] > .3]
    assert len(off) == 8 and max(off) <= .08


def test_a_small_batch_takes_as_long_as_starting_it():
    one, two = (now('resnet50', n) for n in (1, 2))
    assert one.seconds['launch'] > .8*one.step_time and two.step_time == pytest.approx(one.step_time, rel=.02)
    assert now('resnet50', 256).seconds['launch'] == 0


def test_batchnorm_wants_as_many_channels_as_there_are_multiprocessors():
    layer = lambda kind, channels, params=0: Layer(name='x', kind=kind, params=params, output=(1, channels, 8, 8), calls=1)
    narrow, wide, wider = (_passes(layer('BatchNorm2d', n), 132) for n in (33, 132, 1024))
    assert narrow == pytest.approx(4*wide) and wide == wider == _image_constants()['batchnorm_passes']
    assert _passes(layer('Conv2d', 96, 96*9), 132) == _image_constants()['thin_passes'] and _passes(layer('Conv2d', 96, 96*96), 132) == 1.


def test_norms_stay_in_fp32_under_autocast():
    half, full = (now('vit_small_patch16_224', 64, precision=p).first['activations'] for p in ('amp_bf16', 'fp32'))
    assert .5 < half/full < .7
    assert now('resnet18', 64).first['activations'] == pytest.approx(.5*now('resnet18', 64, precision='fp32').first['activations'], rel=.01)


def test_which_modules_autocast_computes_in_fp32():
    whole = 'LayerNorm LayerNorm2d T5LayerNorm GroupNorm GroupNorm1 LlamaRMSNorm RmsNorm RmsNorm2d Softmax'.split()
    halved = 'BatchNorm2d BatchNormAct2d Conv1d Conv2d Linear ReLU GELU Embedding Attention'.split()
    assert [k for k in whole if not _in_fp32(k)] == [k for k in halved if _in_fp32(k)] == []


def test_an_update_moves_what_its_optimizer_moves():
    at = lambda optimizer: estimate(profile('resnet18', train=True), f'micro_batch=8,optimizer={optimizer}', Cluster('H200 SXM', 1), 8).seconds['optimizer']
    assert at('adam') > at('momentum') > at('sgd')


def test_every_constant_has_a_source_and_a_date():
    for r in read_data('planner_images.csv', text=('date',)):
        assert r['source'] and r['date'] and r['unit'] and r['meaning'], r
    assert find('H200 SXM').name == TRUTH['gpu']
