"""A Pod played by podman: strings, ranks that find each other, faults, and nothing left behind"""

import contextlib, os, shutil, subprocess, sys, time
from pathlib import Path
import pytest
from fsdl_tools.operations.containers import Container, Docker
from fsdl_tools.operations.launch import Job, Secret
from fsdl_tools.operations.targets import TargetError, target
from .conftest import debian, scratch
from .hostile import corpus, expected, probe, received, variables

pytestmark = pytest.mark.timeout(500)
python = os.path.realpath(sys.executable)
conf = '''[containers]
default_ulimits=["nofile=1024:1024","nproc=4096:4096"]
netns="host"
[engine]
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="file"
'''


@pytest.fixture(scope='module')
def pod(tmp_path_factory):
    "podman with a store of its own; an image of nothing, into which the host's folders are mounted"
    debian('podman runc buildah catatonit', ['podman', 'runc', 'buildah', 'catatonit'])
    if os.geteuid():
        pytest.skip('runc without root needs more set up than a test should do')
    top = tmp_path_factory.mktemp('podman')
    scratch.append(str(top))
    (top / 'containers.conf').write_text(conf)
    (top / 'storage.conf').write_text(f'[storage]\ndriver="vfs"\ngraphroot="{top}/graph"\nrunroot="{top}/run"\n')
    before = {k: os.environ.get(k) for k in ('CONTAINERS_CONF', 'CONTAINERS_STORAGE_CONF', 'TMPDIR', 'PATH')}
    os.environ.update(
        CONTAINERS_CONF=str(top / 'containers.conf'),
        CONTAINERS_STORAGE_CONF=str(top / 'storage.conf'),
        TMPDIR=str(top),
        PATH=os.environ.get('PATH', '') + ':/usr/sbin:/sbin',
    )  # iptables stands there
    (top / 'work').mkdir()
    (top / 'empty').mkdir()
    wanted = [
        '/usr',
        '/lib',
        '/lib64',
        '/bin',
        sys.base_prefix,
        sys.prefix,
        str(Path(__file__).parent.parent.parent),
        str(top / 'work'),
    ]
    t = Container(
        python=os.path.join(os.path.realpath(sys.prefix), 'bin', 'python'),
        mounts=tuple(dict.fromkeys(os.path.realpath(m) if m == sys.prefix else m for m in wanted if Path(m).is_dir())),
    )
    try:
        t.build(Job('image', ('true',), image='localhost/fsdl-test:1'), context=top / 'empty')
        yield t, top / 'work'
    finally:
        for words in (
            ['podman', 'pod', 'rm', '--all', '--force', '--time', '1'],
            ['podman', 'rmi', '--all', '--force'],
        ):
            subprocess.run(words, capture_output=True, timeout=60)
        for k, v in before.items():
            os.environ.pop(k, None) if v is None else os.environ.update({k: v})
        subprocess.run(['umount', str(top / 'graph')], capture_output=True)
        shutil.rmtree(top)


def job(*command, **kw):
    return Job(**dict(name='probe', command=command, image='localhost/fsdl-test:1', time=300, grace=2) | kw)


def test_520_strings_in_two_containers(pod):
    t, work = pod
    (work / 'secret').write_text('canary-0c11')
    strings = corpus()
    j = job(
        python,
        '-c',
        probe,
        str(work / 'got-'),
        *strings,
        env=variables(strings),
        nodes=2,
        secrets=[Secret('SECRET', 'file', str(work / 'secret'))],
    )
    h = t.submit(j)
    assert t.wait(h, 200).state == 'succeeded', t.logs(h)
    for rank in (0, 1):
        assert received(work / 'got-', rank) == expected(strings)
    shown = subprocess.run(['podman', 'inspect', 'probe-node-0'], capture_output=True, text=True).stdout
    assert len(shown) > 1000 and 'canary-0c11' not in shown
    with pytest.raises(TargetError, match='there already'):
        t.submit(j)
    t.cancel(h)
    with pytest.raises(TargetError, match='no Pod'):
        t.status(h)
    t.cancel(h)  # once more, when it is gone


