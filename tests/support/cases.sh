# Cases of tests in shell; sourced. A failure shows the end of the file err: what the last command said.
good=0 bad=0
pass() { good=$((good + 1)); echo "[       OK ] $1"; }
flunk() {
    bad=$((bad + 1))
    echo "[  FAILED  ] ${1// /_}"
    echo "ERROR: $1: $2"
    [ -s err ] && grep -v '^--' err | tail -n 6 | sed 's/^/    /'
}
expect() { if [ "$2" = "$3" ]; then pass "$1"; else flunk "$1" "$2, not $3"; fi; }
# A text to train on: the file text.txt.
some_text() { for i in $(seq 400); do echo "line $((i % 17)) of a text that repeats $((i % 5)) times"; done >text.txt; }
# The members of a family: all of them, or under sanitizers (TEST_SANITIZED=1), where each costs ten times as much, the first and the last.
few() { if [ -n "${TEST_SANITIZED:-}" ] && [ $# -gt 2 ]; then echo "$1 ${!#}"; else echo "$*"; fi; }
