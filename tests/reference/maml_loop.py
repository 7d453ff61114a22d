"""MAML and ANIL task by task with every weight written out: plain autograd, nothing shared, nothing clever."""

import torch

ACTIVATIONS = {"erf": torch.erf, "tanh": torch.tanh, "relu": torch.relu}


def forward(net, params, x):
    for i in range(1, net.depth + 2):
        weight, bias = params[f"weight{i}"], params[f"bias{i}"]
        if net.parameterisation == "ntk":
            weight, bias = weight * net.sigma_w / weight.shape[1] ** 0.5, bias * net.sigma_b
        x = x @ weight.T + bias
        if i <= net.depth:
            x = ACTIVATIONS[net.activation](x)
    return x


def adapted(net, params, task, inner, f):
    rate = inner.lam0 / (net.width if net.parameterisation == "standard" else 1)
    head = (f"weight{net.depth + 1}", f"bias{net.depth + 1}")
    moving = head if inner.algorithm == "anil" else tuple(params)
    theta = dict(params)
    for _ in range(inner.tau):
        loss = 0.5 * ((f(theta, task.support_x) - task.support_y) ** 2).sum()
        gradient = torch.autograd.grad(loss, [theta[name] for name in moving], create_graph=True)
        for name, value in zip(moving, gradient, strict=True):
            theta[name] = theta[name] - rate * (value.detach() if inner.first_order else value)
    return theta


def meta_gradient(net, params, tasks, inner, origin=None):
    """∇𝓛 by name, and the meta-outputs in the order of the tasks; ``origin``: θ0 of a centred network."""
    params = {name: value.clone().requires_grad_() for name, value in params.items()}

    def f(theta, x):
        return forward(net, theta, x) - (0 if origin is None else forward(net, origin, x))

    total, outputs = dict.fromkeys(params, 0), []
    for task in tasks:
        output = f(adapted(net, params, task, inner, f), task.query_x)
        loss = 0.5 * ((output - task.query_y) ** 2).sum()
        for name, value in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
            total[name] = total[name] + value
        outputs.append(output.detach().reshape(-1))
    return total, torch.cat(outputs)
