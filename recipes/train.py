"""Train a hierarchical classifier from a configuration file, for example

    accelerate launch recipes/train.py recipes/quickstart/config.yaml --learning_rate 1e-3

Every argument of hcal_hf.runner's ModelArguments and DataArguments and of HcalTrainingArguments can stand in the file or
on the command line; the command line wins.
"""

from hcal_hf.runner import end_processes, parse_arguments, run

if __name__ == "__main__":
    run(*parse_arguments())
    end_processes()
