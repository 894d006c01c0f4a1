# make run           set up .venv and time the shipped network on every engine of this machine
# make test          set up .venv, lint, run the tests
# make test-all      every test there is, and the fuzzers and the kills at length
# make test-gpu      the tests that need a CUDA GPU; all of them are skipped without
# make test-tensorrt run with the real TensorRT bindings and pycuda, which it fetches
# make test-oldest   run the tests with the oldest torch, numpy and matplotlib that install here
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
PYTEST := $(VENV)/bin/python -m pytest -n auto --dist worksteal

run: $(VENV)/installed
	$(VENV)/bin/python CompareMNIST.py

test: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(PYTEST) -m "not (slow or bindings)"

test-all: test
	KILLS=100 FUZZ=20000 $(PYTEST) -m "slow or fuzz"
	$(MAKE) test-gpu test-oldest test-tensorrt

test-gpu: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -m gpu

test-tensorrt: $(VENV)/installed-test
	$(VENV)/bin/python tests/real_tensorrt.py
	$(VENV)/bin/python tests/real_pycuda.py
	$(VENV)/bin/python -m pytest -m bindings

test-oldest:
	@if $(PYTHON) -c "import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 12))"; then \
	    $(MAKE) $(OLDEST)/installed && $(OLDEST)/bin/python -m pytest -n auto --dist worksteal -m "not (slow or bindings)"; \
	else \
	    echo "test-oldest: SKIPPED, torch 1.13 wants Python 3.9 to 3.11; this is `$(PYTHON) -V`"; \
	fi

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-test: requirements/test.txt requirements/optional.txt $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet -r requirements/test.txt
	touch $@

$(OLDEST)/installed: requirements/oldest.txt requirements/serve.txt requirements/test.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -r requirements/oldest.txt -r requirements/test.txt
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) .venv-tensorrt

.PHONY: run test test-all test-gpu test-tensorrt test-oldest clean
