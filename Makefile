# The one way in. Every target has a line of help; `make help` prints them.
.DEFAULT_GOAL := help
CARGO ?= cargo
ARGS ?=
TRIPLE ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Every promise of the enforcement path holds with either firewall: these run with nftables too. The
# others are about one of the two, or about neither.
ON_NFTABLES = beside_firewalls brakes end_to_end enforcement enforcement_udp faults forgery grade \
	hand_over local_ends memory namespaces process records reverse_proxy shared_source sharing \
	sources

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the release binary, target/release/refract
	$(CARGO) build --release --locked

run: ## Build and run it: make run ARGS="--dport=443 --dry-run"
	$(CARGO) run --release --locked --bin refract -- $(ARGS)

demo: build ## See it work in a throw-away network lab, half a minute after the build
	$(CARGO) build --release --locked -p refract --example demo
	$(TARGET)/release/examples/demo $(TARGET)/release/refract

test: ## Run every test: units, live kernel in namespaces, end to end through a real proxy, with either firewall
	./scripts/install-test-needs
	$(CARGO) build --locked --bin refract
	./scripts/build-static
	$(CARGO) test --workspace --locked
	$(MAKE) test-nftables

test-nftables: ## Run the tests of the enforcement path with nftables, as test does at its end
	./scripts/install-test-needs
	REFRACT_TEST_FIREWALL=nftables $(CARGO) test --locked -p refract \
		$(patsubst %,--test %,$(ON_NFTABLES))

static: ## Build the static binary that image, archives and packages hold
	./scripts/build-static

image: ## Build the container image refract:latest with the machine's Docker engine
	./scripts/build-image

dist: ## Make a release's archive in dist/: make dist TRIPLE=aarch64-unknown-linux-gnu
	./scripts/dist $(TRIPLE)

dist-check: ## Make archive and packages twice, in two places, and fail where the bytes differ
	./scripts/dist-check

packages: deb rpm ## Build both packages into target/packages

deb: ## Build the Debian package (needs dpkg-deb)
	./packaging/make-packages "$(TRIPLE)" $(TARGET)/packages deb

rpm: ## Build the RPM package (needs rpmbuild)
	./packaging/make-packages "$(TRIPLE)" $(TARGET)/packages rpm

manual: ## Write the manual page and the completions into target/manual
	$(CARGO) run --locked -p refract --example manual -- $(TARGET)/manual

bench: ## Measure latency and evidence on the live kernel and throughput over a synthetic log
	./scripts/install-test-needs
	$(CARGO) bench --locked -p refract --bench latency
	$(CARGO) bench --locked -p refract --bench evidence
	$(CARGO) bench --locked -p refract-core --bench throughput

fmt: ## Format the sources
	$(CARGO) fmt --all

fmt-check: ## Fail where the sources are not formatted
	$(CARGO) fmt --all -- --check

lint: ## Clippy, pedantic, warnings are errors
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

doc: ## Build the documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked

deny: ## Check dependencies: bans, licences, sources
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked check bans licenses sources; \
	else \
		echo "cargo-deny is not installed: dependencies were NOT checked (cargo install cargo-deny)"; \
	fi

check: fmt-check lint doc deny test dist-check ## The gate: what CI, the push hook and people run

hooks: ## Install the git hooks: format and lint at commit, the gate at push
	git config core.hooksPath .githooks

.PHONY: help build run demo test test-nftables static image dist dist-check packages deb rpm manual bench fmt \
  fmt-check lint doc deny check hooks
