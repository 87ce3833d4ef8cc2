"""What the chapters on models answer: counts, values that are followed, names, configurations, inputs, profiles"""

import itertools
import json
import random
import re
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from fsdl_tools.core import fix_torchvision
from fsdl_tools.models import architectures as A, build as B, compare as K, configurations as F, gpt, profile as P
from fsdl_tools.models import shape as H, spec as S, tiny, values as V, zoo as Z
from tests.answers import answer, same_answers

fix_torchvision()


# Shapes by arithmetic


def drawn_shape(draw):
    "Fields of a shape, most of them as they are by default"
    heads, size = draw.choice([1, 2, 4, 6, 8]), draw.choice([4, 8, 10])
    kw = dict(
        layers=draw.randint(1, 5),
        hidden=heads * size + draw.choice([0, 0, 0, 3]),
        heads=heads,
        vocab=draw.choice([0, 50, 97]),
    )
    more = dict(
        ffn=[0, 33],
        kv_heads=[0, 1, 2, heads],
        head_dim=[0, 5],
        max_seq=[16, 2048],
        gated_mlp=[True, False],
        tied=[True, False],
        norm=['rmsnorm', 'layernorm', 'batchnorm'],
        positions=['learned', 'rotary', 'none', 'rotry'],
        qkv_bias=[True],
        out_bias=[True],
        mlp_bias=[True],
        experts=[4, 8],
        experts_per_token=[1, 2, 9],
        dense_layers=[1, 2],
        expert_every=[2, 3, 0],
        dense_ffn=[44],
        shared_ffn=[21],
        value_dim=[6],
        q_rank=[12],
        kv_rank=[14],
        rope_dim=[2],
        decoder_layers=[2],
    )
    for name in draw.sample(sorted(more), draw.randint(0, 9)):
        kw[name] = draw.choice(more[name])
    if 'experts' in kw:
        kw.setdefault('experts_per_token', 2)
    return kw


def counts_of(kw, seq, kind):
    "A spec in a few numbers, and its layers in a line"
    shape = S.TransformerShape(**kw)
    s = S.from_shape(shape, 'x', seq, kind)
    first = [f'{l.name} {l.kind} {l.params} {l.flops} {l.activations} {l.output}' for l in s.layers]
    checksum = sum(
        (i + 1) * (l.params + 3 * l.flops + 7 * l.activations + sum(l.output)) for i, l in enumerate(s.layers)
    )
    filled = shape.ffn, shape.kv_heads, shape.head_dim, shape.dense_ffn, shape.value_dim
    return (
        s.params,
        s.active,
        s.embedding,
        s.flops,
        s.activations,
        s.macs,
        s.kind,
        len(first),
        checksum,
        filled,
        first[2 + 9 : 24] if kw['layers'] < 3 else '',
    )


def test_shapes(request):
    "Drawn shapes of transformers, and what is refused; numbers for people; checks of a spec"
    draw, found = random.Random(0), {}
    for i in range(120):
        kw, seq, kind = (
            drawn_shape(draw),
            draw.choice([1, 5, 16, 17, None]),
            draw.choice(['decoder', 'decoder', 'encoder', 'vision']),
        )
        found[f'{i} {kw} {seq} {kind}'] = answer(counts_of, kw, seq, kind)
    table = S.TransformerShape(1, 8, 2, 5, max_seq=9, positions='learned')
    found['table'] = (
        [
            answer(counts_of, dict(layers=1, hidden=8, heads=2, vocab=5, max_seq=9, positions=p), s, 'decoder')
            for s in (8, 9, 10)
            for p in ('learned', 'none')
        ],
        S.from_shape(table).inputs[0].shape,
    )
    found['mixtures'] = [
        S.TransformerShape(6, 8, 2, 5, experts=2, experts_per_token=1, dense_layers=d, expert_every=e).has_experts(i)
        for d in (0, 1)
        for e in (1, 2, 3)
        for i in range(6)
    ]
    found['flop'] = [S.human_flop(n) for n in (0, 1, 999, 1000, 1001, 4.1e9, -2000, 7e12, 12345678)]
    found['shape'] = S.human_shape((3, 224, 224)), S.human_shape(())
    found['matrices'] = (
        S.compressed_matrices(8, 2, 6, 5, 0, 4, 2),
        S.compressed_matrices(8, 2, 6, 5, 3, 4, 2),
        S.compressed_matrices(8, 2, 6, 5, 1, 4, 2),
        S.attention_matrices(8, 6, 4, 5),
        S.mlp_matrices(8, 9, True),
        S.attention_flops(7, 3, 4),
        S.weights([('a', 2, 3, 4), ('b', 5, 6, 0)]),
    )
    for kw in (
        dict(kind='x'),
        dict(source='x'),
        dict(params=-1, active=-1),
        dict(trainable=-1),
        dict(flops=-1),
        dict(active=11),
        dict(active=-1),
        dict(active=10),
        dict(active=3),
        {},
    ):
        found[f'spec {kw}'] = answer(
            lambda kw=kw: (lambda s: (s.active, s.macs))(
                S.ModelSpec(**dict(name='n', source='shape', kind='other', params=10, trainable=5, flops=7) | kw)
            )
        )
    same_answers(request, 'shapes', found)


# The zoo

ROWS = [
    dict(zip('name library family task input params flops activations saved licences'.split(), row, strict=True))
    for row in [
        ('resnet9', 'timm', 'resnet', 'image-classification', '3x224x224', 5_000_000, 2e9, 3e6, 4e7, 'mit apache-2.0'),
        ('resnet18d', 'timm', 'resnet', 'image-classification', '3x160x160', 11_000_000, 1e9, 2e6, 3e7, 'apache-2.0'),
        ('vit_x', 'timm', 'vit', 'image-classification', '3x224x224', 30_000_000, None, 9e6, 1e8, ''),
        ('bert', 'transformers', 'bert', 'masked-lm', '1x512', 110_000_000, 9e10, 5e7, 1e9, None),
        ('llama', 'transformers', 'llama', 'causal-lm', None, None, None, None, None, 'other'),
        ('odd', 'timm', None, None, '224', 3, 4, 5, 6, 'mit'),
    ]
]


