"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

import itertools
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fsdl_tools.compute import choose, cost, gpus, hardware, measured, planner, search, step_memory, uncertainty
from fsdl_tools.compute import validation
from fsdl_tools.parallel.layout import Layout


def test_stages_interleave_where_layers_and_rounds_divide():
    grid = np.array(list(itertools.product((1, 2, 4), (1, 2, 3), (1, 2, 4), (1, 2, 3), (24, 64))))
    dp, micro, pp, vp, batch = grid.T
    for layers in (12, 22, 32):
        got = [
            bool(
                search._can_interleave(
                    dict(zip(('dp', 'micro_batch', 'pp', 'vp'), map(np.array, row[:4]), strict=True)),
                    dict(layers=layers),
                    row[4],
                )
            )
            for row in grid
        ]
        wanted = [
            p > 1 and math.ceil(layers / p) % v == 0 and (n / (d * m)) % p == 0
            for d, m, p, v, n in zip(dp, micro, pp, vp, batch, strict=True)
        ]
        assert got == wanted and any(got) and not all(got)


def test_twelve_runs_in_four_cells_are_enough():
    enough = lambda cells, runs: bool(uncertainty._is_enough(np.arange(runs) % cells, np.ones(runs, bool)))
    assert [enough(4, 12), enough(3, 12), enough(4, 11), enough(5, 30)] == [True, False, False, True]
    only = np.arange(24) < 12
    assert uncertainty._is_enough(np.arange(24) % 4, only) and not uncertainty._is_enough(
        np.arange(24) % 4, only & (np.arange(24) > 0)
    )


def test_speed_is_images_over_the_time_of_the_steps_that_count(monkeypatch):
    import torch

    seen, now = [], [0.0]

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3, 2))

        def forward(self, x):
            now[0] += 0.5
            seen.append((tuple(x.shape), torch.is_autocast_enabled('cpu'), self.training, float(self.weight[0, 0])))
            return x.mean((2, 3)) @ self.weight

    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    for dtype in ('float32', 'bfloat16'):
        net, state = Net().eval(), torch.get_rng_state()
        assert measured.images_per_second(net, 4, 8, 5, 3, dtype=dtype) == 4 * 5 / 2.5 and len(seen) == 1 + 3 + 5
        assert (
            {s[0] for s in seen} == {(4, 3, 8, 8)}
            and [s[1] for s in seen] == [False] + [dtype != 'float32'] * 8
            and all(s[2] for s in seen)
        )
        moved = [abs(b[3] - a[3]) for a, b in itertools.pairwise(seen)]
        assert moved[0] == 0 and any(moved)
        assert net.weight.grad is None and torch.equal(net.weight, torch.ones(3, 2)) and not net.training
        assert torch.equal(torch.get_rng_state(), state)
        seen.clear()


