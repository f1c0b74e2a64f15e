"""HVR as an `evaluate` module. `hvr.py` holds the module, and `violations.py` and `label_sets.py` compute the rates.

This file imports none of them.
"""
