#!/usr/bin/env bash
# Submit the whole pipeline as SLURM jobs: each stage starts when those that it needs have succeeded. Run again, it submits
# only what is neither finished nor queued.
#
#   slurm/submit_pipeline.sh CONFIGURATION              such as examples/quickstart/pipeline.conf
#   slurm/submit_pipeline.sh CONFIGURATION --dry-run    the graph, the sbatch calls and the commands; nothing is submitted
#
# MINIPLM_ENV=my_cluster.sh names a copy of slurm/env.sh. `miniplm status RUN_DIR` shows how far it is.
set -euo pipefail
MINIPLM_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export MINIPLM_HOME
# shellcheck source=slurm/env.sh
source "${MINIPLM_ENV:-$MINIPLM_HOME/slurm/env.sh}"
# shellcheck source=slurm/pipeline.sh
source "$MINIPLM_HOME/slurm/pipeline.sh"

main() {
    local configuration='' dry_run='' word stage
    for word in "$@"; do
        case $word in
            --dry-run) dry_run=yes ;;
            -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
            -*) refuse "$word is no flag: expected CONFIGURATION [--dry-run]" ;;
            *) [ -z "$configuration" ] || refuse "one CONFIGURATION is expected, found $configuration and $word"; configuration=$word ;;
        esac
    done
    [ -n "$configuration" ] || refuse "usage: submit_pipeline.sh CONFIGURATION [--dry-run]"
    load_configuration "$configuration"
    define_stages
    refuse_missing_text
    refuse_large_arrays
    note_unused_settings
    for stage in "${STAGES[@]}"; do refuse_other_settings "$stage"; done
    TAG=$(basename "$RUN_DIR")-$(sha256sum <<< "$RUN_DIR" | cut -c1-6)
    BOOKS=$RUN_DIR/slurm
    if [ -n "${MINIPLM_ENV:-}" ]; then
        MINIPLM_ENV=$(realpath "$MINIPLM_ENV")
        export MINIPLM_ENV
    fi
    [ -n "$dry_run" ] || command -v sbatch > /dev/null || refuse "sbatch is not here: run this where jobs are submitted"
    check_flags
    if [ -z "$dry_run" ]; then
        mkdir -p "$BOOKS/logs" "$BOOKS/settings" "$BOOKS/done"
        write_settings
        write_stages
    fi
    read_queue "$dry_run"
    declare -gA JOB=() IS_NEW=()
    for stage in "${STAGES[@]}"; do consider "$stage" "$dry_run"; done
    echo
    echo "$RUN_DIR: miniplm status $RUN_DIR shows progress; logs are in $BOOKS/logs"
}

# Before anything is queued: an array that fails in an hour because a glob matches nothing helps nobody.
refuse_missing_text() {
    local path
    for path in "${TEXT[@]}" "${HELDOUT_TEXT[@]}"; do
        compgen -G "$path" > /dev/null || refuse "$path matches no file (TEXT or HELDOUT_TEXT; looked for in $PWD)"
    done
}

# A size of a stage that this configuration has not, or a mistyped one.
note_unused_settings() {
    local name known
    known=$(IFS='|'; stages=${STAGES[*]//-/_}; echo "TRAINING|SCORING|TOOLS|$stages")
    for name in "${OVERRIDDEN[@]}"; do
        [[ $name =~ ^(GPU_FLAGS|SBATCH_FLAGS|[A-Z]+)_($known)$ ]] || echo "note: $name is for no stage of this configuration" >&2
    done
}

# check_flags: parse the flags of every stage that is not done with the parser of its own program, in jobs or here
check_flags() {
    local stage status=0
    [ "${CHECK_FLAGS:-yes}" != no ] || return 0
    parse_flags || status=$?
    ((status == 0 || status == 2)) || { status=0; (setup_environment && parse_flags) > /dev/null || status=$?; }
    case $status in
        0) ;;
        2) exit 2 ;;
        *) echo "note: flags are not checked, because this package does not run here (see above)" >&2 ;;
    esac
}

