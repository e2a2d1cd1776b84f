# The whole development loop. `make demo` and `make test` set up everything themselves.
# They need Python 3.11 or newer, make, and PyPI and Debian packages (ZooKeeper, Java).

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.set-up
#: Test processes side by side. Each file of tests stays in one of them, with the servers that its tests share. Files are
#: begun in the order of tests/conftest.py.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder

#: All but what needs Docker or is the long form of another test.
ALL := -m "not soak and not compose and not browser"

#: What is injected where PostgreSQL has several servers: all that can happen to those, and some that meets a payment in
#: the middle or takes ZooKeeper's leader.
HA_FAULTS := primary-kill,primary-freeze,primary-cut-off,switchover,replica-freeze,kill-at,freeze-at,leader-kill,quorum-loss

# Tests start many processes: each reads what the first of them compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-all soak test-postgresql test-failpoints test-compose chaos chaos-compose chaos-ha chaos-regressions chaos-seeds ablate check \
  console test-console gen up compose-up compose-ha-up compose-upgrade pin-images compose-down bench bench-settle bench-faults bench-growth bench-call bench-lock bench-check mutate-checker mutate-fixes interop \
  check-alerts check-supply lock clean

help:  ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP)  ## Makes .venv from requirements.lock, and installs ZooKeeper where it is missing
	@deploy/setup-zookeeper.sh

$(STAMP): requirements.lock pyproject.toml
	@deploy/setup-python.sh "$(PYTHON)"
	@touch $@

demo: setup  ## Runs the demo: seven acts with a fault each, and the verdict of the checker
	@$(BIN)/countinghouse demo $(ARGS)

test: setup  ## Runs the tests, three files at a time
	@$(BIN)/pytest $(PARALLEL) $(ARGS)

test-all: setup  ## Runs all tests but the long forms and those on Docker (15 minutes on two cores)
	@$(BIN)/pytest $(PARALLEL) $(ALL) $(ARGS)

soak: setup  ## Runs the long forms of tests: 100,000 orders, a minute without ZooKeeper, two minutes of idle pings …
	@$(BIN)/pytest -m soak $(ARGS)

test-postgresql: setup  ## Runs the end-to-end tests on PostgreSQL
	@deploy/setup-postgresql.sh
	@COUNTINGHOUSE_TEST_DATABASE=postgresql $(BIN)/pytest $(PARALLEL) $(ALL) tests/e2e --ignore=tests/e2e/test_demo.py $(ARGS)

test-failpoints: setup  ## Kills a process at every failpoint of every operation, with and without other callers, on SQLite and on PostgreSQL
	@deploy/setup-postgresql.sh
	@for database in sqlite postgresql; do \
	  echo "On $$database:"; \
	  COUNTINGHOUSE_TEST_DATABASE=$$database $(BIN)/pytest -n 3 -m "soak or not soak" tests/e2e/test_failpoints.py $(ARGS) || exit; \
	done

test-compose: setup  ## Starts the deployment on Docker, and settles orders while containers are killed or upgraded (6 minutes)
	@$(BIN)/pytest -m compose tests/e2e/test_compose.py tests/e2e/test_compose_upgrade.py tests/chaos/test_containers.py $(ARGS)

chaos: setup  ## Injects every fault type while orders are settled, six seeds of a minute, and checks the books (10 minutes)
	@deploy/setup-postgresql.sh
	@deploy/setup-libfaketime.sh
	@$(BIN)/countinghouse chaos sweep --seeds 1-5 --random-seeds 1 --minutes 1 $(ARGS)

chaos-compose: setup  ## Kills, pauses and cuts off the containers of deploy/docker-compose.yml while orders are settled (5 minutes)
	@$(BIN)/countinghouse chaos run --stack compose --seed 1 --minutes 2 $(ARGS)

chaos-ha: setup  ## Kills, freezes and cuts off the PostgreSQL servers under Patroni while orders are settled (20 seeds, an hour; ARGS="--seeds 1-2")
	@$(BIN)/countinghouse chaos sweep --stack compose-ha --seeds 1-20 --minutes 1.2 --sample 3 --faults $(HA_FAULTS) $(ARGS)

chaos-regressions: setup  ## Repeats the regression runs of tests/chaos/FOUND.md, two at a time (3 minutes)
	@deploy/setup-postgresql.sh
	@deploy/setup-libfaketime.sh
	@sed -n 's/^\$$ countinghouse //p' tests/chaos/FOUND.md | xargs -P 2 -I{} sh -c '$(BIN)/countinghouse {}'

chaos-seeds: setup  ## Makes 100 short chaos runs with three fault types each on PostgreSQL, and 100 on SQLite (an hour)
	@deploy/setup-postgresql.sh
	@deploy/setup-libfaketime.sh
	@$(BIN)/countinghouse chaos sweep --seeds 1-100 --minutes 0.25 --sample 3 --parallel 2 $(ARGS)
	@$(BIN)/countinghouse chaos sweep --seeds 101-200 --minutes 0.25 --sample 3 --parallel 2 --database sqlite $(ARGS)

ablate: setup  ## Switches each guard off under the fault that only it stops, and shows the harm (4 minutes)
	@$(BIN)/countinghouse chaos ablate $(ARGS)

check: setup  ## Runs every check of the code: form, types, layers, protos, drift, dependencies, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint protos
	PYTHON=$(CURDIR)/$(BIN)/python protos/generate.sh --check
	$(BIN)/deptry .
	$(BIN)/codespell .

