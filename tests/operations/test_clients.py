"""Platforms' own clients and schemas, in a side environment: what is rendered here is what they read; what has no
target here is asked through a stub on loopback
"""

import json
import pytest
from fsdl_tools.units import GiB
from fsdl_tools.environments import build_env, built, run_in
from fsdl_tools.operations.clouds import Anyscale, Determined, SkyPilot
from fsdl_tools.operations.manifests import from_yaml
from fsdl_tools.operations.launch import Job

pytestmark = pytest.mark.timeout(900)
job = Job(
    'tiny-gpt',
    ('python', 'train.py', '$5', 'no', "it's"),
    env={'ANSWER': 'no', 'PRICE': '$5'},
    nodes=2,
    processes=2,
    gpus=2,
    gpu='A100-SXM-80GB',
    memory=2 * GiB,
    image='ghcr.io/me/fsdl:1',
    time=600,
    retries=2,
    grace=45,
    layout='dp4',
)


def ready(request, name):
    "Built when it is missing, by those who ask for slow tests"
    if not built(name):
        if not request.config.getoption('--slow'):
            pytest.skip(f'the side environment {name} is not built: fsdl env build {name}')
        build_env(name)
    return name


@pytest.fixture(scope='module')
def env(request):
    return ready(request, 'platforms')


@pytest.fixture(scope='module')
def sky_env(request):
    return ready(request, 'skypilot')


@pytest.fixture(scope='module')
def old_gradient(request):
    return ready(request, 'gradient')


# A server that answers what it is told to, and keeps what it was asked
stub = '''
import http.server, json, threading
class Stub(http.server.BaseHTTPRequestHandler):
    asked, answers = [], {}
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = self.path.partition("?")[0]
        Stub.asked.append([self.command, path, json.loads(body) if body[:1] in ("{", "[") else body])
        found = next((v for k, v in Stub.answers.items() if path.endswith(k)), None)
        said = json.dumps(found if found is not None else {}).encode()
        self.send_response(200 if found is not None else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
    do_GET = do_POST = do_PUT = do_DELETE = answer
    def log_message(self, *a): pass
def serve(answers):
    Stub.asked, Stub.answers = [], answers
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"
'''


# ---- texts that are rendered here, as their own clients read them ----

anyscale = '''
from anyscale.job.models import JobConfig
def main(configs):
    out = []
    for d in configs:
        try: out.append(JobConfig.from_dict(d).to_dict())
        except Exception as e: out.append(f"{type(e).__name__}: {e}"[:300])
    return out
'''


def test_anyscales_own_model_keeps_every_key(env):
    d = from_yaml(Anyscale().render(job))[0]
    kept, unknown, wrong = run_in(env, anyscale, [d, d | dict(entrypiont='x'), d | dict(max_retries='two')])
    assert {k: kept[k] for k in d if k != 'compute_config'} == {k: v for k, v in d.items() if k != 'compute_config'}
    assert all(
        kept['compute_config'][k] == v or isinstance(kept['compute_config'][k], list)
        for k, v in d['compute_config'].items()
    )
    assert 'entrypiont' in unknown and 'max_retries' in wrong


sky = '''
import sky
def main(tasks):
    out = []
    for d in tasks:
        try:
            t = sky.Task.from_yaml_config(d)
            r = list(t.resources)[0]
            out.append(dict(name=t.name, nodes=t.num_nodes, envs=dict(t.envs), run=t.run, accelerators=r.accelerators,
                cpus=r.cpus, memory=r.memory, spot=r.use_spot, image=str(r.image_id), recovery=r.job_recovery))
        except Exception as e: out.append(f"{type(e).__name__}: {e}"[:300])
    return out
'''


def test_skypilots_own_schema_and_task(sky_env):
    d = from_yaml(SkyPilot().render(job))[0]
    good, unknown, wrong = run_in(sky_env, sky, [d, d | dict(num_node=2), d | dict(num_nodes='two')])
    assert isinstance(good, dict), good
    assert (good['name'], good['nodes'], good['run'], good['spot']) == ('tiny-gpt', 2, d['run'], True)
    assert good['envs'] == d['envs'] and good['accelerators'] == d['resources']['accelerators']
    assert (good['cpus'], good['memory']) == (d['resources']['cpus'], d['resources']['memory'])
    assert good['recovery']['max_restarts_on_errors'] == 2 and 'ghcr.io/me/fsdl:1' in good['image']
    assert 'num_node' in unknown and 'num_nodes' in wrong


