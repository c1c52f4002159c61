#!/usr/bin/env bash
# The paper's comparisons at a size that one machine affords: seven ways to spend a student's training, three seeds, and three
# student sizes for the scaling curve, all on the same number of tokens with the same schedule.
#
#   examples/replication/run.sh cpu [OUTPUT_DIR]     an hour or two on two cores; default: runs/replication-cpu
#   examples/replication/run.sh gpu [OUTPUT_DIR]     sized for half an hour of one H100
#   SEEDS="1 2 3 4 5" examples/replication/run.sh cpu
#
# Ends with $OUTPUT_DIR/results/README.md: tables, curves, intervals. Started again, it goes on where it was.
set -euo pipefail

SCALE=${1:?usage: examples/replication/run.sh cpu|gpu [OUTPUT_DIR]}
RUN=${2:-runs/replication-$SCALE}
SEEDS=${SEEDS:-1 2 3}
TOKENIZER=(--tokenizer-type HuggingFaceTokenizer --tokenizer-model "$RUN/tokenizer")
KINDS=(prose code data)    # one held-out set of each; the loss of a run is their mean
HELDOUT=("${KINDS[@]/#/"$RUN/data/heldout_"}")
HELDOUT=("${HELDOUT[@]/%/_text_document}")
# shellcheck source=examples/replication/cpu.sh
source "examples/replication/$SCALE.sh"
# How all models are trained, apart from their sizes.
all_models=(
    --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear
    --attention-dropout 0 --hidden-dropout 0 --init-method-std 0.02
    --seq-length "$seq_length" --max-position-embeddings "$seq_length"
    --micro-batch-size "$BATCH_SIZE" --global-batch-size "$BATCH_SIZE" "${precision[@]}"
    --lr "$LR" --min-lr "$MIN_LR" --lr-warmup-iters "$WARMUP_ITERATIONS" --lr-decay-style WSD
    --lr-wsd-decay-style linear --lr-wsd-decay-iters "$DECAY_ITERATIONS"
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0
    --full-validation --multiple-validation-sets --validation-set-names "${KINDS[@]}" --eval-iters 1
    --eval-interval "$EVAL_INTERVAL" --log-interval "$EVAL_INTERVAL" --save-interval "$SAVE_INTERVAL"
)
# shellcheck source=examples/steps.sh
source examples/steps.sh

# queue COMMAND...: in the background, at most WORKERS at a time; drain: wait for all
failed=0
queue() {
    if (($(jobs -rp | wc -l) >= WORKERS)); then wait -n || failed=1; fi
    "$@" &
}
drain() { both || failed=1; ((failed == 0)); }

say "corpus, tokenizer, Megatron binaries, split"
[ -s "$RUN/text/pool.jsonl" ] || python examples/quickstart/build_corpus.py --output "$RUN/text" \
    --pool-bytes "$POOL_BYTES" --heldout-bytes "$HELDOUT_BYTES" --heldout-kinds "${KINDS[@]}"
miniplm train-tokenizer --type bpe --vocab-size "$VOCAB_SIZE" --input "$RUN/text/pool.jsonl" --max-bytes 4000000 \
    --output "$RUN/tokenizer"
for part in pool "${KINDS[@]/#/heldout_}"; do
    miniplm preprocess-data --input "$RUN/text/$part.jsonl" --output-prefix "$RUN/data/$part" \
        "${TOKENIZER[@]}" --append-eod --domain-key kind
done
miniplm split-reference --input "$RUN/data/pool_text_document" --reference-fraction 0.35 --output "$RUN/split"

say "teacher and reference model (logs in $RUN/logs)"
queue train teacher "$TEACHER_ITERATIONS" 1 "$RUN/split/reference/data_args.txt" "${teacher[@]}"
queue train reference "$REFERENCE_ITERATIONS" 1 "$RUN/split/reference/data_args.txt" "${reference[@]}"
drain

say "scores of the pool"
score teacher
score reference

