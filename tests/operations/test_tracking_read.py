"""Readers: files that the trackers' own clients wrote, whole, killed, damaged and hostile"""

import ast
import json
import math
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from decimal import Decimal
from pathlib import Path

import pytest

from fsdl_tools.operations.sinks import masked_crc, event_record, scalar_event
from fsdl_tools.operations.tracking_files import read_tensorboard
from fsdl_tools.operations.wandb_files import pieces, read_wandb
from fsdl_tools.operations.tracking_read import read, read_all, recognise
from fsdl_tools.operations.tracking_stores import open_sqlite

loss, acc = [1 / (i + 1) for i in range(50)], [i / 7 for i in range(50)]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Files that the real clients wrote: fifty steps of loss and acc, parameters lr, layers, name"
    top = tmp_path_factory.mktemp('clients')
    with zipfile.ZipFile(Path(__file__).parent / 'runs.zip') as z:
        z.extractall(top)
    other(top)
    return top


def other(top):
    "Formats that need no client"
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ('csv', 'trainer_state', 'neptune_export', 'jsonl'):
        (top / name).mkdir()
    (top / 'csv' / 'metrics.csv').write_text(
        'epoch,step,loss,acc\n' + ''.join(f'0,{i},{x!r},{y!r}\n' for i, (x, y) in enumerate(zip(loss, acc)))
    )
    (top / 'csv' / 'hparams.yaml').write_text('lr: 0.001\nlayers: 3\nname: ünï\n', encoding='utf-8')
    rows = [dict(step=i, loss=x, acc=y, epoch=i / 50) for i, (x, y) in enumerate(zip(loss, acc))]
    (top / 'trainer_state' / 'trainer_state.json').write_text(
        json.dumps(dict(global_step=50, log_history=rows), indent=2)
    )
    (top / 'jsonl' / 'run.jsonl').write_text(
        ''.join(json.dumps(dict(step=i, loss=x, acc=y)) + '\n' for i, (x, y) in enumerate(zip(loss, acc)))
    )
    base = dict(project_id='w/p', run_id='R-1', attribute_type='float_series')
    points = [
        base | dict(attribute_path=k, step=Decimal(i), float_value=v)
        for k, values in (('loss', loss), ('acc', acc))
        for i, v in enumerate(values)
    ]
    params = [
        base | dict(attribute_path='params/lr', attribute_type='float', float_value=0.001),
        base | dict(attribute_path='params/layers', attribute_type='int', int_value=3),
    ]
    types = pa.schema(
        [(n, pa.string()) for n in ('project_id', 'run_id', 'attribute_path', 'attribute_type')]
        + [
            ('step', pa.decimal128(18, 6)),
            ('timestamp', pa.timestamp('ms', 'UTC')),
            ('float_value', pa.float64()),
            ('int_value', pa.int64()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(points + params, types), top / 'neptune_export' / 'p_part_0.parquet')


kinds = [
    'wandb',
    'swanlab',
    'comet',
    'clearml',
    'trackio',
    'mlflow',
    'mlruns',
    'neptune',
    'neptune_scale',
    'neptune_export',
    'csv',
    'trainer_state',
    'jsonl',
    'tensorboard',
]
single = {
    'wandb': 'wandb/run.wandb',
    'swanlab': 'swanlab/run.swanlab',
    'comet': 'comet/comet.zip',
    'clearml': 'clearml/offline.zip',
    'trackio': 'trackio/p.db',
    'mlflow': 'mlflow/mlflow.db',
    'neptune': 'neptune/data-1.log',
    'neptune_scale': 'neptune_scale/run_operations.sqlite3',
    'neptune_export': 'neptune_export/p_part_0.parquet',
    'csv': 'csv/metrics.csv',
    'trainer_state': 'trainer_state/trainer_state.json',
    'jsonl': 'jsonl/run.jsonl',
    'tensorboard': 'tensorboard/events.out.tfevents.1.example',
}


@pytest.mark.parametrize('kind', kinds)
def test_what_the_clients_wrote(files, kind):
    runs = read_all(files / single[kind]) if kind == 'jsonl' else read_all(files / kind)
    assert len(runs) == 1
    r, narrow = runs[0], kind == 'tensorboard'
    want = {'loss': loss, 'acc': acc}
    for name, values in want.items():
        assert r.metrics[name].steps == list(range(50))
        assert r.metrics[name].values == (
            [struct.unpack('<f', struct.pack('<f', v))[0] for v in values] if narrow else values
        )
    assert not r.warnings
    flat = {k.rpartition('/')[2]: v for k, v in r.params.items()}
    if kind not in ('trainer_state', 'jsonl', 'tensorboard'):
        assert str(flat['lr']) == '0.001' and str(flat['layers']) == '3'
    if kind not in ('trainer_state', 'jsonl', 'tensorboard', 'neptune_export'):
        assert flat['name'] == 'ünï'


def test_a_killed_wandb_run(files):
    r = read(files / 'wandb_killed')
    n = len(r.metrics['loss'])
    assert r.status == 'killed' and n >= 150 and r.metrics['loss'].steps == list(range(n))


def test_names_do_not_matter(files, tmp_path):
    for kind, name in single.items():
        if kind in ('csv', 'neptune', 'trainer_state'):
            continue
        shutil.copy(files / name, tmp_path / 'file')
        assert len(read(tmp_path / 'file').metrics['loss']) == 50


def test_what_is_nothing(tmp_path):
    for name, data in dict(
        a=b'', b=b'hello', c=b'\0' * 5000, d=b'SQLite format 3\0', e=os.urandom(3000), f=b'{', g=b'[1,2]'
    ).items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match='not recognised'):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / 'none')
    with pytest.raises(ValueError, match='no run is recognised'):
        read(tmp_path)


