"""The sections of benchmarks/preprocess.py: what is run, and the rows and targets that come of it."""

import gzip
import shutil
from collections.abc import Callable, Sequence
from itertools import batched
from pathlib import Path

import pyarrow
import pyarrow.parquet
from bench import Bench, Subject, Text, Timing, counts, difference, miniplm, read_texts
from report import Section, Target

CHUNK_LENGTH = 1025
ROWS_A_GROUP = 1000  # of Parquet, as Hugging Face's hub writes text
GZIP_LEVEL = 6  # the gzip command's
GROWTH_FACTOR = 10


def time_documents(bench: Bench) -> Section:
    """Ours against the others: cost and bytes."""
    ours = _documents(bench)
    rivals = {
        "recipe": Subject(
            name="documents-recipe",
            label="Megatron's recipe",
            command=bench.script("megatron_recipe.py"),
            repeats=bench.recipe_repeats,
        ),
        "tokenizers": Subject(
            name="documents-tokenizers",
            label="HF tokenizers, encode_batch_fast",
            command=bench.script("tokenizers_recipe.py"),
            repeats=bench.repeats,
        ),
    }
    timing = bench.time(ours, bench.text.paths)
    rows = [{"command": ours.label, **timing.columns(bench.text), **_ratios(timing, timing), ".bin, .idx": "ours"}]
    targets, faults = [], []
    for rival in (rivals[name] for name in bench.rivals):
        theirs = bench.time(rival, bench.text.paths)
        found = _differences(timing, theirs)
        faults += found
        verdict = "DIFFERENT" if found else "identical"
        rows.append(
            {
                "command": rival.label,
                **theirs.columns(bench.text),
                **_ratios(theirs, timing),
                ".bin, .idx": verdict,
            }
        )
        if rival.name == "documents-recipe":
            targets = [
                Target(figure="wall time, recipe / ours", value=_wall_ratio(theirs, timing), unit="x", at_least=25),
                Target(figure="CPU time, recipe / ours", value=_cpu_ratio(theirs, timing), unit="x", at_least=40),
            ]
    notes = [f"Not the same bytes: {fault}" for fault in faults]
    return Section(title="Documents", rows=rows, targets=targets, notes=notes, faults=faults)


def _documents(bench: Bench) -> Subject:
    return Subject(
        name="documents-ours", label="miniplm preprocess-data", command=bench.preprocess(), repeats=bench.repeats
    )


def _ratios(theirs: Timing, ours: Timing) -> dict[str, str]:
    net, ours_net = theirs.net_wall_seconds, ours.net_wall_seconds
    return {
        "wall / ours": f"{_wall_ratio(theirs, ours):.1f}",
        "both without start-up": "-" if net is None or ours_net is None else f"{net / ours_net:.1f}",
        "CPU / ours": f"{_cpu_ratio(theirs, ours):.1f}",
    }


def _wall_ratio(theirs: Timing, ours: Timing) -> float:
    return theirs.cost.wall_seconds / ours.cost.wall_seconds


def _cpu_ratio(theirs: Timing, ours: Timing) -> float:
    return theirs.cost.cpu_seconds / ours.cost.cpu_seconds


def _differences(ours: Timing, theirs: Timing) -> list[str]:
    names = [f"corpus_text_document.{suffix}" for suffix in ("bin", "idx")]
    found = (difference(ours.output_dir / name, theirs.output_dir / name) for name in names)
    return [each for each in found if each is not None]


def time_chunks(bench: Bench) -> Section:
    """Chunk mode: speed and fill."""
    subject = Subject(
        name="chunks",
        label=f"chunks of {CHUNK_LENGTH}",
        command=bench.preprocess("--sequence", "chunk", "--chunk-length", str(CHUNK_LENGTH)),
        repeats=bench.repeats,
    )
    timing = bench.time(subject, bench.text.paths)
    found = counts(timing.output_dir / "corpus_text_chunk")
    fill = found["num_tokens"] / (found["num_sequences"] * CHUNK_LENGTH)
    row = {"command": subject.label, **timing.columns(bench.text)}
    row |= {"chunks": f"{found['num_sequences']:,}", "fill": f"{fill:.2%}"}
    speed = bench.text.text_bytes / timing.cost.wall_seconds / 1e6
    return Section(
        title="Chunks",
        rows=[row],
        targets=[Target(figure="text, start-up included", value=speed, unit="MB/s", at_least=40)],
        notes=["The sentence model is trained on the first texts in every run; on one document that is little."],
    )


