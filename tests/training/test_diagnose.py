"""Planted faults are named first, healthy loops are left alone, and nothing stays behind"""

import builtins
import gc
import gzip
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from fsdl_tools.training.diagnose import Diagnosis, cures, diagnose, diagnose_trace, script_loop
from fsdl_tools.training.diagnose import _compiling, _computing, _expected_gain, _kind
from fsdl_tools.training.clock import probes, _Clock, _owners, _watching, _without
from fsdl_tools.training.traces import _minus, _union
from fsdl_tools.cli.main import run as fsdl

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location('planted', ROOT / 'benchmarks' / 'diagnose.py')
planted = importlib.util.module_from_spec(spec)
sys.modules['planted'] = planted
spec.loader.exec_module(planted)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.sweep(5)
@pytest.mark.alone
@pytest.mark.parametrize('name', [*planted.CASES, *planted.HEALTHY])
def test_the_first_cause_is_the_planted_one(name):
    d, expected = planted.run(name, 2)
    if d.first != expected:
        d, expected = planted.run(name, 3)  # a machine with other work gets a second look
    assert d.first == expected, d
    for c in d.checks:
        assert (c['predicted'] or c['by_share']) >= 0.999 * c['by_share'] >= 0.99 and c['cause'] in cures
        assert (c['predicted'] is None) == (c['cause'] == 'recompiling')
    for s in d.suspects:
        assert (s.get('expected') or s['gain']) >= s['gain']


def test_every_case_has_a_cause_that_is_explained():
    assert (
        {expected for _, expected, _ in planted.CASES.values()} <= set(cures)
        and len(planted.CASES) >= 24
        and len(planted.HEALTHY) == 10
    )
    assert set(cures) - {expected for _, expected, _ in planted.CASES.values()} == {
        'starting workers',
        'transfers',
    }  # transfers: on a GPU only


def state():
    return {(p.where, id(o), n): vars(o).get(n) for p in probes for o, n, _ in _owners(p.where)}


def test_everything_is_put_back():
    planted.Loop(steps=1)()  # PyTorch wraps the step of an optimizer when the first is made
    before = state()
    diagnose(planted.Loop(each=planted.save(1), steps=2), repeats=2)
    assert {k: v for k, v in state().items() if k in before} == before and 'item' not in vars(torch.Tensor)
    with pytest.raises(ZeroDivisionError):
        diagnose(lambda: 1 / 0)

    class Late(Exception):
        pass

    calls = []

    def fails_late():
        calls.append(1)
        if len(calls) == 3:
            raise Late

    with pytest.raises(Late):
        diagnose(fails_late)
    assert {k: v for k, v in state().items() if k in before} == before and print is builtins.print


def test_copies_of_a_name_are_watched_too():
    from time import sleep

    module = type(sys)('borrower')
    module.sleep = sleep
    sys.modules['borrower'] = module
    clock = _Clock()
    try:
        with _watching(clock):
            module.sleep(0.02)
    finally:
        del sys.modules['borrower']
    assert clock.seconds['sleeping'] >= 0.02 and module.sleep is time.sleep


def test_what_is_taken_out_does_nothing():
    clock = _Clock()
    with _without('sleeping', clock):
        start = time.perf_counter()
        time.sleep(5)
    assert time.perf_counter() - start < 1
    with _without('garbage collection', clock):
        assert gc.collect() == 0
    with pytest.raises(ValueError, match='cannot be taken out'):
        with _without('forward', clock):
            pass


def test_the_loader_hands_out_its_first_batch_again():
    clock, seen = _Clock(), []
    loop = lambda: [seen.append(float(x.mean())) for x, y in torch.utils.data.DataLoader(planted.Pictures(16), 4)]
    with _watching(clock):
        loop()
    first = seen[:]
    with _without('loader', clock):
        loop()
    assert len(set(first)) == 4 and seen[4:] == [first[0]] * 4


@pytest.mark.parametrize(
    'a,b',
    [
        ([(0, 5), (3, 8), (10, 12)], [(4, 11)]),
        ([(0, 1)], []),
        ([(0, 10)], [(0, 10)]),
        ([(0, 10)], [(2, 3), (5, 6)]),
        ([(0, 4), (6, 9)], [(3, 7)]),
    ],
)
def test_spans_are_taken_apart(a, b):
    points = lambda spans: {t / 2 + 0.25 for t in range(-2, 40) if any(x <= t / 2 + 0.25 < y for x, y in spans)}
    assert points(_minus(_union(a), _union(b))) == points(a) - points(b)


def events(names):
    return [dict(ph='X', cat='cpu_op', pid=1, tid=1, name=n, ts=100 * i, dur=80) for i, n in enumerate(names)]


