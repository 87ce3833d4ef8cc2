"""What a cell of the ONNX chapters cannot hold: a full disk, another runtime, hostile and broken files by the
hundred, the command line, external data, interrupted writes
"""

import json, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, onnx, pytest

torch = pytest.importorskip('torch')
pytest.importorskip('onnxruntime')
from fsdl_tools.onnx.cures import calibrate, named_outputs, randomise
from fsdl_tools.onnx.sources import open_model, tiny_config
from fsdl_tools.onnx.export import export, install, staging
from fsdl_tools.onnx.verify import verify
from fsdl_tools.environments import run_in
from fsdl_tools.onnx.graph import inspect_onnx, read_onnx
from fsdl_tools.onnx.run import InputSpec, infer, random_inputs, session, specs_of_file, web_runner

torch.set_num_threads(1)
root = Path(__file__).resolve().parents[2]


class Net(torch.nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, width), torch.nn.Linear(width, 4)

    def forward(self, x):
        return self.b(self.a(x).relu())


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A convolutional network of timm, exported once"
    d = tmp_path_factory.mktemp('onnx')
    return export('test_resnet', d / 'net.onnx'), d / 'net.onnx'


def net_file(path, seed=0, **kw):
    torch.manual_seed(seed)
    m = Net()
    return m, export(m, path, dict(x=torch.randn(2, 8)), **kw)


def test_left_nothing_behind(made):
    report, path = made
    assert report.verified and sorted(p.name for p in path.parent.iterdir()) == ['net.onnx']


@pytest.mark.timeout(300)
def test_external_data_round_trip(tmp_path):
    m, r = net_file(tmp_path / 'a.onnx', external=True)
    first = inspect_onnx(tmp_path / 'a.onnx').external
    assert len(first) == 1 and verify(tmp_path / 'a.onnx', m).ok
    m2, _ = net_file(
        tmp_path / 'a.onnx', seed=1, external=True
    )  # replaced: the old data go, the new have a name of their own
    second = inspect_onnx(tmp_path / 'a.onnx').external
    assert (
        second != first
        and verify(tmp_path / 'a.onnx', m2).ok
        and sorted(p.name for p in tmp_path.iterdir()) == sorted(['a.onnx', *second])
    )
    shutil.move(tmp_path / second[0], tmp_path / 'elsewhere')
    with pytest.raises(FileNotFoundError, match='missing'):
        session(tmp_path / 'a.onnx')


def test_a_failed_export_keeps_the_old_file(tmp_path):
    class Data(torch.nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else -x

    p = tmp_path / 'old.onnx'
    p.write_bytes(b'precious')
    with pytest.raises(ValueError, match='cannot export Data'):
        export(Data(), p, dict(x=torch.randn(2, 3)))
    assert p.read_bytes() == b'precious' and [f.name for f in tmp_path.iterdir()] == ['old.onnx']


def test_a_folder_that_takes_no_files():
    "What Linux says of a folder inside /proc names a temporary file; what we say names the folder"
    with pytest.raises(OSError, match="cannot write into the folder of 'a.onnx'"):
        net_file('/proc/a.onnx')


@pytest.mark.parametrize('name, args', [('mobilenet_v2', {}), ('mobilevit', {})])
def test_random_convolutions_say_something(name, args):
    """Random batch normalisation of transformers kills every signal; calibrated, two inputs give two answers, and
    the same weights come out for the same seed
    """
    a, b = open_model(tiny_config(name, **args)), open_model(tiny_config(name, **args))
    assert a.info['calibrated'].endswith('batch normalisations')
    assert all(torch.equal(x, y) for x, y in zip(a.module.state_dict().values(), b.module.state_dict().values()))
    feeds = [{k: torch.from_numpy(v) for k, v in random_inputs(a.specs, seed=i).items()} for i in (1, 2)]
    with torch.no_grad():
        x, y = (named_outputs(a.module, f)['last_hidden_state'] for f in feeds)
    assert (x - y).abs().max() > 0.01 * x.abs().max()  # a hundred times the tolerance


def test_calibration_does_not_depend_on_rounding():
    "The statistics are those of a pass in float64, to 8 bits: another order of summation gives the same"
    torch.manual_seed(0)
    m = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)
    ).eval()
    assert (
        calibrate(m, [InputSpec('input', ('batch', 8))]) == '2 batch normalisations'
        and not m[1].training
        and m[1].momentum == 0.1
    )
    for k in ('running_mean', 'running_var'):
        assert torch.equal(getattr(m[3], k), getattr(m[3], k).bfloat16().float())
    assert calibrate(torch.nn.Linear(2, 2), []) == ''


