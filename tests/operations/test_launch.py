"""One job rendered for every target: read back, checked, and byte for byte at the process"""

import ast, contextlib, json, os, signal, statistics, subprocess, sys, time
from pathlib import Path
import psutil
import pytest
from hypothesis import given, settings, strategies as st
from fsdl_tools.units import GiB
from fsdl_tools.operations import launch, local
from fsdl_tools.operations.clouds import Anyscale, Determined, SageMaker, SkyPilot
from fsdl_tools.operations.kubeflow import PyTorchJob, TrainJob, upgrade_job
from fsdl_tools.operations.containers import Container, check_containerfile, containerfile
from fsdl_tools.operations.kubernetes import Kubernetes
from fsdl_tools.operations.manifests import expand, from_yaml
from fsdl_tools.operations.launch import Job, Limits, Secret, seal, unseal
from fsdl_tools.operations.targets import Handle, Status, TargetError, places, target
from fsdl_tools.operations.local import Local
from fsdl_tools.operations.ray_jobs import RankGroup, Ray, RayTrain
from fsdl_tools.operations.slurm import Slurm
from fsdl_tools.operations.slurm_answers import clock, read_clock
from .hostile import corpus, expected, hard, probe, received, text, variables

targets = [
    Local(),
    Slurm(),
    Container(),
    Kubernetes(),
    PyTorchJob(),
    TrainJob(),
    Ray(),
    SageMaker(),
    Anyscale(),
    Determined(),
    SkyPilot(),
]
by_name = pytest.mark.parametrize('t', targets, ids=lambda t: type(t).__name__)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    "Jobs on record are those of the test"
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path / 'state'))
    return tmp_path / 'state'


def suited(t, job):
    "The job with an image where containers run, and without a folder where there is none"
    return job if isinstance(t, (Local, Slurm, Ray)) else job.replace(image='ghcr.io/me/fsdl:1')


# ---- read back ----


@by_name
def test_what_is_rendered_is_read_back(t):
    job = Job(
        'full',
        ('python', 'a.py', '--x', 'no'),
        env={'A': '1e3', 'B': ''},
        secrets=[Secret('TOKEN', 'file', '/run/token')],
        nodes=3,
        processes=4,
        gpus=4,
        gpu='H100-SXM',
        gpu_memory=70 * GiB,
        cpus=2,
        memory=8 * GiB,
        time=7200,
        retries=2,
        on_preempt='stop',
        grace=45,
        layout='dp12,zero=1',
    )
    for j in (suited(t, job), suited(t, Job('small', ('true',)))):
        assert t.parse(t.render(j, 'token')) == j


@by_name
@settings(max_examples=60)
@given(args=st.lists(text, min_size=9, max_size=9), values=st.lists(text, max_size=4))
def test_any_text_is_read_back(t, args, values):
    job = suited(t, Job('odd', ('python', *args), env=variables(values), nodes=2))
    assert t.parse(t.render(job)) == job


# ---- byte for byte at the process ----


def words_of(t, job):
    "(words, environment) as the target would hand them to the process, by its own reading of the text"
    shown = t.render(job)
    if isinstance(t, Local):
        d = json.loads(shown)
        return d['argv'], d['env']
    if isinstance(t, (Container, Kubernetes, PyTorchJob)):
        d = from_yaml(shown)[-1]['spec']
        pod = (
            d['pytorchReplicaSpecs']['Master']['template']['spec']
            if 'pytorchReplicaSpecs' in d
            else d.get('template', d).get('spec', d)
        )
        return kubelet(t, pod['containers'][0]['command'], pod['containers'][0]['env'])
    if isinstance(t, TrainJob):
        d = from_yaml(shown)[0]['spec']['trainer']
        return kubelet(t, d['command'], d['env'])
    if isinstance(t, SageMaker):
        d = json.loads(shown)
        return [
            *d['AlgorithmSpecification']['ContainerEntrypoint'],
            *d['AlgorithmSpecification']['ContainerArguments'],
        ], d.get('Environment', {})
    if isinstance(t, Determined):
        d = from_yaml(shown)[0]
        return d['entrypoint'], dict(v.split('=', 1) for v in d['environment']['environment_variables'])
    if isinstance(t, SkyPilot):
        d = from_yaml(shown)[0]
        return ['bash', '-c', d['run']], d['envs'] | dict(
            SKYPILOT_NUM_NODES='1', SKYPILOT_NODE_RANK='0', SKYPILOT_NODE_IPS='127.0.0.1'
        )
    raise AssertionError(t)


