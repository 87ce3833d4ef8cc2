"""Strangers' files and ordinary mistakes: one line and code 2, nothing hangs, nothing is touched but what was named,
nothing is fetched or called.
"""

import contextlib
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
import pytest
from fsdl_tools.cli.main import run
from fsdl_tools.core import Record, printable, theirs
from fsdl_tools.units import parse_bytes, parse_count
from fsdl_tools.files import read_limited, write_atomic
from fsdl_tools.table import Table
from tests.cli.mutations import configurations, mutated_configuration, mutated_table, mutated_words

LIMIT, PATIENCE = 10, 100  # seconds of computing, and of waiting on a machine that others use
kept = [0, 1, 2, 3, 5, 8, 13, 21]  # seeds that always run, and those that have found something


class Hangs(BaseException):
    "A command took too long"


@contextlib.contextmanager
def in_time():
    def ring(*args):
        raise Hangs

    before = {s: signal.signal(s, ring) for s in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for s, handler in before.items():
            signal.signal(s, handler)


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    "What commands import takes longer than a command: it is done before the clock runs"
    from fsdl_tools.compute import search, validation  # noqa: F401
    from fsdl_tools.memory import adapters
    from fsdl_tools.models.profile import profile

    path = tmp_path_factory.mktemp('first') / 'config.json'
    for config in configurations:
        path.write_text(json.dumps(config))
        profile(str(path))
    profile('resnet18')
    assert adapters


@pytest.fixture
def command(imported, tmp_path, monkeypatch, capsys):
    """A function that runs the command in an empty folder without a network; it gives code, output, error lines, and
    holds all of them to the rule
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)

    def refuse(self, address, *rest):
        raise AssertionError(f'a connection to {address}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)

    def call(*words, named=()):
        before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
        capsys.readouterr()
        with in_time():
            code = run([str(w) for w in words])
        out, err = capsys.readouterr()
        lines = [l for l in err.splitlines() if not l.startswith('[transformers]')]
        assert code in (0, 1, 2), code
        if code == 2:
            assert len(lines) == 1 and lines[0].startswith('fsdl: ') and len(lines[0]) < 3000, (words, err)
        assert not [c for c in out + err if ord(c) < 32 and c not in '\n\t'], 'control characters reach the terminal'
        after = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
        changed = {p.name for p in after if after[p] != before.get(p)} | {p.name for p in before if p not in after}
        assert changed <= set(named), f'{changed} were touched'
        return code, out, lines

    return call


def seeds(request, few, many):
    "All of them with --slow, otherwise the kept ones and a few others each time"
    if request.config.option.slow:
        return range(many)
    return [*kept, *random.Random(f'{request.config.option.seed} {request.node.name}').sample(range(many), few)]


# A fuzzer: the seed of a failure is in its message, and belongs into `kept`


def test_mutated_configurations(request, command):
    for seed in seeds(request, 24, 2000):
        Path('config.json').write_bytes(mutated_configuration(seed))
        try:
            command(
                *random.Random(seed).choice(
                    [('profile', 'config.json'), ('profile', '.', '--json'), ('profile', 'config.json', '--tree', '1')]
                )
            )
        except (Exception, Hangs) as e:
            pytest.fail(f'configuration {seed}: {type(e).__name__}: {e}')


def test_mutated_configurations_in_memory_and_plans(request, command):
    for seed in seeds(request, 6, 300):
        Path('config.json').write_bytes(mutated_configuration(seed))
        try:
            command(
                *random.Random(seed).choice(
                    [
                        ('memory', 'config.json', '--seq', '16'),
                        ('plan', 'config.json', '--gpus', '1', '--global-batch', '1', '--layout', 'dp1'),
                    ]
                )
            )
        except (Exception, Hangs) as e:
            pytest.fail(f'configuration {seed}: {type(e).__name__}: {e}')


prices = ('provider gpu gpus usd_per_hour'.split(), ['mine', 'H100-SXM-80GB', '8', '20'])
runs = (
    'layers hidden heads ffn vocab seq gpus tp pp dp global_batch'.split(),
    '24 1024 16 4096 50000 1024 8 2 2 2 64'.split(),
)


def test_mutated_tables(request, command):
    for seed in seeds(request, 30, 1000):
        header, row = (prices, runs)[seed % 2]
        Path('table.csv').write_bytes(mutated_table(header, row, seed))
        try:
            if seed % 2:
                command('plan', '--batch', 'table.csv', '--out', 'out.csv', named=['out.csv'])
            else:
                command('cost', '--from', 'table.csv')
        except (Exception, Hangs) as e:
            pytest.fail(f'table {seed}: {type(e).__name__}: {e}')


def quick_commands():
    "Commands that only look: path -> options, each with whether it is a flag"
    import typer
    from fsdl_tools.cli.common import app

    heavy = {
        'train',
        'export',
        'race',
        'submit',
        'logs',
        'cancel',
        'status',
        'launch',
        'serve',
        'follow',
        'convert',
        'sweep',
        'build',
        'app',
        'env',
        'runs',
        'jobs',
        'bench',
        'verify',
        'run',
        'tour',
        'tune',
    }

    def walk(c, path=()):
        if hasattr(c, 'commands'):
            for n, sub in c.commands.items():
                if n not in heavy:
                    yield from walk(sub, (*path, n))
        else:
            yield (
                path,
                [
                    (o, p.is_flag)
                    for p in c.params
                    if getattr(p, 'opts', None) and p.opts[0].startswith('-')
                    for o in p.opts
                    if o not in ('--help', '--save', '--out')
                ],
            )

    return dict(walk(typer.main.get_command(app)))


def test_mutated_command_lines(request, command):
    found = quick_commands()
    for seed in seeds(request, 24, 1000):
        path = random.Random(seed).choice(sorted(found))
        line = mutated_words(path, found[path] or [('--json', True)], seed)
        try:
            command(*line)
        except (Exception, Hangs) as e:
            pytest.fail(f'words {seed}, {line}: {type(e).__name__}: {e}')


def options_of(name):
    "Options of a command that neither name what is written nor ask for help: each with whether it is a flag"
    import typer
    from fsdl_tools.cli.common import app

    params = typer.main.get_command(app).commands[name].params
    return [
        (o, p.is_flag)
        for p in params
        for o in getattr(p, 'opts', ())
        if o.startswith('-') and not set(p.opts) & {'--out', '--save', '--folder', '--log', '--help', '--data'}
    ]


nowhere = {
    'verify': (['none.onnx'], []),
    'bench': (['none.onnx'], []),
    'export': (['no-such-model'], []),
    'train': ([], ['--data', '/no/such/file']),
    'diagnose': (['/no/such/run'], []),
}


def test_mutated_options_of_heavy_commands(request, command):
    "Their input does not exist, so whatever the options say, they end in one line"
    for seed in seeds(request, 12, 400):
        rng = random.Random(f'heavy {seed}')
        name = rng.choice(sorted(nowhere))
        before, after = nowhere[name]
        line = mutated_words([name, *before], options_of(name), seed, args=False) + after
        try:
            assert command(*line)[0] in (0, 2)  # 0 for --help in the words of another library
        except (Exception, Hangs) as e:
            pytest.fail(f'heavy {seed}, {line}: {type(e).__name__}: {e}')


# A file chooses neither network nor code


@pytest.mark.parametrize(
    'fields',
    [
        dict(model_type='detr', backbone='hf-hub:someone/code'),
        dict(model_type='detr', backbone='microsoft/resnet-50'),
        dict(model_type='dpt', backbone='someone/else', is_hybrid=False),
        dict(model_type='timm_wrapper', architecture='hf-hub:someone/code'),
        dict(model_type='timm_backbone', backbone='hf_hub:someone/code'),
        dict(model_type='timm_backbone', backbone='local-dir:/tmp'),
        dict(model_type='depth_anything', backbone='timm/hf-hub:someone/x'),
        dict(model_type='detr', backbone_config=dict(model_type='timm_backbone', backbone='hf-hub:someone/x')),
        dict(model_type='llama', architectures=['pipeline']),
        dict(model_type='llama', architectures=['AutoModel']),
        dict(model_type='llama', architectures=['Trainer']),
        dict(model_type='llama', architectures=['__builtins__']),
        dict(model_type='llama', architectures=['BertForMaskedLM']),
        dict(model_type='llama', architectures='pipeline'),
        dict(model_type='llama', architectures=[['pipeline']]),
    ],
    ids=lambda d: ' '.join(map(str, list(d.values())[:2]))[:60],
)
def test_a_file_chooses_neither_network_nor_code(fields, command, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, 'pipeline', lambda *a, **k: pytest.fail('pipeline was called'))
    Path('config.json').write_text(json.dumps(fields))
    code, out, lines = command('profile', 'config.json')
    if fields['architectures'] == ['__builtins__'] if 'architectures' in fields else False:
        assert code in (0, 2)
    else:
        assert code == 2 and out == ''


@pytest.mark.parametrize(
    'field', ['attn_implementation', '_attn_implementation', 'experts_implementation', '_experts_implementation']
)
def test_a_file_chooses_no_kernel(field, command):
    Path('config.json').write_text(
        json.dumps(
            configurations[0]
            | {
                field: 'someone/kernels',
                'auto_map': {'AutoConfig': 'steal.Steal'},
                'quantization_config': {'quant_method': 'x'},
                'custom_pipelines': {'x': 1},
            }
        )
    )
    assert command('profile', 'config.json')[0] == 0


@pytest.mark.parametrize(
    'fields',
    [
        dict(num_hidden_layers=10**9),
        dict(num_labels=10**9),
        dict(hidden_size='x'),
        dict(hidden_size=None),
        dict(hidden_size=-5),
        dict(hidden_act='unknown'),
        dict(num_attention_heads=0),
        dict(vocab_size=[1]),
        dict(rope_scaling='x'),
        dict(max_position_embeddings={}),
    ],
)
def test_a_bad_configuration_is_one_line(fields, command):
    Path('config.json').write_text(json.dumps(configurations[0] | fields))
    assert command('profile', 'config.json')[0] == 2


# Text from outside is text


@pytest.mark.parametrize(
    'text',
    [
        '[/x]',
        '[red]x',
        '[link=https://x]y[/link]',
        '\x1b[31mred',
        '\x1b]0;t\x07',
        '\x9b31m',
        '\r',
        'a\u202eb',
        ':smile:',
    ],
)
def test_text_is_printed_as_text(text, command):
    code, out, lines = command('zoo', 'search', text)
    assert code == 0 and printable(text.split()[0] if text.strip() else '')[:3] in out.replace('\n', '')
    for words in (
        ('profile', text),
        ('zoo', 'tags', text),
        ('memory', text),
        ('plan', text),
        ('zoo', 'search', '--task', text),
        ('cost', text),
        (text,),
    ):
        if not text.startswith('-'):
            assert command(*words)[0] == 2


@pytest.mark.parametrize('text', ['[/x]', '\x1b[2J', '[bold]'])
def test_tables_print_text(text, capsys):
    from rich.console import Console

    t = Table([{text + 'name': text}], caption=text, notes=text)
    Console(width=100).print(t)
    shown = capsys.readouterr().out
    assert (
        '\x1b' not in shown.replace('\x1b[1m', '').replace('\x1b[0m', '').replace('\x1b[3m', '')
        and printable(text) in shown
        and '\x1b' not in repr(t)
    )


@pytest.mark.parametrize('columns', ['0', '-1', 'x', '', '3', '99999999999'])
def test_any_width_prints(columns, command, monkeypatch):
    monkeypatch.setenv('COLUMNS', columns)
    assert command('zoo', 'search', 'resnet18')[0] == 0
    r = (
        subprocess.run(
            [sys.executable, '-c', 'from fsdl_tools.cli.main import main; main()', 'zoo', 'search', 'resnet18'],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | dict(COLUMNS=columns),
        )
        if columns in ('0', '3')
        else None
    )
    assert r is None or (r.returncode == 0 and 'resnet18' in r.stdout)


def test_a_terminal_without_letters(tmp_path):
    r = subprocess.run(
        [sys.executable, '-c', 'from fsdl_tools.cli.main import main; main()', 'zoo', 'search', '--task', 'modèle'],
        capture_output=True,
        timeout=60,
        env=os.environ | dict(PYTHONIOENCODING='ascii', LC_ALL='C'),
    )
    assert r.returncode == 2 and r.stderr.count(b'\n') == 1


# Files


def test_links_are_followed_and_rights_stay(tmp_path):
    target = tmp_path / 'there' / 'a.json'
    target.parent.mkdir()
    target.write_text('old')
    target.chmod(0o640)
    (tmp_path / 'link').symlink_to(target)
    (tmp_path / 'new').symlink_to(tmp_path / 'there' / 'b.json')
    write_atomic(tmp_path / 'link', 'new')
    write_atomic(tmp_path / 'new', 'b')
    assert (
        (tmp_path / 'link').is_symlink()
        and target.read_text() == 'new'
        and stat.S_IMODE(target.stat().st_mode) == 0o640
    )
    assert (tmp_path / 'new').is_symlink() and (tmp_path / 'there' / 'b.json').read_text() == 'b'
    assert sorted(p.name for p in target.parent.iterdir()) == ['a.json', 'b.json']


def test_devices_stay_devices(tmp_path):
    write_atomic('/dev/null', 'x')
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
    with pytest.raises(OSError, match='No space'):
        write_atomic('/dev/full', 'x' * 10_000)
    (tmp_path / 'null').symlink_to('/dev/null')
    write_atomic(tmp_path / 'null', 'x')
    assert (tmp_path / 'null').is_symlink() and stat.S_ISCHR(os.stat('/dev/null').st_mode)
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path, 'x')
    loop = tmp_path / 'loop'
    loop.symlink_to(loop)
    with pytest.raises((OSError, RuntimeError)):
        write_atomic(loop, 'x')


def test_a_fifo_is_written_into(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / 'pipe').read_text()), daemon=True)
    reader.start()
    write_atomic(tmp_path / 'pipe', 'through')
    reader.join(5)
    assert got == ['through'] and stat.S_ISFIFO(os.stat(tmp_path / 'pipe').st_mode) and os.listdir(tmp_path) == ['pipe']


@pytest.mark.slow
def test_a_fifo_that_nobody_reads_or_writes_is_an_error(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(OSError, match='cannot write'):
        write_atomic(tmp_path / 'pipe', 'x')
    with pytest.raises(ValueError, match='gave nothing'):
        read_limited(tmp_path / 'pipe')


def test_standard_output_is_no_file_to_replace(tmp_path):
    code = (
        "from fsdl_tools.files import write_atomic; print('before', flush=True); write_atomic('/dev/stdout',"
        " 'between\\n'); print('after')"
    )
    with open(tmp_path / 'out', 'w') as f:
        subprocess.run([sys.executable, '-c', code], stdout=f, check=True, timeout=30)
    assert (tmp_path / 'out').read_text().split() == ['before', 'between', 'after'] and len(os.listdir(tmp_path)) == 1
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=30)
    assert r.stdout.split() == ['before', 'between', 'after']


def test_what_does_not_end_is_not_read(tmp_path):
    with pytest.raises(ValueError, match='has not ended'):
        read_limited('/dev/zero', 2**20)
    (tmp_path / 'big').write_bytes(bytes(1000))
    with pytest.raises(ValueError, match='too large'):
        read_limited(tmp_path / 'big', 999)
    assert read_limited(tmp_path / 'big', 1000) == bytes(1000)
    with pytest.raises(FileNotFoundError):
        read_limited(tmp_path / 'none')
    with pytest.raises(IsADirectoryError):
        read_limited(tmp_path)
    r, w = os.pipe()
    os.write(w, b'a,b\n1,2\n')
    os.close(w)
    assert read_limited(f'/dev/fd/{r}') == b'a,b\n1,2\n'
    os.close(r)


@pytest.mark.parametrize(
    'words',
    [
        ('plan', '--batch', '/dev/zero'),
        ('cost', '--from', '/dev/zero'),
        ('profile', '/dev/zero'),
        ('profile', '/dev/stdin'),
        ('cost', '--from', '.'),
        ('plan', '--batch', '.'),
    ],
)
def test_endless_devices_and_folders(words, command):
    assert command(*words)[0] == 2


@pytest.mark.parametrize('cell', ['1_0', '1e308', '１２', 'nan', 'inf', '1e999', '0x10', '-8', ''])
def test_numbers_of_a_table_are_plain(cell, command):
    header, row = prices
    Path('p.csv').write_text('\n'.join([','.join(header), ','.join([*row[:3], cell])]) + '\n')
    assert command('cost', '--from', 'p.csv')[0] == 2
    header, row = runs
    Path('r.csv').write_text('\n'.join([','.join(header), ','.join(row), ','.join([cell, *row[1:]])]) + '\n')
    code, out, _ = command('plan', '--batch', 'r.csv', '--json')
    assert code == 0 and [bool(r['error']) for r in json.loads(out)] == [False, True]


def test_surplus_values_are_refused(command):
    for header, row, words in ((*prices, ('cost', '--from', 't.csv')), (*runs, ('plan', '--batch', 't.csv', '--json'))):
        Path('t.csv').write_text('\n'.join([','.join(header), ','.join([*row, 'more', 'still'])]) + '\n')
        code, out, lines = command(*words)
        assert 'more' in (out + ' '.join(lines)) and (code == 2 or json.loads(out)[0]['error'])
    Path('t.csv').write_text(','.join([*runs[0], 'layers']) + '\n' + ','.join([*runs[1], '3']) + '\n')
    assert command('plan', '--batch', 't.csv')[0] == 2


@pytest.mark.parametrize(
    'text, value', [('1,000', 1000), ('1_000_000', 10**6), ('1,000.5k', 1000500), ('1.5', 2), ('7B', 7 * 10**9)]
)
def test_thousands_are_read(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize('text', ['1_0', '1,5', '1,5 GB', '10,00', ',5', '_5', '1__000', '1e999', '１GB'])
def test_what_is_not_quite_a_number_is_refused(text):
    for parse in (parse_count, parse_bytes):
        with pytest.raises(ValueError):
            parse(text)


# Other people's exceptions


@pytest.mark.parametrize(
    'error',
    [
        KeyError('x'),
        ZeroDivisionError(),
        RecursionError('deep'),
        AttributeError('a\nb'),
        MemoryError(),
        ValueError('one\n\ntwo' * 200),
        AssertionError(),
    ],
)
def test_whatever_they_raise_is_one_line(error):
    with pytest.raises(ValueError) as e:
        with theirs('reading x'):
            raise error
    assert str(e.value).startswith('reading x') and '\n' not in str(e.value) and len(str(e.value)) < 400
    with pytest.raises(ImportError):
        with theirs('reading x'):
            raise ImportError('install y')
    with pytest.raises(KeyboardInterrupt):
        with theirs('reading x'):
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    'words',
    [
        ('profile', 'gpt2', '--seq', '131072'),
        ('memory', 'gpt2', '--seq', '131072'),
        ('profile', 'gpt2', '--batch', '0'),
        ('memory', 'resnet18', '--batch', '-1'),
        ('profile', 'gpt2', '--seq', '99999999999999999999'),
        ('train', '--seq', '99999999', '--steps', '1'),
        ('zoo', 'search', '--limit', '-1'),
        ('memory', 'gpt2', '--bits', '4'),
        ('memory', 'resnet18', '--lora', '0'),
        ('memory', 'resnet18', '--lora', '4', '--bits', '5'),
    ],
)
def test_ordinary_mistakes(words, command):
    assert command(*words)[0] == 2


def test_active_parameters_are_in_json(command, monkeypatch):
    Path('config.json').write_text(json.dumps(next(c for c in configurations if c['model_type'] == 'mixtral')))
    code, out, _ = command('profile', 'config.json', '--json')
    spec = json.loads(out)[0]
    assert code == 0 and 0 < spec['active'] < spec['params']
    monkeypatch.setenv('COLUMNS', '200')
    assert 'active' in command('profile', 'config.json')[1]


def test_adapters_from_the_command_line(command):
    Path('config.json').write_text(json.dumps(configurations[0]))
    words = ('memory', 'config.json', '--batch', '2', '--seq', '16', '--json')
    full, lora, qlora = (
        json.loads(command(*words, *more)[1]) for more in ((), ('--lora', '4'), ('--lora', '4', '--bits', '4'))
    )
    assert (
        lora['optimizer'] < full['optimizer'] / 4
        and lora['parameters'] > full['parameters'] > qlora['parameters']
        and qlora['buffers'] > lora['buffers']
    )


# Places that two share


@pytest.mark.slow
def test_two_runs_in_one_folder(tmp_path):
    "Started together again and again: at most one of them trains in it, the other says so"
    code = 'from fsdl_tools.cli.main import main; main()'
    words = ['train', '--steps', '2', '--seq', '8', '--global-batch', '2', '--folder', str(tmp_path / 'run')]
    both = [
        subprocess.Popen(
            [sys.executable, '-c', code, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | dict(OMP_NUM_THREADS='1'),
        )
        for _ in range(2)
    ]
    done = [(p.returncode, err) for p in both for out, err in [p.communicate(timeout=200)]]
    assert sorted(c for c, _ in done) == [0, 2], done
    assert any('holds a run already' in err or 'is training in' in err for _, err in done)


def test_a_run_that_came_between_is_seen(tmp_path, monkeypatch):
    from fsdl_tools.training import trainer
    from fsdl_tools.training.trainer import Trainer
    from fsdl_tools.training.config import TrainConfig

    c = TrainConfig(steps=1, seq=8, global_batch=2, folder=str(tmp_path / 'run'))
    real = trainer.lock_folder

    def late(folder):
        "Another process trains to its end just before this one has the folder"
        monkeypatch.setattr(trainer, 'lock_folder', real)
        Trainer(c).train()
        return real(folder)

    monkeypatch.setattr(trainer, 'lock_folder', late)
    with pytest.raises(FileExistsError, match='holds a run already'):
        Trainer(c)


def test_a_step_that_is_a_link_is_good_for_nobody(tmp_path):
    from fsdl_tools.training.archive import checkpoints
    from fsdl_tools.training.trainer import Trainer
    from fsdl_tools.training.config import TrainConfig

    folder = tmp_path / 'run'
    Trainer(TrainConfig(steps=1, seq=8, global_batch=2, folder=str(folder))).train()
    step = next((folder / 'checkpoints').glob('step-*'))
    name = step.name[:-1] + '9'
    (folder / 'checkpoints' / name).symlink_to(step)
    rows = checkpoints(folder / 'checkpoints').rows
    assert [r['good'] for r in rows] == [True, False] and rows[1]['problem'] == 'a link, not a folder'
    t = Trainer(TrainConfig(steps=2, seq=8, global_batch=2, folder=str(folder), resume=True))
    assert t.step == 1


@pytest.fixture
def site(tmp_path):
    "The address of a site that is served"
    from fsdl_tools.book.site import serve_site

    (tmp_path / 'index.html').write_text('<p>here</p>')
    server = serve_site(tmp_path, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    start = time.monotonic()
    server.server_close()
    assert time.monotonic() - start < 5, 'a client keeps the server from ending'


def ask(server, line, wait=5.0):
    with socket.create_connection(server.server_address[:2], timeout=wait) as s:
        s.sendall(line)
        return s.recv(200)


@pytest.mark.parametrize(
    'path',
    [
        '/%00',
        '/x%00.html',
        '/' + 'a' * 5000,
        '/../../etc/passwd',
        '/%2e%2e/%2e%2e/etc/passwd',
        '/%ff',
        '//etc/passwd',
        '/\x1b[31m',
    ],
)
def test_odd_paths_are_not_found(site, path, capfd):
    assert ask(site, f'GET {path} HTTP/1.0\r\n\r\n'.encode('latin-1')).split()[1] in (b'404', b'400', b'414')
    assert b'200' in ask(site, b'GET / HTTP/1.0\r\n\r\n')
    assert 'Traceback' not in capfd.readouterr().err


def test_slow_clients_hold_nobody_up(site, capfd):
    slow = [socket.create_connection(site.server_address[:2], timeout=5) for _ in range(20)]
    for s in slow:
        s.sendall(b'GET / HT')
    start = time.monotonic()
    assert b'200' in ask(site, b'GET / HTTP/1.0\r\n\r\n') and time.monotonic() - start < 3
    for s in slow[:10]:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\x01\0\0\0\0\0\0\0')
    for s in slow[:10]:
        s.close()
    time.sleep(0.3)
    assert 'Traceback' not in capfd.readouterr().err


def test_pip_settings_send_nothing_elsewhere(tmp_path, monkeypatch):
    from fsdl_tools.environments import SideEnv, build_env

    wheel = tmp_path / 'tiny_thing-1.0-py3-none-any.whl'
    import zipfile

    with zipfile.ZipFile(wheel, 'w') as z:
        z.writestr('tiny_thing.py', 'here = __file__')
        z.writestr('tiny_thing-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n')
        z.writestr(
            'tiny_thing-1.0.dist-info/WHEEL',
            'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
        )
        z.writestr(
            'tiny_thing-1.0.dist-info/RECORD',
            'tiny_thing.py,,\ntiny_thing-1.0.dist-info/METADATA,,\ntiny_thing-1.0.dist-info/WHEEL,,\ntiny_thing-1.0.dist-info/RECORD,,\n',
        )
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for k, v in dict(
        PIP_TARGET=tmp_path / 'target',
        PIP_PREFIX=tmp_path / 'prefix',
        PIP_USER='1',
        PIP_DRY_RUN='1',
        PIP_ROOT=tmp_path / 'root',
        PYTHONUSERBASE=tmp_path / 'base',
    ).items():
        monkeypatch.setenv(k, str(v))
    (tmp_path / 'pip.conf').write_text(
        f"[install]\ntarget = {tmp_path / 'other'}\nuser = true\n[global]\ndry-run = true\n"
    )
    monkeypatch.setenv('PIP_CONFIG_FILE', str(tmp_path / 'pip.conf'))
    env = SideEnv(
        'tiny',
        steps=f'--no-deps --no-index {wheel}',
        check='import tiny_thing, sys; assert tiny_thing.here.startswith(sys.prefix)',
    )
    python = build_env(env, timeout=200)
    assert python.exists() and not [p for p in ('target', 'prefix', 'root', 'base', 'other') if (tmp_path / p).exists()]


@pytest.mark.parametrize('option', ['--threads', '--batch', '--rounds'])
def test_a_benchmark_needs_at_least_one(option, command):
    assert command('bench', 'x.onnx', option, '0')[0] == 2
