import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_miniplm.commands.shared_flags import TYPES_TEXT, add_tokenizer_arguments, tokenizer_settings
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import TOKENIZER_TYPES


def parse(*arguments: str) -> TokenizerSettings:
    parser = argparse.ArgumentParser()
    add_tokenizer_arguments(parser)
    return tokenizer_settings(parser.parse_args(arguments))


def test_the_flags_default_to_the_defaults_of_the_settings() -> None:
    assert parse("--tokenizer-type", "X") == TokenizerSettings(tokenizer_type="X")


def test_every_setting_has_its_flag() -> None:
    settings = parse(
        *("--tokenizer-type", "X", "--tokenizer-model", "m", "--vocab-file", "v", "--merge-file", "g"),
        *("--vocab-size", "7", "--tiktoken-pattern", "v1", "--tiktoken-num-special-tokens", "8"),
        *("--tokenizer-special-tokens", "<a>", "<b>", "--null-tokenizer-eod-id", "0", "--split-special-tokens"),
    )
    assert settings == TokenizerSettings(
        tokenizer_type="X",
        tokenizer_model=Path("m"),
        vocab_file=Path("v"),
        merge_file=Path("g"),
        vocab_size=7,
        tiktoken_pattern="v1",
        tiktoken_num_special_tokens=8,
        special_tokens=("<a>", "<b>"),
        null_tokenizer_eod_id=0,
        split_special_tokens=True,
    )


def test_the_type_is_required(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse()
    assert "--tokenizer-type" in capsys.readouterr().err


def test_the_help_names_the_types_that_there_are() -> None:
    assert sorted(re.findall(r"\w+Tokenizer", TYPES_TEXT)) == sorted(TOKENIZER_TYPES)


def test_reading_flags_imports_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from megatron_miniplm.commands.shared_flags import add_tokenizer_arguments; "
        "add_tokenizer_arguments(argparse.ArgumentParser()); print({'numpy', 'torch', 'gigatoken'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
