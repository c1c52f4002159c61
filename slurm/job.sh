# What runs inside a job: one stage, started under srun, written down, and started again where that helps.
# Sourced by the .sbatch scripts: run_job CONFIGURATION STAGE. Exit codes: docs/slurm.md.
# shellcheck shell=bash
MINIPLM_HOME=${MINIPLM_HOME:-$SLURM_SUBMIT_DIR}
# shellcheck source=slurm/env.sh
source "${MINIPLM_ENV:-$MINIPLM_HOME/slurm/env.sh}"
# shellcheck source=slurm/pipeline.sh
source "$MINIPLM_HOME/slurm/pipeline.sh"

EXIT_BAD_INPUT=2 EXIT_RESUMABLE=75   # as in megatron_miniplm/errors.py

run_job() {
    load_configuration "$1"
    define_stages
    STAGE=$2 TASK=${SLURM_ARRAY_TASK_ID:-}
    JOB=$SLURM_JOB_ID
    [ -z "$TASK" ] || JOB=${SLURM_ARRAY_JOB_ID}_$TASK   # the number of one task is that of the whole array, too
    [ -n "${KIND[$STAGE]:-}" ] || refuse "$1 has no stage $STAGE: expected one of ${STAGES[*]}"
    refuse_other_settings "$STAGE"
    setup_environment
    unset SRUN_CPUS_PER_TASK MASTER_ADDR MASTER_PORT RANK WORLD_SIZE LOCAL_RANK   # of the shell that submitted
    export SLURM_EXPORT_ENV=ALL   # steps have our variables, also where sbatch was told --export=NONE
    export PYTHONUNBUFFERED=1 CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
    if [ -n "$NETWORK_INTERFACE" ]; then
        export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE GLOO_SOCKET_IFNAME=$NETWORK_INTERFACE
    fi
    export MINIPLM_NODE_LOCAL=$NODE_LOCAL
    # Only its steps are told when the time limit or a preemption comes near. This script is when its job is cancelled,
    # requeued by others, or at its end.
    trap 'CANCELLED=1' TERM
    CANCELLED=
    begin_attempt
    local status=0
    run_stage "$STAGE" "$TASK" || status=$?
    end_attempt "$(outcome_of "$status")"
}

# ---------------------------------------------------------------- steps
# tool NAME FLAGS...: one process
tool() {
    start_step --nodes=1 --ntasks=1 --cpus-per-task="$(setting CPUS "$STAGE")" miniplm "$@"
}

# megatron COMMAND...: all ranks of the job
megatron() {
    local cpus
    cpus=$(setting CPUS "$STAGE")
    expand_files "$@"
    MASTER_ADDR=${MINIPLM_MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
    MASTER_PORT=$(free_port)
    RANKS_PER_NODE=$(setting RANKS "$STAGE")
    export MASTER_ADDR MASTER_PORT RANKS_PER_NODE LAUNCHER
    if [ "$LAUNCHER" = torchrun ]; then
        start_step --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" \
            --cpus-per-task=$((cpus * RANKS_PER_NODE)) "${EXPANDED[@]}"
    else
        start_step --ntasks-per-node="$RANKS_PER_NODE" --ntasks=$((RANKS_PER_NODE * SLURM_JOB_NUM_NODES)) \
            --cpus-per-task="$cpus" "${EXPANDED[@]}"
    fi
}

# start_step SRUN_FLAGS... COMMAND...: run it to its end; returns its exit code, lines get the time and the task
start_step() {
    local flags=(--kill-on-bad-exit=1 --label --unbuffered) status=0
    while [[ $1 == --* ]]; do flags+=("$1"); shift; done
    if [ -n "$CONTAINER_IMAGE" ]; then
        flags+=(--container-image="$CONTAINER_IMAGE" "${CONTAINER_FLAGS[@]}")
        [ -z "$CONTAINER_MOUNTS" ] || flags+=(--container-mounts="$CONTAINER_MOUNTS")
    fi
    srun "${flags[@]}" "${COMMAND_PREFIX[@]}" bash "$MINIPLM_HOME/slurm/task.sh" "$@" > >(with_time) 2>&1 &
    local step=$!
    while true; do
        status=0
        wait "$step" || status=$?
        kill -0 "$step" 2> /dev/null || break   # a signal to this script ends `wait`, not the step
        [ -z "$CANCELLED" ] || return "$status"
    done
    return "$status"
}

with_time() {
    local line
    while IFS= read -r line; do printf '%(%F %T)T %s\n' -1 "$line"; done
}

# expand_files WORDS...: EXPANDED, with the words of FILE in place of @FILE
expand_files() {
    local word words
    EXPANDED=()
    for word in "$@"; do
        if [[ $word == @* ]]; then
            read -r -d '' -a words < "${word#@}" || true
            EXPANDED+=("${words[@]}")
        else
            EXPANDED+=("$word")
        fi
    done
}

# A port for rank 0, which runs on this node: jobs that share it have different ids, so they begin to look at different
# places, below the ports that the kernel gives to clients.
free_port() {
    local port=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 10000))
    while (: < "/dev/tcp/$MASTER_ADDR/$port") 2> /dev/null; do port=$((port + 1)); done
    echo "$port"
}

