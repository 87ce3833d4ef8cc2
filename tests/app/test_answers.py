"Answers of the app as they were: what an address means, the blocks of each page, what is drawn, the stages of a tour"

import contextlib
import importlib
import itertools
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from fsdl_tools.app import blocks, pages, screen, tour
from fsdl_tools.table import Table
from tests.answers import answer, plain, same_answers


def said(value):
    "A value as it is kept: a block by its fields, a table by its texts"
    if isinstance(value, blocks.Block):
        return [said(v) for v in (value.kind, value.title, value.content, value.how, value.name) if v != '']
    if isinstance(value, Table):
        return dict(columns=value.columns, rows=value._grid(), caption=value.caption, notes=value.notes)
    if isinstance(value, (list, tuple)):
        return [said(v) for v in value]
    if isinstance(value, dict):
        return {str(k): said(v) for k, v in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors='replace')
    if callable(value):
        return getattr(value, '__name__', 'function')
    return (
        plain(value)
        if value is None or isinstance(value, (int, float, str))
        else re.sub(' at 0x[0-9a-f]+', '', str(value))
    )


# what is replaced below must not be what others import first
for module in sorted(set(re.findall(r"'(fsdl_tools(?:\.\w+)?\.\w+)\.\w+'", Path(__file__).read_text()))):
    with contextlib.suppress(ImportError):
        importlib.import_module(module)


class Asked(dict):
    "Answers by question, in which a temporary folder has no name; calls of functions that were put in place of others"

    def __init__(self, tmp, monkeypatch):
        super().__init__()
        self.tmp, self.monkeypatch, self.calls = str(tmp), monkeypatch, []

    def __call__(self, question, function, *args, **kw):
        value = answer(lambda: said(function(*args, **kw)))
        value = [value, *self.calls] if self.calls else value
        self[question] = json.loads(json.dumps(value).replace('PosixPath(', 'Path(').replace(self.tmp, 'TMP'))
        self.calls.clear()

    def fake(self, where, what=None):
        "In place of a function: its arguments are kept"
        name = where.rpartition('.')[2]

        def called(*args, **kw):
            self.calls.append([name, *said(args), *([said(kw)] if kw else [])])
            return what(*args, **kw) if callable(what) else what

        self.monkeypatch.setattr(where, called)


def forget():
    "What pages remember of questions asked before: true answers and made-up ones must not meet"
    for function in vars(pages).values():
        if hasattr(function, 'cache_clear'):
            function.cache_clear()


@pytest.fixture
def asked(tmp_path, monkeypatch):
    forget()
    yield Asked(tmp_path, monkeypatch)
    monkeypatch.undo()
    forget()


def test_blocks(request, asked, tmp_path):
    control = lambda kind, name='c', **kw: blocks.Control(name, 'Label', kind, **dict(dict(default=''), **kw))
    kinds = [
        control('text'),
        control('text', 'model'),
        control('count'),
        control('time'),
        control('number', low=-3, high=20),
        control('choice', choices=('a', 'bc')),
        control('switch'),
    ]
    texts = [
        '',
        'x',
        'a:b',
        'a',
        'bd',
        '0',
        '1',
        '2',
        '-3',
        '-4',
        '20',
        '21',
        '--1',
        '1.5',
        '26B',
        '1e18',
        '1.1e18',
        '-5',
        '30d',
        '1e10',
        '9999999999',
        '0s',
        'x' * 200,
        'x' * 201,
        'a\nb',
        '٣',
        '12345678901',
        '123456789012',
    ]
    for c, text in itertools.product(kinds, texts):
        asked(f'{c.name} {c.kind} {text[:20]!r} {len(text)}', c.parse, text)
    asked('kind', control, 'txt')
    wide = control('number', low=0, high=10**15)
    for text in ('12345678901', '123456789012', '-1234567890'):
        asked(f'wide {text}', wide.parse, text)
    page = blocks.View('p', 'P', 'Q', tuple(kinds[2:]) + (control('number', 'n', default='4', low=1, high=9),), None)
    for query in (
        {},
        dict(page='p'),
        dict(n='5', c='1'),
        dict(n='50'),
        dict(m='3'),
        dict(zzzzzz='3'),
        dict(n='x' * 300),
        {'y' * 90: '1'},
        dict(n=3),
    ):
        asked(f'state {str(query)[:40]}', blocks.read_state, page, query)
    every = [
        blocks.Block('figure', 'T<', 3, 'how<'),
        blocks.Block('table', 'T', Table([dict(a='<')]), 'h'),
        blocks.Block('note', 'N', 'a<b'),
        blocks.Block('picture', 'P', '<svg/>', 'x'),
        blocks.Block('chart', 'C', {}),
        blocks.Block('file', 'F', b'', name='f'),
    ]
    for b in every:
        for how in ('', 'a<'):
            asked(f'html {b.kind} {how}', blocks._block_html, blocks.Block(b.kind, b.title, b.content, how))
    asked(
        'report',
        lambda: [
            blocks.report_html('A<B', every, tmp_path / 'r.html'),
            (tmp_path / 'r.html').read_text().replace(blocks._style, ''),
        ],
    )
    same_answers(request, 'blocks', asked)


