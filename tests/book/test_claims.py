"""Every claim stands when it is measured again; every system has a page and tests that exist."""

import ast

import pytest

from fsdl_tools.book.claims_page import closing_text
from fsdl_tools.claims import claims, lecture_lines, links, recheck, systems, told_figure
from fsdl_tools.core import read_results


@pytest.mark.parametrize('claim', [c for c in claims() if c.check], ids=lambda c: c.id)
def test_a_claim_stands(claim):
    found = recheck(claim)
    assert found.stands, found
    assert '{' not in found.finding


def test_claims_are_whole(root):
    assert len({c.id for c in claims()}) == len(claims())
    for c in claims():
        assert (root / 'nbs' / f'{c.chapter}.ipynb').is_file(), c.id
        assert c.low <= c.high and c.words and c.conditions and c.source and c.date
        assert c.refuted_by or c.verdict == 'not checkable'


def test_every_system_has_a_page_and_tests_that_exist(root):
    assert [s.row for s in systems()] == list(range(1, 52))
    for s in systems():
        assert (root / 'nbs' / f'{s.chapter}.ipynb').is_file() and s.works and s.became and s.date and s.source, (
            s.system
        )
        assert s.proof, s.system
        for name in s.proof:
            path, _, test = name.partition('::')
            assert (root / path).is_file(), name
            if test:
                assert test in {
                    f.name for f in ast.walk(ast.parse((root / path).read_text())) if isinstance(f, ast.FunctionDef)
                }, name


def test_the_recorded_run_is_of_these_systems():
    recorded = read_results('systems')
    assert [r['row'] for r in recorded['rows']] == [s.row for s in systems()]
    assert not [r for r in recorded['rows'] if r['status'] == 'fails']


# What chapters say of themselves


@pytest.mark.parametrize('claim', [c for c in claims() if c.check], ids=lambda c: c.id)
def test_the_closing_table_of_the_chapter_says_what_the_claim_says(claim, root):
    "A claim that is measured is told where its chapter closes, with a figure that the verdict allows"
    assert claim.told and claim.told_low <= claim.told_high
    figure = told_figure(claim, closing_text(root / 'nbs' / f'{claim.chapter}.ipynb'))
    assert claim.told_low <= figure <= claim.told_high, figure


def test_a_closing_table_that_says_something_else_is_found(root):
    claim = next(c for c in claims() if c.id == 'only-one-gpu-active')
    text = closing_text(root / 'nbs' / f'{claim.chapter}.ipynb').replace(
        'naive schedule: 1 of 4', 'naive schedule: 3 of 4'
    )
    assert told_figure(claim, text) > claim.told_high
    with pytest.raises(ValueError, match='does not say'):
        told_figure(claim, text.replace('naive', 'other'))


# What the notes hold


def test_every_line_of_the_notes_is_a_claim_or_a_system_or_says_why_it_is_neither():
    ids, rows = {c.id for c in claims()}, {s.row for s in systems()}
    lines = lecture_lines()
    assert [n.line for n in lines] == sorted({n.line for n in lines})
    for line in lines:
        assert line.claims or line.systems or line.reason, line
        assert set(line.claims) <= ids and set(line.systems) <= rows, line
        if line.kind == 'sentence':
            assert line.claims or line.reason, line


def test_every_claim_and_every_system_is_in_the_notes():
    lines = lecture_lines()
    of_a_link = {'v100-a100-bills'}  # stands on the page of FSDL's tool, which the notes link
    assert {id for line in lines for id in line.claims} | of_a_link == {c.id for c in claims()}
    of_a_claim = {33}  # the sentence on the dearest chip is a claim
    assert {row for line in lines for row in line.systems} | of_a_claim == {s.row for s in systems()}


def test_every_link_of_the_notes_has_its_row(root):
    found = links()
    assert len({n.link for n in found}) == len(found)
    assert {url for line in lecture_lines() for url in line.links} == {n.link for n in found}
    assert {s.link for s in systems() if s.link} <= {n.link for n in found}
    for n in found:
        assert n.said and n.became and n.date and n.source, n
        assert (root / 'nbs' / f'{n.page}.ipynb').is_file(), n
