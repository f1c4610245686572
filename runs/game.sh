#!/usr/bin/env bash
# The recorded game of docs/worlds.md: a model of Doom's "Defend the Center", by the recipe for any game. About 1 h 30
# min on one CPU core; stop it and start it again as you like. Seeds: 0 for the training videos, 1 for those held out.
# Needs: pip install -e '.[games]'. Nothing of the game is shipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"
work=build/doom environment=vizdoom.gymnasium_wrapper:VizdoomDefendCenter-v1

magi data record $environment $work/videos --clips 400 --size 64
magi data record $environment $work/held_out --clips 200 --size 64 --seed 1
magi train-vae $work/videos $work/vae --height 64 --width 64
magi encode $work/videos $work/latents --vae $work/vae
magi train world-platform --run $work/run --data.root $work/latents --vae.weights $work/vae --model.actions 4 \
    --training.steps 1900 --training.cooldown-steps 650 --training.sample-every 0
magi evaluate game doom=$work/run $work/held_out $work/results --batch 32

mkdir -p results
cp $work/results/result.json results/game.json
cp $work/results/contact_sheet.png docs/game.png
python runs/tables.py game
