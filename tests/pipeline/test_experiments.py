"""Experiments: the walk-through of docs/EXPERIMENTS.md in a toy project, and the queue with real stages."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.committed import REPOSITORY, write_params
from tests.dvc_project import Project
from tests.factories import build_tiny_source
from tests.pipeline.test_repro import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# The part about experiments; what comes after it is about rows.
DOCS = (REPOSITORY / "docs/EXPERIMENTS.md").read_text(encoding="utf-8").partition("## What changed, row by row")[0]
BLOCKS = re.findall(r"^```sh\n(.+?)^```", DOCS, re.MULTILINE | re.DOTALL)
# PPO stands for all stages; what it gains is a function of its params.
PPO = """
import json, pathlib, sys
from ruamel.yaml import YAML
ppo = YAML(typ="safe").load(pathlib.Path("params.yaml").read_text())["ppo"]
if ppo["kl_coef"] < 0:
    sys.exit("a negative coefficient")
for folder in ("models/ppo", "data/summary"):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
pathlib.Path("models/ppo/model.safetensors").write_text(json.dumps(ppo))
metrics = {"loop_win_rate_vs_m0": 0.5, "loop_judge_score": None, "ppo_reward": 1 - ppo["kl_coef"]}
pathlib.Path("data/summary/metrics.json").write_text(json.dumps(metrics))
"""
DVC_YAML = """
stages:
  ppo:
    cmd: python ppo.py
    deps: [ppo.py]
    params: [ppo]
    outs: [models/ppo]
    metrics:
      - data/summary/metrics.json: {cache: false}
"""


def make_toy(path: Path) -> Project:
    """Make a project with one stage and two remotes, reproduced and pushed."""
    path.mkdir(parents=True)
    project = Project(path)
    project.write("dvc.yaml", DVC_YAML)
    project.write("ppo.py", PPO)
    project.write("params.yaml", "ppo:\n  kl_coef: 0.05\n  init: m2\n")
    project.run("git init -q -b main && git config user.name t && git config user.email t@example.com && dvc init -q")
    project.run("dvc config core.autostage false && dvc remote add -q -d store ../store && dvc repro -q")
    project.commit("start")
    project.run("git init -q --bare -b main ../origin && git remote add origin ../origin && git push -q origin main")
    return project


def experiments(project: Project) -> dict[str, str]:
    """Return the revision of each finished experiment, by name."""
    lines = project.run("git for-each-ref --format='%(refname) %(objectname)' 'refs/exps/??/*/*'").stdout.splitlines()
    return {name.rpartition("/")[2]: revision for name, revision in map(str.split, lines)}


def kl_coef(project: Project, name: str) -> float:
    """Return the coefficient in an experiment's params.yaml."""
    params = YAML(typ="safe").load(project.run(f"git show {experiments(project)[name]}:params.yaml").stdout)
    return float(params["ppo"]["kl_coef"])


def wait_for_queue(project: Project) -> None:
    """Wait until no experiment is queued or running. Workers end by themselves, some seconds later."""
    end = time.monotonic() + 300
    while re.search("Queued|Running", project.run("dvc queue status").stdout.partition("Worker status")[0]):
        assert time.monotonic() < end
        time.sleep(1)


def test_the_commands_of_the_documentation_do_what_it_says(tmp_path: Path) -> None:
    project = make_toy(tmp_path / "toy")
    other = tmp_path / "other"
    said = ""
    for number, block in enumerate(BLOCKS):
        in_other_clone = block.startswith("dvc exp list origin")
        if in_other_clone:
            project.run(f"git push -q origin main && git clone -q ../origin {other}")
            project.run(f"git -C {other} config user.name t && git -C {other} config user.email t@example.com")
        place = Project(other) if in_other_clone else project
        place.env |= project.env
        for command in block.splitlines():
            said = place.run(command).stdout
            if command.startswith("dvc queue start"):
                wait_for_queue(project)
        if number == 0:
            assert re.search(r"\[low-kl\] .* 0\.98 +0\.02 ", said)
        elif number == 1:
            assert project.run("git status --porcelain").stdout == ""
        elif "dvc queue logs" in block:
            names = ["low-kl", "kl-1", "kl-2", "kl-3", "grid-1", "grid-2", "grid-3", "grid-4"]
            assert sorted(experiments(project)) == sorted(names)
            assert all(f"[{name}]" in said for name in names)
            assert kl_coef(project, "kl-3") == 0.1
        elif "--temp" in block:
            assert kl_coef(project, "aside") == 0.2
            assert project.run("git status --porcelain").stdout == ""
        elif "dvc exp apply kl-1" in block:
            assert "kl_coef: 0.01" in project.read("params.yaml")
            assert json.loads(project.read("models/ppo/model.safetensors"))["kl_coef"] == 0.01
            assert project.run("dvc status").stdout == "Data and pipelines are up to date.\n"
            assert "kl-2" not in project.run("dvc exp show").stdout
            assert "kl-2" in said
        elif in_other_clone:
            assert json.loads((other / "models/ppo/model.safetensors").read_text())["kl_coef"] == 0.02
    assert experiments(project) == {}
    assert "kl-2" in project.run("git ls-remote origin").stdout
    assert "kl-3" not in project.run("git ls-remote origin").stdout
    assert project.run("dvc queue status").stdout.startswith("No experiment tasks")


