"""A kept answer is the answer, or it is none: cut off, edited, exchanged, unwritable, written twice at once."""

import json
import multiprocessing
import os
import random

import pytest

from fsdl_tools.cli.kept import Shown, answer_of, kept_answer
from fsdl_tools.models.zoo import _spec_rows, index, known_spec
from fsdl_tools.table import Table


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('FSDL_KEEP', raising=False)
    return tmp_path / 'cache'


class Asked:
    "A question that counts how often it is computed"

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return dict(bytes=42, share=0.1, name='gpt2 – “ä”')


def ask(question, model='gpt2', **kw):
    return kept_answer('memory', dict(model=model, batch=8), question, **kw)


def only_file(cache):
    (path,) = cache.rglob('*.json')
    return path


def test_the_second_time_it_is_read(cache):
    question = Asked()
    assert ask(question) == ask(question) == dict(bytes=42, share=0.1, name='gpt2 – “ä”')
    assert question.times == 1
    assert only_file(cache).stat().st_mode & 0o777 & ~0o644 == 0


DAMAGE = dict(
    empty=lambda p: p.write_bytes(b''),
    cut_off=lambda p: p.write_bytes(p.read_bytes()[:-5]),
    half=lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    edited=lambda p: p.write_text(p.read_text().replace('42', '43')),
    another_key=lambda p: p.write_text(p.read_text().replace('"batch": 8', '"batch": 9')),
    no_json=lambda p: p.write_text('not JSON'),
    a_list=lambda p: p.write_text('[1, 2]'),
    no_sum=lambda p: p.write_text(json.dumps({k: v for k, v in json.loads(p.read_text()).items() if k != 'sum'})),
    more=lambda p: p.write_text(json.dumps(json.loads(p.read_text()) | dict(x=1))),
    binary=lambda p: p.write_bytes(bytes(range(256)) * 20),
    deep=lambda p: p.write_text('[' * 100_000),
    a_pickle=lambda p: p.write_bytes(
        b'\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.'
    ),
)


@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_answer_is_computed_anew_and_replaced(cache, how):
    question = Asked()
    ask(question)
    DAMAGE[how](only_file(cache))
    assert ask(question)['bytes'] == 42 and question.times == 2
    assert ask(question)['bytes'] == 42 and question.times == 2


def test_any_byte_that_changes_is_noticed(cache, rng):
    question = Asked()
    ask(question)
    path = only_file(cache)
    whole = path.read_bytes()
    for _ in range(60):
        raw = bytearray(whole)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        assert ask(question) == dict(bytes=42, share=0.1, name='gpt2 – “ä”')


def test_a_folder_or_a_link_in_the_way(cache, tmp_path):
    question = Asked()
    ask(question)
    path = only_file(cache)
    path.unlink()
    path.mkdir()
    assert ask(question)['bytes'] == 42
    path.rmdir()
    (tmp_path / 'other').write_text('mine')
    path.symlink_to(tmp_path / 'nothing' / 'there')
    assert ask(question)['bytes'] == 42


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))  # a file where a folder should be, also for root
    question = Asked()
    assert ask(question) == ask(question)
    assert question.times == 2 and (tmp_path / 'file').read_text() == ''


def test_what_an_answer_depends_on_is_in_its_key(cache, tmp_path):
    question = Asked()
    config = tmp_path / 'config.json'
    config.write_text('{}')
    for kw in (
        dict(model='a'),
        dict(model='b'),
        dict(model='a', packages=('torch',)),
        dict(model='a', files=(config,)),
    ):
        ask(question, **kw)
    assert question.times == 4
    config.write_text('{"hidden_size": 8}')
    ask(question, model='a', files=(config,))
    assert question.times == 5


def test_an_error_is_not_kept(cache):
    def fails():
        raise ValueError('no such model')

    for _ in range(2):
        with pytest.raises(ValueError, match='no such model'):
            ask(fails)
    assert not list(cache.rglob('*.json'))


def _asks(seed):
    r = random.Random(seed)
    return [
        kept_answer('memory', dict(model=r.choice('abc')), lambda: dict(text='x' * 20_000))['text'] for _ in range(20)
    ]


def test_many_at_once_see_whole_answers(cache):
    with multiprocessing.get_context('spawn').Pool(3) as pool:
        for texts in pool.map(_asks, range(3)):
            assert set(texts) == {'x' * 20_000}
    assert not list(cache.rglob('*.tmp'))


def test_it_can_be_switched_off(cache, monkeypatch):
    monkeypatch.setenv('FSDL_KEEP', '0')
    question = Asked()
    ask(question)
    assert not cache.exists()


def test_a_table_comes_back_as_it_was():
    t = Table(
        [dict(a='x|y', b=1.5, c=None), dict(a='[z]', b=2e9, c=True)],
        formats=dict(b='{:.1f}'.format),
        caption='C',
        notes='n',
    )
    back = Shown(json.loads(json.dumps(answer_of(t))))
    assert (repr(back), back._repr_html_(), back._repr_markdown_(), back.to_json()) == (
        repr(t),
        t._repr_html_(),
        t._repr_markdown_(),
        t.to_json(),
    )


def test_memory_says_the_same_twice(cache, capfd):
    from fsdl_tools.cli.main import run

    said = []
    for words in (['memory', 'resnet18', '--batch', '4'], ['memory', 'resnet18', '--batch', '4', '--json']):
        for keep in ('0', '1', '1'):
            os.environ['FSDL_KEEP'] = keep
            assert run(words) == 0
            said.append(capfd.readouterr().out)
    del os.environ['FSDL_KEEP']
    assert len(set(said[:3])) == len(set(said[3:])) == 1 and json.loads(said[-1])['batch'] > 0
    assert len(list(cache.rglob('memory-*.json'))) == 1


# Profiles that come with the library


def test_the_table_of_profiles_agrees_with_the_index():
    rows = {row['name']: row for row in _spec_rows()}
    for entry in index():
        row = rows.get(entry['name'])
        if row is None or row['library'] != entry['source']:
            continue
        if entry['library'] == 'timm':
            assert int(row['params']) == entry['params'] and int(row['flops']) == entry['flops'], entry['name']


def test_every_profile_is_of_a_name_of_the_zoo():
    "Names without a row are profiled when they are asked for, and kept"
    rows = [row['name'] for row in _spec_rows()]
    assert len(set(rows)) == len(rows) >= 900 and set(rows) <= {e['name'] for e in index()}


@pytest.mark.sweep(4)
@pytest.mark.parametrize('name', [row['name'] for row in _spec_rows() if int(row['params']) < 60e6][::12])
def test_a_shipped_profile_is_what_the_code_says(name):
    from fsdl_tools.models.profile import profile

    found = known_spec(name)
    if found is None:
        pytest.skip('made with other versions')
    now = profile(name)
    assert found.replace(layers=now.layers, shape=now.shape) == now


def test_another_version_is_not_believed(monkeypatch):
    import importlib.metadata as meta

    name = next(_spec_rows())['name']
    assert known_spec(name) is not None
    monkeypatch.setattr(meta, 'version', lambda package: '0.0.1')
    assert known_spec(name) is None and known_spec('no-such-model') is None
