"""Compare two JSONL files by a full outer join of their rows by key.

DuckDB reads, joins and counts within a memory limit (the rest goes to a temporary folder), without a Python object per
row.
"""

import glob
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from align.compare.changes import KINDS, Duplicates, Kind, NumberColumn, Preferences, RowChange, Side
from align.core.errors import InputError, quoted
from align.core.files import check_regular
from align.core.jsonl import read_objects

MEMORY_LIMIT = "800MB"  # of DuckDB; the process needs about 100 MB more
BINS = 10
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
TYPES = {kind: kind for kind in ("VARCHAR", "BOOLEAN", "BIGINT", "DOUBLE")}  # JSON type -> SQL type
TYPES |= {"UBIGINT": "BIGINT", "ARRAY": "JSON", "OBJECT": "JSON"}
WORDS = {"VARCHAR": "text", "BOOLEAN": "boolean", "BIGINT": "integer", "DOUBLE": "number", "JSON": "JSON", None: "null"}


@dataclass(frozen=True)
class Diff:
    """The result of `compare`; B is the new side. `changes` works only while `compare` is open."""

    key: list[str]
    rows_a: int
    rows_b: int
    added: int
    removed: int
    changed: int
    unchanged: int
    changed_columns: dict[str, int]  # number of rows in which a common column differs
    numbers: dict[str, NumberColumn]
    preferences: Preferences | None
    columns_added: dict[str, str]  # name -> type
    columns_removed: dict[str, str]
    columns_retyped: dict[str, tuple[str, str]]
    duplicates_a: Duplicates
    duplicates_b: Duplicates
    _comparison: "_Comparison" = field(repr=False)

    @property
    def same(self) -> bool:
        """Whether both sides have the same rows, in any order."""
        return not (self.added or self.removed or self.changed or self.columns_added or self.columns_removed)

    def changes(self, kinds: Sequence[Kind] = KINDS, limit: int | None = None) -> Iterator[RowChange]:
        """Yield up to `limit` rows of each kind, in the order of their file (B's for changed rows)."""
        for kind in kinds:
            yield from self._comparison.changes(kind, limit)

    def as_dict(self, limit: int | None = 0, kinds: Sequence[Kind] = KINDS) -> dict[str, Any]:
        """Return the JSON form, with up to `limit` rows of each kind."""
        value = {name: _plain(value) for name, value in vars(self).items() if name != "_comparison"}
        rows = {kind: [change._asdict() for change in self.changes([kind], limit)] for kind in kinds} if limit else {}
        return {"same": self.same, **value} | ({"rows": rows} if rows else {})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return _plain(vars(value)) if hasattr(value, "__dataclass_fields__") else value


@contextmanager
def compare(
    a: Path, b: Path, key: Sequence[str] = ("id",), tolerance: float = 0.0, threads: int | None = None
) -> Iterator[Diff]:
    """Join two JSONL files by `key` and count added, removed, changed and unchanged rows.

    A column that a row lacks is null.

    Args:
        a: the old side; UTF-8, one JSON object per line (.gz and .zst files are decompressed).
        b: the new side.
        key: columns whose values together identify a row.
        tolerance: numbers that differ by no more are equal.
        threads: default: all cores. One thread makes the last bit of a mean independent of timing.
    """
    if not key:
        raise InputError("no key column given; name one")
    with TemporaryDirectory(prefix="align-diff-") as folder:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": folder,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        with duckdb.connect(config=config | ({"threads": threads} if threads else {})) as connection:
            yield _Comparison(connection, {"a": a, "b": b}, list(key), tolerance).diff()