# ---------------------------------------------------------------- book-keeping, read by `miniplm status`
begin_attempt() {
    local unit=$STAGE${TASK:+.$TASK} previous=
    BOOKS=$RUN_DIR/slurm
    ATTEMPT=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    RECORD=$BOOKS/attempts/$unit/$ATTEMPT
    RETRIES=$BOOKS/retries/$unit
    # Where a program of ours leaves its exit code, in the name of an empty file: launchers do not pass it on.
    export MINIPLM_EXIT_CODES=$BOOKS/exit_codes/$unit.$ATTEMPT
    mkdir -p "${RECORD%/*}" "${RETRIES%/*}" "${MINIPLM_EXIT_CODES%/*}" "$BOOKS/current" "$BOOKS/begun" "$BOOKS/done"
    echo "start $(date +%s) $SLURM_JOB_NODELIST $JOB $(log_path)" >> "$RECORD"
    if [ "${KIND[$STAGE]}" = train ]; then
        publish "$BOOKS/begun/$STAGE" "${KEYS[$STAGE]}"
        # Two jobs must not write one checkpoint: a node that was lost may still run the one before, until it sees this.
        # The nonce, because a slurmctld that was killed may have forgotten a start, and give its number to the next.
        export MINIPLM_CURRENT=$BOOKS/current/$unit MINIPLM_ATTEMPT=$ATTEMPT
        MINIPLM_NONCE=$(hostname).$$.$(date +%s%N)
        export MINIPLM_NONCE
        [ ! -r "$MINIPLM_CURRENT" ] || read -r previous _ < "$MINIPLM_CURRENT"
        publish "$MINIPLM_CURRENT" "$ATTEMPT $MINIPLM_NONCE"
        # What a script says that was cancelled, or whose node was given up, is not known of all its ranks.
        if [ -n "$previous" ] && ! grep -qE '^end .* (done|interrupted|failed|bad-input)$' "$BOOKS/attempts/$unit/$previous" 2> /dev/null; then
            say "attempt $previous may still run somewhere: waiting $((3 * FENCE_SECONDS)) s, so that it notices this one"
            sleep $((3 * FENCE_SECONDS))
        fi
    fi
    [ "${SLURM_RESTART_COUNT:-0}" != 0 ] || rm -f "$RETRIES"   # what a job before has counted
    PROGRESS=$(progress)
    say "stage $unit, job $JOB, start $((${SLURM_RESTART_COUNT:-0} + 1)), nodes $SLURM_JOB_NODELIST"
}
export FENCE_SECONDS=${FENCE_SECONDS:-10}

log_path() {
    local job
    job=$(scontrol show job -o "$JOB" 2> /dev/null) || true
    [[ $job =~ \ StdOut=([^ ]+) ]] && echo "${BASH_REMATCH[1]}" || echo -
}

# outcome_of EXIT_CODE: done, bad-input, interrupted, cancelled or failed
outcome_of() {
    if [ -n "$CANCELLED" ] || ! is_ours; then
        echo cancelled
    elif [ -e "$MINIPLM_EXIT_CODES.$EXIT_BAD_INPUT" ] || [ "$1" = "$EXIT_BAD_INPUT" ]; then
        echo bad-input
    elif [ "$1" = 0 ]; then
        if is_complete; then echo "done"; else echo interrupted; fi
    elif [ -e "$MINIPLM_EXIT_CODES.1" ]; then
        echo failed
    elif [ "$1" = "$EXIT_RESUMABLE" ]; then
        echo interrupted   # srun passes on the highest code: no rank has ended with a worse one
    elif { [ -e "$MINIPLM_EXIT_CODES.$EXIT_RESUMABLE" ] || [[ $1 =~ ^(138|143)$ ]]; } && was_told_to_stop; then
        echo interrupted   # 138, 143: SIGUSR1, SIGTERM, before a program could handle them
    else
        echo failed   # a rank has died; launchers then send SIGTERM to the others, too
    fi
}

