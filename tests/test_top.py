"""The top of the package: what it hands on, what it costs, and what it says of names that have moved"""

import csv, importlib, pkgutil, subprocess, sys
import pytest
import fsdl_tools


def in_a_fresh_process(code):
    "What `code` prints in an interpreter of its own"
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_it_costs_nothing():
    code = (
        'import sys, time; t = time.perf_counter(); import fsdl_tools; s = time.perf_counter() - t; '
        'print(s, [m for m in ("torch", "numpy", "fastcore", "rich", "csv") if m in sys.modules])'
    )
    runs = [in_a_fresh_process(code) for _ in range(3)]
    assert all(r[1:] == ['[]'] for r in runs) and min(float(r[0]) for r in runs) < 0.2


@pytest.mark.parametrize('name', fsdl_tools._offered)
def test_what_people_come_for_is_there(name):
    module, there = fsdl_tools._offered[name]
    got = getattr(fsdl_tools, name)
    assert got is getattr(importlib.import_module(f'fsdl_tools.{module}'), there)
    assert name in dir(fsdl_tools) and got.__module__.startswith('fsdl_tools.')


def test_no_name_handed_on_is_the_name_of_a_module():
    modules = {m.name for m in pkgutil.iter_modules(fsdl_tools.__path__)}
    assert {'models', 'memory', 'table', 'testing'} <= modules and not modules & set(fsdl_tools._offered)


def test_modules_are_imported_as_ever():
    assert in_a_fresh_process(
        'import fsdl_tools.memory.measure as m; from fsdl_tools import memory; print(memory.measure is m)'
    ) == ['True']
    assert in_a_fresh_process('from fsdl_tools import table, Table; print(table.Table is Table)') == ['True']


def moved():
    with open(f'{fsdl_tools.__path__[0]}/data/moved.csv', newline='', encoding='utf-8') as f:
        return list(csv.DictReader(f))


packages = {m.name for m in pkgutil.iter_modules(fsdl_tools.__path__)}


@pytest.mark.parametrize(
    'old, new', [(r['old'], r['new']) for r in moved() if r['kind'] == 'module' and r['old'] not in packages]
)
def test_an_old_module_names_the_new_one(old, new):
    assert importlib.util.find_spec(f'fsdl_tools.{new}')
    with pytest.raises(ImportError, match=rf'fsdl_tools\.{new} now'):
        importlib.import_module(f'fsdl_tools.{old}')
    if old in fsdl_tools._offered:
        return  # profile: the function is handed on
    with pytest.raises(ImportError, match=rf'fsdl_tools\.{new} now'):
        exec(f'from fsdl_tools import {old}', {})
    with pytest.raises(AttributeError, match=rf'fsdl_tools\.{new} now'):
        getattr(fsdl_tools, old)
    assert not hasattr(fsdl_tools, old)


@pytest.mark.parametrize('row', [r for r in moved() if r['kind'] == 'name'], ids=lambda r: r['old'])
def test_a_name_that_has_moved_is_where_the_table_says(row):
    module, _, name = row['new'].rpartition('.')
    assert hasattr(importlib.import_module(f'fsdl_tools.{module}'), name)


def test_what_never_was_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="no attribute 'plann'$"):
        fsdl_tools.plann
    with pytest.raises(ModuleNotFoundError, match="No module named 'fsdl_tools.plann'"):
        importlib.import_module('fsdl_tools.plann')
