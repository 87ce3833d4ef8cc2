"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

import datetime
import os
import re
import subprocess
import socket
import sys
import threading
from types import SimpleNamespace

import pytest

from fsdl_tools.book import epub, finish, frame, newcomer, stages
from fsdl_tools.book import install, pip
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


@pytest.mark.parametrize(
    'address, said',
    [
        ('me:secret@127.0.0.1:9', '…@127.0.0.1:9'),
        ('http://me:se/cret@a.org:1', 'http://…@a.org:1'),
        ('http://me:secret@secret@a.org:1', 'http://…@a.org:1'),
        ('socks5h://me@a.org', 'socks5h://…@a.org'),
        ('http://a.org:1', 'http://a.org:1'),
    ],
)
def test_the_password_of_a_proxy_is_never_told(address, said):
    told = pip.explain_failure('ProxyError', dict(HTTPS_PROXY=address))
    assert told == f'the proxy refuses (HTTPS_PROXY={said}): correct or unset it'


def test_a_server_that_answers_rubbish_leaves_the_size_unknown():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        server.settimeout(20)

        def rubbish():
            there, _ = server.accept()
            there.recv(1000)
            there.sendall(b'rubbish\r\n\r\n')
            there.close()

        answering = threading.Thread(target=rubbish)
        answering.start()
        assert pip._length(f'http://127.0.0.1:{server.getsockname()[1]}/x', None) is None
        answering.join()
    assert pip._length('https://a.invalid/x y', None) is None


@pytest.mark.parametrize('record', [b'', bytes(50), b'\xff\xfe,sha,3\n', b'a.py,sha,x\n', b'"a.py,sha,3\n'])
def test_a_torn_record_is_damage(tmp_path, record):
    "A machine that goes off leaves files of zeros, or empty ones"
    info = tmp_path / 'a-1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Name: a')
    (info / 'RECORD').write_bytes(record)
    assert install.damaged(tmp_path) == [info] and install.damaged(tmp_path, thorough=False) == []


@pytest.fixture
def checkout(tmp_path):
    "A checkout of one file"
    top = tmp_path / 'checkout'
    top.mkdir()
    (top / 'page').write_text('first\n')
    git(top, 'init', '-q', '-b', 'main')
    git(top, 'add', '.')
    git(top, *newcomer._nobody, 'commit', '-qm', 'first')
    return top


def git(folder, *words):
    subprocess.run(['git', *words], cwd=folder, check=True)


@pytest.mark.parametrize(
    'key, value',
    [
        ('diff.noprefix', 'true'),
        ('diff.mnemonicPrefix', 'true'),
        ('diff.external', 'false'),
        ('color.ui', 'always'),
        ('diff.page.textconv', 'cat'),
        ('commit.gpgsign', 'true'),
    ],
)
def test_a_clone_is_the_same_whatever_git_is_told(checkout, tmp_path, key, value):
    (checkout / '.gitattributes').write_text('page diff=page\n')
    (checkout / 'page').write_text('second\n')
    git(checkout, 'config', key, value)
    with_global = tmp_path / 'gitconfig'
    git(checkout, 'config', '--file', str(with_global), key, value)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('GIT_CONFIG_GLOBAL', str(with_global))
        newcomer.clone(checkout, tmp_path / 'clone')
    assert (tmp_path / 'clone/page').read_text() == 'second\n'


def test_a_clone_has_links_as_links_and_no_other_repository(checkout, tmp_path):
    (checkout / 'link').symlink_to('nowhere')
    (checkout / 'other').mkdir()
    git(checkout / 'other', 'init', '-q')
    (checkout / 'other/page').write_text('of another project')
    newcomer.clone(checkout, tmp_path / 'clone')
    assert sorted(p.name for p in (tmp_path / 'clone').iterdir()) == ['.git', 'link', 'page']
    assert os.readlink(tmp_path / 'clone/link') == 'nowhere'


def test_a_stray_file_among_the_environments_is_left_alone(tmp_path):
    (tmp_path / 'current').mkdir()
    (tmp_path / 'notes').write_text('mine')
    newcomer._sweep(tmp_path, tmp_path / 'current')
    assert (tmp_path / 'notes').read_text() == 'mine'


def test_a_changed_file_has_any_name(checkout):
    (checkout / 'tests_für.py').write_text('')
    assert stages.changed(checkout) == ['tests_für.py']
