#!/bin/sh
# Runs all fuzz targets, $1 seconds each. What is new is put into fuzz/target/found, what fails into fuzz/artifacts.
set -u
cd "$(dirname "$0")/.."

case ${1:-} in
    '' | 0 | *[!0-9]*) echo "the seconds for each target must be a positive number, not '${1:-}'"; exit 1 ;;
esac
if ! command -v cargo-fuzz > /dev/null; then
    echo "fuzzing needs cargo-fuzz: cargo install cargo-fuzz"; exit 1
fi
if ! cargo +nightly --version > /dev/null 2>&1; then
    echo "fuzzing needs a nightly compiler: rustup toolchain install nightly"; exit 1
fi

passed=0
failed=0
summary() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
    exit
}
trap summary INT

cargo +nightly fuzz build -O || exit 1
log=$(mktemp)
for target in fuzz/fuzz_targets/*.rs; do
    target=$(basename "$target" .rs)
    found=fuzz/target/found/$target
    mkdir -p "$found"
    if cargo +nightly fuzz run -O "$target" "$found" "fuzz/corpus/$target" -- \
        -max_total_time="$1" -timeout=10 -print_final_stats=1 > "$log" 2>&1; then
        passed=$((passed + 1))
        echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") executions"
    else
        failed=$((failed + 1))
        tail -n 40 "$log"
        echo "$target: failed; \`cargo +nightly fuzz run -O $target FILE\` runs the file named above again"
    fi
done
rm -f "$log"
summary
