"""Every layout equals one process; the invalid ones are refused before anything starts"""

import functools, random
import pytest
import torch
import torch.distributed as dist
from fsdl_tools.parallel import ranks
from fsdl_tools.training import elastic
from fsdl_tools.parallel.ranks import RankError, on_ranks
from fsdl_tools.models.gpt import GPT, gpt_config
from fsdl_tools.parallel.layout import check_runnable, parse_layout, recomputations
from fsdl_tools.parallel.mesh import coordinates
from fsdl_tools.parallel.model import Loss, Parallel, clip_gradients, make_mesh, _micro_batches, stage_bounds, ten_steps
from fsdl_tools.models.tiny import rule_batch
from fsdl_tools.training.config import TrainConfig, check_config
from fsdl_tools.training.elastic import train

pytestmark = pytest.mark.timeout(900)
tiny = gpt_config('gpt-tiny')


@functools.cache
def alone(steps=10, size=16, seq=16, config=tiny, text='dp1,precision=fp32'):
    "What one process says: losses, norms, loss on a batch not trained on"
    return ten_steps(f'{text},micro_batch={size}', config, steps, size, seq)


def distance(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def equal_to_one(text, config=tiny, steps=10, size=16, seq=16, bar=1e-5, norms_bar=1e-5):
    "Run a layout; all its ranks must say what one process says"
    ref, every = (
        alone(steps, size, seq, config),
        on_ranks(ten_steps, parse_layout(text).world, text, config, steps, size, seq, timeout=600),
    )
    for losses, norms, (held, count) in every:
        assert count == size * seq
        assert (
            distance(losses, ref[0]) < bar
            and distance(norms, ref[1]) < norms_bar
            and distance([held], ref[2][:1]) < bar
        ), (text, losses, ref)
    assert all(r == every[0] for r in every), 'ranks disagree'


# ---- all layouts of eight ranks ----


def eight():
    "All dp·tp·pp = 8 with the ZeRO stages that apply, in micro-batches that fill the pipeline"
    shapes = [(d, t, 8 // d // t) for d in (8, 4, 2, 1) for t in (1, 2, 4, 8) if 8 % (d * t) == 0]
    for d, t, p in shapes:
        for zero in range(4) if d > 1 else [0]:
            text = f'dp{d},tp{t},pp{p},zero={zero},precision=fp32,micro_batch={16 // d // (p if p > 1 else 2)}'
            yield pytest.param(text, id=f'dp{d}-tp{t}-pp{p}-zero{zero}')


def test_there_are_28_of_them():
    assert len(list(eight())) == 28 and len({p.values[0].split(',zero')[0] for p in eight()}) == 10


@pytest.mark.sweep(3)
@pytest.mark.parametrize('text', eight())
def test_eight_ranks_equal_one_process(text):
    equal_to_one(text)


# ---- random layouts ----

# of a norm after three steps of Adam: one process that cuts ten sequences into micro-batches of 5 or 2 differs by 1e-5
# from one that does not
rounding = 5e-5


def draw_layout(seed):
    "A random layout that can be run, and its global batch; the same for the same seed"
    r = random.Random(seed)
    while True:
        d, t, p, v = r.randint(1, 8), r.choice([1, 1, 2, 4, 8]), r.choice([1, 1, 2, 3, 4, 5]), r.choice([1, 1, 2])
        if d * t * p > 8 or p * v > 8 or (p == 1 and v > 1):
            continue
        schedule = r.choice(['1f1b', 'interleaved'] if v > 1 else ['1f1b', 'gpipe', 'zb1p'] if p > 1 else ['1f1b'])
        n, micro, zero = p * r.randint(1, 2) if p > 1 else r.randint(1, 3), r.randint(1, 2), r.randint(0, 3)
        if schedule == 'gpipe':
            n = r.randint(1, 2 * p)
        more = dict(
            zero=zero,
            micro_batch=micro,
            schedule=schedule,
            recompute=r.choice(recomputations),
            seq_parallel=r.choice(['true', 'false']),
        )
        if zero == 3 and d > 1:
            more['shard'] = r.choice([0] + [k for k in range(1, d + 1) if d % k == 0])
        text = f'dp{d},tp{t},pp{p},vp{v},precision=fp32,' + ','.join(f'{k}={w}' for k, w in more.items())
        return text, d * micro * n


@pytest.mark.sweep(5)
@pytest.mark.parametrize('seed', range(60))
def test_random_layouts_equal_one_process(seed):
    text, size = draw_layout(seed)
    check_runnable(text, tiny, size, 16)
    equal_to_one(text, steps=3, size=size, norms_bar=rounding)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    'text',
    [
        'dp2,pp3',
        'pp5',
        'pp3,vp2,schedule=interleaved',
        'dp2,tp2,pp2,vp3,zero=1',
        'pp2,schedule=zb1p,recompute=full',
        'dp4,zero=3,shard=2',
        'dp4,pp2,zero=3,shard=2',
        'dp2,tp2,zero=3,shard=1',
        'pp4,schedule=gpipe',
        'dp2,tp2,pp2,zero=2,recompute=selective',
    ],
)
def test_uneven_stages_virtual_stages_and_hybrid_shards(text):
    l = parse_layout(text)
    equal_to_one(
        f'{text},precision=fp32,micro_batch=1',
        steps=3,
        size=l.dp * (3 if l.schedule == 'gpipe' else l.pp * 2),
        norms_bar=rounding,
    )


def test_a_model_with_seven_layers_and_another_width():
    c = gpt_config('gpt-tiny', layers=7, hidden=48, heads=4, ffn=100, vocab=128, ctx=32)
    assert [b - a for a, b in stage_bounds(c, 2)] in ([4, 3], [3, 4])
    ref = on_ranks(_small_vocab, 4, 'dp1,tp2,pp2,precision=fp32,micro_batch=2', c, timeout=300)[0]
    assert distance(ref, _small_vocab('dp1,precision=fp32,micro_batch=8', c)) < 1e-5


def _small_vocab(text, c):
    "Losses of three steps on tokens below 128"
    l = check_runnable(text, c, 8, 16, dist.get_world_size() if dist.is_initialized() else 1)
    run = Parallel(GPT(c), l, 8 // (l.dp * l.micro_batch))
    opt, out = torch.optim.SGD(run.parameters(), lr=0.1), []
    for s in range(3):
        opt.zero_grad()
        out.append(run.step(_micro_batches(rule_batch(s, 8, 16, 128), l, run.at)).item())
        opt.step()
    return out


# ---- half precision ----


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    'text', ['dp1,tp2', 'dp2,tp2', 'dp1,tp2,pp2', 'dp2,zero=3', 'dp2,tp2,zero=3', 'dp2,pp2,zero=1']
)
@pytest.mark.parametrize('precision', ['bf16', 'amp_bf16'])
def test_half_precision_stays_near(text, precision):
    losses, norms, (held, _) = on_ranks(
        ten_steps, parse_layout(text).world, f'{text},precision={precision},micro_batch=2', tiny, 5, 8, 16, timeout=300
    )[0]
    ref = alone(5, 8)
    assert losses != ref[0], 'nothing was computed in half precision'
    assert distance(losses, ref[0]) < 3e-3 and distance(norms, ref[1]) < 5e-2 and abs(held / ref[2][0] - 1) < 5e-3


# ---- evaluation, clipping, uneven sums ----


def _evaluated(text, n, blank):
    "Loss over n micro-batches a replica, of which the last holds `blank` samples that do not count"
    l = parse_layout(text)
    run = Parallel(GPT(tiny), l, 4)
    x, y = rule_batch(5, 2 * n * l.dp, 16)
    k = run.at['dp'] * 2 * n
    parts = [(x[k + i : k + i + 2], y[k + i : k + i + 2].clone()) for i in range(0, 2 * n, 2)]
    for i in range(blank):
        parts[-1][1][i] = -100
    before = [p.detach().clone() for p in run.parameters()]
    out = run.evaluate(parts)
    assert all(m.training for m in run.stages) and all(
        torch.equal(getattr(a, '_local_tensor', a), getattr(b, '_local_tensor', b))
        for a, b in zip(before, run.parameters())
    )
    return out, [t.tolist() for p in parts for t in p]


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    'text',
    [
        'dp1',
        'dp2',
        'dp1,pp2',
        'dp1,pp4',
        'dp2,tp2,pp2',
        'dp1,pp2,vp2',
        'dp2,pp2,zero=3',
        'dp2,zero=3',
        'dp1,pp2,schedule=zb1p',
    ],
)
@pytest.mark.parametrize('n, blank', [(3, 1), (5, 0), (1, 2), (4, 0)])
def test_evaluation_with_any_number_of_micro_batches(text, n, blank):
    text += ',precision=fp32,micro_batch=2'
    world = parse_layout(text).world
    every = on_ranks(_evaluated, world, text, n, blank, timeout=300) if world > 1 else [_evaluated(text, n, blank)]
    parts = {coordinates(text, r)['dp']: p for r, (_, p) in enumerate(every)}
    x, y = (torch.cat([torch.tensor(t) for p in parts.values() for t in p[i::2]]) for i in (0, 1))
    loss = Loss()
    loss.total = True
    with torch.no_grad():
        want, count = loss(GPT(tiny)(x), y).item(), (y >= 0).sum().item()
    for (mean, seen), _ in every:
        assert seen == count and (abs(mean * count / want - 1) < 1e-5 if count else mean == 0)


def _clipped(text, limit):
    "Norm before and after clipping"
    l = parse_layout(text)
    run = Parallel(GPT(tiny), l, 16 // (l.dp * l.micro_batch))
    run.step(_micro_batches(rule_batch(0, 16, 16), l, run.at))
    return [
        clip_gradients(run.parameters(), limit, run.mesh).item(),
        clip_gradients(run.parameters(), float('inf'), run.mesh).item(),
    ]


@pytest.mark.sweep(1)
@pytest.mark.parametrize('limit', [0.1, 1e6, float('inf')])
def test_clipping_leaves_the_norm_asked_for(limit):
    whole = _clipped('dp1,micro_batch=4,precision=fp32', limit)
    for text in ('dp2,tp2,pp2,zero=3', 'dp4,zero=2', 'dp1,tp4', 'dp2,pp2'):
        for got in on_ranks(
            _clipped, parse_layout(text).world, f'{text},precision=fp32,micro_batch=4', limit, timeout=300
        ):
            assert distance(got, whole) < 1e-5
    assert whole[1] == pytest.approx(min(limit, whole[0]), rel=1e-4)


def test_a_step_with_another_number_of_micro_batches_is_refused():
    run = Parallel(GPT(tiny), 'dp1,precision=fp32', 4)
    with pytest.raises(ValueError, match='4 micro-batches here, not 3'):
        run.step([rule_batch(0, 1, 16)] * 3)


def _places(text):
    "Where make_mesh puts this rank, and where the layout says it should be"
    m, l = make_mesh(text), parse_layout(text)
    shard = l.shard or (l.dp if l.zero else 1)
    at = dict(zip(m.mesh_dim_names, m.get_coordinate()))
    return dict(pp=at['pp'], dp=at['replicate'] * shard + at['shard'], cp=0, tp=at['tp'])


@pytest.mark.parametrize('text', ['dp2,tp2,pp2', 'dp4,pp2,zero=3,shard=2', 'dp8,zero=1', 'dp1,tp4,pp2'])
def test_the_mesh_is_the_grid_that_is_drawn(text):
    assert on_ranks(_places, 8, text, timeout=120) == [coordinates(text, r) for r in range(8)]


# ---- invalid layouts ----


@pytest.fixture
def nothing_starts(monkeypatch):
    "Whoever starts a process fails"

    def started(*a, **kw):
        raise AssertionError('a process was started')

    for where, name in ((elastic.subprocess, 'Popen'), (elastic, 'Trainer'), (ranks, '_run')):
        monkeypatch.setattr(where, name, started)


def broken(seed):
    "A layout and batch that break one rule, and what the message must say"
    r = random.Random(seed)
    odd, big, seq = r.choice([3, 5, 6, 7]), r.randint(9, 40), r.choice([16, 32])
    rules = [
        lambda: (f'tp{odd}', 16, ['heads 8', f'tp={odd}']),
        lambda: (f'pp{big}', 960, ['8 layers', f'pp·vp = {big}']),
        lambda: (f'pp4,vp{big}', 960, ['8 layers', f'pp·vp = {4 * big}']),
        lambda: (f'dp{odd}', 16, ['global_batch 16', 'dp·micro_batch', f'={odd}']),
        lambda: (f'dp2,micro_batch={odd}', 16, ['global_batch 16', f'={2 * odd}', 'remainder']),
        lambda: (f'cp{odd - odd % 2 or 2}', 16, [f'cp={odd - odd % 2 or 2}']),
        lambda: (f'vp{odd}', 16, [f'vp={odd}', 'pp must be more than 1']),
        lambda: ('pp2,schedule=interleaved', 16, ['interleaved', 'vp']),
        lambda: ('pp2,vp2,schedule=' + (s := r.choice(['gpipe', 'zb1p'])), 16, ['vp=2', s]),
        lambda: (f'dp4,shard=2,zero={r.randint(0, 2)}', 16, ['shard=2', 'zero=3']),
        lambda: ('dp4,zero=3,shard=3', 16, ['shard=3', 'dp·cp = 4']),
        lambda: (f'dp2,zero={odd + 1}', 16, ['zero', str(odd + 1)]),
        lambda: ('precision=' + (s := r.choice(['fp8', 'fp16', 'amp_fp16', 'fp4'])), 16, ['precision', s]),
        lambda: ('offload=optimizer', 16, ['offload=optimizer']),
        lambda: ('flash=false', 16, ['flash=False']),
        lambda: (f'pp4,micro_batch={r.choice([8, 16])}', 16, ['micro-batches', 'pp=4', '1f1b']),
        lambda: ('pp2,vp2,micro_batch=' + (s := r.choice(['2', '6'])), 6, ['micro-batches', 'pp=2']),
        lambda: (f'zero=1,recompute={r.choice(["fully", "ful"])}', 16, ['recompute', "'full'"]),
        lambda: ('dq2', 16, ["'dq'", "'dp'"]),
        lambda: ('dp2,dp4', 16, ['dp is given twice']),
        lambda: (f'dp-{odd}', 16, [f"'dp-{odd}'"]),
        lambda: ('dp0', 16, ['dp must be positive', '0']),
    ]
    text, batch, words = rules[seed % len(rules)]()
    return text, batch, seq, words


@pytest.mark.parametrize('seed', range(66))
def test_invalid_layouts_are_refused_with_their_rule(seed, nothing_starts):
    text, batch, seq, words = broken(seed)
    for refuse in (
        lambda: check_runnable(text, tiny, batch, seq),
        lambda: check_config(TrainConfig(layout=text, global_batch=batch, seq=seq)),
        lambda: train(TrainConfig(layout=text, global_batch=batch, seq=seq)),
    ):
        with pytest.raises((ValueError, TypeError)) as e:
            refuse()
        assert all(w in str(e.value) for w in words), (text, str(e.value), words)


@pytest.mark.parametrize(
    'text, kw, words',
    [
        ('dp2,tp2', dict(seq=31), ['seq 31', 'tp=2', 'seq_parallel=false']),
        ('tp2', dict(model='resnet18', data='synthetic:images', image_size=32), ['tp=2', 'timm']),
        ('pp2', dict(model='gpt2'), ['pp=2']),
        ('optimizer=lion', {}, ['optimizer', 'lion']),
        ('dp2', dict(global_batch=5000 * 2), ['fewer samples', '10000']),
    ],
)
def test_what_does_not_suit_the_model_is_refused(text, kw, words, nothing_starts):
    with pytest.raises(ValueError) as e:
        train(TrainConfig(layout=text, **kw))
    assert all(w in str(e.value) for w in words), str(e.value)


def test_a_world_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match='= 4 ranks do not fill 3'):
        check_runnable('dp2,pp2', tiny, 16, 16, 3)
    with pytest.raises(RankError, match='= 4 ranks do not fill 2'):
        on_ranks(ten_steps, 2, 'dp2,pp2,micro_batch=2', timeout=60)


@pytest.mark.parametrize('seed', range(200))
def test_random_layouts_pass_the_check_or_name_a_rule(seed):
    "Whatever the numbers are, the answer is the layout or a ValueError, and what passes has the arithmetic right"
    r = random.Random(seed)
    text = ','.join(
        [f'{a}{r.choice([1, 1, 2, 3, 4, 8])}' for a in ('dp', 'tp', 'pp', 'vp')]
        + [
            f'zero={r.randint(0, 3)}',
            f'micro_batch={r.randint(1, 4)}',
            f'shard={r.choice([0, 0, 1, 2])}',
            'precision=fp32',
            f'schedule={r.choice(["1f1b", "gpipe", "interleaved", "zb1p"])}',
        ]
    )
    size = r.choice([8, 16, 24])
    try:
        l = check_runnable(text, tiny, size, 16)
    except ValueError as e:
        assert str(e)
    else:
        n = size / (l.dp * l.micro_batch)
        assert (
            n == int(n)
            and 8 % l.tp == 0
            and l.pp * l.vp <= 8
            and (l.pp == 1 or l.schedule == 'gpipe' or n >= l.pp)
            and (l.vp == 1 or n % l.pp == 0)
        )
