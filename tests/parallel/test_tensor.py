"""Tensor and sequence parallelism from scratch and by DTensor, against one process."""

import json, os, signal
from pathlib import Path
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings, strategies as st
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from fsdl_tools.core import read_results
from fsdl_tools.parallel.ranks import RankError, on_ranks
from fsdl_tools.models.gpt import GPT, GPTConfig, gpts, keep_layers, lm_loss
from fsdl_tools.parallel.tensor import (
    ColumnParallel,
    RowParallel,
    gather,
    modes,
    _owned,
    _part,
    tensor_parallel,
    total,
    vocab_parallel_loss,
    whole_gradient,
)
from fsdl_tools.testing import gradients_apart, compare_training, compare_torch
from fsdl_tools.models.tiny import rule_batch
from fsdl_tools.parallel.dtensor import layer_memory, layer_traffic, parallelize, traffic

small = GPTConfig(layers=2, hidden=64, heads=4, ctx=64)


def _one_case(config, size, time):
    "Every way to run one shape on these ranks: worst relative difference of logits and of gradients"
    alone, (x, y) = GPT(config), rule_batch(0, size, time, config.vocab)
    want = alone(x)
    lm_loss(want, y).backward()
    grads, out = {n: p.grad for n, p in alone.named_parameters()}, {}
    mesh = init_device_mesh('cpu', (dist.get_world_size(),))
    for mode in modes:
        m = tensor_parallel(GPT(config), mode)
        logits = m(x)
        vocab_parallel_loss(logits, y).backward()
        out[mode] = (
            ((gather(logits.detach(), -1) - want).norm() / want.norm()).item(),
            gradients_apart({n: whole_gradient(p) for n, p in m.named_parameters()}, grads),
        )
    for sp in (False, True):
        m = parallelize(GPT(config), mesh, sp)
        logits = m(x)
        lm_loss(logits, y).backward()
        out[f'dtensor {sp}'] = (
            ((logits.detach() - want).norm() / want.norm()).item(),
            gradients_apart({n: p.grad.full_tensor() for n, p in m.named_parameters()}, grads),
        )
    return out


def _cases(shapes):
    return [_one_case(*s) for s in shapes]


shapes = st.builds(
    lambda head, heads, ffn, layers, vocab, size, time: (
        GPTConfig(layers, head * heads, heads, 32, vocab, ffn),
        size,
        time,
    ),
    st.sampled_from([2, 5, 8]),
    st.sampled_from([4, 8, 12]),
    st.sampled_from([0, 20, 36]),
    st.integers(1, 2),
    st.sampled_from([12, 64, 100]),
    st.integers(1, 3),
    st.sampled_from([4, 8, 20, 32]),
)


@pytest.mark.parametrize('ranks', [1, 2, 4])
@settings(max_examples=3)
@given(st.lists(shapes, min_size=2, max_size=4))
def test_from_scratch_and_dtensor_equal_one_process(ranks, cases):
    for case, got in zip(cases, on_ranks(_cases, ranks, cases, timeout=200)[0]):
        for how, (logits, grads) in got.items():
            assert logits < 1e-5 and grads < 1e-5, (case, how, logits, grads)


def _adam(mode):
    "Losses with AdamW, whose steps also depend on gradients that are nearly zero"
    alone, m = GPT(small), tensor_parallel(GPT(small), mode)
    opts, far = [torch.optim.AdamW(p.parameters(), lr=3e-3) for p in (alone, m)], 0.0
    for s in range(10):
        x, y = rule_batch(s, 4)
        a, b = lm_loss(alone(x), y), vocab_parallel_loss(m(x), y)
        far = max(far, abs((b / a).item() - 1))
        for l, o in zip((a, b), opts):
            o.zero_grad()
            l.backward()
            o.step()
    return far


def test_ten_steps_of_adam_on_four_ranks():
    for mode in modes:
        assert max(on_ranks(_adam, 4, mode)) < 1e-5


@pytest.mark.parametrize('mode', ['sequence'])
def test_gpt_tiny_on_eight_ranks_in_double_precision(mode):
    "Eight layers, one head a rank; in single precision the tiny gradients of the queries are mostly rounding"
    for r in on_ranks(_double, 8, mode, timeout=200):
        assert r['loss'] < 1e-11 and r['gradient'] < 1e-11, r


def _double(mode):
    return compare_training(
        lambda m: (tensor_parallel(m, mode), vocab_parallel_loss),
        gpts['gpt-tiny'],
        whole_gradient,
        dtype=torch.float64,
        steps=4,
    )


def test_gpt_tiny_loss_in_single_precision():
    assert on_ranks(compare_torch, 4, 'gpt-tiny', timeout=200)[0]['loss'] < 1e-5


