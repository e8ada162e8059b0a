#!/usr/bin/env bash
# By commands alone: a model that speaks, somebody's autoencoder and pairs, to a patch to pass on.
#
#     docs/examples/command_line.sh                               # the zoo's
#     docs/examples/command_line.sh MODEL SAE PAIRS SITE IMAGE    # names on the hub, or folders
set -euo pipefail
model=${1:-zoo:emoji-llava} sae=${2:-zoo:language.0} pairs=${3:-} site=${4:-language.0}
image=${5:-}
question="what colour is the background?"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "$pairs" ]; then # a folder of images, each with its text beside it
    pairs=$work/pairs image=$work/pairs/001.png
    mkdir "$pairs"
    python - "$pairs" <<'END'
import sys
from pathlib import Path
from vlm_edit import zoo

pairs, folder = zoo.load_pairs(), Path(sys.argv[1])
for i in range(160):
    pairs.open(i).save(folder / f"{i:03}.png")
    (folder / f"{i:03}.txt").write_text(pairs.texts[i], "utf-8")
END
elif [ -z "$image" ]; then
    echo "$0: name an image to ask about, behind the site" >&2
    exit 2
fi

say() { printf '\n$ vlm-edit %s\n' "$*"; vlm-edit "$@"; }

# Where one can look, and whether this autoencoder belongs there.
vlm-edit sites "$model" --quiet | head -3
say check "$model" "$pairs" --site "$site" --dictionary "$sae" --quiet || test $? = 1 # 1: it warns

# Which features belong to images, to texts, to both: a table, a summary and a page.
say measure "$model" "$pairs" --site "$site" --dictionary "$sae" --out "$work/run" --quiet
say report "$work/run"

# A patch, tried on a few pairs as it is made; the same command again would overwrite nothing.
rule=(--features "${FEATURES:-342,110,49,501}" --rule clamp --value 8 --tokens image)
say edit "$model" "$pairs" --site "$site" --dictionary "$sae" "${rule[@]}" \
    --save "$work/yellow.safetensors" --ask "$question" --shown 2 --quiet
say ask "$model" "$image" "$question" --patch "$work/yellow.safetensors" --strength 1 --quiet

# What goes to a colleague, and whether it fits there.
say patch info "$work/yellow.safetensors"
say patch apply "$model" "$work/yellow.safetensors" --quiet
