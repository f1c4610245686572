#!/bin/sh
# One run on a GPU, about 9 minutes: checks first, then the speed cases, most important first, JSON after each.
#   sh runs/gpu.sh NAME         NAME is the card's, as in results/bench_NAME.json
#   sh runs/gpu.sh dry          the same at tiny shapes on any device: checks that it runs, measures nothing
set -eu
name=${1:?usage: sh runs/gpu.sh NAME}
python=${PYTHON:-python3}
report=results/bench_$name.json
if [ "$name" = dry ]; then
    exec "$python" -m magi bench --smoke --device cpu --rounds 1 --out build/bench_dry.json
fi
"$python" -m magi bench --device cuda --minutes 8 --out "$report"
"$python" runs/tables.py bench
