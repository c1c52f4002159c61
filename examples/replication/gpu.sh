# Sizes of the study for half an hour of one H100; sourced by run.sh. Estimated, and not run yet: see README.md.
# shellcheck shell=bash disable=SC2034
WORKERS=3   # models this small leave most of a GPU idle
RANKS_SCORING=1
POOL_BYTES=60000000 HELDOUT_BYTES=300000 VOCAB_SIZE=8192
TEACHER_ITERATIONS=600 REFERENCE_ITERATIONS=400 ITERATIONS=400 DECAY_ITERATIONS=80 BATCH_SIZE=64
KD_MATCHED_ITERATIONS=105   # what KD affords of 400 for the same FLOPs; summarize.py prints what each method took
EXTRAPOLATE=(1e16 1e17)   # FLOPs

seq_length=512
all_models=(
    --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear --bf16
    --attention-dropout 0 --hidden-dropout 0 --init-method-std 0.02
    --seq-length "$seq_length" --max-position-embeddings "$seq_length"
    --micro-batch-size "$BATCH_SIZE" --global-batch-size "$BATCH_SIZE"
    --lr 1e-3 --min-lr 1e-4 --lr-warmup-iters 40 --lr-decay-style WSD --lr-wsd-decay-style linear
    --lr-wsd-decay-iters "$DECAY_ITERATIONS" --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0
    --full-validation --multiple-validation-sets --validation-set-names "${KINDS[@]}" --eval-iters 1 --eval-interval 40
    --log-interval 40 --save-interval 200
)
kd_matched=(--lr-wsd-decay-iters 21)
teacher=(--num-layers 16 --hidden-size 768 --ffn-hidden-size 2048 --num-attention-heads 12 --eval-interval 300)
reference=(--num-layers 4 --hidden-size 256 --ffn-hidden-size 704 --num-attention-heads 4 --eval-interval 200)
small=(--num-layers 4 --hidden-size 256 --ffn-hidden-size 704 --num-attention-heads 4)
medium=(--num-layers 6 --hidden-size 384 --ffn-hidden-size 1024 --num-attention-heads 6)
large=(--num-layers 8 --hidden-size 512 --ffn-hidden-size 1408 --num-attention-heads 8)
