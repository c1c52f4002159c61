# The pipeline as stages: what a configuration means. Sourced by submit_pipeline.sh, which submits the stages, and by job.sh,
# which runs one. A stage is a function of `tool`, `megatron` and `train` calls; who sources this says what these do.
# shellcheck shell=bash disable=SC2034,SC2178  # variables are read by name, and by those who source this

# What a configuration may set, with the defaults; docs/slurm.md explains them.
default_configuration() {
    RUN_DIR=${RUN_DIR:-}          # everything is made here; on the shared file system
    TEXT=()                       # files, directories, globs
    HELDOUT_TEXT=()               # none: no validation set of its own
    NUM_SHARDS=1                  # tasks of the array that preprocesses
    SHARD_BY=bytes                # or files: a file that is fixed changes only its own shard
    MERGE=yes                     # no: shards stay as they are, nothing is copied
    TOKENIZER_TRAINING=()         # flags of train-tokenizer; none: TOKENIZER names one
    TOKENIZER=()                  # Megatron's tokenizer flags
    PREPROCESSING=()              # flags of preprocess-data
    CORPUS=()                     # prefixes of a corpus that exists: instead of TEXT
    HELDOUT=()                    # prefixes of a validation corpus that exists
    SPLIT=()                      # flags of split-reference; none: no part is put aside
    TRAINING=()                   # Megatron flags of all models that are trained
    TEACHER_TRAINING=()           # of the teacher; none: TEACHER_MODEL names one
    TEACHER_MODEL=()              # --load-hf DIR, or --load CKPT --use-checkpoint-args
    REFERENCE_TRAINING=()
    REFERENCE_MODEL=()
    SCORING=()                    # flags of score-corpus
    SCORING_TEACHER=()            # more for one of the two, such as its layout
    SCORING_REFERENCE=()
    SELECTION=()                  # flags of difference-sampling
    MATERIALIZE=no                # yes: students read copies, not views
    STUDENTS=()                   # names, [a-z0-9_]; each has STUDENT_<name>=(flags) and may have DATA_<name>
    SEEDS=(1)                     # one run of every student a seed
    TRAINING_PROGRAM=(-m megatron_miniplm.pretrain_gpt)
    EVALUATION=()                 # flags of compare-runs
    EVALUATION_LM=()              # flags of evaluate-lm, for the last checkpoint of every student; none: it is not run
    EVALUATION_TASKS=()           # flags of evaluate-tasks, likewise
    # Sizes of jobs. Each of these names, and ACCOUNT, PARTITION, QOS, CONSTRAINT, CPUS, GPU_FLAGS and SBATCH_FLAGS of env.sh,
    # can be set for TRAINING, SCORING or TOOLS, or for one stage (with _ for -): PARTITION_TRAINING, NODES_score_teacher.
    NODES_TRAINING=1 TIME_TRAINING=1-00:00:00 RANKS_TRAINING=$RANKS_PER_NODE   # RANKS: processes of a node
    NODES_SCORING=1 TIME_SCORING=1-00:00:00 RANKS_SCORING=$RANKS_PER_NODE
    JOBS_SCORING=1                # jobs of an array that share one store: small ones start sooner and lose less
    TIME_TOOLS=12:00:00
}
CONFIGURATION_NAMES='RUN_DIR|TEXT|HELDOUT_TEXT|NUM_SHARDS|SHARD_BY|MERGE|TOKENIZER_TRAINING|TOKENIZER|PREPROCESSING|CORPUS|HELDOUT'
CONFIGURATION_NAMES+='|SPLIT|TRAINING|(TEACHER|REFERENCE)_(TRAINING|MODEL)|SCORING(_TEACHER|_REFERENCE)?|SELECTION|MATERIALIZE'
CONFIGURATION_NAMES+='|STUDENTS|(STUDENT|DATA)_[A-Za-z0-9_]+|SEEDS|TRAINING_PROGRAM|EVALUATION(_LM|_TASKS)?'
OVERRIDES='(NODES|RANKS|TIME|JOBS|CPUS|ACCOUNT|PARTITION|QOS|CONSTRAINT|GPU_FLAGS|SBATCH_FLAGS)_[A-Za-z0-9_]+'
CONFIGURATION_NAMES+="|$OVERRIDES"

