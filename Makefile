# make demo    the whole promise on this machine, with no network beyond the package registry
# make test    the tests
# make test-lowest  some of them with the oldest libraries that are supported
# make test-pythons  those that need no torch, with Python 3.12 and 3.13
# make audiocraft   those with AudioCraft 1.3.0 itself, which it installs twice: in .venv-audiocraft
#                with today's libraries, and in .venv-audiocraft-pinned with those that it asks for
# make environments  what all these install; with --jobs=2 it takes less time than one by one
# make check   linters, types and the border between the two packages
# make bench   the benchmarks, and docs/charts/ from what they find
# make soak    ten minutes of 32 clients of three users, with the daemon killed every few seconds; as
#              root, so that there are three users; make soak SOAK_SECONDS=60
# make gpu     what needs a GPU, tests and benchmark, in one JSON document; without one a dry run. It
#              installs nothing: it takes torch and pytest of the Python that is there, and wheels
#              from the directory wheels/
#
# Each works alone from a fresh clone: it makes .venv and installs what it needs, once. Set PYTHON
# to choose the interpreter (3.11 or newer).

# Containers often set it. Each of the thousands of processes here would compile all it imports anew.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(firstword $(foreach name,python3.11 python3 python3.12 python3.13,\
	$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
VENV := .venv
CONSTRAINTS := constraints.txt
EXTRAS := test,schemas,lint
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FOR_DEMO := $(VENV)/.installed-for-demo
SOAK_SECONDS := 600
# Processes that the tests run in at once: most of a test is waiting.
TEST_PROCESSES ?= logical
PYTEST := $(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --maxprocesses=4
GPU_PYTHON ?= $(firstword $(wildcard $(BIN)/python) python3)
BENCHES := load worker_socket inspection fetch integrity scale observability
# The constraints hold in the environments that pip builds packages in, too.
PIP := PIP_CONSTRAINT="$(abspath $(CONSTRAINTS)) $$PIP_CONSTRAINT" $(BIN)/python -m pip --disable-pip-version-check
PYTHONS := 3.12 3.13
TEST_TOOLS := blockbuster hypothesis pytest pytest-asyncio pytest-timeout pytest-xdist
WITHOUT_TORCH := $(addprefix tests/client/,cache/test_manifest.py cache/test_cache_dir.py origins sources \
		wire test_errors.py) \
	$(addprefix tests/daemon/eviction/test_,keeping.py pins.py policy.py prune.py quota.py room.py \
		store_machine.py) \
	$(addprefix tests/daemon/,fetch/test_limits.py fetch/test_part.py fetch/test_pieces.py \
		residency/test_page_cache.py residency/test_residency.py serve/test_administrators.py \
		serve/test_crowding.py serve/test_sockets.py serve/test_worker_server.py store/test_store.py \
		test_singleflight.py)
PINNED := .venv-audiocraft-pinned
PINNED_PIP := $(PINNED)/bin/python -m pip --disable-pip-version-check
TODAYS := VENV=.venv-audiocraft CONSTRAINTS=tests/upstream/requirements.txt EXTRAS=omegaconf

# Make something with each of the newer Pythons that are here, in an environment of its own.
define WITH_PYTHONS
for version in $(PYTHONS); do \
	python=$$(sh tests/find-python.sh $$version) || { \
		echo "make: no Python $$version, so nothing is tested with it" >&2; continue; }; \
	$(MAKE) $(1) VENV=.venv-python$$version PYTHON="$$python" EXTRAS=daemon || exit; \
done
endef

define WITH_PYTHON310
python=$$(sh tests/find-python.sh 3.10) || { \
	echo "make: no Python 3.10, so nothing is tested with AudioCraft's own pins" >&2; exit 0; }; \
$(MAKE) $(1) PYTHON310="$$python"
endef

LOWEST := VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt EXTRAS=test

.PHONY: demo soak test test-lowest audiocraft upstream upstream-pinned test-pythons test-without-torch check \
	check-types check-style bench gpu clean environments installed pinned

demo: $(FOR_DEMO)
	$(BIN)/craftcache demo $(SOURCE)

test: $(INSTALLED)
	$(PYTEST) $(ARGS)

# What depends on other libraries, with the oldest of them that pyproject.toml admits.
test-lowest:
	$(MAKE) test $(LOWEST) ARGS="tests/test_main_job.py $(addprefix tests/client/,cli/test_cached.py \
		cli/test_warm.py exports fallback network origins transport test_hub_tree.py) \
		tests/daemon/serve tests/daemon/test_options.py \
		$(addprefix tests/daemon/warm/,test_hub_lock.py test_queue_kept.py)"

# What needs no torch, on the newer Pythons that are here, without it.
test-pythons:
	+@$(call WITH_PYTHONS,test-without-torch)

test-without-torch: $(VENV)/.without-torch
	$(PYTEST) $(WITHOUT_TORCH)

audiocraft: $(INSTALLED)
	$(MAKE) upstream $(TODAYS)
	$(MAKE) upstream-pinned
	$(BIN)/python -m pytest tests/upstream

upstream: $(VENV)/.upstream

upstream-pinned: $(INSTALLED)
	+@$(call WITH_PYTHON310,$(PINNED)/.craftcache)

# AudioCraft's own pins have no wheels for newer Pythons. 5.9 GB, most of it CUDA's libraries, which
# torch's only build of that version on PyPI is linked to.
pinned:
	+@$(call WITH_PYTHON310,$(PINNED)/.upstream)

# All that check, test, test-lowest, test-pythons and audiocraft install. With --jobs=2 it takes less
# time than one by one, as pip uses one core.
environments:
	$(MAKE) installed pinned environment-todays environment-lowest environments-without-torch
	$(MAKE) upstream-pinned

.PHONY: environments-without-torch environment-lowest environment-todays

installed: $(INSTALLED)

environment-lowest:
	$(MAKE) installed $(LOWEST)

environment-todays:
	$(MAKE) upstream $(TODAYS)

environments-without-torch:
	+@$(call WITH_PYTHONS,.venv-python$$version/.without-torch)

check: check-types check-style

check-types: $(INSTALLED)
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases tests

check-style: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy --python-version 3.10 --package craftcache

bench: $(INSTALLED) $(VENV)/.charts
	for name in $(BENCHES); do $(BIN)/python -m tests.bench.$$name || exit; done
	$(BIN)/python -m tests.bench.charts

$(VENV)/.charts: pyproject.toml $(CONSTRAINTS) | $(INSTALLED)
	$(PIP) install --editable '.[bench]'
	touch $@

soak: $(INSTALLED)
	$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS)

