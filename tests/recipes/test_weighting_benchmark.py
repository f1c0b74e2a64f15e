"""The experiment on loss weighting, with results in recipes/benchmarks/pages/weighting.md."""

import json

import numpy as np
import pytest
import torch

from hcal_hf import build_weighter
from tests.builders import import_benchmarks


@pytest.fixture(scope="module")
def weighting():
    pytest.importorskip("hiclass", reason="the baselines need hiclass")
    return import_benchmarks("weighting").weighting


def test_all_candidate_arguments_are_accepted_by_the_weighters(weighting):
    for name in weighting.WEIGHTERS:
        for kwargs in weighting.candidates(name, 3):
            weights = build_weighter(name, 3, **kwargs)(torch.tensor([1.0, 2.0, 3.0]))
            assert weights.sum().item() == pytest.approx(1.0)


def test_synthetic_documents_have_whole_paths_and_half_of_the_noisy_ones_a_random_leaf(weighting):
    taxonomy, clean = weighting.synthetic("large", 0)
    _, noisy = weighting.synthetic("noisy", 0)
    assert tuple(level.stop - level.start for level in taxonomy.levels) == weighting.STRESS_LEVELS
    for data in (clean, noisy):
        for split, size in weighting.STRESS_DOCUMENTS.items():
            states, labels = data[split]
            assert states.shape == (size, weighting.STRESS_FEATURES)
            assert (labels.sum(dim=1) == len(weighting.STRESS_LEVELS)).all()
            assert taxonomy.complete(labels[0].nonzero()[:, 0]).tolist() == labels[0].nonzero()[:, 0].tolist()
    assert torch.equal(clean["train"][0], noisy["train"][0])
    moved = (clean["train"][1] != noisy["train"][1]).any(dim=1).float().mean().item()
    siblings = weighting.STRESS_LEVELS[-1] / weighting.STRESS_LEVELS[-2]
    assert moved == pytest.approx(0.5 * (1 - 1 / siblings), abs=0.02)
    upper = slice(0, taxonomy.levels[-1].start)
    assert torch.equal(clean["train"][1][:, upper], noisy["train"][1][:, upper])


def test_steps_to_converge_is_the_first_step_near_the_last_score(weighting):
    assert weighting.steps_to_converge([(10, 0.5), (20, 0.94), (30, 0.96), (40, 0.9), (50, 1.0)]) == 30
    assert weighting.steps_to_converge([(10, 0.0)]) == 10


def test_tables_show_means_over_seeds_within_their_blocks(weighting, tmp_path):
    found = [{"part": "stress", "dataset": "large", "head": "independent", "weighter": "hcal", "seed": seed,
              "chosen": {"own": {"gamma": 0.5}}, "metrics": {"mean": value, "steps": 10}}
             for seed, value in enumerate((1.0, 3.0))]  # fmt: skip
    results, page = tmp_path / "r.jsonl", tmp_path / "p.md"
    modules = import_benchmarks("result_rows", "tables")

    def write_tables():
        modules.tables.write_page(page, modules.tables.weighting_tables(modules.result_rows.read_lines(results)))

    results.write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    page.write_text("before\n<!-- stress large -->\nold\n<!-- end -->\nafter\n<!-- end -->", encoding="utf-8")
    write_tables()
    text = page.read_text(encoding="utf-8")
    assert "| independent | hcal | gamma 0.5 | 2.0 ± 1.4 | 10 ± 0 | 2 |" in text
    assert text.startswith("before\n<!-- stress large -->\n| head")
    assert "old" not in text
    assert text.endswith("<!-- end -->\nafter\n<!-- end -->")
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="has no place for <!-- stress large -->"):
        write_tables()


def test_features_are_read_in_whole_batches(weighting):
    states, labels = torch.arange(12.0).view(4, 3), torch.eye(4)
    batch = weighting.Features(states, labels).__getitems__([2, 0])
    np.testing.assert_array_equal(batch["pooled_states"], states[[2, 0]])
    np.testing.assert_array_equal(batch["labels"], labels[[2, 0]])
