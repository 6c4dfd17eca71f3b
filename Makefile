# Two commands: `make book` and `make test`. Each does its own set-up in .venv, once.
# Written for GNU make 3.81 and BSD tools, so that a Mac needs nothing but Python.

# The first Python of at least 3.11; name another with `make PYTHON=/path/to/python3.12 book`.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11 python3.14,$(shell $(python) -c "$(NEW_ENOUGH)" >/dev/null 2>&1 && echo $(python))))

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONTENDERS := $(VENV)/.contenders
WORKERS ?= 2
PORT ?= 8000

.PHONY: help book serve test portability notebooks bench contenders format constraints clean

help: ## say what can be made
	@echo "make book                    build the course into _build/html"
	@echo "make serve [PORT=8000]       build it and serve it on localhost"
	@echo "make test                    every check"
	@echo "make test ONLY=units         one part: style, types, units, docs, notebooks, pages, or a path"
	@echo "make portability [PART=1/3]  the notebooks again, on older instructions and on one core"
	@echo "make notebooks [CHAPTER=02]  run the notebooks and store their outputs"
	@echo "make bench [JSON=file]       time the measurements against PyTorch, matfree and others"
	@echo "make format                  let ruff put the code in order"
	@echo "make constraints             resolve the pinned versions anew"
	@echo "make clean                   remove everything made"

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
	  echo "No Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@"$(PYTHON)" -c "$(NEW_ENOUGH)" || { \
	  echo "$(PYTHON) is no Python 3.11 or newer; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (once, about a minute) ..."
	@"$(PYTHON)" -m venv $(VENV) || { \
	  echo "Could not make $(VENV); on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[book,test]"
	@# Matplotlib lists the fonts at its first use, which can take seconds and then prints a warning.
	@$(BIN)/python -c "import matplotlib.font_manager"
	@touch $(STAMP)

book: $(STAMP) ## the HTML; nothing happens when nothing changed
	@$(BIN)/python book/_tools/build.py

serve: book
	@echo "Serving http://localhost:$(PORT) (stop with control-C)"
	@$(BIN)/python -m http.server --bind localhost --directory _build/html $(PORT)

# The parts that a developer repeats; conftest.py says what each of them took.
ONLY_style := tests/test_style.py -k "not types"
ONLY_types := tests/test_style.py -k types
ONLY_units := tests --ignore=tests/test_style.py --ignore=tests/test_site.py
ONLY_docs := gradcourse
ONLY_notebooks := book
ONLY_pages := tests/test_site.py

test: $(STAMP)
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(or $(ONLY_$(ONLY)),$(ONLY))

portability: $(STAMP)
	@$(BIN)/python book/_tools/portability.py $(PART)

notebooks: $(STAMP)
	@$(BIN)/python book/_tools/execute.py $(CHAPTER)

bench: contenders
	@$(BIN)/python -m gradcourse bench $(if $(JSON),--json $(JSON))

# What the benchmarks compare with, and a few tests where it is there. Nothing else needs it.
contenders: $(CONTENDERS)

$(CONTENDERS): $(STAMP)
	@echo "Installing PyTorch and matfree into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@touch $(CONTENDERS)

format: $(STAMP)
	@$(BIN)/ruff check --fix --quiet . && $(BIN)/ruff format .
	@$(BIN)/ruff format --line-length 76 book/*.ipynb

# Resolved in an environment of its own; appnope is what IPython asks for on macOS only.
constraints:
	@rm -rf _build/resolve && "$(PYTHON)" -m venv _build/resolve
	@_build/resolve/bin/python -m pip install --quiet --disable-pip-version-check ".[book,test]"
	@{ sed -n '/^#/p' constraints.txt; \
	   { _build/resolve/bin/python -m pip freeze --exclude gradcourse; echo "appnope==0.1.4"; } \
	   | LC_ALL=C sort -f; } > constraints.new
	@mv constraints.new constraints.txt && rm -rf _build/resolve

clean:
	rm -rf $(VENV) _build build gradcourse.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
