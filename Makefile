# Berth's build. `make help` lists the targets; CONTRIBUTING.md says which to run when.

SHELL := /bin/bash
export GOFLAGS := -trimpath -buildvcs=false
export CGO_ENABLED := 0
export GOTOOLCHAIN := local

BIN     := $(CURDIR)/bin
TOOLS   := $(CURDIR)/.tools
VERSION := $(shell cat VERSION)
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X berth/internal/version.number=$(VERSION) -X berth/internal/version.commit=$(COMMIT)

BUF_VERSION                := v1.75.0
PROTOC_GEN_GO_VERSION      := v1.36.12
PROTOC_GEN_GO_GRPC_VERSION := v1.6.2
GOVULNCHECK_VERSION        := v1.1.4
COSIGN_VERSION             := v2.6.5
CONFORMANCE_VERSION        := v0.0.0-20260831232431-97274622c111

# grpcnotrace leaves out golang.org/x/net/trace, and with it html/template: less to load and initialise at each start.
TAGS := grpcnotrace


.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z][a-z0-9-]*:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install the Debian packages that tests and the demo need (root)
	@scripts/setup.sh test

.PHONY: build
build: ## build all programs into bin/
	@mkdir -p $(BIN)
	go build -ldflags '$(LDFLAGS)' -o $(BIN)/berth ./cli
	go build -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(BIN)/ ./services/berthd ./services/imaged
	go build -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(BIN)/berth-monitor ./services/execd/cmd/berth-monitor
	go build -ldflags '$(LDFLAGS)' -o $(BIN)/berth-unpack ./services/imaged/cmd/berth-unpack
	go build -ldflags '-s -w' -o $(BIN)/berth-init ./libcontainer/cmd/berth-init
	@# The linker writes page by page, and the page cache keeps it so: each start of berth takes 0.1 to 0.2 ms longer than
	@# that of a copy, which is written in large pieces as an installed program is.
	@for f in berth berthd imaged berth-monitor berth-init berth-unpack; do cp $(BIN)/$$f $(BIN)/.$$f && mv $(BIN)/.$$f $(BIN)/$$f; done
	@for f in apid netd execd; do ln -f $(BIN)/berthd $(BIN)/$$f; done

.PHONY: demo
demo: ## show the whole architecture at work, in a network namespace of its own (root)
	@scripts/setup.sh
	@$(MAKE) --no-print-directory build
	@scripts/demo.sh

.PHONY: test
test: forget-sums setup build lint test-units test-unit test-e2e ## everything CI runs (root)
	@cat $(TEST_SUMS)

# What testsum counted in the runs of one `make test`.
TEST_SUMS := $(TOOLS)/test-sums
.PHONY: forget-sums
forget-sums:
	@rm -f $(TEST_SUMS)

.PHONY: conformance
conformance: $(TOOLS)/conformance ## the OCI distribution specification's own suite against images that imaged serves (root)
	go test -count 1 -run TestConformance -v ./services/imaged/serve

.PHONY: test-unit
test-unit: $(TOOLS)/testsum $(TOOLS)/conformance ## package tests, root ones included
	$(TOOLS)/testsum -append $(TEST_SUMS) -timeout 15m ./...

.PHONY: test-e2e
test-e2e: build $(TOOLS)/testsum ## end-to-end, fault and security suites against the real daemons and a real registry (root)
	$(TOOLS)/testsum -append $(TEST_SUMS) -tags e2e -timeout 20m -count 1 ./test/...

.PHONY: test-powercut
test-powercut: build ## cut the power 600 times with each graph driver, under pulls, commits, runs and removals (root, 12 minutes and more)
	BERTH_POWER_CUTS=$${BERTH_POWER_CUTS:-600} go test -tags e2e -timeout 3h -count 1 -run TestF08PowerCut -v ./test/faults

.PHONY: test-units
test-units: ## verify the systemd units and their exposure scores
	@scripts/check-units.sh

.PHONY: test-vm
test-vm: build ## boot the units in a VM under systemd, with cgroup v2 and with cgroup v1 (root, minutes)
	@test/vm/run.sh

