#!/usr/bin/env bash
# Run by srun once a task, inside the container where there is one: caches on the node's own disk, the ranks' variables,
# and the program in place of this script.
set -euo pipefail

# Compilers and libraries cache thousands of small files: a thousand ranks must not do that on the shared file system.
# They are code that this job runs, others may write to the node's disk, and the directory's name can be guessed.
caches=${MINIPLM_NODE_LOCAL:-/tmp}/miniplm-$(id -u)
mkdir -p "$(dirname "$caches")"
mkdir -m 700 "$caches" 2> /dev/null || true   # it may be there, or another rank may be first
read -r mode owner kind < <(stat -c '%a %u %F' "$caches")   # of a symbolic link itself, not of where it leads
if [ "$kind" != directory ] || [ "$owner" != "$(id -u)" ] || ((0$mode & 022)); then
    echo "error: $caches is a $kind of user $owner with mode $mode, expected a directory that only user $(id -u) can write:" \
        "remove it, or set NODE_LOCAL to another directory" >&2
    exit 2
fi
chmod 700 "$caches"
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$caches/triton} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$caches/inductor}
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$caches/cuda} MPLCONFIGDIR=${MPLCONFIGDIR:-$caches/matplotlib}

# A node that Slurm has given up may still train while the job has been started elsewhere. Whoever sees a newer attempt
# ends all ranks of its own on this node, at once and without a last checkpoint.
watch_attempt() {
    local program=$1 pid current second=0
    trap '' TERM USR1
    while kill -0 "$program" 2> /dev/null; do
        sleep 1   # the step ends with this process, not with the program
        ((++second % FENCE_SECONDS == 0)) || continue
        current=$(cat "$MINIPLM_CURRENT" 2> /dev/null) || continue
        if [ "$current" != "$MINIPLM_ATTEMPT $MINIPLM_NONCE" ]; then
            # shellcheck disable=SC2013  # numbers
            for pid in $(grep -lszxF "MINIPLM_NONCE=$MINIPLM_NONCE" /proc/[0-9]*/environ | cut -d/ -f3); do
                [ "$pid" = "$BASHPID" ] || kill -KILL "$pid" 2> /dev/null || true
            done
            echo "attempt ${current% *} has begun elsewhere: attempt $MINIPLM_ATTEMPT ends" >&2
            return
        fi
    done
}
if [ -n "${MINIPLM_CURRENT:-}" ] && [ "$SLURM_LOCALID" = 0 ]; then
    watch_attempt $$ &
fi

case ${MASTER_PORT:+$LAUNCHER} in
    "") exec "$@" ;;                                    # a tool
    torchrun)
        # torchrun would end the ranks half a minute after a SIGTERM; they are told to stop by Slurm, and know better.
        trap '' TERM USR1
        export PET_SIGNALS_TO_HANDLE=SIGINT   # --signals-to-handle, of which older releases know nothing
        exec torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$RANKS_PER_NODE" \
            --rdzv-id "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" \
            --no-python "$@"
        ;;
    srun)
        export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$RANKS_PER_NODE
        exec "$@"
        ;;
    *)
        echo "LAUNCHER=$LAUNCHER: expected srun or torchrun" >&2
        exit 2
        ;;
esac
