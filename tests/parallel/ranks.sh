#!/usr/bin/env bash
# Runs of several ranks on this machine: the losses of one rank, snapshots that do not know the layout, and what goes wrong
# said once, by rank 0, with the exit code of the program.
#   ranks.sh TRAIN      Without mpirun it says so and passes over everything.
set -uo pipefail
train=$(realpath "$1")
. "$(dirname "$0")/lib.sh"

some_text
cat >a.ini <<INI
[model]
arch = llama
hidden = 32
layers = 2
heads = 4
kv_heads = 2
intermediate = 64
vocab = 257
context = 64
tokenizer = bytes
dtype = f32
[data]
train = text.txt
valid = text.txt
sequence = 48
[train]
steps = 4
batch = 8
micro_batch = 2
lr = 1e-3
clip = 0.5
seed = 3
eval_every = 2
[checkpoint]
every = 2
keep = 5
INI

for o in adamw apollo sgd; do
    "$train" run a.ini --set optimizer.name=$o --set run.dir=$o >out 2>err || flunk "$o on one rank" "it failed"
    losses $o >want
    for layout in $(few 2/3 2/0 2/1 2/2 4/0 4/2 4/3); do
        n=${layout%/*} zero=${layout#*/}
        ranks "$n" run a.ini --set optimizer.name=$o --set "parallel.data=$n" --set "parallel.zero=$zero" --set "run.dir=$o-$n-$zero"
        expect "$o on $n ranks, stage $zero: exit code" $? 0
        expect "$o on $n ranks, stage $zero: losses and norms" "$(losses $o-$n-$zero)" "$(cat want)"
    done
done

# Sums in a subspace: the same bits, and what is sent is what was foretold, at a refresh and between two.
planned() { "$train" plan a.ini --json "$@" 2>/dev/null | tail -n 1 | sed -E 's/.*"sent_per_step":([0-9]*),.*"refresh":\{[^}]*"sent":([0-9]*).*/\2 \1/'; }
for o in galore frugal; do
    low=(--set "optimizer.name=$o" --set optimizer.update_gap=3 --set train.clip=0)
    [ $o = frugal ] && low+=(--set optimizer.inactive_update_rule=no) || low+=(--set optimizer.rank=6)
    "$train" run a.ini "${low[@]}" --set run.dir=$o >out 2>err || flunk "$o on one rank" "it failed"
    for layout in $(few 2/1 2/0 2/3 4/2); do
        n=${layout%/*} zero=${layout#*/}
        ranks "$n" run a.ini "${low[@]}" --set "parallel.data=$n" --set "parallel.zero=$zero" --set "run.dir=$o-$n-$zero" || flunk "$o on $n ranks, stage $zero" "it failed"
        expect "$o on $n ranks, stage $zero: losses and norms" "$(losses $o-$n-$zero)" "$(losses $o)"
        sent=($(sed -E 's/.*"sent":([0-9]*).*/\1/' $o-$n-$zero/metrics.jsonl)) told=($(planned "${low[@]}" --set "parallel.data=$n" --set "parallel.zero=$zero"))
        expect "$o on $n ranks, stage $zero: bytes sent" "${sent[*]}" "${told[0]} ${told[1]} ${told[1]} ${told[0]}"
        if [ "${told[1]}" -lt "${told[0]}" ]; then pass "$o on $n ranks, stage $zero: fewer between refreshes"; else flunk "$o on $n ranks, stage $zero: fewer between refreshes" "${told[*]}"; fi
    done
done

# A curvature probe in every step: probes and what follows from them have the bits of one rank.
probes() { # probes OPTIMIZER LAYOUT...
    local o=$1 n zero layout probe=(run a.ini --set "optimizer.name=$1" --set optimizer.hess_interval=1)
    shift
    "$train" "${probe[@]}" --set "run.dir=$o" >out 2>err || flunk "$o on one rank" "it failed"
    "$train" "${probe[@]}" --set "run.dir=$o-few" --set optimizer.hess_interval=3 >out 2>err || flunk "$o with few probes" "it failed"
    if [ "$(losses "$o")" != "$(losses "$o-few")" ]; then pass "$o: a probe changes the losses"; else flunk "$o: a probe changes the losses" "it does not"; fi
    for layout in $(few "$@"); do
        n=${layout%/*} zero=${layout#*/}
        ranks "$n" "${probe[@]}" --set "parallel.data=$n" --set "parallel.zero=$zero" --set "run.dir=$o-$n-$zero" || flunk "$o on $n ranks, stage $zero" "it failed"
        expect "$o on $n ranks, stage $zero: losses and norms" "$(losses "$o-$n-$zero")" "$(losses "$o")"
    done
}
probes sophia-g 2/0 2/1 4/2 2/3
probes sophia-h 2/0 2/1 4/2 2/3 4/3

