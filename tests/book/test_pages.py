"""What every page has: its number, its words, its links, its imprint; on all pages of both sites."""

import dataclasses
import html
import importlib
import json
import re
import zipfile
from pathlib import Path

import pytest

from fsdl_tools.book.contents import chapter_table, page_head, page_title, pages, settings, similar_titles
from fsdl_tools.book.glossary import terms
from fsdl_tools.book.names import library_modules, public_names
from fsdl_tools.book.rendering import npm_file
from fsdl_tools.book.visible import visible_code

pytestmark = pytest.mark.timeout(1500)  # the first to ask for Quarto's site waits minutes for it

SCRIPTS = re.compile(r'<(script|style|svg|math)\b.*?</\1>', re.S)
CODE = re.compile(r'<(pre|code)\b.*?</\1>', re.S)


def body(site, page):
    "The HTML of a page without scripts"
    return SCRIPTS.sub('', (site.folder / f'{page.name}.html').read_text(encoding='utf-8'))


def text_of(markup):
    return html.unescape(re.sub(r'<[^>]*>', '', markup))


def plain(title):
    return ' '.join(title.replace('`', '').replace("'", '’').split())


def test_titles_can_be_told_apart(root):
    assert similar_titles(root) == []


def test_parts_come_in_the_order_of_a_learner(root):
    toc = pages(root)
    first = next(i for i, page in enumerate(toc) if page.number)
    assert toc[first].opens_part and toc[first].number == '1' and 'core' not in toc[first + 1].name
    numbers = [p.number for p in toc if p.opens_part]
    assert numbers == [*map(str, range(1, 10)), 'A', 'B', 'C']
    assert [p.name for p in toc if p.part.endswith('Ground') and p.opens_part] == ['ground/index']


def test_every_page_shows_its_number_and_title(site, root):
    wrong = []
    for page in pages(root)[1:]:
        markup = body(site, page)
        title, heading = (text_of(re.search(rf'<{tag}\b.*?</{tag}>', markup, re.S)[0]) for tag in ('title', 'h1'))
        expected = plain(page_title(root, page))
        if not plain(title).startswith(expected) or expected not in plain(heading):
            wrong.append((page.name, title, heading))
    assert not wrong, wrong


def test_a_part_lists_its_chapters_in_order(site, root):
    for first in [p for p in pages(root) if p.opens_part]:
        found = re.findall(r'<td[^>]*>(?:<p>)?([\dA-C]+\.\d+)\b', body(site, first))
        assert found == [p.number for p in pages(root) if p.part == first.part][1:], first.name


def test_every_page_says_version_date_and_licence(site, root):
    cfg = settings(root)
    wrong = [
        p.name
        for p in pages(root)
        if not re.search(
            rf'{cfg["title"]} {re.escape(cfg["version"])}, \d\d? \w+ 20\d\d\. Apache License 2\.0',
            ' '.join(text_of(body(site, p)).split()),
        )
    ]
    assert not wrong


def test_every_page_can_be_taken_away(site, root):
    for page in pages(root):
        tools = re.search(r'<div class="page-tools">.*?</div>', body(site, page), re.S)[0]
        book = page.name == 'index' and (site.folder / 'fsdl_tools.epub').exists()
        assert tools.count('<a ') == (4 if settings(root)['user'] else 1) + book, page.name
        notebook = json.loads(
            (site.folder / page.name)
            .parent.joinpath(re.search(r'href="([^"]+\.ipynb)"', tools)[1])
            .read_text(encoding='utf-8')
        )
        own = json.loads((root / 'nbs' / page.source).read_text(encoding='utf-8'))
        assert notebook['cells'][1:] == own['cells'] and 'pip install' in notebook['cells'][0]['source'], page.name


def test_words_lead_to_the_glossary_once_a_page(site, root):
    pages_with, anchors = 0, {t.anchor for t in terms()}
    glossary = (site.folder / 'glossary.html').read_text(encoding='utf-8')
    assert not [a for a in anchors if f'id="{a}"' not in glossary]
    for page in pages(root):
        linked = re.findall(r'<a class="term" href="[./]*glossary\.html#([^"]+)"', body(site, page))
        assert len(set(linked)) == len(linked) and set(linked) <= anchors, page.name
        pages_with += len(linked) > 2
        if page.name in ('glossary', 'names'):
            assert not linked
    assert pages_with > 50


