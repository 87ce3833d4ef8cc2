"""The site as a reader meets it, in a real browser, by either renderer; and the commands as a newcomer types them."""

import html
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from fsdl_tools.book.contents import moved_names, notebooks, pages, settings
from fsdl_tools.book.finish import _lost_page, page_tools, takeaway
from fsdl_tools.book.dialect import divs, formulas
from fsdl_tools.book.markdown import page_markdown
from fsdl_tools.book.rendering import quarto_settings, zensical_config
from fsdl_tools.book.site import build_site, dead_links, _fingerprint, option_problems, readme, serve_site, update_site

pytestmark = pytest.mark.timeout(1500)  # Quarto takes minutes for the site, and each page is opened at two widths
OVERFLOW = """() => {
  const wide = getComputedStyle;
  const scrolls = e => e && e !== document.body && (['auto', 'scroll', 'hidden'].includes(wide(e).overflowX) ||
      scrolls(e.parentElement));
  const column = document.querySelector('article, main.content').getBoundingClientRect().right;
  // the padding of inline code may hang over
  const limit = innerWidth > 1200 ? Math.min(innerWidth, column + 8) : innerWidth;
  const out = [...document.querySelectorAll('main.content *, article *')].filter(e =>
    e.getBoundingClientRect().right > limit + 1 && wide(e).position !== 'fixed' && !scrolls(e.parentElement) &&
        !['auto', 'scroll'].includes(wide(e).overflowX));
  const page = document.scrollingElement.scrollWidth > innerWidth + 1 ? ['the page itself'] : [];
  return [...page, ...out.map(e => e.tagName + '.' + e.className)].slice(0, 5);
}"""

CODE = """() => {
  const blocks = [...document.querySelectorAll('article pre, main.content pre')];
  const inner = e => [e, ...e.querySelectorAll('*')];
  // what an element lets hang over, the block around it shows or scrolls
  const hides = x => getComputedStyle(x).overflowX !== 'visible';
  const wider = e => inner(e).some(x => x.scrollWidth > x.clientWidth + 1 && x.clientWidth && (x === e || hides(x)));
  const scrolls = e => inner(e).some(x => x.scrollWidth > x.clientWidth + 1 && ['auto',
      'scroll'].includes(getComputedStyle(x).overflowX));
  for (const d of document.querySelectorAll('details')) d.open = true;
  const long = blocks.filter(wider);
  return {blocks: blocks.length, wider: long.length,
      cut: long.filter(e => !scrolls(e)).map(e => e.textContent.slice(0, 60))};
}"""


def comes_true(page, script, arg, seconds=5):
    "Does a script answer yes in a while? What slides into place takes a moment"
    from playwright.sync_api import TimeoutError

    try:
        page.wait_for_function(script, arg=arg, timeout=1000 * seconds)
    except TimeoutError:
        return False
    return True


NEXT = """to => {
  scrollTo({top: document.scrollingElement.scrollHeight, behavior: 'instant'});
  return [...document.querySelectorAll('a')].some(a => {
    if (a.href.split('#')[0].replace(/index\\.html$/, '') !== to.replace(/index\\.html$/, '')) return false;
    const r = a.getBoundingClientRect(), at = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);
    return at && (a.contains(at) || at.contains(a));
  });
}"""

REPEATED = """() => {
  const ids = [...document.querySelectorAll('main [id], article [id]')].filter(e => !e.closest('svg')).map(e => e.id);
  return [...new Set(ids.filter((id, i) => ids.indexOf(id) !== i))];
}"""

BRIGHTNESS = """() => {
  const light = c => { const v = c.match(/[\\d.]+/g).map(Number); return v.length > 3 &&
      v[3] === 0 ? null : (v[0] + v[1] + v[2]) / 3; };
  const behind = e => e ? light(getComputedStyle(e).backgroundColor) ?? behind(e.parentElement) : 255;
  const text = document.querySelector('main p, article p');
  return [behind(text), light(getComputedStyle(text).color)];
}"""


def diagram_pages(root):
    "The pages whose notebook draws a diagram, in its prose or by an output"

    def texts(cell):
        yield from (
            [''.join(cell['source'])]
            if cell['cell_type'] == 'markdown'
            else (''.join(out.get('data', {}).get('text/markdown', '')) for out in cell['outputs'])
        )

    def draws(name):
        return any(
            re.search(r'```\{?mermaid', text)
            for c in json.loads((root / 'nbs' / name).read_text())['cells']
            for text in texts(c)
        )

    return {p.name for p in pages(root) if draws(p.source)}


