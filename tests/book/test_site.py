"""The site as a reader meets it, in a real browser; and the commands as a newcomer types them."""
import socket, subprocess, sys, threading
import pytest
from fsdl_tools.book.site import build_site, dead_links, divs, formulas, pages, readme, serve_site, update_site

OVERFLOW = """() => [...document.querySelectorAll('main *, article *')].filter(e => {
  const scrolls = p => p && p !== document.body && (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX) || scrolls(p.parentElement));
  return e.getBoundingClientRect().right > innerWidth + 1 && getComputedStyle(e).position !== 'fixed' && !scrolls(e.parentElement) && !['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
}).map(e => e.tagName + '.' + e.className).slice(0, 5)"""


@pytest.fixture(scope='module')
def site(root):
    "The built site, served on a free port"
    server = serve_site(update_site(root), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_address[1]}'
    server.shutdown(); server.server_close()


def visit(browser, url, width, base):
    "Open a page; the page and everything that went wrong"
    bad, page = [], browser.new_page(viewport=dict(width=width, height=900))
    page.on('console', lambda m: bad.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: bad.append(str(e)))
    page.on('request', lambda r: bad.append(f'outside: {r.url}') if not r.url.startswith((base, 'data:', 'blob:')) else None)
    page.goto(url, wait_until='load')
    return page, bad


@pytest.mark.parametrize('width', [1440, 390])
def test_every_page_opens_without_error_or_overflow(browser, site, root, width):
    for p in pages(root):
        page, bad = visit(browser, f'{site}/{p.name}.html', width, site)
        assert not bad, (p.name, bad)
        assert page.locator('h1').first.inner_text().strip(), p.name
        if width == 390:
            assert page.evaluate(OVERFLOW) == [], p.name
            assert page.evaluate('document.scrollingElement.scrollWidth') <= width + 1, p.name
        page.close()


def test_the_navigation_leads_from_the_first_page_to_the_last(browser, site, root):
    page, _ = visit(browser, f'{site}/index.html', 1440, site)
    seen = ['index']
    while (link := page.locator('a.md-footer__link--next')).count():
        link.click(); page.wait_for_load_state()
        seen.append(page.url.removeprefix(site + '/').removesuffix('.html'))
        assert len(seen) < 100
    assert seen == [p.name for p in pages(root)]
    page.close()


def test_search_finds_an_exported_name(browser, site):
    page, bad = visit(browser, f'{site}/index.html', 1440, site)
    page.keyboard.press('Control+k')
    page.keyboard.type('human_bytes', delay=20)
    page.wait_for_function("document.body.innerText.includes('human_bytes') || [...document.querySelectorAll('*')].some(e => e.shadowRoot && e.shadowRoot.textContent.includes('human_bytes'))", timeout=10_000)
    assert not bad
    page.close()


def test_dark_and_light(browser, site):
    colours = set()
    for scheme in ('light', 'dark'):
        page = browser.new_page(color_scheme=scheme); page.goto(f'{site}/core.html')
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor")); page.close()
    assert len(colours) == 2


def test_mermaid_is_drawn(browser, site, root):
    if not (root/'_docs/mermaid.min.js').exists(): pytest.skip('no npm: diagrams are shown as text')
    page, bad = visit(browser, f'{site}/book/site.html', 1440, site)
    page.wait_for_selector('div.mermaid', timeout=20_000)
    assert not bad
    page.close()


def test_no_dead_links(site, root): assert dead_links(root/'_docs') == []


def test_readme_is_the_index(root): assert (root/'README.md').read_text() == readme(root)


def test_a_taken_port_is_one_clear_line(root):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)); s.listen()
        port = s.getsockname()[1]
        r = subprocess.run([sys.executable, '-c', 'from fsdl_tools.book.site import main; main()', '0', str(port), '0'], cwd=root, capture_output=True, text=True, timeout=280)
    assert r.returncode == 1 and f'port {port}' in r.stderr and 'Traceback' not in r.stderr


@pytest.mark.parametrize('args', [['--port', 'eighty'], ['--port', '70000'], ['--nope']])
def test_bad_options_are_refused(root, args):
    r = subprocess.run(['./course', *args], cwd=root, capture_output=True, text=True, timeout=60)
    assert r.returncode == 2 and r.stderr.startswith('course: ')


def test_the_server_gives_out_nothing_beside_the_site(tmp_path):
    (tmp_path/'site').mkdir(); (tmp_path/'site/index.html').write_text('x'); (tmp_path/'secret').write_text('no')
    server = serve_site(tmp_path/'site', 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with socket.create_connection(server.server_address) as s:
            s.sendall(b'GET /../secret HTTP/1.0\r\n\r\n'); answer = s.recv(4096)
        assert b'404' in answer.split(b'\r\n')[0] and b'no' != answer[-2:]
    finally: server.shutdown(); server.server_close()


def test_tabs_spanning_cells_and_code():
    out = divs('::: {.panel-tabset group="x"}\n## A\n```python\n## not a tab\n::: not a div\n```\n## B\ntext\n:::')
    assert out.count('/// tab | ') == 2 and '## not a tab' in out


def test_code_and_prices_are_not_formulas(): assert formulas('`$x$` costs $5, $6 and\n```\n$y$\n```') == '`$x$` costs $5, $6 and\n```\n$y$\n```'


def test_a_broken_notebook_names_itself(tmp_path, root):
    import json, shutil
    for part in ('settings.ini', '_quarto.yml', 'nbs', 'fsdl_tools'): (shutil.copytree if (root/part).is_dir() else shutil.copy)(root/part, tmp_path/part)
    p = tmp_path/'nbs/cli/06_main.ipynb'
    nb = json.loads(p.read_text()); nb['cells'].append(dict(cell_type='markdown', id='zz', metadata={}, source='::: {.callout-note}\nnever closed')); p.write_text(json.dumps(nb))
    with pytest.raises(ValueError, match='cli/06_main.ipynb: a div is never closed'): build_site(tmp_path, tmp_path/'out', 'zensical')
    assert not (tmp_path/'out').exists()