def test_zoo(request, monkeypatch):
    "Searches by each field and limit, and rows of the table of specs"
    monkeypatch.setattr(Z, 'index', lambda: tuple(ROWS))
    asks = [
        dict(),
        dict(text='resnet'),
        dict(text='RES 18'),
        dict(text='res*d'),
        dict(text='?ert'),
        dict(text='zzz'),
        dict(text='resnt'),
        dict(library='timm'),
        dict(library='tim'),
        dict(task='causal-lm'),
        dict(family='vit'),
        dict(input='3x224x224'),
        dict(input=224),
        dict(input='160'),
        dict(input=24),
        dict(licence='mit'),
        dict(licence='gpl'),
        dict(min_params='11M'),
        dict(max_params='11M'),
        dict(min_params='5M', max_params='30M'),
        dict(max_flops='1G'),
        dict(min_flops='1.1G'),
        dict(min_params=11_000_001),
        dict(max_params=0),
        dict(sort='params'),
        dict(sort='saved', limit=2),
        dict(sort='size'),
        dict(limit=0),
        dict(limit=1),
        dict(family='bert', text='resnet'),
        dict(text='masked'),
    ]
    found = {
        f'{kw}': answer(lambda kw=kw: (lambda t: ([r['name'] for r in t.rows], t.notes))(Z.search_models(**kw)))
        for kw in asks
    }
    found['table'] = str(Z.search_models('resnet9'))
    row = dict(
        name='n',
        source='timm',
        kind='vision',
        family='f',
        library='timm 1.0',
        precision='fp32',
        uncounted='a;b',
        unused='',
        inputs='x:1x3x8x8:float32;y::int64',
        licence='',
        torch='2.1',
        **{k: '10' for k in Z._counts},
    )
    monkeypatch.setattr(Z, '_spec_rows', lambda: iter([dict(row, name='m'), row]))
    for versions in (dict(timm='1.0', torch='2.1'), dict(timm='1.1', torch='2.1'), dict(timm='1.0', torch='2.2'), {}):
        monkeypatch.setattr(Z, '_installed', lambda p, versions=versions: versions.get(p, ''))
        found[f'known {versions}'] = [(s := Z.known_spec(n)) and s.name for n in ('n', 'm', 'x')]
    found['row'] = Z._spec_of(dict(row, licence='mit', unused='c')).to_dict()
    monkeypatch.undo()
    found['installed'] = (
        Z._installed('no-such-package'),
        '+' in Z._installed('torch'),
        Z._installed('numpy') == np.__version__,
    )
    found['real'] = (
        len(Z.index()) > 1500,
        {k: type(v).__name__ for k, v in Z.index()[0].items() if k in ('name', 'params', 'flops', 'licences')},
    )
    same_answers(request, 'zoo', found)


# Values that are followed


def follow(code, known=True, **kw):
    "What is known after some lines on a tensor without data, which stands for 0, 1, 2, 3, 4, 5"
    values = V.Values(**kw)
    t = torch.empty(2, 3, device='meta')
    if known:
        values.learn(t, torch.arange(6.0).view(2, 3))
    space = dict(t=t, torch=torch, u=torch.empty(2, 3, device='meta'))
    with torch.device('meta'), V.watching(values):
        exec(code, space)
    out = space['out']
    tensors = [out] if isinstance(out, torch.Tensor) else out if isinstance(out, (list, tuple)) else []
    return (
        [
            (list(x.shape), None if (v := values.of(x)) is None else v.tolist(), values.drawn(x))
            if isinstance(x, torch.Tensor)
            else x
            for x in tensors
        ]
        if tensors
        else out,
        values.assumed,
        values.left - 2**26,
    )


LINES = """out = t + 1|out = t[0]|out = t[:, [0, 2]]|out = t[t > 2]|out = t[u > 2]|t.add_(1); out = t
t.add_(u); out = t|t[0] = 7; out = t|out = t.sum().item()|out = u.sum().item()|out = t.tolist()
out = t.view(3, 2)|v = t.view(6); v.mul_(2); out = t
out = torch.tensor([1, 2]) + 1|out = torch.tensor(3.)|out = torch.as_tensor([[1.5]])|out = torch.zeros(2, 2)
out = torch.empty(2)|out = torch.rand(1) < .9|out = torch.rand(1) < .5|out = bool(torch.rand(1) < .9)
out = bool(torch.rand(1) < .5)|out = bool(torch.rand(1) < 2)
out = torch.rand(2)|out = torch.randn(1)|out = bool(torch.rand(()) + torch.rand(()) > .7)|out = t.nonzero()
out = torch.unique(t)|out = t.max().item()|out = t.clone()|u.copy_(t); out = u|t.copy_(u); out = t
out = t.to(torch.int64)|out = t.sum(0)|out = t.split(1)|out = t.topk(2)
out = torch.nn.functional.embedding(torch.tensor([0, 1]), t)
out = torch.nn.functional.embedding(torch.tensor([0, 2]), t)
out = torch.nn.functional.embedding(torch.tensor([-1]), t)|out = t[torch.tensor([1, 2])]|out = t[torch.tensor([-2])]
out = t[torch.tensor([-3])]
out = t.index_select(1, torch.tensor([2]))|out = t.index_select(1, torch.tensor([3]))
out = t.gather(1, torch.tensor([[0], [2]]))|out = t.gather(1, torch.tensor([[0], [3]]))
t.index_fill_(0, torch.tensor([1]), 5.); out = t|t.index_fill_(0, torch.tensor([2]), 5.); out = t
t.index_put_((torch.tensor([1]), torch.tensor([2])), torch.tensor(9.)); out = t
t.index_put_((torch.tensor([1]), torch.tensor([3])), torch.tensor(9.)); out = t
out = t[:, None, torch.tensor([True, False, True])]|out = u[torch.tensor([True, False])]
out = u[torch.tensor([[True, False, True]] * 2)]
out = (torch.rand(1) * t).sum() > 3|out = torch.arange(4)|out = torch.linspace(0, 1, 3)
out = torch.where(t > 2, t, 0)|out = t.repeat_interleave(torch.tensor([1, 2]), 0)|out = t.bernoulli_()
x = torch.ones(3); x.dropout = 1; out = torch.nn.functional.dropout(x, .5)|out = t.mean(); t.zero_()
out = torch.bincount(t.view(-1).long())
x = torch.zeros(3); x.set_(t); out = x|x = torch.empty(2, 3); torch.mul(t, 2, out=x); out = x
x = torch.empty(2, 3); torch.add(t, u, out=x); out = x
x = torch.rand(1); y = torch.zeros(1); y.add_(x); out = y
x = torch.rand(1); out = [x >= .5, x > 1, x <= 0, x.lt(.25)]|out = torch.index_add(t, 0, torch.tensor([5]), u)
out = t.scatter(1, torch.tensor([[3]]), 1.)|out = (torch.rand(1) < .9).nonzero().shape""".replace('\n', '|').split('|')


def test_values(request):
    "What follows from constants on tensors without data, what does not, and indices beyond a table"
    found = {f'{line}': answer(follow, line) for line in LINES}
    found |= {
        f'{line} of what is not known': answer(follow, line, False) for line in LINES if 't' in line.split('=')[-1]
    }
    for most in (0, 5, 6):
        found[f'most {most}'] = answer(follow, 'out = [t, t + 1, t[0] + 1]', most=most)
    for budget in (5, 6, 7, 11, 12):
        found[f'budget {budget}'] = answer(follow, 'out = [t, t + 1, t[0] + 1]', budget=budget)
    found['range'] = [
        answer(V._in_range, 'x', torch.tensor(i, dtype=torch.int64), 3, neg)
        for i in ([], [0], [2], [3], [-1], [-3], [-4], [1, 5])
        for neg in (False, True)
    ]
    found['chance'] = (
        [V._chance(n, (0, b)) for n in ('lt', 'le', 'gt', 'ge', 'add') for b in (0, 0.1, 0.5, 1, 1.5, -1)],
        V._chance('lt', (0,)),
        V._chance('lt', (0, torch.ones(1))),
    )
    found['masks'] = [
        V._is_mask(i) for i in (None, torch.ones(1), torch.ones(1, dtype=torch.bool), torch.ones(1, dtype=torch.uint8))
    ]
    found['nest'] = len(V._tensors_in([torch.ones(1), dict(a=(torch.ones(2), 3)), 'x', None]))
    net = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 33))
    net.register_buffer('places', torch.arange(3000))
    net.register_buffer('wide', torch.ones(1025))
    bare = V.bare_copy(net)
    known = V.recall(bare)
    found['bare'] = (
        {n: (known.knows(t), t.device.type) for n, t in [*bare.named_parameters(), *bare.named_buffers()]},
        net[0].weight.device.type,
        V.recall(nn.Linear(1, 1)) is V.recall(net),
    )
    found['script'] = answer(V.bare_copy, torch.jit.script(nn.Linear(1, 1)))
    found['contexts'] = [type(V.watching_on(d, V.Values())).__name__ for d in ('meta', 'cpu', torch.device('meta'))]
    same_answers(request, 'values', found)


