"""Every public name, method and field has its entry on the site, with words."""

import dataclasses
import importlib
import inspect
import re

import pytest

from fsdl_tools.book.entries import Entry, _own_methods, _class_tree
from fsdl_tools.book.markdown import signature
from fsdl_tools.book.names import library_modules, public_names, undocumented

NOISE = re.compile(r'Call self|Initialize self|__\w+__\(')


def public_objects(root, kind):
    "(module, name, object) of every public class or function of the library"
    for module, tree in library_modules(root).items():
        loaded = importlib.import_module(f'fsdl_tools.{module}')
        for name in public_names(tree):
            found = getattr(loaded, name, None)
            if kind(found) and found.__module__ == loaded.__name__:
                yield module, name, found


def test_every_class_has_an_entry_for_each_of_its_methods(root):
    wrong = []
    for module, name, cls in public_objects(root, inspect.isclass):
        text = str(Entry(cls))
        anchors = re.findall(r'\{#([\w.]+) \.api\}', text)
        tree = _class_tree(cls)
        expected = [name, *(f'{name}.{method}' for method in _own_methods(cls, tree))]
        if anchors != [e.lower() for e in expected]:
            wrong.append((module, name, anchors))
        if NOISE.search(text):
            wrong.append((module, name, 'noise'))
    assert not wrong, wrong


def test_every_field_of_every_record_has_a_row_and_the_words_of_its_comment(root):
    wrong, gaps = [], undocumented(root)
    for module, name, cls in public_objects(root, dataclasses.is_dataclass):
        rows = dict(re.findall(r'^\| <code>(.+?)</code> \| .*? \| (.*?) \|', str(Entry(cls)), re.M))
        rows = {re.sub('&#95;', '_', field): words for field, words in rows.items()}
        fields = [f.name for f in dataclasses.fields(cls) if f.name[0] != '_']
        if list(rows) != fields:
            wrong.append((module, name, set(fields) ^ set(rows)))
        wrong += [
            (module, name, field)
            for field, words in rows.items()
            if bool(words.strip()) == (f'{module}: {name}.{field}: no comment' in gaps)
        ]
    assert not wrong, wrong


def test_no_line_of_a_signature_runs_far_out_of_the_column(root):
    wide = [
        (module, name, line)
        for module, name, f in public_objects(root, inspect.isfunction)
        for line in str(Entry(f)).split('```')[1].split('\n')
        if len(line) > 120
    ]
    assert not wide, wide


@pytest.mark.parametrize('linked', [True, False])
def test_an_entry_becomes_a_heading_with_its_anchor(linked):
    text = '---\n\n[source](https://example.com/a.py#L1){target="_blank"}\n\n### C {#c .api}\n\n#### C.f {#c.f .api}\n'
    page = signature(text, linked)
    assert '### `C` { #c .api }' in page and '#### `C.f` { #c.f .api }' in page
    assert ('source-link' in page) == linked and '---' not in page
