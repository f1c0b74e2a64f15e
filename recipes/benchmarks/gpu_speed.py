"""Measures a GPU: agreement with the CPU, determinism, synchronisation, speed and memory.

    python recipes/benchmarks/gpu_speed.py gpu.jsonl       about 4 minutes on one H100; --small also runs on a CPU
    python recipes/benchmarks/gpu_page.py gpu.jsonl        stores the rows and writes pages/gpu.md

Prints one JSON object per finding and writes them to the file. If a part fails, its error is a row and the next part runs.
"""

import argparse
import contextlib
import json
import statistics
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy, decode

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
HEADS = {
    "single_path": ["lookahead_softmax", "path_softmax", "conditional_softmax", "independent"],
    "multi_path": ["lookahead_sigmoid", "conditional_sigmoid", "independent"],
}
MODES = [(mode, head) for mode, heads in HEADS.items() for head in heads]
WIDTH, BATCH = 256, 32
rows: list[dict[str, Any]] = []


def record(part: str, **values: Any) -> None:
    rows.append({"part": part, **values})
    print(json.dumps(rows[-1]), flush=True)


def tree(size: int, children: int = 10) -> Taxonomy:
    names = [f"n{i}" for i in range(size)]
    return Taxonomy.from_edges(
        [(names[i // children], names[i]) for i in range(children, size)], roots=names[:children]
    )


def padded_targets(taxonomy: Taxonomy, documents: int) -> torch.Tensor:
    last = taxonomy.num_labels - 1
    paths = [torch.as_tensor(taxonomy.complete([last - i % (last // 2)])) for i in range(documents)]
    return torch.nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=-100)


def build(
    taxonomy: Taxonomy, mode: str, head: str, width: int = WIDTH, **fields: Any
) -> HcalForSequenceClassification:
    """Builds a model that is a head alone: its encoder has no layers."""
    encoder = BertConfig(hidden_size=width, num_hidden_layers=0, num_attention_heads=1, vocab_size=2)
    config = HcalConfig.from_taxonomy(taxonomy, encoder, label_mode=mode, head=head, projection_dim=width, **fields)
    return HcalForSequenceClassification(config)


def synchronize() -> None:
    if HAS_GPU:
        torch.cuda.synchronize()


def median_ms(action: Callable[[], Any], rounds: int = 7) -> float:
    """Returns the median time of a call in milliseconds, after two calls to warm up."""
    taken = []
    for _ in range(rounds + 2):
        synchronize()
        start = time.perf_counter()
        action()
        synchronize()
        taken.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(taken[2:]), 3)


def agreement() -> None:
    taxonomy = tree(200)
    states, labels = torch.randn(16, 64), padded_targets(taxonomy, 16)
    for mode, head in MODES:
        torch.manual_seed(0)
        model = build(taxonomy, mode, head, 64, perturbation=0.0, contrast="aggregate")
        results = []
        for device in ("cpu", DEVICE):
            model = model.to(device).train()
            model.zero_grad()
            output = model(pooled_states=states.to(device), labels=labels.to(device))
            output.loss.backward()
            gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
            sets = decode(output.logits.detach(), taxonomy, label_mode=mode, head=head).cpu()
            results.append((output.loss.item(), output.logits.detach().cpu(), gradient, sets))
        (loss, logits, gradient, sets), other = results
        record(
            "same as cpu",
            mode=mode,
            head=head,
            loss=abs(loss - other[0]),
            logits=float((logits - other[1]).abs().max()),
            gradient=float((gradient - other[2]).abs().max() / gradient.abs().max()),
            same_decisions=torch.equal(sets, other[3]),
        )


def determinism() -> None:
    taxonomy = tree(200)
    states, labels = torch.randn(16, 64, device=DEVICE), padded_targets(taxonomy, 16).to(DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        for mode, head in MODES:
            model = build(taxonomy, mode, head, 64, contrast="aggregate").to(DEVICE).train()
            fault = None
            try:
                model(pooled_states=states, labels=labels).loss.backward()
            except RuntimeError as error:
                fault = str(error)[:160]
            record("full determinism", mode=mode, head=head, fault=fault)
    finally:
        torch.use_deterministic_algorithms(False)


def synchronisation() -> None:
    if not HAS_GPU:
        return
    taxonomy = tree(2000)
    states, labels = torch.randn(BATCH, 64, device=DEVICE), padded_targets(taxonomy, BATCH).to(DEVICE)
    for mode, head in MODES:
        for contrast in (None, "aggregate"):
            model = build(taxonomy, mode, head, 64, contrast=contrast).to(DEVICE).train()
            model(pooled_states=states, labels=labels).loss.backward()
            synchronize()
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model(pooled_states=states, labels=labels, return_logits=False).loss.backward()
            torch.cuda.set_sync_debug_mode("default")
            where = sorted({f"{Path(warning.filename).name}:{warning.lineno}" for warning in caught})
            record(
                "waits for the device in a step",
                mode=mode,
                head=head,
                contrast=contrast,
                count=len(caught),
                where=where,
            )


def head_speed(small: bool) -> None:
    variants = [("single_path", "lookahead_softmax")] + [("multi_path", head) for head in HEADS["multi_path"][:2]]
    for size in (1_000, 10_000) if small else (1_000, 10_000, 100_000, 1_000_000):
        taxonomy = tree(size)
        states = torch.randn(BATCH, WIDTH, device=DEVICE, requires_grad=True)
        labels = padded_targets(taxonomy, BATCH).to(DEVICE)
        weight, scores = torch.randn(size, WIDTH, device=DEVICE), torch.randn(BATCH, size, device=DEVICE)
        inputs = states.detach()

        def products(x: torch.Tensor = inputs, w: torch.Tensor = weight, s: torch.Tensor = scores) -> None:
            x @ w.T, s @ w, s.T @ x

        bare = median_ms(products)
        for mode, head in variants:
            settings: list[tuple[str, dict[str, Any]]] = [("plain", {"perturbation": 0.0}), ("perturbed", {})]
            for noise, perturbation in settings:
                model = build(taxonomy, mode, head, **perturbation).to(DEVICE).train()

                def step(model: Any = model, states: torch.Tensor = states, labels: torch.Tensor = labels) -> None:
                    model.zero_grad(set_to_none=True)
                    model(pooled_states=states, labels=labels, return_logits=False).loss.backward()

                if HAS_GPU:
                    torch.cuda.reset_peak_memory_stats()
                taken = median_ms(step)
                peak = round(torch.cuda.max_memory_allocated() / 2**30, 3) if HAS_GPU else None
                ratio = round(taken / bare, 2)
                record("head", labels=size, head=head, noise=noise, ms=taken, bare_ms=bare, ratio=ratio, peak_gib=peak)
                del model


def training_step(small: bool) -> None:
    shape = {"hidden_size": 384, "num_hidden_layers": 2 if small else 6, "num_attention_heads": 12}
    shape |= {"intermediate_size": 1536, "vocab_size": 30522}
    taxonomy = tree(161)
    ids = torch.randint(1000, 20000, (BATCH, 64), device=DEVICE)
    labels = padded_targets(taxonomy, BATCH)
    multi_hot = torch.zeros(BATCH, 161).scatter_(1, labels.clamp(min=0), (labels >= 0).float())
    flat = BertConfig(**shape, num_labels=161, problem_type="multi_label_classification")
    models: dict[str, Any] = {"plain classifier": BertForSequenceClassification(flat)}
    for name, fields in (("defaults", {}), ("contrast", {"contrast": "aggregate"})):
        config = HcalConfig.from_taxonomy(taxonomy, BertConfig(**shape), **fields)
        models[name] = HcalForSequenceClassification(config)
    for precision in ("float32", "bfloat16"):
        base = None
        for name, model in models.items():
            targets = (multi_hot if name == "plain classifier" else labels).to(DEVICE)
            model.to(DEVICE).train()

            def step(model: Any = model, targets: torch.Tensor = targets, precision: str = precision) -> None:
                model.zero_grad(set_to_none=True)
                autocast = torch.autocast(DEVICE, torch.bfloat16)
                with autocast if precision == "bfloat16" else contextlib.nullcontext():
                    loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=targets).loss
                loss.backward()

            taken = median_ms(step)
            base = base or taken
            record("step", what=name, precision=precision, ms=taken, ratio=round(taken / base, 3))
    for name in ("defaults", "contrast"):
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels.to(DEVICE)}
        explained = torch._dynamo.explain(models[name])(**inputs, return_logits=False)
        record("compile", what=name, graphs=explained.graph_count, breaks=explained.graph_break_count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file for the rows, one JSON object per line")
    parser.add_argument("--small", action="store_true", help="small sizes, which also run on a CPU")
    options = parser.parse_args()
    record("machine", device=torch.cuda.get_device_name() if HAS_GPU else "cpu", torch=torch.__version__)
    parts: list[Callable[[], None]] = [
        agreement,
        determinism,
        synchronisation,
        lambda: head_speed(options.small),
        lambda: training_step(options.small),
    ]
    for part in parts:
        torch.manual_seed(0)
        try:
            part()
        except Exception:
            record("failed", what=traceback.format_exc()[-600:])
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
