"Models that checkpoint by themselves: what is predicted of them is what is measured"

from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

from fsdl_tools.core import fix_torchvision

fix_torchvision()
from fsdl_tools.memory.measure import measure, summary
from fsdl_tools.memory.predict import breakdown
from fsdl_tools.models.build import build, example_inputs

torch.set_num_threads(1)
kept = ('parameters', 'gradients', 'optimizer', 'buffers', 'batch', 'activations', 'logits', 'casts')


def agree(model, x, peak=0.04, **kw):
    "Predicted and measured breakdown of a step, which have to be alike"
    p = breakdown(model, inputs=x, kernels='cpu', **kw)
    m = summary(measure(model, x, **kw))
    assert {c: getattr(p, c) for c in kept} == {c: getattr(m, c) for c in kept}
    assert abs(p.peak / m.peak - 1) < peak, (p.peak, m.peak)
    return p


class Block(nn.Module):
    "A residual block that may run its inside through checkpoint"

    def __init__(self, width, how):
        super().__init__()
        self.norm, self.up, self.down, self.how = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
            how,
        )

    def inside(self, x, scale=None):
        y = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return y if scale is None else y * scale

    def forward(self, x):
        if self.how == 'off':
            return x + self.inside(x)
        if self.how == 'keyword':
            return x + checkpoint(self.inside, x, scale=torch.sigmoid(x), use_reentrant=False)
        if self.how == 'closure':
            scale = torch.sigmoid(x)
            return x + checkpoint(lambda y: self.inside(y, scale), x, use_reentrant=False)
        if self.how == 'partial':
            return x + checkpoint(partial(self.inside, scale=torch.sigmoid(x)), x, use_reentrant=False)
        if self.how == 'nested':
            return x + checkpoint(
                lambda y: checkpoint(self.inside, y, use_reentrant=False) * 2.0, x, use_reentrant=False
            )
        return x + checkpoint(self.inside, x, use_reentrant=self.how == 'reentrant')


def net(hows, width=32):
    return nn.Sequential(nn.Linear(16, width), *[Block(width, h) for h in hows], nn.Linear(width, 8))


hows = ['off', 'reentrant', 'without', 'keyword', 'closure', 'partial']


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(hows), min_size=1, max_size=4),
    st.integers(1, 40),
    st.sampled_from(['fp32', 'bf16', 'amp']),
    st.integers(1, 2),
)
def test_what_a_network_checkpoints_by_itself_is_predicted(parts, rows, precision, accumulation):
    agree(net(parts), (torch.zeros(2 * rows, 16),), peak=0.1, precision=precision, accumulation=accumulation)


@pytest.mark.parametrize('how', [*hows, 'nested'])
def test_the_peak_of_a_network_with_large_activations(how):
    x = (torch.zeros(512, 16),)
    found = agree(net([how] * 6), x, peak=0.05 if how != 'nested' else 0.1, optimizer='sgd')
    all_kept = breakdown(net(['off'] * 6), inputs=x, kernels='cpu', optimizer='sgd')
    assert how == 'off' or found.activations < 0.6 * all_kept.activations and found.peak < 0.8 * all_kept.peak


def test_a_sequence_in_segments():
    class Segments(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.first, self.reentrant = nn.Linear(16, 32), reentrant
            self.rest = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(32, 32), nn.GELU())])

        def forward(self, x):
            return checkpoint_sequential(self.rest, 2, self.first(x), use_reentrant=self.reentrant)

    for reentrant in (True, False):
        agree(Segments(reentrant), (torch.zeros(256, 16),), peak=0.1)


@pytest.mark.parametrize('name', ['gpt2', 'llama', 'bert'])
@pytest.mark.parametrize('reentrant', [True, False])
def test_gradient_checkpointing_of_transformers(name, reentrant):
    model = build(name, device='meta', tiny=True)
    x = example_inputs(model, 4, 32)
    before = breakdown(model, inputs=x, kernels='cpu')
    model.gradient_checkpointing_enable(dict(use_reentrant=reentrant))
    found = agree(model, x, peak=0.1)
    assert found.activations < before.activations


def test_gradient_checkpointing_of_timm():
    model = build('vit_tiny_patch16_224', device='meta', depth=3)
    x = example_inputs(model, 2)
    before = breakdown(model, inputs=x, kernels='cpu')
    model.set_grad_checkpointing()
    assert agree(model, x, peak=0.1).activations < before.activations / 2


def test_what_no_rule_knows_is_refused_by_name():
    x = (torch.zeros(8, 16),)

    class Hooked(nn.Module):
        def __init__(self, f):
            super().__init__()
            self.layer, self.f = nn.Linear(16, 16), f

        def forward(self, x):
            return self.f(self.layer, x)

    def offloaded(layer, x):
        with torch.autograd.graph.save_on_cpu():
            return layer(layer(x))

    def chosen(layer, x):
        choose = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
        return checkpoint(lambda y: layer(layer(y)), x, use_reentrant=False, context_fn=choose)

    for f, said in ((offloaded, 'save_on_cpu.*measure follows it'), (chosen, 'context_fn.*measure follows it')):
        with pytest.raises(ValueError, match=said):
            breakdown(Hooked(f), inputs=x)
    with pytest.raises(ValueError, match="recomputes by itself inside '1'.*leave recompute out"):
        breakdown(net(['without', 'off']), inputs=x, recompute=['1'])
    assert breakdown(net(['without', 'off']), inputs=x, recompute=['2']).activations > 0


def test_checkpointing_is_as_it_was_afterwards():
    import torch.utils.checkpoint as module

    before = module.CheckpointFunction, module._checkpoint_without_reentrant_generator
    breakdown(net(['reentrant', 'without']), inputs=(torch.zeros(8, 16),))
    with pytest.raises(ValueError):
        breakdown(net(['reentrant']), inputs=(torch.zeros(8, 17),))
    assert before == (module.CheckpointFunction, module._checkpoint_without_reentrant_generator)
