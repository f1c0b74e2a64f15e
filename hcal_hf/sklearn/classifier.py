"""A scikit-learn estimator that predicts label paths from texts or features."""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from torch.nn import functional as F
from transformers import AutoTokenizer, PrinterCallback

from ..data.collator import HcalDataCollator
from ..data.encoding import encode_dataset
from ..data.label_checks import check_encoded
from ..data.rows import BadRowsError
from ..decoding import PAIRS_PER_CHUNK, UNTHRESHOLDED, decode, end_probabilities
from ..encoder_loading import FILE_ARGUMENTS
from ..modeling_hcal import HcalForSequenceClassification
from ..taxonomy import SEPARATOR, Taxonomy
from ..token_limits import token_limit
from ..training.arguments import HcalTrainingArguments
from ..training.class_weights import label_weights_of
from ..training.feature_model import feature_model
from ..training.features import pooled_features
from ..training.lexical_fit import add_lexical_features
from ..training.solver import STRENGTHS, fit_head, solve_without_validation, unsolvable_because
from ..training.standardize import lies_in_narrow_cone, standardize_features
from ..training.trainer import HcalTrainer
from .global_state import progress_bars, temporary_seed
from .parameters import check_decision, check_parameters
from .tuned_head import solve_and_tune

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_consistent_length, check_is_fitted

    from .bad_rows import bad_rows
    from .documents import read_features, read_texts
    from .label_arrays import LabelTable, encode_paths, end_nodes, read_labels, write_paths
except ImportError as missing:
    raise ImportError(
        'HcalClassifier needs scikit-learn 1.6 or later: pip install "hcal-hf[quickstart]".'
    ) from missing


