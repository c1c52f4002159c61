"""Files of other tokenizers, made of a trained byte-level BPE."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path


def ranked_bytes(token_bytes_V: Sequence[bytes]) -> list[bytes]:
    """The 256 bytes, then the merged tokens of a byte-level BPE in the order of its ids (special tokens left out)."""
    merged = [token for token in token_bytes_V if len(token) > 1 and not token.startswith(b"<|")]
    return [*(bytes([byte]) for byte in range(256)), *merged]


def write_ranks(path: Path, tokens: Sequence[bytes]) -> Path:
    """The JSON file that Megatron's TikTokenizer reads."""
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode(errors="replace")}
        for rank, token in enumerate(tokens)
    ]
    path.write_text(json.dumps(entries))
    return path


def write_gpt2_files(directory: Path, tokenizer_json: Path) -> tuple[Path, Path]:
    """`vocab.json` and `merges.txt` of a byte-level BPE's tokenizer.json."""
    model = json.loads(tokenizer_json.read_text())["model"]
    vocab_path, merges_path = directory / "vocab.json", directory / "merges.txt"
    vocab_path.write_text(json.dumps(model["vocab"]))
    merges_path.write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"]))
    return vocab_path, merges_path
