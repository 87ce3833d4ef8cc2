"""Would the tests notice? One thing at a time is changed in a library cell, and that notebook's tests and its
module's pytest files are run

    python benchmarks/mutation.py run [--parts compute memory parallel] [--count 300] [--seconds 3600] [--seed 0]
    [--share 1/1]
    python benchmarks/mutation.py collect [--before LINES]      # writes fsdl_tools/data/results/mutation.json
    python benchmarks/mutation.py survivors    # prints what nothing noticed, to be read one by one

What is changed: a comparison, an operator, a number, a truth value, `and` for `or`, a condition for its opposite.
Which, follows from the
seed and the text of the notebooks. Drawing is left out, and so are texts, annotations and defaults. The run works in
a copy of the tree and
goes on where it stopped. A change is noticed when a test fails that passes without it, when nothing can be imported
any more, or when the
tests do not end. Changes that nobody can see, read one by one, stand in mutation_equivalent.csv with the reason.
"""

import argparse
import ast
import collections
import contextlib
import csv
import datetime
import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINES = Path(os.environ.get('MUTATION_LINES', ROOT / '.cache' / 'mutation.jsonl'))
EQUIVALENT = ROOT / 'benchmarks/mutation_equivalent.csv'
RESULT = ROOT / 'fsdl_tools/data/results/mutation.json'
PHYSICS = ('compute', 'memory', 'parallel')
HEAVY = (
    'numpy',
    'pandas',
    'torch',
    'timm',
    'transformers',
    'onnx',
    'onnxruntime',
    'matplotlib.pyplot',
    'pytest',
    'hypothesis',
    'nbdev.test',
    'nbdev.export',
    'IPython',
)
QUICK = ('test_answers.py', 'test_noticed.py')
KEPT = []  # operators of torchvision live as long as the module that defined them
LIMIT = 400  # seconds for a notebook or a file of tests; none takes a third of it

COMPARED = {
    ast.Lt: '<=',
    ast.LtE: '<',
    ast.Gt: '>=',
    ast.GtE: '>',
    ast.Eq: '!=',
    ast.NotEq: '==',
    ast.In: 'not in',
    ast.NotIn: 'in',
    ast.Is: 'is not',
    ast.IsNot: 'is',
}
COMPUTED = {ast.Add: '-', ast.Sub: '+', ast.Mult: '/', ast.Div: '*', ast.FloorDiv: '*', ast.Mod: '*', ast.Pow: '*'}
DRAWS = re.compile(r'\b(ax|axes|fig|plt|svg)\b|matplotlib|_repr_|__rich__|<svg|<path|<rect')
NAMED_DRAWING = re.compile(r'(^|_)(draw|plot|svg|html|page|show|repr|rich|tree|picture)')


def exported(notebook):
    "(index, source) of the library cells of a notebook"
    for i, cell in enumerate(json.loads(notebook.read_text())['cells']):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and re.search(r'^#\s*\|\s*exports?\b', source, re.M):
            yield i, source


def text_of(node, source):
    return ast.get_source_segment(source, node)


def at(node, source):
    "(start, end) of a node in the text, in characters"
    lines = source.splitlines(keepends=True)
    place = lambda line, column: sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())
    return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)


def between(left, right, new, source):
    "What stands between two operands, replaced"
    start, end = at(left, source)[1], at(right, source)[0]
    old = source[start:end]
    symbol = re.search(r'not\s+in|is\s+not|[<>=!]=|\*\*|//|[-+*/%<>]|\bin\b|\bis\b', old)
    return symbol and (start + symbol.start(), start + symbol.end(), f' {new} ' if new.isalpha() or ' ' in new else new)


def number(value):
    "Another number"
    return repr(value + 1 if isinstance(value, int) else value * 1.5 or 1.0)


