"""What strangers and ordinary mistakes look like: mutations of configurations, tables and command lines, each from a
seed.
"""

import copy
import json
import random

# Small members of families that are built in different ways
small = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=99,
    max_position_embeddings=64,
)
configurations = [
    dict(model_type='llama', architectures=['LlamaForCausalLM'], num_key_value_heads=2, **small),
    dict(model_type='gpt2', n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64),
    dict(model_type='bert', architectures=['BertForMaskedLM'], **small),
    dict(model_type='roberta', pad_token_id=1, **small),
    dict(
        model_type='t5',
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        vocab_size=99,
        tie_word_embeddings=False,
        feed_forward_proj='gated-gelu',
    ),
    dict(
        model_type='bart',
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=99,
        max_position_embeddings=64,
    ),
    dict(model_type='mixtral', num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2, **small),
    dict(
        model_type='deepseek_v3',
        num_key_value_heads=4,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_shared_experts=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        **small,
    ),
    dict(
        model_type='falcon',
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
        vocab_size=99,
    ),
    dict(
        model_type='vit',
        image_size=32,
        patch_size=8,
        **{k: v for k, v in small.items() if k not in ('vocab_size', 'max_position_embeddings')},
    ),
    dict(
        model_type='whisper',
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=99,
        max_source_positions=50,
        max_target_positions=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    dict(
        model_type='llava',
        image_token_index=98,
        text_config=dict(model_type='llama', **small),
        vision_config=dict(
            model_type='clip_vision_model',
            image_size=32,
            patch_size=8,
            projection_dim=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
        ),
    ),
]

words = [
    'x',
    '',
    '[/x]',
    '[red]',
    '\x1b[31mred\x1b[0m',
    '\x1b]0;title\x07',
    '../../etc/passwd',
    'hf-hub:someone/code',
    'https://example.org/x',
    'local-dir:/tmp',
    'pipeline',
    'é' * 300,
    '\u202egnp',
    '{0}',
    '%s',
    '__class__',
    'None',
    'nan',
]
values = [
    None,
    True,
    False,
    0,
    1,
    -1,
    -5,
    3,
    7,
    2**31,
    10**9,
    10**30,
    1.5,
    -0.1,
    1e308,
    [],
    [1, 2],
    {},
    {'a': 1},
    [[[]]],
    [None] * 3,
    *words,
]
fields = [
    'architectures',
    'auto_map',
    'backbone',
    'backbone_config',
    'use_timm_backbone',
    'use_pretrained_backbone',
    'text_config',
    'vision_config',
    'hidden_act',
    'activation_function',
    'rope_scaling',
    'rope_theta',
    'rope_parameters',
    'layer_types',
    'quantization_config',
    'attn_implementation',
    '_attn_implementation',
    'torch_dtype',
    'dtype',
    'num_labels',
    'id2label',
    'pad_token_id',
    'head_dim',
    'is_encoder_decoder',
    'tie_word_embeddings',
    'model_type',
    'use_cache',
    'is_decoder',
    'pruned_heads',
    'sliding_window',
    'chunk_size_feed_forward',
    'output_attentions',
    'add_cross_attention',
    'attention_bias',
    'initializer_range',
    'layer_norm_eps',
    'custom_pipelines',
    '_name_or_path',
]


def nested(rng):
    "Lists in lists, deeper than any reader goes"
    deep = 'x'
    for _ in range(rng.choice([3, 50])):
        deep = rng.choice([[deep], {'a': deep}])
    return deep


def change_field(config, rng):
    "One field of a configuration, or of a part of it, with another value"
    part = rng.choice([config, *[v for v in config.values() if isinstance(v, dict)]])
    key = rng.choice([*part, rng.choice(fields)])
    old = part.get(key)
    new = rng.choice(
        values + [nested(rng)] + ([old * 2, old + 1, -old, old * 1000, str(old)] if isinstance(old, int) else [])
    )
    if rng.random() < 0.15:
        part.pop(key, None)
    else:
        part[key] = copy.deepcopy(new)


def damage(text, rng):
    "The text itself: cut, doubled, a byte changed"
    at = rng.randrange(len(text))
    return rng.choice(
        [
            text[:at],
            text + text[at:],
            text[:at] + rng.choice(['"', '{', '\x00', ',', 'é', ']', '1e999']) + text[at + 1 :],
            text.replace(':', '=', 1),
            '[' * 100_000,
            ' ',
            'NaN',
            '{"model_type": "llama"' + ', "a": [' * 5000,
        ]
    )


def mutated_configuration(seed):
    "Bytes of a config.json"
    rng = random.Random(f'configuration {seed}')
    config = copy.deepcopy(rng.choice(configurations))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        change_field(config, rng)
    text = json.dumps(config)
    if rng.random() < 0.1:
        text = damage(text, rng)
    raw = text.encode('utf-8', 'surrogatepass')
    return raw if rng.random() > 0.02 else b'\xff\xfe' + raw


def mutated_table(header, row, seed):
    "Bytes of a CSV file with one good row, and another that is not as it should be"
    rng = random.Random(f'table {seed}')
    cells = [
        '',
        ' ',
        '1_0',
        '1e308',
        '-1',
        '0',
        'nan',
        'inf',
        '1e999',
        '1.5',
        '0x10',
        '１２',
        '9' * 400,
        '"',
        '""',
        '\x00',
        ';',
        '=1+1',
        *words,
    ]
    rows = [list(row), list(row)]
    names = list(header)
    for _ in range(rng.choice([1, 1, 2, 4])):
        what, line = rng.random(), rng.choice(rows)
        if what < 0.6 and line:
            line[rng.randrange(len(line))] = rng.choice(cells)
        elif what < 0.7:
            line += ['surplus'] * rng.choice([1, 3])
        elif what < 0.8:
            del line[rng.randrange(len(line) + 1) :]
        elif what < 0.9:
            names[rng.randrange(len(names))] = rng.choice([*names, *cells])
        else:
            rows.append([])
    text = '\n'.join(','.join(r) for r in [names, *rows]) + '\n'
    if rng.random() < 0.1:
        text = damage(text, rng)
    return text.encode('utf-8', 'surrogatepass')


def mutated_words(command, options, seed, args=True):
    "A command line: options that exist with values that do not fit, arguments from nowhere"
    rng = random.Random(f'words {seed}')
    junk = [
        '0',
        '-1',
        '99999999',
        '1e308',
        '1_0',
        '1,5',
        'nan',
        '/dev/null',
        '/no/such/file',
        '.',
        'gpt2',
        'resnet18',
        'bert',
        '--',
        '-',
        *words,
    ]
    line = list(command)
    for _ in range(rng.choice([0, 1, 2, 3]) if args else 0):
        line.append(rng.choice(junk))
    for _ in range(rng.choice([0, 1, 1, 2])):
        name, flag = rng.choice(options)
        line += [name] if flag else [name, rng.choice(junk)]
    return line
