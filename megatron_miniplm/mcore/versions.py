"""Which Megatron this process would import, found without importing it, and which ones we work with."""

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from megatron_miniplm.errors import UnsupportedMegatronError
from megatron_miniplm.runtime.requirements import GET_MEGATRON


@dataclass(frozen=True)
class Patch:
    """One replaced attribute.

    Attributes:
        target: `module:attribute`, or `module:Class.attribute`.
        make: gets the original, returns the replacement.
        needed_by: the line that needs it.
        parameters: names that the original's parameters must begin with; empty where that does not matter.
        remedy: what the user can do when the target has changed.
    """

    target: str
    make: Callable[[Any], Any]
    needed_by: str
    parameters: tuple[str, ...] = ()
    remedy: str = "install the versions of constraints.txt"

    def apply(self) -> None:
        """Replace the attribute.

        Raises:
            UnsupportedMegatronError: there is no such attribute any more, or its parameters have changed.
        """
        owner, name, original = self._find()
        setattr(owner, name, self.make(original))

    def check(self) -> None:
        """Raise `UnsupportedMegatronError` where `apply` would."""
        self._find()

    def _find(self) -> tuple[Any, str, Any]:
        module_name, _, path = self.target.partition(":")
        *owners, name = path.split(".")
        try:
            owner = importlib.import_module(module_name)
            for part in owners:
                owner = getattr(owner, part)
            original = getattr(owner, name)
        except (ImportError, AttributeError):
            raise self._refusal("which is not there") from None
        if self.parameters:
            found = tuple(inspect.signature(original).parameters)
            if found[: len(self.parameters)] != self.parameters:
                raise self._refusal(f"with parameters {', '.join(self.parameters)}; it has {', '.join(found)}")
        return owner, name, original

    def _refusal(self, difference: str) -> UnsupportedMegatronError:
        return UnsupportedMegatronError(
            f"{self.needed_by}: expected {self.target}, {difference}: this torch or Megatron is not one that this "
            f"release knows; {self.remedy}"
        )


@dataclass(frozen=True, kw_only=True)
class SupportedReleases:
    """A range of Megatron releases.

    Attributes:
        minimum: the first release, (major, minor).
        below: the first that is too new.
        name: the range in words.
    """

    minimum: tuple[int, int]
    below: tuple[int, int]
    name: str

    @property
    def remedy(self) -> str:
        minimum, below = (".".join(map(str, release)) for release in (self.minimum, self.below))
        return f'pip install "megatron-core>={minimum},<{below}"'


#: Our own programs (scoring, conversion, `megatron_miniplm.pretrain_gpt`) call Megatron's parser and config objects.
PROGRAMS = SupportedReleases(minimum=(0, 18), below=(0, 20), name="0.18 and 0.19")
#: A script of the user's brings its own calls; we replace a few functions that have stayed the same for longer.
PLUG_IN = SupportedReleases(minimum=(0, 17), below=(0, 21), name="0.17 to 0.20 (launch and plug_in)")


@dataclass(frozen=True, kw_only=True)
class MegatronInstallation:
    """What was found.

    Attributes:
        version: of `megatron.core`; None where there is none, or where its `package_info.py` does not say.
        has_training: whether `megatron.training` (the training loop) lies beside `megatron.core`.
        location: the directory that holds both, first on `sys.path`; None where there is no `megatron.core`.
        training_location: where `megatron.training` would come from instead, if it does not lie beside.
    """

    version: str | None
    has_training: bool
    location: Path | None = None
    training_location: Path | None = None

    @property
    def release(self) -> tuple[int, int]:
        major, minor = (self.version or "0.0").split(".")[:2]
        return int(major), int(minor)

    def require(self, supported: SupportedReleases = PROGRAMS) -> None:
        """Raise `UnsupportedMegatronError`, with place and remedy, unless this Megatron will do."""
        if self.location is None and self.version is None:
            raise UnsupportedMegatronError(f"this program needs megatron-core: {GET_MEGATRON}")
        place = f" in {self.location}" if self.location else ""
        if self.version is None:
            raise UnsupportedMegatronError(
                f"the megatron.core{place} has no package_info.py that says its version; this release supports "
                f"{supported.name}: {supported.remedy}"
            )
        if not supported.minimum <= self.release < supported.below:
            raise UnsupportedMegatronError(
                f"megatron-core {self.version} was found{place}, this release supports {supported.name}: "
                f"put one of those first on PYTHONPATH, or {supported.remedy}"
            )
        if not self.has_training:
            elsewhere = f"; the one in {self.training_location} is another's" if self.training_location else ""
            raise UnsupportedMegatronError(
                f"megatron-core {self.version}{place} comes without megatron.training (wheels of 0.17 and later and "
                f"Megatron-LM checkouts hold both{elsewhere}): {supported.remedy}"
            )


def find_megatron() -> MegatronInstallation:
    """The `megatron.core` that an import would find now: a checkout that is first on `sys.path` wins over a wheel."""
    core, training = _package_dir("megatron.core"), _package_dir("megatron.training")
    if core is None:
        return MegatronInstallation(version=None, has_training=False)
    is_beside = training is not None and training.parent == core.parent
    return MegatronInstallation(
        version=_version(core / "package_info.py"),
        has_training=is_beside,
        location=core.parent.parent,
        training_location=None if training is None or is_beside else training.parent.parent,
    )


def has_dataset_helpers() -> bool:
    """Whether `megatron.core.datasets.helpers_cpp` is compiled; looks for the file, imports nothing."""
    core = _package_dir("megatron.core")
    return core is not None and any((core / "datasets").glob("helpers_cpp*.so"))


def _package_dir(name: str) -> Path | None:
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(name)
    except ImportError:  # there is no `megatron` at all
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _version(package_info: Path) -> str | None:
    """From the assignments of MAJOR, MINOR, PATCH and PRE_RELEASE; the file itself starts git in 0.18 and later."""
    try:
        tree = ast.parse(package_info.read_bytes())
    except (OSError, SyntaxError):
        return None
    values = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    numbers = [values.get(name) for name in ("MAJOR", "MINOR", "PATCH")]
    if not all(isinstance(number, int) for number in numbers):
        return None
    return ".".join(map(str, numbers)) + str(values.get("PRE_RELEASE", ""))
