"Answers of what every chapter stands on, as they were: units, names, records, tables, files, side environments, claims"

import dataclasses
import datetime
import itertools
import json
import os
import re
import stat
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools import claims, core, environments, files, table, testing, units
from tests.answers import answer, same_answers


class Asked(dict):
    "Answers by question, in which a temporary folder has no name"

    def __init__(self, tmp=' no folder '):
        super().__init__()
        self.tmp = str(tmp)

    def __call__(self, question, function, *args, **kw):
        text = re.sub(
            r'one of \d+ names', 'one of some names', json.dumps(answer(function, *args, **kw))
        )  # tables come and go
        self[question] = json.loads(text.replace('PosixPath(', 'Path(').replace(self.tmp, 'TMP'))


# Units


def test_units(request):
    asked, rng = Asked(), np.random.default_rng(0)
    sizes = [
        0,
        1,
        -1,
        0.5,
        0.999,
        999,
        999.4,
        999.5,
        999.9,
        999.96,
        1000,
        1023,
        1023.5,
        1023.9,
        1023.996,
        1024,
        1025,
        1536,
        10**6,
        999950,
        2**20 - 1,
        2**20,
        2**70,
        10**21,
        -2048,
        1.25,
        float('nan'),
        float('inf'),
        -float('inf'),
    ]
    sizes += [float(f'{v:.6g}') for v in 10 ** rng.uniform(-8, 22, 40)]
    for n in sizes:
        asked(
            f'{n}',
            lambda n=n: [
                units.human_bytes(n),
                units.human_bytes(n, 0),
                units.human_count(n),
                units.human_count(n, 3),
                units.human_seconds(n),
                units.human_dollars(n),
            ],
        )
    for s in (
        9.994e-7,
        9.996e-7,
        9.994e-4,
        9.996e-4,
        0.9994,
        0.9996,
        59.96,
        59.97,
        59.98,
        3597,
        3598.5,
        86356,
        86357,
        86e3,
        8.64e7,
        8.63e7,
        1e-9,
        99.994,
        99.995,
        99.996,
        -100,
        99.99,
    ):
        asked(f'seconds {s}', lambda s=s: [units.human_seconds(s), units.human_seconds(-s), units.human_dollars(s)])
    texts = [
        '80GiB',
        '1.5 GB',
        '512M',
        '16 gigabytes',
        '',
        'x',
        '1,000',
        '1,5',
        '1_000',
        '1_0',
        '1e3',
        '1e3k',
        '-3',
        '+4 kb',
        ' 5 KB ',
        '3.',
        '.5g',
        '7B',
        '1.5 trillion',
        '300B tokens',
        '30 M params',
        '2 mio',
        '1mrd',
        '1e400',
        '1e400 x',
        'nan',
        '5 bytes',
        '3 kibibytes',
        '4 megabyte',
        '2ei',
        '1 e',
        '300k',
        '3 flops',
        '2 tokenz',
        '١',
        '1,000,000.5',
        '12,34',
        '4t',
        '2p',
        '9e',
        '3 b',
        '1 byte',
    ]
    for t in [*texts, 3, 2.5, True, None, float('nan'), float('inf'), [1]]:
        asked(f'bytes {t!r}', units.parse_bytes, t)
        asked(f'count {t!r}', units.parse_count, t)
    times = [
        '30d',
        '2h',
        '15 min',
        '3.2ms',
        '2 weeks',
        '1h30m',
        '1-12:00:00',
        '1 day, 2:03:04',
        '1:30:00',
        '1:30',
        '90',
        '1 day 6 hours',
        'PT1H30M',
        'P1D',
        'p1dt2h',
        't5m',
        '1h and 3m',
        '1h, 3m',
        '1:60:00',
        '1:00:60',
        '2:03:04.5',
        '5 µs',
        '5us',
        '3x',
        '1h 3x',
        'h',
        '',
        '1e400s',
        '1.5h',
        '2 days 1:00:00',
        '1,000s',
        '3w',
        '1 wk',
        'pt',
        '1e400',
        '-5s',
        '1h-3m',
        '2d1h',
    ]
    for t in [*times, 3, 2.5, True, None, float('inf'), datetime.timedelta(hours=1.5)]:
        asked(f'time {t!r}', units.parse_seconds, t)
    prices = [
        '2.49',
        '$2.5/h',
        '20 USD',
        '1,020.50',
        '1.020,50',
        '20,50',
        '$1.2k',
        '2m',
        '1,000',
        '€3',
        '3 eur',
        'US$ 4',
        '4 dollars per hour',
        '3 per gpu-hour',
        '5 an hour',
        '1e400',
        'x',
        '',
        '-2',
        '1.000,',
        '12,345.6',
        '3 / gpu h',
        '1,2,3',
        '1.5 K',
        '$',
        '3 gbp',
    ]
    for t in [*prices, 3, True, None, 2.5]:
        asked(f'price {t!r}', units.parse_dollars, t)
    asked('what', units.parse_dollars, 'x', 'the budget')
    asked('words', lambda: {k: v for k, v in units._size_words().items() if len(k) != 2})
    asked('sizes', lambda: [units.KiB, units.MiB, units.GiB, units.TiB])
    same_answers(request, 'units', asked)


# Names


def takes(batch, lr=0.1, *, seq=None):
    return batch, lr, seq


