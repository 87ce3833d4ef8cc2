"""A transformer is counted in one place: what the spec of a model and the planner's columns say of it is the same"""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from fsdl_tools.compute.columns import columns, complete_columns, expert_parameters, layer_parameters
from fsdl_tools.compute.model_sizes import known, model_columns
from fsdl_tools.compute.planner import _model_flops
from fsdl_tools.compute.step_time import _block_linears
from fsdl_tools.core import read_data
from fsdl_tools.models.gpt import GPT, GPTConfig
from fsdl_tools.models.spec import (
    TransformerShape,
    anywhere,
    attention_flops,
    attention_matrices,
    choose,
    compressed_matrices,
)
from fsdl_tools.models.spec import from_shape, mlp_matrices, weights
from fsdl_tools.parallel.schedules import layer_costs
from fsdl_tools.training.trainer import _gpt_flops

run = dict(seq=128, gpus=1, tp=1, pp=1, dp=1, global_batch=4, micro_batch=1)


@st.composite
def shapes(draw):
    pick = lambda *values: draw(st.sampled_from(values))
    heads = pick(1, 2, 4, 6, 32)
    sizes = dict(
        layers=draw(st.integers(1, 9)),
        hidden=heads * pick(8, 24, 64),
        heads=heads,
        vocab=pick(0, 100, 50257),
        ffn=draw(st.integers(0, 5000)),
        kv_heads=pick(0, 1, heads),
        head_dim=pick(0, 24, 128),
        value_dim=pick(0, 16, 96),
        gated_mlp=draw(st.booleans()),
        tied=draw(st.booleans()),
    )
    if draw(st.booleans()):
        experts = pick(4, 8, 64)
        sizes |= dict(
            experts=experts,
            experts_per_token=pick(1, 2, 4),
            dense_layers=pick(0, 1),
            expert_every=pick(1, 2),
            dense_ffn=pick(0, 777),
            shared_ffn=pick(0, 128),
        )
    if draw(st.booleans()):
        sizes |= dict(kv_rank=pick(16, 512), q_rank=pick(0, 32, 1536), rope_dim=pick(8, 16), head_dim=pick(24, 192))
    return TransformerShape(**sizes)


def agree(shape, sizes):
    "Matrices and operations of a shape, by its spec and by the planner"
    spec, c = from_shape(shape, seq=run['seq']), complete_columns(sizes | run)
    matrices = sum(l.params for l in spec.layers if l.kind == 'Linear' and l.name.startswith('blocks.'))
    assert float(c.layers * (c.layer_params + c.expert_params)) == pytest.approx(matrices, rel=1e-14)
    needed, _ = _model_flops(c)
    head = 0 if shape.vocab else 6 * float(c.vocab * c.hidden) * run['seq'] * 4  # the planner gives every model a head
    assert float(needed) - head == pytest.approx(3 * run['global_batch'] * spec.flops, rel=1e-14)


@settings(max_examples=300, deadline=None)
@given(shapes())
def test_random_shapes(shape):
    agree(shape, dict(model_columns(shape)[1]) | dict(vocab=shape.vocab or 1))


@settings(max_examples=50, deadline=None)
@given(st.lists(shapes(), min_size=2, max_size=6))
def test_many_at_once_are_what_each_is(many):
    rows = [dict(model_columns(s)[1]) | dict(vocab=s.vocab or 1) | run for s in many]
    together, alone = complete_columns(columns(rows)), [complete_columns(columns([r])) for r in rows]
    for count in (layer_parameters, expert_parameters, lambda c: c.layer_params, lambda c: _model_flops(c)[0]):
        assert np.broadcast_to(count(together), len(rows)).tolist() == [count(c).item() for c in alone]


def shape_of(r):
    "The shape of a row of a table of models"
    said = {
        k: int(v)
        for k, v in r.items()
        if k in {f.name for f in dataclasses.fields(TransformerShape)}
        and k not in ('positions', 'gated_mlp', 'tied', 'max_seq', 'ffn', 'dense_ffn')
    }
    experts = int(r.get('experts') or 0)
    if experts:
        said |= dict(
            experts_per_token=int(r['topk']),
            ffn=int(r['expert_ffn']),
            dense_ffn=int(r.get('dense_ffn') or 0),
            dense_layers=int(r['layers'] - r.get('moe_layers', r['layers'])),
        )
    else:
        said |= dict(ffn=int(r['ffn']))
    return TransformerShape(
        **said, gated_mlp=bool(r['gated_mlp']), tied=bool(r.get('tied', 1)), value_dim=int(r.get('v_dim') or 0)
    )