# Weights and moments of fewer bits are rounded by the place of an element in its parameter, on whichever rank it is.
rounded() { # rounded NAME LAYOUT SETTINGS...
    local name=$1 n=${2%/*} zero=${2#*/} sent
    "$train" run a.ini "${@:3}" --set "run.dir=$name" >out 2>err || flunk "$name on one rank" "it failed"
    ranks "$n" run a.ini "${@:3}" --set "parallel.data=$n" --set "parallel.zero=$zero" --set "run.dir=$name-$n" || flunk "$name on $n ranks" "it failed"
    expect "$name on $n ranks, stage $zero: losses and norms" "$(losses "$name-$n")" "$(losses "$name")"
    sent=$("$train" plan a.ini --json "${@:3}" --set "parallel.data=$n" --set "parallel.zero=$zero" 2>/dev/null | tail -n 1 | sed -E 's/.*"sent_per_step":([0-9]*),.*/\1/')
    expect "$name on $n ranks, stage $zero: bytes sent" "$(tail -n 1 "$name-$n/metrics.jsonl" | sed -E 's/.*"sent":([0-9]*).*/\1/')" "$sent"
}
rounded bf16 2/1 --set model.dtype=bf16 --set optimizer.state_dtype=bf16
rounded bf16-lion 4/3 --set model.dtype=bf16 --set optimizer.name=lion --set optimizer.state_dtype=bf16
rounded int8 2/2 --set model.dtype=int8
rounded int8-apollo 4/3 --set model.dtype=int8 --set optimizer.name=apollo --set optimizer.rank=4
rounded q-apollo 2/3 --set model.dtype=int8 --set optimizer.name=q-apollo --set optimizer.rank=4 --set train.clip=0

# Stage 3 holds a share of the weights between steps, norms included; and gives what stage 2 gives for other types and shapes.
weights() { tail -n 1 "$1/metrics.jsonl" | sed -E 's/.*"weights":([0-9]*),.*/\1/'; }
for layout in 2-3 4-3; do
    n=${layout%-*} got=$(weights adamw-$layout) one=$(weights adamw)
    if [ $((got * n * 100)) -le $((one * 115 + one * n * 2)) ]; then pass "weights of one of $n ranks at stage 3"; else flunk "weights of one of $n ranks at stage 3" "$got of $one bytes"; fi
done
stage3() { # stage3 NAME SETTINGS...: the same losses at stage 2 and 3
    local name=$1 z
    shift
    for z in 2 3; do ranks 3 run a.ini --set parallel.data=3 --set train.batch=6 --set parallel.zero=$z --set "run.dir=$name-$z" "$@" || flunk "$name, stage $z" "it failed"; done
    expect "stage 3 with $name: losses and norms" "$(losses "$name-3")" "$(losses "$name-2")"
}
stage3 int8 --set model.dtype=int8 --set train.clip=0
stage3 bf16 --set model.dtype=bf16 --set memory.recompute=block
stage3 gpt2 --set model.arch=gpt2 --set model.kv_heads=4 --set memory.recompute=none --set train.clip=0
stage3 qwen3 --set model.arch=qwen3 --set model.tied=true --set memory.recompute=block --set train.batch=12

# Two ranks at stage 2, four at stage 3, two at stage 1, then one; beside it one rank all the way, with the same names in another folder, so
# that the last snapshots must be the same file.
inside() { (cd "$1" && shift && "$@"); }
moved() { # moved OPTIMIZER SETTINGS...: the losses are those of the run in the folder OPTIMIZER
    local o=$1 common=(run ../a.ini --set run.dir=run --set data.train=../text.txt --set data.valid=../text.txt --set "optimizer.name=$1" "${@:2}")
    rm -rf plain mixed
    mkdir plain mixed
    inside plain "$train" "${common[@]}" >out 2>err
    inside mixed ranks 2 "${common[@]}" --set parallel.data=2 --set parallel.zero=2 --set train.stop_at=1
    inside mixed ranks 4 "${common[@]}" --set parallel.data=4 --set parallel.zero=3 --set train.stop_at=2 --resume
    inside mixed ranks 2 "${common[@]}" --set parallel.data=2 --set parallel.zero=1 --set train.stop_at=3 --resume
    inside mixed "$train" "${common[@]}" --resume >out 2>err
    expect "$o moved between layouts: losses" "$(losses mixed/run)" "$(losses "$o")"
    if cmp -s {plain,mixed}/run/snapshots/step-00000004.h5; then pass "$o moved between layouts: the last snapshot"; else flunk "$o moved between layouts: the last snapshot" "it differs"; fi
}
moved apollo
moved galore --set optimizer.update_gap=3 --set optimizer.rank=6 --set train.clip=0

