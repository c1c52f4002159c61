import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import sample, seal
from tokenizers import Tokenizer

from megatron_miniplm.cli import main
from megatron_miniplm.commands.explain import SHOWN_CHARACTERS
from megatron_miniplm.indexed import IndexedCorpus

DOCUMENTS = [
    {"text": "A bee is an insect.", "id": "w1", "meta": {"set": "wiki"}},
    {"text": "def bee():\n    return 3\n", "id": "c1", "meta": {"set": "code"}},
    {"text": "word " * 200, "id": "w2", "meta": {"set": "wiki"}},
]
PREFIX = "corpus/pile_text_document"


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with a sidecar, one without, scores of both, and a selection in each of two domains."""
    directory = tmp_path_factory.mktemp("explained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(directory)
        Path("text.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
        train = ["train-tokenizer", "--input", "text.jsonl", "--type", "bpe", "--vocab-size", "270", "--output", "bpe"]
        assert main(train) == 0
        tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", "bpe"]
        keys = ["--id-key", "id", "--domain-key", "meta.set"]
        where = ["--input", "text.jsonl", "--output-prefix", "corpus/pile"]
        assert main(["preprocess-data", *where, *tokenizer, *keys, "--append-eod"]) == 0
        corpora = [IndexedCorpus.open(PREFIX)]
        write_scores(Path("teacher"), corpora, [1.0, 2.0, 3.0], [2, 2, 2])
        write_scores(Path("reference"), corpora, [2.0, 5.0, 8.0], [2, 2, 2])
        options: dict[str, Any] = {"per_domain": True, "weights": "linear", "repeat": True}
        sample(Path("teacher"), Path("reference"), Path("refined"), **options)
        bare = [write_corpus(Path("a/bare"), [[1, 2], [3]]), write_corpus(Path("b/bare"), [[4, 5]])]
        write_scores(Path("bare-teacher"), bare, [0.0, 0.0, 0.0])
        write_scores(Path("bare-reference"), bare, [1.0, 0.0, 2.0])
        sample(Path("bare-teacher"), Path("bare-reference"), Path("bare"), sampling="gumbel")
    return directory


@pytest.fixture(autouse=True)
def work_there(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(preprocessed)


def explain(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    exit_code = main(["explain", *arguments])
    captured = capsys.readouterr()
    return exit_code, captured.out, captured.err


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, out, _ = explain(capsys, "refined", "--sequence", "0", "2")
    lengths_N = IndexedCorpus.open(PREFIX).lengths_N
    assert exit_code == 0
    assert out.splitlines() == [
        "pile_text_document, sequence 0",
        "  global id     0",
        f"  tokens        {lengths_N[0]} (2 scored)",
        "  domain        'wiki'",
        "  teacher NLL   1 nats (0.5 a token)",
        "  reference NLL 2 nats (1 a token)",
        "  value         0.5 nats a token (reference - teacher)",
        "  rank          3 of 3 (before 0% of the others); 2 of 2 in domain 'wiki'",
        "  kept          no: its value 0.5 is 2 below the threshold 2.5 of domain 'wiki'",
        "  source        text.jsonl, line 1, id w1, domain wiki: piece 0, from byte 0",
        "  text          A bee is an insect.",
        "pile_text_document, sequence 2",
        "  global id     2",
        f"  tokens        {lengths_N[2]:,} (2 scored)",
        "  domain        'wiki'",
        "  teacher NLL   3 nats (1.5 a token)",
        "  reference NLL 8 nats (4 a token)",
        "  value         2.5 nats a token (reference - teacher)",
        "  rank          1 of 3 (before 100% of the others); 1 of 2 in domain 'wiki'",
        "  kept          yes: its value is equal to the threshold 2.5 of domain 'wiki': it is the last kept",
        "  weight        2 (2 copies in the view)",
        "  source        text.jsonl, line 3, id w2, domain wiki: piece 0, from byte 0",
        f"  text          {('word ' * 200)[:SHOWN_CHARACTERS].strip()}",
    ]


def test_line_breaks_of_the_text_do_not_break_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = explain(capsys, "refined", "--sequence", "1")
    assert "  text          def bee(): return 3\n" in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, out, _ = explain(capsys, "refined", "--sequence", "2", "--json")
    found = json.loads(out)
    (one,) = found["sequences"]
    assert (exit_code, found["selection"], found["from_scores"]) == (0, "refined", "reference - teacher")
    assert (one["sequence"], one["prefix"], one["index"], one["kept"]) == (2, "pile_text_document", 2, True)
    assert (one["teacher_nll_nats"], one["reference_nll_nats"], one["num_scored_tokens"]) == (3.0, 8.0, 2)
    assert (one["value"], one["unit"], one["perturbed_value"]) == (2.5, "nats a token", None)
    assert (one["rank"], one["num_ranked"], one["percentile"], one["domain_rank"]) == (1, 3, 100.0, 1)
    assert (one["weight"], one["num_copies"]) == (2.0, 2)
    (passage,) = one["passages"]
    assert (passage["source"], passage["line"], passage["id"], passage["domain"]) == ("text.jsonl", 3, "w2", "wiki")
    assert passage["text"] == ("word " * 200)[:SHOWN_CHARACTERS]
    assert one["no_source"] is None


def test_bits_a_byte(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sample(Path("teacher"), Path("reference"), tmp_path / "bits", reduction="bits-per-byte")
    _, out, _ = explain(capsys, str(tmp_path / "bits"), "--sequence", "2")
    per_byte = 1 / np.log(2) / 1000
    assert "  text bytes    1,000\n" in out
    assert f"  teacher NLL   3 nats (1.5 a token, {3 * per_byte:.6g} bits a byte)\n" in out
    assert f"  value         {5 * per_byte:.6g} bits a byte (reference - teacher)\n" in out


def test_without_a_sidecar(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, out, _ = explain(capsys, "bare", "--sequence", "0")
    lines = out.splitlines()
    assert exit_code == 0
    assert lines[0] == "bare, sequence 0"
    assert lines[-1].startswith("  source        ")
    assert lines[-1].endswith(
        "a/bare has no sidecar that says where its sequences come from: make it with preprocess-data"
    )
    assert sum(line.startswith("  perturbed     ") for line in lines) == 1
    (one,) = json.loads(explain(capsys, "bare", "--sequence", "0", "--json")[1])["sequences"]
    assert one["passages"] == []
    assert one["no_source"] in lines[-1]


def test_without_a_sidecar_but_with_a_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    """The text by the tokens, from explain and from inspect."""
    flags = ["--sequence", "0", "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", "bpe"]
    text = Tokenizer.from_file("bpe/tokenizer.json").decode([1, 2], skip_special_tokens=False)
    assert text.strip()
    exit_code, out, _ = explain(capsys, "bare", *flags)
    assert exit_code == 0
    assert out.splitlines()[-1].split() == ["decoded", *text.split()]
    assert main(["inspect", "a/bare", *flags]) == 0
    assert capsys.readouterr().out == f"--- decoded from the tokens\n{text}\n"
    assert main(["inspect", "a/bare", "--sequence", "0"]) == 2
    assert "give --tokenizer-type and --tokenizer-model to decode its tokens" in capsys.readouterr().err


def test_text_that_has_gone_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("text.jsonl")
    text.rename("elsewhere.jsonl")
    try:
        exit_code, out, _ = explain(capsys, "refined", "--sequence", "0")
    finally:
        Path("elsewhere.jsonl").rename(text)
    assert exit_code == 0
    assert "text.jsonl" in out.splitlines()[-1]
    assert out.splitlines()[-1].startswith("  source        ")


def test_nothing_scored_is_no_number_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = explain(capsys, "bare", "--sequence", "1")
    assert "  tokens        1 (0 scored)\n  teacher NLL   0 nats\n" in out
    assert "  value         none (reference - teacher)\n" in out
    (one,) = json.loads(explain(capsys, "bare", "--sequence", "1", "--json")[1])["sequences"]
    assert (one["value"], one["perturbed_value"]) == (None, None)


def test_what_takes_no_part(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sample(Path("teacher"), Path("reference"), tmp_path / "code", keep_domains=("code",))
    _, out, _ = explain(capsys, str(tmp_path / "code"), "--sequence", "0")
    assert "  rank          1 sequences take part, this one does not\n" in out
    assert "  kept          no: it does not take part: its domain 'wiki' is dropped (--keep-domain code)\n" in out


def test_a_prefix_and_flags_given_twice(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--prefix", "pile_text_document", "--sequence", "1", "--sequence", "0"]
    _, out, _ = explain(capsys, "refined", *flags)
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "pile_text_document, sequence 1",
        "pile_text_document, sequence 0",
    ]


def test_prefixes_of_one_name_are_told_apart_by_path(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, _, err = explain(capsys, "bare", "--prefix", "bare", "--sequence", "0")
    assert (exit_code, err) == (2, "error: bare has 2 prefixes 'bare': give --prefix a/bare or b/bare\n")
    _, out, _ = explain(capsys, "bare", "--prefix", "b/bare", "--sequence", "0")
    assert out.splitlines()[:2] == ["bare, sequence 0", "  global id     2"]
    assert "b/bare has no sidecar" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["refined", "--sequence", "3"], "refined has no sequence 3: they count from 0 to 2"),
        (["refined", "--sequence", "0", "-1"], "refined has no sequence -1: they count from 0 to 2"),
        (["bare", "--prefix", "b/bare", "--sequence", "1"], "bare: b/bare has no sequence 1: they count from 0 to 0"),
        (
            ["refined", "--prefix", "pile", "--sequence", "0"],
            "refined has no prefix 'pile': it was made of pile_text_document",
        ),
        (["teacher", "--sequence", "0"], "teacher holds an artifact of kind scores"),
        (["nothing", "--sequence", "0"], "nothing does not exist: give a directory that difference-sampling wrote"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    exit_code, out, err = explain(capsys, *arguments)
    assert (exit_code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_prefix_without_sequences(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    corpora = [write_corpus(tmp_path / "empty", []), write_corpus(tmp_path / "full", [[1, 2]])]
    stores = [write_scores(tmp_path / name, corpora, [1.0]).directory for name in ("t", "r")]
    sample(*stores, tmp_path / "out", ratio=1)
    exit_code, _, err = explain(capsys, str(tmp_path / "out"), "--prefix", "empty", "--sequence", "0")
    assert (exit_code, err) == (2, f"error: {tmp_path}/out: empty has no sequence 0: it has none\n")
    _, out, _ = explain(capsys, str(tmp_path / "out"), "--sequence", "0")
    assert out.startswith("full, sequence 0\n")
    assert f"{tmp_path}/full has no sidecar" in out


def test_indices_that_were_tampered_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sample(Path("teacher"), Path("reference"), tmp_path / "out", ratio=0.4)
    np.save(tmp_path / "out" / "0000_pile_text_document.indices.npy", np.array([0], "<i8"))
    seal(tmp_path / "out")
    exit_code, out, err = explain(capsys, str(tmp_path / "out"), "--sequence", "0")
    assert (exit_code, out) == (2, "")
    assert "the selection on disk does not match its scores" in err
