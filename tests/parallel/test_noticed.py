"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

import itertools
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from fsdl_tools.models.gpt import GPT, GPTConfig
from fsdl_tools.models.tiny import adamw, share, tiny_batch, tiny_loss, tiny_model, train_alone, worst
from fsdl_tools.parallel import (
    collectives,
    ddp,
    dtensor,
    layout,
    megatron,
    model,
    pipeline,
    pipeline_gpt,
    ranks,
    real,
    schedules,
    shares,
    tensor,
    units,
    zero,
    zero_libraries,
)
from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.testing import compare_scratch, compare_torch, pipeline_apart, train_whole

SMALL = GPTConfig(3, 32, 4, 16, 64)


def ticking(*times):
    "A clock that says these seconds, one after another"
    return SimpleNamespace(perf_counter=iter(times).__next__, monotonic=iter(times).__next__, sleep=lambda s: None)


# Ranks


def fake_rank(monkeypatch, said=(), exitcode=None, broken=False):
    "A rank without a process: what it says when it is asked"
    rank, said = object.__new__(ranks._Rank), list(said)

    def receive():
        if broken:
            raise EOFError
        return ranks.pickle.dumps(said.pop(0))

    rank.conn, rank.said, rank.when, rank.rank = (
        SimpleNamespace(poll=lambda: broken or bool(said), recv_bytes=receive),
        None,
        None,
        0,
    )
    rank.proc = SimpleNamespace(exitcode=exitcode, join=lambda s: None)
    monkeypatch.setattr(ranks.time, 'monotonic', lambda: 7.0)
    return rank


@pytest.mark.parametrize(
    'kw, said',
    [
        (dict(said=[('result', 3)]), ('result', 3)),
        (dict(said=[('result', 3)], exitcode=0), ('result', 3)),
        (dict(), None),
        (dict(exitcode=-9), ('died', 'was killed by SIGKILL', '')),
        (dict(broken=True), ('died', 'closed its connection', '')),
        (dict(broken=True, exitcode=3), ('died', 'ended with exit code 3 without a result', '')),
    ],
)
def test_what_is_heard_of_a_rank(monkeypatch, kw, said):
    rank = fake_rank(monkeypatch, **kw)
    rank.hear()
    assert (
        rank.said == said and rank.when == (7.0 if said else None) and rank.failed == bool(said and said[0] != 'result')
    )
    rank.hear()
    assert rank.said == said


def test_when_waiting_for_ranks_ends(monkeypatch):
    "At the end of the time; half a second after the first bad report; or when all have said something"

    def run(reports, timeout=10.0, step=0.125):
        clock = [0.0]
        many = [SimpleNamespace(rank=i, said=None, when=at, conn=i, failed=False) for i, (at, _) in enumerate(reports)]

        def hear(r, what):
            if clock[0] >= r.when:
                r.said, r.failed = (what, ''), what != 'result'

        for r, (_, what) in zip(many, reports, strict=True):
            r.hear = lambda r=r, what=what: hear(r, what)

        def wait(conns, seconds):
            clock[0] += step

        monkeypatch.setattr(ranks, 'time', SimpleNamespace(monotonic=lambda: clock[0]))
        monkeypatch.setattr(ranks, 'wait', wait)
        blamed = ranks._gather(many, timeout)
        return blamed and blamed.rank, round(clock[0], 1), [r.said is not None for r in many]

    assert run([(1, 'result'), (2, 'result')]) == (None, 2.0, [True, True])
    assert run([(1, 'result'), (99, 'result')]) == (None, 10.0, [True, False])
    assert run([(1, 'result'), (2, 'error'), (99, 'result')]) == (1, 2.5, [True, True, False])
    assert run([(2.2, 'died'), (2, 'error'), (99, 'result')]) == (1, 2.5, [True, True, False])
    assert run([(2.2, 'died'), (2.4, 'died'), (2, 'error')])[0] == 2
    assert run([(9.8, 'error'), (99, 'result')])[:2] == (0, 10.0)


def test_a_rank_follows_whoever_started_it(monkeypatch):
    parents, killed, slept = [5, 5, 5, 1], [], []
    monkeypatch.setattr(ranks.os, 'getppid', lambda: parents.pop(0))
    monkeypatch.setattr(ranks.os, 'killpg', lambda group, sign: killed.append((group, sign.name)))
    monkeypatch.setattr(ranks.time, 'sleep', slept.append)
    ranks._follow(5)
    assert killed == [(0, 'SIGKILL')] and slept == [0.25] * 3 and not parents


def call_of(**kw):
    "A call of a function that joins no group"
    whole = dict(
        fn=divmod,
        args=(7, 2),
        kw={},
        world_size=3,
        device='cpu',
        backend='gloo',
        folder='/nowhere',
        port=12,
        tcp=False,
        init=False,
        timeout=5.0,
        env=(('MORE', '1'),),
    )
    return ranks._Call(**whole | kw)


def test_a_rank_joins_where_it_is_told_to(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ranks.dist,
        'init_process_group',
        lambda *a, **kw: seen.append(
            (a, kw['init_method'], kw['rank'], kw['world_size'], kw['timeout'].total_seconds())
        ),
    )
    monkeypatch.setattr(ranks.torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(ranks.torch.cuda, 'set_device', seen.append)
    for kw in (dict(), dict(init=True), dict(init=True, tcp=True), dict(device='cuda')):
        ranks._join(1, call_of(**kw))
    ranks._join(2, call_of(device='cuda'))
    assert seen == [
        (('gloo',), 'file:///nowhere/store', 1, 3, 65.0),
        (('gloo',), 'tcp://127.0.0.1:12', 1, 3, 65.0),
        1,
        0,
    ]
    assert ranks.pickle.loads(ranks._outcome(0, call_of())) == ('result', (3, 1))
    assert ranks.pickle.loads(ranks._outcome(0, call_of(args=(1, 0))))[:2][0] == 'error'
    assert ranks.pickle.loads(ranks._outcome(0, call_of(fn=sys.exit, args=(4,))))[1] == 'called sys.exit(4)'
    monkeypatch.setattr(ranks.os, 'environ', {})
    ranks._environment(2, call_of())
    assert {k: v for k, v in ranks.os.environ.items() if 'GLOO' not in k} == dict(
        RANK='2',
        LOCAL_RANK='2',
        WORLD_SIZE='3',
        LOCAL_WORLD_SIZE='3',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT='12',
        MORE='1',
    )
    assert ('GLOO_SOCKET_IFNAME' in ranks.os.environ) == any(
        name in ('lo', 'lo0') for _, name in ranks.socket.if_nameindex()
    )


def test_what_a_call_is_made_of(monkeypatch):
    calls, warm = [], []
    monkeypatch.setattr(
        ranks,
        '_run',
        lambda call, ctx: calls.append(
            (
                call.world_size,
                call.backend,
                call.tcp,
                call.init,
                call.timeout,
                call.env,
                call.port > 0,
                type(ctx).__name__,
            )
        ),
    )
    monkeypatch.setattr(ranks, '_warm', lambda: warm.append(1))
    monkeypatch.setattr(ranks, '_importable', lambda fn: warm.append(2))
    monkeypatch.setattr(ranks.torch.cuda, 'device_count', lambda: 4)
    on_ranks(divmod, 2, 7, 2)
    on_ranks(divmod, 3, 7, 2, timeout=4, device='cuda', init=False, env=dict(a='b'), port=0)
    on_ranks(divmod, 1, 7, 2, start='spawn', backend='mpi', port=ranks.free_port())
    assert calls == [
        (2, 'gloo', False, True, 60, (), True, 'ForkContext'),
        (3, 'nccl', True, False, 4, (('a', 'b'),), True, 'SpawnContext'),
        (1, 'mpi', True, True, 60, (), True, 'SpawnContext'),
    ]
    assert warm == [1, 2, 2]


# Messages


def test_collectives_equal_torchs():
    for n in (1, 2, 3, 5):
        assert max(on_ranks(collectives.check_against_torch, n, (1, 2, 3, 7, 40))) < 1e-6


def test_a_message_is_timed_both_ways(monkeypatch):
    monkeypatch.setattr(collectives, 'time', SimpleNamespace(perf_counter=itertools.count(3, 5).__next__))
    assert on_ranks(collectives.ping_pong, 2, (8, 100)) == [[(8, 2.5), (100, 2.5)]] * 2
    assert on_ranks(repeats, 2) == [4, 4]


def repeats():
    "How often a message goes there and back"
    collectives.ping_pong((8,), 3)
    return (collectives.time.perf_counter() - 3) // 5 - 2


def test_bytes_of_sockets(monkeypatch):
    info = bytes(200) + (7).to_bytes(8, sys.byteorder) + bytes(range(40))
    of = lambda family, kind: SimpleNamespace(family=family, type=kind, getsockopt=lambda *a: info)
    net = collectives.socket
    assert [
        collectives._bytes_sent(of(*x))
        for x in (
            (net.AF_INET, net.SOCK_STREAM),
            (net.AF_INET6, net.SOCK_STREAM),
            (net.AF_INET, net.SOCK_DGRAM),
            (net.AF_UNIX, net.SOCK_STREAM),
        )
    ] == [7, 7, 0, 0]
    monkeypatch.setattr(collectives, 'sys', SimpleNamespace(platform='darwin', byteorder='little'))
    with pytest.raises(NotImplementedError, match='this is darwin'):
        collectives.wire_bytes()


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='asks the kernel')
def test_the_kernel_counts_about_what_the_formula_says():
    for n, per in ((2, 0.5), (3, 2 / 3)):
        for got in on_ranks(collectives.measure_reduce_scatter, n, 60_000):
            assert 0.9 < got['ours'] / (60_000 * 4 * per) < 1.5 and 0.9 < got['torch'] / (60_000 * 4 * per) < 2.5, got
        for got in on_ranks(collectives.measure_bytes, n, 60_000, 'ring'):
            assert got['counted'] == 2 * 60_000 * 4 * per and 0.9 < got['wire'] / got['counted'] < 1.5


