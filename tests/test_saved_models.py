"""Models saved by earlier versions load and give the same predictions."""

import json
from pathlib import Path

import pytest
import torch

from hcal_hf import HcalForSequenceClassification
from hcal_hf.configuration_hcal import FORMAT_VERSION

FOLDERS = sorted(path.parent for path in Path(__file__).with_name("saved_models").rglob("expected.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_model_of_an_earlier_version_gives_the_same_predictions(folder):
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    model = HcalForSequenceClassification.from_pretrained(folder).eval()
    inputs = {name: torch.tensor(expected[name]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-5, atol=1e-5)


def test_models_of_all_earlier_versions_are_stored():
    formats = {f"format_{number}" for number in range(1, FORMAT_VERSION + 1)}
    assert {folder.parent.name for folder in FOLDERS} >= {"without_format_version", *formats}
    assert len(FOLDERS) >= 6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_folder_names_contain_the_format_version_of_the_configuration(folder):
    version = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("hcal_format_version")
    assert folder.parent.name == ("without_format_version" if version is None else f"format_{version}")