def kubelet(t, words, env):
    "What Kubernetes makes of a container, or podman, which expands nothing"
    known = {}
    for e in env:
        known[e['name']] = e['value'] if isinstance(t, Container) else expand(e['value'], known)
    return (words if isinstance(t, Container) else [expand(w, known) for w in words]), known


runnable = [type(t)(python=sys.executable) for t in targets if not isinstance(t, (Slurm, Ray, Anyscale))]


@pytest.mark.parametrize('t', runnable, ids=lambda t: type(t).__name__)
def test_520_strings_arrive_byte_for_byte(t, tmp_path):
    strings = corpus()
    size = 60 if isinstance(t, SageMaker) else len(strings)
    for k in range(0, len(strings), size):
        part, out = strings[k : k + size], tmp_path / f'got-{k}-'
        job = suited(t, Job('probe', (sys.executable, '-c', probe, str(out), *part), env=variables(part)))
        assert t.check(job) == []
        words, env = words_of(t, job)
        subprocess.run(words, env=dict(PATH=os.environ['PATH'], LC_ALL='C') | env, check=True, timeout=200)
        assert received(out) == expected(part)


@by_name
def test_100_kB_or_a_refusal(t):
    job = suited(t, Job('long', ('echo', 'x' * 100_000)))
    assert t.check(job) == [] or 'SageMaker takes' in t.check(job)[0]
    sealed = suited(t, Job('long', ('echo', '$' * 100_000)))
    assert t.check(sealed) == [] or any(
        w in t.check(sealed)[0] for w in ('SageMaker takes', 'a shell takes', 'Linux takes')
    )


@pytest.mark.parametrize('t', runnable, ids=lambda t: type(t).__name__)
def test_100_kB_arrive_where_they_are_not_refused(t, tmp_path):
    for letter in 'x$':
        part, out = [letter * 100_000], tmp_path / f'got-{letter}-'
        job = suited(t, Job('probe', (sys.executable, '-c', probe, str(out), *part)))
        if isinstance(t, (SageMaker, SkyPilot)):
            assert any('takes' in p for p in t.check(job))  # the probe itself has lines, so the envelope is needed
        else:
            assert t.check(job) == []
            words, env = words_of(t, job)
            subprocess.run(words, env=dict(PATH=os.environ['PATH'], LC_ALL='C') | env, check=True, timeout=200)
            assert received(out) == expected(part) | dict(env={})


def test_what_no_process_can_be_given_is_refused():
    for bad, why in (('a\0b', 'NUL'), ('\ud800', 'surrogate'), ('x' * 131_072, '128 KiB')):
        with pytest.raises(ValueError, match=why):
            Job('a', ('echo', bad))
        with pytest.raises(ValueError, match=why):
            Job('a', ('echo',), env={'A': bad})
    for name in ('', '1A', 'A-B', 'A=B', 'RANK'):
        with pytest.raises(ValueError):
            Job('a', ('echo',), env={name: ''})
    for kw in (
        dict(nodes=0),
        dict(cpus=1.5),
        dict(memory=-1),
        dict(on_preempt='later'),
        dict(time=True),
        dict(name='a\nb'),
    ):
        with pytest.raises((ValueError, TypeError)):
            Job(**dict(name='a', command=('true',)) | kw)


@settings(max_examples=100)
@given(st.lists(text, min_size=1, max_size=5), st.dictionaries(st.sampled_from(['A', 'B']), text))
def test_the_envelope_is_opened_by_nothing_but_python(args, env):
    words = seal(['prog', *args], env)
    assert all(len(w) <= 256 for w in words) and all(w.isascii() and '$' not in w and '\n' not in w for w in words)
    assert unseal(words) == dict(argv=['prog', *args], env=env, files={})
    assert unseal(('python', '-c', 'print()', 'x')) is None


