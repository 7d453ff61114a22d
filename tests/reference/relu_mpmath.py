"""The NTK of ReLU networks of Eq. (16) between two samples, by arccos in sixty digits."""

import mpmath as mp


def relu_ntk(net, x1, x2):
    """Θ of the limit, NTK parameterisation, residual and normalised networks as well; sample pairs as lists."""
    with mp.workdps(60):
        w, b = mp.mpf(net.sigma_w) ** 2, mp.mpf(net.sigma_b) ** 2
        k11, k12, k22 = (
            w * mp.fsum(mp.mpf(p) * mp.mpf(q) for p, q in zip(one, two, strict=True)) / net.input_dim + b
            for one, two in ((x1, x1), (x1, x2), (x2, x2))
        )
        ntk = k12
        for i in range(1, net.depth + 1):
            s1, s2 = (mp.sqrt(k + mp.mpf("1e-5")) if net.layer_norm else mp.mpf(1) for k in (k11, k22))
            n11, n12, n22 = k11 / s1**2, k12 / (s1 * s2), k22 / s2**2
            size = mp.sqrt(n11 * n22)
            angle = mp.acos(min(n12 / size, mp.mpf(1)))
            slope = (mp.pi - angle) / (2 * mp.pi)
            value = size * (mp.sin(angle) + (mp.pi - angle) * mp.cos(angle)) / (2 * mp.pi)
            f11, f12, f22 = w * n11 / 2 + b, w * value + b, w * n22 / 2 + b
            branch = f12 + w * slope * ntk / (s1 * s2)
            if net.residual and i < net.depth:
                k11, k12, k22, ntk = k11 + f11, k12 + f12, k22 + f22, ntk + branch
            else:
                k11, k12, k22, ntk = f11, f12, f22, branch
        return ntk