# Data parallelism


def norm_step(shape, kw, train, dtype):
    "A batch-norm over the ranks beside one that has the whole batch: largest differences of whatever it makes"
    torch.manual_seed(0)
    make = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    one, many = make(shape[1], **kw).to(dtype), shares.sync_batchnorm(make(shape[1], **kw).to(dtype))
    x, w = torch.randn(2, *shape, dtype=dtype).unbind()
    if kw.get('affine', True):
        for m in (one, many):
            with torch.no_grad():
                m.weight.copy_(torch.arange(1, shape[1] + 1)), m.bias.copy_(torch.arange(shape[1]))
    far = []
    for _ in range(2):
        a, b = x.clone().requires_grad_(), share((x,))[0].clone().requires_grad_()
        y, z = one(a), many(b)
        (y * w).sum().backward(), (z * share((w,))[0]).sum().backward()
        far += [(z - share((y,))[0]).abs().max(), (b.grad - share((a.grad,))[0]).abs().max()]
        for name, t in one.named_buffers():
            far.append((t - dict(many.named_buffers())[name]).abs().max())
        if not train:
            one.eval(), many.eval()
    return max(f.item() for f in far)


@pytest.mark.parametrize(
    'kw',
    [dict(), dict(affine=False), dict(momentum=0.3, eps=0.1), dict(momentum=None), dict(track_running_stats=False)],
)
def test_batch_norm_over_ranks(kw):
    for shape in ((5, 3), (6, 3, 4), (5, 3, 2, 2)):
        for far in on_ranks(norm_step, 2, shape, kw, True, torch.float64) + on_ranks(
            norm_step, 3, shape, kw, 'track_running_stats' in kw, torch.float64
        ):
            assert far < 1e-9, (shape, far)


def gradients_of(wrap, uses, kw):
    "Gradients of a net that uses some of its layers, by step, or the words of the error"
    torch.manual_seed(dist.get_rank())
    net = Uses(nn.ModuleDict({name: nn.Linear(3, 3) for name in 'abc'}))
    m, out = wrap(net, **kw), []
    for names in uses:
        mine = names if isinstance(names, str) else names[dist.get_rank()]
        m.zero_grad()
        try:
            m(torch.ones(2, 3) * (dist.get_rank() + 1), mine).sum().backward()
        except RuntimeError as e:
            out.append(str(e))
        else:
            out.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    return out


class Uses(nn.Module):
    "Uses the layers that it is told to"

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, names):
        for n in names:
            x = x + self.net[n](x)
        return x


@pytest.mark.parametrize('bucket', [1, 60, 25 << 20])
@pytest.mark.parametrize('overlap', [True, False])
def test_unused_layers_and_buckets(bucket, overlap):
    kw = dict(bucket_bytes=bucket, overlap=overlap)
    for got in on_ranks(gradients_of, 2, ddp.DataParallel, ['abc', 'ab', 'abc'], kw):
        assert 'no gradient for net.c.weight, net.c.bias; use every' in got[1] and len(got[0]) == len(got[2]) == 6
    ours = on_ranks(
        gradients_of, 2, ddp.DataParallel, ['ab', ('ab', 'abc'), 'abc', 'a'], kw | dict(find_unused_parameters=True)
    )
    theirs = on_ranks(
        gradients_of,
        2,
        nn.parallel.DistributedDataParallel,
        ['ab', ('ab', 'abc'), 'abc', 'a'],
        dict(find_unused_parameters=True),
    )
    assert [sorted(g) for g in ours[0]] == [sorted(g) for g in ours[1]] and [len(g) for g in ours[0]] == [4, 6, 6, 2]
    for ours_step, theirs_step in zip(ours[0], theirs[0], strict=True):
        for n, g in ours_step.items():
            torch.testing.assert_close(g, theirs_step[n], rtol=1e-5, atol=1e-6)


def messages_of_training():
    "What steps hand to torch.distributed"
    out = [ddp.count_step(name, strategy) for name in ('mlp', 'cnn') for strategy in ('naive', 'scratch')]
    theirs = ddp.count_step('cnn', 'torch')
    assert theirs['all_reduce'] >= theirs['model_bytes'] and theirs['strategy'] == 'torch'
    return (
        out,
        [ddp.train_accumulating('mlp', s, 2, quiet) for s in ('scratch', 'torch') for quiet in (True, False)],
        ddp.train_accumulating('gpt', 'scratch')[1],
    )


def test_messages_of_a_step():
    for counts, accumulated, quiet in on_ranks(messages_of_training, 2, timeout=120):
        sizes = {n: 4 * sum(p.numel() for p in tiny_model(n).parameters()) for n in ('mlp', 'cnn', 'gpt')}
        buffers = 4 * sum(b.numel() for b in tiny_model('cnn').buffers() if b.is_floating_point()) + 8 * 3
        norms = 4 * sum(
            2 * (2 * p.numel() + 0.5)
            for n, p in tiny_model('cnn').named_parameters()
            if n in ('0.1.weight', '1.1.weight', '2.1.weight')
        )
        naive, ours, many, fewer = counts
        assert (naive['messages'], naive['all_reduce'], naive['broadcast'], naive['model_bytes']) == (
            6,
            sizes['mlp'],
            0,
            sizes['mlp'],
        )
        assert (ours['messages'], ours['all_reduce'], ours['broadcast'], ours['model']) == (1, sizes['mlp'], 0, 'mlp')
        assert (
            many['broadcast'] == 0
            and fewer['broadcast'] == buffers
            and many['all_reduce'] == fewer['all_reduce']
            and many['messages'] > fewer['messages']
        )
        assert abs(many['all_reduce'] - sizes['cnn'] - norms) < 3 * 3 * 4
        alone = train_alone('mlp')
        assert [b for _, b in accumulated] == [20 * sizes['mlp'], 40 * sizes['mlp']] * 2 and all(
            worst(losses, alone) < 1e-5 for losses, _ in accumulated
        )
        assert quiet == 20 * sizes['gpt']


