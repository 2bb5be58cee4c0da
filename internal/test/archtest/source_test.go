package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// root is the module's directory, as seen from this package.
const root = "../../.."

// sourceFile is one parsed Go file of the module.
type sourceFile struct {
	pkg   string // directory below the module's root, with slashes: "internal/tcti"
	path  string // for messages, below the module's root
	test  bool
	lines int
	ast   *ast.File
	fset  *token.FileSet
}

// at returns the position of a node as the compiler prints it: file:line.
func (f sourceFile) at(n ast.Node) string {
	pos := f.fset.Position(n.Pos())
	pos.Filename, pos.Column = f.path, 0
	return pos.String()
}

// packages returns the files of each package, without its tests. A package that
// has only tests maps to no files.
func packages(t *testing.T) map[string][]sourceFile {
	t.Helper()
	found := map[string][]sourceFile{}
	for _, f := range sources(t) {
		files := found[f.pkg]
		if !f.test {
			files = append(files, f)
		}
		found[f.pkg] = files
	}
	return found
}

// sources parses every Go file of the module. It skips what the go command
// leaves out of ./...: testdata, names that begin with a dot or an underscore,
// and nested modules.
func sources(t *testing.T) []sourceFile {
	t.Helper()
	var files []sourceFile
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return enter(path, d.Name())
		case !strings.HasSuffix(path, ".go") || strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_"):
			return nil
		}
		f, err := read(path)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatalf("reading the module's source: %v", err)
	}
	if !slices.ContainsFunc(files, func(f sourceFile) bool { return f.pkg == "internal/test/archtest" }) {
		t.Fatalf("%s is not the module's root: this package was not found there", root)
	}
	return files
}

// enter reports to WalkDir whether a directory belongs to the module.
func enter(path, name string) error {
	if path == root {
		return nil
	}
	if name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

func read(path string) (sourceFile, error) {
	below, err := filepath.Rel(root, path)
	if err != nil {
		return sourceFile{}, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return sourceFile{}, err
	}
	return parse(filepath.ToSlash(below), text)
}

// parse parses one file, named below the module's root.
func parse(path string, text []byte) (sourceFile, error) {
	dir, _, _ := cutLast(path, "/")
	f := sourceFile{
		pkg:   dir,
		path:  path,
		test:  strings.HasSuffix(path, "_test.go"),
		lines: bytes.Count(text, []byte("\n")),
		fset:  token.NewFileSet(),
	}
	var err error
	f.ast, err = parser.ParseFile(f.fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
	return f, err
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// parsed parses source text for the tests of the checkers. The text begins
// with its package clause or the comment above it.
func parsed(t *testing.T, path, text string) sourceFile {
	t.Helper()
	f, err := parse(path, []byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return f
}
