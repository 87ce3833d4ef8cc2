"""Right counts, or a refusal: published configurations, what has no formula, what looks at numbers, what is given
and stays as it was.
"""

import json
from pathlib import Path
import pytest
from fsdl_tools.core import fix_torchvision

fix_torchvision()
import torch
from torch import nn
from fsdl_tools.models.architectures import load_config, tasks_of
from fsdl_tools.models.build import build, longest_text
from fsdl_tools.models.compare import compare_models, latency
from fsdl_tools.models.profile import profile
from fsdl_tools.models.shape import active_parameters, experts_of, shape_of
from fsdl_tools.models.spec import ModelSpec, TransformerShape, from_shape
from fsdl_tools.models.zoo import index, search_models

torch.set_num_threads(1)
published = json.loads((Path(__file__).parent / 'configurations.json').read_text(encoding='utf-8'))


# Published models


@pytest.fixture
def written(tmp_path):
    "A function that writes a configuration and gives its folder"

    def write(**fields):
        (tmp_path / 'config.json').write_text(json.dumps(fields))
        return str(tmp_path)

    return write


@pytest.mark.sweep(5)
@pytest.mark.parametrize('model', published['models'], ids=lambda m: m['name'])
def test_published_counts(model, written):
    s = profile(written(**model['config']), seq=8)
    assert (s.params, s.kind) == (model['params'], model['kind'])
    assert abs(s.active / model['active'] - 1) <= published['active_tolerance']
    assert ModelSpec.from_json(s.to_json()) == s and s.to_dict()['active'] == s.active


@pytest.mark.parametrize('name', ['deepseek-v3', 'falcon-40b', 'flan-t5-base', 'llava-1.5-7b'])
def test_those_that_were_wrong(name, written):
    model = next(m for m in published['models'] if m['name'] == name)
    s = profile(written(**model['config']), seq=8)
    assert (s.params, s.kind) == (model['params'], model['kind']) and abs(s.active / model['active'] - 1) < 0.01
    if name == 'falcon-40b':
        assert s.shape.kv_heads == 8
    if name == 'deepseek-v3':
        assert (s.shape.kv_rank, s.shape.q_rank, s.shape.rope_dim, s.shape.head_dim, s.shape.value_dim) == (
            512,
            1536,
            64,
            192,
            128,
        )
        assert (s.shape.dense_layers, s.shape.expert_every, s.shape.experts, s.shape.experts_per_token) == (
            3,
            1,
            256,
            8,
        )
        assert from_shape(s.shape, seq=8).active == s.active
    if name == 'llava-1.5-7b':
        tower = [l for l in s.layers if 'vision_tower' in l.name]
        assert sum(l.flops for l in tower) > 3e11 and 'pixel_values' in [i.name for i in s.inputs] and not s.unused


@pytest.mark.parametrize(
    'name', ['gpt2', 'llama', 'qwen2', 'mixtral', 'qwen3_moe', 'deepseek_v2', 'deepseek_v3', 'falcon', 'mistral']
)
def test_a_shape_leads_back_to_the_model(name):
    m = build(name, device='meta')
    plain, params = from_shape(shape_of(m), seq=8), sum(p.numel() for p in m.parameters())
    assert (
        abs(plain.params / params - 1) < 2e-4 and abs(plain.active / active_parameters(m) - 1) < 1e-3
    )  # norms of heads are not in a shape


@pytest.mark.parametrize(
    'name, plain',
    [
        ('mamba2', False),
        ('jetmoe', False),
        ('gemma4_text', False),
        ('gemma3n_text', False),
        ('hrm_text', False),
        ('phi4_multimodal', False),
        ('zamba2', False),
        ('recurrent_gemma', False),
        ('albert', False),
        ('electra', False),
        ('squeezebert', False),
        ('xlstm', True),
        ('ctrl', True),
        ('modernbert', True),
        ('bert', True),
        ('jamba', True),
        ('llava', True),
        ('qwen2_5_vl', True),
    ],
)
def test_a_shape_that_does_not_lead_back_is_none(name, plain):
    m = build(name, device='meta')
    shape = shape_of(m)
    assert (shape is not None) == plain
    if plain:
        text = next(
            k for k in m.modules() if getattr(k, 'config', None) is m.config.get_text_config()
        )  # of LLaVA the language model alone
        params = sum(
            {id(p): p.numel() for part in (text, m.get_output_embeddings() or text) for p in part.parameters()}.values()
        )
        assert abs(from_shape(shape, seq=8).params / params - 1) < 0.05


@pytest.mark.parametrize(
    'fields, active',
    [
        (dict(num_local_experts=8, num_experts_per_tok=2), 2),
        (dict(num_local_experts=4, num_experts_per_tok=4), 4),
        (dict(num_local_experts=2, num_experts_per_tok=1), 1),
    ],
)
def test_a_token_meets_the_experts_it_visits(fields, active):
    m = build(
        'mixtral',
        device='meta',
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=50,
        **fields,
    )
    many = fields['num_local_experts']
    assert sum(p.numel() for p in m.parameters()) - active_parameters(m) == 3 * (many - active) * 3 * 32 * 48
    assert len(experts_of(m)) == 3 and all(v[:2] == (many, active) for v in experts_of(m).values())