def uneven(size):
    return [shares.train_uneven('mlp', size, weighted) for weighted in (True, False)]


def test_uneven_shares_need_weights():
    for n, size in ((2, 7), (3, 4)):
        alone = train_alone('mlp', size=size)
        for right, wrong in on_ranks(uneven, n, size):
            assert worst(right, alone) < 1e-5 < 0.01 < worst(wrong, alone)


def holes():
    "A loss of targets some of which do not count, over the ranks"
    x, y = tiny_batch('gpt', 5, 1)
    y[0, 3:] = -100
    got = shares._weighted_loss(tiny_model('gpt'), share((x, y)))
    return shares.over_ranks([got.detach()])[0], tiny_loss(tiny_model('gpt'), (x, y)).item()


def test_targets_that_do_not_count():
    for got, want in on_ranks(holes, 2):
        assert abs(got / want - 1) < 1e-6


def test_samplers_deal_like_torchs():
    for n, world, epoch, seed in itertools.product((1, 2, 5, 12, 13), (1, 2, 5, 7), (0, 3), (0, 4)):
        for rank in range(world):
            theirs = torch.utils.data.DistributedSampler(range(n), world, rank, seed=seed)
            theirs.set_epoch(epoch)
            assert shares.sampler_indices(n, rank, world, epoch, seed) == list(theirs)


def test_spans_of_a_backward_pass():
    event = lambda name, a, b: SimpleNamespace(name=name, time_range=SimpleNamespace(start=a, end=b))
    compute, send = 'evaluate_function: AddmmBackward0', 'gloo:all_reduce'
    found = ddp._spans(
        [
            event(send, 5000, 9000),
            event(compute, 4000, 5000),
            event(compute, 3000, 3500),
            event('else', 0, 1),
            event(send, 3200, 4000),
        ]
    )
    assert found == dict(compute=[(0, 0.5), (1.0, 2.0)], send=[(0.2, 1.0), (2.0, 6.0)])


def traced():
    return {s: ddp.trace_backward(s, 48, 8, 2) for s in ('after', 'scratch', 'torch')}


def test_sending_waits_where_it_is_told_to():
    for found in on_ranks(traced, 2, timeout=120):
        assert all(len(spans['compute']) == 8 and spans['send'] for spans in found.values())
        assert found['after']['send'][0][0] >= found['after']['compute'][-1][0]


def quickest(monkeypatch):
    "Which of several passes is kept"
    passes = [
        dict(compute=[(0, 5)], send=[(1, 9), (2, 12)]),
        dict(compute=[(0, 7)], send=[(1, 8)]),
        dict(compute=[(0, 11)], send=[(1, 3)]),
    ]
    monkeypatch.setattr(ddp, '_traced', lambda loss: None)
    monkeypatch.setattr(ddp, '_spans', lambda events, it=iter(passes): next(it))
    return on_ranks(ddp.trace_backward, 1, 'scratch', 8, 2, 3)[0]


def test_the_quickest_pass_is_kept(monkeypatch):
    assert quickest(monkeypatch) == dict(compute=[(0, 7)], send=[(1, 8)])


# ZeRO


def test_stages_equal_one_process():
    "Also when steps are broken off, weights are looked at, and some layers are not used"
    for n, names in ((1, ['mlp']), (2, ['gpt', 'cnn']), (4, ['mlp'])):
        for far in on_ranks(short_runs, n, names):
            assert far < 1e-5, (n, names)


def short_runs(names):
    "How far each way of sharding is from one process after a few steps"
    far = []
    for name in names:
        alone = train_alone(name, 4, 16, adamw)
        for wrap in (*zero.zeros.values(), zero_libraries.fsdp):
            far.append(worst(ddp.train_ranks(name, wrap, 4, make=adamw), alone))
    return max(far)


def zero_story(stage):
    "Gradients with unused layers; looking, changing, loading and evaluating between steps"
    make, out = zero.zeros[stage], []
    m = make(tiny_model('mlp'))
    opt = adamw(m.parameters())

    def step(s):
        tiny_loss(m, share(tiny_batch('mlp', 16, s))).backward()
        opt.step(), opt.zero_grad()

    step(0)
    with m.gathered() as net, torch.no_grad():
        net[0].weight.mul_(2.0)
        with m.gathered():
            out.append(net[0].weight.sum().item())
    out.append(sum(t.sum().item() for t in m.module.state_dict().values()))
    out.append(m.opened)
    step(1)
    m(torch.ones(2, 20))  # a step that is broken off
    step(2)
    tiny_loss(m, share(tiny_batch('mlp', 16, 9))).backward()
    m(torch.ones(2, 20))
    state = m.module.state_dict()
    m.module.load_state_dict({n: t + 1 for n, t in state.items()})
    out.append(
        sum(t.sum().item() for t in m.module.state_dict().values()) - sum(t.sum().item() for t in state.values())
    )
    out.append(m.module[0].state_dict()['bias'].tolist())
    with torch.no_grad():
        out.append(tiny_loss(m, tiny_batch('mlp', 16, 5)).item())
    return out, [u.flat is None for u in m.units], m.stale, m.queued


def alone_story():
    "The same in one process"
    m, out = tiny_model('mlp'), []
    opt = adamw(m.parameters())

    def step(s):
        tiny_loss(m, tiny_batch('mlp', 16, s)).backward()
        opt.step(), opt.zero_grad()

    step(0)
    with torch.no_grad():
        m[0].weight.mul_(2.0)
    out += [m[0].weight.sum().item(), sum(t.sum().item() for t in m.state_dict().values()), 0]
    step(1), step(2)
    with torch.no_grad():
        for p in m.parameters():
            p += 1
    out += [sum(p.numel() for p in m.parameters()), m[0].bias.tolist()]
    with torch.no_grad():
        out.append(tiny_loss(m, tiny_batch('mlp', 16, 5)).item())
    return out


@pytest.mark.parametrize('stage', [1, 2, 3])
def test_a_long_story(stage):
    want = alone_story()
    for n in (1, 2, 4):
        for out, gone, stale, queued in on_ranks(zero_story, n, stage, timeout=120):
            for got, w in zip(out, want, strict=True):
                assert got == pytest.approx(w, rel=1e-4, abs=1e-4)
            assert all(gone) == (stage == 3) == any(gone) and not queued and stale == (stage == 3)


@pytest.mark.parametrize('stage', [1, 2, 3])
def test_layers_that_are_not_used(stage):
    make = zero.zeros[stage]
    for r, got in enumerate(on_ranks(units_of_uses, 2, make, ['abc', 'ab', 'abc'], {})):
        assert (
            f'rank {r}: no gradient for' in got[1]
            and 'use every parameter' in got[1]
            and len(got[0]) == len(got[2]) == 6
        )
    want = on_ranks(
        gradients_of, 2, nn.parallel.DistributedDataParallel, ['ab', 'abc', 'a'], dict(find_unused_parameters=True)
    )[0]
    for got in on_ranks(units_of_uses, 2, make, ['ab', 'abc', 'a'], dict(find_unused_parameters=True)):
        assert [len(g) for g in got] == [4, 6, 2]
        for mine, theirs in zip(got, want, strict=True):
            for n, g in mine.items():
                torch.testing.assert_close(g, theirs[n], rtol=1e-5, atol=1e-6)
    if stage == 3:
        return
    for got in on_ranks(units_of_uses, 2, make, [('ab', 'abc')], dict(find_unused_parameters=True)):
        assert len(got[0]) == 6


def units_of_uses(make, uses, kw):
    "Whole gradients of a stage of ZeRO on a net that uses some of its layers"
    torch.manual_seed(dist.get_rank())
    m, out = make(Uses(nn.ModuleDict({name: nn.Linear(3, 3) for name in 'abc'})), **kw), []
    for names in uses:
        for u in m.units:
            u.shard.grad = None
        mine = names if isinstance(names, str) else names[dist.get_rank()]
        try:
            m(torch.ones(2, 3) * (dist.get_rank() + 1), mine).sum().backward()
        except RuntimeError as e:
            out.append(str(e))
        else:
            out.append(real._unit_gradients(m.units))
    return out