def time_growth(bench: Bench) -> Section:
    """Ten times the text, twice."""
    small = bench.text.head(bench.run_dir / "tenth.jsonl", bench.text.jsonl_bytes // GROWTH_FACTOR)
    rows, targets = [], []
    for text in (small, bench.text, bench.text.repeated(GROWTH_FACTOR)):
        megabytes = f"{text.jsonl_bytes / 1e6:,.0f} MB"
        timing = bench.time(_documents(bench), text.paths, name=f"growth, {megabytes}")
        cpu = timing.cost.cpu_seconds / text.text_bytes * 1e9
        rows.append({"JSONL": megabytes, **timing.columns(text), "CPU s / GB of text": f"{cpu:.1f}"})
        targets.append(
            Target(figure=f"peak memory, {megabytes}", value=timing.cost.peak_bytes / 1e9, unit="GB", at_most=1.5)
        )
        shutil.rmtree(timing.output_dir)
    return Section(
        title="Growth of the input",
        rows=rows,
        targets=targets,
        notes=[
            f"The largest is the middle one given {GROWTH_FACTOR} times: it has no new words, which favours any cache "
            "of words, so it shows memory and constancy more than speed."
        ],
    )


def time_formats(bench: Bench) -> Section:
    """The same documents in other files."""
    files = {"jsonl": bench.text}
    for suffix, write in (("jsonl.zst", _write_zst), ("jsonl.gz", _write_gz), ("parquet", _write_parquet)):
        path = bench.run_dir / f"text.{suffix}"
        write(bench.text.path, path)
        files[suffix] = bench.text.stored_as(path)
    rows, targets = [], []
    plain_seconds = 0.0
    for suffix, text in files.items():
        timing = bench.time(_documents(bench), text.paths, name=f"formats, {suffix}")
        plain_seconds = plain_seconds or timing.cost.wall_seconds
        ratio = timing.cost.wall_seconds / plain_seconds
        shutil.rmtree(timing.output_dir)
        file_size = f"{text.path.stat().st_size / 1e6:,.0f}"
        rows.append(
            {"input": f".{suffix}", "file MB": file_size, **timing.columns(text), "wall / .jsonl": f"{ratio:.2f}"}
        )
        if suffix != "jsonl":
            targets.append(Target(figure=f"wall time, .{suffix} / .jsonl", value=ratio, unit="x", at_most=1.5))
    notes = [f"gzip level {GZIP_LEVEL}; Parquet with zstd, {ROWS_A_GROUP:,} rows a group."]
    return Section(title="File formats", rows=rows, targets=targets, notes=notes)


def _write_gz(source: Path, target: Path) -> None:
    with open(source, "rb") as lines, gzip.open(target, "wb", compresslevel=GZIP_LEVEL) as stream:
        shutil.copyfileobj(lines, stream, 1 << 20)


def _write_zst(source: Path, target: Path) -> None:
    with open(source, "rb") as lines, pyarrow.CompressedOutputStream(str(target), "zstd") as stream:
        shutil.copyfileobj(lines, stream, 1 << 20)


def _write_parquet(source: Path, target: Path) -> None:
    schema = pyarrow.schema([("text", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for texts in batched(read_texts(source), ROWS_A_GROUP):
            writer.write_table(pyarrow.table({"text": texts}, schema))


def time_retokenization(bench: Bench) -> Section:
    """The document corpus into a second tokenizer, from its tokens and from the text behind it."""
    prefix = bench.corpus(bench.text, "corpus")
    small_prefix = bench.corpus(bench.one_document, "corpus-startup")
    rows, targets = [], []
    for origin in ("tokens", "text"):
        subject = Subject(
            name=f"retokenization-{origin}",
            label=f"convert-tokenization --from {origin}",
            command=_convert(bench, origin),
            repeats=bench.repeats,
        )
        timing = bench.time(subject, [prefix], startup=[small_prefix])
        rows.append({"command": subject.label, **timing.columns(bench.text)})
        speed = bench.text.text_bytes / timing.cost.wall_seconds / 1e6
        targets.append(Target(figure=f"text, --from {origin}", value=speed, unit="MB/s", at_least=20))
    return Section(title="Retokenization", rows=rows, targets=targets)


def _convert(bench: Bench, origin: str) -> Callable[[Sequence[Path], Path], list[str]]:
    def command(inputs: Sequence[Path], directory: Path) -> list[str]:
        (prefix,) = inputs
        argv = ["--input", str(prefix), "--output", str(directory / "converted"), "--from", origin]
        argv += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(bench.second_tokenizer_dir())]
        return [miniplm(), "convert-tokenization", *argv, *bench.workers_flag]

    return command


def time_inspection(bench: Bench) -> Section:
    """`miniplm inspect --check` of the document corpus."""

    def command(inputs: Sequence[Path], directory: Path) -> list[str]:
        (prefix,) = inputs
        return [miniplm(), "inspect", str(prefix), "--check"]

    prefix = bench.corpus(bench.text, "corpus")
    small_prefix = bench.corpus(bench.one_document, "corpus-startup")
    subject = Subject(name="inspection", label="miniplm inspect --check", command=command, repeats=bench.repeats)
    timing = bench.time(subject, [prefix], startup=[small_prefix])
    bin_bytes = prefix.with_suffix(".bin").stat().st_size
    columns = timing.columns(Text(paths=(), text_bytes=bin_bytes, jsonl_bytes=bin_bytes))
    rate, net = timing.cost.wall_seconds / bin_bytes * 1e9, timing.net_wall_seconds
    row = {
        "command": subject.label,
        ".bin MB": f"{bin_bytes / 1e6:,.1f}",
        **{name: columns[name] for name in ("wall s", "start-up s", "CPU s", "peak MB")},
        "s / GB of .bin": f"{rate:.2f}",
        "without start-up": "-" if net is None else f"{net / bin_bytes * 1e9:.2f}",
    }
    return Section(title="Inspection", rows=[row])


SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "documents": time_documents,
    "chunks": time_chunks,
    "growth": time_growth,
    "formats": time_formats,
    "retokenization": time_retokenization,
    "inspection": time_inspection,
}
