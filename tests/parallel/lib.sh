# What tests of several ranks share; sourced. $train is the program; the test goes on in an empty folder that is removed.
. "$(dirname "${BASH_SOURCE[0]}")/../support/cases.sh"
command -v mpirun >/dev/null || { echo "mpirun is not there: runs of several ranks are not tested"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/train-ranks-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0   # MPI itself leaks

as_root=()
[ "$(id -u)" = 0 ] && as_root=(--allow-run-as-root)
ranks() { # ranks N ARGUMENTS...
    local n=$1
    shift
    timeout 120 mpirun "${as_root[@]}" --oversubscribe --bind-to none -n "$n" "$train" "$@" >out 2>err
}
losses() { sed -E 's/.*"loss":([^,]*),.*"grad_norm":([^,]*),.*/\1 \2/' "$1/metrics.jsonl"; }
refused() { # refused NAME CODE PATTERN N ARGUMENTS...: one line of error in all
    local name=$1 code=$2 pattern=$3 got
    shift 3
    ranks "$@"
    got=$?
    [ $got = "$code" ] || { flunk "$name" "exit code $got, not $code"; return; }
    [ "$(grep -c '^train: error: ' err)" = 1 ] || { flunk "$name" "not exactly one line of error"; return; }
    if grep '^train: error: ' err | grep -qE -- "$pattern"; then pass "$name"; else flunk "$name" "the error does not say '$pattern'"; fi
}