def other_ways(make, first, second):
    "The words of an error where ranks use different layers"
    m = make(Uses(nn.ModuleDict({name: nn.Linear(3, 3) for name in 'abc'})))
    try:
        m(torch.ones(2, 3), (first, second)[dist.get_rank()]).sum().backward()
    except RuntimeError as e:
        return str(e)


def test_ranks_that_go_other_ways_are_named():
    for first, second, says in (
        ('ab', 'ac', 'gathers net.c.weight, net.c.bias, another rank gathers net.b.weight, net.b.bias'),
        ('ab', 'a', 'gathers net.a.weight'),
    ):
        found = on_ranks(other_ways, 2, zero.Zero3, first, second) if second != 'a' else []
        if found:
            assert (
                says in found[1]
                and 'rank 1 ' in found[1]
                and 'rank 0 gathers net.b.weight, net.b.bias, another rank gathers net.c.weight' in found[0]
                and zero.use_the_same in found[0]
            )
    for said in on_ranks(other_ways, 2, zero_libraries.fsdp, 'ab', 'ac'):
        assert 'one rank gathers net.c, another net.b' in said
    assert zero_words() == [
        'gathers b',
        'sends a, where this one has no gradient for a',
        'gathers a',
        'sends b, where this one has no gradient for b',
    ]


def zero_words():
    "Deeds in words"
    unit = lambda name: SimpleNamespace(names={name: name}, waiting=[name])
    fake = SimpleNamespace(units=[unit('a'), unit('b')])
    return [zero.Zero3._deed(fake, k) for k in (2, 1, 0, 3)]


def whole_in_steps():
    "Most bytes of whole parameters at a time, as a stage 3 logs them"
    m = zero.Zero3(tiny_model('mlp'))
    tiny_loss(m, share(tiny_batch('mlp'))).backward()
    return [held for _, held in m.log], m.whole()


