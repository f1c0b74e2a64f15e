"""Evaluate a saved model on a split, and fit what follows training on the validation split first, for example

    python recipes/evaluate.py outputs/quickstart/model --data_dir outputs/quickstart/data --temperature --tune macro_f1

The command line takes every argument of EvaluationArguments and TableArguments; --help lists them.
"""

from hcal_hf import evaluate_model
from hcal_hf.commands.evaluate import parse_arguments

if __name__ == "__main__":
    evaluate_model(*parse_arguments())