# ---- secrets ----

canary = 'canary-7f3a91'


@by_name
def test_no_text_holds_a_secret(t, monkeypatch, tmp_path):
    monkeypatch.setenv('CANARY', canary)
    (tmp_path / 'secret').write_text(canary)
    kind = (
        dict(kind='kubernetes', ref='tokens/canary')
        if isinstance(t, (Kubernetes, PyTorchJob, TrainJob))
        else dict(kind='file', ref=str(tmp_path / 'secret'))
    )
    found = [Secret('MINE', **kind)] + ([Secret('CANARY')] if isinstance(t, (Local, Slurm)) else [])
    job = suited(t, Job('secret', ('env',), secrets=found))
    assert t.check(job) == [] and t.parse(t.render(job)) == job
    for shown in (t.render(job), job.to_json(), repr(job), job._repr_html_()):
        assert canary not in shown


@by_name
def test_a_secret_the_target_cannot_fetch_is_refused(t):
    odd = dict(Local='kubernetes', Slurm='kubernetes').get(type(t).__name__, 'env')
    said = t.check(suited(t, Job('a', ('true',), secrets=[Secret('A', odd, 'a/b' if odd == 'kubernetes' else 'A')])))
    assert len(said) >= 1 and any('a/b' in s or 'A' in s for s in said)


def test_a_secret_reaches_the_process_and_nothing_else(monkeypatch, tmp_path, state):
    monkeypatch.setenv('SOURCE', canary)
    (tmp_path / 'file').write_text(canary + '\n')
    code = 'import os, time; time.sleep(1); print(os.environ["A"] == os.environ["B"], len(os.environ["A"]))'
    h = Local().submit(
        Job(
            'a',
            (sys.executable, '-c', code),
            secrets=[Secret('A', 'env', 'SOURCE'), Secret('B', 'file', str(tmp_path / 'file'))],
            time=200,
        )
    )
    while Local().status(h).state == 'queued':
        time.sleep(0.05)
    assert not any(canary in ' '.join(p.info['cmdline'] or []) for p in psutil.process_iter(['cmdline']))
    assert Local().wait(h, 150).state == 'succeeded' and Local().logs(h) == f'True {len(canary)}\n'
    assert not any(canary in f.read_text() for f in state.rglob('*') if f.is_file())


# ---- wrong texts ----

wrong = [
    (Slurm(), '--nodes=2', '--nodse=2', 'did you mean'),
    (Slurm(), '--nodes=2', '--nodes=two', 'whole number'),
    (Slurm(), '--time=01:00:00', '--time=soon', 'cannot read the time'),
    (Slurm(), '#SBATCH --nodes=2', '#SBATCH --nodes=2\n#SBATCH --nodes=3', 'given twice'),
    (Slurm(), 'fsdl_command=(', 'words=(', 'not rendered here'),
    (Slurm(), '=job', '=a;b', 'letters'),
    (Kubernetes(), 'backoffLimit', 'backofLimit', 'did you mean'),
    (Kubernetes(), 'cpu: "1"', 'cpu: "1 core"', 'no quantity'),
    (Kubernetes(), '"no"', 'no', 'quote it'),
    (Kubernetes(), 'name: job', 'name: Job_1', 'lower-case'),
    (Kubernetes(), 'restartPolicy: Never', 'restartPolicy: Nevr', 'did you mean'),
    (Kubernetes(), 'Indexed', 'Indexd', 'did you mean'),
    (Kubernetes(), 'parallelism: 2', 'parallelism: 1', 'differ'),
    (Kubernetes(), 'kind: Job', 'kind: Jobs', 'must hold one Job'),
    (Kubernetes(), 'action: Ignore', 'action: Ignor', 'did you mean'),
    (Kubernetes(), 'completions: 2', 'completions: 2\n  completions: 2', 'stands twice'),
    (Kubernetes(), 'image: "ghcr.io/me/fsdl:1"', 'image: "GHCR.io/Me/fsdl:1"', 'not a name such as'),
    (Kubernetes(), '- python\n', '- 3\n', 'not text'),
    (PyTorchJob(), 'Running', 'Runing', 'did you mean'),
    (PyTorchJob(), 'Master', 'Mister', 'did you mean'),
    (PyTorchJob(), 'nprocPerNode: "1"', 'nprocPerNode: auto', 'number'),
    (TrainJob(), 'numNodes', 'numNode', 'did you mean'),
    (TrainJob(), 'runtimeRef', 'runtimeref', 'did you mean'),
    (Container(), 'kind: Pod', 'kind: Pods', 'must hold one Pod'),
    (Ray(), 'entrypoint', 'entrypiont', 'did you mean'),
    (Ray(), 'env_vars', 'env_var', 'did you mean'),
    (SageMaker(), 'RoleArn', 'RoleARN', 'did you mean'),
    (SageMaker(), '"job"', '"job_1"', 'letters, digits and dashes'),
    (Anyscale(), 'max_retries', 'max_retrys', 'did you mean'),
    (Determined(), 'searcher', 'seacher', 'did you mean'),
    (Determined(), 'single', 'singel', 'did you mean'),
    (SkyPilot(), 'num_nodes', 'num_node', 'did you mean'),
    (SkyPilot(), 'exec python3', 'python3', 'not the line'),
    (Local(), '"folder"', '"foldre"', 'did you mean'),
]


