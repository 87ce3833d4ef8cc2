"""Words of other libraries: the table of them, names of the Hub, files as others write them, price lists as people
keep them.
"""

import json
import pytest
from hypothesis import given, strategies as st
from fsdl_tools.core import (
    Record,
    _vocabulary,
    fix_torchvision,
    our_word,
    said_here,
    short_repr,
    understands,
    what_to_type,
)

fix_torchvision()
from fsdl_tools.compute.cost import read_prices
from fsdl_tools.compute.gpus import find
from fsdl_tools.models.architectures import checkpoint_family, hf_tasks, load_config, locate
from fsdl_tools.models.configurations import hf_types, timm_fields
from fsdl_tools.models.profile import profile
from fsdl_tools.onnx.sources import open_model
from fsdl_tools.parallel.layout import Layout, layout_precisions, parse_layout, recomputations

WORDS = [(kind, said) for kind, words in _vocabulary().items() for said in words]


# The table


def known_here():
    "Kind -> the words that it may lead to"
    from fsdl_tools.memory.measure import _precisions
    from fsdl_tools.memory.states import optimizers

    return dict(
        task=list(hf_tasks),
        precision=[*_precisions, *layout_precisions],
        optimizer=[*optimizers, 'adam8bit'],
        recompute=recomputations,
        checkpoint=list(hf_types()),
        strategy=[f'zero={n}' for n in range(4)],
    )


@pytest.mark.parametrize('kind', ['task', 'precision', 'optimizer', 'recompute', 'checkpoint', 'strategy'])
def test_every_word_leads_to_one_that_exists(kind):
    known = known_here()[kind]
    for said, here in _vocabulary()[kind].items():
        assert any(h in known for h in here), (said, here)


def test_arguments_lead_to_arguments_or_to_advice():
    import inspect
    from fsdl_tools import _offered
    import fsdl_tools

    names = set()
    for name in _offered:
        thing = getattr(fsdl_tools, name)
        names |= set(getattr(thing, '__dataclass_fields__', {})) | set(inspect.signature(thing).parameters)
    for said, here in _vocabulary()['argument'].items():
        for h in here:
            assert not h.isidentifier() or h in names | {'micro_batch', 'gpus', 'gpu', 'params'}, (said, h)


def test_commands_exist():
    import typer
    from fsdl_tools.cli.main import app

    top = typer.main.get_command(app).commands
    for said, here in _vocabulary()['command'].items():
        first, *rest = here[0].split()
        assert first == '--help' or first in top, said
        if rest and not rest[0].startswith('-'):
            assert rest[0] in top[first].commands, said


@given(st.text(max_size=30))
def test_any_word_is_answered(text):
    for kind in ('task', 'precision', 'nonsense'):
        try:
            assert our_word(kind, text, ['causal-lm', 'bf16']) in ('causal-lm', 'bf16')
        except ValueError as e:
            assert repr(text) in str(e)
    assert what_to_type(text, ['lr', 'steps'])
    assert said_here('lr', ['lr']) == ['lr']


def test_a_function_that_understands_looks_like_itself():
    import inspect

    @understands
    def f(data, batch=1):
        return data, batch

    assert (
        list(inspect.signature(f).parameters) == ['data', 'batch']
        and f(1, batch_size=3) == (1, 3)
        and f(1, 4) == (1, 4)
    )
    with pytest.raises(TypeError, match="no argument 'colour'"):
        f(1, colour=2)


@given(st.lists(st.text(max_size=200), max_size=60), st.dictionaries(st.text(max_size=5), st.floats(), max_size=60))
def test_a_repr_fits_a_screen(words, numbers):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class R(Record):
        words: list
        numbers: dict
        n: int = 1

    r = R(words, numbers)
    assert len(repr(r)) <= 1900 and repr(r) == short_repr(r) and 'n=1' in repr(r)


# Names of the Hub