class Plan(SimpleNamespace):
    "An estimate"

    fits, why, margin, fits_probability, step_low, step_high, step_time, device, gpus = (
        True,
        '',
        2**31,
        None,
        None,
        2.0,
        1.5,
        2**35,
        16,
    )

    def _page(self):
        return Table([dict(plan=1)])

    def to_json(self, path=None):
        if path:
            Path(path).write_text('{}')
        return '{"plan": 1}'

    def cost(self, n):
        return 300.0

    def days(self, n):
        return 2.5

    first, seconds = dict(weights=2**30, cache=0, rest=2**29), dict(compute=1.0, wait=0.5)


def test_pages(request, asked, tmp_path, monkeypatch):
    for f, args, kw in (
        (blocks.vega_chart, ([1], 'm'), dict(x=2)),
        (blocks.channel, ('f', 't'), dict(a=1)),
        (blocks._said, (['a'],), {}),
        (blocks.stacked_bars, (dict(a=3, b=0, c=1.5), 'GiB', 2), {}),
        (blocks.picked, ([dict(a=1, b=2)], ['a']), {}),
        (pages._values, (dict(a=1, b=2), 'b a'), {}),
        (blocks.call_text, ('f', 1, 'x'), dict(a=None, b='y')),
        (blocks.call_text, ('g', blocks.call_text('f', 1)), {}),
    ):
        asked(f'{f.__name__} {args}', f, *args, **kw)
    for row, budget in itertools.product((dict(dollars=5), dict(dollars=None)), (None, 0, 4, 5, 6)):
        asked(f'beyond {row} {budget}', pages._beyond, row, budget)
    rows = [
        dict(gpus=8, gpu='A', dollars=10.0, days=3.0, layout='dp8', note=''),
        dict(gpus=16, gpu='A', dollars=8.0, days=5.0, layout='dp16', note=''),
        dict(gpus=8, gpu='B', dollars=20.0, days=9.0, layout='l', note=''),
        dict(gpus=4, gpu='B', dollars=None, days=None, layout='', note='too slow'),
    ]
    for n in range(5):
        asked(f'map {n}', pages._cost_map, rows[4 - n :])
    for good in ([], rows[:2]):
        asked(f'verdict {len(good)}', pages._verdict, rows + [dict(note='x' * 500)], good, 'how')
    asked.fake('fsdl_tools.compute.gpus.find', lambda n: SimpleNamespace(name=n.upper()))
    asked.fake('fsdl_tools.compute.choose.market', dict(A=(2.0, '2026-01-02'), B=(3.0, '2026-02-01')))
    asked.fake('fsdl_tools.compute.choose.clusters', 'clusters')
    asked.fake('fsdl_tools.compute.choose.cheapest', Table(rows, formats=dict(dollars='{:.0f}'.format), caption='c'))
    asked.fake('fsdl_tools.book.data.said_of_age', lambda what, day: f'{what} {day}')
    asked('clusters', pages._priced_clusters, 'a, b,')
    for query in ('', 'budget=9&gpus=a', 'budget=1&gpus=b, a,&tokens=3B&within=4d&batch=8&seq=16&model=m', 'tokens=x'):
        asked(f'train {query}', pages.answer, 'train', query or 'gpus=a')
    walk = SimpleNamespace(advice='one GPU (because)', steps=[1, 2], plan=None, _page=lambda: Table([dict(w=1)]))
    asked.fake('fsdl_tools.book.tree.draw_tree', '<svg/>')
    for plan in (None, Plan()):
        walk.plan = plan
        pages._walk.cache_clear()
        asked.fake('fsdl_tools.book.guide.guide', walk)
        for query in ('', 'model=m&gpu=g&gpus=2&batch=3&seq=4&tokens=5B&within=6d&seen_by=team'):
            asked(f'guide {plan is None} {query}', pages.answer, 'guide', query)
    asked.fake('fsdl_tools.compute.gpus.Cluster', lambda *a, **kw: 'cluster')
    asked.fake('fsdl_tools.operations.launch.Job.from_plan', 'job')
    monkeypatch.setattr(
        'fsdl_tools.operations.targets.target',
        lambda name: SimpleNamespace(
            render=lambda job: f'script for {name}' if name != 'ray' else exec('raise ValueError("no " + "x"*500)')
        ),
    )
    search = SimpleNamespace(table=lambda n: Table([dict(next=n)]))
    for i, (found, best) in enumerate(
        (
            (None, Plan()),
            (search, Plan(fits=False, why='too large', fits_probability=0.25, step_low=1.0)),
            (search, Plan(fits_probability=0.5, gpus=4)),
        )
    ):
        pages._plan_of.cache_clear()
        asked.fake('fsdl_tools.compute.choose.best_plan', (found, best))
        for query in (
            '',
            'layout=dp8,precision=bf16&price=3&gpus=4&scheduler=ray',
            'layout=dp8&precision=fp8&scheduler=kubernetes&per_node=4&price=0',
        ):
            asked(f'plan {i} {query}', pages.answer, 'plan', query)
    found = SimpleNamespace(
        peak=2**33,
        peak_phase='backward',
        _page=lambda: Table([dict(b=1)]),
        **{n: i * 2**30 for i, n in enumerate(pages._in_memory)},
    )
    asked.fake('fsdl_tools.memory.predict.breakdown', found)
    for query in ('', 'model=m&batch=2&seq=3&precision=bf16&optimizer=sgd&recompute=1'):
        asked(f'memory {query}', pages.answer, 'memory', query)
    zoo = Table([dict(name=f'm{i}', params=i * 10 or None, flops=i, library='timm') for i in range(202)])
    for n in (0, 1, 3, 202):
        asked.fake('fsdl_tools.models.zoo.search_models', zoo[:n])
        asked(
            f'zoo {n}',
            lambda n=n: [
                b if n < 9 else [b.kind, b.title, len(str(said(b)))]
                for b in pages.answer(
                    'zoo',
                    dict(low='1M', high='3M', library='timm', task='causal-lm', sort='name', text='a b')
                    if n == 3
                    else '',
                )
            ],
        )
    offer = SimpleNamespace(gpus=8, gpu='A', provider='p', instance='i')
    asked.fake('fsdl_tools.compute.cost.prices', 'prices')
    asked.fake('fsdl_tools.compute.cost.read_prices', 'own')
    asked.fake('fsdl_tools.compute.cost.pick_offers', 'offers')
    asked.fake('fsdl_tools.compute.cost.task_named', 'task')
    asked.fake('fsdl_tools.compute.cost.price_age', 'old')
    asked.fake('fsdl_tools.compute.cost.experiments', [SimpleNamespace(offer=offer, dollars=12.5, wall_hours=3.25)])
    asked.fake(
        'fsdl_tools.compute.cost.cost_table',
        Table([dict(machine='m', offer='o', per_hour=2.0, total=3.0, gpu='A', more=1)]),
    )
    for query, given in (
        ('', ()),
        ('model=m&task=t&samples=3k&suite=2022&precision=fp32&tier=spot&since=2020', ()),
        ('since=', ['d/own.csv']),
    ):
        asked(f'cost {query} {given}', pages.answer, 'cost', query, given)
    run = lambda name, **metrics: SimpleNamespace(
        name=name,
        id='id',
        metrics={k: SimpleNamespace(steps=list(range(len(v))), values=v) for k, v in metrics.items()},
    )
    runs = [run('a', loss=[1.0, float('nan'), 3.0, float('inf'), -float('inf')], acc=[0.5]), run('', loss=[2.0])]
    asked.fake('fsdl_tools.operations.tracking_read.read_all', lambda path: runs if path == 'x' else [])
    asked.fake('fsdl_tools.operations.tracking_compare.compare', Table([dict(c=1)]))
    for query, given in (('', ()), ('', ['x']), ('metric=loss', ['x', 'y']), ('metric=los', ['x']), ('', ['y'])):
        asked(f'runs {query} {given}', pages.answer, 'runs', query, given)
    for n, most in ((0, 500), (1, 500), (500, 500), (501, 500), (1001, 500), (10, 3)):
        asked(
            f'thinned {n} {most}',
            lambda n=n, m=most: [
                len(t := pages._thinned(SimpleNamespace(steps=list(range(n)), values=[1.0] * n), m)),
                t[:3],
            ],
        )
    asked('default', lambda: len(pages._thinned(SimpleNamespace(steps=list(range(1000)), values=[1.0] * 1000))))
    done = dict(inspected=dict(operators=dict(Add=2, Mul=1), nodes=1234, parameters=5e6, opset=18), outputs=[[1, 2]])
    for extra in (done, {k: v for k, v in done.items() if k != 'outputs'} | dict(stopped='no')):
        with monkeypatch.context() as m:
            m.setattr(pages, 'look_at_onnx', lambda path: extra)
            asked(f'onnx {"outputs" in extra}', pages.answer, 'onnx', '', ['d/f.onnx'])
    asked('onnx', pages.answer, 'onnx')
    for code, out, err in ((0, 'noise\n{"a": 1}\n', ''), (1, '', 'trace\nValueError: bad' + 'x' * 500), (3, '', '')):
        with monkeypatch.context() as m:
            m.setattr(
                pages.subprocess,
                'run',
                lambda command, code=code, out=out, err=err, **kw: SimpleNamespace(
                    returncode=code, stdout=out, stderr=err
                ),
            )
            asked(f'look {code}', pages.look_at_onnx, 'f')

    def late(*a, **kw):
        raise subprocess.TimeoutExpired('x', 1)

    with monkeypatch.context() as m:
        m.setattr(pages.subprocess, 'run', late)
        asked('late', pages.look_at_onnx, 'f', timeout=2.5)
    asked('no page', pages.answer, 'trian')
    for e in (ValueError('a\n b' + 'x' * 700), OverflowError('big')):

        def fail(*a, e=e, **kw):
            raise e

        pages._breakdown.cache_clear()
        asked.fake('fsdl_tools.memory.predict.breakdown', fail)
        asked(f'fails {type(e).__name__}', pages.answer, 'memory', dict(batch='x', zzz='1'))
    asked(
        'views',
        lambda: {
            n: [v.title, v.question, [[c.name, c.kind, c.default, c.low, c.high] for c in v.controls], v.upload]
            for n, v in pages.views.items()
        },
    )
    same_answers(request, 'pages', asked)


