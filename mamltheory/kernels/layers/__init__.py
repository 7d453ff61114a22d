"""Kernels layer by layer: the per-sample gradients of each layer, and their Gram matrices."""
