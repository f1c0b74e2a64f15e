"""HVR as an `evaluate` module: `violations.py` holds the maths, `hvr.py` the module. Imports neither by itself."""