def test_a_traced_gpt_has_no_dropout_and_its_bytes_are_those_of_its_tensors():
    c = validation._gpt2(2, 64, 4, 100, 32)
    said = dict(
        n_layer=2,
        n_embd=64,
        n_head=4,
        vocab_size=100,
        n_positions=32,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    assert {k: getattr(c, k) for k in said} == said
    found = validation.trace_gpt(1, 64, 4, 100, 32, 2)
    parameters = 100 * 64 + 32 * 64 + (12 * 64 * 64 + 13 * 64) + 2 * 64
    assert found['parameter'] == 4 * parameters and 8 * parameters <= found['optstate'] <= 8 * parameters + 4 * 16
    import torch

    ids, mask = validation._inputs(torch, 2, 5)
    assert ids.tolist() == [[0] * 5] * 2 and mask.shape == (2, 1, 5, 5) and not mask.any()


def test_all_tasks_of_both_are_compared_but_for_the_noisy_one(monkeypatch):
    rows = {
        (s, t, p): dict(throughput=v)
        for s, t, p, v in (
            ('a', 'x', 'fp16', 2.0),
            ('b', 'x', 'fp16', 8.0),
            ('a', 'y', 'fp16', 1.0),
            ('b', 'y', 'fp16', 16.0),
            ('a', 'ssd', 'fp16', 1.0),
            ('b', 'ssd', 'fp16', 99.0),
            ('b', 'z', 'fp16', 5.0),
            ('a', 'v', 'fp16', 5.0),
            ('a', 'x', 'fp32', 1.0),
            ('b', 'x', 'fp32', 3.0),
        )
    }
    monkeypatch.setattr(measured, '_benchmarks', lambda: {'Lambda 2022': rows})
    assert (
        math.isclose(measured.speedup('b', 'a'), 8)
        and math.isclose(measured.speedup('b', 'a', 'fp32'), 3)
        and math.isclose(measured.speedup('b', 'a', tasks=['x']), 4)
    )


@pytest.mark.parametrize(
    'code, out, err', [(0, 'note\n{"a": [1, 2.5]}\n', ''), (1, '', 'Traceback\nValueError: no room\n')]
)
def test_a_call_apart_gives_its_last_line_or_the_error_s(monkeypatch, code, out, err):
    asked = []
    monkeypatch.setattr(
        'subprocess.run',
        lambda command, **kw: asked.append((command, kw)) or SimpleNamespace(returncode=code, stdout=out, stderr=err),
    )
    if code:
        with pytest.raises(RuntimeError, match=r'^trace\(x=1\) failed: ValueError: no room$'):
            validation.apart('trace(x=1)', 7)
    else:
        assert validation.apart('trace(x=1)', 7) == dict(a=[1, 2.5])
    ((command, kw),) = asked
    assert (
        command[0] == sys.executable
        and command[1] == '-c'
        and 'v.trace(x=1)' in command[2]
        and kw == dict(capture_output=True, text=True, timeout=7)
    )


def test_a_domain_that_no_row_states_has_eight_cards():
    unstated = next(g for g in gpus.gpus() if g.nvlink_domain is None and g.link_bandwidth)
    said = list(planner._said_of_links(gpus.Cluster(unstated, 18, gpus_per_node=9)))
    assert any('9 GPUs share NVLink' in s and 'domains of 8' in s for s in said)
    assert not any('domains' in s for s in planner._said_of_links(gpus.Cluster(unstated, 16, gpus_per_node=8)))


def test_a_host_is_ahead_where_a_layer_has_more_work_than_its_limit(monkeypatch):
    monkeypatch.setattr(step_memory, '_layer_params', lambda c: 100.0)
    columns = SimpleNamespace(m=2.0, pp=2.0, micro_batch=2.0, seq=3.0, tp=1.0)
    for limit, wanted in ((599.0, 7.0), (600.0, 0.0), (601.0, 0.0)):
        constants = SimpleNamespace(host_ahead=limit, gather_units_pipeline=5.0, gather_units_two=7.0)
        assert float(step_memory._gathered_in_pipeline(columns, constants)) == wanted


def test_a_task_that_is_named_whole_is_meant_though_others_begin_like_it(monkeypatch):
    monkeypatch.setattr(
        cost, 'benchmarks', lambda suite: [dict(task=t) for t in ('bert_base', 'bert', 'bert_base_squad')]
    )
    for name in ('bert', 'bert_base', 'bert_base_squad'):
        assert cost.task_named(name) == name
    assert cost.task_named('bert', 'squad') == 'bert_base_squad'
    with pytest.raises(ValueError, match="'ber' is more than one task .* bert, bert_base, bert_base_squad"):
        cost.task_named('ber')


def test_a_comparison_of_what_was_not_measured_says_so():
    with pytest.raises(ValueError, match="unknown system '8x RTX 3099'.*8x RTX 3090"):
        measured.speedup('8x RTX 3099', '1x RTX 3090')
    for kw in (dict(tasks=[]), dict(precision='fp8')):
        with pytest.raises(ValueError, match='no task in fp.* on both 8x RTX 3090 and 1x RTX 3090'):
            measured.speedup('8x RTX 3090', '1x RTX 3090', **kw)


def test_a_gpu_that_skips_no_zeros_has_no_sparse_rate():
    said = [measured.explain_peak(g, 2 * gpus.peak(g, 'fp16') / 1e12, 'fp16') for g in ('V100', 'MI250X', 'A100')]
    assert [s.startswith('with sparsity') for s in said] == [False, False, True]


def test_prices_are_found_under_every_name_of_a_gpu():
    said = choose.clusters(('A100', 'h100'), (8,), {'A100-SXM-80GB': 2.0, 'NVIDIA H100 80GB HBM3': 3.0})
    assert [c.price for c in said] == [16.0, 24.0]
    with pytest.raises(ValueError, match='no price for H100 SXM'):
        choose.clusters(('H100',), (8,), {})


def test_the_cheapest_of_unpriced_clusters_is_refused_and_so_is_more_than_all_of_the_time():
    priced = choose.clusters(('A100',), (8,), {'A100': 2.0})
    with pytest.raises(ValueError, match='8 × H100 SXM has no price'):
        choose.cheapest('gpt2', 1e9, '7d', [*priced, gpus.Cluster('H100', 8)], 64, 1024)
    for share in (0, 1.01, math.nan):
        with pytest.raises(ValueError, match='goodput'):
            choose.cheapest('gpt2', 1e9, '7d', priced, 64, 1024, goodput=share)
    one, all_of_it = (choose.cheapest('gpt2', 1e9, '7d', iter(priced), 64, 1024, g)[0]['days'] for g in (0.5, 1))
    assert math.isclose(one, 2 * all_of_it)


def test_a_single_task_is_one_and_not_its_letters():
    pair = '8x RTX 3090', '1x RTX 3090'
    assert measured.speedup(*pair, tasks='resnet50') == measured.speedup(*pair, tasks=['resnet50'])
    with pytest.raises(ValueError, match="unknown task 'resnet5': did you mean 'resnet50'"):
        measured.speedup(*pair, tasks='resnet5')


@pytest.mark.parametrize('bad', (0, -2, math.nan, math.inf))
def test_a_number_of_a_product_has_bytes(bad):
    with pytest.raises(ValueError, match='bytes_per must be positive'):
        gpus.matmul_work(2, 2, 2, bytes_per=bad)
    assert gpus.matmul_work(2, 2, 2, bytes_per=0.5)[1] == 6


def test_no_operation_is_done_less_than_never():
    for bad in (-5, math.nan, [1, -1]):
        with pytest.raises(ValueError, match='intensity must not be negative'):
            gpus.roofline('H100', bad)
    assert gpus.roofline('H100', 0) == 0 and gpus.roofline('H100', math.inf) == gpus.peak('H100')


def test_tf32_is_computed_in_fp32_where_a_card_has_none():
    at = lambda card, precision: (
        planner.estimate('gpt2', Layout(precision=precision, micro_batch=4), gpus.Cluster(card, 1), 8, 1024).step_time
    )
    for card in ('V100', 'T4', 'P100 SXM2'):
        assert gpus.first_peak(card, 'tf32') == gpus.peak(card, 'fp32')
        assert at(card, 'tf32') == at(card, 'fp32') > 1.5 * at(card, 'fp16')
    assert at('A100', 'tf32') < at('A100', 'fp32') / 2


def test_constants_and_kernels_that_nobody_knows_are_refused():
    with pytest.raises(ValueError, match="unknown constant 'launch_second': did you mean 'launch_seconds'"):
        hardware.constant_of('launch_second')
    for card in ('H100', 'K80'):
        with pytest.raises(ValueError, match="unknown kernel 'fa33': did you mean 'fa3'"):
            hardware.kernel_of('pytorch', card, 'fa33')


def test_layouts_are_counted_once_and_with_their_verb():
    class Found(SimpleNamespace):
        def __len__(self):
            return len(self.order)

    def said(offload, fits):
        columns = dict(offload=np.array(offload, float))
        return list(choose._said_of_room(Found(columns=columns, order=np.array(fits, int), tried=len(offload))))

    host = "only with the optimizer's states on the host."
    assert said([0, 0, 0, 1, 1], [0, 3]) == ['1 of 3 layouts does not fit.', f'1 fits {host}']
    assert said([0, 0, 0, 1, 1], [0, 3, 4]) == [f'2 fit {host}']
    assert said([0, 0, 0, 1, 1, 1], [4]) == ['2 of 3 layouts do not fit.', f'1 fits {host}']
    assert said([1, 1, 1], [0, 1]) == ['1 of 3 layouts does not fit.']  # asked for: nothing was tried twice
    assert said([0, 0], [0, 1]) == []
    assert choose._said_of_zero(np.array([0, 3])) == 'Of those that fit, 1 does without ZeRO, 1 uses ZeRO-3.'
    assert choose._said_of_zero(np.array([0, 0, 3, 3])) == 'Of those that fit, 2 do without ZeRO, 2 use ZeRO-3.'
