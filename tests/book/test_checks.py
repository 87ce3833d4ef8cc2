"""What ./check calls: that the checks find what they look for, that nothing outlives them, and how tests are drawn
and kept apart
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import pytest
from fsdl_tools.book import stages
from fsdl_tools.book.checks import (
    not_exported,
    run_in_kernel,
    run_notebooks,
    source_problems,
    stale_modules,
    _tables_without_words,
    unclean,
    untracked,
)
from fsdl_tools.book.newcomer import CheckFailed
from fsdl_tools.book.stages import _run_quick, tests_of as concerned
from tests.book.processes import sleepers

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')


@pytest.fixture
def copy(tmp_path, root):
    for part in ('settings.ini', '_quarto.yml', 'fsdl_tools'):
        (shutil.copytree if (root / part).is_dir() else shutil.copy)(root / part, tmp_path / part)
    shutil.copytree(root / 'nbs', tmp_path / 'nbs')
    return tmp_path


def test_this_project_is_as_it_should_be(root):
    assert {
        r['problem']: r['found']
        for r in source_problems(root)
        if r['found'] and r['problem'] != 'files that git does not know'
    } == {}


def test_a_hand_edited_module_is_found(copy):
    (copy / 'fsdl_tools/core.py').open('a').write('x = 1\n')
    assert not_exported(copy) == ['core.py']


def test_a_module_of_a_deleted_notebook_is_found(copy):
    (copy / 'nbs/cli/06_main.ipynb').unlink()
    assert stale_modules(copy) == ['cli/main.py']


def test_a_table_without_words_and_words_without_a_table_are_found(copy):
    assert _tables_without_words(copy) == []
    (copy / 'fsdl_tools/data/results/new.json').write_text('{}')
    (copy / 'fsdl_tools/data/gpus.csv').unlink()
    assert _tables_without_words(copy) == ['gpus.csv', 'results/new.json']


def test_an_unclean_notebook_is_found(copy):
    p = copy / 'nbs/00_core.ipynb'
    nb = json.loads(p.read_text())
    next(c for c in nb['cells'] if c['cell_type'] == 'code')['execution_count'] = 7
    p.write_text(json.dumps(nb))
    assert unclean(copy) == ['00_core.ipynb']


# Notebooks


def notebook(*cells):
    code = [
        dict(cell_type='code', id=f'a{i}', metadata={}, source=c, outputs=[], execution_count=None)
        for i, c in enumerate(cells)
    ]
    return json.dumps(
        dict(
            cells=code,
            metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')),
            nbformat=4,
            nbformat_minor=5,
        )
    )


@pytest.fixture
def small(tmp_path, root, cache):
    "A project of no notebooks yet"
    (tmp_path / 'nbs' / 'part').mkdir(parents=True)
    shutil.copy(root / 'settings.ini', tmp_path)
    return tmp_path


def run(project, **notebooks):
    for name, cells in notebooks.items():
        (project / f'nbs/{name}.ipynb').write_text(notebook(*cells))
    return {
        r['notebook'].removesuffix('.ipynb'): r for r in run_notebooks(project, timeout=20, report=lambda line: None)
    }


def test_a_hanging_notebook_takes_its_children_with_it(small):
    (small / 'nbs/99_hang.ipynb').write_text(notebook("import subprocess; subprocess.Popen(['sleep', '4242']).wait()"))
    res = run_notebooks(small, ['99_hang.ipynb'], timeout=6, report=lambda line: None)
    assert not res[0]['ok'] and 'killed after 6 s' in res[0]['output']
    time.sleep(0.3)
    assert not sleepers(4242)


def test_what_a_notebook_leaves_running_ends_with_it(small):
    assert run(small, leaves=["import subprocess; p = subprocess.Popen(['sleep', '4243'])"])['leaves']['ok']
    time.sleep(0.3)
    assert not sleepers(4243)


def test_the_flags_of_nbdev_are_kept(small):
    done = run(
        small,
        flags=[
            '#| slow\nassert False',
            '#| notest\nassert False',
            '#| eval: false\nassert False',
            '#| gpu\nassert False',
            'import os; assert os.environ["IN_TEST"] == "1"',
        ],
    )
    assert done['flags']['ok'], done['flags']['output']
    assert not run_notebooks(small, flags='slow', report=lambda line: None)[0]['ok']


def test_nothing_goes_from_one_notebook_to_the_next(small):
    "Neither names, nor modules, nor the working folder, nor files"
    done = run(
        small,
        a=['import os, sys\nopen("mine", "w").close(); sys.leak = 1; os.environ["LEAK"] = "1"'] * 1,
        b=[
            'import os, sys\nassert not os.listdir(".") or os.listdir(".") == ["b.ipynb"]\nassert not hasattr(sys,'
            ' "leak") and "LEAK" not in os.environ'
        ],
        **{'part/c': ['x = 1']},
        d=['assert "x" not in globals()'],
    )
    assert [r['ok'] for r in done.values()] == [True] * 4, done


def test_a_failing_notebook_says_where(small):
    r = run(small, bad=['x = 1', 'def f(): raise KeyError("no such layer")\nf()'])['bad']
    assert not r['ok'] and "KeyError: 'no such layer'" in r['output'] and 'Cell #2' in r['output']


@linux
def test_a_notebook_that_is_killed_fails_alone(small):
    done = run(
        small,
        dies=['import os, signal; os.kill(os.getpid(), signal.SIGKILL)'],
        lives=['1'],
        exits=['import os; os._exit(0)'],
    )
    assert (done['dies']['ok'], done['lives']['ok']) == (False, True)


def test_ranks_are_forked_in_a_notebook_that_is_forked(small):
    cells = [
        'import torch\nimport torch.distributed as dist\nfrom fsdl_tools.parallel.ranks import on_ranks',
        (
            'def work():\n    m = torch.nn.Linear(4, 4)\n    m(torch.ones(2, 4)).sum().backward()\n    t ='
            ' torch.ones(1); dist.all_reduce(t); return t.item()'
        ),
        'assert on_ranks(work, 2) == [2., 2.]',
    ]
    done = run(small, a=cells, b=cells, c=cells)
    assert [r['ok'] for r in done.values()] == [True] * 3, done


@linux
@pytest.mark.parametrize('how', ['killed', 'group is asked to end'])
def test_when_the_runner_ends_its_notebooks_end(small, how):
    for i in range(2):
        (small / f'nbs/{i}.ipynb').write_text(notebook("import subprocess; subprocess.Popen(['sleep', '4244']).wait()"))
    code = f'from fsdl_tools.book.checks import run_notebooks; run_notebooks({str(small)!r})'
    p = subprocess.Popen(
        [sys.executable, '-c', code], env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}, start_new_session=True
    )
    end = time.monotonic() + 60
    while len(sleepers(4244)) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    assert len(sleepers(4244)) == 2
    if how == 'killed':
        p.kill()
    else:
        os.killpg(p.pid, signal.SIGTERM)
    p.wait()
    end = time.monotonic() + 20
    while sleepers(4244) and time.monotonic() < end:
        time.sleep(0.1)
    assert not sleepers(4244)


def test_a_fresh_kernel_knows_nothing_and_is_in_another_folder(small):
    (small / 'nbs/a.ipynb').write_text(
        notebook(
            'import os, sys\nassert "torch" not in sys.modules and os.listdir(".") == ["a.ipynb"]',
            '#| slow\nassert False',
        )
    )
    (small / 'nbs/b.ipynb').write_text(notebook('raise KeyError("gone")'))
    (small / 'nbs/c.ipynb').write_text(notebook('import time; time.sleep(600)'))
    assert run_in_kernel(small, 'a.ipynb')['ok']
    bad = run_in_kernel(small, 'b.ipynb')
    assert not bad['ok'] and 'gone' in bad['output']
    assert 'killed after 8 s' in run_in_kernel(small, 'c.ipynb', 8)['output']


# Stages


def test_a_stage_in_the_background_that_fails_ends_the_run(root, monkeypatch):
    def fails(root, uncached):
        raise CheckFailed('the newcomer', ['no module'], 'add it')

    seen = []
    monkeypatch.setattr(stages, '_state', dict(stages=[], notebooks=[]))
    for name in ('_check_sources', '_sides_apart'):
        monkeypatch.setattr(stages, name, lambda root, *more: 'fine')
    monkeypatch.setattr(stages, 'newcomer', fails)
    monkeypatch.setattr(stages, '_check_site', lambda root: time.sleep(0.5) or 'fine')
    monkeypatch.setattr(stages, '_check_notebooks', lambda *a, **kw: seen.append(a) or 'fine')
    with pytest.raises(CheckFailed, match='the newcomer'):
        stages.run_stages(root)
    assert seen == [], 'the notebooks were not waited for'


def test_a_build_in_the_background_ends_with_the_run(root, monkeypatch, tmp_path):
    monkeypatch.setattr(stages, '_state', dict(stages=[], notebooks=[]))
    real = stages.start_group
    code = (
        "import subprocess\nfrom fsdl_tools.book import stages\nfrom fsdl_tools.environments import"
        " _call\nstages._side_environments = lambda root, slow: _call(['sleep', '4247'], 'log', 500)\nstages._sides()"
    )
    monkeypatch.setattr(
        stages,
        'start_group',
        lambda command, folder, out, env: real(
            [sys.executable, '-c', code], tmp_path, out, env | dict(PYTHONPATH=str(root))
        ),
    )
    monkeypatch.setattr(stages, '_check_sources', lambda root: 'fine')
    monkeypatch.setattr(stages, 'newcomer', lambda root, uncached: 'fine')

    def fails(root):
        end = time.monotonic() + 60
        while not sleepers(4247) and time.monotonic() < end:
            time.sleep(0.1)
        raise CheckFailed('the site', [], 'look')

    monkeypatch.setattr(stages, '_check_site', fails)
    with pytest.raises(CheckFailed, match='the site'):
        stages.run_stages(root)
    assert not sleepers(4247)


def test_quick_takes_what_was_changed(root, monkeypatch):
    monkeypatch.setattr(stages, '_state', dict(stages=[], notebooks=[]))
    seen = []
    monkeypatch.setattr(stages, '_check_sources', lambda root: 'fine')
    monkeypatch.setattr(stages, '_check_notebooks', lambda root, names: seen.extend(names) or 'fine')
    monkeypatch.setattr(stages, 'changed', lambda root: ['nbs/models/02_zoo.ipynb', 'README.md', 'tests/test_cli.py'])
    found = _run_quick(root)
    assert seen == ['models/02_zoo.ipynb'] and {'tests/test_cli.py', 'tests/models/test_zoo.py'} <= set(found)
    assert 'tests/parallel/test_tensor.py' not in concerned(root, ['nbs/models/02_zoo.ipynb'])


def test_help_needs_no_environment(root, tmp_path):
    shutil.copy(root / 'check', tmp_path)
    r = subprocess.run(
        ['./check', '--help'], cwd=tmp_path, capture_output=True, text=True, env=dict(PATH='/usr/bin:/bin')
    )
    assert r.returncode == 0 and all(o in r.stdout for o in ('--quick', '--slow', '--seed', '--uncached'))


# Tests that are drawn, and tests that run alone


def inner(root, folder, body, *args):
    "pytest on one file, with the settings of this project"
    (folder / 'tests').mkdir(exist_ok=True)
    shutil.copy(root / 'tests/conftest.py', folder / 'tests')
    shutil.copy(root / 'pytest.ini', folder)
    (folder / 'tests/test_it.py').write_text(body)
    env = {k: v for k, v in os.environ.items() if not k.startswith(('PYTEST_', 'FSDL_'))} | dict(
        PYTHONPATH=os.pathsep.join([str(root), *sys.path]), XDG_CACHE_HOME=str(folder / 'cache')
    )
    return subprocess.run(
        [sys.executable, '-m', 'pytest', '-vv', *args], cwd=folder, capture_output=True, text=True, env=env, timeout=120
    ).stdout


def test_a_sweep_is_drawn_by_its_seed(root, tmp_path):
    body = 'import pytest\n@pytest.mark.sweep(3)\n@pytest.mark.parametrize("i", range(50))\ndef test_one(i): pass\n'
    drawn = lambda *args: sorted(
        line.split(' ')[0] for line in inner(root, tmp_path, body, *args).splitlines() if '::test_one[' in line
    )
    a, b, c = drawn('--seed', '1'), drawn('--seed', '1'), drawn('--seed', '2')
    assert a == b != c and len(a) == len(c) == 3 and len(drawn('--slow')) == 50
    out = inner(root, tmp_path, body, '--seed', '1', '-n', '2')
    assert (
        '3 passed' in out.splitlines()[-1]
        and 'left out: 47 of 50 cases of tests/test_it.py::test_one are left to --slow (seed 1)' in out
    )


def test_what_runs_alone_runs_alone(root, tmp_path):
    body = f"""
