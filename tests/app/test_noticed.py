"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"
from types import SimpleNamespace

from fsdl_tools.app import tour


def test_a_plan_of_the_tour_shows_the_next_best_layouts(tmp_path):
    blocks = tour._plan(SimpleNamespace(model='gpt2', gpu='A100-SXM-80GB', gpus=8, tokens='1B', budget=''), tmp_path)
    titles = [getattr(b, 'title', None) or str(b) for b in blocks]
    assert any('next best' in str(t) for t in titles) and (tmp_path/'plan.json').exists()