def changes_of(node, source):
    "(kind, start, end, new text) of what can be changed at a node"
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield 'comparison', between(node.left, node.comparators[0], COMPARED[type(node.ops[0])], source)
    if (
        isinstance(node, ast.BinOp)
        and type(node.op) in COMPUTED
        and not any(
            isinstance(s, (ast.JoinedStr, ast.List))
            or isinstance(s, ast.Constant)
            and isinstance(s.value, (str, bytes))
            for s in (node.left, node.right)
        )
    ):
        yield 'operator', between(node.left, node.right, COMPUTED[type(node.op)], source)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield 'truth', (*at(node, source), str(not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield 'number', (*at(node, source), number(node.value))
    if isinstance(node, ast.BoolOp):
        left, right = node.values[:2]
        start, end = at(left, source)[1], at(right, source)[0]
        word = re.search(r'\b(and|or)\b', source[start:end])
        if word:
            yield 'and, or', (start + word.start(), start + word.end(), 'or' if word[0] == 'and' else 'and')
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        start, end = at(node.test, source)
        yield 'branch', (start, end, f'(not ({source[start:end]}))')


def bodies(tree, source):
    "The statements of each function that does not draw; formatted texts, defaults and annotations stand outside"
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and not NAMED_DRAWING.search(function.name):
            if not DRAWS.search(text_of(function, source) or ''):
                yield function


def inside(node):
    "A node and those below it, without texts, raised errors and inner definitions"
    if isinstance(node, (ast.JoinedStr, ast.Raise, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assert)):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from inside(child)


def mutants(notebook):
    "Every change that can be made in a notebook: dicts"
    for i, source in exported(notebook):
        if not source.isascii() and '\t' in source:
            continue
        for function in bodies(ast.parse(source), source):
            for node in (n for statement in function.body for n in inside(statement)):
                for kind, change in changes_of(node, source):
                    if not change:
                        continue
                    start, end, new = change
                    line = source.count('\n', 0, start)
                    yield dict(
                        notebook=notebook.relative_to(ROOT).as_posix(),
                        cell=i,
                        function=function.name,
                        kind=kind,
                        start=start,
                        end=end,
                        new=new,
                        was=source.splitlines()[line].strip(),
                        becomes=(source[:start] + new + source[end:]).splitlines()[line].strip(),
                    )


def parts():
    "The parts of the course, the ground floor among them"
    return sorted(p.name for p in (ROOT / 'nbs').iterdir() if p.is_dir() and (p / 'index.ipynb').exists())


def books_of(part):
    "A part's notebooks that have library cells to change"
    folder = ROOT / 'nbs'
    return sorted(
        folder.glob('0*.ipynb')
        if part == 'ground'
        else (b for b in (folder / part).rglob('*.ipynb') if not b.name.startswith(('_', '.', 'index')))
    )


def part_of(notebook):
    return 'ground' if notebook.parent.name == 'nbs' else notebook.parent.name


def drawn(parts, count, seed):
    "So many changes over the parts, by part and notebook in turn, so that no long notebook takes them all"
    generator = random.Random(seed)
    queues = {}
    for part in parts:
        books = books_of(part)
        lists = [list(mutants(b)) for b in books]
        for one in lists:
            generator.shuffle(one)
        turns = [
            m
            for turn in range(max(map(len, lists), default=0))
            for m in generator.sample(
                [one[turn] for one in lists if turn < len(one)], sum(turn < len(one) for one in lists)
            )
        ]
        queues[part] = collections.deque(turns)
    found = []
    while len(found) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(found) < count:
                found.append(queue.popleft())
    return found


def copy_of_the_tree(folder):
    "The files that git knows, and the environment by a link"
    names = (
        subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True).stdout.decode().split('\0')
    )
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def module_of(notebook):
    "part.topic, from the notebook's first cell"
    return re.search(r'default_exp\s+(\S+)', notebook.read_text())[1].split('\\n')[0].strip('",')


def tests_of(module):
    "pytest files of a module's part that import it by its name; for commands, those that type them"
    above = '.'.join(['fsdl_tools', *module.split('.')[:-1]])
    by_name = re.compile(
        rf'fsdl_tools\.{re.escape(module)}\b|from {re.escape(above)} import'
        rf' (?:[^\n(]*|\([^)]*)\b{re.escape(module.rpartition(".")[2])}\b'
    )
    part = module.partition('.')[0]
    typed = {'cli': ('test_cli.py', 'test_answers.py')}.get(part, ())
    folder = part if (ROOT / 'nbs' / part).is_dir() else 'ground'
    files = [p for p in sorted((ROOT / 'tests').rglob('test_*.py')) if p.parent.name in (folder, 'tests')]
    return [p.relative_to(ROOT).as_posix() for p in files if by_name.search(p.read_text()) or p.name in typed]


def prepare():
    "Import what most tests import, so that each of them starts from a copy of this process"
    for name, value in dict(
        OMP_NUM_THREADS='1',
        TF_CPP_MIN_LOG_LEVEL='3',
        JAX_PLATFORMS='cpu',
        HF_HUB_OFFLINE='1',
        MPLBACKEND='Agg',
        PYTHONDONTWRITEBYTECODE='1',
    ).items():
        os.environ[name] = value
    sys.dont_write_bytecode = True
    from fsdl_tools.core import fix_torchvision

    fix_torchvision()
    KEPT.extend(
        sys.modules.pop(name) for name in list(sys.modules) if name.partition('.')[0] == 'fsdl_tools'
    )  # tests import the copy's
    for name in HEAVY:
        importlib.import_module(name)


def export(folder, notebook):
    "The notebook's module, written again"
    from nbdev.export import nb_export

    nb_export(folder / notebook, folder / 'fsdl_tools')


def notebook_passes(folder, notebook):
    "Does the notebook run to its end, its tests included?"
    from nbdev.config import get_config
    from nbdev.test import test_nb

    os.chdir(folder / 'nbs')
    return test_nb(folder / notebook, skip_flags=get_config(path=folder).tst_flags.split(), basepath=folder)[0]


def pytest_passes(folder, file):
    "Do the tests of a file pass?"
    import pytest

    return pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '-n', '0', file]) == 0


