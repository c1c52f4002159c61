"""A selection in any Megatron run: students train with the genuine `megatron.training.pretrain`.

flags           ours, beside Megatron's                                                      argparse
plugin          the patches of Megatron, in one table                                        megatron, lazily
refinement      flags and selections -> the sequences of an epoch, their weights             numpy
document_index  sequences, phases -> the arrays by which `GPTDataset` finds its samples      pure
index_cache     these on disk, whole, by one process at a time; intact views                 megatron
dataset         `DifferenceSampledGPTDataset`, built by Megatron's builder                   megatron
step            loss weights, distillation and statistics around a script's own loss         megatron
consumed        which samples a step has read, from the flags alone                          megatron
distillation, teacher, vocab_parallel_kl    vanilla KD, the paper's baseline                 megatron
provider        flags -> the three datasets, by Megatron's builder                           megatron
student         our own `pretrain_gpt`: forward step, loss; dry_run                          megatron
"""
