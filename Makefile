# make demo       moves 1 GB onto four shards and back, under writers, and tells the times
# make test       all quick tests; make test-all: the long ones too
# make install    the extension and its schema planner, into the server that PG_CONFIG names
# make check      formatting and lints
#
# PG=16 or PG=18 takes another PostgreSQL than Debian's 15, PG_CONFIG=path any
# that is installed. Each target installs what the machine lacks.

.NOTPARALLEL:
SHELL := /bin/sh

PG ?= 15
ifeq ($(strip $(PG_CONFIG)),)
  ifeq ($(PG),15)
    PG_CONFIG := /usr/lib/postgresql/15/bin/pg_config
  else
    PG_CONFIG := /opt/reshard-postgresql/versions/$(PG)/bin/pg_config
  endif
else
  PG := $(shell $(PG_CONFIG) --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
endif

TARGET := $(or $(CARGO_TARGET_DIR),target)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PREPARE := @pgrx-tests/bin/prepare $(PG) $(PG_CONFIG)

# Two selections of packages, always these with the release profile: cargo unites
# the features of all that it builds at once, so others would build things twice.
TOOLS := --release --package reshard-scenarios --package reshard-schema
EXTENSION := --release --package reshard --no-default-features --features pg$(PG)

PGRX_PG_CONFIG_PATH := $(PG_CONFIG)
export PG_CONFIG PGRX_PG_CONFIG_PATH

TESTS := cargo test $(TOOLS) --lib --bins --tests --

.PHONY: demo test test-all install check clean

demo: install
	@pgrx-tests/bin/prepare $(PG) $(PG_CONFIG) demo
	$(TARGET)/release/demo

test: install
	cargo test $(EXTENSION) --lib
	$(TESTS)

test-all: install
	cargo test $(EXTENSION) --lib
	$(TESTS) --include-ignored

install:
	$(PREPARE)
	cargo build $(TOOLS)
	cargo pgrx install $(EXTENSION) $(if $(SUDO),--sudo) --pg-config $(PG_CONFIG)
	$(SUDO) install -m 755 $(TARGET)/release/reshard-schema "$$($(PG_CONFIG) --bindir)/reshard-schema"

check:
	$(PREPARE)
	cargo fmt --all -- --check
	cargo clippy $(TOOLS) --all-targets -- -D warnings
	cargo clippy $(EXTENSION) --all-targets -- -D warnings

clean:
	cargo clean