say "four data sets: a random half is the pool itself, the others are halves that a rule ranks highest"
select_by() {
    miniplm difference-sampling --teacher-scores "$RUN/scores/teacher" --reference-scores "$RUN/scores/reference" \
        --ratio 0.5 --output "$RUN/selections/$1" "${@:2}"
}
select_by refined                                     # the teacher knows better than the reference: MiniPLM
select_by teacher-perplexity --rank-by=-teacher   # lowest perplexity of the teacher
select_by reference-perplexity --rank-by=-reference

say "students"
POOL=$RUN/split/pool/data_args.txt
REFINED=$RUN/selections/refined/data_args.txt
KD=(--miniplm-kd-teacher "$RUN/teacher/checkpoint" --miniplm-kd-alpha 0.5)
for seed in $SEEDS; do   # long ones first, so that the workers end together
    queue train "medium-refined-kd-$seed" "$ITERATIONS" "$seed" "$REFINED" "${medium[@]}" "${KD[@]}"
    queue train "medium-kd-$seed" "$ITERATIONS" "$seed" "$POOL" "${medium[@]}" "${KD[@]}"
    queue train "large-conventional-$seed" "$ITERATIONS" "$seed" "$POOL" "${large[@]}"
    queue train "large-refined-$seed" "$ITERATIONS" "$seed" "$REFINED" "${large[@]}"
    queue train "medium-kd-matched-$seed" "$KD_MATCHED_ITERATIONS" "$seed" "$POOL" "${medium[@]}" "${KD[@]}" "${kd_matched[@]}"
    queue train "medium-conventional-$seed" "$ITERATIONS" "$seed" "$POOL" "${medium[@]}"
    queue train "medium-refined-$seed" "$ITERATIONS" "$seed" "$REFINED" "${medium[@]}"
    for rule in teacher-perplexity reference-perplexity; do
        queue train "medium-$rule-$seed" "$ITERATIONS" "$seed" "$RUN/selections/$rule/data_args.txt" "${medium[@]}"
    done
    queue train "small-conventional-$seed" "$ITERATIONS" "$seed" "$POOL" "${small[@]}"
    queue train "small-refined-$seed" "$ITERATIONS" "$seed" "$REFINED" "${small[@]}"
done
drain

say "results"
RESULTS=$RUN/results
# shellcheck disable=SC2086  # one word a seed
python examples/replication/summarize.py --run "$RUN" --seeds $SEEDS --kinds "${KINDS[@]}" --seq-length "$seq_length" \
    --decay-tokens $((DECAY_ITERATIONS * BATCH_SIZE * seq_length)) --output "$RESULTS"
for size in small medium large; do
    miniplm fit-scaling-curve --points "$RESULTS/points-$size.json" --extrapolate-to "${EXTRAPOLATE[@]}" \
        --output "$RESULTS/scaling-$size" --json "$RESULTS/scaling-$size.json" > "$RESULTS/scaling-$size.txt"
done
selection() { echo --data "$1" "$RUN/selections/$1"; }
# shellcheck disable=SC2046  # a name and a directory
miniplm analyze-data --data pool "$RUN/split/pool" $(selection refined) $(selection teacher-perplexity) \
    $(selection reference-perplexity) --json "$RESULTS/data.json" > "$RESULTS/data.txt"

# section TITLE FILE: what a tool has printed, as it is
# shellcheck disable=SC2016  # backquotes of Markdown
section() { printf '\n## %s\n\n```\n%s\n```\n' "$1" "$(cat "$2")"; }
# shellcheck disable=SC2016
{
    printf '# Results of `examples/replication/run.sh %s`\n\n%s, %s, %s cores%s.\n\n' "$SCALE" "$(date +%F)" \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc --all)" \
        "$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sed 's/^/, /' || true)"
    cat "$RESULTS/tables.md"
    for size in small medium large; do
        section "Scaling curve of the $size student" "$RESULTS/scaling-$size.txt"
        printf '\n![scaling curve of the %s student](scaling-%s/scaling.png)\n' "$size" "$size"
    done
    section "What the selections are like" "$RESULTS/data.txt"
} > "$RESULTS/README.md"
say "done: $RESULTS/README.md"