class _Comparison:
    """Both sides as tables `a` and `b`, and `pairs`, the rows of the join with their differences."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, paths: Mapping[str, Path], key: list[str], tolerance: float
    ) -> None:
        self.sql, self.paths, self.key, self.tolerance = connection, paths, key, tolerance
        self.columns = {side: _columns(connection, path) for side, path in paths.items()}
        both = [column for column in self.columns["a"] if column in self.columns["b"]]
        self.types = {side: dict(columns) for side, columns in self.columns.items()}
        for column in both:
            common = _common({self.columns["a"][column], self.columns["b"][column]})
            self.types["a"][column] = self.types["b"][column] = common
        self.shared = [column for column in both if column not in key]
        # Our own column names, since a file may have any, even `rowid`.
        self.names = {name: f"v{i}" for i, name in enumerate(dict.fromkeys([*key, *self.types["a"], *self.types["b"]]))}
        self.duplicates = {side: self._load(side) for side in paths}
        self.numbers = [column for column in self.shared if self.types["a"][column] in ("BIGINT", "DOUBLE")]
        self.is_preferences = {"chosen", "rejected"} <= set(self.shared)
        self._join()

    def one(self, query: str) -> tuple[Any, ...]:
        """Return the one row of a query."""
        row = self.sql.execute(query).fetchone()
        assert row is not None
        return row

    def _load(self, side: str) -> Duplicates:
        """Read a file into a table of its typed columns and `occurrence`, the number of earlier rows with the key."""
        path, types = self.paths[side], self.types[side]
        if missing := [column for column in self.key if column not in types and types]:
            raise InputError(f"{path}: no row has the key column {missing[0]}; name columns of all rows")
        # A file without rows has no columns and gets those of the other side.
        types = types or self.types["b" if side == "a" else "a"] or dict.fromkeys(self.key, "VARCHAR")
        self.types[side] = types
        columns = ", ".join(f"{_text(name)}: {_text(kind or 'VARCHAR')}" for name, kind in types.items())
        read = f"read_json({_path(path)}, format = 'newline_delimited', columns = {{{columns}}})"
        wanted = ", ".join(f"{_quoted(name)} AS {self.names[name]}" for name in types)
        _run(self.sql, path, f"CREATE TABLE {side} AS SELECT {wanted}, 0 AS occurrence FROM {read}")
        for column in self.key:
            problems = {f"{self.names[column]} IS NULL": f"has no key column {column}; name columns of all rows"}
            if types[column] == "JSON":
                nested = f"json_type({self.names[column]}) IN ('ARRAY', 'OBJECT')"
                problems[nested] = f"has a list or an object as its key {column}; name another column"
            for where, problem in problems.items():
                row = self.one(f"SELECT min(rowid) FROM {side} WHERE {where}")[0]
                if row is not None:
                    raise InputError(f"{path}: row {row + 1} {problem}")
        # JSON has no NaN, but DuckDB reads it.
        for column in (column for column, kind in types.items() if kind == "DOUBLE"):
            if self.one(f"SELECT count(*) FROM {side} WHERE NOT isfinite({self.names[column]})")[0]:
                _find_the_broken_line(path)
        key = ", ".join(self.names[column] for column in self.key)
        grouped = f"(SELECT {key}, count(*) AS n, min(rowid) AS first FROM {side} GROUP BY {key} HAVING n > 1)"
        keys, rows = self.one(f"SELECT count(*), coalesce(sum(n), 0) FROM {grouped}")
        if not keys:
            return Duplicates()
        numbers = f"(SELECT rowid AS r, row_number() OVER (PARTITION BY {key} ORDER BY rowid) - 1 AS n FROM {side})"
        self.sql.execute(f"UPDATE {side} SET occurrence = n FROM {numbers} AS numbers WHERE {side}.rowid = r")
        examples = self.sql.execute(f"SELECT {key} FROM {grouped} ORDER BY first LIMIT 3").fetchall()
        return Duplicates(keys, int(rows), [list(example) for example in examples])

    def _join(self) -> None:
        """Create `pairs`: row numbers, `c<i>` (column i differs), `d<i>` (difference of number i), `swapped`."""
        wanted = ["a.rowid AS a_row", "b.rowid AS b_row"]
        for i, column in enumerate(self.shared):
            old, new = f"a.{self.names[column]}", f"b.{self.names[column]}"
            differs = f"{old} IS DISTINCT FROM {new}"
            if column in self.numbers and self.tolerance:
                differs += f" AND coalesce(abs({new}::DOUBLE - {old}::DOUBLE) > {self.tolerance!r}, true)"
            wanted.append(f"{differs} AS c{i}")
            if column in self.numbers:
                wanted.append(f"{new}::DOUBLE - {old}::DOUBLE AS d{i}")
        if self.is_preferences:
            chosen, rejected = self.names["chosen"], self.names["rejected"]
            wanted.append(
                f"a.{chosen} = b.{rejected} AND a.{rejected} = b.{chosen} AND a.{chosen} <> b.{chosen} AS swapped"
            )
        key = [*(self.names[column] for column in self.key), "occurrence"]
        on = " AND ".join(f"a.{name} = b.{name}" for name in key)
        self.sql.execute(f"CREATE TABLE pairs AS SELECT {', '.join(wanted)} FROM a FULL JOIN b ON {on}")
        changed = " OR ".join(f"c{i}" for i in range(len(self.shared))) or "false"
        common = "a_row IS NOT NULL AND b_row IS NOT NULL"
        self.where = {"added": "a_row IS NULL", "removed": "b_row IS NULL", "common": common}
        self.where["changed"] = f"{common} AND ({changed})"

    def diff(self) -> Diff:
        """Count the rows and measure the number columns."""
        kinds = [f"count(*) FILTER ({self.where[kind]})" for kind in (*KINDS, "common")]
        differences = [f"count(*) FILTER ({self.where['common']} AND c{i})" for i in range(len(self.shared))]
        added, removed, changed, common, *differing = self.one(f"SELECT {', '.join([*kinds, *differences])} FROM pairs")
        old, new = self.columns["a"], self.columns["b"]
        empty = not old or not new
        return Diff(
            key=self.key,
            rows_a=common + removed,
            rows_b=common + added,
            added=added,
            removed=removed,
            changed=changed,
            unchanged=common - changed,
            changed_columns={name: n for name, n in zip(self.shared, differing, strict=True) if n},
            numbers={column: self._number(column) for column in self.numbers},
            preferences=self._preferences() if self.is_preferences else None,
            columns_added={name: WORDS[kind] for name, kind in new.items() if name not in old and not empty},
            columns_removed={name: WORDS[kind] for name, kind in old.items() if name not in new and not empty},
            columns_retyped={
                name: (WORDS[kind], WORDS[new[name]])
                for name, kind in old.items()
                if None not in (kind, new.get(name)) and kind != new[name]
            },
            duplicates_a=self.duplicates["a"],
            duplicates_b=self.duplicates["b"],
            _comparison=self,
        )

    def _preferences(self) -> Preferences:
        chosen, rejected = (f"c{self.shared.index(name)}" for name in ("chosen", "rejected"))
        counts = ["swapped", f"{chosen} AND NOT swapped", f"{rejected} AND NOT swapped"]
        wanted = ", ".join(f"count(*) FILTER ({count})" for count in counts)
        return Preferences(*self.one(f"SELECT {wanted} FROM pairs WHERE {self.where['common']}"))

    def _number(self, column: str) -> NumberColumn:
        name, difference = f"{self.names[column]}::DOUBLE", f"d{self.shared.index(column)}"
        low, high = self.one(f"SELECT min(v), max(v) FROM (SELECT {name} AS v FROM a UNION ALL SELECT {name} FROM b)")
        width = high - low if low is not None else 0.0
        bins = BINS if 0 < width < math.inf else 1
        edges = [low + width / bins * i for i in range(bins)] + [high] if low is not None else []
        limit = repr(self.tolerance)
        higher, lower, equal, mean = self.one(
            f"SELECT count(*) FILTER ({difference} > {limit}), count(*) FILTER ({difference} < -{limit}), "
            f"count(*) FILTER (abs({difference}) <= {limit}), favg({difference}) FROM pairs"
        )
        a, b = (self._side(side, name, edges) for side in "ab")
        return NumberColumn(a, b, edges, higher, lower, equal, _finite(mean))

    def _side(self, side: str, name: str, edges: list[float]) -> Side:
        number, mean, quantiles = self.one(
            f"SELECT count({name}), favg({name}), quantile_disc({name}, {list(QUANTILES)}) FROM {side}"
        )
        bins = len(edges) - 1
        share = f"({name} - {edges[0]!r}::DOUBLE) / {edges[-1] - edges[0]!r}::DOUBLE" if bins > 1 else "0"
        histogram = [0] * max(bins, 0)
        query = f"SELECT least(floor({share} * {bins}), {bins - 1}), count(*) FROM {side} WHERE {name} IS NOT NULL"
        for place, rows in self.sql.execute(f"{query} GROUP BY 1").fetchall():
            histogram[int(place)] = rows
        return Side(number, _finite(mean), quantiles or [], histogram)

    def changes(self, kind: Kind, limit: int | None) -> Iterator[RowChange]:
        """Yield rows of one kind."""
        wanted = [f"{side}.{self.names[name]}" for side in "ab" for name in self.types[side]]
        order = "a_row" if kind == "removed" else "b_row"
        rows = f"SELECT * FROM pairs WHERE {self.where[kind]} ORDER BY {order}"
        if limit is not None:
            rows += f" LIMIT {limit}"
        # A separate cursor, since the caller may run another query between two rows.
        cursor = self.sql.cursor().execute(
            f"SELECT {', '.join(wanted)} FROM ({rows}) AS p LEFT JOIN a ON a.rowid = a_row "
            f"LEFT JOIN b ON b.rowid = b_row ORDER BY {order}"
        )
        for batch in iter(partial(cursor.fetchmany, 1000), []):
            for values in map(iter, batch):  # those of side a, then those of side b
                a, b = ({name: _value(next(values), kind) for name, kind in self.types[side].items()} for side in "ab")
                yield RowChange(kind, None if kind == "added" else a, None if kind == "removed" else b)


def _columns(connection: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str | None]:
    """Return a file's columns in order of appearance with their SQL types, None where all values are null."""
    check_regular(path, "check the path, or run `dvc repro` or `dvc pull`")
    read = f"read_ndjson_objects({_path(path)})"
    first = _run(connection, path, f"SELECT json_keys(json) FROM {read} LIMIT 100")
    names = list(dict.fromkeys(name for (keys,) in first for name in keys))
    while True:
        pointers = [_text("/" + name.replace("~", "~0").replace("/", "~1")) for name in names]
        # One pass over the file, and another if it has keys that the first rows lack.
        shape = f"json_type(json), json_keys(json), json_type(json, [{', '.join(pointers)}]::VARCHAR[])"
        shapes = _run(connection, path, f"SELECT {shape} FROM {read} GROUP BY ALL")
        later = dict.fromkeys(name for _, keys, _ in shapes for name in sorted(keys) if name not in names)
        if not later:
            break
        names += later
    if not names and path.stat().st_size:
        _find_the_broken_line(path)  # DuckDB reads nothing from a file of one byte
    folded = [name.casefold() for name in names]
    if len(set(folded)) < len(folded):
        twice = [name for name in names if folded.count(name.casefold()) > 1]
        raise InputError(f"{path}: columns {twice[0]} and {twice[1]} differ only in case; rename one")
    if any(kind != "OBJECT" or len(set(keys)) < len(keys) for kind, keys, _ in shapes):
        _find_the_broken_line(path)
    return {name: _common({TYPES.get(types[i] or "NULL") for _, _, types in shapes}) for i, name in enumerate(names)}


def _common(kinds: set[str | None]) -> str | None:
    """Return the type that fits values of all these types."""
    kinds = kinds - {None}
    if kinds == {"BIGINT", "DOUBLE"}:
        return "DOUBLE"
    return kinds.pop() if len(kinds) == 1 else "JSON" if kinds else None


def _run(connection: duckdb.DuckDBPyConnection, path: Path, query: str) -> list[tuple[Any, ...]]:
    try:
        return connection.execute(query).fetchall()
    except duckdb.Error as error:
        _find_the_broken_line(path)
        # Our reader finds nothing wrong with the file.
        raise InputError(f"{path}: cannot compare: {quoted(str(error))}; check the file and the free disk") from None


def _find_the_broken_line(path: Path) -> None:
    """Read the file strictly, row by row: slow, but the error names the line."""
    for _ in read_objects(path):
        pass


def _finite(value: float | None) -> float | None:
    """Return None for a mean whose sum overflows."""
    return value if value is not None and math.isfinite(value) else None


def _value(value: Any, kind: str | None) -> Any:
    return json.loads(value) if kind == "JSON" and value is not None else value


def _path(path: Path) -> str:
    return _text(glob.escape(str(path.absolute())))


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
