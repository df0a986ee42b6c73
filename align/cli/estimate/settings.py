"""params.yaml or a recipe as plain values: what an estimate reads of it, without the stages' own imports."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.core.errors import InputError, quoted
from align.core.params import Params


class Values:
    """The values of a params file, by dotted key, with changes; a wrong one is an error that names its key."""

    def __init__(self, tree: dict[str, Any], path: Path) -> None:
        self.tree, self.path = tree, path

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> Self:
        """Read `path` and set what `changes` say, such as `ppo.num_updates=20`."""
        values = cls(Params.read(path).values, path)
        for change in changes:
            key, sign, text = change.partition("=")
            try:
                value = YAML(typ="safe").load(text)
            except (YAMLError, ValueError):
                sign = ""
            if not sign:
                raise InputError(f"--set {quoted(change)}: expected KEY=VALUE, such as ppo.num_updates=20")
            values._set(key.strip(), value)
        Params(values.tree, path)  # the chain of iterations may be another
        return values

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value; `default` where the key, or its section, is not there."""
        found: Any = self.tree
        for name in key.split("."):
            if not isinstance(found, dict) or name not in found:
                return default
            found = found[name]
        return found

    def number(self, key: str) -> float:
        """Return a finite number that is not negative."""
        found = self.optional_number(key)
        if found is None:
            raise InputError(f"{self.path}: {key}: expected a number; see the committed params.yaml")
        return found

    def optional_number(self, key: str) -> float | None:
        """Return a number, or None where there is null or nothing."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
            raise InputError(f"{self.path}: {key}: expected a number from 0 up, got {quoted(value)}")
        return value if math.isfinite(value) else None

    def size(self, key: str) -> int:
        """Return a whole number from 1 up."""
        value = self.number(key)
        if value != int(value) or value < 1:
            raise InputError(f"{self.path}: {key}: expected a whole number from 1 up, got {quoted(value)}")
        return int(value)

    def text(self, key: str) -> str:
        """Return a text."""
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise InputError(f"{self.path}: {key}: expected a text, got {quoted(value)}")
        return value

    def source_limit(self, name: str) -> float | None:
        """Return how many rows section `sources` takes of a hub dataset, if it says so."""
        return self.optional_number(f"sources.{name}.limit")

    def _set(self, key: str, value: Any) -> None:
        *sections, last = key.split(".")
        where = self.get(".".join(sections)) if sections else self.tree
        if not isinstance(where, dict) or (last not in where and sections[:1] not in (["iterations"], ["sources"])):
            known = where if isinstance(where, dict) else self.tree
            close = difflib.get_close_matches(last, [str(name) for name in known], n=1)
            hint = f"; did you mean {'.'.join([*sections, close[0]])}?" if close else "; see that file for its keys"
            raise InputError(f"--set {quoted(key)}: no such key in {self.path}{hint}")
        where[last] = value
