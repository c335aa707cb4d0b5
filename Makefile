# Coral-Reef. `make help` lists what there is to do.

SHELL := /bin/bash
PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?=
STATE ?= .state
export PORT

.DEFAULT_GOAL := help
.PHONY: help run test test-system test-long check format bench image vm install uninstall lock native wheel model models-small models-tpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PORT= and STATE= change where 'make run' listens (8080; 'make vm' too) and keeps everything (.state)"

run:  ## start the appliance on this machine (Ctrl-C stops it)
	@./scripts/install run
	@exec $(BIN)/coral-reef run --state "$(STATE)"

test:  ## pass every test
	@./scripts/install test
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory test-system

check:  ## the fast loop: format, lint, types, import order, unit tests
	@./scripts/install check
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@# Three at once: these tests wait as long as they work.
	@$(BIN)/python -m pytest --quiet --numprocesses=3 --dist=loadfile -m "not system"

format:  ## put the code into shape
	@./scripts/install check
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench:  ## measure; prints our figure, the limit's and the ratio
	@./scripts/install test
	@$(BIN)/python -m tests.bench $(SECTIONS)

test-system:  ## the whole appliance: on this machine, under a systemd of its own, in a virtual machine (half an hour)
	@./scripts/install test
	@# In namespaces of their own, three at once: they wait for others most of the time.
	@$(BIN)/python -m pytest -v -m system --numprocesses=3 --dist=loadfile tests/network
	@$(BIN)/python -m pytest -v -m system --ignore=tests/network

test-long:  ## the same for longer; writes tests/system/LONG.md
	@./scripts/install test
	@$(BIN)/python -m pytest -v -m system --long --numprocesses=3 --dist=loadfile tests/network
	@$(BIN)/python -m pytest -v -m system --long --ignore=tests/network

image:  ## make the disk of the virtual machine (root; a minute, kept for a day)
	@./scripts/install test
	@$(BIN)/python -m tests.system.image

vm:  ## boot the appliance in a virtual machine, its console here (root)
	@./scripts/install test
	@exec $(BIN)/python -m tests.system.vm

install:  ## make it a system service (root), or fill the tree below DESTDIR=
	@DESTDIR="$(abspath $(DESTDIR))" ./scripts/install system

uninstall:  ## take the system service away again; configuration, database and models stay
	@DESTDIR="$(abspath $(DESTDIR))" ./scripts/uninstall

lock:  ## choose the newest Python packages that pyproject.toml allows, with their hashes
	@./scripts/install check
	@$(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url \
	    --no-emit-find-links --no-header --extra dev --output-file requirements.lock pyproject.toml
	@$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links --no-header \
	    --constraint requirements.lock --output-file requirements-system.lock pyproject.toml
	@$(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url \
	    --no-emit-find-links --no-header --output-file requirements-training.lock requirements-training.in

native:  ## build the text engine for this machine's CPU (once; five minutes; faster for larger models)
	@./scripts/install native
	@./scripts/native build

wheel:  ## put the portable text engine back
	@./scripts/install run
	@./scripts/native undo

model:  ## train the chat model anew (2 cores, under 90 minutes; goes on where it was stopped)
	@./scripts/install training
	@./scripts/make-chat-model

models-small:  ## make the embedding and the emotion model anew (2 cores, under an hour; what the teacher said is kept)
	@./scripts/install training
	@./scripts/make-small-models

models-tpu:  ## compile the models for Edge TPUs, where Google's edgetpu_compiler is installed
	@./scripts/install run
	@$(BIN)/python -m appliance.inference.compile_models --state "$(STATE)"

clean:  ## remove what was installed here; leaves the state alone
	rm -rf $(VENV) .venv-training .native .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
