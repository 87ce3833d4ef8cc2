"""Stand-ins for the frameworks that are not installed: as much of each as a runner uses, computed by PyTorch"""

import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F


class Array(torch.Tensor):
    "A tensor that also stands to the right of a numpy array"

    def __rmatmul__(self, other):
        return array(other) @ self

    def numpy(self):
        return self.detach().as_subclass(torch.Tensor).numpy()


def array(v):
    return v if isinstance(v, Array) else torch.as_tensor(np.array(v)).as_subclass(Array)


def conv(x, w, padding='SAME', strides=1):
    "A convolution with channels last"
    assert padding in ('SAME', 'same') and tuple(w.shape[:2]) == (3, 3)
    return F.conv2d(array(x).permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), stride=strides, padding=1).permute(0, 2, 3, 1)


def pool(kind, x, window, strides, padding='VALID'):
    "A pooling with channels last"
    assert padding == 'VALID'
    return kind(array(x).permute(0, 3, 1, 2), window, strides).permute(0, 2, 3, 1)


def module(name, **members):
    "A module"
    m = ModuleType(name)
    vars(m).update(members)
    return m


def tree_map(f, *trees):
    "A function on the leaves of nested dicts"
    if isinstance(trees[0], dict):
        return {k: tree_map(f, *(t[k] for t in trees)) for k in trees[0]}
    return f(*trees)


def value_and_grad(f):
    "A function that also returns the gradient of its first argument"

    def both(params):
        leaves = tree_map(lambda p: p.detach().clone().requires_grad_(), params)
        loss = f(leaves)
        loss.backward()
        return loss.detach(), tree_map(lambda p: p.grad, leaves)

    return both


def gelu(x, approximate=True):
    return F.gelu(x, approximate='tanh' if approximate else 'none')


def inner(window):
    "The axes of a window over space; it must be one elsewhere"
    assert len(window) == 4 and window[0] == window[3] == 1
    return tuple(window[1:3])


def jax():
    "jax"

    def reduce_window(x, start, join, window, strides, padding):
        if join == 'max':
            assert start == -math.inf
            return pool(F.max_pool2d, x, inner(window), inner(strides), padding)
        assert start == 0
        return pool(F.avg_pool2d, x, inner(window), inner(strides), padding) * math.prod(window)

    def general(x, w, strides, padding, dimension_numbers):
        assert dimension_numbers == ('NHWC', 'HWIO', 'NHWC')
        return conv(x, w, padding, strides)

    lax = SimpleNamespace(conv_general_dilated=general, reduce_window=reduce_window, add='add', max='max')
    nn = SimpleNamespace(gelu=gelu, relu=F.relu, log_softmax=lambda x: F.log_softmax(x, -1))
    numpy = SimpleNamespace(array=array, take_along_axis=lambda a, i, axis: torch.gather(a, axis, i.long()))
    made = module(
        'jax',
        lax=lax,
        nn=nn,
        numpy=numpy,
        tree=SimpleNamespace(map=tree_map),
        value_and_grad=value_and_grad,
        compiled=[],
    )
    made.jit = lambda f: made.compiled.append(f) or f
    return made


def haiku():
    "haiku"
    context = []

    class Layer:
        def __init__(self, outputs, size=None, name=None):
            self.outputs, self.size, self.name = outputs, size, name

        def __call__(self, x):
            p = context[-1][self.name]
            assert p['w'].shape[-1] == self.outputs and (
                self.size is None or tuple(p['w'].shape[:2]) == (self.size,) * 2
            )
            return (array(x) @ p['w'] if self.size is None else conv(x, p['w'])) + p['b']

    def apply(net, params, x):
        context.append(params)
        try:
            return net(x)
        finally:
            context.pop()

    pooling = lambda kind: lambda x, window, strides, padding: pool(kind, x, inner(window), inner(strides), padding)
    return module(
        'haiku',
        Conv2D=Layer,
        Linear=Layer,
        Flatten=lambda: lambda x: x.reshape(len(x), -1),
        avg_pool=pooling(F.avg_pool2d),
        max_pool=pooling(F.max_pool2d),
        transform=lambda net: SimpleNamespace(apply=lambda params, rng, x: apply(net, params, x)),
        without_apply_rng=lambda t: SimpleNamespace(apply=lambda params, x: t.apply(params, None, x)),
    )


