package archtest

import (
	"fmt"
	"go/ast"
	"go/doc"
	"go/token"
	"maps"
	"slices"
	"strings"
	"testing"
)

// limits says how large a package may become.
type limits struct {
	lines, files int // without tests
	names        int // exported constants, variables, types and functions; 0: any number
	methods      int // of one type
}

// limitsOf returns the limits of a package. Two kinds are exempt by name:
// tpmkey, which has one subject that is large, and programs and harnesses,
// which export nothing that other packages rely on.
func limitsOf(pkg string) limits {
	l := limits{lines: 2500, files: 25, names: 30, methods: 25}
	if pkg == "tpmkey" {
		l.lines, l.names = 4200, 0
	}
	if strings.HasPrefix(pkg, "cmd/") || strings.HasPrefix(pkg, "internal/test/") {
		l.names = 0
	}
	return l
}

func TestPackages(t *testing.T) {
	t.Parallel()
	found := packages(t)
	for _, pkg := range slices.Sorted(maps.Keys(found)) {
		report(t, packageProblems(pkg, found[pkg]))
	}
	for _, r := range slices.Concat(table, harnesses) {
		if _, exists := found[r.pkg]; !exists {
			t.Errorf("the table has a row for %s, which does not exist", r.pkg)
		}
	}
}

func report(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}

// packageProblems lists what is wrong with a package, given its files without
// the tests.
func packageProblems(pkg string, files []sourceFile) []string {
	r, ok := find(pkg)
	if !ok {
		return []string{"package " + pkg + " has no row in internal/test/archtest/table_test.go"}
	}
	problems := slices.Concat(nameProblems(pkg), commentProblems(files, r.purpose), sizeProblems(pkg, files, limitsOf(pkg)))
	for _, f := range files {
		problems = append(problems, importProblems(f, r)...)
		if strings.HasPrefix(pkg, "cmd/") {
			problems = append(problems, logic(f)...)
		}
	}
	return problems
}

// nameProblems complains about a package whose name does not say what is in it.
func nameProblems(pkg string) []string {
	for _, vague := range []string{"util", "utils", "common", "helper", "helpers", "misc", "base", "lib"} {
		if slices.Contains(strings.Split(pkg, "/"), vague) {
			return []string{fmt.Sprintf("package %s: %q does not say what is in it", pkg, vague)}
		}
	}
	return nil
}

// commentProblems lists what is wrong with the package comment. One file has
// it, and its first sentence is the purpose in the table, to which it may add
// details.
func commentProblems(files []sourceFile, purpose string) []string {
	var comments []string
	var name string
	for _, f := range files {
		name = f.ast.Name.Name
		if name == "main" {
			_, name, _ = cutLast(f.pkg, "/")
			name = "Command " + name
		} else {
			name = "Package " + name
		}
		if f.ast.Doc != nil {
			comments = append(comments, f.ast.Doc.Text())
		}
	}
	if len(comments) != 1 {
		return []string{fmt.Sprintf("%s has %d package comments, want 1", name, len(comments))}
	}
	want := name + " " + purpose
	got := new(doc.Package).Synopsis(comments[0])
	if rest, ok := strings.CutPrefix(got, want); !ok || rest == "" || !strings.Contains(".,;: ", rest[:1]) {
		return []string{fmt.Sprintf("%s: the package comment and its row in the table differ:\n\tcomment: %s\n\ttable:   %s", name, got, want)}
	}
	return nil
}

// sizeProblems lists the limits that a package exceeds.
func sizeProblems(pkg string, files []sourceFile, limit limits) []string {
	lines, names, methods := 0, map[string]bool{}, map[string]map[string]bool{}
	for _, f := range files {
		lines += f.lines
		for _, decl := range f.ast.Decls {
			addNames(decl, names)
			addMethod(decl, methods)
		}
	}
	var problems []string
	exceeds := func(what string, got, most int) {
		if got > most {
			problems = append(problems, fmt.Sprintf("%s has %d %s, at most %d are allowed", pkg, got, what, most))
		}
	}
	exceeds("lines", lines, limit.lines)
	exceeds("files", len(files), limit.files)
	if limit.names > 0 {
		exceeds("exported names", len(names), limit.names)
	}
	for _, typ := range slices.Sorted(maps.Keys(methods)) {
		exceeds("methods on type "+typ, len(methods[typ]), limit.methods)
	}
	return problems
}

