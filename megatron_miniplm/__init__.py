"""Pre-training distillation without a teacher in the training loop, as a Megatron-Core integration.

    text ──preprocess──► corpus .bin/.idx ──┬── score (teacher,   TP x PP x DP) ──► teacher scores ───┐
                             │              └── score (reference, TP x PP x DP) ──► reference scores ─┤
                             └─ reference split (a view) ─► train the reference model                 │
                                                                                             difference sampling
                                                                                                      │
      evaluation ◄── student training (megatron.training) ◄── patched dataset builder ◄── refined view, indices, weights

The packages stand in that order: `corpus` and `indexed` make and read Megatron binaries, `scoring` gives every sequence
its negative log-likelihood, `selection` keeps what the teacher knows better than the reference, `training` brings that
into any Megatron run, `generation` has the teacher write text, for a baseline. `artifacts` is what the stages hand to
one another; `mcore` is the only place that knows Megatron's versions. Stages never import one another. `pipeline` reads
what the batch jobs in slurm/ write down. `reports` has pages and texts for people, and `planning` estimates costs; only
commands import these two.
"""

__version__ = "0.1.0"
