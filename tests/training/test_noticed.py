"What reading found: saves and loads that one rank cannot begin, runs that go back, splits, logs, memory maps"

import argparse
import contextlib
import gc
import importlib
import json
import os
import pickle
import signal
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fsdl_tools.parallel.ranks import RankError, on_ranks
from fsdl_tools.training import runlog, runs
from fsdl_tools.training.archive import CheckpointError, lineage, saved_order, sealed, step_folder, verify_checkpoint
from fsdl_tools.training.checkpoint import Checkpointer
from fsdl_tools.training.corpora import _image_folder
from fsdl_tools.training.custom import _fixed_random, call_factory
from fsdl_tools.training.data import Tokens, _told, eval_batches


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


def loads_of_a_rank(folder, wrong):
    "What is said when the second rank asks for something that cannot be filled, and whether all goes on afterwards"
    import torch.distributed as dist

    rank, c = dist.get_rank(), Checkpointer(folder, timeout=30)
    c.save(1, {f'w{rank}': torch.full((3,), float(rank + 1))}, dict(at=1), wait=True)
    asked, step = {'w0': torch.zeros(3)}, 1
    if rank and wrong in ('meta', 'number', 'name'):
        asked = dict(meta={'w0': torch.zeros(3, device='meta')}, number={'w0': 3}, name={1: torch.zeros(3)})[wrong]
    if rank and wrong in ('other', 'latest', 'text'):
        step = dict(other=2, latest=None, text='1')[wrong]
    begun = time.monotonic()
    try:
        said = c.load(asked, step)
    except Exception as e:
        said = f'{type(e).__name__}: {e}'
    waited = time.monotonic() - begun
    got = {'w0': torch.zeros(3), 'w1': torch.zeros(3)}
    c.save(2, {f'w{rank}': torch.full((3,), 7.0)}, wait=True)
    return said, waited < 15, c.load(got, 1), [t.tolist() for t in got.values()], c.latest()


@pytest.mark.parametrize(
    'wrong, first, second',
    [
        ('meta', "CheckpointError: nothing was loaded: rank 1: ValueError: 'w0' is on the meta device", 'ValueError'),
        ('number', "CheckpointError: nothing was loaded: rank 1: TypeError: 'w0' is a int", 'TypeError'),
        ('name', 'CheckpointError: nothing was loaded: rank 1: ValueError: 1 cannot be the name', 'ValueError'),
        ('other', 'rank 0 asks for step 1; rank 1 asks for step 2', 'CheckpointError'),
        ('latest', 'rank 0 asks for step 1; rank 1 asks for step None', 'CheckpointError'),
        ('text', "rank 1: ValueError: step must be a whole number from 0, not '1'", 'ValueError'),
    ],
)
def test_a_load_that_one_rank_cannot_begin_fails_on_all(tmp_path, wrong, first, second):
    one, two = on_ranks(loads_of_a_rank, 2, tmp_path, wrong, timeout=120)
    assert first in one[0] and two[0].startswith(second + ': ')
    assert one[1:] == two[1:] == (True, (1, dict(at=1)), [[1.0] * 3, [2.0] * 3], 2)


def dies_while_it_reads(folder):
    "The second rank is killed when all have agreed on what to load; the first says what it has heard"
    import torch.distributed as dist

    from fsdl_tools.training import checkpoint

    rank, c = dist.get_rank(), Checkpointer(folder, timeout=60)
    c.save(1, dict(w=torch.ones(3)), wait=True)
    if rank:
        checkpoint.fill_tensors = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
    try:
        c.load(dict(w=torch.zeros(3)))
    except CheckpointError as e:
        (folder.parent / 'heard').write_text(str(e))


def test_a_rank_that_dies_while_it_loads_is_told_of(tmp_path):
    with pytest.raises(RankError, match='SIGKILL'):
        on_ranks(dies_while_it_reads, 2, tmp_path / 'run', timeout=120)
    assert 'rank 0 has lost another rank' in (tmp_path / 'heard').read_text()


