"""Pipelines: timetables under random shapes and costs, and what happens to them on real ranks."""

import itertools, math, os, signal
from collections import Counter
import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given, strategies as st
from fsdl_tools.parallel.ranks import RankError, RankTimeout, on_ranks
from fsdl_tools.models.gpt import GPT, GPTConfig, keep_layers, lm_loss
from fsdl_tools.parallel.schedules import Op, Timetable, Trace, balance, bubble_formula, simulate, timetable, timetables
from fsdl_tools.parallel.pipeline import ModuleStage, Pipeline, SleepStage, sleep_trace
from fsdl_tools.parallel.pipeline_gpt import gpt_stages, torch_schedules, torch_step, train_stages
from fsdl_tools.testing import pipeline_apart, train_whole
from fsdl_tools.models.tiny import rule_batch

ranks, micros, seconds = st.integers(1, 7), st.integers(1, 20), st.floats(0.1, 10)


@st.composite
def tables(draw, names=tuple(timetables)):
    "Any timetable that can be had"
    name, p, m = draw(st.sampled_from(names)), draw(ranks), draw(micros)
    v = draw(st.integers(2, 4)) if name == 'interleaved' else 1
    assume(name != 'interleaved' or m % max(1, m // p) == 0)
    return timetable(name, p, m, v)


@given(tables(), seconds, seconds, st.floats(0.05, 0.95), st.floats(0, 5))
def test_every_operation_once_and_after_what_it_needs(t, f, b, part, send):
    trace = simulate(t, f, b, b * part, send)
    kinds = 'FBW' if t.name == 'zb1p' else 'FB'
    assert Counter(s.op for s in trace.spans) == Counter(
        Op(k, s, i) for k in kinds for s in range(t.stages) for i in range(t.micro_batches)
    )
    end = {s.op: s for s in trace.spans}
    for s in trace.spans:
        k, stage, i = s.op.kind, s.op.stage, s.op.micro
        assert s.rank == stage % t.ranks
        needs = (
            [Op('F', stage - 1, i)] * (k == 'F' and stage > 0)
            + [Op('F', stage, i)] * (k == 'B')
            + [Op('B', stage + 1, i)] * (k == 'B' and stage < t.stages - 1)
            + [Op('B', stage, i)] * (k == 'W')
        )
        for n in needs:
            assert s.start >= end[n].end + send * (end[n].rank != s.rank) - 1e-9
    for r in range(t.ranks):
        mine = [s for s in trace.spans if s.rank == r]
        assert [s.op for s in mine] == list(t.ops[r])
        assert all(a.end <= c.start + 1e-9 for a, c in itertools.pairwise(mine))
        assert trace.busy[r] == pytest.approx(t.micro_batches * (f + b))
    assert trace.share == pytest.approx(trace.ratio / (1 + trace.ratio), abs=1e-9)


@given(st.sampled_from(['naive', 'gpipe', '1f1b']), ranks, micros, seconds, seconds)
def test_total_time_is_the_formula(name, p, m, f, b):
    trace = simulate(timetable(name, p, m), f, b)
    assert trace.seconds == pytest.approx((m * p if name == 'naive' else m + p - 1) * (f + b))
    assert trace.ratio == pytest.approx(bubble_formula(name, p, m, 1, f, b), abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(2, 4), seconds, seconds)
def test_interleaving_divides_the_bubble(p, rounds, v, f, b):
    trace = simulate(timetable('interleaved', p, p * rounds, v), f, b)
    assert trace.ratio == pytest.approx((p - 1) / (v * p * rounds), abs=1e-9)
    assert trace.ratio == pytest.approx(bubble_formula('interleaved', p, p * rounds, v), abs=1e-9)


@given(ranks, micros, seconds, seconds, st.floats(0.05, 0.5))
def test_zero_bubble_meets_its_formula_and_is_never_worse_than_1f1b(p, m, f, b, part):
    w = min(f, b * part)
    zb, one = simulate(timetable('zb1p', p, m), f, b, w), simulate(timetable('1f1b', p, m), f, b)
    assert zb.ratio == pytest.approx(bubble_formula('zb1p', p, m, 1, f, b, w), abs=1e-9)
    assert zb.seconds <= one.seconds + 1e-9
    assert max(zb.peaks) == max(one.peaks)


@given(ranks, micros, seconds, seconds, st.floats(0.05, 0.95))
def test_zero_bubble_is_never_worse_whatever_the_weights_cost(p, m, f, b, part):
    assert simulate(timetable('zb1p', p, m), f, b, b * part).seconds <= simulate(
        timetable('1f1b', p, m), f, b
    ).seconds * (1 + 1e-9)


@given(ranks, micros)
def test_activations_in_flight(p, m):
    assert simulate(timetable('naive', p, m)).peaks == [1] * p
    assert simulate(timetable('gpipe', p, m)).peaks == [m] * p
    assert simulate(timetable('1f1b', p, m)).peaks == [min(p - r, m) for r in range(p)]
    assert all(k <= min(p, m) for k in simulate(timetable('zb1p', p, m)).peaks)


@given(st.integers(2, 6), st.integers(2, 5), st.integers(2, 4))
def test_interleaving_keeps_what_its_paper_says(p, rounds, v):
    assert max(simulate(timetable('interleaved', p, p * rounds, v)).peaks) == pytest.approx(
        p * (1 + (p - 1) / (p * v))
    )  # arXiv 2205.05198 sec. 4.2.3


@given(tables(('naive', 'gpipe', '1f1b', 'zb1p')), st.data())
def test_time_is_at_least_the_slowest_stage_and_the_way_through(t, data):
    f = data.draw(st.lists(seconds, min_size=t.ranks, max_size=t.ranks))
    trace = simulate(t, f, [2 * x for x in f])
    assert trace.seconds >= max(3 * x * t.micro_batches for x in f) - 1e-9
    assert trace.active <= t.ranks and (t.name != 'naive' or trace.active == 1)


@given(tables(), st.data())
def test_any_mangled_timetable_is_refused_or_ends(t, data):
    "Swap two operations of a rank: it may still work, or there is an error with names; it never hangs"
    r = data.draw(st.integers(0, t.ranks - 1))
    ops = list(t.ops[r])
    i, j = data.draw(st.integers(0, len(ops) - 1)), data.draw(st.integers(0, len(ops) - 1))
    ops[i], ops[j] = ops[j], ops[i]
    try:
        assert len(simulate(t.replace(ops=t.ops[:r] + (tuple(ops),) + t.ops[r + 1 :])).spans) == sum(map(len, t.ops))
    except ValueError as e:
        assert 'standstill' in str(e) and 'waits before' in str(e)


@given(tables(), st.data())
def test_a_missing_or_doubled_operation_is_named(t, data):
    r = data.draw(st.integers(0, t.ranks - 1))
    i = data.draw(st.integers(0, len(t.ops[r]) - 1))
    assume(t.ops[r][i].kind != 'W' or t.micro_batches * t.ranks > 1)
    short, long = t.ops[r][:i] + t.ops[r][i + 1 :], t.ops[r] + (t.ops[r][i],)
    with pytest.raises(ValueError, match='never does'):
        simulate(t.replace(ops=t.ops[:r] + (short,) + t.ops[r + 1 :]))
    with pytest.raises(ValueError, match='twice'):
        simulate(t.replace(ops=t.ops[:r] + (long,) + t.ops[r + 1 :]))


@pytest.mark.parametrize(
    'call, says',
    [
        (lambda: timetable('1f1', 4, 4), "did you mean '1f1b'"),
        (lambda: timetable('1f1b', 0, 4), 'stages must be positive'),
        (lambda: timetable('1f1b', 4, -1), 'micro_batches must be positive'),
        (lambda: timetable('interleaved', 4, 8), 'interleaved needs 2 or more'),
        (lambda: timetable('zb1p', 4, 8, 2), 'does not go with zb1p'),
        (lambda: bubble_formula('interleaved', 4, 6, 2), 'not a multiple'),
        (lambda: simulate(timetable('gpipe', 2, 2), 0), 'forward must be positive'),
        (lambda: simulate(timetable('gpipe', 2, 2), 1, float('nan')), 'backward must be positive'),
        (lambda: simulate(timetable('zb1p', 2, 2), 1, 2, 2), 'weight=2 is a part of backward=2'),
        (lambda: simulate(timetable('gpipe', 2, 2), send=-1), 'send must be 0 or more'),
        (lambda: simulate(timetable('gpipe', 2, 2).replace(ranks=3)), 'lists of work for 2 ranks, expected 3'),
    ],
)
def test_bad_input_is_refused_early(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_records_survive_json():
    t = timetable('interleaved', 2, 4, 2)
    assert Timetable.from_json(t.to_json()) == t
    assert Trace.from_json(simulate(t).to_json()) == simulate(t)


@given(st.lists(st.one_of(st.integers(0, 20), st.floats(0, 1e6)), min_size=1, max_size=9), st.data())
def test_balance_is_optimal(costs, data):
    k = data.draw(st.integers(1, len(costs)))
    cut = balance(costs, k)
    assert len(cut) == k and all(a < b for a, b in cut)
    assert [i for a, b in cut for i in range(a, b)] == list(range(len(costs)))
    sums = lambda bounds: [math.fsum(costs[a:b]) for a, b in bounds]
    every = [list(itertools.pairwise((0, *c, len(costs)))) for c in itertools.combinations(range(1, len(costs)), k - 1)]
    best = min(max(sums(c)) for c in every)
    assert max(sums(cut)) <= best * (1 + 1e-9) + 1e-9
    squares = lambda c: sum(x * x for x in sums(c))
    assert squares(cut) <= min(squares(c) for c in every if max(sums(c)) <= best * (1 + 1e-13)) * (1 + 1e-6) + 1e-6


def test_balance_of_a_large_model_and_bad_input():
    assert [b - a for a, b in balance([1] * 126, 16)].count(8) == 14
    for costs, parts, error in (
        ([1, 2], 3, ValueError),
        ([], 1, ValueError),
        ([1, -1], 1, ValueError),
        ([1, math.inf], 1, ValueError),
        ([1, 2], 0, ValueError),
        ([1, 2], 1.5, TypeError),
    ):
        with pytest.raises(error):
            balance(costs, parts)


@pytest.mark.parametrize('split', [False, True])
def test_a_stage_forgets_what_it_has_used(split):
    stage = ModuleStage(keep_layers(GPT(), 2, 4), watch=True)
    stage.split = split
    for i in range(3):
        y = stage.forward(i, torch.randn(1, 8, 64))
    assert len(stage.kept) == 3 and stage.most == sum(stage.bytes.values()) > 0
    for i in range(3):
        assert stage.backward(i, torch.ones_like(y)).shape == y.shape
        if split:
            stage.weight(i)
    assert not stage.kept and sum(stage.bytes.values()) == 0
    assert not any(stage.later.values())


def test_frozen_weights_get_no_gradient_later():
    stage = ModuleStage(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3, bias=False)))
    stage.split = True
    stage.module[0].requires_grad_(False)
    g = stage.backward(0, torch.ones_like(stage.forward(0, torch.randn(2, 3))))
    stage.weight(0)
    assert g is not None and stage.module[0].weight.grad is None and stage.module[1].weight.grad is not None


whole = {}


def reference(batch=16):
    if batch not in whole:
        whole[batch] = train_whole(batch=batch)
    return whole[batch]


@pytest.mark.sweep(8)
@pytest.mark.parametrize('world', [1, 2, 4])
@pytest.mark.parametrize(
    'name, micro_batches, virtual',
    [
        ('naive', 2, 1),
        ('gpipe', 1, 1),
        ('gpipe', 8, 1),
        ('1f1b', 1, 1),
        ('1f1b', 2, 1),
        ('1f1b', 16, 1),
        ('interleaved', 2, 2),
        ('interleaved', 8, 2),
        ('zb1p', 2, 1),
        ('zb1p', 8, 1),
    ],
)
def test_every_schedule_equals_one_process(world, name, micro_batches, virtual):
    "Fewer micro-batches than ranks, as many, and more"
    far = pipeline_apart(on_ranks(train_stages, world, name, micro_batches, virtual, timeout=120), reference())
    assert far['losses'] < 1e-5 and far['parameters'] < 1e-5, far


@pytest.mark.parametrize('name', torch_schedules)
def test_torchs_schedules_equal_one_process(name):
    far = pipeline_apart(
        on_ranks(train_stages, 4, name, 8, 1, 'gpt-tiny', 10, 16, False, torch_step, timeout=180), reference()
    )
    assert far['losses'] < 1e-5 and far['parameters'] < 1e-5, far


def test_another_shape_of_model():
    "Five layers on two ranks, and a batch of another size"
    c = GPTConfig(5, 48, 4, 32)
    far = pipeline_apart(on_ranks(train_stages, 2, '1f1b', 3, 1, c, 3, 12, timeout=120), train_whole(c, 3, 12))
    assert far['losses'] < 1e-5 and far['parameters'] < 1e-5, far


def _dies(t):
    pipe = Pipeline(t, {dist.get_rank(): SleepStage(0.01, 0.01)}, (1,))
    if dist.get_rank() == 1:
        stage, forward = pipe.stages[1], pipe.stages[1].forward
        stage.forward = lambda i, x, target=None: (
            os.kill(os.getpid(), signal.SIGKILL) if i == 2 else forward(i, x, target)
        )
    pipe.step(torch.zeros(4), torch.zeros(4))


@pytest.mark.parametrize('name', ['gpipe', '1f1b', 'zb1p'])
def test_a_killed_rank_is_an_error_and_not_a_hang(name):
    with pytest.raises(RankError) as e:
        on_ranks(_dies, 4, timetable(name, 4, 4), timeout=60)
    assert not isinstance(e.value, RankTimeout) and e.value.rank == 1 and 'SIGKILL' in str(e.value)


def _raises(t):
    pipe = Pipeline(t, {dist.get_rank(): SleepStage(0, 0)}, (1,))
    if dist.get_rank() == 2:
        pipe.stages[2].backward = lambda i, g: 1 / 0
    pipe.step(torch.zeros(4), torch.zeros(4))


def test_a_rank_that_raises_is_named():
    with pytest.raises(RankError, match='rank 2 of 4 raised ZeroDivisionError'):
        on_ranks(_raises, 4, timetable('1f1b', 4, 4), timeout=60)


def _refusals():
    out, me = [], dist.get_rank()
    t, own = timetable('1f1b', 2, 4), {me: SleepStage(0, 0)}
    for make in (
        lambda: Pipeline(timetable('1f1b', 3, 4), own, (1,)),
        lambda: Pipeline(t, {}, (1,)),
        lambda: Pipeline(t, own, (1,)).step(torch.zeros(5), torch.zeros(5)),
        lambda: Pipeline(t, own, (1,)).step(),
    ):
        try:
            make()
            out.append('')
        except ValueError as e:
            out.append(str(e))
    return out


def test_what_does_not_fit_is_refused_before_anything_is_sent():
    for r, (group, stages, batch, nothing) in enumerate(on_ranks(_refusals, 2)):
        assert group == 'a timetable for 3 ranks, a group of 2'
        assert stages == f'rank {r} has stages [], the timetable gives it [{r}]'
        assert 'a batch of 5 cannot be cut into 4 equal micro-batches' in batch
        assert f'rank {r} has stage {r} and needs' in nothing


def _in_a_group():
    "Two pipelines of two ranks beside each other"
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    g = groups[dist.get_rank() % 2]
    t = timetable('1f1b', 2, 4)
    pipe = Pipeline(t, gpt_stages('gpt-tiny', 2, [dist.get_rank(g)]), (2, 64, 64), group=g)
    return pipe.step(*rule_batch(dist.get_rank() % 2, 8, 64))


def test_pipelines_in_groups_of_their_own():
    got = on_ranks(_in_a_group, 4, timeout=120)
    assert got[0] is None and got[1] is None
    for k in range(2):
        x, y = rule_batch(k, 8, 64)
        assert got[2 + k] == pytest.approx(lm_loss(GPT()(x), y).item(), rel=1e-5)


@pytest.mark.parametrize('name', ['gpipe', '1f1b'])
def test_bytes_kept_are_those_of_the_simulated_peaks(name):
    m, runs = 8, on_ranks(train_stages, 4, name, 8, 1, 'gpt-tiny', 2, 16, True, timeout=120)
    one = [r['most'] for r in on_ranks(train_stages, 4, 'naive', m, 1, 'gpt-tiny', 2, 16, True, timeout=120)]
    assert [r['most'] for r in runs] == [k * b for k, b in zip(simulate(timetable(name, 4, m)).peaks, one)]


@pytest.mark.alone
@pytest.mark.parametrize('name, m', [(n, m) for n in ('gpipe', '1f1b') for m in (4, 8, 16)])
def test_measured_bubble_is_the_simulated_one(name, m):
    "Within 15 %: stages that sleep; other programs can only add to the bubble, so a busy moment gets further attempts"
    wanted = bubble_formula(name, 4, m)
    for attempt in range(6):
        got = sleep_trace(name, 4, m, 1, 0.02 + 0.01 * attempt, 0.04 + 0.02 * attempt, 2).ratio
        if abs(got / wanted - 1) < 0.15:
            break
    assert got == pytest.approx(wanted, rel=0.15)


@pytest.mark.alone
def test_never_two_ranks_at_once_with_the_naive_schedule():
    trace = sleep_trace('naive', 4, 3, 1, 0.002, 0.004, 1)
    assert trace.active == 1 and trace.share > 0.74
