"""A Hugging Face model directory: what it is, which Megatron flags describe it, and whether it is whole.

Nothing here imports torch or transformers: a wrong path or a contradicting flag is refused at once.
A name on the hub means its directory in this machine's cache. Nothing is downloaded: all ranks of a job would do so at
once, and often have no network.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.fingerprint import Fingerprint, digest_file, digest_file_samples, digest_values
from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.device_flags import given_flags
from megatron_miniplm.mcore.huggingface import megatron_flags
from megatron_miniplm.mcore.huggingface.architecture import Architecture
from megatron_miniplm.mcore.huggingface.config_fields import OTHER_ROUTE, shown
from megatron_miniplm.mcore.huggingface.config_json import architecture_of_config, read_config
from megatron_miniplm.mcore.huggingface.mapping import padded_size, tensor_shapes
from megatron_miniplm.mcore.huggingface.tensor_files import StoredTensor, files_of, stored_tensors
from megatron_miniplm.mcore.program import say_once

CONFIG_FILE = "config.json"
#: What transformers' AutoTokenizer reads; copied on export.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_TOKENIZER_MARKS = ("tokenizer.json", "tokenizer.model", "vocab.json")
#: Tensors that old releases of transformers stored although they are computed.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|self_attn\.bias$")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PRECISION_FLAGS = {"float32": [], "bfloat16": ["--bf16"], "float16": ["--fp16"]}


@dataclass(frozen=True)
class HuggingFaceModel:
    """A directory with `config.json` and safetensors files; make one with `open`.

    Attributes:
        config: raw `config.json`.
        architecture: what the config describes.
    """

    directory: Path
    config: dict[str, Any]
    architecture: Architecture

    @classmethod
    def open(cls, model: Path) -> "HuggingFaceModel":
        """Read the config; the tensors are looked at when they are asked for.

        Args:
            model: a directory, or the name of a model on the hub that is in this machine's cache.

        Raises:
            InputError: no config, an unknown architecture, or a value that Megatron cannot express.
        """
        directory = locate(model, CONFIG_FILE)
        path = directory / CONFIG_FILE
        config = read_config(path)
        return cls(directory, config, architecture_of_config(config, path))

    @property
    def family(self) -> str:
        """`model_type`, such as `qwen2`."""
        return self.config["model_type"]

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding that are real; a tokenizer may have fewer ids (Qwen) but never more."""
        return self.architecture.vocab_size

    @property
    def dtype(self) -> str:
        """`float32`, `bfloat16` or `float16`: what most bytes of the weights are stored in, whatever the config says.

        Raises:
            InputError: another one.
        """
        stored = Counter[str]()
        for tensor in self.tensors.values():
            stored[tensor.dtype] += tensor.num_bytes
        [(most, _)] = stored.most_common(1) or [("no tensors", 0)]
        if most not in _DTYPES:
            raise InputError(
                f"{self.directory}: the weights are stored in {most}, supported: {', '.join(_DTYPES)}: {OTHER_ROUTE}"
            )
        return _DTYPES[most]

    @property
    def has_tokenizer(self) -> bool:
        """Whether the directory will do as `--tokenizer-model` of a `HuggingFaceTokenizer`."""
        return any((self.directory / name).is_file() for name in _TOKENIZER_MARKS)

    @property
    def config_path(self) -> Path:
        return self.directory / CONFIG_FILE

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """What the safetensors files hold, from their headers.

        Raises:
            InputError: files are missing, truncated or contradict the index.
        """
        return stored_tensors(self.directory)

    def megatron_flags(self) -> list[str]:
        """Megatron's flags for this architecture, to go before the user's; dropout is off unless the user says so."""
        return [*megatron_flags.flags_of(self.architecture), "--attention-dropout", "0", "--hidden-dropout", "0"]

    def precision_flags(self, argv: Sequence[str]) -> list[str]:
        """`--bf16` or `--fp16` as the weights are stored, unless the user's flags choose; nothing for float32.

        Says so once where the config names another precision: transformers would follow the config.
        """
        if given_flags(argv) & {"--bf16", "--fp16"}:
            return []
        named = self.config.get("dtype") or self.config.get("torch_dtype")
        if isinstance(named, str) and named != self.dtype:
            say_once(
                f"{self.config_path} names the dtype {shown(named)}, but the weights are stored in {self.dtype}: "
                f"computing in {self.dtype}"
            )
        return list(_PRECISION_FLAGS[self.dtype])

    def refuse_contradictions(self, argv: Sequence[str]) -> None:
        """Check the user's flags before Megatron parses them.

        Raises:
            InputError: names the flag that this directory decides otherwise.
        """
        megatron_flags.refuse_contradictions(megatron_flags.flags_of(self.architecture), argv, self.config_path)

    def take_vocabulary(self, args: argparse.Namespace) -> None:
        """Give parsed args this model's vocabulary; call it between parsing and building.

        Megatron pads the tokenizer's size (core/tokenizers/utils/build_tokenizer.py:140), which is not the number of
        rows: Qwen2.5 has 151,936 of them and 151,665 tokens.

        Args:
            args: Megatron's, validated; `vocab_size` becomes the number of real rows, `padded_vocab_size` a multiple of
                `make_vocab_size_divisible_by` that no TP size changes which divides that.

        Raises:
            InputError: the args describe another architecture.
        """
        place = self.config_path
        found = megatron_flags.architecture_of_args(args, self.vocab_size)
        megatron_flags.require_equal(self.architecture, found, place)
        args.vocab_size = self.vocab_size
        args.padded_vocab_size = padded_size(
            self.vocab_size, args.make_vocab_size_divisible_by, args.tensor_model_parallel_size
        )

    def check_tensors(self) -> None:
        """Compare the tensors in the files with those that the config asks for, by name and shape.

        A tied model may store `lm_head.weight` too (exports of some trainers do): its embedding is used, and the copy
        must have the embedding's shape. Whether the copy is equal is checked on loading, where the bytes are read.

        Raises:
            InputError: names the first tensor that is missing, unknown or of another shape.
        """
        expected = tensor_shapes(self.architecture)
        for name, shape in expected.items():
            if name not in self.tensors:
                raise InputError(f"{self.directory} has no tensor {name}, which its {CONFIG_FILE} asks for")
            self._check_shape(name, shape)
            self._check_dtype(name)
        for name, tensor in self.tensors.items():
            if self.architecture.tied and name == "lm_head.weight":
                self._check_shape(name, expected["model.embed_tokens.weight"])
            elif name not in expected and not _COMPUTED.search(name):
                raise InputError(
                    f"{tensor.file} holds {name}, which no {self.family} of this {CONFIG_FILE} has: the weights belong "
                    "to another config, or to a model that is not supported"
                )

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if self.tensors[name].shape != shape:
            raise InputError(
                f"{self.tensors[name].file}: {name} has shape {self.tensors[name].shape}, {CONFIG_FILE} says {shape}: "
                "weights and config belong to different models"
            )

    def _check_dtype(self, name: str) -> None:
        tensor = self.tensors[name]
        if tensor.dtype not in _DTYPES:
            raise InputError(
                f"{tensor.file}: {name} is stored in {tensor.dtype}, supported: {', '.join(_DTYPES)}: {OTHER_ROUTE}"
            )

    def fingerprint(self) -> Fingerprint:
        """Identity of weights and config by names, sizes and samples of the files; the tokenizer has no part."""
        files = [(file.name, digest_file_samples(file)) for file in files_of(self.tensors)]
        return digest_values([(CONFIG_FILE, digest_file(self.config_path)), *files])


#: ORGANISATION/MODEL as the hub allows them.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(model: Path, file_name: str) -> Path:
    """The directory of a model that is given as a directory or by its name on the hub.

    Args:
        model: what exists is a directory, whatever it is called.
        file_name: a file that the cached snapshot must have.

    Raises:
        InputError: there is no such directory, and the cache has no such model.
    """
    name = str(model)
    if model.exists() or not _HUB_NAME.fullmatch(name):
        return model
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file_name)
    except HFValidationError:
        return model
    if isinstance(found, str):
        return Path(found).parent
    raise InputError(
        f"{name} is neither a directory nor a model in the cache of the Hugging Face hub: give a directory, or "
        f"download the model first: hf download {name}"
    )
