"What people bring, kind by kind: units, names of GPUs, names of models, places to write, folders and files of data"

import json
import os
import re
import pytest
import torch
from PIL import Image
from torch import nn
from fsdl_tools.cli.main import run
from fsdl_tools.compute.gpus import Cluster, find
from fsdl_tools.core import fix_torchvision
from fsdl_tools.units import GiB, parse_bytes, parse_count, parse_dollars, parse_seconds
from fsdl_tools.files import write_atomic
from fsdl_tools.memory.measure import measure
from fsdl_tools.memory.predict import breakdown
from fsdl_tools.models.architectures import locate
from fsdl_tools.models.build import build
from fsdl_tools.models.profile import profile
from fsdl_tools.models.spec import ModelSpec
from fsdl_tools.onnx.export import export
from fsdl_tools.onnx.verify import noted_source, verify
from fsdl_tools.operations.launch import Job
from fsdl_tools.operations.sweeps import Budget
from fsdl_tools.training.data import open_data


def said(words, capsys):
    code = run(words)
    out = capsys.readouterr()
    return code, out.out + out.err


@pytest.mark.parametrize(
    'read, text, value',
    [
        (parse_count, '1.5e12 tokens', 1.5e12),
        (parse_count, '26 billion', 26e9),
        (parse_count, '300Bn', 3e11),
        (parse_count, '7B params', 7e9),
        (parse_count, '4 GFLOPs', 4e9),
        (parse_bytes, '80Gi', 80 * GiB),
        (parse_bytes, '16 gigabytes', 16 * GiB),
        (parse_bytes, '1 byte', 1),
        (parse_seconds, '2w', 14 * 86400),
        (parse_seconds, '90min', 5400),
        (parse_seconds, '1h30m', 5400),
        (parse_seconds, '1-12:00:00', 129600),
        (parse_seconds, 'PT1H30M', 5400),
        (parse_seconds, '1 day, 2:03:04', 93784),
        (parse_seconds, '2 hrs', 7200),
        (parse_dollars, '$2.5/h', 2.5),
        (parse_dollars, '2,49 USD', 2.49),
        (parse_dollars, '$1.2k', 1200),
        (parse_dollars, 'USD 3 per GPU-hour', 3),
    ],
)
def test_units_as_people_write_them(read, text, value):
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    'read, text',
    [
        (parse_seconds, '1:30'),
        (parse_seconds, '1 month'),
        (parse_bytes, '80 Gbit'),
        (parse_count, '4 GMACs'),
        (parse_dollars, '€3'),
        (parse_dollars, '1,020'),
    ],
)
def test_what_has_two_readings_or_none_is_refused_as_it_was_typed(read, text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        read(text)


def test_the_library_reads_what_the_terminal_reads():
    job = Job.from_dict(dict(name='a', command=['x'], time='1-12:00:00', memory='64GiB', gpu_memory='80 GB'))
    assert (job.time, job.memory, job.gpu_memory) == (129600, 64 * GiB, 80 * GiB)
    with pytest.raises(TypeError, match='a list of words'):
        Job('a', 'python train.py')
    assert Cluster('H100', 8, gpu_hour='$2.5/h').price == 20
    assert Budget.parse('$20', '$2.5/h') == Budget(dollars=20.0, price=2.5) and Budget.parse('1h30m').seconds == 5400
    for text in ('0', '-5', '1.2.3usd', '€5', 'nan usd'):
        with pytest.raises(ValueError):
            Budget.parse(text, 1)


@pytest.mark.parametrize(
    'text, name',
    [
        ('NVIDIA A800-SXM4-80GB', 'A800 SXM 80GB'),
        ('A100-40G', 'A100 SXM 40GB'),
        ('nvidia-h200-141gb', 'H200 SXM'),
        ('80GB H100', 'H100 SXM'),
        ('A100 80GB SXM', 'A100 SXM 80GB'),
        ('NVIDIA Corporation GA100 [A100 PCIe 80GB]', 'A100 PCIe 80GB'),
        ('Aqua Vanjaram [Instinct MI300X]', 'MI300X'),
        ('AMD Instinct MI300X OAM', 'MI300X'),
        ('TPU v5 lite', 'TPU v5e'),
        ('NVIDIA DGX H100', 'H100 SXM'),
        ('2080ti', 'RTX 2080 Ti'),
        ('NVIDIA A100 Tensor Core GPU', 'A100 SXM 80GB'),
        ('Tesla P100-SXM2-16GB', 'P100 SXM2'),
    ],
)
def test_gpus_as_drivers_and_catalogues_write_them(text, name):
    assert find(text).name == name


@pytest.mark.parametrize(
    'text, answer',
    [
        ('8x H100 SXM', "type 'H100 SXM', and how many apart: gpus=8"),
        ('H100:8', 'gpus=8'),
        ('gpu_8x_a100_80gb_sxm4', "'A100 SXM 80GB', and how many apart: gpus=8"),
        ('p4d.24xlarge', "8 of 'A100 SXM 40GB'"),
        ('Standard_ND96isr_H100_v5', "8 of 'H100 SXM'"),
        ('g6.xlarge', 'name the GPU in it'),
        ('NVIDIA A100-SXM4-40GB MIG 1g.5gb', 'a part of a GPU'),
        ('A100-SXM-64GB', "did you mean 'A100 SXM"),
        ('V100-PCIE-32GB', "did you mean 'V100"),
        ('NVIDIA H200 NVL', "did you mean 'H200 SXM'"),
        ('NVIDIA GeForce RTX 4090 D', "did you mean 'RTX 4090'"),
    ],
)
def test_what_is_no_gpu_of_the_table_is_answered_with_what_to_type(text, answer):
    with pytest.raises(ValueError, match=re.escape(answer)):
        find(text)


def own_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))