def test_each_command_in_the_prose_is_in_a_block_or_is_known() -> None:
    blocks = "\n".join(BLOCKS)
    for command in re.findall(r"`((?:dvc|align|git) [^`]+)`", re.sub(r"^```.+?^```", "", DOCS, flags=re.M | re.S)):
        words = " ".join(command.split()[: 3 if command.startswith(("dvc exp", "dvc queue")) else 2])
        others = ("dvc gc", "dvc push", "dvc status", "dvc remote", "dvc queue kill", "align doctor", "git checkout")
        assert words in blocks or words in others, command


# In the clone, stage ppo fails if another one computes at the same time, and takes long enough for the other to come.
ALONE = """        alone = Path("{}")
        alone.touch(exist_ok=False)
        import_module("atexit").register(alone.unlink)
        import_module("time").sleep(15)
        stack = AdapterStack("""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone on the tiny model in which all is there that stage `ppo` needs."""
    folder = tmp_path_factory.mktemp("experiments")
    project = Project(folder / "clone")
    for name in (".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml"):
        (project.path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, project.path / name)
    for name in ("align", "checkers", "prompts", "stages", "data/seed"):
        shutil.copytree(REPOSITORY / name, project.path / name, ignore=shutil.ignore_patterns("__pycache__"))
    project.replace("stages/ppo.py", "        stack = AdapterStack(", ALONE.format(folder / "alone"))
    project.replace(
        "stages/ppo.py", "from pathlib import Path\n", "from importlib import import_module\nfrom pathlib import Path\n"
    )
    build_tiny_source(project.path / "data/tiny")
    write_params(project.path, SMALL)
    (folder / "tmp").mkdir()
    project.env |= {"ALIGN_DEVICE_LOCK": "1", "TMPDIR": str(folder / "tmp"), "HF_HUB_OFFLINE": "1"}
    project.env["GOMP_SPINCOUNT"] = "0"
    project.run("git init -q -b main && git config user.name t && git config user.email t@example.com")
    project.run("git add -A && git add -f data/tiny && dvc repro -q base_model sft reward_model")
    project.commit("start")
    return project


def recorded(project: Project, name: str) -> dict[str, str]:
    """Return the hashes of what stage `ppo` made in an experiment."""
    lock = YAML(typ="safe").load(project.run(f"git show {experiments(project)[name]}:dvc.lock").stdout)
    return {out["path"]: out["md5"] for out in lock["stages"]["ppo"]["outs"]}


def test_queued_experiments_of_two_workers_compute_one_after_the_other_with_the_results_of_single_runs(
    tiny: Project,
) -> None:
    tiny.run("dvc exp run --queue -n kl -S 'ppo.kl_coef=0.01,0.02' ppo && dvc queue start -j 2")
    wait_for_queue(tiny)

    logs = [tiny.run(f"dvc queue logs {name}").stdout for name in ("kl-1", "kl-2")]
    assert sorted(experiments(tiny)) == ["kl-1", "kl-2"], logs
    assert len([log for log in logs if re.search(r"ppo: waits for process \d+ \(ppo\), which holds the CPU", log)]) == 1
    assert recorded(tiny, "kl-1") != recorded(tiny, "kl-2")

    # Alone, and without what DVC remembers of runs.
    shutil.rmtree(tiny.path / ".dvc/cache/runs")
    tiny.run("dvc exp run --temp -n alone -S ppo.kl_coef=0.02 ppo")
    assert recorded(tiny, "alone") == recorded(tiny, "kl-2")
    assert tiny.run("git status --porcelain").stdout == ""
