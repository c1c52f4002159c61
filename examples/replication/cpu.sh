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
all_models=(
    --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear
    --attention-dropout 0 --hidden-dropout 0 --init-method-std 0.02
    --seq-length "$seq_length" --max-position-embeddings "$seq_length" --micro-batch-size 16 --global-batch-size "$BATCH_SIZE"
    --lr 3e-3 --min-lr 3e-4 --lr-warmup-iters 20 --lr-decay-style WSD --lr-wsd-decay-style linear
    --lr-wsd-decay-iters "$DECAY_ITERATIONS" --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0
    --full-validation --multiple-validation-sets --validation-set-names "${KINDS[@]}" --eval-iters 1 --eval-interval 60
    --log-interval 50 --save-interval 250
)
kd_matched=(--lr-wsd-decay-iters 35)
teacher=(--num-layers 6 --hidden-size 192 --ffn-hidden-size 512 --num-attention-heads 6 --eval-interval 500)
reference=(--num-layers 2 --hidden-size 64 --ffn-hidden-size 176 --num-attention-heads 2 --eval-interval 500)
small=(--num-layers 2 --hidden-size 64 --ffn-hidden-size 176 --num-attention-heads 2)
medium=(--num-layers 3 --hidden-size 96 --ffn-hidden-size 256 --num-attention-heads 3)
large=(--num-layers 4 --hidden-size 128 --ffn-hidden-size 352 --num-attention-heads 4)