def _groups():
    "Two replicas of two: our layers on a process group of their own, gradients averaged over the other"
    r = dist.get_rank()
    tp = [dist.new_group(g) for g in ([0, 1], [2, 3])][r // 2]
    dp = [dist.new_group(g) for g in ([0, 2], [1, 3])][r % 2]

    def whole(p):
        p.grad = total(p.grad, dp) / 2
        return whole_gradient(p, tp)

    def mean(l):
        return total(l, dp).item() / 2

    return compare_training(
        lambda m: (tensor_parallel(m, 'regather', tp), lambda z, t: vocab_parallel_loss(z, t, tp)),
        small,
        whole,
        share=lambda t: t.chunk(2)[r // 2],
        seen=mean,
    )


def test_with_data_parallelism_on_groups():
    for r in on_ranks(_groups, 4):
        assert r['loss'] < 1e-5 and r['gradient'] < 1e-5, r


@pytest.mark.parametrize('cut', [False, True])
def test_with_fully_shard_on_a_mesh_of_two_by_two(cut):
    for r in on_ranks(compare_torch, 4, small, cut, cut, 2, timeout=200):
        assert r['loss'] < 1e-5 and r['gradient'] < 1e-5, r


def _losses(scale, vocab, shape):
    torch.manual_seed(0)
    n, r = dist.get_world_size(), dist.get_rank()
    z, t = (torch.randn(*shape, vocab) * scale).requires_grad_(), torch.randint(0, vocab, shape)
    want = torch.nn.functional.cross_entropy(z.flatten(0, 1), t.flatten())
    want.backward()
    own = z.detach().chunk(n, -1)[r].clone().requires_grad_()
    got = vocab_parallel_loss(own, t)
    got.backward()
    return abs(got.item() - want.item()) / max(abs(want.item()), 1e-3), (
        own.grad - z.grad.chunk(n, -1)[r]
    ).abs().max().item() / z.grad.abs().max().clamp(min=1e-9).item()


@pytest.mark.parametrize('ranks', [1, 2, 4])
@pytest.mark.parametrize('scale', [0, 1e-3, 1, 1e4])
def test_vocab_parallel_loss(ranks, scale):
    for loss, grad in on_ranks(_losses, ranks, scale, 64, (3, 7)):
        assert loss < 1e-5 and grad < 1e-5


def _bad_target(value):
    t = torch.zeros(2, 3, dtype=torch.long)
    t[1, 1] = value
    vocab_parallel_loss(torch.zeros(2, 3, 8), t)


@pytest.mark.parametrize('value', [-100, -1, 16])
def test_no_target_is_ignored(value):
    with pytest.raises(RankError, match=f'target {value} is not in a vocabulary of 16'):
        on_ranks(_bad_target, 2, value)


def owners():
    n = torch.arange(12)
    local, mine = _owned(n, 6, None)
    return mine.sum().item(), local[mine].tolist()


def test_every_token_has_one_owner():
    assert on_ranks(owners, 2) == [(6, list(range(6)))] * 2


def _biases():
    "A row-parallel layer adds its bias once; layers without bias work"
    torch.manual_seed(0)
    x, whole, bare = torch.randn(2, 4, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False)
    zero = RowParallel(whole)(torch.zeros(2, 4, 8 // dist.get_world_size()))
    pair = RowParallel(bare)(ColumnParallel(bare)(x))
    return (zero - whole.bias).abs().max().item(), (pair - bare(bare(x))).abs().max().item()


def test_biases():
    for zero, pair in on_ranks(_biases, 4):
        assert zero == 0 and pair < 1e-5


def _build(config, time, how):
    mesh, x = init_device_mesh('cpu', (dist.get_world_size(),)), torch.zeros(1, time, dtype=torch.long)
    (parallelize(GPT(config), mesh) if how == 'dtensor' else tensor_parallel(GPT(config), 'sequence'))(x)


@pytest.mark.parametrize('how', ['scratch', 'dtensor'])
@pytest.mark.parametrize(
    'config, time, message',
    [
        (GPTConfig(1, 48, 6, 32), 8, r'heads 6 cannot be divided by tp=4 \(a head is never split\)'),
        (GPTConfig(1, 64, 1, 32), 8, 'heads 1 cannot'),
        (GPTConfig(1, 64, 4, 32, ffn=250), 8, 'ffn width 250 cannot'),
        (GPTConfig(1, 64, 4, 32, vocab=254), 8, 'vocab 254 cannot'),
        (small, 31, 'a sequence of 31 tokens cannot'),
        (small, 2, 'a sequence of 2 tokens cannot'),
    ],
)
def test_hostile_shapes(how, config, time, message):
    with pytest.raises(RankError, match='ValueError: ' + message):
        on_ranks(_build, 4, config, time, how)


def _odd_length():
    return tuple(
        parallelize(GPT(small), init_device_mesh('cpu', (2,)), False)(torch.zeros(1, 31, dtype=torch.long)).shape
    )


def test_without_sequence_parallelism_any_length_will_do():
    assert on_ranks(_odd_length, 2) == [(1, 31, 256)] * 2


def _stage_without_tables():
    "A stage in the middle has no table, so the vocabulary need not be divisible"
    m = parallelize(keep_layers(GPT(GPTConfig(3, 64, 4, 32, vocab=255)), 1, 2), init_device_mesh('cpu', (2,)))
    return tuple(m(torch.randn(2, 8, 64)).shape), sorted({n.split('.')[0] for n, _ in m.named_parameters()})


def test_a_stage_without_tables():
    assert on_ranks(_stage_without_tables, 2)[0] == ((2, 8, 64), ['layers'])


def _wrong(what):
    if what == 'mode':
        tensor_parallel(GPT(small), 'sequense')
    else:
        parallelize(GPT(small), init_device_mesh('cpu', (1, 2), mesh_dim_names=('dp', 'tp')))


def test_wrong_arguments():
    with pytest.raises(RankError, match="did you mean 'sequence'"):
        on_ranks(_wrong, 2, 'mode')
    with pytest.raises(RankError, match=r"pass mesh\['tp'\]"):
        on_ranks(_wrong, 2, 'mesh')


def _every_parameter():
    m = parallelize(GPT(small), init_device_mesh('cpu', (2,)))
    for s in range(2):
        x, y = rule_batch(s, 4)
        lm_loss(m(x), y).backward()  # gradients accumulate
    alone = GPT(small)
    for s in range(2):
        x, y = rule_batch(s, 4)
        lm_loss(alone(x), y).backward()
    params = dict(m.named_parameters())
    assert list(params) == [n for n, _ in alone.named_parameters()]
    assert all(
        isinstance(p, DTensor)
        and p.grad.placements == p.placements
        and p.shape == q.shape
        and torch.equal(GPT(small).state_dict()[n], p.full_tensor())
        for (n, p), q in zip(params.items(), alone.parameters())
    )
    return gradients_apart(
        {n: p.grad.full_tensor() for n, p in params.items()}, {n: p.grad for n, p in alone.named_parameters()}
    )


def test_every_parameter_is_a_dtensor_with_its_name_and_gradients_accumulate():
    assert max(on_ranks(_every_parameter, 2)) < 1e-5


def _checkpoint(folder, write):
    m = parallelize(GPT(small, seed=1 if write else 2), init_device_mesh('cpu', (dist.get_world_size(),)), write)
    if write:
        save(m.state_dict(), storage_writer=FileSystemWriter(folder))
    else:
        state = m.state_dict()
        load(state, storage_reader=FileSystemReader(folder))
        m.load_state_dict(state)
    return all(torch.equal(p.full_tensor(), q) for p, q in zip(m.parameters(), GPT(small, seed=1).parameters()))


def test_a_distributed_checkpoint_fits_another_degree(tmp_path):
    assert all(on_ranks(_checkpoint, 4, str(tmp_path), True)) and all(on_ranks(_checkpoint, 2, str(tmp_path), False))


def _stubborn(mode):
    m = tensor_parallel(GPT(small), mode)
    for s in range(1000):
        if s == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        x, y = rule_batch(s, 4)
        vocab_parallel_loss(m(x), y).backward()


def test_a_killed_rank_ends_the_others():
    with pytest.raises(RankError) as e:
        on_ranks(_stubborn, 4, 'sequence', timeout=60)
    assert 'rank' in str(e.value) and not isinstance(e.value, TimeoutError)


@pytest.mark.parametrize('ranks', [2, 4])
def test_bytes_of_a_layer(ranks):
    for got in on_ranks(traffic, ranks, small):
        for mode, b in got.items():
            want = layer_traffic(
                8 * 64, 64, ranks, {'dtensor': 'tensor', 'dtensor sequence': 'sequence'}.get(mode, mode)
            )
            assert b['total'] == pytest.approx(sum(v for _, v in want.values()), rel=0.01), mode
            if mode in modes:
                assert b['calls'] == {c: n for c, (n, _) in want.items()}


def test_one_rank_sends_nothing():
    for mode, b in on_ranks(traffic, 1, small)[0].items():
        assert b['total'] == 0, mode


def test_memory_of_a_layer_on_every_rank():
    one = on_ranks(layer_memory, 1, small)[0]['tensor']
    for got in on_ranks(layer_memory, 4, small):
        assert got['regather']['activations'] == pytest.approx(one['activations'] / 4, rel=0.03)
        assert got['tensor']['activations'] > got['sequence']['activations'] > got['regather']['activations']
        assert len({g['parameters'] for g in got.values()}) == 1


def test_layer_traffic_refuses_nonsense():
    with pytest.raises(ValueError, match='mode'):
        layer_traffic(1, 1, 2, 'tensr')


def _parts():
    p = torch.arange(24.0).view(4, 6)
    return [_part(p, d).shape[d] for d in (0, 1)], _part(None, 0), torch.equal(gather(_part(p, 1).detach(), 1), p)


def test_parts_make_the_whole():
    assert on_ranks(_parts, 2) == [([2, 3], None, True)] * 2


def test_results_are_within_the_bar():
    result = read_results('tensor')
    assert {r['mode'] for r in result['bytes']['rows']} == {*modes, 'dtensor', 'dtensor sequence'}
    for r in result['bytes']['rows']:
        assert abs(r['ratio'] - 1) < 0.01, r
    assert {r['couple'] for r in result['speed']['rows']} == {'tensor', 'sequence'}
