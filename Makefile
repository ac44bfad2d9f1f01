# `make prep train export` runs the quickstart; `make PIPELINE=my.toml prep train export` runs yours.
# Python and make are all that has to be there: the environment is made on first use and kept in .venv.

PYTHON   ?= python3
PIPELINE ?= pipelines/quickstart.toml
SET      ?=
BIN      := .venv/bin

.NOTPARALLEL:
.DEFAULT_GOAL := all
.PHONY: all setup data prep train export chat picture check lint types fast test faults fuzz golden tokenizer docs pins audit licences versions bench-prep bench-train bench-plan bench-export bench-checks clean help

all: prep train export

help:
	@echo "make prep train export   the three stages of PIPELINE=$(PIPELINE)"
	@echo "make chat                talk to the exported model"
	@echo "make test                every test;  make check: lint, types and the fast tests"
	@echo "make bench-prep          prep's speed beside other projects'; JSON=1 also writes bench/results"
	@echo "make bench-train         a training step beside PyTorch's own and other trainers'; JSON=1 likewise"
	@echo "make bench-plan          what \`packtrain plan\` says of memory beside what a step takes; JSON=1 likewise"
	@echo "make bench-export        exports of a ZeRO 3 checkpoint beside DeepSpeed's own tool; JSON=1 likewise"
	@echo "make bench-checks        what looking for damage takes of each stage; JSON=1 likewise"
	@echo "make picture             the README's picture of a report, from the run of PIPELINE"
	@echo "make faults              kill, starve and damage real runs, and count what was lost; FAULTS_HOURS=8 for a night"
	@echo "make fuzz                readers of files under a fuzzer, FUZZ_SECONDS=60 each; FUZZ_ONLY=\"toml shard\" takes some alone"
	@echo "make audit               known advisories of the pinned packages;  make licences: what they are under"
	@echo "make versions            prep under every Python here, with the oldest, pinned and latest packages"
	@echo "make docs                the documentation as a site, in site/; it loads nothing from elsewhere"
	@echo "make clean               remove the runs below work/"

setup: .venv/.ready .venv/transformers-4.56/.ready

# What is one file for every machine comes first, held to its hash. torch comes next and alone, pinned without a build tag:
# each machine takes the build its index offers, and no other package's range can pull a larger one. What builds a package
# from source is pinned as well; pip took PIP_CONSTRAINT for that until 25.2 and takes PIP_BUILD_CONSTRAINT since.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet
PIP_HASHED := $(PIP) --no-deps --require-hashes --requirement

.venv/.ready: pyproject.toml constraints.txt hashes.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "packtrain needs Python 3.11 to 3.13; set PYTHON=/path/to/python"; exit 5; }
	@echo "making the environment in .venv (several minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP_HASHED) hashes.txt
	@$(PIP) torch
	@$(PIP) --editable '.[train,dev]'
	@touch $@

# Tests load exports with the oldest Transformers that they are promised to load in. It lies apart; nothing else sees it.
.venv/transformers-4.56/.ready: tests/export/transformers-4.56.txt .venv/.ready
	@rm -rf $(@D)
	@$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-compile --target $(@D) --requirement $<
	@touch $@

