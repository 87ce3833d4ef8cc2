"""How a run ends, what it says last, what it leaves behind, and how it goes on under other settings"""

import json, os, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path
import pytest
from fsdl_tools.operations.slurm_cluster import free_ports
from fsdl_tools.training.data import open_data
from fsdl_tools.training.trainer import Trainer, fit
from fsdl_tools.training.config import TrainConfig, lr_at

pytestmark = pytest.mark.timeout(300)
fsdl = [sys.executable, '-c', 'from fsdl_tools.cli.main import main; main()']


def train(*words, **env):
    "(exit code, lines on stderr) of the command"
    r = subprocess.run(
        [*fsdl, 'train', *words],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | dict(COLUMNS='200') | env,
    )
    return r.returncode, r.stderr.splitlines()


def config(tmp_path, **kw):
    return TrainConfig(**dict(seq=16, global_batch=4, steps=4, holdout=0.03, seed=3, folder=str(tmp_path / 'run')) | kw)


def record(c):
    return json.loads((Path(c.folder) / 'run.json').read_text())


@pytest.fixture
def photos(tmp_path):
    "Two classes of twelve images, one of them cut short"
    from PIL import Image

    for name in ('dark', 'light'):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for i in range(12):
            Image.effect_noise((48, 48), 60 + i).convert('RGB').save(tmp_path / 'photos' / name / f'{i}.jpg')
    whole = (tmp_path / 'photos' / 'light' / '7.jpg').read_bytes()
    (tmp_path / 'photos' / 'light' / '7.jpg').write_bytes(whole[: len(whole) // 2])
    return tmp_path / 'photos'


# ---- what is said last ----


def test_a_loss_that_is_no_number_is_one_line():
    code, said = train(
        '--lr', '1e30', '--clip', '0', '--steps', '6', '--seq', '16', '--global-batch', '4', '--lr-schedule', 'constant'
    )
    assert code == 2 and said[-1].startswith('fsdl: step ') and 'the loss is' in said[-1]
    assert not any('Traceback' in line for line in said)


def test_the_first_cause_is_the_last_line(photos):
    code, said = train(
        '--model',
        'test_resnet',
        '--image-size',
        '32',
        '--data',
        str(photos),
        '--layout',
        'dp2',
        '--global-batch',
        '20',
        '--steps',
        '3',
        '--holdout',
        '0',
    )
    assert code == 2 and "7.jpg'" in said[-1] and 'gloo' not in said[-1] and said[-1].startswith('fsdl: '), said
    assert not any('Traceback' in line for line in said), said


def test_an_error_of_a_worker_that_reads_ahead_is_one_line(photos):
    code, said = train(
        '--model',
        'test_resnet',
        '--image-size',
        '32',
        '--data',
        str(photos),
        '--global-batch',
        '20',
        '--steps',
        '3',
        '--holdout',
        '0',
        '--workers',
        '1',
    )
    assert (
        code == 2
        and "7.jpg'" in said[-1]
        and 'DataLoader worker' not in said[-1]
        and not any('Traceback' in line for line in said)
    ), said


def test_each_rank_of_a_scheduler_names_the_first_cause(photos, tmp_path):
    c = TrainConfig(
        'test_resnet',
        image_size=32,
        data=str(photos),
        layout='dp2',
        global_batch=20,
        steps=3,
        holdout=0.0,
        folder=str(tmp_path / 'run'),
    )
    (tmp_path / 'run').mkdir()
    env = dict(
        os.environ,
        WORLD_SIZE='2',
        LOCAL_WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(free_ports(1)[0]),
        GLOO_SOCKET_IFNAME='lo',
    )
    code = 'from fsdl_tools.training.elastic import _main; _main()'
    ranks = [
        subprocess.Popen(
            [sys.executable, '-c', code, c.to_json()],
            env=env | dict(RANK=str(r), LOCAL_RANK=str(r)),
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in (0, 1)
    ]
    for p in ranks:
        said = p.communicate(timeout=250)[1].splitlines()
        assert p.returncode == 1 and "7.jpg'" in said[-1], said
        assert not any('Traceback' in line for line in said), said


# ---- what is left ----


def test_without_a_folder_nothing_stays_also_after_a_kill(tmp_path):
    (tmp_path / 'scratch').mkdir()
    (tmp_path / 'here').mkdir()
    words = ['--layout', 'dp2', '--steps', '4000', '--seq', '16', '--global-batch', '4']
    p = subprocess.Popen(
        [*fsdl, 'train', *words],
        stderr=subprocess.DEVNULL,
        env=os.environ | dict(TMPDIR=str(tmp_path / 'scratch')),
        cwd=tmp_path / 'here',
        start_new_session=True,
    )
    rows = lambda: [f.read_text().count('\n') for f in (tmp_path / 'scratch').glob('fsdl-train-*/run/metrics.jsonl')]
    end = time.monotonic() + 250
    while not any(n >= 3 for n in rows()):
        assert time.monotonic() < end
        time.sleep(0.1)
    p.send_signal(signal.SIGKILL)
    p.wait()
    while list((tmp_path / 'scratch').glob('fsdl-train-*')):
        assert time.monotonic() < end, 'the agent removes what its owner no longer can'
        time.sleep(0.1)
    assert not any((tmp_path / 'here').iterdir())


# ---- how it goes on ----


def test_the_same_data_is_known_by_its_content(tmp_path):
    text = ' '.join(str(i * i) for i in range(900))
    (tmp_path / 'a.txt').write_text(text)
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'elsewhere.txt').write_text(text)
    (tmp_path / 'c.txt').write_text(text.replace('1', '7'))
    c = config(tmp_path, data=str(tmp_path / 'a.txt'))
    fit(c)
    longer = c.replace(resume=True, steps=6)
    with pytest.raises(ValueError, match='with another content: it cannot be resumed'):
        fit(longer.replace(data=str(tmp_path / 'c.txt')))
    assert len(fit(longer.replace(data=str(tmp_path / 'b' / 'elsewhere.txt')))) == 6


def test_images_and_long_files_by_their_content(photos, tmp_path):
    first = open_data(photos, size=32)[0].content()
    shutil.copytree(photos, tmp_path / 'copy')
    assert open_data(tmp_path / 'copy', size=32)[0].content() == first
    f = next(p for p in open_data(tmp_path / 'copy', size=32)[0].items)[0]
    f.write_bytes(f.read_bytes()[::-1])
    assert open_data(tmp_path / 'copy', size=32)[0].content() != first
    with open(tmp_path / 'long.txt', 'wb') as out:
        out.truncate(3 * 2**30)
    then = time.monotonic()
    before = open_data(tmp_path / 'long.txt')[0].content()
    assert time.monotonic() - then < 20
    with open(tmp_path / 'long.txt', 'r+b') as out:
        out.seek(2**31)
        out.write(b'x' * 2**22)
    assert open_data(tmp_path / 'long.txt')[0].content() != before


def said_by(c):
    "What a run says about its schedule"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        fit(c)
    return [str(w.message) for w in heard if 'learning rate' in str(w.message)]


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    'change',
    [
        dict(steps=8),
        dict(lr=0.1),
        dict(lr_schedule='linear', steps=8),
        dict(clip=0.5, steps=5),
        dict(weight_decay=0.1, steps=5),
        dict(warmup=7, steps=8),
    ],
    ids=str,
)
def test_a_change_of_the_schedule_is_said_and_recorded(change, tmp_path):
    c = config(tmp_path, save_every=2)
    assert said_by(c) == [] == said_by(c.replace(resume=True))  # the same once more: nothing to say
    now = c.replace(resume=True, **dict(steps=6) | change)
    (said,) = said_by(now)
    rates = [lr_at(c, 3), lr_at(now, 4)]
    assert said.startswith('from step 5 on ') and f'was {rates[0]:.3g}, it goes on at {rates[1]:.3g}' in said
    (found,) = record(c)['changed']
    assert found['step'] == 4 and found['learning_rate'] == rates
    for k, v in change.items():
        assert found[k] == [getattr(c, k), v] and f'{k}={v!r} instead of {getattr(c, k)!r}' in said
    assert said_by(now) == [] and record(c)['changed'] == [found]


def test_more_steps_at_the_same_rate_are_no_change(tmp_path):
    c = config(tmp_path, lr_schedule='constant')
    fit(c)
    assert said_by(c.replace(resume=True, steps=6)) == [] == record(c)['changed']


# ---- evaluation ----


def test_an_evaluation_is_bounded_even_and_shows_how_far_it_is(tmp_path):
    heard, seen = [], []
    c = config(tmp_path, folder='', holdout=0.5, steps=1)
    t = Trainer(c, evaluating=lambda done, of: heard.append((done, of)))
    held, real = len(t.held), t.held.sample
    t.held.sample = lambda i, epoch=0: (seen.append(i), real(i, epoch))[1]
    assert held > 1024
    loss = t.evaluate()
    assert heard == [(256, 1024), (512, 1024), (768, 1024), (1024, 1024)]
    assert sorted(set(seen)) == [i * held // 1024 for i in range(1024)]
    whole = Trainer(c.replace(eval_samples=0)).evaluate()
    assert abs(loss / whole - 1) < 0.01
    assert Trainer(c.replace(eval_samples=10**6)).evaluate() == whole
    with pytest.raises(ValueError, match='eval_samples'):
        c.replace(eval_samples=-1)
