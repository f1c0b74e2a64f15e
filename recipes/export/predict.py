"""Predicts labels and paths with onnxruntime, tokenizers and numpy alone: python predict.py FOLDER TEXT [TEXT ...]"""

import json
import sys
from itertools import takewhile

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

folder, *texts = sys.argv[1:]
with open(f"{folder}/hierarchy.json", encoding="utf-8") as file:
    spec = json.load(file)
prefixed = [spec.get("text_prefix", "") + text for text in texts]
tokens = Tokenizer.from_file(f"{folder}/tokenizer.json").encode_batch(prefixed)  # truncated and padded
columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
session = InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
inputs = {i.name: np.array([getattr(t, columns[i.name]) for t in tokens]) for i in session.get_inputs()}
p = session.run(["probabilities"], inputs)[0]  # probabilities [texts, labels]

single, parents, children = spec["label_mode"] == "single_path", *np.array(spec["edges"], int).reshape(-1, 2).T
if spec["head"] == "independent":  # the mean log probability of each path
    value = np.stack([np.log(p[:, nodes] + 1e-38).mean(axis=1) for nodes in spec["ancestors"]], axis=1)
else:  # the probability that the path ends at a node: its own minus that of its children
    value = p.copy()
    np.subtract.at(value.T, parents, p.T[children] * spec["partial_paths"])
if not spec["partial_paths"]:
    value[:, parents] = -np.inf  # no path ends at an inner node
for row, best in zip(p, value.argmax(axis=1)):
    passes = row >= np.array(spec["thresholds"], row.dtype)
    ends = [best] if single else np.flatnonzero(passes)
    found = sorted({node for end in ends for node in spec["ancestors"][end]})
    found = list(takewhile(passes.__getitem__, found)) if single else found
    print(json.dumps([{"path": spec["paths"][node][0], "score": float(row[node])} for node in found]))