# Names and configurations


def in_words(call, *args, folder='', **kw):
    "An answer without the folder that it speaks of"
    return json.loads(json.dumps(answer(call, *args, **kw)).replace(str(folder), 'FOLDER'))


def test_names(request, tmp_path, monkeypatch):
    "Which zoo a name belongs to, what a checkpoint is called after, and what is said to those that are none"
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'x.pt').write_text('x')
    monkeypatch.setattr(A, '_cached', lambda name: 'CACHED' if 'cached' in name else None)
    names = """resnet50|resnet50.a1_in1k|timm/resnet50|hf-hub:timm/resnet50|bert|transformers/bert
BertForMaskedLM|https://huggingface.co/bert|org/cached|os.path:join|./os.py:join|os.py|os:|json:
meta-llama/Llama-2-7b-hf|google/vit-base-patch16-224|no-such/thing|empty|x.pt|y.safetensors|os.path.join|Res-Net50
Bert|zzzz||synthetic:tokens|empty/config.json|mistralai/Mixtral-8x7B|Salesforce/blip-image|gpt2.x|nosuch:thing
os.path:nothing|os:sep|os:path.join|json:dumpz|..|tf.keras|torch:nn.Linear""".replace('\n', '|').split('|')
    short = lambda text: (
        re.sub(r"(expected one of|names like|did you mean).*", r'\1', text) if isinstance(text, str) else text
    )
    found = {f'locate {n}': short(in_words(A.locate, n, folder=tmp_path)) for n in names}
    found |= {f'factory {n}': A.is_factory(n) for n in names}
    found |= {
        f'load {n}': short(in_words(lambda n=n: A.load_factory(n).__name__, folder=tmp_path))
        for n in names
        if ':' in n and 'http' not in n
    }
    found['text'] = (
        [answer(A._text_of, x) for x in ('a', 3, None)],
        A.is_factory(len),
        A.is_factory(3),
        [A._plain_name(x) for x in ('Res-Net_50.x', '')],
        [list(r) for r in A._runs('abc')],
    )
    found['family'] = {
        n: A.checkpoint_family(n)
        for n in (
            'meta-llama/Llama-2-7b-hf',
            'google/flan-t5-small',
            'bert-base-uncased',
            'x/y',
            'Qwen/Qwen2.5-7B',
            'hf-hub:openai/gpt2-xl',
            'a/clip',
            'facebook/opt-125m',
            '',
        )
    }
    found['lacks'] = [
        A._lacks_another(m, missing)
        for m, missing in (('a.b', 'a'), ('a.b', 'a.b'), ('a.b', 'c'), ('ab', 'a'), ('a', None), ('a', ''))
    ]
    found['classes'] = [
        (c := A.model_class(n)) and c.__name__
        for n in (
            'BertForMaskedLM',
            'bertForMaskedLM',
            'BertConfig',
            'AutoModel',
            'Trainer',
            'PreTrainedModel',
            'Nothing',
            'Bert-x',
            None,
            3,
        )
    ]
    found['made'] = (
        [answer(A._made_of_class, x) for x in ('bert', A.model_class('BertModel'), nn.Linear)],
        A._made_of_class(type('Own', (), dict(config_class=None))).__name__,
        A._made_of_class(type('Own', (), dict(config_class=dict, __init__=lambda self, c: None))).__qualname__,
    )
    found['nothing else'] = [
        answer(A._nothing_else, m, kw)
        for m in ('name', nn.Linear(1, 1))
        for kw in (dict(), dict(a=None), dict(a=None, b=0))
    ]
    found['sequence'] = [
        answer(A.reads_sequence, n) for n in ('resnet50', 'os.path:join', 'bert', 'vit', 'whisper', 'wav2vec2', 't5')
    ]
    same_answers(request, 'names', found)


CONFIGS = dict(
    bert=dict(model_type='bert', hidden_size=8, num_attention_heads=2, auto_map=dict(x='y'), torch_dtype='float32'),
    timm=dict(architecture='resnet18', num_classes=7),
    args=dict(architecture='resnet18', model_args=dict(a=1)),
    wrong=dict(architecture='resnet1888'),
    classes=dict(architecture='resnet18', num_classes=-1),
    classes_2=dict(architecture='resnet18', num_classes=True),
    classes_3=dict(architecture='resnet18', num_classes=10**6),
    classes_4=dict(architecture='resnet18', num_classes=10**6 + 1),
    many=dict(model_type='bert', num_hidden_layers=4097),
    most=dict(model_type='bert', num_hidden_layers=4096),
    below=dict(model_type='bert', num_hidden_layers=-1),
    labels=dict(model_type='bert', num_labels=10**6 + 1),
    fetched=dict(model_type='bert', backbone='org/x'),
    hub=dict(model_type='bert', name='hf-hub:x'),
    none=dict(hidden_size=3),
    typo=dict(model_type='brt'),
    inner=dict(model_type='bert', sub=dict(num_layers=5000)),
    untied=dict(model_type='t5', tie_word_embeddings=False),
    listed=dict(model_type='bert', depths=[1, 5000]),
    text=dict(model_type='bert', num_layers='many'),
    address=dict(architecture='hf-hub:x/y'),
    a_list=[1],
    url=dict(model_type='bert', file=' https://x'),
)


def loaded(name):
    "A configuration in a few words"
    c = A.load_config(name)
    return (
        c.model_type,
        getattr(c, 'hidden_size', None),
        getattr(c, 'num_hidden_layers', None),
        hasattr(c, 'auto_map'),
        getattr(c, 'untied_head', None),
        getattr(c, 'architectures', None),
    )


