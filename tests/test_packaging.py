"""What `pip install` brings: the files of the wheel, its metadata, and nothing in place of what a user has."""

import email
import email.message
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from megatron_miniplm import __version__

REPOSITORY = Path(__file__).parents[1]
SOURCES = ("megatron_miniplm", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
#: What computes with a model. It comes with an extra only, so that nothing replaces the user's.
COMPUTING = {"torch", "megatron-core", "transformers", "transformer-engine"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves folders of its own beside the sources."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(output), str(source))
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def pip(*words: str, python: str = sys.executable) -> str:
    command = [sys.executable, "-m", "pip", "--python", python, *words, "--quiet", "--disable-pip-version-check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def requirements(metadata: email.message.Message, extra: str | None = None) -> set[str]:
    """Names of the packages that are required always, or for an extra."""
    lines = [line for line in metadata.get_all("Requires-Dist", []) if ("extra ==" in line) == bool(extra)]
    chosen = [line for line in lines if extra is None or re.search(rf"extra == ['\"]{extra}['\"]", line)]
    return {re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-") for line in chosen}


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "megatron_miniplm"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    expected = set(tracked.stdout.split())
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert "megatron_miniplm/py.typed" in names
    assert any(name.endswith("tasks/miniplm-paper.yaml") for name in names)


def test_the_wheel_says_what_it_is(wheel: Path, metadata: email.message.Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("megatron-miniplm", __version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.12"
    assert metadata.get_content_type() == "text/plain"
    assert metadata["Description-Content-Type"] == "text/markdown"
    with zipfile.ZipFile(wheel) as archive:
        texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert texts["LICENSE"] == (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "miniplm = megatron_miniplm.cli:main" in texts["entry_points.txt"]


def test_megatron_and_torch_are_an_extra(metadata: email.message.Message) -> None:
    assert requirements(metadata) & COMPUTING == set()
    assert {"torch", "megatron-core", "transformers"} <= requirements(metadata, "megatron")


def test_the_base_sets_no_upper_bounds(metadata: email.message.Message) -> None:
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [line for line in base if "<" in line or "==" in line or "~=" in line] == []


def test_the_lowest_versions_are_those_that_are_tested(metadata: email.message.Message) -> None:
    lowest = dict(re.findall(r"^(\S+)==(\S+)$", (REPOSITORY / "lower-bounds.txt").read_text(), re.MULTILINE))
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", "\n".join(metadata.get_all("Requires-Dist", [])), re.MULTILINE))
    assert bounds, "no bounds were found"
    for name, bound in bounds.items():
        digits = bound.split(".")
        assert lowest[name].split(".")[: len(digits)] == digits, name


def test_the_citation_has_the_version() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [__version__]


#: Megatron -> what else a user has. NGC images had NumPy 1.26 for a long time.
ENVIRONMENTS = {
    "0.17.1": "torch==2.8.0 numpy==1.26.4 protobuf==4.25.8 tokenizers==0.21.4 huggingface-hub==0.36.0 tqdm==4.66.5",
    "0.18.2": "torch==2.10.0 numpy==1.26.4 protobuf==5.29.5 pyarrow==19.0.1",
    "0.19.2": "torch==2.14.1 numpy==2.2.6 setuptools==77.0.3",
}
#: With packages that dependencies of ours want newer, unless PIP_CONSTRAINT forbids it, as it does in NGC images.
IMAGE = "torch==2.8.0 numpy==1.26.4 typing-extensions==4.12.2 click==8.1.8 protobuf==4.25.8 pydantic==2.9.2"
#: Asking pip costs ten CPU seconds, so `make packaging` asks for all of them.
ASKED = list(ENVIRONMENTS) if os.environ.get("MINIPLM_EVERY_ENVIRONMENT") else ["0.17.1"]


@pytest.mark.slow
@pytest.mark.parametrize("megatron", ASKED)
def test_installing_beside_a_megatron_changes_no_version(wheel: Path, tmp_path: Path, megatron: str) -> None:
    present = pretend_environment(tmp_path, f"megatron-core=={megatron} {ENVIRONMENTS[megatron]}")
    assert would_install(wheel, tmp_path) & (present | COMPUTING) == set()


@pytest.mark.slow
@pytest.mark.skipif("0.19.2" not in ASKED, reason="make packaging asks for it")
def test_installing_under_pip_constraint_changes_no_version(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = pretend_environment(tmp_path, f"megatron-core==0.18.2 {IMAGE}")
    (tmp_path / "constraint.txt").write_text("\n".join(IMAGE.split()))
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraint.txt"))
    assert would_install(wheel, tmp_path) & (present | COMPUTING) == set()


def would_install(wheel: Path, directory: Path) -> set[str]:
    """What pip would install into the environment, by name."""
    index = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), "msgspec"]
    if subprocess.run(index, capture_output=True).returncode != 0:
        pytest.skip("pip reaches no package index")
    python = str(directory / "venv" / "bin" / "python")
    report = pip("install", "--dry-run", "--report", "-", str(wheel), python=python)
    names = {item["metadata"]["name"].lower().replace("_", "-") for item in json.loads(report)["install"]}
    assert "megatron-miniplm" in names
    return names


def pretend_environment(directory: Path, installed: str) -> set[str]:
    """An environment of metadata only, by which pip decides; returns the names of what it has."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory / "venv")], check=True)
    (site,) = (directory / "venv" / "lib").glob("python*/site-packages")
    versions = dict(pair.split("==") for pair in installed.split())
    for name, version in versions.items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").touch()
    return set(versions)