def goes_back(folder, keep):
    "Steps 10 and 20, then back to 10: what is there and what is the latest after each save, on every rank"
    import torch.distributed as dist

    rank, seen = dist.get_rank(), []
    tensors = lambda value: {f'w{rank}': torch.full((3,), float(value))}
    c = Checkpointer(folder, keep, timeout=30)
    for step in (10, 20):
        c.save(step, tensors(step), wait=True)
    c = Checkpointer(folder, keep, timeout=30)
    c.load(tensors(0), 10)
    for step in (12, 20):
        seen.append((c.latest(), c.steps()))
        c.save(step, tensors(step + 100), wait=True)
    seen.append((c.latest(), c.steps()))
    c.load(got := tensors(0))
    return seen, got[f'w{rank}'].tolist()


@pytest.mark.parametrize(
    'keep, middle, last', [(1, [12], [20]), (2, [10, 12], [12, 20]), (3, [10, 12, 20], [10, 12, 20])]
)
def test_a_run_that_goes_back_leaves_its_abandoned_future(tmp_path, keep, middle, last):
    folder = tmp_path / 'run'
    if keep == 1:  # step 10 is gone by then
        c = Checkpointer(folder, 2)
        c.save(10, dict(w=torch.ones(2)), wait=True)
        c.save(20, dict(w=torch.ones(2)), wait=True)
        c = Checkpointer(folder, 1)
        c.load(dict(w=torch.ones(2)), 10)
        c.save(12, dict(w=torch.ones(2)), wait=True)
        assert (c.latest(), c.steps()) == (12, middle)
        return
    for seen, got in on_ranks(goes_back, 2, folder, keep, timeout=120):
        assert got == [120.0] * 3
        assert seen == [(20, [10, 20]), (12, middle), (20, last)]


def at(folder, *steps, keep=9):
    c = Checkpointer(folder, keep)
    for step in steps:
        c.save(step, dict(w=torch.full((3,), float(step))), wait=True)
    return c


def spoil(folder, step):
    shard = next((folder / step_folder(step)).glob('shard-*'))
    shard.write_bytes(shard.read_bytes()[:-1] + b'x')


def latest(c):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return c.latest()


def test_when_the_newest_is_broken_the_one_before_it_in_the_run_is_taken(tmp_path):
    c = at(tmp_path, 10, 20)
    c.load(dict(w=torch.zeros(3)), 10)
    c.save(12, dict(w=torch.zeros(3)), wait=True)
    spoil(tmp_path, 12)
    assert latest(c) == latest(Checkpointer(tmp_path)) == 10
    spoil(tmp_path, 10)
    assert latest(c) == 20  # better than none
    c.load(dict(w=torch.zeros(3)), 20)
    c.save(30, dict(w=torch.zeros(3)), wait=True)
    assert saved_order(tmp_path) == [30, 20, 10, 12] and len(lineage(tmp_path, 30)) == 3


def test_a_step_that_the_run_has_passed_is_not_written_again(tmp_path):
    c = at(tmp_path, 10, 20)
    for again in (10, 20):
        with pytest.raises(CheckpointError, match='is there already, and it is good'):
            c.save(again, dict(w=torch.zeros(3)), wait=True)
    with pytest.raises(CheckpointError, match='is there already, and it is good'):  # it does not know what that is
        Checkpointer(tmp_path, 9).save(20, dict(w=torch.zeros(3)), wait=True)


def test_a_link_in_the_place_of_a_step_is_not_replaced(tmp_path):
    c, elsewhere = at(tmp_path / 'run', 10), at(tmp_path / 'other', 20)
    (tmp_path / 'run' / step_folder(20)).symlink_to(elsewhere.folder / step_folder(20))
    with pytest.raises(CheckpointError, match='step-00000020 is there already, and it is good'):
        c.save(20, dict(w=torch.zeros(3)), wait=True)
    assert c.steps() == [10] and elsewhere.latest() == 20


def test_a_new_start_in_a_used_folder_is_what_the_next_start_goes_on_from(tmp_path):
    at(tmp_path, 10, 20)
    c = at(tmp_path, 5)
    assert c.latest() == 5 and saved_order(tmp_path) == [5, 20, 10]
    assert at(tmp_path, 6, keep=2).steps() == [5, 6]


