"""Students train with the genuine `megatron.training.pretrain`; here are its forward step, loss and datasets."""
