"""Checkpoints under everything that goes wrong: killed ranks, full disks, changed files, hostile names; and every
layout read back bit by bit
"""

import contextlib, json, os, random, resource, shutil, signal, subprocess, sys, tempfile, time, warnings
from datetime import timedelta
from pathlib import Path
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings, strategies as st
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh
from fsdl_tools.training import archive as A, checkpoint as K
from fsdl_tools.training.archive import CheckpointError, checkpoints, export_weights, verify_checkpoint
from fsdl_tools.training.checkpoint import Checkpointer
from fsdl_tools.parallel.ranks import RankError, on_ranks

pytestmark = pytest.mark.timeout(400)
dtypes = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def bits(t):
    return t.detach().contiguous().flatten().view(torch.uint8).tolist() if t.numel() else (tuple(t.shape), str(t.dtype))


def numbers(n, *shape):
    return (torch.arange(torch.Size(shape).numel()) * 1.7 + n).reshape(shape)


def some(n=0):
    "Tensors of every type and of awkward shapes"
    g = torch.Generator().manual_seed(n)
    out = {f'model.{str(d)[6:]}': (torch.randn(5, 3, generator=g) * 50).to(d) for d in dtypes}
    return out | {
        'scalar': torch.tensor(n, dtype=torch.int64),
        'empty': torch.zeros(0, 3),
        'a b/ü\n{}"': torch.ones(2) * n,
        'optim.state.0.step': torch.tensor(n * 1.0),
    }


def contents(p):
    "Which part of which tensor is in which file"
    return [
        dict(file=Path(f.relative_path).name, tensor=i.fqn, offset=list(i.offset), shape=list(f.shape))
        for i, f in A._metadata(p).storage_data.items()
    ]


def blank(tensors):
    return {n: torch.zeros_like(t) for n, t in tensors.items()}


def same(a, b):
    return a.keys() == b.keys() and all(bits(a[n]) == bits(b[n]) and a[n].dtype == b[n].dtype for n in a)


def hidden(folder):
    return [p.name for p in Path(folder).iterdir() if p.name.startswith('.')]


def path(folder, step):
    return Path(folder) / f'step-{step:08d}'


@pytest.fixture
def saved(tmp_path):
    "A folder with the good steps 10 and 20"
    c = Checkpointer(tmp_path / 'run')
    for s in (10, 20):
        c.save(s, some(s), {'step': s}, wait=True)
    return c


def mounted(folder, size=None, flags=''):
    "Mount a small tmpfs; False where that is not permitted"
    Path(folder).mkdir(exist_ok=True)
    opts = ','.join(filter(None, [f'size={size}' if size else '', flags]))
    return (
        os.geteuid() == 0
        and not subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', opts, 'tmpfs', str(folder)], capture_output=True, timeout=20
        ).returncode
    )


@contextlib.contextmanager
def small_disk(folder, size=2 << 20):
    "A folder with little room: a tmpfs, or else a limit on the size of files"
    if mounted(folder, size):
        try:
            yield 'tmpfs'
        finally:
            subprocess.run(['umount', '-l', str(folder)], check=True, timeout=20)
    else:
        old, was = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
        try:
            yield 'limit'
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, was)


@contextlib.contextmanager
def read_only(folder):
    """A folder that cannot be written: by its mode, as root by a read-only mount, and where that is not permitted as
    another user
    """
    sh = lambda *cmd: not subprocess.run([*cmd, str(folder)], capture_output=True, timeout=20).returncode
    if os.geteuid():
        way = 'mode'
    else:
        way = 'mount' if mounted_ro(folder, sh) else 'user'
    if way != 'mount':
        folder.chmod(0o555)
    if way == 'user':
        closed = {p: p.stat().st_mode for p in folder.parents if p.stat().st_mode & 0o11 != 0o11}
        for p, mode in closed.items():
            p.chmod(mode | 0o11)
        os.seteuid(65534)
    try:
        yield way
    finally:
        if way == 'user':
            os.seteuid(0)
            for p, mode in closed.items():
                p.chmod(mode)
        if way == 'mount':
            assert sh('umount', '-l')
        else:
            folder.chmod(0o755)


def mounted_ro(folder, sh):
    return sh('mount', '--bind', str(folder)) and (sh('mount', '-o', 'remount,ro,bind') or not sh('umount', '-l'))


# One process


def test_every_type_and_shape_comes_back_bit_by_bit(tmp_path):
    c, want = Checkpointer(tmp_path), some(3)
    want['model.float32'][0] = torch.tensor([float('nan'), float('-inf'), -0.0])
    extra = {'loss': 1.5, 'names': ['ä', None, True], 'nested': {'a': [1, 2]}}
    c.save(5, want, extra, wait=True)
    got = blank(want)
    assert c.load(got) == (5, extra) and same(got, want)
    assert (
        verify_checkpoint(path(tmp_path, 5)) == []
        and c.steps() == [5]
        and c.latest() == 5
        and c.failed == []
        and not hidden(tmp_path)
    )
    assert not [p for p in tmp_path.rglob('*') if p.suffix in ('.pkl', '.pt', '.distcp', '.metadata')]


