"""Which Megatron would be imported: in processes of their own, since this one has imported it already."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from megatron_runs import environment

from megatron_miniplm.errors import UnsupportedMegatronError
from megatron_miniplm.mcore.versions import (
    PLUG_IN,
    PROGRAMS,
    MegatronInstallation,
    Patch,
    SupportedReleases,
    find_megatron,
)

FIND = """
import sys
from megatron_miniplm.mcore.versions import find_megatron, has_dataset_helpers
found = find_megatron()
print(found.version, found.has_training, found.location, found.training_location, has_dataset_helpers())
assert not {"megatron.core", "megatron.training", "torch"} & set(sys.modules)
"""


def write_megatron(directory: Path, package_info: str | None, *packages: str) -> Path:
    for package in packages:
        (directory / "megatron" / package).mkdir(parents=True)
        (directory / "megatron" / package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    if package_info is not None:
        (directory / "megatron" / "core" / "package_info.py").write_text(package_info)
    return directory


def info(major: int, minor: int, patch: int, pre_release: str = "") -> str:
    return f'MAJOR = {major}\nMINOR = {minor}\nPATCH = {patch}\nPRE_RELEASE = "{pre_release}"\nraise RuntimeError\n'


def found_from(*path: Path, isolated: bool = False) -> str:
    """What a fresh process finds with these directories in front; isolated, with nothing behind them."""
    lines = [f"import sys; sys.path[:0] = {[str(directory) for directory in path]}"]
    if isolated:
        lines.append("sys.path[:] = [entry for entry in sys.path if 'site-packages' not in entry]")
        lines.append(f"sys.path.append({str(Path(__file__).parents[2])!r})")
    code = "\n".join([*lines, FIND])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_installed_one_is_found_with_its_place() -> None:
    installation = find_megatron()
    installation.require()
    assert installation.location is not None
    assert (installation.location / "megatron" / "training" / "training.py").is_file()
    assert found_from() == f"{installation.version} True {installation.location} None True"


def test_a_checkout_in_front_of_the_wheel_wins(tmp_path: Path) -> None:
    checkout = write_megatron(tmp_path / "checkout", info(0, 20, 0, "rc0"), "core", "training")
    assert found_from(checkout) == f"0.20.0rc0 True {checkout} None False"


def test_a_core_without_its_own_training_loop_does_not_borrow_one(tmp_path: Path) -> None:
    """`megatron` is a namespace package: its parts may come from several places, of several versions."""
    alone = write_megatron(tmp_path / "alone", info(0, 19, 0), "core")
    assert found_from(alone) == f"0.19.0 False {alone} {find_megatron().location} False"


def test_none_is_found_where_there_is_none(tmp_path: Path) -> None:
    assert found_from(isolated=True) == "None False None None False"
    unversioned = write_megatron(tmp_path, None, "core", "training")
    assert found_from(unversioned, isolated=True) == f"None True {unversioned} None False"
    (tmp_path / "megatron" / "core" / "package_info.py").write_text("MAJOR = 0\nMINOR = read()\nPATCH = 1\n")
    assert found_from(unversioned, isolated=True) == f"None True {unversioned} None False"


def at(version: str | None, *, has_training: bool = True, elsewhere: Path | None = None) -> MegatronInstallation:
    location = Path("/data/megatron-lm")
    return MegatronInstallation(
        version=version, has_training=has_training, location=location, training_location=elsewhere
    )


@pytest.mark.parametrize(
    ("supported", "versions"),
    [
        (PROGRAMS, ["0.18.0", "0.18.3", "0.19.2", "0.19.0rc1"]),
        (PLUG_IN, ["0.17.0", "0.17.1", "0.18.2", "0.19.2", "0.20.0rc0", "0.20.3"]),
    ],
)
def test_supported(supported: SupportedReleases, versions: list[str]) -> None:
    refused = []
    for version in versions:
        with suppress(UnsupportedMegatronError):
            at(version).require(supported)
            continue
        refused.append(version)
    assert refused == []


@pytest.mark.parametrize("version", ["0.9.1", "0.16.1", "0.17.1", "0.20.0", "1.0.0"])
def test_other_releases_are_refused_with_their_place(version: str) -> None:
    with pytest.raises(UnsupportedMegatronError) as raised:
        at(version).require()
    assert str(raised.value) == (
        f"megatron-core {version} was found in /data/megatron-lm, this release supports 0.18 and 0.19: "
        'put one of those first on PYTHONPATH, or pip install "megatron-core>=0.18,<0.20"'
    )


@pytest.mark.parametrize("version", ["0.16.1", "0.21.0"])
def test_the_range_of_scripts_is_wider(version: str) -> None:
    with pytest.raises(UnsupportedMegatronError) as raised:
        at(version).require(PLUG_IN)
    assert str(raised.value) == (
        f"megatron-core {version} was found in /data/megatron-lm, this release supports 0.17 to 0.20 (launch and "
        'plug_in): put one of those first on PYTHONPATH, or pip install "megatron-core>=0.17,<0.21"'
    )


@pytest.mark.parametrize(
    ("installation", "message"),
    [
        (
            at(None),
            "the megatron.core in /data/megatron-lm has no package_info.py that says its version; this release "
            "supports 0.18 and 0.19: ",
        ),
        (
            at("0.19.2", has_training=False),
            "megatron-core 0.19.2 in /data/megatron-lm comes without megatron.training (wheels of 0.17 and later and "
            "Megatron-LM checkouts hold both): ",
        ),
        (
            at("0.19.2", has_training=False, elsewhere=Path("/venv")),
            "megatron-core 0.19.2 in /data/megatron-lm comes without megatron.training (wheels of 0.17 and later and "
            "Megatron-LM checkouts hold both; the one in /venv is another's): ",
        ),
    ],
)
def test_what_is_not_whole_is_refused(installation: MegatronInstallation, message: str) -> None:
    with pytest.raises(UnsupportedMegatronError) as raised:
        installation.require()
    assert str(raised.value) == message + 'pip install "megatron-core>=0.18,<0.20"'


def test_no_megatron_at_all_is_refused_with_both_ways_to_get_one() -> None:
    with pytest.raises(UnsupportedMegatronError) as raised:
        MegatronInstallation(version=None, has_training=False).require()
    assert str(raised.value) == (
        "this program needs megatron-core: "
        "pip install 'megatron-miniplm[megatron]', or put your Megatron-LM checkout on PYTHONPATH"
    )


def test_release_compares_as_numbers() -> None:
    assert at("0.9.1").release < (0, 18)


MODULE = "a_megatron"
NEEDED_BY = "loss weights: training/training.py:1"


class Builder:
    def __init__(self, cls: type, sizes: list[int], config: dict[str, int]) -> None:
        self.sizes = sizes

    @staticmethod
    def build(cls: type, *sizes: int) -> int:
        return sum(sizes)


def train_step(forward_step: object, model: object, iteration: int = 0) -> int:
    return iteration


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType(MODULE)
    module.train_step = train_step  # type: ignore[attr-defined]
    module.Builder = type("Builder", (Builder,), dict(vars(Builder)))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)
    return module


def one_more(original: Callable[..., int]) -> Callable[..., int]:
    return lambda *args, **named: original(*args, **named) + 1


def test_a_function_is_replaced_by_what_is_made_of_it(module: ModuleType) -> None:
    patch = Patch(f"{MODULE}:train_step", one_more, NEEDED_BY, ("forward_step", "model"))
    patch.check()
    assert module.train_step is train_step, "a check changes nothing"
    patch.apply()
    assert module.train_step(None, None, iteration=4) == 5


def test_methods_of_a_class_are_replaced(module: ModuleType) -> None:
    """The parameters of a method begin with self; those of a static method do not."""
    Patch(f"{MODULE}:Builder.__init__", lambda original: original, NEEDED_BY, ("self", "cls", "sizes")).check()
    static = Patch(
        f"{MODULE}:Builder.build", lambda original: staticmethod(one_more(original)), NEEDED_BY, ("cls", "sizes")
    )
    static.apply()
    assert module.Builder.build(int, 1, 2) == 4
    assert module.Builder(int, [], {}).build(int, 1, 2) == 4


@pytest.mark.parametrize("target", [f"{MODULE}:no_such_call", f"{MODULE}:Builder.no_such_method", "no_such_module:f"])
@pytest.mark.usefixtures("module")
def test_an_unknown_target_is_one_clear_line(target: str) -> None:
    patch = Patch(target, one_more, NEEDED_BY)
    for attempt in (patch.check, patch.apply):
        with pytest.raises(UnsupportedMegatronError) as raised:
            attempt()
        assert str(raised.value) == (
            f"{NEEDED_BY}: expected {target}, which is not there: this torch or Megatron is not one that this release "
            "knows; install the versions of constraints.txt"
        )


def test_changed_parameters_are_one_clear_line(module: ModuleType) -> None:
    patch = Patch(
        f"{MODULE}:train_step", one_more, NEEDED_BY, ("forward_step", "data_iterator"), remedy="leave the flag out"
    )
    for attempt in (patch.check, patch.apply):
        with pytest.raises(UnsupportedMegatronError) as raised:
            attempt()
        assert str(raised.value) == (
            f"{NEEDED_BY}: expected {MODULE}:train_step, with parameters forward_step, data_iterator; it has "
            "forward_step, model, iteration: this torch or Megatron is not one that this release knows; leave the "
            "flag out"
        )
    assert module.train_step is train_step


def test_fewer_parameters_than_expected_are_a_change(module: ModuleType) -> None:
    patch = Patch(f"{MODULE}:train_step", one_more, NEEDED_BY, ("forward_step", "model", "iteration", "config"))
    with pytest.raises(UnsupportedMegatronError, match="it has forward_step, model, iteration:"):
        patch.check()
