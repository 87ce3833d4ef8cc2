"""Ask one public estimator about published runs. Runs inside that estimator's own environment, so it imports nothing
of this project.

usage: peer_estimators.py llm-analysis|ftuneai|deepspeed|accelerate < REQUEST.json > ANSWER.json

The request is {"rows": [...], "gpus": {name: {...}}}; the answer {"version": ..., "rows": [{"memory": bytes,
"seconds": s} or {"error": ...}]}.

Calculon (github.com/calculon-ai/calculon) is not among them: it has never been published on PyPI, where `calculon`
is an unrelated package of
2013 (seen 2026-11-26), and an estimator that cannot be installed by its name cannot be asked again by a reader.
"""

import json, sys
from importlib.metadata import version


def llm_analysis(rows, gpus):
    import logging
    from llm_analysis import analysis, config

    logging.disable(logging.ERROR)
    level = {'none': 0, 'selective': 1, 'full': 2}
    for r in rows:
        g = gpus[r['gpu']]
        try:
            model = config.ModelConfig(
                'm',
                r['layers'],
                r['heads'],
                r['hidden'],
                r['vocab'],
                r['seq'],
                r['kv_heads'],
                ffn_embed_dim=r['ffn'],
                expansion_ratio=r['ffn'] / r['hidden'],
            )
            gpu = config.GPUConfig(
                'g',
                g['memory'] / 1e9,
                g['bandwidth'] / 1e9,
                g['link'] / 1e9,
                8e-6,
                g['tflops'],
                inter_node_bandwidth_in_GB_per_sec=g['nic'] / 1e9,
            )
            a = analysis.LLMAnalysis(
                model,
                gpu,
                config.DtypeConfig(),
                config.ParallelismConfig(r['tp'], r['pp'], r['dp']),
                flops_efficiency=r['efficiency'],
                hbm_memory_efficiency=1,
            )
            s = a.training(
                batch_size_per_gpu=r['micro_batch'],
                gradient_accumulation_steps=max(1, round(r['global_batch'] / r['dp'] / r['micro_batch'])),
                seq_len=r['seq'],
                activation_recomputation=analysis.ActivationRecomputation(level.get(r['recompute'], 0)),
                ds_zero=analysis.DSZeRO(r['zero']),
                flash_attn=r['flash'],
                mlp_gated_linear_units=r['gated_mlp'],
            )
            memory = (
                s['weight_memory_per_gpu']
                + s['gradient_memory_per_gpu']
                + s['optimizer_state_memory_per_gpu']
                + s['activation_memory_per_gpu']
            )
            yield dict(memory=memory, seconds=s['latency_per_iter'])
        except (AssertionError, ValueError, ZeroDivisionError, KeyError) as e:
            yield dict(error=f'{type(e).__name__}: {e}'[:200])


STEPS = 10**6  # Of the training whose hours, rounded to a hundredth, are asked for


def ftuneai(rows, gpus):
    from ftuneai.core.models import FineTuneMethod, GPUSpec, ModelSpec, ShardingStrategy, TrainingConfig
    from ftuneai.core.time import TimeEstimator

    sharding = [ShardingStrategy.NONE, ShardingStrategy.ZERO_1, ShardingStrategy.ZERO_2, ShardingStrategy.ZERO_3]
    for r in rows:
        g = gpus[r['gpu']]
        gpu = GPUSpec('g', g['memory'] / 1e9, g['tflops'], g['tflops'], g['tflops'], g['bandwidth'] / 1e9)
        sizes = (r['hidden'], r['layers'], r['heads'], r['kv_heads'], r['ffn'], r['vocab'], r['seq'])
        mixture = dict(is_moe=True, num_experts=r['experts'], num_active_experts=r['topk']) if r['experts'] else {}
        method = FineTuneMethod.LORA if r['lora_rank'] else FineTuneMethod.FULL
        model = ModelSpec('m', r['params'], *sizes, **mixture)
        config = TrainingConfig(
            'm', method, batch_size=r['global_batch'], seq_length=r['seq'], sharding=sharding[r['zero']]
        )
        ask = TimeEstimator(model, config).estimate
        hours = ask(gpu, r['global_batch'] * STEPS, 1, r['gpus'], mfu_override=r['efficiency']).total_hours
        yield dict(seconds=hours * 3600 / STEPS)


def deepspeed(rows, gpus):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as three
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as two

    for r in rows:
        nodes, per = max(1, r['gpus'] // r['gpus_per_node']), min(r['gpus'], r['gpus_per_node'])
        share = (
            r['params'] / r['tp'] / r['pp']
        )  # The estimators know data parallelism only: each gets the parameters of its model-parallel rank
        gpu = (
            three(share, r['largest_layer'], per, nodes, cpu_offload=False, cpu_offload_params=False, zero_init=True)[1]
            if r['zero'] == 3
            else two(share, per, nodes, cpu_offload=False)[1]
        )
        yield dict(memory=gpu)


def accelerate(rows, gpus):
    sys.modules['timm'] = None  # It imports timm where there is one; a timm that does not load would stop it
    from accelerate.commands.estimate import estimate_training_usage

    for r in rows:
        use = estimate_training_usage(r['params'] * 4, 'float16' if r['precision'] != 'fp32' else None)
        yield dict(memory=max(use.values()) / r['tp'] / r['pp'])


def main(name):
    request = json.load(sys.stdin)
    ask = {'llm-analysis': llm_analysis, 'ftuneai': ftuneai, 'deepspeed': deepspeed, 'accelerate': accelerate}[name]
    print('\n' + json.dumps(dict(version=version(name), rows=list(ask(request['rows'], request['gpus'])))))


if __name__ == '__main__':
    main(sys.argv[1])
