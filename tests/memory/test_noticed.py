"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"

import copy
from types import SimpleNamespace

import pytest
import torch

from fsdl_tools.memory import adapters, gpu, measure, predict, states
from fsdl_tools.memory.adapters import Frozen4bit


@pytest.mark.parametrize('shape', [(64, 64), (7, 33), (256, 300)])
def test_a_scale_is_the_least_of_its_steps_that_holds_its_block(shape):
    torch.manual_seed(0)
    linear = torch.nn.Linear(shape[1], shape[0])
    packed = Frozen4bit(linear)
    scale = packed._scale()
    step = packed._outer_by_block() / 255
    flat = linear.weight.detach().flatten()
    block = -(-flat.numel() // len(scale))
    most = torch.nn.functional.pad(flat, (0, len(scale) * block - flat.numel())).view(len(scale), block).abs().amax(1)
    assert (scale >= most - 1e-6).all() and (scale - most <= step + 1e-6).all()


@pytest.mark.parametrize('given', [(2.0,), (2.0, [0]), (2.0, [0], True), (2.0, [0], False), (1.0, [0, 1], True)])
def test_a_norm_that_autocast_casts_keeps_its_shape(given):
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    op = torch.ops.aten.norm.ScalarOpt_dim if len(given) > 1 else torch.ops.aten.norm.Scalar
    plain, cast = op(x.float(), *given), gpu._norm(op, (x, *given), {})
    assert cast.shape == plain.shape and cast.dtype == torch.float32 and torch.allclose(cast, plain)


def test_what_only_one_of_the_two_autocasts_treats_is_exchanged_by_its_policy(monkeypatch):
    known = dict(AutocastCUDA={'a', 'both', 'n'}, AutocastCPU={'c', 'both', 'd'})
    policies = dict(a='fp32', both='fp32', c='none', d='fp32', n='none', elsewhere='none', far='unheard of')
    rows = [dict(operation=name, policy=policy) for name, policy in policies.items()]
    monkeypatch.setattr(gpu, '_registered', known.get)
    monkeypatch.setattr(gpu, 'read_data', lambda name: rows)
    assert gpu._exchanged.__wrapped__() == [('a', 'fp32'), ('n', 'none'), ('c', 'none')]


def test_only_what_came_after_the_forward_pass_began_is_named():
    def block(born, died=None, kind='', phase='forward'):
        return SimpleNamespace(born=born, died=died, kind=kind, phase=phase)

    blocks = [block(4), block(5), block(6), block(7, died=8), block(8, kind='target')]
    blocks += [block(9, phase='loss'), block(10)]
    measure._name_kept(SimpleNamespace(blocks=blocks), blocks[-1], 5)
    assert [b.kind for b in blocks] == ['', '', 'activations', '', 'target', 'logits', 'logits']


def trained(steps, make, resume=None, groups=None, schedule=None):
    "Weights after steps of an optimizer on a small layer of bf16, saved and loaded by another one at `resume`"
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 4, dtype=torch.bfloat16)
    own = groups(layer) if groups else layer.parameters()
    optimizer = make(own)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) if schedule else None
    for step in range(steps):
        if step == resume:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = make(groups(layer) if groups else layer.parameters())
            optimizer.load_state_dict(saved)
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float32).bfloat16()
        optimizer.zero_grad()
        layer(x).float().square().mean().backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
    return torch.cat([p.detach().float().flatten() for p in layer.parameters()])


def mixed(params):
    return states.MasterAdamW(params, lr=0.01)


def test_mixed_training_resumes_to_the_bit():
    assert torch.equal(trained(12, mixed), trained(12, mixed, resume=7))


def test_mixed_training_follows_schedules_and_groups():
    start = trained(0, mixed)
    assert torch.equal(trained(3, mixed, schedule=lambda step: 0.0), start)
    still = trained(3, mixed, groups=lambda m: [dict(params=[m.weight], lr=0.0), dict(params=[m.bias])])
    assert torch.equal(still[:32], start[:32]) and not torch.equal(still[32:], start[32:])


