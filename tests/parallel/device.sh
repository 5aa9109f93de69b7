#!/usr/bin/env bash
# Ranks on emulated devices: the bits of one device, losses of the CPU, snapshots that do not know where ranks compute, and what fails told with its step and rank.
#   device.sh TRAIN-EMULATED
set -uo pipefail
train=$(realpath "$1")
. "$(dirname "$0")/lib.sh"

some_text
cat >a.ini <<INI
[model]
arch = llama
hidden = 16
layers = 2
heads = 2
kv_heads = 1
intermediate = 24
vocab = 257
context = 16
tokenizer = bytes
dtype = f32
[data]
train = text.txt
sequence = 6
[train]
steps = 3
batch = 4
micro_batch = 1
lr = 1e-3
clip = 0.5
seed = 3
[checkpoint]
every = 0
[run]
device = cuda
INI

# one NAME SETTINGS...: one device, near the CPU
one() {
    local name=$1
    shift
    "$train" run a.ini --set "run.dir=$name-cpu" --set run.device=cpu "$@" >out 2>err || flunk "$name on the CPU" "it failed"
    "$train" run a.ini --set "run.dir=$name" "$@" >out 2>err || flunk "$name on one device" "it failed"
    if paste -d' ' <(losses "$name") <(losses "$name-cpu") | awk '{ for (i = 1; i < 3; i++) if (!($i / $(i + 2) < 1.00001 && $i / $(i + 2) > 0.99999)) bad = 1 } END { exit bad || NR < 3 }'; then pass "$name: near the CPU"; else flunk "$name: near the CPU" "$(losses "$name")"; fi
}
# same NAME DATA/ZERO/STAGES SETTINGS...: the bits of one device on several
same() {
    local name=$1 data zero stages
    IFS=/ read -r data zero stages <<<"$2"
    ranks $((data * stages)) run a.ini --set "run.dir=$name-$data-$zero-$stages" --set "parallel.data=$data" --set "parallel.zero=$zero" --set "parallel.pipeline=$stages" "${@:3}" || flunk "$name on $2" "it failed"
    expect "$name on $2: losses and norms" "$(losses "$name-$data-$zero-$stages")" "$(losses "$name")"
}

one adamw
for layout in $(few 2/3/1 2/0/1 2/1/1 4/3/1 1/0/2 2/2/2); do same adamw "$layout"; done
expect "through NCCL" "$(grep -c 'devices exchange through NCCL' err)" 1
export TR_NCCL=/nowhere
same adamw 2/3/1
expect "without NCCL through MPI" "$(grep -c 'devices exchange through host memory and MPI (NCCL cannot be opened' err)" 1
export TR_NCCL=$TR_TEST_EMULATED EMULATE_DEVICES=1
refused "NCCL for two ranks on one device" 2 'parallel.backend = nccl .*: ranks 0 and 1 compute on the same device' 2 run a.ini --set parallel.data=2 --set parallel.backend=nccl
unset EMULATE_DEVICES
if [ -z "${TEST_SANITIZED:-}" ]; then
    same adamw 1/0/2 --set parallel.schedule=zero-bubble
    same adamw 2/2/2 --set parallel.backend=mpi
    low=(--set optimizer.name=galore --set optimizer.rank=8 --set optimizer.update_gap=2)
    one galore "${low[@]}"
    same galore 2/1/1 "${low[@]}"
    one int8 --set model.dtype=int8 --set model.compute=f32
    same int8 2/2/1 --set model.dtype=int8 --set model.compute=f32
    same int8 2/3/1 --set model.dtype=int8 --set model.compute=f32
fi

# Two devices write, one resumes.
eight=(run a.ini --set optimizer.name=adamw-8bit)
"$train" "${eight[@]}" --set run.dir=eight >out 2>err || flunk "adamw-8bit on one device" "it failed"
ranks 2 "${eight[@]}" --set parallel.data=2 --set parallel.zero=2 --set run.dir=moved --set checkpoint.every=2 --set train.stop_at=2 || flunk "two devices to a snapshot" "it failed"
"$train" "${eight[@]}" --resume --set run.dir=moved --set checkpoint.every=2 >out 2>err || flunk "resumed on one device" "it failed"
expect "resumed on one device: losses and norms" "$(losses moved)" "$(losses eight)"

refused "a vocabulary shared by stages" 2 'parallel.vocabulary = none' 2 run a.ini --set parallel.pipeline=2 --set parallel.vocabulary=alg1

# A kernel of rank 1 fails: told once with rank and step, and the snapshot is whole.
timeout 120 mpirun "${as_root[@]}" --oversubscribe --bind-to none -n 2 sh -c '[ $OMPI_COMM_WORLD_RANK = 0 ] || export EMULATE_FAIL=900; exec "$0" "$@"' \
    "$train" run a.ini --set parallel.data=2 --set run.dir=failing --set checkpoint.every=1 --set train.steps=20 >out 2>err
expect "a kernel of one rank fails: exit code" $? 1
if [ "$(grep -c '^train: error: ' err)" = 1 ] && grep -qE '^train: error: step [0-9]+, rank 1: the cuda device failed: [a-z_]+: invalid configuration' err; then pass "it is told with its name, rank and step"; else flunk "it is told with its name, rank and step" "it is not"; fi
"$train" run a.ini --resume --set run.dir=failing --set checkpoint.every=1 --set train.steps=20 --set train.stop_at=1 >out 2>err
expect "its snapshot can be resumed from" $? 0

# NCCL fails on a rank: its call, rank and step; the other ends with the same line.
timeout 120 mpirun "${as_root[@]}" --oversubscribe --bind-to none -n 2 sh -c '[ $OMPI_COMM_WORLD_RANK = 0 ] || export EMULATE_NCCL_FAIL=70; exec "$0" "$@"' \
    "$train" run a.ini --set parallel.data=2 --set parallel.zero=2 --set run.dir=broken --set train.steps=20 >out 2>err
expect "NCCL fails on one rank: exit code" $? 1
if [ "$(grep -c '^train: error: ' err)" = 1 ] && grep -qE '^train: error: ncclGroupEnd: 6 remote process exited .*\(rank 1, step [0-9]+\); the newest snapshot is whole' err; then pass "it is told with its call, rank and step"; else flunk "it is told with its call, rank and step" "it is not"; fi

# A rank that stalls while devices exchange.
timeout 120 mpirun "${as_root[@]}" --oversubscribe --bind-to none -n 2 bash -c 'echo $$ >pid-$OMPI_COMM_WORLD_RANK; exec "$0" "$@"' \
    "$train" run a.ini --set run.dir=stall --set parallel.data=2 --set parallel.timeout=2 --set train.steps=1000000 >out 2>err &
launcher=$!
for _ in $(seq 200); do [ -s stall/metrics.jsonl ] && break; sleep 0.1; done
kill -STOP "$(cat pid-1)"
wait $launcher
expect "a rank stalls: exit code" $? 1
if grep -qE 'rank 0 waited [0-9]+ s for rank 1 \(step [0-9]+' err; then pass "it is named"; else flunk "it is named" "it is not"; fi
kill -KILL "$(cat pid-1)" 2>/dev/null

echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
