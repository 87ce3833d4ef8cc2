"""A run's log: what is lost when a process or a disk gives up, what is never written, and what frameworks hand over"""

import json
import math
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import time

import pytest

from fsdl_tools.training.adapters import hf_callback, lightning_logger
from fsdl_tools.training.provenance import is_secret_name, mask, mask_command, mask_text
from fsdl_tools.training.runlog import start_run
from fsdl_tools.training.runs import Run, alive, events, read_log

canary = 'hf_' + 'CanaryCanaryCanary'


def run_code(code, *args, **kw):
    "Start a Python process"
    return subprocess.Popen(
        [sys.executable, '-c', code, *map(str, args)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw
    )


writer = '''
import mmap, struct, sys, time
from fsdl_tools.training.runlog import start_run
log, pause = start_run(sys.argv[1], packages=False), float(sys.argv[2])
with open(sys.argv[3], 'r+b') as f: last = mmap.mmap(f.fileno(), 16)
print(log.folder, flush=True)
step = 0
while True:
    now = time.time()
    log.log(dict(loss=step/3, t=now), step)
    last[:] = struct.pack('<dd', now, step)
    step += 1
    if pause: time.sleep(pause)
'''


@pytest.mark.parametrize('pause', [0.001, 0])
def test_kill_9_loses_half_a_second_or_a_buffer(tmp_path, pause):
    (tmp_path / 'last').write_bytes(bytes(16))  # memory that outlives the writer: when it logged last
    p = run_code(writer, tmp_path / 'runs', pause, tmp_path / 'last')
    folder = p.stdout.readline().strip()
    time.sleep(1.2 + random.random() / 2)
    p.send_signal(signal.SIGKILL)
    p.wait()
    logged_at, _ = struct.unpack('<dd', (tmp_path / 'last').read_bytes())
    r = read_log(folder)
    loss = r.metrics['loss']
    assert loss.steps == list(range(len(loss))) and loss.values == [s / 3 for s in loss.steps]
    assert r.status == 'killed' and not alive(f'{folder}/log.jsonl')
    assert len(loss) > 100 and logged_at - r.metrics['t'].values[-1] < 0.5
    p.stdout.close(), p.stderr.close()


def test_a_full_disk_ends_nothing(tmp_path):
    code = '''
import resource, signal, sys, warnings
from fsdl_tools.training.runlog import start_run
log = start_run(sys.argv[1], packages=False)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
for step in range(100_000): log.log(dict(loss=step/3), step)
log.finish()
print(log.folder, log.dropped)
'''
    p = run_code(code, tmp_path)
    out, err = p.communicate(timeout=200)
    assert p.returncode == 0, err
    folder, dropped = out.split()
    assert err.count('RuntimeWarning') == 1 and int(dropped) > 0
    r = read_log(folder)
    assert r.metrics['loss'].steps == list(range(len(r.metrics['loss']))) and len(r.metrics['loss']) > 300


def test_a_disk_that_recovers_loses_nothing(tmp_path):
    log = start_run(tmp_path, packages=False)
    real, log._fd = log._fd, os.open('/dev/full', os.O_WRONLY)
    with pytest.warns(RuntimeWarning, match='No space left'):
        for step in range(500):
            log.log(dict(loss=step), step)
            if step % 100 == 0:
                log.flush()
    os.close(log._fd)
    log._fd = real
    log.finish()
    assert read_log(log.folder).metrics['loss'].steps == list(range(500))


def test_eight_processes_in_one_folder_are_eight_runs(tmp_path):
    code = '''
import sys
from fsdl_tools.training.runlog import start_run
with start_run(sys.argv[1], packages=False) as log:
    for step in range(200): log.log(dict(x=int(sys.argv[2])), step)
'''
    jobs = [run_code(code, tmp_path, i) for i in range(8)]
    for p in jobs:
        assert not p.communicate(timeout=250)[1] and p.returncode == 0
    runs = [read_log(p) for p in tmp_path.iterdir()]
    assert len(runs) == 8 and len({r.id for r in runs}) == 8
    assert sorted(r.metrics['x'].values[0] for r in runs) == list(range(8))
    assert all(len(set(r.metrics['x'].values)) == 1 and len(r.metrics['x']) == 200 for r in runs)


def test_a_call_takes_less_than_five_microseconds(tmp_path):
    log = start_run(tmp_path, packages=False)
    medians = []
    for _ in range(7):
        took = []
        for step in range(2000):
            t0 = time.perf_counter()
            log.log({'loss': step / 3, 'accuracy': 0.5}, step)
            took.append(time.perf_counter() - t0)
        medians.append(statistics.median(took))
    log.finish()
    assert min(medians) < 5e-6


def test_odd_numbers_and_names(tmp_path):
    names = ['ключ', 'a%sb%%', 'quote"\\', '\ud800', 'x' * 5000, 'line\nbreak', '']
    with start_run(tmp_path, packages=False) as log:
        for name in names:
            log.log({name: 1.5}, 0)
        log.log(dict(n=math.nan, p=math.inf, m=-math.inf, tiny=5e-324, huge=1.7976931348623157e308, whole=2**70), 0.5)
        with pytest.raises(ValueError):
            log.log(dict(text='abc'), 1)
    for line in (log.folder / 'log.jsonl').read_text().splitlines():
        json.loads(line, parse_constant=lambda c: pytest.fail(f'{c} is no JSON'))
    r = read_log(log.folder)
    assert len(r.metrics) == len(names) + 6
    assert (
        math.isnan(r.metrics['n'].values[0])
        and r.metrics['m'].values == [-math.inf]
        and r.metrics['tiny'].values == [5e-324]
    )
    assert r.metrics['n'].steps == [0.5] and r.metrics['whole'].values == [2**70]
    assert Run.from_json(r.to_json()).metrics['p'].values == [math.inf]
    with pytest.raises(ValueError, match='has ended'):
        log.log(dict(x=1), 2)


def test_tensors_and_numpy(tmp_path):
    import numpy as np
    import torch

    with start_run(tmp_path, packages=False) as log:
        log.log(dict(a=torch.tensor(0.25), b=np.float32(0.5), c=np.int64(3), d=True, e=torch.tensor([7])), 1)
    assert {k: s.values[0] for k, s in read_log(log.folder).metrics.items()} == dict(a=0.25, b=0.5, c=3, d=1, e=7)


def test_torn_and_foreign_lines(tmp_path):
    with start_run(tmp_path, packages=False) as log:
        for step in range(20):
            log.log(dict(loss=step), step)
    path = log.folder / 'log.jsonl'
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(
        b''.join(lines[:5])
        + b'\xff\xfe{broken\n'
        + b'[1]\n'
        + b'{"m": 3}\n'
        + b'{"m": {"x": "abc"}}\n'
        + b'[' * 100_000
        + b'\n'
        + b''.join(lines[5:-1])
        + b'{"t": 1'
    )
    r = read_log(path)
    assert r.metrics['loss'].values == list(range(20)) and len(r.warnings) == 6
    assert f'byte {sum(map(len, lines[:5]))}' in r.warnings[0] and 'not complete' in r.warnings[-1]
    for bad in (b'', b'{}\n', b'{"schema": "other"}\n', b'\0' * 100):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match='not the log of a run'):
            read_log(path)


