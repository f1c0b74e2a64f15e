"""Models that earlier versions saved load and give the numbers that they gave then."""

import json
from pathlib import Path

import pytest
import torch

from hcal_hf import HcalForSequenceClassification

FOLDERS = sorted(path.parent for path in Path(__file__).with_name("saved_models").rglob("expected.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_model_of_an_earlier_version_answers_as_it_did(folder):
    expected = json.loads((folder / "expected.json").read_text())
    model = HcalForSequenceClassification.from_pretrained(folder).eval()
    inputs = {name: torch.tensor(expected[name]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-5, atol=1e-5)


def test_the_earlier_versions_are_there():
    assert {folder.parent.name for folder in FOLDERS} >= {"without_format_version"}
    assert len(FOLDERS) >= 4