def no_net():
    return 3


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
    fix_torchvision()
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=64
    )
    folder = tmp_path_factory.mktemp('llama')
    config.architectures = ['LlamaForCausalLM']
    config.save_pretrained(folder)
    with torch.random.fork_rng():
        return config, folder, transformers.LlamaForCausalLM(config)


def test_one_way_from_a_name_to_a_model(llama):
    config, folder, module = llama

    class Mine(type(module)):
        pass

    forms = [config, folder, str(folder), folder / 'config.json', module, lambda: type(module)(config)]
    count = sum(p.numel() for p in module.parameters())
    for form in forms:
        assert type(build(form, device='meta')).__name__ == 'LlamaForCausalLM'
        assert profile(form, **({} if form is module else dict(seq=8))).params == count
        assert breakdown(form, 2, 8).parameters == 4 * count
    assert measure(folder).peak == measure(module).peak and build(module) is module
    assert {
        type(build(form, device='meta')).__name__
        for form in ('BertForMaskedLM', 'transformers/bert', type(build('BertForMaskedLM', device='meta')))
    } == {'BertForMaskedLM'}
    assert isinstance(build(Mine, device='meta', num_hidden_layers=1, hidden_size=32, num_attention_heads=2), Mine)


def test_a_function_of_ones_own_is_a_model(capsys):
    name = 'tests.test_brought_kinds:own_net'
    assert locate(name) == ('own', name) and locate('hf_hub:timm/resnet18')[0] == 'timm'
    assert profile(name, input_size=8).params == profile(own_net, torch.zeros(1, 3, 8, 8)).params == 772
    assert said(['profile', name, '--input-size', '8', '--json'], capsys)[0] == 0
    assert said(['memory', name, '--input-size', '8'], capsys)[0] == 0
    code, text = said(['memory', name], capsys)
    assert code == 2 and '--input-size' in text
    for bad, answer in {
        'tests.test_brought_kinds:no_net': 'made a int',
        'tests.test_brought_kinds.own_net': 'type tests.test_brought_kinds:own_net',
        'tests.test_brought_kinds:own_nat': "did you mean 'own_net'",
        '/': 'holds no config.json',
        'x.safetensors': 'no architecture',
        'resnet-50': "'resnet50'",
        3: 'a model is a name',
    }.items():
        with pytest.raises((ValueError, TypeError, OSError), match=re.escape(answer)):
            build(bad)
    with pytest.raises(ValueError, match='task is for a model that is given by a name'):
        build(own_net, task='causal-lm')