class Variable:
    "A variable of Flax: its value is what stands in brackets"

    def __init__(self, shape):
        self.value = array(np.zeros(shape, 'f4'))

    def __getitem__(self, key):
        assert key is ...
        return self.value.detach()

    def __setitem__(self, key, value):
        assert key is ...
        self.value = array(value)


def flax():
    "flax and its nnx"

    class Layer:
        def __init__(self, inputs, outputs, size=(), rngs=None):
            self.kernel, self.bias = Variable((*size, inputs, outputs)), Variable((outputs,))

        def __call__(self, x):
            return (
                array(x) @ self.kernel.value if self.kernel.value.dim() == 2 else conv(x, self.kernel.value)
            ) + self.bias.value

    class Module:
        pass

    def variables(net):
        return [v for layer in vars(net).values() for v in vars(layer).values()]

    class Optimizer:
        def __init__(self, net, lr, wrt):
            self.lr = lr

        def update(self, net, grads):
            for v, g in zip(variables(net), grads, strict=True):
                v.value = v.value.detach() - self.lr * g

    def both(f):
        def run(net):
            for v in variables(net):
                v.value = v.value.detach().requires_grad_()
            loss = f(net)
            loss.backward()
            return loss.detach(), [v.value.grad for v in variables(net)]

        return run

    pooling = lambda kind: lambda x, window_shape, strides: pool(kind, x, window_shape, strides)
    nnx = module(
        'flax.nnx',
        Conv=Layer,
        Linear=Layer,
        Module=Module,
        Optimizer=Optimizer,
        Rngs=lambda seed: seed,
        Param='param',
        jit=lambda f: f,
        value_and_grad=both,
        gelu=gelu,
        relu=F.relu,
        avg_pool=pooling(F.avg_pool2d),
        max_pool=pooling(F.max_pool2d),
    )
    return module('flax', nnx=nnx), nnx, module('optax', sgd=lambda lr: lr)


def variable(v, name=None):
    "A variable of TensorFlow"
    made = torch.as_tensor(np.array(v)).requires_grad_().as_subclass(Changing)
    made.path = name
    return made


class Changing(Array):
    "A tensor that is assigned to; its numbers are copied"

    def numpy(self):
        return super().numpy().copy()

    def assign(self, v):
        assert tuple(np.shape(v)) == tuple(self.shape)
        with torch.no_grad():
            self.copy_(array(v))

    def assign_sub(self, v):
        with torch.no_grad():
            self.sub_(v)


def tensorflow():
    "tensorflow"

    class Tape:
        def __enter__(self):
            return self

        def __exit__(self, *a):
            pass

        def gradient(self, loss, variables):
            return torch.autograd.grad(loss, variables)

    nn = SimpleNamespace(
        conv2d=lambda x, w, strides, padding: conv(x, w, padding, strides),
        gelu=lambda x: gelu(x, False),
        relu=F.relu,
        avg_pool2d=lambda x, *a: pool(F.avg_pool2d, x, *a),
        max_pool2d=lambda x, *a: pool(F.max_pool2d, x, *a),
        sparse_softmax_cross_entropy_with_logits=lambda y, z: F.cross_entropy(z, y.long(), reduction='none'),
    )
    made = module(
        'tensorflow',
        nn=nn,
        reshape=lambda x, shape: x.reshape(shape),
        constant=array,
        Variable=variable,
        GradientTape=Tape,
        reduce_mean=torch.mean,
        graphs=[],
    )
    made.function = lambda f, autograph: made.graphs.append(autograph) or f
    return made


