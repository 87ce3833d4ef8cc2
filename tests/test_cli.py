"""The command line as a shell sees it: exit codes, one line for a mistake, help with examples, completion."""

import json, os, subprocess, sys
import pytest


def fsdl(*args, timeout=200):
    return subprocess.run(
        [sys.executable, '-c', 'from fsdl_tools.cli.main import main; main()', *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | dict(COLUMNS='200', TERM='dumb'),
    )


def commands():
    import typer
    from fsdl_tools.cli.main import app

    def walk(c, path=()):
        if hasattr(c, 'commands'):
            for n, sub in c.commands.items():
                yield from walk(sub, (*path, n))
        else:
            yield path

    return sorted(walk(typer.main.get_command(app)))


@pytest.mark.parametrize('path', commands(), ids=' '.join)
def test_every_command_has_help(path):
    r = fsdl(*path, '--help')
    assert r.returncode == 0 and 'Usage' in r.stdout and len(r.stdout) > 100


@pytest.mark.parametrize('path', [c for c in commands() if c != ('version',)], ids=' '.join)
def test_a_wrong_option_is_one_line_and_code_2(path):
    r = fsdl(*path, '--no-such-option')
    assert r.returncode == 2 and r.stdout == '' and r.stderr.count('\n') == 1 and r.stderr.startswith('fsdl: ')


def test_every_option_is_explained():
    import typer
    from fsdl_tools.cli.main import app

    top = typer.main.get_command(app)
    for path in commands():
        command = top
        for word in path:
            command = command.commands[word]
        command.explain()
        for param in command.params:
            assert (
                param.help
                and param.help == param.help.strip()
                and param.help.endswith(('.', '?', '…'))
                and '\n' not in param.help
            ), (path, param.name, param.help)


def test_what_a_command_is_like_explains_an_option():
    "Each function or record that is named for its docments gives one at least"
    import inspect
    import typer
    from fastcore.docments import docments
    from fsdl_tools.cli.common import docments_in
    from fsdl_tools.cli.main import app

    top = typer.main.get_command(app)
    for path in commands():
        command = top
        for word in path:
            command = command.commands[word]
        own = {name for name, text in docments(inspect.unwrap(command.callback)).items() if text}
        params = {param.name for param in command.params} - own
        for name in command.like:
            assert params & {arg for arg, text in docments_in(name).items() if text}, (path, name)


@pytest.mark.parametrize(
    'name',
    [
        'training.config:TrainConfig',
        'book.guide:guide',
        'compute.planner:estimate',
        'operations.launch:Job',
        'models.zoo:search_models',
    ],
)
def test_docments_are_read_as_fastcore_reads_them(name):
    import pkgutil
    from fastcore.docments import docments
    from fsdl_tools.cli.common import docments_in

    theirs = {
        k: ' '.join(v.split())
        for k, v in docments(pkgutil.resolve_name(f'fsdl_tools.{name}'), returns=False).items()
        if v
    }
    ours = {k: ' '.join(v.split()) for k, v in docments_in(name).items() if v}
    assert ours == theirs


@pytest.mark.parametrize('path', [('train',), ('memory',), ('diagnose',), ('cost',)], ids=' '.join)
def test_help_imports_nothing_heavy(path):
    code = (
        f'import sys; from fsdl_tools.cli.main import run; run({[*path, "--help"]}); print("torch" in sys.modules,'
        ' file=sys.stderr)'
    )
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert r.stderr.strip() == 'False' and 'Usage' in r.stdout


def test_help_is_fast_to_import():
    code = (
        'import sys; from fsdl_tools.cli.main import app; print([m for m in ("torch", "timm", "transformers", "onnx",'
        ' "jax", "tensorflow", "matplotlib") if m in sys.modules])'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


def test_the_shell_completes():
    code = 'from fsdl_tools.cli.main import main; main()'
    env = os.environ | dict(_FSDL_COMPLETE='complete_bash', COMP_WORDS='fsdl ver', COMP_CWORD='1')
    r = subprocess.run(
        [sys.executable, '-c', f'import sys; sys.argv[0] = "fsdl"; {code}'],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
    )
    assert 'version' in r.stdout


def test_library_and_terminal_read_the_same_texts(tmp_path):
    from fsdl_tools.book.guide import guide
    from fsdl_tools.environments import build_env
    from fsdl_tools.operations.tracking import follow
    from fsdl_tools.training.runlog import start_run

    assert guide('gpt2-xl', 'A100-SXM-40GB', tokens='26B', within='7d', price='$2.49/h') == guide(
        'gpt2-xl', 'A100-SXM-40GB', tokens=26e9, within=7 * 86400, price=2.49
    )
    with start_run(tmp_path, packages=False) as log:
        log.log(dict(loss=1.0), 0)
    assert [r['sink'] for r in follow(log.folder, 'jsonl, ', live=False, timeout='2min')] == ['jsonl']
    for wrong in (lambda: follow(log.folder, 'jsonl', timeout='soon'), lambda: build_env('horovod', timeout='soon')):
        with pytest.raises(ValueError, match='soon'):
            wrong()
