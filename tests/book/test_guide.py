"""The guide asks what its tree says, answers what the library says, and takes nothing that is not meant."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings, strategies as st

from fsdl_tools.book import guide as module
from fsdl_tools.book.guide import Guide, guide
from fsdl_tools.book.tree import _asked, branches, draw_tree
from fsdl_tools.compute.gpus import Cluster
from fsdl_tools.compute.planner import estimate
from fsdl_tools.compute.search import search
from fsdl_tools.compute.choose import best_plan
from fsdl_tools.core import read_results

WEEK = 7 * 86400
CASES = dict(
    one=dict(model='gpt2-xl', gpu='A100-SXM-80GB', gpus=1, batch=64),
    whole=dict(model='gpt2-xl', gpu='H100-SXM-80GB', gpus=2, batch=2, tokens=1e6, within=WEEK),
    copies=dict(model='gpt2-xl', gpu='A100-SXM-40GB', seq=1024, tokens=26e9, within=WEEK),
    late=dict(model='gpt2-xl', gpu='A100-SXM-40GB', gpus=2, seq=1024, tokens=26e9, within=86400),
    shared=dict(model='llama-3.1-8b', gpu='A100-SXM-80GB', batch=64, seq=4096, seen_by='team'),
    cut=dict(model='bloom-176b', gpu='A100-SXM-80GB', gpus=384, batch=2304, seq=2048, tokens=366e9, seen_by='cloud'),
    alone=dict(model='gpt2-xl', gpu='RTX 3090', gpus=1, batch=64, seq=1024),
    more=dict(model='llama-3.1-70b', gpu='A100-SXM-80GB', gpus=1, batch=64, seq=4096),
    never=dict(model='llama-3.1-405b', gpu='T4', gpus=1, batch=1, seq=8192, precision='fp16'),
)


@pytest.fixture(scope='module')
def walks():
    return {name: guide(**case) for name, case in CASES.items()}


def test_every_walk_is_a_way_through_the_tree(walks):
    for walk in walks.values():
        assert walk.steps[0].name == 'model'
        for step, following in zip(walk.steps, [*walk.steps[1:], None], strict=True):
            assert branches[step.name, step.outcome] == step.then == (following.name if following else '')
            assert step.question == _asked[step.name]


def test_every_question_is_asked_by_some_walk(walks):
    assert {s.name for w in walks.values() for s in w.steps} == set(_asked)


def test_what_a_walk_is_about_decides(walks):
    assert walks['one'].plan.gpus == 1 and walks['one'].advice.startswith('one GPU')
    assert [s.name for s in walks['whole'].steps] == ['model', 'data', 'time', 'where', 'track']
    assert 'ddp' in {s.name for s in walks['copies'].steps}
    assert walks['shared'].plan.layout.zero and walks['shared'].steps[1].figure in (1, 2, 3)
    assert 'all three' in walks['cut'].advice and walks['cut'].plan.layout.tp > 1 < walks['cut'].plan.layout.pp
    assert walks['alone'].plan.layout.offload == 'optimizer'
    assert walks['more'].plan.gpus > 1
    assert walks['never'].plan is None and walks['never'].steps[-1].name == 'more'
    assert 'misses the deadline' in walks['late'].steps[-2].answer


def test_a_figure_is_what_its_call_gives(walks):
    "The call beside each figure, run as it stands: what a reader would copy"
    names = dict(estimate=estimate, search=search, best_plan=best_plan, Cluster=Cluster, read_results=read_results)
    for walk in walks.values():
        plan = walk.plan
        for step in walk.steps:
            if not step.how:
                continue
            try:
                found = eval(step.how, dict(names, plan=plan))
            except ValueError:
                assert step.outcome in ('no', 'nothing fits'), step
            else:
                agrees(step, found, walk)


def agrees(step, found, walk):
    if step.name == 'model':
        assert found == step.figure
    if step.name == 'data':
        assert found is True
    if step.name in ('zero', 'more'):
        assert found.fits
    if step.name == 'time':
        assert found.fits and found.gpus == 1
    if step.name == 'ddp':
        one = search(walk.model, Cluster(walk.gpu, 1), walk.plan.global_batch, walk.plan.seq, offload='none').fastest
        assert step.figure == pytest.approx(one.step_time / found.step_time)
    if step.name == 'cut':
        assert found.layout == walk.plan.layout
    if step.name == 'offload':
        assert found.device == step.figure
    if step.name == 'where':
        assert found == step.figure


def test_the_planner_takes_the_layout_that_a_walk_prints(walks):
    for walk in walks.values():
        if walk.plan is None:
            continue
        e = walk.plan
        again = estimate(walk.model, str(e.layout), Cluster(walk.gpu, e.gpus), e.global_batch, e.seq)
        assert again.step_time == e.step_time and again.device == e.device


def test_a_plan_faster_than_anything_published_says_so(walks):
    assert 'Published runs of this size on this machine were slower' in next(
        s.answer for s in walks['cut'].steps if s.name == 'where'
    )
    assert 'Published' not in next(s.answer for s in walks['copies'].steps if s.name == 'where')


def test_a_difference_below_the_error_decides_nothing(walks):
    assert 'Either will do' in next(s.answer for s in walks['copies'].steps if s.name == 'cut')


def test_what_nobody_has_measured_is_said(walks):
    walk = guide('llama-3.1-70b', 'RTX 3090', gpus=1, batch=8)
    assert walk.plan is None and 'link' in walk.steps[-1].answer
    late = guide('gpt2', 'RTX 3090', gpus=1, batch=8, seq=1024, tokens=1e12, within=3600)
    assert late.plan is not None and 'link' in late.steps[-2].answer


def test_models_of_images(walks):
    walk = guide('resnet50', 'A100-SXM-40GB', gpus=4, batch=1024, tokens=90 * 1.28e6, within=6 * 3600)
    assert [s.name for s in walk.steps][:5] == ['model', 'data', 'time', 'ddp', 'cut'] and walk.plan.fits
    assert walk.steps[0].figure == estimate('resnet50', 'dp1,micro_batch=1', Cluster('A100-SXM-40GB', 1), 1).device


def test_every_step_leads_to_a_page(walks, root):
    for walk in walks.values():
        for step in walk.steps:
            assert (root / 'nbs' / f'{step.page}.ipynb').is_file(), step.page


def test_a_walk_travels(walks):
    for walk in walks.values():
        assert Guide.from_json(walk.to_json()) == walk
        json.loads(walk.to_json())
        assert len(walk.walk().splitlines()) == len(walk.steps) + 2


def test_the_drawing_has_every_question_and_marks_the_walk(walks):
    plain = draw_tree()
    assert ET.fromstring(plain).attrib['width'] == '840'  # without a width a browser shows nothing of an image
    for walk in walks.values():
        drawn = ET.fromstring(draw_tree(walk))
        boxes = [r for r in drawn.iter('{http://www.w3.org/2000/svg}rect') if r.get('rx')]
        assert len(boxes) == len(_asked)
        assert sum(r.get('stroke') == '#d55e00' for r in boxes) == len(walk.steps)
    assert '#d55e00' not in plain


@pytest.mark.parametrize(
    'wrong',
    [
        dict(model='gpt2-xll'),
        dict(gpu='H10000'),
        dict(gpus=0),
        dict(gpus=-1),
        dict(batch=0),
        dict(batch=12),
        dict(seq=0),
        dict(tokens=0.0),
        dict(within=-1.0),
        dict(price=0.0),
        dict(seen_by='nobody'),
        dict(precision='int3'),
        dict(framework='none'),
        dict(gpu='RTX 3090', gpus=4),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValueError) as why:
        guide(**dict(model='gpt2-xl', gpu='H100') | wrong)
    assert '\n' not in str(why.value)


@settings(max_examples=40)
@given(
    st.sampled_from(['gpt2', 'gpt2-xl', 'llama-3.1-8b', 'mixtral-8x7b']),
    st.sampled_from(['A100-SXM-80GB', 'A100-SXM-40GB', 'H100-SXM-80GB', 'B200']),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([16, 64, 512]),
    st.sampled_from([None, 1e9, 1e12]),
    st.sampled_from([None, 3600.0, 30.0 * 86400]),
)
def test_any_case_ends_with_a_plan_that_fits_or_says_that_none_does(model, gpu, gpus, batch, tokens, within):
    walk = guide(model, gpu, gpus, batch, 1024, tokens, within)
    assert len(walk.steps) <= len(_asked) and walk.steps[-1].then == ''
    assert (walk.plan is None) == ('does not fit' in walk.advice)
    if walk.plan:
        assert walk.plan.fits and str(walk.plan.layout) in walk.advice


def test_the_guide_computes_nothing_of_its_own():
    "Its bytes, seconds and dollars are of the planner: no constant with a unit stands in its code"
    import inspect
    import re

    code = inspect.getsource(module)
    assert not re.findall(r'\b(?:GiB|1e9|1e12|2\s*\*\*\s*\d+|TFLOP)\b', code)


# The thirty minutes


def route(root):
    "Minutes, page and sections of each row"
    cells = json.loads((root / 'nbs/book/14_guide.ipynb').read_text(encoding='utf-8'))['cells']
    text = next(''.join(c['source']) for c in cells if ''.join(c['source']).startswith('## The book in thirty minutes'))
    for minutes, read in re.findall(r'^\| (\d+) \| (.*?) \| [^|]* \|$', text, re.M):
        link = re.search(r'\]\((\S+?)\.ipynb\)', read)
        page = (root / 'nbs/book' / (link[1] if link else '14_guide')).resolve()
        yield int(minutes), page.with_name(page.name + '.ipynb'), re.findall(r'\*(\S[^*]*)\*', read)


def section(page, title):
    "Words of prose and number of pictures under a heading, up to the next of its level"
    words, pictures, inside = 0, 0, False
    for c in json.loads(page.read_text(encoding='utf-8'))['cells']:
        text = ''.join(c['source'])
        if c['cell_type'] == 'markdown':
            for line in text.splitlines():
                heading = re.match(r'#+ (.*)', line)
                if heading:
                    inside = heading[1].strip() == title
                if inside:
                    words += len(line.split())
        elif inside:
            pictures += any(k.startswith('image') for o in c['outputs'] for k in o.get('data', {}))
    return words, pictures


def test_the_thirty_minutes_are_thirty_and_enough_to_read_what_they_name(root):
    "Two hundred words a minute, twenty seconds a picture"
    rows = list(route(root))
    assert len(rows) >= 6 and sum(minutes for minutes, *_ in rows) == 30
    for minutes, page, titles in rows:
        read = [section(page, title) for title in titles]
        assert titles and all(words for words, _ in read), (page.name, titles, read)
        assert sum(words / 200 + pictures / 3 for words, pictures in read) <= minutes, (page.name, read)