def test_a_trace_file_of_any_kind(tmp_path):
    rows = events(
        ['enumerate(DataLoader)#_X.__next__'] * 6
        + ['aten::mm'] * 2
        + ['autograd::engine::evaluate_function: Mm', 'Optimizer.step#SGD.step']
    )
    whole = dict(
        traceEvents=rows
        + [
            dict(ph='M', name='process_name'),
            dict(ph='X', cat='kernel', pid=0, tid=7, name='k', ts=0, dur=50),
            dict(ph='X', cat='kernel', pid=0, tid=7, name='k', ts=150, dur=50),
        ]
    )
    (tmp_path / 'a.json').write_text(json.dumps(whole))
    (tmp_path / 'b.json.gz').write_bytes(gzip.compress(json.dumps(whole).encode()))
    (tmp_path / 'c.json').write_text(json.dumps(rows))
    a, b, c = (diagnose_trace(tmp_path / n) for n in ('a.json', 'b.json.gz', 'c.json'))
    assert a == b and a.first == c.first == 'too few workers' and any('idle for 50%' in n for n in a.notes)
    assert sum(r['share'] for r in a.parts) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize('text', ['', 'x', '{}', '[]', '[1]', '{"traceEvents": 3}', '{"traceEvents": []}'])
def test_no_trace_is_an_error_of_one_line(tmp_path, text, capsys):
    (tmp_path / 't.json').write_text(text)
    assert fsdl(['diagnose', str(tmp_path / 't.json')]) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_marked_steps_are_samples():
    rows = [
        dict(e, ts=e['ts'] + 1000 * s) for s in range(3) for e in events(['aten::mm', 'aten::mm', 'Optimizer.step#x'])
    ] + [
        dict(ph='X', cat='user_annotation', pid=1, tid=1, name=f'ProfilerStep#{s}', ts=1000 * s, dur=300)
        for s in range(3)
    ]
    import tempfile

    with tempfile.TemporaryDirectory() as d:
        Path(d, 't.json').write_text(json.dumps(rows))
        found = diagnose_trace(Path(d, 't.json'))
    assert found.repeats == 3 and found.wall == pytest.approx(300e-6)


def test_a_script_keeps_its_words_and_leaves_ours(tmp_path, capsys):
    (tmp_path / 'helper.py').write_text('x = 3')
    (tmp_path / 's.py').write_text('import sys, helper\nprint(sys.argv[1:])\nsys.exit(0)\n')
    before = sys.argv[:], sys.path[:]
    script_loop(['python', str(tmp_path / 's.py'), '--lr', '1'])()
    assert (sys.argv, sys.path) == before
    said = capsys.readouterr()
    assert "['--lr', '1']" in said.err and not said.out
    (tmp_path / 's.py').write_text('import sys\nsys.exit(3)\n')
    with pytest.raises(ValueError, match='exit code 3'):
        script_loop([str(tmp_path / 's.py')])()


def test_json_and_back():
    d = diagnose(planted.Loop(steps=2), repeats=2, check=False)
    assert Diagnosis.from_json(d.to_json()) == d and d.repeats == 2 and 'part' in d._repr_markdown_()
    with pytest.raises(ValueError, match='at least 2'):
        diagnose(planted.Loop(), repeats=1)


def test_workers_are_blamed_only_for_waits_in_which_they_worked():
    "More workers cannot shorten a wait that is longer than what even the busiest worker did meanwhile"
    from hypothesis import given, strategies as st
    from fsdl_tools.training.clock import _Clock, _Loader
    from fsdl_tools.training.diagnose import _loader_cause

    seconds = st.floats(1e-6, 100)

    @given(st.lists(seconds, min_size=1, max_size=8), seconds)
    def one(worked, waited):
        clock = _Clock()
        clock.loaders.append(_Loader(workers=len(worked)))
        for k, s in enumerate(worked):
            clock.fetching[2 * k : 2 * k + 2] = [s, 4]
        clock.seconds['loader'] = waited
        assert (_loader_cause(clock) == 'handing over') == (max(worked) < waited)

    one()


def test_expected_gain_grows_with_the_share_and_starts_at_one():
    shares = [0, 0.1, 0.3, 0.5, 0.8, 0.95]
    for cause in ('disk', 'clipping'):
        gains = [_expected_gain(s, cause) for s in shares]
        assert gains[0] == 1 and gains == sorted(gains)
        assert all(1 <= g * (1 - s) <= 1.25 for s, g in zip(shares, gains, strict=True))
    assert _expected_gain(0.25, 'disk') == pytest.approx(1 / (0.75 * 0.9))
    assert _expected_gain(0.25, 'clipping') == pytest.approx(1 / (0.75 * 0.95))
    assert _expected_gain(1.0, 'sleeping') == pytest.approx(125.0)
    assert _expected_gain(0.95, 'recompiling') is None


def test_seconds_of_compiling_are_those_of_both_passes(monkeypatch):
    import torch._dynamo.utils as dynamo

    spent = dict(entire_frame_compile=2.0, entire_backward_compile=0.5, backend_compile=1.0)
    monkeypatch.setattr(dynamo, 'calculate_time_spent', lambda: spent)
    assert _compiling() == 2.5
    del spent['entire_frame_compile']
    assert _compiling() == 0.5


def test_of_a_compiler_only_the_least_is_said():
    row = dict(part='recompiling', share=0.9, low=0.9, high=0.9)
    found = dict(row, cause='recompiling', gain=10.0, expected=None) | {'try': cures['recompiling']}
    check = dict(cause='recompiling', by_share=10.0, predicted=None, measured=70.0, low=60.0, high=80.0)
    [told] = Diagnosis(1.0, [row], [found], [check]).advice().rows
    assert (told['gain, at least'], told['expected']) == ('10.00 ×', '')


def test_every_cause_that_computes_is_a_cause():
    assert _computing < cures.keys() and {_kind(c) for c in cures} == {'computing', 'waiting'}
