"""What a script sees when `megatron_miniplm.launch` runs it, and what users read who start it wrongly."""

import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from megatron_runs import environment, error_lines

from megatron_miniplm import launch
from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.versions import find_megatron


@pytest.fixture
def unpatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this process as it is: launching changes it for good."""
    monkeypatch.setattr(launch, "plug_in", lambda: None)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv(launch.SCRIPT_VARIABLE, "")


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path, name: str = "__main__") -> dict[str, Any]:
    """Launch in this process; returns the namespace of the main module."""
    monkeypatch.setattr(sys, "argv", ["launch.py", *map(str, arguments)])
    namespace = {"__name__": name, "__builtins__": __builtins__, "__spec__": launch.__spec__, "__loader__": None}
    namespace |= {"run": launch.run, "__annotations__": {}}
    launch.run(namespace)
    return namespace


def write_script(directory: Path, text: str) -> Path:
    path = directory / "train.py"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.usefixtures("unpatched")
def test_a_script_starts_as_python_would_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'found'\n")
    write_script(tmp_path, '"""Trains."""\nimport sys, beside\ndef step(): ...\nprint(sys.argv, beside.WORD)\n')
    monkeypatch.chdir(tmp_path)
    rest = sys.path[1:]
    namespace = run_here(monkeypatch, "train.py", "--lr", "1", "--help")
    assert capsys.readouterr().out == "['train.py', '--lr', '1', '--help'] found\n"
    assert namespace["__doc__"] == "Trains."
    assert namespace["__file__"] == str(tmp_path / "train.py")
    assert namespace["__spec__"].name == "megatron_miniplm.launch", "what spawned processes import"
    assert "run" not in namespace, "names of ours would shadow builtins or hide a typing error of the script"
    assert namespace["step"].__module__ == "__main__"
    assert sys.path[0] == str(tmp_path)
    assert sys.path[1 : 1 + len(rest)] == rest


@pytest.mark.usefixtures("unpatched")
def test_a_symbolic_link_finds_what_lies_beside_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "link.py").symlink_to(write_script(tmp_path / "checkout", ""))
    assert run_here(monkeypatch, tmp_path / "link.py")["__file__"] == str(tmp_path / "link.py")
    assert sys.path[0] == str(tmp_path / "checkout")


@pytest.mark.usefixtures("unpatched")
def test_a_spawned_process_runs_the_script_past_its_main_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write_script(tmp_path, "def step(): ...\nif __name__ == '__main__':\n    raise RuntimeError\n")
    monkeypatch.setenv(launch.SCRIPT_VARIABLE, str(script))
    namespace = run_here(monkeypatch, "--lr", "1", name="__mp_main__")
    assert namespace["step"].__module__ == "__mp_main__"
    assert sys.argv == ["launch.py", "--lr", "1"], "multiprocessing and runpy have set it"


@pytest.mark.usefixtures("unpatched")
def test_what_the_script_raises_passes_and_shows_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write_script(tmp_path, "def forward():\n    return 1 / 0\nforward()\n")
    with pytest.raises(ZeroDivisionError) as raised:
        run_here(monkeypatch, script)
    frame = traceback.extract_tb(raised.value.__traceback__)[-1]
    assert (frame.filename, frame.lineno, frame.line) == (str(script), 2, "return 1 / 0")
    with pytest.raises(SystemExit) as left:
        run_here(monkeypatch, write_script(tmp_path, "import sys\nsys.exit(7)\n"))
    assert left.value.code == 7


@pytest.mark.usefixtures("unpatched")
def test_errors_of_ours_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise InputError("no such selection")

    monkeypatch.setattr(launch, "plug_in", refuse)
    with pytest.raises(SystemExit) as left:
        run_here(monkeypatch, write_script(tmp_path, "print('reached')"))
    assert left.value.code == 2
    assert capsys.readouterr() == ("", "error: no such selection\n")


@pytest.mark.usefixtures("unpatched")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected the training script as the first argument, found nothing: "),
        (["--lr", "1"], "expected the training script as the first argument, found --lr in its place: "),
        (["absent.py"], "absent.py does not exist; expected a training script such as pretrain_gpt.py: "),
        (["."], " is a directory; expected a training script such as pretrain_gpt.py: "),
        (["run.sh"], "run.sh, line 2 is not Python (invalid syntax); expected a training script: "),
        (["binary"], "binary is not Python (source code string cannot contain null bytes); expected a training script"),
    ],
)
def test_what_is_no_script_is_refused_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/bash\ntorchrun pretrain_gpt.py --lr 1\n")
    (tmp_path / "binary").write_bytes(b"x = 1\0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        run_here(monkeypatch, *arguments)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.endswith(launch.USAGE)


@pytest.mark.usefixtures("unpatched")
def test_help_says_how(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run_here(monkeypatch, "--help")
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {launch.USAGE}\n")


def start(script: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_miniplm.launch", str(script), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


def test_an_unsupported_checkout_beside_the_script_is_refused_before_anything_is_imported(tmp_path: Path) -> None:
    """It wins over the installed wheel, and over PYTHONPATH, as it would for `python SCRIPT`."""
    core = tmp_path / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (core / "package_info.py").write_text('MAJOR = 0\nMINOR = 16\nPATCH = 1\nPRE_RELEASE = "rc0"\n')
    run = start(write_script(tmp_path, "print('reached')\n"))
    assert run.returncode == 2
    assert run.stdout == ""
    assert error_lines(run.stderr) == run.stderr.splitlines()
    assert run.stderr == (
        f"error: megatron-core 0.16.1rc0 was found in {tmp_path}, this release supports 0.17 to 0.20 (launch and "
        'plug_in): put one of those first on PYTHONPATH, or pip install "megatron-core>=0.17,<0.21"\n'
    )


SPAWNING = """
import multiprocessing, pickle, sys
import torch
import megatron.core

