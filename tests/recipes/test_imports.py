"""Recipes and model cards import only public names of hcal_hf, with listed exceptions."""

import ast
import re
from pathlib import Path

import pytest

import hcal_hf

ROOT = Path(__file__).parents[2]
# (file, module, name) of each import of an internal name -> the reason.
EXCEPTIONS = {
    ("recipes/train.py", "hcal_hf.commands.run_arguments", "parse_arguments"): "It is the command's own parser.",
    (
        "recipes/train.py",
        "hcal_hf.commands.training_run",
        "end_processes",
    ): "Only a launched script ends its processes.",
    (
        "recipes/train.py",
        "hcal_hf.commands.command_line",
        "replace_unencodable_output",
    ): "Only a script changes its output streams.",
    ("recipes/evaluate.py", "hcal_hf.commands.evaluation_run", "parse_arguments"): "It is the command's own parser.",
    ("recipes/predict.py", "hcal_hf.commands.main", "main"): "It is the command `hcal` itself.",
    (
        "recipes/predict.py",
        "hcal_hf.commands.training_run",
        "end_processes",
    ): "Only a launched script ends its processes.",
    (
        "recipes/benchmarks/few_labels.py",
        "hcal_hf.training.regime",
        "FINE_TUNING_FEW",
    ): "It measures the settings of `hcal train`.",
    (
        "recipes/benchmarks/few_labels.py",
        "hcal_hf.training.solver",
        "feature_tensors",
    ): "It converts features as the Trainer does.",
    (
        "recipes/benchmarks/audit.py",
        "hcal_hf.data.texts",
        "group_equal_texts",
    ): "Equal texts share a fold, as in `audit_labels`.",
    ("recipes/benchmarks/data.py", "hcal_hf.anchors", "label_texts"): "They are the texts of embedded labels.",
    ("recipes/benchmarks/data.py", "hcal_hf.lexical", "LexicalFeatures"): "It computes them without the encoder.",
    ("recipes/benchmarks/data.py", "hcal_hf.training.lexical_fit", "LEXICAL_FEATURES"): "It is the default number.",
    ("recipes/benchmarks/data.py", "hcal_hf.training.lexical_fit", "fit_lexical"): "It fits them without the encoder.",
    ("recipes/benchmarks/data.py", "hcal_hf.training.solver", "STRENGTHS"): "They are the default of the heads.",
    ("recipes/benchmarks/frozen.py", "hcal_hf.training.solver", "STRENGTHS"): "They are the default of its option.",
    ("recipes/benchmarks/lexical.py", "hcal_hf.training.solver", "STRENGTHS"): "They are the default of its option.",
    ("recipes/benchmarks/windows.py", "hcal_hf.windows", "WindowInputs"): "It pools windows that were read once.",
    ("recipes/benchmarks/windows.py", "hcal_hf.windows", "pool_windows"): "It pools windows that were read once.",
}
SCRIPTS = sorted([*(ROOT / "recipes").rglob("*.py"), *(ROOT / "model_cards").rglob("*.py")])
PAGES = sorted([*(ROOT / "recipes").rglob("*.md"), *(ROOT / "model_cards").rglob("*.md")])


def imports_of(code):
    """Yields the (module, name) of every import from hcal_hf. The name is empty for `import hcal_hf`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "hcal_hf")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hcal_hf":
            yield from ((node.module, alias.name) for alias in node.names)


def inner_imports(path, code):
    """Returns the imports of internal names."""
    public = {("hcal_hf", ""), *(("hcal_hf", name) for name in hcal_hf.__all__)}
    name = str(path.relative_to(ROOT))
    return {(name, *imported) for imported in imports_of(code) if imported not in public}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_import_public_names(path):
    found = inner_imports(path, path.read_text(encoding="utf-8"))
    assert found <= set(EXCEPTIONS), "import these from hcal_hf, or add an exception with its reason"


def test_every_exception_is_needed_and_has_a_reason():
    found = set().union(*(inner_imports(path, path.read_text(encoding="utf-8")) for path in SCRIPTS))
    assert found == set(EXCEPTIONS)
    assert all(reason.endswith(".") for reason in EXCEPTIONS.values())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_of_pages_import_public_names(path):
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert set().union(*(inner_imports(path, block) for block in blocks)) == set()
