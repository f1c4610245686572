#!/bin/sh
# One run on a GPU, about 9 minutes: checks, then the speed cases, most important first, with their JSON after each.
#   sh runs/gpu.sh NAME         NAME is the card's, as in results/bench_NAME.json
#   sh runs/gpu.sh dry          the same at tiny shapes on the CPU: shows that it runs, measures nothing
set -eu
name=${1:?usage: sh runs/gpu.sh NAME}
python=${PYTHON:-python3}
if [ "$name" = dry ]; then
    "$python" runs/gpu_checks.py cpu
    exec "$python" -m magi bench --smoke --device cpu --rounds 1 --minutes 60 --out build/bench_dry.json
fi
"$python" runs/gpu_checks.py cuda
"$python" -m magi bench --device cuda --minutes 8 --out "results/bench_$name.json"
"$python" runs/tables.py bench speed
