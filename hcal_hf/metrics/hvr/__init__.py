"""HVR as an `evaluate` module: `label_sets.py` and `violations.py` hold the maths, `hvr.py` the module.

Imports none of them by itself.
"""
