"""Other ways to spoil a comparison: masks that move with the input, channels and inputs of other sizes, whole
numbers, texts, complex numbers
"""

from collections import namedtuple
import time

import numpy as np
import pytest
from fsdl_tools.onnx.compare import _size_of, compare_outputs

INPUTS, BATCH, CLASSES = 32, 2, 16


def answers(seed, classes=CLASSES, kind='f4'):
    "Answers of a linear classifier to the same inputs"
    x = np.random.default_rng(0).standard_normal((INPUTS, BATCH, 8))
    return (x @ np.random.default_rng(seed).standard_normal((8, classes))).astype(kind)


def places(how):
    "Where a mask lies: anywhere, or after the end of a sequence, another place for each input"
    rng = np.random.default_rng(7)
    if how == 'anywhere':
        return rng.random((INPUTS, BATCH, CLASSES)) < 0.5
    return np.arange(CLASSES) >= rng.integers(4, CLASSES, (INPUTS, BATCH, 1))


@pytest.mark.parametrize('where', ['anywhere', 'after the end'])
@pytest.mark.parametrize('value', [-1e9, 1e9, -1e4, -3e38, -np.inf])
def test_a_mask_that_depends_on_the_input_hides_nothing(where, value):
    mask = places(where)
    over = lambda y: np.where(mask, value, y).astype('f4')
    right, other, slightly = answers(2), answers(1), answers(2) + 0.01 * answers(1)
    assert compare_outputs(over(right * np.float32(1 + 1e-7)), over(right))['ok']
    assert (
        not compare_outputs(over(other), over(right))['ok'] and not compare_outputs(over(slightly), over(right))['ok']
    )
    assert not compare_outputs(over(right), right)['ok'] and not compare_outputs(right, over(right))['ok']
    moved = np.where(np.roll(mask, 1, 0), value, right).astype('f4')
    assert not compare_outputs(moved, over(right))['ok']


def test_masks_that_are_added_and_added_twice():
    mask = places('anywhere') * -1e9 + places('after the end') * -1e9
    right, other = ((answers(k) + mask).astype('f4') for k in (2, 1))
    again = (answers(2, kind='f8') + mask.astype('f8')).astype('f4')
    assert compare_outputs(again, right)['ok'] and not compare_outputs(other, right)['ok']


@pytest.mark.parametrize('low', [-65504.0, -1e4, -np.inf])
def test_a_float16_mask_that_depends_on_the_input_is_no_false_alarm(low):
    mask, right = places('anywhere'), answers(2)
    half = np.where(mask, low, right).astype('f2')
    assert compare_outputs(half, np.where(mask, -1e9, right).astype('f4'), kind='float16')['ok']
    assert not compare_outputs(
        np.where(mask, 0, right).astype('f2'), np.where(mask, -1e9, right).astype('f4'), kind='float16'
    )['ok']


@pytest.mark.parametrize('large', [1, 4, 12, 15])
def test_a_small_channel_beside_large_ones_counts(large):
    "Whichever part of the channels is a million times as large, a wrong one among the others is seen"
    scale = np.where(np.arange(CLASSES) < large, 1e6, 1).astype('f4')
    right = answers(2) * scale
    wrong = right.copy()
    wrong[..., -1] = answers(1)[..., -1]
    assert compare_outputs(right * np.float32(1 + 1e-7), right)['ok']
    r = compare_outputs(wrong, right)
    assert not r['ok'] and r['why']


def test_a_wrong_image_channel_counts():
    rng = np.random.default_rng(0)
    right = rng.standard_normal((6, 2, 3, 5, 5)).astype('f4') * np.array([1e6, 1e6, 1], 'f4')[:, None, None]
    wrong = right.copy()
    wrong[:, :, 2] = rng.standard_normal((6, 2, 5, 5))
    assert 'entry 2 of axis 1' in compare_outputs(wrong, right)['why']


def test_one_large_input_hides_no_other():
    right, wrong = answers(2), answers(1)
    right[0] *= 1e6
    wrong[0] = right[0]
    assert compare_outputs(right * np.float32(1 + 1e-7), right)['ok'] and not compare_outputs(wrong, right)['ok']


def test_whole_numbers_are_the_same_or_not():
    ids = np.random.default_rng(0).integers(0, 50_000, (INPUTS, BATCH, 7))
    last, rare = ids.copy(), ids.copy()
    last[..., 3] += 1
    rare[0, 0, 0] += 1  # one tie of 448 that fell the other way
    assert compare_outputs(ids, ids)['ok'] and compare_outputs(rare, ids)['ok']
    assert [compare_outputs(x, ids)['ok'] for x in (ids + 1, last, ids ^ 1)] == [False] * 3


