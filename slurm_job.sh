#!/usr/bin/env bash
# cope-prep on a Slurm cluster: Ray's head on the first node, one Ray node on each other, the driver beside the head.
#
#   sbatch --nodes=64 slurm_job.sh s3://BUCKET/dataset --consume
#
# What follows the script's name goes to `cope-prep run` (--failed-ok: failed videos do not fail the job). Change the
# lines below as your cluster wants it. The environment in which sbatch is called must have cope-prep
# (`source venv/bin/activate`), on a path that all nodes see.
# Sources and dataset lie in a bucket or on the shared file system; no node holds anything that is needed again.
# Preempted or out of time, the job stops cleanly, is queued again, and goes on where it was: docs/cluster.md.
#SBATCH --job-name=cope-prep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem-per-cpu=2G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=cope-prep-%j.log
# 90 s before the end, to this shell: the driver drains within 20 s, and Ray stops after it.
#SBATCH --signal=B:TERM@90
set -euo pipefail

if [ "$#" -lt 1 ]; then
  echo "usage: sbatch slurm_job.sh DATASET [options of cope-prep run]" >&2
  exit 2
fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_node=${nodes[0]}
num_others=$((${#nodes[@]} - 1))
# Other jobs on the same machines have ports and folders of their own.
port=$((20000 + SLURM_JOB_ID % 20000))
folder=/tmp/cope-prep-ray-$SLURM_JOB_ID
# Other users reach these machines' ports: Ray answers only who has this token, which srun hands to the nodes.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN
common=(--block --disable-usage-stats --num-cpus="$SLURM_CPUS_PER_TASK" --object-store-memory=268435456
  --temp-dir="$folder" --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)

head_ip=$(srun --nodes=1 --ntasks=1 -w "$head_node" hostname --ip-address | awk '{print $1}')
steps=()
driver=""
stopped=0

# shellcheck disable=SC2329  # by the trap
finish() {
  for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
  wait || true
  srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" rm -rf "$folder" || true
}
# shellcheck disable=SC2329  # by the trap
stop() {
  stopped=1
  if [ -n "$driver" ]; then kill -TERM "$driver" 2>/dev/null || true; fi
}
trap finish EXIT
trap stop TERM INT

srun --nodes=1 --ntasks=1 -w "$head_node" ray start --head --node-ip-address="$head_ip" --port="$port" \
  --ray-client-server-port=$((port + 20000)) --include-dashboard=false "${common[@]}" &
steps+=($!)
for ((second = 0; second < 120 && stopped == 0; second++)); do
  if (exec 3<>"/dev/tcp/$head_ip/$port") 2>/dev/null; then break; fi
  sleep 1
done
if [ "$num_others" -gt 0 ]; then
  srun --nodes="$num_others" --ntasks="$num_others" --exclude="$head_node" \
    ray start --address="$head_ip:$port" "${common[@]}" &
  steps+=($!)
fi

code=143
if [ "$stopped" = 0 ]; then
  # Nodes that come later are given work as soon as they are there.
  cope-prep run "$@" --address "$head_ip:$port" &
  driver=$!
  code=0
  wait "$driver" || code=$?
  if [ "$stopped" = 1 ]; then # the signal ended that wait, and not yet the driver
    code=0
    wait "$driver" || code=$?
  fi
fi
if [ "$stopped" = 1 ] && [ "$code" -ne 0 ]; then
  echo "cope-prep: stopped by a signal; queued again" >&2
  scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$code"