@pytest.mark.timeout(300)
def test_mask_of_whole_numbers(tmp_path):
    "xlnet subtracts its mask from 1.0, which the exporter refuses: the cure is found, and reported"
    r = export(tiny_config('xlnet'), tmp_path / 'x.onnx')
    assert r.verified and 'attention mask cast to floating point' in r.cures and r.tried


def test_answers_that_hardly_differ_prove_nothing(tmp_path):
    class Faint(torch.nn.Module):
        def forward(self, x):
            return 1 + 1e-7 * x

    with pytest.raises(ValueError, match='do not depend'):
        export(Faint(), tmp_path / 'a.onnx', dict(x=torch.randn(2, 3)))


def test_a_model_that_draws_random_numbers(tmp_path):
    class Dice(torch.nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x) if x.sum() > 0 else x - torch.rand_like(x)

    with pytest.raises(ValueError, match='draws random numbers'):
        export(Dice(), tmp_path / 'a.onnx', dict(x=torch.randn(2, 3)))


def test_interrupted(tmp_path, monkeypatch):
    "Control-C in the middle leaves no file and no folder"

    def stop(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr('fsdl_tools.onnx.export.install', stop)
    with pytest.raises(KeyboardInterrupt):
        net_file(tmp_path / 'a.onnx')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('bad', ['nowhere/a.onnx', '.'])
def test_places_that_cannot_be_written(tmp_path, bad):
    with pytest.raises(OSError):
        net_file(tmp_path / bad)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which('setpriv'), reason='root may write everywhere')
def test_unwritable_folder(tmp_path):
    "Root ignores permissions, so try as nobody where possible"
    d = tmp_path / 'locked'
    d.mkdir()
    d.chmod(0o555)
    code = f"from fsdl_tools.onnx.export import staging\nwith staging({str(d / 'a.onnx')!r}): pass"
    cmd = [sys.executable, '-c', code]
    if os.geteuid() == 0:
        for p in [tmp_path, *tmp_path.parents][:3]:
            p.chmod(0o755)
        cmd = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', *cmd]
    r = subprocess.run(cmd, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(root)))
    if 'ModuleNotFoundError' in r.stderr or 'can\'t open' in r.stderr or 'failed to exec' in r.stderr:
        pytest.skip('nobody cannot read this Python')
    assert 'PermissionError' in r.stderr and list(d.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    d = tmp_path / 'disk'
    d.mkdir()
    r = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(d)], capture_output=True)
    if r.returncode:
        pytest.skip('mounting a tmpfs needs root')
    yield d
    subprocess.run(['umount', str(d)], check=True)


@pytest.mark.parametrize('external', [False, True])
def test_full_disk(small_disk, external):
    torch.manual_seed(0)
    with pytest.raises(OSError) as e:
        export(Net(20_000), small_disk / 'a.onnx', dict(x=torch.randn(2, 8)), external=external)
    assert e.value.errno == 28 and 'a.onnx' in str(e.value)
    assert list(small_disk.iterdir()) == []


def test_hundreds_of_broken_files(made, tmp_path):
    "Truncated or with bytes changed: either it is refused with one of our errors, or it is still a valid model"
    data, rng, refused = made[1].read_bytes(), random.Random(0), 0
    for i in range(150):
        b = bytearray(data)
        if i % 3 == 0:
            b = b[: rng.randrange(len(b))]
        else:
            for _ in range(rng.choice([1, 8, 64])):
                b[rng.randrange(4000 if i % 3 == 1 else len(b))] = rng.randrange(256)
        p = tmp_path / 'broken.onnx'
        p.write_bytes(b)
        try:
            infer(session(p), random_inputs([InputSpec('pixel_values', (1, 3, 160, 160))]))
        except (ValueError, OSError):
            refused += 1
    assert refused >= 75


