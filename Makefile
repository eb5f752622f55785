# The manual of this repository. Every target starts from a bare checkout.
#
#   make setup   .venv with the built package, and what demo, tests and benches need
#   make demo    the main job: build engines of real networks, serve a pipeline over them, and read pages of text
#   make test    all tests: Rust and Python
#   make check   formatting, lints, types, layering
#   make bench   side by side with the peers (installs them into .peers; needs apt-get and root for two load generators)
#   make fuzz    the wire codec under cargo-fuzz, FUZZ_SECONDS each (needs cargo-fuzz and a nightly toolchain)
#   make lock    pin the development environment anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FUZZ_SECONDS ?= 60

RUST_SOURCES := $(shell find crates proto -name '*.rs' -o -name '*.proto' -o -name Cargo.toml 2>/dev/null) Cargo.toml Cargo.lock python/penstock/limits.toml

.PHONY: setup demo test test-rust test-python check bench fuzz lock clean

setup: $(VENV)/built

# uv comes from PyPI like everything else; venv alone needs nothing installed by hand.
$(VENV)/packages: requirements/dev.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/dev.lock
	touch $@

$(VENV)/built: $(VENV)/packages $(RUST_SOURCES) pyproject.toml
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --locked --quiet --uv
	touch $@

demo: setup
	$(BIN)/python -m examples.ocr.page.demo

test: test-rust test-python

test-rust:
	cargo test --locked --quiet --workspace --exclude penstock-bridge
	mkdir -p target
	rustc --edition 2024 --test -o target/test_large crates/bridge/src/large.rs && target/test_large --quiet

test-python: setup
	$(BIN)/python -m pytest

check: setup
	cargo fmt --all --check
	cargo clippy --locked --quiet --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/layering

bench: setup
	$(BIN)/python benches/dataplane.py

fuzz:
	for target in json_decode grpc_decode inflate; do \
		(cd crates/wire && cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS)) || exit 1; \
	done

lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
		--upgrade -o requirements/dev.lock requirements/dev.in

clean:
	rm -rf $(VENV) target build python/penstock/_core*.so