# The quickstart's data is generated, not stored, and made again when its generator or tokenizer changes.
GENERATED := pipelines/quickstart/data/heldout.jsonl
$(GENERATED): .venv/.ready $(wildcard prep/quickstart/*.py) pipelines/quickstart/tokenizer/tokenizer.json
	@rm -rf pipelines/quickstart/data
	@$(BIN)/packtrain init quickstart pipelines
	@touch $@

data: setup $(if $(filter pipelines/quickstart.toml,$(PIPELINE)),$(GENERATED))

prep: data
	@$(BIN)/packtrain prep $(PIPELINE) $(SET)

train: setup
	@$(BIN)/packtrain train $(PIPELINE) $(SET)

export: setup
	@$(BIN)/packtrain export $(PIPELINE) $(SET)

chat: setup
	@$(BIN)/packtrain chat work/quickstart/export/hf

# The README's picture: head and training of the page about PIPELINE's run, as Chromium draws them.
CHROMIUM ?= chromium
picture: setup
	@$(BIN)/packtrain report $(PIPELINE) $(SET) -o work/picture.html
	@printf '<body style="margin:0"><iframe src="picture.html%s" style="display:block;border:0;width:100%%;height:%s"></iframe>' \
		'' 390px '#training' 425px > work/picture-parts.html
	@$(CHROMIUM) --headless --no-sandbox --disable-gpu --hide-scrollbars --blink-settings=preferredColorScheme=1 \
		--window-size=1000,815 --screenshot=docs/figures/report.png file://$(CURDIR)/work/picture-parts.html 2>/dev/null
	@rm work/picture.html work/picture-parts.html

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup
	@$(BIN)/mypy

fast: setup
	@$(BIN)/pytest -m "not slow and not gpu" -n 2

check: lint types fast

test: setup
	@$(BIN)/pytest -n 2 --dist worksteal

# Real kills, failing disks and damaged files, counted; FAULTS_HOURS goes on with other seeds for so long.
FAULTS_HOURS  ?= 0
FAULTS_POINTS ?= 3
faults: setup
	@$(BIN)/python -m tests.faults --points $(FAULTS_POINTS) --hours $(FAULTS_HOURS)

# Readers of files under a coverage-guided fuzzer. What it finds is kept in tests/fuzz/corpus, and fails the tests.
FUZZ_SECONDS ?= 60
FUZZ_ONLY    ?=
fuzz: .venv/.fuzz-ready
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.fuzz --seconds $(FUZZ_SECONDS) $(addprefix --only ,$(FUZZ_ONLY))

# Where there is no wheel, tests.fuzz says so and exits 5.
.venv/.fuzz-ready: .venv/.ready
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]' && touch $@ || true

# After a deliberate change of the bytes that prep writes: raise the format version, then this.
golden: prep
	@$(BIN)/packtrain order write $(PIPELINE) --golden pipelines/quickstart/golden.json

tokenizer: setup
	@$(BIN)/python -m prep.bpe pipelines/quickstart/tokenizer

# Pages that are written from the code first, then the site; a link or anchor that leads nowhere ends it.
docs: .venv/.docs-ready
	@$(BIN)/python -m pipelines.reference
	@$(BIN)/python -m pipelines.api_reference
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

.venv/.docs-ready: .venv/.ready hashes-docs.txt
	@$(PIP_HASHED) hashes-docs.txt
	@$(PIP) --editable '.[docs]'
	@touch $@

# After a change of constraints.txt: the hashes of what is one file for every machine, and the licences.
pins: setup
	@$(BIN)/python -m tests.versions.pins

# The page of licences, after a change of constraints.txt; what builds the docs is on it, so it has to be here.
licences: .venv/.docs-ready
	@$(BIN)/python -m tests.versions.licences

# Known advisories of what is pinned. ADVISORIES is OSV's export for PyPI (all.zip), for where PyPI's own are out of reach.
ADVISORIES ?=
audit: $(if $(ADVISORIES),setup,.venv/audit/.ready)
	@$(BIN)/python -m tests.versions.audit $(if $(ADVISORIES),--offline '$(ADVISORIES)')

.venv/audit/.ready: tests/versions/audit.txt .venv/.ready
	@test -x $(@D)/bin/python || $(BIN)/python -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --constraint constraints.txt --requirement $<
	@touch $@

# prep's bytes and tests under every Python here, with the oldest, the pinned and the latest packages.
versions: setup
	@$(BIN)/python -m tests.versions.matrix

# Peers live apart, so that nothing of theirs decides about a version of ours; where they cannot be had, the table says so.
bench-prep: setup
	@$(MAKE) --no-print-directory .bench-venv/.ready || true
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.prep $(if $(JSON),--json)

bench-train: setup
	@$(MAKE) --no-print-directory .bench-venv/.ready || true
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.train $(if $(JSON),--json)

bench-plan: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.plan $(if $(JSON),--json)

bench-checks: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.checks $(if $(JSON),--json)

bench-export: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.export $(if $(JSON),--json)

.bench-venv/.ready: bench/peers.txt bench/peers-alone.txt
	@echo "making the peers' environment in .bench-venv"
	@test -x .bench-venv/bin/python || $(PYTHON) -m venv .bench-venv
	@.bench-venv/bin/python -m pip install --quiet --constraint bench/peers.txt torch
	@.bench-venv/bin/python -m pip install --quiet --requirement bench/peers.txt
	@.bench-venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --requirement bench/peers-alone.txt
	@touch $@

clean:
	rm -rf work
