"""The Space that the demo page is exported as."""

import re
import runpy
import shutil

import pytest
import torch
from huggingface_hub import SpaceCard, constants

from hcal_hf.commands.demo.page import export_space
from hcal_hf.commands.demo.reader import Reader
from tests.commands.test_demo import TEXT, functions, make_pipe

# ---- The Space ----


@pytest.fixture
def saved(taxonomy, tmp_path):
    """Returns a folder after training, which also contains files that do not belong to the model."""
    folder = tmp_path / "trained"
    pipe = make_pipe(taxonomy)
    pipe.model.save_pretrained(folder)
    pipe.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("the card", encoding="utf-8")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "checkpoint-1").mkdir()
    return folder, pipe


@pytest.mark.slow
def test_an_exported_space_contains_the_model_and_a_working_app(saved, tmp_path):
    gradio = pytest.importorskip("gradio")
    folder, pipe = saved
    examples, title = [TEXT, 'it\'s "quoted" \\ and\nlong'], 'My """page""" \\'
    space = export_space(folder, tmp_path / "new" / "space", examples=examples, title=title)
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "model", "requirements.txt"]
    carried = {path.name for path in (space / "model").iterdir() if path.suffix != ".py"}
    assert carried == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert (space / "model" / "README.md").read_text(encoding="utf-8") == "the card"
    card = SpaceCard.load(space / "README.md").data
    assert (card.title, card.sdk, card.sdk_version, card.app_file) == (title, "gradio", gradio.__version__, "app.py")
    assert card.python_version in ("3.11", "3.12", "3.13", "3.14")
    requirements = (space / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition("==")[0] for line in requirements] == ["hcal-hf[demo]", "torch", "transformers"]
    assert all(re.fullmatch(r"[0-9.]+\w*", line.partition("==")[2]) for line in requirements)
    app = runpy.run_path(str(space / "app.py"))
    assert isinstance(app["demo"], gradio.Blocks)
    assert (app["EXAMPLES"], app["demo"].title) == (examples, title)
    reading, html = functions(app["demo"])["classify"](TEXT, None, "path", 0.0, 30)
    assert [item["label"] for item in pipe(TEXT)][-1] in html
    torch.testing.assert_close(reading.logits, Reader(pipe).read(TEXT).logits)


@pytest.mark.slow
def test_exporting_a_space_overwrites_no_file(saved, tmp_path):
    pytest.importorskip("gradio")
    space = tmp_path / "space"
    space.mkdir()
    (space / "app.py").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"already holds app.py: give a new folder, or remove them"):
        export_space(saved[0], space)
    assert [path.name for path in space.iterdir()] == ["app.py"]
    assert (space / "app.py").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_a_space_of_a_hub_model_contains_only_its_name(saved, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    folder, _ = saved
    cached = tmp_path / "hub" / "models--somebody--model"
    shutil.copytree(folder, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc", encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    space = export_space("somebody/model", tmp_path / "space")
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    assert SpaceCard.load(space / "README.md").data.models == ["somebody/model"]
    app = runpy.run_path(str(space / "app.py"))
    assert app["MODEL"] == "somebody/model"
    assert len(app["demo"].fns) > 0
    with pytest.raises(OSError, match="cached files"):
        export_space("somebody/other", tmp_path / "other")
