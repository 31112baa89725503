# Every target sets up what it needs in .venv; Python 3.11+, make and pip are all a machine must have.
PYTHON ?= python3
RUN := .venv/bin/
DEMO ?= demo-run
OLDEST := 5.17.0

.PHONY: demo test test-hf soak lint docs release-check bench experiments clean

.venv/train: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN)python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN)python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	touch $@

.venv/ready: .venv/train
	$(RUN)python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/train  ## train on the English that every Python carries, then write a paragraph
	rm -rf $(DEMO)
	$(RUN)feedback-transformer train --preset demo --out $(DEMO)
	$(RUN)feedback-transformer generate $(DEMO) --prompt "The " --max-new-tokens 400 --temperature 0.7

lint: .venv/ready
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy
	$(RUN)codespell

test: lint  ## everything that must hold, in less than ten minutes on two cores
	$(RUN)pytest -n 2

.venv/transformers-$(OLDEST): .venv/ready
	$(RUN)python -m pip install --quiet --disable-pip-version-check --upgrade --target $@ transformers==$(OLDEST)

test-hf: .venv/ready .venv/transformers-$(OLDEST)  ## the tests of hf under the oldest transformers and that of constraints.txt
	PYTHONPATH=$(CURDIR)/.venv/transformers-$(OLDEST) $(RUN)pytest tests/hf
	$(RUN)pytest tests/hf

docs: .venv/ready  ## the documentation, in docs/_build/html
	$(RUN)python -m sphinx --fail-on-warning --keep-going -q -b html docs/site docs/_build/html

release-check: .venv/ready  ## what a release needs besides `test`: the wheel, the documentation in a browser, the README
	$(RUN)pytest -rs -m 'release or readme' tests/docs tests/release

soak: .venv/ready  ## what takes too long for every day: 100 kills, 3,000 updates, 40 MB of text
	$(RUN)pytest -m slow

SPEED = benchmarks/speed.py --contestants reference fused fused-relative parallel --repeats 5
SPEED_JSON = benchmarks/results/speed-shapes-cpu

bench: .venv/ready  ## the table of speed in the README, from an idle machine
	$(RUN)python $(SPEED) --precision fp32 --out $(SPEED_JSON)-fp32.json
	$(RUN)python $(SPEED) --precision bf16 --skip-tests --out $(SPEED_JSON)-bf16.json
	$(RUN)python benchmarks/tables.py
	$(RUN)python benchmarks/plots.py

experiments: .venv/ready  ## runs the rows without an asterisk and without results, for hours; it may be stopped and goes on; TABLE= or TABLE/ROW
	$(RUN)python experiments/run.py $(TABLE); status=$$?; $(RUN)python experiments/page.py && exit $$status

clean:
	rm -rf .venv .cache dist build docs/_build $(DEMO)