determined = (
    stub
    + '''
import os, tempfile
def main(config):
    experiment = dict(id=7, name="tiny-gpt", state="STATE_QUEUED", config={}, jobId="j", numTrials=0,
        originalConfig="", projectId=1, projectOwnerId=1, searcherType="single", startTime="2026-11-26T00:00:00Z",
                      username="me", archived=False)
    user = dict(admin=False, active=True, username="me", id=1)
    server, url = serve({"/info": dict(version="0.38.1"), "/api/v1/auth/login": dict(token="t", user=user),
        "/api/v1/me": dict(user=user),
                         "/api/v1/experiments": dict(experiment=experiment, config={},
                             warnings=[]), "/api/v1/experiments/7/activate": {}})
    os.environ.update(HOME=tempfile.mkdtemp(), DET_MASTER=url)
    from determined.experimental import client
    folder = tempfile.mkdtemp()
    with open(folder + "/train.py", "w") as f: f.write("print()")
    d = client.Determined(master=url, user="me", password="canary-key")
    made = d.create_experiment(config, folder)
    server.shutdown()
    return [made.id, Stub.asked]
'''
)


def test_determineds_own_client_sends_our_experiment(sky_env):
    "The client checks nothing: its server would. What arrives there is what was rendered, and the files beside it"
    text = Determined().render(job)
    made, asked = run_in(sky_env, determined, from_yaml(text)[0])
    (request,) = [body for method, path, body in asked if method == 'POST' and path == '/api/v1/experiments']
    assert made == 7 and from_yaml(request['config'])[0] == from_yaml(text)[0]
    assert [f['path'] for f in request['modelDefinition']] == ['train.py']


# ---- platforms without a target here: their clients against a stub ----

domino = (
    stub
    + '''
from domino import Domino
def main(_):
    server, url = serve({"/version": dict(buildId="1", buildUrl="u", commitId="c", commitUrl="u", timestamp="t",
        version="6.2.0"),
                         "/v4/jobs/start": dict(id="job-7", number=7), "/v4/jobs/job-7": dict(id="job-7",
                             statuses=dict(executionStatus="Succeeded")),
                         "/v4/jobs/stop": dict(id="job-7"),
                         "/v4/gateway/projects/findProjectByOwnerAndName": dict(id="project-1"),
                         "/v4/gateway/projects": [dict(id="project-1", name="course", ownerUsername="me")],
                         "/v4/users/self": dict(id="user-1", userName="me")})
    d = Domino("me/course", api_key="canary-key", host=url)
    started = d.job_start(command="train.py --steps 50")
    state = d.job_status(started["id"])
    server.shutdown()
    return [started, state, Stub.asked]
'''
)


def test_dominos_own_client_starts_a_job_of_one_line(env):
    "Its job is a line for a shell: there is no list of arguments to send"
    started, state, asked = run_in(env, domino)
    assert started['id'] == 'job-7' and state['statuses']['executionStatus'] == 'Succeeded'
    (request,) = [body for method, path, body in asked if path.endswith('/v4/jobs/start')]
    assert request['projectId'] == 'project-1' and request['commandToRun'] == 'train.py --steps 50'


dstack = '''
from dstack._internal.core.models.configurations import parse_run_configuration
import json
def main(tasks):
    out = []
    for d in tasks:
        try: out.append(json.loads(parse_run_configuration(d).json()))
        except Exception as e: out.append(f"{type(e).__name__}: {e}"[:400])
    return out
'''


def test_dstacks_own_schema_reads_our_job_as_a_task(env):
    """No target of ours: what a job would look like there, checked by its model. Its commands are lines for a shell
    as well
    """
    task = dict(
        type='task',
        name=job.name,
        nodes=job.nodes,
        image=job.image,
        env=dict(ANSWER='no'),
        commands=['python train.py'],
        resources=dict(gpu='A100:2', memory='2GB..'),
        max_duration=job.time,
        retry=dict(on_events=['no-capacity', 'interruption', 'error'], duration='1h'),
    )
    good, unknown, wrong = run_in(env, dstack, [task, task | dict(node=2), task | dict(nodes=0)])
    assert isinstance(good, dict), good
    assert (good['name'], good['nodes'], good['image'], good['commands']) == (
        'tiny-gpt',
        2,
        'ghcr.io/me/fsdl:1',
        ['python train.py'],
    )
    assert isinstance(unknown, str) and isinstance(wrong, str), (unknown, wrong)