def test_a_failure_is_said_and_a_stop_is_heard(pod):
    t, work = pod
    h = t.submit(job('/bin/sh', '-c', 'echo a word; exit 3', name='fails'))
    assert t.wait(h, 200).detail == 'exit 3' and 'a word' in t.logs(h)
    t.cancel(h)
    code = (
        f'import signal, sys, time; signal.signal(15, lambda *_: (open({str(work / "saved")!r}, "w").close(),'
        ' sys.exit(143))); print("up", flush=True); time.sleep(60)'
    )
    h = t.submit(job(python, '-c', code, name='stops'))  # process 1 of its container
    end = time.monotonic() + 150
    while 'up' not in t.logs(h) and time.monotonic() < end:
        time.sleep(0.1)
    t.cancel(h)
    assert (work / 'saved').exists()


def test_what_cannot_be_played_leaves_nothing(pod):
    t, work = pod
    with pytest.raises(TargetError):
        t.submit(job('true', name='no-image', image='localhost/none:1'))
    assert (
        subprocess.run(['podman', 'pod', 'ps', '--format', '{{.Name}}'], capture_output=True, text=True).stdout.split()
        == []
    )


def test_a_full_disk_leaves_no_pod(pod, small_disk):
    "podman's own store is full: the reason is said, nothing of the Pod stays, and it plays when there is room again"
    t, work = pod
    disk = small_disk(os.environ['TMPDIR'] + '/run', '256k')
    with open(disk / 'full', 'wb') as f, contextlib.suppress(OSError):
        f.write(bytes(1 << 20))
    with pytest.raises(TargetError, match='no space left|No space left'):
        t.submit(job('/bin/sh', '-c', 'true', name='full'))
    subprocess.run(['umount', '--lazy', str(disk)], check=True)
    assert (
        subprocess.run(['podman', 'pod', 'ps', '--format', '{{.Name}}'], capture_output=True, text=True).stdout.split()
        == []
    )
    h = t.submit(job('/bin/sh', '-c', 'true', name='full'))
    assert t.wait(h, 200).state == 'succeeded'
    t.cancel(h)


@pytest.fixture
def docker(pod, tmp_path, monkeypatch):
    "Docker's own client, and podman's service, which speaks Docker's protocol, in place of its engine"
    if not shutil.which('docker'):
        pytest.skip('the docker client is not installed')
    t, work = pod
    place = tmp_path / 'docker.sock'
    service = subprocess.Popen(
        ['podman', 'system', 'service', '--time', '0', f'unix://{place}'],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    monkeypatch.setenv('DOCKER_HOST', f'unix://{place}')
    monkeypatch.setenv('DOCKER_BUILDKIT', '0')
    end = time.monotonic() + 60
    while not place.exists() and time.monotonic() < end:
        time.sleep(0.05)
    try:
        yield Docker(python=t.python, mounts=t.mounts), work
    finally:
        service.terminate()
        service.wait(30)


def test_the_same_by_docker(docker):
    t, work = docker
    assert t.doctor().rows[0]['what'] == 'docker'
    strings = corpus()
    j = job(python, '-c', probe, str(work / 'by-docker-'), *strings, env=variables(strings), nodes=2, name='ship')
    h = t.submit(j)
    assert str(h) == 'docker:ship' and isinstance(target(h.target), Docker)
    assert t.wait(h, 200).state == 'succeeded', t.logs(h)
    for rank in (0, 1):
        assert received(work / 'by-docker-', rank) == expected(strings)
    with pytest.raises(TargetError, match='there already'):
        t.submit(j)
    t.cancel(h)
    with pytest.raises(TargetError, match='no Pod'):
        t.status(h)
    t.cancel(h)  # once more, when it is gone
    h = t.submit(job('/bin/sh', '-c', 'echo a word; exit 3', name='fails'))
    assert t.wait(h, 200).detail == 'exit 3' and 'a word' in t.logs(h)
    t.cancel(h)
    with pytest.raises(TargetError):
        t.submit(job('true', name='no-image', image='localhost/none:1'))
    assert t._names('no-image') == []
    assert t.check(job('true').replace(name='Tiny')) and 'docker has no secret' in str(
        t.check(job('true', secrets=[Secret('A', 'kubernetes', 'a/b')]))
    )
