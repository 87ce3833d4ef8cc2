"Answers of the part that makes the book, as they were: small notebooks, a small project, plans to install"

import ast
import datetime
import functools
import itertools
import json
import os
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import nbdev.test  # noqa: F401  a test below takes import_module away
import pytest

from fsdl_tools.book import checks, claims_page, contents, data, dialect, entries, epub, finish, frame, glossary, guide
from fsdl_tools.book import (
    install,
    markdown,
    measure,
    names,
    needs,
    newcomer,
    pins,
    pip,
    rendering,
    site,
    stages,
    visible,
)
from fsdl_tools.table import Table
from tests.answers import answer, plain, same_answers


def said(value):
    "A value as it is kept: a table by its texts, generators as lists"
    if isinstance(value, Table):
        return dict(columns=value.columns, rows=value._grid(), caption=value.caption, notes=value.notes)
    if isinstance(value, (set, frozenset)):
        return sorted(map(said, value), key=repr)
    if isinstance(value, (list, tuple, types.GeneratorType, map, filter)):
        return [said(v) for v in value]
    if isinstance(value, dict):
        return {str(k): said(v) for k, v in value.items()}
    if isinstance(value, ast.AST):
        return ast.unparse(value)
    return (
        plain(value)
        if value is None or isinstance(value, (int, float, str))
        else re.sub(' at 0x[0-9a-f]+', '', str(value))
    )


class Asked(dict):
    "Answers by question, in which a temporary folder has no name"

    def __init__(self, tmp=' no folder '):
        super().__init__()
        self.tmp = str(tmp)

    def __call__(self, question, function, *args, **kw):
        text = json.dumps(answer(lambda: said(function(*args, **kw))))
        self[question] = json.loads(text.replace(str(Path(self.tmp).resolve()), 'TMP').replace(self.tmp, 'TMP'))

    def of(self, function, *cases, **kw):
        "A function of one argument, asked about several"
        for case in cases:
            self(f'{function.__name__} {str(said(case))[:90]!r} {len(str(case))}', function, case, **kw)


def text(*lines):
    return dict(cell_type='markdown', id=str(len(lines)), source='\n'.join(lines), metadata={})


def code(*lines, outputs=(), id='c'):
    return dict(
        cell_type='code', id=id, source='\n'.join(lines), outputs=list(outputs), execution_count=None, metadata={}
    )


def image_out():
    return dict(output_type='display_data', data={'image/png': 'aGk=', 'text/plain': ['<Figure>']}, metadata={})


def stream(name, *lines):
    return dict(output_type='stream', name=name, text=list(lines))


def result(**data):
    return dict(
        output_type='execute_result',
        data={k.replace('_', '/'): v for k, v in data.items()},
        metadata={},
        execution_count=None,
    )


SETTINGS = '''[DEFAULT]
lib_name = small
lib_path = small
repo = small
branch = main
git_url = https://x.org/%(user)s/small
user = {user}
title = Small
description = A small book
author = Ada
version = 1.2
license = apache2
doc_path = _docs
doc_host = https://ada.github.io
doc_baseurl = /small
tst_flags = slow gpu notest
min_python = 3.11
requirements = numpy>=1 pyyaml
train_requirements = torch>=2 pillow
plot_requirements = matplotlib torch
all_requirements = torch pillow matplotlib
dev_requirements = ruff nbdev
lab_requirements = jupyterlab
console_scripts = small=small.tool:main
'''
QUARTO = '''website:
  sidebar:
    contents:
      - index.ipynb
      - section: one/index.ipynb
        contents: [one/01_first.ipynb, one/02_second.ipynb]
      - section: two/index.ipynb
        contents: [two/01_third.ipynb]
      - section: More
        contents: [glossary.ipynb]
'''
NOTEBOOKS = {
    'index.ipynb': [
        text('# Small', '', '> The front page', ''),
        text('<!-- chapters -->'),
        text('See [@](one/01_first.ipynb) and [x](one/02_second.ipynb#a). ![p](images/p.png)'),
        code('#| echo: false', '1 + 1', outputs=[result(text_plain='2')]),
        text('::: {.callout-note}', '## Title', 'body', ':::'),
    ],
    'one/index.ipynb': [text('# Part one', '', '> Of ones')],
    'one/01_first.ipynb': [
        code('#| default_exp one.first'),
        text('# The first | chapter', 'lost words', '> It shows', '- skip: x', ''),
        code('#| export', 'import torch', 'from small.tool import main'),
        code('#| export', 'def shown(a): # what', '    "Words"', '    return main(a)'),
        code('shown(1)', outputs=[image_out()], id='dup'),
        text(
            '## Exercises',
            '',
            '**1.** do',
            '**2.** open-ended: x',
            '**3.** (open) y',
            '',
            '::: {.callout-tip collapse="true"}',
            '## Answer',
            'x',
            ':::',
        ),
        code('#| eval: false', '# your turn', id='dup'),
    ],
    'one/02_second.ipynb': [
        code('#| default_exp one.second'),
        text('# The second chapter shows', '', '> More | of it', 'the extra `train` is needed'),
        code('import PIL, yaml', 'x = 1'),
        code('#| fig-alt: "a figure"', 'print(1)'),
        code('#| hide', 'import numpy', outputs=[stream('stdout', 'x')]),
        text('Text with `shown`, `main` and `other.shown()`'),
    ],
    'two/index.ipynb': [text('# Appendix: more things', '> Of twos')],
    'two/01_third.ipynb': [
        text('# The second chapter shows more', '', '> Third'),
        code('#| default_exp two.third'),
        code(
            '#| fig-alt: bad: colon',
            '#| slow',
            '#| echo: false',
            '#| echo: true',
            '#| nope',
            '#| label: fig-a',
            'y = 2',
            outputs=[image_out()],
        ),
        code('#| label: fig-a', 'import unknown_thing, a_package', outputs=[image_out()]),
    ],
    'glossary.ipynb': [text('# Glossary')],
    '_hidden.ipynb': [text('no title')],
}
LIBRARY = {
    '__init__.py': "_moved = [('tool', 'handed')]\n",
    'one/__init__.py': '',
    'two/__init__.py': '',
    'tool.py': (
        '"""Tool"""\n__all__ = ["main", "handed", "Thing", "nobody", "VALUE"]\nfrom dataclasses import d'
        'ataclass\nfrom fastcore.basics import patch\nVALUE = dict(a=1)\n\ndef main(a, # what\n    b=1):'
        '\n    "Run it, with `code` and *stars*\\n\\n    more"\n    from .one import first\n    return f'
        'irst.shown(a)\n\ndef handed(): pass\n\n@dataclass\nclass Thing:\n    "A thing"\n    x: int # It'
        's x\n    y: int = 2\n    _z: int = 3\n    def go(self, way): "Go"\n    def _own(self): pass\n  '
        '  alias = go\n\n@patch\ndef more(self:Thing, n # How many\n  ): pass\n\ndef nobody(): "Nobody"\n'
        'Thing.late = main\n'
    ),
    'one/first.py': (
        '# AUTOGENERATED\n__all__ = ["shown"]\nimport torch\nfrom ..tool import main\ndef shown(a:int) -'
        '> "Thing":\n    "Words"\n    from .second import deep\n    return main(a) + need("yaml", "plot"'
        ')\n'
    ),
    'one/second.py': (
        '__all__ = ["shown", "tested"]\nfrom small.two.third import *\nimport small.tool\ndef shown(): r'
        'eturn late()\ndef tested(): return need("PIL", extra="train")\ndef deep():\n    import matplotl'
        'ib\n    try: import scipy\n    except ImportError: pass\n    with suppress(ImportError): import'
        ' pandas\n'
    ),
    'two/third.py': (
        '__all__ = ["late"]\ndef late():\n    "Late"\n    import importlib\n    return importlib.import_'
        'module("jax.numpy")\n'
    )
    + '\n' * 600,
    'stray.py': 'x = 1\n',
    '_modidx.py': 'd = {}\n',
    'data/environments.csv': 'name,steps\nside,a_package==1; -q other\n',
    'data/tables.csv': 'name\nenvironments.csv\ngone.csv\n',
}
LOCK = '''# head
numpy==2.0
    # via
    #   -r -
    #   torch
pillow==10.0
    # via -r -
torch==2.1+cpu
    # via -r -
nvidia-x==1
    # via torch
pyyaml==6 ; python_version < "4"
matplotlib==3
'''


@pytest.fixture
def project(tmp_path):
    "A small project with notebooks, modules and a lock"
    root = tmp_path / 'project'
    for name, cells in NOTEBOOKS.items():
        (root / 'nbs' / name).parent.mkdir(parents=True, exist_ok=True)
        (root / 'nbs' / name).write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    for name, source in LIBRARY.items():
        (root / 'small' / name).parent.mkdir(parents=True, exist_ok=True)
        (root / 'small' / name).write_text(source)
    (root / 'nbs/_quarto.yml').write_text(QUARTO)
    (root / '_quarto.yml').write_text(QUARTO)
    (root / 'settings.ini').write_text(SETTINGS.format(user='ada'))
    (root / 'requirements.lock').write_text(LOCK)
    (root / 'course').write_text('from small.tool import handed')
    (root / 'tests').mkdir()
    (root / 'tests/test_x.py').write_text('from small.one.second import tested\nfrom small.tool import *\n')
    (root / 'benchmarks').mkdir()
    for f in (contents._head,):
        f.cache_clear()
    return root


def private(root):
    "The settings of a project that is not published"
    return contents.settings(root) | dict(user=' ')


def test_contents(request, project, tmp_path):
    asked, cfg = Asked(tmp_path), contents.settings(project)
    asked('settings', lambda: cfg)
    asked('no settings', contents.settings, tmp_path)
    asked(
        'published',
        lambda: [
            contents.published(cfg),
            contents.published(private(project)),
            contents.published({}),
            contents.site_address(cfg),
        ],
    )
    asked('notebooks', contents.notebooks, project)
    asked.of(contents._left_out, Path('a/b'), Path('a/.b/c'), Path('_a'))
    for source in NOTEBOOKS:
        cells = contents.notebook_cells(project, source)
        asked(
            source,
            lambda s=source, c=cells: [
                answer(contents.page_head, project, s),
                contents.page_name(s),
                contents._first_lost(c),
                contents._lateness(c, 12),
                contents._lateness(c, 4),
                contents.exercises_of(project, s),
                [contents._lacks_figure(x) for x in c],
                [contents._shows(x) for x in c],
                contents.text_of(c, 'code')[:50],
            ],
        )
        asked(
            f'{source} rest',
            lambda s=source: [
                answer(contents.chapter_table, project, s),
                answer(contents.with_chapters, '[@](../one/01_first.ipynb) [@](index.ipynb)', project, s),
            ],
        )
    asked('pages', contents.pages, project)
    asked('numbers', contents.chapter_numbers, project)
    asked(
        'titles',
        lambda: [
            [contents.page_title(project, p), p.opens_part, contents.to_top(p.name)] for p in contents.pages(project)
        ],
    )
    asked.of(contents.moved_names, 'page', 'module', 'pages')
    for page, link in (('a/b.ipynb', '../c.ipynb'), ('a.ipynb', 'b/c.ipynb'), ('a/b.ipynb', './x/../y')):
        asked(f'resolved {page} {link}', contents.resolved, page, link)
    asked(
        'lost',
        lambda: [
            contents._first_lost([text(*lines)])
            for lines in (
                ['# T', '> a', '> b'],
                ['# T', '> a', '> a'],
                ['x', '# T', 'y'],
                ['# T', '- a: b', '- c'],
                ['> only'],
            )
        ],
    )
    asked.of(contents._appendix_title, 'Appendix: words', 'Other', 'Appendix: ')
    for make in (
        contents.similar_titles,
        contents.dropped_words,
        contents.late_results,
        contents.missing_figures,
        contents.long_chapters,
        contents.few_exercises,
    ):
        asked(make.__name__, make, project)
    asked(
        'long',
        lambda: (
            [contents.long_chapters(project, n) for n in (6, 7)]
            + [contents.late_results(project, n) for n in (3, 4, 5)]
            + [contents.few_exercises(project, n) for n in (1, 2)]
        ),
    )
    asked('lines of the library', lambda: [contents.long_chapters(project, 6, n) for n in (0, 3, 500)])
    for a, b in (
        ('The first chapter', 'first chapter'),
        ('a b c d', 'b c e f'),
        ('x y', 'x z'),
        ('one two three', 'one two four'),
    ):
        asked(f'alike {a} {b}', contents._alike, a, b)
    for has in (
        dict(prompts=3, answers=2, stubs=1, open_ended=1),
        dict(prompts=2, answers=2, stubs=1, open_ended=1),
        dict(prompts=3, answers=1, stubs=1, open_ended=1),
        dict(prompts=3, answers=2, stubs=0, open_ended=1),
        dict(prompts=3, answers=2, stubs=1, open_ended=0),
    ):
        asked(f'enough {list(has.values())}', lambda h=has: bool(contents._enough(h, 3)))
    asked(
        'filled',
        lambda: [
            contents.filled('a\n<!-- x -->\nb', 'x', lambda: r'\1'),
            contents.filled('a <!-- x -->', 'x', lambda: 1 / 0),
        ],
    )
    asked('root', lambda: (contents.project_root() / 'settings.ini').exists())
    same_answers(request, 'contents', asked)


