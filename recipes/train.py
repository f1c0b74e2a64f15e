"""Trains a hierarchical classifier from a configuration file, for example

    accelerate launch recipes/train.py recipes/tickets/config.yaml --learning_rate 1e-3

Every argument of ModelArguments, DataArguments and HcalTrainingArguments can be in the file or on the command line.
The command line takes precedence.
"""

from hcal_hf import run_training
from hcal_hf.commands.command_line import replace_unencodable_output
from hcal_hf.commands.run_arguments import parse_arguments
from hcal_hf.commands.training_run import end_processes

if __name__ == "__main__":
    replace_unencodable_output()
    run_training(*parse_arguments())
    end_processes()
