"""Cross-family distillation: sequences of one tokenizer become the same sequences of another; `convert` is the verb."""
