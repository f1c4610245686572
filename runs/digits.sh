#!/usr/bin/env bash
# Makes the shipped demo model, magi/demo_model, and its figures: videos, autoencoder, latents, training, export,
# evaluation. Hours on two CPU cores; stop it and start it again as you like, every step continues where it was.
#
# Seeds: 0 for the training videos and both trainings, 1 for the held-out videos. What the shipped run logged is in
# runs/digits_vae.jsonl and runs/digits_train.jsonl. That run ended after the preset's 4,500 steps for want of time, not
# because it had converged: more steps make a better model. It was stopped and continued several times, on one thread
# and on two, and the log interval changed, so this script repeats its settings and not its bits.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"
work=build/digits

magi data digits $work/train --clips 1000 --size 64 --seed 0
magi data digits $work/held_out --clips 32 --size 64 --seed 1
magi train-vae $work/train $work/vae --height 64 --width 64 --steps 4000 --batch 16 --learning-rate 5e-3
magi encode $work/train $work/latents --vae $work/vae --height 64 --width 64
magi train digits --run $work/run --data.root $work/latents --vae.weights $work/vae --training.precision bf16
magi export $work/run magi/demo_model --dtype float16
magi evaluate digits $work/results --models demo=magi/demo_model --videos $work/held_out --count 32 --readme README.md

mkdir -p results
cp $work/results/digits.json results/digits.json
cp $work/results/contact_sheet.png docs/demo.png
cp $work/results/curves.png docs/demo_curves.png
cp $work/vae/metrics.jsonl runs/digits_vae.jsonl
cp $work/run/metrics.jsonl runs/digits_train.jsonl