// addNames adds what a declaration exports at package level. Sets are counted,
// not declarations: files for different systems declare the same names.
func addNames(decl ast.Decl, names map[string]bool) {
	add := func(ids ...*ast.Ident) {
		for _, id := range ids {
			if id.IsExported() {
				names[id.Name] = true
			}
		}
	}
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			add(d.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.ValueSpec:
				add(s.Names...)
			case *ast.TypeSpec:
				add(s.Name)
			}
		}
	}
}

// addMethod adds a method to those of its type.
func addMethod(decl ast.Decl, methods map[string]map[string]bool) {
	d, ok := decl.(*ast.FuncDecl)
	if !ok || d.Recv == nil || len(d.Recv.List) == 0 {
		return
	}
	typ := receiver(d.Recv.List[0].Type)
	if methods[typ] == nil {
		methods[typ] = map[string]bool{}
	}
	methods[typ][d.Name.Name] = true
}

// receiver returns the name of a receiver's type, without pointer and type
// parameters.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.ParenExpr:
		return receiver(e.X)
	}
	return ""
}

// logic lists the statements of a file that decide, repeat or start something.
// Package main may only check for errors.
func logic(f sourceFile) []string {
	var problems []string
	ast.Inspect(f.ast, func(n ast.Node) bool {
		what := ""
		switch s := n.(type) {
		case *ast.IfStmt:
			if s.Else != nil || !onError(s.Cond) {
				what = "if"
			}
		case *ast.ForStmt, *ast.RangeStmt:
			what = "for"
		case *ast.SwitchStmt, *ast.TypeSwitchStmt:
			what = "switch"
		case *ast.SelectStmt:
			what = "select"
		case *ast.GoStmt:
			what = "go"
		case *ast.LabeledStmt:
			what = "label"
		}
		if what != "" {
			problems = append(problems, fmt.Sprintf("%s: package main has no logic: move this %q statement to the package it calls", f.at(n), what))
		}
		return true
	})
	return problems
}

// onError reports whether a condition only looks at err: err != nil, err ==
// nil, errors.Is(err, …) or errors.As(err, …).
func onError(cond ast.Expr) bool {
	switch c := cond.(type) {
	case *ast.BinaryExpr:
		return (c.Op == token.NEQ || c.Op == token.EQL) && named(c.X, "err") && named(c.Y, "nil")
	case *ast.UnaryExpr:
		return c.Op == token.NOT && onError(c.X)
	case *ast.CallExpr:
		fun, ok := c.Fun.(*ast.SelectorExpr)
		return ok && named(fun.X, "errors") && len(c.Args) > 0 && named(c.Args[0], "err")
	}
	return false
}

func named(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

func TestNameProblems(t *testing.T) {
	t.Parallel()
	cases := map[string]int{
		"internal/wire":          0,
		"internal/util":          1,
		"internal/common/wire":   1,
		"internal/prompt/helper": 1,
		"internal/utility":       0,
	}
	for pkg, want := range cases {
		if got := nameProblems(pkg); len(got) != want {
			t.Errorf("%s: %q, want %d", pkg, got, want)
		}
	}
}

func TestCommentProblems(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name string
		path string
		text []string
		want int
	}{
		{"purpose", "internal/x/x.go", []string{"// Package x does it.\npackage x\n"}, 0},
		{"purpose and more", "internal/x/x.go", []string{"// Package x does it. It is\n// fast.\npackage x\n"}, 0},
		{"details", "internal/x/x.go", []string{"// Package x does it: fast.\npackage x\n"}, 0},
		{"half a word", "internal/x/x.go", []string{"// Package x does items.\npackage x\n"}, 1},
		{"wrapped", "internal/x/x.go", []string{"// Package x\n// does it.\npackage x\n"}, 0},
		{"command", "cmd/tool/main.go", []string{"// Command tool does it.\npackage main\n"}, 0},
		{"none", "internal/x/x.go", []string{"package x\n"}, 1},
		{"detached", "internal/x/x.go", []string{"// Package x does it.\n\npackage x\n"}, 1},
		{"different", "internal/x/x.go", []string{"// Package x does other things.\npackage x\n"}, 1},
		{"in the second file", "internal/x/x.go", []string{"package x\n", "// Package x does it.\npackage x\n"}, 0},
		{"twice", "internal/x/x.go", []string{"// Package x does it.\npackage x\n", "// Package x does it.\npackage x\n"}, 1},
		{"no files", "internal/x/x.go", nil, 1},
	}
	for _, c := range cases {
		var files []sourceFile
		for _, text := range c.text {
			files = append(files, parsed(t, c.path, text))
		}
		if got := commentProblems(files, "does it"); len(got) != c.want {
			t.Errorf("%s: %q, want %d problems", c.name, got, c.want)
		}
	}
}

