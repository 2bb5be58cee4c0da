package archtest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tpm-agent/tpm-agent/"

// find returns the row of a package.
func find(pkg string) (row, bool) {
	for _, r := range slices.Concat(table, harnesses) {
		if r.pkg == pkg {
			return r, true
		}
	}
	return row{}, false
}

// importProblems lists the imports of a file that its package's row does not
// allow.
func importProblems(f sourceFile, r row) []string {
	allowed := r.imports
	if f.test {
		allowed = slices.Concat(r.imports, r.tests, inTests, []string{f.pkg})
	}
	var problems []string
	for _, spec := range f.ast.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil || !permitted(path, allowed) || harness(path) && !f.test && !strings.HasPrefix(f.pkg, "internal/test/") {
			problems = append(problems, fmt.Sprintf("%s: package %s may not import %q", f.at(spec), f.pkg, path))
		}
	}
	return problems
}

func harness(path string) bool {
	return strings.HasPrefix(path, module+"internal/test/")
}

// permitted reports whether the entries allow an import path. Every package
// may import the standard library, which has no dot in its first element. No
// package may import "C": the binary is built without cgo.
func permitted(path string, allowed []string) bool {
	if path == "C" {
		return false
	}
	own, ours := strings.CutPrefix(path, module)
	first, _, _ := strings.Cut(path, "/")
	if !ours && !strings.Contains(first, ".") {
		return true
	}
	// Our own packages are written without the module's path, so that
	// "github.com/..." means the modules of others.
	return slices.ContainsFunc(allowed, func(entry string) bool { return matches(entry, own) })
}

// matches reports whether a path is an entry of the table or below it.
func matches(entry, path string) bool {
	if below, ok := strings.CutSuffix(entry, "..."); ok {
		return strings.HasPrefix(path, below)
	}
	return path == entry
}

// TestTableIsInOrder keeps imports pointing down: a row may only allow packages
// in the rows below it.
func TestTableIsInOrder(t *testing.T) {
	t.Parallel()
	for i, r := range table {
		report(t, upward(r, table[:i+1]))
	}
}

// upward lists the imports of a row that are packages of the rows above it.
func upward(r row, above []row) []string {
	var problems []string
	for _, entry := range r.imports {
		for _, other := range above {
			if matches(entry, other.pkg) {
				problems = append(problems, fmt.Sprintf("the table lets %s import %s, which is in a row above", r.pkg, other.pkg))
			}
		}
	}
	return problems
}

func TestUpward(t *testing.T) {
	t.Parallel()
	above := []row{{pkg: "cmd/x"}, {pkg: "internal/a"}, {pkg: "internal/a/b"}}
	cases := map[string]int{
		"internal/c":           0,
		"internal/a":           1,
		"internal/a/...":       1,
		"internal/...":         2,
		"cmd/x":                1,
		"golang.org/x/...":     0,
		"internal/a/b/deeper":  0,
		"github.com/other/mod": 0,
	}
	for entry, want := range cases {
		if got := upward(row{pkg: "internal/a/b", imports: []string{entry}}, above); len(got) != want {
			t.Errorf("%s: %d problems, want %d: %q", entry, len(got), want, got)
		}
	}
}

func TestImportProblems(t *testing.T) {
	t.Parallel()
	r := row{pkg: "internal/x", imports: []string{"keyfile", "internal/..."}, tests: []string{"agent"}}
	cases := []struct {
		path, imported string
		want           int
	}{
		{"internal/x/x.go", "os", 0},
		{"internal/x/x.go", module + "keyfile", 0},
		{"internal/x/x.go", module + "internal/y", 0},
		{"internal/x/x.go", module + "agent", 1},
		{"internal/x/x_test.go", module + "agent", 0},
		{"internal/x/x.go", module + "internal/test/tpmtest", 1},
		{"internal/x/x_test.go", module + "internal/test/tpmtest", 0},
		{"internal/x/x_test.go", module + "internal/x", 0},
		{"internal/x/x_test.go", module + "tpmkey", 1},
		{"internal/x/x_test.go", "golang.org/x/sys/unix", 0},
		{"internal/x/x.go", "golang.org/x/sys/unix", 1},
	}
	for _, c := range cases {
		f := parsed(t, c.path, "package x\nimport _ "+strconv.Quote(c.imported)+"\n")
		if got := importProblems(f, r); len(got) != c.want {
			t.Errorf("%s imports %s: %d problems, want %d: %q", c.path, c.imported, len(got), c.want, got)
		}
	}
}

func TestPermitted(t *testing.T) {
	t.Parallel()
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
