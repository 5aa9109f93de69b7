#!/usr/bin/env bash
# Every schedule of a pipeline gives the losses, norms and snapshots of one rank: bit for bit, tied embeddings to rounding.
#   schedules.sh TRAIN      Without mpirun it says so and passes over everything.
set -uo pipefail
train=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
. "$here/lib.sh"
. "$here/tiny.sh"
scheduled() { piped "$2" --set parallel.schedule="$1" "${@:3}"; } # scheduled SCHEDULE RANKS ARGUMENTS...

sed -i 's/^layers = .*/layers = 8/' a.ini
one --set run.dir=one
one --set run.dir=tied1 --set model.tied=true
for layout in $(few interleaved/2 interleaved/3 zero-bubble/3 v-half/2 v-half/4 v-min/3); do
    scheduled ${layout%/*} ${layout#*/} --set run.dir=p
    same "${layout%/*}, ${layout#*/} ranks" one p
    rm -rf p
done
for layout in $(few interleaved/2 zero-bubble/3 v-half/2); do
    close tied1 "${layout%/*}, ${layout#*/} ranks, tied" scheduled ${layout%/*} ${layout#*/}
done
piped 3 --set run.dir=p --set parallel.layers=1,5,2
same "1f1b, 3 ranks, layers by hand" one p
rm -rf p

# What waits for the weights' part of backward is kept, rebuilt or run again; biases; updates inside backward; a grid.
for more in "model.arch=gpt2 --set model.tied=false --set memory.recompute=none" "memory.recompute=block --set train.clip=0.5" "train.micro_batch=6" \
    "optimizer.name=galore --set optimizer.rank=4"; do
    one --set run.dir=x1 --set $more
    scheduled v-half 2 --set run.dir=x2 --set $more
    same "v-half, 2 ranks, $more" x1 x2
    rm -rf x1 x2
done
grid 2 2 1 --set parallel.schedule=zero-bubble --set run.dir=g
same "zero-bubble, 2 pipelines of 2 stages, ZeRO 1" one g

# Snapshots do not know the schedule.
scheduled v-half 2 --set run.dir=go --set train.stop_at=2
scheduled interleaved 3 --set run.dir=go --resume
same "from v-half to interleaved" one go

# What rank 0 was foretold it uses (snapshots and evaluation apart).
scheduled v-half 2 --set run.dir=f --set checkpoint.every=0 --set train.eval_every=0 --set data.valid=
expect "the peak of v-half is the forecast's" "$(tail -n 1 f/metrics.jsonl | grep -oE '"peak":[0-9]+' | head -n 1 | cut -d: -f2)" "$(grep -oE '"peak": *[0-9]+' f/plan.json | head -n 1 | grep -oE '[0-9]+')"

piped 4 --set run.dir=few --set train.micro_batch=3
expect "fewer micro-batches than stages" "$(grep -c 'warning: 2 micro-batches for 4 stages: ranks wait for 60 % of a step' err)" 1

refused "layers by hand that do not add up" 2 '3 numbers of 1 or more that add up to 8, as 2,3,3' 3 run a.ini --set parallel.pipeline=3 --set parallel.layers=3,3,3 --set run.dir=no
refused "more stages than layers" 2 'set parallel.pipeline to at most 4, or parallel.schedule = 1f1b' 6 run a.ini --set parallel.pipeline=6 --set parallel.schedule=v-half --set run.dir=no
refused "micro-batches that the schedule cannot do" 2 'use 4 or 8, or 1f1b' 4 run a.ini --set parallel.pipeline=4 --set parallel.schedule=interleaved --set run.dir=no

echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
