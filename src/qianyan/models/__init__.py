"""Tensors in, tensors out: the architectures, their weights, and no request or engine."""
