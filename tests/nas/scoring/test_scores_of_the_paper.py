"""The scores of the search and their gradients, against the paper's formulas written out term by term.

The formulas of the score live in the theory, :mod:`mamltheory.kernels.meta` and :mod:`mamltheory.linalg`: the last test
plants errors there, in another process, and the tests above must fail with them.
"""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from mamltheory.linalg import Converged, GradientDescent, GradientFlow
from mamltheory.nas.genotype import random_genotype
from mamltheory.nas.network import NetworkSettings, supernet
from mamltheory.nas.scoring.condition_number import candidate_conditions, condition_score
from mamltheory.nas.scoring.operator_gradient import operator_gradients
from mamltheory.nas.scoring.score import ScoreSettings
from mamltheory.nas.scoring.tape import relu_with_surrogate
from mamltheory.rng import generator
from mamltheory.tasks import Task
from tests.paper.fork_server import planted_errors
from tests.reference.nas_gradient import dense_meta_ntk, equal_weights

ROOT = Path(__file__).parents[3]
WAYS = 3
SIZE = NetworkSettings(channels=2, cells=3, classes=WAYS, stem_stride=2)
LOOPS = [Converged(0.1), GradientFlow(0.05), GradientDescent(0.02, 3)]


def drawn_task():
    stream, labels = generator(0, "task"), torch.eye(WAYS, dtype=torch.float64)
    query, support = torch.randn(2, WAYS, 3, 8, 8, generator=stream, dtype=torch.float64)
    return Task(query, labels, support, labels)


def case(kernel, loop, measure="condition"):
    """A network, its candidates, tasks, settings, and names of the parameters outside and inside the loop."""
    candidates = random_genotype(generator(0, "genotype"), "all").candidates()
    network = supernet(candidates, SIZE, 0).double()
    names = {name for name, value in network.named_parameters() if value.dim() > 1}
    inner = names if kernel == "maml" else {name for name in names if name.startswith("classifier.")}
    settings = ScoreSettings(kernel, "sum", measure=measure, dynamics=loop)
    return network, candidates, [drawn_task()], settings, names, inner


@pytest.mark.parametrize("kernel", ["maml", "anil"])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: type(loop).__name__)
def test_the_score_is_the_condition_number_of_the_papers_four_terms(kernel, loop):
    network, candidates, tasks, settings, names, inner = case(kernel, loop)
    expected = float(torch.linalg.cond(dense_meta_ntk(network, tasks, names, inner, loop).detach()))
    assert condition_score(network, tasks, settings) == pytest.approx(expected, rel=1e-7)
    ((batched, failure),) = candidate_conditions(network, [candidates], tasks, settings)
    assert (batched, failure) == (pytest.approx(expected, rel=1e-7), None)


@pytest.mark.parametrize("kernel", ["maml", "anil"])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: type(loop).__name__)
def test_the_gradient_of_the_score_is_that_of_the_papers_four_terms(kernel, loop):
    """With the surrogate of ReLU in both; the terms are differentiated by autograd through explicit inverses."""
    network, candidates, tasks, settings, names, inner = case(kernel, loop, "harmonic")
    found = operator_gradients(network, candidates, tasks, settings, width=0.8)
    weights = {o: w.requires_grad_() for o, w in equal_weights(candidates).items()}
    network.mix(weights)
    for module in network.modules():
        if type(module) is nn.ReLU:
            module.register_forward_hook(lambda _, args, __: relu_with_surrogate(args[0], 0.8))
    phi = dense_meta_ntk(network, tasks, names, inner, loop)
    score = phi.trace() * torch.linalg.inv(phi).trace() / len(phi) ** 2
    slopes = torch.autograd.grad(score.log(), list(weights.values()))
    assert found.value == pytest.approx(math.log(float(score.detach())), rel=1e-7)
    torch.testing.assert_close(
        torch.tensor([*found.gradients.values()]).double(), torch.stack(slopes), rtol=1e-5, atol=1e-6
    )


ERRORS = {
    "cross terms with the wrong sign": ("kernels/meta.py", "= -adaptation_matrix(", "= adaptation_matrix("),
    "derivative of the inverse with the wrong sign": (
        "linalg.py",
        "return -torch.outer(",
        "return torch.outer(",
    ),
}


@pytest.fixture(scope="module")
def tests_of_the_search():
    """(error, or None) -> exit status and output of the tests above on MAML's kernel."""
    with planted_errors("tests.nas.scoring.test_scores_of_the_paper") as run:
        yield lambda error: run(Path(__file__), "four_terms and Converged-maml", error)


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_planted_in_the_theory_fails_the_tests_of_the_search(error, tests_of_the_search):
    file, right, _ = ERRORS[error]
    source = (ROOT / "mamltheory" / file).read_text()
    assert source.count(right) == 1, f"{right!r} must stand in {file} exactly once"
    status, output = tests_of_the_search(ERRORS[error])
    # 1: tests ran and one failed; an error that cannot be planted would be 70
    assert status == 1, output[-2000:]
    assert "AssertionError" in output, output[-2000:]
