"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

from types import SimpleNamespace

import pytest
import torch

from fsdl_tools.memory import gpu, measure
from fsdl_tools.memory.adapters import Frozen4bit


@pytest.mark.parametrize('shape', [(64, 64), (7, 33), (256, 300)])
def test_a_scale_is_the_least_of_its_steps_that_holds_its_block(shape):
    torch.manual_seed(0)
    linear = torch.nn.Linear(shape[1], shape[0])
    packed = Frozen4bit(linear)
    scale = packed._scale()
    step = packed._outer_by_block() / 255
    flat = linear.weight.detach().flatten()
    block = -(-flat.numel() // len(scale))
    most = torch.nn.functional.pad(flat, (0, len(scale) * block - flat.numel())).view(len(scale), block).abs().amax(1)
    assert (scale >= most - 1e-6).all() and (scale - most <= step + 1e-6).all()


@pytest.mark.parametrize('given', [(2.0,), (2.0, [0]), (2.0, [0], True), (2.0, [0], False), (1.0, [0, 1], True)])
def test_a_norm_that_autocast_casts_keeps_its_shape(given):
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    op = torch.ops.aten.norm.ScalarOpt_dim if len(given) > 1 else torch.ops.aten.norm.Scalar
    plain, cast = op(x.float(), *given), gpu._norm(op, (x, *given), {})
    assert cast.shape == plain.shape and cast.dtype == torch.float32 and torch.allclose(cast, plain)


def test_what_only_one_of_the_two_autocasts_treats_is_exchanged_by_its_policy(monkeypatch):
    known = dict(AutocastCUDA={'a', 'both', 'n'}, AutocastCPU={'c', 'both', 'd'})
    policies = dict(a='fp32', both='fp32', c='none', d='fp32', n='none', elsewhere='none', far='unheard of')
    rows = [dict(operation=name, policy=policy) for name, policy in policies.items()]
    monkeypatch.setattr(gpu, '_registered', known.get)
    monkeypatch.setattr(gpu, 'read_data', lambda name: rows)
    assert gpu._exchanged.__wrapped__() == [('a', 'fp32'), ('n', 'none'), ('c', 'none')]


def test_only_what_came_after_the_forward_pass_began_is_named():
    def block(born, died=None, kind='', phase='forward'):
        return SimpleNamespace(born=born, died=died, kind=kind, phase=phase)

    blocks = [block(4), block(5), block(6), block(7, died=8), block(8, kind='target')]
    blocks += [block(9, phase='loss'), block(10)]
    measure._name_kept(SimpleNamespace(blocks=blocks), blocks[-1], 5)
    assert [b.kind for b in blocks] == ['', '', 'activations', '', 'target', 'logits', 'logits']
