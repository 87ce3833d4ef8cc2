"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

import datetime
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fsdl_tools.book import epub, finish, frame
from fsdl_tools.book import site as website


def test_the_date_of_the_imprint_is_that_of_the_last_commit(tmp_path):
    assert finish._date(tmp_path) == datetime.date.today()  # no checkout
    env = os.environ | dict(GIT_COMMITTER_DATE='2001-02-03T12:00:00', GIT_AUTHOR_DATE='2004-05-06T12:00:00')
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run([*git, 'init', '-q'], cwd=tmp_path, check=True)
    subprocess.run([*git, 'commit', '-q', '--allow-empty', '-m', 'first'], cwd=tmp_path, check=True, env=env)
    assert finish._date(tmp_path) == datetime.date(2001, 2, 3)


def test_what_pandoc_says_is_in_the_error(tmp_path, monkeypatch):
    says = "import sys; sys.stderr.write('no reader of ' + sys.argv[1]); sys.exit(3)"
    monkeypatch.setattr(epub, '_pandoc', lambda: [sys.executable, '-c', says])
    with pytest.raises(RuntimeError, match='could not make the EPUB:\nno reader of this'):
        epub._run_pandoc(['this'], tmp_path)


def test_only_tables_of_html_get_links():
    table = '<td>one/01x</td><td>https://a.org/b</td><td>two/02y</td>'
    data = [{'text/html': [table]}, {'text/html': table}, {'text/plain': table}, {}]
    cell = dict(outputs=[*(dict(data=dict(d)) for d in data), dict(output_type='stream', text='one/01x')])
    frame.Frame._outputs(SimpleNamespace(), cell, {'one/01x': ('one/x', 'A & B')}, '../')
    linked = (
        '<td><a href="../one/x.html">A &amp; B</a></td><td><a'
        ' href="https://a.org/b">https://a.org/b</a></td><td>two/02y</td>'
    )
    assert [out['data'] for out in cell['outputs'][:4]] == [{'text/html': linked}, {'text/html': linked}, *data[2:]]
    assert cell['outputs'][4] == dict(output_type='stream', text='one/01x')
    frame.Frame._outputs(SimpleNamespace(), {}, {}, '')  # a cell that was not run


def test_links_of_the_texts_at_the_top_lead_somewhere(root):
    for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'):
        links = re.findall(r'\]\(([^)\s]+)\)', (root / name).read_text(encoding='utf-8'))
        own = [link for link in links if not re.match(r'https?:|mailto:|#', link)]
        assert [link for link in own if not (root / link.partition('#')[0]).exists()] == [], name


@pytest.mark.parametrize('site, start, end', [('', 'nbs/', '.ipynb'), ('https://a.org/b', 'https://a.org/b/', '.html')])
def test_a_link_into_a_chapter_keeps_its_place(monkeypatch, site, start, end):
    monkeypatch.setattr(website, 'published', lambda cfg: site)
    monkeypatch.setattr(website, 'site_address', lambda cfg: site)
    monkeypatch.setattr(website, 'page_name', lambda name: name.removesuffix('.ipynb'))
    found = website._readme_links('[a](one/02_x.ipynb) [b](one/02_x.ipynb#would-it.y) [c](https://x.org/y.ipynb#z)', {})
    whole = f'{start}one/02_x{end}'
    assert found == f'[a]({whole}) [b]({whole}#would-it.y) [c](https://x.org/y.ipynb#z)'
