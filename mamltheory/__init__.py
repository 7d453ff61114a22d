"""MAML as kernel regression: a theory verified numerically, and put to work in a training-free search.

Tasks and networks
    Task                              a few-shot task of queries and support samples
    FullyConnected                    a wide network of Eq. (16)
    Model                             any network as a pure function of its parameters
    from_module                       a torch module as such a function
    centred, linearised               f_θ − f_{θ0}, and the tangent of f at θ0
    generator                         random numbers for one purpose

MAML and ANIL
    InnerLoop                         rate, number of steps and algorithm of the inner loop
    adapt, meta_output                the adapted parameters θ', and the output F_θ = f_{θ'}(X)
    meta_outputs, meta_loss           F_θ of all tasks, and the meta-loss (2)
    meta_gradient, meta_method        its exact gradient (3), and how that is computed
    train                             gradient descent (28), with a record
    largest_rate, largest_inner_rate  below which the outer and the inner loop contract, Theorem 3
    Optimiser                         its momentum, batches of tasks, and the parameters that it moves

Kernels
    analytic_ntk, nngp                the NTK and NNGP kernel of infinite width
    analytic_last_layer_ntk           the NTK of the last layer, for ANIL
    empirical_ntk                     the NTK of a finite network
    empirical_last_layer_ntk          the NTK of its last layer
    joint_inputs                      the samples of tasks, in the order of the MetaNTK's kernels
    meta_ntk                          the MetaNTK Φ of tasks, from a network
    meta_ntk_from_ntk                 Φ from the NTK over the joint inputs
    analytic_meta_ntk                 Φ at infinite width
    adaptation_ntk                    the kernel of an inner loop's own parameters and rates (BOIL, CAVIA, Meta-SGD)
    first_order_meta_ntk              what takes the place of Φ for first-order MAML
    empirical_meta_ntk                Φ̂ = (1/l) ∇F ∇Fᵀ of a finite network
    monte_carlo_ntk                   the mean NTK of any architecture, a KernelEstimate with standard errors
    monte_carlo_meta_ntk              the mean MetaNTK, likewise

Closed forms
    GradientFlow, GradientDescent, Converged    how long a loop runs
    ScheduledDescent, SampledDescent            with a rate a step and momentum; on some tasks a step
    time_operator, residual_operator            what is learnt of a kernel's labels by then, and what is left
    condition_number                            σ_max/σ_min of a kernel, Eq. (14)
    score                                       log₁₀ of it, with its interval over initialisations and tasks
    adapted_output                              the output after the inner loop
    trained_output                              the meta-output after training, on any task
    trained_output_on_training_tasks            the meta-output after training, on the training tasks
    kernel_regression                           both from the NTK alone, Theorem 2; with nngp= the ensemble's covariance

Your own network
    verify                            the theorems for networks of several widths: measured, fitted and judged

``mamltheory.fewshot`` has data, training and evaluation, ``mamltheory.nas`` cells and their searches.
"""

from typing import TYPE_CHECKING

from mamltheory.lazy import lazy_names
from mamltheory.version import __version__ as __version__

if TYPE_CHECKING:
    from mamltheory.finite_width.verification import verify
    from mamltheory.inner_loop import InnerLoop, adapt, meta_output
    from mamltheory.kernels.adaptation import adaptation_ntk, first_order_meta_ntk
    from mamltheory.kernels.analytic import analytic_last_layer_ntk, analytic_ntk, nngp
    from mamltheory.kernels.empirical import empirical_last_layer_ntk, empirical_ntk
    from mamltheory.kernels.empirical_meta import empirical_meta_ntk
    from mamltheory.kernels.meta import analytic_meta_ntk, joint_inputs, meta_ntk, meta_ntk_from_ntk
    from mamltheory.kernels.monte_carlo import KernelEstimate, monte_carlo_meta_ntk, monte_carlo_ntk
    from mamltheory.linalg import (
        Converged,
        GradientDescent,
        GradientFlow,
        SampledDescent,
        ScheduledDescent,
        condition_number,
        residual_operator,
        time_operator,
    )
    from mamltheory.maml import Optimiser, train
    from mamltheory.network_score import score
    from mamltheory.networks import FullyConnected, Model, centred, from_module, linearised
    from mamltheory.objective import meta_gradient, meta_loss, meta_method, meta_outputs
    from mamltheory.predictors import (
        adapted_output,
        kernel_regression,
        trained_output,
        trained_output_on_training_tasks,
    )
    from mamltheory.rates import largest_inner_rate, largest_rate
    from mamltheory.rng import generator
    from mamltheory.tasks import Task

