"""Layers of libraries that no package index has, with their attributes and their arithmetic, in plain PyTorch.

Each file stands in for the upstream files named in its docstring. Tests put the classes under the upstream's module
path; where the library itself can be imported they run on its own class too.
"""
