"""Packed pictures: nothing lost or repeated for any ranks, workers and restarts; damage is named; a killed writer
leaves nothing
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from fsdl_tools.training.custom import _synthetic_image
from fsdl_tools.training.data import Feed
from fsdl_tools.training.corpora import read_image
from fsdl_tools.training.loaders import (
    ChangedError,
    DamagedError,
    JpegFolder,
    Mapped,
    ahead,
    _page as page,
    batches,
    pack,
    step_part,
    steps_per_epoch,
)

ROOT = Path(__file__).parents[2]


def jpegs(folder, n=24, edge=48):
    for i in range(n):
        f = folder / f'class{i % 3}' / f'{i:03}.jpg'
        f.parent.mkdir(parents=True, exist_ok=True)
        _synthetic_image(i, edge, 0).save(f, quality=90)
    return folder


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return jpegs(tmp_path_factory.mktemp('jpegs'))


@pytest.fixture(scope='module')
def files(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('packs')
    return {kind: Path(pack(source, folder / f'{kind}.pack', kind).path) for kind in ('pixels', 'jpeg')}


# Every sample once


@given(n=st.integers(1, 400), size=st.integers(1, 100), seed=st.integers(0, 5), data=st.data())
def test_each_sample_once_for_any_ranks_and_restarts(n, size, seed, data):
    steps = steps_per_epoch(n, size)
    epoch, seen, step = data.draw(st.integers(0, 2)), [], 0
    while step < steps:  # lives of the run, each with other ranks
        ranks, until = data.draw(st.integers(1, 9)), data.draw(st.integers(step + 1, steps))
        for s in range(step, until):
            parts = [step_part(n, epoch * steps + s, size, r, ranks, seed) for r in range(ranks)]
            assert {e for e, _ in parts} == {epoch}
            lengths = [len(p) for _, p in parts]
            assert max(lengths) - min(lengths) <= 1
            seen += [int(i) for _, p in parts for i in p]
        step = until
    assert sorted(seen) == list(range(n))


def test_order_differs_by_epoch_and_seed():
    row = lambda step, seed: step_part(100, step, 100, seed=seed)[1].tolist()
    assert row(0, 0) != row(1, 0) and row(0, 0) != row(0, 1) and row(0, 0) == row(0, 0)


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_workers_change_nothing(files, workers):
    m = Mapped(files['jpeg'], 32, seed=1)
    got = list(batches(m, 7, rank=1, ranks=2, start=2, stop=9, seed=4, workers=workers))
    for step, (x, y) in zip(range(2, 9), got, strict=True):
        epoch, which = step_part(len(m), step, 7, 1, 2, 4)
        want = Mapped(files['pixels'], 32, seed=1).batch(which, epoch)
        assert torch.equal(x, want[0]) and torch.equal(y, want[1])


reader = '''
import os, sys, time
from fsdl_tools.training.loaders import Mapped, batches, step_part
file, log, start, rank, ranks, size, workers = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
m = Mapped(file, 32)
with open(log, 'a') as out:
    for step, (x, y) in enumerate(batches(m, size, rank, ranks, start, 10_000, workers=workers), start):
        which = step_part(len(m), step, size, rank, ranks)[1]
        assert len(y) == len(which)
        out.write(f"{step} {','.join(map(str, which))}\\n")
        out.flush(); os.fsync(out.fileno())
        time.sleep(.01)
'''


def lines(log):
    "Steps that are on record, whole lines alone"
    text = log.read_text() if log.exists() else ''
    return {int(s): [int(i) for i in w.split(',') if i] for s, w in (line.split(' ') for line in text.split('\n')[:-1])}


def live(file, folder, life, start, ranks, size, workers):
    """One life of a run: some ranks, killed -9 at different times; the steps that all of them have done, and their
    samples
    """
    logs = [folder / f'{life}-{r}' for r in range(ranks)]
    run = [
        subprocess.Popen([sys.executable, '-c', reader, *map(str, (file, logs[r], start, r, ranks, size, workers))])
        for r in range(ranks)
    ]
    end = time.time() + 60
    while not all(len(lines(log)) > 4 for log in logs) and time.time() < end:
        time.sleep(0.02)
    for p in run:
        p.send_signal(signal.SIGKILL)
        p.wait()
    done = [lines(log) for log in logs]
    last = min(max(d) for d in done) + 1  # what a checkpoint after the slowest rank would say
    return last, {s: [i for d in done for i in d[s]] for s in range(start, last)}


def test_kill_9_and_other_ranks_lose_and_repeat_nothing(files, tmp_path):
    size, steps, step, seen, life = 5, steps_per_epoch(24, 5), 0, {}, 0
    for ranks, workers in ((2, 1), (1, 2), (2, 0)):
        step, part = live(files['pixels'], tmp_path, life, step, ranks, size, workers)
        seen, life = seen | part, life + 1
    assert step > 2 * steps and sorted(seen) == list(range(step))
    for epoch in range(step // steps):
        assert sorted(i for s in range(epoch * steps, (epoch + 1) * steps) for i in seen[s]) == list(range(24))


def test_the_trainers_feed_reads_it(files):
    m = Mapped(files['pixels'], 32)
    step = next(iter(Feed(m, 8, 4, start=1, stop=2)))
    assert (
        len(step) == 2
        and step[0][0].shape == (4, 3, 32, 32)
        and step[0][0].dtype == torch.float32
        and step[0][1].dtype == torch.int64
    )


def test_ahead_is_bounded_and_stops(rng):
    begun = []

    def work(i):
        begun.append(i)
        return i

    run = ahead(work, iter(int, 1), workers=2, depth=4)  # without end
    assert [next(run) for _ in range(3)] == [0, 0, 0]
    run.close()
    time.sleep(0.05)
    assert len(begun) <= 3 + 4


# Damage


def all_of(file):
    return [Mapped(file, 32, augment=False).batch(range(24))[0]]


@pytest.mark.parametrize('kind', ['pixels', 'jpeg'])
def test_any_flipped_bit_is_found_or_was_padding(files, kind, tmp_path, rng):
    data, want = files[kind].read_bytes(), all_of(files[kind])
    index = Mapped(files[kind]).index
    places = (
        [rng.randrange(len(data)) for _ in range(30)]
        + [rng.randrange(64) for _ in range(10)]
        + [len(data) - 1 - rng.randrange(400) for _ in range(10)]
    )
    found = 0
    for at in places:
        bad = tmp_path / 'bad.pack'
        bad.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        inside = [i for i, e in enumerate(index) if e['offset'] <= at < e['offset'] + e['length']]
        try:
            assert all(torch.equal(a, b) for a, b in zip(all_of(bad), want)) and not inside
        except DamagedError as e:
            found += 1
            assert 'bad.pack' in str(e)
            if inside:
                assert f'sample {inside[0]} ' in str(e) and Mapped(files[kind]).files[inside[0]] in str(e)
    assert found > 10


@pytest.mark.parametrize('length', [0, 7, page - 1, page, page + 5, 20_000, -1])
def test_a_cut_file_is_not_opened(files, tmp_path, length):
    (tmp_path / 'cut.pack').write_bytes(files['jpeg'].read_bytes()[:length])
    with pytest.raises(DamagedError, match='cut.pack'):
        Mapped(tmp_path / 'cut.pack')


def test_without_checks_damage_is_handed_on(files, tmp_path):
    data, at = bytearray(files['pixels'].read_bytes()), int(Mapped(files['pixels']).index[3]['offset'])
    data[at + 5] ^= 1
    (tmp_path / 'x.pack').write_bytes(data)
    Mapped(tmp_path / 'x.pack', verify=False).batch([3])
    with pytest.raises(DamagedError, match='sample 3 '):
        Mapped(tmp_path / 'x.pack').batch([3])


@pytest.mark.parametrize('how', ['replaced', 'appended', 'touched', 'removed', 'cut'])
def test_a_file_that_changes_is_an_error(files, tmp_path, how):
    file = tmp_path / 'moving.pack'
    file.write_bytes(files['jpeg'].read_bytes())
    m = Mapped(file)
    m.batch([0])
    if how == 'replaced':
        os.replace(shadow(files['pixels'], tmp_path), file)
    if how == 'appended':
        file.open('ab').write(b'x')
    if how == 'touched':
        os.utime(file, ns=(1, 1))
    if how == 'removed':
        file.unlink()
    if how == 'cut':
        os.truncate(file, page)
    with pytest.raises(ChangedError, match='moving.pack'):
        m.batch([1])


def shadow(file, folder):
    other = folder / 'other'
    other.write_bytes(file.read_bytes())
    return other


# The writer


def test_a_killed_writer_leaves_nothing(tmp_path):
    jpegs(tmp_path / 'in', 30)
    (tmp_path / 'out').mkdir()
    code = '''
import sys, time
from fsdl_tools.training import loaders
fast = loaders.read_image
def slow(path):
    time.sleep(.05)
    print('one', flush=True)
    return fast(path)
loaders.read_image = slow
loaders.pack(sys.argv[1], sys.argv[2])
'''
    p = subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path / 'in'), str(tmp_path / 'out' / 'x.pack')],
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(15):
        p.stdout.readline()
    p.send_signal(signal.SIGKILL)
    p.wait()
    p.stdout.close()
    from fsdl_tools.training.loaders import _nameless

    fd = _nameless(tmp_path)
    if fd is None:
        assert not (tmp_path / 'out' / 'x.pack').exists()  # a file system without nameless files keeps a hidden one
    else:
        os.close(fd)
        assert os.listdir(tmp_path / 'out') == []


def test_where_no_file_is_nameless_an_error_leaves_nothing(source, tmp_path, monkeypatch):
    from fsdl_tools.training import loaders

    monkeypatch.setattr(loaders, '_nameless', lambda folder: None)
    (tmp_path / 'in' / 'a').mkdir(parents=True)
    (tmp_path / 'in' / 'a' / 'bad.jpg').write_bytes(b'\xff\xd8 no picture')
    with pytest.raises(ValueError, match='bad.jpg'):
        pack(tmp_path / 'in', tmp_path / 'x.pack')
    assert [p.name for p in tmp_path.iterdir()] == ['in']
    assert pack(source, tmp_path / 'x.pack').images == 24 and len(all_of(tmp_path / 'x.pack')[0]) == 24


def test_an_old_file_stays_until_the_new_one_is_whole(source, files, tmp_path):
    file = tmp_path / 'x.pack'
    file.write_bytes(files['jpeg'].read_bytes())
    (tmp_path / 'in' / 'a').mkdir(parents=True)
    (tmp_path / 'in' / 'a' / 'bad.png').write_bytes(b'')
    with pytest.raises(ValueError):
        pack(tmp_path / 'in', file)
    assert file.read_bytes() == files['jpeg'].read_bytes()


def test_truncated_pictures_are_named_or_counted(source, tmp_path, rng):
    files = sorted(source.rglob('*.jpg'))
    whole = files[0].read_bytes()
    for i in range(4):
        f = tmp_path / 'in' / 'c' / f'{i}.jpg'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(whole if i % 2 else whole[: rng.randrange(2, len(whole) * 3 // 4)])
    with pytest.raises(ValueError, match='0.jpg'):
        pack(tmp_path / 'in', tmp_path / 'x.pack')
    p = pack(tmp_path / 'in', tmp_path / 'x.pack', skip=True)
    assert p.skipped == ['c/0.jpg', 'c/2.jpg'] and p.images == 2 and Mapped(p.path).files == ['c/1.jpg', 'c/3.jpg']


@pytest.mark.parametrize('kind', ['pixels', 'jpeg'])
def test_pictures_of_all_sorts(tmp_path, kind):
    folder = tmp_path / 'in' / 'ä b'
    folder.mkdir(parents=True)
    Image.new('L', (40, 60), 77).save(folder / 'grey.png')
    Image.new('RGBA', (60, 40), (1, 2, 3, 4)).save(folder / 'clear.png')
    Image.new('P', (50, 50)).save(folder / 'palette.gif')
    m = Mapped(pack(tmp_path / 'in', tmp_path / 'x.pack', kind, side=32).path)
    x, y = m.batch(range(3))
    assert x.shape == (3, 3, 32, 32) and m.classes == ['ä b'] and y.tolist() == [0, 0, 0]
    assert abs(int(x[m.files.index('ä b/grey.png'), 0, 5, 5]) - 77) <= 2


def test_pixels_are_the_pictures(source, files):
    m = Mapped(files['pixels'], augment=False)
    assert torch.equal(m.batch([9])[0][0].permute(1, 2, 0), torch.from_numpy(np.array(read_image(source / m.files[9]))))
    assert m.index['offset'].min() == page and not (m.index['offset'] % page).any()


def test_crops_and_flips_happen(files):
    m = Mapped(files['pixels'], 32, seed=0)
    whole = Mapped(files['pixels'], augment=False).batch([2])[0][0]
    places, flips = set(), set()
    for epoch in range(40):
        x = m.batch([2], epoch)[0][0]
        for flipped in (False, True):
            y = x.flip(2) if flipped else x
            places |= (
                {(t, l) for t in range(17) for l in range(17) if torch.equal(whole[:, t : t + 32, l : l + 32], y)}
                if not (flips and len(places) > 15)
                else set()
            )
            if any(torch.equal(whole[:, t : t + 32, l : l + 32], y) for t in range(17) for l in range(17)):
                flips.add(flipped)
    assert len(places) > 10 and flips == {False, True}


# Against others


@pytest.mark.slow
@pytest.mark.alone
def test_the_benchmark_with_every_contender(side, tmp_path):
    side('ffcv'), side('streams')
    r = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'benchmarks/loaders.py'),
            '--images',
            '200',
            '--turns',
            '2',
            '--out',
            str(tmp_path / 'out.json'),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert r.returncode == 0, r.stderr[-2000:]
    rows = {row['loader']: row for row in json.loads((tmp_path / 'out.json').read_text())['rows']}
    assert len(rows) == 8 and rows['Mapped pixels (1 thread)']['ratio']['low'] > 5


@pytest.mark.parametrize('orientation', [None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_a_turned_photograph_lies_as_it_is_shown_in_either_kind(tmp_path, orientation):
    "The stored pixels of a camera that was turned are not what people see; EXIF says how they are meant"
    folder = tmp_path / 'photos' / 'class0'
    folder.mkdir(parents=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    slope = np.linspace(0, 255, 40, dtype=np.uint8)
    picture = np.stack([np.tile(slope, (24, 1)), np.tile(slope[:24, None], (1, 40)), np.full((24, 40), 9, np.uint8)], 2)
    Image.fromarray(picture).save(folder / 'a.jpg', exif=exif, quality=95)
    shown = np.asarray(read_image(folder / 'a.jpg')).astype(int)
    for kind in ('pixels', 'jpeg'):
        packed = Mapped(pack(folder.parent, tmp_path / f'{kind}.pack', kind).path, 20)
        assert np.abs(packed._picture(0) - shown).max() <= (0 if kind == 'pixels' else 12)
        assert tuple(packed.index[0][['height', 'width']]) == shown.shape[:2]
    kept = (folder / 'a.jpg').read_bytes() == bytes(packed.blob(0))
    assert kept == (orientation not in range(2, 9))  # what lies upright is not encoded anew


def test_what_cannot_be_read_is_refused_before_the_first_step(tmp_path):
    folder = tmp_path / 'photos' / 'class0'
    folder.mkdir(parents=True)
    Image.new('RGB', (20, 20)).save(folder / 'a.jpg')
    data = Mapped(pack(folder.parent, tmp_path / 'a.pack').path)
    for wrong in (dict(start=3, stop=2), dict(rank=2, ranks=2), dict(start=-1), dict(global_batch=0), dict(workers=-1)):
        with pytest.raises(ValueError):
            next(batches(data, **dict(global_batch=1) | wrong))
    with pytest.raises(ValueError, match='stop=2 is before start=3'):
        batches(data, 1, start=3, stop=2)
    with pytest.raises(TypeError, match='no pair'):
        data[0]
    with pytest.raises(ValueError, match='has an edge of 20, less than size=21'):
        JpegFolder(folder.parent, 21)[0]
