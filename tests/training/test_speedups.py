"""Ratios that can be trusted, switches that change nothing but time, methods that keep to their papers, and the side
environments behind them
"""

import importlib.util
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import nn

from fsdl_tools.environments import run_in
from fsdl_tools.training import methods as M
from fsdl_tools.training.speedups import (
    DigitRun,
    Ratio,
    Switches,
    chunked_loss,
    curriculum_length,
    digits,
    first_fit,
    interleaved,
    one_bit,
    orthogonal,
    paired_ratio,
    saved_bytes,
    ratio_table,
)

ROOT = Path(__file__).parents[2]


# Ratios


@given(true=st.floats(0.2, 5), seed=st.integers(0, 10**6))
def test_pairs_see_through_the_weather(true, seed):
    rng = np.random.default_rng(seed)
    weather = rng.uniform(1, 4, 15)
    r = paired_ratio(true * weather * rng.lognormal(0, 0.02, 15), weather * rng.lognormal(0, 0.02, 15), draws=200)
    assert r.low <= r.mid <= r.high and abs(r.mid / true - 1) < 0.06


def test_equals_are_seldom_called_different():
    rng = np.random.default_rng(0)
    sure = [paired_ratio(rng.lognormal(0, 0.1, 7), rng.lognormal(0, 0.1, 7), draws=300).certain for _ in range(300)]
    assert np.mean(sure) < 0.15


def test_turns_are_taken_by_all_in_another_order():
    said = []
    took = interleaved({k: lambda k=k: said.append(k) for k in 'abc'}, repeats=20)
    turns = [''.join(said[i : i + 3]) for i in range(0, 60, 3)]
    assert (
        all(sorted(t) == list('abc') for t in turns) and len(set(turns)) > 2 and {len(v) for v in took.values()} == {20}
    )
    assert 'a' in str(ratio_table(took, 'a'))


@pytest.mark.parametrize(
    'bad', [dict(precision='fp8'), dict(optimizer='adam'), dict(micro_batches=0), dict(augment=2.0)]
)
def test_switches_say_what_is_wrong(bad):
    with pytest.raises((ValueError, TypeError), match=next(iter(bad))):
        Switches(**bad)


# Switches


def losses(switches, steps=4):
    run = DigitRun(switches, steps=steps)
    return [run.step() for _ in range(steps)]


@pytest.mark.parametrize(
    'switches',
    [
        Switches(recompute=True),
        Switches(channels_last=True),
        Switches(optimizer='foreach'),
        Switches(optimizer='fused'),
    ],
    ids=str,
)
def test_a_switch_of_speed_changes_no_loss(switches):
    assert losses(switches) == pytest.approx(losses(Switches()), rel=1e-3)


def test_bf16_and_growing_change_little_and_much():
    plain, half = losses(Switches()), losses(Switches(precision='bf16'))
    assert half != plain and half == pytest.approx(plain, rel=0.05)
    run = DigitRun(Switches(growing=True), steps=9)
    edges = []
    for _ in range(9):
        edges.append(run.draw()[0].shape[-1])
        run.done += 1
    assert edges[0] == 8 and edges[-1] == 16 and edges == sorted(edges)


def test_a_run_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    DigitRun(seed=3).step()
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_is_a_function_of_its_seed():
    assert losses(Switches()) == losses(Switches()) and DigitRun(seed=1).step() != DigitRun(seed=2).step()


def test_digits_are_whole():
    x, y, tx, ty = digits(8)
    assert x.shape == (1500, 1, 8, 8) and len(ty) == 297 and x.min() == 0 and x.max() == 1
    assert torch.bincount(torch.cat([y, ty])).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]  # as UCI counts them


def test_saved_bytes_by_hand():
    w, x = torch.randn(8, 4, requires_grad=True), torch.randn(2, 8)
    assert saved_bytes(lambda: x @ w) == 2 * 8 * 4
    assert saved_bytes(lambda: torch.exp(torch.exp(w))) == 2 * 8 * 4 * 4


# Ideas of DeepSpeed and newer ones


@given(lengths=st.lists(st.integers(1, 50), max_size=80))
def test_packing_loses_nothing(lengths):
    rows = first_fit(lengths, 50)
    assert sorted(i for r in rows for i in r) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in r) <= 50 for r in rows)
    assert (
        len(rows) <= 1.7 * math.ceil(sum(lengths) / 50) + 1
    )  # first fit decreasing: at most 11/9 of the best, plus one


