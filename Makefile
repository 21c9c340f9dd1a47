# make demo    the whole promise on this machine, with no network beyond the package registry
# make test    the tests
# make test-lowest  some of them with the oldest libraries that are supported
# make audiocraft   those with AudioCraft 1.3.0 itself, which it installs in .venv-audiocraft
# make check   linters, types and the border between the two packages
# make bench   the benchmarks
#
# Each works alone from a fresh clone: it makes .venv and installs what it needs, once. Set PYTHON
# to choose the interpreter (3.11 or newer).

PYTHON ?= $(firstword $(foreach name,python3.11 python3 python3.12 python3.13,\
	$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
VENV := .venv
CONSTRAINTS := constraints.txt
EXTRAS := test,lint
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCHES := load worker_socket fetch
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-lowest audiocraft upstream check bench clean

demo: $(INSTALLED)
	$(BIN)/craftcache demo $(SOURCE)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(ARGS)

# What depends on other libraries, with the oldest of them that pyproject.toml admits.
test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt EXTRAS=test \
		ARGS="tests/test_main_job.py tests/client tests/coexistence tests/daemon/test_http.py tests/daemon/test_update.py \
		tests/workerclient tests/test_worker_server.py"

audiocraft: $(INSTALLED)
	$(MAKE) upstream VENV=.venv-audiocraft CONSTRAINTS=tests/upstream/requirements.txt EXTRAS=omegaconf
	$(BIN)/python -m pytest tests/upstream

upstream: $(VENV)/.upstream

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases tests
	$(BIN)/lint-imports

bench: $(INSTALLED)
	for name in $(BENCHES); do PYTHONPATH=tests $(BIN)/python -m bench.$$name || exit; done

clean:
	rm -rf .venv .venv-lowest .venv-audiocraft

# The build backend is installed first and used as it is, so that it is pinned as well.
$(INSTALLED): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) install --constraint $(CONSTRAINTS) hatchling editables
	$(PIP) install --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[$(EXTRAS)]'
	touch $@

# AudioCraft comes as its source distribution: only that has the config/ that models are trained with.
# PyPI's torchaudio links its libraries to CUDA's and fails to import where torch has none; without
# them it goes on in Python.
$(VENV)/.upstream: $(CONSTRAINTS) | $(INSTALLED)
	$(PIP) install --constraint $(CONSTRAINTS) setuptools
	$(PIP) install --no-deps --no-build-isolation --requirement $(CONSTRAINTS)
	$(PIP) download --no-deps --no-build-isolation --no-binary :all: --dest $(VENV) audiocraft==1.3.0
	tar --extract --no-same-owner --file $(VENV)/audiocraft-1.3.0.tar.gz --directory $(VENV)
	$(PIP) install --no-deps --no-build-isolation $(VENV)/audiocraft-1.3.0
	rm -f $(VENV)/lib/python3*/site-packages/torchaudio/lib/*.so
	touch $@

# Debian ships venv without ensurepip; its own pip can then install one.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed; set PYTHON" >&2; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); \
	else \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(VENV)/bin/python install --constraint $(CONSTRAINTS) pip; \
	fi

# make dist       all that a release consists of, into dist/: wheel, sdist, Debian package, man pages,
#                 completions; or some of it: make dist KINDS="python documents"
# make test-dist  the tests of the source distribution, from its own files
KINDS :=

.PHONY: dist test-dist

dist: $(INSTALLED)
	$(BIN)/python packaging/dist.py $(KINDS)

test-dist: $(INSTALLED)
	$(BIN)/python packaging/dist.py python
	rm -rf dist/unpacked && mkdir dist/unpacked
	tar --extract --directory dist/unpacked --strip-components 1 --file dist/craftcache-*.tar.gz
	$(MAKE) -C dist/unpacked test