class Screen:
    "Streamlit, which notes what it is asked to draw"

    def __init__(self, query=None, given=None, **state):
        self.drawn, self.session_state, self.given = [], state, given or {}
        self.query_params = SimpleNamespace(to_dict=lambda: dict(self.query), from_dict=self.written)
        self.query, self.sidebar = query or {}, self

    def written(self, wanted):
        self.query = wanted

    def columns(self, n):
        return [self] * n

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)

        def draw(*args, **kw):
            self.drawn.append([name, *said(args), {k: said(v) for k, v in kw.items() if v is not None}])
            return self.given.get(kw.get('key'), self.first(name, args, kw))

        return draw

    def first(self, name, args, kw):
        "What a widget says that nobody has touched"
        if name == 'radio':
            return self.session_state.get('page', 'train')
        if name == 'selectbox':
            return args[1][kw['index']]
        return [] if name == 'file_uploader' else kw.get('value')


def test_screen(request, asked, tmp_path, monkeypatch):
    control = lambda kind, default='', **kw: blocks.Control('c', 'La*bel', kind, default, **kw)
    kinds = [
        control('text', help='he_lp'),
        control('count', '5'),
        control('number', '4', low=1, high=4096),
        control('number', '4', low=1, high=4097, help='h'),
        control('number', '', high=9),
        control('choice', 'b', choices=('a', 'b')),
        control('choice', choices=('a', 'b'), help='x'),
        control('switch', '0'),
        control('time', '3d'),
    ]
    page = lambda *controls, **kw: blocks.View('p', 'P', 'Qu?', controls, None, **kw)
    for i, c in enumerate(kinds):
        asked(f'kind {i}', screen._kind_of, c)
        for text in ('', 'a', 'b', '1', '0', '4096', '9999999', 'zzz'):
            asked(f'fits {i} {text}', screen._fits, c, text)
            st = Screen()
            asked(f'widget {i} {text}', lambda st=st, c=c, text=text: [screen._widget(st, page(c), c, text), st.drawn])
    for text in ('a*b_[c](d) #1 + - . ! | <e> ~ $ : `x` \\', 3, 'plain'):
        asked(f'plain {text}', screen.plain, text)
    two = page(kinds[0], kinds[7])
    for state in ({}, dict(address=dict(c='x')), dict(kept=dict(p=dict(c='kept'))), dict(kept={}, address={})):
        st = Screen(**{k: dict(v) for k, v in state.items()})
        asked(f'texts {state}', lambda st=st: [screen._texts(st, two), st.session_state])
    for query, texts in (
        ({}, dict(c='0')),
        (dict(page='p'), dict(c='0')),
        (dict(page='p'), dict(c='1')),
        (dict(page='x', c='1'), dict(c='1', d='2')),
    ):
        st = Screen(query)
        asked(f'address {query} {texts}', lambda st=st, texts=texts: [screen._write_address(st, two, texts), st.query])
    for state, query in itertools.product(
        ({}, dict(opened=True)), ({}, dict(page='plan', gpus='3'), dict(page='none'))
    ):
        st = Screen(query, **state)
        asked(f'open {state} {query}', lambda st=st: [screen._open(st), st.session_state])
    st = Screen()
    asked(
        'was drawn',
        lambda: [
            screen._was_drawn(st, two, kinds[0]),
            screen._was_drawn(st, two, kinds[0]),
            screen._was_drawn(st, two, blocks.Control('d', 'D', 'text', '')),
        ],
    )
    for drawn, given in itertools.product((True, False), ({}, {'p.c': 'new'}, {'p.c': 'old'})):
        st = Screen(given=given, drawn={('p', 'c')} if drawn else set())
        texts = dict(c='old')
        asked(
            f'controls {drawn} {given}',
            lambda st=st, texts=texts: [screen._draw_controls(st, page(kinds[0]), texts), texts],
        )
    t = Table([dict(a=1, b='x')], caption='cap*', notes='no_tes')
    every = [
        blocks.Block('table', 'Two Words', t, 'h()'),
        blocks.Block('figure', 'F', 3, 'how'),
        blocks.Block('note', 'N', 'text'),
        blocks.Block('chart', 'C', dict(mark=1)),
        blocks.Block('figure', 'G', 'x'),
        blocks.Block('picture', 'P"<', '<svg/>'),
        blocks.Block('file', 'File', b'x', 'h', 'f.json'),
        blocks.Block('note', 'No file yet', 'Drop'),
        blocks.Block('table', 'T', Table([dict(a=1)])),
    ]
    for n in (0, 2, 3, 9):
        st = Screen()
        asked(f'all {n}', lambda st=st, n=n: [screen._show_all(st, every[9 - n :]), st.drawn])
    file = lambda name: SimpleNamespace(name=name, getvalue=lambda: b'bytes')
    for i, name in enumerate(('a.csv', '../../x.json', 'é', '.hidden', 'x' * 100 + '.csv', 'a b/c.db')):
        asked(
            f'stored {i}',
            lambda i=i, name=name: [
                screen._stored(tmp_path, i, file(name)),
                screen._stored(tmp_path, i + 10, file(name)).read_bytes(),
            ],
        )
    asked.fake('fsdl_tools.app.screen.answer', every[2:3])
    for upload in ((), ('csv',)):
        st = Screen(given={'p.files': [file('a.csv')]})

        def answered(st=st, upload=upload):
            found = screen._answer(st, page(upload=upload), dict(c='1'))
            calls = re.sub('/[^"]*fsdl-app-[^/]*', 'TMP', json.dumps(asked.calls))
            asked.calls.clear()
            return [found, st.drawn, calls]

        asked(f'answer {upload}', answered)
    st = Screen(dict(page='memory', batch='4'))
    monkeypatch.setattr(screen, 'need', lambda *a: st)
    asked('drawn', lambda: [screen._draw(), st.query, [d[0] for d in st.drawn], st.drawn[:3]])

    class Process:
        "A server"

        def __init__(self, ends):
            self.ends, self.asked = ends, []

        def wait(self, *a):
            self.asked.append(['wait', *a])
            if self.ends is None and len(self.asked) == 1:
                raise KeyboardInterrupt
            return self.ends

        def poll(self):
            return self.ends

        def terminate(self):
            self.asked.append('terminate')

    for ends in (None, 0, 3):
        p = Process(ends)
        with monkeypatch.context() as m:
            m.setattr(screen.subprocess, 'Popen', lambda command, p=p, **kw: p)
            asked(f'until {ends}', lambda p=p: [screen._until_stopped([]), p.asked])
    asked.fake('fsdl_tools.app.screen._check_port')
    monkeypatch.setattr(screen, '_until_stopped', lambda command: [c for c in command[1:] if 'app.py' not in c])
    for a in ((), (80, 'h'), (0,), (True,)):
        asked(f'serve {a}', screen.serve_app, *a)
    monkeypatch.undo()
    import socket

    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = s.getsockname()[1]
        asked('taken', lambda: str(answer(screen._check_port, '127.0.0.1', port)).replace(str(port), 'PORT'))
    asked('free', screen._check_port, '127.0.0.1', port)
    same_answers(request, 'screen', asked)


