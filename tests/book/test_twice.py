"No module defines a name twice: the second definition would take the place of the first without a word"

import ast
from collections import Counter
from pathlib import Path

import fsdl_tools

ROOT = Path(fsdl_tools.__file__).parent
BY_DECORATOR = ('setter', 'getter', 'deleter', 'overload', 'register')


def defined(body):
    "Names of functions and classes that a body defines, those that a decorator gathers left out"
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            marks = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
            if not any(getattr(m, 'attr', getattr(m, 'id', '')) in BY_DECORATOR for m in marks) and node.name != '_':
                yield node.name


def twice(source):
    "Names that a module, or a class in it, defines more than once"
    tree = ast.parse(source)
    bodies = [tree.body, *(n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef))]
    return sorted(name for body in bodies for name, n in Counter(defined(body)).items() if n > 1)


def test_a_name_that_is_defined_twice_is_found():
    assert twice('def a(): pass\ndef b(): pass\ndef a(): return 1\n') == ['a']
    assert twice(
        'class A:\n  @property\n  def x(self): pass\n  @x.setter\n  def x(self, v): pass\n  def y(self): pass\n  def'
        ' y(self): pass\n'
    ) == ['y']


def test_no_module_defines_a_name_twice():
    found = {
        p.relative_to(ROOT).as_posix(): names for p in sorted(ROOT.rglob('*.py')) if (names := twice(p.read_text()))
    }
    assert not found
