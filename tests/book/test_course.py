"""`./course` on machines where something is wrong: each is told in one line, and the next run goes on. A project of
a few files stands in for ours.
"""

import os, shutil, signal, socket, subprocess, sys, time, zipfile
from importlib.metadata import distribution
from pathlib import Path
import pytest

HELD = ('settings.ini', 'setup.py', 'README.md', 'pyproject.toml', 'course')
PARTS = (
    'data/words.csv',
    '__init__.py',
    'core.py',
    'table.py',
    'book/__init__.py',
    'book/site.py',
    'book/needs.py',
    'book/install.py',
)
INI = """[DEFAULT]
lib_name = fsdl_tools
lib_path = fsdl_tools
version = 0.1
description = small
keywords = small
author = a
author_email = a@b
git_url = https://example.invalid
min_python = 3.11
requirements = alpha>=1
dev_requirements = beta>=1
train_requirements = gamma>=1
console_scripts = small=fsdl_tools.core:need
"""


def wheel(folder, name, version, files=1, size=10):
    "A wheel with so many files of such a size"
    top = f'{name}-{version}.dist-info'
    with zipfile.ZipFile(folder / f'{name}-{version}-py3-none-any.whl', 'w') as z:
        texts = {f'{name}/__init__.py': ''} | {f'{name}/part{i}.bin': 'x' * size for i in range(files)}
        texts[f'{top}/METADATA'] = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        texts[f'{top}/WHEEL'] = 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
        texts[f'{top}/RECORD'] = ''.join(f'{p},,\n' for p in texts)
        for path, text in texts.items():
            z.writestr(path, text)


def repack(folder, name):
    "The wheel from which a package of this environment was installed"
    dist = distribution(name)
    own = [f for f in dist.files if '..' not in f.parts and not str(f).endswith('.pyc') and f.locate().is_file()]
    with zipfile.ZipFile(folder / f'{name}-{dist.version}-py3-none-any.whl', 'w') as z:
        for f in own:
            z.write(f.locate(), str(f))


@pytest.fixture(scope='module')
def wheels(tmp_path_factory):
    "A folder of wheels that takes the index's place"
    folder = tmp_path_factory.mktemp('wheels')
    for name in ('pip', 'setuptools'):
        repack(folder, name)
    for name in ('alpha', 'beta', 'gamma'):
        wheel(folder, name, '1.0')
    return folder


@pytest.fixture
def project(root, tmp_path):
    "A small project beside the real `course`"
    top = tmp_path / 'project'
    for name in PARTS:
        (top / 'fsdl_tools' / name).parent.mkdir(parents=True, exist_ok=True)
        if (root / 'fsdl_tools' / name).exists():
            shutil.copy(root / 'fsdl_tools' / name, top / 'fsdl_tools' / name)
    for extra in (root / 'fsdl_tools' / 'book').glob('*.py'):
        shutil.copy(extra, top / 'fsdl_tools' / 'book')
    for name in HELD:
        shutil.copy(root / name, top / name)
    (top / 'nbs').mkdir()
    (top / 'settings.ini').write_text(INI)
    return top


def start(top, wheels, *args, **env):
    "Start ./course, offline, in a process group of its own"
    plain = {k: v for k, v in os.environ.items() if not k.startswith(('PIP_', 'PYTHON')) and k != 'IN_TEST'}
    offline = dict(PYTHON=sys.executable, PIP_NO_INDEX='1', PIP_FIND_LINKS=str(wheels), PIP_CONFIG_FILE=os.devnull)
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    return subprocess.Popen(['bash', str(top / 'course'), *args], env=plain | offline | env, **how)


def course(top, wheels, *args, **env):
    "Run ./course: its exit code and what it said"
    proc = start(top, wheels, *args, **env)
    out = proc.communicate(timeout=240)[0]
    assert 'Traceback' not in out
    return proc.returncode, out


def site(top):
    return next((top / '.venv/lib').glob('python*/site-packages'))