def test_tour(request, asked, tmp_path, monkeypatch):
    for kw in (
        dict(),
        dict(gpus=0),
        dict(steps=0),
        dict(batch=-1),
        dict(tokens='x'),
        dict(budget='x'),
        dict(budget=''),
        dict(budget='€3'),
    ):
        asked(f'tour {kw}', lambda kw=kw: tour.Tour(**kw))
    zoo = Table([dict(name=n) for n in ('llama', 'gpt2', 'gpt2-xl')])
    asked.fake('fsdl_tools.models.zoo.search_models', zoo)
    for n in ('gpt2-xl', 'llama-3.1', 'nobody'):
        asked(f'name {n}', tour._zoo_name, n)
    t = tour.Tour(steps=3)
    for sizes in ({}, dict(layers=1200, kind='x')):
        asked.fake('fsdl_tools.compute.model_sizes.model_columns', ('GPT-2 XL', sizes, None))
        asked(f'choose {sizes}', tour._choose, t, tmp_path)
    asked.fake('fsdl_tools.memory.predict.breakdown', SimpleNamespace(peak=2**33, _page=lambda: Table([dict(b=1)])))
    asked('memory', tour._remember, t, tmp_path)
    asked.fake('fsdl_tools.compute.gpus.find', SimpleNamespace(name='A100'))
    asked.fake('fsdl_tools.compute.gpus.Cluster', lambda *a, **kw: 'cluster')
    for prices, found in itertools.product(
        ({}, dict(A100=(2.5, '2026-01-01'))), (None, SimpleNamespace(table=lambda n: Table([dict(next=n)])))
    ):
        asked.fake('fsdl_tools.compute.choose.market', prices)
        asked.fake('fsdl_tools.compute.choose.best_plan', (found, Plan()))
        asked(f'plan {prices} {found is None}', tour._plan, t, tmp_path)
    for budget, dollars in itertools.product(('', '1000', '$2'), (2.0, 2.01, 1000.0, 1001.0)):
        asked(f'bill {budget} {dollars}', tour._bill, t.replace(budget=budget), dollars, 'today')
    asked('configs', tour._configs, t, tmp_path)
    rows = [dict(step=1, loss=2.5, lr=0.1, seconds=3.0), dict(step=2, loss=1.25, lr=0.1, eval_loss=2.0)]
    for name, config in tour._configs(t, tmp_path).items():
        Path(config.folder).mkdir()
        (Path(config.folder) / 'metrics.jsonl').write_text(
            '\n'.join(json.dumps(dict(r, loss=r['loss'] + (name == 'slow'))) for r in rows)
        )
        if name == 'slow':
            (Path(config.folder) / 'run.json').write_text('{}')
        asked(f'metrics {name}', tour._metrics, config)
    asked.fake('fsdl_tools.training.elastic.train', rows)
    asked('train', tour._train, t, tmp_path)
    asked.fake(
        'fsdl_tools.operations.tracking_compare.compare',
        lambda runs: Table([dict(name=r.name, points=r.points(), params=str(r.params)) for r in runs]),
    )
    asked.fake('fsdl_tools.operations.tracking_compare._curves', '<svg/>')

    def tracked():
        found = tour._track(t, tmp_path)
        asked.calls.clear()
        return found

    asked('track', tracked)
    asked('track again', tracked)
    asked.fake('fsdl_tools.app.tour._trained', 'model')
    for verified in (True, False):
        asked.fake(
            'fsdl_tools.onnx.export.export',
            SimpleNamespace(
                verified=verified, bytes=2048, max_rel=1e-6, **{n: n for n in tour._shown if n != 'verified'}
            ),
        )
        asked(f'ship {verified}', tour._ship, t, tmp_path)
    for b in (
        blocks.Block('figure', 'F', 'x', 'h'),
        blocks.Block('table', 'T', Table([dict(a=1, b=None)], caption='c', notes='n'), 'h'),
    ):
        asked(
            f'kept {b.kind}',
            lambda b=b: [tour._to_plain(b), tour._from_plain(json.loads(json.dumps(tour._to_plain(b))))],
        )
    for name, what in dict(empty=None, mine=t, other=tour.Tour(), strange=3).items():
        folder = tmp_path / f'claim-{name}'
        if what is not None:
            folder.mkdir()
        if isinstance(what, tour.Tour):
            what.to_json(folder / 'tour.json')
        if what == 3:
            (folder / 'x').write_text('')
        asked(f'claim {name}', lambda folder=folder: [tour._claim_folder(t, folder), (folder / 'tour.json').exists()])
    for kw in (dict(), dict(gpus=3, budget=''), dict(model='x', steps=5)):
        asked(f'command {kw}', lambda kw=kw: tour._command(tour.Tour(**kw)))
    made = []
    monkeypatch.setattr(
        tour,
        '_stages',
        {n: (lambda t, folder, n=n: made.append(n) or [blocks.Block('figure', n, 'x')]) for n in ('choose', 'plan')},
    )
    monkeypatch.setattr(tour, 'need', lambda module, extra: made.append([module, extra]))
    ticks = itertools.count()
    monkeypatch.setattr(tour.time, 'monotonic', lambda: float(next(ticks)))
    for n in range(2):
        lines = []
        asked(
            f'whole {n}',
            lambda: [
                tour.tour(tmp_path / 'whole', t, lines.append if n == 0 else None),
                lines,
                made,
                re.sub('<style>.*?</style>', '', (tmp_path / 'whole/report.html').read_text(), flags=re.S),
            ],
        )
    same_answers(request, 'tour', asked)
