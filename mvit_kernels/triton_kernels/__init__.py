"""Triton kernels of the four ops, for NVIDIA and AMD GPUs.

Importing a kernel module imports triton. Importing this package does not, nor does it ask for a driver.
"""
