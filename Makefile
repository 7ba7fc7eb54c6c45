# make run   set up and run the whole pipeline on the data of params.yaml
# make test  set up and run lint, types, the imports contract and the tests
# make test-services  set up and run the tests that need a Dask and a Ray cluster and a PostgreSQL server, all on this machine
# make test-faults  kill the pipeline everywhere, take its services and disk away, and show a table of what came of it
# make test-docker  build the images, start the stack on loopback, forecast through it, kill its parts, take it down
# make speed measure the hot paths against their slow oracles, and fail where one gains less than was accepted
# make audit  check the locks, and ask OSV for known vulnerabilities where it can be reached
# make serve the forecast service on 127.0.0.1:8080, with the champion that make run has registered
# make ui    MLflow and Prefect UIs on the embedded stores
# make clean remove what runs have made (not the environment)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run serve test speed test-services test-faults test-docker audit ui clean lint peers

$(VENV)/.run: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.test: $(VENV)/.run requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@

$(VENV)/.services: $(VENV)/.test requirements-services.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-services.lock
	touch $@

run: $(VENV)/.run
	$(BIN)/weatherglass run

serve: $(VENV)/.run
	OMP_NUM_THREADS=1 $(BIN)/weatherglass serve

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile tests/docker/postgres.Dockerfile

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-services: $(VENV)/.services
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/services

speed: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.hot_paths --check

# apart from make test: it takes some ten minutes
test-faults: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults

# with Docker, or Podman through the script that WEATHERGLASS_CONTAINERS names; says so where there is neither
test-docker: $(VENV)/.test
	$(BIN)/python -m pytest tests/docker

audit:
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.venv-audit/bin/python tools/audit.py

# the peers of benchmarks.accuracy need other versions than we do, so they live in an environment of their own
peers:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt

ui: $(VENV)/.run
	$(BIN)/weatherglass ui

clean:
	rm -rf data/ingested data/prepared artifacts reports metrics plots .weatherglass mlartifacts mlflow.db* dvc.lock .dvc/cache .dvc/tmp