@pytest.mark.parametrize('t,old,new,why', wrong, ids=[f'{type(t).__name__}-{new[:24]}' for t, _, new, _ in wrong])
def test_a_wrong_text_is_told_apart(t, old, new, why):
    shown = t.render(suited(t, Job('job', ('python', 'a.py'), env={'A': 'no'}, nodes=2)))
    assert t.check(shown) == [] and old in shown
    assert any(why in p for p in t.check(shown.replace(old, new))), t.check(shown.replace(old, new))


def test_what_the_place_does_not_have():
    job = Job(
        'big', ('true',), nodes=4, processes=8, gpus=8, gpu_memory=96 * GiB, cpus=8, memory=2000 * GiB, time=3 * 86400
    )
    said = Slurm(limits=Limits(nodes=2, gpus=4, gpu='A100-SXM-80GB', cpus=32, memory=1000 * GiB, time=86400)).check(job)
    assert len(said) == 6 and '96.00 GiB a GPU, the target has 80.00 GiB' in said[2]
    with pytest.raises(ValueError, match='96.00 GiB a GPU, the largest on offer has 80'):
        job.replace(gpu='A100-SXM-80GB').price()


def test_images():
    assert check_containerfile(containerfile(Job('a', ('true',)))) == []
    for bad in ('RUN ["a"]', 'FROM a\nRUN a', 'FROM a\nRUN []', 'FROM A B', 'FROM a\nEXPSE 1', 'FROM a\nWORKDIR b', ''):
        assert check_containerfile(bad)


def test_the_clock_of_slurm():
    for s in (1, 59, 60, 3599, 86399, 86400, 200_000):
        assert read_clock(clock(s)) == s
    for bad in ('', 'a', '1:2:3:4', '-1'):
        with pytest.raises(ValueError):
            read_clock(bad)


@by_name
def test_render_and_check_take_less_than_50_ms(t):
    job, took = suited(t, Job('a', ('python', 'a.py', *'abcdef'), env={'A': '$'}, nodes=2)), []
    t.check(job)
    for _ in range(7):
        then = time.process_time()
        t.render(job), t.check(job)
        took.append(time.process_time() - then)
    assert statistics.median(took) < 0.05


@pytest.mark.parametrize('on', ['local', 'slurm', 'k8s', 'sagemaker', 'ray'])
def test_the_command_prints_a_text_within_a_second(on, tmp_path):
    "Of the processor's time, which others on this machine do not change"
    suited(target(on), Job('a', ('python', 'a.py', '$5'), env={'A': 'no'}, nodes=2)).to_json(tmp_path / 'job.json')
    code = 'import sys; from fsdl_tools.cli.main import main; main()'
    p = subprocess.Popen(
        [sys.executable, '-c', code, 'launch', str(tmp_path / 'job.json'), '--on', on, '--dry-run'],
        stdout=subprocess.PIPE,
        text=True,
    )
    text = p.stdout.read()
    _, status, used = os.wait4(p.pid, 0)
    p.returncode = os.waitstatus_to_exitcode(status)
    assert p.returncode == 0 and target(on).parse(text).command == ('python', 'a.py', '$5')
    assert used.ru_utime + used.ru_stime < 1


