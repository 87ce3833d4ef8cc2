"""Strategies on modules that were not made for them: right on every rank, or refused by name."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from hypothesis import given, settings, strategies as st
from fsdl_tools.core import read_results
from fsdl_tools.environments import run_in
from fsdl_tools.parallel.ddp import DataParallel
from fsdl_tools.parallel.shares import SyncBatchNorm, sync_batchnorm
from fsdl_tools.parallel.pipeline import ModuleStage, Pipeline
from fsdl_tools.parallel.ranks import RankError, on_ranks
from fsdl_tools.parallel.real import (
    _pipeline_parts,
    asks_unused,
    real_module,
    real_modules,
    real_strategies,
    train_real,
)
from fsdl_tools.parallel.schedules import timetable
from fsdl_tools.parallel.zero import Zero1, Zero2, Zero3, zeros
from fsdl_tools.parallel.zero_libraries import fsdp, _whole_blocks, whole_state
from fsdl_tools.parallel.units import units_of
from fsdl_tools.models.tiny import share, tiny_batch, tiny_loss, tiny_model

# What cannot be cut, and what says so
REFUSED = {(name, 'tensor'): 'cannot be cut by matrix' for name in real_modules}
REFUSED |= {(name, 'pipeline'): 'is not cut into stages' for name in real_modules if not name.startswith('vit')}


def options(name, strategy):
    return dict(find_unused_parameters=True) if asks_unused(name, strategy) else {}


@pytest.mark.sweep(6)
@pytest.mark.parametrize('strategy', real_strategies)
@pytest.mark.parametrize('name', real_modules)
def test_right_or_refused_by_name(name, strategy):
    try:
        found = on_ranks(train_real, 2, name, strategy, timeout=100, **options(name, strategy))
    except RankError as e:
        assert REFUSED.get((name, strategy), 'it should not be') in str(e), e
        return
    assert (name, strategy) not in REFUSED
    for r in found:
        assert max(r['loss'], r['gradient'], r['state']) < 1e-5, (name, strategy, r)
        if strategy in ('ZeRO-3', 'FSDP') and 'frozen' not in name:
            assert r['whole'] < 0.9, r


def test_what_the_page_shows_covers_everything():
    rows = read_results('real_modules')['rows']
    assert {(r['module'], r['strategy']) for r in rows} == {(m, s) for m in real_modules for s in real_strategies}
    assert {(r['module'], r['strategy']) for r in rows if 'refused' in r} == set(REFUSED)
    assert all(max(r['loss'], r['gradient'], r['state']) < 1e-5 for r in rows if 'refused' not in r)
    assert all(max(r['apart'].values()) < 1e-6 for r in read_results('megatron')['rows'])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_megatrons_layers(side):
    side('megatron')
    for r in run_in('megatron', 'fsdl_tools.parallel.megatron:run_megatron', dict(ranks=[2, 4]), timeout=300)['rows']:
        assert max(r['apart'].values()) < 1e-6, r
        assert r['ours']['bytes'] == r['theirs']['bytes'] + r['sequence'] * 2 * (r['ranks'] - 1) / r['ranks'] * 32 * 4


@pytest.mark.parametrize('name', ['lstm (tuple)', 'routed (experts apart)'])
def test_small_ones_in_every_strategy(name):
    for strategy in real_strategies:
        test_right_or_refused_by_name(name, strategy)


# State dicts


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)  # Adam would make steps out of rounding


def some_net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 10),
            nn.BatchNorm1d(10),
            nn.ReLU(),
            nn.ModuleDict(dict(a=nn.Linear(10, 7)))['a'],
            nn.Linear(7, 5),
        )


def step(m, opt, s, size=8):
    g = torch.Generator().manual_seed(s)
    x, y = torch.randn(size, 6, generator=g), torch.randint(0, 5, (size,), generator=g)
    F.cross_entropy(
        m(share((x,))[0] if dist.is_initialized() else x), share((y,))[0] if dist.is_initialized() else y
    ).backward()
    opt.step()
    opt.zero_grad()


def states_after(stage, how, steps=3):
    "State dicts that a rank sees after some steps, asked for in one way or another"
    net = sync_batchnorm(some_net())
    m = zeros[stage](net)
    opt = sgd(m.parameters())
    for s in range(steps):
        step(m, opt, s)
    if how == 'wrapper':
        out = {k.removeprefix('module.'): v for k, v in m.state_dict().items()}
    elif how == 'inside':
        out = net.state_dict()
    elif how == 'parts':
        out = {f'{i}.{k}': v for i, part in enumerate(net) for k, v in part.state_dict().items()}
    elif how == 'vars':
        out = {k: v.detach() for k, v in net.state_dict(keep_vars=True).items()}
    else:
        with m.gathered() as whole:
            out = {k: v.detach().clone() for k, v in [*whole.named_parameters(), *whole.named_buffers()]}
    step(m, opt, 99)  # what was handed out must not change
    return {k: v.tolist() for k, v in out.items()}


def wanted_states(steps=3):
    net = some_net()
    opt = sgd(net.parameters())
    for s in range(steps):
        step(net, opt, s)
    return {k: v.tolist() for k, v in net.state_dict().items()}


@pytest.mark.parametrize('stage', zeros)
def test_state_dicts_are_whole_and_new_on_every_rank(stage):
    want = wanted_states()
    for how in ('wrapper', 'inside', 'parts', 'vars', 'gathered'):
        for got in on_ranks(states_after, 2, stage, how):
            assert got.keys() == want.keys(), how
            for k in want:
                torch.testing.assert_close(torch.tensor(got[k]), torch.tensor(want[k]), rtol=1e-4, atol=1e-5)


def loaded(stage):
    "What a model loads it has, on every rank, also in part, and trains on from there"
    m = zeros[stage](sync_batchnorm(some_net()))
    opt = sgd(m.parameters())
    step(m, opt, 0)
    m.module.load_state_dict(some_net(1).state_dict())
    same = all(torch.equal(a, b) for a, b in zip(m.module.state_dict().values(), some_net(1).state_dict().values()))
    m.module[4].load_state_dict(some_net(2)[4].state_dict())
    part = torch.equal(m.module.state_dict()['4.weight'], some_net(2)[4].weight) and torch.equal(
        m.module.state_dict()['0.weight'], some_net(1)[0].weight
    )
    with m.gathered() as net:
        with torch.no_grad():
            net[0].weight.zero_()
    kept = not m.module.state_dict()['0.weight'].any()
    step(m, opt, 1)
    try:
        m.module.load_state_dict(some_net().state_dict(), assign=True)
    except ValueError as e:
        return same, part, kept, str(e)


@pytest.mark.parametrize('stage', zeros)
def test_what_is_loaded_or_changed_is_kept(stage):
    for same, part, kept, says in on_ranks(loaded, 2, stage):
        assert same and part and kept and 'assign=False' in says


def read_after_step(stage):
    m = zeros[stage](sync_batchnorm(some_net()))
    opt = sgd(m.parameters())
    step(m, opt, 0)
    w, out = m.module[0].weight, []
    assert (
        w.shape == (10, 6)
        and w.numel() == 60
        and w.dtype == torch.float32
        and w.grad is None
        and w.requires_grad
        and 'spread' in repr(w)
    )
    for use in (
        lambda: w.sum(),
        lambda: w.tolist(),
        lambda: w.detach(),
        lambda: w.data,
        lambda: w[0],
        lambda: torch.stack([w]),
        lambda: w.numpy(force=True),
        lambda: m.module.to(torch.float64),
        lambda: torch.nn.utils.parameters_to_vector(m.module.parameters()),
        lambda: w.copy_(torch.zeros(10, 6)),
        lambda: setattr(w, 'data', torch.zeros(1)),
    ):
        try:
            use()
        except RuntimeError as e:
            out.append(str(e))
    return out


@pytest.mark.parametrize('stage', zeros)
def test_reading_what_is_not_here_is_an_error_that_says_what_to_call(stage):
    for errors in on_ranks(read_after_step, 2, stage):
        assert len(errors) == 11, errors
        assert all('0.weight' in e and 'model.gathered()' in e and 'model.state_dict()' in e for e in errors)


def only_rank_0(stage):
    from fsdl_tools.parallel import zero

    zero.patience = 1
    m = zeros[stage](some_net())
    if dist.get_rank() == 0:
        m.state_dict()


def test_saving_on_one_rank_only_is_an_error_and_not_a_wait():
    with pytest.raises(RankError, match='called on every rank'):
        on_ranks(only_rank_0, 2, 3, timeout=30)


# Unused and routed parts


class Experts(nn.Module):
    "Rank r uses the experts in uses[r]"

    def __init__(self, inside=False):
        super().__init__()
        parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.experts = parts if not inside else nn.ModuleList([nn.ModuleDict(dict(all=parts))])
        if inside:
            self.block = self.experts[0]
        self.inside = inside

    def forward(self, x, uses):
        h = self.first(x)
        for e in uses:
            h = h + (self.block['all'] if self.inside else self.experts)[e](h)
        return self.last(h)


def routed(wrap, uses, **kw):
    "Gradients of every parameter, by name, averaged over the ranks; wrap on a module whose ranks use different experts"
    torch.manual_seed(0)
    net = Experts()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(dist.get_rank()))
    alone, want = Experts(), {}
    alone.load_state_dict(net.state_dict())
    for r, use in enumerate(uses):
        xr = torch.randn(2, 4, generator=torch.Generator().manual_seed(r))
        (alone(xr, use).square().sum() / len(uses)).backward()
    want = {n: p.grad for n, p in alone.named_parameters()}
    m = wrap(net, **kw)
    m(x, uses[dist.get_rank()]).square().sum().backward()
    if isinstance(m, Zero1):
        from fsdl_tools.parallel.real import _whole_gradients

        got = _whole_gradients(m, net)
    else:
        got = {n: p.grad for n, p in net.named_parameters()}
    for n, w in want.items():
        g = got.get(n)
        assert (g is None) == (w is None), n
        if w is not None:
            torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)
    return True


CASES = [([0], [1]), ([0, 1], [1]), ([0, 1, 2], []), ([2], [2]), ([0, 1, 2], [0, 1, 2])]


@pytest.mark.parametrize('wrap', [DataParallel, Zero1, Zero2])
def test_parts_that_some_ranks_use_get_the_right_gradient(wrap):
    for uses in CASES:
        assert on_ranks(routed, 2, wrap, uses, find_unused_parameters=True, timeout=20) == [True, True]


@pytest.mark.parametrize('wrap', [DataParallel, Zero1, Zero2, Zero3, fsdp])
def test_without_asking_they_are_refused_by_name_and_never_mixed(wrap):
    for uses in CASES[:3]:
        with pytest.raises(RankError) as e:
            on_ranks(routed, 2, wrap, uses, timeout=20)
        assert 'experts.' in str(e.value).split('\n')[0], (wrap, uses, e.value)
    assert on_ranks(routed, 2, wrap, CASES[4], timeout=20) == [True, True] if wrap is not fsdp else True


def test_zero3_refuses_ranks_that_gather_different_parts_even_if_it_asks():
    with pytest.raises(RankError, match=r'experts\.\d.*another rank gathers.*one block'):
        on_ranks(routed, 2, Zero3, CASES[0], find_unused_parameters=True, timeout=20)
    assert on_ranks(routed, 2, Zero3, CASES[3], find_unused_parameters=True, timeout=20) == [True, True]


def broken_step(stage):
    "After a step that was refused, or broken off, the next one is right"
    torch.manual_seed(0)
    net = Experts()
    m, x = zeros[stage](net), torch.randn(2, 4)
    out = []
    for uses in ([0], [0, 1, 2]):
        try:
            m(x, uses).sum().backward()
        except RuntimeError as e:
            out.append('no gradient for experts.1.weight' in str(e))
    return out, all(u.shard.grad is not None for u in m.units)


@pytest.mark.parametrize('stage', zeros)
def test_a_refused_step_does_not_spoil_the_next(stage):
    assert on_ranks(broken_step, 2, stage) == [([True], True)] * 2


def twice_backward(stage):
    "Two backward passes through one graph add up"
    m = zeros[stage](tiny_model('mlp'))
    loss = tiny_loss(m, share(tiny_batch('mlp')))
    loss.backward(retain_graph=True)
    once = [u.shard.grad.clone() for u in m.units]
    loss.backward()
    return max((u.shard.grad - 2 * o).abs().max().item() for u, o in zip(m.units, once))


@pytest.mark.parametrize('stage', zeros)
def test_a_graph_gone_through_twice_counts_twice(stage):
    assert max(on_ranks(twice_backward, 2, stage)) < 1e-6


# Units


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_units_have_every_trained_parameter_once_and_fit_their_module(seed):
    g = torch.Generator().manual_seed(seed)
    pick = lambda n: int(torch.randint(n, (1,), generator=g))

    def make(depth):
        kind = pick(5) if depth else 0
        if kind == 0:
            return nn.Linear(2 + pick(4), 2 + pick(4))
        if kind == 1:
            return nn.Sequential(*[make(depth - 1) for _ in range(1 + pick(3))])
        if kind == 2:
            return nn.ModuleList([make(depth - 1) for _ in range(1 + pick(3))])
        if kind == 3:
            return nn.MultiheadAttention(4, 2)
        m = nn.Module()
        for i in range(1 + pick(3)):
            m.add_module(f'm{i}', make(depth - 1))
        if pick(2):
            m.loose = nn.Parameter(torch.zeros(3))
        return m

    net = nn.Module()
    for i in range(1 + pick(4)):
        net.add_module(f'n{i}', make(3))
    ps = list(net.parameters())
    if len(ps) > 3 and pick(2):
        ps[pick(len(ps))].requires_grad_(False)
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    if len(linear) > 1 and pick(2):
        linear[0].weight = linear[-1].weight  # tied
    units = units_of(net)
    seen = [p for _, params in units for p in params]
    assert len(seen) == len(set(seen)) and set(seen) == {p for p in net.parameters() if p.requires_grad}
    for m, params in units:
        assert m is None or set(params) <= set(m.parameters())
        assert not isinstance(m, (nn.ModuleList, nn.ModuleDict))
    for m in _whole_blocks(net):
        outside = {p for o in net.modules() if o not in set(m.modules()) for p in o._parameters.values()}
        assert not outside & set(m.parameters())


def test_mixed_types_frozen_and_wrong_ones_are_cut_or_named():
    def mixed():
        net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4).double(), nn.Linear(4, 4))
        block = nn.ModuleDict(dict(a=nn.Linear(4, 4), b=nn.Linear(4, 4).to(torch.bfloat16)))
        m = Zero3(nn.ModuleDict(dict(x=net[0], both=block)))
        return sorted(str(u.shard.dtype) for u in m.units)

    assert on_ranks(mixed, 2)[0] == ['torch.bfloat16', 'torch.float32', 'torch.float32']

    def again():
        m = Zero1(tiny_model('mlp'))
        Zero2(m.module)

    def nothing():
        Zero1(tiny_model('mlp').requires_grad_(False))

    def sparse():
        Zero3(nn.Sequential(nn.Embedding(4, 4, sparse=True)))

    def lazy():
        DataParallel(nn.Sequential(nn.LazyLinear(4)))

    for fn, says in (
        (again, '0.weight is cut already'),
        (nothing, 'no parameter that is trained'),
        (sparse, '0 has sparse gradients'),
        (lazy, '0.weight, 0.bias: not made yet'),
    ):
        with pytest.raises(RankError, match=says):
            on_ranks(fn, 2)


def test_zero3_gathers_a_part_that_is_used_outside_its_module():
    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return dict(out=F.linear(self.a(x), self.b.weight), more=(self.a(x), [self.b.bias * 2]))

    def work():
        torch.manual_seed(0)
        net, ref = Outside(), Outside()
        ref.load_state_dict(net.state_dict())
        m, x = Zero3(net), torch.ones(2, 4)
        total = lambda o: o['out'].sum() + o['more'][0].square().sum() + o['more'][1][0].sum()
        total(m(x)).backward()
        total(ref(x)).backward()
        from fsdl_tools.parallel.real import _whole_gradients

        got = _whole_gradients(m, net)
        return max((got[n] - p.grad).abs().max().item() for n, p in ref.named_parameters()), m.whole()

    for far, whole in on_ranks(work, 2):
        assert far < 1e-6 and whole == 0


# Batch-norm


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_sync_batchnorm_in_other_precisions(dtype):
    def work(weights):
        g = torch.Generator().manual_seed(0)
        x = (torch.randn(12, 5, 3, 3, generator=g) * 3 + 50).to(dtype)
        one, many = (
            nn.BatchNorm2d(5).to(torch.promote_types(dtype, torch.float32)),
            sync_batchnorm(nn.BatchNorm2d(5).to(weights)),
        )
        wide = x.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        mine = x.detach().chunk(2)[dist.get_rank()].clone().requires_grad_()
        want, got = one(wide), many(mine)
        assert got.dtype == dtype
        want.square().sum().backward()
        got.square().sum().backward()
        close = (
            dict(rtol=3 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
            if dtype != torch.float64
            else dict(rtol=1e-9, atol=1e-9)
        )
        torch.testing.assert_close(got.to(want.dtype), want.chunk(2)[dist.get_rank()], **close)
        torch.testing.assert_close(
            many.running_mean.to(one.running_mean.dtype),
            one.running_mean,
            rtol=1e-2 if weights != torch.float64 else 1e-9,
            atol=1e-2,
        )
        assert mine.grad is not None and torch.isfinite(mine.grad.float()).all()

    for weights in {dtype, torch.float32 if dtype != torch.float64 else dtype}:
        on_ranks(work, 2, weights)


def test_a_batch_norm_that_does_more_keeps_it():
    class Active(nn.BatchNorm2d):
        def forward(self, x):
            return torch.relu(super().forward(x)) + 1

    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return x - x.mean((0, 2, 3), keepdim=True)

    def work():
        x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        one, many = Active(3), sync_batchnorm(nn.Sequential(Active(3)))
        assert isinstance(many[0], SyncBatchNorm) and isinstance(many[0], Active)
        torch.testing.assert_close(many(share((x,))[0]), share((one(x),))[0], rtol=1e-4, atol=1e-5)
        assert many[0].num_batches_tracked == one.num_batches_tracked == 1
        torch.testing.assert_close(many[0].running_var, one.running_var)
        torch.testing.assert_close(many.eval()(x), one.eval()(x))
        try:
            sync_batchnorm(nn.Sequential(Own(3)))(x)
        except NotImplementedError as e:
            return str(e)

    assert 'Own does not call F.batch_norm' in on_ranks(work, 2)[0]


def test_one_value_a_channel_is_refused():
    def work():
        sync_batchnorm(nn.BatchNorm1d(3))(torch.ones(1 - dist.get_rank(), 3))

    with pytest.raises(RankError, match='more than 1 value a channel'):
        on_ranks(work, 2)


# Pipelines


def test_a_pipeline_weighs_micro_batches_by_their_targets():
    def work():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        g = torch.Generator().manual_seed(1)
        x, y = torch.randn(8, 6, generator=g), torch.randint(0, 5, (8,), generator=g)
        y[1:4] = -100
        y[6:] = -100
        want = F.cross_entropy(net(x), y)
        want.backward()
        grads = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        r = dist.get_rank()
        part = net[:2] if r == 0 else net[2:]
        pipe = Pipeline(timetable('1f1b', 2, 4), {r: ModuleStage(part, F.cross_entropy)}, (2, 8))
        loss = pipe.step(x, y)
        if r == 1:
            assert abs(loss - want.item()) < 1e-6
        mine = grads[:2] if r == 0 else grads[2:]
        for p, w in zip(part.parameters(), mine):
            torch.testing.assert_close(p.grad, w, rtol=1e-5, atol=1e-6)

    on_ranks(work, 2)


def test_stages_that_cannot_be_right_are_refused():
    def norm():
        Pipeline(
            timetable('1f1b', 2, 4),
            {dist.get_rank(): ModuleStage(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))},
            (1, 2),
        )

    with pytest.raises(RankError, match='1 is a batch-norm'):
        on_ranks(norm, 2)
    with pytest.raises(TypeError, match='LSTM returned a tuple'):
        ModuleStage(nn.LSTM(2, 2)).forward(0, torch.zeros(1, 1, 2))
    with pytest.raises(TypeError, match='LSTM is not cut into stages'):
        _pipeline_parts(nn.LSTM(2, 2))


def test_zero_bubble_leaves_weights_that_are_computed_alone():
    "A weight that is a part of a parameter, as the experts of transformers are, cannot have its gradient later"

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = nn.Parameter(torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return F.linear(F.linear(x, self.both[0]), self.both[1])

    def grad(split):
        s = ModuleStage(Part(), lambda out, y: out.square().mean())
        s.split = split
        loss = s.forward(0, torch.ones(2, 3), torch.zeros(1))
        s.backward(0, torch.ones_like(loss))
        if split:
            s.weight(0)
        return s.module.both.grad

    torch.testing.assert_close(grad(True), grad(False))


def test_arguments_by_name():
    def f(a, b, lr=1, *, more=0):
        return a, b, lr, more

    assert on_ranks(f, 2, 3, 4, lr=2) == [(3, 4, 2, 0)] * 2
    assert on_ranks(f, 2, 3, b=4, more=5, timeout=20) == [(3, 4, 1, 5)] * 2
    with pytest.raises(TypeError, match='f: .*time_out.*did you mean the option .timeout.'):
        on_ranks(f, 2, 3, 4, time_out=3)
    with pytest.raises(TypeError, match='f: missing a required argument'):
        on_ranks(f, 2, 3)


class Recomputed(nn.Module):
    "Blocks that are computed again in the backward pass"

    def __init__(self):
        super().__init__()
        self.first, self.blocks, self.last = (
            nn.Linear(4, 8),
            nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        h = self.first(x)
        for b in self.blocks:
            h = torch.utils.checkpoint.checkpoint(b, h, use_reentrant=False)
        return self.last(h)


@pytest.mark.parametrize('wrap', [DataParallel, *zeros.values(), fsdp])
def test_recomputed_blocks(wrap):
    def work():
        torch.manual_seed(0)
        net, ref = Recomputed(), Recomputed()
        ref.load_state_dict(net.state_dict())
        m, x = wrap(net), torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
        for s in range(2):  # twice: what a step leaves must not spoil the next
            m(share((x,))[0]).square().mean().backward()
            ref(x).square().mean().backward()
        from fsdl_tools.parallel.real import _whole_gradients

        got = _whole_gradients(m, net)
        return max((got[n] - p.grad).abs().max().item() for n, p in ref.named_parameters())

    assert max(on_ranks(work, 2)) < 1e-6


def test_evaluation_frees_everything_and_sees_what_is_new():
    def work():
        m = Zero3(tiny_model('gpt'))
        opt = sgd(m.parameters())
        tiny_loss(m, share(tiny_batch('gpt'))).backward()
        opt.step()
        opt.zero_grad()
        with torch.no_grad():
            loss = tiny_loss(m, tiny_batch('gpt', 16, 9)).item()
        whole = m.whole()
        try:
            m(torch.full((1, 999), 5000))  # an error inside
        except Exception:
            pass
        m.eval()
        return loss, whole, m.whole()

    ref = tiny_model('gpt')
    opt = sgd(ref.parameters())
    tiny_loss(ref, tiny_batch('gpt')).backward()
    opt.step()
    want = tiny_loss(ref, tiny_batch('gpt', 16, 9)).item()
    for loss, *whole in on_ranks(work, 2):
        assert abs(loss - want) < 1e-5 and whole == [0, 0]


def test_one_function_makes_any_state_whole():
    def work(wrap):
        net = some_net()
        m = wrap(net)
        got, want = whole_state(m), some_net().state_dict()
        return got.keys() == want.keys() and all(
            type(got[k]) is torch.Tensor and torch.equal(got[k], v) for k, v in want.items()
        )

    for wrap in (DataParallel, nn.parallel.DistributedDataParallel, Zero1, Zero2, Zero3, fsdp):
        assert on_ranks(work, 2, wrap) == [True, True], wrap