# was_told_to_stop: whether Slurm has signalled the ranks, because of a preemption or because the time limit is near.
# Where slurmctld does not answer, the answer is yes: an interruption may be repeated more often than a failure.
was_told_to_stop() {
    local job end
    job=$(scontrol show job -o "$JOB" 2> /dev/null) || return 0
    [[ ! $job =~ \ PreemptTime=[0-9] ]] || return 0
    [[ $job =~ \ EndTime=([0-9][0-9T:-]*) ]] && end=$(date -d "${BASH_REMATCH[1]}" +%s) || return 1
    # Slurm may signal a minute early (sbatch, --signal).
    (($(date +%s) >= end - ${STOP_SECONDS:-180} - 60))
}

# is_ours: whether Slurm still means this start of the job. When a node is given up, the job starts elsewhere, but the old
# script goes on, and its srun ends with 0.
is_ours() {
    local job try
    if [ "${KIND[$STAGE]}" = train ] && [ "$(cat "$MINIPLM_CURRENT")" != "$ATTEMPT $MINIPLM_NONCE" ]; then return 1; fi
    for ((try = 0; try < 180; try++)); do   # slurmctld may be away for half an hour
        job=$(scontrol show job -o "$JOB" 2> /dev/null) && break
        sleep 10
    done
    [[ "$job " == *" JobState=RUNNING "* && "$job " == *" Restarts=${SLURM_RESTART_COUNT:-0} "* ]]
}

is_complete() {
    case ${KIND[$STAGE]} in
        train) (($(progress) >= TOTAL[$STAGE])) ;;   # Megatron ends with 0 after it was told to stop
        score) [ -s "${OUTPUT[$STAGE]}/manifest.json" ] ;;
    esac
}

end_attempt() {
    local outcome=$1 code=0 error=
    case $outcome in
        done) publish "$BOOKS/done/$STAGE$([ "${KIND[$STAGE]}" = score ] || echo "${TASK:+.$TASK}")" "${KEYS[$STAGE]}" ;;
        bad-input) code=$EXIT_BAD_INPUT ;;
        interrupted) code=$EXIT_RESUMABLE ;;
        cancelled) code=143 ;;
        failed) code=1 ;;
    esac
    echo "end $(date +%s) $code $outcome" >> "$RECORD"
    # Launchers print dozens of lines below the one that says what is wrong, so it is said again.
    [ "$outcome" != bad-input ] || error=$(head -n 1 "$MINIPLM_EXIT_CODES.$EXIT_BAD_INPUT" 2> /dev/null) || true
    rm -f "$MINIPLM_EXIT_CODES".*
    say "$outcome"
    [ -z "$error" ] || say "$error"
    case $outcome in interrupted | failed) start_again "$outcome" ;; esac
    exit "$code"
}

# start_again OUTCOME: requeue this job, unless too many starts in a row brought nothing
start_again() {
    local failures=0 interruptions=0 try
    [ ! -r "$RETRIES" ] || read -r failures interruptions < "$RETRIES"
    if [ "$(progress)" != "$PROGRESS" ]; then
        failures=0 interruptions=0
    elif [ "$1" = failed ]; then
        failures=$((failures + 1))
    else
        interruptions=$((interruptions + 1))
    fi
    if ! publish "$RETRIES" "$failures $interruptions"; then
        say "not started again: without $RETRIES that would have no end"
        return
    fi
    if ((failures >= MAX_FAILURES || interruptions >= MAX_INTERRUPTIONS)); then
        say "not started again: $failures failures and $interruptions interruptions in a row without progress"
        rm -f "$RETRIES"
        return
    fi
    for ((try = 0; try < 30; try++)); do   # slurmctld may be away for minutes
        if [ -n "$CANCELLED" ] || ! is_ours; then return; fi   # it would bring back what its user has cancelled
        if scontrol requeue "$JOB"; then
            say "requeued"
            sleep 120 & wait $! || true   # Slurm ends this script
            return
        fi
        sleep 10 & wait $! || true
    done
}

# progress: a number that grows as the stage does, so that a start that brought something can be told from one that did not
progress() {
    case ${KIND[$STAGE]} in
        train) grep -xs '[0-9]*' "${OUTPUT[$STAGE]}/latest_checkpointed_iteration.txt" || echo 0 ;;
        score) find "${OUTPUT[$STAGE]}/blocks" -name '*.npy' 2> /dev/null | wc -l ;;
        measure) find "${OUTPUT[$STAGE]}" -type f ! -path '*/claims/*' ! -name '.*' 2> /dev/null | wc -l ;;
        *) echo 0 ;;
    esac
}

say() { printf '%(%F %T)T %s\n' -1 "$*"; }
