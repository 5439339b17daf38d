# What stands behind these targets is in ci/pipeline; each installs what it
# needs, can be run twice, and tells on failure which step, why and what to do.
.DEFAULT_GOAL := help
DEV = go -C ci run ./cmd/dev
FUZZTIME ?= 1m
FROM ?= 1
SEEDS ?= 10000
PORT ?= 18180
export PORT

.PHONY: help up down run check test gate bench bench-against mutants soak fuzz fmt proto docs

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## A cluster, the image, the release with values/dev.yaml, and real data in it
	@$(DEV) up

down: ## Take away what `make up` made
	@$(DEV) down

run: ## One server with its data in a temporary folder, no cluster (PORT=18180)
	@./ci/run-server

check: ## Lint, unit tests, simulation, chart tests: no cluster, minutes
	@$(DEV) check

test: ## Everything: check, then the gate on a real three-node cluster
	@$(DEV) test

gate: ## Only the tests on a real cluster
	@$(DEV) gate

bench: ## Measure against etcd and PostgreSQL, write docs/benchmarks.md
	@$(DEV) bench

mutants: ## Test the tests: each seeded bug of test/mutants must be caught (MUTANT="NAME ...": only those)
	@$(DEV) mutants $(MUTANT)

bench-against: ## Measure this tree's server against that of REV, in turns
	@$(DEV) bench-against $(REV)

soak: ## The simulation over SEEDS schedules from FROM on: 10,000 take hours
	@./ci/soak $(FROM) $(SEEDS)

fuzz: ## Every fuzz target for FUZZTIME each
	@./ci/fuzz $(FUZZTIME)

fmt: ## Format all Go files
	@$(DEV) fmt

proto: ## Generate the Go code of the .proto files (needs protoc)
	@./ci/proto

docs: ## Write the parts of docs/ that are made from the code
	@go test ./server/internal/config -run TestTheSettingsPage -update
	@go test ./server/internal/node -run TestTheMetricsPage -update
