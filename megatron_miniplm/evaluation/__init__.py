"""Did it help: held-out loss of students against the tokens they were trained on.

curves    TensorBoard logs of Megatron -> loss curves, their mean over seeds, and where one reaches another's loss
plot      the curves as a picture
scaling   losses by compute -> scaling laws with intervals, by `bootstrap`; `scaling_report` reads points and shows laws
held_out  held-out loss, perplexity and bits per byte from finished scores; `held_out_run` makes the scores of all
          checkpoints and prints the table
harness   downstream tasks by lm_eval, on a checkpoint that all ranks hold together
analysis  what selection did to the data: lengths, vocabulary, diversity, domains, copies
"""