def one_line(out):
    return [line for line in out.splitlines() if line.startswith('course: ')]


def test_installs_what_is_asked_once(project, wheels):
    code, out = course(project, wheels, '--setup', 'dev')
    assert code == 0 and (site(project) / 'beta').is_dir() and not (site(project) / 'gamma').exists()
    assert '3 packages' not in out and '2 packages; to download: 0 B' in out
    log = (project / '.venv/install.log').stat().st_size
    assert course(project, wheels, '--setup', 'dev')[0] == 0
    assert (project / '.venv/install.log').stat().st_size == log, 'a second run asks nothing of pip'
    assert course(project, wheels, '--setup', 'dev,train')[0] == 0 and (site(project) / 'gamma').is_dir()


def test_a_venv_that_broke_or_came_from_elsewhere_is_made_anew(project, wheels, tmp_path):
    assert course(project, wheels, '--setup', 'dev')[0] == 0
    (project / '.venv/bin/python').unlink()
    (project / '.venv/bin/python').symlink_to('/nowhere/python3')
    code, out = course(project, wheels, '--setup', 'dev')
    assert code == 0 and 'has lost its interpreter: making it anew' in out
    shutil.copytree(project, tmp_path / 'copy', symlinks=True)
    code, out = course(tmp_path / 'copy', wheels, '--setup', 'dev')
    assert code == 0 and 'was made elsewhere' in out
    assert str(tmp_path / 'copy') in (tmp_path / 'copy/.venv/pyvenv.cfg').read_text()


def test_a_linked_venv_is_left_alone(project, wheels, tmp_path):
    (project / '.venv').symlink_to(Path(sys.prefix))
    before = sorted(p.name for p in Path(sys.prefix).iterdir())
    course(project, wheels, '--setup', 'train')
    assert (project / '.venv').is_symlink() and sorted(p.name for p in Path(sys.prefix).iterdir()) == before


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_and_run_again(project, wheels, tmp_path, how):
    many = tmp_path / 'many'
    shutil.copytree(wheels, many)
    wheel(many, 'beta', '2.0', files=6000)
    proc, end = start(project, many, '--setup', 'dev'), time.monotonic() + 120
    while (
        time.monotonic() < end
        and proc.poll() is None
        and len(list(project.glob('.venv/lib/*/site-packages/beta/part*'))) < 50
    ):
        time.sleep(0.01)
    os.killpg(proc.pid, how)
    out = proc.communicate(timeout=60)[0]
    assert proc.returncode != 0 and len(list((site(project) / 'beta').glob('part*'))) < 6000, out
    assert 'Traceback' not in out
    code, out = course(project, many, '--setup', 'dev')
    assert code == 0 and len(list((site(project) / 'beta').glob('part*'))) == 6000
    assert subprocess.run([project / '.venv/bin/python', '-m', 'pip', 'check'], capture_output=True).returncode == 0


def mount(folder, *options):
    "Mount a small file system, or skip"
    folder.mkdir(exist_ok=True)
    run = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', str(folder)], capture_output=True, text=True
    )
    if run.returncode:
        pytest.skip(f'cannot mount a small file system here: {run.stderr.strip() or "not root"}')


@pytest.mark.skipif(not shutil.which('mount') or sys.platform != 'linux', reason='needs mount of Linux')
def test_a_full_disk_half_way(project, wheels, tmp_path):
    large, disk = tmp_path / 'large', tmp_path / 'disk'
    shutil.copytree(wheels, large)
    wheel(large, 'beta', '2.0', files=120, size=2**20)
    mount(disk, 'size=90m')
    try:
        top = disk / 'project'
        shutil.copytree(project, top)
        code, out = course(top, large, '--setup', 'dev')
        assert code == 1 and len(one_line(out)) == 1 and 'the disk is full' in out, out
        subprocess.run(['mount', '-o', 'remount,size=400m', str(disk)], check=True)
        code, out = course(top, large, '--setup', 'dev')
        assert code == 0 and len(list((site(top) / 'beta').glob('part*'))) == 120
        assert all(p.stat().st_size == 2**20 for p in (site(top) / 'beta').glob('part*'))
    finally:
        subprocess.run(['umount', '-l', str(disk)], check=True)