def test_glossary(request, project, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    asked(
        'row',
        lambda: (
            vars(glossary._as_term(dict(term='All reduce!', forms='a;b', meaning='m', source='nbs/x.ipynb')))
            | dict(anchor=glossary._as_term(dict(term='All reduce!', forms='a', meaning='m', source='x')).anchor)
        ),
    )
    asked('terms', lambda: [len(glossary.terms()) > 50, glossary.terms()[0].term])
    found = (
        glossary._Term('All-reduce', ('all-reduce', 'AllReduce', 'all reduce'), 'A "sum"', 'one/01_first.ipynb'),
        glossary._Term('MFU', ('MFU',), 'Share', 'one/01_first.ipynb'),
        glossary._Term('Rank', ('rank', 'ranks', 'torch.rank'), 'One', 'two/01_third.ipynb'),
    )
    monkeypatch.setattr(glossary, 'terms', lambda: found)
    for f in (glossary._pattern, glossary._by_form):
        f.cache_clear()
    for form in ('rank', 'MFU', 'all reduce', 'abc', 'gpus'):
        asked(f'spelled {form}', glossary._spelled, form)
    for t in (
        'An all-reduce and another all-reduce of ranks',
        'All  reduce\nRank',
        'mfu MFU Mfu',
        '# rank',
        '`rank` and `x rank`',
        '[rank](a) rank',
        'a/rank rank.x rank. rank-x rank=',
        '```\nrank\n```\nrank',
        '$rank$ rank',
        'https://rank rank',
        '<b>rank</b> rank',
        '| rank |\nrank',
        '$$rank$$ ``torch.rank``',
        '::: rank\nrank',
        '~~~~\nrank\n~~~~ rank',
        '$5 rank $6',
    ):
        seen = set()
        asked(f'linked {t!r}', lambda t=t, s=seen: [glossary.link_terms(t, s, '../'), s])
    asked('seen', lambda: glossary.link_terms('rank MFU', {'Rank'}))
    asked('page', glossary.glossary_text, project)
    for f in (glossary._pattern, glossary._by_form):
        f.cache_clear()
    monkeypatch.undo()
    same_answers(request, 'glossary', asked)


def test_markdown(request, project, tmp_path):
    asked, cfg, stored = Asked(tmp_path), contents.settings(project), []
    save = lambda raw, ending: stored.append(raw.decode()) or f'{len(stored)}.{ending}'
    asked.of(markdown.without_colours, '\x1b[1mx\x1b[0m y')
    asked.of(
        markdown.cell_options,
        '#| echo: false\n#| hide\n#|fig-alt: "a: b"\n\nx = 1\n#| late',
        'x',
        '',
        "#| a: 'q'\n#| b-c:d",
        '# | x\ny',
    )
    asked(
        'off',
        lambda: [
            markdown.switched_off(o, 'echo', 'include')
            for o in ({}, dict(echo='false'), dict(include='false'), dict(echo='true'), dict(output='false'))
        ],
    )
    asked.of(
        markdown._plain,
        '',
        '  \n',
        'x',
        'a```b',
        'a````b',
        'w ' * 60,
        'c   d' * 30,
        'x' * 100,
        'x' * 101,
        '\x1b[1mx\n\n',
    )
    for options in ({}, {'fig-cap': 'c<'}, {'fig-alt': 'a"', 'fig-cap': 'c'}):
        asked(f'figure {options}', markdown._figure, 'a.png', options)
    outs = [
        result(text_html='<b>\n\n\nx</b>', text_plain='y'),
        {'output_type': 'display_data', 'data': {'image/svg+xml': '<svg/>', 'image/png': 'aGk='}},
        image_out(),
        result(text_markdown=['a', 'b']),
        result(text_plain=['x']),
        result(),
        stream('stdout', 'a', 'b'),
        stream('stderr', 'x'),
        dict(output_type='error', ename='E', evalue='v', traceback=[]),
    ]
    for i, out in enumerate(outs):
        asked(f'output {i}', markdown.cell_output, out, {'fig-alt': 'alt'}, save)
    entry = '---\n\n[source](https://x/y&z){target="_blank"}\n### name {#name .api}\ntext\n#### a.b {#a.b .api}'
    for linked in (True, False):
        asked(f'signature {linked}', markdown.signature, entry, linked)
        for i, cell in enumerate(
            (
                code('x = 1', outputs=outs[4:5]),
                code('#| echo: false', 'x', outputs=outs[4:5]),
                code('#| include: false', 'x', outputs=outs[4:5]),
                code('#| output: false', 'x', outputs=outs[4:5]),
                code('#| code-fold: true', '#| code-summary: "S"', 'x'),
                code('#| code-fold: show', 'x'),
                code('#| code-fold: false', 'x'),
                code('show_doc(f)', outputs=[result(text_markdown=entry)]),
                code('#| hide'),
                dict(cell_type='code', source='y'),
            )
        ):
            asked(f'cell {i} {linked}', markdown._code_cell, cell, save, linked)
    texts = [
        'a\n```\n::: x\n```\nb',
        '````\n```\n````\nc',
        '~~~\n```\n~~~\nd',
        '::: {.callout-note}\n## T\nx\n:::',
        '::: {.callout-tip collapse="true"}\nx\n:::',
        '::: {.callout-important collapse="false"}\n\n# T\nx\n:::',
        '::: {.callout-code collapse="show"}\n## S\n```python\n## x\n```\n:::',
        '::: {.callout-bad}\nx\n:::',
        ':::: {.panel-tabset group="f"}\nlost\n## A\na\n### deep\n## B\n::: {.callout-warning}\nx\n:::\n::::',
        '::: {.panel-tabset}\n# One\nx\n## Two\n#\n:::',
        '::: {.other}\nx\n:::',
        '::: {.callout-note}\nx',
        ':::\n',
        ':::: {.a}\n::: {.callout-note}\n::: {.callout-tip}\nx\n:::\n:::\n::::',
        '```\nopen',
        '  ```\nx\n  ```',
        '/// x\n::: {.callout-note}\n///// y\n:::',
        '::: {.callout-note}\n   \n\ntext\n:::',
        '```\nx\n``` y\n```\n::: {.a}\n:::',
    ]
    asked.of(dialect.divs, *texts)
    asked.of(lambda t: list(dialect._split_fences(t)), *texts[:3], texts[-1])
    formulas = [
        '$x^2$ and \\$5',
        '$$a*b$$',
        '`$x$` $y$',
        '```\n$x$\n```\n$z$',
        'costs $5 and $6',
        '$ x$',
        '$x $',
        'a$b$',
        '$\\frac{1}{2}$',
        '$a$$b$',
        '$x\ny$',
        '$x\n\ny$',
        '$\\nosuch{$',
        '$a_b|c$',
        '``a `$x$` b`` $q$',
        '$3$4',
    ]
    asked.of(dialect.formulas, *formulas)
    public = 'a\n::: {.content-visible when-meta="published"}\nsee {{< meta git_url >}}\n:::\nb {{< meta title >}}'
    asked('addressed', lambda: [dialect.addressed(public, c) for c in (cfg, private(project))])
    base = contents.site_address(cfg)
    for t in (
        f'[`a`]({base}/x.html#a) the extra [`train`]({base}/t.html)',
        f'```\n[`a`]({base}/x.html)\n```\n',
        f'[see [`a`]({base}/x.html) here](y)',
        f'~~~\n[`b`]({base}/q)\n~~~',
        '[`a`](https://other/x)',
    ):
        asked(f'single {t}', dialect.single_links, t, base)
    links = {'one/01_first.ipynb': 'one/first', 'index.ipynb': 'index'}
    for t, page in itertools.product(
        (
            f'[x]({base}/one/first.html#y) {base}/index.html',
            '[x](01_first.ipynb#y) [y](../index.ipynb)',
            '[x](one/01_first.ipynb) [z](none.ipynb)',
        ),
        ('', 'index', 'one/second'),
    ):
        asked(f'local {t} {page}', dialect.local_links, t, base, links, page)
    asked.of(
        lambda t: dialect.diagrams(t, '../'),
        'x',
        '```mermaid\na<b\n```\ny',
        '```{mermaid}\nq\n```',
        ' ```mermaid\nz\n```',
    )
    raw = lambda s: dict(cell_type='raw', source=s)
    asked.of(markdown.front_matter, [], [raw('---\ntitle: T\n---'), text('x')], [text('x')], [raw('---\n---')])
    for meta, page in itertools.product(
        (dict(title='a `b`', description='d<'), dict(title='x'), {}), ('index', 'one/first')
    ):
        asked(f'top {meta} {page}', markdown._page_top, meta, page)
    nb = dict(
        cells=[
            raw('---\ntitle: First\ndescription: D\n---'),
            text('<!-- WARNING: THIS FILE WAS AUTOGENERATED! -->'),
            text('[b](02_second.ipynb) $x$', '', '::: {.callout-note}', 'y', ':::'),
            code('1', outputs=[image_out()]),
            code('show_doc(f)', outputs=[result(text_markdown=entry)]),
            dict(cell_type='raw', source='raw'),
        ]
    )
    for c in (cfg, private(project)):
        asked(
            f'page {c["user"]}',
            markdown.page_markdown,
            nb,
            save,
            c,
            links | {'one/02_second.ipynb': 'one/second'},
            'one/first',
        )
    for anchor, shown in (
        ('f', {'f'}),
        ('C.m', {'C'}),
        ('C.m', {'C.m', 'C'}),
        ('_p', set()),
        ('q', set()),
        ('_C.m', {'_C'}),
    ):
        asked(f'nearest {anchor} {sorted(shown)}', markdown._nearest_entry, anchor, shown)
    asked(
        'anchors',
        markdown._known_anchors,
        'one/first',
        '(second.md#f) (second.md#_p) (../index.md#C.m) (x.md)',
        {'one/second': {'f'}, 'index': {'C'}},
    )
    proc, toc = tmp_path / 'proc', contents.pages(project)[:3]
    for p in toc:
        (proc / p.source).parent.mkdir(parents=True, exist_ok=True)
        (proc / p.source).write_text(json.dumps(nb))
    asked(
        'write',
        lambda: [
            markdown.write_pages(proc, toc, cfg, tmp_path / 'out'),
            {
                p.relative_to(tmp_path).as_posix(): p.read_text()
                for p in sorted((tmp_path / 'out').rglob('*'))
                if p.is_file()
            },
        ],
    )
    (proc / toc[1].source).write_text(json.dumps(dict(cells=[text('::: {.x}')])))
    asked('bad', markdown.write_pages, proc, toc, cfg, tmp_path / 'out2')
    asked('stored', lambda: stored)
    same_answers(request, 'markdown', asked)


def test_rendering(request, project, tmp_path, monkeypatch):
    asked, cfg, toc = Asked(tmp_path), contents.settings(project), contents.pages(project)
    for c in (cfg, private(project)):
        asked(
            f'zensical {c["user"]}',
            lambda c=c: {
                k: v
                for k, v in rendering.zensical_config(c, toc, 'foot').items()
                if k in ('site_name', 'nav', 'extra', 'copyright', 'use_directory_urls')
            },
        )
        asked(f'quarto {c["user"]}', lambda c=c: [rendering.quarto_settings(c), rendering.quarto_settings(c, 'foot')])
        asked(
            f'for quarto {c["user"]}',
            lambda c=c: rendering._quarto_notebook(
                json.dumps(
                    dict(
                        cells=[
                            text('```mermaid\nx\n```', '![a b](c.png)', 'x ![a](b) y', '[source](u){target=x}', ' z'),
                            code('x', outputs=[result(text_markdown=['a\n', '[source](u){x}']), stream('stdout', 'y')]),
                            dict(cell_type='code', source='x'),
                        ]
                    )
                ),
                c,
            ),
        )
    asked('extras', lambda: [rendering._extensions, rendering._theme()])
    asked.of(rendering._names_error, 'x\nValueError: y', 'Exception', 'an Error: x', 'TypeErrors', 'MyException: z')
    for rc, err in ((0, ''), (1, 'bad'), (-9, ''), (0, 'KeyError: x'), (0, 'fine')):
        asked(
            f'processed {rc} {err}',
            rendering._check_processed,
            SimpleNamespace(returncode=rc, stdout='out', stderr=err),
        )
    asked.of(
        rendering.quarto_errors,
        'a\nWARN x\n1\n2\n3\n4\n5\n6',
        'fine',
        '\n'.join(f'ERROR {i}' for i in range(70)),
        'WARNING',
        '1\n2\n[ERROR] z',
        'swarn WARNED',
    )
    asked.of(rendering._with_icon, '<head></head>', '<link x rel="icon"></head>')
    for fragment, known in (('f', {'f'}), ('C.m', {'C'}), ('x', {'y'}), ('', {''})):
        asked(f'fragment {fragment}', rendering._known_fragment, fragment, known)
    html = (
        '<title>Small – Small</title><script src="https://x/require.js"></script> <script>define(\'jquer'
        'y\', 1)</script><script src="a.js"></script><a href="https://ada.github.io/small/one/first.html'
        '#f">x</a> <a class="q" href="https://ada.github.io/small/index.html#C.m"> <a href="https://ada.'
        'github.io/small/none.html#z"></head>'
    )
    for name in ('index.html', 'one/first.html'):
        asked(f'own {name}', rendering.own_page, html, name, cfg, {'one/first.html': {'f'}, 'index.html': {'C'}})
    pages = tmp_path / 'pages'
    pages.mkdir()
    (project / 'nbs/styles.css').write_text('css')
    (project / 'nbs/images').mkdir()
    (project / 'nbs/images/p.png').write_text('p')
    for body, script in (('x', None), ('mermaid.min.js', None), ('mermaid.min.js', tmp_path / 'm.js')):
        (pages / 'a.md').write_text(body)
        (tmp_path / 'm.js').write_text('m')
        monkeypatch.setattr(rendering, 'npm_file', lambda *a, script=script: script and project / 'nbs/mermaid.min.js')
        (project / 'nbs/mermaid.min.js').write_text('drawn')
        for p in ('images',):
            rendering.shutil.rmtree(pages / p, ignore_errors=True)
        asked(
            f'assets {body} {bool(script)}',
            lambda: [
                rendering._copy_assets(project, pages),
                {p.relative_to(pages).as_posix(): p.read_text() for p in sorted(pages.rglob('*')) if p.is_file()},
            ],
        )
    monkeypatch.undo()
    for there, npm, got in ((True, 'npm', b'x'), (False, None, b'x'), (False, 'npm', None), (False, 'npm', b'x')):
        cache = tmp_path / f'cache{there}{npm}{got}'
        if there:
            cache.mkdir(), (cache / 'f.js').write_text('old')
        monkeypatch.setattr(rendering.shutil, 'which', lambda n, npm=npm: npm)
        monkeypatch.setattr(rendering, '_from_npm', lambda npm, package, file, got=got: got)
        asked(
            f'npm {there} {npm} {got}', lambda: [p := rendering.npm_file('m@1', 'd/f.js', cache), p and p.read_text()]
        )
    monkeypatch.undo()

    def installed(npm, package, folder):
        if package == 'late@1':
            raise rendering.subprocess.TimeoutExpired('x', 1)
        (Path(folder) / 'node_modules/m').mkdir(parents=True)
        (Path(folder) / 'node_modules/m/f').write_text('got')

    monkeypatch.setattr(rendering, '_install_npm', installed)
    for package, file in (('m@1', 'f'), ('m@1', 'g'), ('late@1', 'f')):
        asked(f'from npm {package} {file}', lambda *a: str(rendering._from_npm('npm', *a)), package, file)
    for f, kw in ((rendering._run_zensical, {}), (rendering._render, {})):
        for rc, out in ((0, 'fine'), (1, 'x'), (0, '\x1b[1mWARNING: y'), (0, 'an error')):
            monkeypatch.setattr(rendering.shutil, 'which', lambda n: n)
            monkeypatch.setattr(
                rendering.subprocess,
                'run',
                lambda *a, rc=rc, out=out, **kw: SimpleNamespace(returncode=rc, stdout=out, stderr=''),
            )
            asked(f'{f.__name__} {rc} {out}', f, tmp_path)
    same_answers(request, 'rendering', asked)


def test_paper_and_finish(request, project, tmp_path, monkeypatch):
    asked, cfg, toc = Asked(tmp_path), contents.settings(project), contents.pages(project)
    links = {p.source: p.name for p in toc}
    base = contents.site_address(cfg)
    asked.of(epub._chapter_name, 'one/first', 'index')
    for t in (
        '[a](../index.ipynb#x) [b](01_first.ipynb) [c](none.ipynb)',
        f'[d]({base}/one/first.html#f.g) [e]({base}/index.html)',
        '<a class="term" href="../glossary.html#term-x" title="m">word</a>',
    ):
        asked(f'inside {t}', epub._inside, t, 'one/second.ipynb', links, base)
    asked.of(
        epub._on_paper,
        '```{mermaid}\nx',
        '<div class="page-tools"> </div>y<a id="q"></a>',
        '::: {.callout-note}\n\n## T\nx',
        '[source](u){x} z',
        '# H\n::: {.other}\n## Q',
    )
    (tmp_path / 'p.png').write_bytes(b'png')
    stored = []
    save = lambda raw, ending: stored.append(raw.decode()) or f'{len(stored)}.{ending}'
    asked.of(
        lambda t: epub._pictures(t, tmp_path, save),
        '![a](p.png)',
        '![a](none.png)',
        '![a](http://x/p.png)',
        '![](p.jpg)',
        '![x](./p.png)',
    )
    outs = [
        image_out(),
        {'output_type': 'd', 'data': {'image/svg+xml': '<svg/>', 'text/markdown': 'x'}},
        result(text_markdown='---\n\nx'),
        result(text_plain='y\n'),
        stream('stdout', 'a'),
        stream('stderr', 'b'),
        result(),
    ]
    for i, o in enumerate(outs):
        asked(f'output {i}', epub._output, o, save)
    for i, c in enumerate(
        (
            code('x', outputs=outs[3:4]),
            code('#| echo: false', 'x', outputs=outs[3:4]),
            code('#| include: false', 'x', outputs=outs[3:4]),
            code('#| output: false', 'x', outputs=outs[3:4]),
            code('#| hide'),
            text('a'),
            dict(cell_type='raw', source='r'),
        )
    ):
        asked(f'cell {i}', epub._cell, c, save)
    proc = tmp_path / 'proc'
    for p in toc:
        (proc / p.source).parent.mkdir(parents=True, exist_ok=True)
        (proc / p.source).write_text(
            json.dumps(dict(cells=[dict(cell_type='raw', source='---\ntitle: T\n---'), *NOTEBOOKS[p.source]]))
        )
    (tmp_path / 'put').mkdir()
    asked('book', epub.book_markdown, proc, toc, cfg, tmp_path / 'put')
    for quarto, pandoc in itertools.product((None, 'q'), (None, 'p')):
        monkeypatch.setattr(epub.shutil, 'which', lambda n, d=dict(quarto=quarto, pandoc=pandoc): d[n])
        asked(f'pandoc {quarto} {pandoc}', epub._pandoc)
    for rc in (0, 2):
        monkeypatch.setattr(
            epub.subprocess, 'run', lambda c, rc=rc, **kw: SimpleNamespace(returncode=rc, stderr='x' * 4000)
        )
        asked(f'run {rc}', epub._run_pandoc, [], tmp_path)
    asked('options', epub._pandoc_options, cfg)
    ran = []
    monkeypatch.setattr(epub, '_run_pandoc', lambda options, folder: ran.append(len(options)))
    asked('epub', lambda: [epub.write_epub(proc, toc, cfg, tmp_path / 'b.epub'), ran])
    monkeypatch.undo()
    for rc, out in ((0, '2026-01-02\n'), (0, ''), (1, 'x')):
        monkeypatch.setattr(
            finish.subprocess, 'run', lambda *a, rc=rc, out=out, **kw: SimpleNamespace(returncode=rc, stdout=out)
        )
        asked(
            f'date {rc} {out}',
            lambda: finish._date('.') if out and not rc else finish._date('.') == datetime.date.today(),
        )
        if out and not rc:
            asked('imprint', lambda: [finish.imprint('.', cfg), answer(finish.imprint, '.', cfg | dict(license='mit'))])
    for c in (cfg, private(project)):
        for cells in ([text('the extra `train` and the extra `plot`')], [code('the extra `x`')], []):
            asked(
                f'takeaway {c["user"]} {len(cells)} {cells and cells[0]["cell_type"]}',
                lambda c=c, cells=cells: json.loads(finish.takeaway(json.dumps(dict(cells=cells)), c)),
            )
        for p, book in itertools.product(toc[:3], ('', 'b.epub')):
            asked(f'tools {c["user"]} {p.name} {book}', finish.page_tools, p, c, book)
        asked(
            f'lost {c["user"]}',
            lambda c=c: [
                line
                for line in finish._lost_page(project, c, toc).splitlines()
                if 'const pages' in line or 'base' in line or 'title' in line
            ],
        )
    with monkeypatch.context() as m:
        m.setattr(finish, 'moved_names', lambda kind: {'old': 'one/first', 'index': 'one/first', 'gone': 'nowhere'})
        asked('living', lambda: [finish._living({'one/first', 'index'}), finish._addresses(project, toc[:3])])
    built = tmp_path / 'site'
    for p in toc:
        (built / p.name).parent.mkdir(parents=True, exist_ok=True)
        (built / f'{p.name}.html').write_text(
            '<h1></h1><div class="page-tools" x></div> <div class="page-tools"></div></body></body>'
        )
    (project / 'nbs/reading.js').write_text('js')
    asked(
        'finished',
        lambda: [
            finish.finish_site(project, built, cfg),
            {p.relative_to(built).as_posix(): p.read_text()[:400] for p in sorted(built.rglob('*.html'))[1:]},
            sorted(p.name for p in built.rglob('*.ipynb')),
        ],
    )
    (built / 'small.epub').write_text('')
    asked('epub of', lambda: [finish._epub_of(built, cfg), finish._epub_of(tmp_path, cfg)])
    asked('no place', finish._finish_page, built, toc[0], 'x')
    same_answers(request, 'paper_and_finish', asked)


def test_names(request, project, tmp_path):
    asked = Asked(tmp_path)
    trees = names.library_modules(project)
    publics = {m: names.public_names(t) for m, t in trees.items()}
    asked('publics', lambda: publics)
    for module, tree in trees.items():
        asked(f'used {module}', names.names_used, tree, module.split('.')[:-1], 'small', publics)
        asked(
            f'of {module}',
            lambda t=tree, m=module: [
                names._imports(t, m.split('.')[:-1], 'small', publics),
                names._returned(t, publics[m]),
                names._assigned_methods(t),
                names._module_gaps(t, (project / 'small' / (m.replace('.', '/') + '.py')).read_text().splitlines()),
                names._definitions(t),
            ],
        )
    for n in NOTEBOOKS:
        asked(
            f'page {n}',
            lambda n=n: [
                names._page_uses(project, n, 'small', publics),
                names._prose(project, n),
                names._own_module(names._code_cells(project, n)),
            ],
        )
    for make in (names.unused_names, names.repeated_names, names.undocumented, names.name_index, names._entry_points):
        asked(make.__name__, make, project)
    for source in (
        'import small.tool as t\nt.main',
        'from small import tool\ntool.handed()',
        'from small.tool import *\nThing',
        'x = "small.tool:main"',
        'x = "from small.tool import nobody"',
        'x = "from small import ("',
        'from other import main',
        'from .tool import main as m',
    ):
        asked(f'uses {source}', names.names_used, ast.parse(source), [], 'small', publics)
    for source in (
        'from ..a import b',
        'from .a import b',
        'from small.x import y',
        'from small import y',
        'from other import y',
        'from . import z',
    ):
        asked(f'base {source}', names._base, ast.parse(source).body[0], ['one', 'two'], 'small')
    asked.of(names._tree, 'x = 1', 'x =')
    asked.of(names.without_markup, 'a*b_c<d>|$`', 'plain')
    asked.of(names._plain, 'One *two* `thr_ee` and\n more\n\nnext', None, '', '`a|b` x')
    for source in (
        'class A: pass',
        '@dataclass\nclass B: "Words *x*"',
        'def f(): "Do `it`"',
        'X = [1, 2, 3]',
        'Y = "`" + "z"*99',
    ):
        asked(
            f'meaning {source}',
            lambda s=source: [
                names._meaning(ast.parse(s).body[0]),
                names._kind(ast.parse(s).body[0]),
                names._defined(ast.parse(s).body[0]),
            ],
        )
    asked('nothing', lambda: [names._meaning(None), names._kind(None)])
    for source in (
        'def f(a, # x\n  # above\n  b,\n  c): pass',
        'class A:\n  @staticmethod\n  def m(a): pass\n  def n(self, a): pass',
        '@dataclass\nclass R:\n  x:int\n  # above\n  y:int\n  z:int # z\n  _h:int',
        'class G(torch.autograd.Function):\n  def forward(ctx): pass',
        '@patch\ndef m(self:A, x): pass',
        '@patch_to(A)\ndef m(self, x): pass',
        'class P:\n  "d"\n  a = b\n  _c = d\n  e = f()\n  def __call__(self, q): pass',
        'def f(*, k, j=1): "d"',
        'A.x, B.y = 1, 2\nclass A: pass',
        '@patch\ndef m(): pass',
        'class Q:\n  "d"\n  x:int',
        'def f(a, /, b): "d"',
    ):
        tree = ast.parse(source + '\n__all__ = ["f", "A", "R", "G", "P", "Q"]')
        asked(f'gaps {source}', names._module_gaps, tree, source.splitlines() + [''])
    same_answers(request, 'names', asked)


def test_needs(request, project, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    sources = [
        'import a, b.c',
        'from a import b, c',
        'from . import x',
        'from ..y import z',
        'def f():\n  import d',
        'try: import e\nexcept ImportError: pass',
        'try: import g\nexcept ValueError: pass',
        'try: import h\nexcept: pass',
        'try: import i\nexcept (KeyError, ModuleNotFoundError): pass',
        'with suppress(ImportError): import j',
        'with open(x): import k',
        'need("l.m")',
        'importlib.import_module("n")',
        'need(name)',
        'need()',
        'x.need("o", "p")',
        'lambda: need("q")',
        'class A:\n  import r\n  def f(self): import s',
        'if x: import t',
        'with contextlib.suppress(Exception): import u',
    ]
    for source, deep in itertools.product(sources, (True, False)):
        asked(f'imports {source} {deep}', needs.imports, ast.parse(source), deep, 'small.one')
    asked.of(needs._tree_of, 'x = 1', '%magic\ny', '!ls', 'x =')
    for source in ('show_doc(f)', '#| export\nx', '#| exec_doc', 'x', 'y = show_doc(f)', 'import a'):
        asked(
            f'documents {source}',
            lambda s=source: [needs._documents(s, ast.parse(s)), needs._holds_import(ast.parse(s))],
        )
    for n in NOTEBOOKS:
        asked(
            f'notebook {n}',
            lambda n=n: [
                needs.docs_imports(project, n),
                needs.run_imports(project, n),
                needs._top_text(project, n),
                needs.extras_needed(project, n),
            ],
        )
    asked('cells for the docs', lambda: {n: list(map(ast.unparse, needs._docs_cells(project, n))) for n in NOTEBOOKS})
    for m in ('small', 'small.one', 'small.tool', 'small.none', 'small.one.first'):
        asked(f'module {m}', lambda m=m: [needs._module_file(project, m), needs._package(project, m)])
    for a in (('small.one', 'first'), ('small.tool', 'main'), ('other', 'x'), ('smaller', 'x')):
        asked(f'own {a}', needs._own, project, *a, 'small')
    asked.of(lambda m: needs._outside(m, 'small'), 'os.path', 'torch.nn', 'small.x', '', '__main__', 'yaml')
    asked(
        'definitions',
        lambda: {
            n: len(v)
            for n, v in needs._definitions(
                ast.parse(
                    'X = 1\nX += 1\nclass A: pass\n@patch\ndef m(self:A): pass\nY:int = 2\na, b = 1, 2\nasync def z('
                    '): pass'
                )
            ).items()
        },
    )
    asked.of(needs.plain_name, 'Torch>=2', 'a_b.c', 'PyYAML[x]', '-x')
    asked.of(needs._distribution, 'PIL', 'torch', 'google', 'My_Pkg')
    asked('requirements', needs.requirements, project)
    asked('graph', needs._lock_graph, project)
    asked.of(
        needs._brought_in,
        '    # via',
        '    # via torch',
        '    #   torch',
        '    #   -r -',
        'torch==1',
        '# x',
        '    # via -r x',
    )
    asked('brings', needs.brings, project)
    asked('reached', lambda: needs._reached(dict(a={'b'}, b={'a', 'c'}), ['a']))
    for wanted in (set(), {'torch'}, {'torch', 'pillow'}, {'torch', 'nope'}, {'matplotlib', 'pillow'}):
        asked(
            f'cover {sorted(wanted)}',
            needs._cover,
            wanted,
            dict(
                train={'torch', 'pillow'}, plot={'torch', 'matplotlib'}, all={'torch', 'pillow', 'matplotlib', 'more'}
            ),
        )
    for modules, given in itertools.product(
        (['torch'], ['PIL'], ['numpy'], ['jupyterlab'], ['ruff'], ['what']), ((), ('dev',), ('dev', 'lab'))
    ):
        asked(f'extras {modules} {given}', needs.extras_for, modules, project, given)
    asked('course', needs.course_extras, project)
    for m in ('torch', 'numpy', 'ruff', 'what', 'jupyterlab'):
        asked(f'brought {m}', needs._brought_by, m, project)
    asked(
        'missing',
        lambda: [
            [str(needs.Missing('p', 'm', e)) for e in ('', 'base', 'train')],
            [needs._present(m) for m in ('json', 'no_such_module', '')],
        ],
    )
    monkeypatch.setattr(needs, '_present', lambda m: m != 'torch')
    for make in (
        needs.missing_imports,
        needs.unnamed_extras,
        needs.unknown_imports,
        needs.wrong_extras,
        needs._side_packages,
        pins._requirement_lines,
    ):
        asked(make.__name__, make, project)
    asked(
        'calls',
        lambda: list(
            needs._needs(
                ast.parse('need("a")\nneed("b", "x")\nneed("c", extra="y")\nneed(d)\no.need("e")\nneed("f", g)')
            )
        ),
    )
    asked(
        'all',
        lambda: [
            needs._with_all({'': {'a'}, 'dev': {'d'}, 'x': {'b'}}),
            needs._helps({'': {'numpy'}, 'x': {'torch'}}, 'torch', 'x'),
            needs._helps({'': {'numpy'}, 'x': set()}, 'torch', 'x'),
            needs._helps({'': {'numpy'}}, 'numpy', 'zzz'),
        ],
    )
    asked.of(
        pins.lock_problems,
        'a==1+cpu',
        'a==1 ; x == "a+b"',
        'a @ file:///x',
        '-e .',
        './x',
        '# a==1+c\n\n',
        'a==1\nb==2+x\n--hash=1',
        '/a/b',
        'a==1 # https://x',
    )
    for there in ('uv', None):
        monkeypatch.setattr(pins.shutil, 'which', lambda n, there=there: there)
        monkeypatch.setattr(pins, '_install_uv', lambda folder: (Path(folder) / 'bin').mkdir(parents=True))
        asked(f'uv {there}', pins._uv_program, tmp_path / 'uv')
    (tmp_path / 'uv/bin/uv').write_text('')
    asked('uv kept', pins._uv_program, tmp_path / 'uv')
    monkeypatch.setattr(pins.os, 'environ', dict(UV_X='1', VIRTUAL_ENV='v', HOME='h', UVX='2'))
    asked.of(pins._uv_environment, None, {'cert': 'c', 'index-url': 'i', 'x': 'y'})
    for upgrade in (True, False):
        asked(f'compile {upgrade}', pins._compile_command, 'uv', 'out', '3.11', upgrade)
    for rc in (0, 1):
        monkeypatch.setattr(
            pins.subprocess, 'run', lambda *a, rc=rc, **kw: SimpleNamespace(returncode=rc, stderr=' no ')
        )
        asked(f'run uv {rc}', pins._run_uv, [], '', tmp_path, None)
    ran = []
    monkeypatch.setattr(
        pins,
        '_run_uv',
        lambda command, wanted, folder, pip: (
            ran.append([command[:5][:4], wanted, pip])
            or (Path(folder) / 'requirements.lock').write_text(
                (Path(folder) / 'requirements.lock').read_text() + 'new==1\n    # via -r -\n'
            )
        ),
    )
    asked('resolved', lambda: [pins._resolved(project, 'uv', True, None)[-40:], [r[1:] for r in ran]])
    same_answers(request, 'needs', asked)


def test_checks(request, project, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(checks, '_parts', ('tool', 'one', 'two'))
    for make in (
        checks.exported_names,
        checks.stale_modules,
        checks.mixed_imports,
        checks.out_of_order,
        checks.long_modules,
        checks._not_in_contents,
        checks._places,
    ):
        asked(make.__name__, make, project)
    for n in NOTEBOOKS:
        asked(f'module {n}', checks.module_of, project, n)
    asked('long', lambda: [checks.long_modules(project, n) for n in (1, 604, 605, 606)])
    for source in (
        'import a\nb()',
        '#| export\nimport a\nb()',
        'import a',
        'b()',
        'import a\nx = 1',
        'from a import b\ndef f(): pass',
        '#| eval: false\nimport a\nb()',
        '%magic\nimport a\nx()',
        'import a\nx =',
        'def f():\n  import a\n  b()',
        '#| hide\nimport a; b()',
    ):
        asked(f'mixed {source}', checks._mixed, source)
    for source in (
        'from . import x',
        'from ..tool import main',
        'from small.a import b',
        'from small import b',
        'from other import b',
        'from .second import y',
    ):
        asked(f'imported {source}', checks._imported, ast.parse(source).body[0], ['one'], 'small')
    asked('imports', lambda: {m: checks._imports(project, m) for m in ('tool', 'one.first', 'one.second')})
    asked('differences', lambda: checks._differences(project / 'small', project / 'nbs'))
    (tmp_path / 'copy').mkdir()
    (tmp_path / 'copy/tool.py').write_text(LIBRARY['tool.py'])
    asked('same', lambda: checks._differences(tmp_path / 'copy', project / 'small'))
    found = [
        dict(filename=str(project / 'small/tool.py'), location=dict(row=r), code='E1', message='m') for r in (1, 3)
    ]
    (project / 'small/tool.py').write_text('# AUTOGENERATED\n\n# %% ../x\ny')
    for rc in (0, 1, 2):
        monkeypatch.setattr(
            checks.subprocess,
            'run',
            lambda *a, rc=rc, **kw: SimpleNamespace(returncode=rc, stdout=json.dumps(found), stderr='bad'),
        )
        asked(f'lint {rc}', checks.lint_problems, project)
    for text_, row in (
        ('# AUTOGENERATED\n1\n# %% ../x\n', 1),
        ('# AUTOGENERATED\n1\n# %% ../x\n', 2),
        ('# AUTOGENERATED\n1\n# %% ../x\n', 3),
        ('x\n# %% ../', 1),
    ):
        (tmp_path / 'm.py').write_text(text_)
        asked(f'head {text_!r} {row}', checks._in_head, dict(filename=str(tmp_path / 'm.py'), location=dict(row=row)))
    for rc in (0, 1):
        monkeypatch.setattr(
            checks.subprocess,
            'run',
            lambda *a, rc=rc, **kw: SimpleNamespace(returncode=rc, stdout='a\nb', stderr='bad'),
        )
        asked(f'git {rc}', lambda: [checks._git('.', 'x'), checks.untracked('.'), answer(checks._export, tmp_path)])
    monkeypatch.undo()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    asked('tables', lambda: answer(checks._tables_without_words, project))
    (project / 'fsdl_tools').symlink_to(project / 'small')
    (project / 'small/data/more.json').write_text('{}')
    (project / 'small/data/_no.csv').write_text('')
    asked('tables there', checks._tables_without_words, project)
    asked('said', checks._said, dict(a=1, b='x'))
    (project / 'README.md').write_text('old')
    (project / 'nbs/images').mkdir()
    asked(
        'differs',
        lambda: [
            checks._differs('index.ipynb', 'README.md')(project),
            (project / 'README.md').write_text(site.readme(project)) > 0,
            checks._differs('index.ipynb', 'README.md')(project),
        ],
    )
    monkeypatch.setattr(
        checks, '_source_checks', [('p', lambda root: ['x', dict(a=1)], 'c'), ('q', lambda root: [], 'd')]
    )
    asked('problems', checks.source_problems, project)
    asked('cache', checks.check_cache)
    asked(
        'recorded',
        lambda: [
            checks.recorded_seconds(),
            checks._record_seconds('notebooks', dict(b=1.234567, a=3)),
            checks._record_seconds('tests', dict(t=1)),
            checks._record_seconds('notebooks', dict(c=9.0)),
            checks.recorded_seconds(),
            checks._longest_first(['a', 'b', 'c', 'd']),
        ],
    )
    (tmp_path / 'cache/fsdl_tools/seconds.json').write_text('{')
    asked('torn', checks.recorded_seconds)
    asked('flags', lambda: [checks._left_out(project), checks._left_out(project, 'slow gpu')])
    for some in (None, ['index.ipynb'], ['none.ipynb']):
        asked(f'named {some}', checks._those_named, project, some)
    asked('line', lambda: [checks._line(dict(ok=ok, notebook='n', seconds=1.5)) for ok in (True, False)])
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    asked('quiet', lambda: [checks._quiet()['OMP_NUM_THREADS'], checks._quiet()['JAX_PLATFORMS']])
    results = [
        dict(notebook=n, seconds=2.0, ok=n != 'two/index.ipynb', output='') for n in ('two/index.ipynb', 'index.ipynb')
    ]
    jobs = []
    monkeypatch.setattr(
        checks, '_results', lambda job, report: jobs.append({k: v for k, v in job.items() if k != 'root'}) or results
    )
    for kw in (
        dict(names=['index.ipynb', 'two/index.ipynb']),
        dict(),
        dict(names=['index.ipynb'], workers=0),
        dict(names=['index.ipynb'], timeout=0),
        dict(names=['index.ipynb', 'two/index.ipynb', 'glossary.ipynb'], flags='slow'),
    ):
        asked(f'run {kw}', lambda kw=kw: [checks.run_notebooks(project, **kw), jobs[-1], checks.recorded_seconds()])
    asked(
        'group',
        lambda: [
            checks._run_group(
                [sys.executable, '-c', f'print(1); raise SystemExit({rc})'], tmp_path, dict(os.environ), 20
            )
            for rc in (0, 3)
        ],
    )
    same_answers(request, 'checks', asked)


def test_site(request, project, tmp_path, monkeypatch):
    asked, cfg = Asked(tmp_path), contents.settings(project)
    asked('options', site.option_problems, project)
    asked.of(
        site._line_problem,
        'echo: false',
        'hide',
        'nope',
        'fig-alt: x',
        'fig-alt: "a: b"',
        'fig-alt: a: b',
        'fig-cap:',
        'label: 3',
        'bad: 1',
        '',
        'slow words',
        'export:',
        'code-fold: true',
    )
    asked.of(site._hidden, ['hide'], ['include: false'], ['output:false'], ['echo: false'], [])
    for lines, image in itertools.product(([], ['fig-alt: x'], ['hide'], ['output: false']), (True, False)):
        asked(
            f'alt {lines} {image}',
            site._lacks_alt,
            code('x', outputs=[image_out()] if image else [stream('stdout', 'x')]),
            lines,
        )
    asked('repeated', site._repeated, ['a', 'b', 'a', 'c', 'c', 'c'])
    built = tmp_path / 'site'
    (built / 'one').mkdir(parents=True)
    (built / 'index.html').write_text(
        '<a id="top" name="n" href="one/first.html#f"></a><a href="one/first.html#zz"></a><a href="none.'
        'html"></a><a href="https://x"></a><a href="mailto:a@b"></a><script src="https://cdn/x.js"></scr'
        'ipt><link rel="stylesheet" href="s.css"><link rel="canonical" href="https://y"><img src="data:x'
        '"><a href="#top"></a><a href="#bottom"></a><a href="."></a><a href="a%20b.html"></a><a></a><img'
        '><a href="s.css#q"></a>'
    )
    (built / 'one/first.html').write_text(
        '<p id="f"></p><a href="../index.html#n"></a><a href="//host/x"></a><iframe src="../gone.html"><'
        '/iframe><a href="javascript:x"></a>'
    )
    (built / '404.html').write_text('<a href="gone.html"></a><img src="https://z/q.png">')
    (built / 'a b.html').write_text('')
    asked('dead', site.dead_links, built)
    for c in (cfg, private(project)):
        with monkeypatch.context() as m:
            m.setattr(site, 'moved_names', lambda kind: dict(old='one/first', index='one/first', lost='nowhere'))
            (built / 'old.html').unlink(missing_ok=True)
            asked(
                f'moved {c["user"]}',
                lambda c=c: [
                    site.write_moved(built, c),
                    (built / 'old.html').read_text(),
                    sorted(p.name for p in built.glob('*.html')),
                ],
            )
    for quarto in ('q', None):
        monkeypatch.setattr(site.shutil, 'which', lambda n, q=quarto: q)
        asked(f'renderers {quarto}', site._renderers)
    for name in ('nbdev.yml', 'sidebar.yml', 'x.yml', '.ipynb_checkpoints/x'):
        p = tmp_path / 'src' / name
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text('')
        asked(f'source {name}', site._is_source, p)
    (project / 'nbs/images').mkdir()
    (project / 'small/data/glossary.csv').write_text('g')
    asked('made from', lambda: [p.relative_to(project).as_posix() for p in site._made_from(project)])
    prints = [site._fingerprint(project), site._fingerprint(project, 'quarto'), site._fingerprint(project, 'zensical')]
    (project / 'small/tool.py').write_text('x')
    asked(
        'fingerprints',
        lambda: [len(set(prints)), prints[0] == prints[2], site._fingerprint(project) in prints, len(prints[0])],
    )
    done = []
    monkeypatch.setattr(site, 'quarto', lambda root, out, cfg: done.append('quarto') or Path(out).mkdir(exist_ok=True))
    monkeypatch.setattr(
        site,
        'zensical',
        lambda root, out, cfg, toc: done.append(['zensical', len(toc)]) or Path(out).mkdir(exist_ok=True),
    )
    monkeypatch.setattr(site, 'finish_site', lambda root, out, cfg: done.append('finished'))
    for renderer in ('', 'quarto', 'zensical', 'quatro'):
        asked(
            f'build {renderer}',
            lambda r=renderer: [
                site.build_site(project, None, r),
                (project / '_docs/.fingerprint').read_text() == site._fingerprint(project, r or 'zensical'),
                done.copy(),
                done.clear(),
            ],
        )
    (project / 'nbs/contributing.ipynb').write_text(json.dumps(dict(cells=[text('# C', 'x')])))
    for turn in range(2):
        asked(
            f'update {turn}',
            lambda: [site.update_site(project), done.copy(), done.clear(), (project / 'CONTRIBUTING.md').read_text()],
        )
    monkeypatch.undo()
    asked.of(
        site._github,
        '::: {.callout-note}\n## T\nx\n:::',
        '::: {.callout-other}\ny\n:::\nz',
        ':::: {.callout-tip collapse="true"}\n\na\n\nb\n::::',
        'plain',
        '::: {.x}\ny\n:::',
    )
    for i, c in enumerate(
        (
            code('x', outputs=[result(text_plain='y')]),
            code('#| hide', 'x'),
            code('#| echo: false', 'x', outputs=[result(text_markdown=['m']), stream('stdout', 's\n'), result()]),
            code('#| export'),
        )
    ):
        asked(f'parts {i}', lambda c=c: list(site._code_parts(c)))
    for user in ('ada', ''):
        (project / 'settings.ini').write_text(SETTINGS.format(user=user))
        asked(f'readme {user}', site.readme, project)
    for port in (-1, 65536):
        asked(f'serve {port}', site.serve_site, built, port)
    asked('serve nothing', site.serve_site, tmp_path)
    server = site.serve_site(built, 0)
    port = server.server_address[1]
    asked('taken', lambda: str(answer(site._listen, '127.0.0.1', port, None)).replace(str(port), 'PORT'))
    server.server_close()
    quiet = object.__new__(site._Quiet)
    sent = []
    quiet.send_response, quiet.send_header, quiet.end_headers = (
        lambda code: sent.append(code),
        lambda k, v: sent.append([k, v]),
        lambda: sent.append('end'),
    )
    for command in ('GET', 'HEAD'):
        quiet.command, quiet.wfile = command, SimpleNamespace(write=lambda b: sent.append(b.decode()))
        asked(f'lost {command}', lambda: [quiet._send_lost(b'lost'), sent.copy(), sent.clear()])
    same_answers(request, 'site', asked)


def test_visible(request, project, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    sources = [
        'import a',
        'from a import b as c\nimport d.e',
        'x = 1',
        'test_eq(x, 1)',
        'def f(): return y + x',
        'class A: z = w',
        '%time x',
        'x =',
        'for i in range(3): print(i)',
        'f = lambda q: q + r',
        '[v for v in w]',
        'plt.plot(x)\nplt.show()',
        'Table([\n1,\n2,\n3])',
        'Table([1])',
        'fig, ax = plt.subplots()\nz = 1',
        'x = 1\nplt.show()',
        'other(\n1,\n2,\n3)',
        'plt.plot()',
        'a = 1\nb = 2\nplt.show()',
    ]
    flags = [
        {},
        dict(hide=''),
        dict(export=''),
        dict(include='false'),
        {'code-summary': '"Set-up for this page"'},
        dict(default_exp='x'),
        dict(exports=''),
    ]
    for source in sources:
        asked(
            f'code {source!r}',
            lambda s=source: [
                visible._names(visible._parsed(s)),
                (c := visible._Cell(s, {})).imports,
                c.prepares,
                visible._draws(c.tree, [image_out()]),
                visible._draws(c.tree, []),
                visible._tabulates(c.tree),
            ],
        )
        for f in flags:
            asked(f'kind {source!r} {f}', lambda s=source, f=f: visible._first_kind(visible._Cell(s, f)))
    asked(
        'narrow',
        lambda: [
            visible._narrow(c) for c in ('x = 1', 'y = ' + '+'.join(['number'] * 20), 'bad ' + 'x' * 120, 'z' * 100)
        ],
    )
    books = dict(
        page=[
            ('#| default_exp one.first', 0),
            ('#| export\nimport os\nfrom x import a, b, a', 0),
            ('#| export\ndef shown(): pass', 0),
            ('#| hide\nimport numpy as np, json\nfrom y import *', 0),
            ('#| hide\nhelp_ = 3', 0),
            ('print(shown(), help_, np, a)', 0),
            ('#| hide\nlater = help_', 0),
            ('#| slow\nslow()', 0),
            ('later', 0),
            ('#| eval: false\nnot_run', 0),
            ('#| hide\ntest_eq(1, 1)', 0),
        ],
        setup=[
            ('#| hide\nconfig = 1', 0),
            ('#| hide\ntest_x()', 0),
            ('#| code-summary: "Set-up for this page"\nq = 2', 0),
            ('q + config', 0),
        ],
        none=[('#| export\nx = 1', 0)],
    )
    for name, cells in books.items():
        (project / 'nbs/v.ipynb').write_text(json.dumps(dict(cells=[text('# V')] + [code(s) for s, _ in cells])))
        asked(
            f'visible {name}',
            lambda: [visible.visible_code(project, 'v.ipynb'), [c.kind for c in visible._read(project, 'v.ipynb')[0]]],
        )
    for n in list(NOTEBOOKS)[:6]:
        asked(f'of {n}', visible.visible_code, project, n)
    for count in (3, 12, 20):
        asked(f'from {count}', visible._from, 'module.of.it', [f'name_{i}' for i in range(count)])
    asked('star', visible._from, 'm', ['a', '*'])
    asked.of(visible._yaml, 'true', 'two words', 'a"b')
    for show, c in itertools.product(
        (True, False), ('x', '#| echo: false\n#| fig-alt: "a b"\ny', '#| code-fold: true\nz')
    ):
        asked(f'fold {show} {c}', visible._fold, c, 'S: x', show)
    cell = lambda s, kind='markdown', **kw: SimpleNamespace(
        **dict(dict(cell_type=kind, source=s, outputs=[], directives_={}), **kw)
    )
    doc = lambda s, *lines: cell(s, 'code', has_sd=True, outputs=[dict(data={'text/markdown': list(lines)})])
    asked(
        'promised',
        visible._promised,
        [
            cell('**You will be able to import** `a.b`, `c`\n\n`d`'),
            cell('`e`'),
            cell('**You will be able to import**: `f` **next** `g`'),
        ],
    )
    pairs = [cell('a', 'code'), doc('show_doc(f)'), doc('show_doc(g)'), cell('b'), doc('show_doc(h)')]
    asked('with docs', lambda: [[c.source, [d.source for d in docs]] for c, docs in visible._with_docs(pairs)])
    asked(
        'entered',
        lambda: [
            visible._entered(pairs[1:3]),
            [c.source for c in visible._anchors({'B', 'a'})],
            visible._anchors(set()),
        ],
    )
    tabs = [
        cell('x\n::: {.panel-tabset}\n## A'),
        cell('### deep'),
        doc('show_doc(f)', '### f {#f .api}\n', 'text'),
        cell(':::'),
        doc('d', '### g {#g .api}'),
        cell(':::: {.panel-tabset}\n# B\n::: {.callout}'),
        doc('e', '## h {#h .api}'),
        cell(':::\ny\n::::'),
        cell('## z'),
    ]
    asked('levels', lambda: list(visible._tab_levels(tabs)))
    asked(
        'below',
        lambda: [visible._entries_below_tabs(tabs), [d['text/markdown'] for c in tabs for d in visible._outputs(c)]],
    )
    twice = [
        doc('a', '### f {#f .api}'),
        doc('b', '### F {#f .api}\n#### f.g {#f.g .api}'),
        cell('<a id="f"></a><a id="q"></a><a id="q"></a>'),
        cell('## f\n### Q x\n## F\n# f\n## g {#own}\n## q'),
    ]

    def once():
        taken = visible._anchors_once(twice, visible._entries_once(twice))
        visible._headings_apart(twice, taken)
        return [taken, [c.source for c in twice], [d['text/markdown'] for c in twice for d in visible._outputs(c)]]

    asked('once', once)

    def shown(*cells):
        nb = SimpleNamespace(cells=list(cells))
        show = visible.ShowCode(nb)
        show.begin()
        return [
            [
                c.cell_type,
                c.source,
                [o.get('name', '') or sorted(o.get('data', {})) for o in getattr(c, 'outputs', [])],
                sorted(getattr(c, 'directives_', {})),
            ]
            for c in nb.cells
        ]

    run = lambda s, outputs=(), **d: cell(
        s,
        'code',
        outputs=list(outputs),
        directives_={k.replace('_', '-') if k != 'default_exp' else k: v for k, v in d.items()},
    )
    out = [dict(name='stderr'), dict(data={'image/png': 'x'}), dict(name='stdout')]
    asked(
        'shown',
        shown,
        cell('# T\n**You will be able to import** `shown`'),
        run('', default_exp=['one.first']),
        run('import os', export=[]),
        run('def shown(): pass', export=[]),
        doc('show_doc(shown)', '### shown {#shown .api}'),
        run('def other(): pass\nclass More: pass', exports=[]),
        run('help_ = 3', hide=[]),
        run('print(help_, shown, os)', out),
        run('x = 1\nfig, ax = plt.subplots()\nax.plot()', out),
        run('Table([\n1,\n2,\n3])'),
        run('#| echo: false\nplt.plot()\nplt.show()', out),
        run('only_hidden()', hide=[]),
        cell('## shown'),
    )
    asked('shown alone', shown, cell('# T'), run('x = 1'))
    asked('nothing shown', shown, cell('# T'))
    same_answers(request, 'visible', asked)


class Plain:
    "A class with methods"

    def __init__(
        self,
        a: int,  # First
        b=None,  # Second
    ):
        self.a = a

    @property
    def size(self) -> int:  # Of it
        "How large"
        return 1

    @property
    def loose(self):
        return 1

    @staticmethod
    def still(x: int = 1):
        "Still"

    @classmethod
    def make(
        cls,
        x,  # What
    ):  # One of these
        "Make one"

    @functools.cached_property
    def kept(self):
        "Kept"

    def _own(self):
        pass


class Below(Plain):
    "Inherits"

    def make(self, y):
        pass

    def still(self):
        "Said anew"


def test_entries(request, tmp_path, monkeypatch):
    import dataclasses

    asked = Asked(tmp_path)
    from tests.ground.test_answers import Inner, Outer
    from fsdl_tools.core import need, one_of, positive, read_data
    from fsdl_tools.units import human_bytes
    from fsdl_tools.training.config import TrainConfig

    monkeypatch.setattr(entries.Entry, '_source', lambda self: '')
    for what in (
        human_bytes,
        positive,
        one_of,
        need,
        read_data,
        Plain,
        Below,
        Inner,
        Outer,
        Plain.make,
        Plain.size,
        TrainConfig.to_dict,
        guide.Step,
        pip.Wheel,
        test_entries,
    ):
        asked(f'entry {getattr(what, "__qualname__", "size")}', lambda w=what: entries.Entry(w)._repr_markdown_())
    asked(
        'named', lambda: [repr(entries.Entry(positive, 'other', 2)), repr(entries.Entry(Plain.size, 'Plain.size', 5))]
    )
    for c, words in itertools.product(('def f(', 'x' * 60), ('', 'short', 'word ' * 40)):
        asked(f'wrapped {len(c)} {len(words)}', entries._wrapped, c, words)
    asked.of(entries._type_name, int, 'a.b.C', 'int | None', list[int], 'x.Y | z.W', Plain)
    asked.of(entries._shown_type, 'int|str', 'a | b', int)
    for field in dataclasses.fields(Outer):
        asked(f'default {field.name}', lambda f=field: [entries._default(f), entries._field_row(f, 'words *x*')])
    asked(
        'methods',
        lambda: (
            [entries._own_methods(c, entries._class_tree(c)) for c in (Plain, Below)]
            + [entries._method(Plain, n)[0] for n in ('size', 'still', 'make', 'kept', '_own')]
        ),
    )
    asked(
        'no source', lambda: [entries._class_tree(int), entries._class_line(int, None), entries._home(Plain) is Plain]
    )
    asked.of(entries._italic, 'one\ntwo', None, '')
    same_answers(request, 'entries', asked)


def test_claims_and_data(request, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    for value in (1, 1.5, True, 'x', None, [1, [2, 'a']], dict(a=1, b=dict(c=[True, 2.0])), {}):
        asked(f'figures {value}', lambda v=value: [data._figures(v), data._figures(v, str)])
    asked.of(data._dates, '{"date": "2026-01-02", "x": {"date":"2025"}, "dates": "2024", "date": "no"}')
    asked.of(data._first_day, '2026', '2026-03', '2026-03-04', 'x', '2026-13')
    today = datetime.date(2026, 3, 4)
    for date in ('2026-03-04', '2026-03-03', '2025-03-03', '2025-03-02', '2025', '2026-03', '2020-01-01'):
        asked(f'age {date}', lambda d=date: [data._days_since(d, today), data.said_of_age('price', d, today)])
    facts = [
        dict(table='gpus.csv', what='GPUs', rows=3, newest='2026-02-01', refreshed='by hand'),
        dict(table='results/zoo.json', what='Zoo', rows=1, newest='2024-01-01', refreshed='x'),
    ]
    monkeypatch.setattr(data, 'table_facts', lambda: facts)
    monkeypatch.setattr(
        data,
        'read_data',
        lambda name, text=(): (
            [dict(date='2026-01-01'), dict(date='2025-03-03'), dict(date='2025-03-02'), dict(date='')]
            if name == 'gpus.csv'
            else [dict(date='')]
        ),
    )
    for words in ('', 'zoo', 'CSV', 'none'):
        asked(f'tables {words}', data.data_table, words, today)
    asked('older', lambda: [data._older(n, today) for n in ('gpus.csv', 'x.csv', 'y.json')])
    with monkeypatch.context() as m:
        m.setattr(
            data,
            '_text_of',
            lambda name: '{"a": [1, 2], "date": "2026-01-01"}' if 'num' in name else '{"a": "x", "date": ["b"]}',
        )
        for n in ('num.json', 'words.json.gz', 'gpus.csv', 'x.csv'):
            asked(f'newest {n}', data._rows_and_newest, n, '2020-01-01')
    for name in ('t.csv', '.h.csv', '_u.json', 'a/.b/c.csv', 'a/x.json.gz', 'a/y.json', 'z.txt', 'ab.csv'):
        (tmp_path / 'tables' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'tables' / name).write_text('')
    with monkeypatch.context() as m:
        m.setattr(data, 'data_path', lambda name: tmp_path / 'tables' / name)
        asked('files', data._data_files)
    monkeypatch.undo()
    asked('facts', lambda: [len(data.table_facts()) > 20, len(data._data_files()) > 20, data._text_of('words.csv')[:4]])
    from fsdl_tools import claims

    c = claims.claims()[0]
    found = SimpleNamespace(id=c.id, stands=False, finding='now')
    asked(
        'rows',
        lambda: [claims_page._claim_row(c, f) for f in (None, found, SimpleNamespace(stands=True, finding='now'))],
    )
    asked('claims', lambda: len(claims_page.claims_table([found])) == len(claims.claims()))
    some = [
        s.replace(
            row=i, system=f's{i}', works='w', became='b', date='d', source='q', chapter='c', proof=('t',) if i else ()
        )
        for i, s in enumerate(claims.systems()[:3])
    ]
    monkeypatch.setattr(claims_page, 'systems', lambda: some)
    for outcomes in (dict(t='passed'), dict(t='failed'), {}):
        asked(f'systems {outcomes}', claims_page.systems_table, outcomes)
        asked(f'record {outcomes}', lambda o=outcomes: claims_page.record_of_systems(o)['rows'])
    monkeypatch.setattr(
        claims_page,
        'read_results',
        lambda name: dict(
            rows=[
                dict(row=1, status='works', set='x', ok=True),
                dict(row=2, status='fails', set='optimum', ok=False),
                dict(row=3, set='y', ok=False, status=''),
            ],
            date='2026',
        ),
    )
    asked('systems recorded', claims_page.systems_table)
    asked('onnx', claims_page._onnx_share)
    asked(
        'version', lambda: [claims_page._version('no-such-package'), claims_page._version('torch') != 'not installed']
    )
    line = lambda **kw: claims.Line(
        **dict(dict(line=1, kind='k', words='w', links=(), claims=(), systems=(), reason='why'), **kw)
    )
    monkeypatch.setattr(
        claims_page, 'lecture_lines', lambda: [line(), line(claims=(c.id,), systems=(1,)), line(systems=(0, 2))]
    )
    for checkable in (True, False):
        asked(f'lines {checkable}', claims_page.lines_table, checkable)
    monkeypatch.setattr(claims_page, 'links', lambda: [claims.Link('l', 's', 'b', 'p', 'd', 'q')])
    asked('links', claims_page.links_table)
    cells = [
        text('# A'),
        text('## What the lecture said, old'),
        text('## What the lecture said'),
        code(
            'x', outputs=[result(text_markdown='m', text_plain='p'), result(text_plain='q'), stream('stdout', 's'), {}]
        ),
        text('end'),
    ]
    for n in (1, 5):
        (tmp_path / 'n.ipynb').write_text(json.dumps(dict(cells=cells[:n])))
        asked(f'closing {n}', claims_page.closing_text, tmp_path / 'n.ipynb')
    with monkeypatch.context() as m:
        m.setattr(
            'fsdl_tools.memory.predict.breakdown',
            lambda *a, **kw: SimpleNamespace(parameters=1, gradients=2, optimizer=3, batch=4, peak=40),
        )
        m.setattr(
            'fsdl_tools.compute.planner.estimate',
            lambda model, layout, where, batch, seq: SimpleNamespace(
                fits=int(layout.partition('micro_batch=')[2]) <= (40 if 'zero=3' in layout else 10)
            ),
        )
        asked('by sharding', claims_page._batch_by_sharding)
        for fits in ({1}, set(range(1, 99)), {64}, {65}, set()):
            m.setattr(
                'fsdl_tools.compute.planner.estimate',
                lambda model, layout, where, batch, seq, f=fits: SimpleNamespace(
                    fits=int(layout.partition('micro_batch=')[2]) in f
                    and batch == 8 * int(layout.partition('micro_batch=')[2])
                ),
            )
            asked(f'largest {len(fits)} {max(fits, default=0)}', claims_page._largest_micro_batch, 3)
        m.setattr(
            'fsdl_tools.compute.validation.answers',
            lambda: [dict(what='x'), dict(what='BLOOM-176B', predicted=84.0, published=105.0)],
        )
        m.setattr(
            claims_page,
            'read_data',
            lambda name, text=(): [
                dict(population='of competitions', year=2024, pytorch=80),
                dict(population='of competitions', year=2025, pytorch=92),
                dict(population='jobs', year=2026, pytorch=50),
            ],
        )
        for f in (
            claims_page._share_beyond_the_list,
            claims_page._bloom_ratio,
            claims_page._pytorch_share,
            claims_page._active_gpus,
            claims_page._active_gpus_naive,
        ):
            asked(f.__name__, f)
        offers = [
            SimpleNamespace(tier=t, provider=p, date=d, instance=i, usd_per_hour=u)
            for t, p, d, i, u in (
                ('on-demand', 'AWS', '2022-05', 'p3.8xlarge', 12.0),
                ('on-demand', 'AWS', '2022-05', 'p4d.24xlarge', 32.0),
                ('spot', 'AWS', '2022', 'p3.8xlarge', 1.0),
                ('on-demand', 'GCP', '2022', 'p3.8xlarge', 2.0),
                ('on-demand', 'AWS', '2023', 'p3.8xlarge', 3.0),
            )
        ]
        m.setattr('fsdl_tools.compute.cost.prices', lambda since: offers)
        m.setattr('fsdl_tools.compute.measured.speedup', lambda *a: 4.0)
        m.setattr('fsdl_tools.compute.cost.experiments', lambda offers, task: offers)
        m.setattr(
            'fsdl_tools.compute.cost.upheld',
            lambda done: [dict(upheld=True), dict(upheld=False), dict(upheld=len(done) == 4), dict(upheld=False)],
        )
        for f in (claims_page._dearest_is_not_dearest, claims_page._v100_over_a100):
            asked(f.__name__, f)
        m.setattr(
            'fsdl_tools.parallel.ranks.on_ranks',
            lambda f, n, *a, **kw: [dict(bytes=50 if a[0] else 200)] if a else [(8, 2), (8, 3)],
        )
        for f in (claims_page._left_by_offload, claims_page._share_of_a_matrix):
            asked(f.__name__, f)
    source = (
        'def f(a):\n    """doc"""\n    return a + 1; x = 2\n\nasync def g():\n    def h(): pass\n    return h\n'
        + 'x' * 121
        + '\n'
        + 'y' * 120
        + '\n__all__ = ['
        + ' ' * 200
        + ']\n'
    )
    asked('sizes', measure.function_sizes, source)
    for n in (0, 1, 9, 10, 11, 20):
        asked(f'ninetieth {n}', measure._ninetieth, list(range(n, 0, -1)))
    (tmp_path / 'm').mkdir()
    (tmp_path / 'm/a.py').write_text(source)
    (tmp_path / 'm/_modidx.py').write_text('x')
    for p, skip in (('m', ('_modidx.py',)), ('m', ()), ('m/a.py', ()), ('m', ('a.py', '_modidx.py'))):
        asked(f'measured {p} {skip}', measure.measure_code, tmp_path / p, skip)
    titles = {'one/01_first': ('one/first', 'First <x>')}
    asked.of(
        lambda t: frame._linked_cells(t, titles, '../'),
        '<td>https://x.org/a</td><td>one/01_first</td><td>two/02_no</td>',
        '<td>see https://x</td>',
        '<td>one/01_first </td>',
    )
    same_answers(request, 'claims_and_data', asked)


def test_install(request, project, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    outputs = [
        'ERROR: No space left on device',
        'ProxyError x',
        'CERTIFICATE_VERIFY_FAILED',
        'NewConnectionError',
        "Permission denied: '/x'",
        "command 'gcc' failed",
        "command '/usr/bin/x86-g++' failed",
        'Python.h: No such file',
        'ERROR: other\nERROR: error: metadata-generation-failed',
        '',
        '\n \nlast\n',
        'ERROR: (from versions: 1.0, 2.0)\nERROR: No matching distribution found for Torch-X',
        'No matching distribution found for y',
        'The user requested (constraint) torch==2.0\nThe user requested (constraint) torch==1.0',
        'The user requested (constraint) a==1\n    b 2 depends on a>3',
        'The user requested (constraint) a==1\n    The user requested a>5',
        'The user requested (constraint) a==1',
        'error: x\nfine',
        'gcc: fatal\nno such file or directory: gcc',
        'ERROR: error: subprocess-exited-with-error\nmore',
        'Disk quota exceeded',
    ]
    for i, t in enumerate(outputs):
        asked(
            f'failure {i} {t[:30]!r}',
            lambda t=t: [
                pip.explain_failure(t, dict(HTTPS_PROXY='http://user:pw@proxy:1')),
                pip.misfit(t),
                pip.known_reason(t, dict(HTTPS_PROXY='http://user:pw@proxy:1')),
            ],
        )
    for env in (
        {},
        dict(https_proxy='http://p'),
        dict(HTTPS_PROXY='', ALL_PROXY='socks://a@b'),
        dict(PIP_PROXY='x', HTTPS_PROXY='y'),
    ):
        asked(f'proxy {env}', pip._proxy, env)
    where = tmp_path / 'site-packages'
    for name, record, metadata in (
        ('a-1.0', 'a.py,,3\nb.py,sha,2\nc.py,sha,\n', 'x'),
        ('b-2.0+cpu', 'b.py,sha,9\n', 'x'),
        ('c-1', None, 'x'),
        ('torch-2.1+cpu', 'b.py,sha,2', None),
        ('torchvision-0.1+cpu', '', 'x'),
        ('d-1', 'gone.py,sha,1\n', 'x'),
        ('pip-23.0', '', 'x'),
    ):
        (where / f'{name}.dist-info').mkdir(parents=True)
        if record is not None:
            (where / f'{name}.dist-info/RECORD').write_text(record)
        if metadata:
            (where / f'{name}.dist-info/METADATA').write_text(metadata)
    (where / 'b.py').write_text('xx')
    (where / '~old').mkdir()
    for thorough in (True, False):
        asked(f'damaged {thorough}', lambda t=thorough: [p.name for p in install.damaged(where, t)])
    asked('installed', install._installed, where)
    report = dict(
        install=[
            dict(metadata=dict(name='A_b', version='1'), download_info=dict(url='https://x')),
            dict(metadata=dict(name='torch', version='2+cpu'), download_info=dict(url='file:///y')),
        ]
    )
    asked('report', lambda: [pip.read_report(report), pip.read_report({}), pip._length('file:///x', None)])
    for error in (OSError('no'), ValueError('x'), None):

        class Answer(dict):
            "What a server says"

            headers = {'Content-Length': '12'}

            def __enter__(self):
                return self

            def __exit__(self, *a):
                pass

        def opened(*a, error=error, **kw):
            if error:
                raise error
            return Answer()

        monkeypatch.setattr(pip.urllib.request, 'urlopen', opened)
        asked(f'length {error!r}', pip._length, 'https://x/y', None)
    wheels = [pip.Wheel(n, '1', 'u') for n in ('torch', 'nvidia-x', 'triton', 'numpy', 'cuda-y')]
    monkeypatch.setattr(pip, '_length', lambda url, context: 5)
    asked('sizes', pip.download_sizes, wheels[:2])
    for sizes in (
        dict.fromkeys('ab', 0),
        dict(torch=10**8, numpy=None),
        {w.name: 10**7 * (i + 1) for i, w in enumerate(wheels)},
        {w.name: None for w in wheels},
    ):
        asked(f'announced {sizes}', lambda s=sizes: pip.announce_download([w for w in wheels if w.name in s], s))
    for said_ in ("global.index-url='g'\n:env:.index-url='e'\nuser.cert='c'\nbad", ":env:.x='1'\nglobal.x='2'"):
        monkeypatch.setattr(pip.subprocess, 'run', lambda *a, said_=said_, **kw: SimpleNamespace(stdout=said_))
        asked(f'settings {said_}', pip.pip_settings, 'python')
    for without, keep in itertools.product(((), ('numpy',)), (None, dict(torch='2.2+cpu'))):
        asked(f'constraints {without} {keep}', pins.constraints, LOCK, without, keep)
    asked('pins', lambda: [pins.pins(LOCK), pins.pin_lines(LOCK)])
    for retries in ('0', '3', None):
        monkeypatch.setattr(
            install.os,
            'environ',
            dict(PYTHONPATH='x', PYTHONHOME='y', A='b') | (dict(PIP_RETRIES=retries) if retries else {}),
        )
        asked(f'environ {retries}', install._pip_environ)
    monkeypatch.undo()
    for extras in ((), ('train',), ('all',), ('all', 'dev'), ('trian',), ('lab', 'plot')):
        asked(f'asked {extras}', install._asked_for, project, extras)
    told = []

    class Env(SimpleNamespace):
        "An environment"

        root, folder, site, python = project, tmp_path / 'venv', where, 'python'

        def say(self, line):
            told.append(line)

        def pip(self, *args, **kw):
            told.append([str(a).replace(str(tmp_path), '') for a in args])
            if self.fails:
                raise self.fails.pop(0)

    Env.folder.mkdir()
    env = Env(fails=[])
    asked('kept torch', install._kept_torch, env)
    for fails in ([], [pip.PipError("invalid choice: 'fast-deps'")], [pip.PipError('other')]):
        asked(
            f'fast {len(fails)} {fails and fails[0].text}',
            lambda f=fails: [answer(install._try_fast, Env(fails=f), ['x']), told.copy(), told.clear()],
        )
    (Env.folder / '.fsdl-report.json').write_text(json.dumps(report))
    asked(
        'resolves',
        lambda: [
            install._resolve(env, ['a', 'b'], 'limits'),
            (Env.folder / '.fsdl-asked.txt').read_text(),
            (Env.folder / '.fsdl-limits.txt').read_text(),
            told.copy(),
            told.clear(),
        ],
    )
    clash = lambda name: pip.PipError(f'The user requested (constraint) {name}==9\n')
    for i, fails in enumerate(
        (
            [],
            [clash('numpy')],
            [clash('torch')],
            [clash('nvidia-x'), clash('nvidia-x')],
            [clash('unknown')],
            [pip.PipError('No space left on device')],
            [clash('numpy'), clash('pillow')],
            [clash('torch'), clash('torch')],
        )
    ):
        for kept in ({}, dict(torch='2.1+cpu')):
            monkeypatch.setattr(install, '_kept_torch', lambda env, kept=kept: dict(kept))
            asked(
                f'plan {i} {kept}',
                lambda f=fails: [
                    answer(install.plan_install, Env(fails=list(f)), ['train']),
                    [t for t in told if isinstance(t, str)],
                    len(told),
                    told.clear(),
                ],
            )
    asked('no lock', lambda: [install._tested_versions(Env(root=tmp_path)), told.copy(), told.clear()])
    asked(
        'todo',
        lambda: [
            install._todo(env, ['dev', 'train']),
            (Env.folder / '.fsdl-dev').write_text(install._stamp(project)),
            (Env.folder / '.fsdl-train').write_text('old'),
            install._todo(env, ['dev', 'train']),
            len(install._stamp(project)),
        ],
    )
    for have in (
        dict(pip='24.1', setuptools='77.0'),
        dict(pip='23', setuptools='80'),
        dict(pip='25', setuptools='76.9'),
        {},
    ):
        monkeypatch.setattr(install, '_installed', lambda where, have=have: have)
        asked(f'bootstrap {have}', lambda: [install._bootstrap(env), told.copy(), told.clear()])
    monkeypatch.setattr(install, '_announce', lambda env, wheels: told.append(f'announces {len(wheels)}'))
    for wheels_ in ([], wheels[:2]):
        monkeypatch.setattr(install, 'plan_install', lambda env, extras, w=wheels_: w)
        asked(f'installs {len(wheels_)}', lambda: [install._install(env, ['x']), told.copy(), told.clear()])
    for damaged in ([], ['a']):
        monkeypatch.setattr(install, 'repair', lambda site, thorough, d=damaged: told.append(thorough) or d)
        for unfinished in (True, False):
            if unfinished:
                (Env.folder / '.fsdl-unfinished').touch()
            asked(
                f'brings {damaged} {unfinished}',
                lambda: [
                    install._bring(env, ['dev', 'plot']),
                    [t for t in told if not isinstance(t, list)],
                    told.clear(),
                    sorted(p.name for p in Env.folder.iterdir()),
                    (Env.folder / '.fsdl-plot').read_text() == install._stamp(project),
                ],
            )
    monkeypatch.undo()
    asked('repair', lambda: [install.repair(where), sorted(p.name for p in where.iterdir())])
    real = install.Env(project, told.append)
    asked('no site', lambda: [real.site, real.problem(), real.folder.name])
    (project / '.venv').mkdir()
    asked('half-made', real.problem)
    for line, codes in (
        ('x', [0, 0]),
        ('x', [1]),
        ('command = python -m venv /other/place', [0, 0]),
        (f'command = python -m venv {project}/.venv', [0, 1]),
        (f'command = python -m venv {project}/.venv', [0, 0]),
    ):
        (project / '.venv/pyvenv.cfg').write_text(line)
        left = list(codes)
        monkeypatch.setattr(install.Env, '_run', lambda self, *a, left=left: SimpleNamespace(returncode=left.pop(0)))
        asked(f'problem {line[:20]} {codes} {len(asked)}', lambda: real.problem())
    for problem in (None, 'is not there', 'was left half-made'):
        for rc in (0, 1):
            monkeypatch.setattr(install.Env, 'problem', lambda self, p=problem: p)
            monkeypatch.setattr(
                install.subprocess,
                'run',
                lambda *a, rc=rc, **kw: SimpleNamespace(returncode=rc, stdout='', stderr='Disk quota exceeded'),
            )
            asked(
                f'make {problem} {rc}',
                lambda: [
                    answer(real.make),
                    [re.sub(r'Python .*', 'Python', t) for t in told if isinstance(t, str)],
                    told.clear(),
                ],
            )
    lines = ['Collecting a\n', 'noise\n', 'Requirement already x\n', 'Processing y\n'] * 20
    for progress in ('', 'packages'):
        asked(f'counted {progress}', lambda p=progress: [len(list(real._counted(lines, p))), told.copy(), told.clear()])
    for writable, problem, todo in itertools.product((True, False), (None, 'is not there'), ([], ['dev'])):
        monkeypatch.setattr(install.os, 'access', lambda p, how, w=writable: w)
        monkeypatch.setattr(install.Env, 'problem', lambda self, p=problem: p)
        monkeypatch.setattr(install.Env, 'make', lambda self: told.append('make'))
        monkeypatch.setattr(install, '_todo', lambda env, extras, t=todo: t)
        monkeypatch.setattr(install, '_bring', lambda env, extras: told.append(extras))
        asked(
            f'set up {writable} {problem} {todo}',
            lambda: [answer(install.set_up, ['dev'], project, told.append), told.copy(), told.clear()],
        )
    monkeypatch.undo()
    for n in (0, 1, 2):
        monkeypatch.setattr(install, 'missing_imports', lambda root, n=n: ['first', 'second'][:n])
        asked(f'ready {n}', install.ready, project)
    same_answers(request, 'install', asked)


class Plan(SimpleNamespace):
    "An estimate that is made up"

    why, price, price_date, step_low, step_high, family, parameters, seq = (
        '',
        3.0,
        '2026-01-01',
        None,
        None,
        '',
        1e9,
        1024,
    )

    def __str__(self):
        return f'plan {self.layout}'

    def days(self, n):
        return n * self.step_time / 86400 / 1e6

    def cost(self, n):
        return self.days(n) * 24 * self.price

    def cost_between(self, n):
        return 0.5 * self.cost(n), 2 * self.cost(n)


def test_guide(request, tmp_path, monkeypatch):
    from fsdl_tools.parallel.layout import Layout

    asked = Asked(tmp_path)
    gpu = SimpleNamespace(name='G', usable=2**35, link_bandwidth=1e9)
    sizes = dict(max_seq=4096)
    monkeypatch.setattr(guide, 'find', lambda g: gpu)
    monkeypatch.setattr(guide, 'refused', lambda g, precision: 'it cannot' if precision == 'fp8' else '')
    monkeypatch.setattr(guide, 'market', lambda: dict(G=(2.5, '2026-01-01')))
    monkeypatch.setattr(
        guide, 'Cluster', lambda g, n, gpu_hour=None: SimpleNamespace(n=n, nodes=-(-n // 8), price=gpu_hour)
    )
    monkeypatch.setattr(guide, 'told_apart', lambda family: 0.05)
    monkeypatch.setattr(guide, 'Guide', lambda *a: SimpleNamespace(advice=a[3], plan=a[4], steps=a[5]))
    monkeypatch.setattr('fsdl_tools.book.data.said_of_age', lambda what, day: f'{what} {day}')

    def plan(n, room, **kw):
        "A plan whose speed follows from its layout"
        layout = Layout(
            **dict(
                dict(
                    dp=n, micro_batch=1, precision='bf16', framework='pytorch', zero=0, recompute='none', offload='none'
                ),
                **kw,
            )
        )
        return Plan(
            layout=layout,
            fits=True,
            gpus=n,
            gpu='G',
            device=2**33,
            margin=2**30 * (1 + layout.zero),
            step_time=8
            / n
            * (1.2 if layout.offload != 'none' else 1)
            * (1 - 0.1 * (layout.tp > 1) - room * layout.zero),
            first=dict(weights=2**30, communication=2**20),
            seconds=dict(data_comm=0.1 if n > 1 else 0),
        )

    def world(fit_one, needs_gpus, needs_zero, cut, room, unknown=False):
        "Which plans fit: one GPU takes so many samples; so many GPUs are needed; with a stage of ZeRO; a cut is better"

        def alone(model, layout, where, batch, seq=None):
            e = plan(1, room, micro_batch=layout.micro_batch, recompute=layout.recompute)
            e.fits = batch <= fit_one * (2 if layout.recompute == 'full' else 1)
            e.why = '' if e.fits else 'memory'
            return e

        def search(model, where, batch, seq, offload='none', zero=None, tp=None, precision=None, framework=None, **kw):
            stages = zero if zero is not None else [0, 1, 2, 3]
            good = [z for z in stages if z >= needs_zero or where.n == 1]
            if where.n < needs_gpus and offload == 'none' or not good or where.n == 1 and not fit_one:
                raise ValueError('M does not fit on this')
            if unknown:
                raise ValueError('no rate is known')
            more = dict(tp=2, dp=max(where.n // 2, 1)) if cut and tp is None and where.n > 1 else {}
            best = plan(where.n, room, zero=good[-1] if zero is None else good[0], offload=offload, **more)
            return SimpleNamespace(best=best, fastest=best)

        monkeypatch.setattr(guide, 'estimate', alone)
        monkeypatch.setattr(guide, 'search', search)

    worlds = dict(
        large=(512, 1, 0, False, 0.0),
        one=(4, 1, 0, False, 0.1),
        sharing=(4, 1, 0, False, 0.01),
        zero=(0, 1, 2, False, 0.0),
        cut=(4, 1, 0, True, 0.0),
        more=(0, 16, 3, True, 0.0),
        never=(0, 10**6, 3, False, 0.0),
        unknown=(4, 1, 0, False, 0.0, True),
        again=(1, 1, 1, False, 0.0),
    )
    walks = [
        dict(),
        dict(tokens='1B'),
        dict(tokens='1B', within='1h'),
        dict(tokens='1B', within='30d'),
        dict(gpus=1),
        dict(gpus=1, tokens='1B', within='1h'),
        dict(seen_by='team', price=4.0),
        dict(batch=8, seq=128),
        dict(gpus=16, batch=32),
        dict(within='3d'),
    ]
    for kind, kw in itertools.product(('text', 'images'), walks):
        monkeypatch.setattr(guide, 'model_columns', lambda m, kind=kind: ('M', sizes if kind == 'text' else None, None))
        for name, how in worlds.items():
            if kind == 'images' and name not in ('large', 'one', 'zero', 'never'):
                continue
            world(*how)

            def walked(kw=kw):
                g = guide.guide('m', 'g', **kw)
                return [g.advice, [[s.name, s.outcome, s.answer, s.figure, s.unit, s.how, s.page] for s in g.steps]]

            found = answer(lambda: said(walked()))
            asked(
                f'{kind} {name} {kw}',
                lambda f=found: (
                    f
                    if isinstance(f, str)
                    else [
                        f[0],
                        [s if len(walks) > 99 or kw in walks[:3] + walks[4:6] else s[:2] + [s[3]] for s in f[1]],
                    ]
                ),
            )
    for kw in (
        dict(seen_by='you'),
        dict(precision='fp8'),
        dict(precision='bf17'),
        dict(batch=9),
        dict(gpus=0),
        dict(batch=-8),
        dict(tokens='-1'),
        dict(tokens='x'),
        dict(within='0s'),
        dict(price='x'),
        dict(seq=0),
    ):
        asked(f'bad {kw}', lambda kw=kw: guide.guide('m', 'g', **kw))
    for seq, s in itertools.product((None, 7), (None, dict(max_seq=4096), dict(max_seq=None), dict(max_seq=10**5))):
        asked(f'length {seq} {s}', guide._length, seq, s)
    gpu.link_bandwidth = None
    world(0, 16, 3, False, 0.0)
    monkeypatch.setattr(guide, 'model_columns', lambda m: ('M', sizes, None))
    asked('no link', lambda: [s.answer for s in guide.guide('m', 'g').steps])
    world(4, 1, 0, False, 0.0)
    asked('no link and late', lambda: [s.answer for s in guide.guide('m', 'g', tokens='1B', within='1s').steps][-2:])
    gpu.link_bandwidth = 1e9
    asked(
        'late',
        lambda: [
            [s.answer for s in guide.guide('m', 'g', tokens='1B', within=w, batch=b).steps][-2]
            for w in ('1s', '400s', '100s', '1000s')
            for b in (8, 512, 4096)
        ],
    )
    monkeypatch.setattr(
        guide,
        'nearest_runs',
        lambda *a, **kw: (
            [
                dict(gpus=8, seq=1024, distance=d, measured=m, model=n, run='r', layout='l')
                for d, m, n in ((1.4, 5.0, 'near'), (1.5, 1.0, 'far'), (1.0, 7.0, ''))
            ]
            + [dict(gpus=4, seq=1024, distance=1, measured=0.1, model='x', run='r', layout='l')]
        ),
    )
    for family, high in itertools.product(('', 'f'), (None, 4.0, 5.0, 9.0)):
        asked(
            f'published {family} {high}',
            lambda f=family, h=high: [
                len(guide._published(p := Plan(layout='l', gpus=8, gpu='G', family=f, step_high=h))),
                guide._unlike(p),
            ],
        )
    for n, below in ((2, 17), (1, 2), (3, 3), (8, 10**5)):
        asked(f'doubled {n} {below}', guide._doubled, n, below)
    case = SimpleNamespace(
        tokens=1e9,
        within=None,
        price=2.0,
        price_date='',
        batch=64,
        gpus=8,
        gpu=gpu,
        sizes=sizes,
        name='M',
        seq=8,
        spec='spec',
        precision='bf16',
        framework='pytorch',
    )
    for tokens, date, low in itertools.product((None, 1e9), ('', '2026'), (None, 1.0)):
        asked(
            f'bill {tokens} {date} {low}',
            lambda t=tokens, d=date, low=low: guide._said_of_bill(
                SimpleNamespace(**vars(case) | dict(tokens=t, price_date=d)), Plan(step_time=2.0, step_low=low)
            ),
        )
    for time in (1e-3, 1.0, 100.0):
        asked(
            f'duration {time}',
            lambda t=time: [
                guide._duration(case, Plan(step_time=t)),
                guide._duration(SimpleNamespace(tokens=None), Plan(step_time=t)),
            ],
        )
    for machines in (1, 2, 1000):
        asked(f'place {machines}', guide._place, machines)
    for now, before, again in itertools.product((1, 4, 8), (4,), ('none', 'full')):
        asked(
            f'room {now} {again}',
            lambda n=now, b=before, a=again: guide._said_of_room(
                Plan(layout=SimpleNamespace(micro_batch=b, recompute='none')),
                Plan(layout=SimpleNamespace(micro_batch=n, recompute=a), first=dict(communication=2**20)),
            ),
        )
    for layout in (
        Layout(dp=1),
        Layout(dp=2),
        Layout(dp=2, zero=1),
        Layout(dp=2, zero=3, tp=2),
        Layout(dp=2, tp=2, pp=2),
        Layout(pp=2, recompute='full'),
        Layout(offload='optimizer', dp=2),
    ):
        asked(f'advice {layout}', guide._advice, Plan(layout=layout))
    asked('nothing', guide._advice, None)
    asked(
        'step',
        lambda: [
            guide._said_of_step(
                2, guide.Step('n', 'q?', 'costs $5', 1.0, 'u', 'h', 'parallel/03_ddp_x', 'yes', ''), '..'
            ),
            guide._microseconds('mlflow') > 0,
        ],
    )
    asked(
        'layouts',
        lambda: (
            [str(x) for x in guide._layouts_of_images(case, 4, 'none', (0, 2))]
            + [
                str(x)
                for x in guide._layouts_of_images(SimpleNamespace(**vars(case) | dict(batch=2)), 1, 'optimizer', (0, 2))
            ]
        ),
    )
    same_answers(request, 'guide', asked)


def test_newcomer(request, project, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for versions in (
        {},
        dict(a=(3, 11, 2), b=(3, 12, 0), c=(3, 10, 9), d=None),
        dict(a=None),
        dict(b=(3, 11, 2), a=(3, 11, 2)),
    ):
        monkeypatch.setattr(newcomer, '_interpreters', lambda minimum, v=versions: list(v))
        monkeypatch.setattr(newcomer, '_version', lambda python, v=versions: v.get(python))
        asked(f'oldest {versions}', newcomer.oldest_python, '3.11')
        asked(f'key {versions}', lambda: len(newcomer.newcomer_key(project, 'a')))
    monkeypatch.undo()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(
        newcomer.shutil,
        'which',
        lambda name, path: f'{path}/{name}' if name in ('python3.11', 'python3.12', 'python3') else None,
    )
    monkeypatch.setenv('PATH', '/a:/x/.venv/bin')
    asked('interpreters', lambda: sorted(newcomer._interpreters('3.11')) + [len(newcomer._interpreters('3.12'))])
    asked.of(newcomer._numbers, '3.11', '3.12.1')
    for rc, out in ((0, '3 11 2'), (1, '')):
        monkeypatch.setattr(
            newcomer.subprocess,
            'run',
            lambda *a, rc=rc, out=out, **kw: SimpleNamespace(returncode=rc, stdout=out, stderr=b'bad'),
        )
        asked(
            f'version {rc}',
            lambda: [newcomer._version('x'), answer(newcomer._must, ['a', 'b'])],
        )
    monkeypatch.undo()
    for cache in (tmp_path / 'cache', tmp_path / '.cache'):
        monkeypatch.setenv('XDG_CACHE_HOME', str(cache))
        asked(f'folder {cache.name}', lambda: newcomer._visible_folder() == newcomer.check_cache())
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(
        newcomer.os,
        'environ',
        {
            k: 'v'
            for k in ('PIP_X', 'UV_Y', 'https_proxy', 'LANG', 'SSL_CERT_FILE', 'PYTHONPATH', 'HOME', 'PIP', 'LANGUAGE')
        },
    )
    asked('variables', lambda: sorted(newcomer._newcomers_variables('p')))
    monkeypatch.undo()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

    def filled(name):
        folder = tmp_path / name / 'project'
        for f in ('.venv/x', 'a/b', 'c'):
            (folder / f).parent.mkdir(parents=True, exist_ok=True)
            (folder / f).write_text('')
        (folder / 'link').symlink_to(tmp_path)
        (tmp_path / name / 'clone').mkdir()
        return folder

    for keep in ((), ('.venv',)):
        asked(
            f'empty {keep}',
            lambda k=keep: [
                newcomer._empty(f := filled(f'e{len(k)}'), k),
                sorted(p.name for p in f.iterdir()),
                (f.parent / 'clone').exists(),
            ],
        )
    places = tmp_path / 'newcomer'
    for name, days in (('current', 99), ('old', 15), ('young', 13), ('used', 99)):
        filled(f'newcomer/{name}')
        os.utime(places / name, (newcomer.time.time() - days * 86400,) * 2)
    monkeypatch.setattr(newcomer, '_in_use', lambda path: path.parent.name == 'used')
    asked(
        'sweep',
        lambda: [
            newcomer._sweep(places, places / 'current'),
            sorted(p.name for p in places.iterdir()),
            sorted(p.name for p in (places / 'young/project').iterdir()),
        ],
    )
    monkeypatch.undo()
    asked('in use', lambda: newcomer._in_use(tmp_path / 'lock'))
    with newcomer._alone(tmp_path / 'lock'):
        asked('in use now', lambda: newcomer._in_use(tmp_path / 'lock'))
    killed = []
    monkeypatch.setattr(newcomer.os, 'killpg', lambda pid, how: killed.append(int(how)))
    for inside in (True, False):
        (tmp_path / 'pid').write_text('77')
        monkeypatch.setattr(newcomer.os, 'readlink', lambda p, i=inside: str(tmp_path / 'x') if i else '/other')
        asked(
            f'orphan {inside}',
            lambda: [newcomer._end_orphan(tmp_path), killed.copy(), killed.clear(), (tmp_path / 'pid').exists()],
        )
    asked('no orphan', newcomer._end_orphan, tmp_path)
    for late, rc in itertools.product((True, False), (0, 2)):
        proc = SimpleNamespace(pid=5, returncode=rc, wait=lambda seconds=None: None)
        monkeypatch.setattr(
            newcomer, 'start_group', lambda command, folder, out, env: out.write('line\n' * 50) and proc
        )
        monkeypatch.setattr(newcomer, '_is_late', lambda proc, note, timeout, late=late: late)
        asked(f'builds {late} {rc}', newcomer._build_as_newcomer, project, tmp_path / 'log', 'py', 3.0)
    monkeypatch.undo()
    monkeypatch.setattr(newcomer.os, 'killpg', lambda pid, how: killed.append(int(how)))
    for late in (True, False):

        def wait(seconds=None, late=late):
            if late and seconds == 9:
                raise newcomer.subprocess.TimeoutExpired('x', 9)

        asked(
            f'late {late}',
            lambda: [
                newcomer._is_late(SimpleNamespace(pid=5, wait=wait), tmp_path / 'note', 9),
                killed.copy(),
                killed.clear(),
                (tmp_path / 'note').exists(),
            ],
        )
    (project / '_docs').mkdir()
    for log, index, after in (
        ('Traceback', True, b''),
        ('fine', False, b''),
        ('fine', True, b''),
        ('fine', True, b' M x\n'),
    ):
        (project / '_docs/index.html').unlink(missing_ok=True)
        if index:
            (project / '_docs/index.html').write_text('')
        monkeypatch.setattr(newcomer, '_must', lambda *a, after=after, **kw: after)
        asked(f'looks {log} {index} {after}', newcomer._look_at, project, log)
    same_answers(request, 'newcomer', asked)


def test_stages(request, project, tmp_path, monkeypatch):
    asked, told = Asked(tmp_path), []
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(stages, '_say', told.append)

    def ask(question, function, *args, **kw):
        asked(question, lambda: [answer(lambda: said(function(*args, **kw))), told.copy(), told.clear()])

    for rows in ([], [dict(problem='p', found=[], cure='c')], [dict(problem='p', found=['x', 'y'], cure='c')]):
        monkeypatch.setattr(stages, 'source_problems', lambda root, rows=rows: rows)
        ask(f'sources {len(rows)} {rows and rows[0]["found"]}', stages._check_sources, project)
    for dead in ([], [dict(page='p', link='l', problem='q')]):
        monkeypatch.setattr(newcomer, 'dead_links', lambda site, dead=dead: dead)
        monkeypatch.setattr(stages, 'build_site', lambda root: project)
        ask(f'site {len(dead)}', stages._check_site, project)
    row = lambda n, ok=True, s=1.26: dict(notebook=n, ok=ok, seconds=s, output='out')
    for first, second in (
        ([row('a'), row('b')], []),
        ([row('a'), row('b', False)], [row('b')]),
        ([row('a', False)], [row('a', False)]),
        ([row(str(i), False) for i in range(4)], []),
        ([row(str(i), False) for i in range(3)], [row(str(i)) for i in range(3)]),
        ([row(str(i), True, i) for i in range(12)], []),
    ):
        runs = [first, second]
        monkeypatch.setattr(
            stages,
            'run_notebooks',
            lambda root, names, timeout, runs=runs, **kw: (
                told.append([names, timeout, kw.get('workers'), kw['flags']]) or runs.pop(0)
            ),
        )
        ask(
            f'notebooks {len(first)} {len(second)} {sum(r["ok"] for r in second)}',
            stages._check_notebooks,
            project,
            None,
            'slow',
            60,
        )
        asked(f'state {len(asked)}', lambda: stages._state['notebooks'])
    for ok in (True, False):
        monkeypatch.setattr(stages, 'run_in_kernel', lambda root, name, timeout, ok=ok: row(name, ok))
        ask(f'kernels {ok}', stages._check_kernels, project, ['a', 'b'])
    monkeypatch.undo()
    monkeypatch.setattr(stages, '_say', told.append)
    for out in ('', 'a\nb\n'):
        monkeypatch.setattr(stages.subprocess, 'run', lambda *a, out=out, **kw: SimpleNamespace(stdout=out))
        ask(f'lines of git {out}', stages._lines_of_git, '.', 'x')
    monkeypatch.undo()
    monkeypatch.setattr(stages, '_say', told.append)
    tests = dict(
        a='def test_a(side): side("horovod")\n@pytest.mark.slow\ndef test_b(side): side("ray")',
        b='pytestmark = pytest.mark.slow\ndef test_c(side): side("ray")',
        c='x = "horovod"',
        d='from x import environments\ny = "ray"',
        e='pytestmark = [pytest.mark.alone]\ndef test(side): "horovod"',
    )
    for name, source in tests.items():
        (project / f'tests/test_{name}.py').write_text(source)
        for slow in (True, False):
            ask(f'tests {name} {slow}', stages._text_of_tests, project / f'tests/test_{name}.py', slow)
    monkeypatch.setattr(stages, 'read_data', lambda name: [dict(name=n) for n in ('horovod', 'ray', 'other')])
    for slow in (True, False):
        ask(f'needed {slow}', stages._needed_environments, project, slow)
    for had, lacks, fails in itertools.product(
        (True, False), ([], ['x', 'y'], [['x'], []]), (None, RuntimeError('no'), TimeoutError('late'))
    ):
        left = [list(v) for v in lacks] if lacks and isinstance(lacks[0], list) else None
        monkeypatch.setattr(stages, 'side_env', lambda name: SimpleNamespace(programs='p q', apt='r'))
        monkeypatch.setattr(stages, 'built', lambda name, had=had: had)
        monkeypatch.setattr(
            stages,
            'missing_programs',
            lambda env, lacks=lacks, left=left: left.pop(0) if left else [] if left is not None else lacks,
        )
        monkeypatch.setattr(stages, '_apt_install', lambda packages: told.append(packages))

        def build(env, fails=fails):
            if fails:
                raise fails

        monkeypatch.setattr(stages, 'build_env', build)
        ask(f'environment {had} {lacks} {fails!r}', stages._side_environment, 'n')
    for failed in (0, 1):
        monkeypatch.setattr(stages, '_run_through', lambda command, folder, f=failed: (f, [str(i) for i in range(3)]))
        ask(f'apart {failed}', stages._sides_apart, project, True)
    monkeypatch.undo()
    monkeypatch.setattr(stages, '_say', told.append)
    for there, uid in itertools.product((None, 'apt'), (0, 5)):
        monkeypatch.setattr(stages.shutil, 'which', lambda n, there=there: there)
        monkeypatch.setattr(stages.os, 'geteuid', lambda uid=uid: uid)
        monkeypatch.setattr(stages.subprocess, 'run', lambda c, **kw: told.append(c))
        ask(f'apt {there} {uid}', stages._apt_install, ['a', 'b'])
    monkeypatch.undo()
    monkeypatch.setattr(stages, '_say', told.append)
    for base in (['abc'], ['']):
        monkeypatch.setattr(
            stages,
            '_lines_of_git',
            lambda root, *args, base=base: (
                told.append(list(args))
                or (
                    base
                    if args[0] == 'merge-base'
                    else ['course', 'gone', '']
                    if args[0] == 'diff'
                    else ['settings.ini']
                )
            ),
        )
        ask(f'changed {base}', stages.changed, project)
    (project / 'tests/test_y.py').write_text('from fsdl_tools.one import first, second\n')
    for paths in (
        ['nbs/one/01_first.ipynb'],
        ['nbs/index.ipynb', 'x'],
        ['tests/a/test_q.py', 'tests/conftest.py', 'small/test_z.py'],
        [],
    ):
        ask(f'tests of {paths}', stages.tests_of, project, paths)
    for text_, module in (
        ('import fsdl_tools.one.first', 'one.first'),
        ('from fsdl_tools.one import second, first', 'one.first'),
        ('from fsdl_tools.one import firsts', 'one.first'),
        ('from fsdl_tools import core', 'core'),
        ('fsdl_tools.one.firsty', 'one.first'),
        ('', 'core'),
    ):
        ask(f'speaks {text_} {module}', stages._speaks_of, text_, module)
    ask('among', stages._notebooks_among, ['nbs/a/b.ipynb', 'nbs/x.txt', 'c.ipynb'])
    for slow in (True, False):
        for stage in (
            '_check_sources',
            '_check_site',
            '_check_notebooks',
            '_check_kernels',
            'newcomer',
            '_sides_apart',
        ):
            monkeypatch.setattr(stages, stage, lambda *a, stage=stage, **kw: f'{stage} {a[1:]} {kw}')
        monkeypatch.setattr(stages, '_sample', lambda root, n, seed: [n, seed])
        monkeypatch.setitem(stages._state, 'stages', [])

        def ran(slow=slow):
            stages.run_stages(project, slow, True, 3)
            return sorted([s['stage'], s['note']] for s in stages._state['stages'])

        asked(f'stages {slow}', ran)
        told.clear()
    for names_ in ([], ['nbs/a.ipynb']):
        monkeypatch.setattr(stages, 'changed', lambda root, n=names_: n)
        monkeypatch.setattr(stages, 'tests_of', lambda root, paths: ['t', len(paths)])
        ask(
            f'quick {names_}',
            lambda: [stages._run_quick(project), [re.sub(r'\(.*\)', '', line) for line in told], told.clear()],
        )
    ask(
        'failed futures',
        lambda: [
            stages._raise_if_failed([SimpleNamespace(done=lambda: d, result=lambda: told.append('result'))])
            for d in (True, False)
        ],
    )
    monkeypatch.undo()
    monkeypatch.setattr(stages, '_say', told.append)
    monkeypatch.setattr(
        stages, 'recorded_seconds', lambda: dict(notebooks={'one/01_first.ipynb': 60, 'one/02_second.ipynb': 59})
    )
    for n, seed in ((None, 0), (1, 0), (2, 5), (1, 3)):
        ask(f'sample {n} {seed}', stages._sample, project, n, seed)

    def options(args):
        given, seed, rest = stages._options(args)
        return [sorted(given), seed if args != ['--seed=any'] else seed < 10**6, rest]

    for args in (
        [],
        ['--quick', 'tests/x'],
        ['--seed', '5', '-k', 'a'],
        ['--seed=7', '--slow'],
        ['--seed', 'x'],
        ['--seed'],
        ['--seed=any'],
        ['--uncached', '--seedy=1'],
    ):
        ask(f'options {args}', options, args)
    ran = []
    monkeypatch.setattr(
        stages.os, 'execve', lambda program, command, env: ran.append([command[1:], 'FSDL_CHECK' in env])
    )
    for rest, given in (([], set()), (['tests/test_x.py::t', '-k'], {'--quick'}), (['none'], {'--slow', '--uncached'})):
        ask(
            f'pytest {rest} {sorted(given)}',
            lambda r=rest, g=given: [stages._pytest(project, ['tests'], g, 3, r), ran.copy(), ran.clear()],
        )
    monkeypatch.setattr(stages, '_run_quick', lambda root: [])
    monkeypatch.setattr(stages, 'run_stages', lambda *a: told.append(list(a[1:])))
    for given, ci in itertools.product((['--quick'], ['--slow'], ['--uncached'], []), ('true', 'x')):
        monkeypatch.setenv('CI', ci)
        ask(f'before {given} {ci}', stages._before_pytest, project, set(given), 4)
    asked(
        'error',
        lambda: [
            str(stages.CheckFailed('p', ['a', 'b'], 'c')),
            stages._slowest([row(str(i), True, i / 3) for i in range(11)]),
            stages._once_more('.', [], '', 1),
        ],
    )
    same_answers(request, 'stages', asked)


def test_running_notebooks(request, project, tmp_path, monkeypatch):
    asked, killed, told = Asked(tmp_path), [], []
    monkeypatch.setattr(checks.os, 'killpg', lambda pid, how: killed.append([pid, int(how)]))
    for ended, status, age in itertools.product((0, 7), (0, 256), (1.0, 10.0, 11.0)):
        (tmp_path / 'log').write_text('said')
        monkeypatch.setattr(checks.time, 'monotonic', lambda age=age: 100.0 + age)
        monkeypatch.setattr(
            checks.os, 'wait4', lambda pid, how, e=ended, s=status: (e, s, SimpleNamespace(ru_utime=1.0, ru_stime=0.5))
        )
        monkeypatch.setattr('builtins.print', lambda text, **kw: told.append(json.loads(text)))
        running = {7: dict(notebook='n', started=100.0, log=tmp_path / 'log')}
        asked(
            f'looks after {ended} {status} {age}',
            lambda: [
                checks._look_after(7, running, 10.0),
                list(running),
                told.copy(),
                told.clear(),
                killed.copy(),
                killed.clear(),
            ],
        )
    monkeypatch.undo()

    class Process(SimpleNamespace):
        "A process that says lines"

        def wait(self, *a):
            pass

    for lines, n in (
        (['{"ok": true, "notebook": "a", "seconds": 1.0}\n'], 1),
        ([], 1),
        (['{"ok": false, "notebook": "b", "seconds": 2.0}\n'] * 2, 2),
    ):
        closed, sent, reports = [], [], []
        monkeypatch.setattr(
            checks.subprocess,
            'Popen',
            lambda *a, lines=lines, **kw: Process(
                stdin=SimpleNamespace(write=sent.append, flush=lambda: None, close=lambda: closed.append(1)),
                stdout=iter(lines),
            ),
        )
        asked(
            f'results {len(lines)} {n}',
            lambda: [
                answer(checks._results, dict(root='.', names=['x'] * n), reports.append),
                closed,
                reports,
                len(sent),
            ],
        )
    monkeypatch.undo()
    forked = []

    def fork(job, name):
        forked.append(name)
        return len(forked), dict(notebook=name)

    for workers, gone in ((1, False), (2, False), (2, True)):
        forked.clear()
        most = []
        with monkeypatch.context() as m:
            m.setattr(checks.signal, 'signal', lambda *a: None)
            m.setattr(
                checks.os,
                'read',
                lambda fd, n: json.dumps(
                    dict(root=str(tmp_path), warm=[], names=['a', 'b', 'c'], workers=workers, timeout=5)
                ).encode(),
            )
            m.setattr(checks.os, 'chdir', lambda p: None)
            m.setattr(checks, '_import_warm', lambda names: None)
            m.setattr(checks, '_fork', fork)
            m.setattr(checks.select, 'select', lambda *a, gone=gone: [[0] if gone else [], [], []])
            m.setattr(
                checks, '_look_after', lambda pid, running, timeout: most.append(len(running)) or running.pop(pid)
            )
            m.setattr(checks, '_kill_group', lambda pid: killed.append(pid))
            asked(f'mother {workers} {gone}', lambda: [checks._mother(), forked, most, killed.copy(), killed.clear()])
    with monkeypatch.context() as m:
        m.setattr(checks.os, 'fork', lambda: 5)
        (tmp_path / 'folder').mkdir()
        asked(
            'fork',
            lambda: [
                (made := checks._fork(dict(folder=str(tmp_path / 'folder'), root=str(project)), 'index.ipynb'))[0],
                made[1]['notebook'],
                made[1]['log'].suffix,
            ],
        )
    asked('group', lambda: checks._kill_group(2**22 + 5))
    with monkeypatch.context() as m:
        imported = []
        m.setattr('fsdl_tools.core.fix_torchvision', lambda: imported.append('fixed'))
        m.setattr(checks.importlib.util, 'find_spec', lambda n: n != 'absent')
        m.setattr(checks.importlib, 'import_module', imported.append)
        for tasks in (0, 1, 2):
            place = tmp_path / f'tasks{tasks}'
            place.mkdir()
            for i in range(tasks):
                (place / str(i)).write_text('')
            m.setattr(checks, 'Path', lambda p, place=place: place)
            imported.clear()
            asked(f'warm {tasks}', lambda: [answer(checks._import_warm, ['absent', 'timm.x', 'os']), imported])
    same_answers(request, 'running_notebooks', asked)
