"""The model's files import nothing but each other and what comes with transformers, so that the Hub can carry them."""

import ast
import subprocess
import sys
from pathlib import Path

import hcal_hf

PACKAGE = Path(__file__).parent.parent / "hcal_hf"
ENTRY = ("modeling_hcal", "configuration_hcal", "pipeline_hcal")
ALLOWED = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", *sys.stdlib_module_names}


def imports(name):
    """(siblings, other top-level modules) that a file of the package imports, anywhere in it."""
    siblings, others = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{name}: only siblings are carried"
            assert node.module, f"{name}: `from . import x` is not found by transformers"
            siblings.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
    return siblings, others


def test_the_models_files_import_only_each_other_and_what_transformers_brings():
    found, waiting = set(), list(ENTRY)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        assert "." not in name, f"{name} lies in a sub-package, which a Hub repository cannot carry"
        siblings, others = imports(name)
        assert others <= ALLOWED, f"{name} imports {others - ALLOWED}"
        waiting += siblings
    assert {"taxonomy", "heads", "prototypes", "objectives", "decoding", "targets"} <= found
    assert not found & {"trainer", "data", "features", "runner", "evaluation"}


def test_everything_exported_exists_and_is_sorted():
    assert [name for name in hcal_hf.__all__ if not hasattr(hcal_hf, name)] == []
    assert sorted(hcal_hf.__all__) == hcal_hf.__all__


def test_inference_needs_neither_datasets_nor_the_trainer():
    code = (
        "import sys, hcal_hf; "
        "print([m for m in ('datasets', 'evaluate', 'pandas', 'sklearn', 'matplotlib', 'transformers.trainer') "
        "if m in sys.modules]); hcal_hf.HcalTrainer, hcal_hf.HcalClassifier, hcal_hf.decode"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