@pytest.mark.skipif(not shutil.which('mount') or sys.platform != 'linux', reason='needs mount of Linux')
def test_a_read_only_checkout(project, wheels, tmp_path):
    disk = tmp_path / 'disk'
    mount(disk, 'size=50m')
    try:
        shutil.copytree(project, disk / 'project')
        subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
        code, out = course(disk / 'project', wheels, '--setup', 'dev')
        assert code == 1 and len(one_line(out)) == 1 and 'cannot be written' in out, out
    finally:
        subprocess.run(['umount', '-l', str(disk)], check=True)


def test_a_proxy_that_refuses(project, wheels):
    on = dict(
        PIP_NO_INDEX='0',
        PIP_FIND_LINKS='',
        HTTPS_PROXY='http://127.0.0.1:9',
        PIP_RETRIES='0',
        PIP_DEFAULT_TIMEOUT='5',
        PIP_INDEX_URL='https://example.invalid/simple',
    )
    code, out = course(project, wheels, '--setup', 'dev', **on)
    assert code == 1 and one_line(out) == [
        'course: the proxy refuses (HTTPS_PROXY=http://127.0.0.1:9): correct or unset it'
    ]


def program(folder, name, text):
    "A program on the path"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
    (folder / name).chmod(0o755)
    return folder / name


def test_a_python_without_venv_or_too_old(project, wheels, tmp_path):
    bare = program(tmp_path / 'bin', 'bare', f'case "$*" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"')
    code, out = course(project, wheels, '--setup', 'dev', PYTHON=str(bare))
    assert code == 1 and 'has no venv module (Debian: apt install python3-venv)' in one_line(out)[0]
    old = program(tmp_path / 'bin', 'old', 'exit 1')
    code, out = course(project, wheels, '--setup', 'dev', PYTHON=str(old))
    assert code == 1 and 'is older than 3.11' in one_line(out)[0]
    code, out = course(project, wheels, '--setup', 'dev', PYTHON='no-such-python')
    assert code == 1 and 'not a program' in one_line(out)[0]


