"""What a tracker costs the training loop: step time with each client called in the loop, and with the run's log and
a follower.

Steps of one millisecond (a matrix product), two numbers a step. All variants take turns in short rounds on the same
machine, so that what
else the machine does hits all of them; the ratio of a round is taken against the empty rounds before and after it.

    python benchmarks/tracking.py [--rounds 30] [--steps 80] [--kinds ours,followed:mlflow] [--dry]

Runs itself in the side environments `trackers` and `clearml`, in about four minutes. The last lines say whether the
bar holds: with any sink fed by a
follower, a step takes at most 1.05 times as long as without logging. The result is
fsdl_tools/data/results/tracking.json; --dry leaves that alone.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make_step():
    "A step of about one millisecond: (the step, seconds it takes)"
    import numpy as np

    size = 64
    while True:
        a = np.random.default_rng(0).random((size, size))
        took = []
        for _ in range(50):
            t0 = time.perf_counter()
            a @ a
            took.append(time.perf_counter() - t0)
        if statistics.median(took) >= 1e-3:
            return (lambda: a @ a), statistics.median(took)
        size = int(size * 1.12) + 1


class Nothing:
    name = 'nothing'

    def log(self, step, loss, acc):
        pass

    def close(self):
        pass


def ours(folder):
    from fsdl_tools.training.runlog import start_run

    log = start_run(folder, packages=False)

    class Ours:
        name = 'the run log'

        def log(self, step, loss, acc):
            log.log({'loss': loss, 'acc': acc}, step)

        def close(self):
            log.finish()

    o = Ours()
    o.folder = log.folder
    return o


def followed(folder, to):
    "The run's log with a follower process beside the loop"
    o = ours(folder)
    o.name = f'the run log, followed into {to}'
    code = 'import sys; from fsdl_tools.operations.tracking import feed; feed(sys.argv[1], sys.argv[2])'
    p = subprocess.Popen(
        [sys.executable, '-c', code, str(o.folder), to], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    close = o.close

    def both():
        close()
        p.wait(120)

    o.close = both
    return o


def wandb_(folder):
    import wandb

    run = wandb.init(
        mode='offline',
        dir=str(folder),
        settings=wandb.Settings(
            console='off', silent=True, x_disable_stats=True, x_disable_meta=True, disable_git=True
        ),
    )

    class W:
        name = 'W&B'

        def log(self, step, loss, acc):
            run.log({'loss': loss, 'acc': acc}, step=step)

        def close(self):
            run.finish()

    return W()


def tensorboard_(folder):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    w = EventFileWriter(str(folder))

    class T:
        name = 'TensorBoard'

        def log(self, step, loss, acc):
            for k, v in (('loss', loss), ('acc', acc)):
                w.add_event(
                    Event(
                        wall_time=time.time(), step=step, summary=Summary(value=[Summary.Value(tag=k, simple_value=v)])
                    )
                )

        def close(self):
            w.close()

    return T()


def comet_(folder):
    import comet_ml

    off = {
        k: False
        for k in (
            'log_code',
            'log_graph',
            'auto_param_logging',
            'auto_metric_logging',
            'log_git_metadata',
            'log_git_patch',
            'log_env_details',
            'parse_args',
            'auto_output_logging',
        )
    }
    e = comet_ml.OfflineExperiment(
        project_name='p', workspace='w', offline_directory=str(folder), display_summary_level=0, **off
    )

    class C:
        name = 'Comet'

        def log(self, step, loss, acc):
            e.log_metrics({'loss': loss, 'acc': acc}, step=step)

        def close(self):
            e.end()

    return C()


def clearml_(folder):
    os.environ['CLEARML_CACHE_DIR'] = str(folder)
    from clearml import Task

    Task.set_offline(True)
    off = dict.fromkeys(
        [
            'auto_connect_frameworks',
            'auto_connect_arg_parser',
            'auto_connect_streams',
            'auto_resource_monitoring',
            'reuse_last_task_id',
        ],
        False,
    )
    task = Task.init('p', 'n', **off)
    logger = task.get_logger()

    class C:
        name = 'ClearML'

        def log(self, step, loss, acc):
            logger.report_scalar('loss', 'loss', loss, step)
            logger.report_scalar('acc', 'acc', acc, step)

        def close(self):
            task.close()

    return C()


def trackio_(folder):
    os.environ['TRACKIO_DIR'] = str(folder)
    import trackio

    trackio.init(project='p', name='n')

    class T:
        name = 'trackio'

        def log(self, step, loss, acc):
            trackio.log({'loss': loss, 'acc': acc}, step=step)

        def close(self):
            trackio.finish()

    return T()


def mlflow_(folder):
    import mlflow

    mlflow.set_tracking_uri(f'sqlite:///{folder}/mlflow.db')
    run = mlflow.start_run()

    class M:
        name = 'MLflow, asynchronous'

        def log(self, step, loss, acc):
            mlflow.log_metrics({'loss': loss, 'acc': acc}, step=step, synchronous=False)

        def close(self):
            mlflow.flush_async_logging()
            mlflow.end_run()

    assert run
    return M()


def swanlab_(folder):
    import swanlab

    swanlab.init(mode='offline', project='p', logdir=str(folder))

    class S:
        name = 'SwanLab'

        def log(self, step, loss, acc):
            swanlab.log({'loss': loss, 'acc': acc}, step=step)

        def close(self):
            swanlab.finish()

    return S()


def determined_(folder):
    from determined import core

    context = core.init(checkpoint_storage=str(folder))
    inside = context.__enter__()

    class D:
        name = 'Determined'

        def log(self, step, loss, acc):
            inside.train.report_training_metrics(steps_completed=step, metrics={'loss': loss, 'acc': acc})

        def close(self):
            context.__exit__(None, None, None)

    return D()


def neptune_(folder):
    import neptune

    os.chdir(folder)
    run = neptune.init_run(
        mode='offline',
        project='w/p',
        capture_stdout=False,
        capture_stderr=False,
        capture_hardware_metrics=False,
        git_ref=False,
        source_files=[],
    )
    loss_, acc_ = run['loss'], run['acc']

    class N:
        name = 'Neptune'

        def log(self, step, loss, acc):
            loss_.append(loss, step=step)
            acc_.append(acc, step=step)

        def close(self):
            run.stop()

    return N()


def jsonl_(folder):
    f = open(folder / 'x.jsonl', 'w')

    class J:
        name = 'json.dumps and write'

        def log(self, step, loss, acc):
            f.write(json.dumps(dict(step=step, loss=loss, acc=acc, time=time.time())) + '\n')

        def close(self):
            f.close()

    return J()


def one_round(step, sink, first, n):
    "Wall and CPU seconds of a step, and seconds of a call at the median"
    calls = []
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(first, first + n):
        step()
        t0 = time.perf_counter()
        sink.log(i, 1 / (i + 1), i / 7)
        calls.append(time.perf_counter() - t0)
    return (time.perf_counter() - wall) / n, (time.process_time() - cpu) / n, statistics.median(calls)


def measure(kind, rounds, n, place):
    "Rounds of a sink, each between two rounds of nothing, in a process of its own"
    folder = Path(place) / kind.replace(':', '-')
    folder.mkdir()
    step, base = make_step()
    sink = followed(folder, kind.split(':')[1]) if ':' in kind else globals()[kind](folder)
    nothing, at, rows = Nothing(), 0, []
    for _ in range(3):
        one_round(step, nothing, 0, n // 4)
    one_round(step, sink, at, n // 4)
    at += n // 4
    before = one_round(step, nothing, 0, n)
    for _ in range(rounds):
        got = one_round(step, sink, at, n)
        at += n
        after = one_round(step, nothing, 0, n)
        rows.append([got[0] / ((before[0] + after[0]) / 2), got[1] / ((before[1] + after[1]) / 2), got[2]])
        before = after
    sink.close()
    print('\n' + json.dumps(dict(name=sink.name, rows=rows, step=base)), flush=True)


def interval(values, draws=2000):
    "Median and its 95 % bootstrap interval"
    r = random.Random(0)
    again = sorted(statistics.median(r.choices(values, k=len(values))) for _ in range(draws))
    return statistics.median(values), again[int(0.025 * draws)], again[int(0.975 * draws)]


followers = [
    f'followed:{to}' for to in ('jsonl', 'tensorboard', 'mlflow', 'wandb', 'comet', 'clearml', 'trackio', 'determined')
]
kinds = [
    'jsonl_',
    'ours',
    *followers,
    'tensorboard_',
    'trackio_',
    'swanlab_',
    'determined_',
    'neptune_',
    'comet_',
    'clearml_',
    'wandb_',
    'mlflow_',
]
bar = 1.05


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--rounds', type=int, default=30)
    p.add_argument('--steps', type=int, default=80)
    p.add_argument('--kinds', default=','.join(kinds))
    p.add_argument('--dry', action='store_true')
    p.add_argument('--one', default='')
    p.add_argument('--place', default='')
    a = p.parse_args()
    if a.one:
        return measure(a.one, a.rounds, a.steps, a.place)
    from fsdl_tools.core import data_path
    from fsdl_tools.files import write_atomic
    from fsdl_tools.environments import built
    from fsdl_tools.operations.tracking import _library
    import platform

    out = []
    with tempfile.TemporaryDirectory(prefix='fsdl-bench-') as d:
        library = Path(d) / 'library'
        library.mkdir()
        env = {k: v for k, v in os.environ.items() if k not in ('PYTHONHOME', 'VIRTUAL_ENV')} | dict(
            PYTHONPATH=_library(library),
            OMP_NUM_THREADS='1',
            MLFLOW_DISABLE_TELEMETRY='true',
            WANDB_SILENT='true',
            HOME=d,
            COMET_LOGGING_CONSOLE='error',
        )
        for kind in a.kinds.split(','):
            side = built('clearml' if 'clearml' in kind else 'trackers')
            r = subprocess.run(
                [str(side), __file__, '--one', kind, '--place', d, '--rounds', str(a.rounds), '--steps', str(a.steps)],
                env=env,
                capture_output=True,
                text=True,
                timeout=600,
                cwd=d,
            )
            if r.returncode:
                raise RuntimeError(f'{kind}: {r.stderr[-2000:]}')
            got = json.loads(r.stdout.strip().splitlines()[-1])
            wall, cpu, call = ([x[i] for x in got['rows']] for i in range(3))
            row = dict(kind=kind, name=got['name'], step_ms=got['step'] * 1e3, call_us=statistics.median(call) * 1e6)
            for what, values in (('wall', wall), ('cpu', cpu)):
                row |= dict(zip((what, f'{what}_low', f'{what}_high'), interval(values)))
            out.append(row)
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    for row in out:
        if row['kind'] == 'ours' or row['kind'] in followers:
            says = {
                w: (
                    f"{row[w]:.3f} ({row[f'{w}_low']:.3f} to {row[f'{w}_high']:.3f})"
                    f" {'holds' if row[w] <= bar else 'MISSES'} {bar}"
                )
                for w in ('wall', 'cpu')
            }
            print(f"{row['name']}: wall {says['wall']}; CPU {says['cpu']}")
    if a.dry:
        return
    note = dict(
        date=time.strftime('%Y-%m-%d'),
        machine=f'{platform.system()}, {platform.machine()}, {os.cpu_count()} CPUs',
        cpus=os.cpu_count(),
        load=os.getloadavg()[0],
        rounds=a.rounds,
        steps=a.steps,
    )
    write_atomic(data_path('results/tracking.json'), json.dumps(dict(note=note, rows=out), indent=1) + '\n')


if __name__ == '__main__':
    main()
