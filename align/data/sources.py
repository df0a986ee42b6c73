"""Read the rows of a source, unchanged: a dataset on the Hugging Face hub, a folder laid out as one, or a file.

Library `datasets` finds the files of configurations and splits, and reads kinds of files that `tables` does not know.
"""

import codecs
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import error as ZlibError

from datasets import DatasetBuilder, disable_progress_bars, load_dataset_builder
from datasets.exceptions import DatasetsError
from huggingface_hub import constants
from pyarrow import ArrowException
from pydantic import Field, field_validator

from align.core.errors import InputError, quoted
from align.core.files import check_regular, sha256
from align.core.params import Settings
from align.data.hub import commit_of, download, hub_errors, is_hub_id, page_of
from align.data.tables import TableFile, csv_rows, json_rows, parquet_rows

DIGEST = re.compile(r"sha256:[0-9a-f]{12,64}")
MOVING = ("main", "master")
# Suffix -> builder of `datasets`; all but Parquet may be compressed.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
COMPRESSED = (".gz", ".bz2", ".xz")
READERS = {"json": json_rows, "csv": csv_rows, "parquet": parquet_rows}
# What `datasets` and Arrow raise on files that they cannot read.
LIBRARY_ERRORS = (ArrowException, DatasetsError, ZlibError)
BUILTIN_ERRORS = (AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class SourceSettings(Settings):
    """An entry of section `sources` of params.yaml."""

    dataset: str = Field(min_length=1)
    config: str | None = None
    revision: str | None = None
    data_files: str | None = Field(default=None, min_length=1)
    split: str = Field(default="train", min_length=1)
    streaming: bool = False
    limit: int | None = Field(default=None, ge=1)
    columns: list[str] | dict[str, str] | None = Field(default=None, min_length=1)
    encoding: str = "utf-8"
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError:
            raise ValueError("is no encoding that Python knows; utf-8, utf-16 and cp1252 are common") from None
        return value


@dataclass(frozen=True)
class Source:
    """A located source; equal fingerprints mean equal rows.

    `location` is a file, a folder, or (streamed) a repository id, with the commit in `revision`.
    """

    name: str
    settings: SourceSettings
    location: str
    fingerprint: str
    revision: str | None = None

    @property
    def key(self) -> str:
        """The entry's place in params.yaml, for messages."""
        return f"params.yaml: sources.{self.name}"


def find(name: str, settings: SourceSettings) -> Source:
    """Locate a source, and download it unless it is local or streamed; check that it is pinned and unchanged."""
    key = f"params.yaml: sources.{name}"
    path = Path(settings.dataset).expanduser()
    if _builder_of(path) or not is_hub_id(settings.dataset):
        return _find_local(key, name, settings, path)
    if settings.revision is None or settings.revision in MOVING:
        problem = "missing" if settings.revision is None else f"{settings.revision} is a moving branch"
        raise InputError(
            f"{key}.revision: {problem}; pin a hub dataset to a commit or a tag, so that every run gets the same rows: "
            f"`git ls-remote {page_of(settings.dataset, 'dataset')} main` prints the current commit"
        )
    if settings.streaming:
        if constants.HF_HUB_OFFLINE:
            raise InputError(f"{key}.streaming: reads from the hub, but HF_HUB_OFFLINE is set; unset it, or set false")
        commit = commit_of(f"{key}.dataset", settings.dataset, settings.revision)
        return Source(name, settings, settings.dataset, commit, commit)
    folder = download(f"{key}.dataset", settings.dataset, settings.revision, settings.data_files)
    _refuse_script(key, folder, settings)
    return Source(name, settings, str(folder), folder.name)


def _find_local(key: str, name: str, settings: SourceSettings, path: Path) -> Source:
    if not path.is_dir():
        if not path.exists() and _builder_of(path) is None:
            raise InputError(
                f"{key}.dataset: no such folder: {settings.dataset}; give a hub id (owner/name), a folder, or a file "
                f"({', '.join(BUILDERS)})"
            )
        check_regular(path, f"give sources.{name}.dataset a hub id (owner/name), a folder or a file")
        if _builder_of(path) is None:
            raise InputError(f"{key}.dataset: {path.name} has an unsupported type; give {', '.join(BUILDERS)}")
    else:
        _refuse_script(key, path, settings)
    fingerprint = f"sha256:{sha256(path)}"
    revision = settings.revision
    if revision is not None and not DIGEST.fullmatch(revision):
        raise InputError(
            f"{key}.revision: expected null or the hash of the data as sha256:HEX, got {quoted(revision)}; "
            f"it is now {fingerprint}"
        )
    if revision is not None and not fingerprint.startswith(revision):
        raise InputError(f"{key}.revision: {settings.dataset} has changed; set {fingerprint} if that is intended")
    return Source(name, settings, str(path.resolve()), fingerprint)


def _refuse_script(key: str, folder: Path, settings: SourceSettings) -> None:
    script = f"{Path(settings.dataset).name}.py"
    if settings.data_files is None and (folder / script).is_file():
        raise InputError(_script_refused(key, script))


def _script_refused(key: str, script: str) -> str:
    return (
        f"{key}.dataset: its rows come from its own code ({script}), which is never run; name one of its files "
        "(data_files), or as revision the commit of refs/convert/parquet, which has tables"
    )


def read(source: Source) -> Iterator[dict[str, Any]]:
    """Yield a source's rows in order as JSON values, with the columns and up to the limit of its settings."""
    settings, seen = source.settings, dict[str, None]()
    number = 0
    for number, row in enumerate(islice(_rows(source), settings.limit), 1):
        seen |= dict.fromkeys(row)
        kept = dict[str, Any]()
        for column, value in _kept(row, settings.columns):
            try:
                kept[column] = _plain(value)
            except _Unfit as unfit:
                raise InputError(
                    f"{source.key}: row {number} holds {unfit} in {quoted(column)}, which JSON cannot; leave the "
                    f"column out with sources.{source.name}.columns (it has {', '.join(map(quoted, row))})"
                ) from None
        yield kept
    if not number:
        raise InputError(f"{source.key}: {settings.dataset} has no rows; check dataset, config, split and data_files")
    wanted = settings.columns.values() if isinstance(settings.columns, dict) else settings.columns or ()
    if missing := [column for column in wanted if column not in seen]:
        raise InputError(
            f"{source.key}.columns: no row has {', '.join(map(quoted, missing))}; there are "
            f"{', '.join(map(quoted, seen))}"
        )


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    settings = source.settings
    path = Path(source.location)
    if path.is_file():
        with _reading(source, settings.dataset):
            yield from READERS[_builder_of(path) or ""](_table(source, settings.dataset, source.location))
        return
    with tempfile.TemporaryDirectory() as scratch, _reading(source, settings.dataset):
        # A private cache: offline, `datasets` would take any revision from a shared one.
        builder = _builder(source, scratch)
        files = builder.config.data_files or {}
        if settings.split not in files:
            raise InputError(
                f"{source.key}.split: there is no {quoted(settings.split)}; there are {', '.join(map(quoted, files))}"
                + ("; use limit to take a part" if "[" in settings.split else "")
            )
        rows = next((READERS[kind] for kind in READERS if type(builder).__module__.endswith(f".{kind}")), None)
        if rows is None:
            yield from builder.as_streaming_dataset(split=settings.split)
            return
        for file in files[settings.split]:
            name = f"{settings.dataset}/{file.removeprefix(source.location).split('@')[-1].lstrip('/')}"
            yield from rows(_table(source, name, file, getattr(builder.config, "sep", ",")))


def _table(source: Source, name: str, location: str, sep: str = ",") -> TableFile:
    settings = source.settings
    delimiter = settings.delimiter or (None if sep == "," else sep)  # a hub dataset's card may name one
    columns = settings.columns.values() if isinstance(settings.columns, dict) else settings.columns
    return TableFile(name, location, f"sources.{source.name}", settings.encoding, delimiter, columns)


def _builder(source: Source, scratch: str) -> DatasetBuilder:
    """Return the builder, which knows the files of each split; it reads no rows yet."""
    settings = source.settings
    disable_progress_bars()
    try:
        return load_dataset_builder(
            source.location,
            settings.config,
            revision=source.revision,
            data_files=settings.data_files and {settings.split: settings.data_files},
            cache_dir=scratch,
        )
    except ValueError as error:
        if "onfig" not in str(error):
            raise
        raise InputError(f"{source.key}.config: {_shortened(error)}; set one that exists") from None
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise InputError(_script_refused(source.key, str(error).split()[-1])) from None


@contextmanager
def _reading(source: Source, what: str) -> Iterator[None]:
    """Turn the libraries' errors about a source's files into an `InputError`."""
    of_the_hub = hub_errors(f"{source.key}.dataset", source.settings.dataset, "dataset", source.settings.revision)
    try:
        with of_the_hub:
            yield
    except InputError:
        raise
    except (*LIBRARY_ERRORS, *BUILTIN_ERRORS) as error:
        cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        raise InputError(
            f"{source.key}: cannot read {what}: {_shortened(cause)}; check that its files are complete and of the type "
            "that their names say"
        ) from None


class _Unfit(ValueError):
    """A value that JSON cannot hold; the message names it."""


def _plain(value: Any) -> Any:
    """Return a value as JSON; dates and times become ISO 8601 texts."""
    match value:
        case None | bool() | str():
            return value
        case int() if abs(value) < 10**18:  # the limit of our JSON reader
            return value
        case float() if math.isfinite(value):
            return value
        case datetime() | date() | time():
            return value.isoformat()
        case list():
            return [_plain(one) for one in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {key: _plain(one) for key, one in value.items()}
        case int() | float():
            raise _Unfit(quoted(value))
        case bytes():
            raise _Unfit("bytes")
    raise _Unfit(f"a {type(value).__name__}")


def _kept(row: dict[str, Any], columns: list[str] | dict[str, str] | None) -> list[tuple[str, Any]]:
    """Return those of the wanted columns that a row has, under their new names."""
    if columns is None:
        return list(row.items())
    pairs = columns.items() if isinstance(columns, dict) else zip(columns, columns, strict=True)
    return [(new, row[old]) for new, old in pairs if old in row]


def _builder_of(path: Path) -> str | None:
    """Return the name of the builder for a file, by its suffix; None if there is none."""
    name = path.with_suffix("") if path.suffix in COMPRESSED else path
    kind = BUILDERS.get(name.suffix)
    return None if kind == "parquet" and name != path else kind


def _shortened(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