def test_terms_that_beginners_lack_are_linked_where_they_first_appear(site, root):
    names = {p.name: p for p in pages(root)}
    for name, term in (
        ('parallel/ranks', 'nccl'),
        ('parallel/collectives', 'all-reduce'),
        ('models/profile', 'meta-tensor'),
        ('training/elastic', 'torchrun'),
        ('compute/planner', 'layout'),
    ):
        assert f'glossary.html#term-{term}"' in body(site, names[name]), (name, term)


def test_the_index_lists_every_public_name(site, root):
    index = (site.folder / 'names.html').read_text(encoding='utf-8')
    listed = {text_of(m) for m in re.findall(r'<td[^>]*><a [^>]*><code>(\w+)</code></a></td>', index)}
    assert {n for tree in library_modules(root).values() for n in public_names(tree)} - listed == set()


def test_every_page_with_code_opens_with_its_set_up(site, root):
    wrong = []
    for page in pages(root):
        if 'import ' not in visible_code(root, page.source) or page.name in ('index', 'book/stable'):
            continue  # there the imports are what is shown
        folds = [text_of(m).strip() for m in re.findall(r'<summary\b.*?</summary>', body(site, page), re.S)]
        if not folds or folds[0] != 'Set-up for this page' or folds.count('Set-up for this page') != 1:
            wrong.append((page.name, folds[:2]))
    assert not wrong, wrong


def test_every_record_has_a_table_of_its_fields(site, root):
    wrong = []
    for module, tree in library_modules(root).items():
        loaded = importlib.import_module(f'fsdl_tools.{module}')
        file = site.folder / (module.replace('.', '/') + '.html')
        for name in public_names(tree):
            record = getattr(loaded, name, None)
            if (
                not isinstance(record, type)
                or not dataclasses.is_dataclass(record)
                or record.__module__ != loaded.__name__
            ):
                continue
            entry = re.search(
                rf'id="{name.lower()}".*?</h\d>.*?(?=<h[23]\b[^>]*class="api|\Z)',
                file.read_text(encoding='utf-8'),
                re.S,
            )
            fields = [f.name for f in dataclasses.fields(record) if f.name[0] != '_']
            shown = entry and re.findall(r'<tr[^>]*>\s*<td[^>]*><code>(\w+)</code></td>', html.unescape(entry[0]))
            if not entry or fields and shown[: len(fields)] != fields:
                wrong.append((module, name))
    assert not wrong, wrong


def test_no_page_shows_what_only_a_machine_should_see(site, root):
    bad = {
        'an escaped dollar': r'\\\$',
        'a command without a name': r'Usage: -c',
        'a progress bar': r'IProgress|TqdmWarning',
        'an empty call': r'Call self as a function',
        'a shortcode': r'\{\{<',
        'a place that was not filled': r'<!-- (chapters|glossary|names) -->|\[@\]',
    }
    wrong = []
    for page in pages(root):
        markup = body(site, page)
        prose = text_of(CODE.sub('', markup)) if page.name != 'book/dialect' else ''
        seen = {'an escaped dollar': prose, 'a shortcode': prose, 'a place that was not filled': prose}
        outputs = text_of(re.sub(r'<details\b.*?</details>', '', markup, flags=re.S))
        wrong += [
            (page.name, what)
            for what, pattern in bad.items()
            if re.search(pattern, seen.get(what, outputs)) and not page.name.startswith('book/')
        ]
        title = text_of(re.search(r'<title>.*?</title>', markup, re.S)[0])
        if re.fullmatch(r'\s*(.+?) [-–] \1\s*', title):
            wrong.append((page.name, title))
    assert not wrong, wrong


def test_a_lost_reader_is_helped(browser, site):
    page = browser.new_page()
    for asked, found in (
        ('/modles/zo.html', '/models/zoo.html'),
        ('/deep/er/planer', '/compute/planner.html'),
        ('/interchange.htm', '/frameworks/convert.html'),
    ):
        answer = page.goto(site.url + asked)
        near = page.eval_on_selector_all('#near a', 'all => all.map(a => a.href)')
        assert answer.status == 404 and site.url + found in near, (asked, near)
    page.goto(f'{site.url}/xqzkj')
    assert not page.locator('#near').is_visible() and page.locator('a:visible').count() == 3
    page.close()


