"""What a user reads where a package is missing or does not fit."""

import sys

import pytest

from megatron_miniplm import cli
from megatron_miniplm.errors import MissingPackageError
from megatron_miniplm.mcore.versions import MegatronInstallation
from megatron_miniplm.runtime.requirements import GET_MEGATRON, missing_packages_are_user_errors

NO_MEGATRON = MegatronInstallation(version=None, has_training=False)


def test_an_optional_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingPackageError) as raised, missing_packages_are_user_errors("miniplm tool"):
        import tensorboard  # noqa: F401
    assert str(raised.value) == "miniplm tool needs tensorboard: pip install tensorboard"


def test_a_module_that_an_installed_package_lacks_is_a_bug_and_keeps_its_traceback() -> None:
    with pytest.raises(ModuleNotFoundError), missing_packages_are_user_errors():
        import json.no_such_module  # noqa: F401


def test_a_pyarrow_that_needs_numpy_2_is_named() -> None:
    with pytest.raises(MissingPackageError, match=r"pip install 'pyarrow<25'$"), missing_packages_are_user_errors():
        raise ImportError("pyarrow requires NumPy 2.0 or newer, found 1.26.4")


def test_other_failing_imports_keep_their_traceback() -> None:
    with pytest.raises(ImportError, match="libcudart"), missing_packages_are_user_errors():
        raise ImportError("libcudart.so.13: cannot open shared object file")


@pytest.mark.parametrize("name", sorted(cli.MEGATRON_PROGRAMS))
def test_megatron_programs_say_how_to_get_megatron_before_anything_else(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find_megatron", lambda: NO_MEGATRON)
    assert cli.main([name]) == 2
    assert capsys.readouterr().err == f"error: miniplm {name} needs megatron-core: {GET_MEGATRON}\n"
