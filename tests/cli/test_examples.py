"""Every example of a help text, of the README and of the pages is run as it stands, in one folder that holds the
files they name.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from fsdl_tools.cli.main import app

ROOT = Path(__file__).parents[2]
COMMAND = typer.main.get_command(app)
SERVERS = ('fsdl app', 'fsdl runs serve')  # they run until they are stopped
REFUSED = {'fsdl launch status slurm:17': 'squeue'}  # no SLURM here: one line says what is missing
# What takes more than a second or two, or needs torch: first words -> with --slow only
HEAVY = (
    'fsdl memory',
    'fsdl profile',
    'fsdl export',
    'fsdl verify',
    'fsdl bench',
    'fsdl race',
    'fsdl train',
    'fsdl checkpoints',
    'fsdl diagnose',
    'fsdl tour',
    'fsdl env build',
    'fsdl sweep',
    'fsdl app',
    'fsdl guide resnet50',
    'fsdl runs convert',
    'fsdl runs follow',
    'fsdl runs serve',
    'fsdl claims check',
)


def walk(command, path=()):
    "Every command with its words"
    yield path, command
    for name, inner in getattr(command, 'commands', {}).items():
        yield from walk(inner, (*path, name))


def help_examples():
    "What stands between backticks in the help of each command"
    return {' '.join(path): re.findall(r'`([^`]*)`', c.help or '') for path, c in walk(COMMAND)}


def texts():
    "README and the prose of every page"
    yield 'README.md', (ROOT / 'README.md').read_text(encoding='utf-8')
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        yield (
            path.relative_to(ROOT).as_posix(),
            '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown'),
        )


def mentioned():
    "Every command line that a page shows -> where"
    found = {}
    for where, text in texts():
        lines = re.findall(r'`(fsdl [^`\n]+)`', text)
        for block in re.findall(r'```(?:bash|sh)\n(.*?)```', text, re.S):
            lines += [line for line in block.splitlines() if line.startswith('fsdl ')]
        for line in lines:
            found.setdefault(line, []).append(where)
    return found


def words_of(line):
    "Words after fsdl, without what belongs to the shell"
    return shlex.split(re.split(r'\s(?:\||>|\|\||&&)\s', line)[0])[1:]


def parsed(line):
    "The path of the command, and what its parser says of the rest: None where it takes it"
    command, path, words = COMMAND, [], words_of(line)
    while words and words[0] in getattr(command, 'commands', {}):
        command, path, words = command.commands[words[0]], [*path, words[0]], words[1:]
    if {'--help', '--version', '--install-completion', '--show-completion'} & set(words):
        return path, None
    try:
        command.make_context(' '.join(path), list(words))
    except Exception as why:
        if not hasattr(why, 'format_message'):
            raise
        return path, why.format_message() or 'nothing was asked'
    return path, None


def is_example(line):
    """Has it words of its own, all of which the parser takes, and no place to be filled in? The bare name of a
    command is none
    """
    own = words_of(line)[len(parsed(line)[0]) :]
    return (
        bool(own)
        and not re.search(r'\b[A-Z]{2,}\b(?!-)', re.sub(r'A100|H100|RTX|SXM|GB\b|GiB|\d+B\b', '', line))
        and parsed(line)[1] is None
    )


EXAMPLES = sorted(
    {e for found in help_examples().values() for e in found} | {line for line in mentioned() if is_example(line)}
)
EXAMPLES = [e for e in EXAMPLES if '-completion' not in e]  # it would write into somebody's shell


@pytest.mark.parametrize('name', [n for n, _ in help_examples().items()], ids=lambda n: n or 'fsdl')
def test_help_shows_two_examples(name):
    examples = help_examples()[name]
    assert len(examples) >= 2, examples
    for line in examples:
        assert line.startswith(f'fsdl {name}'.strip()) or line == 'fsdl --version', line
        assert parsed(line)[1] is None, (line, parsed(line))


def test_every_command_that_a_page_shows_exists():
    for line, where in mentioned().items():
        path, wrong = parsed(line.replace('COMMAND', 'plan'))
        assert path or words_of(line)[0].startswith('-'), (line, where)
        if wrong:
            assert 'No such' not in wrong, (line, where, wrong)


# Run as they stand


def run_of(place, name, count):
    from fsdl_tools.training.runlog import start_run

    os.environ['FSDL_RUN_FOLDER'] = str(place / 'runs' / name)
    try:
        log = start_run(place / 'runs', dict(lr=0.1 * count), name=name, packages=False)
    finally:
        del os.environ['FSDL_RUN_FOLDER']
    for step in range(8):
        log.log(dict(loss=1 / (step + count)), step)
    log.finish()


def files_for(place):
    "The files that the examples name"
    from fsdl_tools.operations.launch import Job
    from fsdl_tools.compute.gpus import Cluster
    from fsdl_tools.compute.planner import estimate
    from fsdl_tools.core import read_data
    from fsdl_tools.table import Table
    from fsdl_tools.training.config import TrainConfig

    (place / 'runs').mkdir()
    for name, count in (('1', 1), ('2', 2)):
        run_of(place, name, count)
    Job('train', ('python', 'train.py')).to_json(place / 'job.json')
    estimate('gpt2', 'dp8', Cluster('H100', 8), 64, 1024).to_json(place / 'plan.json')
    TrainConfig(folder='run').to_json(place / 'run.json')
    rows = [
        r
        for r in read_data('published_runs.csv', text=('date',))
        if r['study'] == 'bloom-prequel' and r['step_seconds']
    ]
    Table(rows[:6]).to_csv(place / 'runs.csv')
    Table(rows[:3]).to_csv(place / 'mine.csv')
    (place / 'path' / 'to').mkdir(parents=True)
    (place / 'path/to/config.json').write_text(
        json.dumps(
            dict(
                model_type='llama',
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                intermediate_size=128,
                vocab_size=500,
                max_position_embeddings=2048,
            )
        )
    )
    (place / 'book.txt').write_text('It is a truth universally acknowledged. ' * 400)
    (place / 'train.py').write_text(TRAIN)
    (place / 'trial.py').write_text(TRIAL)
    (place / 'sweep.yaml').write_text(
        'program: trial.py\nmethod: random\nmetric: {name: loss, goal: minimize}\nparameters:\n  lr: {min: 0.01, max:'
        ' 1.0}\nrun_cap: 4\n'
    )
    (place / 'trace.json').write_text(json.dumps(trace()))


TRAIN = '''import argparse, torch
a = argparse.ArgumentParser(); a.add_argument('--steps', type=int, default=20)
model = torch.nn.Linear(64, 64); opt = torch.optim.SGD(model.parameters(), lr=.1)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4000, 64)), batch_size=32)
for step, (x,) in zip(range(a.parse_args().steps), data):
    model(x).square().mean().backward(); opt.step(); opt.zero_grad()
'''
TRIAL = '''import sys
from fsdl_tools.training.runlog import start_run
lr = float(next(a.split('=')[1] for a in sys.argv if a.startswith('--lr=')))
with start_run(params=dict(lr=lr), packages=False) as log: log.log(dict(loss=(lr - .3)**2), 0)
'''


def trace():
    "Four steps of a loop as torch.profiler writes them"
    events = []
    for step in range(4):
        start = step * 10_000
        events += [
            dict(ph='X', cat='user_annotation', name=f'ProfilerStep#{step}', ts=start, dur=10_000, pid=1, tid=1),
            dict(
                ph='X',
                cat='cpu_op',
                name='enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__',
                ts=start,
                dur=6_000,
                pid=1,
                tid=1,
            ),
            dict(ph='X', cat='cpu_op', name='aten::mm', ts=start + 6_100, dur=3_000, pid=1, tid=1),
        ]
    return dict(traceEvents=events)


def photos(place):
    from PIL import Image

    for name, colour in (('cats', (200, 20, 20)), ('dogs', (20, 20, 200))):
        (place / 'photos' / name).mkdir(parents=True)
        for i in range(12):
            Image.new('RGB', (48, 48), colour).save(place / 'photos' / name / f'{i}.jpg')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with all files, and the command fsdl on the path"
    folder = tmp_path_factory.mktemp('examples')
    files_for(folder)
    photos(folder)
    (folder / 'bin').mkdir()
    program = folder / 'bin' / 'fsdl'
    program.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -W ignore -c "from fsdl_tools.cli.main import main; main()"'
        ' "$@"\n'
    )
    program.chmod(0o755)
    return folder


# What one example makes and others name: whichever runs first, the file is there
MADE_BY = {
    'mine.json': 'fsdl plan calibrate runs.csv --save mine.json',
    'model.onnx': 'fsdl export resnet18 -o model.onnx',
    'resnet18.onnx': 'fsdl export resnet18 -o resnet18.onnx --quantise int8',
    'resnet18.int8.onnx': 'fsdl export resnet18 -o resnet18.onnx --quantise int8',
    '--resume': 'fsdl sweep sweep.yaml --workers 2',
}


def makers(place, line):
    "The commands that have to come before the line"
    made = lambda word: (place / ('sweep' if word == '--resume' else word)).exists()
    return list(
        dict.fromkeys(by for word, by in MADE_BY.items() if word in words_of(line) and by != line and not made(word))
    )


def as_it_stands(place, line, timeout):
    "What a shell makes of the line"
    env = os.environ | dict(
        PATH=f'{place}/bin:{Path(sys.executable).parent}:{os.environ["PATH"]}',
        COLUMNS='140',
        TERM='dumb',
        PYTHONPATH=f'{place}:{ROOT}',
    )
    return subprocess.Popen(
        ['bash', '-c', line],
        cwd=place,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ends_well(place, line, timeout=560):
    for first in makers(place, line):
        ends_well(place, first, timeout)
    process = as_it_stands(place, line, timeout)
    out, err = process.communicate(timeout=timeout)
    if line in REFUSED:
        assert process.returncode == 2 and err.count('\n') == 1 and err.startswith('fsdl: '), (out, err)
    else:
        assert process.returncode == 0, (out[-600:], err[-1200:])


def serves_until_it_is_stopped(place, line):
    process = as_it_stands(place, line, 120)
    said = process.stdout.readline()
    assert said.startswith('http://127.0.0.1'), (said, process.poll() is not None and process.stderr.read())
    time.sleep(3)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (0, 130)


LIGHT = [e for e in EXAMPLES if not e.startswith(HEAVY)]


@pytest.mark.parametrize('line', LIGHT)
def test_an_example_runs_as_it_stands(place, line):
    ends_well(place, line, 60)


def test_an_example_needs_no_other_before_it(place):
    "Workers share the examples out among themselves, so the one that makes a file may run elsewhere"
    for name, by in MADE_BY.items():
        if by.startswith(HEAVY):
            continue
        (place / name).unlink(missing_ok=True)
        users = [line for line in LIGHT if name in words_of(line) and line != by]
        assert users
        for line in users:
            ends_well(place, line, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('line', [e for e in EXAMPLES if e not in LIGHT])
def test_a_long_example_runs_as_it_stands(place, line, side):
    if line.startswith('fsdl env build'):
        side(words_of(line)[2])  # or it is skipped, where it cannot be built
    if line.startswith('fsdl sweep') and '--resume' not in line:
        shutil.rmtree(place / 'sweep', ignore_errors=True)
    if line.startswith('fsdl checkpoints') and not (place / 'runs/1/checkpoints').exists():
        ends_well(place, 'rm -r runs/1 && fsdl train --steps 2 -o runs/1')
    if line.startswith(SERVERS):
        serves_until_it_is_stopped(place, line)
    else:
        ends_well(place, line)


def test_what_is_left_to_slow_runs_is_named():
    "Every example is in one of the two lists, and the names of heavy commands are commands"
    names = {' '.join(('fsdl', *path)) for path, _ in walk(COMMAND)}
    for start in HEAVY:
        assert start in names or start == 'fsdl guide resnet50' or start.rpartition(' ')[0] in names, start
    assert len(LIGHT) >= 20


# Ctrl-C and closed pipes


def test_a_closed_pipe_is_no_error(place):
    "The reader has gone before the writer writes"
    for line in (
        'fsdl zoo search --limit 2000 | head -1',
        'fsdl data --json | head -1',
        'fsdl gpus | true',
        'fsdl --help | true',
        'fsdl docs | true',
    ):
        process = as_it_stands(place, line + '; exit ${PIPESTATUS[0]}', 60)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and err == '', (line, process.returncode, err)


def test_an_interrupted_command_ends_without_a_traceback(place):
    (place / 'stop.py').write_text(
        'import os, signal, threading\nfrom fsdl_tools.cli.main import main\nimport sys\nsys.argv = ["fsdl", "runs",'
        ' "serve"]\nthreading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\nmain()\n'
    )
    r = subprocess.run(
        [sys.executable, '-W', 'ignore', 'stop.py'],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )
    assert r.returncode == 130 and r.stderr in ('', 'stopped\n'), r


def test_versions_are_those_that_are_installed():
    from importlib.metadata import version

    r = subprocess.run(
        [sys.executable, '-c', 'from fsdl_tools.cli.main import main; main()', '--version'],
        capture_output=True,
        text=True,
    )
    lines = r.stdout.splitlines()
    assert r.returncode == 0 and f'typer {version("typer")}' in lines and lines[1].startswith('python 3.')


def test_docs_find_what_the_chapters_export(place):
    from fsdl_tools.cli.main import run

    assert run(['docs', 'no such name at all']) == 2
    assert run(['docs', 'Guide.walk']) == run(['docs', 'systems']) == run(['docs']) == 0