def keras():
    "keras and its layers"
    activations = {None: lambda x: x, 'gelu': lambda x: gelu(x, False), 'relu': F.relu}

    class Dense:
        def __init__(self, outputs, size=None, name=None, activation=None, padding=None):
            assert padding == (None if size is None else 'same')
            self.outputs, self.size, self.name, self.activation = outputs, size, name, activations[activation]

        def build(self, shape):
            window = () if self.size is None else (self.size, self.size)
            self.kernel = variable(np.zeros((*window, shape[-1], self.outputs), 'f4'), f'net/{self.name}/kernel')
            self.bias = variable(np.zeros(self.outputs, 'f4'), f'net/{self.name}/bias')
            return (*shape[:-1], self.outputs)

        def __call__(self, x):
            return self.activation((array(x) @ self.kernel if self.size is None else conv(x, self.kernel)) + self.bias)

    class Pool:
        def __init__(self, size):
            self.size = size

        def build(self, shape):
            return (shape[0] // self.size, shape[1] // self.size, shape[2])

        def __call__(self, x):
            return pool(self.kind, x, self.size, self.size)

    class Flatten:
        def build(self, shape):
            return (math.prod(shape),)

        def __call__(self, x):
            return x.reshape(len(x), -1)

    class Sequential:
        def __init__(self, parts):
            shape, *self.parts = parts
            for p in self.parts:
                shape = p.build(shape)
            self.trainable_variables = [v for p in self.parts if isinstance(p, Dense) for v in (p.kernel, p.bias)]

        def __call__(self, x):
            for p in self.parts:
                x = p(x)
            return x.detach() if not torch.is_grad_enabled() else x

        def compile(self, lr, loss):
            self.lr, self.loss = lr, loss

        def reset_metrics(self):
            self.sum = self.count = 0

        def fit(self, x, y, batch_size, shuffle, verbose, callbacks):
            assert not shuffle and not verbose
            self.reset_metrics()
            for c in callbacks:
                c['on_train_begin']({})
            for i in range(0, len(x), batch_size):
                for c in callbacks:
                    c['on_train_batch_begin'](i, {})
                loss = self.loss(self(x[i : i + batch_size]), torch.as_tensor(y[i : i + batch_size]))
                for v, g in zip(
                    self.trainable_variables, torch.autograd.grad(loss, self.trainable_variables), strict=True
                ):
                    v.assign_sub(self.lr * g)
                self.sum, self.count = self.sum + loss.item(), self.count + 1
                for c in callbacks:
                    c['on_train_batch_end'](i, dict(loss=self.sum / self.count))

    def entropy(from_logits):
        assert from_logits
        return lambda z, y: F.cross_entropy(z, y.long())

    layers = module(
        'keras.layers',
        Dense=Dense,
        Conv2D=Dense,
        Flatten=Flatten,
        AveragePooling2D=type('Mean', (Pool,), dict(kind=staticmethod(F.avg_pool2d))),
        MaxPooling2D=type('Most', (Pool,), dict(kind=staticmethod(F.max_pool2d))),
    )
    return module(
        'keras',
        layers=layers,
        Input=lambda shape: shape,
        Sequential=Sequential,
        losses=SimpleNamespace(SparseCategoricalCrossentropy=entropy),
        optimizers=SimpleNamespace(SGD=lambda lr: lr),
        callbacks=SimpleNamespace(LambdaCallback=lambda **kw: kw),
    ), layers


def lightning():
    "lightning"

    class Trainer:
        def __init__(
            self,
            max_epochs,
            accelerator,
            devices,
            logger,
            enable_checkpointing,
            enable_progress_bar,
            enable_model_summary,
            callbacks,
        ):
            assert (max_epochs, accelerator, devices) == (1, 'cpu', 1) and not (
                logger or enable_checkpointing or enable_progress_bar or enable_model_summary
            )
            self.callbacks = callbacks

        def fit(self, net, loader):
            opt = net.configure_optimizers()
            for c in self.callbacks:
                c.on_train_start(self, net)
            for i, batch in enumerate(loader):
                opt.zero_grad()
                net.training_step(batch, i).backward()
                opt.step()

    return module('lightning', LightningModule=torch.nn.Module, Callback=object, Trainer=Trainer)


def installed(monkeypatch):
    "Put them where the real ones would be imported from"
    fl, nnx, optax = flax()
    ke, layers = keras()
    modules = {
        'jax': jax(),
        'haiku': haiku(),
        'flax': fl,
        'flax.nnx': nnx,
        'optax': optax,
        'tensorflow': tensorflow(),
        'keras': ke,
        'keras.layers': layers,
        'lightning': lightning(),
    }
    for name, m in modules.items():
        monkeypatch.setitem(sys.modules, name, m)
    return modules