def test_bytes_that_are_whole_at_a_time():
    sizes = [-(-sum(p.numel() for p in m.parameters()) // 2) * 2 * 4 for m in tiny_model('mlp') if list(m.parameters())]
    for log, left in on_ranks(whole_in_steps, 2):
        assert left == 0 and max(log) == max(sizes) and set(log) <= {0, *sizes} and len(log) == 10


def test_optimizers_in_slower_memory(tmp_path):
    for folder in (None, tmp_path):
        wanted, got = (tiny_model('mlp') for _ in range(2))
        a, b = adamw(wanted.parameters()), zero_libraries.Offloaded(got.parameters(), folder=folder)
        got[2].bias.requires_grad_(False), wanted[2].bias.requires_grad_(False)
        for s in range(3):
            for net, opt in ((wanted, a), (got, b)):
                opt.zero_grad()
                tiny_loss(net, tiny_batch('mlp', 8, s)).backward()
                opt.step()
        assert all(
            torch.allclose(p, q, atol=1e-7) for p, q in zip(wanted.parameters(), got.parameters(), strict=True)
        ) and all(p.grad is None for p in got.parameters())
        assert all(q.grad is None for q in b.slow)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == sorted(
        [f'{i}.param' for i in range(6)] + [f'{i}.{s}' for i in (0, 1, 2, 4, 5) for s in ('exp_avg', 'exp_avg_sq')]
    )
    state = b.opts[0].state[b.slow[0]]
    assert (
        torch.equal(
            torch.from_file(str(tmp_path / '0.exp_avg'), size=state['exp_avg'].numel()), state['exp_avg'].flatten()
        )
        and state['exp_avg'].abs().sum() > 0
    )
    torch.testing.assert_close(
        torch.from_file(str(tmp_path / '0.param'), size=20 * 64), got[0].weight.detach().flatten()
    )


def test_runs_that_offload_are_measured_after_the_first_step(monkeypatch):
    monkeypatch.setattr(zero_libraries, '_settle', lambda: None)
    steps = iter([(9.0, 900, 50.0), (8.0, 700, 3.0), (7.0, 600, 1.0), (6.0, 500, 4.0), (5.0, 1000, 2.0)] * 2)
    monkeypatch.setattr(zero_libraries, '_resident', lambda: 100)
    monkeypatch.setattr(zero_libraries, '_watched_step', lambda *a: next(steps))
    found = zero_libraries.offload_run(width=4, steps=5)
    assert found == dict(losses=[9.0, 8.0, 7.0, 6.0, 5.0], bytes=900, per_parameter=900 / (6 * 20), seconds=2.0)
    assert [type(m).__name__ for m in zero_libraries._wide_mlp(3)] == ['Linear', 'ReLU'] * 6


def test_a_watched_step(monkeypatch):
    monkeypatch.setattr(zero_libraries, 'time', ticking(2.0, 5.0))
    monkeypatch.setattr(zero_libraries, '_resident', lambda: 77)
    net = nn.Linear(2, 2)
    before, x = net.weight.detach().clone(), torch.tensor([[1.0, 2.0]])
    want = (net(x) - x).square().mean().item()
    loss, held, seconds = zero_libraries._watched_step(net, torch.optim.SGD(net.parameters(), lr=0.1), x)
    assert (
        (round(loss - want, 6), held, seconds) == (0, 77, 3.0)
        and not torch.equal(before, net.weight)
        and net.weight.grad is None
    )


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_resident_memory_is_in_bytes():
    with open('/proc/self/status') as f:
        kilobytes = next(int(line.split()[1]) for line in f if line.startswith('RssAnon'))
    assert 0.8 < zero_libraries._resident() / (kilobytes * 1024) < 1.25


def parts_of_shards():
    "Shapes of everything that changes in training, whole and here"
    m = zero.Zero2(tiny_model('mlp'))
    state = zero_libraries.shards(m, adamw(m.parameters()))
    assert all(t.stride() == (1,) for t in state.values() if hasattr(t, 'to_local'))
    return (
        {n: (tuple(t.shape), len(t.to_local()) if hasattr(t, 'to_local') else None) for n, t in state.items()},
        m.stale,
        [u.shard.grad for u in m.units],
    )


def test_shards_of_any_number_of_ranks():
    sizes = [sum(p.numel() for p in ps) for _, ps in units.units_of(tiny_model('mlp'))]
    for n in (1, 3, 7):
        every = on_ranks(parts_of_shards, n)
        for i, size in enumerate(sizes):
            for name in ('shard', 'exp_avg', 'exp_avg_sq'):
                assert {found[f'{i}.{name}'][0] for found, _, _ in every} == {(size,)} and sum(
                    found[f'{i}.{name}'][1] for found, _, _ in every
                ) == size
                assert every[0][0][f'{i}.{name}'][1] == -(-size // n)
            assert all(
                found[f'{i}.step'] == ((), None) and stale and grads == [None] * len(sizes)
                for found, stale, grads in every
            )


def one_unit():
    "Shards of a model that is one unit"
    m = zero.Zero1(nn.Linear(3, 2))
    return {n: tuple(t.shape) for n, t in zero_libraries.shards(m, adamw(m.parameters())).items()}


def test_shards_of_one_unit():
    assert on_ranks(one_unit, 2)[1] == {'0.shard': (8,), '0.step': (), '0.exp_avg': (8,), '0.exp_avg_sq': (8,)}


def test_who_waits_for_the_others(monkeypatch):
    def late(timeout):
        raise RuntimeError(f'gone after {timeout.total_seconds()}\nmore')

    monkeypatch.setattr(
        zero, 'dist', SimpleNamespace(get_backend=lambda: 'nccl', monitored_barrier=late, get_rank=lambda: 3)
    )
    zero._all_here()
    zero.dist.get_backend = lambda: 'gloo'
    with pytest.raises(RuntimeError, match=r'rank 3 has waited 60 s for the others: .* \(gone after 60.0\)'):
        zero._all_here()
    monkeypatch.setattr(zero_libraries, 'on_ranks', lambda fn, n, *args, init, timeout: [(fn, n, args, init, timeout)])
    assert zero_libraries._alone(len, 'x') == (len, 1, ('x',), False, 120)


def fake_module(monkeypatch, name, **members):
    "A library that is not installed"
    parts = name.split('.')
    for i in range(1, len(parts) + 1):
        monkeypatch.setitem(
            sys.modules, '.'.join(parts[:i]), sys.modules.get('.'.join(parts[:i])) or ModuleType('.'.join(parts[:i]))
        )
    for key, value in members.items():
        monkeypatch.setattr(sys.modules[name], key, value, raising=False)


class Engine:
    "DeepSpeed for one rank: the model, its gradients averaged, its optimizer"

    def __init__(self, net, opt, config):
        self.net, self.opt, self.config = net, opt, config

    def __call__(self, x):
        return self.net(x)

    def backward(self, loss):
        loss.backward()

    def step(self):
        shares.average_gradients(self.net)
        self.opt.step(), self.opt.zero_grad()


def test_other_systems_are_compared_with_one_process(monkeypatch):
    engines = []

    def initialize(model, optimizer, config):
        engines.append(Engine(model, optimizer, config))
        return engines[-1:]

    fake_module(
        monkeypatch, 'deepspeed', __version__='0.1', init_distributed=lambda dist_backend: None, initialize=initialize
    )
    rows = zero_libraries.run_deepspeed(dict(ranks=2, models=['mlp'], stages=[0, 2], offload=True))
    assert [(r['system'], r['strategy'], r['model'], r['ranks'], r['difference'] < 1e-5) for r in rows] == [
        ('DeepSpeed 0.1', f'stage {s} + offload', 'mlp', 2, True) for s in (0, 2)
    ]
    assert on_ranks(deepspeed_config, 2) == [8, 8]
    assert [r['strategy'] for r in zero_libraries.run_deepspeed(dict(ranks=1, models=['mlp'], stages=[3]))] == [
        'stage 3'
    ]


def deepspeed_config():
    "Samples that an engine is told of"
    seen = []
    sys.modules['deepspeed'].initialize = lambda model, optimizer, config: (
        seen.append(config),
        [Engine(model, optimizer, config)],
    )[1]
    assert len(zero_libraries.deepspeed_rank(1, steps=3)) == 3
    return seen[0]['train_micro_batch_size_per_gpu']


def test_parts_of_fairscale(monkeypatch):
    fake_module(monkeypatch, 'fairscale', __version__='0.2')
    fake_module(monkeypatch, 'fairscale.nn', checkpoint_wrapper=lambda m: m)
    fake_module(
        monkeypatch,
        'fairscale.nn.data_parallel',
        ShardedDataParallel=lambda m, opt, **kw: ddp.DataParallel(m, overlap=not kw),
    )
    fake_module(monkeypatch, 'fairscale.optim', OSS=lambda params, kind, lr: kind(params, lr=lr))
    rows = zero_libraries.run_fairscale(dict(ranks=2, models=['mlp']))
    assert [(r['strategy'], r['difference'] < 1e-5, r['system'], r['ranks']) for r in rows] == [
        (w, True, 'FairScale 0.2', 2) for w in zero_libraries._fairscale_parts
    ]
    kinds = on_ranks(fairscale_kinds, 1)[0]
    assert kinds == ['DistributedDataParallel', 'DataParallel True', 'DataParallel False', 'DistributedDataParallel'], (
        kinds
    )

    def fails(*a, **kw):
        raise RuntimeError('x ' * 200)

    monkeypatch.setattr(zero_libraries, 'on_ranks', fails)
    assert [len(r['error']) for r in zero_libraries.run_fairscale(dict(ranks=2, models=['mlp']))] == [200] * 4


def fairscale_kinds():
    "What wraps a model in each part of FairScale"
    made = [zero_libraries._fairscale(w, tiny_model('mlp'))[0] for w in zero_libraries._fairscale_parts]
    return [type(m).__name__ + (f' {m.overlap}' if isinstance(m, ddp.DataParallel) else '') for m in made]


# Matrices


@pytest.mark.parametrize('mode', tensor.modes)
def test_matrices_on_ranks_equal_one_process(mode):
    for n in (1, 2, 4):
        for r in on_ranks(compare_scratch, n, SMALL, mode, steps=3, size=2, time=8):
            assert r['loss'] < 1e-5 and r['gradient'] < 1e-4, r


def test_plans_of_torch_equal_one_process():
    for sequence, loss in ((True, True), (False, False), (True, False)):
        for r in on_ranks(compare_torch, 2, SMALL, sequence, loss, steps=2, size=2, time=8):
            assert r['loss'] < 1e-5 and r['gradient'] < 1e-4, r


def vocab_loss(dtype):
    "A loss over cut logits beside one over whole ones"
    n, r = dist.get_world_size(), dist.get_rank()
    z = (torch.arange(2 * 3 * 8.0).sin() * 50).view(2, 3, 8).to(dtype)
    whole, own, y = (
        z.clone().requires_grad_(),
        z.chunk(n, -1)[r].clone().requires_grad_(),
        torch.tensor([[0, 7, 3], [4, 5, 2]]),
    )
    want, got = F.cross_entropy(whole.flatten(0, 1).float(), y.flatten()), tensor.vocab_parallel_loss(own, y)
    want.backward(), got.backward()
    return (
        abs(got.item() / want.item() - 1),
        (own.grad - whole.grad.chunk(n, -1)[r]).abs().max().item(),
        own.grad.dtype == dtype and got.dtype == torch.float32,
    )


def test_losses_over_cut_logits():
    for dtype, far in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        for n in (1, 2, 4):
            for loss, grad, kept in on_ranks(vocab_loss, n, dtype):
                assert loss < far and grad < far and kept


def layers_measured():
    "What a layer sends and keeps in every mode"
    config = GPTConfig(1, 32, 4, 16, 64)
    return dtensor.traffic(config, size=4, time=16), dtensor.layer_memory(config, size=4, time=16)


def test_traffic_and_memory_of_a_layer():
    one = on_ranks(layers_measured, 1)[0]
    for sent, kept in on_ranks(layers_measured, 2):
        for mode, b in sent.items():
            want = dtensor.layer_traffic(
                64, 32, 2, {'dtensor': 'tensor', 'dtensor sequence': 'sequence'}.get(mode, mode)
            )
            assert b['total'] == pytest.approx(sum(v for _, v in want.values()), rel=0.1) and b['wire'] >= b['total'], (
                mode
            )
            assert one[0][mode]['total'] == 0
        assert (
            len(sent) == 5
            and kept['regather']['activations']
            < kept['sequence']['activations']
            < kept['tensor']['activations']
            < one[1]['tensor']['activations']
        )
        assert kept['regather']['activations'] == pytest.approx(one[1]['regather']['activations'] / 2, rel=0.05)
        assert {k['parameters'] for k in kept.values()} == {
            4 * (6 * 32 * 32 + 6 * 32 + 64 + 5 * 32 + 32 + 64)
            - 4 * (6 * 32 * 32 + 6 * 32 + 64 + 5 * 32 + 32 + 64)
            + kept['tensor']['parameters']
        }


# Pipelines


@pytest.mark.parametrize(
    'name, micro, virtual', [('naive', 2, 1), ('gpipe', 4, 1), ('1f1b', 4, 1), ('interleaved', 4, 2), ('zb1p', 4, 1)]
)
def test_pipelines_equal_one_process(name, micro, virtual):
    "Also while the bytes that are kept are counted"
    config, size = GPTConfig(4, 32, 4, 16, 256), 8
    want = train_whole(config, 3, size)
    for watch in (False, True):
        found = on_ranks(pipeline_gpt.train_stages, 2, name, micro, virtual, config, 3, size, watch, timeout=120)
        far = pipeline_apart(found, want)
        assert far['losses'] < 1e-5 and far['parameters'] < 1e-5, (watch, far)
        assert [r['losses'] is None for r in found] == [True, False] and all(
            (r['most'] or 0) > 0 if watch else r['most'] is None for r in found
        )
        assert all(
            len(r['spans']) == len(schedules.timetable(name, 2, micro, virtual).ops[i]) for i, r in enumerate(found)
        )


@pytest.mark.parametrize('name', pipeline_gpt.torch_schedules)
def test_torchs_pipelines_equal_one_process(name):
    config = GPTConfig(4, 32, 4, 16, 256)
    far = pipeline_apart(
        on_ranks(pipeline_gpt.train_stages, 2, name, 4, 1, config, 2, 8, False, pipeline_gpt.torch_step, timeout=120),
        train_whole(config, 2, 8),
    )
    assert far['losses'] < 1e-5 and far['parameters'] < 1e-5, far


def pipeline_words():
    "What a pipeline refuses"
    r, out = dist.get_rank(), []
    t, own = schedules.timetable('1f1b', 2, 4), {r: pipeline.ModuleStage(nn.Linear(2, 2), F.mse_loss)}
    x = torch.zeros(4, 2)
    calls = [
        lambda: pipeline.Pipeline(schedules.timetable('1f1b', 3, 4), own, (1, 2)),
        lambda: pipeline.Pipeline(t, {1 - r: 0}, (1, 2)),
        lambda: pipeline.Pipeline(t, own, (1, 2)).step(x[:3], x[:3]),
        lambda: pipeline.Pipeline(t, own, (1, 2)).step(),
        lambda: pipeline.Pipeline(t, {r: pipeline.ModuleStage(nn.BatchNorm1d(2))}, (1, 2)),
        lambda: (
            pipeline.Pipeline(schedules.timetable('1f1b', 2, 1), {r: pipeline.ModuleStage(nn.BatchNorm1d(2))}, (1, 2))
            and None
        ),
    ]
    for call in calls:
        try:
            out.append(call())
        except ValueError as e:
            out.append(str(e))
    if r == 0:
        for shape, dtype in (((2, 2), torch.float32), ((1, 2), torch.float64)):
            try:
                pipeline.Pipeline(t, own, shape, dtype).step(x)
            except ValueError as e:
                out.append(str(e))
    return out


def test_words_of_pipelines():
    for r, said in enumerate(on_ranks(pipeline_words, 2)):
        assert said[:3] == [
            'a timetable for 3 ranks, a group of 2',
            f'rank {r} has stages [{1 - r}], the timetable gives it [{r}]',
            'inputs: a batch of 3 cannot be cut into 4 equal micro-batches',
        ]
        assert (
            said[3] == f'rank {r} has stage {r} and needs {["inputs", "targets"][r]}'
            and 'is a batch-norm' in said[4]
            and said[5] is None
        )
        if r == 0:
            assert said[6:] == [
                f'stage 0 hands on (1, 2) of torch.float32, the pipeline was told {a} of torch.{b}'
                for a, b in (((2, 2), 'float32'), ((1, 2), 'float64'))
            ]


def test_stages_that_sleep(monkeypatch):
    slept = []
    monkeypatch.setattr(pipeline, 'time', SimpleNamespace(sleep=slept.append, perf_counter=itertools.count().__next__))
    stage = pipeline.SleepStage(1, 2, 0.5)
    assert [stage.forward(0, None).shape, stage.backward(0, None).shape] == [(1,), (1,)]
    stage.split = True
    stage.backward(0, None), stage.weight(0)
    assert slept == [1, 2, 1.5, 0.5]
    t = schedules.timetable('interleaved', 2, 4, 2)
    runs = on_ranks(pipeline.sleep_steps, 2, t, [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], 2)
    for r, spans in enumerate(runs):
        assert [[s.op for s in one] for one in spans] == [list(t.ops[r])] * 2 and all(
            s.end == s.start + 1 for one in spans for s in one
        )


def test_the_run_with_the_smallest_bubble_counts(monkeypatch):
    seen = []

    def fake(fn, world, t, forward, backward, steps):
        seen.append((world, t.virtual, forward, backward, steps))
        return [
            [[schedules.Span(r, o, i * gap, i * gap + 1.0) for i, o in enumerate(t.ops[r])] for gap in (3.0, 1.5, 2.0)]
            for r in range(world)
        ]

    monkeypatch.setattr(pipeline, 'on_ranks', fake)
    trace = pipeline.sleep_trace('interleaved', 2, 2, 2)
    assert trace.seconds == 11.5 and seen == [(2, 2, [0.005] * 4, [0.01] * 4, 3)]
    pipeline.sleep_trace('gpipe', 2, 2, forward=[1, 2], backward=4, steps=7)
    assert seen[1] == (2, 1, [1, 2], [4.0, 4.0], 7)


# Layouts that run


@pytest.mark.parametrize(
    'text',
    [
        'dp2,tp2,pp2,micro_batch=2',
        'dp2,zero=2',
        'dp2,zero=3,recompute=selective',
        'dp2,zero=1,recompute=every-other-layer',
        'pp2,vp2',
        'pp2,schedule=zb1p,recompute=full',
        'tp2,zero=1',
        'dp4,zero=3,shard=2',
    ],
)
def test_layouts_equal_one_process(text):
    l = layout.parse_layout(text + ',precision=fp32')
    want = model.ten_steps('dp1,precision=fp32,micro_batch=8', SMALL_TEN, 2, 8, 8)
    for losses, norms, held in on_ranks(model.ten_steps, l.world, str(l), SMALL_TEN, 2, 8, 8, timeout=200):
        assert worst(losses, want[0]) < 1e-5 and worst(norms, want[1]) < 1e-4 and worst(held, want[2]) < 1e-5


SMALL_TEN = GPTConfig(4, 32, 4, 16, 256)


def test_layers_that_are_computed_again():
    for how, runs in (('none', [1] * 4), ('full', [2] * 4), ('every-other-layer', [2, 1, 2, 1])):
        net, count = GPT(SMALL_TEN), [0] * 4
        for i, block in enumerate(net.layers.values()):
            block.mlp.register_forward_pre_hook(lambda *_, i=i: count.__setitem__(i, count[i] + 1))
        model._recompute(net, how)
        net(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
        assert count == runs
    net, count = GPT(SMALL_TEN), []
    for b in net.layers.values():
        (
            b.attn.q.register_forward_pre_hook(lambda *_: count.append('attn')),
            b.mlp.register_forward_pre_hook(lambda *_: count.append('mlp')),
        )
    model._recompute(net, 'selective')
    net(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    assert count.count('attn') == 8 and count.count('mlp') == 4


class Offers(nn.Module):
    "A module that can compute itself again"

    def __init__(self):
        super().__init__()
        self.norm, self.on = nn.BatchNorm1d(2), False

    def set_grad_checkpointing(self):
        self.on = self.training

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.norm, x, use_reentrant=False) if self.on else self.norm(x)


def test_models_of_others_that_are_computed_again():
    for how, net, says in (
        ('selective', Offers(), 'recompute=selective is not to be had for Offers: none or full'),
        ('full', nn.Linear(2, 2), 'recompute=full is not to be had for Linear: none$'),
    ):
        with pytest.raises(ValueError, match=says):
            model._recompute(net, how)
    net, plain = Offers().eval(), Offers().train()
    model._recompute(net, 'full')
    for m in (net, plain):
        m(torch.tensor([[1.0, 2.0], [3.0, 5.0]])).square().sum().backward()
    assert (
        net.on
        and net.training
        and net.norm.num_batches_tracked == 1
        and torch.equal(net.norm.running_mean, plain.norm.running_mean)
    )


def test_what_a_replica_is_told_before_each_micro_batch():
    told = []
    stage = SimpleNamespace(
        set_requires_gradient_sync=lambda x: told.append(x), set_reshard_after_backward=lambda x: told.append(x)
    )
    for zero_stage, mesh, last in itertools.product((0, 1, 2, 3), (None, 1), (False, True)):
        (
            model.Parallel._sync(
                SimpleNamespace(stages=[stage], layout=SimpleNamespace(zero=zero_stage), mesh=mesh), last
            ),
            told.append('|'),
        )
    assert told == ['|'] * 4 + [
        '|',
        '|',
        False,
        False,
        '|',
        True,
        True,
        '|',
        '|',
        '|',
        True,
        False,
        '|',
        True,
        True,
        '|',
        '|',
        '|',
        True,
        True,
        '|',
        True,
        True,
        '|',
    ]


def wrapped(text):
    "How a model is wrapped, and with what"
    l, seen = layout.parse_layout(text), []
    run = model.Parallel(nn.Sequential(nn.Linear(2, 2)), l)
    m = run.stages[0]
    return type(m).__name__, run.device, run.n, str(run.layout), m.training, len(seen)


@pytest.mark.parametrize(
    'text, kind',
    [('dp1,precision=bf16', 'Sequential'), ('dp2', 'DistributedDataParallel'), ('dp2,zero=1', 'FSDPSequential')],
)
def test_how_a_model_is_wrapped(text, kind):
    assert on_ranks(wrapped, layout.parse_layout(text).world, text)[0][:3] == (kind, 'cpu', 1)


@pytest.mark.parametrize(
    'precision, where', [('fp32', 'float32'), ('bf16', 'bfloat16'), ('amp_bf16', 'bfloat16'), ('tf32', 'float32')]
)
def test_precision_of_outputs(precision, where):
    run = model.Parallel(nn.Linear(2, 2), f'dp1,precision={precision}')
    assert (
        str(run.stages[0](torch.ones(1, 2)).dtype) == f'torch.{where}' and run.stages[0].weight.dtype == torch.float32
    )
    assert on_ranks(precise, 2, precision) == [(where, 'bfloat16' if precision == 'bf16' else 'float32')] * 2


def precise(precision):
    "Types of an output and of a weight under zero=2"
    run = model.Parallel(nn.Linear(2, 2), f'dp2,zero=2,precision={precision}')
    return str(run.stages[0](torch.ones(1, 2)).dtype)[6:], str(run.stages[0].weight.dtype)[6:]


def test_evaluation_fills_what_is_missing():
    seen = []
    fake = SimpleNamespace(
        n=3,
        _run_pipeline=lambda part, train: (
            seen.append(([x for x, _ in part], [y.tolist() for _, y in part], train)) or 1.0
        ),
    )
    batches = [(i, torch.tensor([i])) for i in range(4)]
    assert (
        model.Parallel._evaluate_pipeline(fake, batches) == 2.0
        and model.Parallel._evaluate_pipeline(fake, batches[:3]) == 1.0
    )
    assert seen == [
        ([0, 1, 2], [[0], [1], [2]], False),
        ([3, 3, 3], [[3], [-100], [-100]], False),
        ([0, 1, 2], [[0], [1], [2]], False),
    ]


def test_gradients_are_scaled_down_and_never_up():
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    for limit, after in ((1.0, 1.0), (4.9, 4.9), (5.1, 5.0), (100.0, 5.0), (float('inf'), 5.0)):
        p.grad, q.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
        assert model.clip_gradients([p, q, nn.Parameter(torch.zeros(1))], limit).item() == pytest.approx(5)
        assert model.clip_gradients([p, q], float('inf')).item() == pytest.approx(after, rel=1e-5)


# Real modules


@pytest.mark.parametrize('name', ['lstm (tuple)', 'routed (experts apart)'])
@pytest.mark.parametrize('strategy', ['DDP', 'ZeRO-1', 'ZeRO-2', 'FSDP'])
def test_modules_of_others_in_every_strategy(name, strategy):
    kw = dict(find_unused_parameters=True) if real.asks_unused(name, strategy) else {}
    if (name[0], strategy) == ('r', 'FSDP'):
        return
    for r in on_ranks(real.train_real, 2, name, strategy, 2, **kw, timeout=120):
        assert max(r['loss'], r['gradient'], r['state']) < 1e-5 and (
            r['whole'] == 1 if strategy != 'FSDP' else 0 < r['whole'] < 1
        ), r


@pytest.mark.parametrize('name', real.real_modules)
def test_real_modules_are_as_their_names_say(name):
    "Ten classes or 97 words, no dropout, and what is frozen is"
    net, batch, loss = real.real_module(name)
    inputs, y = batch(0, 3)
    out = net(*inputs)
    scores = getattr(out, 'logits', getattr(out, 'last_hidden_state', out[0] if isinstance(out, tuple) else out))
    assert (
        net.training
        and scores.shape[-1] == (10 if y.dim() == 1 else 32 if 'bert' in name else 97)
        and torch.equal(loss(net(*inputs), y), loss(out, y))
    )
    assert {p.requires_grad for p in net.parameters()} == ({True, False} if 'frozen' in name else {True})
    assert scores.dtype == (torch.float64 if y.dim() == 1 else torch.float32)
    config = getattr(net, 'config', None)
    if config is not None:
        assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.vocab_size) == (
            32,
            2 if 't5' in name else 3,
            4,
            97,
        )
    if config is not None and 'gpt2' not in name and 't5' not in name:
        assert config.intermediate_size == 64
    if 'vit' in name:
        assert len(net.blocks) == 3 and net.blocks[0].mlp.fc1.weight.requires_grad == ('frozen' not in name)
    drops = 'attn_pdrop embd_pdrop resid_pdrop hidden_dropout_prob attention_probs_dropout_prob dropout_rate'.split()
    assert not any(getattr(config, drop, 0) for drop in drops)
    if 'mixtral' in name:
        assert config.num_local_experts == 4 and config.num_key_value_heads == 2
    if 'llama' in name:
        assert config.num_key_value_heads == 2


def real_pieces():
    "Shares, dictionaries of all ranks, and a pipeline of a plain module beside one process"
    torch.manual_seed(0)
    r, net = dist.get_rank(), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    want = F.cross_entropy(net(x), y)
    want.backward()
    grads = {n: g.clone() for n, g in real._gradients(net).items()}
    net.zero_grad()
    m = real.PipelineModel(net)
    got = m.step((x,), y, F.cross_entropy)
    far = real._apart(real._whole_gradients(m, net), grads)
    state = real._apart(real._state_everywhere(m, net), net.state_dict())
    return (
        abs(got - want.item()),
        far,
        state,
        len(m.mine),
        real._from_all({r: r}),
        real._rank_share(None),
        real._rank_share(x).tolist() == x.chunk(2)[r].tolist(),
    )


def test_pieces_of_real_training():
    for (loss, far, state, own, whole, nothing, mine), size in zip(on_ranks(real_pieces, 2), (1, 4), strict=True):
        assert (
            loss < 1e-6
            and far < 1e-5
            and state == 0
            and own == size
            and whole == {0: 0, 1: 1}
            and nothing is None
            and mine
        )


# Megatron-core, whose layers are stood for by others


class Column(nn.Module):
    "Megatron's column-parallel layer, time first"

    def __init__(self, inputs, outputs, config, init_method, bias, skip_bias_add, gather_output):
        super().__init__()
        n = dist.get_world_size()
        assert (
            config.use_cpu_initialization
            and not config.gradient_accumulation_fusion
            and config.tensor_model_parallel_size == n
        )
        assert (bias, skip_bias_add, gather_output) == (True, False, False)
        self.config, self.weight, self.bias = (
            config,
            nn.Parameter(torch.zeros(outputs // n, inputs)),
            nn.Parameter(torch.zeros(outputs // n)),
        )

    def forward(self, x):
        x = (
            tensor.Gather.apply(x.transpose(0, 1), None).transpose(0, 1)
            if self.config.sequence_parallel
            else tensor.Copy.apply(x, None)
        )
        return F.linear(x, self.weight, self.bias), None


class Row(nn.Module):
    "Megatron's row-parallel layer, time first"

    def __init__(self, inputs, outputs, config, init_method, bias, skip_bias_add, input_is_parallel):
        super().__init__()
        assert (bias, skip_bias_add, input_is_parallel) == (True, False, True)
        self.config, self.weight, self.bias = (
            config,
            nn.Parameter(torch.zeros(outputs, inputs // dist.get_world_size())),
            nn.Parameter(torch.zeros(outputs)),
        )

    def forward(self, x):
        out = F.linear(x, self.weight)
        out = (
            tensor.Scatter.apply(out.transpose(0, 1), None).transpose(0, 1)
            if self.config.sequence_parallel
            else tensor.Reduce.apply(out, None)
        )
        return out + self.bias, None


def test_layers_of_megatron(monkeypatch):
    fake_module(
        monkeypatch,
        'megatron.core',
        ModelParallelConfig=lambda **kw: SimpleNamespace(**kw),
        parallel_state=SimpleNamespace(initialize_model_parallel=lambda tensor_model_parallel_size: None),
    )
    fake_module(monkeypatch, 'megatron.core.tensor_parallel', ColumnParallelLinear=Column, RowParallelLinear=Row)
    monkeypatch.setattr('importlib.metadata.version', lambda name: '1.2')
    found = megatron.run_megatron(dict(ranks=[1, 2]))
    assert found['megatron'] == '1.2' and [(r['ranks'], r['sequence']) for r in found['rows']] == [
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    ]
    for row in found['rows']:
        assert max(row['apart'].values()) < 1e-6 and sorted(row['apart']) == [
            'column.bias',
            'column.weight',
            'input',
            'output',
            'row.bias',
            'row.weight',
        ]
        part = (row['ranks'] - 1) / row['ranks'] * 4 * 16 * 32 * 4
        assert (
            row['theirs']['bytes'] == 4 * part
            if not row['sequence']
            else row['ours']['bytes'] >= row['theirs']['bytes']
        )
    linears, x, weight = megatron._mlp(2, 3, 4, 5)
    assert (
        [list(l.weight.shape) for l in linears] == [[5, 4], [4, 5]]
        and x.shape == weight.shape == (2, 3, 4)
        and not torch.equal(x, weight)
    )
    assert on_ranks(megatron_alone, 2) == [True, True]


def megatron_alone():
    "Our layers beside the linear layers in one process"
    linears, x, weight = megatron._mlp(2, 4, 4, 6)
    whole = x.clone().requires_grad_()
    out = linears[1](F.gelu(linears[0](whole)))
    (out * weight).sum().backward()
    found, sent = megatron._run_ours(linears, x, weight, False)
    r = dist.get_rank()
    pairs = [
        (found['output'], out),
        (found['input'], whole.grad),
        (found['column.weight'], linears[0].weight.grad.chunk(2)[r]),
        (found['row.weight'], linears[1].weight.grad.chunk(2, 1)[r]),
        (found['row.bias'], linears[1].bias.grad),
    ]
    return all(torch.allclose(a, b, atol=1e-5) for a, b in pairs) and sent['calls'] == dict(all_reduce=2)


# Libraries that are not installed, and books of those that are


def stand_in_lightning(monkeypatch):
    "As much of Lightning as a run on ranks uses: DistributedDataParallel over ranks that are there"

    class Strategy:
        def __init__(self, process_group_backend):
            self.backend = process_group_backend
            self._configure_launcher()

    class Trainer:
        def __init__(self, accelerator, devices, strategy, max_epochs, **off):
            assert (accelerator, max_epochs, strategy.backend) == ('cpu', 1, 'gloo') and not any(off.values())
            dist.init_process_group('gloo', world_size=devices)

        def fit(self, task, loader):
            for p in task.parameters():
                dist.broadcast(p.data, 0)
            opt = task.configure_optimizers()
            for i, batch in enumerate(loader):
                opt.zero_grad()
                task.training_step(batch, i).backward()
                shares.average_gradients(task)
                opt.step()

    fake_module(monkeypatch, 'lightning', LightningModule=nn.Module, Trainer=Trainer)
    fake_module(monkeypatch, 'lightning.pytorch.strategies', DDPStrategy=Strategy)
    lightning = sys.modules['lightning']
    lightning.pytorch = sys.modules['lightning.pytorch']
    lightning.pytorch.strategies = sys.modules['lightning.pytorch.strategies']


class Accelerator:
    "As much of accelerate as a loop uses"

    def __init__(self, cpu):
        assert cpu
        dist.init_process_group('gloo')

    def prepare(self, net, opt):
        return nn.parallel.DistributedDataParallel(net), opt

    def backward(self, loss):
        loss.backward()

    def reduce(self, x, how):
        assert how == 'mean'
        dist.all_reduce(x)
        return x / dist.get_world_size()


def test_loops_of_others_equal_one_process(monkeypatch):
    stand_in_lightning(monkeypatch)
    fake_module(monkeypatch, 'accelerate', Accelerator=Accelerator)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    alone = train_alone('cnn')
    for train in (ddp.train_lightning, ddp.train_accelerate):
        for losses in on_ranks(train, 2, 'cnn', init=False, timeout=120):
            assert worst(losses, alone) < 1e-5, train


def books_of_torch():
    "What fully_shard holds, and losses of optimizers whose states are shared out or elsewhere"
    runs = dict(
        shared=(zero_libraries.ddp, zero_libraries.zero_redundancy), host=(zero_libraries.ddp, zero_libraries.offloaded)
    )
    losses = {k: ddp.train_ranks('mlp', wrap, 4, make=make) for k, (wrap, make) in runs.items()}
    losses['away'] = ddp.train_ranks('mlp', zero_libraries.fsdp_offloaded, 4, make=adamw)
    return zero_libraries.fsdp_accounted('mlp'), losses


def test_books_of_torchs_own():
    alone, size = train_alone('mlp', 4, 16, adamw), 4 * sum(p.numel() for p in tiny_model('mlp').parameters())
    for book, losses in on_ranks(books_of_torch, 2, timeout=120):
        assert book['parameters'] == book['gradients'] == book['optimizer'] / 2 == size / 2
        assert book['sent'] in (size, 1.5 * size) or size <= book['sent'] <= 1.6 * size
        assert all(worst(found, alone) < 1e-5 for found in losses.values()), losses


def test_memory_is_given_back_to_the_system(monkeypatch):
    asked = []
    libc = SimpleNamespace(mallopt=lambda *a: asked.append(a), malloc_trim=lambda *a: asked.append(a))
    monkeypatch.setattr(zero_libraries.ctypes, 'CDLL', lambda name: asked.append(name) or libc)
    zero_libraries._settle()
    assert asked == [None, (-3, 2**20), (0,)]


def test_micro_batches_with_other_numbers_of_targets_are_refused():
    targets = torch.ones(4, 3, dtype=torch.long)
    pipeline_gpt._check_equal_parts(targets, 2)
    targets[0, 0] = -100
    with pytest.raises(ValueError, match='same weight'):
        pipeline_gpt._check_equal_parts(targets, 2)
    targets[3, 1] = -100
    pipeline_gpt._check_equal_parts(targets, 2)


def one_table_of_25_words():
    found = []
    for kept in ('emb', 'head', None):
        whole = GPT(GPTConfig(1, 12, 6, 8, 25, 24))
        for other in {'emb', 'head'} - {kept}:
            setattr(whole, other, None)
        try:
            tensor.tensor_parallel(whole)
            found.append('cut')
        except ValueError as e:
            found.append(str(e))
    return found


def test_a_stage_with_either_table_needs_words_for_every_rank():
    first, last, middle = on_ranks(one_table_of_25_words, 2)[0]
    assert first == last and 'vocab 25 cannot be divided by tp=2' in first and middle == 'cut'


def still_waiting_when_sent():
    found = []
    for overlap, find_unused in itertools.product((True, False), repeat=2):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        replica = ddp.DataParallel(model, 32, overlap, find_unused)
        sent, waiting = replica._send, []
        replica._send = lambda: (waiting.append(len(replica._waiting())), sent())
        replica(torch.ones(2, 4)).sum().backward()
        found.append(waiting)
    return found


def test_messages_leave_during_backward_only_where_they_may():
    asks, sends, *waits = on_ranks(still_waiting_when_sent, 2)[1]
    assert sends == [5, 4, 3, 2, 1, 0, 0] and [asks, *waits] == [[0]] * 3
