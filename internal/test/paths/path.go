package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
)

const module = "github.com/tpm-agent/tpm-agent/"

// function is one function that was entered.
type function struct {
	pkg, file, position, name string
}

// route is the set of functions that a request entered, in order.
type route []function

func (p route) files() int {
	set := map[string]bool{}
	for _, f := range p {
		set[f.pkg+"/"+f.file] = true
	}
	return len(set)
}

func (p route) packages() int { return len(p.byPackage()) }

func (p route) byPackage() map[string]route {
	groups := map[string]route{}
	for _, f := range p {
		groups[f.pkg] = append(groups[f.pkg], f)
	}
	return groups
}

// entersMain reports whether a function of package main is on the route.
func (p route) entersMain() bool {
	return slices.ContainsFunc(p, func(f function) bool { return strings.HasPrefix(f.pkg, "cmd/") })
}

// print lists the functions, by package and file.
func (p route) print(w io.Writer) {
	groups := p.byPackage()
	for _, pkg := range slices.Sorted(maps.Keys(groups)) {
		g := groups[pkg]
		fmt.Fprintf(w, "  %s: %d functions in %d files\n", pkg, len(g), g.files())
		names := map[string][]string{}
		for _, f := range g {
			names[f.file] = append(names[f.file], f.name)
		}
		for _, file := range slices.Sorted(maps.Keys(names)) {
			fmt.Fprintf(w, "    %s: %s\n", file, strings.Join(names[file], " "))
		}
	}
}

// entered reads the functions that were entered from a directory of coverage
// data.
func (r *rig) entered(ctx context.Context, dir string) (route, error) {
	// covdata prints "package/file.go:line:  function  12.3%".
	cmd := exec.CommandContext(ctx, "go", "tool", "covdata", "func", "-i="+dir)
	cmd.Dir = r.sources() // where the sources are that it parses
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool covdata: %w: %s", err, stderr.String())
	}
	var found route
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		f, ok := parseLine(lines.Text())
		if ok {
			found = append(found, f)
		}
	}
	slices.SortFunc(found, func(a, b function) int { return cmp.Compare(a.pkg+a.position, b.pkg+b.position) })
	return found, nil
}

// parseLine reads one line of covdata's list. It returns false if the function
// was not entered or is not part of the agent.
func parseLine(line string) (function, bool) {
	fields := strings.Fields(line)
	if len(fields) != 3 || fields[2] == "0.0%" {
		return function{}, false
	}
	position, ours := strings.CutPrefix(strings.TrimSuffix(fields[0], ":"), module)
	if !ours || strings.Contains(position, hookFile) {
		return function{}, false
	}
	file, _, _ := strings.Cut(position, ":")
	return function{pkg: path.Dir(file), file: path.Base(file), position: position, name: fields[1]}, true
}
