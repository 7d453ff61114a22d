"""Empirical kernels row by row: one plain backward pass for every output of every sample, no transform."""

import torch


def jacobian_rows(module, x, names=None):
    """n·k × D, sample-major: the gradient of output c of sample i, each sample through the network alone.

    names: of the parameters; None for all that require a gradient. Every sample meets the buffers as they are.
    """
    chosen = [
        value
        for name, value in module.named_parameters()
        if (value.requires_grad if names is None else name in names)
    ]
    rows = []
    for sample in x:
        buffers = {name: value.clone() for name, value in module.named_buffers()}
        output = torch.func.functional_call(module, buffers, (sample[None].clone(),))[0]
        for value in output:
            gradient = torch.autograd.grad(value, chosen, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradient, chosen, strict=True)]
            rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def ntk(module, x1, x2, names=None):
    """Θ̂ without the factor 1/l."""
    return jacobian_rows(module, x1, names).double() @ jacobian_rows(module, x2, names).double().T
