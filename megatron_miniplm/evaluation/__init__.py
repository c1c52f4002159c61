"""Did it help: held-out loss of students against the tokens they were trained on.

curves    TensorBoard logs of Megatron -> loss curves, their mean over seeds, and where one reaches another's loss
plot      the curves as a picture
"""
