"""Answers of the library as they were, kept beside the tests: what changes one of them has to say so

A test draws inputs from a seed, computes, and hands what came out to `same_answers`. It is compared with
`tests/<part>/answers/<name>.json`,
an answer a line, so that a change of behaviour is a diff one can read: run the test with --keep-answers, look at the
diff, commit it. Such a
test does not know what is right; it knows that somebody changed it.
"""

import json
import math
import re
import sys
from pathlib import Path

import pytest

from fsdl_tools.files import write_atomic

TOLERANCE = 1e-6  # relative; sums in another order differ by less
KEPT_ON = 'linux', (3, 11)  # elsewhere Python's own errors have other words
HERE = {sys.executable: 'PYTHON', str(Path(__file__).parents[1]): 'ROOT'}  # what differs by machine: the longer first


def anywhere(text):
    "A text without the folders of this machine"
    for place, name in HERE.items():
        if len(place) > 1:
            text = re.sub(rf'{re.escape(place)}(?=$|\W)', name, text)
    return text


def plain(value):
    "Numbers, texts, lists and dicts with texts as keys; everything else by its repr"
    if hasattr(value, 'tolist') and not isinstance(value, type):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(v) for v in value), key=repr)
    if isinstance(value, float):
        return float(f'{value:.9g}') if math.isfinite(value) else repr(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    return anywhere(value if isinstance(value, str) else repr(value))


def equal(a, b):
    "The same up to the tolerance of numbers"
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def answer(function, *args, **kw):
    "What a call returns, or which error it raises with which words"
    try:
        return plain(function(*args, **kw))
    except Exception as e:
        return f'{type(e).__name__}: {e}'


def write(path, found):
    "An answer a line"
    path.parent.mkdir(exist_ok=True)
    lines = [f'{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}' for k, v in found.items()]
    write_atomic(path, '{\n' + ',\n'.join(lines) + '\n}\n')


def same_answers(request, name, found):
    "Compare answers, a dict by the question, with those that are kept"
    path = Path(request.path).parent / 'answers' / f'{name}.json'
    found = json.loads(json.dumps({anywhere(str(k)): plain(v) for k, v in found.items()}))
    if request.config.option.keep_answers:
        write(path, found)
    kept = json.loads(path.read_text(encoding='utf-8'))
    differ = [k for k in {**kept, **found} if not (k in kept and k in found and equal(kept[k], found[k]))]
    said = [
        f'{k}\n  was {json.dumps(kept.get(k, "not asked"))[:400]}\n  is  {json.dumps(found.get(k, "not asked"))[:400]}'
        for k in differ[:5]
    ]
    if differ and (sys.platform, sys.version_info[:2]) != KEPT_ON:
        pytest.skip(f'{len(differ)} of {len(kept)} answers are not those of Python 3.11 on Linux, where they were kept')
    if differ:
        pytest.fail(
            f'{len(differ)} of {len(kept)} answers of {path.name} differ (if that is meant: --keep-answers, and read'
            ' the diff):\n' + '\n'.join(said),
            pytrace=False,
        )
