"""The measured process of neural-tangents, in another Python; it reads weights and samples from a file.

``PYTHON -m experiments.benchmarks.tangents_worker REQUEST`` prints one JSON line. That Python needs jax and
neural-tangents, and nothing of this package. Structured derivatives (its third way), compiled.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np

from .clock import Arrays, Call, Job, ProcessClock, answer_request, measure_method

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def fully_connected(params: list, x: jax.Array) -> jax.Array:
    """Linear layers with relu in between; weights of shape fan_in × fan_out."""
    for i in range(0, len(params), 2):
        x = (jax.nn.relu(x) if i else x) @ params[i] + params[i + 1]
    return x


def convolutional(strides: tuple[int, ...]) -> Callable[[list, jax.Array], jax.Array]:
    """3 × 3 convolutions with relu, the mean over space and a linear layer; channels last."""

    def function(params: list, x: jax.Array) -> jax.Array:
        for i, stride in enumerate(strides):
            x = jax.lax.conv_general_dilated(
                x, params[2 * i], (stride, stride), [(1, 1), (1, 1)], dimension_numbers=DIMENSIONS
            )
            x = jax.nn.relu(x + params[2 * i + 1])
        return x.mean((1, 2)) @ params[-2] + params[-1]

    return function


def in_jax_order(array: np.ndarray) -> jax.Array:
    """An array of torch in the order of axes of jax: channels last, fan_out last."""
    # This happens outside of the network, because the package finds no structure behind a transposition.
    axes = {2: (1, 0), 4: (2, 3, 1, 0)}.get(array.ndim)
    return jnp.asarray(np.ascontiguousarray(array if axes is None else array.transpose(axes)))


def prepare_kernel(job: Job) -> tuple[Call, Callable[[object], Arrays]]:
    """The compiled kernel of the network in the job's file."""
    with np.load(job["file"]) as file:
        params = [in_jax_order(file[name]) for name in sorted(file.files) if name != "x"]
        samples = file["x"]
    x = jnp.asarray(samples.transpose(0, 2, 3, 1) if samples.ndim == 4 else samples)
    function = convolutional(tuple(job["strides"])) if job["strides"] else fully_connected
    kernel_fn = nt.empirical_ntk_fn(
        function, trace_axes=(), vmap_axes=0, implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES
    )
    kernel = jax.jit(lambda samples, weights: kernel_fn(samples, None, weights))

    def arrays(result: jax.Array) -> Arrays:
        n, _, k, _ = result.shape
        return [np.asarray(result).transpose(0, 2, 1, 3).reshape(n * k, n * k)]

    return lambda: kernel(x, params).block_until_ready(), arrays


if __name__ == "__main__":
    # The rate of matrix products is measured in torch's processes.
    answer_request(lambda request: measure_method(request, prepare_kernel, ProcessClock()))
