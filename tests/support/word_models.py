"""A tiny random model that reads words, with its tokenizer."""

from pathlib import Path

import torch
from huggingface_models import CONFIGS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

NUM_WORDS = 50


def write_word_model(directory: Path) -> Path:
    """Of the words w0 to w49, whose ids are their numbers."""
    torch.manual_seed(0)
    # Of other types, such as qwen2, transformers 5 loads the type's own tokenizer class, whatever lies there.
    AutoModelForCausalLM.from_config(CONFIGS["mixtral"]()).save_pretrained(directory)
    return write_word_tokenizer(directory, NUM_WORDS)


def write_word_tokenizer(directory: Path, num_words: int) -> Path:
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(num_words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return directory
