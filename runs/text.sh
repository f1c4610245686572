#!/usr/bin/env bash
# Makes the shipped model of text, magi/demo_text, and its figures: captioned videos, latents of the shipped digits
# autoencoder, trainings, export, evaluation. Stop it and start it again as you like, every step continues where it was.
# Seeds: 0 for the training videos and the training; the prompts are of another one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"
work=build/text

magi data digits $work/train --captions --clips 15000 --seed 0
magi encode $work/train $work/latents --vae demo --height 64 --width 64
# On clips of 3 frames, where most of what a caption says is decided, then on whole ones; and twice more from there.
short="--data.frames 3 --model.frames 3 --training.batch 16 --training.cooldown-steps 0 --training.first-frame-views 4"
again="$short --training.warmup-steps 50 --training.ema-decay 0.999"
whole="--training.batch 8 --training.warmup-steps 20 --training.ema-decay 0.995"
train="magi train digits-text --data.root $work/latents --training.sample-every 0"
$train --run $work/short1 $short --training.steps 2270
$train --run $work/whole1 $whole --training.start-from $work/short1 --training.steps 1050 --training.cooldown-steps 850
$train --run $work/short2 $again --training.start-from $work/whole1 --training.steps 7875
$train --run $work/whole2 $whole --training.start-from $work/short2 --training.steps 2600 --training.cooldown-steps 1900
$train --run $work/short3 $again --training.start-from $work/whole2 --training.steps 6000
$train --run $work/run $whole --training.start-from $work/short3 --training.steps 2200 --training.cooldown-steps 1600
magi export $work/run magi/demo_text --dtype float16
# Some 1,700 clips, under half an hour of one core; with --worker 0/2 and 1/2 two processes share them.
magi evaluate text text=magi/demo_text $work/results --guidance 1 2 5
# Twelve prompts as a person words them, which the grammar does not, the first video of each.
magi sample magi/demo_text $work/own --prompts runs/own_prompts.txt --batch 12

mkdir -p results
cp $work/results/result.json results/text.json
python runs/tables.py text targets
cp $work/results/prompts.png docs/text.png
cp $work/own/contact_sheet.png docs/text_own.png
cat $work/{short1,whole1,short2,whole2,short3,run}/metrics.jsonl > runs/text_train.jsonl