@pytest.mark.parametrize('source', ['os:system', 'tests.test_brought_kinds:own_net', 'a/b', 'C:\\x', 'x.json', 'tests'])
def test_a_file_names_no_function_and_no_place(source):
    with pytest.raises(ValueError, match='a file does not decide'):
        noted_source({'fsdl.source': source})
    assert noted_source({'fsdl.source': 'resnet18'}) == 'resnet18' and noted_source({}) is None


def test_links_that_lead_round_in_a_circle(tmp_path):
    (tmp_path / 'a').symlink_to(tmp_path / 'b')
    (tmp_path / 'b').symlink_to(tmp_path / 'a')
    try:
        write_atomic(tmp_path / 'a', 'x')
    except OSError as e:
        assert 'circle' in str(e)
    assert os.path.islink(tmp_path / 'b')


def test_records_in_records_come_back_from_plain_values():
    spec = profile(nn.Linear(4, 2), torch.zeros(1, 4))
    assert ModelSpec.from_dict(spec.to_dict()) == spec == ModelSpec.from_json(spec.to_json())


def test_training_is_measured_where_nothing_is_trained(caplog):
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3)), torch.zeros(2, 4)
    peak = measure(net, x).peak
    net[1].eval()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert measure(net, x).peak == peak and breakdown(net, inputs=x).parameters
    assert [m.training for m in net] == [True, False, True] and all(p.grad is None for p in net.parameters())
    with pytest.raises(ValueError, match='does not run on these inputs'):
        measure(net, torch.zeros(2, 5))
    assert not caplog.records


@pytest.mark.parametrize(
    'words, answer',
    [
        ('memory gpt2 --fit 24', 'for example 24GiB'),
        ('gpus --memory 80', 'for example 80GiB'),
        ('profile gpt2 --fp16', 'type --precision fp16'),
        ('train --fp16', 'precision=amp_fp16'),
        ('memory gpt2 --per-device-train-batch-size 4', 'type --batch'),
        ('train --per-device-train-batch-size 4', 'type --global-batch'),
        ('memory gpt2 --mixed-precision bf16', '--precision amp_bf16'),
        ('memory gpt2 --fit 24GiB --batch 8', '--fit looks for the largest batch: leave --batch 8 away'),
        ('plan gpt2 --save=', 'it is a folder'),
        ('profile .', 'holds no config.json'),
    ],
)
def test_what_to_type_exists_in_the_command(words, answer, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = said(words.split(), capsys)
    assert code == 2 and answer in text and len(text.strip().splitlines()) == 1, text


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8), 'red').save(path)


def test_folders_that_are_no_classes(tmp_path):
    for i in range(4):
        for at in ('listed/images', 'meta/train', 'deep/data/train/cat', 'deep/data/train/dog', 'good/cat', 'good/dog'):
            picture(tmp_path / at / f'{i}.png')
    (tmp_path / 'listed/labels.csv').write_text('file_name,label\n0.png,cat\n')
    (tmp_path / 'meta/train/metadata.jsonl').write_text('{}')
    (tmp_path / 'good/__MACOSX/cat').mkdir(parents=True)
    for name, answer in dict(listed='labels.csv is not read', meta='metadata is not read', deep='give .*data').items():
        with pytest.raises(ValueError, match=answer):
            open_data(tmp_path / name, size=8)
    assert open_data(tmp_path / 'good', size=8)[0].classes == ['cat', 'dog']


@pytest.mark.parametrize(
    'head, what',
    [
        (b'\x93NUMPY', 'NumPy'),
        (b'\x80\x04\x95', 'pickle'),
        (b'%PDF-1.4', 'PDF'),
        (b'\xff\xd8\xff', 'JPEG'),
        (b'\0' * 257 + b'ustar', 'tar'),
    ],
)
def test_files_that_are_no_text(tmp_path, head, what):
    (tmp_path / 'x').write_bytes(head + b'\0' * 600)
    with pytest.raises(ValueError, match=what):
        open_data(tmp_path / 'x', seq=4)


def test_negative_counts_are_refused(tmp_path, capsys):
    (tmp_path / 'config.json').write_text(
        json.dumps(
            dict(
                model_type='t5',
                d_model=32,
                num_heads=2,
                d_kv=16,
                d_ff=32,
                vocab_size=64,
                num_layers=1,
                num_decoder_layers=-1,
            )
        )
    )
    code, text = said(['profile', str(tmp_path)], capsys)
    assert code == 2 and 'num_decoder_layers' in text


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, a, b):
        return self.inner(a) - 2 * b


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A function that writes a module of one's own into an empty working folder"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / f'{name}.py').write_text('from torch import nn\nimport torch\n' + text)
        return name

    return write