@pytest.mark.parametrize('kw, dense', [(dict(decoder_sparse_step=2), 2), (dict(mlp_only_layers=[0]), 1), ({}, 0)])
def test_blocks_that_are_dense_are_met_whole(kw, dense):
    m = build(
        'qwen2_moe',
        device='meta',
        hidden_size=32,
        intermediate_size=80,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=50,
        num_experts=6,
        num_experts_per_tok=2,
        **kw,
    )
    assert len(experts_of(m)) == 4 - dense
    assert sum(p.numel() for p in m.parameters()) - active_parameters(m) == (4 - dense) * 4 * 3 * 32 * 16


# Tasks


@pytest.mark.slow
def test_the_zoo_and_the_profiler_agree_on_every_task():
    wrong = {}
    for r in index():
        if r['library'] != 'transformers' or not r['task']:
            continue
        try:
            first = tasks_of(load_config(r['name']))[0]
        except (ValueError, ImportError):
            continue
        if first != r['task']:
            wrong[r['name']] = (r['task'], first)
    assert not wrong


@pytest.mark.parametrize(
    'name, task',
    [
        ('bart', 'seq2seq-lm'),
        ('pegasus', 'seq2seq-lm'),
        ('marian', 'seq2seq-lm'),
        ('mbart', 'seq2seq-lm'),
        ('t5', 'seq2seq-lm'),
        ('whisper', 'speech-seq2seq'),
        ('bert', 'masked-lm'),
        ('roberta', 'masked-lm'),
        ('gpt2', 'causal-lm'),
        ('llava', 'image-text-to-text'),
        ('vit', 'image-classification'),
    ],
)
def test_one_rule_for_the_task_of_an_architecture(name, task):
    assert tasks_of(load_config(name))[0] == task
    assert name in [r['name'] for r in search_models(name, library='transformers', task=task)]


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    'name',
    [
        r['name']
        for r in index()
        if r['library'] == 'transformers'
        and r['params']
        and not any(
            s in r['name'] for s in ('mamba', 'rwkv', 'xlstm', 'recurrent', 'jamba', 'bailing', 'kimi', 'deepseek_v4')
        )
    ],
)
def test_the_table_says_what_the_profiler_says(name):
    row = next(r for r in index() if (r['library'], r['name']) == ('transformers', name))
    try:
        s = profile(name)
    except ValueError as e:
        pytest.fail(str(e))
    assert (s.params, s.flops, s.kind) == (row['params'], row['flops'], row['kind'])


# What looks at numbers


class Pair(nn.Module):
    "Takes two arguments of which the second may be left away"

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, a, b=None):
        return self.f(a) if b is None else self.f(a) + self.f(b)


@pytest.mark.parametrize('real', [False, True])
@pytest.mark.parametrize(
    'x',
    [torch.ones(2, 7, 4), (2, 7, 4), [(2, 7, 4)], dict(a=torch.ones(2, 7, 4))],
    ids=['tensor', 'shape', 'list', 'dict'],
)
def test_one_tensor_is_one_argument(x, real):
    s = profile(Pair(), x, real=real)
    assert s.flops == 2 * 14 * 16 and s.inputs[0].shape == (2, 7, 4) and len(s.inputs) == 1


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
@pytest.mark.parametrize('train', [False, True])
def test_what_is_given_stays_as_it_was(precision, train):
    m = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    m[3].eval()
    x, before, state = -torch.ones(3, 4), {k: v.clone() for k, v in m.state_dict().items()}, torch.get_rng_state()
    for real in (True, False):
        profile(m, x, precision=precision, train=train, real=real)
    assert [c.training for c in m] == [True, True, True, False] and m.training
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in m.state_dict().items())
    assert torch.equal(x, -torch.ones(3, 4)) and torch.equal(torch.get_rng_state(), state)
    m.train()
    latency(dict(m=(m[1:3], dict(input=torch.ones(3, 4)))), runs=1)
    assert m[2].training and torch.equal(m[2].running_mean, before['2.running_mean'])


