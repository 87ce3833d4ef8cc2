"""Every claim stands when it is measured again; every system has a page and tests that exist."""
import ast

import pytest

from fsdl_tools.claims import claims, recheck, systems
from fsdl_tools.core import read_results


@pytest.mark.parametrize('claim', [c for c in claims() if c.check], ids=lambda c: c.id)
def test_a_claim_stands(claim):
    found = recheck(claim)
    assert found.stands, found
    assert '{' not in found.finding


def test_claims_are_whole(root):
    assert len({c.id for c in claims()}) == len(claims())
    for c in claims():
        assert (root/'nbs'/f'{c.chapter}.ipynb').is_file(), c.id
        assert c.low <= c.high and c.words and c.conditions and c.source and c.date
        assert c.refuted_by or c.verdict == 'not checkable'


def test_every_system_has_a_page_and_tests_that_exist(root):
    assert [s.row for s in systems()] == list(range(1, 52))
    for s in systems():
        assert (root/'nbs'/f'{s.chapter}.ipynb').is_file() and s.works and s.became and s.date and s.source, s.system
        assert s.proof, s.system
        for name in s.proof:
            path, _, test = name.partition('::')
            assert (root/path).is_file(), name
            if test: assert test in {f.name for f in ast.walk(ast.parse((root/path).read_text())) if isinstance(f, ast.FunctionDef)}, name


def test_the_recorded_run_is_of_these_systems():
    recorded = read_results('systems')
    assert [r['row'] for r in recorded['rows']] == [s.row for s in systems()]
    assert not [r for r in recorded['rows'] if r['status'] == 'fails']