def test_every_page_opens_and_leads_to_the_next(reader, site, root, request):
    "Every third page of the book, others for another seed; with --slow all of them"
    page, seen = reader
    toc, diagrams, problems = pages(root), diagram_pages(root), []
    drawn = [(i, p) for i, p in enumerate(toc) if request.config.option.slow or i % 3 == request.config.option.seed % 3]
    page.set_viewport_size(dict(width=1440, height=900))
    for k, (i, p) in enumerate(drawn):
        seen.bad.clear()
        seen.loaded.clear()
        first, second = (
            (1440, 390) if k % 2 == 0 else (390, 1440)
        )  # both widths without loading a page twice, and one change of width a page
        page.goto(f'{site.url}/{p.name}.html', wait_until='load')
        problems += [(p.name, first, x) for x in page.evaluate(OVERFLOW)]
        page.set_viewport_size(dict(width=second, height=900))
        problems += [(p.name, second, x) for x in page.evaluate(OVERFLOW)]
        problems += [(p.name, x) for x in seen.bad] + [(p.name, 'twice', x) for x in page.evaluate(REPEATED)]
        problems += [(p.name, 'outside', u) for u in seen.loaded if not u.startswith((site.url, 'data:', 'blob:'))]
        if any('mermaid.min.js' in u for u in seen.loaded) != (p.name in diagrams):
            problems.append((p.name, 'mermaid'))
        if not page.locator('h1:visible').first.inner_text().strip():
            problems.append((p.name, 'no title'))
        if i + 1 < len(toc) and not comes_true(page, NEXT, f'{site.url}/{toc[i + 1].name}.html'):
            problems.append((p.name, 'no way to the next page'))
    assert not problems, problems


def test_code_that_is_wider_than_its_column_scrolls_inside_its_block(reader, site, root):
    page, _ = reader
    page.set_viewport_size(dict(width=1440, height=900))
    for name in ('parallel/tensor', 'compute/planner', 'memory/measure', 'models/zoo', 'training/trainer'):
        page.goto(f'{site.url}/{name}.html', wait_until='load')
        found = page.evaluate(CODE)
        assert found['blocks'] > 20 and not found['cut'], (name, found)
        assert page.evaluate(OVERFLOW) == [], name  # with every fold open


SENTENCES = """() => [...document.querySelectorAll('table[data-words]')].map(t => [
  t.scrollWidth <= t.closest('.cell-output, .cell-output-display').clientWidth + 1,
  getComputedStyle(t.tBodies[0].rows[0].cells[1]).display])"""


def test_tables_of_sentences_are_read_on_any_screen(reader, site):
    page, _ = reader
    for width, display in ((1440, 'table-cell'), (390, 'block')):
        page.set_viewport_size(dict(width=width, height=900))
        page.goto(f'{site.url}/book/claims_page.html', wait_until='load')
        assert comes_true(page, "n => document.querySelectorAll('table[data-words]').length == n", 4), width
        assert page.evaluate(SENTENCES) == [[True, display]] * 4, width
    links = page.eval_on_selector_all('table[data-words] a', 'all => all.map(a => a.href)')
    assert f'{site.url}/parallel/zero.html' in links and 'https://pytorch.org/' in links


def test_a_page_shows_its_set_up_its_sources_and_the_fields_of_its_records(reader, site):
    page, _ = reader
    page.goto(f'{site.url}/compute/planner.html')
    folds = [text.strip() for text in page.locator('article summary, main.content summary').all_inner_texts()]
    assert folds[0] == 'Set-up for this page' and folds.count('Set-up for this page') == 1 and folds.count('Source') > 3
    assert (
        page.locator('details[open]:has-text("def estimate(")').count() == 1
    )  # what the page promises is open, the rest is not
    assert (
        page.locator('details:has-text("def layout_columns(")').count() == 1
        and not page.locator('details[open]:has-text("def layout_columns(")').count()
    )
    assert page.locator('[id="estimate.cost"]').count() == 1
    rows = page.locator('tr:has(td code:text-is("allocated"))').first.inner_text()
    assert 'Bytes of tensors at the peak' in rows
    assert 'Call self as a function' not in page.locator('body').inner_text()


