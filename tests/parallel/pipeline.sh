#!/usr/bin/env bash
# Layers shared by a pipeline of ranks, or by several side by side: losses, norms and snapshots of one rank, bit for bit; runs that go on from a snapshot with
# another cut; the forecast against the ledger of each stage; and what cannot be, said once.
#   pipeline.sh TRAIN      Without mpirun it says so and passes over everything.
set -uo pipefail
train=$(realpath "$1")
. "$(dirname "$0")/lib.sh"

for i in $(seq 400); do echo "line $((i % 17)) of a text that repeats $((i % 5)) times"; done >text.txt
cat >a.ini <<INI
[model]
hidden = 32
layers = 5
heads = 4
intermediate = 64
vocab = 263
context = 64
tokenizer = bytes
dtype = f32
[data]
train = text.txt
valid = text.txt
sequence = 32
[train]
steps = 4
batch = 6
micro_batch = 1
lr = 1e-3
warmup = 1
eval_every = 4
seed = 3
log_every = 1000
[checkpoint]
every = 2
keep = 9
[run]
threads = 1
INI
one() { timeout 120 "$train" run a.ini "$@" >out 2>err; }
piped() { local n=$1; shift; ranks "$n" run a.ini --set parallel.pipeline="$n" "$@"; }
# Loss and norm of every step, and the validation loss.
figures() { grep -oE '"(loss|grad_norm|valid_loss)":[^,}]*' "$1/metrics.jsonl"; }
same() { # same NAME FOLDER FOLDER
    if [ -s "$2/metrics.jsonl" ] && [ "$(figures "$2")" = "$(figures "$3" 2>/dev/null)" ]; then pass "$1"; else flunk "$1" "other figures than one rank"; fi
}

# Untied, 2 to 4 stages, several families of models; what waits is recomputed or kept; clipping; fewer micro-batches than stages.
one --set run.dir=one
for n in 2 3 4; do piped $n --set run.dir=p$n; same "$n stages" one p$n; done
for more in "model.arch=qwen3" "model.arch=gpt2 --set model.tied=false" "memory.recompute=block" "train.clip=0.5" "train.micro_batch=3" "train.micro_batch=6" "model.dtype=int8"; do
    one --set run.dir=x1 --set $more
    piped 3 --set run.dir=x3 --set $more
    same "3 stages, $more" x1 x3
    rm -rf x1 x3
done
# Every sort of state: whole matrices, rows, projections, blocks of 8 bits, layers in turn.
others=(apollo muon adafactor adamw-8bit soap frugal lisa)
[ -z "${TEST_SANITIZED:-}" ] || others=()
for o in galore "${others[@]}" "badam --set optimizer.switch_block_every=1"; do
    one --set run.dir=x1 --set optimizer.name=$o
    piped 3 --set run.dir=x3 --set optimizer.name=$o
    same "3 stages, $o" x1 x3
    rm -rf x1 x3
done

# A tied embedding is on the first and on the last stage: the same to rounding, for its two sums meet at the end of a step.
one --set run.dir=tied1 --set model.tied=true
close() { # close FOLDER NAME COMMAND...
    rm -rf tied
    "${@:3}" --set run.dir=tied --set model.tied=true
    expect "$2" "$(paste <(figures "$1" | grep '"loss"' | cut -d: -f2) <(figures tied | grep '"loss"' | cut -d: -f2) |
        awk '{ d = ($1 - $2) / $1; d = d < 0 ? -d : d; if (d > most) most = d } END { print NR == 4 && most <= 1e-6 ? "within 1e-6" : NR " losses, " most " off" }')" "within 1e-6"
}
close tied1 "3 stages, tied" piped 3

# Snapshots do not know the cut: from 4 stages to 2, and to one rank.
piped 4 --set run.dir=go --set train.stop_at=2
piped 2 --set run.dir=go --resume
same "from 4 stages to 2" one go
rm -rf go
piped 4 --set run.dir=go --set train.stop_at=2
one --set run.dir=go --resume
same "from 4 stages to one rank" one go

# Pipelines side by side share the batch: the same bits, with state whole or dealt to the ranks of a stage; resumed on other grids.
grid() { # grid DATA PIPELINE ZERO ARGUMENTS...
    ranks $(($1 * $2)) run a.ini --set "parallel.data=$1" --set "parallel.pipeline=$2" --set "parallel.zero=$3" "${@:4}"
}
for layout in $(few 2/2/0 2/2/1 3/2/2 2/3/2); do
    IFS=/ read -r d p z <<<"$layout"
    grid "$d" "$p" "$z" --set run.dir=g
    same "$d pipelines of $p stages, ZeRO $z" one g
    rm -rf g
done
for o in "galore --set optimizer.rank=4" "apollo --set optimizer.rank=4" muon adamw-8bit; do
    one --set run.dir=x1 --set optimizer.name=$o --set train.clip=0
    grid 2 2 2 --set run.dir=x4 --set optimizer.name=$o --set train.clip=0
    same "2 pipelines of 2 stages, ZeRO 2, ${o%% *}" x1 x4
    rm -rf x1 x4
done
one --set run.dir=c1 --set train.clip=0.5
grid 2 2 2 --set run.dir=c4 --set train.clip=0.5
same "2 pipelines of 2 stages, ZeRO 2, clipped" c1 c4
close tied1 "2 pipelines of 2 stages, ZeRO 1, tied" grid 2 2 1
grid 2 2 1 --set run.dir=go --set train.stop_at=2
grid 1 3 0 --set run.dir=go --resume --set train.stop_at=3
grid 2 2 2 --set run.dir=go --resume
same "from a grid to 3 stages and back" one go
rm -rf go

# What rank 0's stage was foretold it uses (snapshots and evaluation apart).
piped 3 --set run.dir=f --set checkpoint.every=0 --set train.eval_every=0 --set data.valid=
foretold=$(grep -oE '"peak": *[0-9]+' f/plan.json | head -n 1 | grep -oE '[0-9]+')
used=$(tail -n 1 f/metrics.jsonl | grep -oE '"peak":[0-9]+' | head -n 1 | cut -d: -f2)
expect "the first stage's peak is the forecast's" "$used" "$foretold"

refused "more stages than layers" 2 'set parallel.pipeline to at most 5' 6 run a.ini --set parallel.pipeline=6 --set run.dir=no
refused "ranks that do not fill the grid" 2 'parallel.data x parallel.pipeline = 2 x 2 = 4' 3 run a.ini --set parallel.pipeline=2 --set parallel.data=2 --set run.dir=no
refused "ZeRO 3 inside a stage" 2 'set parallel.zero = 2' 4 run a.ini --set parallel.pipeline=2 --set parallel.data=2 --set parallel.zero=3 --set run.dir=no
refused "a schedule that is only simulated" 2 'simulated alone' 2 run a.ini --set parallel.pipeline=2 --set parallel.schedule=v-half --set run.dir=no
refused "snapshots in memory" 2 'checkpoint.memory_every = 0' 2 run a.ini --set parallel.pipeline=2 --set checkpoint.memory_every=1 --set run.dir=no
refused "zeroth order" 2 'learn from losses' 2 run a.ini --set parallel.pipeline=2 --set optimizer.name=zo-sgd --set run.dir=no
refused "curvature probes" 2 'curvature probe' 2 run a.ini --set parallel.pipeline=2 --set optimizer.name=sophia-g --set run.dir=no

echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