def test_figures_are_dark_in_the_dark(browser, site):
    page = browser.new_page(color_scheme='dark')
    for name in ('memory/measure', 'index'):
        page.goto(f'{site.url}/{name}.html')
        figures = page.eval_on_selector_all(
            'article figure img, article p > img, main.content .cell-output-display img, main.content figure img,'
            ' main.content p > img',
            'all => all.map(e => getComputedStyle(e).filter)',
        )
        assert figures and all('invert' in f for f in figures), name
    page.close()


READ = (
    'index',
    'parallel/zero',
    'compute/planner',
    'memory/measure',
    'onnx/verify',
    'training/checkpoint',
    'operations/launch',
    'models/zoo',
    'glossary',
    'parallel/index',
)
AXE = """rules => axe.run(document, {resultTypes: ['violations'], ...rules}).then(found => found.violations
  .filter(v => ['serious', 'critical'].includes(v.impact)).map(v => [v.id, v.nodes.length, ...v.nodes.slice(0,
      3).map(n => n.target.join(' ') + ' | ' + n.html.slice(0, 160))]))"""
COLOURS = dict(runOnly=dict(type='rule', values=['color-contrast', 'link-in-text-block']))


@pytest.mark.sweep(6)
@pytest.mark.parametrize('name', READ)
def test_axe_finds_nothing_serious(browser, site, root, name):
    script = npm_file('axe-core@4', 'axe.min.js', Path(root) / '.cache')
    if not script:
        pytest.skip('axe-core cannot be had: no npm, or it does not answer')
    wrong = []
    for scheme, rules in (('light', {}), ('dark', COLOURS)):
        page = browser.new_page(color_scheme=scheme, viewport=dict(width=1440, height=900))
        page.goto(f'{site.url}/{name}.html')
        page.add_script_tag(path=script)
        wrong += [(scheme, *row) for row in page.evaluate(AXE, rules)]
        page.close()
    assert not wrong, wrong


def test_the_book_is_also_one_file(site, root):
    if site.by != 'quarto':
        pytest.skip('the EPUB is made with the Pandoc that Quarto brings')
    with zipfile.ZipFile(site.folder / 'fsdl_tools.epub') as book:
        text = '\n'.join(book.read(name).decode() for name in book.namelist() if name.endswith('.xhtml'))
        pictures = {Path(name).name for name in book.namelist() if name.endswith(('.png', '.svg'))}
    missing = [
        p.name
        for p in pages(root)
        if plain(page_title(root, p)) not in plain(html.unescape(re.sub(r'<[^>]*>', '', text)))
    ]
    assert not missing and not re.search(r'href="[^"#]*\.ipynb', text)
    used = set(re.findall(r'src="[^"]*?([^/"]+\.(?:png|svg))"', text))
    assert used and used <= pictures


DEFINED = re.compile(r'^(?:def|class|async def) (\w+)', re.M)


def library_code(root, page):
    "The cells of a page's notebook which become the library"
    cells = (
        json.loads((root / 'nbs' / page.source).read_text(encoding='utf-8'))['cells']
        if page.source.endswith('.ipynb')
        else []
    )
    code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    return '\n'.join(c for c in code if re.match(r'#\| ?export', c))


def test_all_code_of_the_library_is_on_its_page(site, root):
    seen, missing = 0, []
    for page in pages(root):
        shown = DEFINED.findall(text_of('\n'.join(re.findall(r'<code\b.*?</code>', body(site, page), re.S))))
        defined = DEFINED.findall(library_code(root, page))
        seen += len(defined)
        missing += [(page.name, name) for name in defined if name not in shown]
    assert seen > 2000 and not missing, (seen, missing)


def test_readme_has_the_table_of_chapters(root):
    text = (root / 'README.md').read_text(encoding='utf-8')
    for page in pages(root):
        if page.number and not page.number[0].isalpha():
            assert page_head(root, page.source)[1].replace('|', r'\|') in text, page.name
    assert chapter_table(root).count('\n| ') == text.count('\n| ') - 1
