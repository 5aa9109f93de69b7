#!/usr/bin/env bash
# Layers shared by a pipeline of ranks, or by several side by side: losses, norms and snapshots of one rank, bit for bit; runs that go on from a snapshot with
# another cut; the forecast against the ledger of each stage; and what cannot be, said once.
#   pipeline.sh TRAIN      Without mpirun it says so and passes over everything.
set -uo pipefail
train=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
. "$here/lib.sh"
. "$here/tiny.sh"

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

# Snapshots in memory, of which the keeper writes those for the disk: the same losses, and one rank goes on from each.
for layout in $(few 1/3/0/none 1/2/0/alg2 2/2/0/none 2/2/1/alg2); do
    IFS=/ read -r d p z v <<<"$layout"
    for every in 0 1; do grid "$d" "$p" "$z" --set run.dir=m$every --set parallel.vocabulary="$v" --set checkpoint.memory_every=$every --set train.stop_at=2; done
    same "losses with snapshots in memory, $d pipelines of $p stages, ZeRO $z, $v" m0 m1
    if command -v h5diff >/dev/null; then
        expect "the same snapshot by the keeper" "$(for g in param optimizer; do h5diff m0/snapshots/step-00000002.h5 m1/snapshots/step-00000002.h5 /$g /$g 2>&1; done | head -n 3)" ""
    fi
    rm -rf m0 m1
done

# What each rank was foretold it uses, by the run itself and by a plan without mpirun (snapshots and evaluation apart).
span() { tr -d '[] ' | tr , '\n' | sort -n | sed -n '1p;$p' | tr '\n' ' '; }
for layout in $(few 1/3/0/none/1f1b 1/2/0/alg2/v-half 2/2/2/none/interleaved); do
    IFS=/ read -r d p z v k <<<"$layout"
    sets=(--set parallel.data="$d" --set parallel.pipeline="$p" --set parallel.zero="$z" --set parallel.vocabulary="$v" --set parallel.schedule="$k" --set checkpoint.every=0 --set train.eval_every=0
        --set data.valid= --set train.batch=12 --set run.dir=f)
    ranks $((d * p)) run a.ini "${sets[@]}"
    used=$(tail -n 1 f/metrics.jsonl | grep -oE '"memory_ranks":\{"peak":\[[0-9, ]+' | cut -d[ -f2 | span)
    expect "peaks of $d pipelines of $p stages, ZeRO $z, $v, $k are the run's forecast" "$used" "$(grep -oE '"peak_ranks": *\[[0-9, ]+' f/plan.json | cut -d[ -f2 | span)"
    expect "and the plan's" "$used" "$("$train" plan a.ini "${sets[@]}" --json | grep -oE '"ledger":\[[0-9,]+' | cut -d[ -f2 | span)"
done

refused "more stages than layers" 2 'set parallel.pipeline to at most 5' 6 run a.ini --set parallel.pipeline=6 --set run.dir=no
refused "ranks that do not fill the grid" 2 'parallel.data x parallel.pipeline = 2 x 2 = 4' 3 run a.ini --set parallel.pipeline=2 --set parallel.data=2 --set run.dir=no
refused "ZeRO 3 inside a stage" 2 'set parallel.zero = 2' 4 run a.ini --set parallel.pipeline=2 --set parallel.data=2 --set parallel.zero=3 --set run.dir=no
refused "snapshots in memory of layers in turn" 2 'checkpoint.memory_every = 0' 2 run a.ini --set parallel.pipeline=2 --set checkpoint.memory_every=1 --set optimizer.name=lisa --set run.dir=no
refused "zeroth order" 2 'learn from losses' 2 run a.ini --set parallel.pipeline=2 --set optimizer.name=zo-sgd --set run.dir=no
refused "curvature probes" 2 'curvature probe' 2 run a.ini --set parallel.pipeline=2 --set optimizer.name=sophia-g --set run.dir=no

echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