def test_names(request, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    choices = ['adam', 'adamw', 'sgd', 'momentum', 'A100-SXM-80GB', 'H100', 'bf16', 'causal-lm', 3]
    many = [f'name{i}' for i in range(13)]
    for name in (
        'adam',
        'adm',
        'SGD',
        'a100',
        'text-generation',
        'torch.bfloat16',
        'bfloat16',
        'zzz',
        '',
        'h1',
        'h10',
        'AdamW',
        'om',
        'omen',
        3,
        'optim.SGD',
    ):
        asked(
            f'near {name!r}',
            lambda n=name: [
                core.nearest(n, choices),
                core.nearest(n, choices, 1),
                core.said_here(n, choices),
                core.said_here(n, choices, 'task'),
            ],
        )
        asked(f'one {name!r}', core.one_of, 'thing', name, choices)
        asked(
            f'ours {name!r}',
            lambda n=name: [
                answer(core.our_word, kind, n, choices) for kind in ('task', 'precision', 'optimizer', 'nothing')
            ],
        )
        asked(
            f'type {name!r}',
            lambda n=name: [core.what_to_type(n, choices, kind) for kind in ('argument', 'option', 'command')],
        )
        asked(f'plain {name!r}', core._plain, name)
    for n in (0, 12, 13):
        asked(f'expected {n}', core.one_of, 'thing', 'zzzzz', many[:n])
    for word in (
        'batch_size',
        'license',
        'device_map',
        'push_to_hub',
        'num_train_epochs',
        'learning-rate',
        'lr',
        'seq_len',
        'bacth',
        'accelerate',
        'torch_dtype',
        'fp16',
        'max_steps',
        'deepspeed',
        'nothing_known',
        'run',
        'tune',
    ):
        for known in ((), ('batch', 'lr', 'seq', 'licence', 'precision', 'steps')):
            asked(
                f'word {word} {len(known)}',
                lambda w=word, k=known: (
                    [answer(core.what_to_type, w, k, kind) for kind in ('argument', 'option', 'command')]
                    + [core._advice(w, k, kind) for kind in ('argument', 'option', 'command')]
                ),
            )
        asked(f'argument {word}', lambda w=word: core.understands(takes)(**{'batch': 1, w: 2}))
    told = dict(
        option=dict(x=['do --a and --b'], y=['nothing: it is so'], z=['nothing']),
        argument=dict(x=['name', 'two words']),
        command={},
    )
    with monkeypatch.context() as m:
        m.setattr(core, '_vocabulary', lambda: told)
        for word, known, kind in itertools.product('xyzq', ((), ('a',), ('a', 'b')), told):
            asked(
                f'told {word} {known} {kind}', lambda *a: [core._advice(*a), core.what_to_type(*a)], word, known, kind
            )
    asked('vocabulary', lambda: [sorted(core._vocabulary()), core._vocabulary()['task'].get('text-generation')])
    for v in (1, 0, -1, 1.5, True, '3', None, float('nan'), float('inf'), np.int64(4), np.float32(2)):
        asked(
            f'positive {v!r}',
            lambda v=v: [float(core.positive('it', v, integer=False)), answer(core.positive, 'it', v)],
        )
    for v in (1, 0, 1.5, 'x'):
        asked(f'positive whole {v!r}', core.positive, 'it', v)
    for t in ('plain é', 'a\x1b[1m', '\n\t', '\u200b', '\u200d', '\u2028', '\ud800', 3, '\u2029 \x7f'):
        asked(f'printable {t!r}', core.printable, t)

    def raising(e):
        with core.theirs('doing it'):
            raise e

    reset = []
    monkeypatch.setitem(sys.modules, 'torch._dynamo', SimpleNamespace(reset=lambda: reset.append(1)))
    for e in (
        ValueError('bad\nthing'),
        KeyError('k'),
        ImportError('no'),
        SystemExit(2),
        ValueError(''),
        RuntimeError('x' * 400),
        RuntimeError('a Exception raised from b'),
        RuntimeError('rule registered for HigherOrderOperator cond_impl'),
        TypeError('BatchedTensorImpl'),
        TypeError('torch.func.x'),
        TypeError('torchXfunc.x'),
    ):
        asked(f'theirs {str(e)[:30]!r} {type(e).__name__}', raising, e)
        asked(f'hidden {str(e)[:30]!r} {type(e).__name__}', lambda e=e: [core._hidden(str(e)), len(reset)])
    monkeypatch.delitem(sys.modules, 'torch._dynamo')
    asked('not loaded', core._hidden, 'rule registered for HigherOrderOperator cond')

    def missing(name):
        def load(module):
            if module == 'json':
                return json
            raise ModuleNotFoundError(f'no {name}', name=name)

        return load

    for module, lacks in (('json', ''), ('a', 'a'), ('a.b', 'a'), ('a.b', 'a.b'), ('a.b', 'c'), ('a', ''), ('ab', 'a')):
        with monkeypatch.context() as m:
            m.setattr(core.importlib, 'import_module', missing(lacks))
            asked(f'need {module} {lacks}', lambda module=module: [core.need(module).__name__])
            asked(
                f'need extra {module} {lacks}', lambda module=module: [core.need(module, 'train', 'package').__name__]
            )
    loaded = []
    for there in (True, False):
        with monkeypatch.context() as m:
            m.setattr(core.importlib.util, 'find_spec', lambda n, there=there: there)
            m.setattr(core.importlib, 'import_module', loaded.append)
            for n in ('keras.x', 'json'):
                core.need(n)
    asked('first', lambda: loaded)
    same_answers(request, 'names', asked)


# Records


@dataclasses.dataclass(frozen=True)
class Inner(core.Record):
    x: int = 1


@dataclasses.dataclass(frozen=True)
class Outer(core.Record):
    "A record of many kinds"

    name: str
    size: float = 1.0
    inner: Inner = Inner()
    several: list[Inner] = dataclasses.field(default_factory=list)
    pair: tuple[int, ...] = ()
    either: typing.Union[Inner, None] = None
    some: int | str = 1
    kind: typing.Literal['a', 'b'] = 'a'
    named: dict[str, int] = dataclasses.field(default_factory=dict)
    anything: typing.Any = None
    plain: list = dataclasses.field(default_factory=list)
    hidden: int = dataclasses.field(default=0, repr=False)
    made: int = dataclasses.field(default=5, init=False)
    loose: tuple = ()


def test_records(request, tmp_path):
    asked = Asked(tmp_path)
    values = (
        3,
        2.5,
        True,
        'x',
        None,
        [1, 2],
        ['a'],
        (1,),
        {},
        dict(a=1),
        dict(x=2),
        dict(x='y'),
        [dict(x=3)],
        [dict(x='y')],
        [],
        'b',
    )
    kinds = {f.name: t for f, t in zip(dataclasses.fields(Outer), typing.get_type_hints(Outer).values())} | dict(
        none=None, text='later', bare=dict, floats=list[float]
    )
    for name, kind in kinds.items():
        asked(f'fits {name}', lambda k=kind: [core._fits(v, k) for v in values])
        asked(f'revives {name}', lambda k=kind: [repr(core._revive(v, k)) if core._fits(v, k) else '' for v in values])
    o = Outer('n', 2.0, Inner(3), [Inner(4)], (1, 2), Inner(5), 'x', 'b', dict(a=1), loose=(1,))
    plain = {k: v for k, v in o.to_dict().items() if k != 'made'}
    asked('again', lambda: [repr(Outer.from_dict(json.loads(json.dumps(plain)))), Outer.from_dict(plain) == o])
    for name, v in itertools.product(plain, values):
        asked(f'from {name} {v!r}', lambda n=name, v=v: repr(getattr(Outer.from_dict(dict(name='n') | {n: v}), n)))
    for d in ({}, [], 3, dict(nme=1), dict(name='n', made=3), dict(size=1)):
        asked(f'from {d}', lambda d=d: repr(Outer.from_dict(d)))
    for kw in (dict(nme=1), dict(name=2, sizee=3), dict(batch_size=1)):
        asked(f'make {kw}', lambda kw=kw: Outer(**kw))
        asked(f'replace {kw}', lambda kw=kw: o.replace(**kw))
    asked('replaced', lambda: repr(o.replace(name='m')))
    (tmp_path / 'good.json').write_text(json.dumps(plain))
    (tmp_path / 'bad.json').write_bytes(b'\xff')
    for src in (
        tmp_path / 'good.json',
        str(tmp_path / 'good.json'),
        tmp_path / 'bad.json',
        tmp_path / 'none.json',
        json.dumps(plain),
        '  {"name": "n"}',
        '{',
        '[1]',
        '{"a":' * 5000,
    ):
        asked(f'json {str(src)[-20:]}'.replace(str(tmp_path), ''), lambda s=src: repr(Outer.from_json(s)))
    asked('to json', lambda: [o.to_json(), o.to_json(tmp_path / 'o.json'), (tmp_path / 'o.json').read_text()])
    asked('not finite', lambda: Outer('n', float('nan')).to_json())
    asked('page', lambda: [Inner(7)._repr_markdown_(), Inner(7)._repr_html_(), type(Inner().__rich__()).__name__])
    for n in (98, 99, 1800, 1830, 2000):
        asked(f'repr {n}', lambda n=n: repr(Outer('n' * n, plain=list(range(n)))))
    for v in ('x' * 98, 'x' * 99, list(range(34)), list(range(200)), 10**120, b'x' * 200, {i: i for i in range(99)}):
        asked(f'short {type(v).__name__} {len(repr(v))}', core._short, v)
    same_answers(request, 'records', asked)


def test_data(request, tmp_path, monkeypatch):
    asked = Asked(Path(core.__file__).parent)
    for s in (
        '',
        '1',
        '-3',
        '+4',
        '1234567890123456',
        '123456789012345',
        '1.5',
        '.5',
        '5.',
        '1e3',
        '1e',
        'x',
        '1_000',
        'nan',
        'inf',
        '2026-01-02',
        '1E-3',
        '--1',
        '٣',
    ):
        asked(f'number {s!r}', lambda s=s: repr(core._number(s)))
    for name in ('gpus.csv', 'gpu.csv', 'results/zoo.json', 'zzz', '../core.py', 'words.csv'):
        asked(f'path {name}', core.data_path, name)
    (tmp_path / 't.csv').write_text('a,b\n1,2\n,x\n')
    monkeypatch.setattr(core, 'data_path', lambda name: tmp_path / 't.csv')
    for text in ((), ('a',)):
        asked(f'rows {text}', core.read_data, 't.csv', text)
    (tmp_path / 't.csv').write_text('{"a": 1}')
    asked('results', core.read_results, 'x')
    monkeypatch.undo()
    for kept, loaded, origin, lib in itertools.product(([], [1]), (True, False), (None, 'x'), (True, False)):
        made = []
        with monkeypatch.context() as m:
            m.setattr(core, '_kept', kept)
            m.delitem(sys.modules, 'torchvision', raising=False)
            if loaded:
                m.setitem(sys.modules, 'torchvision', 1)
            (tmp_path / '_C.so').unlink(missing_ok=True)
            if lib:
                (tmp_path / '_C.so').write_text('')
            m.setattr(
                core.importlib.util, 'find_spec', lambda n, o=origin: o and SimpleNamespace(origin=str(tmp_path / 'x'))
            )
            m.setattr(core, '_load_or_define', lambda p: made.append(p.name))
            asked(f'torchvision {kept} {loaded} {origin} {lib}', lambda: [core.fix_torchvision(), made])
    asked('style', lambda: [core.plot_style().rcParams['figure.figsize'], core.plot_style().rcParams['font.size']])
    same_answers(request, 'data', asked)


# Tables


def test_tables(request, tmp_path):
    asked = Asked(tmp_path)
    values = [
        None,
        float('nan'),
        True,
        False,
        0,
        1234567,
        -5,
        1e5,
        99999.4,
        99999.6,
        123456.789,
        0.000012345,
        3.14159,
        -1e6,
        float('inf'),
        'te|xt',
        'a\nb',
        '<b>',
        [1],
    ]
    for v in values:
        asked(f'cell {v!r}', table._cell, v)
    rows = [
        dict(name='b', size=2, share=0.5),
        dict(name='a|*', size=None, share=1 / 3, more=[1]),
        dict(name='<c>', size=10**6),
    ]
    tables = dict(
        plain=table.Table(rows),
        some=table.Table(rows, ['size', 'name'], caption='c <1>', notes='n [x]'),
        formats=table.Table(rows, formats=dict(size='{:,}!'.format)),
        empty=table.Table([]),
        named=table.Table([], ['a', 'b']),
        records=table.Table([Inner(1), Inner(2)]),
        yes=table.Table([dict(a=True, b=1.5), dict(a=False, b=2)]),
        none=table.Table([dict(a=None)]),
        wide=table.Table([dict(a='x' * 50, b='é')]),
        mixed=table.Table([dict(a=1), dict(a='x')]),
        bad_letters=table.Table([dict(a='x\x1by')]),
    )
    for n in (19, 20, 21, 25, 1500):
        tables[f'rows {n}'] = table.Table([dict(i=i) for i in range(n)])
    for name, t in tables.items():
        shown = t if len(t) < 100 else t[:0]
        asked(
            name,
            lambda t=t, s=shown: [
                len(t),
                t.columns,
                repr(t),
                s._repr_markdown_(),
                s._repr_html_(),
                s.to_json(),
                s.to_json(indent=None),
                [s._right(c) for c in s.columns],
            ],
        )
        asked(f'{name} in a terminal', lambda s=shown: in_terminal(s))
        asked(f'{name} pandas', lambda s=shown: [list(s.to_pandas().columns), len(s.to_pandas())])
        asked(f'{name} csv', lambda s=shown: s.to_csv(tmp_path / 't.csv').read_text())
    asked('no column', table.Table, rows, ['nme'])
    t = tables['plain']
    for key in (0, -1, slice(1, 3), 'size', 'siz', 'more', 9):
        asked(f'get {key}', lambda k=key: t[k] if not isinstance(t[k], table.Table) else repr(t[k]))
    for name, reverse in itertools.product(('size', 'share', 'nme', 'more'), (True, False)):
        asked(f'sort {name} {reverse}', lambda n=name, r=reverse: t.sort(n, r).rows)
    asked('iterated', lambda: [r['name'] for r in t])
    rng = np.random.default_rng(0)
    for n in (0, 1, 5, 30):
        points = rng.integers(0, 12, (n, 2)).tolist()
        asked(f'front {n}', table.pareto_front, points, lambda p: p[0], lambda p: p[1])
    same_answers(request, 'tables', asked)


def in_terminal(what):
    "What rich prints"
    import io
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=80).print(what)
    return out.getvalue()


