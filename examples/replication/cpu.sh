# Sizes of the study on two cores; sourced by run.sh.
# shellcheck shell=bash disable=SC2034
export OMP_NUM_THREADS=1
WORKERS=2
RANKS_SCORING=2
POOL_BYTES=14000000 HELDOUT_BYTES=60000 VOCAB_SIZE=2048
TEACHER_ITERATIONS=1000 REFERENCE_ITERATIONS=1000 ITERATIONS=500 DECAY_ITERATIONS=100 BATCH_SIZE=16
KD_MATCHED_ITERATIONS=173   # what KD affords of 500 for the same FLOPs; summarize.py prints what each method took
EXTRAPOLATE=(1e13 1e14)   # FLOPs

seq_length=128
LR=3e-3 MIN_LR=3e-4 WARMUP_ITERATIONS=20 EVAL_INTERVAL=60 SAVE_INTERVAL=250
precision=()
kd_matched=(--lr-wsd-decay-iters 35)
teacher=(--num-layers 6 --hidden-size 192 --ffn-hidden-size 512 --num-attention-heads 6 --eval-interval 500)
reference=(--num-layers 2 --hidden-size 64 --ffn-hidden-size 176 --num-attention-heads 2 --eval-interval 500)
small=(--num-layers 2 --hidden-size 64 --ffn-hidden-size 176 --num-attention-heads 2)
medium=(--num-layers 3 --hidden-size 96 --ffn-hidden-size 256 --num-attention-heads 3)
large=(--num-layers 4 --hidden-size 128 --ffn-hidden-size 352 --num-attention-heads 4)
