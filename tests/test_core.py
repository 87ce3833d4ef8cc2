"""Formatters, parsers, tables and files, on whatever Hypothesis can think of."""

import json, os, re, subprocess, sys, time
from dataclasses import dataclass
from typing import Optional
import pytest
from hypothesis import given, strategies as st
from fsdl_tools.core import Record, fix_torchvision, need
from fsdl_tools.units import GiB, human_bytes, human_count, human_dollars, human_seconds
from fsdl_tools.core import one_of, read_data
from fsdl_tools.units import parse_bytes, parse_count, parse_seconds
from fsdl_tools.files import scratch, write_atomic
from fsdl_tools.table import Table, table_html, table_markdown

numbers = st.floats(min_value=0, max_value=1e20, allow_nan=False)


@given(st.integers(0, 2**62))
def test_bytes_survive_the_round_trip(n):
    assert abs(parse_bytes(human_bytes(n)) - n) <= max(0.005 * n, 0)


@given(st.integers(0, 10**17))
def test_counts_survive_the_round_trip(n):
    if n < 10**15:
        assert abs(parse_count(human_count(n)) - n) <= 0.05 * n


@given(st.floats(1e-7, 1e9))
def test_seconds_survive_the_round_trip(s):
    assert abs(parse_seconds(human_seconds(s).replace(',', '')) / s - 1) <= 0.01 or s < 1e-6


@given(st.floats())
def test_no_number_breaks_a_formatter(x):
    for f in (human_bytes, human_count, human_seconds, human_dollars):
        assert isinstance(f(x), str)


@given(numbers, numbers)
def test_longer_never_prints_as_less(a, b):
    if a < b:
        assert parse_bytes(human_bytes(a)) <= parse_bytes(human_bytes(b))


@given(st.text())
def test_parsers_answer_or_refuse(s):
    for f in (parse_bytes, parse_count, parse_seconds):
        try:
            v = f(s)
        except ValueError as e:
            assert repr(s) in str(e)
        else:
            assert v == v and abs(v) < float('inf')


@given(st.text(), st.lists(st.text(), min_size=1))
def test_one_of_names_what_was_given(name, choices):
    try:
        assert one_of('thing', name, choices) in choices
    except ValueError as e:
        assert repr(name) in str(e)


cells = st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.booleans())


@given(st.lists(st.dictionaries(st.text(min_size=1), cells, min_size=1, max_size=4), max_size=5))
def test_a_table_shows_anything_and_breaks_nothing(rows):
    t = Table(rows)
    assert (
        '<script' not in table_html(t).lower()
        or any('<script' in str(r).lower() for r in rows)
        and '&lt;script' in table_html(t).lower()
    )
    assert all(line.startswith('|') for line in table_markdown(t).split('\n') if line)
    repr(t)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    p = write_atomic(tmp_path / 'a.json', 'old')

    def full(fd):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        write_atomic(p, 'new')
    assert p.read_text() == 'old' and os.listdir(tmp_path) == ['a.json']


@dataclass(frozen=True)
class Point(Record):
    x: int
    y: Optional[float] = None
    tags: tuple[str, ...] = ()


@given(st.integers(), st.none() | st.floats(allow_nan=False, allow_infinity=False), st.lists(st.text()).map(tuple))
def test_records_survive_json(x, y, tags):
    assert Point.from_json(Point(x, y, tags).to_json()) == Point(x, y, tags)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
        max_leaves=6,
    )
)
def test_a_record_refuses_what_is_not_one(d):
    try:
        r = Point.from_dict(d)
    except (ValueError, TypeError):
        return
    assert set(d) <= {'x', 'y', 'tags'} and isinstance(r.x, int)


def test_importing_is_cheap():
    code = (
        'import sys, time; t = time.perf_counter(); import fsdl_tools, fsdl_tools.core; print(time.perf_counter() - t,'
        ' "torch" in sys.modules, "numpy" in sys.modules)'
    )
    runs = [
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert all(r[1:] == ['False', 'False'] for r in runs)
    print('import seconds', min(float(r[0]) for r in runs))


def test_a_missing_package_names_its_extra():
    with pytest.raises(ImportError, match=r"pip install 'fsdl_tools\[frameworks\]'"):
        need('jax_that_is_not_there', 'frameworks')


def test_an_error_inside_a_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / 'halfbroken.py').write_text('import not_there_at_all')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='not_there_at_all') as e:
        need('halfbroken')
    assert 'pip install' not in str(e.value)


def test_triton_comes_before_tensorflow(tmp_path, root):
    "After it, it is a segmentation fault; so nothing imports TensorFlow but `need`"
    (tmp_path / 'triton.py').write_text('')
    for name in ('tensorflow', 'keras', 'tf2onnx'):
        (tmp_path / f'{name}.py').write_text('import sys; assert "triton" in sys.modules')
        subprocess.run(
            [sys.executable, '-c', f'from fsdl_tools.core import need; need({name!r})'],
            env=dict(os.environ, PYTHONPATH=f'{tmp_path}:{root}'),
            check=True,
        )
    sources = [*root.glob('fsdl_tools/**/*.py'), *root.glob('nbs/*.ipynb'), *root.glob('nbs/*/*.ipynb')]
    assert not [
        p.name for p in sources if re.search(r'^[ "]*import (tensorflow|tf2onnx)', p.read_text(encoding='utf-8'), re.M)
    ]


def test_every_data_row_has_source_and_date(root):
    import csv

    as_a_whole = {'digits.csv', 'planner_errors.csv', 'lecture.csv'}  # one source and date for all rows, in tables.csv
    listed = {r['name']: r for r in csv.DictReader((root / 'fsdl_tools/data/tables.csv').open(encoding='utf-8'))}
    assert all(listed[n]['source'] and listed[n]['date'] for n in as_a_whole)
    for p in (root / 'fsdl_tools/data').glob('*.csv'):
        if p.name in as_a_whole:
            continue
        with open(p, newline='', encoding='utf-8') as f:
            rows = list(csv.DictReader(f))
        assert rows and {'source', 'date'} <= set(rows[0]), p.name
        for i, r in enumerate(rows):
            if p.name == 'links.csv' and r['system']:
                continue  # what is said of a system stands in systems.csv, with source and date
            assert r['source'] and r['date'] and None not in r, (p.name, i + 2)


def test_timm_and_torchvision_import_beside_this_torch():
    code = (
        'from fsdl_tools.core import fix_torchvision; print(fix_torchvision()); import torchvision, timm;'
        ' print(timm.__version__)'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).returncode == 0


# ---- folders to work in ----


def test_a_scratch_folder_goes_with_its_owner_however_that_ends(tmp_path):
    code = (
        'import os, sys, time; from fsdl_tools.files import scratch; s = scratch(".a-", sys.argv[1]); s.__enter__();'
        ' print("up", flush=True); time.sleep(60)'
    )
    start = lambda: subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    killed, alive = start(), start()
    for p in (killed, alive):
        assert p.stdout.readline() == 'up\n'
    (tmp_path / '.a-mine').mkdir()  # by somebody else: no owner is written down
    (tmp_path / '.a-file').write_text('mine')
    killed.kill()
    killed.wait()
    time.sleep(2.1)
    with scratch('.a-', tmp_path) as made:
        (made / 'x').write_text('y')
        assert len(list(tmp_path.iterdir())) == 4 and made.exists()  # the living one, ours, and what is not ours
    assert not made.exists()
    alive.kill()
    alive.wait()
    with pytest.raises(RuntimeError), scratch('.a-', tmp_path) as made:
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir() if p != made)[-2:] == ['.a-file', '.a-mine'] and not made.exists()