def test_configurations(request, tmp_path, monkeypatch):
    "Files of both zoos, and what must not be in them; tasks, classes, holes and cuts"
    found = {}
    short = lambda text: (
        re.sub(r"(expected one of|did you mean|is not JSON).*", r'\1', text) if isinstance(text, str) else text
    )
    for name, fields in CONFIGS.items():
        path = tmp_path / f'{name}.json'
        path.write_text(json.dumps(fields))
        found[name] = [short(in_words(f, str(path), folder=tmp_path)) for f in (F.timm_fields, A.locate, loaded)]
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'Config.JSON').write_text('\ufeff' + json.dumps(CONFIGS['bert']), encoding='utf-8')
    (tmp_path / 'broken.json').write_text('{')
    for name in ('folder', 'broken.json', 'missing.json', 'folder/other'):
        found[f'file {name}'] = [
            short(in_words(f, str(tmp_path / name), folder=tmp_path)) for f in (F.timm_fields, A.locate, loaded)
        ]
    monkeypatch.setattr(F, '_largest_file', 5)
    found['large'] = re.sub(r'\d+ bytes', 'N bytes', in_words(loaded, str(tmp_path / 'bert.json'), folder=tmp_path))
    monkeypatch.setattr(F, '_largest_file', (tmp_path / 'bert.json').stat().st_size)
    found['just large enough'] = in_words(loaded, str(tmp_path / 'bert.json'), folder=tmp_path)[0]
    found['default'] = [answer(loaded, n)[:2] for n in ('bert', 'BertForMaskedLM', 'resnet50', 'os.path:join')]
    found['counts'] = [
        answer(F._check_count, k, v)
        for k, v in (
            ('num_x', -1),
            ('num_x', 0),
            ('n_layers', 0),
            ('x_layers', -1),
            ('num_layers', 4096),
            ('num_layers', 4097),
            ('num_labels', 10**6),
            ('num_labels', 10**6 + 1),
            ('n_layer', [-1]),
            ('layers', [1, -4097]),
            ('layers', ['x']),
        )
    ]
    found['texts'] = [
        answer(F._check_text, k, t)
        for k, t in (
            ('backbone', 'a'),
            ('backbone', 'a/b'),
            ('backbone', './a'),
            ('name', 'a/b'),
            ('name', 'hf_hub:x'),
            ('name', ' file:x'),
            ('architecture', '~x'),
            ('x', 'files:x'),
        )
    ]
    found['shape fields'] = F._shape_fields(dict(a=1, auto_map=2, b=dict(_attn_implementation=3, c=4)))
    tasks = {t: {} for t in A.hf_tasks} | {
        'masked-lm': dict(x=('First', 'Second'), y='Y'),
        'causal-lm': dict(x='Causal', z='Z'),
        'base': dict(x='Base'),
        'seq2seq-lm': dict(x='Seq'),
        'image-text-to-text': dict(x='See'),
        'speech-seq2seq': dict(x='Hear'),
    }
    monkeypatch.setattr(A, '_hf_classes', tasks.get)
    for kind, kw in itertools.product(
        'xyzw',
        (
            dict(),
            dict(is_encoder_decoder=True),
            dict(sub_configs=dict(vision_config=1)),
            dict(is_encoder_decoder=False, sub_configs=dict(a=1)),
        ),
    ):
        found[f'tasks {kind} {kw}'] = answer(A.tasks_of, SimpleNamespace(model_type=kind, **kw))
    library = SimpleNamespace(
        First='first',
        Causal='causal',
        Y='y',
        PreTrainedModel=nn.Module,
        Linear=nn.Linear,
        Other=int,
        Made=type('Made', (nn.Module,), dict(config_class=int)),
        Free=type('Free', (nn.Module,), dict(config_class=None)),
    )
    monkeypatch.setattr(A, 'need', lambda name: library)
    for named, task in itertools.product(
        (None, [], ['First'], ['Other'], ['Made'], ['Free'], ['No'], ['a b'], 'text', [3], ('Free',)),
        (None, 'causal-lm', 'causl-lm', 'masked-lm', 'ctc'),
    ):
        found[f'class {named} {task}'] = short(
            answer(
                lambda named=named, task=task: getattr(
                    c := A.find_class(SimpleNamespace(model_type='x', architectures=named), task), '__name__', c
                )
            )
        )
    found['parts'] = [len(F.parts_of(SimpleNamespace(**kw))) for kw in (dict(), dict(sub_configs=dict(a=1, b=2), a=3))]
    same_answers(request, 'configurations', found)


class Config(SimpleNamespace):
    "A configuration that says what it is told"

    def get_text_config(self, decoder=False):
        return getattr(self, 'text', self)


def test_holes_and_cuts(request):
    "What a configuration leaves open, and how it is cut to two layers"
    found = {}
    base = dict(model_type='x', hidden_size=12, num_attention_heads=3)
    for kw in (
        dict(),
        dict(num_key_value_heads=None),
        dict(head_dim=None),
        dict(num_key_value_heads=2, head_dim=5),
        dict(model_type='dots1', n_routed_experts=0),
        dict(model_type='dots1', n_routed_experts=5, n_shared_experts=1),
        dict(model_type='lfm2_moe', num_hidden_layers=3),
        dict(model_type='granitemoehybrid', num_hidden_layers=5, layer_types=['full_attention']),
        dict(model_type='granitemoehybrid', num_hidden_layers=5, layer_types=['x']),
        dict(model_type='xmod', default_language='de'),
    ):
        c = Config(**base | kw)
        F._fill(c)
        found[f'filled {kw}'] = vars(c)
    for rows, token in ((10, 9), (10, 10), (10, 11), (0, 3), (None, 3), (10, None), (10, 'x')):
        c, text = Config(image_token_id=token, image_token_index=token), Config(vocab_size=rows)
        F._fit_image_token(c, text)
        found[f'image token {rows} {token}'] = vars(c)
    for name, kw in (
        ('ReformerModelWithLMHead', dict(model_type='reformer', is_decoder=False)),
        ('Other', dict(model_type='reformer', is_decoder=False)),
        ('D', dict(model_type='dbrx', attn_config=SimpleNamespace())),
        ('D', dict(model_type='dbrx', attn_config=SimpleNamespace(rope_theta=1.0))),
    ):
        c = Config(**kw)
        F._fill_family(c, type(name, (), {}))
        found[f'family {name} {kw["model_type"]} {len(found)}'] = {
            k: vars(v) if isinstance(v, SimpleNamespace) else v for k, v in vars(c).items()
        }
    part = Config(**base)
    whole = SimpleNamespace(sub_configs=dict(a=1, b=1), a=None, b=part)
    found['part'] = [
        F._part_for(whole, want) is x
        for want, x in ((Config, part), (None, whole), (int, whole), (SimpleNamespace, whole))
    ]
    for kw in (
        dict(num_hidden_layers=5, n_layer=1, layer_types=['a', 'b', 'c']),
        dict(depths=[3, 4, 5], num_layers=9),
        dict(depths=(2,)),
        dict(num_layers='x', mlp_layer_types=('a', 'b', 'c')),
        dict(encoder_layers=2, decoder_layers=3, depths=None),
    ):
        found[f'cut {kw}'] = vars(F.shrink(Config(**kw)))
    inner = Config(num_layers=7)
    F.shrink(Config(sub_configs=dict(inner=1, gone=1), inner=inner, num_layers=3))
    found['cut inside'] = vars(inner)
    same_answers(request, 'holes', found)


# Building


