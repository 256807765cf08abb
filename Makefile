# make demo       moves 1 GB onto four shards and back, under writers, and tells the times
# make test       all quick tests; make test-all: the long ones too
# make install    the extension and its schema planner, into the server that PG_CONFIG names
# make check      formatting and lints
# make bench      the copy against a floor and against peers: 1 -> 4, up to 1 -> 16, and 3 -> 4
# make bench-cutover   the pause of 50 switches, as clients see it
#
# PG=16 or PG=18 takes another PostgreSQL than Debian's 15, PG_CONFIG=path any
# that is installed. Each target installs what the machine lacks.

.NOTPARALLEL:
SHELL := /bin/sh

PG ?= 15
# PG= on the command line counts more than a PG_CONFIG of the environment.
ifeq ($(origin PG)/$(origin PG_CONFIG),command line/environment)
  PG_CONFIG :=
endif
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
TOOLS := --release --package reshard-scenarios --package reshard-schema --package reshard-pgbouncer --package reshard-bench
EXTENSION := --release --package reshard --no-default-features --features pg$(PG)

PGRX_PG_CONFIG_PATH := $(PG_CONFIG)
# A scenario that fails ends with what it saw.
RUST_BACKTRACE := 0
export PG_CONFIG PGRX_PG_CONFIG_PATH RUST_BACKTRACE

INSTALL := cargo pgrx install $(EXTENSION) $(if $(SUDO),--sudo) --pg-config $(PG_CONFIG)
TESTS := cargo test $(TOOLS) --lib --bins --tests --

.PHONY: demo test test-all bench bench-cutover install check clean

demo: install
	@pgrx-tests/bin/prepare $(PG) $(PG_CONFIG) demo
	$(TARGET)/release/demo

test: install
	@pgrx-tests/bin/prepare $(PG) $(PG_CONFIG) test
	cargo test $(EXTENSION) --lib
	$(TESTS)

# The table of faults needs a library that can be made to fail; afterwards the
# usual one is put back.
FAULTS := every_fault_at_every_moment

test-all: install
	@pgrx-tests/bin/prepare $(PG) $(PG_CONFIG) test
	cargo test $(EXTENSION) --lib
	$(TESTS) --include-ignored --skip $(FAULTS)
	$(INSTALL) --features failpoints
	$(TESTS) --ignored --nocapture $(FAULTS); status=$$?; \
	    $(MAKE) install && exit $$status

bench: install
	@pgrx-tests/bin/prepare $(PG) $(PG_CONFIG) demo
	$(TARGET)/release/reshard-bench

bench-cutover: install
	$(TARGET)/release/bench_cutover

install:
	$(PREPARE)
	cargo build $(TOOLS)
	$(INSTALL)
	$(SUDO) install -m 755 $(TARGET)/release/reshard-schema "$$($(PG_CONFIG) --bindir)/reshard-schema"

check:
	$(PREPARE)
	cargo fmt --all -- --check
	cargo clippy $(TOOLS) --all-targets -- -D warnings
	cargo clippy $(EXTENSION) --all-targets -- -D warnings

clean:
	cargo clean
