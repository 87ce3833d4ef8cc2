"""What people type first, who come from torch, transformers, accelerate, timm, Lightning, fastai, torchinfo and the
drivers of NVIDIA:
each works, or is answered with what to type. The list was written before the code was looked at.
"""

import functools
import pytest
from fsdl_tools.core import fix_torchvision

fix_torchvision()
import torch
import torch.nn.functional as F
from torch import nn
import fsdl_tools
from fsdl_tools.cli.main import run

torch.set_num_threads(1)

# From, what is typed, and what it must be answered with: nothing where it works, else words of the one line.
# A line that begins with fsdl is a command. net is a small classifier, x a batch of it, y its targets, here an empty
# folder.
GUESSES = [
    ('torch', "export(net, x, 'a.onnx').verified", None),
    ('torch', "export(net, 'a.onnx', (x,)).verified", None),
    ('torch', "export(net, 'a.onnx', x).inputs", None),
    ('torch', "export(net, 'a.onnx', x, input_names=['x'])", 'inputs by name'),
    ('torch', "export(net, 'a.onnx', x, dynamic_axes={})", 'dynamic=False'),
    ('torch', "export(net, 'a.onnx', x, opset_version=18)", 'type opset'),
    ('torch', "export(net, 'a.onnx', x) and verify(net, 'a.onnx').ok", None),
    ('torch', "export(table, 'a.onnx', torch.zeros(2, 5, dtype=torch.long))", 'Give ids up to the largest'),
    ('torch', "measure_memory(net, x).peak", None),
    ('torch', "measure_memory(net, (x, y), loss=nn.CrossEntropyLoss()).peak", None),
    ('torch', "measure_memory(net, (x, y), loss=F.cross_entropy).peak", None),
    ('torch', "measure_memory(net, x, loss=nn.CrossEntropyLoss()).peak", None),
    ('torch', "measure_memory(net, x, loss=nn.MSELoss())", r'inputs=\(x, y\)'),
    ('torch', "measure_memory(net, (x, torch.zeros(2, 3)), loss=nn.MSELoss()).peak", None),
    ('torch', "measure_memory(net, x, optimizer=torch.optim.AdamW(net.parameters())).peak", None),
    ('torch', "measure_memory(net, x, optimizer=torch.optim.AdamW).peak", None),
    ('torch', "measure_memory(net, x, optimizer=functools.partial(torch.optim.NAdam, lr=1)).peak", None),
    ('torch', "predict_memory(net, inputs=x, optimizer=torch.optim.SGD(net.parameters(), momentum=.9)).peak", None),
    ('torch', "predict_memory(net, inputs=x, optimizer=torch.optim.NAdam)", 'measure takes any optimizer'),
    ('torch', "predict_memory(net, inputs=(x, y), loss=nn.CrossEntropyLoss(), precision=torch.bfloat16).peak", None),
    ('Lightning', "predict_memory(net, inputs=x, precision='bf16-mixed').peak", None),
    ('transformers', "predict_memory(net, inputs=x, optimizer='adamw_torch').peak", None),
    ('transformers', "predict_memory('gpt2', 1, 8, gradient_checkpointing=True).peak", None),
    (
        'torch',
        "measure_memory(deep, x, recompute=True).peak == measure_memory(deep, x, recompute=blocks_of(deep)).peak",
        None,
    ),
    ('torch', "predict_memory(net, batch_size=2, inputs=x).peak", None),
    ('accelerate', "largest_batch('resnet18', '1GiB') > 0", None),
    ('torch', "profile(net)", 'give|example|inputs'),
    ('torchinfo', "profile(net, input_size=(2, 4)).flops", None),
    ('torch', "profile(net, x, batch_size=8)", 'only for a model that is given by name'),
    ('transformers', "profile(GPT2Config(n_layer=2, n_embd=64, n_head=2)).params", None),
    ('transformers', "profile('bert-base-uncased')", "type 'bert'"),
    ('transformers', "profile('meta-llama/Llama-2-7b-hf')", "type 'llama'"),
    ('transformers', "export('google/gemma-2-9b', 'a.onnx')", "type 'gemma2'"),
    ('transformers', "check_config(TrainConfig('distilbert-base-uncased'))", "type 'distilbert'"),
    ('transformers', "plan('meta-llama/Llama-2-7b-hf', Cluster('A100-SXM-80GB', 8), 64)", "type 'llama'"),
    ('timm', "profile('hf-hub:timm/resnet18.a1_in1k').params", None),
    ('timm', "check_config(TrainConfig('hf-hub:timm/resnet18.a1_in1k', data='synthetic:images'))[0].image_size", None),
    ('timm', "len(search_models('resnet*')) > 10", None),
    ('transformers', "len(search_models(task='text-generation')) > 100", None),
    ('transformers', "profile('bert', task='fill-mask', seq=8).params", None),
    ('transformers', "profile('bert', task='text-classification').params", None),
    ('transformers', "profile('bert', task='text-to-video')", 'expected one of|did you mean'),
    ('transformers', "len(search_models(license='apache-2.0')) > 10", None),
    ('transformers', "search_models(num_hidden_layers=12)", "profile\\('gpt2', num_hidden_layers=2\\)"),
    ('transformers', "profile('gpt2', num_hidden_layers=2, seq=8).params", None),
    ('pandas', "search_models('resnet18').to_pandas()['name'][0]", None),
    ('pandas', "search_models('resnet18')['name'] and search_models('resnet18')[0]['name']", None),
    ('pandas', "len(print_of(search_models('')).splitlines()) < 25", None),
    ('transformers', "TrainConfig('gpt-tiny', learning_rate=1e-3)", 'type lr'),
    ('transformers', "TrainConfig('gpt-tiny', num_train_epochs=1)", 'type steps=…'),
    ('transformers', "TrainConfig('gpt-tiny', per_device_train_batch_size=8)", 'global_batch'),
    ('transformers', "TrainConfig('gpt-tiny', gradient_accumulation_steps=4)", 'micro_batch=8'),
    ('transformers', "TrainConfig('gpt-tiny', bf16=True)", 'precision=bf16'),
    ('transformers', "TrainConfig('gpt-tiny', gradient_checkpointing=True)", 'recompute=full'),
    ('transformers', "TrainConfig('gpt-tiny', output_dir='x')", 'type folder'),
    ('transformers', "TrainConfig('gpt-tiny', report_to='wandb')", 'fsdl runs convert'),
    ('transformers', "TrainConfig('gpt-tiny', data=[dict(text='a')])", 'package.module:function'),
    ('torch', "TrainConfig('gpt-tiny', data=torch.utils.data.DataLoader([1]))", 'package.module:function'),
    ('torch', "TrainConfig(net)", 'package.module:function'),
    ('torch', "train('gpt-tiny')", r"TrainConfig\('gpt-tiny'\)"),
    ('torch', "check_config(TrainConfig(layout='fsdp'))", 'dp8,zero=3'),
    ('Lightning', "str(parse_layout('deepspeed_stage_2,dp4'))", None),
    ('Lightning', "str(estimate(known_model, 'fsdp', Cluster('A100-SXM-80GB', 8), 64).layout)", None),
    ('torch', "parse_layout('ddp8').dp == 8", None),
    ('torch', "Layout(recompute=True, precision='bfloat16', optimizer='AdamW').recompute", None),
    ('torch', "Layout('fsdp8')", r"parse_layout\('fsdp8'\)"),
    ('Megatron-LM', "Layout(tensor_parallel_size=2)", 'type tp'),
    ('accelerate', "on_ranks(times, 2, 3, lr=2)", None),
    ('accelerate', "on_ranks(times, 2, 3, learning_rate=2)", 'learning_rate'),
    (
        'NVIDIA',
        (
            "[Cluster(name, 8).gpu.name for name in ('NVIDIA A100-SXM4-80GB', 'Tesla V100-SXM2-16GB', 'NVIDIA GeForce"
            " RTX 4090', 'NVIDIA RTX 6000 Ada Generation', 'Tesla T4', 'NVIDIA H100 80GB HBM3')]"
        ),
        None,
    ),
    ('people', "cheapest(known_model, '26B', '7d', [Cluster('A100-SXM-80GB', 8, gpu_hour=2.)], 64)[0]", None),
    ('people', "Cluster('A100-SXM-80GB', 8, gpu_hour=1.).cost('7d') == 8 * 7 * 24", None),
    ('people', "fsdl_tools.__version__", None),
    ('people', "len(print_of(profile('resnet50'))) < 2500", None),
    ('accelerate', 'fsdl memory bert-base-cased', "type 'bert'"),
    ('accelerate', 'fsdl estimate-memory gpt2', 'fsdl memory'),
    ('torchrun', 'fsdl train --nproc_per_node 2', '--layout dp2'),
    ('transformers', 'fsdl train --per_device_train_batch_size 8', '--global-batch'),
    ('transformers', 'fsdl train --learning_rate 1e-3 --max_steps 1 --train_batch_size 4 --seq 8', None),
    ('transformers', 'fsdl train --num_train_epochs 1', '--steps'),
    ('optimum', 'fsdl export --model resnet18 out', 'first word'),
    ('transformers', 'fsdl memory gpt2 --batch_size 1 --seq 8', None),
    ('transformers', 'fsdl zoo search --task text-generation --limit 3', None),
    ('transformers', 'fsdl zoo search resnet18 --license apache-2.0', None),
    ('people', "len(print_of(measure_memory(nn.Sequential(*[nn.Linear(4, 4) for _ in range(50)]), x))) < 1000", None),
    (
        'people',
        (
            "[e.fits for e in plan('gpt2', Cluster('A100-SXM-80GB', 8), 64)[0]][0] and plan('gpt2',"
            " Cluster('A100-SXM-80GB', 8), 64)[0][0].step_time"
        ),
        None,
    ),
    ('people', 'fsdl --version', None),
    ('people', 'fsdl help', None),
    ('people', 'fsdl models', 'fsdl zoo search'),
]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        return self.f(x).relu()


