"""The README against the project: its commands exist, its figures are those of the committed run."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from align.cli.main import main as align
from benchmarks.results import replace_block, table
from tests.committed import REPOSITORY, committed_params

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_of_the_committed_summary(head: Path) -> None:
    readme = (head / "README.md").read_text(encoding="utf-8")

    assert replace_block(readme, "results", table(head)) == readme


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([\w-]+)", README))))
def test_each_make_target_in_the_readme_exists(target: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")

    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`(align [^`]+)`", README)) - {"align"}))
def test_each_align_command_in_the_readme_is_understood(command: str) -> None:
    words = shlex.split(command)[1:]
    if words == ["command"]:
        return

    result = CliRunner().invoke(align, [words[0], "--help"])

    assert result.exit_code == 0


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_each_linked_file_exists(path: str) -> None:
    assert (REPOSITORY / path).exists()


def test_each_param_that_the_readme_sets_exists() -> None:
    params = committed_params()
    for section, key in re.findall(r"-S '?\+?(\w+)\.(\w+)=", README):
        assert section == "iterations" or key in params[section]