# Files


def test_files(request, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    for p in (
        '/dev/fd/3',
        '/proc/self/fd/12',
        '/dev/stdout',
        '/dev/stderr',
        '/dev/fd/x',
        '/dev/null',
        '/a/dev/fd/3',
        'x',
    ):
        asked(f'stream {p}', files._own_stream, p)
    (tmp_path / 'file').write_text('old')
    (tmp_path / 'file').chmod(0o640)
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'file')
    (tmp_path / 'dangling').symlink_to(tmp_path / 'new')
    (tmp_path / 'round').symlink_to(tmp_path / 'round')
    for p in ('file', 'link', 'dangling', 'round', 'folder', 'none/x', 'new2'):
        for content in ('té', b'b'):
            asked(
                f'write {p} {content!r}',
                lambda p=p, c=content: [
                    files.write_atomic(tmp_path / p, c),
                    (tmp_path / p).read_bytes().decode(),
                    (tmp_path / p).is_symlink(),
                    oct(stat.S_IMODE((tmp_path / p).stat().st_mode)),
                ],
            )
        asked(f'followed {p}', files.followed, tmp_path / p)
    asked('left', lambda: sorted(p.name for p in tmp_path.iterdir()))
    for p in (
        '/dev/null',
        '/dev/fd/1',
        '/proc/self/status',
        tmp_path / 'file',
        tmp_path / 'none',
        '/etc/hostname',
        '/dev',
    ):
        asked(f'special {p}'.replace(str(tmp_path), ''), files._is_special, Path(p))
    asked('to nothing', files.write_atomic, '/dev/null', 'x')
    read, write = os.pipe()
    files.write_atomic(f'/dev/fd/{write}', 'through a pipe')
    asked('pipe', lambda: os.read(read, 99).decode())
    os.set_blocking(write, True)
    os.close(write)
    os.mkfifo(tmp_path / 'fifo')
    asked('nobody reads', files._open_special, tmp_path / 'fifo', -1.0)
    monkeypatch.setattr(files.time, 'sleep', lambda s: None)
    asked('nobody reads for a while', files._open_special, tmp_path / 'fifo', 0.01)
    for last in (True, False):
        asked(f'try {last}', files._try_to_open, tmp_path / 'fifo', last)
    asked('try folder', files._try_to_open, tmp_path / 'folder', False)
    reader = os.open(tmp_path / 'fifo', os.O_RDONLY | os.O_NONBLOCK)
    files.write_atomic(tmp_path / 'fifo', 'to a reader')
    asked('reader', lambda: os.read(reader, 99).decode())
    os.close(reader)
    os.close(read)
    for size, most in ((5, 5), (6, 5), (0, 0), (3, 2**26)):
        (tmp_path / 'big').write_bytes(b'x' * size)
        asked(f'read {size} {most}', files.read_limited, tmp_path / 'big', most)
    for p in ('none', 'folder'):
        asked(f'read {p}', files.read_limited, tmp_path / p)
    asked(
        'zero', lambda: [answer(files.read_limited, '/dev/null', 9, 0.01), answer(files.read_limited, '/dev/zero', 100)]
    )

    class Read:
        "Gives one piece after the other"

        def __init__(self, *pieces):
            self.pieces = list(pieces)

        def read(self, n):
            return self.pieces.pop(0) if self.pieces else None

    ticks = itertools.count()
    monkeypatch.setattr(files.time, 'monotonic', lambda: float(next(ticks)))
    for pieces, came in itertools.product(((b'a',), (b'',), (None, b'a'), (b'', b'b'), (), (None, b'')), (True, False)):
        asked(f'piece {pieces} {came}', lambda p=pieces, c=came: files._next_piece(Read(*p), 3, c))
    for pieces in ((b'ab', b'c', b''), (b'',), (b'a', None, b''), (b'abcd', b'e', b'')):
        with monkeypatch.context() as m:
            given = list(pieces)
            m.setattr(files, '_next_piece', lambda f, wait, came: given.pop(0) if given else None)
            asked(f'stream {pieces}', lambda: files._read_stream('/dev/null', 4, 5.0))
    monkeypatch.undo()
    asked('waits', files._read_stream, tmp_path / 'fifo', 4, 0.01)
    same_answers(request, 'files', asked)


