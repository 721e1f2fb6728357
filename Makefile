# Each target sets up .venv itself when it is missing or older than pyproject.toml or the C++ sources.
# PIP_ARGS passes options to pip, e.g. make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
PIP = .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: demo test slow clients lint fix bench docs clean

demo: .venv/installed  ## inspect drawn example pictures with the bundled models, into demo/
	.venv/bin/qianyan demo

test: .venv/installed-dev  ## the whole suite, without the cases marked slow
	OMP_NUM_THREADS=1 .venv/bin/pytest -n auto --maxprocesses 4 --dist loadfile

slow: .venv/installed-dev  ## the heavy parity and soak cases
	.venv/bin/pytest -m slow

clients: .venv-clients/installed  ## programs of others that call the API, for the tests in tests/e2e/clients

lint: .venv/installed-dev  ## style, types, import contracts, dead code, documents in step
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/vulture
	.venv/bin/python docs/generate.py --check

fix: .venv/installed-dev  ## let ruff mend what it can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/installed-dev  ## measure the bundled models and the engine; prints tables, writes benchmarks/results/
	for file in benchmarks/*.py; do .venv/bin/python $$file || exit 1; done

docs: .venv/installed-dev  ## rewrite the generated reference pages
	.venv/bin/python docs/generate.py

clean:
	rm -rf .venv .venv-clients demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

NATIVE = hatch_build.py $(wildcard src/qianyan/native/*.cpp)

.venv/installed: .venv/bin/python pyproject.toml constraints.txt $(NATIVE)
	@echo "Installing qianyan into .venv; the first time this takes a minute or two."
	$(PIP) -e .
	@touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt $(NATIVE)
	@echo "Installing qianyan and its developer tools into .venv; the first time this takes a few minutes."
	$(PIP) -e ".[dev]"
	@touch $@ .venv/installed

# Apart, because Bailian's SDK has two versions of one name, and the others bring much beside themselves.
CLIENTS = tests/e2e/clients

.venv-clients/installed: $(CLIENTS)/requirements.txt $(CLIENTS)/package.json
	@echo "Installing clients of others into .venv-clients; this takes about a minute."
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet --disable-pip-version-check -r $(CLIENTS)/requirements.txt
	cp $(CLIENTS)/package.json .venv-clients/
	PATH="$(CURDIR)/.venv-clients/bin:$$PATH" .venv-clients/bin/npm install --silent --no-package-lock --prefix .venv-clients
	@touch $@
