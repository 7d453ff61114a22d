"""The MetaNTK and meta-gradient of a module row by row: plain autograd through a hand-written inner loop."""

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def adapted(module, values, task, rate, steps):
    """θ_τ, differentiable in θ; parameters that do not require a gradient stay."""
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    theta = dict(values)
    for _ in range(steps):
        buffers = {name: value.clone() for name, value in module.named_buffers()}
        residual = (
            functional_call(module, {**buffers, **theta}, (task.support_x.clone(),), tie_weights=False)
            - task.support_y
        )
        moving = [name for name in theta if name not in frozen]
        gradient = torch.autograd.grad(
            residual.square().sum() / 2,
            [theta[name] for name in moving],
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        theta |= {name: theta[name] - rate * g for name, g in zip(moving, gradient, strict=True)}
    return theta


@sdpa_kernel(SDPBackend.MATH)  # the other kernels of attention have no second derivative
def meta_outputs(module, values, tasks, rate, steps):
    outputs = []
    for task in tasks:
        theta = adapted(module, values, task, rate, steps)
        buffers = {name: value.clone() for name, value in module.named_buffers()}
        outputs.append(
            functional_call(module, {**buffers, **theta}, (task.query_x.clone(),), tie_weights=False).reshape(
                -1
            )
        )
    return torch.cat(outputs)


def meta_ntk(module, tasks, rate, steps):
    """∇F ∇Fᵀ over the parameters that require a gradient, one backward pass a row."""
    values = dict(module.named_parameters())
    moving = [value for value in values.values() if value.requires_grad]
    rows = []
    for output in meta_outputs(module, values, tasks, rate, steps):
        parts = torch.autograd.grad(
            output, moving, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    rows = torch.stack(rows)
    return rows @ rows.T


def meta_gradient(module, tasks, rate, steps):
    """∇𝓛 by every parameter that requires a gradient."""
    values = dict(module.named_parameters())
    labels = torch.cat([task.query_y.reshape(-1) for task in tasks])
    loss = (meta_outputs(module, values, tasks, rate, steps) - labels).square().sum() / 2
    moving = {name: value for name, value in values.items() if value.requires_grad}
    parts = torch.autograd.grad(loss, list(moving.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(moving, parts, strict=True))
