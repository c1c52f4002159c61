# Sizes of the study for half an hour of one H100; sourced by run.sh. Estimated, and not run yet: see README.md.
# shellcheck shell=bash disable=SC2034
WORKERS=3   # models this small leave most of a GPU idle
RANKS_SCORING=1
POOL_BYTES=60000000 HELDOUT_BYTES=300000 VOCAB_SIZE=8192
TEACHER_ITERATIONS=600 REFERENCE_ITERATIONS=400 ITERATIONS=400 DECAY_ITERATIONS=80 BATCH_SIZE=64
KD_MATCHED_ITERATIONS=105   # what KD affords of 400 for the same FLOPs; summarize.py prints what each method took
EXTRAPOLATE=(1e16 1e17)   # FLOPs

seq_length=512
LR=1e-3 MIN_LR=1e-4 WARMUP_ITERATIONS=40 EVAL_INTERVAL=40 SAVE_INTERVAL=200
precision=(--bf16)
kd_matched=(--lr-wsd-decay-iters 21)
teacher=(--num-layers 16 --hidden-size 768 --ffn-hidden-size 2048 --num-attention-heads 12 --eval-interval 300)
reference=(--num-layers 4 --hidden-size 256 --ffn-hidden-size 704 --num-attention-heads 4 --eval-interval 200)
small=(--num-layers 4 --hidden-size 256 --ffn-hidden-size 704 --num-attention-heads 4)
medium=(--num-layers 6 --hidden-size 384 --ffn-hidden-size 1024 --num-attention-heads 6)
large=(--num-layers 8 --hidden-size 512 --ffn-hidden-size 1408 --num-attention-heads 8)
