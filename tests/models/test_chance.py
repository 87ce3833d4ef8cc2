"""Counts that hang on a number drawn at random, on complex numbers, on arrays of numpy, on how a family of mixtures
is called
"""

import numpy as np
import pytest
from fsdl_tools.core import fix_torchvision

fix_torchvision()
import torch
from torch import nn
from fsdl_tools.models.build import build
from fsdl_tools.models.compare import compare_models
from fsdl_tools.models.profile import profile
from fsdl_tools.models.shape import active_parameters, experts_of, shape_of

torch.set_num_threads(1)


class Fn(nn.Module):
    "A function of its input and a linear layer"

    def __init__(self, f):
        super().__init__()
        self.layer, self.f = nn.Linear(64, 64), f

    def forward(self, *xs):
        return self.f(self.layer, *xs)


X, ONCE = torch.ones(2, 64), 2 * 2 * 64 * 64


@pytest.mark.parametrize(
    'draw',
    [lambda: torch.rand(1), lambda: torch.rand([]), lambda: torch.rand(()).clone(), lambda: torch.rand(1).view(())],
)
def test_a_branch_left_to_chance_is_said(draw):
    "A certain outcome is counted, a likely one is counted and named, an even one is refused"
    drop = lambda p: Fn(lambda layer, x: x if draw() < p else layer(x))
    certain, likely, seldom = (profile(drop(p), X) for p in (0.0, 0.1, 0.9))
    assert (certain.flops, certain.assumed) == (ONCE, False) and profile(drop(1.0), X).flops == 0
    assert (likely.flops, likely.assumed, seldom.flops, seldom.assumed) == (ONCE, True, 0, True)
    assert 'left to chance' in compare_models([likely]).notes and 'chance' not in (
        compare_models([certain]).notes or ''
    )
    with pytest.raises(ValueError, match='depends on the values'):
        profile(drop(0.5), X)
    assert profile(drop(0.5), X, real=True).flops in (0, ONCE)


@pytest.mark.parametrize(
    'f',
    [
        lambda layer, x: layer(x) if layer(x).detach().numpy().max() > 0 else x,
        lambda layer, x: layer(x) if float(f'{layer(x).max():.2f}') > 0 else x,
        lambda layer, x: layer(x) if layer(x)[0].tolist()[0] > 0 else x,
        lambda layer, x: layer(x) if 5.0 in layer(x) else x,
        lambda layer, x: layer(x[layer(x)[:, 0] > 0]),
        lambda layer, x: [layer(x) for _ in range(int(layer(x).abs().max()) + 1)],
        lambda layer, x: layer(x) if torch.randn(1) > 0 else x,
        lambda layer, x: nn.utils.rnn.pack_padded_sequence(layer(x)[None], torch.tensor([2]), batch_first=True).data,
    ],
    ids='numpy format tolist in mask range normal packed'.split(),
)
def test_whatever_asks_for_a_number_is_told_the_same(f):
    with pytest.raises(ValueError, match=r'depends on the values of tensors \(real=True computes them\)'):
        profile(Fn(f), X)
    assert profile(Fn(f), X, real=True).flops >= 0


@pytest.mark.parametrize('real', [False, True])
def test_complex_products_are_four_real_ones(real):
    a, b = torch.ones(4, 8, dtype=torch.complex64), torch.ones(8, 16, dtype=torch.complex64)
    assert profile(Fn(lambda layer, a, b: a @ b), [a, b], real=real).flops == 4 * 2 * 4 * 8 * 16
    assert profile(Fn(lambda layer, a, b: (a @ b).real), [a, b], real=real).flops == 4 * 2 * 4 * 8 * 16


@pytest.mark.parametrize('real', [False, True])
@pytest.mark.parametrize(
    'x',
    [np.ones((2, 64), 'f4'), [np.ones((2, 64), 'f4')], dict(x=np.ones((2, 64), 'f4'))],
    ids=['array', 'list', 'dict'],
)
def test_arrays_of_numpy_are_inputs(x, real):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            return self.layer(x)

    s = profile(Net(), x, real=real)
    assert s.flops == ONCE and s.inputs[0].shape == (2, 64)