def test_the_command_submits_stops_and_looks_at_the_machine(tmp_path):
    Job('sleeps', ('sleep', '300'), time=300).to_json(tmp_path / 'job.json')

    def fsdl(*words):
        r = subprocess.run(
            [sys.executable, '-c', 'from fsdl_tools.cli.main import main; main()', 'launch', *words],
            capture_output=True,
            text=True,
            timeout=200,
        )
        return r.stdout if r.returncode == 0 else r.stderr

    assert fsdl(str(tmp_path / 'job.json'), '--submit', '--token', 'one') == 'local:one\n'
    until(lambda: json.loads(fsdl('status', 'local:one', '--json'))['state'] == 'running')
    assert fsdl('cancel', 'local:one') == ''
    until(lambda: json.loads(fsdl('status', 'local:one', '--json'))['state'] == 'cancelled')
    assert fsdl('logs', 'local:one') == '' and 'no local job' in fsdl('logs', 'local:two')
    assert 'torchrun' in fsdl('doctor')


def test_no_shell_is_asked():
    for f in Path(launch.__file__).parent.glob('*.py'):
        for n in ast.walk(ast.parse(f.read_text())):
            if isinstance(n, ast.Call):
                assert not any(k.arg == 'shell' for k in n.keywords), f
                assert ast.unparse(n.func) not in ('os.system', 'os.popen', 'subprocess.getoutput'), f


def test_words_become_a_line_in_two_places_only():
    """Everywhere else words stay a list: SLURM's script (arguments and variables, one at a time) and Ray's entry
    point are the two that have to be text
    """
    found = set()
    for f in Path(launch.__file__).parent.glob('*.py'):
        for n in ast.walk(ast.parse(f.read_text())):
            if isinstance(n, ast.Call) and ast.unparse(n.func) in ('shlex.quote', 'shlex.join'):
                found.add((f.stem, ast.unparse(n.func)))
    assert found == {('slurm', 'shlex.quote'), ('ray_jobs', 'shlex.join')}


def test_every_place_has_a_target():
    for name in places:
        assert target(name).render(Job('a', ('true',), image='a:1'))
    assert RayTrain().check(Job('a', ('true',)))[0].startswith('Ray Train calls a function')


# ---- this machine ----


def until(true, timeout=150):
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, 'it did not happen in time'
        time.sleep(0.05)


def test_a_killed_supervisor_is_lost(state):
    h = Local().submit(Job('a', ('sleep', '30'), time=60))
    until(lambda: Local().status(h).state == 'running')
    pid = int((state / 'fsdl_tools' / 'jobs' / h.id / 'pid').read_text())
    [child] = psutil.Process(pid).children()
    os.kill(pid, signal.SIGKILL)
    until(lambda: Local().status(h).state == 'lost')
    until(lambda: not child.is_running())  # the kernel has asked it to stop
    Local().cancel(h)  # nobody is there to hear it
    assert Local().status(h) == Status('lost', 'supervisor gone')


@pytest.mark.parametrize('ranks', [1, 2])
def test_what_a_job_has_started_ends_with_it(ranks, tmp_path):
    "In its group or not, deaf to a first signal or not; a second job that it has submitted goes on"
    deaf = 'import signal, time; signal.signal(15, signal.SIG_IGN); print("up", flush=True); time.sleep(300)'
    code = (
        'import os, subprocess, sys\n'
        f'for new in (True, False):\n'
        f'    p = subprocess.Popen([sys.executable, "-c", {deaf!r}], stdout=subprocess.PIPE, start_new_session=new)\n'
        '    p.stdout.readline()\n'
        'if os.environ.get("RANK", "0") == "0":\n'
        '    from fsdl_tools.operations.launch import Job\n'
        '    from fsdl_tools.operations.local import Local\n'
        f'    h = Local().submit(Job("other", ("sleep", "300"), grace=1))\n'
        f'    open({str(tmp_path / "other")!r}, "w").write(h.id)\n'
    )
    h = Local().submit(Job('a', (sys.executable, '-c', code), processes=ranks, time=150, grace=1))
    assert Local().wait(h, 150) == Status('succeeded', 'exit 0')
    assert local._processes(h.id) == []
    other = Handle('local', (tmp_path / 'other').read_text())
    until(lambda: Local().status(other).state == 'running')
    until(lambda: len(local._processes(other.id)) == 1)
    Local().cancel(other)
    assert Local().wait(other, 150).state == 'cancelled'


