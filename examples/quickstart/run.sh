#!/usr/bin/env bash
# The whole road on a laptop, with public commands only: text -> tokenizer -> Megatron binaries -> reference and teacher ->
# scores -> difference sampling -> two students, one on the refined half of the pool and one on the pool as it is.
#
# Every stage is the real one: Megatron-Core, tensor parallelism, megatron.training.pretrain. Without a GPU it runs on the
# CPU. Every stage keeps what it finished, so the script can be killed and started again.
#
#   examples/quickstart/run.sh [OUTPUT_DIR]        default: runs/quickstart
#   SEEDS="1 2 3" examples/quickstart/run.sh       students with several seeds; the table shows their mean
set -euo pipefail

RUN=${1:-runs/quickstart}
SEEDS=${SEEDS:-1}
export OMP_NUM_THREADS=1   # two single-threaded processes side by side use two cores better than one with two threads
TOKENIZER=(--tokenizer-type HuggingFaceTokenizer --tokenizer-model "$RUN/tokenizer")
HELDOUT=("$RUN/data/heldout_text_document")
RANKS_SCORING=2
# shellcheck source=examples/quickstart/models.sh
source examples/quickstart/models.sh
# shellcheck source=examples/steps.sh
source examples/steps.sh   # train and score: the Megatron commands

# ---------------------------------------------------------------- data
say "corpus: text of this Python installation, and held-out text that no stage below sees"
[ -s "$RUN/text/pool.jsonl" ] || python examples/quickstart/build_corpus.py --output "$RUN/text"

say "tokenizer and Megatron binaries"
miniplm train-tokenizer --type bpe --vocab-size 2048 --input "$RUN/text/pool.jsonl" --max-bytes 4000000 \
    --output "$RUN/tokenizer"
for part in pool heldout; do
    miniplm preprocess-data --input "$RUN/text/$part.jsonl" --output-prefix "$RUN/data/$part" \
        "${TOKENIZER[@]}" --append-eod --workers 2
done

say "split: one part trains teacher and reference, the other is the pool that they score"
miniplm split-reference --input "$RUN/data/pool_text_document" --reference-fraction 0.35 --output "$RUN/split"

# ---------------------------------------------------------------- training, with Megatron's own loop
# Megatron evaluates after the last step; --eval-interval there would do it twice.
say "teacher and reference model (logs in $RUN/logs)"
train teacher 320 1 "$RUN/split/reference/data_args.txt" "${teacher[@]}" &
train reference 240 1 "$RUN/split/reference/data_args.txt" "${reference[@]}" &
both

# ---------------------------------------------------------------- scores
say "scores of the teacher (tensor parallel, 2 ranks)"
score teacher --tensor-model-parallel-size 2
say "scores of the reference (data parallel, 2 ranks)"
score reference

# ---------------------------------------------------------------- difference sampling
say "difference sampling: the half of the pool that the teacher knows best, compared with the reference"
miniplm difference-sampling --teacher-scores "$RUN/scores/teacher" --reference-scores "$RUN/scores/reference" \
    --ratio 0.5 --output "$RUN/refined"
miniplm report "$RUN/refined" --output "$RUN/refined/report"

# ---------------------------------------------------------------- students
say "students: same model, seed, schedule and number of tokens"
for seed in $SEEDS; do
    train "student-refined-$seed" 320 "$seed" "$RUN/refined/data_args.txt" "${student[@]}" --eval-interval 90 &
    train "student-conventional-$seed" 320 "$seed" "$RUN/split/pool/data_args.txt" "${student[@]}" --eval-interval 90 &
    both
done

say "comparison"
runs() { for seed in $SEEDS; do printf ' %s' "$RUN/student-$1-$seed/tensorboard"; done; }
# shellcheck disable=SC2046  # one word a seed
miniplm compare-runs --tokens-per-sample $seq_length --output "$RUN/comparison" \
    --run conventional $(runs conventional) --run refined $(runs refined)
cat <<EOF

refined data      $RUN/refined/data_args.txt   (miniplm inspect $RUN/refined)
what was kept     $RUN/refined/report/report.html
checkpoints       $RUN/student-*/checkpoint
curves            $RUN/comparison/curves.png   (tensorboard --logdir $RUN)
EOF
say "done"