mutate = '''
import json, random, resource, sys, time, warnings
from pathlib import Path
from fsdl_tools.operations.tracking_read import _file_readers, read_all
source, kind, n, work = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
whole, r = source.read_bytes(), random.Random(kind)
reader = _file_readers[{'neptune': 'neptune_offline'}.get(kind, kind)]
place = work/source.name
seen = dict(read=0, refused=0, warned=0, kept=0)
def damage():
    b = bytearray(whole)
    way = r.randrange(5)
    if way == 0: return bytes(b[:r.randrange(len(b))])
    if way == 1:
        for _ in range(r.choice([1, 1, 3, 30])): b[r.randrange(len(b))] ^= 1 << r.randrange(8)
    elif way == 2:
        at = r.randrange(len(b)); b[at:at + r.choice([1, 2, 4, 8])] = b'\\xff'*r.choice([1, 2, 4, 8])
    elif way == 3:
        at = r.randrange(len(b)); del b[at:at + r.randrange(1, 200)]
    else:
        at = r.randrange(len(b)); b[at:at] = bytes(r.randrange(256) for _ in range(r.randrange(1, 200)))
    return bytes(b)
for i in range(n):
    place.write_bytes(damage())
    t0 = time.process_time()
    try: runs = reader(place)
    except ValueError as e:
        assert str(e) and len(str(e)) < 2000, e
        seen['refused'] += 1
    else:
        for run in runs if isinstance(runs, list) else [runs]:
            seen['read'] += 1
            seen['warned'] += bool(run.warnings)
            seen['kept'] += run.points()
            run.to_json()
    assert time.process_time() - t0 < 20
# ru_maxrss would be inherited
seen['MiB'] = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])//1024
print(json.dumps(seen))
'''