CHECKPOINTS = {
    'bert-base-uncased': 'bert',
    'google-bert/bert-large-cased': 'bert',
    'meta-llama/Llama-2-7b-hf': 'llama',
    'meta-llama/Meta-Llama-3-8B': 'llama',
    'meta-llama/Llama-4-Scout-17B-16E': 'llama4',
    'mistralai/Mistral-7B-v0.1': 'mistral',
    'mistralai/Mixtral-8x7B-v0.1': 'mixtral',
    'Qwen/Qwen2.5-7B': 'qwen2',
    'Qwen/Qwen3-8B': 'qwen3',
    'google/gemma-2-9b': 'gemma2',
    'google/gemma-2b': 'gemma',
    'google/gemma-3-4b-it': 'gemma3',
    'microsoft/phi-2': 'phi',
    'microsoft/Phi-3-mini-4k-instruct': 'phi3',
    'openai/whisper-tiny': 'whisper',
    'google/flan-t5-base': 't5',
    'EleutherAI/pythia-1b': 'gpt_neox',
    'EleutherAI/gpt-j-6b': 'gptj',
    'EleutherAI/gpt-neo-1.3B': 'gpt_neo',
    'facebook/opt-125m': 'opt',
    'tiiuae/falcon-7b': 'falcon',
    'bigscience/bloom-560m': 'bloom',
    'FacebookAI/roberta-base': 'roberta',
    'FacebookAI/xlm-roberta-base': 'xlm-roberta',
    'distilbert/distilbert-base-uncased': 'distilbert',
    'albert-base-v2': 'albert',
    'google/electra-small-discriminator': 'electra',
    'google/vit-base-patch16-224': 'vit',
    'openai/clip-vit-base-patch32': 'clip',
    'deepseek-ai/DeepSeek-V3': 'deepseek_v3',
    'deepseek-ai/DeepSeek-R1': 'deepseek_v3',
    'openai-community/gpt2-medium': 'gpt2',
    'lmsys/vicuna-7b-v1.5': 'llama',
    'TinyLlama/TinyLlama-1.1B-Chat-v1.0': 'llama',
    'facebook/wav2vec2-base-960h': 'wav2vec2',
    'microsoft/deberta-v3-base': 'deberta-v2',
    'sentence-transformers/all-MiniLM-L6-v2': 'bert',
    'HuggingFaceH4/zephyr-7b-beta': 'mistral',
    'facebook/bart-large-cnn': 'bart',
    'google/pegasus-xsum': 'pegasus',
}


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_a_checkpoint_says_its_architecture(name):
    assert checkpoint_family(name) == CHECKPOINTS[name]
    with pytest.raises(ValueError, match=f"type '{CHECKPOINTS[name]}'"):
        locate(name)
    assert CHECKPOINTS[name] in hf_types()


@pytest.mark.parametrize('name', ['someone/unknown-model', 'no/such', 'a', '', 'resnet5O'])
def test_what_names_no_architecture_is_an_unknown_model(name):
    with pytest.raises(ValueError, match='unknown model'):
        locate(name)


SMALL = dict(model_type='gpt2', n_layer=2, n_embd=32, n_head=2, vocab_size=99, n_positions=16)


def test_a_checkpoint_in_the_cache_is_used(tmp_path, monkeypatch):
    import huggingface_hub.constants as hub
    import huggingface_hub.file_download as download

    commit = '0' * 40
    folder = tmp_path / 'models--someone--small'
    (folder / 'snapshots' / commit).mkdir(parents=True)
    (folder / 'refs').mkdir()
    (folder / 'refs' / 'main').write_text(commit)
    (folder / 'snapshots' / commit / 'config.json').write_text(json.dumps(SMALL))
    for module in (hub, download):
        monkeypatch.setattr(module, 'HF_HUB_CACHE', str(tmp_path), raising=False)
    assert locate('someone/small')[0] == 'file' and load_config('someone/small').n_embd == 32
    assert profile('someone/small').params == profile(load_config('someone/small')).params


@pytest.mark.parametrize('name', ['config.json', 'CONFIG.JSON', 'Config.Json'])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_configurations_of_other_systems(tmp_path, name, mark):
    (tmp_path / name).write_text(mark + json.dumps(SMALL), encoding='utf-8')
    for path in (tmp_path, tmp_path / name):
        assert profile(str(path), seq=4).params == profile(path, seq=4).params > 0
    assert open_model(str(tmp_path / name)).name == 'gpt2'


def test_a_configuration_of_timm(tmp_path):
    path = tmp_path / 'config.json'
    path.write_text(
        json.dumps(
            dict(architecture='resnet18', num_classes=10, pretrained_cfg=dict(tag='a1_in1k', hf_hub_id='hf-hub:x/y'))
        )
    )
    assert locate(str(tmp_path)) == ('timm', 'resnet18') and timm_fields(path) == dict(
        architecture='resnet18', num_classes=10
    )
    assert profile(str(path)).params == profile('resnet18', num_classes=10).params
    for fields, says in (
        (dict(architecture='hf-hub:a/b'), 'would have to be fetched'),
        (dict(architecture='resnet5O'), 'did you mean'),
        (dict(architecture='resnet18', model_args=dict(a=1)), 'give them as arguments'),
        (dict(architecture='resnet18', num_classes='x'), 'whole number'),
    ):
        path.write_text(json.dumps(fields))
        with pytest.raises(ValueError, match=says):
            profile(str(path))