@settings(max_examples=25)
@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=['Cs']), min_size=1, max_size=8).filter(
            lambda s: s != '__metadata__'
        ),
        st.tuples(st.sampled_from(dtypes), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 99)),
        max_size=5,
    ),
    st.integers(0, 10**9),
)
def test_any_names_shapes_and_types(spec, step):
    with tempfile.TemporaryDirectory() as d:
        want = {
            n: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(dtype)
            for n, (dtype, shape, seed) in spec.items()
        }
        c = Checkpointer(d)
        c.save(step, want, wait=True)
        got = blank(want)
        assert c.load(got) == (step, {}) and same(got, want)


def test_views_and_transposed_and_shared_tensors(tmp_path):
    base, c = torch.arange(24.0).reshape(4, 6), Checkpointer(tmp_path)
    want = {
        'row': base[1],
        'column': base[:, 2],
        'turned': base.t(),
        'tied': base,
        'grad': torch.nn.Parameter(base[:2]),
        'expanded': torch.ones(1).expand(5),
    }
    c.save(1, want, wait=True)
    into = torch.zeros(6, 8).t()[:, :6]  # not contiguous
    got = {
        'row': torch.zeros(6),
        'column': torch.zeros(4),
        'turned': torch.zeros(4, 6).t(),
        'tied': torch.nn.Parameter(torch.zeros(4, 6)),
        'grad': into[:2],
        'expanded': torch.zeros(5),
    }
    c.load(got)
    assert all(torch.equal(got[n], want[n]) for n in want) and into[2:].abs().sum() == 0


def test_a_save_takes_what_the_tensors_were(tmp_path):
    c, t = Checkpointer(tmp_path), {'w': torch.ones(1_000_000)}
    c.save(1, t)
    t['w'].fill_(2)
    c.save(2, t)
    t['w'].fill_(3)
    c.wait()
    for step in (1, 2):
        c.load(t, step)
        assert t['w'].eq(step).all()


def test_reading_waits_for_the_save_under_way(tmp_path):
    c, t = Checkpointer(tmp_path), {'w': torch.ones(3_000_000)}
    c.save(1, t)
    assert c.latest() == 1
    c.save(2, t)
    assert c.load(t)[0] == 2


def test_only_part_of_a_checkpoint_may_be_asked_for(saved):
    got = {'model.int64': torch.zeros(5, 3, dtype=torch.int64)}
    assert saved.load(got, 10) == (10, {'step': 10}) and torch.equal(got['model.int64'], some(10)['model.int64'])


@pytest.mark.parametrize('keep', [1, 2, 3])
def test_older_ones_go_when_the_new_one_is_there(tmp_path, keep):
    c = Checkpointer(tmp_path, keep)
    for s in (1, 2, 3, 4, 5):
        c.save(s, {'w': torch.ones(3) * s}, wait=True)
    assert c.steps() == [1, 2, 3, 4, 5][-keep:] and not hidden(tmp_path)


def test_keep_counts_good_ones(saved):
    flip(path(saved.folder, 20))
    saved.save(30, some(30), wait=True)
    assert saved.steps() == [10, 20, 30]  # two good ones, and the broken one between them
    saved.save(40, some(40), wait=True)
    assert saved.steps() == [30, 40]


def test_a_step_that_is_good_is_not_written_again(saved):
    saved.save(20, some(1))
    with pytest.raises(CheckpointError, match='step-00000020 is there already, and it is good'):
        saved.wait()
    got = blank(some())
    saved.load(got, 20)
    assert same(got, some(20)) and not hidden(saved.folder)


def test_a_step_that_is_broken_is_written_again(saved):
    flip(path(saved.folder, 20))
    with pytest.warns(UserWarning, match='step-00000020 is passed over: shard'):
        assert saved.latest() == 10
    saved.save(20, some(20), wait=True)
    assert saved.latest() == 20 and saved.steps() == [10, 20] and not hidden(saved.folder)


def test_an_earlier_step_may_be_saved_after_a_later_one(saved):
    saved.save(15, some(15), wait=True)
    assert saved.steps() == [15, 20]


@pytest.mark.parametrize('step', [-1, 1.5, True, '7', None])
def test_steps_are_whole_numbers(tmp_path, step):
    with pytest.raises(ValueError, match='step must be a whole number'):
        Checkpointer(tmp_path).save(step, {})


def test_large_steps(tmp_path):
    c = Checkpointer(tmp_path)
    for s in (99_999_999, 100_000_000, 2**70):
        c.save(s, {'w': torch.ones(1)}, wait=True)
    assert c.steps() == [100_000_000, 2**70] and c.latest() == 2**70


