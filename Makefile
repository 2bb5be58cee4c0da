# tpm-agent. `make` lists the targets.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
# Where systemd looks for user units: share in a home directory, lib elsewhere.
UNITDIR ?= $(PREFIX)/$(if $(filter $(HOME)/%,$(PREFIX)),share,lib)/systemd/user

# make demo TPM=software uses the software TPM even if the machine has a real one.
TPM ?= auto
# Stops tests that hang. Other tests need far less time.
TESTTIMEOUT := 40m
# How long `make fuzz` runs each target.
FUZZTIME ?= 5m
# One or more of tpm-crb and tpm-tis: the drivers that `make test-vm` boots with.
VMTPM ?= tpm-crb
# The OpenSSH that `make conformance` tests with: empty for this system's, or a Debian
# suite (trixie, testing, unstable), which is installed into build/conformance.
OPENSSH ?=
# The cases to run, as a shell pattern: make conformance CASES='agent *'
CASES ?= *
# The pairs that `make interop` tests, as a shell pattern: PAIRS='openssl *'
PAIRS ?= *

GOFUMPT_VERSION     := v0.12.0
STATICCHECK_VERSION := v0.8.2

# Linters depend on the version of Go that built them, so each version has its own.
TOOLS       := build/tools/$(shell $(GO) env GOVERSION 2>/dev/null)
GOFUMPT     := $(TOOLS)/gofumpt-$(GOFUMPT_VERSION)/gofumpt
STATICCHECK := $(TOOLS)/staticcheck-$(STATICCHECK_VERSION)/staticcheck

# The go command gets the version of the binary from git. It fails in a checkout that
# git does not trust (another owner) or know (an archive), so build there without a
# version.
ifneq ($(shell git rev-parse --verify -q HEAD >/dev/null 2>&1 && echo yes),yes)
export GOFLAGS += -buildvcs=false
endif

