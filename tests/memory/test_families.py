"""Memory of the families of transformers: measured without data and with, and predicted from the graph. A sample by
default, all with --slow.
"""

import pytest
from fsdl_tools.core import fix_torchvision

fix_torchvision()
import torch
from fsdl_tools.memory.measure import measure, summary
from fsdl_tools.memory.predict import breakdown
from fsdl_tools.models.architectures import find_class
from fsdl_tools.models.build import build, example_inputs
from fsdl_tools.models.zoo import index
from fsdl_tools.onnx.sources import tiny_config

families = [r['name'] for r in index() if r['library'] == 'transformers' and r['params']]
# Kinds of attention whose parts no rule knows, by how much the prediction may be off; 0.08 is linear attention in
# pieces
ROUGH = {'mra': 0.2, 'aimv2_vision_model': 0.2, 'siglip_vision_model': 0.2, 'siglip2_vision_model': 0.2}
LARGEST = 20_000_000  # parameters that are made for real


def made(name):
    """The family a few thousand parameters big, and inputs; skipped where its sizes cannot be so small, or where it
    does not run
    """
    if name == 'dinov3_vit':
        pytest.skip('keeps tensors of one call for the next, with data or without')
    try:
        config = tiny_config(name)
        for part in (config, *(getattr(config, k, None) for k in config.sub_configs)):
            for k in list(vars(part or config)):
                if 'layer_drop' in k or 'layerdrop' in k or k == 'apply_spec_augment':
                    setattr(part or config, k, 0)  # what is left out at random is never the same
        with torch.device('meta'):
            size = sum(p.numel() for p in find_class(config)(config).parameters())
    except Exception as e:
        pytest.skip(f'no tiny configuration: {e!r:.80}')
    if size > LARGEST:
        pytest.skip(f'{size:,} parameters are too many to make')
    model = find_class(config)(config)
    inputs = example_inputs(model, 2, 16, device='cpu')
    try:
        summary(measure(model, inputs, real=True))
    except Exception as e:
        pytest.skip(f'does not run so small: {e!r:.80}')
    return model, inputs


@pytest.mark.sweep(4)
@pytest.mark.parametrize('name', families)
def test_without_data_and_with(name):
    model, inputs = made(name)
    with_data = summary(measure(model, inputs, real=True))
    try:
        without, predicted = summary(measure(model, inputs)), breakdown(model, inputs=inputs, kernels='cpu')
    except ValueError as e:
        assert 'depends on values which are not known' in str(
            e
        )  # refused, as I-BERT is: its scales are read from what it computes
        return
    passing = ('temporary', 'peak')  # a kernel on real data may choose another layout for what it throws away
    a, b = without.to_dict(), with_data.to_dict()
    assert {k: v for k, v in a.items() if k not in passing} == {k: v for k, v in b.items() if k not in passing}
    assert a['peak'] == pytest.approx(b['peak'], rel=0.01)
    # gradients and states are predicted for all that could be trained; some families have parts that no forward pass
    # uses
    for kind in ('parameters', 'buffers', 'batch', 'activations', 'logits'):
        assert getattr(predicted, kind) == pytest.approx(getattr(without, kind), rel=ROUGH.get(name, 0.08)), kind


@pytest.mark.parametrize('name, grouped', [('llama', 2), ('mistral', 4), ('qwen3', 1)])
@pytest.mark.parametrize('tokens', [32, 96])
def test_no_mask_is_made_that_a_real_step_does_without(name, grouped, tokens, monkeypatch):
    """With ids alone nothing is hidden but the future, which the kernel knows; a mask would be of tokens times
    tokens in every layer
    """
    monkeypatch.setattr(
        'fsdl_tools.memory.gpu._groups_with_mask', True
    )  # as since PyTorch 2.14: before, grouped keys in fp32 have no fused kernel
    config = tiny_config(name, num_attention_heads=4, num_key_value_heads=4 // grouped)
    model = find_class(config)(config)
    ids = example_inputs(model, 2, tokens)
    assert summary(measure(model, ids)).to_dict() == summary(measure(model, ids, real=True)).to_dict()
    at = {n: breakdown(model, inputs=example_inputs(model, 2, n)).activations for n in (tokens, 2 * tokens)}
    assert at[2 * tokens] == 2 * at[tokens]  # no term grows with the square


def test_a_mask_that_hides_something_is_made():
    config = tiny_config('llama')
    model = find_class(config)(config)
    ids = example_inputs(model, 2, 64)
    hides = ids | dict(attention_mask=torch.ones(2, 64, dtype=torch.long).tril())
    everything = ids | dict(attention_mask=torch.ones(2, 64, dtype=torch.long))
    got = {k: summary(measure(model, x)).activations for k, x in (('none', ids), ('hides', hides), ('all', everything))}
    real = {
        k: summary(measure(model, x, real=True)).activations
        for k, x in (('none', ids), ('hides', hides), ('all', everything))
    }
    assert got == real and got['none'] == got['all'] < got['hides']


@pytest.mark.parametrize('precision', ['fp32', 'amp', 'bf16'])
def test_experts_in_every_precision(precision):
    config = tiny_config('mixtral')
    model = find_class(config)(config)
    ids = example_inputs(model, 2, 16)
    a, b = (
        breakdown(model, inputs=ids, kernels='cpu', precision=precision),
        summary(measure(model, ids, precision=precision)),
    )
    assert a.activations == pytest.approx(b.activations, rel=0.02) and a.parameters == b.parameters


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def test_what_a_function_of_ones_own_keeps_is_counted():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(64, 256), torch.nn.Linear(256, 8)

        def forward(self, x):
            return self.b(Square.apply(self.a(x)))

    x = (torch.randn(32, 64),)
    before = torch.autograd.function.FunctionCtx.save_for_backward
    a, b = breakdown(Own(), inputs=x, kernels='cpu'), summary(measure(Own(), x, real=True))
    assert a.activations == b.activations == 2 * 32 * 256 * 4
    assert torch.autograd.function.FunctionCtx.save_for_backward is before


def test_threads_leave_nothing_exchanged():
    "The app predicts for several people at once"
    from concurrent.futures import ThreadPoolExecutor
    from transformers import masking_utils

    config = tiny_config('llama')
    before = masking_utils.is_tracing, torch.autograd.function.FunctionCtx.save_for_backward
    with ThreadPoolExecutor(4) as pool:
        peaks = set(pool.map(lambda n: breakdown(config, 2, 32).peak, range(8)))
    assert (
        len(peaks) == 1 and (masking_utils.is_tracing, torch.autograd.function.FunctionCtx.save_for_backward) == before
    )
