# What there is to do; `make help` lists it. Every target installs what it lacks on a Debian machine
# where you are root, and otherwise says what to install.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo
# An explicit target: only then do static binaries and procedural macros build side by side.
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
export BINARIES := $(abspath $(or $(CARGO_TARGET_DIR),target))/$(TRIPLE)/release
STATIC := RUSTFLAGS="$(strip $(RUSTFLAGS) -C target-feature=+crt-static)"
RELEASE := $(STATIC) $(CARGO) build --release --locked --target $(TRIPLE)

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

.PHONY: help build plugin uninstall images demo test chaos soak outages fuzz lint rust clean

help: ## Lists the targets.
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'

demo: build ## Shows lines of a container becoming records, with a stand-in for CLS. No account needed.
	scripts/demo.sh

plugin: $(if $(filter image,$(FROM)),,build) ## Installs the plugin on the engine at hand, or replaces it.
	scripts/plugin.sh install --name $(NAME) $(if $(filter image,$(FROM)),--image cls-driver:$(TAG)) $(SETTINGS)

uninstall: ## Removes the plugin, and with it the logs that are not shipped yet.
	scripts/plugin.sh uninstall --name $(NAME)

images: ## Builds the images cls-driver and cls-shipper.
	scripts/images.sh $(TAG)

build: rust ## Builds all binaries, static and optimised.
	# The driver alone: together with the others it would be built with their features.
	$(RELEASE) --package driver --bins
	$(RELEASE) --package shipper --package world --bins

test: build ## Runs every test: unit, property, cases, official SDK, end to end on a real engine.
	scripts/test-needs.sh
	CLS_BIN_DIR=$(BINARIES) $(CARGO) test --locked --workspace --features world/e2e --no-fail-fast

chaos: build ## Kills, freezes and replaces everything under load, for CHAOS_FOR seconds: make chaos CHAOS_FOR=60
	scripts/test-needs.sh
	CHAOS_SECONDS=$(CHAOS_FOR) CLS_BIN_DIR=$(BINARIES) $(CARGO) test --locked --package world --features world/e2e --test e2e -- --nocapture chaos

SEEDS ?= 20000
soak: rust ## Runs the simulated world with many random seeds: make soak SEEDS=20000
	WORLD_SEEDS=$(SEEDS) $(CARGO) test --locked --release --package world --test cases -- simulation::every_seed --nocapture

outages: rust ## Simulates outages of CLS from a second to an hour, and counts what was lost.
	WORLD_OUTAGE_S=3600 $(CARGO) test --locked --release --package world --test cases -- simulation::an_outage --nocapture

fuzz: rust ## Fuzzes what reads foreign input, FOR seconds per target: make fuzz FOR=600
	scripts/fuzz.sh $(FOR)

lint: rust ## Checks format, lints, documentation and dependencies.
	scripts/lint.sh

rust:
	@command -v $(CARGO) >/dev/null || { echo "error: Rust is missing; get it from https://rustup.rs" >&2; exit 1; }

clean: ## Removes what was built.
	$(CARGO) clean
