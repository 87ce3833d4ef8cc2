"""What a page shows runs: the visible cells of every page in order, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsdl_tools.book.contents import notebooks
from fsdl_tools.book.visible import visible_code

ROOT = Path(__file__).parents[2]
START = 'from IPython.display import display\n'  # a notebook has it without asking


def run(code, folder, tmp_path):
    "Run a script in a folder as a notebook's cells would be"
    script = tmp_path / 'page.py'
    script.write_text(START + code)
    env = os.environ | dict(IN_TEST='1', PYTHONPATH=str(ROOT), MPLBACKEND='Agg')
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=env, capture_output=True, text=True, timeout=280
    )


@pytest.mark.sweep(3)
@pytest.mark.parametrize('notebook', notebooks(ROOT))
def test_what_a_page_shows_runs_in_order(notebook, tmp_path):
    done = run(visible_code(ROOT, notebook), (ROOT / 'nbs' / notebook).parent, tmp_path)
    assert done.returncode == 0, done.stderr[-1500:]


def test_a_page_whose_import_is_missing_does_not_run(tmp_path):
    code = visible_code(ROOT, 'models/02_zoo.ipynb')
    lines = [line for line in code.split('\n') if not line.startswith('from fsdl_tools.models.zoo')]
    done = run('\n'.join(lines), tmp_path, tmp_path)
    assert done.returncode == 1 and 'NameError' in done.stderr


def test_an_anchor_stands_once_on_a_page():
    from types import SimpleNamespace
    from fsdl_tools.book import visible

    text = ['## Answer\nx', '<a id="_flat"></a><a id="_flat"></a><a id="answer"></a>', '## Answer', '### Other']
    cells = [SimpleNamespace(cell_type='markdown', source=s) for s in text]
    visible._headings_apart(cells, visible._anchors_once(cells, {'answer'}))
    assert [c.source for c in cells] == [
        '## Answer {#about-answer}\nx',
        '<a id="_flat"></a>',
        '## Answer {#about-answer-2}',
        '### Other',
    ]