refused "ranks and grid differ" 2 "2 ranks for parallel.data x parallel.pipeline = 1 x 1 = 1" 2 run a.ini
refused "a batch that cannot be dealt" 2 "4 micro-batches cannot be dealt evenly to 3 ranks" 3 run a.ini --set parallel.data=3
refused "no recipe" 2 "cannot read 'none.ini'" 2 run none.ini
refused "different recipes" 2 "rank 1 has another recipe than rank 0" 1 run a.ini --set parallel.data=2 : -n 1 "$train" run a.ini --set parallel.data=2 --set train.lr=2e-3
cp "$train" other && printf ' ' >>other
refused "different programs" 2 "rank 1 is another program than rank 0" 1 run a.ini --set parallel.data=2 : -n 1 ./other run a.ini --set parallel.data=2
"$train" export a.ini --snapshot adamw --format gguf --out m.gguf >out 2>err || flunk "a model file" "it was not written"
sed '/^\[model\]/,/^\[data\]/c [model]\npath = m.gguf\ntokenizer = bytes\n[data]' a.ini >m.ini
mkdir elsewhere
ranks 2 run m.ini --set parallel.data=2 --set train.steps=1
expect "a model file that all ranks have" $? 0
refused "a model file that one rank lacks" 2 "m.gguf" 1 run m.ini --set parallel.data=2 : -n 1 -wdir "$work/elsewhere" "$train" run ../m.ini --set parallel.data=2 --set data.train=../text.txt --set data.valid=../text.txt
for z in 0 2 3; do refused "a snapshot of another model, stage $z" 2 "is of another model or recipe" 2 run a.ini --set model.layers=3 --set parallel.data=2 --set "parallel.zero=$z" --resume adamw/snapshots/step-00000004.h5; done
refused "a file that one rank lacks" 2 "cannot read 'none.ini'" 1 run a.ini --set parallel.data=2 : -n 1 "$train" run none.ini --set parallel.data=2
"$train" run a.ini --set parallel.data=2 >out 2>err
expect "a grid without mpirun" "$?" 2

# A rank that stalls: found in the time given, and named.
timeout 120 mpirun "${as_root[@]}" --oversubscribe --bind-to none -n 2 bash -c 'echo $$ >pid-$OMPI_COMM_WORLD_RANK; exec "$0" "$@"' \
    "$train" run a.ini --set run.dir=stall --set parallel.data=2 --set parallel.timeout=3 --set train.steps=1000000 --set checkpoint.every=0 >out 2>err &
mpi=$!
for _ in $(seq 300); do [ -s stall/metrics.jsonl ] && break; sleep 0.1; done
kill -STOP "$(cat pid-1)"
wait $mpi
expect "a stalled rank: exit code" $? 1
kill -CONT "$(cat pid-1)" 2>/dev/null
if grep -q "rank 0 waited 3 s for rank 1 " err; then pass "a stalled rank is named"; else flunk "a stalled rank is named" "no such line"; fi

# A rank that is killed: all end soon, and the newest snapshot is whole.
timeout 120 mpirun "${as_root[@]}" --oversubscribe --bind-to none -n 2 bash -c 'echo $$ >pid-$OMPI_COMM_WORLD_RANK; exec "$0" "$@"' \
    "$train" run a.ini --set run.dir=killed --set parallel.data=2 --set parallel.zero=3 --set train.steps=1000000 --set train.eval_every=0 >out 2>err &
mpi=$!
for _ in $(seq 300); do [ -e killed/snapshots/step-00000006.h5 ] && break; sleep 0.1; done
kill -KILL "$(cat pid-1)"
SECONDS=0
wait $mpi
code=$?
if [ $code != 0 ] && [ $code != 124 ] && [ $SECONDS -le 10 ]; then pass "a killed rank ends the others"; else flunk "a killed rank ends the others" "exit code $code after $SECONDS s"; fi
last=$(ls killed/snapshots | tail -n 1)
"$train" run a.ini --set run.dir=killed --set train.steps=1000000 --set train.eval_every=0 --set checkpoint.every=1 --resume >out 2>err &
one=$!
for _ in $(seq 300); do [ "$(ls killed/snapshots | tail -n 1)" != "$last" ] && break; sleep 0.1; done
kill -TERM $one
wait $one
expect "one rank goes on from the killed run's snapshot" $? 75

echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