def test_pieces_of_building(request):
    "Sizes of images, patches, arguments for timm, first fields, widths and ranks"
    found = {
        f'size {s!r}': answer(B._size, s, (3, 10, 20))
        for s in (
            None,
            224,
            (224, 192),
            (1, 2, 3),
            '3x224x224',
            '3×8×8',
            '8,9',
            '7',
            'x',
            '',
            (1, 2, 3, 4),
            (),
            0,
            (3, 0),
            [5],
            'ax2',
            1.5,
            '4.5',
            (True, 2),
        )
    }
    found['for size'] = [
        B._for_size(size, (3, 8, 8), fixed)
        for size in ((3, 8, 8), (1, 8, 8), (3, 9, 8), (1, 8, 9))
        for fixed in (True, False)
    ]
    found['patch'] = [
        B._patch(SimpleNamespace(**kw))
        for kw in (
            dict(),
            dict(patch_embed=SimpleNamespace(patch_size=(4, 4))),
            dict(stem=SimpleNamespace(patch_size=[2, 2])),
            dict(patch_embed=SimpleNamespace(patch_size=7)),
            dict(patch_embed=SimpleNamespace(), stem=SimpleNamespace(patch_size=(3, 3))),
        )
    ]
    found['first'] = [
        B.first_number(SimpleNamespace(**kw), 'a', 'b', default=d)
        for kw in (dict(), dict(a=0, b=3), dict(a='x', b=2), dict(a=5, b=1), dict(a=True), dict(a=1.5))
        for d in (0, None)
    ]
    found['timm arguments'] = [
        answer(B._timm_arguments, 'resnet18', task, dict(a=1)) for task in (None, 'image-classification', 'causal-lm')
    ]
    for kw in (
        dict(model_type='falcon', new_decoder_architecture=False, multi_query=True, num_attention_heads=7),
        dict(model_type='falcon', new_decoder_architecture=False, multi_query=False, num_attention_heads=7),
        dict(model_type='falcon', new_decoder_architecture=True, num_kv_heads=3),
        dict(model_type='x', num_key_value_heads=2),
        dict(model_type='x'),
        dict(model_type='x', multi_query=True),
    ):
        found[f'kv {kw}'] = H._kv_heads(SimpleNamespace(**kw))
    for kw in (
        dict(),
        dict(kv_lora_rank=0),
        dict(kv_lora_rank=8, qk_rope_head_dim=2, qk_nope_head_dim=4, v_head_dim=5),
        dict(kv_lora_rank=8, q_lora_rank=6),
    ):
        found[f'latent {kw}'] = H._latent(SimpleNamespace(**kw))
    for kw in (
        dict(intermediate_size=8),
        dict(moe_intermediate_size=4, intermediate_size=8, n_shared_experts=2),
        dict(ffn_dim=3, shared_expert_intermediate_size=9, moe_num_shared_experts=2),
        dict(intermediate_size_mlp=6, intermediate_size=8, num_shared_experts=1),
    ):
        found[f'widths {kw}'] = H._mixture_widths(SimpleNamespace(**kw))
    for kw in (
        dict(num_hidden_layers=3, hidden_size=8, num_attention_heads=2, vocab_size=9),
        dict(n_layer=2, n_embd=8, n_head=4, n_inner=5, n_positions=77),
        dict(encoder_layers=2, decoder_layers=4, d_model=8, is_encoder_decoder=True, d_kv=3),
        dict(num_layers=2, num_decoder_layers=0, is_encoder_decoder=True),
        dict(num_layers=2, decoder_layers=5),
    ):
        found[f'sizes {kw}'] = H._sizes(SimpleNamespace(model_type='x', **kw))
    for kw in (
        dict(),
        dict(image_size=32),
        dict(image_size=(8, 9)),
        dict(vision_config=SimpleNamespace(image_size=16, num_channels=1)),
        dict(backbone_config=SimpleNamespace(), num_frames=4),
        dict(image_size=None, num_channels=2),
    ):
        found[f'image {kw}'] = [B._image_shape(SimpleNamespace(**kw), 2, video) for video in (False, True)]
    for kw in (
        dict(model_type='x'),
        dict(model_type='whisper'),
        dict(model_type='whisper', max_source_positions=10, num_mel_bins=5),
        dict(model_type='x', input_feat_per_channel=7),
    ):
        found[f'sound {kw}'] = B._sound_shape(SimpleNamespace(**kw), 2, 9)
    for near, kw in (
        ([], {}),
        ([dict(top_k=3)], {}),
        ([dict(x=3), dict(moe_k=2)], {}),
        ([], dict(num_experts_per_tok=4)),
        ([], dict(ffn_config=SimpleNamespace(moe_top_k=5))),
        ([], dict(model_type='nllb-moe')),
    ):
        found[f'visits {near} {kw}'] = H._visits(
            Config(**dict(model_type='x') | kw), [SimpleNamespace(**n) for n in near]
        )
    same_answers(request, 'building', found)


SMALL = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    vocab_size=96,
    max_position_embeddings=40,
)
MODELS = dict(
    llama=('llama', 'causal-lm', SMALL | dict(num_key_value_heads=2, head_dim=8)),
    bert=('bert', 'masked-lm', SMALL),
    gpt2=('gpt2', 'causal-lm', dict(n_embd=32, n_layer=3, n_head=4, vocab_size=96, n_positions=24)),
    opt=(
        'opt',
        'causal-lm',
        dict(
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=96,
            max_position_embeddings=40,
            word_embed_proj_dim=32,
        ),
    ),
    t5=(
        't5',
        'seq2seq-lm',
        dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=3, num_heads=4, vocab_size=96),
    ),
    bloom=('bloom', 'causal-lm', dict(hidden_size=32, n_layer=2, n_head=4, vocab_size=96)),
    vit=(
        'vit',
        None,
        dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=16,
        ),
    ),
    mixtral=('mixtral', 'causal-lm', SMALL | dict(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)),
    qwen2=('qwen2', 'causal-lm', SMALL | dict(num_key_value_heads=2)),
    falcon=(
        'falcon',
        'causal-lm',
        dict(ffn_hidden_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=96),
    ),
    whisper=(
        'whisper',
        None,
        dict(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            vocab_size=96,
            max_source_positions=20,
            max_target_positions=12,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
    ),
    roberta=('roberta', 'masked-lm', SMALL),
)


def test_small_models(request):
    "Small models of transformers on meta: shapes, experts, inputs and lengths, and their profiles in whole numbers"
    found = {}
    for name, (kind, task, fields) in MODELS.items():
        model = B.build(kind, task, device='meta', **fields)
        shape = H.shape_of(model)
        found[name] = shape and {k: v for k, v in shape.to_dict().items() if v not in (0, False)}
        found[f'{name} counts'] = (
            list(H.experts_of(model).values()),
            H.active_parameters(model),
            H._described(model),
            H._biases(model),
            H._tied(model),
            P._kind(model),
            B.longest_text(model),
            B._position_tables(model),
        )
        found[f'{name} inputs'] = [
            answer(
                lambda model=model, b=b, s=s: {
                    k: (list(t.shape), str(t.dtype)) for k, t in B.example_inputs(model, b, s).items()
                }
            )
            for b, s in ((1, None), (2, 7), (1, 41), (0, 5), (1, 0))
        ]
        found[f'{name} within'] = [H.shape_of(model, within) is not None for within in (0, 0.001, 1)]
    spec = P.profile('llama', task='causal-lm', seq=6, batch=2, **MODELS['llama'][2])
    found['profile'] = (
        spec.flops,
        spec.activations,
        spec.params,
        spec.active,
        spec.kind,
        spec.embedding,
        spec.buffers,
        spec.unused,
        [i.to_dict() for i in spec.inputs],
        spec.assumed,
        spec.family,
        spec.source,
    )
    found['refused'] = [
        re.sub(r'expected one of.*', 'expected one of', str(answer(B.build, *a, device='meta', **kw)))
        for a, kw in (
            (('llama',), dict(hiden_size=3)),
            (('llama', 'ctc'), {}),
            (('resnet18', 'causal-lm'), {}),
            ((nn.Linear(1, 1),), dict(task='x')),
            ((len,), dict(input_size=3)),
            ((len,), dict(x=3)),
            ((dict,), dict(x=3)),
        )
    ]
    found['own'] = [
        type(B.build(x, device=d)).__name__ + next(B.build(x, device=d).parameters()).device.type
        for x in (nn.Linear(2, 2), 'tests.models.test_answers:made', 'tests.models.test_answers:already')
        for d in ('meta', 'cpu')
    ]
    same_answers(request, 'small_models', found)


def made():
    return nn.Linear(2, 2)


already = nn.Linear(2, 3)


class Experts(nn.ModuleList):
    "A list that is named for its experts"


class Tables(nn.Module):
    "Embeddings by name, with a configuration beside them"

    main_input_name = 'input_ids'

    def __init__(self, tables, config, buffers=()):
        super().__init__()
        self.config = config
        for name, table in tables.items():
            self.add_module(name, table)
        for name, size in buffers:
            self.register_buffer(name, torch.zeros(1, size))

    def forward(self, input_ids):
        return input_ids


