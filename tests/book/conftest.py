"""The built site, by either renderer, and a browser page to read it with; a cache folder of a test's own."""

import threading
from types import SimpleNamespace

import pytest

from fsdl_tools.book.site import _renderers, serve_site, update_site


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "The user's cache folder is another one"
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'fsdl_tools'


@pytest.fixture(scope='module', params=['zensical', 'quarto'])
def site(request, root):
    "The built site: by what, its folder, and its address on a free port"
    if request.param not in _renderers():
        pytest.skip(f'{request.param} is not on the PATH')
    out = root / '_docs' if request.param == _renderers()[0] else root / '.cache' / f'site-{request.param}'
    update_site(root, request.param, out)
    server = serve_site(out, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(by=request.param, folder=out, url=f'http://127.0.0.1:{server.server_address[1]}')
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='module')
def reader(browser, site):
    "One page of the browser, and a list of everything that went wrong or came from elsewhere since it was last emptied"
    page, seen = browser.new_page(viewport=dict(width=1440, height=900)), SimpleNamespace(bad=[], loaded=[])
    page.on('console', lambda m: seen.bad.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: seen.bad.append(str(e)))
    page.on('request', lambda r: seen.loaded.append(r.url))
    yield page, seen
    page.close()
