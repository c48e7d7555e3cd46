#!/bin/sh
# Every benchmark on one GPU in one call: sh docs/gpu.sh [FOLDER]
# The tables go to the terminal and to FOLDER/*.txt, all figures to FOLDER/*.json.
# SHAPE (7b), DEVICE (cuda), VIDEO_TOKENS (4000) and ROUNDS (10) are taken from the environment.
set -eu
folder=${1:-gpu-figures} device=${DEVICE:-cuda} shape=${SHAPE:-7b} video_tokens=${VIDEO_TOKENS:-4000}
rounds=${ROUNDS:-10}
mkdir -p "$folder"

bench() {
    name=$1
    shift
    echo "== $name"
    vreason bench --shape "$shape" --device "$device" --rounds "$rounds" "$@" --output "$folder/$name.json" \
        > "$folder/$name.txt" || { cat "$folder/$name.txt"; exit 1; }
    cat "$folder/$name.txt"
}

case $device in cuda*) compiled=--compiled ;; *) compiled= ;; esac  # Plain generate compiles on CUDA only.
bench steps --video-tokens "$video_tokens" --batch 1,8 $compiled
bench growth --video-tokens 256,1024,4096,16384 --only default strong
# The checkpoint (17 GB for 7b) goes to the temporary folder and is removed; TMPDIR chooses another.
bench end_to_end --end-to-end --video-tokens "$video_tokens"
