package archtest

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// TestNoPackageState checks that packages keep no state: their variables are
// sentinel errors and constant tables, and no code runs before main. The rule
// does not apply to tests.
func TestNoPackageState(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		if r, _ := find(f.pkg); !f.test && !r.vars {
			report(t, packageState(f))
		}
	}
}

// packageState lists the package variables and init functions of a file that
// the rule forbids.
func packageState(f sourceFile) []string {
	var problems []string
	for _, decl := range f.ast.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				problems = append(problems, f.at(d)+": init function: call it where it is needed, and return its errors")
			}
		case *ast.GenDecl:
			if d.Tok == token.VAR && !embedded(d) {
				problems = append(problems, variables(f, d)...)
			}
		}
	}
	return problems
}

// embedded reports whether go:embed fills the variable, which never changes
// then.
func embedded(d *ast.GenDecl) bool {
	if d.Doc == nil {
		return false
	}
	for _, c := range d.Doc.List {
		if strings.HasPrefix(c.Text, "//go:embed ") {
			return true
		}
	}
	return false
}

func variables(f sourceFile, d *ast.GenDecl) []string {
	var problems []string
	for _, s := range d.Specs {
		spec := s.(*ast.ValueSpec)
		for i, name := range spec.Names {
			if name.Name == "_" || i < len(spec.Values) && (sentinel(name, spec.Values[i]) || constant(spec.Values[i])) {
				continue
			}
			problems = append(problems, f.at(name)+": package variable "+name.Name+" is neither a sentinel error nor a table")
		}
	}
	return problems
}

// sentinel reports whether a variable is an error, by its name. Any call may
// create it.
func sentinel(name *ast.Ident, value ast.Expr) bool {
	_, made := value.(*ast.CallExpr)
	return made && (strings.HasPrefix(name.Name, "Err") || strings.HasPrefix(name.Name, "err"))
}

// constant reports whether a value may stand at package level: a composite
// literal or its address, a []byte("…") conversion, a compiled pattern, or a
// fixed time.
func constant(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.CompositeLit:
		return true
	case *ast.UnaryExpr:
		_, lit := e.X.(*ast.CompositeLit)
		return e.Op == token.AND && lit
	case *ast.CallExpr:
		switch fun := e.Fun.(type) {
		case *ast.ArrayType:
			return true
		case *ast.SelectorExpr:
			pkg, _ := fun.X.(*ast.Ident)
			return pkg != nil && constantCalls[pkg.Name+"."+fun.Sel.Name]
		}
	}
	return false
}

var constantCalls = map[string]bool{
	"regexp.MustCompile": true,
	"time.Unix":          true,
	"time.Date":          true,
}

func TestPackageState(t *testing.T) {
	t.Parallel()
	cases := map[string]int{
		`var ErrGone = errors.New("gone")`:                       0,
		`var ErrOld = fmt.Errorf("old: %w", ErrGone)`:            0,
		`var ErrKind error = refusal("a kind")`:                  0,
		`var Erroneous int`:                                      1,
		`var names = map[int]string{1: "one"}`:                   0,
		`var oid = &identifier{2, 23}`:                           0,
		`var magic = []byte("SSHSIG")`:                           0,
		`var _ net.Listener = (*listener)(nil)`:                  0,
		"//go:embed man/tool.1\nvar page string":                 0,
		`func f() { var local int; _ = local }`:                  0,
		`func (t T) init() {}`:                                   0,
		`var count int`:                                          1,
		`var mu, cond = sync.Mutex{}, make(chan int)`:            1,
		`var client = http.DefaultClient`:                        1,
		`var ErrA, ErrB = errors.New("a"), errors.New("b")`:      0,
		`var (a int; b = time.Now(); ErrC = errors.New("c"))`:    2,
		`func init() { println("early") }`:                       1,
		"func init() {}\nfunc init() {}\nvar version = \"none\"": 3,
	}
	for src, want := range cases {
		f := parsed(t, "x/x.go", "package x\n"+src)
		if got := packageState(f); len(got) != want {
			t.Errorf("%s: %d problems, want %d: %q", src, len(got), want, got)
		}
	}
}
