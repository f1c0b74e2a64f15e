"""Pages, docstrings, comments and names of tests use the terms of the field instead of private words."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROSE = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(path for folder in ("docs", "recipes") for path in sorted((ROOT / folder).rglob("*.md"))),
]
CODE = [path for folder in ("hcal_hf", "recipes", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
# Private word -> the term to use.
WORDS = {
    r"\b(is|are|was|were) told\b": "logged, reported",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bgo(es)? on after\b": "resumes after an interruption",
    r"\bas sure as\b": "calibrated",
    r"\ba (softmax|sigmoid|column|prototype|row|label) a (level|label|row|document)\b": "one ... per ...",
    r"\banchored in words\b": "anchored to label embeddings",
    r"\banew\b": "again",
    r"\bonce more\b": "again",
    r"\bbeside\b": "next to, in addition to",
    r"\bby hand\b": "manually",
    r"\b(is|are) drawn towards\b": "is regularised towards",
    r"\bstands still\b": "is not updated",
    r"\bholds back\b": "withholds",
    r"\bsets aside\b": "abstains",
    r"\bunsure\b": "uncertain",
    r"\b(decision|label set|answer)s? that (speaks|knows)\b": "say what happens",
    r"\btwins?\b": "reference, slow reference",
}
# Lines that may contain a word, with the reason: the end of the path -> (pattern, reason).
EXCEPTIONS = {
    "commands/prediction_formats.py": (r"unsure", "the name of a column"),
    "commands/predict.py": (r"unsure", "the name of a column"),
    "how-to/prediction.md": (r"unsure", "the name of a column"),
}
LIMITS = {r"\bwhose\b": 40, r"\b[Ww]hat (it|they|the)\b": 20}
COUNTED = [ROOT / name for name in ("hcal_hf", "recipes", "model_cards", "docs")]


def english_of(path):
    """Yields (line, text) of each docstring, comment and name of a test in a Python file."""
    code = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(code)):
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_documented and (text := ast.get_docstring(node, clean=False)):
            yield node.body[0].lineno, text
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def private_words(path, first, text, pattern):
    """Yields "file:line: text" for each line with a private word. Fenced code blocks are ignored."""
    text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    excepted = [words for end, (words, _) in EXCEPTIONS.items() if path.as_posix().endswith(end)]
    for number, line in enumerate(text.splitlines(), start=first):
        if re.search(pattern, line) and not any(re.search(words, line) for words in excepted):
            yield f"{path.name}:{number}: {line.strip()}"


def test_the_search_reads_docstrings_comments_and_names_of_tests(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('"""Told."""\n\ndef test_is_mended():\n    pass  # anew\n', encoding="utf-8")
    assert list(english_of(path)) == [(1, "Told."), (3, "test is mended"), (4, "# anew")]
    assert list(private_words(path, 3, "test is mended", r"\bmend(s|ed|ing)?\b")) == ["a.py:3: test is mended"]


@pytest.mark.parametrize("pattern", WORDS)
def test_no_private_word_is_used(pattern):
    texts = [(path, 1, path.read_text(encoding="utf-8")) for path in PROSE]
    texts += [(path, line, text) for path in CODE for line, text in english_of(path)]
    found = [line for path, first, text in texts for line in private_words(path, first, text, pattern)]
    assert not found, f"Write {WORDS[pattern]}:\n" + "\n".join(found)


@pytest.mark.parametrize("pattern", LIMITS)
def test_constructions_that_are_hard_to_read_are_rare(pattern):
    files = [
        ROOT / "README.md",
        *(path for folder in COUNTED for path in folder.rglob("*") if path.suffix in (".py", ".md")),
    ]
    # Model cards are written by the library and keep the text of their version.
    files = [path for path in files if path.parent.parent != ROOT / "model_cards"]
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert len(lines) <= LIMITS[pattern], "\n".join(lines)
