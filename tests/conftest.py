"""Settings shared by all tests: one thread, quiet frameworks; what runs alone, what only when asked for, and the
table at the end.
"""

import os

for k, v in dict(
    OMP_NUM_THREADS='1', TF_CPP_MIN_LOG_LEVEL='3', JAX_PLATFORMS='cpu', HF_HUB_OFFLINE='1', MPLBACKEND='Agg'
).items():
    os.environ.setdefault(k, v)
import collections
import contextlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
import pytest
from hypothesis import HealthCheck, settings
from fsdl_tools.book.checks import _record_seconds, check_cache, recorded_seconds
from fsdl_tools.files import write_atomic

settings.register_profile(
    'course', deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None
)
settings.load_profile('course')
ROOT = Path(__file__).parent.parent
STARTED = time.monotonic()
QUICK_SECONDS = 90  # tests of --quick, by what they took last time


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a run in the background of a shell: what tests start must hear Ctrl-C


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also the tests marked slow, and every case of every sweep')
    parser.addoption(
        '--quick',
        action='store_true',
        help=f'the shortest tests, of {QUICK_SECONDS} seconds together by what they took last time',
    )
    parser.addoption(
        '--keep-answers',
        action='store_true',
        help='write the answers that tests/*/answers keep again: read the diff before you commit it',
    )
    parser.addoption(
        '--seed', type=int, default=0, help='decides which cases of a sweep run, and what tests draw; default: 0'
    )


def pytest_configure(config):
    config.left_out = []


def pytest_report_header(config):
    return f'seed {config.option.seed} (--seed repeats what was drawn)'


@pytest.fixture(autouse=True)
def own_look():
    "What a test sets of matplotlib ends with it: titles stand where they stood, whichever test ran before"
    plt = sys.modules.get('matplotlib')
    before = dict(plt.rcParams) if plt else None
    yield
    plt = sys.modules.get('matplotlib')
    if not plt or before == dict(plt.rcParams):
        return
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        plt.rcdefaults()
        if before:
            plt.rcParams.update(before)


# What runs


def skip(item, why):
    item.add_marker(pytest.mark.skip(reason=why))


def leave_out(config, items, chosen, why):
    "Deselect these items, and say so at the end"
    if not chosen:
        return
    gone = set(map(id, chosen))
    items[:] = [item for item in items if id(item) not in gone]
    config.hook.pytest_deselected(items=chosen)
    config.left_out.append(f'{len(chosen)} {why}')


def sample_sweeps(config, items):
    "Of a test marked sweep(n), n of its cases, others for another seed"
    cases = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker('sweep'):
            cases[item.nodeid.partition('[')[0]].append(item)
    for name, all_of_it in cases.items():
        n = all_of_it[0].get_closest_marker('sweep').args[0]
        if len(all_of_it) <= n:
            continue
        kept = random.Random(f'{config.option.seed} {name}').sample(range(len(all_of_it)), n)
        rest = [item for i, item in enumerate(all_of_it) if i not in kept]
        leave_out(config, items, rest, f'of {len(all_of_it)} cases of {name} are left to --slow')


def within_budget(config, items):
    "The shortest tests, as many as fit"
    took, left = recorded_seconds().get('tests', {}), QUICK_SECONDS
    dropped = []
    for item in sorted(items, key=lambda item: took.get(item.nodeid, 0.1)):
        left -= took.get(item.nodeid, 0.1)
        if left < 0:
            dropped.append(item)
    leave_out(config, items, dropped, 'tests are left to the whole ./check')


def together(item):
    "Does a test share something that is made once a module? JAX and TensorFlow count as such"
    made = [made for every in item._fixtureinfo.name2fixturedefs.values() for made in every]
    return any(m.scope in ('module', 'class') for m in made) or item.path.name == 'test_frameworks.py'


def unit(item):
    "What stays on one worker: the tests of a file that share something, otherwise a test alone"
    return item.nodeid.partition('::')[0] if together(item) else item.nodeid


def in_order(items):
    """The longest first, file by file where files stay together; JAX and TensorFlow last, as they start threads and
    other tests fork ranks
    """
    took = recorded_seconds().get('tests', {})
    total = collections.Counter()
    for item in items:
        total[unit(item)] += took.get(item.nodeid, 1)
    if not took:  # a first run: what is made once a module takes long
        for name in {unit(item) for item in items if together(item)}:
            total[name] += 100
    late = {unit(item) for item in items if item.path.name == 'test_frameworks.py'}
    items.sort(key=lambda item: (unit(item) in late, -total[unit(item)], unit(item)))
    for item in items:
        if together(item):
            item.add_marker(pytest.mark.xdist_group(unit(item)))


def pytest_collection_modifyitems(config, items):
    items.sort(
        key=lambda item: item.path.name == 'test_frameworks.py'
    )  # last: JAX and TensorFlow start threads, and other tests fork ranks
    for item in items:
        if 'slow' in item.keywords and not config.option.slow:
            skip(item, 'slow: run with --slow')
        if 'gpu' in item.keywords:
            import torch

            if not torch.cuda.is_available():
                skip(item, 'no CUDA device')
    if not config.option.slow:
        sample_sweeps(config, items)
    if config.option.quick:
        within_budget(config, items)
    if hasattr(config, 'workerinput'):
        in_order(items)


# What runs alone


