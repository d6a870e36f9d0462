# Everything that CI does is a target here. Each target sets up what it needs.
SHELL   := /bin/bash
.DEFAULT_GOAL := help
.PRECIOUS: bin/guest-% bin/runsc-% bin/pack/%.zst
.NOTPARALLEL:
.PHONY: help setup build demo demo-parity kernel test test-quick test-firecracker check check-carried crash race bench soak fuzz clean release image corpus kill-matrix

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BUILD    := -trimpath
LDFLAGS  := -s -w -X main.version=$(VERSION)
STATE    ?= /var/lib/enclave
CARRIED  := cmd/enclave/carried
GOSRC    := $(shell find . -name '*.go' -not -path './bin/*') go.mod go.sum
TESTBIN  := $(CURDIR)/bin/test
FUZZTIME ?= 10s
CRASHTIME ?= 45m
CORPUSTIME ?= 45m
export CGO_ENABLED = 0
export GOALS = $(MAKECMDGOALS)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: ## install the system packages that are missing (as root, on Debian)
	@./build/setup

HOSTARCH := $(shell go env GOARCH 2>/dev/null)

bin/guest-%: $(shell find cmd/enclave-guest internal/wire -type f) go.mod go.sum
	GOARCH=$* go build $(BUILD) -ldflags '-s -w' -o $@ ./cmd/enclave-guest
