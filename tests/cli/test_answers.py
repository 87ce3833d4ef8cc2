"Answers of the command line as they were: what each command hands to the library, prints, and ends with"

import contextlib
import importlib
import itertools
import json
import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from fsdl_tools.cli import apps, common, compute, diagnosing, kept, launching, main, models, onnx, tracking, training
from fsdl_tools.table import Table
from tests.answers import answer, plain, same_answers

# what is replaced below must not be what others import first
for module in sorted(set(re.findall(r"'(fsdl_tools(?:\.\w+)?\.\w+)\.\w+'", Path(__file__).read_text()))):
    with contextlib.suppress(ImportError):
        importlib.import_module(module)


NUL = 'SyntaxError: source code string', 'source code string'  # its class is another one from Python 3.11.4 on


class Asked(dict):
    "Answers by question, in which a temporary folder has no name; commands that are typed in this process"

    def __init__(self, tmp, capsys, monkeypatch):
        super().__init__()
        self.tmp, self.capsys, self.monkeypatch, self.calls = str(tmp), capsys, monkeypatch, []
        monkeypatch.setenv('COLUMNS', '100')
        monkeypatch.setenv('FSDL_KEEP', '0')

    def __call__(self, question, function, *args, **kw):
        self.capsys.readouterr()
        value = [answer(function, *args, **kw), self.calls, *self.capsys.readouterr()]
        while len(value) > 1 and not value[-1]:
            value.pop()
        self[question] = json.loads(
            json.dumps(value).replace('PosixPath(', 'Path(').replace(self.tmp, 'TMP').replace(*NUL)
        )
        self.calls.clear()

    def typed(self, *words):
        "A command, typed"
        self(' '.join(map(str, words)).replace(self.tmp, 'TMP'), main.run, [str(w) for w in words])

    def fake(self, where, what=None):
        "In place of a function of the library: its arguments are kept"
        name = where.rpartition('.')[2]

        def called(*args, **kw):
            self.calls.append([name, *(said(a) for a in args), *([{k: said(v) for k, v in kw.items()}] if kw else [])])
            return what(*args, **kw) if callable(what) else what

        self.monkeypatch.setattr(where, called)


def said(value):
    "An argument as it is kept"
    if callable(value):
        return getattr(value, '__name__', 'function')
    if isinstance(value, (list, tuple)):
        return [said(v) for v in value]
    if isinstance(value, dict):
        return {str(k): said(v) for k, v in value.items()}
    return (
        plain(value)
        if value is None or isinstance(value, (int, float, str))
        else re.sub(' at 0x[0-9a-f]+', '', str(value))
    )


@pytest.fixture
def asked(tmp_path, capsys, monkeypatch):
    return Asked(tmp_path, capsys, monkeypatch)


class Said(str):
    "A result that prints itself"

    def to_json(self, path=None):
        if path:
            open(path, 'w').write('saved')
        return json.dumps(str(self))


def table(*rows):
    return Table(list(rows) or [dict(a=1, b='x')], caption='caption')


def test_common(request, asked, tmp_path, monkeypatch):
    for text in ('', '0', '9', '19', '20', '21', '80', '99999', '100000', '-5', '08', 'x', '2 0'):
        asked(f'width {text!r}', common._width, text)
        monkeypatch.setenv('COLUMNS', text)
        asked(f'terminal {text!r}', lambda: [common.plain_terminal(), os.environ.get('COLUMNS')])
    monkeypatch.delenv('COLUMNS', raising=False)
    asked('no width', lambda: [common.plain_terminal(), os.environ.get('COLUMNS')])
    for err in (True, False):
        asked(f'say {err}', common.say, 'a\x1b[1mb é', err)
    for as_json, what in itertools.product((True, False), (table(), Said('[b]text[/b] :smile: 1.5 \x1b'))):
        asked(f'show {as_json} {type(what).__name__}', common.show, what, as_json)
    for given in (None, [], ['a=1', 'b=x=y'], ['a'], ['=1'], ['a=1', 'bad']):
        asked(f'named {given}', lambda g=given: list(common.named_values(g, 'it wants')))
    asked('not valid', lambda: list(common.named_values(['a=1', 'a=2'], 'it wants', lambda n, v: v == '1')))
    source = (
        'class A:\n    x:int=1 # of x\n    # above\n    # y\n    y:str\n    def m(self, a, # of a\n     '
        ' *, b): pass\n\ndef f(\n  a, # one\n  # two\n  # lines\n  b=3,\n  *, c\n):\n  return 1\n'
    )
    for name in ('A', 'f', 'A.m', 'g', 'A.n', 'A.x'):
        node = common.definition_in(source, name)
        asked(f'definition {name}', lambda node=node: node and [node.name, node.lineno, common._named_lines(node)])
        if node:
            lines, comments = common._named_lines(node), common._comments(source)
            asked(
                f'written {name}',
                lambda n=lines, c=comments: {arg: common._written_at(line, c, n) for line, arg in n.items()},
            )
    asked('comments', common._comments, source)
    asked('docments', common.docments_in, 'core:positive')
    for text in ('a', 'a.', 'a?', 'a …', ' two\n lines '):
        asked(f'sentence {text!r}', common._sentence, text)
    for e in (ValueError('two\nlines  here'), ValueError('')):
        asked(f'line {e}', common._one_line, e)

    def within(*errors, e=ValueError('x')):
        with common.as_mistake(*errors):
            raise e

    for errors in ((ValueError,), (KeyError,), ()):
        asked(f'mistake {errors}', within, *errors)
    monkeypatch.setenv('FORCE_COLOR', '1')

    def ran(words, env=None, **kw):
        return SimpleNamespace(
            stdout=f'{words[3:]} {env["COLUMNS"]} {env["NO_COLOR"]} {"FORCE_COLOR" in env} ', stderr='err'
        )

    monkeypatch.setattr(common.subprocess, 'run', ran)
    asked('process', lambda: bool(common.fsdl('a', 3)))
    same_answers(request, 'common', asked)


