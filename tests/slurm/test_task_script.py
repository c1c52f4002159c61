"""`slurm/task.sh` without a cluster: the caches on the node's own disk."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

TASK = Path(__file__).parents[2] / "slurm" / "task.sh"
NAME = f"miniplm-{os.getuid()}"


def run_task(node_local: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "MINIPLM_NODE_LOCAL": str(node_local), "LAUNCHER": "srun"}
    command = ["bash", str(TASK), "bash", "-c", "echo $TORCHINDUCTOR_CACHE_DIR"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("mode", [None, 0o700, 0o755])
def test_caches_of_our_own_are_private(tmp_path: Path, mode: int | None) -> None:
    caches = tmp_path / "node" / NAME
    if mode is not None:
        caches.mkdir(parents=True)
        caches.chmod(mode)
    for _ in range(2):
        done = run_task(tmp_path / "node")
        assert (done.returncode, done.stdout) == (0, f"{caches}/inductor\n"), done.stderr
    assert caches.stat().st_mode & 0o777 == 0o700


def make_open_to_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def make_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent / "elsewhere")


def make_file(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize("make", [make_open_to_others, make_link, make_file])
def test_what_others_may_have_put_there_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / NAME)
    done = run_task(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {tmp_path / NAME} is a " in done.stderr
    assert "remove it, or set NODE_LOCAL to another directory" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(mode=0o700)
    os.chown(tmp_path / NAME, 12345, 12345)
    assert run_task(tmp_path).returncode == 2
