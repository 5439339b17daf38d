# The targets are implemented in ci/pipeline. Each one installs its dependencies,
# is idempotent, and names the step, the cause and the remedy on failure.
.DEFAULT_GOAL := help
DEV = go -C ci run ./cmd/dev
FUZZTIME ?= 1m
FROM ?= 1
SEEDS ?= 10000
PORT ?= 18180
export PORT

.PHONY: help up down run check test gate bench bench-against mutants soak fuzz fmt generate outdated

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## Start a cluster, build the image, install the release with values/dev.yaml, load real data
	@$(DEV) up

down: ## Remove everything that `make up` created
	@$(DEV) down

run: ## Start one server with its data in a temporary folder, without a cluster (PORT=18180)
	@./ci/run-server

check: ## Run lint, unit tests, simulation and chart tests: no cluster, minutes
	@$(DEV) check

test: ## Run everything: check, then the gate on a real three-node cluster
	@$(DEV) test

gate: ## Run only the tests on a real cluster
	@$(DEV) gate

bench: ## Measure against etcd and PostgreSQL, write docs/benchmarks.md
	@$(DEV) bench

mutants: ## Test the tests: each seeded bug of test/mutants must be caught (MUTANT="NAME ..." selects some)
	@$(DEV) mutants $(MUTANT)

bench-against: ## Measure this tree's server against that of REV, interleaved
	@$(DEV) bench-against $(REV)

soak: ## Run the simulation over SEEDS schedules, starting at FROM: 10,000 take hours
	@./ci/soak $(FROM) $(SEEDS)

fuzz: ## Run every fuzz target for FUZZTIME
	@./ci/fuzz $(FUZZTIME)

fmt: ## Format all Go files
	@$(DEV) fmt

generate: ## Write every generated file: protobuf code, openapi.json, tables of docs/ and the chart
	@$(DEV) generate

outdated: ## List the direct dependencies that have a newer release (asks the module proxy)
	@$(DEV) outdated