def test_the_first_page_leads_to_every_page(reader, site, root):
    page, _ = reader
    page.set_viewport_size(dict(width=1440, height=900))
    page.goto(f'{site.url}/index.html')
    linked = set(
        page.evaluate(
            "[...document.querySelectorAll('main a, article a')].map(a => a.href.split('#')[0].replace(/\\/$/,"
            " '/index.html'))"
        )
    )  # Quarto's script takes index.html off a link
    assert [p.name for p in pages(root)[1:] if f'{site.url}/{p.name}.html' not in linked] == []


def test_code_signatures_and_outputs_are_seen(reader, site):
    page, _ = reader
    page.goto(f'{site.url}/units.html')
    text = page.locator('body').inner_text()
    for shown in ('human_bytes', 'For example 1.50 GiB', 'Decimal places'):
        assert shown in text, shown
    assert page.locator('[id="human_bytes"]').count() == 1


def test_search_finds_an_exported_name(reader, site):
    page, seen = reader
    page.goto(f'{site.url}/index.html')
    seen.bad.clear()
    opens = (
        '[title*=earch i]:visible, [aria-label*=earch i]:not([role=dialog]):visible, button:has-text("Search"):visible'
    )
    page.locator(opens).first.click()
    page.keyboard.type('human_bytes', delay=30)
    page.wait_for_function(
        """() => {
      const roots = [document, ...[...document.querySelectorAll('*')].map(e => e.shadowRoot).filter(Boolean)];
      return roots.some(r => [...r.querySelectorAll('a')].some(a => a.href.includes('units.html') &&
          a.getClientRects().length &&
          a.closest('li, [role=option], article, div').textContent.includes('human_bytes')));
    }""",
        timeout=20_000,
    )
    assert not seen.bad


def test_dark_and_light_follow_the_reader(browser, site):
    for scheme, darker in (('light', 'text'), ('dark', 'page')):
        page = browser.new_page(color_scheme=scheme)
        page.goto(f'{site.url}/core.html')
        behind, text = page.evaluate(BRIGHTNESS)
        assert ('text' if text < behind else 'page') == darker and abs(text - behind) > 100, (scheme, behind, text)
        page.close()


def test_diagrams_are_drawn(reader, site, root):
    page, seen = reader
    page.goto(f'{site.url}/book/markdown.html')
    script = next(u for u in seen.loaded if 'mermaid.min.js' in u).removeprefix(site.url + '/')
    if not (site.folder / script).stat().st_size:
        pytest.skip('no npm: diagrams are shown as text')
    page.wait_for_function(
        "[...document.querySelectorAll('svg')].some(s => s.textContent.includes('nbdev_test') &&"
        " s.getBoundingClientRect().height > 50)",
        timeout=20_000,
    )


def test_an_old_address_leads_to_the_new_page(reader, site):
    page, _ = reader
    for old in ('zoo', 'parallel'):
        page.goto(f'{site.url}/{old}.html')
        page.wait_for_url(f'{site.url}/{moved_names("page")[old]}.html')
    missing = [old for old in moved_names('page') if not (site.folder / f'{old}.html').exists()]
    assert not missing


def test_no_link_shows_its_brackets(site, root):
    base = html.escape('](' + settings(root)['doc_host'])
    assert not [
        p for p in Path(site.folder).rglob('*.html') if base in re.sub(r'<[^>]*>', '', p.read_text(encoding='utf-8'))
    ]


def test_no_dead_links(site):
    assert dead_links(site.folder) == []


def test_nothing_leads_to_an_address_that_is_not_ours(site, root):
    if settings(root)['user']:
        pytest.skip('the project is published')
    links = {
        link
        for p in site.folder.rglob('*.html')
        for link in re.findall(r'<[^<>]* (?:href|src|content)="([^"]*)"', p.read_text(encoding='utf-8'))
    }
    bad = [u for u in links if re.match(r'https?://(\.?github\.(com|io)/(/|fsdl)|fsdl-tools|\.github\.io|colab)', u)]
    assert bad == []
    assert not [
        p
        for p in site.folder.rglob('*.*')
        if p.suffix in ('.html', '.json', '.xml')
        and re.search('github.com/fsdl-tools|fsdl-tools.github.io', p.read_text(encoding='utf-8'))
    ]