__all__ = [
    "Converged",
    "FullyConnected",
    "GradientDescent",
    "GradientFlow",
    "InnerLoop",
    "KernelEstimate",
    "Model",
    "Optimiser",
    "SampledDescent",
    "ScheduledDescent",
    "Task",
    "adapt",
    "adaptation_ntk",
    "adapted_output",
    "analytic_last_layer_ntk",
    "analytic_meta_ntk",
    "analytic_ntk",
    "centred",
    "condition_number",
    "empirical_last_layer_ntk",
    "empirical_meta_ntk",
    "empirical_ntk",
    "first_order_meta_ntk",
    "from_module",
    "generator",
    "joint_inputs",
    "kernel_regression",
    "largest_inner_rate",
    "largest_rate",
    "linearised",
    "meta_gradient",
    "meta_loss",
    "meta_method",
    "meta_ntk",
    "meta_ntk_from_ntk",
    "meta_output",
    "meta_outputs",
    "monte_carlo_meta_ntk",
    "monte_carlo_ntk",
    "nngp",
    "residual_operator",
    "score",
    "time_operator",
    "train",
    "trained_output",
    "trained_output_on_training_tasks",
    "verify",
]

_PLACES = {
    "adapt": "inner_loop",
    "adaptation_ntk": "kernels.adaptation",
    "adapted_output": "predictors",
    "analytic_last_layer_ntk": "kernels.analytic",
    "analytic_meta_ntk": "kernels.meta",
    "analytic_ntk": "kernels.analytic",
    "centred": "networks",
    "condition_number": "linalg",
    "Converged": "linalg",
    "empirical_last_layer_ntk": "kernels.empirical",
    "empirical_meta_ntk": "kernels.empirical_meta",
    "empirical_ntk": "kernels.empirical",
    "first_order_meta_ntk": "kernels.adaptation",
    "from_module": "networks",
    "FullyConnected": "networks",
    "generator": "rng",
    "GradientDescent": "linalg",
    "GradientFlow": "linalg",
    "InnerLoop": "inner_loop",
    "joint_inputs": "kernels.meta",
    "kernel_regression": "predictors",
    "KernelEstimate": "kernels.monte_carlo",
    "largest_inner_rate": "rates",
    "largest_rate": "rates",
    "linearised": "networks",
    "meta_gradient": "objective",
    "meta_loss": "objective",
    "meta_method": "objective",
    "meta_ntk": "kernels.meta",
    "meta_ntk_from_ntk": "kernels.meta",
    "meta_output": "inner_loop",
    "meta_outputs": "objective",
    "Model": "networks",
    "monte_carlo_meta_ntk": "kernels.monte_carlo",
    "monte_carlo_ntk": "kernels.monte_carlo",
    "nngp": "kernels.analytic",
    "Optimiser": "maml",
    "residual_operator": "linalg",
    "SampledDescent": "linalg",
    "ScheduledDescent": "linalg",
    "score": "network_score",
    "Task": "tasks",
    "time_operator": "linalg",
    "train": "maml",
    "trained_output": "predictors",
    "trained_output_on_training_tasks": "predictors",
    "verify": "finite_width.verification",
}

__getattr__, __dir__ = lazy_names(__name__, _PLACES, packages=("fewshot", "nas"))
