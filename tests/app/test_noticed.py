"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

from types import SimpleNamespace

import pytest

from fsdl_tools.app import pages, tour
from fsdl_tools.table import Table


def test_a_plan_of_the_tour_shows_the_next_best_layouts(tmp_path):
    blocks = tour._plan(SimpleNamespace(model='gpt2', gpu='A100-SXM-80GB', gpus=8, tokens='1B', budget=''), tmp_path)
    titles = [getattr(b, 'title', None) or str(b) for b in blocks]
    assert any('next best' in str(t) for t in titles) and (tmp_path / 'plan.json').exists()


def test_the_names_of_many_metrics_end_after_three_hundred_letters(monkeypatch):
    series = SimpleNamespace(steps=[0], values=[1.0])
    run = SimpleNamespace(name='a', id='a', metrics={f'metric-{i:03d}': series for i in range(40)})
    monkeypatch.setattr('fsdl_tools.operations.tracking_read.read_all', lambda path: [run])
    monkeypatch.setattr('fsdl_tools.operations.tracking_compare.compare', lambda runs: Table([dict(c=1)]))
    figure = next(b for b in pages._runs(dict(metric=''), ['x']) if b.title == 'Metrics')
    assert '40' in str(figure) and ', '.join(sorted(run.metrics))[:300] in str(figure)
    assert ', '.join(sorted(run.metrics))[:301] not in str(figure)


def spoil(value):
    "What a careless reader of a block may do to what lies in it"
    if isinstance(value, dict):
        for inner in value.values():
            spoil(inner)
        value.clear()
    elif isinstance(value, list):
        for inner in value:
            spoil(inner)
        value.clear()


@pytest.mark.parametrize('name', ['plan', 'train', 'guide', 'memory', 'cost', 'zoo'])
def test_who_changes_what_a_page_shows_changes_no_later_answer(name):
    def shown():
        blocks = pages.answer(name)
        return blocks, [str(b) + str(list(b.content) if isinstance(b.content, Table) else '') for b in blocks]

    blocks, first = shown()
    for b in blocks:
        spoil(list(b.content) if isinstance(b.content, Table) else b.content)
    assert shown()[1] == first
