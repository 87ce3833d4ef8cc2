"""A layout and its recipe: two records that are said in one text"""

import copy, pickle

import pytest
from hypothesis import given, settings, strategies as st

from fsdl_tools.compute.gpus import Cluster
from fsdl_tools.compute.planner import Estimate, estimate
from fsdl_tools.compute.choose import best_plan
from fsdl_tools.operations.launch import Job
from fsdl_tools.parallel.layout import (
    Layout,
    Recipe,
    known_kernels,
    layout_precisions,
    parse_layout,
    read_layout,
    recomputations,
)
from fsdl_tools.training.config import TrainConfig, check_config

recipes = st.builds(
    Recipe,
    precision=st.sampled_from(layout_precisions),
    optimizer=st.sampled_from(['adam', 'adamw', 'muon']),
    recompute=st.sampled_from(recomputations),
    offload=st.sampled_from(['none', 'optimizer']),
    flash=st.booleans(),
    compile=st.booleans(),
    framework=st.sampled_from(['pytorch', 'nanotron', 'transformers']),
    grad_bytes=st.sampled_from([0, 2, 4]),
    lora_rank=st.integers(1, 64),
    weight_bits=st.sampled_from([16, 8, 4]),
    document=st.integers(0, 4096),
    kernel=st.sampled_from(['', *known_kernels()]),
    scales=st.sampled_from(['', 'delayed', 'mx']),
    graphs=st.sampled_from(['', 'none', 'whole']),
    dispatcher=st.sampled_from(['', 'deepep']),
)
sizes = st.fixed_dictionaries(
    dict(
        dp=st.integers(1, 64),
        tp=st.integers(1, 8),
        pp=st.integers(1, 8),
        zero=st.integers(0, 3),
        micro_batch=st.integers(1, 8),
        seq_parallel=st.booleans(),
    )
)


@settings(max_examples=100, deadline=None)
@given(recipes, sizes)
def test_one_by_one_or_all_at_once(recipe, sizes):
    whole = Layout(**sizes, recipe=recipe)
    said = {name: value for name, value in whole.to_dict().items() if name not in sizes}
    for same in (
        Layout(**sizes, **said),
        Layout(**sizes).replace(recipe=recipe),
        parse_layout(str(whole)),
        parse_layout(str(Layout(**sizes)), recipe=recipe),
        Layout.from_json(whole.to_json()),
        read_layout(whole.text()),
        pickle.loads(pickle.dumps(whole)),
        copy.deepcopy(whole),
    ):
        assert same == whole and hash(same) == hash(whole) and same.recipe == recipe
    assert all(getattr(whole, name) == value for name, value in recipe.to_dict().items())
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    'name, bad, words',
    [
        ('flash', 'no', 'flash must be True or False'),
        ('compile', 3, 'compile must be True or False'),
        ('lora_rank', -2, 'lora_rank must be 0 or a number'),
        ('lora_rank', 1.5, 'lora_rank must be 0'),
        ('document', 'x', 'document must be 0 or a number of tokens'),
        ('document', True, 'document must be 0'),
        ('kernel', 'fa', "or 'fa2'?"),
        ('kernel', None, 'unknown kernel None'),
        ('framework', None, 'framework must be a name'),
        ('framework', 'nanotrn', "did you mean 'nanotron'"),
        ('grad_bytes', True, 'grad_bytes must be one of'),
        ('weight_bits', 8.0, 'weight_bits must be one of'),
        ('weight_bits', 8, 'give lora_rank'),
        ('precision', 'bf61', "did you mean 'bf16'"),
        ('optimizer', 'adma', "did you mean 'adam'"),
        ('graphs', 'hole', "did you mean 'whole'"),
        ('dispatcher', 'alltoal', "did you mean 'alltoall'"),
        ('recompute', 3, "unknown recompute"),
        ('offload', 'optimiser', "did you mean 'optimizer'"),
    ],
)
def test_fields_of_a_recipe_are_checked(name, bad, words):
    for make in (Recipe, Layout):
        with pytest.raises(ValueError) as e:
            make(**{name: bad})
        assert words in str(e.value)