def apart(function, folder, *args, limit):
    "Does a function return True in a process of its own, in `folder`? What runs longer than `limit` seconds does not"
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nothing, stream)
            os.environ['PYTHONPATH'] = str(folder)
            sys.path.insert(0, str(folder))
            sys.argv[:] = ['pytest']
            code = 0 if function(folder, *args) in (True, None) else 1
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        time.sleep(0.02)
    else:
        status = 1
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, 9)
    if not found:
        os.waitpid(child, 0)
    return status == 0


def checks_of(notebook, only_quick=False):
    """(name, function) of what could notice a change in a notebook, the quickest first: kept answers, the notebook,
    other tests
    """
    tests = tests_of(module_of(ROOT / notebook))
    quick = [t for t in tests if t.endswith(QUICK)]
    for test in quick:
        yield test, pytest_passes
    if only_quick:
        return
    yield notebook, notebook_passes
    for test in tests:
        if test not in quick:
            yield test, pytest_passes


def changed(m, text):
    "A notebook's text with the change made"
    book = json.loads(text)
    source = ''.join(book['cells'][m['cell']]['source'])
    book['cells'][m['cell']]['source'] = (source[: m['start']] + m['new'] + source[m['end'] :]).splitlines(
        keepends=True
    )
    return json.dumps(book)


@contextlib.contextmanager
def made(m, folder):
    "The change, in the copy of the tree, for a while"
    path, modules = folder / m['notebook'], sorted((folder / 'fsdl_tools').rglob('*.py'))
    text, before = path.read_text(), {p: p.read_bytes() for p in modules}
    path.write_text(changed(m, text))
    try:
        apart(export, folder, m['notebook'], limit=120)
        yield
    finally:
        path.write_text(text)
        for p, content in before.items():
            if p.read_bytes() != content:
                p.write_bytes(content)


def judge(m, folder, sound, only_quick=False):
    "Who notices a change: a name, or nothing. What fails without the change too says nothing, and `sound` remembers it"
    for name, check in checks_of(m['notebook'], only_quick):
        if sound.get(name) is False:
            continue
        with made(m, folder):
            if apart(check, folder, name, limit=LIMIT):
                continue
        if name not in sound:
            sound[name] = apart(check, folder, name, limit=LIMIT)
            if not sound[name]:
                print(f'fails as it is: {name}', file=sys.stderr, flush=True)
        if sound[name]:
            return name
    return ''