def test_modules_by_name(request):
    "Tables of positions, experts, mixtures and biases, read off modules that are only there for their names"
    plain, padded = nn.Embedding(10, 2), nn.Embedding(10, 2, padding_idx=1)
    shifted = nn.Embedding(10, 2)
    shifted.offset = 2
    found = {'rows': [B._rows(t) for t in (plain, padded, shifted)]}
    config = lambda **kw: Config(**dict(model_type='x', max_position_embeddings=33) | kw)
    tables = dict(
        a=dict(pos=plain),
        b=dict(position_embeddings=padded, word=plain),
        c=dict(vision_pos=plain),
        d=dict(wpe=shifted),
        e=dict(word=plain),
        f=dict(embed_positions=plain, pos_2=nn.Embedding(7, 2)),
        g=dict(pos=nn.Linear(2, 2)),
    )
    for name, kw in itertools.product(
        tables,
        (
            dict(),
            dict(alibi=True),
            dict(relative_attention_num_buckets=4),
            dict(model_type='mpt'),
            dict(max_position_embeddings=0),
        ),
    ):
        m = Tables(tables[name], config(**kw), [('position_ids', 9), ('image_position_ids', 3)] if name in 'ab' else ())
        found[f'table {name} {kw}'] = (
            B.positions_of(m, m.config),
            B._position_tables(m),
            B._position_constants(m),
            B.longest_text(m),
            [answer(B._text_length, m, s) for s in (None, 7, 8, 33, 34)],
        )
    rotary = Tables(dict(r=type('RotaryThing', (nn.Module,), {})()), config())
    sound = Tables(
        {
            'encoder': Tables(dict(embed_positions=plain), config()),
            'decoder': Tables(dict(embed_positions=shifted), config()),
        },
        config(),
    )
    sound.main_input_name = 'input_features'
    sinus = Tables(dict(s=type('Sinus', (nn.Module,), dict(make_weights=1))()), config(), [('token_type_ids', 6)])
    found['others'] = (
        B.positions_of(rotary, rotary.config),
        B.longest_text(rotary),
        B._position_tables(sound),
        B.longest_text(sinus),
    )
    experts = lambda n, width=3: Experts(nn.Linear(width, width) for _ in range(n))
    blocks = lambda having, kinds=experts: {
        'layers': nn.ModuleList(
            Tables(
                dict(mlp=Tables(dict(experts=kinds(4)) if i in having else dict(up=nn.Linear(2, 2)), config())),
                config(),
            )
            for i in range(5)
        )
    }
    for having in ((), (0, 1, 2, 3, 4), (1, 3), (2, 3, 4), (3,), (0, 2), (0,)):
        m = Tables(blocks(having), config(top_k=2))
        found[f'mixture {having}'] = (
            H._mixture(m, 5),
            len(H.experts_of(m)),
            H.active_parameters(m),
            sum(p.numel() for p in m.parameters()),
        )
    shared = Tables(
        dict(shared_experts=experts(2), gate=nn.Linear(2, 2), experts=nn.ModuleDict(dict(a=nn.Linear(2, 2)))),
        config(top_k=9),
    )
    found['experts'] = (
        H.experts_of(shared),
        [
            H._holds_experts(n, m)
            for n, m in (
                ('x.experts', nn.ModuleList()),
                ('x.other', nn.ModuleList()),
                ('x.other', Experts()),
                ('shared', type('MyExperts', (nn.Module,), {})()),
                ('x', type('MyExperts', (nn.Module,), {})()),
                ('x', type('SomeCDMoE', (nn.Module,), {})()),
            )
        ],
    )
    found['how many'] = (
        H._how_many(experts(3)),
        H._how_many(SimpleNamespace(num_experts=0, n_routed_experts=5)),
        [
            p.numel()
            for p in H._routed(Tables(dict(router=nn.Linear(2, 2), up=nn.Linear(3, 3), key=nn.Linear(2, 2)), config()))
        ],
    )
    router = nn.Linear(2, 2)
    router.top_k = 3
    for place in ('parent', 'router', 'none'):
        inner = Tables(dict(experts=experts(4)) | (dict(router=router) if place == 'router' else {}), config())
        if place == 'parent':
            inner.num_experts_per_tok = 2
        found[f'around {place}'] = H.experts_of(Tables(dict(mlp=inner), config()))
    found['shared width'] = [
        H._shared_width(Tables({n: Tables(dict(up=nn.Linear(4, 6), down=nn.Linear(6, 4)), config())}, config()), 4)
        for n in ('shared_expert', 'share_mlp', 'shared_experts', 'unshared', 'shared')
    ]
    found['biases'] = [
        H._biases(
            Tables(
                {
                    n.replace('.', '_') if '.' not in n else n.split('.')[0]: Tables(
                        {n.split('.')[-1]: nn.Linear(2, 2, bias=b)}, config()
                    )
                },
                config(),
            )
        )
        for n, b in itertools.product(
            ('self_attn.q_proj', 'self_attn.o_proj', 'mlp.fc1', 'attn.c_proj', 'mlp.gate', 'x.query'), (True, False)
        )
    ]
    tied = Tables(dict(emb=plain, head=nn.Linear(2, 10, bias=False)), config())
    for head, table in ((None, plain), (tied.head, plain), (plain, plain), (tied.head, None)):
        tied.get_output_embeddings, tied.get_input_embeddings = (lambda head=head: head), (lambda table=table: table)
        found[f'tied {head is not None} {table is not None} {head is table}'] = H._tied(tied)
    seen = set()
    found['unseen'] = (
        len(H.unseen([plain.weight, plain.weight, padded.weight], seen)),
        len(H.unseen([plain.weight, shifted.weight], seen)),
    )
    for kw in (dict(), dict(image_token_id=3), dict(image_token_index=9), dict(image_token_id=10)):
        m = Sees(dict(emb=plain), config(**kw))
        found[f'picture {kw}'] = (
            B._picture_token(m),
            {
                k: v.tolist() if k == 'input_ids' else list(v.shape)
                for k, v in B._with_pictures(m, dict(input_ids=torch.zeros(2, 3, dtype=torch.long)), 2, 'cpu').items()
            },
        )
    same_answers(request, 'modules', found)


class Sees(Tables):
    "Reads pictures of four tokens each"

    def get_input_embeddings(self):
        return self.emb

    def get_image_features(self, pixel_values):
        return torch.zeros(pixel_values.shape[0] * 4, 2, device=pixel_values.device)

    def forward(self, input_ids, pixel_values=None):
        return input_ids


# Profiles


class Twice(nn.Module):
    "Runs a layer twice, and leaves another alone"

    def __init__(self):
        super().__init__()
        self.used, self.idle, self.emb = (
            nn.Linear(4, 4),
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
            nn.Embedding(6, 4),
        )

    def forward(self, x):
        return self.used(torch.relu(self.used(self.emb(x))))


def outline(s):
    "A spec in a few numbers"
    return (
        s.params,
        s.trainable,
        s.embedding,
        s.buffers,
        s.buffer_bytes,
        s.flops,
        s.activations,
        s.saved,
        s.traffic,
        s.unused,
        s.uncounted,
        s.assumed,
        s.kind,
        [(i.name, i.shape, i.dtype) for i in s.inputs],
        [(l.name, l.kind, l.params, l.flops, l.activations, l.saved, l.calls, l.output) for l in s.layers],
    )


