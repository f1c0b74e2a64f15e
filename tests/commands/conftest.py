"""Runs commands in the process of the tests."""

import pytest

from hcal_hf.commands import main as cli


@pytest.fixture
def hcal(tmp_path, monkeypatch, capsys):
    """Returns a function that runs a command in a new folder and returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        try:
            code = cli.main(list(map(str, words)))
        except SystemExit as problem:
            code = problem.code
        return (code, *capsys.readouterr())

    return run