def times(a, lr=1):
    return a * lr


def print_of(thing):
    return str(thing)


@pytest.fixture
def names(tmp_path, monkeypatch):
    from transformers import GPT2Config
    from fsdl_tools.compute.model_sizes import known
    from fsdl_tools.memory.measure import blocks_of
    from fsdl_tools.memory.predict import largest_batch
    from fsdl_tools.parallel.layout import parse_layout
    from fsdl_tools.training.config import check_config

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    deep = nn.Sequential(*[Block() for _ in range(3)])
    here = dict(
        net=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        x=torch.randn(2, 4),
        y=torch.tensor([0, 2]),
        deep=deep,
        table=nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(20, 2)),
        known_model=min(known()),
    )
    here |= {name: getattr(fsdl_tools, name) for name in fsdl_tools._offered}
    return here | dict(
        torch=torch,
        nn=nn,
        F=F,
        functools=functools,
        GPT2Config=GPT2Config,
        largest_batch=largest_batch,
        blocks_of=blocks_of,
        parse_layout=parse_layout,
        check_config=check_config,
        times=times,
        print_of=print_of,
        fsdl_tools=fsdl_tools,
    )


def command(line, capsys):
    "Code and error line of a command"
    capsys.readouterr()
    code = run(line.split()[1:])
    return code, capsys.readouterr().err


@pytest.mark.parametrize('source, typed, answer', GUESSES, ids=[typed[:60] for _, typed, _ in GUESSES])
def test_a_first_guess(source, typed, answer, names, capsys):
    if typed.startswith('fsdl '):
        code, said = command(typed, capsys)
        if answer is None:
            assert code == 0, said
        else:
            assert code == 2 and len(said.strip().splitlines()) == 1 and answer in said, said
        return
    if answer is None:
        assert eval(typed, names) not in (None, False)
        return
    with pytest.raises((ValueError, TypeError), match=answer) as caught:
        eval(typed, names)
    assert len(str(caught.value).splitlines()) == 1


def test_there_are_forty_and_more():
    assert len(GUESSES) >= 40 and len({typed for _, typed, _ in GUESSES}) == len(GUESSES)
