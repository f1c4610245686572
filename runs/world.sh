#!/usr/bin/env bash
# Makes the shipped world model, magi/demo_worlds/platform, and its figures: videos, autoencoder, latents, training,
# export, evaluation. Minutes on a GPU, hours on two CPU cores; stop it and start it again as you like, every step
# continues where it was (on two quiet cores about 3 hours). Seeds: 0 for the training videos and the first trainings, 1
# for the held-out videos and the second training, 3 for the long videos. The shipped run's sampling settings were chosen
# on 48 clips of seed 2; the length of its second training was settled on the way, so its rate fell from step 1,300 on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"
work=build/platform

magi data world platform $work/train --clips 800 --frames 256 --seed 0
magi data world platform $work/held_out --clips 128 --frames 320 --seed 1
magi train-vae $work/train $work/vae --height 64 --width 64 --steps 4000 --batch 16
magi encode $work/train $work/latents --vae $work/vae --height 64 --width 64
magi train world-platform --run $work/first --data.root $work/latents --vae.weights $work/vae --training.sample-every 0
# Then again from its averaged weights, at the whole learning rate and down once more.
magi train world-platform --run $work/run --data.root $work/latents --vae.weights $work/vae --training.sample-every 0 \
    --training.start-from $work/first --training.steps 2700 --training.seed 1
magi export $work/run magi/demo_worlds/platform --dtype float16
magi evaluate world platform=magi/demo_worlds/platform $work/held_out $work/results --batch 32

# And for 1,000 frames.
magi data world platform $work/long --clips 32 --frames 1024 --seed 3
magi evaluate world platform=magi/demo_worlds/platform $work/long $work/results_long --batch 32 --frames 1004 --count 32

mkdir -p results
cp $work/results/result.json results/world.json
cp $work/results_long/result.json results/world_long.json
python runs/tables.py world world_long targets
cp $work/results/contact_sheet.png docs/world.png
# docs/world.gif: four clips and the first 140 frames of $work/results/comparison.mp4, every other frame.
cat $work/first/metrics.jsonl $work/run/metrics.jsonl > runs/world_train.jsonl