@pytest.mark.parametrize(
    'tensors, error, words',
    [
        ({'w': 3}, TypeError, "'w' is a int, not a tensor"),
        ({'w': torch.ones(2, device='meta')}, ValueError, 'meta device'),
        ({'': torch.ones(1)}, ValueError, "'' cannot be the name"),
        ({'__metadata__': torch.ones(1)}, ValueError, 'cannot be the name'),
        ({1: torch.ones(1)}, ValueError, '1 cannot be the name'),
        ({'w': torch.eye(2).to_sparse()}, ValueError, 'sparse'),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(tmp_path, tensors, error, words):
    c = Checkpointer(tmp_path)
    with pytest.raises(error, match=words):
        c.save(1, tensors)
    with pytest.raises(error, match=words):
        c.load(tensors)
    assert not list(tmp_path.iterdir())


def test_extra_must_be_json(tmp_path):
    with pytest.raises(TypeError):
        Checkpointer(tmp_path).save(1, {}, {'x': torch.ones(1)})
    with pytest.raises(ValueError):
        Checkpointer(tmp_path, keep=0)


def test_what_does_not_fit_is_named(saved):
    for got, words in [
        ({'model.flaot32': torch.zeros(5, 3)}, "there is no 'model.flaot32', did you mean 'model.float32'"),
        (
            {'model.float32': torch.zeros(3, 5)},
            r"'model.float32' was saved as torch.float32 \(5, 3\), not torch.float32 \(3, 5\)",
        ),
        ({'model.float32': torch.zeros(5, 3).half()}, 'not torch.float16'),
    ]:
        with pytest.raises(CheckpointError, match=words) as e:
            saved.load(got)
        assert len(e.value.problems) == 1 and not next(iter(got.values())).any()
    with pytest.raises(CheckpointError, match='and 92 more'):
        saved.load({f'x{i}': torch.zeros(1) for i in range(100)})


def test_no_checkpoint(tmp_path):
    c = Checkpointer(tmp_path / 'new' / 'run')
    assert c.steps() == [] and c.latest() is None and len(checkpoints(tmp_path / 'new' / 'run')) == 0
    with pytest.raises(FileNotFoundError, match='no good checkpoint'):
        c.load({})
    c.save(3, some(), wait=True)
    with pytest.raises(FileNotFoundError, match=r'no checkpoint of step 4 .* there are \[3\]'):
        c.load({}, 4)


def test_the_manifest_says_what_is_there(saved):
    p = path(saved.folder, 10)
    m = json.loads((p / 'manifest.json').read_text())
    assert m['format'] == 1 and m['step'] == 10 and m['world_size'] == 1 and m['versions']['torch'] == torch.__version__
    assert set(m['files']) == {f.name for f in p.iterdir()} - {'manifest.json'}
    for name, e in m['files'].items():
        assert e['bytes'] == (p / name).stat().st_size
        assert (
            subprocess.run(['sha256sum', str(p / name)], capture_output=True, text=True, timeout=100).stdout.split()[0]
            == e['sha256']
        )
    t = checkpoints(saved.folder)
    assert (
        t.column('step') == [10, 20]
        and t.column('good') == [True, True]
        and t[0]['bytes'] == sum(f.stat().st_size for f in p.iterdir())
    )
    assert {r['tensor'] for r in contents(p)} == set(some())


def test_export(saved, tmp_path):
    from safetensors.torch import load_file

    out = export_weights(path(saved.folder, 20), tmp_path / 'w.safetensors')
    assert same(load_file(out), {n[6:]: t for n, t in some(20).items() if n.startswith('model.')})
    assert set(load_file(export_weights(path(saved.folder, 20), tmp_path / 'o.safetensors', 'optim.'))) == {
        'state.0.step'
    }
    with pytest.raises(ValueError, match="starts with 'modle.'; there are a b"):
        export_weights(path(saved.folder, 20), tmp_path / 'x', 'modle.')
    with pytest.raises(ValueError, match='elsewhere'):
        export_weights(path(saved.folder, 20), path(saved.folder, 20) / 'w.safetensors')
    flip(path(saved.folder, 20))
    with pytest.raises(CheckpointError, match='checksum'):
        export_weights(path(saved.folder, 20), tmp_path / 'w.safetensors')
    assert verify_checkpoint(path(saved.folder, 10)) == [] and load_file(out)


# What is found


def shard(p):
    return next(p.glob('shard-*'))


def flip(p, at=-1):
    f = p if p.is_file() else shard(p)
    data = bytearray(f.read_bytes())
    data[at] ^= 4
    f.write_bytes(data)


def rewrite(p, change):
    "Change the manifest and seal it again, as one would who knows how"
    m = json.loads((p / 'manifest.json').read_text())
    change(m)
    m['seal'] = A._seal(m)
    (p / 'manifest.json').write_text(json.dumps(m))


def entry(p, name):
    return dict(bytes=Path(p, name).stat().st_size, sha256=A._sha256(Path(p, name)))


def to_link(p):
    f = shard(p)
    shutil.move(f, p.parent.parent / 'elsewhere')
    f.symlink_to(p.parent.parent / 'elsewhere')


def outside(p, name):
    (p.parent.parent / 'x').write_text('secret')
    rewrite(p, lambda m: m['files'].update({name: entry(p.parent.parent, 'x')}))


damages = dict(
    truncated=lambda p: os.truncate(shard(p), shard(p).stat().st_size // 2),
    longer=lambda p: shard(p).open('ab').write(b'x'),
    flipped=flip,
    emptied=lambda p: shard(p).write_bytes(b''),
    header=lambda p: flip(p, 9),
    extra=lambda p: flip(p / 'extra.json', 1),
    no_extra=lambda p: (p / 'extra.json').unlink(),
    deleted=lambda p: shard(p).unlink(),
    no_manifest=lambda p: (p / 'manifest.json').unlink(),
    cut_manifest=lambda p: os.truncate(p / 'manifest.json', 300),
    empty_manifest=lambda p: (p / 'manifest.json').write_text(''),
    date=lambda p: (p / 'manifest.json').write_text((p / 'manifest.json').read_text().replace('T', 't', 1)),
    binary=lambda p: (p / 'manifest.json').write_bytes(b'\xff\xfe\x00'),
    parent=lambda p: outside(p, '../../x'),
    absolute=lambda p: outside(p, str(p.parent.parent / 'x')),
    folder=lambda p: rewrite(p, lambda m: m['files'].update({'..': dict(bytes=1, sha256='')})),
    nul=lambda p: rewrite(p, lambda m: m['files'].update({'a\0b': dict(bytes=1, sha256='')})),
    linked=to_link,
    more=lambda p: (p / 'shard-00009-x.safetensors').write_bytes(b'x'),
    subfolder=lambda p: (p / 'sub').mkdir(),
    fifo=lambda p: (
        shard(p).rename(p.parent.parent / 'away'),
        os.mkfifo(p / 'shard-00001-model-00001-of-00001.safetensors'),
    ),
    manifest_fifo=lambda p: ((p / 'manifest.json').unlink(), os.mkfifo(p / 'manifest.json')),
    manifest_link=lambda p: (
        shutil.move(p / 'manifest.json', p.parent.parent / 'm'),
        (p / 'manifest.json').symlink_to(p.parent.parent / 'm'),
    ),
    list=lambda p: (p / 'manifest.json').write_text('[]'),
    number=lambda p: (p / 'manifest.json').write_text('3'),
    files=lambda p: (p / 'manifest.json').write_text('{"files": [1]}'),
    nested=lambda p: (p / 'manifest.json').write_text('{"files": {}, "x": ' + '[' * 900 + ']' * 900 + '}'),
    entry=lambda p: (p / 'manifest.json').write_text('{"files": {"extra.json": 3}}'),
    deep=lambda p: (p / 'manifest.json').write_text('[' * 200_000),
    types=lambda p: rewrite(p, lambda m: m['files']['extra.json'].update(bytes='2')),
    format=lambda p: rewrite(p, lambda m: m.update(format=2)),
    step=lambda p: rewrite(p, lambda m: m.update(step=21)),
    without=lambda p: rewrite(p, lambda m: m['files'].pop('extra.json')),
    nothing=lambda p: (shutil.rmtree(p), p.mkdir()),
    swapped=lambda p: (shutil.rmtree(p), shutil.copytree(p.with_name('step-00000010'), p)),
)


@pytest.mark.parametrize('how', damages)
def test_damage_is_found_and_the_older_one_taken(saved, how):
    p = path(saved.folder, 20)
    damages[how](p)
    assert verify_checkpoint(p)
    with pytest.warns(UserWarning, match='step-00000020 is passed over'):
        assert saved.latest() == 10
    got = blank(some())
    with pytest.raises(CheckpointError, match='step 20 does not verify') as e:
        saved.load(got, 20)
    assert e.value.problems == verify_checkpoint(p) and not got['model.float32'].any()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert saved.load(got) == (10, {'step': 10}) and same(got, some(10))
    t = checkpoints(saved.folder)
    assert t.column('good') == [True, False] and t[1]['problem']
    saved.save(30, some(30), wait=True)
    assert saved.latest() == 30 and 10 in saved.steps()


def test_every_flipped_byte_is_found(tmp_path):
    c = Checkpointer(tmp_path)
    c.save(1, {'w': torch.arange(4.0)}, {'a': 1}, wait=True)
    p = path(tmp_path, 1)
    for f in sorted(p.iterdir()):
        data = f.read_bytes()
        for at in range(len(data)):
            f.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            if f.name != 'manifest.json' or json_of(f) != json.loads(data):
                assert verify_checkpoint(p), (f.name, at)
        f.write_bytes(data)
    assert verify_checkpoint(p) == []


def json_of(f):
    try:
        return json.loads(f.read_text())
    except ValueError:
        return None


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(['files', 'step', 'format', 'seal', 'bytes', 'sha256', 'extra.json', 'x']),
                x,
                max_size=4,
            )
        ),
    )
)
def test_any_json_as_a_manifest_is_a_problem_and_no_crash(m):
    with tempfile.TemporaryDirectory() as d:
        Path(d, 'manifest.json').write_text(json.dumps(m))
        Path(d, 'extra.json').write_text('{}')
        assert verify_checkpoint(d)