def test_masters_are_kept_of_what_is_trained():
    layer = torch.nn.Linear(8, 4, dtype=torch.bfloat16)
    layer.weight.requires_grad_(False)
    optimizer = states.MasterAdamW(layer.parameters())
    layer(torch.ones(1, 8, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    assert list(optimizer.state) == [layer.bias] and sum(h.numel() for h in optimizer.high) == 4


@pytest.mark.parametrize('bits', [16, 4])
def test_an_adapted_layer_has_the_weight_that_it_applies(bits):
    torch.manual_seed(0)
    whole = torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0, batch_first=True)
    adapted = adapters.add_adapters(whole, 4, bits=bits, inputs=torch.randn(2, 5, 64))
    for m in adapted.modules():
        if isinstance(m, adapters.LowRank):
            torch.nn.init.normal_(m.up, std=0.02)
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        fast, slow = adapted.eval()(x), adapted.train()(x)
    assert torch.allclose(fast, slow, atol=1e-4)
    layer = next(m for m in adapted.modules() if isinstance(m, adapters.LowRank))
    y = torch.randn(3, layer.down.shape[1])
    assert torch.allclose(torch.nn.functional.linear(y, layer.weight, layer.bias), layer(y), atol=1e-4)


def test_logits_are_taken_by_name_from_dicts_as_well():
    h, z = torch.ones(2, 3), torch.zeros(2, 5)
    assert measure.logits_of(dict(features=h, logits=z)) is z
    assert measure.logits_of(dict(features=h, ids=torch.zeros(2, dtype=torch.long))) is h
    assert measure.logits_of(SimpleNamespace(logits=z)) is z
    with pytest.raises(ValueError, match='no tensor of floats in what the model returns, a tuple'):
        measure.logits_of((torch.zeros(2, dtype=torch.long), 'text'))
    with pytest.raises(ValueError, match=r'needs classes in the last dimension, not \[4\]'):
        measure.cross_entropy(torch.zeros(4))


class Anchored(torch.nn.Module):
    "Tensors as attributes, or in a list and in a dict of lists, as anchors and masks are kept"

    def __init__(self, nested):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        ones, zeros, shift = torch.ones(8), torch.zeros(8), torch.ones(8)
        if nested:
            self.anchors, self.by_name = [ones, zeros], dict(shift=[shift])
        else:
            self.ones, self.zeros, self.shift = ones, zeros, shift

    def forward(self, x):
        if hasattr(self, 'anchors'):
            return self.layer(x) * self.anchors[0] + self.anchors[1] + self.by_name['shift'][0]
        return self.layer(x) * self.ones + self.zeros + self.shift


def test_tensors_that_a_model_keeps_in_lists_and_dicts():
    x = torch.randn(4, 8)
    measured = [measure.measure(Anchored(nested), x).peak[1] for nested in (False, True)]
    predicted = [predict.breakdown(Anchored(nested), inputs=x).peak for nested in (False, True)]
    assert measured[0] == measured[1] > 0 and predicted[0] == predicted[1] > 0


def test_the_largest_batch_of_a_network_that_refuses_a_single_sample():
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10))
    most = predict.largest_batch(net, '1MiB', inputs=torch.randn(2, 64))
    peaks = [predict.breakdown(net, n, inputs=torch.randn(2, 64)).peak for n in (most, most + 1)]
    assert most > 2 and peaks[0] <= 2**20 < peaks[1]
    assert predict.largest_batch(net, '1KiB', inputs=torch.randn(2, 64)) == 0


def asked_of_both(model, x, **kw):
    "What measuring and predicting a step say that is wrong with it"
    said = []
    for ask in (lambda: measure.measure(model, x, **kw), lambda: predict.breakdown(model, inputs=x, **kw)):
        with pytest.raises(ValueError) as error:
            ask()
        said.append(str(error.value))
    assert said[0] == said[1]
    return said[0]


@pytest.mark.parametrize('samples, parts', [(5, 4), (3, 8), (7, 2), (1, 2)])
def test_a_batch_that_cannot_be_cut_is_refused_before_anything_runs(samples, parts):
    said = asked_of_both(torch.nn.Linear(4, 3), torch.zeros(samples, 4), accumulation=parts)
    assert said == f'batch {samples} cannot be cut into {parts} micro-batches'


def test_what_has_no_row_for_each_sample_belongs_to_every_micro_batch():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 4)

        def forward(self, x, scale, shift):
            return self.layer(x * scale) + shift

    x = (torch.randn(6, 8), torch.ones(8), torch.tensor(1.0))
    m = measure.summary(measure.measure(Scaled(), x, accumulation=3))
    p = predict.breakdown(Scaled(), inputs=x, accumulation=3, kernels='cpu')
    assert m.batch == p.batch == 6 * 8 * 4 + 8 * 4 + 4 and m.activations == p.activations