SCRIPTS := $(wildcard .ci/*) contrib/demo contrib/systemd-user/check $(addprefix internal/test/,clients/run interop/run vm/run vm/init \
	conformance/run conformance/suite conformance/ssh-agent conformance/chroot)

.DEFAULT_GOAL := help
.PHONY: help build deps deps-all tools check test test-all race crash residue fuzz conformance test-vm clients interop bench paths demo \
	install uninstall clean needs-go

help: ## this list
	@echo 'Targets:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables:'
	@echo '  demo         TPM=software: the software TPM, also if there is a real one'
	@echo '  fuzz         FUZZTIME=5m: how long each target runs'
	@echo '  conformance  OPENSSH=SUITE: that of Debian testing; CASES=PATTERN'
	@echo '  test-vm      VMTPM="tpm-crb tpm-tis": the TPM drivers'
	@echo '  interop      PAIRS=PATTERN: some pairs of tools'
	@echo '  bench        QUICK=1: fewer rounds'
	@echo '  paths        VERBOSE=1: lists the functions'
	@echo '  install      PREFIX, DESTDIR'

needs-go:
	@.ci/needs-go '$(GO)'

build: needs-go ## builds bin/tpm-agent, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/tpm-agent

deps: ## installs the Debian packages for check, test, demo and bench
	@.ci/deps check test demo bench

deps-all: ## installs the packages for test-all as well
	@.ci/deps check test demo bench conformance clients interop vm

tools: $(GOFUMPT) $(STATICCHECK) ## builds the linters, at pinned versions, in build/tools

$(GOFUMPT): | needs-go
	GOBIN=$(CURDIR)/$(@D) $(GO) install mvdan.cc/gofumpt@$(GOFUMPT_VERSION)

$(STATICCHECK): | needs-go
	GOBIN=$(CURDIR)/$(@D) $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)

check: export CGO_ENABLED = 0
check: tools ## format, vet, linters and architecture; under two minutes
	@.ci/deps -n check
	@bad=$$(git ls-files -co --exclude-standard '*.go' | xargs $(GOFUMPT) -l) || exit 1; \
		[ -z "$$bad" ] || { echo "gofumpt would change:"; echo "$$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags vmtest ./internal/test/vm
	$(STATICCHECK) ./...
	$(STATICCHECK) -tags vmtest ./internal/test/vm
	shellcheck $(SCRIPTS)
	contrib/systemd-user/check verify
	$(GO) test ./internal/test/archtest

test: build ## unit tests, and end to end on a software TPM; under four minutes
	.ci/test -timeout $(TESTTIMEOUT) -skip '^TestCrash$$'
	contrib/systemd-user/check

test-all: build ## the long runs, from race to interop and demo; 15 minutes
	@.ci/test-all

race: needs-go ## the race detector, for the packages that test runs without it
	.ci/test --race -timeout $(TESTTIMEOUT) -skip '^TestCrash$$'

crash: needs-go
	.ci/isolated $(GO) test -count=1 -timeout $(TESTTIMEOUT) -run '^TestCrash$$' ./cmd/... ./internal/...

residue: needs-go
	GOEXPERIMENT=runtimesecret .ci/isolated $(GO) test -count=1 -timeout $(TESTTIMEOUT) -run 'Residue|Memory|Wipe' ./agent ./internal/...

fuzz: needs-go ## every fuzz target, for FUZZTIME each
	.ci/fuzz $(FUZZTIME)

conformance: build ## OpenSSH's own tests of agents, against ssh-agent and tpm-agent
ifeq ($(OPENSSH),)
	@.ci/deps -n conformance
	@internal/test/conformance/run bin/tpm-agent '$(CASES)'
else
	@.ci/deps -n chroot
	@internal/test/conformance/chroot run '$(OPENSSH)' bin/tpm-agent '$(CASES)'
endif

test-vm: build ## boots Linux in QEMU to test with the kernel's TPM driver
	@.ci/deps -n vm
	@for device in $(VMTPM); do internal/test/vm/run $$device || exit 1; done

clients: build ## logins with other clients, from ssh to PuTTY
	@.ci/deps -n clients
	@internal/test/clients/run

interop: build ## key files of OpenSSL, tpm2-tools and others, and ours with them
	@.ci/deps -n interop
	@internal/test/interop/run '$(PAIRS)'

bench: build ## signatures (also on a slow TPM), lists, start-up and memory, as ratios
	@.ci/deps -n bench
	$(GO) run ./internal/test/bench $(if $(QUICK),-quick)

paths: needs-go ## counts the functions that a signature and keygen pass through
	@.ci/deps -n bench
	$(GO) run ./internal/test/paths $(if $(VERBOSE),-v)

demo: build ## a key, a login and a signed commit in a throwaway home
	@.ci/deps -n demo
	@contrib/demo $(TPM)

install: ## installs binary, manual pages, completions and systemd units
	@test -x bin/tpm-agent || { echo "bin/tpm-agent does not exist: run make build first, without root" >&2; exit 1; }
	install -D -m 0755 bin/tpm-agent $(DESTDIR)$(PREFIX)/bin/tpm-agent
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0644 cmd/tpm-agent/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	bin/tpm-agent completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/tpm-agent
	bin/tpm-agent completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_tpm-agent
	bin/tpm-agent completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/tpm-agent.fish
	chmod 0644 $(DESTDIR)$(PREFIX)/share/bash-completion/completions/tpm-agent $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_tpm-agent $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/tpm-agent.fish
	install -D -m 0644 contrib/systemd-user/tpm-agent.socket $(DESTDIR)$(UNITDIR)/tpm-agent.socket
	sed 's|^ExecStart=[^ ]*|ExecStart=$(PREFIX)/bin/tpm-agent|' contrib/systemd-user/tpm-agent.service >$(DESTDIR)$(UNITDIR)/tpm-agent.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/tpm-agent.service
	install -D -m 0644 contrib/systemd-user/10-tpm-agent.conf $(DESTDIR)$(PREFIX)/share/tpm-agent/10-tpm-agent.conf

uninstall: ## removes what install installed
	rm -f $(DESTDIR)$(PREFIX)/bin/tpm-agent
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/man/man1/,$(notdir $(wildcard cmd/tpm-agent/man/*.1)))
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/tpm-agent $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_tpm-agent $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/tpm-agent.fish
	rm -f $(DESTDIR)$(UNITDIR)/tpm-agent.socket $(DESTDIR)$(UNITDIR)/tpm-agent.service
	rm -f $(DESTDIR)$(PREFIX)/share/tpm-agent/10-tpm-agent.conf
	-rmdir $(DESTDIR)$(PREFIX)/share/tpm-agent

clean: ## removes bin and build
	@internal/test/conformance/chroot clean
	rm -rf bin build