def test_all_broken(saved):
    for s in (10, 20):
        flip(path(saved.folder, s))
    with pytest.warns(UserWarning):
        assert saved.latest() is None
        with pytest.raises(FileNotFoundError, match=r'there are \[10, 20\]'):
            saved.load(blank(some()))
    assert saved.steps() == [10, 20]


def test_verify_what_is_not_there(tmp_path):
    (tmp_path / 'file').write_text('')
    for p in ('gone', 'file'):
        assert 'is not a folder' in verify_checkpoint(tmp_path / p)[0]
    with pytest.raises(FileNotFoundError):
        checkpoints(tmp_path / 'gone')


# Folders


@pytest.mark.parametrize(
    'name',
    [
        'with spaces',
        'new\nline',
        '-rf',
        'ünïcode ☃',
        '$(touch x)',
        "quote'\"",
        '*',
        'a' * 200,
        'step-00000001',
        '.step-00000001.tmp-00000000',
        '%s{}',
    ],
)
def test_hostile_folder_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    c, got = Checkpointer(name), blank(some())
    c.save(1, some(1))
    monkeypatch.chdir('/')  # the folder is the one that was meant at the start
    c.wait()
    assert (
        c.load(got)[0] == 1
        and same(got, some(1))
        and verify_checkpoint(path(tmp_path / name, 1)) == []
        and os.listdir(tmp_path) == [name]
    )
    assert export_weights(path(tmp_path / name, 1), tmp_path / name / 'w.safetensors').stat().st_size


