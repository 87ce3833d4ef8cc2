"""What ./check calls: the checks of the project itself, and that they find what they look for."""
import json, shutil, subprocess, time
import pytest
from fsdl_tools.book.checks import not_exported, run_notebooks, stale_modules, unclean, untracked


@pytest.fixture
def copy(tmp_path, root):
    for part in ('settings.ini', '_quarto.yml', 'fsdl_tools'): (shutil.copytree if (root/part).is_dir() else shutil.copy)(root/part, tmp_path/part)
    shutil.copytree(root/'nbs', tmp_path/'nbs')
    return tmp_path


def test_this_project_is_exported_and_clean(root): assert (stale_modules(root), not_exported(root), unclean(root)) == ([], [], [])


def test_a_hand_edited_module_is_found(copy):
    (copy/'fsdl_tools/core.py').open('a').write('x = 1\n')
    assert not_exported(copy) == ['core.py']


def test_a_module_of_a_deleted_notebook_is_found(copy):
    (copy/'nbs/cli/06_main.ipynb').unlink()
    assert stale_modules(copy) == ['cli/main.py']


def test_an_unclean_notebook_is_found(copy):
    p = copy/'nbs/00_core.ipynb'; nb = json.loads(p.read_text())
    next(c for c in nb['cells'] if c['cell_type'] == 'code')['execution_count'] = 7
    p.write_text(json.dumps(nb))
    assert unclean(copy) == ['00_core.ipynb']


def test_a_hanging_notebook_takes_its_children_with_it(copy, tmp_path):
    cell = "import subprocess, sys; p = subprocess.Popen(['sleep', '4242']); p.wait()"
    nb = dict(cells=[dict(cell_type='code', id='a', metadata={}, source=cell, outputs=[], execution_count=None)], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')), nbformat=4, nbformat_minor=5)
    (copy/'nbs/99_hang.ipynb').write_text(json.dumps(nb))
    res = run_notebooks(copy, ['99_hang.ipynb'], timeout=10, report=lambda s: None)
    assert not res[0]['ok'] and 'killed after 10 s' in res[0]['output']
    time.sleep(.3)
    assert '4242' not in subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True).stdout
