# Each target works alone on a fresh clone: it makes .venv and installs what it needs, once.
PYTHON ?= python3
THREADS ?= 1
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test zoo docs bench test-lowest gpu gpu-test mutants readme prepare clean

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

# one stamp for each set of dependencies: base, dev, docs, zoo, bench
.venv/base: .venv/pyvenv.cfg pyproject.toml setup.cfg
	@echo "Installing fastinit and what it needs (a few minutes the first time) …"
	$(PIP) -e .
	@touch $@

.venv/dev: .venv/docs # its tests build the site

.venv/%: .venv/base
	@echo "Installing the '$*' extra …"
	$(PIP) -e '.[$*]'
	@touch $@

demo: .venv/base  ## train the article's convnet from three initializations; charts in demo/
	$(BIN)/fastinit-article simple --schemes 'default kaiming lsuv' --lrs 1e-3 --out demo

# one notebook or test file per core, THREADS threads each
test: .venv/dev  ## the notebooks, then the tests
	OMP_NUM_THREADS=$(THREADS) $(BIN)/nbdev-test --n-workers 2
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n 2 --dist loadfile

test-lowest:  ## the same with the oldest versions that setup.cfg allows, in .venv-lowest
	test -e .venv-lowest || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c tools/lowest.txt -e . accelerate cloudpickle hypothesis ipykernel lightning 'nbdev>=3.3,<3.4' ninja pytest pytest-xdist setuptools timm torchvision transformers
	OMP_NUM_THREADS=$(THREADS) .venv-lowest/bin/nbdev-test --n-workers 2 --file-re '^[0-2]'
	OMP_NUM_THREADS=$(THREADS) .venv-lowest/bin/python -m pytest -n 2 --dist loadfile --ignore tests/test_site.py --ignore tests/test_packaging.py --ignore tests/test_api.py --ignore tests/test_zoo.py

zoo: .venv/dev .venv/zoo  ## whole architectures of torchvision, timm, transformers, fastai; benchmarks/zoo.csv (some 12 minutes)
	FASTINIT_ZOO=1 $(BIN)/python -m pytest tests/test_zoo.py

docs: .venv/docs  ## the site, in _docs/
	$(BIN)/python tools/docs.py

bench: .venv/bench  ## every benchmark; figures in benchmarks/
	for f in benchmarks/bench_*.py; do $(BIN)/python $$f || exit 1; done

# needs the images in imagenette128/; may be ended at any time, and continues after the last epoch: timeout 600 make gpu
gpu: .venv/bench benchmarks/one_pass_cuda.csv  ## on a GPU: LSUV's time and memory, and the article's experiments at its own size, 128 px
	$(BIN)/python benchmarks/imagenette.py gpu

benchmarks/one_pass_cuda.csv:
	$(BIN)/python benchmarks/bench_one_pass.py --device cuda

gpu-test: .venv/dev  ## on a GPU: LSUV, the schemes, the callback's life
	$(BIN)/python -m pytest -m cuda

mutants: .venv/dev  ## does a test notice when one place of a module is wrong? 15 places of each, drawn with a seed (some hours); N=…, MODULES='stats lsuv'
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py $(MODULES) --n $(or $(N),15)

readme: .venv/docs  ## README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

prepare: .venv/dev .venv/docs  ## after editing notebooks: run and save them, export, clean, light pictures, README
	OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore $(BIN)/nbdev-test --save --n-workers 2
	$(BIN)/nbdev-export && $(BIN)/nbdev-clean
	$(BIN)/python tools/figures.py
	$(BIN)/python tools/readme.py

clean:  ## remove what was built, .venv too
	rm -rf .venv .venv-lowest _proc _docs demo build dist *.egg-info
