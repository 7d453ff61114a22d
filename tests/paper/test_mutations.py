"""The exact layer catches every wrong formula: each mutant of the source must make it fail.

A mutant is one textual change of the source; the exact tests run with it in a process of their own.
The control, without a change, must pass: then a failure is the mutant's doing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paper.fork_server import planted_errors

ROOT = Path(__file__).parents[2]
FAST = "erf-L2-l5-k2-maml-3 or erf-L2-l5-k2-anil-3"
"""The cases of the exact layer that are run."""


@dataclass(frozen=True)
class Mutant:
    """A wrong formula: in ``file`` the text ``right``, which stands there once, is replaced by ``wrong``."""

    name: str
    file: str
    right: str
    wrong: str


MUTANTS = [
    Mutant(
        "cross-terms-with-the-wrong-sign", "kernels/meta.py", "= -adaptation_matrix(", "= adaptation_matrix("
    ),
    Mutant(
        "plus-sign-of-equation-84",
        "predictors.py",
        "start[support] -= task.support_y",
        "start[support] += task.support_y",
    ),
    Mutant("sigma-for-sigma-squared", "linalg.py", "z = rate * s", "z = rate * s.clamp(min=0).sqrt()"),
    Mutant("lambda-missing-in-the-inner-step", "inner_loop.py", "rate = lam0 / model.scale", "rate = 1.0"),
    Mutant(
        "lambda-not-divided-by-the-width",
        "inner_loop.py",
        "rate = lam0 / model.scale",
        "rate = lam0",
    ),
    Mutant(
        "lambda-missing-before-the-hessian",
        "kernels/empirical_meta.py",
        "lam0 / model.scale",
        "1.0",
    ),
    Mutant("hessian-left-out", "inner_loop.py", "if inner.first_order:", "if True:"),
    Mutant(
        "hessian-with-the-wrong-sign",
        "kernels/empirical_meta.py",
        "value - rate * curvature",
        "value + rate * curvature",
    ),
    Mutant(
        "T-squared-for-T",
        "kernels/meta.py",
        "@ time_operator(support_support, dynamics)",
        "@ time_operator(support_support, dynamics) @ time_operator(support_support, dynamics)",
    ),
    Mutant(
        "T-missing",
        "kernels/meta.py",
        "query_support.double() @ time_operator(support_support, dynamics)",
        "query_support.double()",
    ),
    Mutant(
        "query-and-support-exchanged-in-the-kernel",
        "kernels/meta.py",
        "for part in (task.query_x, task.support_x)",
        "for part in (task.support_x, task.query_x)",
    ),
    Mutant(
        "query-and-support-exchanged-in-the-inner-loop",
        "inner_loop.py",
        "task.support_x), task.support_y)",
        "task.query_x), task.query_y)",
    ),
    Mutant(
        "quadratic-term-missing",
        "kernels/meta.py",
        "phi = rows @ theta @ rows.T",
        "identity = (rows == 1).double(); phi = (rows - identity) @ theta @ identity.T; "
        "phi = phi + phi.T + identity @ theta @ identity.T",
    ),
    Mutant(
        "exponential-for-the-power",
        "linalg.py",
        "return (1 - rate * s) ** steps",
        "return torch.exp(-rate * s * steps)",
    ),
    Mutant(
        "last-layer-kernel-outside-too",
        "kernels/meta.py",
        "rows = composition(theta if adaptation is None else adaptation, sizes, dynamics)",
        "theta = theta if adaptation is None else adaptation; rows = composition(theta, sizes, dynamics)",
    ),
    Mutant("full-kernel-for-the-last-layer", "inner_loop.py", "return model.head & moving", "return moving"),
    Mutant(
        "width-missing-in-the-kernel",
        "kernels/empirical.py",
        "[_finite(kernel) / model.scale for",
        "[_finite(kernel) for",
    ),
    Mutant(
        "learning-rate-not-divided-by-the-width",
        "maml.py",
        "query_labels(objective.tasks), eta0 / model.scale",
        "query_labels(objective.tasks), eta0",
    ),
    Mutant(
        "ascent-for-descent",
        "objective.py",
        "params[name].sub_(gradient, alpha=rate)",
        "params[name].add_(gradient, alpha=rate)",
    ),
    Mutant(
        "ascent-for-descent-in-the-fused-step",
        "factored/meta_gradient.py",
        "weight.sub_(change, alpha=rate * c)",
        "weight.add_(change, alpha=rate * c)",
    ),
    Mutant(
        "lambda-not-divided-by-the-width-in-the-factors",
        "factored/fast_weights.py",
        "rate, first = inner.rate / net.model.scale",
        "rate, first = inner.rate",
    ),
    Mutant(
        "fast-weights-with-the-wrong-sign",
        "factored/fast_weights.py",
        "change.cotangents, alpha=-rate)",
        "change.cotangents, alpha=rate)",
    ),
    Mutant(
        "factors-left-out-of-the-flow-back",
        "factored/fast_weights.py",
        "change.activations, alpha=-rate * layer.c**2)",
        "change.activations, alpha=0)",
    ),
    Mutant(
        "bias-left-out-of-the-factors",
        "factored/fast_weights.py",
        "return overlap + layer.c_b**2 if bias else overlap",
        "return overlap",
    ),
    Mutant(
        "only-the-last-step-remembered",
        "factored/fast_weights.py",
        "WeightChange(before.activations, before.cotangents + g)",
        "WeightChange(before.activations, g)",
    ),
    Mutant(
        "curvature-of-the-activation-left-out",
        "factored/meta_gradient.py",
        "if curvature is not None:",
        "if False:",
    ),
    Mutant(
        "hessian-left-out-of-the-factored-gradient",
        "factored/meta_gradient.py",
        "if first_order or not path.steps:",
        "if True:",
    ),
    Mutant(
        "rows-of-the-past-exchanged",
        "factored/meta_gradient.py",
        "p == 0 else u @ change.cotangents.mT",
        "p == 0 else u @ change.cotangents.flip(1).mT",
    ),
    Mutant(
        "flow-reached-by-the-forward-pass-alone",
        "factored/meta_gradient.py",
        "reverse.use(p, g[p], onto_z, overlap, path.overlaps[s].get(p), affine=False)",
        "reverse.use(p, g[p], onto_z, *(overlap if overlap is None else overlap * 0,) * 2, affine=False)",
    ),
    Mutant(
        "residual-with-the-wrong-sign",
        "predictors.py",
        "labels + residual_operator",
        "labels - residual_operator",
    ),
    Mutant(
        "columns-of-the-test-kernel-in-the-wrong-order",
        "predictors.py",
        "phi[trained:, :trained], phi_train,",
        "phi[:trained, trained:].T.flip(1), phi_train,",
    ),
    Mutant("initial-output-dropped", "predictors.py", "f0.double().clone()", "torch.zeros_like(f0.double())"),
    Mutant(
        "lambda-missing-in-the-factored-rows",
        "factored/meta_jacobian.py",
        "delta_dot * -path.rate, delta[p], e)",
        "-delta_dot, delta[p], e)",
    ),
    Mutant(
        "factored-hessian-with-the-wrong-sign",
        "factored/meta_jacobian.py",
        "e = z_dot[p] * (-path.rate * path.layers[p].c)",
        "e = z_dot[p] * (path.rate * path.layers[p].c)",
    ),
    Mutant(
        "derivative-of-the-inputs-left-out-of-the-factored-rows",
        "factored/meta_jacobian.py",
        "rows[p].add_step(a[p], delta_dot * -path.rate, delta[p], e)",
        "rows[p].add_step(a[p], delta_dot * -path.rate, delta[p], 0 * e)",
    ),
    Mutant(
        "curvature-of-the-activation-left-out-of-the-factored-rows",
        "factored/meta_jacobian.py",
        "if curvature is None:",
        "if True:",
    ),
    Mutant(
        "query-and-support-exchanged-in-the-factored-rows",
        "factored/meta_jacobian.py",
        "query = adapted_pass(path, stack.query_x)",
        "query = adapted_pass(path, stack.support_x[:, : stack.query_x.shape[1]])",
    ),
    Mutant(
        "steps-of-the-head-forgotten",
        "factored/meta_jacobian.py",
        "total = total + _r_dot(",
        "total = _r_dot(",
    ),
    Mutant(
        "bias-left-out-of-the-factored-rows",
        "factored/rows.py",
        "baddbmm_(x @ a.mT + self.beta**2, d.flatten(2))",
        "baddbmm_(x @ a.mT, d.flatten(2))",
    ),
]


@pytest.fixture(scope="module")
def exact_layer():
    """(file, right, wrong), or None -> exit status and output of the exact layer with this error."""
    tests = ROOT / "tests" / "paper" / "test_exact.py"
    with planted_errors("tests.paper.test_exact") as run:
        yield lambda error=None: run(tests, FAST, error)


def test_the_exact_layer_passes_on_the_package_as_it_is(exact_layer):
    status, output = exact_layer()
    assert status == 0, output[-2000:]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_exact_layer_fails_for(mutant, request, exact_layer):
    source = (ROOT / "mamltheory" / mutant.file).read_text()
    assert source.count(mutant.right) == 1, f"{mutant.right!r} must stand in {mutant.file} exactly once"
    status, output = exact_layer((mutant.file, mutant.right, mutant.wrong))
    # 1: tests ran and one failed; an error that cannot be planted would be 70
    assert status == 1, output[-2000:]
    caught_by = re.search(r"^FAILED .*::(\w+)", output, flags=re.MULTILINE).group(1)
    request.node.user_properties.append(("mutant", (mutant.name, mutant.file, caught_by)))
