"""Evaluate a saved model on a split, and fit what follows training on the validation split first, for example

    python recipes/evaluate.py outputs/quickstart/model --data_dir outputs/quickstart/data --temperature --tune macro_f1

Every argument of hcal_hf.evaluator's EvaluationArguments and of hcal_hf.runner's TableArguments can stand on the command
line; --help lists them.
"""

from hcal_hf.evaluator import evaluate, parse_arguments

if __name__ == "__main__":
    evaluate(*parse_arguments())