parse_flags() {
    local stage
    for stage in "${STAGES[@]}"; do
        [ "$(missing_tasks "$stage")" = none ] || (
            # shellcheck disable=SC2317  # called by the stage
            tool() { megatron miniplm "$@"; }
            # shellcheck disable=SC2317
            megatron() { printf '%s\0' "$stage" "$#" "$@"; }
            run_stage "$stage"
        )
    done | PYTHONPATH=$MINIPLM_HOME${PYTHONPATH:+:$PYTHONPATH} python3 -m megatron_miniplm.commands.preflight
}

refuse_large_arrays() {
    local stage limit
    limit=$(scontrol show config 2> /dev/null | sed -n 's/^MaxArraySize *= *//p') || true
    for stage in "${STAGES[@]}"; do
        ((TASKS[$stage] <= ${limit:-TASKS[$stage]})) ||
            refuse "stage $stage is an array of ${TASKS[$stage]} tasks, this cluster takes $limit (MaxArraySize): set NUM_SHARDS or JOBS_SCORING lower"
    done
}

# What the configuration says now, so that editing it does not change what is queued.
write_settings() {
    local name text
    text=$(compgen -v | grep -xE "$CONFIGURATION_NAMES" | while read -r name; do
        declare -p "$name" | sed -E '1s/^declare -[-a-zA-Z]+ //'
    done)
    SETTINGS=$BOOKS/settings/$(sha256sum <<< "$text" | cut -c1-12).conf
    publish "$SETTINGS" "$text"
}

write_stages() {
    local stage text
    text=$(printf '# miniplm pipeline 1\t%s\n' "$TAG"
        for stage in "${STAGES[@]}"; do
            printf '%s\t' "$stage" "${KIND[$stage]}" "${TASKS[$stage]}" "$(tr ' ' , <<< "${AFTER[$stage]:--}")" \
                "${OUTPUT[$stage]}" "${TOTAL[$stage]}"
            echo "${KEYS[$stage]}"
        done)
    publish "$BOOKS/pipeline.tsv" "$text"
}

