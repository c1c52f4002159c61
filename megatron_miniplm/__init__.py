"""Pre-training distillation without a teacher in the training loop, as a Megatron-Core integration.

    text ──preprocess──► corpus .bin/.idx ──┬── score (teacher,   TP x PP x DP) ──► teacher scores ───┐
                             │              └── score (reference, TP x PP x DP) ──► reference scores ─┤
                             └─ reference split (a view) ─► train the reference model                 │
                                                                                             difference sampling
                                                                                                      │
      evaluation ◄── student training (megatron.training) ◄── patched dataset builder ◄── refined view, indices, weights

The stages, in the order of the flow: `corpus` and `indexed` make and read Megatron binaries, `scoring` gives every
sequence its negative log-likelihood, `selection` keeps what the teacher knows better than the reference, `training`
brings that into any Megatron run. No stage imports another.

They stand on `artifacts`, which stages hand to one another, `mcore`, the only package that knows Megatron's versions,
and `runtime`: processes, launchers, progress, safe printing.

Around them, imported by `commands` only: `evaluation` (did it help), `planning` (what it costs), `reports` (pages and
texts for people), `baselines` (text that the teacher writes, a proxy that scores), `slurm` (what the batch jobs have
done). `make lint` checks who imports whom.
"""

__version__ = "0.1.0"