lightning = (
    stub
    + '''
import os
def main(_):
    job = dict(id="job-7", name="tiny-gpt", state="pending", project_id="space-1")
    server, url = serve({"/v1/auth/login": dict(token="t"), "/v1/projects/space-1/jobs": job, "/jobs": job})
    os.environ.update(LIGHTNING_CLOUD_URL=url, LIGHTNING_USER_ID="user-1", LIGHTNING_API_KEY="canary-key",
        LIGHTNING_DISABLE_VERSION_CHECK="1")
    from lightning_sdk.api.job_api import JobApiV2
    from lightning_sdk.machine import Machine
    made = JobApiV2().submit_job(name="tiny-gpt", command="python train.py", cloud_account="aws",
        teamspace_id="space-1", studio_id=None, image="ghcr.io/me/fsdl:1", machine=Machine.A100_X_2,
        interruptible=True, env={"ANSWER": "no"}, image_credentials=None, cloud_account_auth=False, entrypoint="sh -c",
        path_mappings=None, max_run_attempts=3)
    server.shutdown()
    return [made.id, Stub.asked]
'''
)


def test_lightnings_own_client_starts_a_job_of_one_line(env):
    "Grid.ai's successor"
    made, asked = run_in(env, lightning)
    (request,) = [body for method, path, body in asked if method == 'POST' and path.endswith('/projects/space-1/jobs')]
    assert made == 'job-7' and request['name'] == 'tiny-gpt'
    spec = request['spec']
    assert spec['image'] == 'ghcr.io/me/fsdl:1' and spec['command'] == 'python train.py' and spec['spot'] is True
    assert {e['name']: e['value'] for e in spec['env']} == {'ANSWER': 'no'}


modal = '''
import modal
def main(_):
    app = modal.App("tiny-gpt")
    image = modal.Image.from_registry("ghcr.io/me/fsdl:1")
    @app.function(image=image, gpu="A100-80GB:2", timeout=600, retries=2, serialized=True)
    def train(words): import subprocess; return subprocess.run(words).returncode
    out = [type(train).__name__, app.name]
    for wrong in (dict(gpu="A1000"), dict(retries=99), dict(timeout=0)):
        try: modal.App("x").function(serialized=True, **wrong)(lambda: 1); out.append("")
        except Exception as e: out.append(f"{type(e).__name__}: {e}"[:200])
    return out
'''


def test_modals_own_client_defines_a_function_and_has_no_job_file(env):
    """It checks nothing of what we gave it wrongly: a GPU that there is not, 99 retries, no time at all. Its server
    would
    """
    assert run_in(env, modal) == ['Function', 'tiny-gpt', '', '', '']


gradient = (
    stub
    + '''
import os
def main(spec):
    server, url = serve({"/workflows": dict(id="flow-1", name="tiny-gpt", projectId="p1"),
        "/workflows/flow-1/runs": dict(id="run-1", status="pending")})
    os.environ.update(PAPERSPACE_CONFIG_HOST=url, PAPERSPACE_API_KEY="canary-key")
    import gradient
    c = gradient.WorkflowsClient(api_key="canary-key")
    made = c.create(name="tiny-gpt", project_id="p1")
    c.run_workflow(spec=spec, inputs=None, workflow_id=made["id"], cluster_id="c1")
    server.shutdown()
    return [made, Stub.asked, [n for n in dir(gradient) if n.endswith("Client")]]
'''
)


def test_gradients_last_own_client_sends_a_workflow(old_gradient):
    """Its server is switched off; the client of 2022 still builds the request. Jobs, as the lecture had them, are no
    longer in it
    """
    spec = dict(
        jobs=dict(
            train=dict(
                resources={'instance-type': 'P4000'},
                uses='script@v1',
                **{'with': dict(script='python train.py', image='ghcr.io/me/fsdl:1')},
            )
        )
    )
    made, asked, clients = run_in(old_gradient, gradient, spec)
    posts = {path: body for method, path, body in asked if method == 'POST'}
    assert made['id'] == 'flow-1' and posts['/workflows'] == dict(name='tiny-gpt', projectId='p1')
    assert posts['/workflows/flow-1/runs']['spec'] == spec
    assert 'WorkflowsClient' in clients and 'JobsClient' not in clients and 'ExperimentsClient' not in clients