@given(step=st.integers(0, 300), total=st.integers(1, 200), shortest=st.integers(1, 64), more=st.integers(0, 500))
def test_curriculum_stays_in_bounds(step, total, shortest, more):
    n = curriculum_length(step, total, shortest, shortest + more)
    assert min(-(-shortest // 8) * 8, shortest + more) <= n <= shortest + more
    assert n <= curriculum_length(step + 1, total, shortest, shortest + more)


def test_one_bit_loses_nothing_for_good():
    g = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    error, total = torch.zeros(64), torch.zeros(64)
    for row in g:
        sent, error = one_bit(row, error)
        assert len(sent.abs().unique()) == 1
        total += sent
    assert torch.allclose(total + error, g.sum(0), atol=1e-4)


@given(tokens=st.integers(1, 40), vocab=st.integers(2, 50), chunks=st.integers(1, 9), seed=st.integers(0, 99))
def test_chunked_loss_is_the_loss(tokens, vocab, chunks, seed):
    g = torch.Generator().manual_seed(seed)
    h, w, t = (
        torch.randn(tokens, 6, generator=g),
        torch.randn(vocab, 6, generator=g),
        torch.randint(0, vocab, (tokens,), generator=g),
    )
    a, b = [(h.clone().requires_grad_(), w.clone().requires_grad_()) for _ in range(2)]
    (3 * F.cross_entropy(a[0] @ a[1].T, t)).backward()
    (3 * chunked_loss(*b, t, chunks)).backward()
    assert torch.allclose(a[0].grad, b[0].grad, atol=1e-5) and torch.allclose(a[1].grad, b[1].grad, atol=1e-5)


@pytest.mark.parametrize('shape', [(8, 8), (30, 6), (6, 30)])
def test_orthogonal_evens_out_singular_values(shape):
    g = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    s = torch.linalg.svdvals(orthogonal(g))
    assert 0.3 < s.min() and s.max() < 1.3 and orthogonal(g).shape == shape


# Methods


@given(lam=st.floats(0, 1), height=st.integers(2, 40), width=st.integers(2, 40), data=st.data())
def test_cut_box_is_inside_and_counts_itself(lam, height, width, data):
    top, bottom, left, right, left_over = M.cut_box(
        height, width, lam, data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    )
    assert 0 <= top <= bottom <= height and 0 <= left <= right <= width
    assert left_over == pytest.approx(1 - (bottom - top) * (right - left) / height / width) and left_over >= lam - 1e-9


def test_a_mixed_loss_is_the_mixture():
    y = torch.arange(6)
    m = M.MixUp(1.0, seed=3)
    m.batch(None, torch.randn(6, 1, 4, 4), y)
    scores = torch.randn(6, 10)
    want = m.lam * F.cross_entropy(scores, y) + (1 - m.lam) * F.cross_entropy(scores, y[m.order])
    assert m.loss(scores, y) == pytest.approx(want.item())


@given(progress=st.floats(0, 1), full=st.integers(8, 64))
def test_pictures_grow_to_their_size(progress, full):
    edge = M.growing_edge(progress, full)
    assert (
        edge <= full
        and M.growing_edge(1.0, full) == min(full, round(full / 4) * 4)
        and edge <= M.growing_edge(min(1.0, progress + 0.1), full)
    )


@pytest.mark.parametrize(
    'make',
    [lambda: M.LabelSmoothing(0.1), M.MixUp, M.CutMix, M.GrowingPictures, M.EMA, M.SWA, M.SAM, M.FreezeLayers],
    ids=['smooth', 'mixup', 'cutmix', 'grow', 'ema', 'swa', 'sam', 'freeze'],
)
def test_every_method_trains(make):
    run = DigitRun(methods=[make()], steps=40)
    first = sum(run.step() for _ in range(5))
    for _ in range(30):
        run.step()
    assert sum(run.step() for _ in range(5)) < first


def test_swa_settles_its_norms():
    run = DigitRun(methods=[swa := M.SWA(0.5)], steps=10)
    for _ in range(10):
        run.step()
    swa.settle(run.x[:128])
    norm = swa.average.blocks[0][1]
    out = swa.average.blocks[0][0](run.x[:128])
    assert torch.allclose(norm.running_mean, out.mean((0, 2, 3)), atol=1e-3) and not norm.training


def test_ghost_norm_in_evaluation_is_a_norm():
    ghost = M.GhostBatchNorm2d(3, 4)
    for _ in range(50):
        ghost(torch.randn(8, 3, 4, 4) * 2 + 1)
    ghost.eval()
    x = torch.randn(8, 3, 4, 4)
    assert torch.allclose(ghost(x), F.batch_norm(x, ghost.running_mean, ghost.running_var, ghost.weight, ghost.bias))


# The benchmark, a few switches at a time


@pytest.fixture
def bench(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location('speedups_benchmark', ROOT / 'benchmarks' / 'speedups.py')
    b = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(b)
    for name, value in (('PLANNED', 5), ('SHORT', 2), ('TARGET', 0.0)):
        monkeypatch.setattr(b, name, value)
    b.file = tmp_path / 'speedups.json'
    b.file.write_text((ROOT / 'fsdl_tools/data/results/speedups.json').read_text())
    return b


def test_named_switches_take_their_places_and_all_else_stays(bench):
    before, threads = json.loads(bench.file.read_text()), torch.get_num_threads()
    bench.main(['--turns', '2', '--only-switches', 'recompute', 'bf16', 'recompute', '--out', str(bench.file)])
    torch.set_num_threads(threads)
    after = json.loads(bench.file.read_text())
    assert [r['switch'] for r in after['rows']] == [r['switch'] for r in before['rows']]
    assert {k: v for k, v in after.items() if k != 'rows'} == {k: v for k, v in before.items() if k != 'rows'}
    changed = [b for a, b in zip(before['rows'], after['rows']) if a != b]
    assert [r['switch'] for r in changed] == ['bf16', 'recompute']
    for r in changed:
        assert (
            r['step']['pairs']
            == r['to_accuracy']['pairs']
            == r['apart']['repeats']
            == len(r['seconds'])
            == len(r['apart']['baseline']['seconds'])
            == 2
        )
        assert r['apart']['torch'] == torch.__version__ and 'seconds of the processor' in r['apart']['conditions']


@pytest.mark.parametrize(
    'given, says',
    [
        (['bf61'], "unknown switch 'bf61': did you mean 'bf16'?"),
        (['recompute', 'fused'], "unknown switch 'fused': did you mean 'optimizer: fused'?"),
        (['baseline'], "unknown switch 'baseline'"),
        (['bf16', '--out', 'nowhere/at/all.json'], 'there is no nowhere/at/all.json to keep anything of'),
    ],
)
def test_a_switch_that_is_none_is_refused_before_anything_is_measured(bench, monkeypatch, capsys, given, says):
    monkeypatch.setattr(bench, 'switches', lambda *a: pytest.fail('measured'))
    with pytest.raises(SystemExit):
        bench.main(['--only-switches', *given] + (['--out', str(bench.file)] if '--out' not in given else []))
    assert says in capsys.readouterr().err.replace('\n', ' ')


# The real ones, in their side environments


@pytest.mark.slow
def test_composer_agrees(side):
    side('composer')
    out = run_in('composer', 'fsdl_tools.training.methods:composer_apart', dict(seed=7), timeout=300)
    assert len(out['apart']) == 9 and max(out['apart'].values()) < 1e-5, out
    rows = run_in(
        'composer',
        'fsdl_tools.training.methods:composer_train',
        dict(algorithms=[('', {}), ('LabelSmoothing', {}), ('SAM', {})], epochs=2),
        timeout=300,
    )
    assert all(r['accuracy'] > 0.2 and not r['error'] for r in rows), rows


@pytest.mark.slow
def test_deepspeed_agrees(side):
    side('sharding')
    out = run_in('sharding', 'fsdl_tools.training.speedups:deepspeed_run', dict(turns=3), timeout=600)
    assert out['apart'] < 1e-5 and out['curriculum'] == [curriculum_length(s, 100, 8, 64) for s in range(0, 121, 10)]
    assert out['there']['CPU Adam'] and not out['there']['sparse attention']