def test_a_forked_process_writes_nothing(tmp_path):
    log = start_run(tmp_path, packages=False)
    log.log(dict(x=1), 0)
    pid = os.fork()
    if not pid:
        code = 0
        try:
            log.log(dict(x=2), 1)
            code = 1
        except ValueError:
            pass
        log.finish()
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    log.log(dict(x=3), 2)
    log.finish()
    assert read_log(log.folder).metrics['x'].values == [1, 3]


def test_a_run_says_from_what_it_came(tmp_path):
    """Commit, and that the checkout differs from it; command without its secrets; versions; the numbers that SLURM
    gave it
    """
    git = lambda *words: subprocess.run(
        ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *words],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    git('init', '-q')
    (tmp_path / 'train.py').write_text(
        'from fsdl_tools.training.runlog import start_run\nwith start_run() as log: log.log(dict(x=1), 0)\n'
    )
    git('add', '.')
    git('commit', '-qm', 'first')
    found = []
    for env in ({}, dict(SLURM_JOB_ID='17', SLURM_ARRAY_TASK_ID='3')):
        words = [sys.executable, 'train.py', '--api-key', canary, '--lr=0.1']
        subprocess.run(
            words,
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if not k.startswith('SLURM')} | env,
            check=True,
        )
        found.append(read_log(max((tmp_path / 'runs').iterdir(), key=lambda p: p.stat().st_mtime)).environment)
        (tmp_path / 'train.py').write_text((tmp_path / 'train.py').read_text() + '# changed\n')
    clean, changed = found
    assert clean['git']['commit'] == changed['git']['commit'] == git('rev-parse', 'HEAD')
    assert not clean['git']['dirty'] and changed['git']['dirty']
    assert canary not in json.dumps(found) and '--lr=0.1' in changed['command'] and changed['packages']['numpy']
    assert clean['slurm'] == {} and changed['slurm'] == dict(SLURM_JOB_ID='17', SLURM_ARRAY_TASK_ID='3')