@contextlib.contextmanager
def locked(path, how):
    import fcntl

    with open(path, 'a+') as f:
        fcntl.lockf(f, how)  # not flock: a process that a test forks and forgets would keep it
        yield


@contextlib.contextmanager
def place_for(item):
    """Tests marked alone measure time, memory or traffic: the other worker waits meanwhile. The first lock keeps the
    queue fair
    """
    if not hasattr(item.config, 'workerinput'):
        yield
        return
    import fcntl

    gate = Path(tempfile.gettempdir()) / f'fsdl-tests-{item.config.workerinput["testrunuid"]}'
    how = fcntl.LOCK_EX if item.get_closest_marker('alone') else fcntl.LOCK_SH
    with contextlib.ExitStack() as held:
        with locked(f'{gate}.queue', fcntl.LOCK_EX):
            held.enter_context(locked(f'{gate}.place', how))
        yield


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    with place_for(item):
        yield


def pytest_unconfigure(config):
    if hasattr(config, 'workerinput'):
        return
    plugin = config.pluginmanager.get_plugin('dsession')
    for name in ('queue', 'place'):
        if plugin and hasattr(plugin, 'nodemanager'):
            Path(tempfile.gettempdir(), f'fsdl-tests-{plugin.nodemanager.testrunuid}.{name}').unlink(missing_ok=True)


# What is said at the end


def pytest_sessionfinish(session):
    if hasattr(session.config, 'workerinput'):
        session.config.workeroutput['left_out'] = session.config.left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.left_out += getattr(node, 'workeroutput', {}).get('left_out', [])


def seconds_of_tests(reporter):
    "Seconds of each test that passed, its fixtures included"
    total = collections.Counter()
    for reports in reporter.stats.values():
        for r in reports:
            if hasattr(r, 'duration') and hasattr(r, 'when'):
                total[r.nodeid] += r.duration
    return total


def systems_of_the_lecture(reporter, write):
    "What this run says about every system that the lecture names, kept for results/systems.json"
    from fsdl_tools.book.claims_page import record_of_systems

    outcomes = {f'nbs/{name}': 'passed' for name in recorded_seconds().get('notebooks', {})}
    for what in ('skipped', 'passed', 'failed', 'error'):
        outcomes |= {
            re.sub(r'@[^]@]*$', '', r.nodeid): 'failed' if what == 'error' else what
            for r in reporter.stats.get(what, [])
            if hasattr(r, 'nodeid')
        }
    found = record_of_systems(outcomes)
    write_atomic(check_cache() / 'systems.json', json.dumps(found, indent=1))
    others = [
        f"{r['system']} ({r['status']}: {', '.join(r['because'])})" for r in found['rows'] if r['status'] != 'works'
    ]
    write(
        f"systems of the lecture: {len(found['rows']) - len(others)} of {len(found['rows'])}"
        f" work{': not ' if others else ''}{'; '.join(others)}"
    )


def pytest_terminal_summary(terminalreporter, config):
    took, write = seconds_of_tests(terminalreporter), terminalreporter.write_line
    passed = {r.nodeid for r in terminalreporter.stats.get('passed', [])}
    _record_seconds('tests', {re.sub(r'@[^]@]*$', '', name): s for name, s in took.items() if name in passed})
    for line in dict.fromkeys(config.left_out):
        write(f'left out: {line} (seed {config.option.seed})')
    for r in terminalreporter.stats.get('rerun', []):
        write(f'passed, if at all, only the second time: {r.nodeid}')
        write(str(r.longrepr))
    if 'FSDL_CHECK' not in os.environ:
        return
    systems_of_the_lecture(terminalreporter, write)
    state = json.loads(os.environ['FSDL_CHECK'])
    write('\nslowest notebooks')
    for name, s in state['notebooks']:
        write(f'{s:8.1f} s  {name}')
    write('slowest tests')
    for name, s in took.most_common(10):
        write(f'{s:8.1f} s  {name}')
    write('stages')
    for stage in [
        *state['stages'],
        dict(stage='pytest', seconds=time.monotonic() - STARTED, note=f'{len(took)} tests'),
    ]:
        write(f"{stage['seconds']:8.1f} s  {stage['stage']}: {stage['note']}")


# Fixtures


@pytest.fixture(scope='session')
def root():
    return ROOT


@pytest.fixture
def rng(request):
    return random.Random(f'{request.config.option.seed} {request.node.nodeid}')


@pytest.fixture(scope='session')
def slow(request):
    return request.config.option.slow


@pytest.fixture(scope='session')
def side():
    "Build a side environment, or skip where the machine lacks what it is built from"
    from fsdl_tools.environments import build_env, missing_programs, side_env

    def get(name):
        env = side_env(name)
        if not sys.platform.startswith('linux'):
            pytest.skip(f'the side environment {name} is built on Linux only')
        if lacks := missing_programs(env):
            pytest.skip(f"the side environment {name} needs {', '.join(lacks)}")
        build_env(env)
        return name

    return get


@pytest.fixture(scope='session')
def browser():
    "A headless Chromium, driven by Playwright"
    exe = next((p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None)
    if not exe:
        pytest.skip('no Chromium: apt install chromium')
    sync = pytest.importorskip('playwright.sync_api')
    flags = (
        '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking'
        ' --disable-component-update --disable-sync'.split()
    )
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=exe, args=flags)
        yield b
        b.close()