@pytest.mark.parametrize(
    'name, text, typed, answer',
    [
        ('own_syntax', 'def f(:', 'own_syntax:f', 'own_syntax cannot be imported: SyntaxError'),
        (
            'own_raise',
            "raise RuntimeError('at\\nimport')",
            'own_raise:f',
            'own_raise cannot be imported: RuntimeError: at import',
        ),
        ('own_exit', 'import sys; sys.exit(3)', 'own_exit:f', 'own_exit cannot be imported: SystemExit: 3'),
        (
            'own_attr',
            'torch.no_such_thing',
            'own_attr:f',
            "own_attr cannot be imported: AttributeError: module 'torch'",
        ),
        (
            'own_missing',
            'import no_such_module_at_all',
            'own_missing:f',
            'own_missing cannot be imported: No module named',
        ),
        ('own_quits', 'def f(): raise SystemExit(4)', 'own_quits:f', 'own_quits:f made no model: SystemExit: 4'),
        ('own_file', '', 'own_file.py', 'type own_file:function'),
        ('own_file', '', './own_file.py:make', 'type own_file:make'),
        ('own_file', '', 'own_file.py:make', 'type own_file:make'),
        ('own_file', '', 'own_file:', 'type own_file:function'),
        ('own_outer', 'class Outer:\n    class Inner(nn.Linear): pass', 'own_outer:Outer.Inne', "did you mean 'Inner'"),
        (
            'own_script',
            'def f(): return torch.jit.script(nn.Linear(3, 2))',
            'own_script:f',
            'the module that it was made from',
        ),
    ],
)
def test_what_is_wrong_with_code_of_ones_own(own, name, text, typed, answer):
    own(name, text)
    with pytest.raises((ValueError, TypeError, ImportError), match=re.escape(answer)) as e:
        export(typed, 'a.onnx', torch.zeros(2, 3))
    assert '\n' not in str(e.value) and not os.path.exists('a.onnx')


def test_own_code_is_exported_by_name(own, capsys):
    own(
        'own_good',
        'made = nn.Linear(3, 2)\ndef make(width=4): return nn.Linear(3, width)\ndef image():\n    import timm\n   '
        ' return timm.create_model("test_resnet")\ndef text():\n    import transformers as t\n    return'
        ' t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, bos_token_id=1,'
        ' eos_token_id=1))',
    )
    assert export(
        'own_good:make', 'a.onnx', torch.randn(2, 3), width=5
    ).verified  # the first import draws numbers for `made`
    assert verify('a.onnx', 'own_good:make', width=5).ok and verify('a.onnx', 'own_good:make', seed=0, width=5).ok
    assert (
        export('own_good:make', 'b.onnx', torch.randn(2, 3)).verified
        and said(['verify', 'b.onnx', '--against', 'own_good:make'], capsys)[0] == 0
    )  # what it reads, its file says
    assert export('own_good:made', 'c.onnx', torch.randn(2, 3).numpy()).verified
    assert said(['export', 'own_good:image', '-o', 'd.onnx'], capsys)[0] == 0
    assert said(['export', 'own_good:text', '-o', 'e.onnx', '--cache'], capsys)[0] == 0
    assert 'no causal language model' in said(['export', 'own_good:image', '-o', 'f.onnx', '--cache'], capsys)[1]
    assert 'name the function or class that makes it' in said(['train', '--model', 'own_good:made'], capsys)[1]


def test_inputs_of_ones_own_by_name_and_those_that_are_none(tmp_path):
    a, b = torch.randn(2, 2, 3)
    assert export(Adds(), tmp_path / 'a.onnx', dict(b=b, a=a)).inputs == (
        'b: float32[batch, 3]',
        'a: float32[batch, 3]',
    )
    for bad in (3, dict(a=None, b=b), ([1, 2], b)):
        with pytest.raises(TypeError, match='an example input is a tensor or an array'):
            export(Adds(), tmp_path / 'b.onnx', bad)