def test_a_name_that_is_not_utf8_is_refused_at_the_start(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        Checkpointer(os.fsdecode(bytes(tmp_path) + b'/\xff\xfe'))
    assert not os.listdir(tmp_path)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / 'f').write_text('mine')
    with pytest.raises(CheckpointError, match='cannot keep checkpoints in .*File exists'):
        Checkpointer(tmp_path / 'f')
    with pytest.raises(CheckpointError, match='Not a directory'):
        Checkpointer(tmp_path / 'f' / 'g')
    assert (tmp_path / 'f').read_text() == 'mine'


def test_a_folder_that_cannot_be_written(tmp_path):
    folder = tmp_path / 'run'
    c = Checkpointer(folder)
    c.save(1, some(1), wait=True)
    with read_only(folder):
        c.save(2, some(2))
        with pytest.raises(CheckpointError, match='step 2 was not saved: rank 0: (OSError|PermissionError)') as e:
            c.wait()
        assert [s for s, _ in c.failed] == [2] and str(e.value) == c.failed[0][1]
        got = blank(some())
        assert Checkpointer(folder).load(got)[0] == 1 and same(got, some(1))  # reading needs no writing
    c.save(2, some(2), wait=True)
    assert c.latest() == 2


def test_only_leftovers_are_removed(tmp_path):
    keep = [
        'step-00000001',
        '.step-00000001.tmp-xyz',
        '.step-1.tmp-00000000',
        'x.step-00000001.tmp-00000000',
        '.step-00000001.tmp-000000000',
        'notes',
        '.step-00000001.tmp-0000000G',
        '.step-00000001.tmp-00000000\n',
    ]
    for n in keep + ['.step-00000001.tmp-0a1b2c3d', '.step-123456789.tmp-00000000']:
        (tmp_path / n).mkdir()
    (tmp_path / 'outside').mkdir()
    (tmp_path / 'outside' / 'precious').write_text('x')
    (tmp_path / '.step-00000002.tmp-00000000').symlink_to(tmp_path / 'outside')
    (tmp_path / '.step-00000001.tmp-0a1b2c3d' / 'link').symlink_to(tmp_path / 'outside')
    (tmp_path / '.step-00000003.tmp-00000000').write_text('a file')
    Checkpointer(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(
        keep + ['outside', '.step-00000002.tmp-00000000', '.step-00000003.tmp-00000000']
    )
    assert (tmp_path / 'outside' / 'precious').read_text() == 'x'


def test_links_are_not_checkpoints(saved, tmp_path):
    (saved.folder / 'step-00000099').symlink_to(path(saved.folder, 10))
    assert saved.steps() == [10, 20] and saved.latest() == 20
    (saved.folder / 'step-00000099').unlink()
    (saved.folder / 'step-00000099').symlink_to(tmp_path)
    saved.save(99, some(99), wait=True)  # a link that leads to no checkpoint is replaced, not followed
    assert saved.steps() == [20, 99] and tmp_path.is_dir() and (tmp_path / 'run').is_dir()


# Full disks


def test_a_full_disk(tmp_path):
    with small_disk(tmp_path / 'disk') as kind:
        c, small, big = Checkpointer(tmp_path / 'disk'), {'w': torch.ones(1000)}, {'w': torch.ones(1_000_000)}
        c.save(1, small, wait=True)
        c.save(2, big)
        with pytest.raises(
            CheckpointError, match='step 2 was not saved: rank 0: OSError: .*(No space left|File too large)'
        ) as e:
            c.wait()
        assert c.failed == [(2, str(e.value))] and c.steps() == [1] and not hidden(c.folder)
        c.save(3, big)  # nobody waits: the run goes on
        c.save(4, small, wait=True)
        assert [s for s, _ in c.failed] == [2, 3] and c.latest() == 4 and c.steps() == [1, 4] and not hidden(c.folder)


def full_for_all(folder):
    r, c, out = dist.get_rank(), Checkpointer(folder), []
    c.save(1, {f'w{r}': torch.ones(100)}, wait=True)
    c.save(2, {f'w{r}': torch.ones(1_500_000 if r == 1 else 10)})
    try:
        c.wait()
    except CheckpointError as e:
        out.append(str(e))
    out += [c.failed, c.steps(), hidden(folder), c.latest()]
    c.save(3, {f'w{r}': torch.ones(100)}, wait=True)
    return out + [c.latest()]


def test_a_full_disk_on_one_rank_fails_on_all(tmp_path):
    with small_disk(tmp_path / 'disk'):
        got = on_ranks(full_for_all, 3, str(tmp_path / 'disk'), timeout=200)
        assert got[0] == got[1] == got[2]
        message, failed, steps, left, latest, after = got[0]
        assert (
            'rank 1: OSError' in message
            and 'rank 0' not in message
            and failed == [(2, message)]
            and steps == [1]
            and left == []
            and latest == 1
            and after == 3
        )


# Layouts


def whole():
    return {
        'model.w': numbers(0, 12, 8),
        'model.uneven': numbers(1, 5, 3),
        'model.few': numbers(2, 2, 7).bfloat16(),
        'model.column': numbers(3, 6, 10),
        'scalar': torch.tensor(3.5),
        'count': torch.tensor(4),
        'copy': numbers(5, 3).half(),
        'none': torch.zeros(0, 4),
    }


def spread(full, mesh, zero=False):
    "The whole state on a mesh, sharded in every way"
    two = mesh.ndim == 2
    how = {
        'model.w': [Shard(0), Shard(1)] if two else [Shard(0)],
        'model.uneven': [Shard(0), Shard(0)] if two else [Shard(0)],
        'model.few': [Replicate(), Shard(0)] if two else [Shard(0)],
        'model.column': [Shard(1), Replicate()] if two else [Shard(1)],
        'copy': [Replicate()] * mesh.ndim,
        'none': [Shard(1)] + [Replicate()] * (mesh.ndim - 1),
    }
    full = {n: t * 0 if zero else t for n, t in full.items()}
    return {n: distribute_tensor(t, mesh, how[n]) if n in how else t.clone() for n, t in full.items()}


def on_mesh(folder, shape, step=None, save=None):
    "Load on a mesh, say what came, and save from it"
    mesh, c = init_device_mesh('cpu', shape), Checkpointer(folder, keep=9)
    state = spread(whole(), mesh, zero=step is not None)
    at = c.load(state, step) if step is not None else None
    if save is not None:
        c.save(save, state, {'mesh': list(shape)}, wait=True)
    return at, {n: bits(t.full_tensor() if isinstance(t, DTensor) else t) for n, t in state.items()}


@pytest.mark.timeout(300)
def test_any_mesh_reads_what_any_mesh_wrote(tmp_path):
    want, d = {n: bits(t) for n, t in whole().items()}, str(tmp_path)
    chain = [
        (None, (4,), 1),
        (1, (2,), 2),
        (2, (1,), 3),
        (3, (2, 2), 4),
        (4, (3,), 5),
        (5, (2, 2), 6),
        (6, (4,), 7),
        (7, (1, 2), 8),
    ]
    for step, shape, save in chain:
        for at, got in on_ranks(on_mesh, torch.Size(shape).numel(), d, shape, step, save, timeout=200):
            assert got == want and (step is None or at[0] == step)
        assert verify_checkpoint(path(d, save)) == []
    got = blank(whole())
    for step, shape, save in chain:
        assert (
            Checkpointer(d, keep=9).load(got, save) == (save, {'mesh': list(shape)})
            and {n: bits(t) for n, t in got.items()} == want
        )
    export_weights(path(d, 4), tmp_path / 'out')
    from safetensors.torch import load_file

    assert same(load_file(tmp_path / 'out'), {n[6:]: t for n, t in whole().items() if n.startswith('model.')})


def fsdp_tp(folder, shape, step=None, save=None):
    "A model under tensor parallelism and FSDP with its AdamW states, after some steps or after loading"
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh('cpu', shape, mesh_dim_names=('dp', 'tp'))
    torch.manual_seed(0)
    m = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 7))  # 10 and 7 divide unevenly
    if shape[1] > 1:
        parallelize_module(m, mesh['tp'], {'0': ColwiseParallel(), '2': RowwiseParallel()})
    fully_shard(m, mesh=mesh['dp'])
    opt, opts = torch.optim.AdamW(m.parameters(), lr=0.01), StateDictOptions(flatten_optimizer_state_dict=True)

    def advance(a, b):
        for i in range(a, b):
            opt.zero_grad()
            m(torch.randn(4, 6, generator=torch.Generator().manual_seed(i))).square().mean().backward()
            opt.step()

    if step is None:
        advance(0, 3)
    else:
        advance(90, 91)  # makes the optimizer's states

    def state():
        o = get_optimizer_state_dict(m, opt, options=opts)
        numbers = {n: v for n, v in o.items() if not isinstance(v, torch.Tensor)}
        return {f'model.{n}': t for n, t in get_model_state_dict(m).items()} | {
            f'optim.{n}': t for n, t in o.items() if n not in numbers
        }, numbers

    c, (s, numbers) = Checkpointer(folder, keep=9), state()
    if step is not None:
        c.load(s, step)
        set_model_state_dict(m, {n[6:]: t for n, t in s.items() if n.startswith('model.')})
        set_optimizer_state_dict(
            m, opt, {n[6:]: t for n, t in s.items() if n.startswith('optim.')} | numbers, options=opts
        )
        s, _ = state()
    if save:
        c.save(save, s, wait=True)
    return {n: bits(t.full_tensor() if isinstance(t, DTensor) else t) for n, t in s.items()}