def hostile(path, location, where='initializer', offset='0', length='16'):
    t = onnx.helper.make_tensor('w', onnx.TensorProto.FLOAT, [4], [0.0] * 4)
    t.ClearField('float_data')
    t.data_location = onnx.TensorProto.EXTERNAL
    for k, v in dict(location=location, offset=offset, length=length).items():
        t.external_data.add(key=k, value=v)
    f = lambda n: onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4])
    if where == 'initializer':
        g = onnx.helper.make_graph([onnx.helper.make_node('Add', ['x', 'w'], ['y'])], 'g', [f('x')], [f('y')], [t])
    elif where == 'attribute':
        g = onnx.helper.make_graph(
            [onnx.helper.make_node('Constant', [], ['w'], value=t), onnx.helper.make_node('Add', ['x', 'w'], ['y'])],
            'g',
            [f('x')],
            [f('y')],
        )
    else:
        b = [
            onnx.helper.make_graph([onnx.helper.make_node('Identity', ['w'], ['z'])], n, [], [f('z')], [t])
            for n in 'ab'
        ]
        c = onnx.helper.make_tensor('c', onnx.TensorProto.BOOL, [], [True])
        g = onnx.helper.make_graph(
            [onnx.helper.make_node('If', ['c'], ['y'], then_branch=b[0], else_branch=b[1])],
            'g',
            [f('x')],
            [f('y')],
            [c],
        )
    path.write_bytes(
        onnx.helper.make_model(g, opset_imports=[onnx.helper.make_opsetid('', 20)], ir_version=10).SerializeToString()
    )
    return path


@pytest.mark.parametrize('where', ['initializer', 'attribute', 'subgraph'])
@pytest.mark.parametrize(
    'location',
    [
        '../secret',
        '/etc/hostname',
        'sub/../../secret',
        'link',
        'folder_link/secret',
        '..\\secret',
        '',
        './../secret',
        'a\0b',
    ],
)
def test_hostile_paths(tmp_path, location, where):
    d = tmp_path / 'model'
    d.mkdir()
    (d / 'sub').mkdir()
    (tmp_path / 'secret').write_bytes(bytes(64))
    (d / 'link').symlink_to(tmp_path / 'secret')
    (d / 'folder_link').symlink_to(tmp_path)
    p = hostile(d / 'm.onnx', location, where)
    for use in (read_onnx, session, inspect_onnx, specs_of_file):
        with pytest.raises(ValueError, match='refused'):
            use(p)


@pytest.mark.parametrize(
    'kw', [dict(offset='-1'), dict(length='-5'), dict(offset='9' * 30), dict(length='1e9'), dict(offset='abc')]
)
def test_hostile_offsets(tmp_path, kw):
    (tmp_path / 'w').write_bytes(bytes(64))
    with pytest.raises(ValueError):
        read_onnx(hostile(tmp_path / 'm.onnx', 'w', **kw))
    assert infer(session(hostile(tmp_path / 'ok.onnx', 'w')), dict(x=np.ones(4, 'float32')))['y'].tolist() == [1] * 4


@pytest.mark.parametrize('offset', ['²', '٣', '9' * 5000])
def test_an_offset_that_is_no_plain_number_is_named(tmp_path, offset):
    "What Python takes for a digit, or for a number too long to read"
    (tmp_path / 'w').write_bytes(bytes(64))
    with pytest.raises(ValueError, match="tensor 'w' has a malformed place in 'w'") as e:
        read_onnx(hostile(tmp_path / 'm.onnx', 'w', offset=offset))
    assert len(str(e.value)) < 400


def test_weights_of_another_seed(made):
    assert verify(made[1]).ok
    with pytest.raises(ValueError, match='are not those in'):
        verify(made[1], 'test_resnet', seed=7)


