"""Predicts every row of a file with a saved model, for example

    python recipes/predict.py outputs/naics2012/model tickets.jsonl --out predictions.parquet
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/predict.py MODEL FILE --out OUT.parquet

The second command divides the rows among the processes. The arguments are those of `hcal predict`. --help lists them.
"""

import sys

from hcal_hf.commands.main import main
from hcal_hf.commands.training_run import end_processes

if __name__ == "__main__":
    status = main(["predict", *sys.argv[1:]])
    end_processes()
    sys.exit(status)
