"What reading found: a save that one rank could not begin, lists of splits, logs that nobody closes, memory maps"

import gc
import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.training import runlog, runs
from fsdl_tools.training.archive import CheckpointError, verify_checkpoint
from fsdl_tools.training.checkpoint import Checkpointer
from fsdl_tools.training.corpora import _image_folder
from fsdl_tools.training.data import Tokens, _fixed_random, eval_batches


def saves_of_a_rank(folder):
    "Steps 10, 20, 30; the second rank has no tensor to save at 10 and goes on"
    import torch.distributed as dist

    rank, told, c = dist.get_rank(), [], Checkpointer(folder, timeout=20)
    for step in (10, 20, 30):
        tensors = {f'w{rank}': torch.full((3,), float(step))}
        if rank and step == 10:
            tensors = dict(w1=1.5)
        try:
            c.save(step, tensors, wait=True)
            told.append('saved')
        except Exception as e:
            told.append(type(e).__name__)
    found = {f'w{r}': torch.zeros(3) for r in range(2)}
    c.load(found, 30)
    return told, c.steps(), [f[0] for f in c.failed], sorted(t.tolist() for t in found.values())


def test_a_save_that_one_rank_could_not_begin_fails_on_all(tmp_path):
    first, second = on_ranks(saves_of_a_rank, 2, tmp_path, timeout=120)
    assert first[0][1:] == second[0][1:] == ['saved', 'saved'] and first[0][0] == 'CheckpointError' != second[0][0]
    assert first[1] == [20, 30] and first[2] == second[2] == [10] and first[3] == [[30.0] * 3] * 2
    assert all(not verify_checkpoint(path) for path in tmp_path.glob('step-*'))


def different_steps(folder):
    import torch.distributed as dist

    c = Checkpointer(folder, timeout=20)
    try:
        c.save(5 + dist.get_rank(), dict(w=torch.zeros(2)), wait=True)
    except CheckpointError as e:
        return str(e), c.steps()


def test_ranks_that_save_different_steps_save_none(tmp_path):
    for said, steps in on_ranks(different_steps, 2, tmp_path, timeout=120):
        assert 'rank 0 saves step 5' in said and 'rank 1 saves step 6' in said and steps == []


@pytest.mark.parametrize('flat', [('train', 'test'), ('train', 'val', 'extra'), ('Train', 'Validation')])
def test_splits_are_no_classes(tmp_path, flat):
    for name in flat:
        (tmp_path / name).mkdir()
        Image.new('RGB', (8, 8)).save(tmp_path / name / 'a.jpg')
    with pytest.raises(ValueError, match='are named like splits'):
        _image_folder(tmp_path)


class Numbers:
    def __len__(self):
        return 60

    def sample(self, i, epoch=0):
        return torch.tensor([float(i)]), torch.tensor(i // 20)


@pytest.mark.parametrize('limit', [1, 3, 20, 59, 60, 100, None])
def test_an_evaluation_of_some_samples_sees_all_of_the_data(limit):
    seen = [int(x) for xs, _, weights in eval_batches(Numbers(), 7, limit=limit) for x, w in zip(xs, weights) if w]
    n = min(limit or 60, 60)
    assert len(set(seen)) == len(seen) == n and seen == sorted(seen)
    assert n < 3 or {i // 20 for i in seen} == {0, 1, 2}


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', '<i4', 'int64'])
@pytest.mark.parametrize('start, offset', [(0, 0), (100, 0), (0, 16), (7, 5000)])
def test_a_memory_map_arrives_as_it_was_sent(tmp_path, dtype, start, offset):
    kind = np.dtype(dtype)
    offset -= offset % kind.itemsize
    (np.arange(9000) % 251).astype(kind).tofile(tmp_path / 'a.bin')
    row = np.memmap(tmp_path / 'a.bin', kind, 'r', offset)[start:]
    sent = Tokens('t', row, 8, 300)
    text = pickle.dumps(sent)
    got = pickle.loads(text)
    assert len(text) < 400 and np.array_equal(got.tokens, row) and len(got) == len(sent)
    assert torch.equal(got.sample(3)[0], sent.sample(3)[0])


def test_samples_leave_the_random_numbers_of_a_gpu_alone(monkeypatch):
    def never(*a):
        raise AssertionError('a GPU was seeded')

    monkeypatch.setattr(torch.cuda, 'manual_seed_all', never)
    before = torch.get_rng_state()
    with _fixed_random(1, 2):
        first = torch.rand(3)
    with _fixed_random(1, 2):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_log_that_nobody_holds_is_written(tmp_path):
    def train():
        log = runlog.start_run(tmp_path, packages=False)
        for i in range(100):
            log.log(dict(loss=float(i)))
        return log.folder

    folder = train()
    gc.collect()
    run = runs.read_log(folder)
    assert run.metrics['loss'].values == list(map(float, range(100))) and run.status == 'exited'


def test_a_full_buffer_leaves_room_for_the_end(tmp_path, monkeypatch):
    log = runlog.start_run(tmp_path, packages=False)
    write = os.write
    monkeypatch.setattr(os, 'write', lambda fd, data: (_ for _ in ()).throw(OSError(28, 'No space left')))
    with pytest.warns(RuntimeWarning, match='cannot be written'):
        while log.dropped < 1000:
            log.log(dict(loss=1.0))
    monkeypatch.setattr(os, 'write', write)
    log.tag(x='y')
    log.finish()
    run = runs.read_log(log.folder)
    assert run.status == 'finished' and run.tags['x'] == 'y'
    last = json.loads((log.folder / 'log.jsonl').read_text().splitlines()[-1])
    assert last['dropped'] == log.dropped >= 1000
