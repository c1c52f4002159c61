# The quickstart's cluster: nodes without GPUs. Your own is a copy of slurm/env.sh.
# shellcheck shell=bash disable=SC2034
# shellcheck source=slurm/env.sh
source "$MINIPLM_HOME/slurm/env.sh"
RANKS_PER_NODE=2
GPU_FLAGS=()
CPUS_PER_RANK=1
CPUS_PER_TOOL=2
setup_environment() {
    export PATH="$MINIPLM_HOME/.venv/bin:$PATH" OMP_NUM_THREADS=1
}