# Layouts, GPUs, prices


@pytest.mark.parametrize(
    'text, like',
    [
        ('fsdp8', 'dp8,zero=3'),
        ('ddp8', 'dp8'),
        ('fsdp8,tp2', 'dp8,tp2,zero=3'),
        ('deepspeed_stage_2,dp4', 'dp4,zero=2'),
        ('dp4,zero3', 'dp4,zero=3'),
        ('FSDP4', 'dp4,zero=3'),
        ('shard_grad_op4', 'dp4,zero=2'),
        ('dp2,recompute=True', 'dp2,recompute=full'),
        ('dp2,precision=bfloat16', 'dp2'),
        ('dp2,precision=bf16-mixed', 'dp2,precision=amp_bf16'),
        ('dp2,optimizer=AdamW', 'dp2,optimizer=adamw'),
    ],
)
def test_layouts_in_other_words(text, like):
    assert parse_layout(text) == parse_layout(like) and parse_layout(str(parse_layout(text))) == parse_layout(like)


@pytest.mark.parametrize(
    'text, says',
    [
        ('fsdp', 'type for example dp8,zero=3'),
        ('ddp', 'type for example dp8'),
        ('fsdp8,zero=2', 'given twice'),
        ('hsdp8', 'unknown field'),
        ('fsdp3,tp2,dp3', 'given twice'),
    ],
)
def test_layouts_that_say_too_little_or_too_much(text, says):
    with pytest.raises(ValueError, match=says):
        parse_layout(text)
    if says.startswith('type'):
        assert parse_layout(text, 16).dp == 16 and parse_layout(text + ',tp4', 16).dp == 4


def test_switches_of_a_layout():
    assert (Layout(recompute=True).recompute, Layout(recompute=False).recompute) == ('full', 'none')


@pytest.mark.parametrize(
    'name, here',
    [
        ('NVIDIA RTX 6000 Ada Generation', 'RTX 6000 Ada'),
        ('NVIDIA A100-SXM4-80GB', 'A100 SXM 80GB'),
        ('NVIDIA A100 80GB PCIe', 'A100 PCIe 80GB'),
        ('NVIDIA A100-PCIE-40GB', 'A100 PCIe 40GB'),
        ('Tesla V100-SXM2-32GB', 'V100 SXM2 32GB'),
        ('NVIDIA H100 80GB HBM3', 'H100 SXM'),
        ('NVIDIA RTX PRO 6000 Blackwell Server Edition', 'RTX PRO 6000'),
        ('NVIDIA GeForce RTX 2080 Ti', 'RTX 2080 Ti'),
        ('AMD Instinct MI300X', 'MI300X'),
        ('Tesla T4', 'T4'),
    ],
)
def test_gpus_as_drivers_write_them(name, here):
    assert find(name).name == here


@pytest.mark.parametrize(
    'separator, price, dollars',
    [
        (',', '20.5', 20.5),
        (',', '$20.50', 20.5),
        (',', '20.5 USD', 20.5),
        (',', '"1,020.50"', 1020.5),
        (',', 'US$20.5', 20.5),
        (',', '$20.5/h', 20.5),
        (',', '20.5 per hour', 20.5),
        (';', '20,50', 20.5),
        (';', '1.020,50', 1020.5),
        (';', '20,5 $', 20.5),
        ('\t', '20.5', 20.5),
    ],
)
def test_price_lists_as_people_keep_them(tmp_path, separator, price, dollars):
    path = tmp_path / 'p.csv'
    for head in ('provider,gpu,gpus,usd_per_hour', 'Provider,GPU,GPUs,USD per hour'):
        path.write_text(
            '\ufeff' + head.replace(',', separator) + '\n' + separator.join(['me', 'H100-SXM-80GB', '8', price]) + '\n',
            encoding='utf-8',
        )
        assert [o.usd_per_hour for o in read_prices(path)] == [dollars]


@pytest.mark.parametrize(
    'price, says',
    [
        ('€20', 'in US dollars'),
        ('20 EUR', 'in US dollars'),
        ('"1,020"', 'two readings'),
        ('1_0', 'must be a number'),
        ('$', 'must be a number'),
        ('-3', 'positive'),
        ('1,0,2', 'more or fewer'),
        ('1e999', 'at most'),
    ],
)
def test_prices_that_cannot_be_read(tmp_path, price, says):
    path = tmp_path / 'p.csv'
    path.write_text('provider,gpu,gpus,usd_per_hour\nme,H100-SXM-80GB,8,' + price + '\n')
    with pytest.raises(ValueError, match=says):
        read_prices(path)
