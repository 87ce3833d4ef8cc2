"""The tables of the book: listed, dated, moved names lead somewhere, and no registry is cited by its address."""

import importlib.util
import re

from fsdl_tools.book.data import _data_files, _first_day, data_table, said_of_age, table_facts
from fsdl_tools.book.contents import moved_names, notebooks, pages
from fsdl_tools.core import read_data

REGISTRIES = re.compile(
    r'https?://[\w.-]*(pypi\.(org|python\.org)|pythonhosted\.org|npmjs\.(com|org)|anaconda\.org|conda\.io|crates\.io|hub\.docker\.com|rubygems\.org)',
    re.I,
)


def test_every_table_is_listed_and_every_listed_table_exists():
    listed = [row['name'] for row in read_data('tables.csv')]
    assert sorted(listed) == _data_files() and len(set(listed)) == len(listed)


def test_a_script_that_refreshes_a_table_exists(root):
    for row in read_data('tables.csv'):
        for script in re.findall(r'(?:benchmarks|tests)/[\w/]+\.py', row['refreshed']):
            assert (root / script).exists(), (row['name'], script)
        assert 'by hand' in row['refreshed'] or 'benchmarks/' in row['refreshed'], row['name']
        assert row['licence'] and row['what'], row['name']


def test_every_table_has_rows_and_a_newest_date():
    for fact in table_facts():
        assert fact['rows'] > 0, fact['table']
        assert re.fullmatch(r'\d{4}(-\d\d){0,2}', fact['newest']), (fact['table'], fact['newest'])


def test_a_package_is_cited_by_name_and_version(root):
    texts = [
        *(root / 'fsdl_tools/data').rglob('*.*'),
        *(root / 'nbs' / name for name in notebooks(root)),
        *root.glob('*.md'),
        *(root / 'benchmarks').glob('*.py'),
    ]
    bad = [
        (p.relative_to(root).as_posix(), m[0])
        for p in texts
        if p.suffix in ('.csv', '.json', '.ipynb', '.md', '.py')
        for m in REGISTRIES.finditer(p.read_text(encoding='utf-8'))
    ]
    assert bad == []


def test_moved_names_lead_to_what_exists(root):
    assert set(moved_names('page').values()) <= {p.name for p in pages(root)}
    for new in moved_names('module').values():
        assert importlib.util.find_spec(f'fsdl_tools.{new}'), new


def test_ages_are_told_in_words():
    import datetime

    today = datetime.date(2026, 11, 26)
    assert said_of_age('price', '2025-11-25', today).endswith('366 days old')
    assert said_of_age('price', '2025-11-24', today).endswith('367 days old: older than a year')
    assert [_first_day(d).isoformat() for d in ('2026', '2026-05', '2026-05-24')] == [
        '2026-01-01',
        '2026-05-01',
        '2026-05-24',
    ]


def test_every_table_has_an_age_and_rows_of_prices_older_than_a_year_are_counted():
    import datetime

    table = data_table(today=datetime.date(2026, 11, 26))
    assert [row['table'] for row in table.sort('age', reverse=True)][0] == table[0]['table']
    assert all(row['refreshed'] for row in table) and len(table) == len(table_facts())
    newest = max(
        _first_day(row['newest']) for row in table
    )  # a day on which the newest table is new, whenever this runs
    assert all(row['age'] >= 0 for row in data_table(today=newest))
    prices = next(row for row in table if row['table'] == 'prices.csv')
    assert prices['older'] == sum(row['date'] < '2025-11-25' for row in read_data('prices.csv', text=('date',))) > 0