check-alerts:  ## Checks the alerts of deploy/prometheus, and tests when each of them fires (promtool)
	@promtool=$$(deploy/setup-promtool.sh) && cd deploy/prometheus && \
	  "$$promtool" check config --syntax-only prometheus.yml prometheus_ha.yml && \
	  "$$promtool" check rules --lint=all alerts.yml alerts_ha.yml && \
	  "$$promtool" test rules alerts_test.yml alerts_ha_test.yml

check-supply: setup  ## Writes the SBOM of the runtime dependencies, and audits the locks for known vulnerabilities (ARGS: options of pip-audit)
	@deploy/setup-supply.sh
	@$(BIN)/python -m deploy.check_supply $(ARGS)

test-console: setup  ## Opens the console in Chromium: every page, the race, faults (4 minutes)
	@deploy/setup-chromium.sh >/dev/null
	@COUNTINGHOUSE_AXE="$$($(BIN)/python -m services.gateway.console.bundle --axe)" $(BIN)/pytest -m browser tests/browser $(ARGS)

console:  ## Makes the bundle of the console (needs Node.js with npm)
	@$(BIN)/python -m services.gateway.console.bundle

pictures: setup  ## Makes README's picture of the console and its recording of the demo anew
	@deploy/setup-chromium.sh
	@$(BIN)/python -m tests.browser.pictures $(BIN)/uv run -q --no-project --isolated --python $(BIN)/python \
	  --with-requirements tests/browser/recorder.lock -- termtosvg

gen: setup  ## Generates protos/gen
	PYTHON=$(CURDIR)/$(BIN)/python protos/generate.sh

up: setup  ## Starts the embedded stack and stays until Ctrl-C
	@$(BIN)/countinghouse up $(ARGS)

compose-up:  ## Builds the image and starts the deployment of deploy/docker-compose.yml; waits until all is healthy
	docker compose -f deploy/docker-compose.yml up -d --wait --build $(ARGS)

compose-ha-up:  ## The same with three PostgreSQL servers under Patroni (deploy/docker-compose.ha.yml)
	docker compose -f deploy/docker-compose.yml -f deploy/docker-compose.ha.yml up -d --wait --build $(ARGS)

compose-upgrade:  ## Replaces the running deployment by the version that is here, one instance after the other, while calls go on
	@deploy/upgrade.sh

pin-images:  ## Pulls the public images of the deployment, and names them by their digests in deploy/.env
	@python3 -m deploy.pin_images

compose-down:  ## Stops the deployment; keeps its books and keys unless ARGS=--volumes
	docker compose -f deploy/docker-compose.yml down $(ARGS)

bench: setup  ## Measures a settle, and the order lock against kazoo's
	@$(BIN)/python -m tests.bench $(ARGS)

bench-settle: setup  ## Measures settles of distinct orders beside what others would use, and beside pgbench (15 minutes; ARGS=--quick: 4)
	@deploy/setup-postgresql.sh
	@deploy/setup-bench.sh
	@$(BIN)/python -m tests.bench.settles $(ARGS)

bench-faults: setup  ## Shows who charges a card twice: ours and what others would use, under the seven faults of the demo (8 minutes)
	@deploy/setup-postgresql.sh
	@deploy/setup-bench.sh
	@$(BIN)/python -m tests.bench.faults $(ARGS)

bench-growth: setup  ## Measures what growth costs: orders in the books, callers of one order, providers, memory, recovery (7 minutes; ARGS=--quick: 2)
	@deploy/setup-postgresql.sh
	@$(BIN)/python -m tests.bench.growth $(ARGS)

mutate-fixes: setup  ## Takes out each fix of ARCHITECTURE's table of faults, and lists the tests that do not notice (40 minutes)
	@deploy/setup-postgresql.sh
	@$(BIN)/python -m tests.mutation.fixes $(ARGS)

interop: setup  ## Tests calls between our services and Dubbo in Java, Go, Python and JavaScript, both ways, through ZooKeeper
	@$(BIN)/python -m tests.interop $(ARGS)

bench-call: setup  ## Measures calls through a discovered channel against grpc.aio's own
	@$(BIN)/python -m tests.bench.calling $(ARGS)

bench-lock: setup  ## Measures the order lock against kazoo's, on one ZooKeeper and on an ensemble of three
	@$(BIN)/python -m tests.bench.locking $(ARGS)

bench-check: setup  ## Measures the checker on 100,000 calls at 5,000 orders
	@$(BIN)/python -m tests.bench.checking $(ARGS)

mutate-checker: setup  ## Mutates the checker, and lists the mutants that its tests do not notice
	@$(BIN)/python -m tests.mutation $(ARGS)

lock: setup  ## Resolves the requirements into their lock files, with hashes
	$(BIN)/uv pip compile -q pyproject.toml --extra dev --generate-hashes --universal --python-version 3.11 \
	  --no-header --no-annotate -o requirements.lock
	$(BIN)/uv pip compile -q pyproject.toml -c requirements.lock --generate-hashes --universal --python-version 3.11 \
	  --no-header --no-annotate -o requirements-runtime.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra bench -c requirements.lock --generate-hashes --universal \
	  --python-version 3.11 --no-header --no-annotate -o requirements-bench.lock
	$(BIN)/uv pip compile -q requirements-supply.in --generate-hashes --universal --python-version 3.11 \
	  --no-header --no-annotate -o requirements-supply.lock
	$(BIN)/uv pip compile -q tests/interop/pypi/requirements.in --generate-hashes --universal --python-version 3.11 \
	  --no-header --no-annotate -o tests/interop/pypi/requirements.lock

clean:  ## Removes what the setup made
	rm -rf .venv .venv-supply .interop tests/interop/go/gen .pytest_cache .mypy_cache .ruff_cache .hypothesis
