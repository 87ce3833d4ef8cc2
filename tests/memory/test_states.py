"Optimizers that keep other states: what is saved and loaded goes on as if it had not been"

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils._pytree import tree_map_only

from fsdl_tools.memory.states import AdamW8bit, MasterAdamW

torch.set_num_threads(1)


def through_numpy(saved):
    "The same state in tensors that share nothing with the old ones"
    return tree_map_only(torch.Tensor, lambda t: torch.from_numpy(np.array(t.detach().numpy())), saved)


ways = dict(as_it_is=lambda saved: saved, copied=copy.deepcopy, through_numpy=through_numpy)


def grouped(net, groups):
    "Parameters of a network in one group, or in two with settings of their own"
    if groups == 1:
        return net.parameters()
    return [
        dict(params=[net[0].weight, net[1].bias], lr=0.02, weight_decay=0.1),
        dict(params=[net[0].bias, net[1].weight]),
    ]


def fitted(make, dtype, groups, steps, resume=None, way=None, frozen=False):
    "Weights and states after so many steps; at `resume` another optimizer has taken over what was saved"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 8), nn.Linear(8, 3)).to(dtype)
    net[1].bias.requires_grad_(not frozen)
    optimizer = make(grouped(net, groups))
    for step in range(steps):
        if step == resume:
            saved = ways[way](optimizer.state_dict())
            optimizer = make(grouped(net, groups))
            optimizer.load_state_dict(saved)
        drawn = torch.Generator().manual_seed(step)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=drawn).to(dtype) if p.requires_grad else None
        optimizer.step()
    states = [t for s in optimizer.state.values() for t in s.values()]
    return [p.detach() for p in net.parameters()], states


makers = dict(
    eight=lambda p: AdamW8bit(p, lr=0.01, block=32, min_size=100),
    eight_all=lambda p: AdamW8bit(p, lr=0.01, block=7, min_size=0),
    eight_none=lambda p: AdamW8bit(p, lr=0.01),
    masters=lambda p: MasterAdamW(p, lr=0.01),
)


@settings(max_examples=60, deadline=None)
@given(
    make=st.sampled_from(sorted(makers)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    groups=st.integers(1, 2),
    resume=st.integers(0, 4),
    way=st.sampled_from(sorted(ways)),
    frozen=st.booleans(),
)
def test_training_goes_on_from_a_saved_state_as_if_it_had_not_stopped(make, dtype, groups, resume, way, frozen):
    weights, states = fitted(makers[make], dtype, groups, 5, frozen=frozen)
    again, found = fitted(makers[make], dtype, groups, 5, resume, way, frozen)
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    flat = lambda x: [(t.dtype, t.tolist()) for t in torch.utils._pytree.tree_leaves(x) if isinstance(t, torch.Tensor)]
    assert flat(states) == flat(found)


@pytest.mark.parametrize('make', makers)
def test_a_copy_of_an_optimizer_trains_its_copy_of_the_network(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 8), nn.Linear(8, 3)).bfloat16()
    both = [net, makers[make](net.parameters())]
    others = None
    for step in range(4):
        if step == 2:
            others = copy.deepcopy(both)
        for n, optimizer in filter(None, (both, others)):
            for p in n.parameters():
                p.grad = torch.full_like(p, 0.1 * step)
            optimizer.step()
    for a, b in zip(net.parameters(), others[0].parameters(), strict=True):
        assert a is not b and torch.equal(a, b)


def test_a_state_is_read_as_it_was_packed():
    w = [nn.Parameter(torch.ones(64)) for _ in 'ab']
    small, large = AdamW8bit(w[:1], block=16, min_size=0), AdamW8bit(w[1:], min_size=4096)
    for p in w:
        p.grad = torch.linspace(-1, 1, 64)
    small.step()
    large.load_state_dict(small.state_dict())
    assert [t.tolist() for t in large.moments(w[1])] == [t.tolist() for t in small.moments(w[0])]


def test_a_schedule_of_weight_decay_is_followed_by_the_masters():
    w = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([dict(params=[w], weight_decay=0.5)], lr=0.1)
    optimizer.param_groups[0]['weight_decay'] = 0.0
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert torch.equal(w.detach(), torch.ones(4, dtype=torch.bfloat16))
