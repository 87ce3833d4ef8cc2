"""Would the tests notice? One thing at a time is changed in a library cell, and that notebook's tests and its module's pytest files are run

    python benchmarks/mutation.py run [--parts compute memory parallel] [--count 300] [--seconds 3600] [--seed 0]
    python benchmarks/mutation.py collect      # writes fsdl_tools/data/results/mutation.json
    python benchmarks/mutation.py survivors    # prints what nothing noticed, to be read one by one

What is changed: a comparison, an operator, a number, a truth value, `and` for `or`, a condition for its opposite. Which, follows from the
seed and the text of the notebooks. Drawing is left out, and so are texts, annotations and defaults. The run works in a copy of the tree and
goes on where it stopped. A change is noticed when a test fails, when nothing can be imported any more, or when the tests take ten times as
long as they should.
"""
import argparse
import ast
import collections
import datetime
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
LINES = ROOT/'.cache'/'mutation.jsonl'
RESULT = ROOT/'fsdl_tools/data/results/mutation.json'
PHYSICS = ('compute', 'memory', 'parallel')

COMPARED = {ast.Lt: '<=', ast.LtE: '<', ast.Gt: '>=', ast.GtE: '>', ast.Eq: '!=', ast.NotEq: '==', ast.In: 'not in', ast.NotIn: 'in', ast.Is: 'is not', ast.IsNot: 'is'}
COMPUTED = {ast.Add: '-', ast.Sub: '+', ast.Mult: '/', ast.Div: '*', ast.FloorDiv: '*', ast.Mod: '*', ast.Pow: '*'}
DRAWS = re.compile(r'\b(ax|axes|fig|plt|svg)\b|matplotlib|_repr_|__rich__|<svg|<path|<rect')
NAMED_DRAWING = re.compile(r'(^|_)(draw|plot|svg|html|page|show|repr|rich|tree|picture)')


def exported(notebook):
    "(index, source) of the library cells of a notebook"
    for i, cell in enumerate(json.loads(notebook.read_text())['cells']):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and re.search(r'^#\s*\|\s*exports?\b', source, re.M): yield i, source


def text_of(node, source): return ast.get_source_segment(source, node)


def at(node, source):
    "(start, end) of a node in the text, in characters"
    lines = source.splitlines(keepends=True)
    place = lambda line, column: sum(map(len, lines[:line - 1])) + len(lines[line - 1].encode()[:column].decode())
    return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)


def between(left, right, new, source):
    "What stands between two operands, replaced"
    start, end = at(left, source)[1], at(right, source)[0]
    old = source[start:end]
    symbol = re.search(r'not\s+in|is\s+not|[<>=!]=|\*\*|//|[-+*/%<>]|\bin\b|\bis\b', old)
    return symbol and (start + symbol.start(), start + symbol.end(), f' {new} ' if new.isalpha() or ' ' in new else new)


def number(value):
    "Another number"
    return repr(value + 1 if isinstance(value, int) else value*1.5 or 1.)