def damaged(files, tmp_path, kind, n):
    "Read n damaged copies in a process of its own"
    p = subprocess.run(
        [sys.executable, '-c', mutate, str(files / single[kind]), kind, str(n), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert p.returncode == 0, p.stderr[-3000:]
    seen = json.loads(p.stdout)
    assert seen['MiB'] < 1024 and seen['read'] + seen['refused'] >= n and seen['kept'] > 0
    assert seen['warned'] > 0 or kind in (
        'neptune_export',
        'trackio',
        'mlflow',
        'neptune_scale',
    )  # tables whose contents page is damaged are refused whole
    return seen


@pytest.mark.parametrize('kind', single)
def test_damaged_copies(files, tmp_path, kind):
    damaged(files, tmp_path, kind, 40)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('kind', single)
def test_a_thousand_damaged_copies(files, tmp_path, kind):
    print(kind, damaged(files, tmp_path, kind, 1000))


@pytest.mark.parametrize('kind', ['wandb', 'swanlab', 'tensorboard'])
def test_a_cut_file_gives_its_prefix_and_says_where(files, tmp_path, kind):
    whole, path = (files / single[kind]).read_bytes(), tmp_path / 'cut'
    full = read(files / single[kind]).metrics['loss'].values
    before = 0
    for cut in range(100, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:cut])
        r = read(path)
        got = r.metrics['loss'].values if 'loss' in r.metrics else []
        assert got == full[: len(got)] and len(got) >= before
        assert not r.warnings or 'byte ' in r.warnings[0]
        before = len(got)
    assert before > 40


def test_lengths_are_not_believed(tmp_path):
    path = tmp_path / 'events'
    good = event_record(scalar_event(1.0, 1, [('loss', 0.5)]))
    for length in (2**63, 2**31, 2**40 + 5):
        head = struct.pack('<Q', length)
        path.write_bytes(good + head + struct.pack('<I', masked_crc(head)) + b'x' * 100)
        r = read(path)
        assert len(r.metrics['loss']) == 1 and f'byte {len(good):,}' in r.warnings[0] and 'claims' in r.warnings[0]
    inside = b'\x12\xff\xff\xff\xff\x0f' + b'abc'  # a message that claims 4 GiB
    path.write_bytes(
        struct.pack('<4sHB', b':W&B', 0xBEE1, 0)
        + struct.pack('<IHB', zlib.crc32(b'\x01' + inside), len(inside), 1)
        + inside
    )
    r = read_wandb(path)
    assert not r.metrics and 'claims' in r.warnings[0] or 'bytes where' in r.warnings[0]


def test_zip_bombs_and_paths_that_escape(tmp_path):
    bomb = tmp_path / 'bomb.zip'
    line = (
        json.dumps(
            dict(
                type='metric_msg',
                payload=dict(local_timestamp=1, metric=dict(metricName='loss', metricValue=0.5, step=1)),
            )
        )
        + '\n'
    )
    with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('experiment.json', '{}')
        with z.open('messages.json', 'w') as f:
            f.write(line.encode() * 10)
            for _ in range(300):
                f.write(b' ' * (1 << 20))
    t0 = time.process_time()
    r = read(bomb)
    assert len(r.metrics['loss']) == 10 and time.process_time() - t0 < 10 and r.warnings
    escape = tmp_path / 'escape.zip'
    with zipfile.ZipFile(escape, 'w') as z:
        z.writestr('../../etc/evil', 'x')
        z.writestr('messages.json', line)
    r = read(escape)
    assert (
        len(r.metrics['loss']) == 1
        and 'lead out of the archive' in r.warnings[0]
        and not (tmp_path.parent / 'etc').exists()
    )


def test_links_out_of_mlruns_are_not_followed(tmp_path):
    secret = tmp_path / 'secret'
    secret.write_text('1 0.5 1\n')
    run = tmp_path / 'mlruns' / '0' / 'abc'
    for part in ('metrics', 'params', 'tags'):
        (run / part).mkdir(parents=True)
    (run / 'meta.yaml').write_text('run_id: abc\nstatus: 3\n')
    (run / 'metrics' / 'loss').write_text('1000 0.25 0\n')
    for part in ('metrics', 'params'):
        (run / part / 'stolen').symlink_to(secret)
    r = read(tmp_path / 'mlruns')
    assert list(r.metrics) == ['loss'] and not r.params and sum('not followed' in w for w in r.warnings) == 2


def test_yaml_is_data(tmp_path):
    (tmp_path / 'hparams.yaml').write_text('!!python/object/apply:os.system ["touch /tmp/should-not-exist"]\n')
    (tmp_path / 'metrics.csv').write_text('step,loss\n0,1\n')
    r = read(tmp_path / 'metrics.csv')
    assert (
        r.metrics['loss'].values == [1.0]
        and 'cannot be read' in r.warnings[0]
        and not Path('/tmp/should-not-exist').exists()
    )


def test_nothing_that_is_read_is_unpickled_or_run():
    import fsdl_tools.operations.tracking_read as reading

    for f in Path(reading.__file__).parent.glob('*.py'):
        tree = ast.parse(f.read_text())
        names = {a.name.partition('.')[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names} | {
            n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
        }
        calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        assert not names & {'pickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib'}, f
        assert not calls & {
            'eval',
            'exec',
            'torch.load',
            'yaml.load',
            'yaml.unsafe_load',
            'yaml.full_load',
            'read_pickle',
        }, f


def test_views_and_endless_queries(tmp_path):
    path = tmp_path / 'evil.db'
    with sqlite3.connect(path) as db:
        db.execute('create table configs(run_id, config)')
        db.execute(
            'create view metrics as with recursive n(x) as (select 1 union all select x + 1 from n) select x as id, 1'
            ' as run_id, 1 as run_name, 1 as timestamp, 1 as step, 1 as metrics from n'
        )
    with pytest.raises(ValueError):
        read(path)
    with open_sqlite(path, seconds=0.2) as db, pytest.raises(sqlite3.OperationalError, match='interrupted'):
        db.execute('select count(*) from metrics').fetchone()


def test_a_cut_database_gives_the_rows_before(tmp_path):
    with sqlite3.connect(tmp_path / 'whole.db') as db:
        db.execute('create table configs(run_id, run_name, config)')
        db.execute('create table metrics(id integer primary key, run_id, timestamp, run_name, step, metrics)')
        db.executemany(
            'insert into metrics(run_id, run_name, step, metrics) values (1, 1, ?, ?)',
            [(i, json.dumps(dict(loss=i / 3))) for i in range(20_000)],
        )
    db.close()
    whole = (tmp_path / 'whole.db').read_bytes()
    for share in (0.2, 0.5, 0.9):
        (tmp_path / 'cut.db').write_bytes(whole[: int(len(whole) * share)])
        r = read(tmp_path / 'cut.db')
        n = len(r.metrics['loss'])
        assert (
            0.5 * share < n / 20_000 < share + 0.02
            and r.metrics['loss'].values == [i / 3 for i in range(n)]
            and f'after {n:,} rows' in r.warnings[0]
        )


def test_the_rows_of_a_killed_database(files, tmp_path):
    "Rows that are only in the write-ahead log of SQLite are read, and nothing is changed"
    path = tmp_path / 'p.db'
    shutil.copy(files / 'trackio/p.db', path)
    code = (
        'import sqlite3, sys, os; db = sqlite3.connect(sys.argv[1]); db.execute("pragma journal_mode=wal");'
        ' db.execute("insert into metrics(run_id, timestamp, run_name, step, metrics) select run_id, timestamp,'
        ' run_name, 50, \'{\\"loss\\": 9.5}\' from metrics limit 1"); db.commit(); os._exit(0)'
    )
    subprocess.run([sys.executable, '-c', code, str(path)], check=True)
    assert Path(f'{path}-wal').stat().st_size
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith('-shm')}
    assert read(path).metrics['loss'].values[-1] == 9.5
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith('-shm')} == before


