"""What a block of PyTorch's own modules keeps for the backward pass, counted from the graph and written as a formula
of its widths.

    python benchmarks/block_units.py            # writes fsdl_tools/data/block_units.csv
    python benchmarks/block_units.py llama      # prints the rows of one architecture

Each architecture is built without data in a few sizes, its training step followed by `memory.predict` for a GPU's
kernels, and the bytes that a further block adds are solved
for the widths they go with. Everything is linear in them, so four sizes are enough; a fifth, which no coefficient
has seen, is the check.
"""

import csv
import json
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from fsdl_tools.core import fix_torchvision

table = Path(__file__).resolve().parent.parent / 'fsdl_tools' / 'data' / 'block_units.csv'
architectures = 'gpt2 llama mistral qwen2 qwen3 phi3 olmo2 gemma3_text gpt_neox opt starcoder2'.split()
precisions = {'single': 'fp32', 'amp': 'amp', 'half': 'bf16'}
samples, tokens = 32, 512
words = dict(
    hidden='hidden_size n_embd',
    ffn='intermediate_size ffn_dim n_inner',
    layers='num_hidden_layers n_layer',
    heads='num_attention_heads n_head',
    kv='num_key_value_heads',
    head_dim='head_dim',
    vocab='vocab_size',
)
no_dropout = (
    'attn_pdrop resid_pdrop embd_pdrop attention_dropout dropout hidden_dropout activation_dropout residual_dropout'
    ' embedding_dropout'
)
sizes = dict(hidden=1024, ffn=4096, heads=8, kv=8, head_dim=128, vocab=64)


def configuration(architecture, folder, **sizes):
    "Path of a config.json of these sizes, without dropout"
    from transformers import AutoConfig

    plain = AutoConfig.for_model(architecture)
    given = {}
    for word, names in words.items():
        given |= {n: sizes[word] for n in names.split() if hasattr(plain, n)}
    given |= {n: 0.0 for n in no_dropout.split() if hasattr(plain, n)}
    given |= {n: 0 for n in ('bos_token_id', 'eos_token_id', 'pad_token_id') if hasattr(plain, n)}
    if hasattr(plain, 'sliding_window'):
        given |= dict(sliding_window=None if architecture != 'gemma3_text' else 10**6)
    if architecture == 'opt':
        given |= dict(word_embed_proj_dim=sizes['hidden'])
    made = json.loads(type(plain)(**given).to_json_string(use_diff=False))
    made.pop('architectures', None)
    path = Path(folder) / 'config.json'
    path.write_text(json.dumps(made))
    return str(path)


def step(architecture, precision, layers, recompute=False, batch=samples, seq=tokens, **sizes):
    "The memory of a step of SGD, which keeps nothing and needs nothing besides"
    from fsdl_tools.memory import gpu
    from fsdl_tools.memory.predict import breakdown

    gpu._groups_with_mask = True  # a fused kernel also for few heads of keys in fp32, as since PyTorch 2.14
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        path = configuration(architecture, folder, layers=layers, **sizes)
        return breakdown(path, batch, seq, precision=precisions[precision], recompute=recompute, optimizer='sgd')


@dataclass
class Pair:
    "The same step with two and with four blocks"

    two: object
    four: object
    unit: int

    @property
    def block(self):
        "Units that one block keeps"
        return (self.four.activations - self.two.activations) / 2 / self.unit

    @property
    def ends(self):
        "Units that are kept before the first block and after the last"
        return self.two.activations / self.unit - 2 * self.block

    @property
    def above(self):
        """Units at the peak besides what is kept and always there; logits count 8 bytes more while their gradient is
        made
        """
        b = self.four
        there = b.parameters + b.buffers + b.batch + b.activations + b.logits + b.casts
        return (b.peak - there) / self.unit


def pair(architecture, precision, recompute=False, **other):
    s = sizes | other
    unit = samples * tokens * s['hidden'] * (4 if precision == 'single' else 2)
    return Pair(*(step(architecture, precision, n, recompute, **s) for n in (2, 4)), unit)


def row(architecture, precision):
    "One line of the table: units of tokens · hidden · bytes of an activation"
    plain, again = pair(architecture, precision), pair(architecture, precision, recompute=True)
    wide, wide_again = (pair(architecture, precision, r, ffn=8192) for r in (False, True))
    ffn = (wide.block - plain.block) / 4
    kv = (plain.block - pair(architecture, precision, kv=4).block) / 0.5
    both = pair(architecture, precision, head_dim=256).block - plain.block
    query = both - kv if both > 0.1 else 0.0  # some know no size of heads of its own
    base = plain.block - 4 * ffn - query - kv
    found = dict(base=base, query=query, kv=kv, ffn=ffn, entry=again.block, ends=plain.ends)
    work, work_again = plain.above, again.above - plain.block
    more, more_again = (wide.above - work) / 4, (wide_again.above - wide.block - work_again) / 4
    found |= dict(work=work - 4 * more, work_ffn=more, again=work_again - 4 * more_again, again_ffn=more_again)
    return dict(architecture=architecture, precision=precision) | {k: round(v, 2) + 0.0 for k, v in found.items()}


def main(names):
    import datetime
    import importlib.metadata as md

    fix_torchvision()
    version = md.version('transformers')
    rows = []
    for a in names or architectures:
        for p in precisions:
            rows.append(
                row(a, p)
                | dict(
                    source=f'counted from the graph of transformers {version} by benchmarks/block_units.py',
                    date=str(datetime.date.today()),
                )
            )
            print(rows[-1], flush=True)
    if not names:
        with open(table, 'w', newline='', encoding='utf-8') as f:
            writer = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main(sys.argv[1:])
