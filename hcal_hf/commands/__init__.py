"""The command `hcal`: one module for each subcommand."""
