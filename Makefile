# The whole developer interface. `make demo` shows the product, `make test` proves it; both install what is missing.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-all demo test test-unit test-integration test-deploy simulate soak kills paint beside lint format bench docs stack-up stack-down fuzz mutate clean
SHELL := /bin/bash
PY := .venv/bin/python
WORKER := .venv/.assay-worker
ALL := .venv/.assay-all
# Options for pytest, for example: make test PYTEST="-k stack -x"
PYTEST ?=
# Options for the soak test, for example: make soak SOAK="--faults 20 --seed 7"
SOAK ?=
# Options for beside, for example: make beside BESIDE="--good 200 --rounds 1"
BESIDE ?=
# For simulate: how long, and from which seed on (a new stretch each day).
SECONDS ?= 60
FIRST ?= $(shell date +%Y%m%d)00000

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(WORKER): requirements/worker.lock requirements/overrides.txt pyproject.toml
	@requirements/setup.sh worker
	@touch $@

$(ALL): requirements/all.lock requirements/overrides.txt pyproject.toml
	@requirements/setup.sh all
	@touch $@ $(WORKER)

setup: $(WORKER) ## install the worker and the local stack, no torch
	@$(PY) -m worker.local.install

setup-all: $(ALL) setup ## the same with training and the development tools

demo: setup ## everything at once: stack, worker, sample images, verdict table
	@$(PY) -m worker demo

# Three processes on one set of servers: on two cores one of them mostly waits for a server. A test that fails is tried once more
# and listed as RERUN: on a busy machine a deadline may pass, a real fault fails twice. What is listed there is to be mended.
test: setup-all ## all tests; those on real servers start them and end them
	@$(PY) -m pytest -n 3 --dist worksteal --reruns 1 $(PYTEST)

test-unit: setup-all ## the quick tests that need no servers
	@$(PY) -m pytest -n 2 -m "not integration" $(PYTEST)

test-integration: setup-all ## the tests on real servers, and the slow ones
	@$(PY) -m pytest -m integration $(PYTEST)

test-deploy: setup-all ## the chart, images, alerts and dashboards with every tool, a real API server included (first run: 15 min of builds)
	@-$(PY) -m tests.deploy.tools static cluster
	@TEST_DEPLOY=1 $(PY) -m pytest tests/deploy $(PYTEST)

simulate: setup-all ## SECONDS=60 of simulated histories on all cores: deliveries, faults, kills; prints the seed of a breach
	@$(PY) -m tests.simulation --seconds $(SECONDS) --first $(FIRST) --jobs $$(nproc)

test-keda: setup-all ## the real KEDA operator scales the chart's Deployment on real Kafka lag (first run: 20 min more of builds)
	@$(PY) -m tests.deploy.tools cluster keda
	@TEST_DEPLOY=1 TEST_KEDA=1 unshare --net --uts sh -c 'ip link set lo up && hostname localhost && exec "$$0" "$$@"' \
	  $(PY) -m pytest tests/deploy/test_keda.py $(PYTEST)

mutate: setup-all ## small faults planted in the core one at a time: a test must notice each, or tests/mutants.toml say why none can
	@$(PY) -m tests.mutation

soak: setup-all ## a hundred faults under load on servers of its own, audited from outside (about an hour)
	@$(PY) -m tests.faults.soak $(SOAK)

kills: setup-all ## two people review 200 images while consoles, Kafka and Redis are killed (about 4 minutes)
	@KILLS_IMAGES=200 $(PY) -m pytest -n 0 tests/console/test_delivery.py -k killed

paint: setup-all ## milliseconds from a reviewer's key to the next image on the screen, by a real Chromium
	@$(PY) -m pytest -n 0 -s tests/console/test_browser.py -k quickly | grep -E "key to next|passed|failed"

beside: setup-all ## good images alone and beside images that crash, hang or fill decoders: rate and memory, in one run
	@$(PY) -m tests.faults.beside $(BESIDE)

fuzz: setup-all ## 100,000 damaged images through a decoding child, 10,000 damaged records through the parser
	@$(PY) -m tests.fuzz

lint: $(ALL) ## formatting, rules, types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

format: $(ALL) ## put the formatting right, and what the rules can
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

bench: setup ## load and efficiency report
	@$(PY) -m worker bench

docs: $(ALL) ## write the generated pages
	@$(PY) -m worker.docs
	@$(PY) -m deploy.helm.generate
	@$(PY) -m deploy.grafana.build

stack-up: setup ## start Kafka, Redis and Triton here and leave them running
	@$(PY) -m worker stack up

stack-down: ## stop them; the data stays
	@$(PY) -m worker stack down

clean: ## stop the stack, remove what was installed and written
	@if [ -x $(PY) ] && [ -e .assay/stack ]; then $(PY) -m worker stack down; fi
	rm -rf .venv .assay .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
