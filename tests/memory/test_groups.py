"Optimizers that hold a model in groups, or a part of it: each parameter keeps what its own group says"

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from fsdl_tools.memory.measure import measure, summary
from fsdl_tools.memory.predict import breakdown
from fsdl_tools.memory.states import MasterAdamW

torch.set_num_threads(1)
kept = ('parameters', 'gradients', 'optimizer', 'buffers', 'batch', 'activations', 'logits')


def agree(net, optimizer, peak=0.06, **kw):
    x = torch.zeros(64, 48)
    p = breakdown(net, inputs=x, kernels='cpu', optimizer=optimizer, **kw)
    m = summary(measure(net, x, optimizer=optimizer, **kw))
    assert {c: getattr(p, c) for c in kept} == {c: getattr(m, c) for c in kept}
    assert abs(p.peak / m.peak - 1) < peak, (p.peak, m.peak, p.peak_phase, m.peak_phase)
    return p


def network():
    return nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(['none', 'first', 'second', 'frozen']), min_size=6, max_size=6),
    st.sampled_from(['sgd', 'adam', 'adamw', 'adafactor', 'masters']),
    st.integers(1, 2),
    st.sampled_from(['fp32', 'bf16']),
)
def test_each_parameter_keeps_what_its_group_says(places, kind, accumulation, precision):
    net = network()
    groups = dict(first=[], second=[])
    for p, place in zip(net.parameters(), places, strict=True):
        if place in groups:
            groups[place].append(p)
        p.requires_grad_(place != 'frozen')
    if not groups['first'] + groups['second']:
        return
    given = [dict(params=groups['first'], lr=0.1), dict(params=groups['second'], lr=0.2)]
    make = dict(sgd=torch.optim.SGD, adam=torch.optim.Adam, adamw=torch.optim.AdamW, masters=MasterAdamW)
    make['adafactor'] = torch.optim.Adafactor
    if kind == 'sgd':
        given[1]['momentum'] = 0.9
    agree(net, make[kind](given), peak=0.08, accumulation=accumulation, precision=precision)


def test_a_momentum_in_one_group_alone():
    net = network()
    optimizer = torch.optim.SGD([dict(params=net[0].parameters(), momentum=0.9), dict(params=net[2].parameters())])
    assert agree(net, optimizer).optimizer == 4 * (48 * 96 + 96)
    assert agree(net, torch.optim.AdamW(net[4].parameters())).optimizer == 8 * 970 + 2 * 4


def test_a_group_without_a_rule_is_measured_and_refused_by_name():
    net, x = network(), torch.zeros(64, 48)
    optimizer = torch.optim.Adam([dict(params=net[0].parameters()), dict(params=net[2].parameters(), amsgrad=True)])
    with pytest.raises(ValueError, match='no rule for what Adam keeps'):
        breakdown(net, inputs=x, optimizer=optimizer)
    found = summary(measure(net, x, optimizer=optimizer)).optimizer
    assert found == 8 * (48 * 96 + 96) + 12 * 96 * 97 + 4 * 4


def test_parameters_of_something_else():
    net, other, x = network(), network(), torch.zeros(64, 48)
    whole = torch.optim.SGD(other.parameters(), momentum=0.9)
    named = [breakdown(net, inputs=x, optimizer=o) for o in (whole, 'momentum')]
    assert named[0] == named[1]
    mixed = torch.optim.SGD([*net.parameters(), other[0].weight])
    parts = torch.optim.SGD([dict(params=other[0].parameters(), momentum=0.9), dict(params=other[2].parameters())])
    for optimizer, said in ((mixed, '1 of 7 parameters'), (parts, '4 of 4 parameters')):
        for ask in (lambda o: breakdown(net, inputs=x, optimizer=o), lambda o: measure(net, x, optimizer=o)):
            with pytest.raises(ValueError, match=said + ' in the groups of SGD are not those of Sequential'):
                ask(optimizer)


def test_settings_that_choose_a_kernel_change_nothing():
    net, x = network(), torch.zeros(64, 48)
    plain = summary(measure(net, x, optimizer='adamw'))
    for kw in (dict(fused=True), dict(foreach=True), dict(capturable=False)):
        assert summary(measure(net, x, optimizer=torch.optim.AdamW(net.parameters(), **kw))) == plain
    assert all(p.grad is None for p in net.parameters())