@pytest.mark.timeout(300)
def test_fsdp_and_tensor_parallel_with_adam(tmp_path):
    "Strided shards of uneven matrices, read by other meshes"
    d = str(tmp_path)
    first = on_ranks(fsdp_tp, 4, d, (2, 2), None, 1, timeout=200)
    assert all(f == first[0] for f in first) and any('exp_avg_sq' in n for n in first[0])
    for shape, step, save in [((2, 1), 1, 2), ((1, 2), 2, 3), ((1, 1), 3, 4), ((2, 2), 4, 5), ((4, 1), 5, 6)]:
        for got in on_ranks(fsdp_tp, shape[0] * shape[1], d, shape, step, save, timeout=200):
            assert got == first[0], (shape, step)


def stage(folder, splits, step=None, save=None):
    "Plain tensors that exist on one rank only, as in a pipeline, and some copied on all"
    r, c = dist.get_rank(), Checkpointer(folder)
    mine = {f'layers.{i}.w': numbers(i, 4, i + 1) for i in range(*splits[r])} | {'step': torch.tensor(17)}
    state = mine if step is None else blank(mine)
    if step is not None:
        c.load(state, step)
    if save:
        c.save(save, state, wait=True)
    return same(state, mine), c.failed


def test_pipeline_stages_cut_elsewhere(tmp_path):
    d = str(tmp_path)
    assert on_ranks(stage, 3, d, [(0, 3), (3, 5), (5, 8)], None, 1) == [(True, [])] * 3
    assert (
        len({r['file'] for r in contents(path(d, 1))}) == 3
        and sum(r['tensor'] == 'step' for r in contents(path(d, 1))) == 1
    )
    assert on_ranks(stage, 2, d, [(0, 6), (6, 8)], 1, 2) == [(True, [])] * 2
    assert on_ranks(stage, 4, d, [(0, 1), (1, 1), (1, 4), (4, 8)], 2, 3) == [(True, [])] * 4  # a stage without layers
    assert on_ranks(stage, 1, d, [(0, 8)], 3) == [(True, [])]