def test_checkpoints_of_before_that_say_nothing_of_their_place_go_by_their_step(tmp_path):
    at(tmp_path, 10, 20, 30)
    for step in (10, 20, 30):
        file = tmp_path / step_folder(step) / 'manifest.json'
        said = json.loads(file.read_text())
        file.write_text(json.dumps(sealed({k: v for k, v in said.items() if k not in ('seal', 'number', 'after')})))
    assert saved_order(tmp_path) == [30, 20, 10]
    c = Checkpointer(tmp_path, 9)
    c.load(dict(w=torch.zeros(3)), 10)
    c.save(12, dict(w=torch.zeros(3)), wait=True)
    assert saved_order(tmp_path) == [12, 10, 30, 20] and c.latest() == 12


@pytest.mark.parametrize(
    'place',
    [
        dict(number='x'),
        dict(number=True),
        dict(after=3),
        dict(number=None, after=None),
        dict(after=[[], {}, None, 'x']),
    ],
)
def test_what_a_manifest_says_of_its_place_cannot_harm(tmp_path, place):
    c = at(tmp_path, 10, 20)
    file = tmp_path / step_folder(20) / 'manifest.json'
    file.write_text(json.dumps(sealed(json.loads(file.read_text()) | place)))
    assert saved_order(tmp_path) == [20, 10] and c.latest() == 20
    c.save(30, dict(w=torch.zeros(3)), wait=True)
    assert c.latest() == 30 and saved_order(tmp_path)[0] == 30


def test_the_highest_number_is_what_others_go_by(tmp_path):
    from_hub = pytest.importorskip('transformers.trainer_utils')
    for step in (10, 20, 12):
        (tmp_path / f'checkpoint-{step}').mkdir()
    assert from_hub.get_last_checkpoint(str(tmp_path)).endswith('checkpoint-20')


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


@pytest.mark.parametrize(
    'made, says',
    [
        ('def f(seed, /, size=3): return [(1, 2)] * size', 'odd_made:f takes seed by place only'),
        ('class f(dict): pass', 'odd_made:f does not say what parameters it has'),
        ('def f(seed, root): return []', 'odd_made:f needs root; what it can have by name: seed'),
    ],
)
def test_a_factory_that_cannot_be_called_by_names_is_told_of(tmp_path, monkeypatch, made, says):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'odd_made', raising=False)
    (tmp_path / 'odd_made.py').write_text(made + '\n')
    with pytest.raises(TypeError, match=says):
        call_factory('odd_made:f', seed=1)
    (tmp_path / 'odd_made.py').write_text('def f(n=2, /, seed=0): return [(n, seed)]\n')
    monkeypatch.delitem(sys.modules, 'odd_made')
    importlib.invalidate_caches()
    assert call_factory('odd_made:f', seed=1) == [(2, 1)]


@pytest.mark.parametrize(
    'error, kind',
    [
        (EOFError(), RuntimeError),
        (ConnectionResetError(104, 'reset by peer'), RuntimeError),
        (EOFError('Caught EOFError in DataLoader worker process 0.\nOriginal Traceback …'), EOFError),
        (OSError('a disk'), OSError),
    ],
)
def test_a_worker_that_dies_is_one_kind_of_error(error, kind):
    def loader():
        yield 1
        raise error

    batches = _told(loader())
    assert next(batches) == 1
    with pytest.raises(kind) as e:
        next(batches)
    assert type(e.value) is kind and (kind is not RuntimeError or 'worker that reads ahead has died' in str(e.value))


@pytest.mark.parametrize('since', [0, 1.7e15])
def test_a_trace_may_count_from_any_moment(since):
    "PyTorch before 2.4 wrote microseconds since 1970, next to which a thousandth of one vanishes"
    from fsdl_tools.core import data_path
    from fsdl_tools.training.traces import gpu_parts, read_trace

    events = read_trace(data_path('results/gpu_trace.json.gz'))
    want = gpu_parts(events)
    found = gpu_parts([e | dict(ts=e['ts'] + since) if 'ts' in e else e for e in events])
    assert found.busy.keys() == want.busy.keys()
    for part, microseconds in want.busy.items():
        assert found.busy[part] == pytest.approx(microseconds, rel=0.02)
    assert (found.attention, found.again) == (
        pytest.approx(want.attention, rel=0.02),
        pytest.approx(want.again, rel=0.02),
    )