def look():
    from megatron_miniplm.mcore import cpu_emulation
    from megatron_miniplm.training import plugin
    main = sys.modules["__main__"]
    device = torch.zeros(1, device="cuda" if cpu_emulation.is_active() else "cpu").device
    place = (main.__name__, main.__file__, sys.argv[:3], megatron.__path__[0])
    return (plugin.is_plugged_in(), cpu_emulation.is_active(), device, *place)

if __name__ == "__main__":
    assert pickle.loads(pickle.dumps(look)) is look
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*look())
        print(*pool.apply(look))
"""


@pytest.mark.slow
def test_spawned_processes_are_patched_and_find_functions_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a Megatron that lies beside the script is taken, in the child too."""
    location = find_megatron().location
    assert location is not None
    (tmp_path / "megatron").symlink_to(location / "megatron")
    monkeypatch.setenv("MINIPLM_DEVICE", "cpu")
    script = write_script(tmp_path, SPAWNING)
    run = start(script, "--lr", "1")
    assert run.returncode == 0, run.stderr[-4000:]
    announced, here, there = run.stdout.splitlines()
    found = [line for line in run.stderr.splitlines() if line.startswith(("Megatron-Core ", "patched in Megatron: "))]
    assert len(found) == 2, "spawned processes say nothing"
    assert found[0].startswith(f"Megatron-Core {find_megatron().version} in {tmp_path}, patched to run on the CPU (")
    assert "selected data" in found[1]
    assert announced.startswith("no GPU in use: Megatron runs on the CPU (gloo), with these flags added: ")
    place = f"{script} {[str(script), '--lr', '1']} {tmp_path / 'megatron'}"
    assert here == f"True True cpu __main__ {place}"
    assert there == f"True True cpu __mp_main__ {place}"


@pytest.mark.usefixtures("unpatched")
def test_a_dry_run_is_refused_before_the_script_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = write_script(tmp_path, "print('trains')\n")
    with pytest.raises(SystemExit) as ended:
        run_here(monkeypatch, script, "--lr", "1", "--miniplm-dry-run")
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert "trains" not in captured.out
    assert "python -m megatron_miniplm.pretrain_gpt" in captured.err
