"""The throw-away clone: what a newcomer has and has not, what he meets is shown, and nothing outlives the visit"""

import os
import shutil
import subprocess
import sys
import time
import pytest
from fsdl_tools.book.newcomer import CheckFailed, clone, end_group, end_groups, newcomer, newcomer_key
from fsdl_tools.book.newcomer import oldest_python, open_groups, start_group
from tests.book.processes import sleepers


@pytest.fixture
def project(tmp_path, root, cache):
    "A git checkout in which ./course is a few lines"
    top = tmp_path / 'project'
    top.mkdir()
    for name in ('settings.ini', 'requirements.lock', 'setup.py', 'pyproject.toml'):
        shutil.copy(root / name, top)
    (top / '.gitignore').write_text('.venv\n_docs\n')
    write_course(
        top,
        'mkdir -p _docs .venv; echo "<html><body>page</body></html>" > _docs/index.html; env > .venv/env; ls >'
        ' .venv/ls; echo "$PWD" > .venv/made',
    )
    for args in (['init', '-q'], ['add', '.'], ['-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-qm', 'first']):
        subprocess.run(['git', *args], cwd=top, check=True)
    return top


def write_course(top, body):
    (top / 'course').write_text(f'#!/bin/bash\nset -e\n[ "$1" = --build ]\n{body}\n')
    (top / 'course').chmod(0o755)


def test_a_newcomer_has_none_of_our_variables_and_all_of_our_files(project, cache, monkeypatch):
    monkeypatch.setenv('OURS', '1')
    monkeypatch.setenv('PYTHONPATH', '/ours')
    monkeypatch.setenv('PIP_FIND_LINKS', '/wheels')
    (project / 'new.txt').write_text('not committed')
    (project / '.venv').mkdir()
    (project / '.venv/ours').write_text('')
    assert 'made anew' in newcomer(project)
    env = dict(
        line.split('=', 1)
        for line in next(cache.glob('newcomer/*/project/.venv/env')).read_text().splitlines()
        if '=' in line
    )
    assert (
        env['PATH'] == '/usr/bin:/bin' and env['PIP_FIND_LINKS'] == '/wheels' and not {'OURS', 'PYTHONPATH'} & set(env)
    )
    assert 'new.txt' in next(cache.glob('newcomer/*/project/.venv/ls')).read_text().split()
    assert [p.name for p in cache.glob('newcomer/*/project/*')] == ['.venv'] and not list(
        cache.glob('newcomer/*/clone')
    )
    assert 'kept from an earlier run' in newcomer(project)
    assert 'made anew' in newcomer(project, uncached=True)


@pytest.mark.parametrize(
    'body, words',
    [
        ('echo "no such package" >&2; exit 3', ['exit code 3', 'no such package']),
        ('mkdir _docs; echo x > _docs/index.html; echo "Traceback (most recent call last)"', ['traceback']),
        ('true', ['made no site']),
        ('mkdir _docs; echo "<a href=\'gone.html\'>" > _docs/index.html', ['links of the site', 'gone.html']),
        ('mkdir _docs; echo x > _docs/index.html; echo y >> setup.py', ['changes committed files', 'setup.py']),
        ('sleep 4245', ['longer than 3 s']),
    ],
)
def test_what_a_newcomer_meets_is_shown(project, cache, body, words):
    write_course(project, body)
    with pytest.raises(CheckFailed) as e:
        newcomer(project, timeout=3 if 'sleep' in body else 60)
    assert all(w in str(e.value) for w in words), str(e.value)
    assert 'cure: ' in str(e.value) and not list(cache.glob('newcomer/*/project/[a-z]*')) and not sleepers(4245)


def test_a_killed_newcomer_is_swept_by_the_next(project, cache):
    write_course(project, 'mkdir -p .venv; touch half; sleep 4246')
    code = f'from fsdl_tools.book.newcomer import newcomer; newcomer({str(project)!r}, timeout=20)'
    p = subprocess.Popen([sys.executable, '-c', code], env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)})
    end = time.monotonic() + 60
    while not list(cache.glob('newcomer/*/project/half')) and time.monotonic() < end:
        time.sleep(0.1)
    p.kill()
    p.wait()
    assert list(cache.glob('newcomer/*/project/half'))
    write_course(project, 'mkdir -p _docs; echo x > _docs/index.html')
    newcomer(project)
    assert not list(cache.glob('newcomer/*/project/[a-z]*')) and not sleepers(4246)


def test_the_environment_is_another_when_the_lock_is(project):
    before = newcomer_key(project, sys.executable)
    (project / 'requirements.lock').open('a').write('# another\n')
    assert newcomer_key(project, sys.executable) != before


def test_the_oldest_python_is_one():
    assert (
        subprocess.run(
            [oldest_python('3.11'), '-c', 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))']
        ).returncode
        == 0
    )
    with pytest.raises(CheckFailed, match='no Python 3.19'):
        oldest_python('3.19')


def test_a_deleted_file_is_not_in_the_clone(project, tmp_path):
    (project / 'setup.py').unlink()
    clone(project, tmp_path / 'theirs')
    assert not (tmp_path / 'theirs' / 'setup.py').exists()


def test_when_a_run_is_over_nothing_starts_until_the_next(tmp_path):
    "A stage in the background that had not started its process yet would be waited for to its end"
    with open(tmp_path / 'log', 'w') as out:
        proc = start_group(['sleep', '60'], tmp_path, out, dict(os.environ))
        end_groups()
        assert proc.poll() is not None
        with pytest.raises(CheckFailed, match='sleep was not started: the run is over'):
            start_group(['sleep', '60'], tmp_path, out, dict(os.environ))
        open_groups()
        end_group(start_group(['sleep', '60'], tmp_path, out, dict(os.environ)))