def test_a_second_build_with_nothing_changed_does_nothing(site, root):
    mark = site.folder / '.fingerprint'
    (root / 'nbs/nbdev.yml').touch()  # nbdev writes it while it builds
    before = mark.stat().st_mtime_ns
    update_site(root, site.by, site.folder)
    assert mark.stat().st_mtime_ns == before


def test_the_fingerprint_knows_the_renderer(root):
    assert _fingerprint(root, 'quarto') != _fingerprint(root, 'zensical')


def test_readme_and_contributing_are_their_notebooks(root):
    assert (root / 'README.md').read_text() == readme(root)
    assert (root / 'CONTRIBUTING.md').read_text() == readme(root, 'contributing.ipynb')


@pytest.fixture
def copy(tmp_path, root):
    "A copy of the project without its library"
    for part in ('settings.ini', '_quarto.yml'):
        shutil.copy(root / part, tmp_path / part)
    shutil.copytree(root / 'nbs', tmp_path / 'nbs')
    return tmp_path


@pytest.mark.parametrize('user', ['', 'ada'])
def test_the_address_stands_in_one_place(copy, user):
    text = (copy / 'settings.ini').read_text()
    (copy / 'settings.ini').write_text(re.sub('^user =.*$', f'user = {user}', text, flags=re.M))
    cfg = settings(copy)
    shown = readme(copy) + readme(copy, 'contributing.ipynb')
    for line in (
        'git clone https://github.com/ada/fsdl_tools',
        'pip install git+https://github.com/ada/fsdl_tools',
        'https://github.com/ada/fsdl_tools/issues',
        'https://ada.github.io/fsdl_tools/models/zoo.html',
    ):
        assert (line in shown) == bool(user), line
    assert 'content-visible' not in shown and '{{<' not in shown and 'In your copy of this repository' in shown
    if not user:
        assert 'github.com' not in shown and '(nbs/models/02_zoo.ipynb)' in shown
    docs = (
        '---\n\n[source](https://github.com/ada/x.py#L1){target="_blank"}\n\n### f {#f .api}\n\n```python\ndef'
        ' f()\n```\n'
    )
    cell = dict(
        cell_type='code', source='show_doc(f)', outputs=[dict(output_type='display_data', data={'text/markdown': docs})]
    )
    page = page_markdown(dict(cells=[dict(cell_type='raw', source='---\ntitle: t\n---'), cell]), None, cfg, {}, 'a/b')
    assert ('source-link' in page) == bool(user) and '### `f`' in page
    assert bool(zensical_config(cfg, [])['extra']['social']) == bool(user)
    tools = page_tools(next(p for p in pages(copy) if p.source == 'models/01_spec.ipynb'), cfg)
    for line in (
        'colab.research.google.com/github/ada/fsdl_tools/blob/notebooks/models/01_spec.ipynb',
        'https://github.com/ada/fsdl_tools/edit/main/nbs/models/01_spec.ipynb',
        'https://github.com/ada/fsdl_tools/issues/new',
    ):
        assert (line in tools) == bool(user), line
    assert 'notebooks/models/01_spec.ipynb" download' in tools and ('http' in tools) == bool(user)
    first = json.loads(takeaway((copy / 'nbs/onnx/05_decoder.ipynb').read_text(), cfg))['cells'][0]
    assert (first['cell_type'] == 'code' and 'git+https://github.com/ada/fsdl_tools' in first['source']) == bool(
        user
    ) and 'github.com//' not in first['source']
    assert ('href="/fsdl_tools/index.html"' in _lost_page(copy, cfg, pages(copy))) == bool(
        user
    ) and 'http' not in _lost_page(copy, cfg, pages(copy))
    assert ('repo-url' in quarto_settings(cfg)['website'], 'site-url' in quarto_settings(cfg)['website']) == (
        bool(user),
        bool(user),
    )


def test_every_option_of_every_cell_is_good(root):
    assert option_problems(root) == []


