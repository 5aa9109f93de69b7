#!/usr/bin/env bash
# Ranks of a pipeline that share the vocabulary: losses of one rank to 1e-6 and the weights of its steps, with both algorithms, every schedule, families of
# models, vocabularies that do not divide; snapshots that do not know of it; the forecast against the ledger; what cannot be, said once.
#   vocabulary.sh TRAIN      Without mpirun it says so and passes over everything.
set -uo pipefail
train=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
. "$here/lib.sh"
. "$here/tiny.sh"
sed -i 's/^layers = .*/layers = 8/' a.ini
shared() { piped "$3" --set parallel.schedule="$1" --set parallel.vocabulary="$2" "${@:4}"; } # shared SCHEDULE ALGORITHM RANKS ARGUMENTS...
# nearly NAME FOLDER FOLDER: losses, validation loss and the first norm; the next come from weights that AdamW moved by the signs of
# the least gradients, which rounding turns.
nearly() {
    expect "$1" "$(paste -d: <(figures "$2") <(figures "$3") |
        awk -F: '{ d = ($2 - $4) / $2 / (NR > 2 && /norm/ ? 10 : 1); d = d < 0 ? -d : d; if (d > most) most = d } END { print NR == 9 && most <= 1e-6 ? "within 1e-6" : NR " figures, " most " off" }')" "within 1e-6"
}

one --set run.dir=one
for layout in $(few 1f1b/alg1/2 1f1b/alg2/2 interleaved/alg1/2 zero-bubble/alg2/2 v-half/alg1/3 v-half/alg2/4 v-min/alg2/2); do
    IFS=/ read -r k a n <<<"$layout"
    shared "$k" "$a" "$n" --set run.dir=v
    nearly "$k, $a, $n ranks" one v
    rm -rf v
done

# family LAYOUT SETTING...: one rank and several.
family() {
    IFS=/ read -r k a n <<<"$1"
    one --set run.dir=x1 "${@:2}"
    shared "$k" "$a" "$n" --set run.dir=x2 "${@:2}"
    nearly "$k, $a, $n ranks, ${*:3}" x1 x2
    rm -rf x1 x2
}
family 1f1b/alg1/3 --set model.tied=true
family v-half/alg2/2 --set model.tied=true
family 1f1b/alg2/4 --set model.arch=qwen3 --set model.tied=true --set train.clip=0.5
family v-half/alg1/2 --set model.arch=qwen3
family 1f1b/alg2/2 --set model.arch=gpt2
family zero-bubble/alg1/2 --set model.arch=gpt2 --set model.tied=false
family v-half/alg2/8 --set model.layers=16 --set model.tied=true --set memory.recompute=block
family 1f1b/alg1/2 --set train.micro_batch=6
family 1f1b/alg2/2 --set optimizer.name=galore --set optimizer.rank=4
family v-half/alg1/2 --set optimizer.name=lisa
# The weights themselves after steps in proportion to the gradients.
if command -v h5diff >/dev/null; then
    one --set run.dir=x1 --set optimizer.name=sgd --set train.lr=0.5 --set model.tied=true
    shared 1f1b alg2 3 --set run.dir=x2 --set optimizer.name=sgd --set train.lr=0.5 --set model.tied=true
    expect "weights, 1f1b, alg2, 3 ranks" "$(h5diff -d 2e-7 x1/snapshots/step-00000004.h5 x2/snapshots/step-00000004.h5 /param /param 2>&1 | grep -v '^attribute' | grep -A 1 '^dataset\|rror' | head -n 3)" ""
    rm -rf x1 x2
fi

# Two pipelines side by side, with state whole or dealt to the ranks of a stage; from those to one rank.
one --set run.dir=x1 --set model.tied=true
for zero in 0 2; do
    grid 2 2 $zero --set parallel.vocabulary=alg2 --set model.tied=true --set run.dir=g$zero
    nearly "2 pipelines of 2 stages, alg2, tied, ZeRO $zero" x1 g$zero
done
grid 2 2 2 --set parallel.vocabulary=alg1 --set run.dir=go --set train.stop_at=2
one --set run.dir=go --resume --set train.stop_at=3
grid 2 2 1 --set parallel.vocabulary=alg2 --set run.dir=go --resume
nearly "from two pipelines, ZeRO 2, to one rank and back" one go
rm -rf go

# Snapshots do not know who had which rows: weights and state go on on one rank, and back.
shared v-half alg2 2 --set run.dir=go --set train.stop_at=2
one --set run.dir=go --resume --set train.stop_at=3
shared 1f1b alg1 3 --set run.dir=go --resume
nearly "from v-half to one rank to 1f1b" one go

timeout 120 "$train" eval a.ini >alone 2>err
ranks 3 eval a.ini --set parallel.pipeline=3 --set parallel.schedule=v-min --set parallel.vocabulary=alg2
expect "evaluation alone" "$(cat out)" "$(cat alone)"

shared v-half alg2 2 --set run.dir=f --set checkpoint.every=0 --set train.eval_every=0 --set data.valid=
expect "the peak is the forecast's" "$(tail -n 1 f/metrics.jsonl | grep -oE '"peak":[0-9]+' | head -n 1 | cut -d: -f2)" "$(grep -oE '"peak": *[0-9]+' f/plan.json | head -n 1 | grep -oE '[0-9]+')"

refused "a rule that needs the head whole" 2 'set parallel.vocabulary = none' 2 run a.ini --set parallel.pipeline=2 --set parallel.vocabulary=alg2 --set optimizer.name=adafactor --set run.dir=no

echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
