# The one way in. Every target has a line of help; `make help` prints them.
.DEFAULT_GOAL := help
CARGO ?= cargo
ARGS ?=

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the release binary, target/release/refract
	$(CARGO) build --release --locked

run: ## Build and run it: make run ARGS="--dport=443 --dry-run"
	$(CARGO) run --release --locked --bin refract -- $(ARGS)

demo: build ## See it work in a throw-away network lab, under two minutes
	$(CARGO) build --release --locked -p refract --example demo
	./target/release/examples/demo target/release/refract

test: ## Run every test: units, live kernel in namespaces, end to end through a real proxy
	./scripts/install-test-needs
	$(CARGO) build --locked --bin refract
	$(CARGO) test --workspace --locked

bench: ## Measure latency on the live kernel and throughput over a synthetic log
	./scripts/install-test-needs
	$(CARGO) bench --locked -p refract --bench latency
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

check: fmt-check lint doc deny test ## The gate: what CI, the push hook and people run

hooks: ## Install the git hooks: format and lint at commit, the gate at push
	git config core.hooksPath .githooks

.PHONY: help build run demo test bench fmt fmt-check lint doc deny check hooks
