"""Ranks that fail in every way, seen from outside: the error names the rank, comes in time, and leaves no process
and no port behind
"""

import faulthandler, multiprocessing, os, signal, socket, subprocess, sys, textwrap, time
from pathlib import Path
import pytest
import torch
import torch.distributed as dist
from fsdl_tools.parallel import collectives as C, ranks
from fsdl_tools.parallel.collectives import CommCounter, wire_bytes
from fsdl_tools.parallel.ranks import RankError, RankTimeout, on_ranks

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')


def children(pid=None):
    "Processes whose parent is `pid`, whatever their state"
    out = []
    for p in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = p.read_text().rsplit(')', 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == (pid or os.getpid()):
            out.append(int(p.parent.name))
    return out


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def listening():
    "Ports on which somebody listens"
    rows = [
        l.split()
        for f in ('tcp', 'tcp6')
        if Path(f'/proc/net/{f}').exists()
        for l in Path(f'/proc/net/{f}').read_text().splitlines()[1:]
    ]
    return {int(r[1].rsplit(':', 1)[1], 16) for r in rows if r[3] == '0A'}


def sockets_of(pids):
    "Inodes of sockets that these processes hold"
    out = set()
    for pid in pids:
        for fd in Path(f'/proc/{pid}/fd').glob('*'):
            try:
                out.add(os.readlink(fd))
            except OSError:
                pass
    return {s for s in out if s.startswith('socket:')}


@pytest.fixture(autouse=True)
def nothing_left():
    "No child process and no open descriptor more than before"
    if not sys.platform.startswith('linux'):
        yield
        return
    on_ranks(rank, 1)  # what is made once a process, is made now
    before, fds = set(children()), len(os.listdir('/proc/self/fd'))
    yield
    assert set(children()) <= before  # one of an earlier test may end meanwhile
    assert len(os.listdir('/proc/self/fd')) <= fds


def rank():
    return dist.get_rank()


def misbehave(who, how, pids=None):
    if pids:
        Path(pids, str(dist.get_rank())).write_text(str(os.getpid()))
    if dist.get_rank() == who:
        if how == 'raise':
            raise KeyError('no such layer')
        if how == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        if how == 'exit':
            os._exit(7)
        if how == 'sys.exit':
            sys.exit('bye')
        if how == 'abort':
            os.abort()
        if how == 'stop':
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == 'sleep':
            time.sleep(600)
        if how == 'spin':
            while True:
                pass
        if how == 'absent':
            return
        if how == 'interrupt':
            raise KeyboardInterrupt
        if how == 'lambda':
            return lambda: None
    dist.all_reduce(torch.ones(10))


@pytest.mark.parametrize(
    'how, words',
    [
        ('raise', "raised KeyError: 'no such layer'"),
        ('kill', 'was killed by SIGKILL'),
        ('exit', 'ended with exit code 7'),
        ('sys.exit', "called sys.exit('bye')"),
        ('abort', 'was killed by SIGABRT'),
        ('interrupt', 'raised KeyboardInterrupt'),
    ],
)
@pytest.mark.parametrize('who', [0, 2])
def test_a_rank_that_ends_badly_is_named(how, words, who):
    t0 = time.monotonic()
    with pytest.raises(RankError, match=f'rank {who} of 3') as e:
        on_ranks(misbehave, 3, who, how, timeout=30)
    assert words in str(e.value) and e.value.rank == who
    assert time.monotonic() - t0 < 10
    if how == 'abort':
        assert 'in misbehave' in e.value.detail


def test_a_crash_leaves_its_stack_whoever_took_the_signal_before():
    faulthandler.enable()
    before = signal.signal(
        signal.SIGABRT, signal.SIG_DFL
    )  # what Lightning's trainer does when it gives the signals back
    try:
        with pytest.raises(RankError) as e:
            on_ranks(misbehave, 3, 1, 'abort', timeout=30)
        assert 'in misbehave' in e.value.detail
    finally:
        signal.signal(signal.SIGABRT, before)
        faulthandler.disable()
        faulthandler.enable(sys.__stderr__)


@pytest.mark.alone
@pytest.mark.parametrize(
    'how, words',
    [
        ('sleep', 'rank 1 is in misbehave'),
        ('spin', 'rank 1 is in misbehave'),
        ('stop', 'rank 1 is'),
        ('absent', 'rank 1 had returned'),
    ],
)
def test_a_rank_that_does_not_come_is_named(how, words, tmp_path):
    t0 = time.monotonic()
    with pytest.raises(RankTimeout, match='not done within 2 s') as e:
        on_ranks(misbehave, 3, 1, how, str(tmp_path), timeout=2)
    assert (
        words in str(e.value)
        and 'rank 0 waits in all_reduce' in str(e.value)
        and 'rank 2 waits in all_reduce' in str(e.value)
    )
    assert time.monotonic() - t0 < 8
    assert e.value.rank == (0 if how == 'absent' else 1)
    assert not [p for p in tmp_path.iterdir() if alive(int(p.read_text()))]


def test_the_traceback_shows_the_line():
    with pytest.raises(RankError, match='in misbehave') as e:
        on_ranks(misbehave, 2, 1, 'raise')
    assert "raise KeyError('no such layer')" in e.value.detail


def test_a_result_that_cannot_be_pickled():
    def nothing_to_send():
        return lambda: None

    with pytest.raises(RankError, match='rank [01] of 2 raised .*(pickle|local)'):
        on_ranks(nothing_to_send, 2)


def test_every_rank_raises():
    def fail():
        raise ValueError(f'from {dist.get_rank()}')

    with pytest.raises(RankError, match='rank [012] of 3 raised ValueError'):
        on_ranks(fail, 3)


@pytest.mark.parametrize(
    'n, error',
    [(0, ValueError), (-1, ValueError), (1000, ValueError), (2.5, TypeError), (True, TypeError), ('4', TypeError)],
)
def test_worlds_that_cannot_be(n, error):
    with pytest.raises(error):
        on_ranks(rank, n)


@pytest.mark.parametrize(
    'wrong, words',
    [
        (dict(timeout=0), 'timeout must be positive'),
        (dict(device='gpu'), "unknown device 'gpu'"),
        (dict(timeout=float('inf')), 'finite'),
    ],
)
def test_arguments_that_cannot_be(wrong, words):
    with pytest.raises(ValueError, match=words):
        on_ranks(rank, 2, **wrong)


def test_a_thousand_ranks_names_the_first_that_would_not_start():
    with pytest.raises(ValueError, match='1,000 ranks asked for, ranks 64 and up'):
        on_ranks(rank, 1000)


@linux
def test_a_port_that_is_taken_and_one_that_is_not():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(OSError, match=f'rank 0 cannot listen on port {port}'):
            on_ranks(rank, 2, port=port)
    assert on_ranks(rank, 2, port=port) == [0, 1]
    assert port not in listening()
    assert on_ranks(rank, 2, port=port) == [0, 1]  # at once again


@linux
def test_no_port_is_left(tmp_path):
    on_ranks(misbehave, 3, 9, 'none', str(tmp_path), port=0)
    with pytest.raises(RankError):
        on_ranks(misbehave, 3, 1, 'kill', str(tmp_path), port=0)
    assert not sockets_of([int(p.read_text()) for p in tmp_path.iterdir()])


@linux
def test_children_of_ranks_die_with_them(tmp_path):
    def with_child():
        p = subprocess.Popen(['sleep', '600'])
        (tmp_path / str(dist.get_rank())).write_text(str(p.pid))
        if dist.get_rank() == 1:
            time.sleep(600)

    with pytest.raises(RankTimeout):
        on_ranks(with_child, 2, timeout=2)
    time.sleep(0.2)
    assert not [p for p in tmp_path.iterdir() if alive(int(p.read_text()))]


@linux
def test_ranks_die_with_their_launcher(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        textwrap.dedent(f'''
        import os, sys, time
        from pathlib import Path
        from fsdl_tools.parallel.ranks import on_ranks
        def work():
            Path({str(tmp_path)!r}, os.environ['RANK'] + '.pid').write_text(str(os.getpid()))
            time.sleep(600)
        on_ranks(work, 3, timeout=500)
    ''')
    )
    p = subprocess.Popen([sys.executable, str(script)], env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)})
    end = time.monotonic() + 60
    while len(list(tmp_path.glob('*.pid'))) < 3 and time.monotonic() < end:
        time.sleep(0.1)
    pids = [int(f.read_text()) for f in tmp_path.glob('*.pid')]
    assert len(pids) == 3
    p.kill()
    p.wait()
    end = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, pids))


