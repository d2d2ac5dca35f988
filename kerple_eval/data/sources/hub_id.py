"""A hub data set by its id: ``hf:ORG/NAME[@REVISION],split=test,column=text``.

More options: ``config=NAME``, ``limit=N``, ``join=RULE``.

``datasets`` says which files belong to a configuration and split (from the data-set card and the files'
names); no loading script is run. The revision is resolved to a commit first, and both go into the record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from kerple_eval.data.documents import Document
from kerple_eval.data.sources.files import kind_of
from kerple_eval.data.sources.hub import hub_documents
from kerple_eval.data.sources.kinds import HubIdSource, HubSource
from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

SECONDS = 10.0  # the hub answers within these or counts as out of reach
T = TypeVar("T")


def hub_id_documents(source: HubIdSource, task: str) -> tuple[list[Document], dict[str, Any]]:
    """The documents of the split, and what a record must say of their source."""
    import datasets  # noqa: PLC0415 - slow to import, and only such tasks need it
    import huggingface_hub  # noqa: PLC0415

    what = f"task hf:{source.repository}"
    commit = _answer(
        what,
        lambda: huggingface_hub.HfApi().dataset_info(
            source.repository, revision=source.revision, timeout=SECONDS
        ),
    ).sha
    builder = _answer(
        what, lambda: datasets.load_dataset_builder(source.repository, source.config, revision=commit)
    )
    splits = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    if source.split not in splits:
        given = "no split is given" if source.split is None else f"no split {quoted(source.split)}"
        raise UserError(f"{what}: {given}; it has {', '.join(splits) or 'none'}: write split=NAME")
    root = f"hf://datasets/{source.repository}@{commit}/"
    names = [str(name).removeprefix(root) for name in splits[source.split]]
    for name in names:
        if kind_of(name) == "text" and not name.lower().endswith((".txt", ".txt.gz", ".md")):
            raise UserError(f"{what}: {quoted(name)} is no file of text, JSON lines, JSON, CSV or parquet")
    resolved = HubSource(
        source.repository, str(commit), ", ".join(names)[:80], source.split, source.column, join=source.join,
        limit=source.limit,
    )  # fmt: skip
    documents, origin = hub_documents(resolved, task, names)
    return documents, origin | {"config": source.config}


def _answer(what: str, function: Callable[[], T]) -> T:
    """What the hub answers; its errors become a UserError of one line."""
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return function()
    except (GatedRepoError, RevisionNotFoundError, RepositoryNotFoundError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: the hub refuses it ({type(error).__name__}: {reason})") from None
    except LocalEntryNotFoundError as error:
        raise _unreachable(what, error) from None
    except (ValueError, RuntimeError, FileNotFoundError) as error:  # of datasets: a configuration, a script
        raise UserError(f"{what}: {' '.join(str(error).split())[:300]}") from None
    except Exception as error:  # network, proxy and cache errors share no class
        raise _unreachable(what, error) from None


def _unreachable(what: str, error: Exception) -> UserError:
    return UserError(
        f"{what}: the hub cannot be reached ({type(error).__name__}), so there is no network or it is "
        "switched off; with a local copy of the files: --text DIR, or --text FILE,column=NAME"
    )
