"""A tour that is killed goes on, and says what stops it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fsdl_tools.app.tour import Tour, tour

COMMAND = [
    sys.executable,
    '-W',
    'ignore',
    '-c',
    'import sys; from fsdl_tools.app.tour import Tour, tour; tour(sys.argv[1], Tour(steps=8))',
]


def test_settings_are_checked_before_anything_is_written(tmp_path):
    for bad in (dict(gpus=0), dict(steps=-1), dict(tokens='many'), dict(budget='[red]')):
        with pytest.raises(ValueError):
            tour(tmp_path / 't', Tour(**bad))
    assert not (tmp_path / 't').exists()


@pytest.mark.parametrize('package', ['psutil', 'onnxruntime', 'onnxscript'])
def test_a_package_that_the_last_stage_needs_is_missed_at_once(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f'{package} is not installed: pip install'):
        tour(tmp_path / 't')
    assert not (tmp_path / 't').exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError):
        tour(tmp_path / 'file')
    assert (tmp_path / 'file').read_text() == ''


def test_a_model_that_is_none_is_said_at_once(tmp_path):
    with pytest.raises(ValueError, match='no-such-model'):
        tour(tmp_path / 't', Tour(model='no-such-model'))
    assert not (tmp_path / 't' / 'report.html').exists()


def killed_after(folder, seconds):
    process = subprocess.Popen([*COMMAND, str(folder)], start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.6)  # ranks follow their parent within a quarter of a second


@pytest.mark.slow
def test_killed_at_any_moment_the_report_is_the_same(tmp_path):
    whole = tour(tmp_path / 'whole', Tour(steps=8)).read_text()
    for seconds in (2, 5, 9, 14, 20):
        killed_after(tmp_path / 'killed', seconds)
    assert tour(tmp_path / 'killed', Tour(steps=8)).read_text() == whole


# What stops a tour

STAGES = ('choose', 'memory', 'plan', 'train', 'track', 'ship')


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_in_each_stage_the_report_is_the_same(tmp_path):
    "A kill while each stage works: the next start does it again, and nothing else"
    whole = tour(tmp_path / 'whole', Tour(steps=8)).read_text()
    folder = tmp_path / 'killed'
    for number, stage in enumerate(STAGES, 1):
        process = subprocess.Popen([*COMMAND, str(folder)], start_new_session=True)
        before = folder / f'{number - 1}-{STAGES[number - 2]}.json' if number > 1 else folder / 'tour.json'
        while not before.exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.3 if stage != 'train' else 4)
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
        time.sleep(0.6)
        assert not list(folder.glob('*.tmp')) or not (folder / 'report.html').exists()
        if not (folder / f'{number}-{stage}.json').exists():
            assert not (folder / 'report.html').exists()
        resumed_until(folder, number, stage)
    assert tour(folder, Tour(steps=8)).read_text() == whole


def resumed_until(folder, number, stage):
    "Go on until this stage is kept"
    process = subprocess.Popen([*COMMAND, str(folder)], start_new_session=True)
    while not (folder / f'{number}-{stage}.json').exists() and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.6)
    assert (folder / f'{number}-{stage}.json').exists()


def full_after(monkeypatch, writes):
    "A disk that takes so many files more"
    import errno

    import fsdl_tools.files as files

    whole, left = files._replace_file, [writes]

    def replace(path, content):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        return whole(path, content)

    monkeypatch.setattr(files, '_replace_file', replace)


@pytest.mark.parametrize('writes', [0, 1])
def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path, monkeypatch, writes):
    full_after(monkeypatch, writes)
    with pytest.raises(OSError, match='No space left'):
        tour(tmp_path / 't', Tour(steps=8))
    kept = [p for p in (tmp_path / 't').rglob('*') if p.is_file()]
    assert len(kept) == writes and all(p.stat().st_size for p in kept)
    monkeypatch.undo()


def test_a_full_disk_is_one_line_of_the_command(tmp_path):
    "A real file system without room: a limit on the size of files takes its place"
    code = (
        'import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);'
        ' resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40)); from fsdl_tools.cli.main import run;'
        ' sys.exit(run(["tour", "--out", sys.argv[1]]))'
    )
    r = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, str(tmp_path / 't')], capture_output=True, text=True, timeout=60
    )
    assert r.returncode == 2 and r.stderr.count('\n') == 1 and 'too large' in r.stderr, r
    assert not [p for p in (tmp_path / 't').rglob('*') if p.is_file()]


@pytest.mark.skipif(not os.path.isdir('/proc/sys'), reason='no folder that nobody can write')
def test_a_read_only_folder_is_said(tmp_path):
    r = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            '-c',
            'import sys; from fsdl_tools.cli.main import run; sys.exit(run(["tour", "--out", "/proc/sys/tour"]))',
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert r.returncode == 2 and r.stderr.count('\n') == 1 and '/proc/sys/tour' in r.stderr, r