gpu:
	@$(GPU_PYTHON) -m tests.gpu $(ARGS)

clean:
	rm -rf .venv .venv-lowest .venv-python* .venv-audiocraft $(PINNED)

# Tests need torch; where only what does without it is installed, none may slip in.
$(INSTALLED): pyproject.toml $(CONSTRAINTS) $(if $(findstring test,$(EXTRAS)),$(VENV)/.torch) | $(BIN)/python
	$(PIP) install --editable '.[$(EXTRAS)]'
	touch $@ $(FOR_DEMO)

$(FOR_DEMO): $(VENV)/.torch
	$(PIP) install --editable '.[daemon,torch]'
	touch $@

# The package index has PyTorch with CUDA alone, which is gigabytes; PyTorch's own index has it
# without. Where only the package index can be reached, that one has to do.
TORCH_INDEX := https://download.pytorch.org/whl/cpu

$(VENV)/.torch: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@if $(BIN)/python -c 'import urllib.request as r; r.urlopen("$(TORCH_INDEX)/torch/", timeout=10)' 2>/dev/null; \
	then index="--extra-index-url $(TORCH_INDEX)"; fi; set -x; \
	$(PIP) install --no-compile $$index torch && \
	$(BIN)/python -W ignore -c 'import torch'  # compiles what is imported, which is half of it
	touch $@

$(VENV)/.without-torch: $(CONSTRAINTS) | $(INSTALLED)
	$(PIP) install --constraint $(CONSTRAINTS) $(TEST_TOOLS)
	! $(BIN)/python -c 'import torch' 2>/dev/null
	touch $@

# AudioCraft comes as its source distribution: only that has the config/ that models are trained with.
# PyPI's torchaudio links its libraries to CUDA's and fails to import where torch has none; without
# them it goes on in Python.
$(VENV)/.upstream: $(CONSTRAINTS) | $(INSTALLED)
	$(PIP) install --constraint $(CONSTRAINTS) setuptools
	$(PIP) install --no-deps --no-build-isolation --no-compile --requirement $(CONSTRAINTS)
	$(call INSTALL_AUDIOCRAFT,$(VENV))
	rm -f $(VENV)/lib/python3*/site-packages/torchaudio/lib/*.so
	touch $@

$(PINNED)/.upstream: tests/upstream/requirements-pinned.txt
	rm -rf $(PINNED)
	$(PYTHON310) -m venv $(PINNED)
	$(PINNED_PIP) install --constraint $< setuptools
	$(PINNED_PIP) install --no-deps --no-build-isolation --no-compile --requirement $<
	$(call INSTALL_AUDIOCRAFT,$(PINNED))
	$(PINNED_PIP) freeze > $(PINNED)/before.txt
	touch $@

# As its users install it: what was built, into what is there. The tests look at what that changed.
$(PINNED)/.craftcache: pyproject.toml $(shell find client daemon -name '*.py') \
		tests/upstream/constraints-pinned.txt | $(PINNED)/.upstream $(INSTALLED)
	rm -rf $(PINNED)/dist
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir $(PINNED)/dist .
	$(PINNED_PIP) uninstall --yes craftcache
	$(PINNED_PIP) install --constraint tests/upstream/constraints-pinned.txt $(PINNED)/dist/*.whl
	$(PINNED_PIP) freeze > $(PINNED)/after.txt
	touch $@

define INSTALL_AUDIOCRAFT
	$(1)/bin/python -m pip download --no-deps --no-build-isolation --no-binary :all: --dest $(1) audiocraft==1.3.0
	tar --extract --no-same-owner --file $(1)/audiocraft-1.3.0.tar.gz --directory $(1)
	$(1)/bin/python -m pip install --no-deps --no-build-isolation $(1)/audiocraft-1.3.0
endef

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
