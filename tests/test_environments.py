"""Side environments: built once, whatever is killed meanwhile; and a real one that trains"""

import json, os, signal, subprocess, sys, textwrap, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest
from fsdl_tools import environments as E
from fsdl_tools.core import read_data
from fsdl_tools.environments import BuildError, SideEnv, build_env, built, env_folder, run_in, side_env

posix = pytest.mark.skipif(os.name == 'nt', reason='uses flock and process groups')
pytestmark = posix


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path


def test_the_cache_is_where_it_should_be(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert E.cache_folder() == tmp_path / 'fsdl_tools' / 'envs'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert E.cache_folder() == tmp_path / '.cache' / 'fsdl_tools' / 'envs'


def test_every_row_of_the_table_is_complete():
    for row in read_data('environments.csv'):
        e = side_env(row['name'])
        assert e.steps and e.why and e.source and e.date and e.check
        assert len(e.key) == 12 and SideEnv.from_json(e.to_json()) == e


def test_layered_and_alone(cache):
    layered, alone = SideEnv('layered'), SideEnv('alone', layered=False)
    code = (
        'import importlib.util, os, sys\ndef main(p): return [p, importlib.util.find_spec("torch") is not None,'
        ' "PYTHONPATH" in os.environ, sys.prefix]'
    )
    os.environ.setdefault('PYTHONPATH', '')
    build_env(layered)
    build_env(alone)
    assert run_in(layered, code, {'a': [1, None, 'ü']})[:2] == [{'a': [1, None, 'ü']}, True]
    assert run_in(alone, code)[1:3] == [False, False]
    assert run_in(layered, code)[3] == str(env_folder(layered))


def test_an_importable_function_and_variables(cache):
    e = SideEnv('plain')
    build_env(e)
    assert run_in(e, 'os:getenv', 'HELLO', HELLO='there') == 'there'
    assert run_in(e, 'math:sqrt', 16) == 4


def test_chatter_does_not_get_in_the_way(cache):
    e = SideEnv('plain')
    build_env(e)
    assert (
        run_in(e, 'import os\ndef main(p):\n    print("noise" * 100_000); os.write(2, b"more")\n    return p', 5) == 5
    )


def test_what_json_cannot_hold(cache):
    e = SideEnv('plain')
    build_env(e)
    with pytest.raises(BuildError, match='not JSON serializable'):
        run_in(e, 'def main(p): return {1, 2}')
    with pytest.raises(TypeError, match='not JSON serializable'):
        run_in(e, 'def main(p): return p', {1, 2})


def test_a_failed_build_leaves_nothing_and_can_be_repeated(cache):
    e = SideEnv('bad', steps='--no-index nothing-of-this-name', check='import nothing')
    for _ in range(2):
        with pytest.raises(BuildError, match='(?s)nothing-of-this-name.*log: '):
            build_env(e)
        assert not env_folder(e).exists() and built(e) is None
    with pytest.raises(BuildError, match='No module named .nothing.'):
        build_env(e.replace(steps=''))


def test_a_slow_build_is_stopped_with_its_children(cache):
    marker = cache / 'pid'
    e = SideEnv(
        'slow',
        check=(
            f"import subprocess; p = subprocess.Popen(['sleep', '600']); open({str(marker)!r}, 'w').write(str(p.pid));"
            " p.wait()"
        ),
    )
    with pytest.raises(TimeoutError, match='took longer than 4 s'):
        build_env(e, timeout=4)
    time.sleep(0.2)
    stat = Path(f'/proc/{marker.read_text()}/stat')
    assert not stat.exists() or stat.read_text().rsplit(')', 1)[1].split()[0] == 'Z'
    assert not env_folder(e).exists()


def test_a_builder_that_is_killed_does_not_block_or_mislead_the_next(cache):
    script = textwrap.dedent('''
        import sys
        from fsdl_tools.environments import SideEnv, build_env
        build_env(SideEnv('victim', check='import os, time; time.sleep(5 if os.environ.get("SLOW") else 0)'))
    ''')
    p = subprocess.Popen(
        [sys.executable, '-c', script], env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path), 'SLOW': '1'}
    )
    e = SideEnv('victim', check='import os, time; time.sleep(5 if os.environ.get("SLOW") else 0)')
    end = time.monotonic() + 60
    while not list(env_folder(e).glob('lib/*/site-packages/main_environment.pth')) and time.monotonic() < end:
        time.sleep(0.05)
    p.kill()
    p.wait()
    assert env_folder(e).exists() and built(e) is None  # half a build, and known to be one
    t0 = time.monotonic()
    build_env(e, timeout=60)
    assert built(e) and time.monotonic() - t0 < 60


