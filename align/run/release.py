"""Keeps the finished work of a stage until DVC has recorded the stage's outputs in dvc.lock.

If DVC is killed between the end of a stage and that, it runs the stage again, which needs that work.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.core.errors import InputError
from align.core.files import read_json, write_json

DONE_FILE = "done.json"
IDENTITY_FILE = "identity.json"


def resume_root() -> Path:
    """Return the folder of all unfinished work; temporary workspaces of experiments share the main one's."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".align" / "resume"


def release(folder: Path) -> None:
    """Delete the work of a stage that has succeeded, or mark it done if DVC has yet to record the outputs."""
    stage, lock = os.environ.get("DVC_STAGE"), Path("dvc.lock")
    entry = _entry(lock, stage) if stage is not None else None
    # If a forced rerun reproduced the recorded outputs, dvc.lock will not change.
    outs = _outs(entry) if entry is not None else {}
    same = bool(outs) and all(_dvc_md5(Path(path)) == md5 for path, md5 in outs.items())
    if stage is None or same:
        shutil.rmtree(folder)
    else:
        write_json(folder / DONE_FILE, {"lock": str(lock.resolve()), "stage": stage, "entry": entry})


def drop_recorded() -> None:
    """Delete the work of stages that DVC has recorded since, or whose temporary workspace is gone."""
    for mark in resume_root().glob(f"*/*/{DONE_FILE}"):
        advice = f"delete {mark.parent}, the finished work of one run"
        done = read_json(mark, advice)
        if missing := {"lock", "stage", "entry"} - set(done):
            raise InputError(f"{mark}: {', '.join(sorted(missing))} is missing; {advice}")
        lock = Path(done["lock"])
        if not lock.parent.exists() or _entry(lock, done["stage"]) != done["entry"]:
            shutil.rmtree(mark.parent, ignore_errors=True)


def _entry(lock: Path, stage: str) -> str | None:
    """Return the lines of a stage in dvc.lock: parsing the whole file can take longer than a stage."""
    text = lock.read_text(encoding="utf-8") if lock.exists() else ""
    match = re.search(rf"^  {re.escape(stage)}:\n((?:   .*\n)+)", text, re.MULTILINE)
    return match[1] if match else None


def _outs(entry: str) -> dict[str, str]:
    """Return the hashes of an entry's outputs; none if it is truncated: DVC does not write dvc.lock atomically."""
    try:
        return {out["path"]: out["md5"] for out in YAML(typ="safe").load(entry)["outs"]}
    except (YAMLError, KeyError, TypeError):
        return {}


def _dvc_md5(path: Path) -> str | None:
    """Return DVC's hash of a file or directory."""
    if path.is_dir():
        files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
        listing = [{"md5": _dvc_md5(file), "relpath": name} for name, file in files]
        return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"
    if not path.exists():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
