"""Whether the processor has bfloat16."""

import pytest

from hcal_hf import HcalTrainer, HcalTrainingArguments
from hcal_hf.training import precision


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("processor : 0\nflags : fpu amx_bf16 amx_tile\n", True),
        ("processor : 0\nFeatures : fp asimd bf16 i8mm\n", True),
        ("model name : with avx512_bf16\nflags : fpu avx2 avx512f\n", False),
        ("processor : 0\ncpu : POWER10\n", None),
        (None, None),
    ],
    ids=["avx512", "amx", "arm", "none", "another processor", "another system"],
)
def test_the_processors_flags_say_whether_it_has_bfloat16(tmp_path, monkeypatch, text, expected):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(precision, "_CPUINFO", file)
    assert precision.has_bfloat16() is expected


@pytest.mark.parametrize(("flag", "warned"), [("avx2", True), ("avx512_bf16", False)])
def test_training_in_emulated_bfloat16_is_warned_of(make_model, taxonomy, tmp_path, monkeypatch, flag, warned):
    (tmp_path / "cpuinfo").write_text(f"flags : {flag}\n", encoding="utf-8")
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    told = []
    monkeypatch.setattr(precision.logger, "warning", told.append)
    args = HcalTrainingArguments(str(tmp_path), use_cpu=True, bf16=True, report_to="none")
    HcalTrainer(make_model(taxonomy), args)
    assert [text for text in told if "emulated" in text] == told
    assert bool(told) is warned


def test_training_in_float16_is_warned_of(make_model, taxonomy, tmp_path, caplog):
    args = HcalTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    HcalTrainer(make_model(taxonomy), args)
    assert "float16" not in caplog.text
    model = make_model(taxonomy)
    model.encoder.half()
    HcalTrainer(model, args)
    assert "The model is trained in float16. Gradients can overflow" in caplog.text
