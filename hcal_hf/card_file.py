"""Writes the model card as README.md into the folder of a model, unless a user wrote or edited the file."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from transformers.utils import logging

from .model_card import Facts, build_card

logger = logging.get_logger(__name__)

FILE_NAME = "README.md"
# The last line of a generated card: digests of its labels, weights, thresholds and text.
_MARK = re.compile(
    r"\n<!-- Written by hcal_hf, and left as it is once edited "
    r"\((?P<labels>[0-9a-f]{12}) (?P<weights>[0-9a-f]{12}) (?P<decisions>[0-9a-f]{12}) (?P<text>[0-9a-f]{64})\) -->\s*\Z"
)
_DECISIONS = ("thresholds", "score_temperature", "risk_alpha", "risk_threshold")


def write_card(card: ModelCard, model: Any, folder: str | os.PathLike, overwrite: bool = False) -> bool:
    """Writes a card as the README.md of a folder. A file that a user wrote or edited is kept, unless `overwrite` is set.

    Returns:
        whether the card was written.
    """
    path = Path(folder) / FILE_NAME
    if path.exists() and not overwrite and not is_generated(path):
        logger.warning(
            f"{path} was written or edited manually, so it is kept. To replace it by a new card, delete the file or call "
            "create_model_card(overwrite=True)."
        )
        return False
    text = str(card).replace("\r\n", "\n").rstrip() + "\n"
    digests = " ".join((*_digests(model), _sha256(text)))
    mark = f"\n<!-- Written by hcal_hf, and left as it is once edited ({digests}) -->\n"
    path.write_text(text + mark, encoding="utf-8", newline="\n")
    return True


def save_minimal_card(model: Any, folder: str | os.PathLike) -> None:
    """Writes a card with the facts that `save_pretrained` has, without a trainer.

    A card of the same labels, weights and thresholds is kept. If only the thresholds differ, the new card copies its
    sections on data and training.
    """
    path = Path(folder) / FILE_NAME
    if path.exists() and (not is_generated(path) or _stored_digests(path) == _digests(model)):
        return
    carried = carried_sections(path, model)
    facts = Facts(folder_name(folder), carries_code=carries_code(folder), carried=carried)
    write_card(build_card(model, facts), model, folder)


def is_generated(path: str | os.PathLike) -> bool:
    """Tells whether a file is a card by [`write_card`] that was not edited."""
    text = _read(path)
    mark = _MARK.search(text)
    return mark is not None and _sha256(text[: mark.start()]) == mark["text"]


def carried_sections(path: str | os.PathLike, model: Any) -> dict[str, str]:
    """Reads the sections on data and training of an unedited card with the same labels and weights, or {}."""
    if not os.path.isfile(path) or not is_generated(path) or _stored_digests(path)[:2] != _digests(model)[:2]:
        return {}
    before, _, results = _read(path).partition("\n## Results\n")
    before, _, training = before.rpartition("\n## Training\n")
    data = before.partition("\n## Data\n")[2]
    return {"Data": data.strip(), "Training": training.strip()} if results and data and training else {}


def keep_remote_card(folder: str | os.PathLike, repo_id: str, token: Any = None, revision: str | None = None) -> None:
    """Copies README.md from the Hub to the folder if it was edited on the Hub and not in the folder.

    This is called before a push, which would otherwise overwrite the edited file.
    """
    path = Path(folder) / FILE_NAME
    if path.exists() and not is_generated(path):
        return
    try:
        remote = hf_hub_download(repo_id, FILE_NAME, token=token, revision=revision)
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return
    if not is_generated(remote):
        logger.warning(f"The README.md of {repo_id} was edited on the Hub. It is kept there and copied to {path}.")
        path.write_text(_read(remote), encoding="utf-8", newline="\n")


@contextmanager
def card_on_hub(model: Any, repo_id: str, token: Any = None, revision: str | None = None) -> Iterator[None]:
    """Adds the minimal card to a repository that has no README.md before the `with` block.

    It wraps `model.push_to_hub`, which would leave the empty template of transformers. The card is a separate commit.
    """
    api = HfApi(token=token)
    repo_id = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
    existed = api.file_exists(repo_id, FILE_NAME, revision=revision)
    yield
    if existed:
        return
    with tempfile.TemporaryDirectory() as folder:
        facts = Facts(repo_id, carries_code=api.file_exists(repo_id, "modeling_hcal.py", revision=revision))
        write_card(build_card(model, facts), model, folder)
        card = Path(folder) / FILE_NAME
        api.upload_file(
            path_or_fileobj=card,
            path_in_repo=FILE_NAME,
            repo_id=repo_id,
            revision=revision,
            commit_message="Model card",
        )


def carries_code(folder: str | os.PathLike) -> bool:
    """Tells whether a folder contains the code of the model, for users without hcal_hf."""
    return (Path(folder) / "modeling_hcal.py").is_file()


def folder_name(folder: str | os.PathLike) -> str:
    """Returns the name of a folder for its card: a relative path unchanged, and only the last part of any other path."""
    path = Path(folder)
    if path.is_absolute() or ".." in path.parts or not path.name:
        return path.resolve().name or "model"
    return path.as_posix()


def _stored_digests(path: str | os.PathLike) -> tuple[str, ...]:
    """Reads the digests of labels, weights and thresholds from a card. () if it has none."""
    mark = _MARK.search(_read(path))
    return () if mark is None else (mark["labels"], mark["weights"], mark["decisions"])


def _digests(model: Any) -> tuple[str, str, str]:
    """Computes digests of a model.

    Returns:
        the digests of the labels with the label mode and the head, of the weights of the head (at most 1,024 rows of each
        matrix), and of the temperature and thresholds.
    """
    config, taxonomy = model.config, model.taxonomy
    labels = hashlib.sha256("\0".join(taxonomy.labels).encode("utf-8", "surrogatepass"))
    labels.update(taxonomy.edges.tobytes())
    labels.update(f"{config.label_mode} {config.partial_paths} {config.head}".encode())
    weights = hashlib.sha256()
    for weight in (model.prototypes.weight, model.projection.weight):
        rows = (
            weight.to_local() if hasattr(weight, "to_local") else weight
        )  # the part of this process, if it is sharded
        if not rows.is_meta:
            weights.update(rows.detach()[:1024].float().cpu().numpy().tobytes())
    decisions = _sha256(json.dumps([getattr(config, name) for name in _DECISIONS]))
    return labels.hexdigest()[:12], weights.hexdigest()[:12], decisions[:12]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: str | os.PathLike) -> str:
    return Path(path).read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")


__all__ = ["card_on_hub", "save_minimal_card", "write_card"]
