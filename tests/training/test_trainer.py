"""Runs that are killed, starved, resumed elsewhere and lied to: the losses stay those of the uninterrupted run"""

import errno, json, os, random, shutil, signal, subprocess, sys, threading, time, warnings
from pathlib import Path
import psutil
import pytest
import torch
from fsdl_tools.training import checkpoint, elastic, trainer
from fsdl_tools.training.archive import CheckpointError, verify_checkpoint
from fsdl_tools.training.checkpoint import Checkpointer
from fsdl_tools.parallel.ranks import RankError, on_ranks
from fsdl_tools.parallel.layout import parse_layout
from fsdl_tools.training.trainer import Trainer, fit, training_tensors
from fsdl_tools.training.config import TrainConfig, check_config, lr_at
from fsdl_tools.training.elastic import kill_one, train

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope='session')
def text(tmp_path_factory):
    "A text file of 7,500 bytes"
    f = tmp_path_factory.mktemp('data') / 'squares of numbers.txt'
    f.write_text(' '.join(str(i * i) for i in range(1300)))
    return str(f)


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    "A folder with 15 images in each of two classes"
    from PIL import Image

    top, r = tmp_path_factory.mktemp('images'), random.Random(0)
    for c in ('dark ones', 'bright'):
        (top / c).mkdir()
        for i in range(15):
            Image.frombytes(
                'RGB', (40, 36), bytes(r.randrange(100) + 150 * (c == 'bright') for _ in range(40 * 36 * 3))
            ).save(top / c / f'{i}.png')
    return str(top)


def config(text, folder='', **kw):
    "A short run of gpt-tiny on the text"
    if 'save_every' in kw and not folder:
        folder = '/proc/to be replaced'
    return TrainConfig(
        **dict(data=text, seq=16, global_batch=8, steps=6, holdout=0.03, seed=3, folder=str(folder)) | kw
    )


def rows_of(c):
    return [{k: r.get(k) for k in ('step', 'loss', 'norm', 'lr', 'eval_loss')} for r in fit(c)]


def go(c):
    "Run without torchrun, which takes longer to start: rows of rank 0"
    world = parse_layout(c.layout).world
    return on_ranks(rows_of, world, c, timeout=400)[0] if world > 1 else rows_of(c)


def facts(rows):
    return [{k: r.get(k) for k in ('step', 'loss', 'norm', 'lr', 'eval_loss')} for r in rows]


def recorded(folder):
    return facts(json.loads(line) for line in (Path(folder) / 'metrics.jsonl').read_text().splitlines())


def weights(folder):
    return (Path(folder) / 'model.safetensors').read_bytes()


def losses(rows):
    return [r['loss'] for r in rows]


