"""What users read while a program scores: its own lines, and which Megatron it found."""

from megatron_runs import TinyRun, run, score_command

from megatron_miniplm.mcore.versions import find_megatron


def test_scoring_prints_a_screen_at_most(tiny: TinyRun) -> None:
    """Megatron's own 800 lines are hidden."""
    command = score_command(tiny.checkpoint, tiny.prefixes[1:], tiny.directory / "quiet", "--use-checkpoint-args")
    process = run(command)
    assert process.returncode == 0, process.stderr[-4000:]
    lines = [*process.stdout.splitlines(), *process.stderr.splitlines()]
    assert len(lines) < 15, lines
    (found,) = (line for line in lines if line.startswith("Megatron-Core "))
    megatron = find_megatron()
    assert found.startswith(f"Megatron-Core {megatron.version} in {megatron.location}")
    assert "MINIPLM_VERBOSE=1" in found
    assert lines[len(process.stdout.splitlines()) - 1].startswith(f"{tiny.directory}/quiet: 21 sequences, ")