# read_queue DRY_RUN: LIVE[stage] = job id, HELD[stage] = yes where it waits for what has failed
read_queue() {
    declare -gA LIVE=() HELD=()
    unset -v "${!SQUEUE_@}"   # would change what is listed
    local id name reason queue
    if ! queue=$(squeue --user="$(id -u)" --noheader --states=PENDING,RUNNING,SUSPENDED,COMPLETING,CONFIGURING,REQUEUED --format='%F|%j|%r' 2>&1); then
        [ -n "$1" ] || refuse "squeue does not answer, so what is queued already is not known: $queue"
        echo "squeue does not answer: taken for an empty queue"
        return
    fi
    while IFS='|' read -r id name reason; do
        [[ $name == "$TAG".* ]] || continue
        LIVE[${name#"$TAG".}]=$id
        [ "$reason" != DependencyNeverSatisfied ] || HELD[${name#"$TAG".}]=yes
    done <<< "$queue"
}

# consider STAGE DRY_RUN: leave it, or submit it
consider() {
    local stage=$1 dry_run=$2 after=() before missing renewed='' id
    for before in ${AFTER[$stage]}; do
        [ -z "${IS_NEW[$before]:-}" ] || renewed=yes
        [ -z "${JOB[$before]:-}" ] || after+=("${JOB[$before]}")
    done
    missing=$(missing_tasks "$stage")
    if [ "$missing" = none ] && [ -z "$renewed" ]; then
        show "$stage" finished
        return
    fi
    if [ -n "${LIVE[$stage]:-}" ]; then
        if [ -z "$renewed${HELD[$stage]:-}" ]; then
            JOB[$stage]=${LIVE[$stage]}
            show "$stage" "queued already, job ${LIVE[$stage]}"
            return
        fi
        [ -n "$dry_run" ] || scancel "${LIVE[$stage]}"   # it waits for a job that has failed
    fi
    sbatch_flags "$stage" "$missing" "${after[@]}"
    IS_NEW[$stage]=yes
    if [ -n "$dry_run" ]; then
        JOB[$stage]=JOB_$stage
        show "$stage" "to be submitted"
        printf '    %q' sbatch; printf ' %q' "${FLAGS[@]}"; echo
        run_stage "$stage" "" | sed 's/^/    /'
    else
        id=$(sbatch "${FLAGS[@]}") || refuse "sbatch did not take stage $stage: see above; what was submitted stays"
        JOB[$stage]=${id%%;*}   # with --parsable it may name the cluster, too
        show "$stage" "submitted, job ${JOB[$stage]}"
    fi
}

show() {
    local tasks=
    ((TASKS[$1] == 0)) || tasks=" x ${TASKS[$1]}"
    printf '%-24s %-40s %s\n' "$1$tasks" "$2" "${AFTER[$1]:+after ${AFTER[$1]}}"
}

# missing_tasks STAGE: none, all, or the tasks of an array that are not done with these settings, as 0,3,7
missing_tasks() {
    local stage=$1 task missing=()
    if [ "${KIND[$stage]}" = preprocess ] && ((TASKS[$stage] > 0)); then
        for ((task = 0; task < TASKS[$stage]; task++)); do
            is_done "$stage.$task" "${KEYS[$stage]}" || missing+=("$task")
        done
        case ${#missing[@]} in
            0) echo none ;;
            "${TASKS[$stage]}") echo all ;;
            *) (IFS=,; echo "${missing[*]}") ;;
        esac
    elif is_done "$stage" "${KEYS[$stage]}"; then
        echo none
    else
        echo all
    fi
}

is_done() { [ "$(cat "$BOOKS/done/$1" 2> /dev/null)" = "$2" ]; }

# sbatch_flags STAGE MISSING_TASKS JOBS...: FLAGS, the whole command line
sbatch_flags() {
    local stage=$1 array=$2 kind=${KIND[$1]} script=${KIND[$1]} dependencies=(singleton) id log=%j more name value
    shift 2
    case $kind in tokenizer) script=train_tokenizer ;; measure) script=evaluate ;; esac
    # singleton: of two jobs of one name the second waits for the end of the first, and finds its work done. So no lock is
    # needed, should its user submit from two login nodes at the same time.
    for id in "$@"; do dependencies+=("afterok:$id"); done
    FLAGS=(--parsable --job-name="$TAG.$stage")
    if ((TASKS[$stage] > 0)); then
        [[ $array =~ ^[0-9] ]] || array=0-$((TASKS[$stage] - 1))
        FLAGS+=(--array="$array${MAX_RUNNING_TASKS:+%$MAX_RUNNING_TASKS}")
        log=%A_%a
    fi
    FLAGS+=(--output="$BOOKS/logs/$stage.$log.log")
    FLAGS+=(--dependency="$(IFS=,; echo "${dependencies[*]}")")
    case $kind in
        train | score | measure)
            gpu_flags "$stage"
            FLAGS+=(--nodes="$(setting NODES "$stage")" --ntasks-per-node="$(setting RANKS "$stage")" "${LIST[@]}"
                --signal="TERM@$STOP_SECONDS")
            more=("${SBATCH_FLAGS[@]}")
            ;;
        *)
            FLAGS+=(--nodes=1 --ntasks=1)
            # An env.sh that was copied before there were CPU_SBATCH_FLAGS has one list for all.
            if declare -p CPU_SBATCH_FLAGS > /dev/null 2>&1; then more=("${CPU_SBATCH_FLAGS[@]}"); else more=("${SBATCH_FLAGS[@]}"); fi
            ;;
    esac
    FLAGS+=(--cpus-per-task="$(setting CPUS "$stage")" --time="$(setting TIME "$stage")")
    for name in ACCOUNT PARTITION QOS CONSTRAINT; do
        value=$(setting "$name" "$stage")
        [ -z "$value" ] || FLAGS+=("--${name,,}=$value")
    done
    ! list_of SBATCH_FLAGS "$stage" || more+=("${LIST[@]}")   # the last of two counts for sbatch
    # ALL and no names beside it: with names, Slurm runs a login shell on the node to find out the rest.
    FLAGS+=("${more[@]}" --export=ALL "$MINIPLM_HOME/slurm/$script.sbatch" "${SETTINGS:-CONFIGURATION}" "$stage")
}

# Under this script, stages only say what they would run.
tool() { printf 'miniplm'; printf ' %q' "$@"; echo; }
megatron() { printf '%q' "$1"; printf ' %q' "${@:2}"; echo; }

main "$@"