def test_texts_and_complex_numbers():
    text = np.array([['cat', 'dog']] * 4)
    assert compare_outputs(text, text.astype(object))['ok']
    assert compare_outputs(np.where(text == 'cat', 'cow', text), text)['why'] == '50.0% of the texts are others'
    z = (answers(2) + 1j * answers(3)).astype('c8')
    assert compare_outputs(z * np.complex64(1 + 1e-7), z)['ok']
    assert not compare_outputs(z.conj(), z)['ok'] and not compare_outputs(z.real + 0j, z)['ok']


@pytest.mark.parametrize('seed', range(35))
def test_the_same_sum_in_another_order_is_right(seed):
    """Float32 products whose terms are summed in another order, under activations and heads of all kinds: none is
    refused
    """
    rng = np.random.default_rng(seed)
    inputs, batch, width, classes = (int(rng.integers(*r)) for r in ((2, 33), (1, 4), (4, 64), (2, 40)))
    x = rng.standard_normal((inputs, batch, width)) * np.array([1, 1, 2, 0.5])[np.arange(inputs) % 4][:, None, None]
    w, v = rng.standard_normal((width, width)) / width**0.5, rng.standard_normal((width, classes))
    hidden = [
        np.tanh,
        lambda z: np.maximum(z, 0),
        np.square,
        lambda z: np.exp(2 * z),
        lambda z: np.maximum(z - 2.5, 0),
    ][seed % 5]
    softmax = lambda z: (
        np.exp(z - z.max(-1, keepdims=True)) / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)
    )
    masked = lambda low: lambda z: np.where(z > 0, z, low)
    head = [
        lambda z: z,
        softmax,
        lambda z: z + 100,
        masked(-1e9),
        masked(-np.inf),
        lambda z: np.maximum(z, 0),
        np.sign,
    ][seed // 5]
    run = lambda order: head(hidden(x.astype('f4')[..., order] @ w.astype('f4')[order]) @ v.astype('f4'))
    assert compare_outputs(run(rng.permutation(width)).astype('f4'), run(np.arange(width)).astype('f4'))['ok']


def test_a_declared_size_cannot_keep_anybody_busy():
    text = 'n'
    for _ in range(30):
        text = f'({text})**8'
    started = time.monotonic()
    assert _size_of(text, dict(n=9)) is None and _size_of('(' * 5000 + 'n' + ')' * 5000, dict(n=9)) is None
    assert time.monotonic() - started < 5


def test_declared_sizes_that_are_expressions():
    "As sympy writes what a convolution, a pooling or a window does to a length; what is no arithmetic stays a name"
    size = lambda text: _size_of(text, dict(n=7, batch=2))
    texts = {
        '(n - 3)//2 + 1': 3,
        'floor(n/2)': 3,
        'ceiling(n/2)': 4,
        'Max(1, n - 9)': 1,
        '-n + 9': 2,
        'n**2': 49,
        'Mod(n, 4)': 3,
        'batch*Min(n, 5)': 10,
        'CeilToInt(IntTrueDiv(n, 2))': 4,
        'n': 7,
    }
    assert {t: size(t) for t in texts} == texts
    odd = [
        'n/2',
        'odd(n)',
        'n.real',
        'n**99999999',
        '__import__("os")',
        'n if n else 1',
        '',
        '1/0',
        'm',
        '"n"',
        'n*1.5',
        'max()',
        'abs(1, 2)',
    ]
    assert {t: size(t) for t in odd} == dict.fromkeys(odd)


def test_an_output_that_hides_is_named_or_refused():
    "Every tensor in a nest has a name of its own; an object whose tensors nobody would see is refused by its class"
    torch = pytest.importorskip('torch')
    from fsdl_tools.onnx.cures import _flat

    y, h = torch.zeros(1), torch.ones(1)
    Pair = namedtuple('Pair', 'logits hidden')

    class Slots:
        __slots__ = ('t',)

        def __init__(self):
            self.t = y

    class Inside:
        def __init__(self):
            self.parts = [dict(t=y)]

    nests = [
        Pair(y, h),
        (t for t in (y, h)),
        {'a': y, 'b': h}.values(),
        torch.nn.ParameterList([y, h]),
        [y, 'text', None, h, 3],
    ]
    assert [list(_flat(n)) for n in nests] == [
        ['logits', 'hidden'],
        *[['output.0', 'output.1']] * 3,
        ['output.0', 'output.3'],
    ]
    for hidden in (Slots(), Inside(), {y}, np.ones(2)):
        with pytest.raises(ValueError, match=f"'a' is a {type(hidden).__name__}"):
            _flat({'a': hidden, 'b': h})
