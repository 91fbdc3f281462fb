# make train   set up what is missing, then train on 2 ranks    NP=4 ARGS='--recipe best' pass on what you want
# make test    set up what is missing, then pass the tests      ARGS='-m slow' for the long ones
# make lock    resolve requirements/*.in anew (needs uv)
#
# Needs Python 3.11, make and g++ with C++17.
SHELL := /bin/bash -o pipefail
PYTHON ?= python3.11
CXX ?= g++
VENV ?= .venv
NP ?= 2
ARGS ?=
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
export CXX
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

# What set-up has made may be gone: this folder was moved or copied, Horovod removed, the cache of compiled operations cleaned.
$(shell [ ! -e $(STAMPS)/run ] || { \
  grep -qF -e "$(realpath $(BIN))/python" -e "$(abspath $(BIN))/python" $(BIN)/horovodrun || rm -rf $(VENV); \
  $(BIN)/python -c 'import sys; from job.model.kernels.library import built; sys.exit(not built())' || rm -f $(STAMPS)/run; \
  } 2>/dev/null)

.PHONY: train test check lock clean
.DELETE_ON_ERROR:

train: $(STAMPS)/run
	@options=$$($(BIN)/python -m job.fetch $(ARGS)) && \
	set -- horovodrun -np $(NP) python -m job.train $$options $(ARGS) && echo "$$*" && \
	PATH="$(abspath $(BIN)):$$PATH" "$$@"

test: $(STAMPS)/test check
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest $(ARGS)

check: $(STAMPS)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMPS)/tools:
	@command -v $(PYTHON) >/dev/null || { echo "error: Python 3.11 is needed: $(PYTHON) was not found. Install it, or set PYTHON." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "error: Python 3.11 is needed: received $$($(PYTHON) -V). Set PYTHON to a Python 3.11." >&2; exit 2; }
	@echo 'int main() { if constexpr (true) return 0; } static_assert(__GNUC__ > 4);' | $(CXX) -std=c++17 -x c++ -fsyntax-only - 2>/dev/null || { echo "error: g++ with C++17 is needed: $(CXX) was not found, is too old, or is clang. Install g++, or set CXX." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) can't make a virtual environment. Install its venv module (Debian: python3-venv)." >&2; exit 2; }
	@mkdir -p $(@D) && touch $@

$(STAMPS)/run: requirements/runtime.txt requirements/build.txt docker/build_horovod.py $(wildcard $(addprefix job/model/kernels/,*.py inner/*.[ch]* ops/*.[ch]*)) | $(STAMPS)/tools
	@echo "installing TensorFlow, Keras, Ray and what they need (about a minute) …"
	@$(PIP) -r requirements/runtime.txt
	@$(PIP) -r requirements/build.txt
	@$(BIN)/python docker/build_horovod.py
	@$(BIN)/python -m job.model.kernels.build
	@touch $@

$(STAMPS)/test: requirements/test.txt $(STAMPS)/run
	@echo "installing what the tests need …"
	@$(PIP) -r requirements/test.txt
	@touch $@

lock:
	cd requirements && for set in test runtime build export sbom cuda gpu; do \
	  case $$set in test) more= ;; gpu) more="--override not-gpu.txt --constraint runtime.txt" ;; *) more="--constraint test.txt" ;; esac; \
	  uv pip compile $$set.in --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	    $$more -o $$set.txt --quiet || exit 1; done

clean:
	rm -rf $(VENV)
