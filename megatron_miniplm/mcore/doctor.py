"""What is installed of what our programs can use, what each missing part costs, and the command that fixes it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from megatron_miniplm.errors import UnsupportedMegatronError
from megatron_miniplm.mcore.versions import (
    PLUG_IN,
    PROGRAMS,
    MegatronInstallation,
    SupportedReleases,
    find_megatron,
    has_dataset_helpers,
)
from megatron_miniplm.runtime.requirements import GET_MEGATRON, GET_TORCH, OLDER_PYARROW, how_to_get

Status = Literal["ok", "partly", "absent", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        name: what.
        status: `ok`; `partly`, where some Megatron programs cannot run; `absent`, which costs something but stops
            nothing on its own; `wrong`, which stops all Megatron programs.
        found: version or place, or what is wrong.
        cost: what cannot be done, or is slower, for lack of it.
        remedy: the command that fixes it.
    """

    name: str
    status: Status
    found: str
    cost: str = ""
    remedy: str = ""


def examine(programs: Collection[str]) -> Iterator[Finding]:
    """Look for everything, in the order in which it matters."""
    yield _python()
    yield from _torch_and_cuda()
    yield from _megatron(programs)
    yield _transformer_engine()
    yield _apex()
    yield _pyarrow()
    yield from map(_package, _PACKAGES)
    yield _slurm()


def _python() -> Finding:
    return Finding(name="python", status="ok", found=platform.python_version())


def _torch_and_cuda() -> Iterator[Finding]:
    if (version := _version("torch")) is None:
        yield Finding(
            name="torch",
            status="wrong",
            found="not installed",
            cost="no scoring, no training (preprocessing and selection work)",
            remedy=GET_TORCH,
        )
        return
    yield Finding(name="torch", status="ok", found=version)
    import torch

    if torch.cuda.is_available():
        devices = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
        forced = " (MINIPLM_DEVICE=cpu: not used)" if os.environ.get("MINIPLM_DEVICE") == "cpu" else ""
        yield Finding(name="cuda", status="ok", found=devices + forced)
        return
    built = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
    yield Finding(
        name="cuda",
        status="absent",
        found=f"no GPU ({built}, {len(os.sched_getaffinity(0))} cores)",
        cost="Megatron runs on the CPU over gloo: fine for the quickstart and tests, far too slow for real models",
        remedy="nvidia-smi shows whether the driver sees a GPU",
    )


def _megatron(programs: Collection[str]) -> Iterator[Finding]:
    installation = find_megatron()
    if installation.location is None:
        yield Finding(
            name="megatron-core",
            status="wrong",
            found="not installed",
            cost="no scoring, no training (preprocessing and selection work)",
            remedy=GET_MEGATRON,
        )
        return
    place = f"{installation.version} in {installation.location}"
    try:
        installation.require(PROGRAMS)
    except UnsupportedMegatronError as error:
        reason, _, remedy = str(error).rpartition(": ")
        if not _supports(installation, PLUG_IN):
            yield Finding(
                name="megatron-core", status="wrong", found=reason, cost="no scoring, no training", remedy=remedy
            )
            return
        yield Finding(
            name="megatron-core",
            status="partly",
            found=f"{place}: your own training scripts work, on views and through megatron_miniplm.launch",
            cost=f"{', '.join(sorted(programs))} and megatron_miniplm.pretrain_gpt need {PROGRAMS.name}",
            remedy=remedy,
        )
    else:
        yield Finding(
            name="megatron-core",
            status="ok",
            found=f"{place}: all our programs, and your own training scripts on views and through launch",
        )
    compiled = has_dataset_helpers()
    yield Finding(
        name="dataset helpers",
        status="ok" if compiled else "wrong",
        found="compiled" if compiled else "megatron.core.datasets.helpers_cpp is missing",
        cost="" if compiled else "GPTDataset cannot build its indices",
        remedy="" if compiled else "make -C megatron/core/datasets in the Megatron-LM checkout, or install the wheel",
    )


def _supports(installation: MegatronInstallation, supported: SupportedReleases) -> bool:
    try:
        installation.require(supported)
    except UnsupportedMegatronError:
        return False
    return True


def _transformer_engine() -> Finding:
    if version := _version("transformer-engine", "transformer-engine-torch"):
        return Finding(name="transformer-engine", status="ok", found=version)
    return Finding(
        name="transformer-engine",
        status="absent",
        found="not installed",
        cost="on GPUs: give --transformer-impl local; slower layers, no FP8, no sequence or context parallelism",
        remedy='pip install --no-build-isolation "transformer-engine[pytorch]"',
    )


def _apex() -> Finding:
    """NVIDIA's Apex is not on the package index: the `apex` there is a web toolkit."""
    cost = "on GPUs: --no-gradient-accumulation-fusion and slower optimizer steps, unless Transformer Engine is there"
    remedy = "build it from NVIDIA's repository github.com/NVIDIA/apex with --cpp_ext --cuda_ext"
    if importlib.util.find_spec("apex") is None:
        return Finding(name="apex", status="absent", found="not installed", cost=cost, remedy=remedy)
    if importlib.util.find_spec("apex.multi_tensor_apply") is None:
        return Finding(
            name="apex",
            status="wrong",
            found=f"{_version('apex')} is the unrelated project of that name from the package index",
            cost="Megatron finds it first and fails on import; " + cost,
            remedy="pip uninstall apex; " + remedy,
        )
    return Finding(name="apex", status="ok", found=_version("apex") or "NVIDIA's")


#: Package -> what is lost without it.
_PACKAGES = {
    "gigatoken": "preprocessing falls back to the tokenizers library, 25 times slower",
    "psutil": "Megatron cannot save checkpoints",
    "omegaconf": "Megatron cannot read its own configuration files (YAML)",
    "transformers": "Megatron cannot read Hugging Face tokenizers",
    "tensorboard": "Megatron writes no curves, and compare-runs cannot read them",
    "matplotlib": "no report, no pictures of curves",
    "lm_eval": "no downstream tasks (evaluate-tasks)",
}


def _package(name: str) -> Finding:
    if version := _version(name):
        return Finding(name=name, status="ok", found=version)
    return Finding(name=name, status="absent", found="not installed", cost=_PACKAGES[name], remedy=how_to_get(name))


def _pyarrow() -> Finding:
    """The one dependency of which pip may install a version that does not work."""
    version, numpy_version = _version("pyarrow"), _version("numpy") or ""
    if version is None:
        found, remedy = "not installed", "pip install pyarrow"
    elif int(version.split(".")[0]) >= 25 and numpy_version.startswith("1."):
        found, remedy = f"{version} needs NumPy 2, found {numpy_version}", OLDER_PYARROW
    else:
        return Finding(name="pyarrow", status="ok", found=version)
    cost = "no preprocessing; corpora with a sidecar cannot be read"
    return Finding(name="pyarrow", status="wrong", found=found, cost=cost, remedy=remedy)


def _slurm() -> Finding:
    if path := shutil.which("sbatch"):
        return Finding(name="slurm", status="ok", found=path)
    return Finding(
        name="slurm",
        status="absent",
        found="no sbatch on the PATH",
        cost="no batch jobs from here; torchrun works",
        remedy="run on a login node",
    )


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
