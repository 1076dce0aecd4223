# Every command of this repository. `make` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

BIN := build/bin
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Static and without the builder's paths, so that a binary runs anywhere and is reproducible.
GO_BUILD := CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)"
# Flags of s0d for an instance of your own: make up INSTANCE="--data-dir=… --run-dir=…"
INSTANCE ?=
# Flags of the demo, for the same: make demo DEMO="-api=http://127.0.0.1:31080 -key-file=…/admin.key"
DEMO ?=

##@ Use

up: ## install what is missing, build, start everything on this machine
	@hack/deps.sh run
	@$(MAKE) --no-print-directory tools build images
	@$(BIN)/s0d up $(INSTANCE)

down: $(BIN)/s0d ## stop everything, running sandboxes included
	@$(BIN)/s0d down $(INSTANCE)

reset: $(BIN)/s0d ## forget everything (asks first)
	@$(BIN)/s0d reset $(INSTANCE)

doctor: build ## say what is running and what is wrong
	@$(BIN)/s0d doctor $(INSTANCE)

demo: ## claim a warm sandbox and show what it does
	@[ -x $(BIN)/s0d ] && $(BIN)/s0d status $(INSTANCE) >/dev/null 2>&1 || $(MAKE) --no-print-directory up
	@go run ./hack/demo $(DEMO)

##@ Build

$(BIN)/s0d:
	@$(MAKE) --no-print-directory build

build: ## build s0, s0d, procd and the shim into build/bin
	@$(GO_BUILD) -o $(BIN)/ ./cmd/...

tools: ## build containerd, runsc and juicefs from pinned modules, once for each pin
	@hack/tools.sh

kube-tools: ## build a Kubernetes control plane, kubectl and the controller of agent-sandbox, once for each pin (10 minutes of CPU)
	@hack/tools.sh kube

vk: ## build s0-vk, the virtual node, into build/bin
	@cd vk-provider && $(GO_BUILD) -o ../$(BIN)/s0-vk ./cmd/s0-vk

images: ## build the default template image, once for each recipe
	@go run ./hack/images

