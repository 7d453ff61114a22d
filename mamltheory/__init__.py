"""MAML as kernel regression: a theory verified numerically, and put to work in a training-free search."""

# tasks and networks
from mamltheory.inner_loop import InnerLoop, adapt, meta_output

# kernels
from mamltheory.kernels.analytic import analytic_last_layer_ntk, analytic_ntk, nngp
from mamltheory.kernels.empirical import empirical_last_layer_ntk, empirical_ntk
from mamltheory.kernels.empirical_meta import empirical_meta_ntk
from mamltheory.kernels.meta import analytic_meta_ntk, joint_inputs, meta_ntk, meta_ntk_from_ntk

# how long a loop runs, and functions of a kernel
from mamltheory.linalg import (
    Converged,
    GradientDescent,
    GradientFlow,
    condition_number,
    residual_operator,
    time_operator,
)

# training and its closed form
from mamltheory.maml import train
from mamltheory.networks import FullyConnected, Model, centred, from_module, linearised
from mamltheory.objective import meta_gradient, meta_loss, meta_method, meta_outputs
from mamltheory.predictors import (
    adapted_output,
    kernel_regression,
    trained_output,
    trained_output_on_training_tasks,
)
from mamltheory.rng import generator
from mamltheory.tasks import Task

__all__ = [
    "Converged",
    "FullyConnected",
    "GradientDescent",
    "GradientFlow",
    "InnerLoop",
    "Model",
    "Task",
    "adapt",
    "adapted_output",
    "analytic_last_layer_ntk",
    "analytic_meta_ntk",
    "analytic_ntk",
    "centred",
    "condition_number",
    "empirical_last_layer_ntk",
    "empirical_meta_ntk",
    "empirical_ntk",
    "from_module",
    "generator",
    "joint_inputs",
    "kernel_regression",
    "linearised",
    "meta_gradient",
    "meta_loss",
    "meta_method",
    "meta_ntk",
    "meta_ntk_from_ntk",
    "meta_output",
    "meta_outputs",
    "nngp",
    "residual_operator",
    "time_operator",
    "train",
    "trained_output",
    "trained_output_on_training_tasks",
]