def nets():
    "Name -> (module, inputs)"
    frozen = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    frozen[0].requires_grad_(False)
    tokens = torch.tensor([[0, 5]])
    return dict(
        mlp=(frozen, (5, 3)),
        conv=(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, groups=1), nn.Flatten(), nn.Linear(128, 2)), (2, 3, 8, 8)),
        twice=(Twice(), [tokens]),
        tensor=(nn.Linear(3, 2), torch.ones(4, 3)),
        array=(nn.Linear(3, 2), np.ones((2, 3), 'float32')),
        bilinear=(nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)]),
        grouped=(nn.Conv1d(4, 8, 3, groups=2), (1, 4, 9)),
        named=(nn.Linear(3, 2), dict(input=(4, 3))),
        attention=(Attends(), (2, 4, 6, 8)),
        looks=(Looks(), (2, 3)),
        chance=(Chance(), (2, 3)),
        wrong=(nn.Linear(3, 2), (4, 4)),
    )


class Attends(nn.Module):
    "Attention in every way that is counted"

    def forward(self, x):
        plain = torch.nn.functional.scaled_dot_product_attention
        few, mask = x[:, :, :5], torch.zeros(6, 5, device=x.device)
        whole = plain(x, x, x) + plain(x, few, few, attn_mask=mask) + plain(x, few[:, :2], few[:, :2], enable_gqa=True)
        return whole + plain(x[0], x[0], x[0]) + plain(x, few, few[..., :7]).sum() + plain(x, few[:1], few[:1]).sum()


class Looks(nn.Module):
    "Chooses by a number of its input"

    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


class Chance(nn.Module):
    "Chooses by chance"

    def forward(self, x):
        return x @ x.T if torch.rand(()) < 0.9 else x


def test_profiles(request):
    "Own modules by layer, in three precisions, in training and computed; formulas; what is refused"
    found = {}
    for name, (net, inputs) in nets().items():
        for kw in (dict(), dict(precision='bf16'), dict(fused=False), dict(real=True)):
            if name in ('mlp', 'conv', 'attention', 'looks') or not kw:
                found[f'{name} {kw}'] = answer(
                    lambda net=net, inputs=inputs, kw=kw: outline(P.profile(net, inputs, **kw))[: -1 if kw else None]
                )
    found['wrong {}'] = found['wrong {}'].partition('Error: a')[0]
    drops = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    found['training'] = [outline(P.profile(drops, (2, 4), train=t))[5:9] for t in (False, True)], drops.training
    for args, kw in (
        ((3,), {}),
        ((nn.Linear(1, 1), (1, 1)), dict(task='x')),
        ((nn.Linear(1, 1), (1, 1)), dict(precison='bf16')),
        ((nn.Linear(1, 1), (1, 1)), dict(precision='fp8')),
        ((nn.Linear(1, 1),), {}),
        ((nn.Linear(3, 1),), dict(input_size=(2, 3, 4, 3))),
    ):
        found[f'refused {len(found)}'] = re.sub(
            r'expected one of.*', '', str(answer(lambda args=args, kw=kw: P.profile(*args, **kw).flops))
        )
    t = torch.ones
    for name, args in dict(
        mv=(t(3, 4), t(4)),
        addmv=(t(3), t(3, 4), t(4)),
        dot=(t(5), t(5)),
        addbmm=(t(2, 4), t(5, 2, 3), t(5, 3, 4)),
        _trilinear=(t(2, 3), t(5, 3, 4), t(2, 4)),
        _cdist_forward=(t(2, 3, 4), t(2, 5, 4)),
        _pdist_forward=(t(6, 4),),
        mkldnn_rnn_layer=(t(7, 2, 3), t(12, 3), t(12, 4)),
    ).items():
        found[f'rule {name}'] = P._more_rules[name](*args)
    found['formula'] = {
        n: P._has_no_formula(getattr(torch.ops.aten, n).default)
        for n in (
            'mm',
            'add',
            'view',
            'linalg_inv_ex',
            'native_layer_norm',
            'grid_sampler_2d',
            'convolution',
            'convolution_backward',
            '_fft_r2c',
            'relu',
            'dot',
            'kron',
            'cumsum',
        )
    }
    found['shapes'] = (
        [P._is_shape(x) for x in ((1, 2), [3], (), (1.0,), 'ab', ((1,),))],
        [
            (type(a := P._as_arguments(x)).__name__, len(a))
            for x in ((1, 2), t(3), [t(1), t(2)], dict(a=1), [(1, 2), (3, 4)], np.ones(3))
        ],
    )
    found['sized'] = [
        P._sized(s, n, 2) for s in (None, 8, (8, 9), (1, 3, 8, 8), (3, 8, 8), '3x8x8') for n in (True, False)
    ]
    found['asks'] = [
        P._looks_at_values(e, d)
        for e in (V.UnknownValue('x'), RuntimeError('Cannot copy out of meta tensor; no data!'), RuntimeError('x'))
        for d in ('meta', 'cpu')
    ]
    found['called'] = (
        P._called('a'),
        P._called(SimpleNamespace(model_type='b')),
        P._called(Twice),
        P._called(SimpleNamespace()),
    )
    for kw in (
        dict(pretrained_cfg=1),
        dict(config=None),
        dict(config=1),
        dict(config=SimpleNamespace(is_encoder_decoder=True), main_input_name='input_ids'),
        dict(config=SimpleNamespace(is_decoder=True), main_input_name='input_ids'),
        dict(config=SimpleNamespace(), main_input_name='input_ids'),
        dict(config=SimpleNamespace(), main_input_name='pixel_values'),
        dict(config=SimpleNamespace(), main_input_name='x'),
    ):
        found[f'kind {kw}'] = P._kind(SimpleNamespace(**kw))
    found['decodes'] = [
        P._decodes(type(n, (), dict(config=SimpleNamespace(**kw)))())
        for n in ('XForCausalLM', 'XLMHead', 'XDecoder', 'XForConditionalGeneration', 'X')
        for kw in (dict(), dict(is_decoder=True))
    ]
    same_answers(request, 'profiles', found)


def spec_of(draw, i):
    "A spec with a few layers"
    names = ['', 'a', 'a.b', 'a.b.c', 'd', 'd.e', 'f'][: draw.randint(3, 7)]
    layers = tuple(
        S.Layer(
            n,
            draw.choice(['Linear', 'Norm']),
            draw.randint(0, 5000),
            draw.randint(0, 10**7),
            (1, draw.randint(1, 9)),
            draw.randint(0, 999),
            draw.randint(0, 10**6),
            draw.randint(0, 10**6),
        )
        for n in names
    )
    total = {k: sum(getattr(l, k) for l in layers) for k in ('flops', 'activations', 'saved', 'traffic')}
    params = sum(l.params for l in layers)
    return S.ModelSpec(
        f'net{i}',
        'module',
        'other',
        params,
        params,
        buffer_bytes=7 * i,
        layers=layers,
        active=params - i,
        inputs=(S.Input('x', (1, 3)),) if i else (),
        uncounted=('fft', 'svd') if i % 2 else (),
        unused=tuple('pqrstuv'[:i]),
        assumed=i == 2,
        **total | (dict(traffic=0) if i == 3 else {}),
    )


