"""What a SLURM pipeline has done and is doing, read from the book-keeping of its jobs, from squeue and from their logs.

    RUN_DIR/slurm/pipeline.tsv ┐
    RUN_DIR/slurm/done/        ├─ records ─┐
    RUN_DIR/slurm/attempts/    ┘           ├─ queue ─┐
    squeue ────────────────────────────────┘         ├─ report ─ text ──► `miniplm status`
    logs, checkpoints, scores ─────────── progress ──┘

The shell scripts in slurm/ write these files while they are read here, and nothing here writes any of them.
"""