def test_results_prints_and_large_values(capsys):
    def work(n):
        print('hello from', dist.get_rank())
        os.write(1, b'not forwarded')
        return torch.full((n,), float(dist.get_rank())), 'x' * n

    out = on_ranks(work, 3, 1_000_000)
    assert [t[0].item() for t, _ in out] == [0, 1, 2] and len(out[2][1]) == 1_000_000
    assert capsys.readouterr().out == '[rank 0] hello from 0\n[rank 1] hello from 1\n[rank 2] hello from 2\n'


def test_the_variables_of_torchrun():
    def work():
        return [
            os.environ[k] for k in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MORE')
        ], dist.is_initialized()

    assert on_ranks(work, 2, init=False, env=dict(MORE='yes')) == [
        (['0', '0', '2', '127.0.0.1', 'yes'], False),
        (['1', '1', '2', '127.0.0.1', 'yes'], False),
    ]
    assert 'MORE' not in os.environ


def test_spawn_works_for_importable_functions():
    from multiprocessing import resource_tracker

    assert on_ranks(C.check_against_torch, 2, (5,), start='spawn', timeout=120)[0] < 1e-6
    resource_tracker._resource_tracker._stop()  # the one helper that multiprocessing keeps after a spawn


def test_spawn_refuses_what_it_cannot_import():
    with pytest.raises(ValueError, match='must be defined in a module'):
        on_ranks(lambda: 1, 2, start='spawn')


