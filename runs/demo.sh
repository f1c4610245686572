#!/usr/bin/env bash
# make demo: built-in videos -> a model trained from scratch for a few minutes -> 100 generated frames, and a report.
#
# Two CPU cores, 4 GB, at most 12 minutes. Everything goes to build/demo; a second call continues or reuses what is
# there. DEMO_SECONDS is the time that the fresh model is trained for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=build/demo
seconds=${DEMO_SECONDS:-300}
preset=(digits --data.root "$out/latents" --run "$out/run" --data.workers 1)
began=$SECONDS

say() { printf '\n== %s (%d min %02d s)\n' "$1" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)); }

say "1/5 videos of bouncing digits, as mp4 files"
magi data digits "$out/train" --clips 500 --size 64 --seed 1
magi data digits "$out/held-out" --clips 16 --size 64 --seed 2

say "2/5 every file decoded once, safely, and encoded with the shipped autoencoder"
magi encode "$out/train" "$out/latents" --vae demo --height 64 --width 64

say "3/5 training the preset 'digits' from scratch, for at most $seconds s"
# --foreground: Ctrl-C reaches the training, which saves and stops; so does the end of its time.
status=0
timeout --foreground --signal=TERM "$seconds" magi train "${preset[@]}" || status=$?
case $status in
    0) ;;
    124) echo "the time is up: going on with the model as it is; the same command trains it further" ;;
    *) exit "$status" ;;
esac

say "4/5 continuing held-out videos for 100 frames: the fresh model, and the one shipped with the package"
magi evaluate digits "fresh=$out/run,demo=demo" "$out/held-out" "$out/results" --count 16 --batch 16

say "5/5 dreaming the platform world under recorded keys, against its exact simulator"
magi data world platform "$out/world" --clips 4 --frames 68 --seed 1
magi evaluate world platform=platform "$out/world" "$out/world-results" --count 4 --frames 68 --batch 4

say "done"
cat <<EOF
The shipped model has trained for longer; the fresh one for minutes, on this machine. Look at:
  $out/results/report.html        everything on one page: curves, real against generated, figures of each frame
  $out/results/comparison.mp4     real and generated side by side
  $out/results/comparison.gif     the same as a GIF
  $out/results/contact_sheet.png  the same as a picture
  $out/world-results/report.html  the game: real above dreamed under the same keys
  $out/run                        the fresh model: magi sample $out/run OUT --frames 60 --label 7

Now play that game in your browser, dreamed under your keys: make play (elsewhere: magi play)
EOF