def test_what_a_job_has_started_has_its_grace_too(tmp_path):
    "The leader goes at the first signal; its child needs a moment to put away what it holds"
    child = (
        'import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(0.5),'
        f' open({str(tmp_path / "put")!r}, "w"), sys.exit()));'
        ' print("up", flush=True); time.sleep(300)'
    )
    code = f'import subprocess, sys, time; subprocess.Popen([sys.executable, "-c", {child!r}]); time.sleep(300)'
    h = Local().submit(Job('a', (sys.executable, '-c', code), time=300, grace=30))
    until(lambda: 'up' in Local().logs(h))
    Local().cancel(h)
    assert Local().wait(h, 150) == Status('cancelled', 'exit -15') and (tmp_path / 'put').exists()


def test_what_is_left_of_a_lost_job_is_said_and_ended(state):
    deaf = 'import signal, time; signal.signal(15, signal.SIG_IGN); print("up", flush=True); time.sleep(300)'
    h = Local().submit(Job('a', (sys.executable, '-c', deaf), time=300, grace=1))
    until(lambda: 'up' in Local().logs(h))
    os.kill(int((state / 'fsdl_tools' / 'jobs' / h.id / 'pid').read_text()), signal.SIGKILL)
    until(lambda: Local().status(h).state == 'lost')
    assert Local().status(h).detail == '1 of its processes still run: cancel ends them'
    Local().cancel(h)
    assert (Local().status(h), local._processes(h.id)) == (Status('lost', 'supervisor gone'), [])


def test_retries_and_grace(tmp_path):
    h = Local().submit(Job('a', ('sh', '-c', f'echo x >> {tmp_path}/n; exit 3'), retries=2, time=200))
    assert Local().wait(h, 150) == Status('failed', 'exit 3') and (tmp_path / 'n').read_text().count('x') == 3
    code = (
        'import signal, sys, time; signal.signal(15, lambda *_: (print("saved", flush=True), sys.exit(143)));'
        ' print("up", flush=True); time.sleep(60)'
    )
    h = Local().submit(Job('b', (sys.executable, '-c', code), time=60))
    until(lambda: 'up' in Local().logs(h))
    Local().cancel(h)
    assert Local().wait(h, 150) == Status('cancelled', 'exit 143') and 'saved' in Local().logs(h)
    Local().cancel(h)  # once more, when it is over


def test_the_exit_code_of_a_group_is_that_of_the_rank_that_failed():
    "Not that of the ranks before it, which are asked to stop then"
    code = (
        'import os, signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); time.sleep(1 if os.environ["RANK"]'
        ' == "1" else 100); sys.exit(3)'
    )
    group = RankGroup()
    assert group.run([sys.executable, '-c', code], [dict(RANK=r) for r in '01']) == 3
    assert [p.returncode for p in group.running] == [143, 3]


@pytest.mark.parametrize('code', [0, 3])
def test_what_the_ranks_of_a_group_have_started_ends_with_them(code):
    mark = f'sleeper-{os.getpid()}-{code}'
    start = f'import subprocess, sys; subprocess.Popen(["sh", "-c", "sleep 300; true {mark}"]); sys.exit({code})'
    assert RankGroup().run([sys.executable, '-c', start], [{}, {}]) == code
    until(lambda: not [p for p in psutil.process_iter(['cmdline']) if mark in ' '.join(p.info['cmdline'] or [])])


