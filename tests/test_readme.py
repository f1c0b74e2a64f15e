"""The README's first example runs as it stands, on a tiny encoder."""

import re
from pathlib import Path

from hcal_hf import build_taxonomy

ROOT = Path(__file__).parent.parent


def test_the_first_example_runs(monkeypatch, tmp_path, encoder_dir, capsys):
    monkeypatch.chdir(ROOT)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) <= 15
    code = code.replace("sentence-transformers/all-MiniLM-L6-v2", encoder_dir)
    code = code.replace(
        '"outputs/tickets", num_train_epochs=20', f'"{tmp_path}", num_train_epochs=1, report_to="none"'
    )
    assert encoder_dir in code
    assert str(tmp_path) in code
    exec(compile(code, "README.md", "exec"), scope := {})
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"0\.\d\d |1\.00 ", line)]
    assert 2 <= len(lines) <= 3
    taxonomy = scope["taxonomy"]
    assert taxonomy == build_taxonomy(scope["tickets"], scope["levels"])
    assert taxonomy.index_path(lines[-1].split(" ", 1)[1].split(" > ")) >= 3


def test_files_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`((?:hcal_hf|recipes|tests)/[\w/.]*)`", text))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
