"What a module imports when it is imported, kept: a light module that becomes heavy is a diff one can read"

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fsdl_tools.book.needs import _imported_modules, _outside
from tests.answers import same_answers

ROOT = Path(__file__).parents[2]
HEAVY = (
    'numpy pandas torch timm transformers onnx onnxruntime matplotlib scipy jax tensorflow lightning streamlit'.split()
)
FILES = [p.relative_to(ROOT) for p in (ROOT / 'fsdl_tools').rglob('*.py') if p.name != '_modidx.py']
MODULES = sorted('.'.join(p.with_suffix('').parts).removesuffix('.__init__') for p in FILES)


def written(module):
    "The packages from outside that the import of a module brings, as the sources say"
    return {_outside(m, 'fsdl_tools') for m in _imported_modules(ROOT, [(module, '')], 'fsdl_tools')} - {None}


def test_what_each_module_imports(request):
    same_answers(request, 'imports', {module: sorted(written(module)) for module in MODULES})


@pytest.mark.sweep(3)
@pytest.mark.parametrize('module', MODULES)
def test_a_light_module_is_light_in_a_process_of_its_own(module):
    "Nor does what it names bring what it does not name: numpy comes with torch, torch with nothing"
    brought = {'torch': {'numpy'}, 'pandas': {'numpy'}, 'matplotlib': {'numpy'}, 'onnx': {'numpy'}, 'scipy': {'numpy'}}
    named = written(module) & {*HEAVY}
    if named - {'numpy', 'torch'}:
        pytest.skip(f'it imports {", ".join(sorted(named))} and what these bring')
    allowed = named.union(*(brought.get(n, set()) for n in named))
    code = f'import sys, json, {module}; print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) <= allowed
