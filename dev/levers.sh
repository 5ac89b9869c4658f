#!/usr/bin/env bash
# Exit policies on the released weights, without any training: each fitted, attacked by somebody who knows it, and
# judged under all attacks made here, its own and the others'. From a checkout, with rdi on the PATH:
#     CHECKPOINT=rdi_resnet38_cifar10_official.pth.tar RDI_DATA=... dev/levers.sh [images 1000] [calibration images 500]
# Stopped? The same command goes on. At the end results/levers holds the records; `make results` lays them out.
set -euo pipefail
cd "$(dirname "$0")/.."
samples=${1:-1000} held=${2:-500} run=${RUN:-runs/levers} out=${OUT:-results/levers}
export RDI_CONF_DIR=$PWD/dev/levers
fast=(engine.precision=${PRECISION:-bf16})

clean=(paper_resnet38 last_exit within ensemble_within agreement_within agreement_ensemble_within)
adaptive=(adaptive_within ensemble_adaptive agreement_adaptive)

[ -f "$run/done" ] || rdi import checkpoint="$CHECKPOINT" backbone=resnet38 data=cifar10_jpeg data.calibration=2000 \
    data.calibration_from=test threshold=paper_resnet38 run="$run"
rdi attack run="$run" suite=paper samples="$samples" "${fast[@]}"
for policy in "${clean[@]}"; do
    [ -f "$run/thresholds/$policy.json" ] || rdi evaluate run="$run" threshold="$policy" tracking=none
done
# what the policies of the second kind are fitted on: held-out images, attacked by somebody who knows those of the first
for policy in within ensemble_within agreement_within; do
    for attack in soft confident_wrong; do
        rdi attack run="$run" split=calibration attack=$attack thresholds="$policy" samples="$held" "${fast[@]}"
    done
done
for policy in "${adaptive[@]}"; do
    [ -f "$run/thresholds/$policy.json" ] || rdi evaluate run="$run" threshold="$policy" tracking=none
done
for policy in "${clean[@]}" "${adaptive[@]}"; do
    rdi attack run="$run" suite=adaptive thresholds="$policy" samples="$samples" "${fast[@]}"
done
mkdir -p "$out/evals" "$out/thresholds"
cp "$run/manifest.json" "$out/run.json"
for policy in "${clean[@]}" "${adaptive[@]}"; do
    rdi evaluate run="$run" thresholds="$policy" tracking=none
    cp "$run/thresholds/$policy.json" "$out/thresholds/"
    cp "$run"/evals/"$policy"__test-{clean,worst,*@"$policy"}.json "$out/evals/"
done
