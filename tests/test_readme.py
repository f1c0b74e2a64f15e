"""Runs the first example of the README with a tiny encoder."""

import ast
import re
from pathlib import Path

from hcal_hf import build_taxonomy

ROOT = Path(__file__).parent.parent


def test_the_first_example_runs(monkeypatch, tmp_path, encoder_dir, capsys):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(code.splitlines()) == 10
    code = code.replace("sentence-transformers/all-MiniLM-L6-v2", encoder_dir)
    code = code.replace(
        '"outputs/tickets", num_train_epochs=20', f'"{tmp_path}", num_train_epochs=1, report_to="none"'
    )
    assert encoder_dir in code
    assert str(tmp_path) in code
    exec(compile(code, "README.md", "exec"), scope := {})
    taxonomy = scope["taxonomy"]
    assert taxonomy == build_taxonomy(scope["tickets"], scope["levels"])
    printed = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    shown = ast.literal_eval(re.search(r"```text\n(.*?)```", text, re.DOTALL)[1])
    assert printed.keys() == shown.keys() == {"label", "score", "depth", "path"}
    for label in (printed, shown):  # the output in the README is a label of that taxonomy
        assert taxonomy.paths(taxonomy.index(label["label"])) == [label["path"]]


def test_files_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(((?:docs|recipes|model_cards)/[\w/.]*)\)", text))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