cli: ## build s0 for Linux, macOS and Windows into build/cli
	@for t in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64; do \
		GOOS=$${t%/*} GOARCH=$${t#*/} $(GO_BUILD) -o build/cli/$${t/\//-}/ ./cmd/s0; done

images-all: ## build the images of all builtin templates (about 2 minutes each)
	@go run ./hack/images all

gen: tools ## regenerate what is generated: API code, protobuf, BPF programs
	@hack/deps.sh gen
	@go generate ./...

kube-up: kube-tools vk ## start a Kubernetes control plane of your own in build/kube
	@go run ./hack/kube up

kube-down: ## stop it
	@go run ./hack/kube down

clean: ## remove what was built (not an instance's data)
	@if [ -x $(BIN)/s0d ] && $(BIN)/s0d status $(INSTANCE) >/dev/null 2>&1; then echo "s0 runs from build/: make down first" >&2; exit 1; fi
	rm -rf build

##@ Check

test: test-deps lint test-unit ## run all tests (root; Linux)
	@echo "== all tests, with a real containerd, runsc and PostgreSQL"
	@go test -shuffle=on -p 1 -timeout 40m ./...

test-unit: ## run the quick tests: no root, race detector on
	@echo "== unit tests"
	@go test -short -race -shuffle=on -timeout 15m ./...

lint: tools ## gofmt, vet, staticcheck, the import table
	@echo "== lint"
	@files=$$(git ls-files '*.go'); unformatted=$$(gofmt -l $$files); [ -z "$$unformatted" ] || { echo "not formatted: run gofmt -w" $$unformatted >&2; exit 1; }
	@go vet ./...
	@GOOS=windows go vet ./cmd/s0/...
	@GOOS=darwin go vet ./cmd/s0/...
	@$(BIN)/staticcheck ./...
	@go test ./internal/archtest

test-vm: build tools images ## try s0 on a stock Debian in an emulated machine (minutes; amd64)
	@hack/deps.sh vm
	@hack/vm/run.sh

# In a module of its own, so not part of `make test`: what it imports takes minutes to compile.
test-kube: kube-tools vk test-deps ## try the virtual node on a real Kubernetes control plane (root; minutes)
	@cd vk-provider && export CGO_ENABLED=0 GOFLAGS=-trimpath && test -z "$$(gofmt -l .)" && go vet ./... && ../$(BIN)/staticcheck ./... && go test -count=1 -timeout 30m ./...

bench-kube: kube-tools vk build test-deps ## measure pods, claims and the virtual node on a real control plane; S0_BENCH_PODS, S0_BENCH_RUNS
	@cd vk-provider && CGO_ENABLED=0 GOFLAGS=-trimpath go test -run '^$$' -bench '^BenchmarkKube' -benchtime 1x -timeout 40m .
	@S0_KUBE_CLAIMS=$${S0_BENCH_PODS:-1000} go test -count=1 -timeout 20m -v -run '^TestClaimsBesideManyPods$$' ./test/nodes

test-chart: kube-tools build vk ## lint the Helm chart, and have a real Kubernetes API server judge it (minutes the first time)
	@cd charts && export CGO_ENABLED=0 GOFLAGS=-trimpath && test -z "$$(gofmt -l .)" && go vet ./... && ../$(BIN)/staticcheck ./... && go test -count=1 -timeout 10m ./...

test-docker: kube-tools test-deps ## build the images of the chart with buildah, over Debian packages; check them, and run its pods' containers with runc (root; minutes)
	@hack/docker/build.sh
	@CGO_ENABLED=0 go build -trimpath -o $(BIN)/ ./internal/s0test/podtest/bundle
	@S0_DOCKER=1 go test -count=1 -v -timeout 10m ./test/docker
	@cd charts && CGO_ENABLED=0 GOFLAGS=-trimpath S0_IMAGES=$(CURDIR)/build/docker go test -count=1 -v -timeout 10m -run '^TestChartRuns$$' .

test-nodes: test-deps ## three nodes in network namespaces, over mutual TLS: killed, cut off, drained, removed (root; minutes)
	@S0_NODES=1 go test -count=1 -timeout 20m -v -run '^TestX45_X47_SeveralNodes$$' ./test/nodes

test-kube-nodes: kube-tools vk build test-deps ## three of them as virtual nodes of a Kubernetes control plane, with real sandboxes (root; 10 minutes)
	@S0_KUBE_NODES=1 go test -count=1 -timeout 40m -v -run '^TestX45_X47_KubernetesNodes$$' ./test/nodes

test-volumes: test-deps ## volumes of two nodes while their bucket fails and volumed is killed at every place (root; minutes)
	@S0_VOLUMES=1 go test -count=1 -timeout 30m -v -run '^TestX4' ./volumed

test-images: test-deps images-all ## try the browser and the code interpreter in real sandboxes (minutes)
	@S0_TEST_IMAGES=1 go test -count=1 -run '^TestBuiltinImages$$' -timeout 20m -v ./test/e2e

test-faults: test-deps ## kill every daemon and every part of a sandbox at every step (hours); break the database and servers for longer; S0_FAULT_SEED repeats a run
	@S0_FAULTS=1 go test -v -count=1 -timeout 360m -run '^TestX' ./test/fault
	@S0_FAULT_TIME=30s go test -v -count=3 -timeout 40m -run 'G01_|G05_|G06_|G07_|X3[4-9]_|X40_' ./api ./api/internal/claim ./api/internal/store

test-robust: test-deps ## kill things at random for 30 minutes; S0_ROBUST_TIME, S0_SEED repeats a run; logs of one that failed: build/robust
	@S0_ROBUST_TIME=$${S0_ROBUST_TIME:-30m} go test -v -count=1 -timeout 90m -run '^TestX51_Robustness$$' ./test/fault

test-generations: test-deps ## pause and resume one sandbox 2,500 times
	@S0_GENERATIONS=$${S0_GENERATIONS:-2500} go test -v -count=1 -timeout 180m -run '^TestGenerations$$' ./test/fault

test-upgrade: test-deps ## have the noded of another commit (REF) and this one take turns over the same sandboxes
	@rm -rf build/other && mkdir -p build/other/src && git archive $(or $(REF),HEAD~1) | tar -x -C build/other/src
	@cd build/other/src && CGO_ENABLED=0 go build -trimpath -o ../s0d ./cmd/s0d
	@S0_OTHER=$(CURDIR)/build/other/s0d go test -v -count=1 -timeout 30m -run '^TestX27_AnotherVersion$$' ./test/fault

bench: test-deps ## measure claims, REPL, cold starts, memory; raw data in build/bench
	@mkdir -p build/bench
	@go test -run '^$$' -bench Budgets -benchtime 1x -timeout 40m ./test/bench -args -raw $(CURDIR)/build/bench/samples.csv
	@echo "every sample: build/bench/samples.csv"

bench-netd: test-deps ## measure netd beside a plain veth and nginx: policies, restarts, packets, HTTPS, memory
	@hack/deps.sh bench
	@go test -run '^$$' -bench Budgets -benchtime 1x -timeout 20m ./netd

bench-volumes: test-deps ## measure volumes beside the local disk and plain JuiceFS, on the host and in gVisor (15 minutes)
	@mkdir -p build/bench
	@go test -run '^$$' -bench Volumes -benchtime 1x -timeout 60m ./test/bench -args -raw $(CURDIR)/build/bench/volumes.csv
	@echo "every sample: build/bench/volumes.csv"

bench-scale: ## measure lists, restarts and claims with 100,000 sandboxes and simulated nodes
	@go test -run '^$$' -bench Scale -benchtime 1x -timeout 20m ./api

test-deps: test/compat/client/node_modules/.package-lock.json internal/s0test/oidctest/provider/node_modules/.package-lock.json
	@hack/deps.sh run test
	@$(MAKE) --no-print-directory tools build images

# The public client and the OpenID provider that tests run, once for each lock file.
%/node_modules/.package-lock.json: %/package-lock.json
	@hack/deps.sh run test
	@cd $* && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

help:
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test-upgrade test-chart test-docker kube-tools kube-up kube-down vk test-kube up down reset doctor demo build tools images images-all cli gen clean test test-unit test-vm test-images test-faults test-nodes test-kube-nodes test-volumes test-robust test-generations lint bench bench-volumes bench-kube bench-netd bench-scale test-deps help
