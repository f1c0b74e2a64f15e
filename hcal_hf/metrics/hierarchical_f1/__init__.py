"""Hierarchical F1 as an `evaluate` module. `hierarchical_f1.py` holds the module, and `scores.py` and `label_sets.py`
compute the scores.

This file imports none of them.
"""
