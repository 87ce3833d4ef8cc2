"""The library alone: what is built from the repository works in an environment and a folder that know nothing of it"""

import os, shlex, shutil, subprocess, sys, tarfile, zipfile
from pathlib import Path
import pytest

TOP = ('settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'requirements.lock')


@pytest.fixture(scope='module')
def built(root, tmp_path_factory):
    "An sdist, and a wheel that was built from that sdist"
    pytest.importorskip('build')
    src, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    for name in TOP:
        shutil.copy(root / name, src)
    shutil.copytree(root / 'fsdl_tools', src / 'fsdl_tools', ignore=shutil.ignore_patterns('__pycache__', '*.egg-info'))
    alone = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    run = subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', '-o', out, src],
        capture_output=True,
        text=True,
        env=alone,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return next(out.glob('*.whl')), next(out.glob('*.tar.gz'))


@pytest.fixture(scope='module')
def alone(built, tmp_path_factory):
    "An environment that holds the wheel, layered on the packages of this one but not on its checkout"
    import torch

    top = tmp_path_factory.mktemp('alone')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', top / 'env'], check=True)
    python = top / 'env/bin/python'
    subprocess.run(
        [sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--no-index', built[0]],
        check=True,
    )
    site = next((top / 'env/lib').glob('python*/site-packages'))
    (site / 'below.pth').write_text(str(Path(torch.__file__).parent.parent) + '\n')
    return top


def outside(alone, *command):
    "Run a program of the environment in a folder of its own, without a variable that leads back"
    elsewhere = alone / 'elsewhere'
    elsewhere.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')} | dict(HF_HUB_OFFLINE='1')
    run = subprocess.run(
        [alone / 'env/bin' / command[0], *command[1:]],
        cwd=elsewhere,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-3000:]
    return run.stdout


def test_every_data_file_is_in_the_wheel(root, built):
    have = {
        p.relative_to(root).as_posix()
        for p in (root / 'fsdl_tools/data').rglob('*')
        if p.is_file() and p.name[0] != '.' and '__pycache__' not in p.parts
    }
    assert have and have | {'fsdl_tools/py.typed'} <= set(zipfile.ZipFile(built[0]).namelist())


def test_every_module_is_in_the_wheel(root, built):
    have = {p.relative_to(root).as_posix() for p in (root / 'fsdl_tools').rglob('*.py')}
    assert have <= set(zipfile.ZipFile(built[0]).namelist())


def test_the_sdist_can_be_built_again(built):
    names = {n.partition('/')[2] for n in tarfile.open(built[1]).getnames()}
    assert set(TOP) <= names


def test_metadata(built):
    z = zipfile.ZipFile(built[0])
    text = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
    assert (
        'Requires-Python: >=3.11' in text
        and 'Provides-Extra: lab' in text
        and 'Programming Language :: Python :: 3.14' in text
    )
    assert '+cpu' not in text


def test_imports_from_elsewhere(alone, root):
    out = outside(alone, 'python', '-c', 'import fsdl_tools, sys; print(fsdl_tools.__file__, "torch" in sys.modules)')
    assert str(alone) in out and out.split()[-1] == 'False'


def test_data_is_read_from_elsewhere(alone, root):
    code = (
        'from fsdl_tools.core import data_path; import json, sys; print([len(data_path(n).read_text()) for n in'
        ' sys.argv[1:]])'
    )
    names = [p.relative_to(root / 'fsdl_tools/data').as_posix() for p in (root / 'fsdl_tools/data').rglob('*.json')][
        :20
    ]
    assert names and '0' not in outside(alone, 'python', '-c', code, *names).strip('[]\n').split(', ')


def commands(root):
    "The README's commands that begin with fsdl, help apart"
    import re

    text = re.sub(
        r'\[[^\]]*\]\([^)]*\)', '', (root / 'README.md').read_text()
    )  # in the name of a chapter a command is no example
    return [c for c in re.findall(r'`(fsdl [a-z][^`]*)`', text) if '--help' not in c]


def test_the_readme_s_commands_work_from_elsewhere(alone, root):
    found = commands(root)
    assert found
    for command in found:
        assert outside(alone, *shlex.split(command)).strip(), command


def test_the_readme_s_python_works_from_elsewhere(alone, root):
    import re

    blocks = re.findall(r'```python\n(.*?)```', (root / 'README.md').read_text(), re.S)
    assert outside(alone, 'python', '-c', '\n'.join(blocks)).strip()
