"""A scikit-learn estimator: texts or features and label paths in, label paths out."""

import contextlib
import numbers
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import (
    Dataset,
    Features,
    List,
    Value,
    are_progress_bars_disabled,
    concatenate_datasets,
    disable_progress_bars,
    enable_progress_bars,
)
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, PrinterCallback, set_seed
from transformers.utils import logging

from ..configuration_hcal import HcalConfig
from ..data.collator import HcalDataCollator
from ..data.encoding import encode_dataset
from ..data.label_checks import check_encoded
from ..data.rows import BadRowsError
from ..decoding import decode, end_probabilities
from ..modeling_hcal import HcalForSequenceClassification
from ..pipeline_hcal import NO_LIMIT
from ..taxonomy import SEPARATOR, Taxonomy
from ..training.arguments import HcalTrainingArguments
from ..training.features import pooled_features
from ..training.solver import STRENGTHS, fit_head, solve_without_validation, unsolvable_because
from ..training.trainer import HcalTrainer

try:
    from scipy.sparse import issparse
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

    from .label_arrays import SEQUENCE, LabelTable, Path, bad_rows, encoded_paths, read_labels
except ImportError as missing:
    raise ImportError(
        'HcalClassifier needs scikit-learn 1.6 or later: pip install "hcal-hf[quickstart]".'
    ) from missing

# What `predict` can write as paths; `raw` may contradict the hierarchy, `risk` needs a calibration.
DECODERS = {"single_path": ("path", "top_down"), "multi_path": ("closure", "prune", "top_down", "expected_f1")}
# A model on features holds a projection of this number squared.
MAX_FEATURES = 8192
# Fields of HcalConfig that are parameters here.
_OWN_FIELDS = ("label_mode", "partial_paths", "head", "score_function", "prototype_anchor")
# Arguments of from_encoder that say where its files are.
_FILE_ARGUMENTS = ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
# Cells (document x label) that are scored at a time.
_CELLS = 4_000_000