def differ(folder, what):
    r, c = dist.get_rank(), Checkpointer(folder)
    mesh = init_device_mesh('cpu', (2,))
    if what == 'shape':
        t = torch.ones(3 + r)
    if what == 'type':
        t = torch.ones(3, dtype=[torch.float32, torch.float64][r])
    if what == 'kind':
        t = (
            torch.ones(4)
            if r
            else DTensor.from_local(
                torch.ones(2), mesh, [Shard(0)], run_check=False, shape=torch.Size([4]), stride=(1,)
            )
        )
    if what == 'partial':
        t = DTensor.from_local(torch.ones(2), mesh, [Partial()])
    try:
        c.save(1, {'w': t}, wait=True)
    except (CheckpointError, ValueError) as e:
        return str(e), c.failed, c.steps(), hidden(folder)


@pytest.mark.parametrize(
    'what, words',
    [
        ('shape', "'w' is torch.float32 (3,) on rank 0 and torch.float32 (4,) on rank 1"),
        ('type', 'torch.float64 (3,) on rank 1'),
        ('kind', 'step 1 was not saved'),
        ('partial', 'has not been taken'),
    ],
)
def test_copies_that_differ_are_refused(tmp_path, what, words):
    a, b = on_ranks(differ, 2, str(tmp_path), what)
    assert a == b and words in a[0] and a[2:] == ([], [])


def misfit(folder):
    r, c = dist.get_rank(), Checkpointer(folder)
    c.save(1, {'w': torch.ones(3)}, wait=True)
    try:
        c.load({'w': torch.ones(3)} if r == 0 else {'v': torch.ones(3)})
    except CheckpointError as e:
        return str(e)


def test_what_fits_on_one_rank_only_fails_on_all(tmp_path):
    assert on_ranks(misfit, 2, str(tmp_path)) == ["step 1 does not fit: rank 1: there is no 'v'"] * 2


def damaged(folder, victims):
    r, c = dist.get_rank(), Checkpointer(folder)
    for s in (1, 2):
        c.save(s, {f'w{r}': torch.ones(50) * s}, {'at': s}, wait=True)
    if r == 0:
        flip(next(path(folder, 2).glob(f'shard-0000{victims}-*')))
    dist.barrier()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        got = {f'w{r}': torch.zeros(50)}
        at = c.load(got)
    try:
        c.load(got, 2)
    except CheckpointError as e:
        return c.latest(), at, got[f'w{r}'].sum().item(), e.problems


@pytest.mark.parametrize('victim', [1, 2, 3])
def test_ranks_share_the_checking_and_agree(tmp_path, victim):
    got = on_ranks(damaged, 3, str(tmp_path), victim)
    assert (
        got
        == [
            (
                1,
                (1, {'at': 1}),
                50.0,
                [f'shard-0000{victim}-model-00001-of-00001.safetensors does not have the checksum it was written with'],
            )
        ]
        * 3
    )


def unusable(folder):
    try:
        Checkpointer(folder)
    except CheckpointError as e:
        return str(e)


def test_all_ranks_hear_of_an_unusable_folder(tmp_path):
    (tmp_path / 'f').write_text('')
    a, b = on_ranks(unusable, 2, str(tmp_path / 'f'))
    assert a == b and 'rank 0: FileExistsError' in a


# Killed


def value(step, r):
    return torch.full((400_000,), float(step)) + r


