# Each target installs first if need be. PYTHON names the interpreter that makes the virtual environment.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# Of the images' base (docker-compose.yml), which `make wheelhouse` downloads wheels for.
IMAGE_PYTHON ?= 3.11

.PHONY: install demo demo-data test test-long check bench calibrate wheelhouse compose-test clean

install: $(INSTALLED) demo-data

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "headrace needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 install")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing. On Debian: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[workers,trainer,report,prometheus,tensorboard,demo,digits,dev]'
	touch $@

demo-data: $(INSTALLED)
	$(BIN)/headrace demo-data demo-data

demo: $(INSTALLED) demo-data
	$(BIN)/headrace train configs/jobs/quickstart.yaml --run-dir "runs/quickstart-$$(date +%Y%m%d-%H%M%S)"

# Most acceptance tests wait for clocks: four at a time keep two cores busy. What the README shows is run by test-long.
test: install
	$(BIN)/pytest -m 'not long' -n 4 --dist loadfile --no-loadscope-reorder tests

test-long: install
	TEST_SIZE=full $(BIN)/pytest -m 'long or not long'

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/headrace bench configs/jobs/bench.yaml --json docs/bench.json

calibrate: $(INSTALLED) demo-data
	$(BIN)/headrace calibrate configs/jobs/calibrate.yaml

# All that the images need, so that they are built without a network; wheels that lie there already are taken first.
wheelhouse: $(INSTALLED)
	mkdir -p wheelhouse
	$(BIN)/python docker/requirements.py build workers trainer report prometheus tensorboard demo > wheelhouse/requirements.txt
	$(BIN)/pip download --quiet --disable-pip-version-check --only-binary :all: --python-version $(IMAGE_PYTHON) \
	    --find-links wheelhouse --dest wheelhouse -c constraints.txt -r wheelhouse/requirements.txt
	cp constraints.txt wheelhouse/

# Needs an engine with compose: under ten minutes on two cores, beside the building of the images. Not part of any other target.
compose-test: install
	$(BIN)/pytest -s tests/compose_up.py

clean:
	rm -rf .venv build *.egg-info
