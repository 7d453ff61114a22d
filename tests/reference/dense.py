"""MAML and its kernels with dense Jacobians and Hessians of a parameter vector: for tiny networks only."""

import torch

ACTIVATIONS = {"erf": torch.erf, "tanh": torch.tanh, "relu": lambda h: h * (h > 0)}


def flatten(params):
    return torch.cat([value.reshape(-1) for value in params.values()])


def unflatten(vector, like):
    parts = torch.split(vector, [value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


def head_mask(params, depth):
    """1 on the coordinates of the last layer, 0 elsewhere."""
    last = str(depth + 1)
    return torch.cat(
        [
            torch.full((v.numel(),), float(n in (f"weight{last}", f"bias{last}"))).double()
            for n, v in params.items()
        ]
    )


def forward(net, params, x):
    """Eq. (16), layer by layer, one sample at a time."""
    outputs = []
    for sample in x:
        h = sample
        for i in range(1, net.depth + 2):
            weight, bias = params[f"weight{i}"], params[f"bias{i}"]
            if net.parameterisation == "ntk":
                weight, bias = weight * net.sigma_w / weight.shape[1] ** 0.5, bias * net.sigma_b
            h = weight @ h + bias
            if i <= net.depth:
                h = ACTIVATIONS[net.activation](h)
        outputs.append(h)
    return torch.stack(outputs)


class Dense:
    """f, its Jacobian and the support loss's Hessian as functions of one parameter vector."""

    def __init__(self, net, params):
        self.net, self.like = net, params
        self.scale = float(net.width) if net.parameterisation == "standard" else 1.0
        self.theta0 = flatten(params)
        self.head = head_mask(params, net.depth)
        self.start_jacobians = {}  # by θ_0 and samples: the kernels of one test need each of them many times

    def f(self, theta, x):
        return forward(self.net, unflatten(theta, self.like), x).reshape(-1)

    def jacobian(self, theta, x):
        return torch.autograd.functional.jacobian(lambda t: self.f(t, x), theta, vectorize=True)

    def start_jacobian(self, x):
        key = self.theta0, x
        if key not in self.start_jacobians:
            self.start_jacobians[key] = self.jacobian(*key)
        return self.start_jacobians[key]

    def support_loss(self, theta, task):
        return 0.5 * ((self.f(theta, task.support_x) - task.support_y.reshape(-1)) ** 2).sum()

    def path(self, task, inner):
        """θ_0 … θ_τ, with the gradient of the loss by autograd."""
        mask = self.head if inner.algorithm == "anil" else torch.ones_like(self.head)
        thetas = [self.theta0]
        for _ in range(inner.tau):
            theta = thetas[-1].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.support_loss(theta, task), theta)
            thetas.append(thetas[-1] - inner.lam0 / self.scale * mask * gradient)
        return thetas

    def meta_output(self, task, inner):
        return self.f(self.path(task, inner)[-1], task.query_x)

    def meta_jacobian(self, task, inner):
        """∇f_{θτ}(X) Π_s (I − λ P ∇²ℓ(θ_s)), Eq. (3) for τ steps, with every matrix written out."""
        mask = self.head if inner.algorithm == "anil" else torch.ones_like(self.head)
        thetas = self.path(task, inner)
        rows = self.jacobian(thetas[-1], task.query_x)
        for theta in reversed(thetas[:-1]):
            hessian = torch.autograd.functional.hessian(
                lambda t, task=task: self.support_loss(t, task), theta, vectorize=True
            )
            rows = rows @ (
                torch.eye(len(mask)).double() - inner.lam0 / self.scale * torch.diag(mask) @ hessian
            )
        return rows

    def meta_gradient(self, tasks, inner):
        """∇𝓛 = Σ_i ∇F_iᵀ (F_i − Y_i), Eq. (3), as one vector."""
        return sum(
            self.meta_jacobian(task, inner).T @ (self.meta_output(task, inner) - task.query_y.reshape(-1))
            for task in tasks
        )

    def ntk(self, x1, x2, head_only=False):
        mask = self.head if head_only else torch.ones_like(self.head)
        return self.start_jacobian(x1) * mask @ self.start_jacobian(x2).T / self.scale