def distance(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def steps_on_disk(folder):
    return sorted(int(p.name[5:]) for p in (Path(folder) / 'checkpoints').glob('step-*'))


def same_run(folder, straight):
    "Weights, every row and the state are those of the uninterrupted run, bit by bit"
    assert recorded(folder) == recorded(straight) and weights(folder) == weights(straight)
    assert [r['step'] for r in recorded(folder)] == list(range(1, len(recorded(folder)) + 1))


def processes(folder, agent=False):
    "Those of a run: ranks, or torchrun"
    out = []
    for p in psutil.process_iter(['environ', 'status']):
        env = p.info['environ'] or {}
        if (
            env.get('FSDL_RUN') == str(Path(folder).absolute())
            and p.info['status'] != psutil.STATUS_ZOMBIE
            and (not agent or 'RANK' not in env)
        ):
            out.append(p)
    return out


def wait_until(true, timeout=150):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if true():
            return
        time.sleep(0.05)
    raise AssertionError('it did not happen in time')


def count(folder):
    return (Path(folder) / 'metrics.jsonl').read_text().count('\n') if (Path(folder) / 'metrics.jsonl').exists() else 0


def nothing_is_left(folder):
    wait_until(lambda: not processes(folder), 100)


# ---- killed ----


def kill_often(folder, plan, done):
    "Kill rank `which` of attempt number k when `after` steps are on record"
    attempt = lambda: max(
        (int(p.info['environ'].get('TORCHELASTIC_RESTART_COUNT', -1)) for p in processes(folder)), default=-1
    )
    for k, (after, which) in enumerate(plan):
        wait_until(lambda: attempt() >= k, 200)
        done.append(kill_one(folder, after, which, timeout=200))


def killed_run(c, plan, tmp_path):
    "Train while ranks are killed; the kills that were made"
    done = []
    t = threading.Thread(target=kill_often, args=(c.folder, plan, done), daemon=True)
    t.start()
    rows = train(c, restarts=len(plan) + 2, timeout=1000, log=tmp_path / 'log')
    t.join(150)
    assert len(done) == len(set(done)) == len(plan), (tmp_path / 'log').read_text()[-3000:]
    assert facts(rows) == recorded(c.folder)
    nothing_is_left(c.folder)


@pytest.mark.timeout(1200)
def test_kills_of_any_rank_at_any_step_change_nothing(text, tmp_path, slow, rng):
    kills, steps = (10, 44) if slow else (3, 16)
    c = config(text, layout='dp2', steps=steps, save_every=2, global_batch=8)
    go(c.replace(folder=str(tmp_path / 'straight')))
    plan = [(a, rng.choice([0, -1])) for a in sorted(rng.sample(range(1, steps - 2), kills))]
    killed_run(c.replace(folder=str(tmp_path / 'killed')), plan, tmp_path)
    same_run(tmp_path / 'killed', tmp_path / 'straight')


@pytest.mark.parametrize('layout', ['dp2,pp2,zero=1', pytest.param('dp1,tp2', marks=pytest.mark.slow)])
def test_kills_in_other_layouts(layout, text, tmp_path, slow):
    c, r = config(text, layout=layout, steps=9, save_every=2), random.Random(layout)
    go(c.replace(folder=str(tmp_path / 'straight')))
    plan = [(a, r.randrange(parse_layout(layout).world)) for a in ((3, 6) if slow else (4,))]
    killed_run(c.replace(folder=str(tmp_path / 'killed')), plan, tmp_path)
    same_run(tmp_path / 'killed', tmp_path / 'straight')


def test_a_run_that_is_killed_more_often_than_it_may_be_restarted_ends_and_can_be_resumed(text, tmp_path):
    c = config(text, tmp_path / 'run', layout='dp2', steps=300, save_every=2)
    t = threading.Thread(
        target=lambda: kill_one(c.folder, 7, timeout=200), daemon=True
    )  # two checkpoints are complete by then
    t.start()
    with pytest.raises(RuntimeError, match='exit code'):
        train(c, restarts=0, timeout=500, log=tmp_path / 'log')
    nothing_is_left(c.folder)
    reached = steps_on_disk(c.folder)[-1]
    c = c.replace(steps=reached + 2)
    go(c.replace(folder=str(tmp_path / 'straight'), lr_schedule='constant'))
    assert len(go(c.replace(resume=True))) == reached + 2


start = (
    'import sys; from fsdl_tools.training.config import *; from fsdl_tools.training.trainer import *; from'
    ' fsdl_tools.training.elastic import *; train(TrainConfig.from_json(sys.argv[1]), log=sys.argv[2])'
)


@pytest.mark.parametrize(
    'how',
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_nothing_outlives_whoever_started_the_run(how, text, tmp_path):
    c = config(text, tmp_path / 'run', layout='dp2', steps=400, save_every=2, lr_schedule='constant')
    c.to_json(tmp_path / 'c.json')
    p = subprocess.Popen(
        [sys.executable, '-c', start, tmp_path / 'c.json', tmp_path / 'log'], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: count(c.folder) >= 3)
        assert len(processes(c.folder)) >= 3
        p.send_signal(how)
        assert p.wait(200) != 0
        nothing_is_left(c.folder)
    finally:
        p.kill()
        p.wait()
    done = count(c.folder)
    assert steps_on_disk(c.folder)[-1] == done, (
        'torchrun was told to stop, so its ranks have saved the step they were in'
    )
    c = c.replace(steps=done + 2, save_every=0)
    go(c.replace(folder=str(tmp_path / 'straight')))
    go(c.replace(resume=True))
    assert losses(recorded(c.folder)) == losses(recorded(tmp_path / 'straight')) and weights(c.folder) == weights(
        tmp_path / 'straight'
    )


def test_sigterm_to_torchrun_saves_the_step_under_way(text, tmp_path):
    c = config(text, tmp_path / 'run', layout='dp2', steps=400, lr_schedule='constant')

    def term():
        wait_until(lambda: count(c.folder) >= 3)
        processes(c.folder, agent=True)[0].terminate()

    t = threading.Thread(target=term, daemon=True)
    t.start()
    with pytest.raises(RuntimeError, match='keeps what was saved'):
        train(c, timeout=500, log=tmp_path / 'log')
    t.join(150)
    nothing_is_left(c.folder)
    done = count(c.folder)
    assert (
        3 <= done < 400 and steps_on_disk(c.folder) == [done] and not (tmp_path / 'run' / 'model.safetensors').exists()
    )
    c = c.replace(steps=done + 3)
    straight = go(c.replace(folder=str(tmp_path / 'straight')))
    assert losses(go(c.replace(resume=True))) == losses(straight) and weights(c.folder) == weights(
        tmp_path / 'straight'
    )


def test_a_timeout_ends_everything(text, tmp_path):
    c = config(text, tmp_path / 'run', layout='dp2', steps=10**6)
    with pytest.raises(TimeoutError, match='within 25 s'):
        train(c, timeout=25, log=tmp_path / 'log')
    nothing_is_left(c.folder)


# ---- damaged checkpoints, full disks ----


def flip(p):
    f = max(p.glob('*.safetensors'), key=lambda f: f.stat().st_size)
    b = bytearray(f.read_bytes())
    b[-9] ^= 1
    f.write_bytes(b)


def truncate(p):
    f = max(p.glob('*.safetensors'), key=lambda f: f.stat().st_size)
    f.write_bytes(f.read_bytes()[:-1])


def cut_manifest(p):
    (p / 'manifest.json').write_text((p / 'manifest.json').read_text()[:-30])


def no_manifest(p):
    (p / 'manifest.json').unlink()


@pytest.mark.sweep(2)
@pytest.mark.parametrize('damage', [flip, truncate, cut_manifest, no_manifest])
@pytest.mark.parametrize('newest', [4, 6])
def test_a_damaged_checkpoint_is_passed_over(damage, newest, text, tmp_path):
    c = config(text, save_every=2, layout='dp2' if damage is flip else 'dp1', keep=5)
    go(c.replace(folder=str(tmp_path / 'straight')))
    shutil.copytree(tmp_path / 'straight', tmp_path / 'run')
    (tmp_path / 'run' / 'model.safetensors').unlink()
    for s in steps_on_disk(tmp_path / 'run'):
        if s > newest:
            shutil.rmtree(tmp_path / 'run' / 'checkpoints' / f'step-{s:08d}')
    damage(tmp_path / 'run' / 'checkpoints' / f'step-{newest:08d}')
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        go(c.replace(folder=str(tmp_path / 'run'), resume=True))
    if c.layout == 'dp1':
        assert any('is passed over' in str(w.message) for w in heard)
    same_run(tmp_path / 'run', tmp_path / 'straight')
    assert not any(verify_checkpoint(p) for p in (tmp_path / 'run' / 'checkpoints').iterdir()), (
        'the damaged one has been written anew'
    )


def test_all_checkpoints_damaged_starts_from_the_first_step(text, tmp_path):
    c = config(text, tmp_path / 'run', save_every=2, keep=5)
    rows, before = go(c), weights(c.folder)
    for p in (tmp_path / 'run' / 'checkpoints').iterdir():
        flip(p)
    with pytest.warns(UserWarning, match='passed over'):
        assert go(c.replace(resume=True)) == rows
    assert weights(c.folder) == before


def full(monkeypatch, at):
    "Saves of the steps for which `at` is true find the disk full"
    real = checkpoint._enter

    def enter(path):
        if at(int(path.parent.name.split('step-')[1].split('.')[0])):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path)

    monkeypatch.setattr(checkpoint, '_enter', enter)


@pytest.mark.parametrize('layout', ['dp1', 'dp2'])
def test_a_full_disk_is_heard_of_and_the_run_goes_on(layout, text, tmp_path, monkeypatch, capfd):
    c = config(text, save_every=2, steps=8, keep=9, layout=layout)
    go(c.replace(folder=str(tmp_path / 'straight')))
    full(monkeypatch, lambda step: step in (4, 6))
    c = c.replace(folder=str(tmp_path / 'run'))
    seen = on_ranks(_warned, parse_layout(layout).world, c, timeout=300)
    for _, failed in seen:
        assert [s for s, _ in failed] == [4, 6] and 'No space left' in failed[0][1]
    assert [('step 4' in w or 'step 6' in w) and 'No space left' in w and 'goes on' in w for w in seen[0][0]] == [
        True,
        True,
    ] and not any(w for w, _ in seen[1:])
    same_run(tmp_path / 'run', tmp_path / 'straight')
    assert steps_on_disk(c.folder) == [2, 8]


def _warned(c):
    "What a rank warns of, and what its saver remembers"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        t = Trainer(c)
        t.train()
    return [str(w.message) for w in heard if 'not saved' in str(w.message)], t.saver.failed


def test_what_is_heard_is_written_to_stderr(text, tmp_path):
    code = (
        'import errno, sys; from fsdl_tools.training import checkpoint; from fsdl_tools.training.config import *; from'
        ' fsdl_tools.training.trainer import *\nreal = checkpoint._enter\ndef enter(path):\n    if "step-00000006" not'
        ' in str(path): raise OSError(errno.ENOSPC, "No space left on device")\n    return'
        ' real(path)\ncheckpoint._enter = enter; fit(TrainConfig.from_json(sys.argv[1]))'
    )
    config(text, tmp_path / 'run', save_every=2).to_json(tmp_path / 'c.json')
    p = subprocess.run([sys.executable, '-c', code, tmp_path / 'c.json'], capture_output=True, text=True, timeout=200)
    assert p.returncode == 0 and 'step 2 was not saved' in p.stderr and 'No space left' in p.stderr, p.stderr
    assert steps_on_disk(tmp_path / 'run') == [6]


@pytest.mark.parametrize('layout', ['dp1', 'dp2'])
def test_the_last_checkpoint_must_be_saved(layout, text, tmp_path, monkeypatch):
    c = config(text, tmp_path / 'run', save_every=2, layout=layout)
    full(monkeypatch, lambda step: step == 6)
    with pytest.raises((CheckpointError, RankError), match='step 6 was not saved.*No space left'):
        go(c)
    assert steps_on_disk(c.folder) == [2, 4] and not any(
        verify_checkpoint(p) for p in (tmp_path / 'run' / 'checkpoints').iterdir()
    )
    assert not (tmp_path / 'run' / 'model.safetensors').exists()
    monkeypatch.undo()
    go(c.replace(resume=True))
    go(c.replace(folder=str(tmp_path / 'straight')))
    same_run(tmp_path / 'run', tmp_path / 'straight')


def test_metrics_catch_up_after_a_full_disk(text, tmp_path, monkeypatch):
    c = config(text, tmp_path / 'run')
    t, real = Trainer(c), open

    def broken(f, *a, **kw):
        if str(f).endswith('metrics.jsonl') and t.step in (2, 3):
            raise OSError(errno.ENOSPC, 'No space left on device')
        return real(f, *a, **kw)

    monkeypatch.setattr(trainer, 'open', broken, raising=False)
    with pytest.warns(UserWarning, match='step 2 is not on record yet.*No space left'):
        rows = t.train()
    assert recorded(c.folder) == facts(rows) and len(rows) == 6


@pytest.mark.skipif(os.geteuid() != 0, reason='mounting needs root; the two tests above do the same without')
def test_a_really_full_disk(text, tmp_path):
    (tmp_path / 'disk').mkdir()
    if subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=9m', 'tmpfs', str(tmp_path / 'disk')], capture_output=True, timeout=20
    ).returncode:
        return full_without_mount(text, tmp_path)
    try:
        c = config(text, tmp_path / 'disk' / 'run', save_every=1, keep=9)  # a checkpoint has 5 MB
        with (
            warnings.catch_warnings(record=True) as heard,
            pytest.raises(CheckpointError, match='step 6 was not saved'),
        ):
            warnings.simplefilter('always')
            go(c)
        assert any('No space left' in str(w.message) or 'os error 28' in str(w.message) for w in heard)
        assert steps_on_disk(c.folder) == [1] and not verify_checkpoint(
            tmp_path / 'disk' / 'run' / 'checkpoints' / 'step-00000001'
        )
    finally:
        subprocess.run(['umount', '-l', str(tmp_path / 'disk')], check=True, timeout=20)