refuse() { echo "$*" >&2; exit 2; }

# publish FILE TEXT: whole or not at all. The temporary name cannot be guessed, and the file is as readable as any other.
publish() {
    local temporary
    temporary=$(mktemp "$1.XXXXXXXXXX.tmp") || return
    if chmod "$(printf %o $((0666 & ~0$(umask))))" "$temporary" && printf '%s\n' "$2" > "$temporary" &&
        mv "$temporary" "$1"; then
        return
    fi
    rm -f "$temporary"
    return 1
}

# load_configuration FILE: read it and refuse what cannot work, before anything is submitted
load_configuration() {
    local file=$1 before name
    [ -r "$file" ] || refuse "$file cannot be read: give a configuration, such as examples/quickstart/pipeline.conf"
    default_configuration
    OVERRIDDEN=()
    before=$(compgen -v)
    # shellcheck disable=SC1090
    source "$file" || refuse "$file: bash could not read it"
    while read -r name; do
        [[ $name =~ ^($CONFIGURATION_NAMES)$ || ! $name =~ ^[A-Z] || $name =~ ^(BASH|PIPESTATUS|OLDPWD|FUNCNAME) ]] ||
            refuse "$file: $name is not known: expected one of the names in slurm/pipeline.sh (your own in lower case)"
        [[ ! $name =~ ^$OVERRIDES$ ]] || OVERRIDDEN+=("$name")
    done < <(comm -13 <(sort <<< "$before") <(compgen -v | sort))
    [ -n "$RUN_DIR" ] || refuse "$file: RUN_DIR is not set: name the directory that everything goes to"
    RUN_DIR=$(realpath -m "$RUN_DIR"; printf x) RUN_DIR=${RUN_DIR%$'\n'x}
    # data_args.txt is split at blanks, sbatch replaces %j in --output and drops backslashes, squeue's answer is split at |.
    [[ $RUN_DIR != *[[:space:][:cntrl:]%\\\|]* ]] ||
        refuse "$file: RUN_DIR=$(printf %q "$RUN_DIR") has a blank, control character, %, \\ or | in its path: choose another"
    ((${#TEXT[@]} || ${#CORPUS[@]})) || refuse "$file: neither TEXT nor CORPUS is set: nothing to work on"
    ((${#TEXT[@]} == 0 || ${#CORPUS[@]} == 0)) || refuse "$file: TEXT and CORPUS are both set: give one"
    ((${#TOKENIZER[@]} || ${#TOKENIZER_TRAINING[@]})) || refuse "$file: neither TOKENIZER nor TOKENIZER_TRAINING is set"
    for name in TEACHER REFERENCE; do
        declare -n training=${name}_TRAINING model=${name}_MODEL
        ((${#training[@]} || ${#model[@]})) || refuse "$file: neither ${name}_MODEL nor ${name}_TRAINING is set"
    done
    ((${#REFERENCE_TRAINING[@]} == 0 || ${#SPLIT[@]})) ||
        refuse "$file: REFERENCE_TRAINING needs SPLIT, such as SPLIT=(--reference-fraction 0.05): what it trains on must not be scored"
    ((${#EVALUATION_LM[@]} == 0 || ${#HELDOUT[@]} || ${#HELDOUT_TEXT[@]})) || [[ " ${EVALUATION_LM[*]}" == *" --corpus"* ]] ||
        refuse "$file: EVALUATION_LM has nothing to evaluate on: set HELDOUT_TEXT or HELDOUT, or give it --corpus PREFIX"
    for name in "${STUDENTS[@]}"; do
        [[ $name =~ ^[a-z0-9_]+$ ]] || refuse "$file: student $name: a name has lower case letters, digits and _ only"
        [[ -v STUDENT_$name ]] || refuse "$file: student $name has no STUDENT_$name=(Megatron flags)"
        data_of "$name" > /dev/null
    done
}

# data_of STUDENT: what it trains on
data_of() {
    local name=DATA_$1
    case ${!name:-refined} in
        refined | selection | pool) echo "${!name:-refined}" ;;
        *) refuse "$name=${!name}: expected refined (views), selection (--miniplm-selection) or pool (everything)" ;;
    esac
}

# ---------------------------------------------------------------- stages
# define_stages: the arrays STAGES, and KIND, TASKS, AFTER, OUTPUT, TOTAL by stage
define_stages() {
    STAGES=()
    declare -gA KIND=() TASKS=() AFTER=() OUTPUT=() TOTAL=()
    local pool_after=() model name seed iterations students=() pool_stage=preprocess-pool
    if ((${#TEXT[@]})); then
        if ((${#TOKENIZER_TRAINING[@]})); then
            stage tokenizer tokenizer "" "$RUN_DIR/tokenizer"
            pool_after=(tokenizer)
        fi
        stage preprocess-pool preprocess "${pool_after[*]}" "$(pool_prefix)"
        ((NUM_SHARDS == 1)) || TASKS[preprocess-pool]=$NUM_SHARDS
        ((${#HELDOUT_TEXT[@]} == 0)) || stage preprocess-heldout preprocess "${pool_after[*]}" "$RUN_DIR/data/heldout"
    else
        pool_stage=
    fi
    if ((${#SPLIT[@]} || (NUM_SHARDS > 1 && ${#TEXT[@]}))); then
        stage split split "$pool_stage" "$RUN_DIR/split"
        pool_stage="split"
    fi
    local heldout=
    [ -z "${KIND[preprocess-heldout]:-}" ] || heldout=preprocess-heldout
    local scores=()
    for model in teacher reference; do
        declare -n training=${model^^}_TRAINING
        local needs=$pool_stage
        if ((${#training[@]})); then
            iterations=$(iterations_of "${TRAINING[@]}" "${training[@]}") || exit 2
            stage "train-$model" train "$pool_stage $heldout" "$RUN_DIR/$model/checkpoint" "$iterations"
            needs=train-$model
        fi
        stage "score-$model" score "$needs" "$RUN_DIR/scores/$model"
        TASKS[score-$model]=$(setting JOBS "score-$model")
        ((TASKS[score-$model] > 1)) || TASKS[score-$model]=0
        scores+=("score-$model")
    done
    stage select select "${scores[*]}" "$RUN_DIR/refined"
    local refined=select
    if [ "$MATERIALIZE" = yes ]; then
        stage materialize materialize select "$RUN_DIR/copies"
        refined=materialize
    fi
    for name in "${STUDENTS[@]}"; do
        declare -n flags=STUDENT_$name
        local data=$refined
        case $(data_of "$name") in pool) data=$pool_stage ;; selection) data=select ;; esac
        iterations=$(iterations_of "${TRAINING[@]}" "${flags[@]}") || exit 2
        for seed in "${SEEDS[@]}"; do
            stage "train-$name-$seed" train "$data $heldout" "$RUN_DIR/student-$name-$seed/checkpoint" "$iterations"
            if ((${#EVALUATION_LM[@]} + ${#EVALUATION_TASKS[@]})); then
                stage "evaluate-$name-$seed" measure "train-$name-$seed $heldout" "$RUN_DIR/student-$name-$seed/evaluation"
                students+=("evaluate-$name-$seed")
            else
                students+=("train-$name-$seed")
            fi
        done
    done
    ((${#students[@]} == 0)) || stage evaluate evaluate "${students[*]}" "$RUN_DIR/comparison"
    declare -gA KEYS=()
    for name in "${STAGES[@]}"; do KEYS[$name]=$(key_of "$name"); done
}

# key_of STAGE: a digest of what it runs and of what it needs, down to the names of text files: with other settings it is to be done anew
key_of() {
    local before
    {
        for before in ${AFTER[$1]}; do echo "${KEYS[$before]}"; done
        (
            # shellcheck disable=SC2317  # called by the stage
            tool() { printf '%s\0' "$@"; }
            # shellcheck disable=SC2317
            megatron() { printf '%s\0' "$@"; }
            run_stage "$1"
        )
    } | sha256sum | cut -c1-16
}

# stage NAME KIND AFTER OUTPUT [TOTAL]
stage() {
    STAGES+=("$1")
    KIND[$1]=$2 TASKS[$1]=0 OUTPUT[$1]=$4 TOTAL[$1]=${5:--}
    read -r -a words <<< "$3"
    AFTER[$1]=${words[*]}
}

# group_of STAGE: the kind of stage that settings are made for
group_of() {
    case ${KIND[$1]} in train) echo TRAINING ;; score | measure) echo SCORING ;; *) echo TOOLS ;; esac
}

# setting NAME STAGE: NAME_<stage> where that is set, else NAME_TRAINING, NAME_SCORING or NAME_TOOLS, else the cluster's
setting() {
    local group name
    group=$(group_of "$2")
    for name in "$1_${2//-/_}" "$1_$group"; do
        [[ ! -v $name ]] || { echo "${!name}"; return; }
    done
    case $group:$1 in
        TOOLS:CPUS) echo "$CPUS_PER_TOOL" ;;
        *:CPUS) echo "$CPUS_PER_RANK" ;;
        # An env.sh that was copied before there was a CPU_ACCOUNT has one account for all.
        TOOLS:ACCOUNT) echo "${CPU_ACCOUNT-$ACCOUNT}" ;;
        TOOLS:*) name=CPU_$1; echo "${!name-}" ;;
        *) echo "${!1}" ;;
    esac
}

# iterations_of FLAGS...: the last --train-iters; it tells a run that is finished from one that was interrupted
iterations_of() {
    local found='' previous='' word
    for word in "$@"; do
        [ "$previous" != --train-iters ] || found=$word
        [[ $word != --train-iters=* ]] || found=${word#*=}
        previous=$word
    done
    [[ $found =~ ^[0-9]+$ ]] || refuse "training flags without --train-iters N (samples are iterations x batch size): $*"
    echo "$found"
}

# list_of NAME STAGE: LIST, the array NAME_<stage> or NAME_<group>; false where neither is set
list_of() {
    local name
    for name in "$1_${2//-/_}" "$1_$(group_of "$2")"; do
        declare -p "$name" > /dev/null 2>&1 || continue
        declare -n found=$name
        LIST=("${found[@]}")
        return 0
    done
    return 1
}

# gpu_flags STAGE: LIST, GPU_FLAGS with the number of GPUs for the ranks of the stage. They are written for RANKS_PER_NODE.
gpu_flags() {
    local ranks word count
    list_of GPU_FLAGS "$1" && return
    ranks=$(setting RANKS "$1")
    LIST=()
    for word in "${GPU_FLAGS[@]}"; do
        if ((ranks != RANKS_PER_NODE)); then
            if [[ $word =~ ^(--gpus-per-node=([^:]+:)?|--gres=gpu:([^:]+:)?)([0-9]+)$ ]]; then
                count=$((BASH_REMATCH[4] * ranks))
                ((count % RANKS_PER_NODE == 0)) || refuse_gpu_flags "$1" "$ranks"
                word=${BASH_REMATCH[1]}$((count / RANKS_PER_NODE))
            elif [[ $word =~ ^(-G|--gpus$|--gpus=|--gpus-per-node|--gres) ]]; then
                refuse_gpu_flags "$1" "$ranks"
            fi
        fi
        LIST+=("$word")
    done
}

refuse_gpu_flags() {
    refuse "stage $1 has $2 ranks per node, and GPU_FLAGS=(${GPU_FLAGS[*]}) of env.sh are for $RANKS_PER_NODE:" \
        "set GPU_FLAGS_${1//-/_}=(...) in the configuration"
}

# refuse_other_settings STAGE: other tools know by themselves what they have begun; Megatron would go on with a checkpoint
# whatever its data and flags were
refuse_other_settings() {
    local begun=$RUN_DIR/slurm/begun/$1
    [ "${KIND[$1]}" = train ] && [ -e "${OUTPUT[$1]}" ] && [ -r "$begun" ] && [ "$(cat "$begun")" != "${KEYS[$1]}" ] || return 0
    refuse "${OUTPUT[$1]} was begun with other flags, data or earlier stages than the configuration has now." \
        "Set another RUN_DIR; or delete it, to train anew; or delete $begun, to go on with it all the same"
}

# ---------------------------------------------------------------- what each stage runs
# run_stage STAGE [TASK]
run_stage() {
    "stage_${KIND[$1]}" "$@"
}

pool_prefix() {
    if ((NUM_SHARDS > 1)); then echo "$RUN_DIR/data/shards/pool"; else echo "$RUN_DIR/data/pool"; fi
}

# Sets TOKENIZER_FLAGS, POOL (what is scored), HELDOUT_PREFIXES
derive() {
    TOKENIZER_FLAGS=("${TOKENIZER[@]}")
    ((${#TOKENIZER[@]})) || TOKENIZER_FLAGS=(--tokenizer-type HuggingFaceTokenizer --tokenizer-model "$RUN_DIR/tokenizer")
    local shape=document
    [[ " ${PREPROCESSING[*]} " != *" chunk "* && " ${PREPROCESSING[*]} " != *"--sequence=chunk "* ]] || shape=chunk
    WHOLE=("${CORPUS[@]}")
    ((${#CORPUS[@]})) || WHOLE=("$RUN_DIR/data/pool_text_$shape")
    [ "$MERGE" = yes ] || ((NUM_SHARDS == 1)) || WHOLE=("$RUN_DIR/data/blend")
    POOL=("${WHOLE[@]}")
    ((${#SPLIT[@]} == 0)) || POOL=("$RUN_DIR/split/pool")
    HELDOUT_PREFIXES=("${HELDOUT[@]}")
    ((${#HELDOUT_TEXT[@]} == 0)) || HELDOUT_PREFIXES=("$RUN_DIR/data/heldout_text_$shape")
}

stage_tokenizer() {
    tool train-tokenizer "${TOKENIZER_TRAINING[@]}" --input "${TEXT[@]}" --output "$RUN_DIR/tokenizer"
}

stage_preprocess() {
    derive
    local flags=("${TOKENIZER_FLAGS[@]}" "${PREPROCESSING[@]}")
    if [ "$1" = preprocess-heldout ]; then
        tool preprocess-data --input "${HELDOUT_TEXT[@]}" --output-prefix "$RUN_DIR/data/heldout" "${flags[@]}"
    elif ((NUM_SHARDS > 1)); then
        tool preprocess-data --input "${TEXT[@]}" --output-prefix "$(pool_prefix)" "${flags[@]}" \
            --num-shards "$NUM_SHARDS" --shard-by "$SHARD_BY" --shard-index "${2:-0}"
    else
        tool preprocess-data --input "${TEXT[@]}" --output-prefix "$(pool_prefix)" "${flags[@]}"
    fi
}

stage_split() {
    derive
    if ((NUM_SHARDS > 1)); then
        local to=(--output-prefix "${WHOLE[0]}")
        [ "$MERGE" = yes ] || to=(--as-data-args "${WHOLE[0]}")
        tool merge-datasets --input "$RUN_DIR/data/shards" "${to[@]}" || return
    fi
    ((${#SPLIT[@]} == 0)) || tool split-reference --input "${WHOLE[@]}" "${SPLIT[@]}" --output "$RUN_DIR/split"
}

stage_score() {
    derive
    local name=${1#score-}
    declare -n model=${name^^}_MODEL more=SCORING_${name^^}
    local flags=("${model[@]}")
    ((${#model[@]})) || flags=(--load "$RUN_DIR/$name/checkpoint" --use-checkpoint-args)
    # A model from Hugging Face brings its tokenizer.
    [[ " ${flags[*]} " == *" --load-hf "* ]] || flags+=("${TOKENIZER_FLAGS[@]}")
    megatron miniplm score-corpus "${flags[@]}" "${SCORING[@]}" "${more[@]}" \
        --corpus "${POOL[@]}" --scores "$RUN_DIR/scores/$name"
}

stage_select() {
    tool difference-sampling --teacher-scores "$RUN_DIR/scores/teacher" --reference-scores "$RUN_DIR/scores/reference" \
        "${SELECTION[@]}" --output "$RUN_DIR/refined" &&
        tool report "$RUN_DIR/refined" --output "$RUN_DIR/refined/report"
}

stage_materialize() {
    tool materialize --input "$RUN_DIR/refined" --output "$RUN_DIR/copies"
}

stage_train() {
    derive
    local name=${1#train-} directory=$RUN_DIR/${1#train-} data=() more=()
    case $name in
        teacher | reference)
            declare -n flags=${name^^}_TRAINING
            if ((${#SPLIT[@]})); then data=("@$RUN_DIR/split/reference/data_args.txt"); else data=("${POOL[@]}"); fi
            ;;
        *)
            directory=$RUN_DIR/student-$name
            declare -n flags=STUDENT_${name%-*}
            more=(--seed "${name##*-}")
            case $(data_of "${name%-*}") in
                refined) data=("@$RUN_DIR/refined/data_args.txt") ;;
                selection) more+=(--miniplm-selection "$RUN_DIR/refined") ;&
                pool) if ((${#SPLIT[@]})); then data=("@$RUN_DIR/split/pool/data_args.txt"); else data=("${POOL[@]}"); fi ;;
            esac
            [ "$MATERIALIZE$(data_of "${name%-*}")" != yesrefined ] || data=("@$RUN_DIR/copies/data_args.txt")
            ;;
    esac
    if ((${#HELDOUT_PREFIXES[@]})); then
        data=(--train-data-path "${data[@]}" --valid-data-path "${HELDOUT_PREFIXES[@]}")
    else
        data=(--data-path "${data[@]}")
    fi
    megatron python "${TRAINING_PROGRAM[@]}" "${TOKENIZER_FLAGS[@]}" "${TRAINING[@]}" "${flags[@]}" "${more[@]}" "${data[@]}" \
        --save "$directory/checkpoint" --load "$directory/checkpoint" --tensorboard-dir "$directory/tensorboard" \
        --exit-signal-handler
}

stage_measure() {
    derive
    local directory=$RUN_DIR/student-${1#evaluate-} corpus=()
    local model=(--load "$directory/checkpoint" --use-checkpoint-args "${TOKENIZER_FLAGS[@]}")
    if ((${#EVALUATION_LM[@]})); then
        [[ " ${EVALUATION_LM[*]}" == *" --corpus"* ]] || corpus=(--corpus "${HELDOUT_PREFIXES[@]}")
        megatron miniplm evaluate-lm "${model[@]}" "${EVALUATION_LM[@]}" "${corpus[@]}" \
            --scores "$directory/evaluation/lm" --json "$directory/evaluation/lm.json" || return
    fi
    ((${#EVALUATION_TASKS[@]} == 0)) || megatron miniplm evaluate-tasks "${model[@]}" "${EVALUATION_TASKS[@]}" \
        --results "$directory/evaluation/tasks" --json "$directory/evaluation/tasks.json"
}

stage_evaluate() {
    local student seed runs=()
    for student in "${STUDENTS[@]}"; do
        runs+=(--run "$student")
        for seed in "${SEEDS[@]}"; do
            runs+=("$RUN_DIR/student-$student-$seed/tensorboard")
        done
    done
    tool compare-runs "${EVALUATION[@]}" "${runs[@]}" --output "$RUN_DIR/comparison"
}
