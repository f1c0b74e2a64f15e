"""Evaluates a saved model on a split, after fitting temperature, thresholds or risk on the validation split, for example

    python recipes/evaluate.py outputs/naics2012/model --data_dir DATA --temperature --tune macro_f1

The command line accepts every argument of EvaluationArguments and TableArguments. --help lists them.
"""

from hcal_hf import evaluate_model
from hcal_hf.commands.evaluation_run import parse_arguments

if __name__ == "__main__":
    evaluate_model(*parse_arguments())
