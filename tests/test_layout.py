"""Checks the layout: root files travel with saved models, and each wing imports only the root and earlier wings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hcal_hf

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hcal_hf"
# A wing imports the root and the wings to its left.
WINGS = ("metrics", "data", "training", "audit", "sklearn", "report", "commands")
# transformers and torch install these packages. Code of a model on the Hub can import nothing else.
ALLOWED = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", "tqdm", *sys.stdlib_module_names}
LONGEST = 500
# Longer files, each with the reason why it stays one file.
LONG_FILES: dict[str, str] = {}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def module_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(path): path for path in FILES}


def imports(path, at_import_only=False):
    """Returns (modules of the package, other top-level modules) that a file imports.

    With `at_import_only`, returns only the imports that run when the file is imported. Only these can form a cycle.
    """
    siblings, others = set(), set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.parent.relative_to(PACKAGE).parts
    for node in tree.body if at_import_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            base = tuple(part for part in base if part)
            # `from .package import module` imports a module. Every other name is defined in the module itself.
            named = {(*base, alias.name) for alias in node.names if (*base, alias.name) in MODULES}
            siblings |= named or {base}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
    return siblings, others


def wing_of(module):
    return module[0] if len(module) > 1 or (module[:1] and module[0] in WINGS) else None


def root_files():
    return [path for path in FILES if path.parent == PACKAGE and path.name != "__init__.py"]


def test_every_folder_of_the_package_is_listed_as_a_wing():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert folders == set(WINGS)


@pytest.mark.parametrize("path", root_files(), ids=lambda path: path.stem)
def test_root_files_import_only_each_other_and_the_dependencies_of_transformers(path):
    siblings, others = imports(path)
    assert {wing_of(module) for module in siblings} <= {None}, "a model on the Hub carries no wing"
    assert others <= ALLOWED, f"{path.name} imports {others - ALLOWED}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.module, f"{path.name}: transformers does not find `from . import x`"


def test_every_root_file_travels_with_the_model():
    found, waiting = set(), [PACKAGE / "modeling_hcal.py"]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [MODULES[module] for module in imports(path)[0]]
    assert found == set(root_files())


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != PACKAGE], ids=lambda p: ".".join(module_of(p)))
def test_a_wing_imports_only_the_root_and_earlier_wings(path):
    own = WINGS.index(path.relative_to(PACKAGE).parts[0])
    later = [".".join(m) for m in imports(path)[0] if wing_of(m) and WINGS.index(wing_of(m)) > own]
    assert later == []


def test_no_two_modules_import_each_other():
    edges = {module: imports(path, at_import_only=True)[0] for module, path in MODULES.items()}
    done, active = set(), []

    def visit(module):
        assert module not in active, " -> ".join(".".join(m) for m in [*active[active.index(module) :], module])
        if module in done:
            return
        active.append(module)
        for imported in edges.get(module, ()):
            visit(imported)
        done.add(active.pop())

    for module in edges:
        visit(module)


def test_importing_the_package_imports_no_wing():
    siblings, _ = imports(PACKAGE / "__init__.py", at_import_only=True)
    assert {wing_of(module) for module in siblings} == {None}


def test_long_files_are_listed_with_a_reason():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in [*FILES, *(ROOT / "recipes").rglob("*.py"), *(ROOT / "model_cards").rglob("*.py")]
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST
    }
    assert set(long) == set(LONG_FILES), long
    assert all(reason.endswith(".") for reason in LONG_FILES.values())


def opens_text_without_an_encoding(call):
    """Returns whether a call opens, reads or writes a text file in the encoding of the platform.

    ruff's PLW1514 finds the same calls, but only if it can infer that the object is a `Path`: not for `tmp_path / name`.
    """
    name, owner = getattr(call.func, "attr", getattr(call.func, "id", None)), getattr(call.func, "value", None)
    module = owner.id if isinstance(owner, ast.Name) else None
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)  # the encoding may be positional
    if name not in ("open", "fdopen") or module in ("Image", "tarfile") or (module == "os" and name == "open"):
        return False
    position = 1 if isinstance(call.func, ast.Name) or module in ("os", "gzip", "bz2", "lzma", "io") else 0
    mode = keywords.get("mode", call.args[position] if len(call.args) > position else None)
    if module in ("gzip", "bz2", "lzma"):
        return mode is not None and "t" in ast.literal_eval(mode)
    return mode is None or not (isinstance(mode, ast.Constant) and "b" in mode.value)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("(tmp_path / 'a').read_text()", True),
        ("(tmp_path / 'a').read_text('utf-8')", False),
        ("path.write_text('a')", True),
        ("path.write_text('a', encoding='utf-8')", False),
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("path.open('w')", True),
        ("path.open('wb')", False),
        ("gzip.open(path)", False),
        ("gzip.open(path, 'wt')", True),
        ("os.open(path, os.O_WRONLY)", False),
    ],
)
def test_the_search_for_missing_encodings_finds_text_files_only(code, expected):
    assert opens_text_without_an_encoding(ast.parse(code).body[0].value) == expected


def test_every_text_file_is_opened_with_an_encoding():
    """Without one, Python uses the encoding of the platform, which is not UTF-8 on Windows."""
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("hcal_hf", "recipes", "model_cards", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text_without_an_encoding(node)
    ]
    assert missing == []


def test_all_exported_names_exist_and_are_unique():
    assert [name for name in hcal_hf.__all__ if not hasattr(hcal_hf, name)] == []
    assert len(set(hcal_hf.__all__)) == len(hcal_hf.__all__)


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").exists()


def test_importing_the_package_imports_neither_datasets_nor_the_trainer():
    code = (
        "import sys; from transformers import AutoModel, Pipeline, PreTrainedModel; before = set(sys.modules); "
        "import hcal_hf; "
        "print([m for m in ('datasets', 'evaluate', 'pandas', 'sklearn', 'matplotlib', 'transformers.trainer') "
        "if m in sys.modules and m not in before]); hcal_hf.HcalTrainer, hcal_hf.HcalClassifier, hcal_hf.decode"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_star_import_works_without_extras():
    code = (
        "import importlib.util, sys\n"
        "hidden = ('sklearn', 'gradio', 'onnx', 'onnxruntime', 'matplotlib')\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name.split('.')[0] in hidden else find(name, *a)\n"
        "from hcal_hf import *\n"
        "assert not [name for name in hidden if name in sys.modules]\n"
        "print(HcalTrainer.__name__, export_onnx.__name__, 'HcalClassifier' in globals())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["HcalTrainer", "export_onnx", "False"]
