#!/bin/sh
# The speed figures of this machine: JSON in results/, the table in README.md and docs/performance.md.
#   sh runs/bench.sh cpu            at most 10 minutes; leave the machine alone meanwhile
#   sh runs/bench.sh cuda h200      a run of at most 10 minutes on one GPU
#   sh runs/bench.sh cuda h200 sample.b64 train      only these cases, into what is there
set -eu
device=${1:-cpu}
name=${2:-$device}
shift $(($# < 2 ? $# : 2))
python=${PYTHON:-python3}
report=results/bench_$name.json
if [ $# -gt 0 ] && [ -f "$report" ]; then
    "$python" -m magi bench "$@" --device "$device" --minutes 9.5 --out "build/bench_$name.json"
    "$python" -m magi bench --merge "$report" "build/bench_$name.json" --out "$report"
else
    "$python" -m magi bench "$@" --device "$device" --minutes 9.5 --out "$report"
fi
for file in README.md docs/performance.md; do
    if grep -q 'results:bench:begin' "$file"; then
        "$python" -m magi bench --results results/bench_*.json --readme "$file"
    fi
done
