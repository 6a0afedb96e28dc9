"""The Dockerfile, as far as it can be checked without Docker: it copies what is there and runs what the README says."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

from .pages import ROOT, text_of

FILE = ROOT / "docker/Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Name and words of each, continued lines joined."""
    lines = [line for line in FILE.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def all_of(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def test_what_is_copied_is_there_and_is_all_that_an_installation_needs() -> None:
    copied = {source for words in all_of("COPY") for source in words.split()[:-1]}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    project = tomllib.loads(text_of("pyproject.toml"))
    folders = {folder.partition("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}
    assert copied == {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *folders}
    passed = {line[1:] for line in text_of(".dockerignore").splitlines() if line.startswith("!")}
    assert passed == copied


def test_it_installs_as_the_readme_says() -> None:
    readme, run = text_of("README.md"), " ".join(all_of("RUN"))
    (told,) = re.findall(r"torch and torchvision together, .*?, from the index\s+`([^`]+)`", readme, re.DOTALL)
    (index,) = [words.partition("=")[2] for words in all_of("ARG")]
    assert told == index
    assert 'pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"' in run
    (libraries,) = re.findall(r"two system packages, `([^`]+)` and `([^`]+)`", readme)
    assert f"apt-get install -y --no-install-recommends {' '.join(libraries)} " in run
    oldest = tomllib.loads(text_of("pyproject.toml"))["project"]["requires-python"].removeprefix(">=3.")
    (minor,) = re.findall(r"python:3\.(\d+)", all_of("FROM")[0])
    assert int(minor) >= int(oldest)


def test_the_program_is_the_entry_and_its_user_is_not_root() -> None:
    assert [name for name, _ in instructions()][-4:] == ["USER", "WORKDIR", "ENTRYPOINT", "CMD"]
    assert (all_of("USER"), all_of("ENTRYPOINT")) == (["1000"], ['["weakmcn"]'])
    assert "useradd --create-home --uid 1000 weakmcn" in " ".join(all_of("RUN"))


def test_the_commands_at_its_head_build_this_file_and_mount_where_it_works() -> None:
    head = "\n".join(line.removeprefix("#").strip() for line in FILE.read_text("utf-8").splitlines() if line[:1] == "#")
    head = head.replace("\\\n", " ")
    builds = [shlex.split(line) for line in re.findall(r"^docker build .*", head, re.MULTILINE)]
    assert len(builds) == 2
    for words in builds:
        assert words[words.index("-f") + 1] == "docker/Dockerfile"
        arguments = {value.partition("=")[0] for flag, value in pairwise(words) if flag == "--build-arg"}
        assert arguments <= {words.partition("=")[0] for words in all_of("ARG")}
    tags = {words[words.index("-t") + 1] for words in builds}
    runs = [shlex.split(line) for line in re.findall(r"^docker run .*", head, re.MULTILINE)]
    assert {next(word for word in words if word in tags) for words in runs} == tags
    mounts = [value.split(":")[1] for words in runs for flag, value in pairwise(words) if flag == "-v"]
    work = all_of("WORKDIR")[-1]
    assert mounts
    assert [mount for mount in mounts if mount != work and not mount.startswith(f"{work}/")] == []


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run([program, str(FILE)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