@pytest.mark.parametrize(
    'name, shared',
    [
        ('granitemoeshared', 'shared_intermediate_size'),
        ('granitemoehybrid', 'shared_intermediate_size'),
        ('qwen3_next', 'shared_expert_intermediate_size'),
        ('llama4_text', 'intermediate_size'),
    ],
)
def test_shared_experts_are_met_by_every_token(name, shared):
    "By what the modules are called, not the family: one is called GraniteMoeShared"
    m = build(name, device='meta', tiny=True, **{shared: 96})
    mixtures = experts_of(m)
    assert mixtures and active_parameters(m) == sum(p.numel() for p in m.parameters()) - sum(
        p * (n - k) // n for n, k, p in mixtures.values()
    )
    assert active_parameters(m) < sum(p.numel() for p in m.parameters()) and shape_of(m).shared_ffn == 96


# Operators that take functions


class Chooses(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(self.a(x)), (x,))


class Repeats(Chooses):
    def forward(self, x):
        from torch._higher_order_ops.while_loop import while_loop

        return while_loop(lambda i, x: i < 5, lambda i, x: (i + 1, self.a(x)), (torch.tensor(0), x))[1]


class Maps(Chooses):
    def forward(self, x):
        return torch.vmap(self.a)(x)


@pytest.mark.parametrize(
    'kind, says',
    [
        (Chooses, 'operator cond of PyTorch'),
        (Repeats, 'operator while_loop of PyTorch'),
        (Maps, 'others of torch.func'),
    ],
)
def test_what_runs_inside_operators_is_counted_or_refused_in_a_line(kind, says, tmp_path):
    from fsdl_tools.memory.measure import measure
    from fsdl_tools.memory.predict import breakdown
    from fsdl_tools.onnx.export import export

    m, x = kind().eval(), torch.randn(4, 8)
    with torch.no_grad():
        before = m(x)
    asks = [lambda: breakdown(m, 4, inputs=(x,))]
    if kind is Maps:
        assert profile(m, x).flops == profile(m, x, real=True).flops == 2 * 4 * 8 * 8  # vmap alone is counted
    else:
        asks += [lambda: profile(m, x), lambda: profile(m, x, real=True), lambda: measure(m, (x,))]
    for ask in asks:
        with pytest.raises(ValueError, match=says) as e:
            ask()
        assert len(str(e.value)) < 200 and ' object at 0x' not in str(e.value)
        with torch.no_grad():
            assert torch.equal(m(x), before)  # the module still runs
    assert export(m, tmp_path / 'a.onnx', x).verified


class ReadsItsWidths(torch.nn.Module):
    "Sizes of layers computed by tensors and read as lists, as timm's regnets did"

    def __init__(self, drawn=False):
        super().__init__()
        widths = (torch.rand(3) * 8 if drawn else torch.arange(1, 4) * 8).int().tolist()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(a, b) for a, b in zip([4, *widths], widths, strict=False)])

    def forward(self, x):
        return self.layers(x)


def test_known_values_may_leave_meta():
    from fsdl_tools.models.values import UnknownValue, Values, watching

    with torch.device('meta'), watching(Values()):
        x = torch.arange(4) * 2
        assert (
            x.int().tolist() == [0, 2, 4, 6]
            and x.cpu().device.type == 'cpu'
            and torch.equal(x.to('cpu'), torch.tensor([0, 2, 4, 6], device='cpu'))
        )
        net = ReadsItsWidths()
        with pytest.raises(UnknownValue, match='not known'):
            torch.empty(2).tolist()
        with pytest.raises(UnknownValue, match='not known'):
            ReadsItsWidths(drawn=True)
    assert [tuple(layer.weight.shape) for layer in net.layers] == [(8, 4), (16, 8), (24, 16)]