def test_only_rank_0_logs(tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '3')
    with start_run(tmp_path) as log:
        log.log(dict(x=1), 0)
        log.artifact('/nowhere')
    assert not list(tmp_path.iterdir())


def test_artifacts_by_content(tmp_path):
    f = tmp_path / 'weights.bin'
    f.write_bytes(b'abc')
    with start_run(tmp_path / 'runs', packages=False) as log:
        a, b = log.artifact(f), log.artifact(f, 'again', kind='model', step=7)
        with pytest.raises(FileNotFoundError):
            log.artifact(tmp_path / 'none')
    assert a.sha256 == b.sha256 == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    assert [p.name for p in (log.folder / 'artifacts').iterdir()] == [a.sha256]
    assert [x.name for x in read_log(log.folder).artifacts] == ['weights.bin', 'again']


secret_names = [
    'api_key',
    'apiKey',
    'HF_TOKEN',
    'dbPassword',
    'aws_secret_access_key',
    'client-secret',
    'auth.token',
    'private_key',
    'DSN',
]
plain_names = [
    'max_tokens',
    'pad_token',
    'eos_token',
    'key',
    'monkey',
    'tokenizer',
    'keyboard',
    'lr',
    'tokens_per_second',
    'secretary',
    'path',
]


def test_names_of_secrets():
    assert [n for n in secret_names if not is_secret_name(n)] == []
    assert [n for n in plain_names if is_secret_name(n)] == []


@pytest.mark.parametrize(
    'shape',
    [
        'hf_abcdefghijklmnopqrstuv',
        'sk-proj-abcdefghijklmnopqrstuv',
        'ghp_abcdefghijklmnopqrst',
        'AKIAABCDEFGHIJKLMNOP',
        'xoxb-1234567890-abc',
        'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc',
        'AIza' + 'a' * 35,
        'dapi' + '0123456789abcdef' * 2,
        '0123456789abcdef0123456789abcdef01234567',
        'glpat-abcdefghijklmnopqrst',
        '-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----',
    ],
)
def test_shapes_of_secrets(shape):
    assert shape not in mask_text(f'a text with {shape} in it')
    assert shape not in json.dumps(mask(dict(x=[dict(y=f'see {shape}')])))
    assert shape not in ' '.join(mask_command(['train.py', shape, f'--x={shape}']))
    assert mask_text('lr=0.1 model=gpt2 data=/mnt/x') == 'lr=0.1 model=gpt2 data=/mnt/x'