def test_cancelled_before_its_supervisor_has_come(monkeypatch, tmp_path):
    "A job that is still queued here: nothing of it starts"
    started = []
    with monkeypatch.context() as m:
        m.setattr(local, '_start_supervisor', lambda *a: started.append(a))
        h = Local().submit(Job('a', ('touch', str(tmp_path / 'ran')), time=60))
    assert Local().status(h).state == 'queued'
    Local().cancel(h)
    local._start_supervisor(*started[0])
    assert (
        Local().wait(h, 150) == Status('cancelled', 'not started')
        and Local().logs(h) == ''
        and not (tmp_path / 'ran').exists()
    )


def test_a_log_that_is_gone_is_said(state):
    h = Local().submit(Job('a', ('echo', 'a word'), time=200))
    assert Local().wait(h, 150).state == 'succeeded' and Local().logs(h) == 'a word\n'
    (state / 'fsdl_tools' / 'jobs' / h.id / 'log').unlink()
    for read in (lambda: Local().logs(h), lambda: ''.join(Local().follow(h, 0.1))):
        with pytest.raises(TargetError, match='its log .* is not there'):
            read()


def test_a_full_disk_while_submitting(tmp_path, monkeypatch, small_disk):
    """A real one of 64 KiB: the reason is said, nothing stays on record, and the same token starts the job once
    there is room
    """
    disk = small_disk(tmp_path / 'disk')
    monkeypatch.setenv('XDG_STATE_HOME', str(disk))
    jobs = local.state_folder()
    with open(disk / 'full', 'wb') as f, contextlib.suppress(OSError):
        f.write(bytes(1 << 20))
    for _ in range(2):
        with pytest.raises(TargetError, match='put on record.*No space left'):
            Local().submit(Job('a', ('true',), env={'A': 'x' * 9000}, time=200), 'once')
    assert list(jobs.iterdir()) == []
    (disk / 'full').unlink()
    h = Local().submit(Job('a', ('true',), time=200), 'once')
    assert Local().wait(h, 150).state == 'succeeded'


def test_a_supervisor_that_cannot_start_leaves_no_record(monkeypatch):
    def fails(*a, **kw):
        raise OSError(11, 'Resource temporarily unavailable')

    monkeypatch.setattr(local.subprocess, 'Popen', fails)
    with pytest.raises(TargetError, match='temporarily'):
        Local().submit(Job('a', ('true',)))
    assert list(local.state_folder().iterdir()) == []


def test_follow_and_faults(tmp_path, monkeypatch):
    h = Local().submit(
        Job('a', (sys.executable, '-u', '-c', 'import time\nfor i in range(3): print(i); time.sleep(.3)'), time=200)
    )
    assert ''.join(Local().follow(h, 0.1)) == '0\n1\n2\n'
    sleeps = Local().submit(Job('b', ('sleep', '200'), time=200))
    with pytest.raises(TimeoutError):
        Local().wait(sleeps, 0.2)
    Local().cancel(sleeps)
    assert Local().wait(sleeps, 150).state == 'cancelled'
    with pytest.raises(ValueError, match='letters'):
        Local().submit(Job('a', ('true',)), '../x')
    monkeypatch.setenv('XDG_STATE_HOME', '/dev/full')
    with pytest.raises(OSError):
        Local().submit(Job('a', ('true',)))


@pytest.mark.parametrize(
    't',
    [
        Slurm(patience=2),
        Kubernetes(patience=2),
        PyTorchJob(patience=2),
        Ray(address='http://127.0.0.1:9', patience=2),
        Container(program='no-such-engine'),
        Anyscale(),
        SkyPilot(),
        Determined(),
    ],
    ids=lambda t: type(t).__name__,
)
def test_a_target_that_is_not_there_says_so_at_once(t, monkeypatch):
    monkeypatch.setenv('SLURM_CONF', '/nowhere')
    monkeypatch.setenv('KUBECONFIG', '/nowhere')
    then = time.monotonic()
    with pytest.raises((TargetError, TimeoutError)):
        t.submit(suited(t, Job('a', ('true',))))
    assert time.monotonic() - then < 5
    assert len(t.doctor()) >= 1