COMPILES = """
def main(name):
    import os
    from torch.utils.file_baton import FileBaton
    folder = os.path.join(os.environ['TORCH_EXTENSIONS_DIR'], 'py311_cpu', name)
    os.makedirs(folder, exist_ok=True)
    baton = FileBaton(os.path.join(folder, 'lock'))
    if not baton.try_acquire(): baton.wait(); return 'waited'
    if os.environ.get('KILLED'): os.kill(os.getpid(), 9)
    if os.environ.get('SLOW'):
        open(os.path.join(folder, 'compiling'), 'w').close()
        import time; time.sleep(float(os.environ['SLOW']))
    baton.release()
    return 'compiled'
"""


def test_nobody_waits_for_a_compiler_that_was_killed(cache):
    "PyTorch's lock is a file, which a killed process leaves behind"
    e = SideEnv('compiles')
    build_env(e)
    with pytest.raises(BuildError, match='exit code -9'):
        run_in(e, COMPILES, 'a', KILLED='1')
    assert list(env_folder(e).glob('torch_extensions/*/a/lock'))
    assert run_in(e, COMPILES, 'a', timeout=60) == 'compiled'
    assert not list(env_folder(e).glob('torch_extensions/*/a/lock'))


def test_who_comes_while_another_compiles_waits_for_it(cache):
    e = SideEnv('compiles')
    build_env(e)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run_in, e, COMPILES, 'a', 200, SLOW='6')
        end = time.monotonic() + 100
        while not list(env_folder(e).glob('torch_extensions/*/a/compiling')):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert run_in(e, COMPILES, 'a', timeout=100) == 'waited'
        assert first.result() == 'compiled'


@pytest.mark.parametrize('how', ['SIGKILL', 'SIGTERM', 'SIGINT', 'SIGHUP'])
def test_the_running_step_ends_with_whoever_builds(cache, how):
    "Also what the step has started, and also after a signal that no handler can see"
    note = cache / 'pids'
    check = (
        f"import os, subprocess; p = subprocess.Popen(['sleep', '600']); open({str(note)!r},"
        " 'w').write(f'{os.getpid()} {p.pid} '); p.wait()"
    )
    script = (
        'import sys; from fsdl_tools.environments import SideEnv, build_env; build_env(SideEnv("left",'
        f' check={check!r}))'
    )
    p = subprocess.Popen(
        [sys.executable, '-c', script],
        env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 200
    while not (note.exists() and note.read_text().endswith(' ')):
        assert time.monotonic() < end and p.poll() is None
        time.sleep(0.05)
    p.send_signal(signal.Signals[how])
    assert p.wait(100) != 0
    lives = lambda pid: (
        Path(f'/proc/{pid}/stat').exists() and Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    )
    while any(map(lives, note.read_text().split())):
        assert time.monotonic() < end, 'the step goes on'
        time.sleep(0.05)


def test_two_processes_build_once(cache):
    script = (
        "from fsdl_tools.environments import *; print(build_env(SideEnv('shared', check='import time; time.sleep(1)')))"
    )
    ps = [
        subprocess.Popen(
            [sys.executable, '-c', script],
            env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outs = {p.communicate(timeout=120)[0].strip() for p in ps}
    assert [p.returncode for p in ps] == [0, 0, 0] and len(outs) == 1
    assert json.loads((Path(outs.pop()).parents[1] / 'stamp.json').read_text())['name'] == 'shared'


def test_unknown_names_and_missing_programs(cache):
    with pytest.raises(ValueError, match="did you mean 'horovod'"):
        build_env('horovd')
    with pytest.raises(FileNotFoundError, match="build_env\\('horovod'\\)"):
        run_in('horovod', 'math:sqrt', 2)
    with pytest.raises(BuildError, match='the program no-such-program'):
        build_env(SideEnv('x', programs='no-such-program'))


@pytest.mark.timeout(900)
def test_horovod_is_built_and_trains_like_one_process(side):
    side('horovod')
    nb = json.loads((Path(__file__).parent.parent / 'nbs' / 'parallel/02_collectives.ipynb').read_text())
    cells = [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code']
    scope = {}
    for cell in cells:
        if 'horovod_code = ' in cell or 'def horovod_reference' in cell:
            exec('import torch\n' + cell, scope)
    for ranks in (1, 2):
        out = run_in('horovod', scope['horovod_code'], dict(ranks=ranks, steps=20), timeout=300)
        ref = scope['horovod_reference'](20)
        assert max(abs(a - b) / b for a, b in zip(out['losses'], ref, strict=True)) < 1e-6


@pytest.mark.parametrize('how', [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_a_step_ends_with_the_process_that_runs_it(how, tmp_path):
    "Also its children: the sleep is a child of the shell that is the step"
    code = (
        'import sys; from fsdl_tools.environments import _call; _call(["sh", "-c", "sleep 97531 & echo $! > pid;'
        ' wait"], "log", 100)'
    )
    p = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not (tmp_path / 'pid').exists() or not (tmp_path / 'pid').read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.3)  # the guard is a process that starts as well
    p.send_signal(how)
    assert p.wait(30) != 0
    pid = Path('/proc') / (tmp_path / 'pid').read_text().strip() / 'stat'
    while pid.exists() and pid.read_text().split()[2] != 'Z':
        assert time.monotonic() < end
        time.sleep(0.02)