def test_from_threads_at_the_same_time():
    from concurrent.futures import ThreadPoolExecutor

    before = set(multiprocessing.active_children())
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: on_ranks(rank, 2), range(24))) == [[0, 1]] * 24
    assert set(multiprocessing.active_children()) <= before


def test_every_rank_is_stopped_though_one_cannot_be(monkeypatch):
    stop, pids = ranks._Rank.stop, []

    def stubborn(r):
        pids.append(r.proc.pid)
        stop(r)
        if r.rank == 2:
            raise ValueError('Cannot close a process')

    monkeypatch.setattr(ranks._Rank, 'stop', stubborn)
    with pytest.raises(ValueError, match='Cannot close'):
        on_ranks(rank, 3)
    assert len(pids) == 3 and not any(Path(f'/proc/{p}').exists() for p in pids)


def test_ranks_of_a_rank():
    def outer():
        return on_ranks(rank, 2)

    assert on_ranks(outer, 2, init=False, timeout=30) == [[0, 1]] * 2


def test_twenty_times_in_a_row():
    for _ in range(20):
        assert on_ranks(rank, 2) == [0, 1]


def test_dataloader_workers_inside_ranks():
    def work():
        return sum(int(b.sum()) for b in torch.utils.data.DataLoader(torch.arange(100), batch_size=10, num_workers=2))

    assert on_ranks(work, 2) == [4950, 4950]


def test_launch_within_a_group_is_refused():
    def nested():
        return on_ranks(rank, 2)

    with pytest.raises(RankError, match='already a member'):
        on_ranks(nested, 2)


@linux
@pytest.mark.alone
@pytest.mark.parametrize('n', [2, 3, 5])
def test_bytes_on_the_wire(n):
    numel = 240_000
    for name in [*C.all_reduces, 'torch']:
        paper = C.sent_by_rank(C.all_reduces.get(name, C.ring_all_reduce)(n), numel)
        runs = [on_ranks(C.measure_bytes, n, numel, name) for _ in range(1 if n < 4 else 3)]
        for r, tries in enumerate(zip(*runs)):
            assert all(got['counted'] == paper[r] <= got['wire'] for got in tries)
            assert (
                min(got['wire'] for got in tries) < 1.05 * paper[r] + 200_000
            )  # headers; and on a busy machine TCP sends things again


def test_the_counter_sees_functional_and_sharded_collectives():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def work():
        n = dist.get_world_size()
        model = torch.nn.Linear(64, 64, bias=False)
        fully_shard(model, mesh=init_device_mesh('cpu', (n,)))
        with CommCounter() as c:
            model(torch.ones(2, 64)).sum().backward()
        part = torch.distributed._functional_collectives
        with CommCounter() as f:
            part.all_gather_tensor(torch.ones(8), 0, list(range(n))).sum().item()
            part.all_reduce(torch.ones(8), 'sum', list(range(n))).sum().item()
        return dict(c.payload), f.payload['all_gather'], f.payload['all_reduce'], f.total

    n, size = 4, 64 * 64 * 4
    payload, gathered, reduced, total = on_ranks(work, n)[0]
    assert payload['reduce_scatter'] == size and payload['all_gather'] in (size, 2 * size)
    assert (gathered, reduced) == (8 * 4 * n, 32) and total == 3 / 4 * 8 * 4 * n + 2 * 3 / 4 * 32


def test_subgroups_are_counted_with_their_own_size():
    def work():
        pair = dist.new_group([0, 1])
        with CommCounter() as c:
            if dist.get_rank() < 2:
                dist.all_reduce(torch.ones(100), group=pair)
        return c.total

    assert on_ranks(work, 4) == [400, 400, 0, 0]


def test_wrong_uses_of_execute():
    def strided():
        C.all_reduce(torch.ones(4, 4).t())

    def wrong_world():
        C.execute(C.ring_all_reduce(5), torch.ones(4))

    with pytest.raises(RankError, match='contiguous'):
        on_ranks(strided, 2)
    with pytest.raises(RankError, match='a timetable for 5 ranks, a group of 2'):
        on_ranks(wrong_world, 2)
    with pytest.raises(ValueError, match='adds a rank twice'):
        C.simulate_ring(C.Schedule('bad', 2, 1, ((C.Send(0, 1, 0, True),), (C.Send(0, 1, 0, True),))))
