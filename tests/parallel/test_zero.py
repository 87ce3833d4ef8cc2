"""ZeRO, FSDP2 and checkpoints on several ranks."""

import json
from pathlib import Path
import pytest
import torch
from torch import nn
from fsdl_tools.core import read_results
from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.parallel.ddp import train_ranks
from fsdl_tools.parallel.shares import sync_batchnorm
from fsdl_tools.models.tiny import (
    share,
    tiny_batch,
    tiny_loss,
    tiny_model,
    tiny_names,
    train_batches,
    train_alone,
    adamw,
    worst,
)
from fsdl_tools.environments import run_in
from fsdl_tools.parallel.zero import Zero1, Zero2, Zero3, accounted, zero_memory, zeros
from fsdl_tools.parallel.zero_libraries import ddp, fsdp, zero_redundancy
from fsdl_tools.parallel.units import units_of
from fsdl_tools.testing import differences
from fsdl_tools.parallel.zero_libraries import _deepspeed_config, shards
from fsdl_tools.training.checkpoint import Checkpointer


@pytest.mark.parametrize('ranks', [1, 2, 4, 8])
def test_every_stage_equals_one_process(ranks):
    names = tiny_names if ranks < 8 else ['mlp', 'gpt']
    for row in differences({f'Zero{s}': (z, adamw) for s, z in zeros.items()}, ranks, names):
        assert all(row[n] < 1e-6 for n in names), row


def test_sgd_with_momentum_equals_one_process():
    for row in differences({f'Zero{s}': (z, None) for s, z in zeros.items()}, 2):
        assert all(row[n] < 1e-6 for n in tiny_names), row


def test_torchs_own_equal_one_process_on_four_ranks():
    for row in differences({'fully_shard': (fsdp, adamw), 'ZeroRedundancyOptimizer': (ddp, zero_redundancy)}, 4):
        assert all(row[n] < 1e-6 for n in tiny_names), row


