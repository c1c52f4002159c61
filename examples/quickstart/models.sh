# The models of the quickstart and how all of them are trained; sourced by run.sh and by pipeline.conf.
# shellcheck shell=bash disable=SC2034
seq_length=128
all_models=(
    --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear
    --attention-dropout 0 --hidden-dropout 0 --init-method-std 0.02
    --seq-length "$seq_length" --max-position-embeddings "$seq_length" --micro-batch-size 16 --global-batch-size 16
    --lr 3e-3 --min-lr 3e-4 --lr-warmup-iters 20 --lr-decay-style WSD --lr-wsd-decay-style linear
    --lr-wsd-decay-iters 64 --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0
    --full-validation --multiple-validation-sets --validation-set-names heldout --eval-iters 1
    --log-interval 50 --save-interval 200
)
teacher=(--num-layers 4 --hidden-size 128 --ffn-hidden-size 352 --num-attention-heads 4)
reference=(--num-layers 2 --hidden-size 64 --ffn-hidden-size 176 --num-attention-heads 2)
student=(--num-layers 3 --hidden-size 96 --ffn-hidden-size 256 --num-attention-heads 3)