def run(folder, steps, die=None, timeout=60.0):
    """Train for some steps and save each; `die` maps a rank to seconds after which it kills itself; what a survivor
    saw goes to a file
    """
    r, c = dist.get_rank(), Checkpointer(folder, timeout=timeout)
    if die and r in die:
        import threading

        threading.Timer(die[r], lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    for s in steps:
        c.save(s, {f'w{r}': value(s, r), 'all': value(s, 0)}, {'at': s})
        try:
            c.wait()
        except CheckpointError as e:
            Path(folder).with_name(f'saw{r}').write_text(str(e))
            time.sleep(30)  # the launcher ends us
    return c.latest()


def resumed(folder):
    r, c = dist.get_rank(), Checkpointer(folder)
    got = {f'w{r % 2}': torch.zeros(400_000), 'all': torch.zeros(400_000)}
    step, extra = c.load(got)
    return (
        step,
        extra == {'at': step},
        torch.equal(got[f'w{r % 2}'], value(step, r % 2)) and torch.equal(got['all'], value(step, 0)),
        hidden(folder),
    )


@pytest.mark.sweep(5)
@pytest.mark.parametrize('seed', range(10))
def test_killed_at_any_moment(tmp_path, seed):
    "One rank, or all, at a random moment of a save: the last good one loads, on as many ranks or on one"
    rng, d = random.Random(seed), str(tmp_path / 'run')
    on_ranks(run, 2, d, [1], timeout=200)
    first = rng.uniform(0, 0.25)
    die = {rng.randrange(2): first} if seed % 2 else {0: first, 1: first + rng.uniform(0, 0.01)}
    with pytest.raises(RankError, match='SIGKILL'):
        on_ranks(run, 2, d, range(2, 1000), die, timeout=200)
    for t in checkpoints(d):
        assert t['good'], t  # what has a checkpoint's name is one
    for n in (1, 2):
        got = on_ranks(resumed, n, d, timeout=200)
        assert len({g[0] for g in got}) == 1 and all(g[1:] == (True, True, []) for g in got), got


def test_survivors_hear_of_it_at_once(tmp_path):
    d = str(tmp_path / 'run')
    with pytest.raises(RankError, match='SIGKILL'):
        on_ranks(run, 3, d, range(1, 1000), {1: 0.3}, timeout=200)
    seen = [tmp_path / 'saw0', tmp_path / 'saw2']
    assert any(p.exists() for p in seen) and all(
        'has lost another rank' in p.read_text() or 'was not saved' in p.read_text() for p in seen if p.exists()
    )


def late(folder):
    r, c = dist.get_rank(), Checkpointer(folder, timeout=2)
    t0 = time.monotonic()
    if r == 1:
        time.sleep(10)
        return 'absent'
    c.save(1, {'w': torch.ones(3)})
    try:
        c.wait()
    except CheckpointError as e:
        return str(e), time.monotonic() - t0 < 9, hidden(folder)


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(tmp_path):
    a, b = on_ranks(late, 2, str(tmp_path), timeout=200)
    assert b == 'absent' and 'step 1 was not saved' in a[0] and a[1:] == (True, [])


child = '''
import sys, torch
c = Checkpointer(sys.argv[1])
print('ready', flush=True)
for s in range(2, 10_000): c.save(s, {'w': torch.full((2_000_000,), float(s))}, {'at': s}); print(s, flush=True)
'''


@pytest.mark.parametrize('seed', range(4))
def test_one_process_killed_while_it_saves(tmp_path, seed):
    c = Checkpointer(tmp_path)
    c.save(1, {'w': torch.ones(2_000_000)}, {'at': 1}, wait=True)
    p = subprocess.Popen([sys.executable, '-c', child, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        p.stdout.readline()
        p.stdout.readline()
        time.sleep(random.Random(seed).uniform(0, 0.2))
    finally:
        p.kill()
        p.communicate(timeout=100)
    got = {'w': torch.zeros(2_000_000)}
    c = Checkpointer(tmp_path)
    step, extra = c.load(got)
    assert (
        extra == {'at': step}
        and got['w'].eq(step).all()
        and not hidden(tmp_path)
        and all(checkpoints(tmp_path).column('good'))
    )


def test_a_program_that_ends_without_waiting_still_saves(tmp_path):
    code = (
        "import sys, torch\nfrom fsdl_tools.training.checkpoint import Checkpointer\nCheckpointer(sys.argv[1]).save(7,"
        " {'w': torch.ones(5_000_000)})"
    )
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True, timeout=200)
    assert checkpoints(tmp_path).column('good') == [True]


def test_killed_between_any_two_steps_of_the_end(tmp_path, monkeypatch):
    "Stop at each call that changes the disk, as a power cut would, and look at what is there"

    class Cut(BaseException):
        pass

    def go(n):
        left, d = [n], tmp_path / str(n)
        c = Checkpointer(d, keep=1)
        c.save(1, some(1), wait=True)

        def cut(real):
            def call(*a, **kw):
                left[0] -= 1
                if left[0] < 0:
                    raise Cut
                return real(*a, **kw)

            return call

        with monkeypatch.context() as m:
            for o, name in [(os, 'rename'), (os, 'fsync'), (os, 'unlink'), (os, 'rmdir'), (os, 'mkdir')]:
                m.setattr(o, name, cut(getattr(o, name)))
            try:
                c._write(2, some(2), '{}')
                c._prune(2)
            except (Cut, CheckpointError):
                pass
        got = blank(some())
        step, _ = Checkpointer(d).load(got)
        assert same(got, some(step)) and all(checkpoints(d).column('good')) and not hidden(d)
        return step, left[0] >= 0

    seen = []
    for n in range(60):
        seen.append(go(n))
        if seen[-1][1]:
            break
    assert seen[0] == (1, False) and seen[-1] == (2, True) and [s for s, _ in seen] == sorted(s for s, _ in seen)
