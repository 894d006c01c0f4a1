# make run    set up .venv and time the shipped network on this machine
# make test   set up .venv, lint, run the tests
PYTHON ?= python3
VENV := .venv

run: $(VENV)/installed
	$(VENV)/bin/python InferenceMNIST.py

test: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-test: requirements-test.txt $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV)

.PHONY: run test clean
