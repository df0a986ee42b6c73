"""Disks that fill up and files that are damaged, for real: nothing is lost, and the bytes are the same.

A limit on the size of files stands for a full disk, since a test may not mount one: writes fail in the same places, and
in the same ways (Python, torch and the libraries in Rust each have their own), with another word of the system's.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from align.core.errors import InputError
from align.core.files import sha256
from align.core.params import Params
from align.run.runtime import RuntimeSettings
from align.run.work import Work
from tests.committed import PARAMS_YAML
from tests.faults.lab import RESPONSES, STAGE, Lab, Prepared, prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GENERATE = ("python", "-m", "stages.generate_responses", "m1", "m0")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory)


@pytest.fixture
def lab(prepared: Prepared, tmp_path: Path) -> Lab:
    return prepared.copy(tmp_path)


def assert_one_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that the last line says it, and that nothing else was said of the error."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.replace("\r", "\n").splitlines()
    assert [line for line in lines if "Error" in line] == lines[-1:]
    assert lines[-1].startswith("Error: ")
    for word in words:
        assert word in lines[-1]


def half_written(lab: Lab) -> list[Path]:
    return [path for path in lab.path.rglob(".tmp-*") if ".dvc" not in path.parts]


def test_a_disk_that_is_full_for_rows_and_then_for_outputs_loses_no_row_and_leaves_no_partial_output(
    lab: Lab, prepared: Prepared
) -> None:
    # The journal, which holds token ids too, is more than twice as large as the output.
    size = len(prepared.expected)
    result = lab.limited(size * 17 // 10, *GENERATE)
    assert_one_error(result, f"{STAGE}: cannot write (File too large)", "free some space", "finished work is kept")
    first = len(lab.rows())
    assert 0 < first < 48
    assert lab.journal.stat().st_size == size * 17 // 10  # a line is torn

    # As if another process had written these rows: the others fit into a file of their own, the output does not.
    lab.journal.rename(lab.journal.with_name("rows-1.jsonl"))
    result = lab.limited(size - 1, *GENERATE)
    assert_one_error(result, f"{RESPONSES}: cannot write (File too large)", "free some space")
    assert f"resuming with {first} of 48 rows finished" in result.stdout
    assert len(lab.rows()) == 48 - first
    assert not (lab.path / RESPONSES).exists()
    assert not half_written(lab)

    result = lab.run("dvc", "repro", STAGE)
    assert "resuming with 48 of 48 rows finished" in result.stdout
    assert lab.lock() == prepared.expected_lock


def test_a_full_disk_is_one_line_for_a_stage_that_keeps_nothing(lab: Lab) -> None:
    shutil.rmtree(lab.path / "data/m0")
    assert_one_error(lab.limited(20_000, "python", "-m", "stages.prepare_data"), "data/m0/ift.jsonl: cannot write")
    assert not list((lab.path / "data/m0").iterdir())


def test_training_on_a_full_disk_stops_with_one_line_and_goes_on_to_the_same_bytes(lab: Lab) -> None:
    outs = [lab.path / name for name in ("models/m0", "data/m0/eft_history.csv", "data/m0/sft_history.csv")]
    expected = [sha256(path) for path in outs]
    # The trained weights fit, the optimizer's state, twice as large, does not.
    limit = 3 * (lab.path / "models/m0/adapter_model.safetensors").stat().st_size // 2
    assert_one_error(lab.limited(limit, "python", "-m", "stages.sft"), "sft: cannot write", "free some space")
    assert expected == [sha256(path) for path in outs]

    result = lab.run("python", "-m", "stages.sft")
    assert "the checkpoint is incomplete; deleting it" in result.stderr
    assert expected == [sha256(path) for path in outs]
    assert not list((lab.path / ".align/resume").rglob("checkpoint-*"))


def test_a_device_without_space_is_the_same_line(
    tmp_path: Path, runtime: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    full = os.open("/dev/full", os.O_WRONLY)

    def stage() -> None:
        with Work("sft", Params.read(PARAMS_YAML), runtime, []) as work:
            rows = work.rows("a")
            assert work._stream is not None
            os.dup2(full, work._stream.fileno())
            rows.finish({0: "x"})  # so short a line stays in the buffer: closing the file fails too

    try:
        with pytest.raises(
            InputError, match=r"sft: cannot write \(No space left on device\); .* finished work is kept"
        ):
            stage()
    finally:
        os.close(full)


DAMAGES = {
    "data/m1/prompts.jsonl": ("data/m1/prompts.jsonl:6: not a JSON object", "each line must be one object"),
    "models/m0/adapter_model.safetensors": (
        "models/m0/adapter_model.safetensors: cannot read the weights",
        "run `dvc checkout` or `dvc repro`",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_input_that_was_cut_off_is_one_line_and_dvc_checkout_brings_it_back(name: str, lab: Lab) -> None:
    path = lab.path / name
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 30)

    assert_one_error(lab.run(*GENERATE, check=False), *DAMAGES[name])
    assert not (lab.path / RESPONSES).exists()
    # Asked in a terminal, DVC would ask before it replaces what is not in the cache.
    lab.run("dvc", "checkout", "--force", "/".join(name.split("/")[:2]) if name.startswith("models") else name)
    assert path.read_bytes() == whole
    assert "Data and pipelines are up to date." in lab.run("dvc", "status", "generate_prompts@m1").stdout


def test_a_bad_byte_in_the_cache_is_taken_silently_by_dvc_and_mended_by_deleting_the_object(
    prepared: Prepared, tmp_path: Path
) -> None:
    """DVC trusts a cached file that is read-only, as it makes them all: only hashing all of them tells."""
    lab = prepared.copy(tmp_path, done=True)
    digest = lab.recorded_now()
    cached = lab.path / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    content = bytearray(prepared.expected)
    content[content.index(b'"response": "') + 13] ^= 1
    cached.chmod(0o644)
    cached.write_bytes(content)
    cached.chmod(0o444)
    (lab.path / RESPONSES).unlink()

    lab.run("dvc", "checkout", RESPONSES)
    assert (lab.path / RESPONSES).read_bytes() == content
    assert "Data and pipelines are up to date." in lab.run("dvc", "status", STAGE).stdout

    # Without a remote to pull from, the stage is run again, to the same bytes.
    cached.unlink()
    assert f"Running stage '{STAGE}'" in lab.run("dvc", "repro", STAGE).stdout
    assert (lab.path / RESPONSES).read_bytes() == cached.read_bytes() == prepared.expected
    assert lab.lock() == prepared.expected_lock