def test_scratch(request, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    names = dict(dead='.owner', other='.owner', nothing='', link='', held='.owner', new='.owner')
    for name, owner in names.items():
        folder = tmp_path / ('other-x' if name == 'other' else f'mine-{name}')
        if name == 'link':
            folder.symlink_to(tmp_path)
            continue
        folder.mkdir()
        if owner:
            (folder / owner).write_text('')
        if owner and name != 'new':
            os.utime(folder / owner, (1, 1))
    import fcntl

    with open(tmp_path / 'mine-held/.owner') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with files.scratch('mine-', tmp_path) as made:
            asked(
                'inside',
                lambda: [
                    made.parent,
                    made.name.startswith('mine-'),
                    sorted(p.name for p in made.iterdir()),
                    sorted(p.name for p in tmp_path.iterdir() if p != made),
                ],
            )
    asked('after', lambda: [made.exists(), sorted(p.name for p in tmp_path.iterdir())])
    for age, now in ((1.0, 2.9), (1.0, 3.0), (1.0, 3.1)):
        folder = tmp_path / f'age{now}'
        folder.mkdir()
        (folder / '.owner').write_text('')
        os.utime(folder / '.owner', (age, age))
        with monkeypatch.context() as m:
            m.setattr(files.time, 'time', lambda now=now: now)
            files._remove_if_dead(folder, folder / '.owner')
        asked(f'age {now}', folder.exists)
    with files.scratch('fsdl-test-scratch-') as made:
        asked('system', lambda: made.is_dir())
    asked('gone', made.exists)
    same_answers(request, 'scratch', asked)


# Side environments


def test_environments(request, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(environments, '_base', lambda: ['python', 'prefix', '2.0'])
    made = environments.SideEnv(
        'e', 'a b; c', env='A=1 B=x=y', check='import a', programs='python3 no-such-program', apt='p q'
    )
    asked(
        'key',
        lambda: [made.key, made.replace(layered=False).key, made.replace(why='x').key, environments.SideEnv('f').key],
    )
    asked(
        'row',
        lambda: [
            type(environments.side_env('horovod')).__name__,
            environments.side_env('horovod').layered,
            environments._meant('horovod') == environments.side_env('horovod'),
            environments._meant(made) is made,
        ],
    )
    asked('no row', environments.side_env, 'horovodd')
    asked('table', lambda: [environments.side_envs().columns, sorted({r['built'] for r in environments.side_envs()})])
    folder = environments.env_folder(made)
    asked('folder', lambda: [folder, environments.built(made)])
    folder.mkdir(parents=True)
    (folder / 'stamp.json').write_text('{}')
    asked('built', environments.built, made)
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    asked('cache', environments.cache_folder)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'log').write_text('\n'.join(map(str, range(20))))
    asked('tail', lambda: [environments._tail(tmp_path / 'log'), environments._tail(tmp_path / 'log', 2)])
    asked('short', lambda: [environments._short(['/a/b/c', 1, 'x']), len(environments._short(['a', 'x' * 200]))])
    for dpkg, said in itertools.product((None, 'x'), ('install ok installed', 'deinstall')):
        with monkeypatch.context() as m:
            m.setattr(
                environments.shutil,
                'which',
                lambda n, dpkg=dpkg: dpkg if n == 'dpkg-query' else None if n.startswith('no') else n,
            )
            m.setattr(environments.subprocess, 'run', lambda *a, said=said, **kw: SimpleNamespace(stdout=said))
            asked(f'missing {dpkg} {said}', environments.missing_programs, made)
    for swap in ('-std=c++14=-std=c++20', '-O2=-O3', "-a b=-c'd"):
        asked(f'rule {swap}', environments._rule, swap)
    (tmp_path / 'bin').mkdir()
    monkeypatch.setattr(environments.shutil, 'which', lambda n: f'/usr/bin/{n}')
    for cxx in (None, 'clang'):
        monkeypatch.setenv('CXX', cxx) if cxx else monkeypatch.delenv('CXX', raising=False)
        asked(
            f'compiler {cxx}',
            lambda: [
                environments._compiler(tmp_path, ['-a=-b', '-c=-d']),
                (tmp_path / 'bin/c++-swap').read_text(),
                oct((tmp_path / 'bin/c++-swap').stat().st_mode),
            ],
        )
    monkeypatch.setattr(environments, '_packages', lambda: [str(tmp_path / 'site-packages')])
    calls = []

    def call(cmd, log, timeout, env=None, *more):
        calls.append(
            [
                [str(c) for c in cmd[1:]],
                Path(log).name,
                timeout,
                sorted(k for k in env or {} if k in ('A', 'B', 'CXX')),
                len(more),
            ]
        )
        if 'venv' in cmd:
            Path(cmd[-1], 'lib/python3/site-packages').mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(environments, '_call', call)
    monkeypatch.setattr(environments, '_pip_settings', lambda: dict(PIP_X='1'))
    for layered, pip in itertools.product((True, False), (True, False)):
        (tmp_path / 'site-packages').mkdir(exist_ok=True)
        if pip:
            (tmp_path / 'site-packages/pip').mkdir(exist_ok=True)
        elif (tmp_path / 'site-packages/pip').exists():
            (tmp_path / 'site-packages/pip').rmdir()
        place = tmp_path / f'venv{layered}{pip}'
        asked(
            f'venv {layered} {pip}',
            lambda: [
                environments._make_venv(place, made.replace(layered=layered), tmp_path / 'log'),
                calls.copy(),
                calls.clear(),
                [p.read_text() for p in sorted(place.rglob('*')) if p.is_file()],
            ],
        )
    monkeypatch.setattr(environments, '_base', lambda: ['python', 'prefix', None])
    asked(
        'no torch',
        lambda: [
            environments._layer(tmp_path / 'venvTrueTrue'),
            (tmp_path / 'venvTrueTrue/constraints.txt').read_text(),
        ],
    )
    monkeypatch.setattr(environments, '_compiler', lambda folder, swaps: dict(CXX='swap'))
    for e in (made, made.replace(compiler='-a=-b', check='', layered=False), made.replace(steps=' ; ')):

        def build(e=e):
            environments._build(e, environments.env_folder(e), 7)
            said = json.loads((environments.env_folder(e) / 'stamp.json').read_text())
            return [calls.copy(), calls.clear(), sorted(said), environments.built(e) is not None]

        asked(f'build {e.steps!r} {e.compiler} {e.check}', build)
    lacks = []
    monkeypatch.setattr(environments, 'missing_programs', lambda e: lacks)
    monkeypatch.setattr(
        environments,
        '_build',
        lambda e, folder, timeout: (
            calls.append([e.name, timeout]) or folder.mkdir(exist_ok=True) or (folder / 'stamp.json').write_text('{}')
        ),
    )
    fresh = environments.SideEnv('fresh', 'x')
    for timeout, again in ((5, False), (5, False), ('3min', True), ('3 x', True)):
        asked(
            f'build env {timeout} {again} {len(asked)}',
            lambda *a: [str(environments.build_env(fresh, *a)), calls.copy(), calls.clear()],
            timeout,
            again,
        )
    lacks.append('the program x')
    asked('cannot', environments.build_env, fresh, 5, True)
    lacks.clear()

    def fail(e, folder, timeout):
        folder.mkdir(exist_ok=True)
        raise ValueError('pip')

    monkeypatch.setattr(environments, '_build', fail)
    asked('fails', lambda: environments.build_env(fresh, 5, True))
    asked('leaves nothing', lambda: environments.env_folder(fresh).exists())
    for line in (
        "global.index-url='https://x'",
        ":env:.target='x'",
        "install.no-deps='true'",
        "other.x='y'",
        "global.x=",
        "global.a.b='c'",
        'x',
        "user.x='y'",
    ):
        asked(f'setting {line}', environments._pip_setting, line)
    monkeypatch.undo()
    monkeypatch.setattr(
        environments.subprocess,
        'run',
        lambda *a, **kw: SimpleNamespace(stdout="global.index-url='u'\nglobal.target='t'\n:env:.config-file='c'\nbad"),
    )
    asked('settings', environments._pip_settings)
    for name in ('PYTHONHOME', 'PYTHONPATH', 'PIP_TARGET', 'PIP_INDEX_URL', 'VIRTUAL_ENV'):
        monkeypatch.setenv(name, 'x')
    for layered in (True, False):
        asked(
            f'variables {layered}',
            lambda n=layered: sorted(
                k
                for k in environments._variables(made.replace(layered=n), MORE='1')
                if k in ('MORE', 'PYTHONHOME', 'PYTHONPATH', 'PIP_TARGET', 'PIP_INDEX_URL', 'VIRTUAL_ENV')
            ),
        )
    monkeypatch.setenv('PATH', '/p')
    for writable in (True, False):
        monkeypatch.setattr(environments.os, 'access', lambda f, how, w=writable: w)
        asked(f'paths {writable}', environments._paths, tmp_path)
        with environments._inside(tmp_path):
            asked(f'inside {writable}', lambda: (tmp_path / 'inside.lock').exists())
        (tmp_path / 'inside.lock').unlink(missing_ok=True)
    (tmp_path / 'torch_extensions/a').mkdir(parents=True)
    (tmp_path / 'torch_extensions/a/lock').write_text('')
    monkeypatch.setattr(environments.os, 'access', lambda f, how: True)
    with environments._inside(tmp_path):
        asked('swept', lambda: (tmp_path / 'torch_extensions/a/lock').exists())
    monkeypatch.undo()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache2'))
    asked('not built', environments.run_in, made, 'x:y')
    seen = []

    def answered(e, request, timeout, variables):
        return seen.append([json.loads(request), timeout, variables])

    monkeypatch.setattr(environments, '_answer', answered)
    monkeypatch.setattr(environments, 'built', lambda e: True)
    environments.env_folder(made).mkdir(parents=True)
    for code in ('a.b:c', 'def main(p): return p', 'a:b c'):
        asked(f'run {code}', lambda c=code: [environments.run_in(made, c, dict(p=1), A='b'), seen[-1]])
    asked('base', lambda: [len(environments._base()), environments._base()[-1] == torch.__version__])
    same_answers(request, 'environments', asked)


# Claims


def test_claims(request, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    plain = dict(
        id='i',
        words='w',
        refuted_by='r',
        chapter='c',
        check='core:GiB',
        low=1.0,
        high=2.0,
        unit='u',
        verdict='holds',
        finding='it is {figure:.1f}',
        conditions='so',
        source='s',
        date='d',
    )
    for kw in (dict(), dict(verdict='hold'), dict(check=''), dict(verdict='not checkable', check='')):
        asked(f'claim {kw}', lambda kw=kw: repr(claims.Claim(**plain | kw)))
    asked(
        'claims',
        lambda: [
            len(claims.claims()) > 20,
            claims.claim('timm-collection').verdict,
            claims.claim('timm-collection').told_low,
        ],
    )
    asked('no claim', claims.claim, 'timm-colection')
    ticks = itertools.count()
    monkeypatch.setattr(claims.time, 'perf_counter', lambda: float(next(ticks)))
    for figure in (0.9, 1.0, 1.5, 2.0, 2.1):
        monkeypatch.setattr(claims, '_measured', lambda check, f=figure: f)
        asked(f'recheck {figure}', lambda: claims.recheck(claims.Claim(**plain)).to_dict())
    asked('nothing to run', claims.recheck, claims.Claim(**plain | dict(verdict='not checkable', check='')))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, 'fsdl_tools.of_a_test', SimpleNamespace(figure=lambda: '2.5'))
    asked('measured', claims._measured, 'of_a_test:figure')
    for told, text in (
        (r'is (\d+)', 'it is 12'),
        (r'is (\d+)', 'it is 1 is 2'),
        (r'(\d+) of (\d+)', '1 of 4 and 2 of 4'),
        ('', 'x'),
        ('x(1)', 'y'),
        (r'([\d,]+)', '1,234'),
    ):
        asked(f'told {told} {text}', claims.told_figure, claims.Claim(**plain | dict(told=told)), text)
    for v in ('1,000', ('1', '4'), ('1,000', '2,000')):
        asked(f'share {v}', claims._share, v)
    asked('systems', lambda: [len(claims.systems()) > 9, claims.systems()[0].proof])
    for text in ('', 'a', 'a; b;;c ', ' ; '):
        asked(f'parts {text!r}', claims._parts, text)
    asked('texts', lambda: claims._texts(dict(a=None, b=1, c=None), ('c',)))
    system = claims.systems()[0]
    outcomes = {
        't.py::a': 'passed',
        't.py::b[1]': 'failed',
        't.py::b[2]': 'passed',
        't.py::c': 'skipped',
        'n.ipynb': 'passed',
        't.py::d[1]': 'skipped',
        't.py::d[2]': 'passed',
        'u.py::a': 'passed',
        't.py::bb': 'passed',
    }
    for name in ('t.py::a', 't.py::b', 't.py', 't.py::c', 'n.ipynb', 'none', 't.py::d', 'u.py', 't.py::b[1]', 'u'):
        asked(f'outcome {name}', claims._outcome, name, outcomes)
    for proof in (
        (),
        ('t.py::a',),
        ('t.py::a', 't.py::b'),
        ('t.py::c', 't.py::b'),
        ('t.py::c', 'n.ipynb'),
        ('n.ipynb', 'u.py'),
    ):
        asked(f'status {proof}', claims.status, system.replace(proof=proof), outcomes)
    asked('lines', lambda: [len(claims.lecture_lines()) > 50, {line.kind for line in claims.lecture_lines()}])
    row = dict(line=1, kind='name', words='w', links='a b', claims='c; d', systems='1;2', reason='')
    asked('line', lambda: claims._line(row).to_dict())
    of = {3: dict(became='b', page='p', date='d', source='s')}
    for row in (
        dict(link='l', said='x', became='', page='', date='', source='', system=3),
        dict(link='l', said='x', became='own', page='q', date='e', source='t', system=''),
        dict(link='l', said='x', became='own', page='', date='', source='', system=3),
    ):
        asked(f'link {row["became"]} {row["system"]}', lambda r=row: claims._link(r, of).to_dict())
    asked('links', lambda: len(claims.links()) > 9)
    same_answers(request, 'claims', asked)


# What tests share


def test_apart(request, monkeypatch):
    asked = Asked()
    t = lambda *v: torch.tensor(v, dtype=torch.float64)
    wanted = {'a': t(3.0, 4.0), 'x.attn.k.bias': t(0.0), 'b': t(1.0)}
    asked(
        'gradients', lambda: testing.gradients_apart({'a': t(3.0, 4.5), 'x.attn.k.bias': t(9.0), 'b': t(0.5)}, wanted)
    )
    for got, want in (
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.5], [1.0, 2.0]),
        ([0.0, 1e-4], [0.0, 0.0]),
        ([-3.0, 0.0], [2.0, 0.0]),
    ):
        asked(f'apart {got} {want}', testing._apart, np.array(got), np.array(want))
    runs = [
        dict(losses=[], parameters=dict(a=np.array([1.0, 2.0]))),
        dict(losses=[1.0, 2.0], parameters=dict(b=np.array([3.0]))),
    ]
    for whole in (
        dict(a=np.array([1.0, 2.5]), b=np.array([3.0])),
        dict(a=np.array([1.0, 2.0])),
        dict(a=np.array([1.0, 2.0]), b=np.array([4.0]), c=np.array([1.0])),
    ):
        asked(f'pipeline {list(whole)} {len(whole)}', testing.pipeline_apart, runs, ([1.0, 2.5], whole))
    losses, parameters = testing.train_whole('gpt-tiny', 3, 4)
    asked('whole', lambda: [[f'{v:.3f}' for v in losses], len(parameters), sorted(parameters)[:3]])
    from fsdl_tools.models.gpt import gpt_config

    def make(model):
        return model, testing._loss

    for dtype in (torch.float32, torch.float64):
        found = testing.compare_training(
            make, gpt_config('gpt-tiny'), lambda p: p.grad, steps=2, size=2, time=8, dtype=dtype
        )
        asked(
            f'beside itself {dtype}',
            lambda f=found: [f['loss'], f['gradient'], f'{f["first"]:.3f}', f'{f["last"]:.3f}'],
        )
    off = testing.compare_training(
        make, gpt_config('gpt-tiny'), lambda p: p.grad * 1.5, steps=2, size=2, time=8, seen=lambda loss: loss.item() * 2
    )
    asked('beside another', lambda: [f'{off["loss"]:.3f}', f'{off["gradient"]:.3f}'])
    model = torch.nn.Linear(1, 1)
    asked('sgd', lambda: [testing._sgd(model).defaults[k] for k in ('lr', 'momentum')])
    asked('loss', lambda: round(float(testing._loss(torch.arange(12.0).view(1, 3, 4), torch.tensor([[0, 1, 2]]))), 5))
    reference = lambda m: 'reference'
    optimizer = lambda m: 'optimizer'
    monkeypatch.setattr(testing, 'train_alone', lambda n, make: [f'{n} {make(None)}'])
    asked('alone', lambda: list(testing._train_alone(['a', 'b'], [optimizer]).values()))
    optimizer.reference = reference
    asked('by reference', lambda: list(testing._train_alone(['a'], [optimizer]).values()))
    monkeypatch.setattr(testing, 'train_ranks', lambda n, wrap, make: [n, wrap, make])
    asked('all', lambda: {str(k): v for k, v in testing._run_all(dict(s=('w', 'm'), t=('v', 'n')), ['a', 'b']).items()})
    monkeypatch.setattr(
        testing, '_train_alone', lambda names, makes: {(n, m): [1.0, 2.0] for n in names for m in makes}
    )
    monkeypatch.setattr(
        testing,
        'on_ranks',
        lambda f, ranks, strategies, names, timeout: [{(s, n): [1.0, 2.0 + len(s)] for s in strategies for n in names}],
    )
    asked('differences', lambda: testing.differences(dict(s=('w', 'm'), tt=('v', 'n')), 3, ['a', 'b']))
    monkeypatch.setattr(
        testing, 'compare_training', lambda make, config, whole, **kw: [config.layers, kw, make('model')[0]]
    )
    monkeypatch.setattr(testing, 'tensor_parallel', lambda model, mode: [model, mode])
    asked('scratch', lambda: testing.compare_scratch('gpt-tiny', 'sequence', steps=3))
    monkeypatch.setattr(
        testing,
        'init_device_mesh',
        lambda kind, shape, mesh_dim_names: (
            asked(f'mesh {shape}', lambda: [kind, list(shape), list(mesh_dim_names)])
            or dict(tp='tp', dp=SimpleNamespace(get_local_rank=lambda: 1))
        ),
    )
    monkeypatch.setattr(testing.dist, 'get_world_size', lambda: 4)
    monkeypatch.setattr(testing, 'parallelize', lambda *a: list(a))
    monkeypatch.setattr(testing, 'fully_shard', lambda m, mesh: None)
    monkeypatch.setattr(testing, 'cut_loss', lambda: asked('cut', lambda: True) or testing.nullcontext())
    monkeypatch.setattr(testing, '_replicated', lambda model, mesh: [model, 'replicated'])

    def compared(make, config, whole, share, seen, **kw):
        return [make('model')[0], make('model')[1].__name__, share(torch.arange(4)).tolist() if kw.get('dp2') else None]

    monkeypatch.setattr(testing, 'compare_training', compared)
    for dp, loss in itertools.product((1, 2), (True, False)):
        asked(
            f'torch {dp} {loss}',
            lambda dp=dp, loss=loss: testing.compare_torch(
                dp=dp, loss_parallel=loss, **(dict(dp2=True) if dp > 1 else {})
            ),
        )
    same_answers(request, 'apart', asked)


def with_two_replicas():
    return testing.compare_torch(dp=2)


def test_replicas_lose_what_one_process_loses():
    assert all(found['loss'] < 1e-5 and found['gradient'] < 1e-4 for found in on_ranks(with_two_replicas, 2))