class HcalClassifier(ClassifierMixin, BaseEstimator):
    """
    A hierarchical classifier with scikit-learn's interface, for texts or for features.

    Coming from hiclass, the labels stay as they are and the classifier's name changes; a pipeline's vectoriser may stay or
    go:

    ```python
    y = [["Hardware", "Printer", "Paper jam"], ["Hardware", "Screen", ""], ...]
    LocalClassifierPerParentNode(LogisticRegression()).fit(features, y).predict(features)  # hiclass
    HcalClassifier(encoder=None).fit(features, y).predict(features)  # the same features
    HcalClassifier().fit(texts, y).predict(texts)  # texts, read by a frozen MiniLM-L6
    ```

    `y` decides the format of what `predict` returns:

    | `y` | a document carries | `predict` | `classes_`, the columns of `predict_proba` |
    |---|---|---|---|
    | [N] | one label: all on one level, or nodes of `taxonomy` | [N] | the sorted labels; rows sum to 1 |
    | [N, depth] | one path: names from the root down, then "" | [N, depth] | the L nodes, `taxonomy_.labels` |
    | [N, paths, depth] | any number of paths, also none | [N, paths, depth] | the L nodes, `taxonomy_.labels` |

    None and NaN are read as "". Lists of paths, and lists of lists of paths, may be of unequal lengths and stand for 2-d
    and 3-d arrays. Whole numbers are names too and come back as numbers. Nodes of one name under different parents are
    different nodes. Matrices of 0 and 1 with a column a label are refused.

    Args:
        encoder (`str`, *optional*): name on the Hub or folder of any model that `AutoModel` loads; X then holds N texts
            (list, array, Series, or a table of one column). None: X holds dense numbers [N, D], such as embeddings.
        taxonomy ([`Taxonomy`], *optional*): the hierarchy; the paths of `y` span it by default. A DAG needs multi_path.
        label_mode (`"auto"`, `"single_path"` or `"multi_path"`): `auto` is multi_path for 3-d `y`. With `multi_path` and
            2-d `y`, `predict` returns 3-d arrays.
        partial_paths (`bool`): whether a path may end at an inner node.
        head, score_function, prototype_anchor: as in [`HcalConfig`]. `auto`: linear scores where the encoder is frozen,
            drawn towards the labels' own words where there is an encoder; cosines without anchors where it is trained.
        freeze_encoder (`bool`): True computes the encoder's states once and fits the head to them by L-BFGS; False trains
            everything in batches.
        C (`"auto"` or `float`): inverse strength of the regularisation of L-BFGS, as in scikit-learn. `auto` tries
            1 to 1,024 on documents held out for that, then fits all.
        validation_fraction (`float`): share of the documents held out for `C="auto"`, and to choose whether the label words
            are of use.
        fit_intercept (`bool`): for `encoder=None`: a constant joins the features, as long as they are on average (root
            mean square). Features are scaled to unit length with it, as those of an encoder are.
        max_length (`int`, *optional*): tokens at most; what the encoder can read by default.
        batch_size (`int`): texts a batch.
        learning_rate, head_learning_rate, num_train_epochs, training_kwargs (`dict`, *optional*): of
            [`HcalTrainingArguments`], where L-BFGS does not fit the head: `freeze_encoder=False`, cosines.
        model_kwargs (`dict`, *optional*): other fields of [`HcalConfig`] (`pooling`, ...), and arguments of the encoder's
            `from_pretrained` (`revision`, ...).
        decode (`str`, *optional*): `path` (default) or `top_down` for single_path; `closure` (default), `prune`,
            `top_down` or `expected_f1` for multi_path ([`hcal_hf.decoding.decode`]).
        threshold (`float`, or a sequence of L numbers, *optional*): lowest probability of a predicted label; 0.5 for
            multi_path, none for single_path, where paths end before their first label below it. Not for 1-d `y`.
        feature_cache (`str`, *optional*): folder that keeps the states of a frozen encoder, so that a grid search computes
            them once for each fold.
        device (`str`, *optional*): such as "cpu"; CUDA where there is any by default.
        random_state: as in scikit-learn; of what is held out, and of weights and batches where those are drawn.
        verbose (`bool`): progress and losses of the training.

    `predict` reads `decode`, `threshold`, `max_length`, `batch_size`, `feature_cache` and `verbose` anew, so that they may
    be changed after `fit`; the others take part in `fit` alone.

    Attributes:
        classes_ (`np.ndarray`): see above.
        taxonomy_ ([`Taxonomy`]): the hierarchy.
        model_ ([`HcalForSequenceClassification`]): the model. With an encoder, `model_.save_pretrained(folder)` and
            `tokenizer_.save_pretrained(folder)` make a folder that `pipeline("hierarchical-text-classification")` loads;
            without one its `pooled_states` are X / `feature_scale_`, with `fit_intercept` followed by a 1.
        tokenizer_: the encoder's; None without one.
        label_mode_ (`str`): single_path or multi_path.
        C_ (`float`, *optional*): the strength used; None where the head was trained in batches.
        n_features_in_, feature_names_in_: for `encoder=None`, as in scikit-learn.

    In cross-validation of lists of paths give `cv=KFold(...)`: scikit-learn cannot tell their type. A label that occurs in
    no training document of a fold cannot be predicted there, and counts as wrong, unless `taxonomy` holds it.
    """

    def __init__(
        self,
        encoder: str | None = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        taxonomy: Taxonomy | None = None,
        label_mode: str = "auto",
        partial_paths: bool = False,
        head: str = "auto",
        score_function: str = "auto",
        prototype_anchor: str | None = "auto",
        freeze_encoder: bool = True,
        C: float | str = "auto",
        validation_fraction: float = 0.1,
        fit_intercept: bool = True,
        max_length: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        head_learning_rate: float | None = 1e-2,
        num_train_epochs: float = 3,
        training_kwargs: Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        decode: str | None = None,
        threshold: float | Sequence[float] | None = None,
        feature_cache: str | None = None,
        device: str | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ):
        self.encoder = encoder
        self.taxonomy = taxonomy
        self.label_mode = label_mode
        self.partial_paths = partial_paths
        self.head = head
        self.score_function = score_function
        self.prototype_anchor = prototype_anchor
        self.freeze_encoder = freeze_encoder
        self.C = C
        self.validation_fraction = validation_fraction
        self.fit_intercept = fit_intercept
        self.max_length = max_length
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.num_train_epochs = num_train_epochs
        self.training_kwargs = training_kwargs
        self.model_kwargs = model_kwargs
        self.decode = decode
        self.threshold = threshold
        self.feature_cache = feature_cache
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        reads_texts = self.encoder is not None
        tags.input_tags.string = tags.input_tags.one_d_array = reads_texts
        tags.input_tags.two_d_array = not reads_texts
        tags.target_tags.multi_output = True
        return tags

    # ---- The interface ----

    def fit(self, X: Any, y: Any) -> "HcalClassifier":
        """Fits a new model.

        Args:
            X: N texts, or with `encoder=None` numbers [N, D].
            y: labels of the N documents in one of the formats above.

        Raises:
            ValueError: for a parameter out of its range, rows of X or y that cannot be read (listed by index), paths that
                end at inner nodes without `partial_paths`, labels that `taxonomy` does not hold, or too few documents.
            TypeError: for sparse features.
        """
        self._check_parameters()
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        if self.encoder is None:
            documents: Any = self._read_numbers(X, reset=True)
            # The root mean square of the rows' lengths, by the largest number, which could overflow squared.
            largest = float(np.abs(documents).max()) or 1.0
            self.feature_scale_ = largest * float(np.sqrt(np.square(documents / largest).sum(axis=1).mean())) or 1.0
        else:
            documents = _read_texts(X)
        labels = read_labels(y)
        check_consistent_length(documents, labels.documents)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        encoded = self._fit_labels(labels)
        with _own_randomness(seed), _progress_bars(self.verbose):
            self._fit_model(documents, encoded, seed)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The labels of N documents, in the format of the `y` that was fitted: [N], [N, depth] or [N, paths, depth].

        Levels below the end of a path, and paths that a document does not have, are "".

        Raises:
            ValueError: for rows that cannot be read, or a `decode` or `threshold` that does not fit.
        """
        return self._as_labels(self._decided(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities of the columns of `classes_`, float32.

        [N, L] for 2-d and 3-d `y`: each node's own; none is above its parent's, but with `head="independent"`.
        [N, n_classes] for 1-d `y`: that the path ends at this label; rows sum to 1.

        Raises:
            ValueError: for rows that cannot be read.
        """
        logits = self._logits(X)
        if self._format.ndim > 1:
            return torch.sigmoid(logits).numpy()
        ends = end_probabilities(F.logsigmoid(logits.double()), self.taxonomy_, self.model_.config.partial_paths)
        found = ends.numpy()[:, self._node_of_class].clip(min=0)
        return (found / found.sum(axis=1, keepdims=True)).astype(np.float32)

    def score(self, X: Any, y: Any) -> float:
        """Accuracy, as in scikit-learn: the share of documents whose whole path, or whole set of paths, is right.

        `hiclass.metrics.f1(y, predict(X))` gives partial credit, and takes the same arrays of names.

        Raises:
            ValueError: as [`predict`], or for `y` in another format than the one fitted.
        """
        check_is_fitted(self)
        labels = read_labels(y)
        if (labels.format.ndim == 1) != (self._format.ndim == 1):
            raise ValueError(
                f"y has {labels.format.ndim} dimension(s), but {type(self).__name__} was fitted with {self._format.ndim}."
            )
        sets = self._decided(X)
        check_consistent_length(sets, labels.documents)
        if labels.format.ndim == 1:
            return float(np.mean(self._as_labels(sets) == labels.documents))
        known: dict[tuple[Path, ...], np.ndarray | None] = {}
        for paths in dict.fromkeys(labels.documents):
            try:
                known[paths] = self.taxonomy_.encode([list(path) for path in paths])
            except ValueError:  # a label that was not there to be learned
                known[paths] = None
        truths = [known[paths] for paths in labels.documents]
        right = [truth is not None and np.array_equal(row.nonzero()[0], truth) for row, truth in zip(sets, truths)]
        return float(np.mean(right))

    # ---- Fitting ----

    def _check_parameters(self) -> None:
        if self.encoder is not None and not isinstance(self.encoder, str):
            raise ValueError(
                f"encoder must be a name on the Hub, a folder, or None for features, got {self.encoder!r}."
            )
        if self.encoder is None and not self.freeze_encoder:
            raise ValueError("freeze_encoder=False trains an encoder, and encoder=None has none: give one.")
        if self.encoder is None and self.prototype_anchor not in ("auto", None):
            raise ValueError(
                f"prototype_anchor={self.prototype_anchor!r} needs an encoder that reads the labels' words, and "
                "encoder=None has none: leave it out."
            )
        if self.taxonomy is not None and not isinstance(self.taxonomy, Taxonomy):
            raise ValueError(
                f"taxonomy must be a Taxonomy or None, got {type(self.taxonomy).__name__}: Taxonomy.from_paths makes one."
            )
        if self.label_mode not in ("auto", *DECODERS):
            raise ValueError(f'label_mode must be "auto", "single_path" or "multi_path", got {self.label_mode!r}.')
        is_number = isinstance(self.C, numbers.Real) and not isinstance(self.C, bool)
        if not (0 < float(self.C) < float("inf") if is_number else self.C == "auto"):
            raise ValueError(f'C must be "auto" or a number above 0, got {self.C!r}.')
        fields = set(self.model_kwargs or {})
        if own := fields & {"taxonomy", *_OWN_FIELDS}:
            raise ValueError(
                f"model_kwargs holds {sorted(own)}, which are parameters: HcalClassifier({min(own)}=...)."
            )
        if self.encoder is None and (unknown := fields - set(HcalConfig.__dataclass_fields__)):
            raise ValueError(f"model_kwargs holds {sorted(unknown)}, which are no fields of HcalConfig.")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie between 0 and 1, got {self.validation_fraction!r}.")
        if not isinstance(self.batch_size, numbers.Integral) or self.batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {self.batch_size!r}.")

    def _fit_labels(self, labels: "LabelTable") -> Dataset:
        """Sets what the labels tell; returns the sorted nodes of each document, as [`encode_dataset`] has them."""
        self._format = labels.format
        mode = "multi_path" if labels.format.ndim == 3 else "single_path"
        self.label_mode_ = mode if self.label_mode == "auto" else self.label_mode
        self._check_decision()
        if labels.format.ndim == 1:
            nodes = self._fit_flat_labels(labels.documents)
        else:
            spanned = sorted({path for paths in labels.documents for path in paths})
            if not spanned and self.taxonomy is None:
                raise ValueError("y holds no label at all: there is nothing to learn.")
            self.taxonomy_ = Taxonomy.from_paths(spanned) if self.taxonomy is None else self.taxonomy
            self.classes_ = np.array(self.taxonomy_.labels)
            nodes = encoded_paths(labels.documents, self.taxonomy_)
        if self.label_mode_ == "single_path":
            self.taxonomy_.check_single_path()
        encoded = Dataset.from_dict({"labels": nodes}, features=Features({"labels": List(Value("int64"))}))
        try:
            check_encoded(encoded, self.taxonomy_, self.label_mode_, self.partial_paths)
        except BadRowsError as problem:
            raise bad_rows("y", [(row, what) for _, row, what in problem.rows]) from None
        return encoded

    def _fit_flat_labels(self, labels: np.ndarray) -> list[list[int]]:
        present, inverse = np.unique(labels, return_inverse=True)
        names = [str(label) for label in present.tolist()]
        if self.taxonomy is None:
            if nested := [name for name in names if SEPARATOR in name]:
                raise ValueError(
                    f"The label {nested[0]!r} looks like a path, but 1-d labels all lie on one level: give paths, "
                    f"[label.split({SEPARATOR!r}) for label in y]."
                )
            self.taxonomy_, self.classes_ = Taxonomy.from_paths([[name] for name in names]), present
            self._node_of_class = np.arange(len(present))
        else:
            self.taxonomy_ = self.taxonomy
            if unknown := [name for name in names if name not in self.taxonomy.label_index]:
                raise ValueError(
                    f"{len(unknown)} label(s) of the 1-d y are not in taxonomy.labels, first: {unknown[0]!r}. A label is "
                    'the name of its node, or where several nodes share it the whole path ("Books > Other").'
                )
            ends = np.flatnonzero(self.taxonomy.is_leaf | self.partial_paths)
            self.classes_, order = np.unique(np.array(self.taxonomy.labels)[ends], return_index=True)
            self._node_of_class = ends[order]
        self._class_of_node = np.zeros(len(self.taxonomy_), dtype=np.int64)
        self._class_of_node[self._node_of_class] = np.arange(len(self.classes_))
        rows = [self.taxonomy_.complete([self.taxonomy_.index(name)]).tolist() for name in names]
        return [rows[i] for i in inverse.tolist()]

    def _fit_model(self, documents: Any, labels: Dataset, seed: int) -> None:
        model = self.model_ = self._new_model(documents).to(self._torch_device())
        self.C_ = None
        if not self.freeze_encoder:
            self._train(self._tokens(documents), labels, seed)
        elif unsolvable_because(model):
            self._train(Dataset.from_dict({"pooled_states": self._states(documents).numpy()}), labels, seed)
        else:
            collate = HcalDataCollator(None, self.taxonomy_, targets="indices")
            train = self._states(documents), collate(labels.to_list())["labels"]
            if self.C != "auto" and not model.prototypes.is_anchored:
                self.C_ = float(self.C)
                fit_head(model, *train, self.C_)
            else:
                strengths = STRENGTHS if self.C == "auto" else (float(self.C),)
                share = float(self.validation_fraction)
                self.C_ = solve_without_validation(model, train, seed, share, strengths=strengths).strength
        self.model_.eval()

    def _new_model(self, documents: Any) -> HcalForSequenceClassification:
        fields = dict(self.model_kwargs or {})
        # What was most accurate in recipes/benchmarks; contrasts and aggregates are defined on batches.
        on_batches = fields.get("contrast") is not None or fields.get("objective", "document") != "document"
        linear = self.freeze_encoder and not on_batches
        anchor = self.prototype_anchor
        if anchor == "auto":
            anchor = "label_text" if linear and self.encoder is not None else None
        fields = {
            "label_mode": self.label_mode_,
            "partial_paths": bool(self.partial_paths),
            "head": self.head,
            "score_function": ("linear" if linear else "cosine")
            if self.score_function == "auto"
            else self.score_function,
            "prototype_anchor": anchor,
            **fields,
        }
        if self.encoder is not None:
            files = {name: fields[name] for name in _FILE_ARGUMENTS if name in fields}
            self.tokenizer_ = AutoTokenizer.from_pretrained(self.encoder, **files)
            model = HcalForSequenceClassification.from_encoder(self.encoder, self.taxonomy_, **fields)
            model.encoder.requires_grad_(not self.freeze_encoder)
            return model
        self.tokenizer_ = None
        size = documents.shape[1] + bool(self.fit_intercept)
        is_whole = fields.get("projection_dim") is None
        if is_whole and size > MAX_FEATURES:
            raise ValueError(
                f"X has {documents.shape[1]} features, more than {MAX_FEATURES}: reduce them first, such as by "
                "sklearn.decomposition.TruncatedSVD(512) in a Pipeline."
            )
        # A placeholder: the features are what an encoder would have made.
        sizes = {"vocab_size": 2, "max_position_embeddings": 1, "intermediate_size": 1, "type_vocab_size": 1}
        config = BertConfig(hidden_size=size, num_hidden_layers=0, num_attention_heads=1, **sizes)
        model = HcalForSequenceClassification(HcalConfig.from_taxonomy(self.taxonomy_, config, **fields))
        with torch.no_grad():
            if is_whole:  # a prototype has a number for each feature
                model.projection.weight.copy_(torch.eye(size))
            if fields["score_function"] == "linear":  # where L-BFGS starts from; nothing is drawn
                model.prototypes.weight.zero_()
        model.encoder.requires_grad_(False)
        return model

    def _train(self, table: Dataset, labels: Dataset, seed: int) -> None:
        device = self._torch_device()
        with tempfile.TemporaryDirectory() as folder:
            chosen = {
                "output_dir": folder,
                "learning_rate": self.learning_rate,
                "head_learning_rate": self.head_learning_rate,
                "num_train_epochs": self.num_train_epochs,
                "per_device_train_batch_size": self.batch_size,
                "seed": seed,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": not self.verbose,
                "dataloader_pin_memory": device.type == "cuda",
                "use_cpu": device.type == "cpu",
            }
            args = HcalTrainingArguments(**{**chosen, **(self.training_kwargs or {})})
            if args.device.type != device.type or (device.index or 0) != (args.device.index or 0):
                raise ValueError(
                    f"device={self.device!r} is not where the Trainer trains, {args.device}: leave it out and choose the "
                    "device by CUDA_VISIBLE_DEVICES."
                )
            table = concatenate_datasets([table, labels], axis=1)
            trainer = HcalTrainer(self.model_, args, train_dataset=table, processing_class=self.tokenizer_)
            if not self.verbose:
                trainer.remove_callback(PrinterCallback)
            trainer.train()
            self.model_ = trainer.accelerator.unwrap_model(trainer.model).to(device)

    # ---- Documents ----

    def _read_numbers(self, X: Any, reset: bool) -> np.ndarray:
        """Features [N, D], checked."""
        if issparse(X):
            raise TypeError(
                "X is sparse, but dense numbers are needed: put sklearn.decomposition.TruncatedSVD(512) before the "
                "classifier in a Pipeline."
            )
        first = X[:1] if isinstance(X, SEQUENCE) else ()
        if len(first) and isinstance(first[0], str):
            raise ValueError(
                f"encoder=None takes numbers [N, D], got the text {first[0]!r}: give encoder, such as "
                '"sentence-transformers/all-MiniLM-L6-v2".'
            )
        number = {"ensure_min_samples": 2} if reset else {}
        return validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], **number)

    def _tokens(self, texts: list[str]) -> Dataset:
        longest = self.max_length
        if longest is None and self.tokenizer_.model_max_length > NO_LIMIT:
            longest = self.model_.max_tokens  # what the tokenizer does not know
        table = Dataset.from_dict({"text": texts})
        return encode_dataset(table, self.taxonomy_, self.tokenizer_, labels=None, max_length=longest)

    def _states(self, documents: Any) -> torch.Tensor:
        """What the model's projection reads, float32 [N, hidden_size], of documents already checked."""
        if self.encoder is None:
            states = documents / self.feature_scale_
            if self.model_.projection.in_features > states.shape[1]:
                states = np.concatenate([states, np.ones((len(states), 1))], axis=1)
            return torch.from_numpy(states.astype(np.float32))
        cache = self.feature_cache if self.freeze_encoder else None
        tokens = self._tokens(documents)
        table = pooled_features(self.model_, tokens, self.tokenizer_, batch_size=int(self.batch_size), cache_dir=cache)
        return torch.from_numpy(np.asarray(table["pooled_states"][:], dtype=np.float32))

    def _torch_device(self) -> torch.device:
        if self.device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    # ---- Predictions ----

    @torch.no_grad()
    def _logits(self, X: Any) -> torch.Tensor:
        """logit(p) of all nodes [N, L], float32 on the CPU."""
        check_is_fitted(self)
        with _progress_bars(self.verbose):
            states = self._states(self._read_numbers(X, reset=False) if self.encoder is None else _read_texts(X))
        step = max(_CELLS // len(self.taxonomy_), 1)
        model = self.model_
        return torch.cat([model(pooled_states=part.to(model.device)).logits.cpu() for part in states.split(step)])

    def _check_decision(self) -> None:
        allowed = DECODERS[self.label_mode_]
        if self.decode is not None and self.decode not in allowed:
            raise ValueError(f"decode must be one of {allowed} with {self.label_mode_}, got {self.decode!r}.")
        if self._format.ndim > 1:
            return
        if self.label_mode_ == "multi_path":
            raise ValueError(
                "multi_path documents carry any number of paths, but y is 1-d, one label a document: give y as [N, paths, "
                'depth] or a list of lists of paths, or label_mode="single_path".'
            )
        if self.threshold is not None:
            raise ValueError(
                "threshold can leave a document without a label, which a 1-d y has no place for: leave it out, or give y "
                "as [N, depth], a column a level."
            )

    def _decided(self, X: Any) -> np.ndarray:
        """The label sets, bool [N, L]."""
        check_is_fitted(self)
        self._check_decision()
        logits = self._logits(X)
        config = self.model_.config
        decided = decode(
            logits, self.taxonomy_, self.label_mode_, self.decode, self.threshold, config.partial_paths, config.head
        )
        return decided.numpy()

    def _as_labels(self, sets: np.ndarray) -> np.ndarray:
        """Ancestor-complete label sets [N, L] in the format of the `y` that was fitted."""
        # The ends of the paths: nodes without a child in the set.
        chosen = torch.from_numpy(sets)
        parents, children = torch.from_numpy(self.taxonomy_.edges.copy()).T
        inner = torch.zeros_like(chosen, dtype=torch.uint8)
        inner.scatter_reduce_(1, parents.expand(len(sets), -1), chosen[:, children].to(torch.uint8), reduce="amax")
        rows, nodes = (sets & ~inner.bool().numpy()).nonzero()
        form = self._format
        if form.ndim == 1:
            return self.classes_[self._class_of_node[nodes]]
        ends, of_end = np.unique(nodes, return_inverse=True)
        paths = [self.taxonomy_.paths(int(node)) for node in ends]  # one each, but in a DAG
        width = max(form.width, len(self.taxonomy_.levels))
        cells = np.full((sum(map(len, paths)), width), "", dtype=object)
        for row, path in enumerate(path for some in paths for path in some):
            cells[row, : len(path)] = [form.numbers.get(tuple(path[: k + 1]), name) for k, name in enumerate(path)]
        number = np.fromiter(map(len, paths), dtype=np.int64, count=len(paths))
        start, times = (np.cumsum(number) - number)[of_end], number[of_end]
        rows, within = np.repeat(rows, times), np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        cells = cells[np.repeat(start, times) + within]
        if form.ndim == 2 and self.label_mode_ == "single_path":
            found = np.full((len(sets), width), "", dtype=object)
            found[rows] = cells
        else:
            place = np.arange(len(rows)) - np.searchsorted(rows, rows)
            found = np.full((len(sets), max(form.most_paths, place.max(initial=0) + 1), width), "", dtype=object)
            found[rows, place] = cells
        is_full = form.dtype.kind in "iuf" and not (found == "").any()
        return found.astype(form.dtype) if is_full else found


# ---- Texts ----


def _read_texts(X: Any) -> list[str]:
    if isinstance(X, str | bytes):
        raise ValueError(f"X must be a sequence of texts, got one text: give [{X!r}].")
    if issparse(X):
        raise ValueError("X is sparse, but an encoder reads texts: for features give encoder=None.")
    texts = X if isinstance(X, list | tuple) else np.asarray(X)
    if isinstance(texts, np.ndarray):
        texts = texts[:, 0] if texts.ndim == 2 and texts.shape[1] == 1 else texts
        if texts.ndim != 1 or texts.dtype.kind not in "OUT":
            raise ValueError(
                f"X must hold texts [N] or [N, 1], got {texts.dtype} of shape {texts.shape}: features need "
                "encoder=None."
            )
    texts = list(texts)
    if not texts:
        raise ValueError("Found array with 0 sample(s), while a minimum of 1 is required: X holds no texts.")
    bad = [
        (row, f"a text must be a string, got {text!r}" if not isinstance(text, str) else "the text is empty")
        for row, text in enumerate(texts)
        if not isinstance(text, str) or not text.strip()
    ]
    if bad:
        raise bad_rows("X", bad)
    return list(map(str, texts))


# ---- Surroundings ----


@contextlib.contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seeds the global generators, as the Trainer does, and gives them back as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@contextlib.contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Without those of `datasets` and `transformers`, unless they are wanted."""
    hidden = [] if shown or are_progress_bars_disabled() else [(disable_progress_bars, enable_progress_bars)]
    if not shown and logging.is_progress_bar_enabled():
        hidden.append((logging.disable_progress_bar, logging.enable_progress_bar))
    for hide, _ in hidden:
        hide()
    try:
        yield
    finally:
        for _, show in hidden:
            show()


__all__ = ["HcalClassifier"]
