"""Hierarchical F1 as an `evaluate` module: `label_sets.py` and `scores.py` hold the maths, `hierarchical_f1.py` the module.

Imports none of them by itself.
"""