@pytest.mark.parametrize('name', ['mlp', 'cnn', 'gpt'])
@pytest.mark.parametrize('ranks', [2, 4])
def test_bytes_held_by_rank(name, ranks):
    sizes = [sum(p.numel() for p in ps) for _, ps in units_of(tiny_model(name))]
    part, full = 4 * sum(-(-s // ranks) for s in sizes), 4 * sum(-(-s // ranks) * ranks for s in sizes)
    for stage in zeros:
        for book in on_ranks(accounted, ranks, stage, name):
            assert book['parameters'] == (part if stage == 3 else full)
            assert book['gradients'] == (part if stage >= 2 else full)
            assert book['optimizer'] == 2 * part


def test_one_rank_sends_nothing():
    for stage in zeros:
        assert on_ranks(accounted, 1, stage)[0]['sent'] == 0


def _after_eval():
    "Evaluation between steps must see the newest weights and leave training as it was"
    out = []
    for z in zeros.values():
        m = z(tiny_model('mlp'))
        opt = adamw(m.parameters())
        for s in range(3):
            b = share(tiny_batch('mlp', 16, s))
            tiny_loss(m, b).backward()
            opt.step()
            opt.zero_grad()
            with torch.no_grad():
                out.append(tiny_loss(m, tiny_batch('mlp', 16, 99)).item())
    return out


def test_evaluation_between_steps():
    m = tiny_model('mlp')
    opt, wanted = adamw(m.parameters()), []
    for s in range(3):
        tiny_loss(m, tiny_batch('mlp', 16, s)).backward()
        opt.step()
        opt.zero_grad()
        with torch.no_grad():
            wanted.append(tiny_loss(m, tiny_batch('mlp', 16, 99)).item())
    assert worst(on_ranks(_after_eval, 2)[0], wanted * 3) < 1e-6


def _frozen():
    m = tiny_model('mlp')
    for p in m[0].parameters():
        p.requires_grad_(False)
    try:
        z = Zero3(m)
    except Exception as e:
        return f'{type(e).__name__}: {e}'
    opt = adamw(z.parameters())
    return train_batches(z, [share(tiny_batch('mlp', 16, s)) for s in range(5)], opt)


def test_frozen_parameters_stay_and_are_not_sharded():
    m = tiny_model('mlp')
    for p in m[0].parameters():
        p.requires_grad_(False)
    wanted = train_batches(
        m,
        [tiny_batch('mlp', 16, s) for s in range(5)],
        adamw([p for p in m.parameters() if p.requires_grad]),
        average=False,
    )
    assert worst(on_ranks(_frozen, 2)[0], wanted) < 1e-6


def _steps(folder, first, last, name='gpt', stage=3):
    model = zeros[stage](
        sync_batchnorm(tiny_model(name, seed=first))
    )  # other weights: the checkpoint has to bring its own
    opt, saver = adamw(model.parameters()), Checkpointer(folder)
    if first:
        saver.load(shards(model, opt))
    out = (
        train_batches(model, [share(tiny_batch(name, 12, s)) for s in range(first, last)], opt) if last > first else []
    )
    if not first:
        saver.save(last, shards(model, opt), wait=True)
    return out, {n: b.tolist() for n, b in model.module.named_buffers()}


@pytest.mark.parametrize('stage, name', [(1, 'mlp'), (2, 'gpt'), (3, 'cnn')])
def test_checkpoint_on_other_numbers_of_ranks(tmp_path, stage, name):
    (start, _), alone = on_ranks(_steps, 4, tmp_path, 0, 10, name, stage)[0], train_alone(name, size=12, make=adamw)
    for ranks in (1, 2, 3):
        rest, _ = on_ranks(_steps, ranks, tmp_path, 10, 20, name, stage)[0]
        assert worst(start + rest, alone) < 1e-6


def test_running_statistics_are_in_the_checkpoint(tmp_path):
    saved = on_ranks(_steps, 2, tmp_path, 0, 3, 'cnn')[0][1]
    assert saved and on_ranks(_steps, 1, tmp_path, 3, 3, 'cnn')[0][1] == saved


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    on_ranks(_steps, 2, tmp_path, 0, 2, 'mlp')
    with pytest.raises(RuntimeError, match='does not fit'):
        on_ranks(_steps, 2, tmp_path, 2, 3, 'gpt')


def test_a_truncated_shard_is_refused(tmp_path):
    on_ranks(_steps, 2, tmp_path, 0, 2, 'mlp')
    shard = next(tmp_path.glob('step-*/*.safetensors'))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(RuntimeError, match='no good checkpoint'):
        on_ranks(_steps, 2, tmp_path, 2, 3, 'mlp')


def test_zero_memory_refuses_nonsense():
    with pytest.raises(ValueError, match='ZeRO stage'):
        zero_memory(1e9, 4, 4)
    with pytest.raises(ValueError, match='ranks'):
        zero_memory(1e9, 0, 1)


def test_results_are_within_the_bar():
    result = read_results('sharded')
    assert {r['strategy'] for r in result['deepspeed']['rows']} >= {f'stage {s}' for s in range(4)}
    assert all(r['difference'] < 1e-6 for r in result['deepspeed']['rows'])


@pytest.mark.timeout(900)
def test_deepspeed_and_fairscale(side):
    side('sharding')
    for r in run_in(
        'sharding',
        'fsdl_tools.parallel.zero_libraries:run_deepspeed',
        dict(ranks=2, models=['mlp'], stages=[0, 1, 2, 3]),
        timeout=500,
    ):
        assert r['difference'] < 1e-6, r
    for r in run_in('sharding', 'fsdl_tools.parallel.zero_libraries:run_fairscale', dict(ranks=2, models=['mlp'])):
        assert r['strategy'] == 'ShardedDDP' or r['difference'] < 1e-6, r
