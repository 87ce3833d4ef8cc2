"""Measure the functions of a library, and put the row into fsdl_tools/data/readability.csv

    python benchmarks/readability.py FOLDER --project NAME --version VERSION --source SOURCE

SOURCE is as it is cited: "PyPI: name version", or a repository with its commit.
"""

import argparse
import csv
import datetime
import io
from pathlib import Path

from fsdl_tools.book.measure import measure_code
from fsdl_tools.files import write_atomic

TABLE = Path(__file__).parent.parent / 'fsdl_tools/data/readability.csv'


def main():
    p = argparse.ArgumentParser()
    p.add_argument('folder', type=Path)
    for name in ('project', 'version', 'source'):
        p.add_argument(f'--{name}', required=True)
    p.add_argument('--skip', nargs='*', default=['_modidx.py'])
    a = p.parse_args()
    rows = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    found = measure_code(a.folder, tuple(a.skip))
    row = dict(project=a.project, version=a.version, **found, source=a.source, date=datetime.date.today().isoformat())
    rows = [r for r in rows if r['project'] != a.project] + [row]
    text = io.StringIO()
    table = csv.DictWriter(text, list(row), lineterminator='\n')
    table.writeheader()
    table.writerows(rows)
    write_atomic(TABLE, text.getvalue())
    print(row)


if __name__ == '__main__':
    main()