class HcalClassifier(ClassifierMixin, BaseEstimator):
    """
    Classifies texts or features into a hierarchy, with the interface of scikit-learn.

    Coming from hiclass, keep the labels and change the name of the classifier. The vectoriser of a pipeline can stay or be
    removed:

    ```python
    y = [["Hardware", "Printer", "Paper jam"], ["Hardware", "Screen", ""], ...]
    LocalClassifierPerParentNode(LogisticRegression()).fit(features, y).predict(features)  # hiclass
    HcalClassifier(encoder=None).fit(features, y).predict(features)  # the same features
    HcalClassifier().fit(texts, y).predict(texts)  # texts, encoded by a frozen MiniLM-L6
    ```

    `predict` returns labels in the format of `y`:

    | `y` | labels of a document | `predict` | `classes_`, the columns of `predict_proba` |
    |---|---|---|---|
    | [N] | one label. All labels are on one level, or are nodes of `taxonomy` | [N] | the sorted labels; rows sum to 1 |
    | [N, depth] | one path: names from the root down, then "" | [N, depth] | the L nodes, `taxonomy_.labels` |
    | [N, paths, depth] | any number of paths, also none | [N, paths, depth] | the L nodes, `taxonomy_.labels` |

    None and NaN are read as "". Lists of paths, and lists of lists of paths, count as 2-d and 3-d arrays. Their lengths may
    differ. Names can also be whole numbers, which `predict` returns as numbers. Nodes with the same name under different
    parents are different nodes. Matrices of 0 and 1 with one column per label are refused.

    Args:
        encoder (`str`, *optional*): the name on the Hub or the folder of any model that `AutoModel` loads. X then holds N
            texts (list, array, Series, or a table of one column). With None, X holds dense numbers [N, D], such as
            embeddings.
        taxonomy ([`Taxonomy`], *optional*): the hierarchy. By default, it is built from the paths of `y`. A DAG needs
            multi_path.
        label_mode (`"auto"`, `"single_path"` or `"multi_path"`): `auto` is multi_path for 3-d `y`, else single_path. With
            `multi_path` and 2-d `y`, `predict` returns 3-d arrays.
        partial_paths (`bool`): whether a path may end at an inner node.
        head, score_function, prototype_anchor: see [`HcalConfig`]. With `auto`, a frozen encoder has linear scores that are
            regularised towards the label text, features have linear scores without anchors, and a trained encoder has
            cosines without anchors.
        freeze_encoder (`bool`): True computes the states of the encoder once and fits the head to them by L-BFGS. False
            trains all parameters in batches.
        C (`"auto"` or `float`): inverse strength of the regularisation of L-BFGS, as in scikit-learn. `auto` tries
            1 to 1,024 on held-out documents, and then fits all documents.
        validation_fraction (`float`): share of the held-out documents, which select `C="auto"` and whether to use the label
            text.
        fit_intercept (`bool`): for `encoder=None`, adds a constant to the features. Its size is their average length (root
            mean square). The features with the constant are scaled to unit length, like those of an encoder.
        lexical_features (`int`, *optional*): adds so many lexical features to those of a frozen encoder
            ([`hcal_hf.add_lexical_features`]). They help where single words decide, as in short titles.
        class_weight (`"balanced"` or `dict`, *optional*): weights of labels in the loss ([`compute_class_weight`]).
        max_length (`int`, *optional*): the maximum number of tokens; the limit of the encoder by default.
        batch_size (`int`): the number of texts per batch.
        learning_rate, head_learning_rate, num_train_epochs, training_kwargs (`dict`, *optional*): see
            [`HcalTrainingArguments`]. They apply if the head is not fitted by L-BFGS: with `freeze_encoder=False`, and for
            cosines.
        model_kwargs (`dict`, *optional*): other fields of [`HcalConfig`] (`pooling`, ...), and arguments of the
            encoder's `from_pretrained` (`revision`, ...).
        decode (`str`, *optional*): `path` (default) or `top_down` for single_path; `closure` (default), `prune`,
            `top_down` or `expected_f1` for multi_path ([`hcal_hf.decoding.decode`]).
        threshold (`float`, or a sequence of L numbers, *optional*): lowest probability of a predicted label. The default is
            the tuned one, else 0.5 for multi_path and none for single_path, in which a path ends before its first label
            below the threshold. Not for 1-d `y`.
        tune (`"micro_f1"` or `"macro_f1"`, *optional*): fit the temperature of the probabilities and, for multi_path, one
            threshold for this metric to the held-out documents. A `threshold` replaces the tuned one. Documents that are
            held out train the head all the same if L-BFGS fits it, because it is fitted to all documents at the end.
        feature_cache (`str`, *optional*): folder that caches the states of a frozen encoder, so that a grid search computes
            them once per fold.
        device (`str`, *optional*): such as "cpu". By default CUDA if it is available.
        random_state: as in scikit-learn. It selects the held-out documents, and initialises weights and batches.
        verbose (`bool`): show progress bars and the losses of the training.

    `predict` uses the current values of `decode`, `threshold`, `max_length`, `batch_size`, `feature_cache` and `verbose`,
    so they can be changed after `fit`. Only `fit` uses the others.

    Attributes:
        classes_ (`np.ndarray`): see above.
        taxonomy_ ([`Taxonomy`]): the hierarchy.
        model_ ([`HcalForSequenceClassification`]): the model. With an encoder, `model_.save_pretrained(folder)` and
            `tokenizer_.save_pretrained(folder)` write a folder that `pipeline("hierarchical-text-classification")` loads.
            Without an encoder, its `pooled_states` are X / `feature_scale_`, followed by a 1 with `fit_intercept`.
        tokenizer_: the tokenizer of the encoder; None without an encoder.
        label_mode_ (`str`): single_path or multi_path.
        C_ (`float`, *optional*): the value of C that was used; None if the head was trained in batches.
        feature_scale_ (`float`): for `encoder=None`, the root mean square of the lengths of the rows of X in `fit`.
        n_features_in_, feature_names_in_: for `encoder=None`, as in scikit-learn.

    For cross-validation with lists of paths, pass `cv=KFold(...)`, because scikit-learn does not recognise their type. A
    label without a training document in a fold cannot be predicted there, and counts as wrong, unless `taxonomy` has it.
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
        lexical_features: int | None = None,
        class_weight: Mapping[str, float] | str | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        head_learning_rate: float | None = 1e-2,
        num_train_epochs: float = 3,
        training_kwargs: Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        decode: str | None = None,
        threshold: float | Sequence[float] | None = None,
        tune: str | None = None,
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
        self.lexical_features = lexical_features
        self.class_weight = class_weight
        self.max_length = max_length
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.num_train_epochs = num_train_epochs
        self.training_kwargs = training_kwargs
        self.model_kwargs = model_kwargs
        self.decode = decode
        self.threshold = threshold
        self.tune = tune
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
            ValueError: if a parameter is out of range, rows of X or y cannot be read (the message lists their indices),
                paths end at inner nodes without `partial_paths`, labels are not in `taxonomy`, or there are too few
                documents.
            TypeError: if features are sparse.
        """
        check_parameters(self)
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        if self.encoder is None:
            documents: Any = read_features(self, X, reset=True)
            # Divided by the largest number first, because its square could overflow.
            largest = float(np.abs(documents).max()) or 1.0
            self.feature_scale_ = largest * float(np.sqrt(np.square(documents / largest).sum(axis=1).mean())) or 1.0
        else:
            documents = read_texts(X)
        labels = read_labels(y)
        check_consistent_length(documents, labels.documents)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        encoded = self._fit_labels(labels)
        with temporary_seed(seed), progress_bars(self.verbose):
            self._fit_model(documents, encoded, seed)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predicts the labels of N documents, in the format of the `y` in `fit`: [N], [N, depth] or [N, paths, depth].

        Levels below the end of a path, and missing paths, are "".

        Raises:
            ValueError: if rows cannot be read, or `decode` or `threshold` does not fit the labels.
        """
        return self._labels_of(self._predict_sets(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predicts the probabilities of `classes_`, float32.

        For 2-d and 3-d `y`, these are the probabilities of the nodes [N, L]. No node exceeds its parent, except with
        `head="independent"`. For 1-d `y`, these are the probabilities [N, n_classes] that the path ends at a label. Their
        rows sum to 1.

        Raises:
            ValueError: if rows cannot be read.
        """
        logits = self._logits(X)
        if self._format.ndim > 1:
            return torch.sigmoid(logits).numpy()
        ends = end_probabilities(F.logsigmoid(logits.double()), self.taxonomy_, self.model_.config.partial_paths)
        probabilities = ends.numpy()[:, self._node_of_class].clip(min=0)
        return (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)

    def score(self, X: Any, y: Any) -> float:
        """Computes the accuracy: the share of documents with the right path, or the right set of paths.

        `hiclass.metrics.f1(y, predict(X))` gives partial credit and takes the same arrays of names.

        Raises:
            ValueError: as in [`predict`], or if `y` has another format than in `fit`.
        """
        check_is_fitted(self)
        labels = read_labels(y)
        if (labels.format.ndim == 1) != (self._format.ndim == 1):
            raise ValueError(
                f"y has {labels.format.ndim} dimension(s), but {type(self).__name__} was fitted with {self._format.ndim}."
            )
        label_sets = self._predict_sets(X)
        check_consistent_length(label_sets, labels.documents)
        if labels.format.ndim == 1:
            return float(np.mean(self._labels_of(label_sets) == labels.documents))
        # Labels that were not in `fit` are errors here, which equal no prediction.
        references = encode_paths(labels.documents, self.taxonomy_)
        return float(np.mean([row.nonzero()[0].tolist() == nodes for row, nodes in zip(label_sets, references)]))

    # ---- Fitting ----

    def _fit_labels(self, labels: "LabelTable") -> Dataset:
        """Sets the attributes that depend on y. Returns the sorted nodes of each document, as in [`encode_dataset`]."""
        self._format = labels.format
        default_mode = "multi_path" if labels.format.ndim == 3 else "single_path"
        self.label_mode_ = default_mode if self.label_mode == "auto" else self.label_mode
        check_decision(self, self.label_mode_, self._format.ndim)
        if labels.format.ndim == 1:
            nodes: Any = self._fit_flat_labels(labels.documents)
        else:
            distinct_paths = sorted({path for paths in labels.documents for path in paths})
            if not distinct_paths and self.taxonomy is None:
                raise ValueError("y has no labels, so nothing can be learned: give at least one path.")
            self.taxonomy_ = Taxonomy.from_paths(distinct_paths) if self.taxonomy is None else self.taxonomy
            self.classes_ = np.array(self.taxonomy_.labels)
            nodes = encode_paths(labels.documents, self.taxonomy_)
            if bad := [(row, str(problem)) for row, problem in enumerate(nodes) if isinstance(problem, ValueError)]:
                raise bad_rows("y", bad)
        if self.label_mode_ == "single_path":
            self.taxonomy_.check_single_path()
        encoded = Dataset.from_dict({"labels": nodes}, features=Features({"labels": List(Value("int64"))}))
        try:
            check_encoded(encoded, self.taxonomy_, self.label_mode_, self.partial_paths)
        except BadRowsError as problem:
            raise bad_rows("y", [(row, message) for _, row, message in problem.rows]) from None
        return encoded

    def _fit_flat_labels(self, labels: np.ndarray) -> list[list[int]]:
        """Sets the attributes that depend on a 1-d y. Returns the sorted nodes of each document."""
        present, inverse = np.unique(labels, return_inverse=True)
        names = [str(label) for label in present.tolist()]
        if self.taxonomy is None:
            if path_like := [name for name in names if SEPARATOR in name]:
                raise ValueError(
                    f"The label {path_like[0]!r} looks like a path, but 1-d labels are all on one level: give paths, "
                    f"[label.split({SEPARATOR!r}) for label in y]."
                )
            self.taxonomy_, self.classes_ = Taxonomy.from_paths([[name] for name in names]), present
            self._node_of_class = np.arange(len(present))
        else:
            self.taxonomy_ = self.taxonomy
            if unknown := [name for name in names if name not in self.taxonomy.label_index]:
                raise ValueError(
                    f"{len(unknown)} label(s) of the 1-d y are not in taxonomy.labels, first: {unknown[0]!r}. A label is "
                    'the name of its node, or the whole path ("Books > Other") if several nodes have the same name.'
                )
            ends = np.flatnonzero(self.taxonomy.is_leaf | self.partial_paths)
            self.classes_, order = np.unique(np.array(self.taxonomy.labels)[ends], return_index=True)
            self._node_of_class = ends[order]
        self._class_of_node = np.zeros(len(self.taxonomy_), dtype=np.int64)
        self._class_of_node[self._node_of_class] = np.arange(len(self.classes_))
        rows = [self.taxonomy_.complete([self.taxonomy_.index(name)]).tolist() for name in names]
        return [rows[i] for i in inverse.tolist()]

    def _fit_model(self, documents: Any, labels: Dataset, seed: int) -> None:
        """Fits the model by L-BFGS if that is possible, else in batches."""
        model = self.model_ = self._new_model(documents).to(self._torch_device())
        self.C_ = None
        if self.freeze_encoder and self.encoder is not None:
            self._prepare_features(documents)
        if not self.freeze_encoder:
            self._train(self._tokens(documents), labels, seed)
        elif unsolvable_because(model):
            self._train(Dataset.from_dict({"pooled_states": self._states(documents).numpy()}), labels, seed)
        else:
            weights = label_weights_of(self.class_weight, labels, self.taxonomy_, model.config)
            model.label_weights = None if weights is None else weights.to(model.device)
            collate = HcalDataCollator(None, self.taxonomy_, targets="indices")
            train = self._states(documents), collate(labels.to_list())["labels"]
            share, strengths = float(self.validation_fraction), STRENGTHS if self.C == "auto" else (float(self.C),)
            if self.tune is not None:
                self.C_ = solve_and_tune(model, train, seed, share, strengths, self.tune)
            elif self.C != "auto" and not model.prototypes.is_anchored:
                self.C_ = float(self.C)
                fit_head(model, *train, self.C_)
            else:
                self.C_ = solve_without_validation(model, train, seed, share, strengths=strengths).strength
        self.model_.eval()

    def _new_model(self, documents: Any) -> HcalForSequenceClassification:
        """Builds the model, with the defaults that were most accurate in recipes/benchmarks."""
        fields = dict(self.model_kwargs or {})
        # L-BFGS cannot fit contrasts and aggregates, which are defined on batches, and the asymmetric loss.
        on_batches = fields.get("contrast") is not None or fields.get("objective", "document") != "document"
        on_batches = on_batches or fields.get("classification_loss") == "asl"
        is_hyperbolic = fields.get("geometry", "euclidean") != "euclidean"
        linear = (self.freeze_encoder and not on_batches) or is_hyperbolic
        anchor = self.prototype_anchor
        if anchor == "auto":
            anchor = "label_text" if linear and self.encoder is not None else None
        scores = "linear" if linear else "cosine"
        fields = {
            "label_mode": self.label_mode_,
            "partial_paths": bool(self.partial_paths),
            "head": self.head,
            "score_function": scores if self.score_function == "auto" else self.score_function,
            "prototype_anchor": anchor,
            **fields,
        }
        if self.encoder is not None:
            files = {name: fields[name] for name in FILE_ARGUMENTS if name in fields}
            self.tokenizer_ = AutoTokenizer.from_pretrained(self.encoder, **files)
            model = HcalForSequenceClassification.from_encoder(self.encoder, self.taxonomy_, **fields)
            model.encoder.requires_grad_(not self.freeze_encoder)
            return model
        self.tokenizer_ = None
        return feature_model(self.taxonomy_, documents.shape[1], bool(self.fit_intercept), fields)

    def _prepare_features(self, texts: list[str]) -> None:
        """Adds lexical features if they are wanted, and centres and scales features that need it."""
        if self.lexical_features is not None:
            add_lexical_features(self.model_, self._tokens(texts), self.tokenizer_, int(self.lexical_features))
            standardize_features(self.model_, self._states(texts))
        elif not unsolvable_because(self.model_) and lies_in_narrow_cone(states := self._states(texts)):
            standardize_features(self.model_, states)

    def _train(self, table: Dataset, labels: Dataset, seed: int) -> None:
        """Trains the model in batches."""
        device = self._torch_device()
        with tempfile.TemporaryDirectory() as folder:
            arguments = {
                "output_dir": folder,
                "learning_rate": self.learning_rate,
                "head_learning_rate": self.head_learning_rate,
                "num_train_epochs": self.num_train_epochs,
                "per_device_train_batch_size": self.batch_size,
                "seed": seed,
                "class_weight": self.class_weight,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": not self.verbose,
                "tune": self.tune or "none",
                "dataloader_pin_memory": device.type == "cuda",
                "use_cpu": device.type == "cpu",
            }
            args = HcalTrainingArguments(**{**arguments, **(self.training_kwargs or {})})
            if args.device.type != device.type or (device.index or 0) != (args.device.index or 0):
                raise ValueError(
                    f"device={self.device!r} differs from the device of the Trainer, {args.device}: leave it out and "
                    "select the device by CUDA_VISIBLE_DEVICES."
                )
            table = concatenate_datasets([table, labels], axis=1)
            held_out = None
            if args.tune != "none":
                parts = table.train_test_split(float(self.validation_fraction), seed=seed)
                table, held_out = parts["train"], parts["test"]
            trainer = HcalTrainer(self.model_, args, None, table, held_out, self.tokenizer_)
            if not self.verbose:
                trainer.remove_callback(PrinterCallback)
            trainer.train()
            self.model_ = trainer.accelerator.unwrap_model(trainer.model).to(device)

    # ---- Documents ----

    def _tokens(self, texts: list[str]) -> Dataset:
        """Tokenizes texts."""
        max_length = token_limit(self.model_, self.tokenizer_, self.max_length)
        options: dict[str, Any] = {"max_length": max_length, "prefix": self.model_.config.text_prefix}
        table = Dataset.from_dict({"text": texts})
        return encode_dataset(table, self.taxonomy_, self.tokenizer_, labels=None, **options)

    def _states(self, documents: Any) -> torch.Tensor:
        """Computes the input of the model's projection, float32 [N, hidden_size], for documents that are checked."""
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
        """Computes logit(p) of all nodes [N, L], float32 on the CPU."""
        check_is_fitted(self)
        documents: Any = read_features(self, X, reset=False) if self.encoder is None else read_texts(X)
        with progress_bars(self.verbose):
            states = self._states(documents)
        step = max(PAIRS_PER_CHUNK // len(self.taxonomy_), 1)
        model = self.model_
        return torch.cat([model(pooled_states=chunk.to(model.device)).logits.cpu() for chunk in states.split(step)])

    def _predict_sets(self, X: Any) -> np.ndarray:
        """Predicts label sets with all ancestors, bool [N, L]."""
        check_is_fitted(self)
        check_decision(self, self.label_mode_, self._format.ndim)
        logits = self._logits(X)
        config = self.model_.config
        threshold = self.threshold
        if threshold is None and self.decode not in UNTHRESHOLDED:
            threshold = config.thresholds
        label_sets = decode(
            logits, self.taxonomy_, self.label_mode_, self.decode, threshold, config.partial_paths, config.head
        )
        return label_sets.numpy()

    def _labels_of(self, label_sets: np.ndarray) -> np.ndarray:
        """Writes label sets in the format of the `y` in `fit`."""
        if self._format.ndim == 1:
            return self.classes_[self._class_of_node[end_nodes(label_sets, self.taxonomy_)[1]]]
        one_path = self._format.ndim == 2 and self.label_mode_ == "single_path"
        return write_paths(label_sets, self.taxonomy_, self._format, one_path)


__all__ = ["HcalClassifier"]
