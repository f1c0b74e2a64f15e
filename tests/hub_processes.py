"""Runs the processes of test_hub.py: `python hub_processes.py FOLDER`.

Each role runs in its own process, with its own cache. The processes are forked after the imports that all of them need.

- `author` can import hcal_hf. It loads and pushes models.
- `reader` cannot import hcal_hf. It loads the saved models, trains one of them further and saves it again.
- `again` cannot import hcal_hf. It loads the models that `reader` saved.

Results go to FOLDER/ROLE.json.
"""

import json
import os
import sys
import traceback
import urllib.request
from pathlib import Path
from unittest import mock

import huggingface_hub
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline

TEXTS = ["stars and atoms", "poems with drama", "study of plants"]
TOKEN = os.environ.get("TEST_HUB_TOKEN")
FOLDERS = ("model", "trainer", "trainer/checkpoint-1", "pipe")
PRIVATE = {"repo": "me/private", "revision": "v1"}


class NotInstalled:
    """Import hook that makes hcal_hf look uninstalled."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hcal_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def logits_of(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS, return_tensors="pt")).logits


def labels_of(model):
    """Returns the node indices of one leaf and its ancestors for each text."""
    leaves = model.taxonomy.is_leaf.nonzero()[0].tolist()
    return [model.taxonomy.complete([leaves[i % len(leaves)]]).tolist() for i in range(len(TEXTS))]


def outputs_of(model, tokenizer, pipe):
    """Returns the outputs that every copy of a model must reproduce."""
    return {"logits": logits_of(model, tokenizer).tolist(), "found": pipe(TEXTS)}


def load(source, **kwargs):
    """Loads (model, tokenizer, pipeline) from a folder or {"repo": ..., "revision": ...}, as a user would."""
    if isinstance(source, dict):
        source, kwargs = source["repo"], {"revision": source["revision"], "token": TOKEN, **kwargs}
    model = AutoModelForSequenceClassification.from_pretrained(source, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
    return model, tokenizer, pipeline(model=source, device="cpu", **kwargs)


def error_of(call):
    try:
        call()
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return None


def read_all(sources):
    """Returns {name: outputs and the modules of the loaded classes} for each source."""
    found = {}
    for name, source in sources.items():
        model, tokenizer, pipe = load(source, trust_remote_code=True)
        found[name] = {
            **outputs_of(model, tokenizer, pipe),
            "modules": [type(x).__module__ for x in (model, model.config, pipe)],
            "task": pipe.task,
        }
    return found


def set_cut(what):
    url = f"{os.environ['HF_ENDPOINT']}/-/cut?what={what or ''}"
    urllib.request.urlopen(urllib.request.Request(url, method="POST")).close()


def author(folder):
    from datasets import Dataset

    from hcal_hf import HcalTrainer, HcalTrainingArguments

    # config.json contains an auto_map, but no trust_remote_code is needed.
    model, tokenizer, pipe = load(str(folder / "model"))
    results = {"folder": outputs_of(model, tokenizer, pipe)}

    where = {"private": True, "token": TOKEN, "revision": "v1"}
    for part in (model, tokenizer):
        part.push_to_hub("me/private", commit_message="A first version", **where)
    pushed = load(PRIVATE)
    results["hub"] = outputs_of(*pushed)
    trusted = load(PRIVATE, trust_remote_code=True)
    results["trusted"] = outputs_of(*trusted)
    results["modules"] = [type(x).__module__ for x in (*pushed, *trusted)]
    results["remote modules"] = [name for name in sys.modules if name.startswith("transformers_modules.")]

    rows = Dataset.from_dict({**tokenizer(TEXTS), "labels": labels_of(model)})
    args = HcalTrainingArguments(
        folder / "trained", hub_model_id="me/trained", max_steps=1, report_to="none", use_cpu=True
    )
    trainer = HcalTrainer(model, args, None, rows, None, tokenizer)
    trainer.train()
    trainer.push_to_hub(token=TOKEN, private=True)
    results["trained"] = outputs_of(
        model, tokenizer, pipeline("hierarchical-text-classification", model, tokenizer=tokenizer)
    )

    for what in ("upload", "commit"):
        repo = f"me/cut-{what}"
        with torch.no_grad():
            model.prototypes.weight.normal_()  # new weights, because a file that the Hub already has is not uploaded
        set_cut(what)
        with mock.patch("huggingface_hub.utils._http.time.sleep"):  # no pauses between the retries of the client
            problem = error_of(lambda repo=repo: model.push_to_hub(repo, token=TOKEN))
        set_cut(None)
        left = huggingface_hub.HfApi(token=TOKEN).list_repo_files(repo)
        model.push_to_hub(repo, token=TOKEN)
        again = AutoModelForSequenceClassification.from_pretrained(repo)
        results[f"cut {what}"] = {
            "problem": problem,
            "left": left,
            "sent": logits_of(model, tokenizer).tolist(),
            "received": logits_of(again, tokenizer).tolist(),
        }
    results["refused"] = error_of(lambda: model.push_to_hub("me/other", token="hf_nobody"))
    return results


def reader(folder):
    # First, while nothing of the model is in the cache.
    no_token = error_of(
        lambda: AutoModelForSequenceClassification.from_pretrained("me/private", revision="v1", trust_remote_code=True)
    )
    sources = {name: str(folder / name) for name in FOLDERS}
    sources |= {"hub": PRIVATE, "hub trainer": {"repo": "me/trained", "revision": "main"}}
    results = {"read": read_all(sources), "no token": no_token}
    results["untrusted"] = [
        error_of(lambda: load(str(folder / "model"), trust_remote_code=False)),
        error_of(lambda: pipeline(model=str(folder / "model"), trust_remote_code=False)),
    ]
    # Train with a plain loop and save with save_pretrained.
    model, tokenizer, pipe = load(str(folder / "model"), trust_remote_code=True)
    batch = tokenizer(TEXTS, return_tensors="pt")
    batch["labels"] = torch.zeros(len(TEXTS), model.config.num_labels)
    for row, nodes in zip(batch["labels"], labels_of(model)):
        row[nodes] = 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "tuned")
    tokenizer.save_pretrained(folder / "tuned")
    pipe.model = model
    tuned = {"tuned": outputs_of(model, tokenizer, pipe)}
    # Save a pipeline, and push, from a model of another repository.
    model, tokenizer, pipe = load(PRIVATE, trust_remote_code=True)
    with torch.no_grad():
        pipe.model.prototypes.weight.normal_()
    pipe.save_pretrained(folder / "tuned pipe")
    tuned["tuned pipe"] = outputs_of(pipe.model, tokenizer, pipe)
    # Train and save with the Trainer of transformers.
    rows = [{name: values[i] for name, values in batch.items()} for i in range(len(TEXTS))]
    args = TrainingArguments(
        folder / "tuned trainer", hub_model_id="me/tuned", max_steps=2, report_to="none", use_cpu=True, save_steps=1
    )
    trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    trainer.push_to_hub(token=TOKEN)
    pipe.model = model.eval()
    for name in ("tuned trainer", "tuned hub"):
        tuned[name] = outputs_of(model, tokenizer, pipe)
    results["tuned"] = tuned
    return results


def again(folder):
    sources = {name: str(folder / name) for name in ("tuned", "tuned pipe", "tuned trainer")}
    return {"read": read_all({**sources, "tuned hub": {"repo": "me/tuned", "revision": "main"}})}


def play(role, folder):
    torch.manual_seed(0)
    if role is not author:
        sys.meta_path.insert(0, NotInstalled())
        assert error_of(lambda: __import__("hcal_hf")).startswith("ModuleNotFoundError")
    transformers.logging.set_verbosity_debug()
    huggingface_hub.logging.set_verbosity_debug()
    results = role(folder)
    assert ("hcal_hf" in sys.modules) == (role is author)
    (folder / f"{role.__name__}.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for role in (author, reader, again):
        assert "hcal_hf" not in sys.modules
        child = os.fork()
        if not child:
            try:
                play(role, folder)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{role.__name__} failed")
        # The next role starts with an empty cache.
        Path(os.environ["HF_HOME"]).rename(folder / f"home of {role.__name__}")
