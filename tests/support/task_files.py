"""A model of transformers with a tokenizer of its own, and data in the formats of the paper's nine tasks, all tiny.

The tasks are lm_eval's: each file includes lm_eval's own and puts a local JSONL in the place of the hub's data set.
"""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

#: No multiple of anything, so that Megatron pads it.
VOCAB_SIZE = 331
MAX_LENGTH = 64
NUM_EXAMPLES = 12
BOS, EOS = "<s>", "</s>"
WORDS = (  # noqa: SIM905
    "the a river stone light of and to in walked carried under bright old small window garden while seven they her his "
    "slowly before table paper green voice answer question morning water house children letter opened"
).split()
THEIRS = Path(lm_eval.__file__).parent / "tasks"
#: Task -> file of lm_eval, and the split that it asks; StoryCloze is ours, and reads a CSV.
PAPER_TASKS = {
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "lambada_openai": ("lambada/lambada_openai.yaml", "test"),
    "winogrande": ("winogrande/default.yaml", "validation"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "test"),
    "arc_easy": ("arc/arc_easy.yaml", "test"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test"),
    "piqa": ("piqa/piqa.yaml", "validation"),
    "social_iqa": ("siqa/siqa.yaml", "validation"),
}
ROLLING_TASK = "wikitext"
EDGE_TASK = "edges"


def write_model(directory: Path) -> Path:
    """A random Llama in float32 that reads `MAX_LENGTH` tokens, its tokenizer beside it, which puts BOS first."""
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(
        LlamaConfig(**shape, vocab_size=VOCAB_SIZE, max_position_embeddings=MAX_LENGTH, num_key_value_heads=2)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(std=0.3)
    model.save_pretrained(directory)
    return write_tokenizer(directory)


def write_tokenizer(directory: Path) -> Path:
    """A byte-level BPE of transformers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 8, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS).save_pretrained(directory)
    return directory


def write_tasks(directory: Path, greedy: Callable[[str], str]) -> Path:
    """Write all task files and their data.

    Args:
        greedy: what a model says first after a text, for LAMBADA: some of its answers must be right.

    Returns:
        The CSV of StoryCloze.
    """
    directory.mkdir(parents=True)
    documents = {name: [_DOCUMENTS[name](random.Random(seed)) for seed in range(NUM_EXAMPLES)] for name in PAPER_TASKS}
    documents["lambada_openai"] = _lambada(greedy)
    for name, (file, split) in PAPER_TASKS.items():
        _write_task(directory, name, split, documents[name], {"include": str(THEIRS / file)})
    pages = [
        {"page": " = A title = \n " + " @-@ ".join(_text(random.Random(seed), 45 * seed) for _ in "ab")}
        for seed in (1, 2, 3)
    ]
    _write_task(directory, ROLLING_TASK, "test", pages, {"include": str(THEIRS / "wikitext" / "wikitext.yaml")})
    _write_task(directory, EDGE_TASK, "test", _edges(), _EDGE_FILE)
    place = directory / "storycloze.csv"
    with place.open("w", newline="", encoding="utf-8") as stream:
        rows = [_storycloze(random.Random(seed)) for seed in range(NUM_EXAMPLES)]
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return place


def _write_task(directory: Path, name: str, split: str, documents: list[Any], settings: dict[str, Any]) -> None:
    data = directory / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    split_names = {f"{one}_split": split if one == split else None for one in ("training", "validation", "test")}
    kwargs = {"data_files": {split: str(data)}, "cache_dir": str(directory / "cache")}
    files = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs}
    (directory / f"{name}.yaml").write_text(json.dumps({**settings, "task": name, **files, **split_names}))


def _text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=num_words))


def _endings(rng: random.Random, count: int) -> list[str]:
    return [_text(rng, rng.randint(1, 6)) for _ in range(count)]


def _question(rng: random.Random) -> dict[str, Any]:
    return {"text": _endings(rng, 4), "label": list("ABCD")}


_DOCUMENTS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "hellaswag": lambda rng: {
        "ind": 0,
        "activity_label": _text(rng, 2),
        "ctx_a": _text(rng, rng.choice((5, 40))) + ".",
        "ctx_b": _text(rng, 3),
        "endings": [f"{ending} [step] {ending}." for ending in _endings(rng, 4)],
        "label": str(rng.randrange(4)),
    },
    "winogrande": lambda rng: {
        "sentence": f"{_text(rng, 4)} because _ {_text(rng, 3)} .",
        "option1": rng.choice(WORDS),
        "option2": _text(rng, 2),
        "answer": str(rng.randint(1, 2)),
    },
    "openbookqa": lambda rng: {
        "question_stem": _text(rng, 7),
        "choices": _question(rng),
        "answerKey": rng.choice("ABCD"),
    },
    "arc_easy": lambda rng: {"question": _text(rng, 8), "choices": _question(rng), "answerKey": rng.choice("ABCD")},
    "arc_challenge": lambda rng: {
        "question": _text(rng, 30),
        "choices": _question(rng),
        "answerKey": rng.choice("ABCD"),
    },
    "piqa": lambda rng: {
        "goal": _text(rng, 6),
        "sol1": _text(rng, 5),
        "sol2": _text(rng, 7),
        "label": rng.randrange(2),
    },
    "social_iqa": lambda rng: {
        "context": _text(rng, 6) + ".",
        "question": _text(rng, 4) + "?",
        **dict(zip(("answerA", "answerB", "answerC"), _endings(rng, 3), strict=True)),
        "label": str(rng.randint(1, 3)),
    },
    "lambada_openai": lambda rng: {},
}


def _lambada(greedy: Callable[[str], str]) -> list[dict[str, str]]:
    """Passages whose last word is, in half of them, the token that the model thinks likeliest."""
    found: dict[bool, list[str]] = {True: [], False: []}
    seed = 0
    while min(map(len, found.values())) < NUM_EXAMPLES // 2:
        rng = random.Random(seed)
        seed += 1
        context = _text(rng, rng.choice((6, 12, 50)))
        answer = greedy(context)
        is_word = answer.startswith(" ") and answer[1:].isalpha()
        found[is_word].append(context + answer if is_word else f"{context} {rng.choice(WORDS)}")
    return [{"text": text} for kind in found.values() for text in kind[: NUM_EXAMPLES // 2]]


def _storycloze(rng: random.Random) -> dict[str, Any]:
    sentences = {f"InputSentence{number}": _text(rng, 4) + "." for number in range(1, 5)}
    endings = {f"RandomFifthSentenceQuiz{number}": _text(rng, 4) + "." for number in (1, 2)}
    return {"InputStoryid": str(rng.random()), **sentences, **endings, "AnswerRightEnding": rng.randint(1, 2)}


_EDGE_FILE = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{continuation}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    "metadata": {"version": 1.0},
}


def _edges() -> list[dict[str, str]]:
    """What plain tasks do not have: nothing before, characters of several tokens, too much before, spaces between."""
    long = _text(random.Random(1), 200)
    pairs = [
        ("", " the river"),
        ("", "the"),
        ("the old", " stone"),
        ("Ein Größenmaß: 東京 ", "– naïve 🙂 données"),
        ("🙂", "🙂"),
        (long, " and the window"),
        (long, _text(random.Random(2), 12)),
        ("the garden   ", "light"),
        (f"{BOS}the garden", " light"),
        ("a", " b"),
    ]
    return [{"context": context, "continuation": continuation} for context, continuation in pairs]