import os, time, pytest
from pathlib import Path
log = Path({str(tmp_path)!r}, 'log')
def note(kind):
    with open(log, 'a') as f: f.write(f'{{time.monotonic()}} {{kind}} +\\n')
    time.sleep(.1)
    with open(log, 'a') as f: f.write(f'{{time.monotonic()}} {{kind}} -\\n')
@pytest.mark.parametrize('i', range(12))
def test_any(i): note('any')
@pytest.mark.alone
@pytest.mark.parametrize('i', range(4))
def test_alone(i): note('alone')
"""
    out = inner(root, tmp_path, body, '-n', '2', '--dist', 'loadgroup')
    assert '16 passed' in out, out
    rows = sorted(line.split() for line in (tmp_path / 'log').read_text().splitlines())
    inside, most = [], 0
    for _, kind, sign in rows:
        if sign == '+':
            inside.append(kind)
        else:
            inside.remove(kind)
        assert 'alone' not in inside or inside == ['alone']
        most = max(most, len(inside))
    assert most == 2, 'the others run side by side'


def test_skips_are_listed_and_the_verdict_is_last(root, tmp_path):
    out = inner(
        root, tmp_path, 'import pytest\n@pytest.mark.slow\ndef test_one(): pass\ndef test_two(): pass\n', '-n', '2'
    )
    assert 'slow: run with --slow' in out and '1 passed, 1 skipped' in out.splitlines()[-1]


def test_what_fails_is_repeated_with_the_same_draws_and_shown(root, tmp_path):
    body = f"""
from pathlib import Path
from hypothesis import given, strategies as st
def test_machine_was_busy():
    seen = Path({str(tmp_path)!r}, 'seen')
    first = not seen.exists()
    seen.touch()
    assert not first, 'the machine was busy'
def test_wrong_for_some_draws(rng): assert rng.random() > 2
@given(st.integers())
def test_wrong_for_some_inputs(x): assert x < 100
"""
    out = inner(
        root, tmp_path, body, '-n', '2', '--dist', 'loadgroup', '--seed', '3', '--hypothesis-seed', '3', '--reruns', '1'
    )
    assert '2 failed, 1 passed, 3 rerun' in out.splitlines()[-1], out[-3000:]
    first = out[out.index('passed, if at all, only the second time: tests/test_it.py::test_machine_was_busy') :]
    assert 'the machine was busy' in first