@pytest.mark.parametrize(
    'bad, words',
    [
        (dict(zero=True), 'ZeRO stage'),
        (dict(zero=1.0), 'ZeRO stage'),
        (dict(zero=3, shard=True), 'shard must be 0'),
        (dict(seq_parallel='yes'), 'seq_parallel must be True or False'),
        (dict(recipe='mxx'), "did you mean 'mx'"),
        (dict(recipe=3), 'recipe must be a Recipe'),
        (dict(dp=2.0), 'dp must be a positive whole number'),
        (dict(precison='fp8'), 'did you mean precision'),
    ],
)
def test_fields_of_a_layout_are_checked(bad, words):
    with pytest.raises((TypeError, ValueError)) as e:
        Layout(**bad)
    assert words in str(e.value)


def test_said_twice():
    eight = Recipe(precision='fp8')
    with pytest.raises(ValueError, match="precision is given twice: 'fp8' in the recipe, 'bf16' beside it"):
        Layout(recipe=eight, precision='bf16')
    assert Layout(recipe=eight, precision='fp8').recipe is eight
    with pytest.raises(ValueError, match='precision is given twice'):
        parse_layout('dp8,precision=bf16', recipe=eight)
    for layout in ('dp8,precision=bf16', Layout(dp=8, precision='bf16')):
        with pytest.raises(ValueError, match="precision is given twice: 'bf16' in the layout"):
            best_plan('gpt2-xl', Cluster('A100-SXM-80GB', 8), 512, 1024, layout=layout, precision='fp32')
    assert (
        best_plan('gpt2-xl', Cluster('A100-SXM-80GB', 8), 512, 1024, layout='dp8', recipe=Recipe(precision='fp16'))[
            1
        ].layout.precision
        == 'fp16'
    )


def test_open_is_none_until_somebody_decides():
    for text, micro, precision in (
        ('dp2', None, None),
        ('dp2,micro_batch=1', 1, None),
        ('dp2,precision=bf16', None, 'bf16'),
        ('dp2,micro_batch=1,precision=bf16', 1, 'bf16'),
    ):
        l = read_layout(text)
        assert (
            (l.micro_batch, l.precision) == (micro, precision)
            and parse_layout(l) == parse_layout('dp2') == l.settled()
            and read_layout(l.text()) == l
        )
        c = TrainConfig(layout=text, global_batch=16, device='cpu')
        assert c == TrainConfig(layout=l, global_batch=16, device='cpu') == TrainConfig.from_json(c.to_json())
        done, layout, *_ = check_config(c)
        assert (layout.micro_batch, layout.precision) == (micro or 8, precision or 'fp32') and done.layout == layout
        again, same, *_ = check_config(TrainConfig.from_json(done.to_json()))
        assert (again, same) == (done, layout)
    assert estimate('gpt2', read_layout('dp8'), Cluster('A100', 8), 64, 1024) == estimate(
        'gpt2', 'dp8', Cluster('A100', 8), 64, 1024
    )


def test_a_wrong_layout_is_refused_with_the_record():
    for bad, words in (
        ('dp2,recomput=full', "did you mean 'recompute'"),
        ('dp2,precision=bf61', "did you mean 'bf16'"),
        ('fsdp', 'dp8,zero=3'),
    ):
        for make in (
            lambda: TrainConfig(layout=bad),
            lambda: TrainConfig.from_dict(dict(layout=bad)),
            lambda: TrainConfig().replace(layout=bad),
        ):
            with pytest.raises(ValueError) as e:
                make()
            assert words in str(e.value)
    with pytest.raises(TypeError, match='layout must be Layout'):
        TrainConfig.from_dict(dict(layout=3))


def test_what_was_planned_is_what_is_run(tmp_path):
    plan = estimate('gpt2', 'dp4,zero=1', Cluster('A100', 4), 64, 1024)
    assert Estimate.from_json(plan.to_json()) == plan
    told = TrainConfig.from_json(Job.from_plan(plan, TrainConfig(folder=str(tmp_path), global_batch=64)).command[-1])
    assert told.layout == plan.layout and (told.layout.micro_batch, told.layout.precision) == (1, 'bf16')