def test_the_canary_is_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv('MY_SERVICE_PASSWORD', 'plain-canary-words')
    monkeypatch.setattr(sys, 'argv', ['train.py', '--api-key', canary, f'--token={canary}', f'HF_TOKEN={canary}'])
    with pytest.raises(RuntimeError):
        with start_run(
            tmp_path,
            dict(api_key=canary, nested=dict(note=f'key {canary}', lines=[canary]), dsn=f'db://u:{canary}@h'),
            name=canary,
            tags=dict(x=canary),
        ) as log:
            log.log({f'loss {canary}': 1.0}, 0)
            log.log_params(dict(secret='plain-canary-words', text='so plain-canary-words it is'))
            log.tag(why=f'because {canary}')
            raise RuntimeError(f'cannot log in with {canary} or plain-canary-words')
    data = b''.join(p.read_bytes() for p in tmp_path.rglob('*') if p.is_file())
    assert b'Canary' not in data and b'plain-canary' not in data and b'<masked>' in data
    assert read_log(log.folder).status == 'failed'


def test_lightning(tmp_path):
    import torch
    from fsdl_tools.core import fix_torchvision

    fix_torchvision()
    from lightning.pytorch import LightningModule, Trainer

    class Tiny(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            self.save_hyperparameters(dict(width=2))

        def training_step(self, batch, i):
            loss = self.layer(batch).mean()
            self.log('loss', loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    log = start_run(tmp_path / 'runs', packages=False)
    data = torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=2)
    quiet = dict(
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path
    )
    Trainer(max_steps=4, logger=lightning_logger(log), log_every_n_steps=1, accelerator='cpu', **quiet).fit(
        Tiny(), data
    )
    log.finish()
    r = read_log(log.folder)
    assert r.metrics['loss'].steps == [0, 1, 2, 3] and r.params['width'] == 2


def test_hugging_face_trainer(tmp_path):
    import torch
    from fsdl_tools.core import fix_torchvision

    fix_torchvision()
    from transformers import Trainer, TrainingArguments

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x):
            return dict(loss=self.layer(x).mean())

    log = start_run(tmp_path / 'runs', packages=False)
    args = TrainingArguments(
        output_dir=str(tmp_path / 'out'),
        max_steps=3,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy='no',
        hub_token=canary,
    )
    Trainer(Tiny(), args, train_dataset=[dict(x=torch.ones(2))] * 8, callbacks=[hf_callback(log)]).train()
    log.finish()
    r = read_log(log.folder)
    assert r.metrics['loss'].steps == [1, 2, 3] and r.params['max_steps'] == 3
    assert 'Canary' not in (log.folder / 'log.jsonl').read_text()


def test_accelerate(tmp_path):
    from accelerate import Accelerator
    from fsdl_tools.training.adapters import accelerate_tracker

    log = start_run(tmp_path, packages=False)
    a = Accelerator(cpu=True, log_with=[accelerate_tracker(log)])
    a.init_trackers('p', dict(lr=0.1))
    a.log(dict(loss=0.5), step=3)
    a.end_training()
    log.finish()
    r = read_log(log.folder)
    assert r.metrics['loss'].steps == [3] and r.params['lr'] == 0.1


def test_a_million_points_in_five_seconds(tmp_path):
    with start_run(tmp_path, packages=False) as log:
        log.log({'loss': 1 / 3, 'accuracy': 0.5}, 0)
    line = (log.folder / 'log.jsonl').read_text().splitlines(True)[1]
    with open(log.folder / 'log.jsonl', 'a') as f:
        f.writelines([line] * 499_999)
    took = []
    for _ in range(2):
        t0 = time.process_time()
        assert read_log(log.folder).points() == 1_000_000
        took.append(time.process_time() - t0)
    assert min(took) < 5


def test_events_go_on_from_an_offset(tmp_path):
    with start_run(tmp_path, packages=False) as log:
        for step in range(10):
            log.log(dict(x=step), step)
    every = list(events(log.folder / 'log.jsonl'))
    for event, offset in every:
        assert [e for e, _ in events(log.folder / 'log.jsonl', offset)] == [e for e, o in every if o > offset]