def changes_of(node, source):
    "(kind, start, end, new text) of what can be changed at a node"
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield 'comparison', between(node.left, node.comparators[0], COMPARED[type(node.ops[0])], source)
    if isinstance(node, ast.BinOp) and type(node.op) in COMPUTED and not any(isinstance(s, (ast.JoinedStr, ast.List)) or isinstance(s, ast.Constant) and isinstance(s.value, (str, bytes)) for s in (node.left, node.right)):
        yield 'operator', between(node.left, node.right, COMPUTED[type(node.op)], source)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield 'truth', (*at(node, source), str(not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield 'number', (*at(node, source), number(node.value))
    if isinstance(node, ast.BoolOp):
        left, right = node.values[:2]
        start, end = at(left, source)[1], at(right, source)[0]
        word = re.search(r'\b(and|or)\b', source[start:end])
        if word: yield 'and, or', (start + word.start(), start + word.end(), 'or' if word[0] == 'and' else 'and')
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        start, end = at(node.test, source)
        yield 'branch', (start, end, f'(not ({source[start:end]}))')


def bodies(tree, source):
    "The statements of each function that does not draw; formatted texts, defaults and annotations stand outside"
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and not NAMED_DRAWING.search(function.name):
            if not DRAWS.search(text_of(function, source) or ''): yield function


def inside(node):
    "A node and those below it, without texts, raised errors and inner definitions"
    if isinstance(node, (ast.JoinedStr, ast.Raise, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assert)): return
    yield node
    for child in ast.iter_child_nodes(node): yield from inside(child)


def mutants(notebook):
    "Every change that can be made in a notebook: dicts"
    for i, source in exported(notebook):
        if not source.isascii() and '\t' in source: continue
        for function in bodies(ast.parse(source), source):
            for node in (n for statement in function.body for n in inside(statement)):
                for kind, change in changes_of(node, source):
                    if not change: continue
                    start, end, new = change
                    line = source.count('\n', 0, start)
                    yield dict(notebook=notebook.relative_to(ROOT).as_posix(), cell=i, function=function.name, kind=kind, start=start, end=end, new=new,
                               was=source.splitlines()[line].strip(), becomes=(source[:start] + new + source[end:]).splitlines()[line].strip())


def drawn(parts, count, seed):
    "So many changes over the parts, by part and notebook in turn, so that no long notebook takes them all"
    generator = random.Random(seed)
    queues = {}
    for part in parts:
        books = [b for b in sorted((ROOT/'nbs'/part).rglob('*.ipynb')) if not b.name.startswith(('_', '.', 'index'))]
        lists = [list(mutants(b)) for b in books]
        for one in lists: generator.shuffle(one)
        turns = [m for turn in range(max(map(len, lists), default=0)) for m in generator.sample([one[turn] for one in lists if turn < len(one)], sum(turn < len(one) for one in lists))]
        queues[part] = collections.deque(turns)
    found = []
    while len(found) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(found) < count: found.append(queue.popleft())
    return found


def copy_of_the_tree(folder):
    "The files that git knows, and the environment by a link"
    names = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True).stdout.decode().split('\0')
    for name in filter(None, names):
        if (ROOT/name).is_file():
            (folder/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/name, folder/name)
    return folder


def module_of(notebook):
    "part.topic, from the notebook's first cell"
    return re.search(r'default_exp\s+(\S+)', notebook.read_text())[1].split('\\n')[0].strip('",')


def tests_of(module):
    "pytest files of a module's part that import it by its name"
    by_name = re.compile(rf'fsdl_tools\.{re.escape(module)}\b|from fsdl_tools\.{re.escape(module.rpartition(".")[0])} import [^\n]*\b{re.escape(module.rpartition(".")[2])}\b')
    return [p.relative_to(ROOT).as_posix() for p in sorted((ROOT/'tests').rglob('test_*.py')) if p.parent.name in (module.split('.')[0], 'tests') and by_name.search(p.read_text())]


def run(words, folder, limit):
    "(did it pass?, seconds); what runs too long did not"
    start = time.monotonic()
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE='1')
    process = subprocess.Popen(words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try: passed = process.wait(limit) == 0
    except subprocess.TimeoutExpired: passed = False
    finally:
        try: os.killpg(process.pid, 9)
        except ProcessLookupError: pass
        process.wait()
    return passed, time.monotonic() - start


EXPORT = 'import sys; from pathlib import Path; from nbdev.export import nb_export; nb_export(Path(sys.argv[1]), Path("fsdl_tools"))'


def commands(m, folder):
    "(name, words) of what is run for a change, the quickest first"
    yield 'notebook', ['nbdev_test', '--path', m['notebook'], '--n_workers', '0']
    for test in tests_of(module_of(ROOT/m['notebook'])):
        yield test, [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', '-n', '0', test]


def judge(m, folder, usual):
    "Who notices a change: a name, or nothing"
    path = folder/m['notebook']
    original = path.read_text()
    book = json.loads(original)
    source = ''.join(book['cells'][m['cell']]['source'])
    book['cells'][m['cell']]['source'] = (source[:m['start']] + m['new'] + source[m['end']:]).splitlines(keepends=True)
    path.write_text(json.dumps(book))
    try:
        run([sys.executable, '-c', EXPORT, m['notebook']], folder, 120)
        for name, words in commands(m, folder):
            passed, _ = run(words, folder, 60 + 10*usual(m, name, words))
            if not passed: return name
        return ''
    finally:
        path.write_text(original)
        run([sys.executable, '-c', EXPORT, m['notebook']], folder, 120)


def mutate(a):
    "Run, a line for each change"
    LINES.parent.mkdir(exist_ok=True)
    done = {json.loads(line)['key'] for line in LINES.read_text().splitlines()} if LINES.exists() else set()
    end, seconds, broken = time.monotonic() + a.seconds, {}, set()
    with tempfile.TemporaryDirectory(prefix='fsdl-mutation-') as d:
        folder = copy_of_the_tree(Path(d))

        def usual(m, name, words):
            key = m['notebook'] if name == 'notebook' else name
            if key not in seconds: seconds[key] = 30.
            return seconds[key]
        for m in drawn(a.parts, a.count, a.seed):
            key = f"{m['notebook']} {m['cell']} {m['start']} {m['new']} {m['was']}"
            if key in done or m['notebook'] in broken: continue
            if time.monotonic() > end: break
            for name, words in commands(m, folder):            # unchanged, everything has to pass, or nothing can be said
                known = m['notebook'] if name == 'notebook' else name
                if known in seconds: continue
                passed, seconds[known] = run(words, folder, 900)
                if not passed:
                    print(f'fails as it is: {known}', file=sys.stderr, flush=True)
                    broken.add(m['notebook'])
            if m['notebook'] in broken: continue
            start = time.monotonic()
            by = judge(m, folder, usual)
            row = dict(key=key, part=m['notebook'].split('/')[1], by=by, seconds=round(time.monotonic() - start, 1), **{k: m[k] for k in ('notebook', 'function', 'kind', 'was', 'becomes')})
            with LINES.open('a') as f: f.write(json.dumps(row) + '\n')
            print('noticed ' if by else 'SURVIVED', by or '-', m['notebook'], m['function'], '|', m['was'], '->', m['becomes'], file=sys.stderr, flush=True)


def rows(): return [json.loads(line) for line in LINES.read_text().splitlines()]


def collect(a):
    "The result file"
    table = collections.defaultdict(lambda: dict(changes=0, noticed=0, by_notebook=0))
    for r in rows():
        for key in (r['part'], f"kind: {r['kind']}", 'all', *(['physics'] if r['part'] in PHYSICS else [])):
            table[key]['changes'] += 1
            table[key]['noticed'] += bool(r['by'])
            table[key]['by_notebook'] += r['by'] == 'notebook'
    survived = [{k: r[k] for k in ('notebook', 'function', 'kind', 'was', 'becomes')} for r in rows() if not r['by']]
    found = dict(date=datetime.date.today().isoformat(), conditions='one change at a time; the notebook first, then the pytest files that import its module', table=[dict(what=k, **v) for k, v in sorted(table.items())], survived=survived)
    RESULT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + '\n')
    print(json.dumps(found['table'], indent=1))


def survivors(a):
    for r in rows():
        if not r['by']: print(r['notebook'], r['function'], r['kind'], '\n    ', r['was'], '\n    ', r['becomes'])


def main():
    p = argparse.ArgumentParser()
    p.add_argument('what', choices=['run', 'collect', 'survivors'])
    p.add_argument('--parts', nargs='*', default=sorted(p.name for p in (ROOT/'nbs').iterdir() if p.is_dir() and (p/'index.ipynb').exists()))
    p.add_argument('--count', type=int, default=300)
    p.add_argument('--seconds', type=float, default=3600)
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    {'run': mutate, 'collect': collect, 'survivors': survivors}[a.what](a)


if __name__ == '__main__': main()
