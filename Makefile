# What there is to do; `make help` lists it. Every target installs what it lacks on a Debian machine
# where you are root, and otherwise says what to install.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo
# An explicit target: only then do static binaries and procedural macros build side by side.
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))/$(TRIPLE)
export BINARIES := $(TARGET)/release
STATIC := RUSTFLAGS="$(strip $(RUSTFLAGS) -C target-feature=+crt-static)"
RELEASE := $(STATIC) $(CARGO) build --release --locked --target $(TRIPLE)
# What demonstrations and tests run: one build for all, with the checks of a debug build.
QUICK := --profile quick --locked --target $(TRIPLE)
# Without the fuzz targets, whose features nothing else is to have.
MEMBERS := --workspace --exclude fuzz --features world/e2e
BIN := --bin cls-driver --bin cls-shipper --bin cls-standin --bin chatter
demo: export BINARIES := $(TARGET)/quick
test chaos: export CLS_BIN_DIR := $(TARGET)/quick

# Name of the plugin, and its settings on installation: make plugin SETTINGS="LOG_LEVEL=debug"
NAME ?= tencent-cls
SETTINGS ?=
# What the plugin is packed from: `binary` of this tree, or `image` (cls-driver, of `make images`).
FROM ?= binary
TAG ?= latest
# Seconds that each target is fuzzed.
FOR ?= 60
# Seconds that `make chaos` does harm; WORLD_SEED=… repeats the order of an earlier run.
CHAOS_FOR ?= 600
# A program that provides the base images of the Dockerfiles where no registry answers, if there is one.
export BASE_IMAGES ?=

.PHONY: help demo build plugin uninstall images lint test fuzz bench chaos soak outages clean rust tests

help: ## Lists the targets.
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'

demo: rust ## Shows lines of a container becoming records, with a stand-in for CLS. No account needed.
	$(STATIC) $(CARGO) build $(QUICK) --workspace --exclude fuzz $(BIN)
	scripts/demo.sh

build: rust ## Builds all binaries, static and optimised.
	# The driver alone: together with the others it would be built with their features.
	$(RELEASE) --package driver --bins
	$(RELEASE) --package shipper --package world --bins

plugin: $(if $(filter image,$(FROM)),,build) ## Installs the plugin on the engine at hand, or replaces it.
	scripts/plugin.sh install --name $(NAME) $(if $(filter image,$(FROM)),--image cls-driver:$(TAG)) $(SETTINGS)

uninstall: ## Removes the plugin, and with it the logs that are not shipped yet.
	scripts/plugin.sh uninstall --name $(NAME)

images: ## Builds the images cls-driver and cls-shipper.
	scripts/images.sh $(TAG)

lint: rust ## Checks format, lints, documentation and dependencies.
	scripts/lint.sh

test: tests ## Runs every test: unit, property, cases, official SDK, end to end on a real engine.
	scripts/test-needs.sh
	IMAGE_PROFILE=$${IMAGE_PROFILE:-quick} $(STATIC) $(CARGO) test $(QUICK) $(MEMBERS) --no-fail-fast

fuzz: rust ## Fuzzes what reads foreign input, FOR seconds per target: make fuzz FOR=600
	scripts/fuzz.sh $(FOR)

# What the benchmark is told: make bench BENCH="--load 1x1000 --rounds 5 --against DIR --json"
BENCH ?=
bench: build ## Measures what a line costs, beside a program that only reads: make bench BENCH="--load 1-flat"
	CLS_BIN_DIR=$(BINARIES) $(BINARIES)/cls-bench $(BENCH)

chaos: tests ## Kills, freezes and replaces everything under load, for CHAOS_FOR seconds: make chaos CHAOS_FOR=60
	scripts/test-needs.sh
	CHAOS_SECONDS=$(CHAOS_FOR) $(STATIC) $(CARGO) test $(QUICK) $(MEMBERS) --test e2e -- --nocapture chaos

SEEDS ?= 20000
soak: rust ## Runs the simulated world with many random seeds: make soak SEEDS=20000
	WORLD_SEEDS=$(SEEDS) $(CARGO) test --locked --release --package world --test cases -- simulation::every_seed --nocapture

outages: rust ## Simulates outages of CLS from a second to an hour, and counts what was lost.
	WORLD_OUTAGE_S=3600 $(CARGO) test --locked --release --package world --test cases -- simulation::an_outage --nocapture

clean: ## Removes what was built.
	$(CARGO) clean

rust:
	@command -v $(CARGO) >/dev/null || { echo "error: Rust is missing; get it from https://rustup.rs" >&2; exit 1; }

# Tests and binaries in one build, so that both use the same crates.
tests: rust
	$(STATIC) $(CARGO) build $(QUICK) $(MEMBERS) --tests $(BIN)
