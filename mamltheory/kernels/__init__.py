"""Kernels: analytic Θ and 𝒦 in the limit, empirical Θ̂ and Φ̂, and the MetaNTK composed of either."""