def full_without_mount(text, tmp_path):
    "The same by a limit on the size of files"
    import resource

    old, was = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    try:
        with pytest.raises(CheckpointError, match='step 6 was not saved'):
            go(config(text, tmp_path / 'disk' / 'run', save_every=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, was)


# ---- other layouts ----


def test_a_run_moves_from_layout_to_layout(text, tmp_path):
    c = config(text, steps=12, lr=3e-3, warmup=3, eval_every=4)
    straight = go(c.replace(folder=str(tmp_path / 'straight'), layout='dp1'))
    moved = c.replace(folder=str(tmp_path / 'run'))
    for to, layout in ((3, 'dp1'), (6, 'dp2,zero=3'), (9, 'dp2,tp2,pp2'), (12, 'dp1,pp4,vp2')):
        stop_at(moved.replace(layout=layout, resume=to > 3), to)
    rows = recorded(moved.folder)
    assert [r['step'] for r in rows] == list(range(1, 13))
    for k in ('loss', 'norm', 'lr'):
        assert distance([r[k] for r in rows if r[k]], [r[k] for r in straight if r[k]]) < 1e-5, k
    assert distance([rows[i]['eval_loss'] for i in (3, 7, 11)], [straight[i]['eval_loss'] for i in (3, 7, 11)]) < 1e-5
    from safetensors.torch import load

    a, b = load(weights(moved.folder)), load(weights(tmp_path / 'straight'))
    assert a.keys() == b.keys() and max((a[k] - b[k]).abs().max().item() for k in a) < 2e-4


def _until(c, to):
    "Train as if asked to leave after a step"
    t = Trainer(c)
    note = t._note

    def stop(row):
        note(row)
        t.stop = t.step + 1 >= to

    t._note, t.stop = stop, t.step + 1 >= to
    t.train()


def stop_at(c, to):
    world = parse_layout(c.layout).world
    return on_ranks(_until, world, c, to, timeout=400) if world > 1 else _until(c, to)


# ---- models and data ----


def written(folder, **kw):
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(kw))
    return str(folder / 'config.json')


