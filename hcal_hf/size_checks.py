"""Refuses configurations that describe far more than their weight file holds, before anything is built from them.

A config.json of a few bytes can ask for 10^9 layers or hidden states of width 10^9. Loops over layers would not end, and
weights that a file lacks would be allocated. The header of the weight file tells the true sizes without reading weights.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModel, AutoModelForTextEncoding
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

# Fields of an encoder's configuration over which its configuration or its modules loop. DeepNet, the deepest transformer
# that was published, has 1,000 layers.
_LOOPED = re.compile(r"(layers?|blocks|groups|group_num|depths?|stages|experts)$")
MOST_REPEATED = 1_000
# The configuration of transformers makes a name for each label.
_NAMED = re.compile(r"num_labels$")
MOST_NAMED = 2**20
# Those of them that have weights for each repetition.
_LAYERS = re.compile(r"^(n_layers?|((num|n)_)?((en|de)coder_)?(hidden_)?layers)$")
# A model may have this many times the numbers of its file, and so many more, before it is refused: weights can be tied, or
# misshapen by little, which the check of loaded weights names.
_FACTOR, _SLACK = 2, 2**20
# Arguments of from_pretrained that locate files.
_LOCATION = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")

_CURRENT: ContextVar["WeightFile | None"] = ContextVar("_CURRENT", default=None)


def check_counts(values: Mapping[str, Any]) -> None:
    """Checks the numbers of layers and labels in an encoder's configuration, as JSON holds it.

    Raises:
        ValueError: for more than 1,000 layers, or more than 2^20 labels.
    """
    for name, value in _numbers(values):
        for pattern, most in ((_LOOPED, MOST_REPEATED), (_NAMED, MOST_NAMED)):
            if pattern.search(name) and value > most:
                raise ValueError(
                    f"The encoder's configuration has {name}={value:,}, and at most {most:,} are allowed: no published "
                    "encoder has more, so config.json is damaged. Restore the file that was saved with the weights."
                )


def _numbers(values: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yields the numbers of nested dictionaries and lists with the last key on the way to them."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _numbers(value, str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value, name)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield name, values


@dataclass(frozen=True)
class WeightFile:
    """Holds the names and shapes of the weights in one or several safetensors files, from their headers.

    Attributes:
        source (`str`): the name of the model, for messages.
        shapes (`dict[str, tuple[int, ...]]`): the shape of each weight.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def find(cls, name: Any, options: Mapping[str, Any]) -> "WeightFile | None":
        """Reads the headers of a saved model. Returns None if it has no safetensors files that can be read.

        Args:
            name: a folder, or a name on the Hub, from which the files are fetched.
            options: arguments of `from_pretrained`.
        """
        if not isinstance(name, str | os.PathLike) or {"gguf_file", "quantization_config"} & set(options):
            return None
        location: dict[str, Any] = {key: options[key] for key in _LOCATION if options.get(key) is not None}
        quiet = dict.fromkeys(
            (
                "_raise_exceptions_for_missing_entries",
                "_raise_exceptions_for_gated_repo",
                "_raise_exceptions_for_connection_errors",
            ),
            False,
        )

        def find_file(file: str) -> str | None:
            if variant := options.get("variant"):
                stem, dot, rest = file.partition(".")
                file = f"{stem}.{variant}{dot}{rest}" if file == SAFE_WEIGHTS_NAME else _index_name(file, variant)
            return cached_file(os.fspath(name), file, **location, **quiet)

        shapes: dict[str, tuple[int, ...]] = {}
        try:
            paths = [find_file(SAFE_WEIGHTS_NAME)]
            if paths[0] is None and (index := find_file(SAFE_WEIGHTS_INDEX_NAME)):
                paths = [cached_file(os.fspath(name), shard, **location, **quiet) for shard in _shards(index)]
            for path in filter(None, paths):
                with safe_open(path, framework="pt") as file:
                    for weight in file.keys():  # noqa: SIM118
                        shapes[weight] = tuple(file.get_slice(weight).get_shape())
        except (SafetensorError, OSError):
            return None  # loading names the problem
        return cls(str(name), shapes) if shapes else None

    def check_layers(self, config: Any) -> None:
        """Checks that an encoder has at most as many layers as the file has weights.

        Raises:
            ValueError: if it has more.
        """
        for field, value in _numbers(config.to_dict()):
            if _LAYERS.search(field) and value > len(self.shapes):
                raise ValueError(
                    f"{self.source}: the encoder's configuration has {field}={value:,}, but the weight file holds only "
                    f"{len(self.shapes):,} weights. {_HINT}"
                )

    def check_size(self, model: nn.Module, config: Any) -> None:
        """Checks that a model, built without memory for its weights, is not far larger than the file.

        Args:
            model: the model, with parameters on the meta device.
            config: the configuration, to name fields in the message.

        Raises:
            ValueError: if the model has more than twice the numbers of the file.
        """
        stored = sum(_size(shape) for shape in self.shapes.values())
        tensors = dict(model.state_dict(keep_vars=True))
        first = {id(tensor): name for name, tensor in reversed(tensors.items())}  # of tied weights
        parameters = {name: tuple(tensor.shape) for name, tensor in tensors.items() if first[id(tensor)] == name}
        needed = sum(map(_size, parameters.values()))
        if needed <= _FACTOR * stored + _SLACK:
            return
        # The largest parameter that differs from the file.
        differing = {name: shape for name, shape in parameters.items() if self._shape_of(name) != shape}
        name, shape = max(differing.items(), key=lambda item: _size(item[1]))
        in_file = self._shape_of(name)
        fields = [
            f"{field}={value:,}" for field, value in _numbers(config.to_dict()) if value > 1 and value in set(shape)
        ]
        raise ValueError(
            f"{self.source}: config.json describes {needed:,} weights, but the weight file holds {stored:,}. {name} would "
            f"have the shape {list(shape)} ({', '.join(dict.fromkeys(fields)) or 'from several fields'}), and "
            f"{'is not in the file' if in_file is None else f'has the shape {list(in_file)} in the file'}. {_HINT}"
        )

    def _shape_of(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a parameter in the file, where an encoder alone has names without the prefix."""
        return self.shapes.get(name, self.shapes.get(name.removeprefix("encoder.")))


_HINT = "Restore the config.json that was saved with the weights."


def describe(problem: BaseException) -> str:
    """Returns the message of an error without its final point, with the type of an error that has no message of its own."""
    text = str(problem).rstrip(".")
    return f"{type(problem).__name__} {text}" if isinstance(problem, LookupError | AttributeError) else text


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:  # exact, where a product in int64 would overflow
        size *= length
    return size


def _index_name(file: str, variant: str) -> str:
    *stem, kind = file.split(".")  # model.safetensors.index.json -> model.safetensors.index.VARIANT.json
    return ".".join([*stem, variant, kind])


def _shards(index: str) -> list[str]:
    """Returns the names of the files of a sharded model, without any path."""
    try:
        files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(file) for file in files if Path(str(file)).name == str(file)})
    except (ValueError, KeyError, AttributeError, RecursionError):
        return []


@contextmanager
def expected_weights(weights: WeightFile | None) -> Iterator[None]:
    """Compares a model that is built within the `with` block with this weight file. None compares nothing."""
    token = _CURRENT.set(weights)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def encoder_only_types() -> list[str]:
    """Lists the types of encoder-decoders that have a class for their encoder alone."""
    names = MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.items()
    return sorted(kind for kind, name in names if name.endswith("EncoderModel"))


def auto_class_of(model_type: Any) -> Any:
    """Returns the class of transformers that loads the encoder of this type: only the encoder of T5 and its relatives."""
    return AutoModelForTextEncoding if model_type in encoder_only_types() else AutoModel


def check_has_encoder(model_type: Any, source: str) -> None:
    """Checks that an encoder-decoder has a class for its encoder alone.

    Raises:
        ValueError: if it has none.
    """
    if auto_class_of(model_type) is AutoModel:
        raise ValueError(
            f"{source} is an encoder-decoder ({model_type}), and transformers has no class for its encoder alone: use a "
            f"model that is an encoder or a decoder alone, or one of {', '.join(encoder_only_types())}."
        )


def check_reads_tokens(encoder: Any) -> None:
    """Checks that an encoder reads token ids.

    Raises:
        ValueError: if it reads something else, such as pixels.
    """
    if encoder.main_input_name != "input_ids":
        raise ValueError(
            f"{type(encoder).__name__} reads {encoder.main_input_name} and not the tokens of a text: use an encoder of "
            "texts, such as BERT."
        )


def build_encoder(config: Any) -> Any:
    """Builds an encoder with new weights.

    Raises:
        ValueError: if it has more layers than the file of [`expected_weights`] has weights, if its sizes overflow, or if it
            reads no tokens or is an encoder-decoder without a class for its encoder alone.
    """
    if (weights := _CURRENT.get()) is not None:
        weights.check_layers(config)
    if getattr(config, "is_encoder_decoder", False):
        check_has_encoder(config.model_type, "The encoder's configuration")
    try:
        encoder = auto_class_of(config.model_type).from_config(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as problem:
        largest = sorted(_numbers(config.to_dict()), key=lambda pair: -pair[1])[:3]
        fields = ", ".join(f"{field}={value:,}" for field, value in largest)
        reason = f"cannot be built ({fields}): {describe(problem)}"
        raise ValueError(f"The encoder's configuration {reason}. {_HINT}") from problem
    check_reads_tokens(encoder)
    return encoder


def check_size(model: nn.Module, config: Any) -> None:
    """Compares a model with the file of [`expected_weights`], as [`WeightFile.check_size`] does."""
    if (weights := _CURRENT.get()) is not None:
        weights.check_size(model, config)


__all__ = [
    "WeightFile",
    "auto_class_of",
    "build_encoder",
    "check_counts",
    "check_has_encoder",
    "check_reads_tokens",
    "check_size",
    "expected_weights",
]
