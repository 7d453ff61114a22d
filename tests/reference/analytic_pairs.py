"""The analytic kernels of networks of Eq. (16) between two samples, in plain numbers: layer after layer."""

import math


def relu_moments(k11, k12, k22):
    size = math.sqrt(k11 * k22)
    angle = 0.0 if k12 / size > 1 - 1e-14 else math.acos(k12 / size)
    slope = (math.pi - angle) / (2 * math.pi)
    return size * math.sin(angle) / (2 * math.pi) + k12 * slope, slope


def erf_moments(k11, k12, k22):
    size = (1 + 2 * k11) * (1 + 2 * k22)
    return 2 / math.pi * math.asin(2 * k12 / math.sqrt(size)), 4 / math.pi / math.sqrt(size - 4 * k12**2)


MOMENTS = {"relu": relu_moments, "erf": erf_moments}


def kernels(net, one, two, finite_width):
    """The NTK, that of the last layer and the covariance of the outputs, of one output; samples as lists."""
    w, b, l = net.sigma_w**2, net.sigma_b**2, net.width  # noqa: E741 - the paper's width
    standard, tail = net.parameterisation == "standard", 1 / l if finite_width else 0.0
    pairs = (one, one), (one, two), (two, two)
    products = [sum(p * q for p, q in zip(*pair, strict=True)) for pair in pairs]
    k11, k12, k22 = (w * product / net.input_dim + b for product in products)
    ntk = (products[1] + 1) * tail if standard else k12
    for i in range(1, net.depth + 1):
        s1, s2 = (math.sqrt(k + 1e-5) if net.layer_norm else 1.0 for k in (k11, k22))
        n11, n12, n22 = k11 / s1**2, k12 / (s1 * s2), k22 / s2**2
        value, slope = MOMENTS[net.activation](n11, n12, n22)
        f11, f12, f22 = (w * m + b for m in (square(net, n11), value, square(net, n22)))
        last = value + tail if standard else f12
        branch = last + w * slope * ntk / (s1 * s2)
        skips = net.residual and i < net.depth
        ntk = branch + (ntk if skips else 0.0)
        k11, k12, k22 = (f + (k if skips else 0.0) for f, k in ((f11, k11), (f12, k12), (f22, k22)))
    return ntk, last, f12


def square(net, k):
    """E σ(u)² at the variance k."""
    return MOMENTS[net.activation](k, k, k)[0]
