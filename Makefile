# One command each for building, trying, checking and tidying. `verify` is what CI runs; it never edits a file.

CARGO ?= cargo
PROGRAMS := target/debug
BENCH := target/release/raftify-bench
MINUTES ?= 60
SEED ?= 0
SEEDS ?= 1000

.DEFAULT_GOAL := help
.PHONY: help build run test verify fix sim-shell bench bench-quick soak performance clean

help: ## Say what can be done (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build all programs, unoptimised, into ./target/debug
	$(CARGO) build --workspace

run: build ## Run three nodes of the key-value store in this terminal, until Ctrl+C
	@exec $(PROGRAMS)/memstore-cluster

test: ## Run all tests
	$(CARGO) test --workspace

verify: ## Check everything that CI checks: format, lints, docs, tests, each feature alone
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --all-features
	@# A feature that is on for one crate is on for all that are built with it: hence one by one.
	@for manifest in crates/*/Cargo.toml; do \
		package=$$(basename $$(dirname $$manifest)); \
		for feature in '' $$(awk '/^\[/ { on = ($$0 == "[features]") } on && /^[a-z]/ { print $$1 }' $$manifest); do \
			echo "check $$package --no-default-features --features '$$feature'"; \
			$(CARGO) clippy --quiet --locked -p $$package --no-default-features --features "$$feature" \
				-- -D warnings || exit 1; \
		done; \
	done
	$(CARGO) test --locked --workspace

fix: ## Repair what can be repaired by machine: format and simple lints
	$(CARGO) clippy --fix --allow-dirty --allow-staged --workspace --all-targets --all-features
	$(CARGO) fmt --all

sim-shell: ## SEEDS=1000 worlds of whole nodes on simulated hosts, from SEED=0 on
	$(CARGO) build --release -p raftify-shell-sim
	@target/release/sim-shell --seed $(SEED) --seeds $(SEEDS)

bench: ## Measure everything, in less than ten minutes: JSON lines to target/bench.jsonl, a table to the terminal
	$(CARGO) build --release -p raftify-bench -p memstore-static-members
	@$(BENCH) bench --also-to target/bench.jsonl

bench-quick: ## The most important figures, in less than a minute
	$(CARGO) build --release -p raftify-bench -p memstore-static-members
	@$(BENCH) bench --quick --also-to target/bench.jsonl

soak: ## MINUTES=60 at 80 % of what the cluster can do: no election, nothing that grows
	$(CARGO) build --release -p raftify-bench
	@$(BENCH) soak --minutes $(MINUTES)

performance: ## Put the figures of the last `make bench` into docs/performance.md, with plots and goals
	@$(BENCH) report docs/performance.md < target/bench.jsonl

clean: ## Delete everything built, and the data of `make run`
	$(CARGO) clean