.PHONY: race
race: ## package tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -timeout 30m ./internal/... ./services/... ./libcontainer/... ./cli/...

.PHONY: bench-launch
bench-launch: build ## time launches against docker.io, podman, crun and runc in one run; fails when a bar is missed; ARGS=-quick for development (root)
	@bench/launch.sh $(ARGS)

.PHONY: bench-pull
bench-pull: build ## time cold pulls against docker.io, podman, skopeo and containerd in one run; ARGS=-quick leaves them out (root)
	@bench/pull.sh $(ARGS)

.PHONY: bench-stages
bench-stages: ## time each stage of a launch by itself (root)
	go test -run '^$$' -bench '^Benchmark(Run|ForwardUnary|PrepareRelease|Attach|Publish|New|RunTrue|ExecTrue|Start|StartCgroup|StartWaiting|Exec|CreateDelete|EnterLeave|Compile|Cache|Commit)$$' \
		./services/apid ./services/imaged ./services/netd/... ./services/execd ./libcontainer/... ./internal/journal

.PHONY: bench-cli
bench-cli: build ## time whole processes of the command line (root)
	@bench/cli.sh

.PHONY: bench-scale
bench-scale: build ## measure what docs/scale.md predicts from, and hold its predictions against runs beside up to 1,000 containers (root, some six minutes)
	@bench/scale.sh $(ARGS)

.PHONY: bench
bench: bench-launch bench-pull bench-cli ## all comparisons with peers

$(TOOLS)/buf:
	GOBIN=$(TOOLS) go install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
$(TOOLS)/protoc-gen-go:
	GOBIN=$(TOOLS) go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
$(TOOLS)/protoc-gen-go-grpc:
	GOBIN=$(TOOLS) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(PROTOC_GEN_GO_GRPC_VERSION)

$(TOOLS)/testsum: $(wildcard tools/testsum/*.go)
	go build -o $@ ./tools/testsum

.PHONY: cosign
cosign: ## build cosign, which the test of its signatures uses (minutes, more than 1 GB of modules)
	GOBIN=$(TOOLS) go install github.com/sigstore/cosign/v2/cmd/cosign@$(COSIGN_VERSION)

$(TOOLS)/conformance:
	GOBIN=$(TOOLS) go install github.com/opencontainers/distribution-spec/conformance@$(CONFORMANCE_VERSION)

$(TOOLS)/protoc-gen-lite: $(wildcard tools/protoc-gen-lite/*.go)
	go build -o $@ ./tools/protoc-gen-lite

GENERATORS := $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc $(TOOLS)/protoc-gen-lite

.PHONY: generate
generate: $(GENERATORS) ## generate Go from proto/
	PATH=$(TOOLS):$$PATH buf generate
	PATH=$(TOOLS):$$PATH buf generate --template buf.gen.cli.yaml

.PHONY: docs
docs: ## bring what is generated from code in the documents up to date
	go test ./test/structure -update

.PHONY: check-generate
check-generate: $(GENERATORS) ## fail when the generated code is not what proto/ gives
	@scripts/check-generate.sh $(TOOLS)

.PHONY: lint
lint: $(TOOLS)/buf check-generate ## buf lint and breaking, gofmt, go vet, tidy modules
	$(TOOLS)/buf lint
	@scripts/check-breaking.sh $(TOOLS)
	@bad=$$(git ls-files '*.go' | grep -v '\.pb\.go$$' | xargs gofmt -l); test -z "$$bad" || { echo "gofmt would change: $$bad"; exit 1; }
	go vet ./... && go vet -tags e2e ./test/...
	go mod tidy -diff

.PHONY: vulncheck
vulncheck: ## known vulnerabilities in what is linked (reaches the Go vulnerability database)
	GOBIN=$(TOOLS) go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	$(TOOLS)/govulncheck ./...

.PHONY: install
install: build ## install programs, units, completions and man pages (root); DESTDIR and PREFIX are obeyed
	@scripts/install.sh

.PHONY: clean
clean: ## remove what the build made
	rm -rf $(BIN) $(TOOLS)