def test_tables_of_profiles(request):
    "Largest layers, trees, memory and models side by side; fronts"
    draw = random.Random(4)
    specs = [spec_of(draw, i) for i in range(5)]
    found = {
        f'largest {by} {n} {i}': answer(lambda s=s, n=n, by=by: str(K.largest(s, n, by)))
        for i, s in enumerate(specs[:2])
        for n in (1, 3, 0)
        for by in ('params', 'saved', 'flps')
    }
    found |= {
        f'tree {d} {i}': answer(lambda s=s, d=d: str(K.tree(s, d)))
        for i, s in enumerate(specs[:3])
        for d in (1, 2, 3, 0)
    }
    found |= {
        'memory': K.memory_by_precision(specs).rows,
        'memory of one': str(K.memory_by_precision(specs[1])),
        'compared': str(K.compare_models(specs)),
        'compared plain': str(K.compare_models(specs[:1])),
        'compared rows': K.compare_models(specs).rows,
    }
    found['left out'] = [K._left_out(s) for s in specs]
    found['empty'] = str(K.largest(S.ModelSpec('x', 'module', 'other', 0, 0, layers=(S.Layer('l', 'K'),))))
    rows = [dict(c=draw.choice([1, 2, 3, None]), v=draw.choice([1, 2, 3, None])) for _ in range(15)]
    found['front'] = K.front(rows, 'c', 'v'), K.front([], 'c', 'v')
    same_answers(request, 'tables', found)


# Small models of the book


def patterned(net):
    "A module in double precision whose numbers follow from a sine"
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_((torch.arange(p.numel(), dtype=torch.float64) * (i + 1)).sin().view(p.shape) / 4)
    return net.double().eval()


def test_small_transformers(request):
    "Shapes, counts, pieces and outputs of the GPTs; batches with a rule; a training step by hand"
    found = {}
    for kw in (
        dict(),
        dict(layers=2, hidden=12, heads=3, ctx=5, vocab=7),
        dict(ffn=5),
        dict(ffn=-1),
        dict(ffn=1.5),
        dict(heads=5),
        dict(layers=0),
        dict(vocab=2.5),
    ):
        found[f'config {kw}'] = answer(
            lambda kw=kw: (
                lambda c: (c.width, c.block_weights, c.params, sum(p.numel() for p in gpt.GPT(c).parameters()))
            )(gpt.GPTConfig(**kw))
        )
    found['names'] = (
        {n: c.params for n, c in gpt.gpts.items()},
        answer(gpt.gpt_config, 'gpt-tin'),
        gpt.gpt_config('gpt-tiny', layers=2).layers,
        gpt.gpt_config(gpt.GPTConfig(3), heads=4).heads,
    )
    c = gpt.GPTConfig(3, 12, 3, 5, 7)
    tokens = torch.tensor([[0, 3, 6, 2], [1, 1, 4, 5]])
    net = patterned(gpt.GPT(c))
    whole = net(tokens)
    found['output'] = (
        [round(x, 6) for x in whole.flatten()[:9].tolist()],
        list(whole.shape),
        round(gpt.lm_loss(whole, tokens).item(), 5),
    )
    causal = net(torch.cat([tokens[:, :3], tokens[:, :1]], 1))
    found['causal'] = torch.allclose(causal[:, :3], whole[:, :3])
    for a, b in ((0, 3), (0, 1), (1, 2), (2, 3), (1, 1), (-1, 2), (0, 4), (2, 1)):
        part = answer(
            lambda a=a, b=b: (
                lambda m: ([n for n, _ in m.named_children() if getattr(m, n) is not None], sorted(m.layers))
            )(gpt.keep_layers(gpt.GPT(c), a, b))
        )
        found[f'kept {a} {b}'] = part
    first, last = gpt.keep_layers(patterned(gpt.GPT(c)), 0, 2), gpt.keep_layers(patterned(gpt.GPT(c)), 2, 3)
    found['joined'] = torch.allclose(last(first(tokens)), whole)
    fresh = gpt.GPT('gpt-tiny')
    found['init'] = [
        0.018 < fresh.emb.weight.std().item() < 0.022,
        fresh.layers['0'].attn.q.bias.abs().max().item(),
        fresh.norm.weight.min().item(),
        torch.equal(gpt.GPT(c, 1).emb.weight, gpt.GPT(c, 1).emb.weight),
        torch.equal(gpt.GPT(c, 1).emb.weight, gpt.GPT(c, 0).emb.weight),
    ]
    same_answers(request, 'transformers', found)


def test_tiny_models(request):
    "Layers and outputs of the tiny models, their batches, shares, and losses of a few steps"
    found = {}
    for name in tiny.tiny_names:
        net, (x, y) = tiny.tiny_model(name), tiny.tiny_batch(name, 5, 2)
        found[f'{name} layers'] = {n: list(p.shape) for n, p in [*net.named_parameters(), *net.named_buffers()]}
        found[f'{name} batch'] = (
            list(x.shape),
            list(y.shape),
            str(x.dtype),
            int(y.max()) < (64 if name == 'gpt' else 10),
            list(tiny.tiny_batch(name)[0].shape),
            torch.equal(tiny.tiny_batch(name, 5, 2)[0], x),
            torch.equal(tiny.tiny_batch(name, 5, 3)[0], x),
        )
        inputs = (torch.arange(x.numel(), dtype=torch.float64).sin().view(x.shape)) if name != 'gpt' else x % 7
        out = patterned(net)(inputs if name != 'gpt' else torch.arange(80).view(5, 16) % 64)
        found[f'{name} output'] = [round(v, 5) for v in out.flatten()[:6].tolist()], list(out.shape)
        found[f'{name} refused'] = answer(tiny.tiny_model, name + 'x'), answer(tiny.tiny_batch, 'x' + name)
    causal = patterned(tiny.TinyGPT(9, 8, 2, 1, 6))
    found['causal'] = (
        torch.allclose(causal(torch.tensor([[1, 2, 3]]))[:, :2], causal(torch.tensor([[1, 2, 8]]))[:, :2]),
        causal.head.weight is causal.emb.weight,
    )
    x, y = tiny.rule_batch(3, 2, 7, 11)
    found['rule'] = (
        ((x[:, 1:] - x[:, :-1]) % 11).unique().tolist(),
        torch.equal(x[:, 1:], y[:, :-1]),
        list(x.shape),
        int(max(x.max(), y.max())) < 11,
        [list(t.shape) for t in tiny.rule_batch(0)],
        int(tiny.rule_batch(0, 200)[0].max()) > 200,
    )
    found['share'] = [
        [t.tolist() for t in tiny.share((torch.arange(7), torch.arange(7) * 2), r, w)]
        for r, w in ((0, 1), (0, 2), (1, 2), (2, 3))
    ]
    found['optimizer'] = [
        {k: g[k] for k in ('lr', 'eps', 'weight_decay', 'betas')}
        for kw in (dict(), dict(lr=1.0, eps=2.0))
        for g in tiny.adamw([nn.Parameter(torch.ones(1))], **kw).param_groups
    ]
    data = [
        ((torch.arange(60, dtype=torch.float64) * (s + 1)).sin().view(3, 20), torch.tensor([1, 5, 9])) for s in range(4)
    ]
    found['losses'] = []
    for make in (None, tiny.adamw):
        net = patterned(tiny.tiny_model('mlp')).train()
        found['losses'].append([round(v, 5) for v in tiny.train_batches(net, data, make and make(net.parameters()))])
    alone = tiny.train_alone('mlp', 30)
    found['alone'] = (
        len(alone),
        alone[-1] < 0.7 * alone[0],
        len(tiny.train_alone('mlp')),
        tiny.worst([1, 2.2], [1, 2]),
        answer(tiny.worst, [1], [1, 2]),
        tiny.worst([-3.0], [-2.0]),
    )
    same_answers(request, 'tiny', found)