def test_decimal_steps_of_neptune(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    steps = [Decimal('0.000001'), Decimal('0.5'), Decimal('999999999999.999999')]
    types = pa.schema(
        [(n, pa.string()) for n in ('run_id', 'attribute_path', 'attribute_type')]
        + [('step', pa.decimal128(18, 6)), ('float_value', pa.float64())]
    )
    pq.write_table(
        pa.Table.from_pylist(
            [
                dict(run_id='r', attribute_path='x', attribute_type='float_series', step=s, float_value=math.nan)
                for s in steps
            ],
            types,
        ),
        tmp_path / 'x.parquet',
    )
    r = read(tmp_path / 'x.parquet')
    assert r.metrics['x'].steps[:2] == [1e-6, 0.5] and len(r.warnings) == 1 and '999999999999.999999' in r.warnings[0]


def test_a_million_points_of_tensorboard_in_five_seconds(tmp_path):
    one = [
        bytearray(event_record(scalar_event(1e9 + i, 1_000_000 + i, [('loss', i / 3), ('accuracy', i / 7)])))
        for i in range(5000)
    ]
    (tmp_path / 'big').write_bytes(b''.join(one) * 100)
    took = []
    for _ in range(2):
        t0 = time.process_time()
        r = read_tensorboard(tmp_path / 'big')
        took.append(time.process_time() - t0)
    assert r.points() == 1_000_000 and r.metrics['accuracy'].values[:5000] == [i / 7 for i in range(5000)]
    assert min(took) < 5


half = 500_000


def big_jsonl(path):
    path.write_text(''.join(f'{{"step": {i}, "loss": {i / 3!r}, "acc": {i / 7!r}}}\n' for i in range(half)))


def big_csv(path):
    path.write_text('step,loss,acc\n' + ''.join(f'{i},{i / 3!r},{i / 7!r}\n' for i in range(half)))


def big_mlflow(path):
    with sqlite3.connect(path) as db:
        db.executescript(
            'create table runs(run_uuid, name, status, start_time, end_time, experiment_id); create table params("key",'
            ' value, run_uuid); create table tags("key", value, run_uuid);create table metrics("key", value, timestamp,'
            ' step, is_nan, run_uuid); insert into runs values (\'r\', \'d\', \'RUNNING\', 1000, null, 0)'
        )
        db.executemany(
            'insert into metrics values (?, ?, ?, ?, 0, \'r\')',
            ((name, i / n, 1000 + i, i) for i in range(half) for name, n in (('loss', 3), ('acc', 7))),
        )
    db.close()


def big_trackio(path):
    with sqlite3.connect(path) as db:
        db.executescript(
            'create table configs(run_id, run_name, config); create table metrics(id integer primary key, run_id,'
            ' timestamp, run_name, step, metrics)'
        )
        db.executemany(
            "insert into metrics(run_id, timestamp, run_name, step, metrics) values ('r', '2026-01-01T00:00:00+00:00',"
            " 'n', ?, ?)",
            ((i, json.dumps(dict(loss=i / 3, acc=i / 7))) for i in range(half)),
        )
    db.close()


def big_parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = {
        k: pa.array([v] * (2 * half))
        for k, v in dict(project_id='p', run_id='r', attribute_type='float_series').items()
    }
    numbers = dict(
        step=pa.array([Decimal(i // 2) for i in range(2 * half)], pa.decimal128(18, 6)),
        timestamp=pa.array([5] * (2 * half), pa.timestamp('ms', 'UTC')),
        float_value=pa.array([i // 2 / (7 if i % 2 else 3) for i in range(2 * half)]),
    )
    pq.write_table(pa.table(text | numbers | dict(attribute_path=pa.array(['loss', 'acc'] * half))), path)


def big_wandb(path):
    def item(name, text):
        return (
            b'\n'
            + bytes([len(name) + len(text) + 5])
            + b'\n'
            + bytes([len(name)])
            + name
            + b'\x82\x01'
            + bytes([len(text)])
            + text
        )

    out = bytearray(b':W&B\xe1\xbe\0')
    for i in range(half):
        row = item(b'loss', repr(i / 3).encode()) + item(b'acc', repr(i / 7).encode()) + item(b'_step', str(i).encode())
        left, kind = b'\x12' + bytes([len(row)]) + row, 1
        while left:
            room = 32768 - len(out) % 32768
            if room < 7:
                out += b'\0' * room
            part, left = left[: (room if room >= 7 else 32768) - 7], left[(room if room >= 7 else 32768) - 7 :]
            kind = (2 if left else 1) if kind == 1 else (3 if left else 4)
            out += struct.pack('<IHB', zlib.crc32(bytes([kind]) + part), len(part), kind) + part
    path.write_bytes(out)


def big_comet(path):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        z.writestr('experiment.json', '{}')
        with z.open('messages.json', 'w') as f:
            for i in range(half):
                for name, v in (('loss', i / 3), ('acc', i / 7)):
                    metric = f'{{"metricName":"{name}","metricValue":{v!r},"step":{i}}}'
                    payload = f'{{"local_timestamp":{1000 + i},"metric":{metric}}}'
                    f.write(f'{{"payload":{payload},"type":"metric_msg"}}\n'.encode())


def big_clearml(path):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        z.writestr('task.json', '{"id": "offline-a", "name": "n", "project": "p", "hyperparams": {}}')
        with z.open('metrics.jsonl', 'w') as f:
            for i in range(0, half, 100):
                rows = [
                    dict(
                        timestamp=1000 + j,
                        type='training_stats_scalar',
                        task='a',
                        iter=j,
                        metric=name,
                        variant=name,
                        value=j / n,
                    )
                    for j in range(i, i + 100)
                    for name, n in (('loss', 3), ('acc', 7))
                ]
                f.write(json.dumps(rows).encode() + b'\n')


def big_neptune(path):
    with open(path, 'w') as f:
        for i in range(half):
            for name, v in (('loss', i / 3), ('acc', i / 7)):
                f.write(
                    f'{{"obj": {{"type": "LogFloats", "path": ["{name}"], "values": [{{"value": {v!r}, "step": {i},'
                    f' "ts": {1000 + i}}}]}}, "version": {2 * i + 1}, "at": 1.0}}\n'
                )


def big_mlruns(path):
    run = path / '0' / 'abc'
    for part in ('metrics', 'params', 'tags'):
        (run / part).mkdir(parents=True)
    (run / 'meta.yaml').write_text('run_id: abc\nstatus: 3\n')
    for name, n in (('loss', 3), ('acc', 7)):
        (run / 'metrics' / name).write_text(''.join(f'{1000 + i} {i / n!r} {i}\n' for i in range(half)))


def big_trainer_state(path):
    path.write_text(
        json.dumps(dict(global_step=half, log_history=[dict(step=i, loss=i / 3, acc=i / 7) for i in range(half)]))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    ['jsonl', 'csv', 'mlflow', 'trackio', 'parquet', 'wandb', 'comet', 'clearml', 'neptune', 'mlruns', 'trainer_state'],
)
def test_a_million_points_of_each_format_in_five_seconds(tmp_path, name):
    path = tmp_path / dict(neptune='data-1.log', trainer_state='trainer_state.json').get(name, f'metrics.{name}')
    globals()[f'big_{name}'](path)
    took = []
    for _ in range(2):
        t0 = time.process_time()
        r = read(path)
        took.append(time.process_time() - t0)
    assert (
        r.points() == 1_000_000
        and not r.warnings
        and r.metrics['loss'].steps == list(range(half))
        and r.metrics['acc'].values == [i / 7 for i in range(half)]
    )
    assert min(took) < 5, took


def test_vectorised_reading_equals_one_by_one(tmp_path, monkeypatch):
    "Records of many layouts, in a random order, with steps of all lengths"
    r = random.Random(0)
    rows = [
        (
            r.choice(['a', 'b', 'long name', 'ü']),
            r.choice([0, 1, 127, 128, 2**20, 2**40, 2**62]),
            r.random() * 10 ** r.randrange(-5, 5),
        )
        for _ in range(3000)
    ]
    (tmp_path / 'events').write_bytes(
        b''.join(
            event_record(scalar_event(i, s, [(k, v)] + ([('z', -v)] if i % 3 else [])))
            for i, (k, s, v) in enumerate(rows)
        )
    )
    run = read_tensorboard(tmp_path / 'events')
    for name in {k for k, _, _ in rows}:
        assert list(zip(run.metrics[name].steps, run.metrics[name].values)) == [(s, v) for k, s, v in rows if k == name]
    assert run.metrics['z'].times == [float(i) for i in range(3000) if i % 3]


def test_pieces_across_blocks():
    "A record of 100,000 bytes is split over blocks and comes back whole"
    data, out, at = os.urandom(100_000), bytearray(b':W&B\xe1\xbe\0'), 0
    while at < len(data):
        room = 32768 - len(out) % 32768 - 7
        part = data[at : at + room]
        kind = 2 if at == 0 else 4 if at + len(part) == len(data) else 3
        out += struct.pack('<IHB', zlib.crc32(bytes([kind]) + part), len(part), kind) + part
        at += len(part)
    said = []
    assert [m for _, m in pieces(bytes(out), said.append)] == [data] and not said
    assert [m for _, m in pieces(bytes(out[:-1]), said.append)] == [] and said


def test_recognise(files):
    assert {k: recognise(files / p) for k, p in single.items()} == {
        k: {'neptune': 'neptune_offline'}.get(k, k) for k in single
    }


@pytest.mark.parametrize(
    'text, points, warning',
    [
        ('\ufeffstep,loss\r\n0,1\r\n', 1, ''),
        (' step , loss \n 0 , 1 \n', 1, ''),
        ('"step","loss"\n"0","1"\n', 1, ''),
        ('step,loss\r0,1\r1,2\r', 2, ''),
        ('step,loss\n', 0, ''),
        ('step,loss\n0,nan\n1,inf\n2,1e308\n', 3, ''),
        ('step,loss\n0,1,9,9\n', 1, 'line 2: 2 values more than columns'),
        ('step,loss\n0\n', 0, "line 2: no value for 'loss'"),
        ('step,loss\n0,1_0\n', 0, "'1_0' is no number"),
        ('step,loss\n1_0,1\n', 1, "the step '1_0' is no number"),
        ('step,loss\n0,1e309\n', 0, "'1e309' is no number"),
        ('step,loss\n0,\u0661\n', 0, 'is no number'),
        ('step,loss,loss\n0,1,2\n', 1, "2 columns 'loss'"),
        ('step,loss\n0,"1\n1,2\n', 0, 'is no number'),
    ],
)
def test_tables_of_metrics_as_they_come(tmp_path, text, points, warning):
    """Marks, quotes and line ends of other programs are read; what a table has too much, too little or by no number
    is said
    """
    path = tmp_path / 'mine.csv'
    path.write_bytes(text.encode())
    assert recognise(path) == 'csv'
    r = read(path)
    assert (
        r.id == 'mine'
        and r.points() == points
        and bool(r.warnings) == bool(warning)
        and warning in ' '.join(r.warnings)
    )


def in_leveldb(*messages):
    "A small file of W&B: every message in one piece"
    return b':W&B\xe1\xbe\0' + b''.join(struct.pack('<IHB', zlib.crc32(b'\1' + m), len(m), 1) + m for m in messages)


def test_a_step_of_wandb_that_is_no_number(tmp_path):
    "An axis or a step that is not finite leaves the rest of the file readable"

    def item(name, text):
        return (
            b'\n'
            + bytes([len(name) + len(text) + 5])
            + b'\n'
            + bytes([len(name)])
            + name
            + b'\x82\x01'
            + bytes([len(text)])
            + text
        )

    def row(**values):
        items = b''.join(item(k.encode(), v) for k, v in values.items())
        return b'\x12' + bytes([len(items)]) + items

    axis = b'\x62\x0d' + b'\x0a\x04loss' + b'\x22\x05epoch'
    rows = [
        row(loss=b'1', epoch=b'NaN', _step=b'7'),
        row(loss=b'2', epoch=b'Infinity', _step=b'8'),
        row(loss=b'3', epoch=b'2.5', _step=b'9'),
        row(loss=b'4', epoch=b'3', _step=b'Infinity'),
        row(loss=b'5', _step=b'-Infinity'),
    ]
    (tmp_path / 'a.wandb').write_bytes(in_leveldb(axis, *rows))
    r = read_wandb(tmp_path / 'a.wandb')
    assert r.metrics['loss'].steps == [7, 8, 2.5, 3, 0] and r.metrics['loss'].values == [1, 2, 3, 4, 5]
    assert ['epoch is nan at step 7' in r.warnings[0], 'epoch is inf at step 8' in r.warnings[1]] == [
        True,
        True,
    ] and len(r.warnings) == 2


def test_a_time_too_large_for_a_float(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"step": 1, "loss": 2, "time": 1' + '0' * 400 + '}\n')
    assert read(tmp_path / 'a.jsonl').metrics['loss'].times == [math.inf]


def test_archives_whose_parts_are_no_lists_or_hold_no_times(tmp_path):
    "What is wrong in one place of an archive is said, and the rest is read"
    with zipfile.ZipFile(tmp_path / 'clearml.zip', 'w') as z:
        good = json.dumps([dict(type='training_stats_scalar', metric='loss', variant='loss', value=1, iter=3)])
        z.writestr('metrics.jsonl', f'5\n{{}}\nnull\n{good}\n')
    r = read(tmp_path / 'clearml.zip')
    assert r.metrics['loss'].steps == [3] and [w.rpartition(' byte ')[2] for w in r.warnings] == [
        '0: no list',
        '2: no list',
        '5: no list',
    ]
    with zipfile.ZipFile(tmp_path / 'comet.zip', 'w') as z:
        z.writestr('experiment.json', '{"start_time": "x"}')
        z.writestr(
            'messages.json',
            json.dumps(dict(type='metric_msg', payload=dict(metric=dict(metricName='loss', metricValue=1)))),
        )
    r = read(tmp_path / 'comet.zip')
    assert (
        r.metrics['loss'].values == [1]
        and len(r.warnings) == 1
        and 'experiment.json: could not convert' in r.warnings[0]
    )


def test_a_run_that_is_not_there(tmp_path):
    for name in ('vis-1', 'vis-2'):
        (tmp_path / name).write_text('{"run": {"id": "%s"}}\n{"step": 1, "loss": 2}\n' % name)
    with pytest.raises(ValueError, match=r"no run 'vis-3': did you mean 'vis-[12]' or 'vis-[12]'\?"):
        read(tmp_path, 'vis-3')
    with pytest.raises(ValueError, match="no run 'zz': there are vis-1, vis-2"):
        read(tmp_path, 'zz')


def test_a_metric_without_points_is_not_drawn():
    from fsdl_tools.operations.tracking_compare import plot_metric
    from fsdl_tools.training.runs import Run, Series

    runs = [Run('a', metrics=dict(loss=Series())), Run('b', metrics=dict(loss=Series([0], [0.5], [0.0])))]
    assert 'lowest in b: 0.5' in plot_metric(runs, 'loss').get_title()
    with pytest.raises(ValueError, match="no run has the metric 'loss'"):
        plot_metric(runs[:1], 'loss')