def test_a_model_of_which_nothing_can_be_trained_is_refused_by_name():
    x = torch.zeros(2, 4)
    frozen = torch.nn.Linear(4, 3).requires_grad_(False)
    assert asked_of_both(frozen, x).startswith('nothing of Linear is trained, all 2 parameters are frozen')
    assert asked_of_both(torch.nn.ReLU(), x).startswith('nothing of ReLU is trained, it has no parameters')
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(5), torch.nn.LazyBatchNorm1d())
    assert asked_of_both(lazy, x).startswith('0.weight of Sequential has no shape before the model has run')
    lazy(x)
    assert predict.breakdown(lazy, inputs=x, kernels='cpu').gradients == (4 * 5 + 5 + 5 + 5) * 4


def test_a_loss_that_cannot_be_trained_on_is_refused_by_what_it_is():
    class Detached(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    x = torch.zeros(2, 4)
    assert 'depends on no parameter that is trained' in asked_of_both(Detached(4, 3), x)
    assert 'one number in a tensor, not [2, 3]' in asked_of_both(torch.nn.Linear(4, 3), x, loss=lambda y: y * 2)
    assert 'one number in a tensor, not float' in asked_of_both(torch.nn.Linear(4, 3), x, loss=lambda y: 1.0)


class Called(torch.nn.Module):
    "Layers whose names say nothing: the inner one is called head, the last one inner"

    def __init__(self, branch=False):
        super().__init__()
        self.inner, self.head, self.fc, self.branch = *(torch.nn.Linear(8, 8) for _ in 'abc'), branch

    def forward(self, x):
        if self.branch and x.sum(0).shape[0] and len(x) > 1:
            x = x + 1
        return self.inner(torch.relu(self.head(x)) + self.fc(x))


def adapted_names(model, **kw):
    made = adapters.add_adapters(model, 2, **kw)
    return [n for n, m in made.named_modules() if isinstance(m, adapters.LowRank)]


def test_the_head_is_the_layer_that_makes_the_output():
    x = torch.zeros(2, 8)
    assert adapted_names(Called()) == adapted_names(Called(True), inputs=x) == ['head', 'fc']
    assert adapted_names(Called().requires_grad_(False)) == ['head', 'fc']
    with pytest.raises(ValueError, match='which layer makes the output of Called. Give inputs='):
        adapters.add_adapters(Called(True))
    body = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    assert adapted_names(body) == ['0'] and adapted_names(torch.nn.Sequential(body, torch.nn.Linear(8, 2))) == ['0.0']


@pytest.mark.parametrize('name, head', [('bert', 'cls.predictions.decoder'), ('gpt2', 'lm_head'), ('llama', 'lm_head')])
def test_the_head_of_a_model_of_transformers(name, head):
    from fsdl_tools.models.build import build

    model = build(name, device='meta', tiny=True)
    found = adapted_names(model)
    if name == 'bert' and model.get_output_embeddings() is None:
        assert found
        return
    assert head in dict(model.named_modules()) and head not in found
    assert set(found) == set(adapters._linear(model)) - {head}


@pytest.mark.parametrize(
    'name', ['resnet18', 'vit_tiny_patch16_224', 'convnext_atto', 'deit_tiny_distilled_patch16_224']
)
def test_the_head_of_a_model_of_timm(name):
    from fsdl_tools.models.build import build

    model = build(name, device='meta')
    heads = model.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    linear = adapters._linear(model)
    inner = [n for n, m in linear.items() if not any(m is h for h in heads)]
    if inner:
        assert adapted_names(model) == inner and len(inner) < len(linear)
    else:
        with pytest.raises(ValueError, match='no linear layers that an adapter could stand beside'):
            adapters.add_adapters(model)


def test_a_classifier_of_transformers_is_found_by_running_it():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = BertConfig(vocab_size=32, **sizes)
    with torch.device('meta'):
        model = BertForSequenceClassification(config)
    ids = dict(input_ids=torch.zeros(2, 6, dtype=torch.long))
    for kw in ({}, dict(inputs=ids)):
        found = adapted_names(model, **kw)
        assert 'classifier' not in found and 'bert.encoder.layer.0.attention.self.query' in found


def test_a_name_that_is_none_is_answered_with_the_nearest():
    net = Called()
    assert adapted_names(net, names='head') == ['head']
    for names in (['haed'], 'haed'):
        with pytest.raises(ValueError, match="haed.*head"):
            adapters.add_adapters(net, names=names)