@pytest.mark.parametrize('name', known())
def test_published_models(name):
    sizes = known()[name] | dict(full_attention=1)
    agree(shape_of(sizes), sizes)


@pytest.mark.parametrize('table', ['published_runs.csv', 'published_runs_2026.csv'])
def test_published_runs(table):
    about = (
        'layers hidden heads kv_heads ffn gated_mlp vocab tied head_dim v_dim q_rank kv_rank rope_dim experts topk'
        ' expert_ffn shared_ffn moe_layers dense_ffn'.split()
    )
    rows = {tuple((k, r[k]) for k in about if r.get(k) not in (None, '')) for r in read_data(table, text=('date',))}
    assert len(rows) > 20
    truth = lambda v: float(v == 'True') if v in ('True', 'False') else v
    for row in rows:
        sizes = {k: truth(v) for k, v in row}
        sizes.setdefault('kv_heads', sizes['heads'])
        if sizes.get('experts'):
            sizes.setdefault('expert_ffn', (sizes['ffn'] - sizes.get('shared_ffn', 0)) / sizes['topk'])
        agree(shape_of(sizes), sizes)


@settings(max_examples=50, deadline=None)
@given(shapes())
def test_the_products_that_are_timed_are_those_that_are_counted(shape):
    assume(not shape.kv_rank and not shape.experts)
    c = complete_columns(dict(model_columns(shape)[1]) | dict(vocab=shape.vocab or 1) | run)
    assert float(sum(outputs * inputs * share for outputs, inputs, share in _block_linears(c))) == float(c.layer_params)


@given(st.integers(1, 9), st.integers(1, 8), st.sampled_from([4, 8, 16]), st.sampled_from([0, 100]), st.integers(1, 64))
@settings(max_examples=30, deadline=None)
def test_the_gpt_that_is_cut(layers, heads, size, ffn, seq):
    g = GPTConfig(layers, heads * size, heads, 64, 100, ffn)
    shape = TransformerShape(
        layers,
        g.hidden,
        heads,
        g.vocab,
        ffn=g.width,
        max_seq=64,
        positions='learned',
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    )
    spec, blocks = from_shape(shape, seq=seq), from_shape(shape)
    assert g.params == spec.params == sum(p.numel() for p in GPT(g).parameters())
    assert _gpt_flops(g, seq) == 3 * spec.flops and sum(layer_costs(g)) * 64 == blocks.flops


def test_numbers_and_arrays():
    sizes = np.random.default_rng(0).integers(1, 300, (7, 50)).astype(float)
    h, heads, d, v, q, kv, rope = sizes
    q[::3], rope[:] = 0, np.minimum(rope, d)
    whole = (
        weights(compressed_matrices(*sizes)),
        weights(attention_matrices(h, q, kv, v)),
        weights(mlp_matrices(h, d, q > 0)),
        attention_flops(h, q, v),
    )
    for i in range(50):
        one = [int(x) for x in sizes[:, i]]
        each = (
            weights(compressed_matrices(*one)),
            weights(attention_matrices(one[0], one[4], one[5], one[3])),
            weights(mlp_matrices(one[0], one[2], one[4] > 0)),
            attention_flops(one[0], one[4], one[3]),
        )
        assert [w[i] for w in whole] == list(each) and all(isinstance(n, int) for n in each)
    assert weights(mlp_matrices(Fraction(3, 2), 4, True)) == 18


@given(st.lists(st.tuples(st.booleans(), st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=5))
def test_one_of_two_values_for_each_model_or_for_all(rows):
    condition, yes, no = map(np.array, zip(*rows, strict=True))
    assert (
        np.array_equal(choose(condition, yes, no), np.where(condition, yes, no))
        and anywhere(condition) == condition.any()
    )
    for c, y, n in rows:
        for truth in (c, np.bool_(c)):
            for values in ((y, n), (np.float64(y), np.float64(n)), (np.asarray(y), 2)):
                assert choose(truth, *values) == np.where(c, *values) and hasattr(choose(truth, *values), 'dtype')
            assert anywhere(truth) is c
