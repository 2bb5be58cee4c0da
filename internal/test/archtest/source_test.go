package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// root is the module's directory, seen from this package.
const root = "../../.."

// sourceFile is one parsed Go file of the module.
type sourceFile struct {
	pkg  string // directory below the module's root, with slashes: "internal/tcti"
	path string // for messages, below the module's root
	test bool
	ast  *ast.File
	fset *token.FileSet
}

// at names the place of a node as the compiler does: file:line.
func (f sourceFile) at(n ast.Node) string {
	pos := f.fset.Position(n.Pos())
	pos.Filename, pos.Column = f.path, 0
	return pos.String()
}

// sources parses every Go file of the module. What the go command leaves out
// of ./... is left out here: testdata, names that begin with a dot or an
// underscore, modules of their own.
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
		f, err := parse(path)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatalf("reading the module's source: %v", err)
	}
	return files
}

// enter tells WalkDir whether a directory belongs to the module.
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

func parse(path string) (sourceFile, error) {
	below, err := filepath.Rel(root, path)
	if err != nil {
		return sourceFile{}, err
	}
	f := sourceFile{
		pkg:  filepath.ToSlash(filepath.Dir(below)),
		path: filepath.ToSlash(below),
		test: strings.HasSuffix(path, "_test.go"),
		fset: token.NewFileSet(),
	}
	f.ast, err = parser.ParseFile(f.fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
	return f, err
}