func TestSizeProblems(t *testing.T) {
	t.Parallel()
	limit := limits{lines: 6, files: 1, names: 2, methods: 1}
	cases := []struct {
		name string
		text []string
		want []string
	}{
		{"small", []string{"package x\nfunc A() {}\n"}, nil},
		{"long", []string{"package x\n//\n//\n//\n//\n//\n//\n"}, []string{"7 lines"}},
		{"two files", []string{"package x\n", "package x\n"}, []string{"2 files"}},
		{"exported", []string{"package x\nconst A = 1\nvar B, b = 1, 2\ntype (C int; c int)\n"}, []string{"3 exported names"}},
		{"exported methods do not count", []string{"package x\ntype c int\nfunc (c) M() {}\nfunc A() {}\nfunc B() {}\n"}, nil},
		{"methods", []string{"package x\ntype c[T any] struct{}\nfunc (c[T]) a() {}\nfunc (*c[T]) b() {}\n"}, []string{"2 methods on type c"}},
		{"methods of two types", []string{"package x\nfunc (*a) m() {}\nfunc (b) m() {}\n"}, nil},
		{"one name in two files", []string{"package x\nfunc A() {}\nfunc (t) m() {}\n", "package x\nfunc A() {}\nfunc B() {}\nfunc (t) m() {}\n"}, []string{"7 lines", "2 files"}},
	}
	for _, c := range cases {
		var files []sourceFile
		for _, text := range c.text {
			files = append(files, parsed(t, "internal/x/x.go", text))
		}
		got := sizeProblems("x", files, limit)
		if !slices.EqualFunc(got, c.want, strings.Contains) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if got := sizeProblems("x", []sourceFile{parsed(t, "cmd/x/x.go", "package x\nvar A, B, C int\n")}, limits{lines: 9, files: 9, methods: 9}); got != nil {
		t.Errorf("a package that may export any number of names: %q", got)
	}
}

func TestLogic(t *testing.T) {
	t.Parallel()
	cases := map[string]int{
		`if err != nil { return }`:                             0,
		`if err := run(); err != nil { return }`:               0,
		`if err == nil { return }`:                             0,
		`if errors.Is(err, io.EOF) { return }`:                 0,
		`if !errors.As(err, &exit) { return }`:                 0,
		`if err != nil { return } else { run() }`:              1,
		`if err != nil { if quiet { return } }`:                1,
		`if quiet { return }`:                                  1,
		`if err != nil && quiet { return }`:                    1,
		`if failed := run(); failed != nil { return }`:         1,
		`if strings.Contains(err, "x") { return }`:             1,
		`for { run() }`:                                        1,
		`for range names { run() }`:                            1,
		`switch { case true: run() }`:                          1,
		`switch v.(type) { }`:                                  1,
		`select {}`:                                            1,
		`go run()`:                                             1,
		`again: run(); goto again`:                             1,
		`defer run()`:                                          0,
		`f := func() { for { } }; f()`:                         1,
		`return`:                                               0,
		`add(&cobra.Command{RunE: func() { if x { run() } }})`: 1,
	}
	for body, want := range cases {
		f := parsed(t, "cmd/x/main.go", "package main\nfunc f() {\n"+body+"\n}\n")
		if got := logic(f); len(got) != want {
			t.Errorf("%s: %d problems, want %d: %q", body, len(got), want, got)
		}
	}
}
