"""What the tests of this part need from the machine, and what they must not leave on it"""
import os, shutil, subprocess
from pathlib import Path
import psutil
import pytest

scratch = []        # folders that tests have made; the last test asserts that nothing of them is left

def debian(packages, programs):
    "Install Debian packages that are missing, as root only and saying so; else skip with the reason"
    path = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'
    lacks = [p for p in programs if not shutil.which(p, path=path)]
    if not lacks: return
    how = f'apt-get install --no-install-recommends {packages}'
    if os.geteuid() or not shutil.which('apt-get'): pytest.skip(f"{', '.join(lacks)} missing: {how}")
    print(f'\ninstalling {packages} ({how})', flush=True)
    env = dict(os.environ, DEBIAN_FRONTEND='noninteractive')
    for words in (['apt-get', 'update', '-qq'], ['apt-get', 'install', '-y', '-qq', '--no-install-recommends', *packages.split()]):
        r = subprocess.run(words, capture_output=True, text=True, env=env, timeout=280)
        if r.returncode: pytest.skip(f'{how} failed: {r.stderr[-300:]}')


def leftovers(word):
    "Processes whose words or variables hold this"
    out = []
    for p in psutil.process_iter(['pid', 'cmdline', 'environ', 'status']):
        held = ' '.join([*(p.info['cmdline'] or []), *(p.info['environ'] or {}).values()])
        if word in held and p.info['pid'] != os.getpid() and p.info['status'] != psutil.STATUS_ZOMBIE: out.append(p)
    return out


def mounts(word): return [line for line in Path('/proc/self/mountinfo').read_text().splitlines() if word in line]
