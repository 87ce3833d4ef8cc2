"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fsdl_tools.core import fix_torchvision
from fsdl_tools.models import architectures, build, compare, configurations, profile, shape, tiny, values, zoo

fix_torchvision()
from transformers import LlamaConfig  # noqa: E402


def test_licences_of_an_architecture_are_a_list_of_words():
    assert [zoo._licences(dict(licences=x)) for x in ('mit apache-2.0', 'mit', '', None)] == [
        ['mit', 'apache-2.0'],
        ['mit'],
        [],
        [],
    ]


@pytest.mark.parametrize('hidden, heads', [(64, 4), (96, 8), (112, 7)])
def test_heads_that_were_left_open_divide_the_hidden_size(hidden, heads):
    config = LlamaConfig(hidden_size=hidden, num_attention_heads=heads)
    config.head_dim, config.num_key_value_heads = None, None
    configurations._fill(config)
    assert (config.head_dim, config.num_key_value_heads) == (hidden // heads, heads)


def test_sets_of_weights_are_those_of_the_architecture(monkeypatch):
    import timm

    cfg = lambda tag: SimpleNamespace(tag=tag, input_size=(3, 8, 9), num_classes=5, license='mit', hf_hub_id='x/y')
    monkeypatch.setattr(timm, 'list_models', lambda: ['net', 'net_b'])
    monkeypatch.setattr(timm, 'list_pretrained', lambda pattern: ['net.a', 'net_b.a', 'net.b'])
    monkeypatch.setattr(timm, 'get_pretrained_cfg', lambda name: cfg(name.partition('.')[2]))
    row = dict(input='3x8x9', classes=5, licence='mit', hub='x/y')
    for name in ('net', 'timm/net', 'net.a'):
        assert zoo.tags(name).rows == [dict(name='net.a', **row), dict(name='net.b', **row)]
    with pytest.raises(ValueError, match="did you mean 'net'"):
        zoo.tags('nett')


def test_shortcuts_are_taken_where_numbers_are_known(monkeypatch):
    asked, known = [], values.Values()
    masks = SimpleNamespace(is_tracing=lambda t=None: asked.append(t is None) or 'asked')
    monkeypatch.setitem(sys.modules, 'transformers.masking_utils', masks)
    before, t = masks.is_tracing, torch.empty(2, device='meta')
    with values.with_shortcuts(known):
        masks.is_tracing(t), masks.is_tracing(torch.ones(1)), masks.is_tracing()
        known.learn(t, torch.ones(2))
        masks.is_tracing(t)
    assert asked == [False, True, True, True] and masks.is_tracing is before
    monkeypatch.setitem(sys.modules, 'transformers.masking_utils', SimpleNamespace())
    with values.with_shortcuts(known):
        assert not hasattr(sys.modules['transformers.masking_utils'], 'is_tracing')


def test_nothing_is_fetched_meanwhile():
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    for was in (True, False):
        constants.HF_HUB_OFFLINE = was
        with configurations.offline():
            assert constants.HF_HUB_OFFLINE is True
        assert constants.HF_HUB_OFFLINE is was
    constants.HF_HUB_OFFLINE = before


def test_tiny_batches_are_typical_samples_and_noise():
    typical = lambda shape: torch.randn(10, *shape, generator=torch.Generator().manual_seed(1234))
    for name, shape in (('mlp', (20,)), ('cnn', (3, 16, 16))):
        g = torch.Generator().manual_seed(7)
        y = torch.randint(0, 10, (9,), generator=g)
        want = typical(shape)[y] + torch.randn(9, *shape, generator=g)
        x, labels = tiny.tiny_batch(name, 9, 7)
        assert torch.equal(x, want) and torch.equal(labels, y)
    net = tiny.TinyGPT(64, 400, 4, 1, 50)
    assert 0.098 < net.pos.std() < 0.102 and 0.097 < net.emb.weight.std() < 0.103
    assert (
        tiny.rule_batch(5, 3, 4, 9)[0][:, 0].tolist()
        == torch.randint(0, 9, (3, 1), generator=torch.Generator().manual_seed(5)).flatten().tolist()
    )


def test_what_is_moved_to_a_device():
    odd = SimpleNamespace(dtype=1)
    assert profile._moved(odd, 'cpu', None) is odd and profile._moved('x', 'cpu', None) == 'x'
    held = [torch.ones(2), dict(a=(1, 2)), ('x', torch.zeros(3, dtype=torch.int64))]
    moved = profile._moved(held, 'meta', v := values.Values())
    assert (
        moved[0].is_meta
        and moved[1]['a'].shape == (1, 2)
        and moved[2][0] == 'x'
        and v.of(moved[2][1]).tolist() == [0, 0, 0]
    )
    real = profile._moved(held, 'cpu', values.Values())
    assert (
        real[0] is not held[0] and torch.equal(real[0], held[0]) and 0 <= real[1]['a'].min() <= real[1]['a'].max() < 1
    )


class Slow(nn.Module):
    "Takes as many seconds as it is told, by a clock of its own"

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds, self.calls, self.modes = clock, list(seconds), 0, []

    def forward(self, x):
        self.clock[0] += self.seconds[self.calls % len(self.seconds)]
        self.calls += 1
        self.modes.append((self.training, torch.is_inference_mode_enabled()))


def test_the_median_of_rounds_after_a_first_run(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(compare, 'time', SimpleNamespace(perf_counter=lambda: clock[0]))
    a, b = Slow(clock, [50, 1, 5, 3]), Slow(clock, [70, 2, 2, 9])
    b.eval()
    assert compare.latency(dict(a=(a, dict(x=1)), b=(b, dict(x=1))), 3) == dict(a=3, b=2)
    assert a.calls == b.calls == 4 and set(a.modes) == {(False, True)} and a.training and not b.training
    with pytest.raises(ValueError, match='runs must be positive'):
        compare.latency({}, 0)


def test_a_model_of_timm_for_images_of_another_size():
    for name, size, kw in (
        ('resnet10t', (1, 32, 64), {}),
        ('vit_tiny_patch16_224', (3, 32, 32), dict(depth=1)),
        ('resnet10t', None, {}),
    ):
        model = build.build(name, input_size=size, device='meta', num_classes=3, **kw)
        x = build.example_inputs(model, 2)['x']
        assert (
            model.input_size == (size or (3, 176, 176))
            and x.shape == (2, *model.input_size)
            and model(x).shape == (2, 3)
        )
    for size, says in ((33, r'3×33×33: not a multiple|cannot be built for 3×33×33'), ('x', 'cannot read input size')):
        with pytest.raises(ValueError, match=says):
            build.build('vit_tiny_patch16_224', input_size=size, device='meta', depth=1)


def test_heads_that_are_untied():
    "A head gets weights of its own where a file says so; one that has them keeps them"
    from transformers import T5Config

    size = dict(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    for untied in (True, False):
        config = T5Config(**size)
        config.untied_head = untied
        model = build.from_config(config, architectures.model_class('T5ForConditionalGeneration'))
        assert (model.lm_head.weight is model.shared.weight) != untied
        assert torch.equal(model.lm_head.weight, model.shared.weight)
    before = model.lm_head.weight = nn.Parameter(torch.ones(20, 8))
    build._untie(model)
    assert model.lm_head.weight is before
    for head, table in ((None, 1), (1, None)):
        build._untie(SimpleNamespace(get_output_embeddings=lambda h=head: h, get_input_embeddings=lambda t=table: t))


def test_rows_times_one_of_several_matrices():
    a, b = torch.arange(6.0).view(2, 3), torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(profile._grouped(a, b), a @ b[0]) and torch.equal(
        profile._grouped(a[:, None], b), a[:, None] @ b
    )


@pytest.mark.parametrize('longest, wanted', [(None, 512), (77, 77), (512, 512), (513, 512), (100_000, 512)])
def test_a_text_nobody_gave_a_length_is_512_tokens_or_the_longest(longest, wanted, monkeypatch):
    monkeypatch.setattr(build, 'longest_text', lambda model: longest)
    assert build._text_length(None, None) == wanted and build._text_length(None, 77) == 77


@pytest.mark.parametrize('fields', [dict(num_attention_heads=-1), dict(num_key_value_heads=-8), dict(n_head=10**9)])
def test_numbers_of_heads_are_numbers_of_things(fields, tmp_path):
    file = tmp_path / 'config.json'
    file.write_text(json.dumps(dict(model_type='llama') | fields))
    with pytest.raises(ValueError, match=f'{next(iter(fields))} is -?[0-9]+: '):
        configurations.read_config(file)


@pytest.mark.parametrize('size', [(224.7, 224.2), 224.0, (3, 224, 0.5)])
def test_a_part_of_a_pixel_is_no_size(size):
    with pytest.raises(ValueError, match='cannot read input size'):
        build._size(size, (3, 224, 224))


def test_what_is_no_transformer_has_no_shape():
    assert shape.shape_of(nn.Linear(2, 2)) is None and shape.shape_of(build.build('resnet18', device='meta')) is None


def test_what_is_no_model_of_transformers_reads_no_text():
    assert build.longest_text(build.build("test_resnet")) is None
    assert build.longest_text(torch.nn.Linear(2, 2)) is None