def test_wrong_file_is_not_verified(made, tmp_path):
    "Every kind of damage to the weights of a valid file is noticed"
    for scale in (0.0, 0.99, -1.0):
        m = onnx.load(made[1])
        t = next(i for i in m.graph.initializer if len(i.dims) == 4)
        t.raw_data = (onnx.numpy_helper.to_array(t) * np.float32(scale)).tobytes()
        onnx.save(m, tmp_path / 'w.onnx')
        v = verify(tmp_path / 'w.onnx')
        assert not v.ok and v.reason and 'NOT verified' in v.table().notes


@pytest.mark.timeout(300)
def test_preprocessing_and_labels_travel(tmp_path):
    m = open_model('test_resnet')
    export(m, tmp_path / 'a.onnx', metadata=dict(labels=['cat', 'dog']))
    note = inspect_onnx(tmp_path / 'a.onnx').metadata
    assert (
        json.loads(note['fsdl.labels']) == ['cat', 'dog']
        and json.loads(note['fsdl.preprocess'])['mean']
        and note['fsdl.library'].startswith('timm')
    )


@pytest.mark.timeout(300)
def test_decoder_that_cannot(tmp_path):
    from fsdl_tools.onnx.decoder import export_decoder

    with pytest.raises(ValueError, match='does not cache keys and values'):
        export_decoder(tiny_config('mamba'), tmp_path / 'm.onnx')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)
def test_same_file_in_webassembly(made):
    "onnxruntime-web under Node computes what onnxruntime computes"
    if not shutil.which('npm'):
        pytest.skip('npm is not installed')
    folder = root / '.cache' / 'onnxweb'
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / 'node_modules' / 'onnxruntime-web').is_dir():
        r = subprocess.run(
            ['npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts', 'onnxruntime-web@1.22'],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
        )
        if r.returncode:
            pytest.skip(f'npm install failed: {r.stderr[-200:]}')
    feed = random_inputs([InputSpec('pixel_values', (2, 3, 160, 160))])
    a, b = infer(session(made[1]), feed), web_runner(made[1], folder / 'node_modules')(feed)
    assert list(a) == list(b) and np.allclose(a['output'], b['output'], rtol=0, atol=1e-5 * abs(a['output']).max())
    with pytest.raises(ValueError, match='onnxruntime-web failed'):
        web_runner(made[1], folder / 'node_modules')(dict(nonsense=feed['pixel_values']))


OPTIMUM = '''
from fsdl_tools.core import fix_torchvision; fix_torchvision()
import torch
from transformers import BertConfig, BertModel
from optimum.exporters.onnx import onnx_export_from_model
def main(folder):
    torch.manual_seed(0)
    small = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100)
    m = BertModel(small).eval()
    onnx_export_from_model(m, folder, task='feature-extraction', do_validation=True, device='cpu')
    with torch.no_grad(): return m(torch.arange(10).view(2, 5)).last_hidden_state.tolist()
'''


@pytest.mark.timeout(600)
def test_optimum_writes_what_we_read(side, tmp_path):
    "A model exported by optimum-onnx in its own environment, run by ours, gives what PyTorch gave there"
    want = np.array(run_in(side('optimum'), OPTIMUM, str(tmp_path), timeout=300))
    ids = np.arange(10).reshape(2, 5)
    got = infer(
        session(tmp_path / 'model.onnx'),
        dict(input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids)),
    )
    assert np.allclose(got['last_hidden_state'], want, rtol=0, atol=1e-5 * abs(want).max())


