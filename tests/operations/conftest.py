"""What the tests of this part need from the machine, and what they must not leave on it"""

import os, shutil, socket, subprocess, tempfile
from pathlib import Path
import psutil
import pytest
from filelock import FileLock

scratch, ports = (
    [],
    [],
)  # folders that tests have made, ports that they have had others listen on: at the end nothing of them is left


def debian(packages, programs):
    "Install Debian packages that are missing, as root only and saying so; else skip with the reason"
    lacks = missing(programs)
    if not lacks:
        return
    how = f'apt-get install --no-install-recommends {packages}'
    if os.geteuid() or not shutil.which('apt-get'):
        pytest.skip(f"{', '.join(lacks)} missing: {how}")
    with FileLock(
        Path(tempfile.gettempdir(), 'fsdl-tests-apt.lock'), timeout=280
    ):  # another worker may be installing too
        if missing(programs):
            install(packages, how)


def missing(programs):
    "Those of the programs that this machine does not have"
    path = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'
    return [p for p in programs if not shutil.which(p, path=path)]


def install(packages, how):
    "Fetch and install Debian packages; skip with the reason where that fails"
    print(f'\ninstalling {packages} ({how})', flush=True)
    env, wait = dict(os.environ, DEBIAN_FRONTEND='noninteractive'), ['-o', 'DPkg::Lock::Timeout=240']
    for words in (['update', '-qq'], ['install', '-y', '-qq', '--no-install-recommends', *packages.split()]):
        r = subprocess.run(['apt-get', *wait, *words], capture_output=True, text=True, env=env, timeout=280)
        if r.returncode:
            pytest.skip(f'{how} failed: {r.stderr[-300:]}')


def leftovers(word):
    "Processes whose words or variables hold this"
    out = []
    for p in psutil.process_iter(['pid', 'cmdline', 'environ', 'status']):
        held = ' '.join([*(p.info['cmdline'] or []), *(p.info['environ'] or {}).values()])
        if word in held and p.info['pid'] != os.getpid() and p.info['status'] != psutil.STATUS_ZOMBIE:
            out.append(p)
    return out


def mounts(word):
    return [line for line in Path('/proc/self/mountinfo').read_text().splitlines() if word in line]


def listened_on(port):
    "Does somebody listen on this port of this machine?"
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(('127.0.0.1', port))
        except OSError:
            return True
    return False


def left(folders, numbers):
    "A sentence for each process, mount, file and port that is still there"
    out = [
        f'process {p.pid}: {" ".join(p.info["cmdline"] or [])[:200]}' for folder in folders for p in leftovers(folder)
    ]
    out += [f'mount: {line}' for folder in folders for line in mounts(folder)]
    out += [f'folder: {folder}' for folder in folders if Path(folder).exists()]
    return out + [f'port: {n}' for n in numbers if listened_on(n)]


@pytest.fixture(scope='session', autouse=True)
def nothing_is_left():
    "The last act of the tests of this part, on each worker: everything that they have started is gone"
    yield
    assert not (found := left(scratch, ports)), found


@pytest.fixture
def small_disk():
    "A file system of 64 KiB at a place; skipped where this user may not mount one"
    made = []

    def disk(place, size='64k'):
        Path(place).mkdir(exist_ok=True)
        r = subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'fsdl-test', str(place)], capture_output=True, text=True
        )
        if r.returncode:
            pytest.skip(f'no file system can be mounted: {r.stderr.strip()}')
        made.append(str(place))
        return Path(place)

    yield disk
    for place in reversed(made):
        if mounts(place):
            subprocess.run(['umount', '--lazy', place], check=True)