def models(kind, tmp_path):
    "Name of a small model"
    if kind == 'gpt2':
        return written(
            tmp_path / 'gpt2',
            model_type='gpt2',
            n_layer=2,
            n_embd=32,
            n_head=2,
            vocab_size=256,
            n_positions=32,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    if kind == 'gpt2 with dropout':
        return written(
            tmp_path / 'gpt2', model_type='gpt2', n_layer=2, n_embd=32, n_head=2, vocab_size=256, n_positions=32
        )
    if kind == 'llama':
        return written(
            tmp_path / 'llama',
            model_type='llama',
            num_hidden_layers=2,
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=256,
            max_position_embeddings=64,
        )
    if kind == 'image classifier':
        return written(
            tmp_path / 'vit',
            model_type='vit',
            num_hidden_layers=2,
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    return dict(resnet='resnet10t', vit='vit_tiny_patch16_224')[kind.split(' ')[0]]


def small_zoo(monkeypatch, drop=0.0):
    "timm's models, cut down"
    real = trainer.build

    def build(name, *a, **kw):
        return real(
            name, *a, **kw | (dict(depth=2, embed_dim=48, drop_path_rate=drop) if name.startswith('vit') else {})
        )

    monkeypatch.setattr(trainer, 'build', build)


@pytest.mark.sweep(2)
@pytest.mark.parametrize('kind', ['resnet', 'vit', 'gpt2', 'llama', 'image classifier'])
def test_models_of_timm_and_transformers_equal_one_process(kind, text, images, tmp_path, monkeypatch):
    small_zoo(monkeypatch)
    tokens = kind in ('gpt2', 'llama')
    c = config(
        text if tokens else images,
        model=models(kind, tmp_path),
        image_size=0 if tokens else 32,
        seq=16 if tokens else 0,
        steps=4,
        holdout=0.1,
        lr=1e-3 if tokens else 1e-5 if kind == 'resnet' else 1e-4,
    )  # batch norm over eight samples magnifies rounding
    one = go(c.replace(layout='dp1'))
    for layout in ('dp2', 'dp2,zero=3'):
        rows = go(c.replace(layout=layout, folder=str(tmp_path / layout)))
        assert distance(losses(rows), losses(one)) < 1e-4 and distance(
            [r['norm'] for r in rows], [r['norm'] for r in one]
        ) < (5e-3 if kind == 'resnet' else 1e-3)
        assert abs(rows[-1]['eval_loss'] / one[-1]['eval_loss'] - 1) < (1e-3 if kind == 'resnet' else 1e-4)
    c = c.replace(layout='dp2', folder=str(tmp_path / 'cut'))
    stop_at(c, 2)
    assert steps_on_disk(c.folder) == [2]
    go(c.replace(resume=True))
    same_run(tmp_path / 'cut', tmp_path / 'dp2')


@pytest.mark.sweep(2)
@pytest.mark.parametrize('kind', ['vit with drop path', 'gpt2 with dropout'])
@pytest.mark.parametrize('layout', ['dp1', 'dp2', 'dp2,zero=3'])
def test_randomness_repeats_after_a_restart(kind, layout, text, images, tmp_path, monkeypatch):
    small_zoo(monkeypatch, 0.5)
    tokens = 'gpt2' in kind
    c = config(
        text if tokens else images,
        model=models(kind, tmp_path),
        image_size=0 if tokens else 32,
        seq=16 if tokens else 0,
        steps=4,
        holdout=0.1,
        layout=layout,
    )
    straight = go(c.replace(folder=str(tmp_path / 'straight')))
    c = c.replace(folder=str(tmp_path / 'cut'))
    stop_at(c, 1)
    stop_at(c.replace(resume=True), 3)
    go(c.replace(resume=True))
    same_run(tmp_path / 'cut', tmp_path / 'straight')
    again = go(c.replace(folder='', seed=4))
    assert losses(again) != losses(straight)


def parquet(folder, text):
    import pyarrow as pa, pyarrow.parquet as pq

    body = Path(text).read_text()
    pq.write_table(
        pa.table(dict(text=[body[i : i + 100] for i in range(0, len(body), 100)])),
        folder / 'a b.parquet',
        row_group_size=20,
    )
    return str(folder / 'a b.parquet')


@pytest.mark.sweep(3)
@pytest.mark.parametrize('kind', ['text', 'parquet', 'images', 'synthetic', 'synthetic:images'])
@pytest.mark.parametrize('workers', [0, 1])
def test_kinds_of_data_equal_one_process_and_resume(kind, workers, text, images, tmp_path, monkeypatch):
    small_zoo(monkeypatch)
    pictures = 'images' in kind
    data = dict(text=text, images=images).get(kind) or (parquet(tmp_path, text) if kind == 'parquet' else kind)
    c = config(
        data,
        model='vit_tiny_patch16_224' if pictures else 'gpt-tiny',
        image_size=32 if pictures else 0,
        seq=0 if pictures else 16,
        steps=4,
        workers=workers,
        holdout=0.0 if 'synth' in kind else 0.05,
    )
    one = go(c.replace(layout='dp1'))
    two = go(c.replace(layout='dp2', folder=str(tmp_path / 'two')))
    assert distance(losses(two), losses(one)) < 1e-4 and (one[-1]['eval_loss'] is None) == ('synth' in kind)
    c = c.replace(layout='dp2', folder=str(tmp_path / 'cut'))
    stop_at(c, 2)
    go(c.replace(resume=True))
    same_run(tmp_path / 'cut', tmp_path / 'two')


# ---- settings ----


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    'kw',
    [
        dict(layout='dp1,micro_batch=2'),
        dict(layout='dp2,micro_batch=1,recompute=full'),
        dict(clip=0.0),
        dict(clip=0.01),
        dict(warmup=4),
        dict(lr_schedule='linear'),
        dict(lr_schedule='constant'),
        dict(layout='dp1,optimizer=sgd', lr=0.1),
        dict(layout='dp2,zero=2,optimizer=momentum', lr=0.05),
        dict(weight_decay=0.1),
        dict(layout='dp2,pp2,recompute=every-other-layer,micro_batch=2'),
        dict(layout='dp2,zero=1,micro_batch=2'),
        dict(layout='dp1,optimizer=sgd,micro_batch=2', lr=0.1, save_every=1),
    ],
)
def test_settings(kw, text, tmp_path):
    "Each against the loop written by hand, then cut and resumed"
    c = config(text, tmp_path / 'run', **kw)
    rows = go(c)
    by_hand = loop(c)
    assert distance(losses(rows), by_hand) < 1e-5
    assert [r['lr'] for r in rows] == [lr_at(c, s) for s in range(6)]
    cut = c.replace(folder=str(tmp_path / 'cut'))
    stop_at(cut, 3)
    go(cut.replace(resume=True))
    same_run(tmp_path / 'cut', tmp_path / 'run')


def loop(c):
    "Six steps as anybody would write them"
    from fsdl_tools.training.data import open_data, step_indices
    from fsdl_tools.models.gpt import GPT, gpt_config, lm_loss

    data, _ = open_data(c.data, seq=c.seq, holdout=c.holdout, seed=c.seed)
    m, name = GPT(gpt_config('gpt-tiny'), c.seed), parse_layout(c.layout).optimizer
    opt = dict(
        adam=lambda p: torch.optim.AdamW(p, weight_decay=c.weight_decay),
        sgd=lambda p: torch.optim.SGD(p, 1.0, weight_decay=c.weight_decay),
        momentum=lambda p: torch.optim.SGD(p, 1.0, momentum=0.9, weight_decay=c.weight_decay),
    )[name](m.parameters())
    out = []
    for s in range(c.steps):
        x, y = (torch.stack(t) for t in zip(*(data[k] for k in step_indices(len(data), s, c.global_batch, c.seed))))
        for g in opt.param_groups:
            g['lr'] = lr_at(c, s)
        opt.zero_grad()
        loss = lm_loss(m(x), y)
        loss.backward()
        if c.clip:
            torch.nn.utils.clip_grad_norm_(m.parameters(), c.clip)
        opt.step()
        out.append(loss.item())
    return out


def test_learning_rates():
    c = TrainConfig(steps=10, warmup=4, lr=1.0)
    assert (
        [lr_at(c, s) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
        and lr_at(c, 9) == pytest.approx(0.0669873)
        and all(lr_at(c, s) > lr_at(c, s + 1) for s in range(4, 9))
    )
    assert lr_at(TrainConfig(steps=3, warmup=8, lr=1.0), 2) == 0.375


def test_evaluation_comes_when_it_is_due(text):
    assert [r['step'] for r in go(config(text, eval_every=2, steps=5)) if r['eval_loss'] is not None] == [2, 4, 5]
    assert [r['step'] for r in go(config(text, steps=5)) if r['eval_loss'] is not None] == [5]
    assert all(r['eval_loss'] is None for r in go(config(text, steps=5, holdout=0.0, eval_every=1)))


def test_rows_say_how_fast_it_was(text):
    for r in fit(config(text)):
        assert r['seconds'] > 0 and r['samples_per_s'] == pytest.approx(8 / r['seconds']) and 0 < r['mfu'] < 2


def test_saving_keeps_what_was_asked_for(text, tmp_path):
    go(config(text, tmp_path / 'run', steps=9, save_every=2, keep=3))
    assert steps_on_disk(tmp_path / 'run') == [6, 8, 9]


# ---- hostile ----


@pytest.mark.parametrize(
    'name',
    [
        'with space',
        ' ',
        'new\nline',
        '-dash',
        '--steps=1',
        'ünïcödé 模型',
        "quote'\"",
        '$(touch x)',
        '*',
        'a;b',
        '%s{0}',
        '.hidden',
    ],
)
def test_hostile_names_of_folders(name, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    c = config(text, name, steps=2, save_every=1)
    rows = go(c)
    assert go(c.replace(resume=True)) == rows and (tmp_path / name / 'model.safetensors').is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_a_hostile_name_through_torchrun(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(text, tmp_path / '-data\n$(x).txt')
    c = config('-data\n$(x).txt', '-r ü\n;', layout='dp2', steps=2)
    assert facts(train(c, timeout=300, log='log')) == go(c.replace(folder='', layout='dp2'))
    nothing_is_left(c.folder)


def test_a_folder_that_cannot_be_one(text, tmp_path, monkeypatch):
    monkeypatch.setattr(elastic.subprocess, 'Popen', lambda *a, **kw: pytest.fail('a process was started'))
    (tmp_path / 'file').write_text('mine')
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        for layout in ('dp1', 'dp2'):
            with pytest.raises(OSError, match='file'):
                train(config(text, folder, layout=layout))
    assert (tmp_path / 'file').read_text() == 'mine'


def test_a_folder_that_may_not_be_written(text):
    for folder in ('/proc/no-run-here', '/sys/no-run-here'):
        with pytest.raises(OSError, match='no-run-here'):
            train(config(text, folder, layout='dp2'))
        with pytest.raises(OSError, match='no-run-here'):
            go(config(text, folder))


@pytest.mark.parametrize(
    'bad',
    [
        '',
        '{',
        '[]',
        'null',
        '{}',
        '{"config": 3}',
        '{"config": {}}',
        '{"config": {"layout": 7}, "samples": 1}',
        '{"config": {"layout": "dp1"}}',
        '\udcff',
    ],
)
def test_a_record_that_is_none(bad, text, tmp_path, monkeypatch):
    monkeypatch.setattr(elastic.subprocess, 'Popen', lambda *a, **kw: pytest.fail('a process was started'))
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'run.json').write_text(bad, errors='surrogateescape')
    for layout in ('dp1', 'dp2'):
        with pytest.raises(ValueError, match='not the record of a run|cannot be resumed|cannot read') as e:
            train(config(text, tmp_path / 'run', resume=True, layout=layout))
        assert len(str(e.value)) > 20
        with pytest.raises(FileExistsError, match='holds a run already'):
            train(config(text, tmp_path / 'run', layout=layout))


@pytest.mark.parametrize(
    'change',
    [
        dict(seed=4),
        dict(global_batch=4),
        dict(seq=8),
        dict(holdout=0.2),
        dict(model='gpt-mini'),
        dict(layout='dp1,optimizer=sgd'),
    ],
)
def test_a_run_is_not_resumed_as_another(change, text, tmp_path):
    c = config(text, tmp_path / 'run', steps=2)
    go(c)
    before = weights(c.folder)
    with pytest.raises(ValueError, match='cannot be resumed with another') as e:
        train(c.replace(resume=True, **change))
    assert ('optimizer' if 'layout' in change else next(iter(change))) in str(e.value) and weights(c.folder) == before


def test_data_that_shrank_is_refused(text, tmp_path):
    shutil.copy(text, tmp_path / 'd.txt')
    c = config(str(tmp_path / 'd.txt'), tmp_path / 'run', steps=2)
    go(c)
    (tmp_path / 'd.txt').write_text(Path(text).read_text()[:4000])
    with pytest.raises(ValueError, match='samples=.*not'):
        train(c.replace(resume=True, steps=4))
    (tmp_path / 'd.txt').unlink()
    with pytest.raises(FileNotFoundError, match='d.txt'):
        train(c.replace(resume=True, steps=4))


@pytest.mark.parametrize(
    'bad, words',
    [
        (dict(steps='5'), 'steps must be int'),
        (dict(steps=1.5), 'steps must be int'),
        (dict(lr='fast'), 'lr must be float'),
        (dict(resume=1), 'resume must be bool'),
        (dict(model=None), 'model must be str'),
        (dict(stepz=1), "'steps'"),
        (dict(lr_schedule='cosin'), "'cosine'"),
        (dict(clip=-1), 'clip'),
        (dict(seed=-1), 'seed'),
        (dict(keep=0), 'keep'),
        (dict(device='cudaa'), "'cuda'"),
        (dict(save_every=3), 'folder'),
        (dict(folder=['x']), 'folder must be str'),
        (dict(steps=True), 'steps must be int'),
    ],
)
def test_settings_of_the_wrong_type(bad, words):
    with pytest.raises((TypeError, ValueError)) as e:
        TrainConfig.from_json(json.dumps(bad))
    assert words in str(e.value)
    for broken in ('{', '[]', '{"steps": NaN}'):
        with pytest.raises((TypeError, ValueError)):
            TrainConfig.from_json('{' if broken == '{' else TrainConfig.from_dict(json.loads(broken)))
    for f in ('clip', 'lr', 'weight_decay'):
        for v in (float('nan'), float('inf'), -1.0):
            with pytest.raises(ValueError, match=f):
                TrainConfig(**{f: v})


def test_fewer_steps_than_reached_are_refused(text, tmp_path):
    c = config(text, tmp_path / 'run', steps=4)
    go(c)
    for layout in ('dp1', 'dp2'):
        with pytest.raises(ValueError, match='has reached step 4.*steps=3'):
            train(c.replace(resume=True, steps=3, layout=layout))


@pytest.mark.parametrize('layout', ['dp1', 'dp2'])
def test_a_finished_run_stays_as_it_is(layout, text, tmp_path):
    c = config(text, tmp_path / 'run', layout=layout, steps=4, eval_every=2)
    rows = go(c)
    files = {
        p: p.read_bytes() for p in Path(c.folder).rglob('*') if p.is_file() and p.name not in ('.lock', 'run.json')
    }
    if layout == 'dp1':
        assert go(c.replace(resume=True)) == rows
    else:
        assert facts(train(c.replace(resume=True), timeout=300, log=tmp_path / 'log')) == rows
    assert files == {
        p: p.read_bytes() for p in Path(c.folder).rglob('*') if p.is_file() and p.name not in ('.lock', 'run.json')
    }


def test_two_runs_in_one_folder_are_refused(text, tmp_path):
    c = config(text, tmp_path / 'run', layout='dp2', steps=10**6, save_every=2)
    failed = []

    def run():
        try:
            train(c, timeout=400, log=tmp_path / 'log')
        except RuntimeError as e:
            failed.append(e)

    t = threading.Thread(target=run)
    t.start()
    try:
        wait_until(lambda: count(c.folder) >= 3)
        for layout in ('dp1', 'dp2'):
            with pytest.raises(BlockingIOError, match=r'process \d+ is training in'):
                train(c.replace(resume=True, layout=layout))
        with pytest.raises(RankError, match=r'process \d+ is training in'):
            go(c.replace(resume=True))
        before = count(c.folder)
        wait_until(lambda: count(c.folder) > before + 2)
    finally:
        processes(c.folder, agent=True)[0].terminate()
        t.join(120)
    assert failed and not any(
        verify_checkpoint(p) for p in (tmp_path / 'run' / 'checkpoints').iterdir() if p.name.startswith('step-')
    )
    nothing_is_left(c.folder)
    done = count(c.folder)
    assert len(go(c.replace(resume=True, steps=done + 1, layout='dp1'))) == done + 1


@pytest.mark.parametrize('layout', ['dp1', 'dp2,zero=3', 'dp1,pp2'])
def test_rotten_weights_are_never_saved(layout, text, tmp_path):
    c = config(text, tmp_path / 'run', layout=layout, steps=50, save_every=2)
    stop_at(c, 4)
    bad = c.replace(resume=True, layout=f'{layout}', lr=1e38, clip=0.0)
    with pytest.raises((FloatingPointError, RankError), match=r'step \d+: the loss is'):
        go(bad)
    assert steps_on_disk(c.folder) == [2, 4] or steps_on_disk(c.folder)[-1] <= 6
    for r in recorded(c.folder):
        assert abs(r['loss']) < float('inf') and r['norm'] < float('inf')
    from safetensors.torch import load_file

    for p in (tmp_path / 'run' / 'checkpoints').glob('step-*'):
        assert not verify_checkpoint(p)
        for f in p.glob('*.safetensors'):
            assert all(torch.isfinite(t).all() for n, t in load_file(f).items() if n.startswith('model.'))


def test_a_loss_that_is_not_a_number_ends_torchrun_at_once(text, tmp_path):
    c = config(text, tmp_path / 'run', layout='dp2,optimizer=sgd', lr=1e30, clip=0.0, steps=50, save_every=1)
    with pytest.raises(RuntimeError, match=r'FloatingPointError: step \d+: the loss is'):
        train(c, restarts=5, timeout=400, log=tmp_path / 'log')
    nothing_is_left(c.folder)
    assert (tmp_path / 'log').read_text().count('step 1/50') <= 1 or 'step 5/50' not in (tmp_path / 'log').read_text()


def test_metrics_with_a_line_cut_short(text, tmp_path):
    c = config(text, tmp_path / 'run', steps=4)
    rows = go(c)
    with open(tmp_path / 'run' / 'metrics.jsonl', 'a') as f:
        f.write('{"step": 5, "lo')
    assert go(c.replace(resume=True)) == rows == recorded(c.folder)


def test_a_run_that_died_between_a_checkpoint_and_its_record(text, tmp_path, monkeypatch):
    "Whatever is on the disk, the steps on record include those of the newest checkpoint"
    c = config(text, tmp_path / 'run', save_every=2)
    seen, real = [], Checkpointer.save
    monkeypatch.setattr(
        Checkpointer,
        'save',
        lambda self, step, *a, **kw: (seen.append((step, count(c.folder))), real(self, step, *a, **kw))[1],
    )
    go(c)
    assert seen == [(2, 2), (4, 4), (6, 6)]


def test_everything_that_changes_is_saved(text, tmp_path):
    t = Trainer(config(text, tmp_path / 'run'))
    names = set(training_tensors(t.run, t.opt))
    params = {n for n, _ in t.run.stages[0].named_parameters()}
    assert names == {f'model.{n}' for n in t.run.stages[0].state_dict()} | {
        f'optimizer.{n}.{k}' for n in params for k in ('step', 'exp_avg', 'exp_avg_sq')
    }
    before = {n: v.clone() for n, v in t.run.stages[0].state_dict().items()}
    assert all(torch.equal(v, before[n]) for n, v in t.run.stages[0].state_dict().items())