@pytest.mark.parametrize(
    'change, found',
    [
        (lambda c: c.update(source='#| fig-alt: One: two\nplot()'), 'is not YAML'),
        (lambda c: c.update(source='#| fig-alt:\nplot()'), 'needs a text'),
        (lambda c: c.update(source='#| ecko: false\nx'), 'unknown option'),
        (lambda c: c.update(source='#| exprot\nx'), 'unknown option'),
        (lambda c: c.update(source='#| echo: false\n#| echo: true\nx'), 'given twice'),
        (
            lambda c: c.update(outputs=[dict(output_type='display_data', data={'image/png': ''})], source='plot()'),
            'without fig-alt',
        ),
    ],
)
def test_a_bad_option_is_found(copy, change, found):
    path = copy / 'nbs/book/09_stable.ipynb'
    nb = json.loads(path.read_text())
    change(next(c for c in nb['cells'] if c['cell_type'] == 'code'))
    path.write_text(json.dumps(nb))
    problems = option_problems(copy)
    assert len(problems) == 1 and found in problems[0] and '09_stable' in problems[0]


def test_repeated_ids_are_found(copy):
    path = copy / 'nbs/book/09_stable.ipynb'
    nb = json.loads(path.read_text())
    nb['cells'][1]['id'] = nb['cells'][0]['id']
    path.write_text(json.dumps(nb))
    assert len(option_problems(copy)) == 1


def test_a_taken_port_is_one_clear_line(root):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = s.getsockname()[1]
        r = subprocess.run(
            [
                sys.executable,
                '-c',
                'from fsdl_tools.book.site import site_command; site_command()',
                '0',
                str(port),
                '0',
            ],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert r.returncode == 1 and f'port {port}' in r.stderr and 'Traceback' not in r.stderr


@pytest.mark.parametrize('args', [['--port', 'eighty'], ['--port', '70000'], ['--nope']])
def test_bad_options_are_refused(root, args):
    r = subprocess.run(['./course', *args], cwd=root, capture_output=True, text=True, timeout=60)
    assert r.returncode == 2 and r.stderr.startswith('course: ')


def test_the_server_gives_out_nothing_beside_the_site(tmp_path):
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site/index.html').write_text('x')
    (tmp_path / 'secret').write_text('no')
    server = serve_site(tmp_path / 'site', 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with socket.create_connection(server.server_address) as s:
            s.sendall(b'GET /../secret HTTP/1.0\r\n\r\n')
            answer = s.recv(4096)
        assert b'404' in answer.split(b'\r\n')[0] and b'no' != answer[-2:]
    finally:
        server.shutdown()
        server.server_close()


def test_tabs_spanning_cells_and_code():
    out = divs('::: {.panel-tabset group="x"}\n## A\n```python\n## not a tab\n::: not a div\n```\n## B\ntext\n:::')
    assert out.count('/// tab | ') == 2 and '## not a tab' in out


def test_code_and_prices_are_not_formulas():
    assert formulas('`$x$` costs $5, $6 and\n```\n$y$\n```') == '`$x$` costs $5, $6 and\n```\n$y$\n```'


def test_an_escaped_dollar_is_a_dollar():
    assert formulas(r'from \$1,750 to \$250, `\$`') == r'from $1,750 to $250, `\$`'


def test_a_broken_notebook_names_itself(tmp_path, root):
    for part in ('settings.ini', '_quarto.yml', 'nbs', 'fsdl_tools'):
        (shutil.copytree if (root / part).is_dir() else shutil.copy)(root / part, tmp_path / part)
    for name in set(notebooks(root)) - {'cli/06_main.ipynb', 'contributing.ipynb', '00_core.ipynb'}:
        (tmp_path / 'nbs' / name).unlink()
    (tmp_path / '_quarto.yml').write_text(
        'website: {sidebar: {contents: [contributing.ipynb, 00_core.ipynb, cli/06_main.ipynb]}}'
    )
    p = tmp_path / 'nbs/cli/06_main.ipynb'
    nb = json.loads(p.read_text())
    nb['cells'].append(dict(cell_type='markdown', id='zz', metadata={}, source='::: {.callout-note}\nnever closed'))
    p.write_text(json.dumps(nb))
    with pytest.raises(ValueError, match='cli/06_main.ipynb: a div is never closed'):
        build_site(tmp_path, tmp_path / 'out', 'zensical')
    assert not (tmp_path / 'out').exists()
