"""Show what an artifact holds and where it comes from; with --check, verify that it is intact.

PATH is the prefix of a .bin/.idx pair (ours or Megatron's own, a corpus or a view), a directory with a manifest.json,
or a directory that holds several prefixes.

--check reads every byte of the artifact's own files and compares them with the index, the manifest's checksums and the
fingerprints of the artifact and of its parents, if they still exist. It prints `ok`, or one line per fault and exits
with 2. The data of a view is its source's: check that too.

--sequence K prints the text of one sequence of a prefix and where it came from: file, line, id, domain.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.artifacts.lineage import lineage_lines, trace_lineage
from megatron_miniplm.artifacts.manifest import is_prefix, load_manifest, manifest_path
from megatron_miniplm.commands.shared_flags import add_decoding_arguments, decoder_of
from megatron_miniplm.errors import CorruptArtifactError, InputError, MiniPLMError
from megatron_miniplm.reports.inspection import bytes_to_check, find_faults, find_prefixes, summarize_prefix
from megatron_miniplm.runtime.progress import Progress
from megatron_miniplm.runtime.terminal import printable, printable_json

if TYPE_CHECKING:
    from megatron_miniplm.corpus.tokenization.settings import TextEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="prefix (without .bin or .idx), or directory")
    parser.add_argument("--check", action="store_true", help="validate everything; reads all of the data")
    parser.add_argument(
        "--sequence", type=int, metavar="K", help="print the text and origin of sequence K, counted from 0"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_decoding_arguments(parser, "decodes --sequence where the original text is not known")


def run(arguments: argparse.Namespace) -> None:
    """Print the report to stdout.

    Raises:
        InputError: there is no artifact, or it cannot be read.
        CorruptArtifactError: it is damaged; under `--check`, after every fault was printed.
    """
    path, faults = arguments.path, []
    try:
        _require_artifact(path)
        if arguments.sequence is not None:
            _print_sequence(path, arguments.sequence, arguments.json, decoder_of(arguments))
            return
        if arguments.check:
            with Progress(bytes_to_check(path), "B") as progress:
                faults = find_faults(path, progress.advance)
        description = _describe_or_error(path) if faults else _describe(path)
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror}") from None
    if arguments.json:
        checked = {"faults": faults} if arguments.check else {}
        print(printable_json(description | checked))
    else:
        _print_text(path, description)
        if arguments.check:
            print("\n".join(faults) or "ok")
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise CorruptArtifactError(f"{faults[0]}{more}")


def _print_sequence(prefix: Path, sequence: int, as_json: bool, decoder: "TextEncoder | None") -> None:
    from megatron_miniplm.indexed import IndexedCorpus
    from megatron_miniplm.reports.provenance import decoded_text, passages_of

    if not is_prefix(prefix):
        raise InputError(f"{prefix} is no prefix of a .bin/.idx pair: --sequence needs one")
    corpus = IndexedCorpus.open(prefix)
    try:
        passages = passages_of(corpus, sequence)
    except InputError as error:
        if decoder is None or not 0 <= sequence < len(corpus):
            raise InputError(f"{error}; or give --tokenizer-type and --tokenizer-model to decode its tokens") from None
        text = decoded_text(corpus, sequence, decoder)
        print(
            printable_json([{"source": None, "text": text}])
            if as_json
            else f"--- decoded from the tokens\n{printable(text)}"
        )
        return
    if as_json:
        print(printable_json([asdict(passage) for passage in passages]))
        return
    for passage in passages:
        labels = "".join(
            f", {name} {label}" for name in ("id", "domain") if (label := getattr(passage, name)) is not None
        )
        place = printable(f"{passage.source}, line {passage.line}{labels}", one_line=True)
        print(f"--- {place}: piece {passage.piece}, from byte {passage.start_byte}, {passage.num_tokens:,} tokens")
        print(passage.text)


def _require_artifact(path: Path) -> None:
    if is_prefix(path) or (path.is_dir() and (manifest_path(path).exists() or find_prefixes(path))):
        return
    if path.is_dir():
        raise InputError(f"{path} has neither a manifest.json nor a .bin/.idx pair: it holds no artifact")
    if path.suffix in (".bin", ".idx") and is_prefix(path.with_suffix("")):
        raise InputError(f"{path} is one half of a pair: give its prefix {path.with_suffix('')}")
    raise InputError(f"{path} is neither a directory nor the prefix of a .bin/.idx pair ({path}.idx does not exist)")


def _describe(path: Path) -> dict[str, Any]:
    """Everything that is printed, as one JSON object: from the files, and from the manifest where there is one."""
    if is_prefix(path):
        description = asdict(summarize_prefix(path))
    else:
        description = {"path": str(path), "prefixes": [_describe_or_error(prefix) for prefix in find_prefixes(path)]}
    if manifest_path(path).exists():
        manifest = load_manifest(path)
        recorded = {"kind": manifest.kind, "counts": manifest.counts, "fingerprint": manifest.fingerprint}
        description = recorded | description | {"settings": manifest.settings, "lineage": asdict(trace_lineage(path))}
    return description


def _describe_or_error(path: Path) -> dict[str, Any]:
    """One damaged prefix must not hide the others of its directory, nor the faults that were found."""
    try:
        return _describe(path)
    except MiniPLMError as error:
        return {"path": str(path), "error": str(error)}


def _print_text(path: Path, description: dict[str, Any]) -> None:
    print(path)
    if "error" not in description:
        rows = _prefix_rows(description) if is_prefix(path) else _directory_rows(description)
        rows["settings"] = ", ".join(f"{name}={value}" for name, value in description.get("settings", {}).items())
        for name, value in rows.items():
            if value:
                print(f"  {name:<11} {value}")
    for prefix in description.get("prefixes", ()):
        print(f"  {_prefix_line(prefix)}")
    if description.get("lineage", {}).get("parents"):
        print("lineage")
        for line in lineage_lines(path):
            print(f"  {line}")


def _prefix_rows(prefix: dict[str, Any]) -> dict[str, str]:
    return {
        "kind": prefix["kind"],
        "token dtype": prefix["token_dtype"],
        "sequences": f"{prefix['num_sequences']:,} ({prefix['num_empty_sequences']:,} empty)",
        "documents": f"{prefix['num_documents']:,}",
        "tokens": f"{prefix['num_tokens']:,}",
        "bytes": f"{prefix['bin_bytes']:,} (.bin), {prefix['idx_bytes']:,} (.idx)",
        "length": ", ".join(f"{name} {length:,}" for name, length in prefix["length_quantiles_tokens"].items()),
        "mean length": f"{prefix['mean_length_tokens']:,.1f}",
        "data": f"{prefix['data_path']} (a view of it)" if prefix["is_view"] else "",
        "fingerprint": prefix["fingerprint"],
    }


def _directory_rows(directory: dict[str, Any]) -> dict[str, str]:
    counts = {name.removeprefix("num_"): f"{count:,}" for name, count in directory.get("counts", {}).items()}
    return {"kind": directory.get("kind", ""), **counts, "fingerprint": directory.get("fingerprint", "")}


def _prefix_line(prefix: dict[str, Any]) -> str:
    name = Path(prefix["path"]).name
    if "error" in prefix:
        return f"{name}: {prefix['error']}"
    return (
        f"{name}: {prefix['kind']}, {prefix['num_sequences']:,} sequences, {prefix['num_tokens']:,} tokens, "
        f"{prefix['token_dtype']} [{prefix['fingerprint'][:SHORT_HEX]}]"
    )
