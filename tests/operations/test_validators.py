"""What is rendered, before other people's validators and clients, in a side environment of their own"""

import json, subprocess, sys
from pathlib import Path
import pytest
from fsdl_tools.units import GiB
from fsdl_tools.environments import build_env, built, run_in
from fsdl_tools.operations.clouds import SageMaker
from fsdl_tools.operations.containers import Container
from fsdl_tools.operations.kubeflow import PyTorchJob, TrainJob
from fsdl_tools.operations.kubernetes import Kubernetes
from fsdl_tools.operations.manifests import from_yaml
from fsdl_tools.operations.launch import Job, Secret
from fsdl_tools.operations.tracking import _library

pytestmark = pytest.mark.timeout(900)
job = Job(
    'tiny-gpt',
    ('python', 'train.py', '$5', 'no'),
    env={'ANSWER': 'no', 'PRICE': '$5'},
    secrets=[Secret('TOKEN', 'kubernetes', 'tokens/key')],
    nodes=2,
    processes=2,
    gpus=2,
    memory=2 * GiB,
    image='ghcr.io/me/fsdl:1',
    time=600,
    retries=2,
    grace=45,
    layout='dp4',
)


@pytest.fixture(scope='module')
def env(request):
    "Built when it is missing, by those who ask for slow tests"
    if not built('manifests'):
        if not request.config.getoption('--slow'):
            pytest.skip('the side environment manifests is not built: fsdl env build manifests')
        build_env('manifests')
    return 'manifests'


strict = '''
import kubernetes_validate, yaml
def main(texts):
    out = []
    for text in texts:
        for d in yaml.safe_load_all(text):
            try: kubernetes_validate.validate(d, "1.33", strict=True); out.append("")
            except kubernetes_validate.ValidationError as e: out.append(str(e)[:300])
    return out
'''


def test_kubernetes_own_schema_strictly(env):
    plain = job.replace(secrets=())
    good = [
        Kubernetes().render(job, 'token'),
        Kubernetes().render(job.replace(nodes=1, processes=1)),
        Container(mounts=('/usr',)).render(plain),
    ]
    said = run_in(env, strict, good)
    assert len(said) == 4 and not any(said), said
    wrong = [good[0].replace('backoffLimit', 'backofLimit'), good[0].replace('completions: 2', 'completions: two')]
    assert all(any(run_in(env, strict, [w])) for w in wrong)


round_trip = '''
import kubeflow_trainer_api.models as m
def main(d):
    made = m.TrainerV1alpha1TrainJob.from_dict(d)
    return made.to_dict()
'''


def test_kubeflow_own_model_keeps_every_key(env):
    d = from_yaml(TrainJob().render(job))[0]
    assert run_in(env, round_trip, d) == d


aws = '''
import boto3, json, os
from moto.server import ThreadedMotoServer
def main(requests):
    os.environ.update(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("sagemaker", region_name="us-east-1", endpoint_url=f"http://{host}:{port}")
    out = []
    for r in requests:
        try:
            client.create_training_job(**r)
            d = client.describe_training_job(TrainingJobName=r["TrainingJobName"])
            out.append({k: d.get(k) for k in ("TrainingJobName", "AlgorithmSpecification", "ResourceConfig",
                "StoppingCondition", "TrainingJobStatus")})
        except Exception as e: out.append(type(e).__name__ + ": " + str(e)[:200])
    server.stop()
    return json.loads(json.dumps(out, default=str))
'''


def test_sagemaker_own_client_and_a_local_stand_in(env):
    r = json.loads(SageMaker().render(job.replace(secrets=())))
    ok, bad = run_in(env, aws, [r, r | dict(TrainingJobName=3)])
    assert all(
        ok['AlgorithmSpecification'][k] == v for k, v in r['AlgorithmSpecification'].items()
    )  # the stand-in adds metrics of its own
    for k in ('TrainingJobName', 'ResourceConfig', 'StoppingCondition'):
        assert ok[k] == r[k], k
    assert bad.startswith('ParamValidationError')


rules = '''
import boto3
def main(_):
    c = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    s = c.meta.service_model.operation_model("CreateTrainingJob").input_shape.members
    a = s["AlgorithmSpecification"].members["ContainerArguments"]
    e = s["Environment"]
    retry = s["RetryStrategy"].members["MaximumRetryAttempts"]
    return [a.metadata["max"], a.member.metadata["max"], e.metadata["max"], e.value.metadata["max"],
        s["TrainingJobName"].metadata["max"], retry.metadata["max"], list(s)]
'''


def test_the_numbers_in_our_rules_are_those_of_the_services_model(env):
    *limits, names = run_in(env, rules)
    assert limits == [100, 256, 100, 512, 63, 30]
    from fsdl_tools.operations.clouds import _aws_schema

    assert set(_aws_schema) <= set(names)


def test_torchxs_strings_are_as_the_page_says(request):
    "Its SLURM script in bash, with a program in the place of srun"
    if not built('torchx'):
        if not request.config.getoption('--slow'):
            pytest.skip('the side environment torchx is not built: fsdl env build torchx')
        build_env('torchx')
    r = subprocess.run(
        [sys.executable, str(Path(__file__).parents[2] / 'benchmarks' / 'torchx_strings.py'), '--check'],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert r.returncode == 0, r.stderr[-1500:]


ours = '''
import os, socket, sys, time
def main(call):
    os.environ.update(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    sys.path[:0] = call["paths"]
    from moto.server import ThreadedMotoServer
    from fsdl_tools.operations.clouds import SageMaker
    from fsdl_tools.operations.launch import Job
    from fsdl_tools.operations.targets import Handle, TargetError
    def said(f):
        then = time.monotonic()
        try: return repr(f()), 0
        except TargetError as e: return f"TargetError: {e}", time.monotonic() - then
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    t = SageMaker(endpoint="http://%s:%s" % server.get_host_and_port())
    job = Job.from_dict(call["job"])
    h = t.submit(job)
    out = [str(h), t.status(h).state, said(lambda: t.status(Handle("sagemaker", "none")))[0]]
    server.stop()
    out += said(lambda: t.status(h))
    with socket.create_server(("127.0.0.1", 0)) as s:
        out += said(lambda: SageMaker(endpoint="http://127.0.0.1:%s" % s.getsockname()[1]).submit(job))
    return out
'''


def test_sagemaker_through_our_target(env, tmp_path):
    """An unknown job, a server that is down and one that never answers are each one clear error within five seconds.
    (That a name is refused when it comes again only AWS itself does: the stand-in takes it)
    """
    call = dict(paths=[_library(tmp_path)], job=job.replace(secrets=()).to_dict())
    handle, state, unknown, down, took, silent, waited = run_in(env, ours, call)
    assert handle == 'sagemaker:tiny-gpt' and state in ('running', 'succeeded')
    assert unknown.startswith('TargetError: AWS: ')
    assert down.startswith('TargetError: AWS: ') and silent.startswith('TargetError: AWS: ') and max(took, waited) < 5
