# Training and scoring as the examples do them: every step keeps what it finished, so that a script can be started again.
# Sourced with RUN, TOKENIZER (flags), HELDOUT (prefixes), all_models (flags) and seq_length set.
# shellcheck shell=bash disable=SC2154

mkdir -p "$RUN/logs"
SECONDS=0
say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }

# train NAME ITERATIONS SEED DATA_ARGS <more flags>: a checkpoint and TensorBoard logs in $RUN/NAME
train() {
    local name=$1 iterations=$2 seed=$3 data=$4; shift 4
    if [ "$(cat "$RUN/$name/checkpoint/latest_checkpointed_iteration.txt" 2>/dev/null)" = "$iterations" ]; then
        echo "$name: already trained"; return
    fi
    # shellcheck disable=SC2046  # data_args.txt is a list of words: weights and prefixes
    python -m megatron_miniplm.pretrain_gpt "${TOKENIZER[@]}" "${all_models[@]}" "$@" \
        --train-iters "$iterations" --seed "$seed" \
        --train-data-path $(cat "$data") --valid-data-path "${HELDOUT[@]}" \
        --save "$RUN/$name/checkpoint" --load "$RUN/$name/checkpoint" \
        --tensorboard-dir "$RUN/$name/tensorboard" >> "$RUN/logs/$name.log" 2>&1 \
        || { tail -n 30 "$RUN/logs/$name.log"; return 1; }
    echo "$name: trained, held-out: $(grep -o 'lm loss value: [0-9.E+]*' "$RUN/logs/$name.log" | tail -n ${#HELDOUT[@]} | paste -sd ' ')"
}

# score NAME <layout>: NLL and token count of every sequence of the pool, in $RUN/scores/NAME
score() {
    local name=$1; shift
    [ -s "$RUN/scores/$name/manifest.json" ] || torchrun --nproc-per-node "$RANKS_SCORING" --rdzv-backend c10d \
        --rdzv-endpoint 127.0.0.1:0 --no-python miniplm score-corpus \
        --load "$RUN/$name/checkpoint" --use-checkpoint-args "${TOKENIZER[@]}" "$@" \
        --seq-length "$seq_length" --micro-batch-size 16 \
        --corpus "$RUN/split/pool" --scores "$RUN/scores/$name" --block-sequences 2048 \
        >> "$RUN/logs/score_$name.log" 2>&1 || { tail -n 30 "$RUN/logs/score_$name.log"; return 1; }
    miniplm scores "$RUN/scores/$name"
}

# both: wait for all that was started with &; fails if one of them failed
both() { local failed=0 job; for job in $(jobs -p); do wait "$job" || failed=1; done; return $failed; }
