package archtest

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tpm-agent/tpm-agent/"

// row says what a package may import beside the standard library. An entry
// that ends in /... stands for everything below it.
type row struct {
	imports []string // in every file
	tests   []string // in test files as well
}

// everything is the row of programs that wire the rooms together.
var everything = row{imports: []string{
	"agent", "tpmkey", "keyfile", "internal/...",
	"github.com/...", "golang.org/x/...",
}}

// table is the import table of the house. Imports point down:
//
//	cmd -> agent, tpmkey, keyfile, internal
//	internal/prompt -> agent        internal/keydir -> keyfile
//	tpmkey -> keyfile, go-tpm       agent -> x/crypto/ssh, internal/procstat
//	keyfile -> standard library and cryptobyte
//
// A package without a row fails the test: whoever adds a room says here what
// it stands on.
var table = map[string]row{
	"cmd/tpm-agent": everything,

	"keyfile": {imports: []string{"golang.org/x/crypto/cryptobyte", "golang.org/x/crypto/cryptobyte/asn1"}},
	"tpmkey":  {imports: []string{"keyfile", "github.com/google/go-tpm/...", "golang.org/x/crypto/cryptobyte", "golang.org/x/sync/semaphore"}, tests: []string{"internal/tcti"}},
	"agent":   {imports: []string{"internal/procstat", "golang.org/x/crypto/argon2", "golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent"}},

	"internal/boottime":     {imports: []string{"agent", "golang.org/x/sys/unix"}},
	"internal/child":        {imports: []string{"golang.org/x/sys/unix"}},
	"internal/keydir":       {imports: []string{"keyfile", "golang.org/x/crypto/ssh", "golang.org/x/sys/unix"}},
	"internal/knownhosts":   {imports: []string{"golang.org/x/crypto/ssh", "golang.org/x/sys/unix"}},
	"internal/logind":       {imports: []string{"github.com/godbus/dbus/v5", "golang.org/x/sys/unix"}},
	"internal/parents":      {imports: []string{"keyfile", "golang.org/x/crypto/ssh", "golang.org/x/sys/unix"}},
	"internal/pinentry":     {imports: []string{"internal/child", "golang.org/x/sys/unix"}},
	"internal/privkey":      {imports: []string{"keyfile", "golang.org/x/crypto/blowfish", "golang.org/x/crypto/chacha20", "golang.org/x/crypto/cryptobyte", "golang.org/x/crypto/cryptobyte/asn1", "golang.org/x/crypto/poly1305", "golang.org/x/crypto/scrypt", "golang.org/x/crypto/ssh"}},
	"internal/prompt":       {imports: []string{"internal/procstat", "agent", "internal/child", "internal/pinentry", "golang.org/x/term", "golang.org/x/sys/unix"}},
	"internal/procstat":     {},
	"internal/randomart":    {},
	"internal/socket":       {imports: []string{"golang.org/x/sys/unix", "github.com/coreos/go-systemd/v22/activation"}},
	"internal/softtpm":      {imports: []string{"golang.org/x/sys/unix"}},
	"internal/tcti":         {imports: []string{"internal/softtpm", "golang.org/x/sys/unix"}},
	"internal/test/tpmtest": {imports: []string{"internal/softtpm", "internal/tcti", "github.com/google/go-tpm/...", "golang.org/x/sys/unix"}},

	"internal/test/archtest": {},
	"internal/test/bustest":  {imports: []string{"github.com/godbus/dbus/v5"}},
	"internal/test/bench":    everything,
	"internal/test/clients":  {imports: []string{"golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent", "golang.org/x/crypto/ssh/knownhosts", "golang.org/x/sync/errgroup"}},
	"internal/test/ptytest":  {imports: []string{"golang.org/x/sys/unix"}},
	"internal/test/vm":       {tests: []string{"agent", "tpmkey", "keyfile", "internal/..."}},
}

// testOnly may be imported by every test. Test files may also import any
// module that go.mod lists: a test that compares with OpenSSH's formats or
// with go-tpm's structures bends no wall. The house's own packages are held to
// the table in tests too.
var testOnly = []string{"internal/test/tpmtest", "internal/test/bustest", "internal/test/ptytest", "github.com/...", "golang.org/x/...", "go.uber.org/goleak"}

func TestImportsFollowTheTable(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range sources(t) {
		r, ok := table[f.pkg]
		if !ok && !seen[f.pkg] {
			t.Errorf("package %s has no row in the import table (internal/test/archtest/imports_test.go)", f.pkg)
		}
		seen[f.pkg] = true
		if ok {
			checkImports(t, f, r)
		}
	}
	if !seen["internal/test/archtest"] {
		t.Fatal("the module's source was not found: this test looked at nothing that matters")
	}
}

func checkImports(t *testing.T, f sourceFile, r row) {
	t.Helper()
	allowed := slices.Clone(r.imports)
	if f.test {
		allowed = append(append(append(allowed, r.tests...), testOnly...), f.pkg)
	}
	for _, spec := range f.ast.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatalf("%s: %v", f.at(spec), err)
		}
		if !permitted(path, allowed) {
			t.Errorf("%s: package %s may not import %q", f.at(spec), f.pkg, path)
		}
	}
}

// permitted judges one import path. The standard library is free to all, and
// known by a first element without a dot; "C" is free to none, as the binary
// is built without cgo.
func permitted(path string, allowed []string) bool {
	if path == "C" {
		return false
	}
	own, inHouse := strings.CutPrefix(path, module)
	first, _, _ := strings.Cut(path, "/")
	if !inHouse && !strings.Contains(first, ".") {
		return true
	}
	return slices.ContainsFunc(allowed, func(entry string) bool {
		// "github.com/..." means the modules of others, never our own: those
		// are written without the module's path.
		if below, ok := strings.CutSuffix(entry, "..."); ok {
			return strings.HasPrefix(own, below)
		}
		return own == entry
	})
}

func TestPermitted(t *testing.T) {
	allowed := []string{"keyfile", "internal/...", "github.com/...", "golang.org/x/crypto/ssh"}
	cases := map[string]bool{
		"os":                                true,
		"crypto/ecdsa":                      true,
		"C":                                 false,
		module + "keyfile":                  true,
		module + "keyfile/inner":            false,
		module + "agent":                    false,
		module + "internal/tcti":            true,
		"github.com/google/go-tpm/tpm2":     true,
		"golang.org/x/crypto/ssh":           true,
		"golang.org/x/crypto/ssh/agent":     false,
		"golang.org/x/sys/unix":             false,
		"github.com/tpm-agent/other/module": true,
	}
	for path, want := range cases {
		if got := permitted(path, allowed); got != want {
			t.Errorf("permitted(%q) = %v, want %v", path, got, want)
		}
	}
}