def test_windows_is_told_of_wsl(project, wheels, tmp_path):
    program(tmp_path / 'bin', 'uname', 'echo MINGW64_NT-10.0')
    code, out = course(project, wheels, PATH=f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    assert code == 1 and 'WSL' in one_line(out)[0] and len(out.splitlines()) == 1


def test_a_port_in_use_is_said_before_anything_is_installed(project, wheels):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = str(s.getsockname()[1])
        code, out = course(project, wheels, '--port', port)
    assert code == 1 and f'port {port} is in use' in one_line(out)[0] and not (project / '.venv').exists()


def test_two_at_once(project, wheels):
    first = start(project, wheels, '--setup', 'dev')
    time.sleep(1)
    second = start(project, wheels, '--setup', 'dev')
    said = second.communicate(timeout=240)[0]
    assert first.communicate(timeout=240) and first.returncode == second.returncode == 0
    assert 'Another ./course is at work' in said and 'Installing' not in said


def test_what_does_not_fit_is_named_and_torch_stays(project, wheels):
    (project / 'requirements.lock').write_text('alpha==1.0\nbeta==9.0\n')
    code, out = course(project, wheels, '--setup', 'dev')
    assert code == 0 and 'The tested beta==9.0 does not fit here' in out and (site(project) / 'beta').is_dir()
    (project / 'settings.ini').write_text(INI.replace('requirements = alpha>=1', 'requirements = alpha>=1 torch>=2', 1))
    (project / 'requirements.lock').write_text('alpha==1.0\ntorch==2.13.0\n')
    code, out = course(project, wheels, '--setup', 'dev')
    assert code == 1 and 'the tested torch==2.13.0 cannot be had here' in one_line(out)[0]


def test_an_unknown_extra(project, wheels):
    code, out = course(project, wheels, '--setup', 'trian')
    assert code == 1 and "unknown extra 'trian': did you mean 'train'" in one_line(out)[0]


def test_a_package_that_needs_a_compiler(project, wheels, tmp_path):
    "A real source distribution with C in it, and no compiler on the path"
    src = tmp_path / 'delta-1.0'
    src.mkdir()
    (src / 'setup.py').write_text(
        'from setuptools import setup, Extension\nsetup(name="delta", version="1.0", ext_modules=[Extension("delta",'
        ' ["delta.c"])])\n'
    )
    (src / 'delta.c').write_text('#include <Python.h>\n')
    (src / 'PKG-INFO').write_text('Metadata-Version: 2.1\nName: delta\nVersion: 1.0\n')
    folder = tmp_path / 'with_source'
    shutil.copytree(wheels, folder)
    shutil.make_archive(str(folder / 'delta-1.0'), 'gztar', tmp_path, 'delta-1.0')
    (project / 'settings.ini').write_text(INI.replace('beta>=1', 'delta>=1'))
    code, out = course(project, folder, '--setup', 'dev', CC='no-such-gcc', PIP_NO_BUILD_ISOLATION='0')
    assert code == 1 and len(one_line(out)) == 1 and 'no C compiler' in out, out


def test_the_page_that_lacks_an_import_is_named(root, project):
    cell = (
        '{"cells": [{"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": null, "source":'
        ' ["#| export\\n", "import no_such_package"]}]}'
    )
    (project / 'nbs/00_page.ipynb').write_text(cell)
    ask = [sys.executable, '-c', 'from fsdl_tools.book.install import install_command; install_command()', 'ready']
    run = subprocess.run(
        ask, cwd=project, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(project))
    )
    assert (
        run.returncode == 1
        and run.stderr == 'course: nbs/00_page.ipynb imports no_such_package, which no extra of settings.ini brings\n'
    )


def test_what_runs_before_installation_needs_nothing_installed(root):
    run = subprocess.run(
        [sys.executable, '-S', '-c', 'import fsdl_tools.book.install'],
        cwd=root,
        capture_output=True,
        text=True,
        env={'PATH': os.environ['PATH']},
    )
    assert run.returncode == 0, run.stderr


def test_lab_serves_on_loopback_and_leaves_nothing(root, tmp_path):
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed: ./course --setup lab')
    import json, urllib.request

    env = os.environ | dict(
        HOME=str(tmp_path), JUPYTER_RUNTIME_DIR=str(tmp_path / 'run'), JUPYTER_CONFIG_DIR=str(tmp_path / 'conf')
    )
    if sys.prefix == sys.base_prefix or Path(sys.prefix).resolve() != (root / '.venv').resolve():
        pytest.skip('these tests do not run in .venv')
    log = open(tmp_path / 'log', 'w+')
    proc = subprocess.Popen(
        [root / 'course', '--lab', '--no-browser', '--allow-root', '--ServerApp.port=0'],
        env=env,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        end, found = time.monotonic() + 120, []
        while time.monotonic() < end and not found and proc.poll() is None:
            found = list((tmp_path / 'run').glob('jpserver-*.json'))
            time.sleep(0.2)
        assert found, (tmp_path / 'log').read_text()[-2000:]
        info = json.loads(found[0].read_text())
        assert info['hostname'] == '127.0.0.1' and Path(info['root_dir']) == root / 'nbs'
        with urllib.request.urlopen(f"{info['url']}api/contents?token={info['token']}", timeout=30) as r:
            names = {c['name'] for c in json.load(r)['content']}
        assert 'index.ipynb' in names
    finally:
        os.killpg(proc.pid, signal.SIGTERM)
        proc.wait(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.killpg(proc.pid, 0)