bin/runsc-%: $(wildcard cmd/enclave-runsc/*.go) go.mod go.sum
	@echo "building gVisor for $* (about a minute the first time)"
	GOARCH=$* go build $(BUILD) -ldflags '-s -w' -o $@ ./cmd/enclave-runsc
bin/pack/%.zst: bin/% build/pack/main.go
	go run ./build/pack $< $@

# The programs that enclave carries are put where go:embed finds them just before
# it is built: one architecture after the other.
bin/enclave-%: bin/pack/guest-%.zst bin/pack/runsc-%.zst $(GOSRC)
	@rm -rf $(CARRIED) && mkdir -p $(CARRIED)
	@cp bin/pack/guest-$*.zst $(CARRIED)/enclave-guest.zst && cp bin/pack/runsc-$*.zst $(CARRIED)/enclave-runsc.zst
	@cd bin && sha256sum guest-$* runsc-$* | sed 's/-$*$$//; s/  /  enclave-/' > ../$(CARRIED)/SHA256SUMS
	GOARCH=$* go build $(BUILD) -tags carried -ldflags '$(LDFLAGS)' -o $@ ./cmd/enclave

bin/enclave: bin/enclave-$(HOSTARCH)
	ln -sf enclave-$(HOSTARCH) $@

build: setup ## the complete program, guest and runsc inside, at bin/enclave
	@$(MAKE) --no-print-directory bin/enclave

release: setup ## bin/enclave-amd64 and bin/enclave-arm64, with their sums
	@$(MAKE) --no-print-directory bin/enclave-amd64 bin/enclave-arm64
	cd bin && sha256sum enclave-amd64 enclave-arm64 > SHA256SUMS && cat SHA256SUMS

image: build ## the sandbox image, if it is not there yet
	@bin/enclave image list --state $(STATE) --json | grep -q '"default"' || bin/enclave image build --state $(STATE)

kernel: build ## the kernel of virtual machines, if it is not there yet
	@bin/enclave kernel list --state $(STATE) --json | grep -q '"digest"' || bin/enclave kernel install --state $(STATE)

demo: image ## five hostile workloads in five real gVisor sandboxes; exits non-zero unless 6/6
	bin/enclave demo adversarial --state $(STATE)

demo-parity: image kernel ## one verdict on every real backend of this host, and a signed certificate of it; exits non-zero unless the verdicts are one
	@./build/setup docker qemu
	build/dockerd run sh -c 'bin/enclave demo backend-parity --state "$$0" && bin/enclave parity --state "$$0"' $(STATE)

# Tests find the programs by the names that they have in an installation. These
# are no symbolic links: a process has the name of what a link leads to.
LINK = mkdir -p $(TESTBIN) && ln -f bin/guest-$(HOSTARCH) $(TESTBIN)/enclave-guest && ln -f bin/runsc-$(HOSTARCH) $(TESTBIN)/enclave-runsc

test: setup ## all tests, real gVisor, a Docker daemon, QEMU's machines and the first tier of crashes included
	@./build/setup docker qemu corpus
	@$(MAKE) --no-print-directory bin/enclave bin/guest-$(HOSTARCH) bin/runsc-$(HOSTARCH)
	@$(LINK) && ln -f bin/enclave-$(HOSTARCH) $(TESTBIN)/enclave
	ENCLAVE_TEST_BIN=$(TESTBIN) go test -count=1 -timeout 30m -p 2 ./...

# What needs nothing of the host but Go: no root, Docker, QEMU or image.
test-quick: ## decisions, parsers, state machines, the control plane on the simulator, the API and the SDK: within a minute
	ENCLAVE_TEST_QUICK=true go test $$(go list ./... | grep -vE '/cmd/|/internal/(corpus|posture)$$')

crash: setup ## kill the program at every failpoint and 1,000 random moments, for at most CRASHTIME
	@$(MAKE) --no-print-directory bin/guest-$(HOSTARCH) bin/runsc-$(HOSTARCH)
	@$(LINK)
	ENCLAVE_CRASH=full CRASHTIME=$(CRASHTIME) ENCLAVE_TEST_BIN=$(TESTBIN) go test -count=1 -timeout $(CRASHTIME) -v ./cmd/enclave/crash -args -update

# The programs are not in Debian. Without KVM, or without one of them, it fails.
FIRECRACKER = FIRECRACKER_BIN=$(FIRECRACKER_BIN) JAILER_BIN=$(JAILER_BIN) ENCLAVE_REQUIRE=root,gvisor,netns,firecracker ENCLAVE_TEST_BIN=$(TESTBIN) \
  go test -count=1 -timeout 60m -p 1 -v
test-firecracker: setup ## contract, cases, accidents, demo, parity and attacks on Firecracker: needs KVM; FIRECRACKER_BIN=... JAILER_BIN=...
	@test -n "$(FIRECRACKER_BIN)" && test -n "$(JAILER_BIN)" || { echo 'name both programs of one release: make test-firecracker FIRECRACKER_BIN=... JAILER_BIN=...' >&2; exit 1; }
	@$(MAKE) --no-print-directory bin/guest-$(HOSTARCH) bin/runsc-$(HOSTARCH)
	@./build/setup corpus
	@$(LINK)
	$(FIRECRACKER) -run '^TestFirecracker$$|/(gvisor|firecracker)$$' ./internal/conform ./internal/control
	$(FIRECRACKER) -run '^TestWhateverHappensToASandboxNothingIsLostOrLeft$$/^firecracker$$' ./cmd/enclave/crash
	$(FIRECRACKER) -run '^(TestAdversarialIsSixOfSixOnEachKernel|TestAMachineHasTheVerdictOfTheOthers)$$/^firecracker$$' ./cmd/enclave
	ENCLAVE_CORPUS=full CORPUSTIME=$(CORPUSTIME) $(FIRECRACKER) -run '^TestAttacks$$/^firecracker$$' ./internal/corpus

CORPUS = go test -count=1 -v ./internal/corpus
corpus: setup ## attack every backend of this host, in at most CORPUSTIME; exits non-zero unless all is contained; writes evidence
	@./build/setup docker qemu corpus
	@$(MAKE) --no-print-directory bin/guest-$(HOSTARCH) bin/runsc-$(HOSTARCH)
	@$(LINK)
	ENCLAVE_CORPUS=full CORPUSTIME=$(CORPUSTIME) ENCLAVE_TEST_BIN=$(TESTBIN) $(CORPUS) -timeout 90m

kill-matrix: setup ## switch one control of the product off after the other, and want the attacks on it red
	@./build/setup docker qemu corpus
	@$(MAKE) --no-print-directory bin/guest-$(HOSTARCH) bin/runsc-$(HOSTARCH)
	@$(LINK)
	ENCLAVE_CORPUS=kill ENCLAVE_TEST_BIN=$(TESTBIN) $(CORPUS) -timeout 90m -run TestEveryControlThatIsOff

RACY := . ./internal/audit ./internal/auth ./internal/backend/microvm ./internal/backend/microvm/vsock ./internal/control ./internal/gateway ./internal/httpapi ./internal/planetest ./internal/observe ./internal/store ./internal/webhook ./internal/wire
race: setup ## the packages with the most concurrency, under the race detector
	CGO_ENABLED=1 go test -race -timeout 15m -p 2 $(RACY)

check: ## gofmt, vet, staticcheck, import table, dependencies
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo 'run gofmt -w on these'; exit 1; }
	go vet ./...
	go vet -tags failpoint ./internal/failpoint
	go run honnef.co/go/tools/cmd/staticcheck@v0.7.0 ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.7.0 -tags failpoint ./internal/failpoint
	@$(MAKE) --no-print-directory check-carried
	go test -count=1 ./internal/arch
	@! git grep -nE 'context\.TODO|http\.DefaultClient|log\.Print' -- '*.go' || { echo 'none of these is used here: see CONTRIBUTING.md'; exit 1; }

# What is only there with the tag carried embeds files, which a fresh clone has
# not; empty ones do for looking at the source.
check-carried:
	@mkdir -p $(CARRIED) && for f in enclave-guest.zst enclave-runsc.zst SHA256SUMS; do test -e $(CARRIED)/$$f || { touch $(CARRIED)/$$f; made="$$made $(CARRIED)/$$f"; }; done; \
	  go vet -tags carried ./cmd/enclave && go run honnef.co/go/tools/cmd/staticcheck@v0.7.0 -tags carried ./cmd/enclave; s=$$?; rm -f $$made; rmdir $(CARRIED) 2>/dev/null; exit $$s

bench: image ## measure on each backend that runs here; ratios within one run; writes evidence/bench.json
	build/dockerd run bin/enclave bench --state $(STATE)

SOAKTIME ?= 0s
soak: image ## 1,000 real and 10,000 simulated sessions; exits non-zero if anything is left of them; SOAKTIME=1h goes on
	go run ./internal/soak -program bin/enclave -state $(STATE) -for $(SOAKTIME)

fuzz: ## every fuzz target for FUZZTIME
	@grep -rl --include='*_test.go' '^func Fuzz' . | while read -r f; do \
	  for t in $$(grep -oE '^func Fuzz[A-Za-z0-9_]*' $$f | cut -d' ' -f2); do \
	    echo "$$f $$t"; go test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x ./$$(dirname $$f) || exit 1; done; done

clean: ## remove what was built; the state directory stays (enclave uninstall removes it)
	rm -rf bin $(CARRIED) evidence