def test_a_mask_of_ones_is_known_and_an_activation_is_not():
    class Short(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(64, 64)

        def forward(self, x, mask):
            return self.f(x) if (mask == 1).all() else self.f(self.f(x))

    x = torch.ones(2, 64)
    assert profile(Short(), [x, torch.ones(2)]).flops * 2 == profile(Short(), [x, torch.tensor([1.0, 0])]).flops

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(64, 64)

        def forward(self, x):
            return x if torch.isfinite(self.f(x)).all() else self.f(x)

    with pytest.raises(ValueError, match='depends on the values'):
        profile(Deep(), x)
    assert profile(Deep(), x, real=True).flops == 2 * 2 * 64 * 64


@pytest.mark.parametrize(
    'name, task, longest',
    [
        ('roberta', 'masked-lm', 510),
        ('roberta', 'causal-lm', 510),
        ('bert', 'masked-lm', 512),
        ('gpt2', 'causal-lm', 1024),
        ('opt', 'causal-lm', 2048),
        ('whisper', 'speech-seq2seq', 448),
        ('bart', 'seq2seq-lm', 1024),
        ('xlnet', 'causal-lm', None),
        ('t5', 'seq2seq-lm', None),
        ('llama', 'causal-lm', None),
        ('bloom', 'causal-lm', None),
        ('clip', 'base', 77),
        ('mpnet', 'masked-lm', None),
    ],
)
def test_the_longest_text_works_and_one_more_does_not(name, task, longest):
    m = build(name, task, device='meta', tiny=True)
    found = longest_text(m)
    if name != 'mpnet':
        assert found == longest
    assert profile(m, seq=found or 700).flops > 0
    if found:
        with pytest.raises(ValueError, match=f'takes at most {found:,} tokens, not {found + 1:,}'):
            profile(m, seq=found + 1)


def test_indices_are_checked_against_the_table():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(10, 4)

        def forward(self, x):
            return self.e(torch.arange(x.shape[1], device=x.device))

    assert profile(Positions(), (1, 10)).params == 40
    with pytest.raises(ValueError, match='row 10 of a table of 10 rows'):
        profile(Positions(), (1, 11))


# What has no formula


class Fn(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.w, self.f = nn.Parameter(torch.randn(8, 8)), f

    def forward(self, x):
        return self.f(x, self.w)


@pytest.mark.parametrize(
    'f, flops',
    [
        (lambda x, w: w @ x[0], 2 * 64),
        (lambda x, w: torch.mv(w, x[0]), 2 * 64),
        (lambda x, w: torch.dot(x[0], w[0]), 16),
        (lambda x, w: x[0] @ w[0], 16),
        (lambda x, w: torch.addmv(x[0], w, x[1]), 2 * 64),
        (lambda x, w: torch.vdot(x[0], w[0]), 16),
        (lambda x, w: torch.cdist(x, w), 2 * 5 * 8 * 8),
        (lambda x, w: torch.nn.functional.pdist(x), 2 * 8 * 5 * 4 // 2),
        (lambda x, w: torch.addbmm(w, w[None], w[None]), 2 * 8**3),
        (lambda x, w: torch.einsum('ab,cb->ac', x, w), 2 * 5 * 64),
        (lambda x, w: torch.nn.functional.bilinear(x, x, w[None].expand(3, 8, 8)), 5 * 3 * (2 * 64 + 2 * 8)),
        (
            lambda x, w: torch.nn.functional.conv1d(x[None, :, None].transpose(0, 1)[:, 0], w[:1, None, :3]),
            2 * 5 * 6 * 3,
        ),
    ],
)
@pytest.mark.parametrize('real', [False, True])
def test_products_without_a_formula_of_torch_are_counted(f, flops, real):
    s = profile(Fn(f), torch.randn(5, 8), real=real)
    assert s.flops == flops and not s.uncounted


@pytest.mark.parametrize(
    'f, name',
    [
        (lambda x, w: torch.fft.fft(x), 'fft'),
        (lambda x, w: torch.linalg.inv(w), 'linalg_inv'),
        (lambda x, w: torch.linalg.svd(w)[0], 'svd'),
        (lambda x, w: torch.linalg.matrix_exp(w), 'matrix_exp'),
        (
            lambda x, w: torch.nn.functional.grid_sample(
                x[None, None], torch.zeros(1, 4, 4, 2, device=x.device), align_corners=False
            ),
            'grid_sampler',
        ),
    ],
)
def test_what_is_not_counted_is_named(f, name):
    s = profile(Fn(f), torch.randn(5, 8))
    assert any(name in n for n in s.uncounted)
    assert 'no formula for' in compare_models([s]).notes


@pytest.mark.parametrize('kind', [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_count_the_same_for_real(kind):
    m, x = kind(8, 16, num_layers=2, batch_first=True, bidirectional=True), torch.randn(2, 6, 8)
    assert profile(m, x).flops == profile(m, x, real=True).flops > 0


def test_a_tower_that_does_not_run_is_named():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.text, self.images = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))

        def forward(self, x):
            return self.text(x)

    s = profile(Towers(), (1, 4))
    assert s.unused == ('images',) and 'images did not run' in compare_models([s]).notes
    assert not profile(nn.Sequential(nn.Linear(4, 4)), (1, 4)).unused


def test_a_shape_with_all_its_fields_survives_json():
    s = TransformerShape(
        4,
        64,
        4,
        100,
        experts=4,
        experts_per_token=2,
        dense_layers=1,
        expert_every=1,
        dense_ffn=128,
        shared_ffn=32,
        head_dim=24,
        value_dim=16,
        q_rank=20,
        kv_rank=12,
        rope_dim=8,
    )
    assert TransformerShape.from_json(s.to_json()) == s and from_shape(s, seq=4).active < from_shape(s, seq=4).params