def test_kept(request, asked, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('FSDL_KEEP')
    monkeypatch.setattr(kept, '_code', lambda: 'code')
    asked('versions', lambda: [bool(v) for v in kept._versions(['torch', 'no-such-package']).values()])
    (tmp_path / 'f').write_text('x')
    for p in (tmp_path / 'f', tmp_path, tmp_path / 'none'):
        asked(f'content {p.name[:4]}', kept._content, p)
    asked(
        'key', lambda: {k: v for k, v in kept._key('n', dict(a=(1, 2)), (), [tmp_path / 'f']).items() if k != 'python'}
    )
    asked('folder', kept._folder)
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    asked('home', kept._folder)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    asked('sum', kept._sum, dict(b=1, a=[None]))
    path, good = tmp_path / 'answers/k.json', dict(key=1, value=2, sum=kept._sum(2))
    kept._write(path, 1, 2)
    for key in (1, 2):
        asked(f'read {key}', kept._read, path, key)
    for bad in (
        '',
        '[]',
        '{}',
        json.dumps(good | dict(sum='x')),
        json.dumps(good | dict(more=1)),
        json.dumps({'key': 1, 'value': 2}),
        '3',
    ):
        path.write_text(bad)
        asked(f'read {bad}', kept._read, path, 1)
    asked('read none', kept._read, tmp_path / 'none', 1)
    monkeypatch.setattr(kept, '_most', 2)
    for i in range(4):
        kept._write(tmp_path / 'few' / f'{i}.json', 1, i)
        os.utime(tmp_path / 'few' / f'{i}.json', (i, i))
        asked(f'files {i}', lambda: sorted(p.name for p in (tmp_path / 'few').iterdir()))
    times = []
    for keep, n in itertools.product(('1', '0', ''), range(2)):
        monkeypatch.setenv('FSDL_KEEP', keep)
        asked(
            f'kept {keep} {n}',
            lambda: [kept.kept_answer('n', {}, lambda: times.append(1) or dict(a=(1,)), ()), len(times)],
        )
    t = Table(
        [dict(name='a', size=2048), dict(name='b', size=None)], formats=dict(size='{:,}'.format), caption='c', notes='n'
    )
    for text in (None, '"own"'):
        found = kept.answer_of(t, text)
        shown = kept.Shown(json.loads(json.dumps(found)))
        asked(
            f'shown {text}',
            lambda found=found, shown=shown: [
                found,
                shown.to_json(),
                shown._repr_markdown_(),
                shown._right('size'),
                shown._right('name'),
            ],
        )
    monkeypatch.undo()
    asked('code', lambda: [len(kept._code()), kept._code() == kept._code()])
    same_answers(request, 'kept', asked)


def test_main(request, asked, monkeypatch):
    for words in ([], ['help'], ['help', 'plan'], ['--version'], ['-V'], ['plan', '--version'], ['version', 'x']):
        asked(f'order {words}', main._in_order, words)
    asked('versions', lambda: [re.sub(r' .*|\d.*', '', line) for line in main._versions()][:3])
    for words in (
        ['version', 'x'],
        ['nonsense'],
        ['plam'],
        ['memory', 'gpt2', '--batch_size', '4', '--nope'],
        ['plan', 'a', 'b', 'c'],
        ['memory'],
        ['memory', 'gpt2', '--bacth', '3'],
        ['profile', 'gpt2', '--license=mit'],
        ['zoo', 'search', '--license', 'none', '--licence-x'],
        ['plan', '--seq_len', 'x'],
        ['train', 'gpt-tiny'],
        ['train', '--lr', 'x'],
        ['gpus', '--vendor'],
        ['run', 'x'],
        ['memory', 'gpt2', '--batch_size=0.5'],
        ['tune'],
        ['zoo', 'serch'],
        ['export', 'x', 'y'],
        ['checkpoints'],
        ['profile', 'x', '--layers', '-1'],
        ['train', '--max_steps', 'x'],
    ):
        asked.typed(*words)
    error = lambda option, opts, text='No such option': SimpleNamespace(
        option_name=option,
        format_message=lambda: text,
        ctx=SimpleNamespace(command=SimpleNamespace(params=[SimpleNamespace(opts=o) for o in opts])),
    )
    for given, words in (
        ('--batch_size', ['--batch_size', '3']),
        ('--batch_size', ['--batch_size=3', 'batch_size']),
        ('--batch_size', ['x']),
        ('--zzz', ['--zzz']),
        (None, ['a']),
        ('--batch_size', ['--batch_sizes']),
    ):
        e = error(given, [['--batch', '-b'], ['--seq'], ['x']])
        asked(f'reworded {given} {words}', main._reworded, words, e)
        asked(f'usage {given}', main._usage, e)
    asked(
        'options',
        lambda: [
            main._options(error('x', [['--a', '-b'], ['c'], ['--d']])),
            main._options(None),
            main._options(SimpleNamespace(ctx=None)),
        ],
    )
    for text, opts in (
        ('Got unexpected extra argument (x)', [['--model']]),
        ('Got unexpected extra argument (x)', [['--other']]),
        ('bad', [['--model']]),
        ("No such command 'launchh'", []),
        ("No such command 'zzzz'", []),
        ("No such command 'train'.", []),
        ('x', []),
    ):
        asked(f'usage {text} {opts}', main._usage, error(None, opts, text))
    for advice in ('there are none', 'did you mean x', 'type fsdl plan', ''):
        monkeypatch.setattr(main, 'what_to_type', lambda *a, advice=advice: advice)
        asked(
            f'advice {advice}',
            lambda: [
                main._of_option('No such option.', '--x', []),
                main._of_command("No such command 'x'"),
                main._of_command('other'),
            ],
        )
    monkeypatch.undo()

    def raising(error):
        def app(words, **kw):
            if isinstance(error, list):
                return error[0]
            raise error

        return app

    pipe = SystemExit(3)
    pipe.__context__ = BrokenPipeError()
    monkeypatch.setattr(main, '_nobody_reads', lambda: 'nobody reads')
    for error in (
        ValueError('bad\nvalue'),
        OSError('disk'),
        KeyError('fault'),
        typer.Exit(3),
        KeyboardInterrupt(),
        BrokenPipeError(),
        pipe,
        [None],
        [4],
        [0],
        FloatingPointError('nan'),
        ImportError('no torch'),
    ):
        monkeypatch.setattr(main, 'app', raising(error))
        asked(f'raised {error!r}', main.run, ['x'])
    monkeypatch.setattr(main, 'app', raising(SystemExit(3)))
    with pytest.raises(SystemExit):
        main.run(['x'])
    monkeypatch.setattr(main, '_reworded', lambda words, e: [*words, 'again'])
    turns = []

    def app(words, **kw):
        turns.append(len(words))
        raise typer.BadParameter('x')

    monkeypatch.setattr(main, 'app', app)
    asked('without end', lambda: [main.run(['x']), turns])
    monkeypatch.undo()
    for default in (signal.SIG_DFL, signal.SIG_IGN):
        set_to = []
        with monkeypatch.context() as m:
            m.setattr(main.signal, 'getsignal', lambda s, default=default: default)
            m.setattr(main.signal, 'signal', lambda s, f: set_to.append([int(s), f.__name__]))
            m.setattr(main, 'run', lambda: 7)
            with pytest.raises(SystemExit) as e:
                main.main()
        asked(f'main {default}', lambda: [set_to, e.value.code])
    with pytest.raises(SystemExit) as e:
        main._leave(15, None)
    asked('leaves', lambda: e.value.code)
    seen = []
    monkeypatch.setattr(main, '_answered', lambda args: seen.append([args, main.warnings.filters[0][0]]))
    for options in ([], ['error']):
        monkeypatch.setattr(sys, 'warnoptions', options)
        with main.warnings.catch_warnings():
            main.warnings.simplefilter('error')
            main.run(['x'])
    asked('warnings', lambda: seen)
    monkeypatch.undo()
    monkeypatch.setattr(sys, 'argv', ['fsdl', '--nope'])
    asked('words of the process', main.run)
    same_answers(request, 'main', asked)


def test_models(request, asked, tmp_path, monkeypatch):
    class Found(Table):
        "What a search gave"

    search = lambda *a, **kw: Found(
        [dict(name=f'm{i}', task='t', input='i', params=i, flops=i, saved=i, licences='l', other=9) for i in range(4)]
    )
    asked.fake('fsdl_tools.models.zoo.search_models', search)
    asked.fake('fsdl_tools.models.zoo.tags', table())
    for words in (
        '',
        'vit base',
        '--limit 3',
        '--limit 4',
        '--limit 5 --json',
        '--max-params 30M --min-params 1M --max-flops 4G --sort flops',
        '--library timm --task t --family f --input i --licence mit',
        '--limit 0',
    ):
        asked.typed('zoo', 'search', *words.split())
    asked.typed('zoo', 'tags', 'x')
    asked.typed('zoo', 'tags', 'x', '--json')
    with monkeypatch.context() as m:
        m.setattr(
            'fsdl_tools.models.zoo.index', lambda: [dict(name='resnet18'), dict(name='resnet50'), dict(name='vit')]
        )
        asked('names', models._names, 'resnet')
    spec = SimpleNamespace(to_dict=lambda: dict(spec=1))
    asked.fake('fsdl_tools.models.profile.profile', spec)
    asked.fake('fsdl_tools.models.compare.compare_models', table())
    asked.fake('fsdl_tools.models.compare.memory_by_precision', table())
    asked.fake('fsdl_tools.models.compare.largest', table())
    asked.fake('fsdl_tools.models.compare.tree', table())
    asked.fake('fsdl_tools.models.zoo.known_spec', lambda m: spec if m == 'resnet18' else None)
    monkeypatch.setattr('fsdl_tools.models.spec.ModelSpec.from_dict', lambda d: SimpleNamespace(to_dict=lambda: d))
    for words in (
        'resnet18',
        'resnet18 --batch 2',
        'resnet50 gpt2',
        'gpt2 --seq 8 --task causal-lm',
        'resnet18 --seq 3',
        'resnet18 --task x',
        'resnet18 gpt2 --seq 4 --task causal-lm',
        'resnet18 --layers 2',
        'resnet18 --tree 1',
        'resnet18 --json',
        'resnet50 --input-size 64 --precision bf16 --layers 1 --tree 2',
        'bert --batch 0',
        'nothing',
    ):
        asked.typed('profile', *words.split())
    monkeypatch.setattr(
        models,
        'kept_answer',
        lambda name, arguments, compute, packages, files: dict(kept=[name, arguments, list(packages), files]),
    )
    monkeypatch.setattr(
        'fsdl_tools.models.architectures.locate',
        lambda m: ('own' if ':' in m else 'timm' if m == 'r' else 'transformers', m),
    )
    for m in ('a:b', 'r', 't'):
        asked(
            f'once {m}',
            lambda m=m: [models._profiled_once(m, models._plain), models._profiled(m, models._plain | dict(task='x'))],
        )
    for whole, q in itertools.product((True, False), (models._plain, models._plain | dict(batch=2))):
        asked(f'spec {whole} {q["batch"]}', lambda w=whole, q=q: models._spec_of('resnet18', q, w).to_dict())
    asked.fake('fsdl_tools.frameworks.task.make_task', 'task')
    asked.fake('fsdl_tools.frameworks.race.race', lambda *a: iter([1, 2, 3]))
    asked.fake('fsdl_tools.frameworks.race.race_table', lambda s: Table([dict(standings=s)]))
    for words in (
        '--json',
        'torch flax --steps 3 --laps 2 --json',
        '-f a -f b c --model cnn --batch 2 --json',
        'torch',
    ):
        asked.typed('race', *words.split())
    same_answers(request, 'models', asked)


def test_onnx(request, asked, tmp_path, monkeypatch):
    for text in ('2', 'true', 'null', '[1,2]', 'text', '1.5', '"q"', ''):
        asked(f'value {text!r}', onnx._value, text)
    for given in (None, ['a=1', 'b=x'], ['seed=1'], ['what=1'], ['1a=2'], ['a']):
        asked(f'fields {given}', onnx._fields, given)
    for given in (None, ['h=32'], ['h=32', 'h=64', 'w=1'], ['h=0'], ['h=x'], ['h=12345678'], ['h=1234567']):
        asked(f'sizes {given}', onnx._sizes, given)
    asked('say', onnx._say, 'a\x1bé\n')
    asked.fake('fsdl_tools.onnx.run.random_inputs', lambda *a, **kw: kw)
    asked('calibration', onnx._calibration, SimpleNamespace(specs='specs'))
    record = lambda **kw: SimpleNamespace(**kw, to_dict=lambda: kw)
    asked.fake(
        'fsdl_tools.onnx.optimise.quantise',
        lambda path, to, kind, **kw: record(
            kind=kind, path=str(to), bytes_before=2048, bytes=1024, max_rel=0.0123, top1=0.5, verified=True
        ),
    )
    asked.fake('fsdl_tools.onnx.optimise.benchmark', [record(ms=1)])
    asked.fake('fsdl_tools.onnx.optimise.timing_table', table())
    asked.fake('fsdl_tools.onnx.decoder.export_decoder', Said('decoder'))
    asked.fake('fsdl_tools.onnx.sources.open_model', SimpleNamespace(specs=['s']))
    asked.fake('fsdl_tools.onnx.export.export', type('Report', (Said,), dict(to_dict=lambda self: dict(r=1)))('report'))
    out = tmp_path / 'm.onnx'
    for words in (
        '',
        '--quantise int8 --quantise static',
        '--quantise int9',
        '--cache',
        '--cache --bench',
        '--cache --quantise int8',
        '--bench --json',
        '--bench --quantise fp16',
        '--set a=1 --set seed=2',
        '--set a=1 --cache --json',
        '--pretrained --seed 3 --opset 18 --size h=3 --size h=4',
        '--size h',
    ):
        asked.typed('export', 'resnet18', '-o', out, *words.split())
    asked.typed('export', 'resnet18', '-o', tmp_path / 'none/m.onnx')
    for ok in (True, False):
        asked.fake('fsdl_tools.onnx.verify.verify', type('V', (Said,), dict(ok=ok))(f'verified {ok}'))
        for words in ('', '--against x --rtol .1', '--seed 0', '--pretrained --size h=3 --json', '--rtol -1'):
            asked(f'verify {ok} {words}', main.run, ['verify', 'm.onnx', *words.split()])
    for noted in ('resnet18', ''):
        asked.fake('fsdl_tools.onnx.graph.inspect_onnx', SimpleNamespace(metadata={}))
        asked.fake('fsdl_tools.onnx.verify.noted_source', noted)
        for words in ('', '--against y', '--batch 1 --batch 3 --threads 2 --rounds 4 --compile --json', '--rounds 0'):
            asked(f'bench {noted} {words}', main.run, ['bench', 'a.onnx', 'd/b.onnx', *words.split()])
    same_answers(request, 'onnx', asked)


def test_compute(request, asked, tmp_path, monkeypatch):
    for text in ('1MiB', '1048575', '0', '24GiB', '24', 'x'):
        asked(f'size {text}', compute._memory_size, text)
    for batch, size in ((2, None), (2, '32'), (3, '1x8x9')):
        asked(
            f'images {size}',
            lambda b=batch, s=size: (
                compute._images(b, s)
                if s is None
                else [list(compute._images(b, s).shape), str(compute._images(b, s).device)]
            ),
        )
    for model, seq, size in itertools.product(('gpt2', 'resnet18', 'a.b:c'), (None, 3), (None, '32')):
        asked(
            f'lengths {model} {seq} {size}',
            lambda *a: re.sub('no module.*', '', str(answer(compute._check_lengths, *a))),
            model,
            seq,
            size,
        )
    asked.fake('fsdl_tools.memory.adapters.add_adapters', 'adapted')
    asked.fake('fsdl_tools.models.build.build', 'built')
    for rank, bits in itertools.product((None, 4), (16, 4)):
        asked(f'adapters {rank} {bits}', compute._with_adapters, 'm', rank, bits)
    page = SimpleNamespace(_page=lambda: table(), to_json=lambda: '"breakdown"')
    asked.fake('fsdl_tools.memory.predict.breakdown', page)
    asked.fake('fsdl_tools.memory.predict.largest_batch', 17)
    asked.fake('fsdl_tools.memory.predict.load', ('built', 'inputs'))
    asked.fake('fsdl_tools.memory.measure.blocks_of', ['blocks'])
    asked.fake('fsdl_tools.memory.measure.measure', 'measured')
    asked.fake('fsdl_tools.memory.measure.summary', table())
    for words in (
        '',
        '--batch 2 --json',
        '--fit 24GiB',
        '--fit 24GiB --json',
        '--fit 24',
        '--fit 24GiB --batch 2',
        '--measure',
        '--measure --recompute --json',
        '--measure --fit 24GiB',
        '--measure --kernels cuda',
        '--measure --kernels cpu --lora 4',
        '--kernels cpu --precision bf16 --optimizer sgd --accumulation 2 --recompute --seq 3',
        '--lora 4 --bits 4',
        '--bits 4',
        '--input-size 32',
        '--lora 0',
    ):
        asked.typed('memory', 'gpt2', *words.split())
    asked.typed('memory', 'resnet18', '--seq', 3)
    for model in ('gpt2', 'a.b:c'):
        monkeypatch.setattr(
            compute,
            'kept_answer',
            lambda name, asked_, compute_, packages, files: (
                asked.calls.append([name, list(packages), files]) or compute_()
            ),
        )
        asked(
            f'prediction {model}',
            compute._show_prediction,
            dict(model=model, batch=2, fit=None, lora=None, bits=16, input_size=None),
            False,
        )
    found = type(
        'Cal', (Said,), dict(runs=3, before=0.25, after=0.125, memory_runs=0, memory_before=1, memory_after=2)
    )('calibration')
    asked.fake('fsdl_tools.compute.calibrate.fit_cluster_file', found)
    asked.fake('fsdl_tools.compute.calibrate.Calibration.from_json', 'mine')
    for words in (
        'calibrate',
        'calibrate d/runs.csv',
        f'calibrate runs.csv --save {tmp_path}/mine.json',
        'calibrate runs.csv --json',
    ):
        asked.typed('plan', *words.split())
    asked('saved', lambda: (tmp_path / 'mine.json').read_text())
    asked.fake('fsdl_tools.compute.validation.plan_batch', [dict(error=''), dict(error='x')])
    asked.fake('fsdl_tools.compute.validation.read_runs', [dict(a=1)])
    asked.fake('fsdl_tools.compute.validation.unknown_columns', dict(gpuss=['gpus', 'gpu'], zzz=[]))
    monkeypatch.setattr('fsdl_tools.compute.validation.batch_outputs', ['error'])
    for words in (
        '--batch x.csv',
        '--batch x.csv --out y.csv',
        '--batch x.csv --out y.csv --json',
        '--batch x.csv --calibration c.json',
        '--out y.csv',
        '',
        'gpt2 extra',
        'gpt2 --out x',
    ):
        asked.typed('plan', *words.split())

    class Estimate(Said):
        "An estimate"

        price, step_low, family = 2.0, None, False

        def cost(self, n):
            return 3e-9 * n

        def cost_between(self, n):
            return 2e-9 * n, 4e-9 * n

        def days(self, n):
            return n / 1e9

        def nearest(self):
            return table()

    search = SimpleNamespace(table=lambda rows: asked.calls.append(['rows', rows]) or table())
    asked.fake('fsdl_tools.compute.choose.explain', 'because')
    asked.fake('fsdl_tools.compute.gpus.Cluster', lambda *a, **kw: 'cluster')
    for price, low, family, searched in ((2.0, None, False, True), (None, None, True, False), (2.0, 1.0, True, True)):
        e = type('E', (Estimate,), dict(price=price, step_low=low, family=family))('estimate')
        asked.fake('fsdl_tools.compute.choose.best_plan', (search if searched else None, e))
        for words in (
            '',
            '--tokens 26B',
            '--json',
            f'--save {tmp_path}/e.json -n 3',
            '--lora-rank 4 --gpus-per-node 2 --price 2.5 --no-uneven --calibration c',
            '--layout dp8 --framework nanotron --precision fp8 --seq 12 --global-batch 4 --gpu A100 --gpus 2',
        ):
            asked(
                f'plan {price} {low} {family} {words}'.replace(str(tmp_path), ''),
                main.run,
                ['plan', 'gpt2', *words.split()],
            )
    gpus = [
        SimpleNamespace(name=n, vendor=v, memory=m)
        for n, v, m in (('A', 'NVIDIA', 40e9), ('B', 'AMD', 80e9), ('C', 'NVIDIA', 80e9))
    ]
    asked.fake('fsdl_tools.compute.gpus.gpus', gpus)
    asked.fake('fsdl_tools.compute.gpus.find', lambda n: type('G', (Said,), vars(gpus['ABC'.index(n)]))(n))
    asked.fake('fsdl_tools.compute.measured.explain_peak', 'with sparsity')
    asked.fake('fsdl_tools.compute.gpus.gpu_table', lambda found: Table([dict(name=g.name) for g in found]))
    for words in (
        '',
        'A',
        'A B',
        'A C --vendor AMD',
        '--vendor NVIDIA',
        '--vendor NVIDA',
        '--memory 80GB',
        '--memory 81GB',
        '--memory 80',
        'A --check 312',
        '--check 312',
        'A B --check 3',
        'A --check 0 --precision fp16 --json',
        'A --json',
        'B A --memory 40GB --json',
    ):
        asked.typed('gpus', *words.split())
    for name, what in dict(
        cost_table=table(),
        frontier=['best'],
        pick_offers='offers',
        price_age='old',
        price_experiment=([SimpleNamespace(offer='o')], 'said'),
        prices='prices',
        read_prices='own',
    ).items():
        asked.fake(f'fsdl_tools.compute.cost.{name}', what)
    monkeypatch.setattr('fsdl_tools.compute.cost.frontier', lambda done: [SimpleNamespace(offer='best')])
    for words in (
        '',
        '--frontier -n 3',
        '--from x.csv',
        '--params 1B --tokens 2B --mfu .5 --within 3d --json',
        '--since 2020 --gpu A --provider p --tier spot --spot-mtbf 1h --task t --samples 3 --suite 2022 '
        '--precision bf16',
    ):
        asked.typed('cost', *words.split())
    same_answers(request, 'compute', asked)


def test_launching(request, asked, tmp_path, monkeypatch):
    files = dict(
        bad='{',
        list='[]',
        job=dict(command=['python', 'x.py'], name='n'),
        config=dict(model='gpt-tiny', layout='dp1', steps=3),
        plan=dict(step_time=1.0),
        odd=dict(nothing=1),
    )
    for name, what in files.items():
        (tmp_path / f'{name}.json').write_text(what if isinstance(what, str) else json.dumps(what))
    asked.fake('fsdl_tools.compute.planner.Estimate.from_dict', 'estimate')
    asked.fake('fsdl_tools.operations.launch.Job.from_plan', 'job')
    for name in (*files, 'none'):
        asked(f'object {name}', launching._object_in, tmp_path / f'{name}.json')
        for config in ('', tmp_path / 'config.json'):
            asked(
                f'job {name} {bool(config)}',
                lambda *a: str(launching.job_in(*a, image='i', time=None)),
                tmp_path / f'{name}.json',
                config,
            )
    for default, text in ((1, '3'), (1.5, '3'), (True, 'x'), ((), 'a,b'), ('', 'x'), (None, 'y'), (1, 'x')):
        asked(f'kind {default} {text}', launching._as_kind_of, default, text)
    for name, pairs in (
        ('local', None),
        ('slurm', ['partition=debug']),
        ('slurm', ['partion=debug']),
        ('slurm', ['x']),
        ('slrum', []),
    ):
        asked(f'options {name} {pairs}', launching.options_of, name, pairs)
    for text in ('slurm:17', 'slurm', '', None, 'a:b:c', ':3'):
        asked(f'handle {text}', lambda t=text: vars(launching._handle(t, 'slurm')))

    class Place(SimpleNamespace):
        "A target"

        def __getattr__(self, name):
            if name.startswith('_'):
                raise AttributeError(name)
            return lambda *a, **kw: (
                asked.calls.append([name, *map(said, a)]) or (['part ', 'two'] if name == 'follow' else Said(name))
            )

    monkeypatch.setattr(
        'fsdl_tools.operations.targets.target', lambda name, **kw: asked.calls.append(['target', name, kw]) or Place()
    )
    monkeypatch.setattr(launching, 'options_of', lambda name, pairs: dict(pairs=pairs))
    for words in (
        'status local:1',
        'status',
        'logs local:1',
        'logs local:1 --follow',
        'cancel slurm:2 --with a=b',
        'doctor --on slurm --with x=y',
        'status a:b --json',
        'doctor --json',
    ):
        asked.typed('launch', *words.split())
    monkeypatch.setattr(launching, '_with_limits', lambda place: place)
    for words in ('', '--submit --token t', '--on k8s --image i --time 3h --retries 2', '--submit'):
        asked.typed('launch', tmp_path / 'job.json', *words.split())
    for tty in (True, False):
        monkeypatch.setattr(sys.stdout, 'isatty', lambda tty=tty: tty, raising=False)
        asked(f'log {tty}', launching._print_log, ['a\x1b', 'b\n'])
    monkeypatch.undo()
    from fsdl_tools.operations.launch import Limits
    from fsdl_tools.operations.slurm import Slurm

    class Known(Slurm):
        "A queue"

    monkeypatch.setattr('fsdl_tools.operations.slurm_answers.limits_of', lambda place: Limits())
    replaced = lambda place: type(launching._with_limits(place)).__name__ + str(launching._with_limits(place) is place)
    asked(
        'limits',
        lambda: [replaced(Slurm()), replaced(SimpleNamespace(limits=Limits())), replaced(SimpleNamespace(limits=None))],
    )
    same_answers(request, 'launching', asked)


def test_tracking(request, asked, tmp_path, monkeypatch):
    run = type(
        'R',
        (Said,),
        dict(
            metrics=dict(a=1, b=2),
            points=lambda self: 9,
            warnings=['w1', 'w\x1b2'],
            id='i',
            name='n',
            source='s',
            status='done',
            params=dict(lr=0.1),
            summary=lambda self: table(),
        ),
    )('run')
    asked.fake('fsdl_tools.operations.tracking_read.read_all', [run, run])
    asked.fake('fsdl_tools.operations.tracking_read.read', run)
    asked.fake('fsdl_tools.operations.tracking_compare.compare', table())
    asked.fake('fsdl_tools.operations.tracking_compare.compare_html', None)
    asked.fake(
        'fsdl_tools.operations.tracking_compare.convert',
        type('C', (Said,), dict(table=lambda self: table(), where='there'))('converted'),
    )
    for words in (
        'list',
        'list x --json',
        'show x',
        'show x --run r --json',
        'compare a b',
        'compare a --metric m --metric n --html h --json',
        'convert x --to jsonl -o o',
        'convert x --to jsonl -o o --run r --json',
        'convert x',
    ):
        asked.typed('runs', *words.split())

    def fail(*a):
        raise RuntimeError('cannot')

    asked.fake('fsdl_tools.operations.tracking_compare.convert', fail)
    asked.typed('runs', 'convert', 'y', '--to', 'jsonl', '-o', 'o')
    for error in ('', 'bad'):
        asked.fake('fsdl_tools.operations.tracking.follow', [type('Row', (dict,), {})(sink='s', error=error)])
        monkeypatch.setattr(tracking, 'show', lambda done, as_json: typer.echo(f'{done} {as_json}'))
        for words in ('', '--once --to a,b --timeout 3s --json', '--mlflow-uri u'):
            asked(f'follow {error} {words}', main.run, ['runs', 'follow', 'r', *words.split()])
    ended = []
    monkeypatch.setattr('threading.Event.wait', lambda self, *a: exec('raise KeyboardInterrupt'))
    asked.fake(
        'fsdl_tools.operations.tracking_compare.serve',
        SimpleNamespace(url='http://x', shutdown=lambda: ended.append(1)),
    )
    asked('serve', lambda: [main.run(['runs', 'serve', '--port', '3']), ended])
    monkeypatch.undo()
    monkeypatch.setenv('COLUMNS', '100')
    for text in ('20usd', '$5', '3 Dollars', '50', '2h', 'USD'):
        asked(f'dollars {text}', tracking._in_dollars, text)
    asked.fake('fsdl_tools.operations.sweep_trials.hourly_price', '7.5')
    asked.fake('fsdl_tools.operations.sweeps.Budget.parse', lambda text, price: [text, price])
    for text, price, job in itertools.product(('', '20usd', '8'), ('0', '2'), (None, 'job')):
        asked(f'budget {text} {price} {job}', tracking._budget, text, price, job)
    for held, resume in itertools.product((True, False), (True, False)):
        place = tmp_path / f'p{held}'
        place.mkdir(exist_ok=True)
        if held:
            (place / 'sweep.db').write_text('')
        asked(f'place {held} {resume}', tracking._check_place, place, resume)
    asked.fake('fsdl_tools.operations.sweep_ray.tune_on_ray', Said('ray'))
    asked.fake('fsdl_tools.operations.sweeps.sweep', Said('swept'))
    for engine, jobs in itertools.product(('optuna', 'ray-tune'), ({}, dict(job=1))):
        asked(f'sweep {engine} {jobs}', tracking._run_sweep, 's', 'p', engine, dict(seed=1), jobs)
    asked.fake(
        'fsdl_tools.operations.sweep_results.best',
        dict(trial=3, metric='loss', value=0.123456789, low=0.1, high=2.0, trials=5),
    )
    asked('best', tracking._say_best, 'p')
    asked.fake('fsdl_tools.operations.sweep_space.read_sweep', 'space')
    asked.fake('fsdl_tools.cli.launching.job_in', 'job')
    asked.fake('fsdl_tools.cli.launching.options_of', {})
    asked.fake('fsdl_tools.operations.targets.target', 'place')
    for words in (
        '',
        '--json',
        '-o f --workers 3 --budget 4 --price 2 --seed 5 --function f --engine ray',
        '--job j.json --on slurm --budget 3usd',
        '--resume',
        '--workers 0',
    ):
        asked.typed('sweep', 'd/s.yaml', *words.split())
    same_answers(request, 'tracking', asked)


def test_training(request, asked, tmp_path, monkeypatch):
    for n in (0, 1, 2, 9, 10, 11, 12, 20, 21, 25, 101):
        asked(f'some {n}', training._some, list(range(n)))
    from fsdl_tools.training.checkpoint import CheckpointError
    from fsdl_tools.training.elastic import Stopped

    monkeypatch.delenv('RANK', raising=False)
    row = dict(step=1, loss=1.23456, norm=0.5, lr=1e-3, seconds=0.25, samples_per_s=1234.5, mfu=0.123)
    asked.fake('fsdl_tools.training.elastic.train', [row | dict(step=i) for i in range(25)])
    for words in (
        '',
        '--json',
        '--layout dp2 --steps 3 --lr .1 --resume -o x --restarts 0 --seq 8',
        '--restarts -1',
        '--steps 0',
    ):
        asked.typed('train', *words.split())
    for e in (Stopped(143), CheckpointError('bad'), RuntimeError('died'), MemoryError('full'), ValueError('wrong')):

        def fail(*a, e=e):
            raise e

        asked.fake('fsdl_tools.training.elastic.train', fail)
        asked(f'train {type(e).__name__}', main.run, ['train'])
    asked.fake('fsdl_tools.training.elastic.work', None)
    for names in (('RANK',), ('RANK', 'WORLD_SIZE'), ('WORLD_SIZE',)):
        with monkeypatch.context() as m:
            for n in names:
                m.setenv(n, '0')
            asked(f'ranks {names}', main.run, ['train'])
    (tmp_path / 'run/checkpoints').mkdir(parents=True)
    (tmp_path / 'alone').mkdir()
    for rows in ([], [dict(step=1, good=True)], [dict(step=1, good=True), dict(step=2, good=False)]):
        asked.fake('fsdl_tools.training.archive.checkpoints', Table(rows, ['step', 'good']))
        for name in ('run', 'alone', 'none'):
            asked(f'checkpoints {len(rows)} {name}', main.run, ['checkpoints', str(tmp_path / name)])
    asked.fake('fsdl_tools.environments.side_envs', [dict(name='n', built=True, why='w', last_tested='t', more=1)])
    asked.fake('fsdl_tools.environments.build_env', 'python')
    monkeypatch.setattr(training, 'show', lambda what, as_json: typer.echo(f'{type(what).__name__} {as_json}'))
    for words in ('', '--json', 'build x', 'build x --again --timeout 3h', 'build'):
        asked.typed('env', *words.split())
    from fsdl_tools.environments import BuildError

    def fail(*a):
        raise BuildError('no pip')

    asked.fake('fsdl_tools.environments.build_env', fail)
    asked.typed('env', 'build', 'y')
    same_answers(request, 'training', asked)


def test_apps_and_diagnoses(request, asked, tmp_path, monkeypatch):
    asked.fake('fsdl_tools.app.screen.serve_app', 5)
    for words in ('', '--port 9 --host h'):
        asked.typed('app', *words.split())

    class Row(dict):
        "A row whose fields are attributes too"

        __getattr__ = dict.__getitem__

    claims = [
        Row(id=i, check=c, words='w', verdict='v', conditions='c', date='d')
        for i, c in (('a', 'x'), ('b', ''), ('c', 'y'))
    ]
    monkeypatch.setattr(
        apps,
        'show',
        lambda what, as_json: typer.echo(
            f'{type(what).__name__} {what if isinstance(what, str) else len(what)} {as_json}'
        ),
    )
    asked.fake('fsdl_tools.claims.claims', claims)
    asked.fake('fsdl_tools.claims.claim', lambda id: claims['abc'.index(id)])
    for name in ('lines', 'links', 'systems'):
        asked.fake(f'fsdl_tools.book.claims_page.{name}_table', table())
    for stands in (True, False):
        asked.fake('fsdl_tools.claims.recheck', lambda c, stands=stands: Row(stands=stands or c.id == 'a', id=c.id))
        for words in ('check', 'check a', 'check c', 'check c --json'):
            asked(f'claims {stands} {words}', main.run, ['claims', *words.split()])
    for words in ('', 'list --json', 'systems', 'links', 'lines', 'lnks'):
        asked.typed('claims', *words.split())
    for plan in (None, Said('plan')):
        asked.fake('fsdl_tools.book.guide.guide', type('G', (Said,), dict(plan=plan, advice='buy'))('guide'))
        for words in (
            '',
            f'--save {tmp_path}/g.json',
            '--json --gpu X --gpus 2 --batch 3 --seq 4 --tokens 5B --within 6d --seen-by all --price 7 --precision fp8',
        ):
            asked(f'guide {plan} {words}'.replace(str(tmp_path), ''), main.run, ['guide', 'gpt2', *words.split()])
    monkeypatch.undo()
    monkeypatch.setenv('COLUMNS', '100')
    exported = [
        ('fsdl_tools.cli.common', 'fsdl_tools/cli/common.py', n) for n in ('show', 'say', 'named_values', 'docments_in')
    ]
    asked(
        'exported',
        lambda: [
            [m, f, n] for m, f, n in apps._exported() if m in ('fsdl_tools.cli.common', 'fsdl_tools.training.adapters')
        ],
    )
    with monkeypatch.context() as m:
        m.setattr(apps, '_exported', lambda: iter(exported))
        for words in ('', '--json', 'say', 'SA', 'zzz', 'named_values --json', 'a', 'show'):
            asked.typed('docs', *words.split())
    for name in ('show', 'nobody', '_named_lines', 'app'):
        asked(
            f'says {name}',
            lambda n=name: [
                apps._docstring('fsdl_tools/cli/common.py', n),
                apps._head('fsdl_tools/cli/common.py', n),
                apps._chapter('fsdl_tools/cli/common.py'),
            ],
        )
    for found in ([], [1]):
        asked.fake('fsdl_tools.book.data.data_table', Table([dict(a=f) for f in found], ['a']))
        asked(f'data {found}', main.run, ['data', 'x'])
    asked.fake('fsdl_tools.app.tour.Tour', lambda *a: list(a))
    asked.fake('fsdl_tools.app.tour.tour', 'report')
    for words in ('', '--model m --gpu g --gpus 2 --tokens 3B --budget 4 --out o'):
        asked.typed('tour', *words.split())
    asked.fake('fsdl_tools.training.diagnose.diagnose', Said('diagnosed'))
    asked.fake('fsdl_tools.training.diagnose.diagnose_trace', Said('traced'))
    (tmp_path / 'good.py').write_text('print(1)')
    (tmp_path / 'bad.py').write_text('print(')
    (tmp_path / 'bytes.py').write_bytes(b'\0\1')
    for words in (
        't.json',
        't.json.gz --json',
        't.txt',
        f'{tmp_path}/good.py --repeats 2',
        f'{tmp_path}/good.py --no-check --trace t --json',
        f'-- python {tmp_path}/good.py --x',
        f'{tmp_path}/bad.py',
        f'-- python3.11 {tmp_path}/bytes.py',
        '-- python',
        '-- -m json',
        f'{tmp_path}/good.py --repeats 1',
        't.json u.json',
    ):
        asked(f'diagnose {words}'.replace(str(tmp_path), ''), main.run, ['diagnose', *words.split()])
    for words in (['python'], [], ['python3', tmp_path / 'good.py'], [tmp_path / 'bad.py']):
        asked(f'program {[Path(w).name for w in words]}', diagnosing._check_program, [str(w) for w in words])
    same_answers(request, 'apps_and_diagnoses', asked)
