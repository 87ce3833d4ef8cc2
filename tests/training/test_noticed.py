"What reading found: a save that one rank could not begin, lists of splits, logs that nobody closes, memory maps"

import argparse
import contextlib
import gc
import json
import os
import pickle
import sys

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


def run_of(folder, **given):
    "The log of a run without its packages"
    return runlog.start_run(folder, packages=False, **given)


def test_keys_in_the_options_of_argparse_are_masked(tmp_path):
    key = 'hf_' + 'a1' * 10
    options = argparse.Namespace(hf_token=key, password='hunter2', lr=0.1, more=argparse.Namespace(key=key))
    with run_of(tmp_path, params=options) as log:
        log.log_params(options)
        log.log_params(dict(options=options))
    text = (log.folder / 'log.jsonl').read_text()
    assert key not in text and 'hunter2' not in text
    assert runs.read_log(log.folder).params['lr'] == 0.1 and vars(options)['hf_token'] == key


@pytest.mark.parametrize('given', [None, 3, 'ab', [1, 2], [('a', 1)], {'a'}, dict])
def test_what_has_no_names_is_refused(tmp_path, given):
    with run_of(tmp_path) as log:
        for call in (log.log, log.log_params):
            with pytest.raises(TypeError, match='must be a dict from names to values, not '):
                call(given)
        log.log(dict(a=1), 0)
    for word in ('params', 'tags') if given else ():
        with pytest.raises(TypeError, match=f'{word} must be a dict'):
            run_of(tmp_path, **{word: given})
    assert len(list(tmp_path.iterdir())) == 1 and runs.read_log(log.folder).points() == 1


@pytest.mark.parametrize('value', [None, 'x', 1j, dict(b=1), np.zeros(3), torch.zeros(2), 2**10001])
def test_what_is_no_number_is_named(tmp_path, value):
    with run_of(tmp_path) as log:
        with pytest.raises(ValueError, match='^loss: .* is not one number'):
            log.log(dict(good=1.0, loss=value), 0)
        with pytest.raises(ValueError, match='^step: ') if value is not None else contextlib.nullcontext():
            log.log(dict(good=1.0), value)


@pytest.mark.parametrize('step', [float('nan'), float('inf'), np.float64('nan'), torch.tensor(float('-inf')), 'NaN'])
def test_a_step_is_finite(tmp_path, step):
    with run_of(tmp_path) as log:
        with pytest.raises(ValueError, match='a step is a finite number'):
            log.log(dict(loss=1.0), step)
        log.log(dict(loss=1.0))
    assert runs.read_log(log.folder).metrics['loss'].steps == [0]


@pytest.mark.parametrize('given', [None, 3, 1.5, b'abc', ['f']])
def test_an_artifact_is_a_path(tmp_path, given):
    with run_of(tmp_path) as log:
        with pytest.raises(TypeError, match='an artifact is the path of a file, not '):
            log.artifact(given)
        with pytest.raises(ValueError, match='is not a file'):
            log.artifact(tmp_path)
        with pytest.raises(TypeError, match='a figure of matplotlib is wanted'):
            log.figure('x', given)
        log.log(dict(a=1), 0)
    assert runs.read_log(log.folder).points() == 1


def test_numbers_of_numpy_and_torch_are_numbers_in_parameters_and_steps(tmp_path):
    (tmp_path / 'f').write_text('content')
    given = dict(lr=np.float32(0.5), n=np.int64(3), on=np.bool_(True), t=torch.tensor(2), many=[np.float64(1.5)])
    with run_of(tmp_path, params=given, name=7) as log:
        log.artifact(tmp_path / 'f', 12, step=np.int64(4))
    run = runs.read_log(log.folder)
    assert run.params == dict(lr=0.5, n=3, on=True, t=2, many=[1.5]) and run.params['on'] is True
    assert (run.name, run.artifacts[0].name, run.artifacts[0].step) == ('7', '12', 4)


@pytest.mark.parametrize('bad', ['"low"', 'null', '[1]', '{}'])
@pytest.mark.parametrize('where', ['value', 'second', 'step', 'time'])
def test_a_line_that_is_left_out_leaves_nothing(tmp_path, bad, where):
    with run_of(tmp_path) as log:
        log.log(dict(a=1.0, b=2.0), 0)
    said = dict(value='7.5', second='8.5', step='1', time='2.5') | {where: bad}
    if (where, bad) == ('step', 'null'):
        return
    line = '{"t": %(time)s, "step": %(step)s, "m": {"a": %(value)s, "b": %(second)s}}\n' % said
    path = log.folder / 'log.jsonl'
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join([*lines[:2], line, *lines[1:]]))
    run = runs.read_log(path)
    for name, value in dict(a=1.0, b=2.0).items():
        s = run.metrics[name]
        assert (s.steps, s.values, len(s.times)) == ([0, 0], [value, value], 2)
    assert len(run.warnings) == 1 and 'a line was left out' in run.warnings[0]


def test_a_reader_says_how_many_lines_a_full_disk_took(tmp_path, monkeypatch):
    log = run_of(tmp_path)
    log.most = 500
    write = os.write
    monkeypatch.setattr(os, 'write', lambda fd, data: (_ for _ in ()).throw(OSError(28, 'No space left')))
    with pytest.warns(RuntimeWarning, match='cannot be written'):
        while log.dropped < 5:
            log.log(dict(loss=1.0))
            log.flush()
    monkeypatch.setattr(os, 'write', write)
    log.finish()
    assert any('5 lines are missing' in text for text in runs.read_log(log.folder).warnings)


def test_without_locks_nothing_is_said_to_be_killed(tmp_path, monkeypatch):
    log = run_of(tmp_path)
    path = log.folder / 'log.jsonl'
    assert runs.read_log(path).status == 'running'

    def refuse(*a):
        raise OSError(95, 'Operation not supported')

    with monkeypatch.context() as m:
        m.setattr('fcntl.flock', refuse)
        assert runs.alive(path) is None and runs.read_log(path).status == ''
    with monkeypatch.context() as m:
        m.setitem(sys.modules, 'fcntl', None)
        assert runs.alive(path) is None and runs.read_log(path).status == ''
    log.finish()
