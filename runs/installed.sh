#!/usr/bin/env bash
# The package as users get it: a wheel of what is committed, with the newest packages that it allows, in a virtual
# environment outside the checkout. Usage: runs/installed.sh [PYTHON]
set -euo pipefail
python=${1:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH PIP_CONSTRAINT

mkdir "$place/source"
git -C "$root" archive HEAD | tar -x -C "$place/source"
"$python" -m venv "$place/venv"
bin=$place/venv/bin
"$bin/python" -m pip wheel --disable-pip-version-check -q --no-deps -w "$place" "$place/source"
rm -r "$place/source"
"$bin/python" -m pip install --disable-pip-version-check -q "$place"/*.whl
"$bin/python" -m pip list --disable-pip-version-check

cd "$place"
"$bin/magi" --version
"$bin/python" -c "import magi, sys; assert magi.__file__.startswith(sys.prefix), magi.__file__"
"$bin/magi" data digits videos --clips 4 --size 64 --frames 20
"$bin/magi" data index videos
"$bin/magi" encode videos latents --device cpu
"$bin/magi" train digits --run run --data.root latents --training.steps 2 --training.batch 2 --device cpu
"$bin/magi" sample demo samples --frames 4 --count 1 --device cpu
test -s samples/contact_sheet.png
echo "installed magi works with Python $("$bin/python" -c 'import platform; print(platform.python_version())')"
