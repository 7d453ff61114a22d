"""Kernels by neural-tangents, in another Python: reads requests as JSON from standard input, writes kernels as JSON.

That Python needs jax and neural-tangents, and nothing of this package.
"""

import json
import sys

import jax
import jax.numpy as jnp
import neural_tangents as nt
from neural_tangents import stax

jax.config.update("jax_enable_x64", True)
ACTIVATIONS = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu, "sin": stax.Sin}
NORM_EPSILON = 1e-5


def network(job):
    """The fully connected network of a request, in the limit."""

    def dense():
        return stax.Dense(1, job["sigma_w"], job["sigma_b"], parameterization=job["parameterisation"])

    def block():
        norm = [stax.LayerNorm(eps=NORM_EPSILON)] if job["layer_norm"] else []
        return stax.serial(*norm, ACTIVATIONS[job["activation"]](), dense())

    layers = [dense()]
    for i in range(1, job["depth"] + 1):
        if job["residual"] and i < job["depth"]:
            layers += [stax.FanOut(2), stax.parallel(stax.Identity(), block()), stax.FanInSum()]
        else:
            layers.append(block())
    return stax.serial(*layers)[2]


def answer(job):
    """NNGP and NTK of a request, and the outputs of a network trained by gradient flow where it has labels."""
    x1, x2 = jnp.asarray(job["x1"]), jnp.asarray(job["x2"])
    kernel_fn = network(job)
    kernel = kernel_fn(x1, x2, ("nngp", "ntk"))
    result = {"nngp": kernel.nngp.tolist(), "ntk": kernel.ntk.tolist()}
    if "labels" in job:
        labels = jnp.asarray(job["labels"])
        predict = nt.predict.gradient_descent_mse(kernel_fn(x2, None, "ntk"), labels)
        # its loss is a mean, ours a sum
        outputs = predict(job["time"] * labels.size, 0.0, 0.0, kernel.ntk)[1]
        result["outputs"] = outputs.reshape(-1).tolist()
    return result


if __name__ == "__main__":
    json.dump([answer(job) for job in json.load(sys.stdin)], sys.stdout)
