# tpm-agent. `make` alone says what there is.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
# Where systemd looks for user units: below a home it is share, not lib.
UNITDIR ?= $(PREFIX)/$(if $(filter $(HOME)/%,$(PREFIX)),share,lib)/systemd/user

# make demo TPM=software uses the software TPM even where there is a real one.
TPM ?= auto
# What hangs ends then. It takes minutes where nothing else runs, and a machine may
# be ten times slower than the others.
TESTTIMEOUT := 40m
# How long each fuzz target runs: as part of `make test`, and in `make fuzz`.
FUZZTIME     ?= 5s
LONGFUZZTIME ?= 5m
# One or more of tpm-crb and tpm-tis: the drivers that `make test-vm` boots with.
VMTPM ?= tpm-crb
# Whose OpenSSH `make conformance` takes: this system's, or that of a suite of
# Debian (trixie, testing, unstable), installed into build/conformance.
OPENSSH ?=
# The cases it runs, as a pattern of the shell: make conformance CASES='agent *'
CASES ?= *
# The pairs that `make interop` tries, as a pattern: make interop PAIRS='openssl *'
PAIRS ?= *

GOFUMPT_VERSION     := v0.12.0
STATICCHECK_VERSION := v0.8.2

# Linters depend on the Go that built them, so each Go has its own.
TOOLS       := build/tools/$(shell $(GO) env GOVERSION 2>/dev/null)
GOFUMPT     := $(TOOLS)/gofumpt-$(GOFUMPT_VERSION)/gofumpt
STATICCHECK := $(TOOLS)/staticcheck-$(STATICCHECK_VERSION)/staticcheck

# The version in the binary is the one that the go command takes from git. A
# checkout that git does not trust or know (another owner, an archive) is built
# without one, where the go command would give up.
ifneq ($(shell git rev-parse --verify -q HEAD >/dev/null 2>&1 && echo yes),yes)
export GOFLAGS += -buildvcs=false
endif

SCRIPTS := .ci/run .ci/deps .ci/fuzz contrib/demo contrib/systemd-user/check internal/test/clients/run internal/test/interop/run internal/test/vm/run internal/test/vm/init \
	internal/test/conformance/run internal/test/conformance/suite internal/test/conformance/ssh-agent internal/test/conformance/chroot

.DEFAULT_GOAL := help
.PHONY: help build check test conformance fuzz test-vm clients interop bench paths demo tools install uninstall clean

help: ## this list
	@echo 'Targets:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables: TPM=software (demo), FUZZTIME, LONGFUZZTIME, VMTPM="tpm-crb tpm-tis" (test-vm), OPENSSH=SUITE, CASES=PATTERN (conformance), PAIRS=PATTERN (interop), PREFIX, DESTDIR (install)'

build: ## builds bin/tpm-agent, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/tpm-agent

tools: $(GOFUMPT) $(STATICCHECK) ## installs the linters, at pinned versions, into build/tools

$(GOFUMPT):
	GOBIN=$(CURDIR)/$(@D) $(GO) install mvdan.cc/gofumpt@$(GOFUMPT_VERSION)

$(STATICCHECK):
	GOBIN=$(CURDIR)/$(@D) $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)

check: export CGO_ENABLED = 0
check: tools ## the fast gate: format, vet, staticcheck, shellcheck, import table, unit tests
	@.ci/deps check test
	@bad=$$(git ls-files -co --exclude-standard '*.go' | xargs $(GOFUMPT) -l) || exit 1; \
		[ -z "$$bad" ] || { echo "gofumpt would change:"; echo "$$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags vmtest ./internal/test/vm
	$(STATICCHECK) ./...
	$(STATICCHECK) -tags vmtest ./internal/test/vm
	shellcheck $(SCRIPTS)
	contrib/systemd-user/check verify
	$(GO) test -short -timeout $(TESTTIMEOUT) ./...

test: build ## everything that needs no virtual machine: unit, race, software TPM, OpenSSH end to end, short fuzzing
	@.ci/deps test
# Programs that are tested end in hundreds: they need not wait a second each for
# races that may be reported at their very end.
	CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 $(GO) test -race -count=1 -timeout $(TESTTIMEOUT) ./...
	GOEXPERIMENT=runtimesecret $(GO) test -count=1 -timeout $(TESTTIMEOUT) -run 'Residue|Memory|Wipe' ./agent
	$(GO) test -count=1 -timeout $(TESTTIMEOUT) -run TestCrash ./cmd/tpm-agent
	contrib/systemd-user/check
	$(GO) run ./internal/test/bench -quick
	.ci/fuzz $(FUZZTIME)

conformance: build ## OpenSSH's own tests of agents, with ssh-agent and with tpm-agent; OPENSSH=testing for a newer one
ifeq ($(OPENSSH),)
	@.ci/deps conformance
	@internal/test/conformance/run bin/tpm-agent '$(CASES)'
else
	@.ci/deps chroot
	@internal/test/conformance/chroot run '$(OPENSSH)' bin/tpm-agent '$(CASES)'
endif

fuzz: ## every fuzz target, longer (LONGFUZZTIME each)
	.ci/fuzz $(LONGFUZZTIME)

test-vm: build ## boots Linux in QEMU and tests against the kernel's TPM driver and resource manager
	@.ci/deps vm
	@for device in $(VMTPM); do internal/test/vm/run $$device || exit 1; done

clients: build ## clients that others wrote, from ssh to PuTTY, end to end with each kind of key
	@.ci/deps clients
	@internal/test/clients/run

interop: build ## key files of other tools used here, and ours there: OpenSSL, tpm2-tools and more
	@.ci/deps interop
	@internal/test/interop/run '$(PAIRS)'

paths: ## counts the functions that a signature and keygen pass through; VERBOSE=1 lists them
	$(GO) run ./internal/test/paths $(if $(VERBOSE),-v)

bench: build ## measures signatures, lists, start-up and memory; prints a table with ratios
	@.ci/deps test
	$(GO) run ./internal/test/bench

demo: build ## key, agent, login and signed commit in a throwaway home; TPM=software for the software TPM
	@.ci/deps demo
	@contrib/demo $(TPM)

install: ## installs binary, man pages, completions and systemd user units (PREFIX, DESTDIR)
	@test -x bin/tpm-agent || { echo "bin/tpm-agent is not there: run make build first, as yourself" >&2; exit 1; }
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

uninstall: ## removes what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/tpm-agent
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/man/man1/,$(notdir $(wildcard cmd/tpm-agent/man/*.1)))
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/tpm-agent $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_tpm-agent $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/tpm-agent.fish
	rm -f $(DESTDIR)$(UNITDIR)/tpm-agent.socket $(DESTDIR)$(UNITDIR)/tpm-agent.service
	rm -f $(DESTDIR)$(PREFIX)/share/tpm-agent/10-tpm-agent.conf
	-rmdir $(DESTDIR)$(PREFIX)/share/tpm-agent

clean: ## removes bin and build
	@internal/test/conformance/chroot clean
	rm -rf bin build
