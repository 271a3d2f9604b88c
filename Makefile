# One command each for building, running, checking and cleaning. `verify` is what CI runs; it never edits a file.

CARGO ?= cargo
PROGRAMS := target/debug
BENCH := target/release/raftify-bench
HOURS ?= 1
SEEDS ?= 10000
# The crates that are published: all but those that say `publish = false`.
PUBLISHED = $(notdir $(patsubst %/,%,$(dir $(shell grep -L 'publish = false' crates/*/Cargo.toml))))

.DEFAULT_GOAL := help
.PHONY: help build run test public-api verify package audit alerts sim sim-shell mutants crash-points fuzz chaos fix bench bench-quick bench-join soak performance clean

help: ## List the targets (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build all programs, unoptimised, into ./target/debug
	$(CARGO) build --workspace

run: build ## Run three nodes of the key-value store in this terminal, until Ctrl+C; TLS=1 with mutual TLS
	@exec $(PROGRAMS)/memstore-cluster $(if $(TLS),--tls --data-dir target/memstore-tls)

test: ## Run all tests
	$(CARGO) test --workspace

public-api: ## Write docs/public-api.txt again: the public API of the crate raftify, which `verify` compares with the code
	UPDATE_EXPECT=1 $(CARGO) test --quiet -p raftify --test public_api

verify: package ## Check everything that CI checks: format, lints, docs, tests, packages, each feature alone
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
	@# The bugs that can be put back are code as well. The flag reaches the workspace alone: nothing else is built again.
	$(CARGO) clippy --quiet --locked -p raftify-core -p raftify-storage -p raftify -p raftify-sim \
		-- -D warnings --cfg raftify_mutants
	$(CARGO) test --locked --workspace

package: BUILD = --no-verify
package: ## Make the packages of the published crates, into target/package (BUILD= also builds from them)
	@# Each package holds all tracked files of its folder, and `verify` builds those: building them twice would show little.
	@# The public workflow does it.
	$(CARGO) package --quiet --locked --allow-dirty $(BUILD) $(PUBLISHED:%=-p %)

audit: ## Check licenses, bans and sources of all dependencies (needs cargo-deny; offline once `cargo fetch` has run)
	$(CARGO) deny --locked check licenses bans sources

alerts: ## Test the alert rules for Prometheus (needs promtool, which comes with Prometheus)
	promtool check rules ops/prometheus/alerts.yml
	promtool test rules ops/prometheus/alerts_test.yml

crash-points: ## Cut power after every file-system operation of both storages, including LMDB, of conversions and of recoveries (some minutes)
	CRASH_POINTS=all $(CARGO) test --release -p raftify-storage --test crash_points

fuzz: SECONDS = 60
fuzz: ## SECONDS=60 for each target: fuzz every decoder of untrusted input (needs nightly and cargo-fuzz)
	@fuzz/run.sh $(SECONDS)

mutants: ## Reintroduce known bugs one at a time; the simulator or a named test must detect each (ARGUMENTS=--list)
	@# All tests, and the simulator at full speed, are built once with all of the bugs in them.
	RUSTFLAGS="--cfg raftify_mutants" $(CARGO) build --release -p raftify-sim --bin mutants --target-dir target/mutants
	RUSTFLAGS="--cfg raftify_mutants" $(CARGO) test --no-run --message-format=json \
		-p raftify-core -p raftify-storage -p raftify -p raftify-sim --target-dir target/mutants > target/mutants/tests.json
	@target/mutants/release/mutants $(ARGUMENTS)

fix: ## Repair formatting and simple lints
	$(CARGO) clippy --fix --allow-dirty --allow-staged --workspace --all-targets --all-features
	$(CARGO) fmt --all

bench: ## Measure everything, in less than ten minutes: JSON lines to target/bench.jsonl, a table to the terminal
	$(CARGO) build --release -p raftify-bench -p memstore-static-members
	@$(BENCH) bench --also-to target/bench.jsonl

bench-quick: ## The most important figures, in less than a minute
	$(CARGO) build --release -p raftify-bench -p memstore-static-members
	@$(BENCH) bench --quick --also-to target/bench.jsonl

bench-join: MEGABYTES = 1000
bench-join: ## MEGABYTES=1000 of state: the cost of a joining node for clients at half of the maximum (some minutes)
	$(CARGO) build --release -p raftify-bench
	@$(BENCH) join --megabytes $(MEGABYTES) --clients 64

soak: ## HOURS=1 at 80 % of the cluster's maximum: no election, and no growth of memory or disk use
	$(CARGO) build --release -p raftify-bench
	@$(BENCH) soak --hours $(HOURS)

sim: SECONDS = 600
sim: ## SEEDS=10000 simulated worlds, for SECONDS=600 at most; SEED=n runs one seed again and writes its trace
	$(CARGO) build --release -p raftify-sim
	@target/release/sim $(if $(SEED),--seed $(SEED) --trace target/$(SEED).trace,--seeds $(SEEDS) --seconds $(SECONDS))

sim-shell: SECONDS = 600
sim-shell: SEEDS = 1000
sim-shell: ## SEEDS=1000 worlds of whole nodes on simulated hosts, for SECONDS=600 at most; SEED=n as in `make sim`
	$(CARGO) build --release -p raftify-shell-sim
	@target/release/sim-shell $(if $(SEED),--seed $(SEED) --trace target/$(SEED).trace,--seeds $(SEEDS) --seconds $(SECONDS))

chaos: MINUTES = 10
chaos: ## MINUTES=10 of real processes that are killed, partitioned and corrupted, checked for linearizability; needs root
	$(CARGO) build --release -p raftify-chaos -p memstore-static-members -p memstore-dynamic-members
	@target/release/chaos --minutes $(MINUTES)

performance: ## Write the figures of the last `make bench` into docs/performance.md, with plots and goals
	@$(BENCH) report docs/performance.md < target/bench.jsonl

clean: ## Delete all build output, and the data of `make run`
	$(CARGO) clean
