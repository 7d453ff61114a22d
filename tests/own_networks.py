"""Networks as users bring them: layers that torch cannot vectorise, that mix samples, that write to themselves."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mamltheory import Task, generator


class Own(nn.Module):
    """A user's forward pass over named layers and parameters."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


class Cubed(torch.autograd.Function):
    """A function without the parts that torch.func asks for."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x**2


class Approximate(torch.autograd.Function):
    """The identity, with a batching rule that is wrong in its seventh digit."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004
        return Approximate.apply(gradient)

    @staticmethod
    def vmap(info, in_dims, x):  # noqa: ARG004
        return Approximate.apply(x) * (1 + 1e-7), in_dims[0]


class Standardised(nn.Conv2d):
    """A convolution by standardised weights, beneath ``forward``."""

    def _conv_forward(self, x, weight, bias):
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        return super()._conv_forward(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), bias)


def patched(network):
    layer = network[0]
    layer.forward = lambda x: nn.functional.linear(x, layer.weight, layer.bias).sin()
    return network


def force(module, x):
    """The gradient of an energy by the samples, itself differentiable."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(module.b(module.a(x).tanh()).sum(), x, create_graph=True)[0]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "samples"), dtype=torch.float64)


N = 5  # as many samples as outputs: an axis that is taken for the other does not show in shapes
VECTORS, SEQUENCES, IMAGES = draw(N, 4), draw(N, 6, 4), draw(N, 3, 6, 6)
TOKENS = torch.tensor([[0, 3, 6], [1, 1, 2], [5, 4, 0], [2, 6, 3], [4, 4, 4]])


def recurrent(kind, **options):
    width = 4 * (2 if options.get("bidirectional") else 1)
    return Own(
        lambda s, x: s.head(s.cell(x)[0][:, -1]),
        cell=kind(4, 4, batch_first=True, **options),
        head=nn.Linear(width, 5),
    )


def linear(*between):
    return nn.Sequential(nn.Linear(4, 5), *between, nn.Linear(5, 5))


RIGHT = {  # name -> (network, samples)
    "prelu": (lambda: linear(nn.PReLU()), VECTORS),
    "prelu-slopes": (lambda: linear(nn.PReLU(5)), VECTORS),
    "prototypes": (
        lambda: Own(
            lambda s, x: -torch.cdist(s.a(x), s.p, compute_mode="use_mm_for_euclid_dist"),
            a=nn.Linear(4, 6),
            p=nn.Parameter(torch.randn(5, 6)),
        ),
        VECTORS,
    ),
    "temperature": (
        lambda: Own(lambda s, x: s.t.exp() * s.a(x), a=nn.Linear(4, 5), t=nn.Parameter(torch.tensor(0.3))),
        VECTORS,
    ),
    "lstm": (lambda: recurrent(nn.LSTM, num_layers=2, bidirectional=True), SEQUENCES),
    "gru": (lambda: recurrent(nn.GRU), SEQUENCES),
    "rnn": (lambda: recurrent(nn.RNN), SEQUENCES),
    "tokens": (
        lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Tanh(), nn.Linear(12, 5)),
        TOKENS,
    ),
    "instance-norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 5),
        ),
        IMAGES,
    ),
    "spectral-norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 5)
        ),
        VECTORS,
    ),
    "attention": (
        lambda: Own(
            lambda s, x: s.head((x + s.attention(x, x, x, need_weights=False)[0]).mean(1)),
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
            head=nn.Linear(4, 5),
        ),
        SEQUENCES,
    ),
    "control-flow": (
        lambda: Own(
            lambda s, x: s.b(torch.tanh(s.a(x))) if float(x.detach().sum()) < 1e9 else s.a(x),
            a=nn.Linear(4, 5),
            b=nn.Linear(5, 5),
        ),
        VECTORS,
    ),
    "old-function": (
        lambda: Own(lambda s, x: s.b(Cubed.apply(s.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 5)),
        VECTORS,
    ),
    "approximate": (
        lambda: Own(lambda s, x: s.b(Approximate.apply(s.a(x)).tanh()), a=nn.Linear(4, 5), b=nn.Linear(5, 5)),
        VECTORS,
    ),
    "other-values": (
        lambda: Own(
            lambda s, x: s.b(torch.func.functional_call(s.a, {"weight": s.w.tanh(), "bias": s.a.bias}, (x,))),
            a=nn.Linear(4, 5),
            w=nn.Parameter(torch.randn(5, 4)),
            b=nn.Linear(5, 5),
        ),
        VECTORS,
    ),
    "vmap-inside": (
        lambda: Own(lambda s, x: s.b(torch.vmap(s.a)(x).tanh()), a=nn.Linear(4, 5), b=nn.Linear(5, 5)),
        VECTORS,
    ),
    "constant-part": (
        lambda: Own(lambda s, x: s.b(s.a(x).tanh() + s.a(x).data), a=nn.Linear(4, 5), b=nn.Linear(5, 5)),
        VECTORS,
    ),
    "own-convolution": (
        lambda: nn.Sequential(
            Standardised(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        ),
        IMAGES,
    ),
    "patched-forward": (lambda: patched(linear(nn.Tanh())), VECTORS),
    "gradient-inside": (
        lambda: Own(
            lambda s, x: s.head(force(s, x)), a=nn.Linear(4, 6), b=nn.Linear(6, 1), head=nn.Linear(4, 5)
        ),
        VECTORS,
    ),
    "in-place-first": (lambda: nn.Sequential(nn.SiLU(inplace=True), nn.Linear(4, 5)), VECTORS),
    "one-number": (
        lambda: Own(lambda s, x: s.w * x[:, :1].expand(-1, 5).tanh(), w=nn.Parameter(torch.tensor(2.0))),
        VECTORS,
    ),
}


def between(change):
    """A change between two linear layers."""
    return Own(lambda s, x: s.b(torch.tanh(change(s.a(x)))), a=nn.Linear(4, 5), b=nn.Linear(5, 5))


MIXING = {  # the output or gradient of a sample depends on the other samples, on its place, or on chance
    "cumulative-sum": (lambda: between(lambda h: h.cumsum(0)), VECTORS),
    "neighbours": (lambda: between(lambda h: (h + h.roll(1, 0) + h.roll(-1, 0)) / 3), VECTORS),
    "batch-norm-by-hand": (lambda: between(lambda h: (h - h.mean(0)) / (h.var(0) + 1e-5).sqrt()), VECTORS),
    "detached-mean": (lambda: between(lambda h: h - h.mean(0).detach()), VECTORS),
    "place-in-the-batch": (
        lambda: between(lambda h: h + torch.arange(len(h), dtype=h.dtype)[:, None]),
        VECTORS,
    ),
    "pairs": (lambda: between(lambda h: torch.cat([h[:-1] + h[1:], h[-1:]])), VECTORS),
    "batch-as-sequence": (
        lambda: Own(lambda s, x: s.head(s.cell(x)[0][:, -1]), cell=nn.LSTM(4, 4), head=nn.Linear(4, 5)),
        SEQUENCES,
    ),
    "attention-over-the-batch": (
        lambda: Own(
            lambda s, x: s.head(s.attention(x, x, x, need_weights=False)[0].mean(1)),
            attention=nn.MultiheadAttention(4, 2),
            head=nn.Linear(4, 5),
        ),
        SEQUENCES,
    ),
    "dropout-by-function": (lambda: between(lambda h: nn.functional.dropout(h, 0.4, True)), VECTORS),
    "noise": (lambda: between(lambda h: h + torch.randn_like(h)), VECTORS),
    "after-the-last": (
        lambda: nn.Sequential(nn.Linear(4, 5), Own(lambda _, h: h + h.detach().mean(0))),
        VECTORS,
    ),
    "in-a-layer": (lambda: linear(Own(lambda _, h: h - h.mean(0))), VECTORS),
}


STRAIGHT_THROUGH = (lambda: between(lambda h: h + (h.mean(0) - h.mean(0).detach())), VECTORS)
"""Equal outputs in every batch, and gradients that mix samples."""


def checkpointed(reentrant, first):
    def forward(s, x):
        if first:
            return s.b(torch.tanh(checkpoint(s.a, x, use_reentrant=reentrant)))
        return checkpoint(s.b, torch.tanh(s.a(x)), use_reentrant=reentrant)

    return Own(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 5))


def made(make, seed=0):
    """A network with its first weights drawn from the seed, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def tasks_of(x, outputs=5):
    """Two tasks from these samples, with one-hot labels."""
    labels = torch.eye(outputs, dtype=torch.float64)
    return [Task(x[:2], labels[:2], x[2:], labels[2:5]), Task(x[1:4], labels[1:4], x[:2], labels[3:5])]
