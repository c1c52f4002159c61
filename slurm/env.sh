# Everything about your cluster, and the only file with it. Copy it, fill it in, and point MINIPLM_ENV at the copy.
# Empty means: the cluster's default. It is read when jobs are submitted and again when they start.
# shellcheck shell=bash disable=SC2034  # read by submit_pipeline.sh and job.sh

# ---------------------------------------------------------------- what sbatch asks for
# Of jobs that run models:
ACCOUNT=                         # --account
PARTITION=                       # --partition
QOS=                             # --qos
CONSTRAINT=                      # --constraint, such as h100
RANKS_PER_NODE=8                 # processes that run a model on a node: its GPUs
GPU_FLAGS=(--gpus-per-node="$RANKS_PER_NODE")   # or (--gres=gpu:h100:8); () where nodes have no GPU
CPUS_PER_RANK=8                  # cores for each of them
SBATCH_FLAGS=()                  # anything else, such as (--exclusive --mem=0 --mail-type=FAIL)
# Of all other jobs: tokenizing, selecting, copying, comparing.
CPU_ACCOUNT=$ACCOUNT
CPU_PARTITION=$PARTITION
CPU_QOS=
CPU_CONSTRAINT=
CPUS_PER_TOOL=32                 # cores for a tool: tokenizing and selection use them all
CPU_SBATCH_FLAGS=()
# A configuration overrides each of these for TRAINING, SCORING, TOOLS or a stage: PARTITION_SCORING, SBATCH_FLAGS_select.
MAX_RUNNING_TASKS=               # of one array at a time; empty: as many as there is room for
# CHECK_FLAGS=no                 # where the Megatron on the login node has other flags than that of the jobs

# ---------------------------------------------------------------- software, on the node
# Bare metal: modules, a virtual environment on the shared file system. Called on the first node, inherited by all.
setup_environment() {
    :
    # module load cuda/12.8
    # source /shared/venvs/megatron/bin/activate
}
# Or a container (Pyxis and enroot): an image with Megatron and this package; then only sbatch's own tools run outside.
CONTAINER_IMAGE=                 # such as /shared/images/megatron.sqsh
CONTAINER_MOUNTS=                # such as /shared:/shared; it must see the run, the text and this directory
CONTAINER_FLAGS=()               # such as (--no-container-mount-home)
COMMAND_PREFIX=()                # other containers: (apptainer exec --nv /shared/images/megatron.sif)

# ---------------------------------------------------------------- network and disks
NETWORK_INTERFACE=               # such as ib0 or hsn0, where the default route is the wrong one (NCCL and gloo)
NODE_LOCAL=${SLURM_TMPDIR:-/tmp} # a local disk of every node: caches of compilers go there, not to the shared one
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# ---------------------------------------------------------------- how jobs start and how long they insist
LAUNCHER=srun                    # srun: one task a rank; torchrun: one task a node, which starts the ranks
STOP_SECONDS=180                 # before the time limit, ranks are told to stop: a checkpoint or a block must fit in
MAX_FAILURES=3                   # starts in a row that failed without any progress, then the job gives up
MAX_INTERRUPTIONS=20             # starts in a row that were interrupted without any progress, likewise