def fsdl(*args, cwd):
    return subprocess.run(
        [sys.executable, '-c', 'from fsdl_tools.cli.main import main; main()', *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=280,
        env=os.environ | dict(PYTHONPATH=str(root), COLUMNS='160', TERM='dumb'),
    )


@pytest.mark.timeout(600)
def test_command_line(tmp_path):
    r = fsdl('export', 'test_resnet', '-o', 'net.onnx', '--quantise', 'int8', '--bench', '--json', cwd=tmp_path)
    assert r.returncode == 0, r.stderr
    out = json.loads(r.stdout)
    assert (
        out['report']['verified']
        and out['quantised'][0]['kind'] == 'dynamic int8'
        and {t['runner'] for t in out['timings']} == {'eager', 'onnxruntime fp32', 'dynamic int8'}
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ['net.int8.onnx', 'net.onnx'] and 'tracing' in r.stderr
    assert fsdl('verify', 'net.onnx', '--against', 'test_resnet', cwd=tmp_path).returncode == 0
    m = onnx.load(tmp_path / 'net.onnx')
    t = next(i for i in m.graph.initializer if len(i.dims) == 4)
    t.raw_data = bytes(len(t.raw_data))
    onnx.save(m, tmp_path / 'bad.onnx')
    r = fsdl('verify', 'bad.onnx', cwd=tmp_path)
    assert r.returncode == 1 and 'NOT verified' in r.stdout


@pytest.mark.parametrize(
    'args',
    [
        ('export', 'resnet_18', '-o', 'x.onnx'),
        ('export', 'resnet18', '-o', 'no/such/folder/x.onnx'),
        ('verify', 'text.onnx'),
        ('verify', 'gone.onnx'),
        ('bench', 'text.onnx'),
        ('export', 'test_resnet', '-o', 'x.onnx', '--opset', '3'),
        ('export', 'gpt2', '-o', 'x.onnx', '--cache', '--bench'),
    ],
)
def test_command_line_mistakes(tmp_path, args):
    (tmp_path / 'text.onnx').write_text('Dear model')
    r = fsdl(*args, cwd=tmp_path)
    last = [l for l in r.stderr.splitlines() if not l.startswith('  ')]
    assert r.returncode == 2 and 'Traceback' not in r.stderr and last and last[-1].startswith('fsdl: '), r.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['text.onnx']


# ---- asked to stop ----

slow_export = """
import sys, time
from fsdl_tools.cli.main import main
from fsdl_tools.onnx import export, sources
sources.open_model = lambda *a, **k: None
export._source = lambda *a: (print("up", flush=True), time.sleep(60))
sys.argv = ["fsdl", "export", "resnet10t", "-o", sys.argv[1]]
main()
"""


@pytest.mark.parametrize(
    'how,code',
    [
        (signal.SIGTERM, 143),
        (signal.SIGKILL, -9),
        *(pytest.param(h, c, marks=pytest.mark.slow) for h, c in ((signal.SIGHUP, 129), (signal.SIGINT, 130))),
    ],
)
def test_an_export_that_is_ended_leaves_no_folder(how, code, tmp_path):
    p = subprocess.Popen(
        [sys.executable, '-c', slow_export, str(tmp_path / 'a.onnx')],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while (line := p.stdout.readline()) != 'up\n':
        assert line, 'it ended'
    assert len(list(tmp_path.iterdir())) == 1
    p.send_signal(how)
    assert p.wait(30) == code
    if how == signal.SIGKILL:
        time.sleep(2.1)
        with staging(tmp_path / 'a.onnx'):
            pass  # the next one sweeps
    assert list(tmp_path.iterdir()) == []


def test_an_endless_loop_in_a_file_is_ended_by_ctrl_c(tmp_path):
    from onnx import parser

    m = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[1] x) => (float[1] y) <bool go = {1}, float[1] one = {1}> {'
        ' y = Loop(, go, x) <body = b (int64 i, bool on, float[1] v) => (bool more, float[1] w) { more = Identity(on) w'
        ' = Add(v, one) }> }'
    )
    onnx.save(m, tmp_path / 'endless.onnx')
    code = (
        'import sys, numpy as np; from fsdl_tools.onnx.run import infer, session; s = session(sys.argv[1]);'
        ' print("up", flush=True)\ntry: infer(s, {"x": np.ones(1, "float32")})\nexcept KeyboardInterrupt:'
        ' print("heard", flush=True)'
    )
    p = subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path / 'endless.onnx')], stdout=subprocess.PIPE, text=True
    )
    assert p.stdout.readline() == 'up\n'
    time.sleep(0.5)
    p.send_signal(signal.SIGINT)
    assert p.communicate(timeout=20)[0] == 'heard\n' and p.returncode == 0
