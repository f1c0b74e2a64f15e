"""The README.md of a model's folder: written where nobody edited it, left alone where somebody did."""

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
# The last line of a card of ours: which labels, weights and decisions it speaks of, and what it said when it was written.
_MARK = re.compile(
    r"\n<!-- Written by hcal_hf, and left as it is once edited "
    r"\((?P<labels>[0-9a-f]{12}) (?P<weights>[0-9a-f]{12}) (?P<decisions>[0-9a-f]{12}) (?P<text>[0-9a-f]{64})\) -->\s*\Z"
)
_DECISIONS = ("thresholds", "score_temperature", "risk_alpha", "risk_threshold")


def write_card(card: ModelCard, model: Any, folder: str | os.PathLike, overwrite: bool = False) -> bool:
    """Writes a card as the README.md of a folder, unless there is one that somebody else wrote or edited.

    Returns:
        whether it was written.
    """
    path = Path(folder) / FILE_NAME
    if path.exists() and not overwrite and not is_generated(path):
        logger.warning(
            f"{path} was written or edited by hand and is left as it is. create_model_card(overwrite=True), or deleting "
            "the file, lets a new card be written."
        )
        return False
    text = str(card).replace("\r\n", "\n").rstrip() + "\n"
    digests = " ".join((*_digests(model), _sha256(text)))
    mark = f"\n<!-- Written by hcal_hf, and left as it is once edited ({digests}) -->\n"
    path.write_text(text + mark, encoding="utf-8", newline="\n")
    return True


def save_minimal_card(model: Any, folder: str | os.PathLike) -> None:
    """What `save_pretrained` alone knows of a model, as a README.md. A card that is of this very model, its labels,
    weights and thresholds, stays; of one that is of it but for the thresholds, the sections on data and training stay.
    """
    path = Path(folder) / FILE_NAME
    if path.exists() and (not is_generated(path) or _told_digests(path) == _digests(model)):
        return
    carried = carried_sections(path, model)
    facts = Facts(folder_name(folder), carries_code=carries_code(folder), carried=carried)
    write_card(build_card(model, facts), model, folder)


def is_generated(path: str | os.PathLike) -> bool:
    """Whether a file is a card as it was written by [`write_card`], without a change."""
    text = _read(path)
    found = _MARK.search(text)
    return found is not None and _sha256(text[: found.start()]) == found["text"]


def carried_sections(path: str | os.PathLike, model: Any) -> dict[str, str]:
    """The sections on data and training of an unedited card of the same labels and weights; {} where there is none."""
    if not os.path.isfile(path) or not is_generated(path) or _told_digests(path)[:2] != _digests(model)[:2]:
        return {}
    before, _, results = _read(path).partition("\n## Results\n")
    before, _, training = before.rpartition("\n## Training\n")
    data = before.partition("\n## Data\n")[2]
    return {"Data": data.strip(), "Training": training.strip()} if results and data and training else {}


def keep_remote_card(folder: str | os.PathLike, repo_id: str, token: Any = None, revision: str | None = None) -> None:
    """Before a push: where the repository's README.md was edited there and the folder's was not, the folder takes over the
    repository's, which the push would overwrite."""
    path = Path(folder) / FILE_NAME
    if path.exists() and not is_generated(path):
        return
    try:
        remote = hf_hub_download(repo_id, FILE_NAME, token=token, revision=revision)
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return
    if not is_generated(remote):
        logger.warning(f"The README.md of {repo_id} was edited there: it is kept, and copied to {path}.")
        path.write_text(_read(remote), encoding="utf-8", newline="\n")


@contextmanager
def card_on_hub(model: Any, repo_id: str, token: Any = None, revision: str | None = None) -> Iterator[None]:
    """Around a `model.push_to_hub`: gives a repository without a README.md the minimal card, in a commit of its own, where
    transformers would leave its empty template."""
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
    """Whether a folder holds the model's code, for those who have no hcal_hf."""
    return (Path(folder) / "modeling_hcal.py").is_file()


def folder_name(folder: str | os.PathLike) -> str:
    """How a card names its folder: a relative path as it is, of any other only the last part."""
    path = Path(folder)
    if path.is_absolute() or ".." in path.parts or not path.name:
        return path.resolve().name or "model"
    return path.as_posix()


def _told_digests(path: str | os.PathLike) -> tuple[str, ...]:
    """What a card says that it is of."""
    found = _MARK.search(_read(path))
    return () if found is None else (found["labels"], found["weights"], found["decisions"])


def _digests(model: Any) -> tuple[str, str, str]:
    """Of the labels and what is predicted of them, of the head's weights (1,024 rows at most), of the decisions."""
    config, taxonomy = model.config, model.taxonomy
    labels = hashlib.sha256("\0".join(taxonomy.labels).encode("utf-8", "surrogatepass"))
    labels.update(taxonomy.edges.tobytes())
    labels.update(f"{config.label_mode} {config.partial_paths} {config.head}".encode())
    weights = hashlib.sha256()
    for weight in (model.prototypes.weight, model.projection.weight):
        rows = weight.to_local() if hasattr(weight, "to_local") else weight  # of a sharded model, this process's
        if not rows.is_meta:
            weights.update(rows.detach()[:1024].float().cpu().numpy().tobytes())
    decisions = _sha256(json.dumps([getattr(config, name) for name in _DECISIONS]))
    return labels.hexdigest()[:12], weights.hexdigest()[:12], decisions[:12]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: str | os.PathLike) -> str:
    return Path(path).read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")


__all__ = ["card_on_hub", "save_minimal_card", "write_card"]