def mutate(a):
    "Run, a line for each change"
    LINES.parent.mkdir(exist_ok=True)
    done = {json.loads(line)['key'] for line in LINES.read_text().splitlines()} if LINES.exists() else set()
    end, sound = time.monotonic() + a.seconds, {}
    share, shares = map(int, a.share.split('/'))
    prepare()
    with tempfile.TemporaryDirectory(prefix='fsdl-mutation-') as d:
        folder = copy_of_the_tree(Path(d))
        books = sorted({m['notebook'] for m in drawn(a.parts, a.count, a.seed)})
        for m in drawn(a.parts, a.count, a.seed):
            key = f"{m['notebook']} {m['cell']} {m['start']} {m['new']} {m['was']}"
            if key in done or books.index(m['notebook']) % shares != share - 1:
                continue
            if time.monotonic() > end:
                break
            start = time.monotonic()
            by = judge(m, folder, sound, a.quick)
            row = dict(
                key=key,
                part=part_of(ROOT / m['notebook']),
                by=by,
                seconds=round(time.monotonic() - start, 1),
                **{k: m[k] for k in ('notebook', 'function', 'kind', 'was', 'becomes')},
            )
            with LINES.open('a') as f:
                f.write(json.dumps(row) + '\n')
            print(
                'noticed ' if by else 'SURVIVED',
                by or '-',
                m['notebook'],
                m['function'],
                '|',
                m['was'],
                '->',
                m['becomes'],
                file=sys.stderr,
                flush=True,
            )


def rows():
    return [json.loads(line) for line in LINES.read_text().splitlines()]


def equivalents():
    "(notebook, function, was, becomes) -> why nobody can see the change: read one by one"
    with EQUIVALENT.open(newline='') as f:
        return {(r['notebook'], r['function'], r['was'], r['becomes']): r['why'] for r in csv.DictReader(f)}


def summary(found):
    "Changes, those that nobody can see, those that were noticed, by part, by kind and in all"
    table, unseen = (
        collections.defaultdict(lambda: dict(changes=0, equivalent=0, noticed=0, by_answers=0, by_notebook=0)),
        equivalents(),
    )
    for r in found:
        for key in (r['part'], f"kind: {r['kind']}", 'all', *(['physics'] if r['part'] in PHYSICS else [])):
            row = table[key]
            row['changes'] += 1
            row['equivalent'] += not r['by'] and named(r) in unseen
            row['noticed'] += bool(r['by'])
            row['by_answers'] += r['by'].endswith(QUICK)
            row['by_notebook'] += r['by'] == r['notebook']
    return [dict(what=k, **v) for k, v in sorted(table.items())]


def named(r):
    return tuple(r[k] for k in ('notebook', 'function', 'was', 'becomes'))


def collect(a):
    "The result file; what a file of earlier lines says is kept beside it"
    unseen = equivalents()
    survived = [
        dict({k: r[k] for k in ('notebook', 'function', 'kind', 'was', 'becomes')}, why=unseen.get(named(r), ''))
        for r in rows()
        if not r['by']
    ]
    found = dict(
        date=datetime.date.today().isoformat(),
        seed=a.seeds or a.seed,
        conditions=(
            'one change at a time; kept answers first, then the notebook, then the other pytest files that import its'
            f' module{a.note}'
        ),
        table=summary(rows()),
        survived=survived,
    )
    before = Path(a.before) if a.before else None
    if before:
        found['before'] = summary([json.loads(line) for line in before.read_text().splitlines()])
    RESULT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + '\n')
    print(json.dumps(found['table'], indent=1))


def survivors(a):
    for r in rows():
        if not r['by']:
            print(r['notebook'], r['function'], r['kind'], '\n    ', r['was'], '\n    ', r['becomes'])


def main():
    p = argparse.ArgumentParser()
    p.add_argument('what', choices=['run', 'collect', 'survivors'])
    p.add_argument('--parts', nargs='*', default=parts())
    p.add_argument('--count', type=int, default=300)
    p.add_argument('--seconds', type=float, default=3600)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--seeds', help='collect: which, where there were several')
    p.add_argument('--note', default='', help='collect: what else to say of the conditions')
    p.add_argument('--before', help='collect: a file of lines of an earlier state of the tests')
    p.add_argument(
        '--quick', action='store_true', help='ask the kept answers only; for a file of lines of its own: MUTATION_LINES'
    )
    p.add_argument('--share', default='1/1', help='1/2 and 2/2 in two processes at once')
    a = p.parse_args()
    {'run': mutate, 'collect': collect, 'survivors': survivors}[a.what](a)


if __name__ == '__main__':
    main()
