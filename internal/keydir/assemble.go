package keydir

import (
	"fmt"
	"path/filepath"
	"slices"
)

// A finding is a Problem before it is known whether it is one.
type finding struct {
	Problem
	// version changes with the file, so that the same words about a new
	// content are told again.
	version *content
	// blob, when not empty, is the key that a public file or certificate
	// belongs to instead. If another key file here has it, all is well.
	blob string
}

type problemID struct {
	path, text string
	version    *content
}

// assemble makes the lists anew from the files that the directories know, and
// returns the problems that were not there before.
func (x *Index) assemble() (fresh []Problem) {
	var entries []*Entry
	var findings []finding
	first := make(map[string]*Entry) // by key blob
	for _, d := range x.dirs {
		findings = append(findings, d.findings()...)
		for _, name := range d.names() {
			f := d.files[name]
			if f.content.kind == kindBroken {
				findings = append(findings, finding{Problem: Problem{d.join(name), f.content.err}, version: f.content})
			}
			if f.content.kind != kindKey {
				continue
			}
			d.link(name, f)
			if other := first[f.content.blob]; other != nil {
				err := fmt.Errorf("%w: %s", ErrDuplicate, otherName(other.Path, d.path))
				findings = append(findings, finding{Problem: Problem{f.entry.Path, err}, version: f.content})
				continue
			}
			first[f.content.blob] = f.entry
			entries = append(entries, f.entry)
			findings = append(findings, f.findings...)
		}
	}
	if !slices.Equal(entries, x.entries) {
		x.entries = entries
	}
	return x.settle(findings, first)
}

// settle turns findings into problems, each once, and returns the new ones.
func (x *Index) settle(findings []finding, keys map[string]*Entry) (fresh []Problem) {
	told := make(map[problemID]bool)
	var problems []Problem
	for _, f := range findings {
		id := problemID{f.Path, f.Err.Error(), f.version}
		if keys[f.blob] != nil || told[id] {
			continue
		}
		problems = append(problems, f.Problem)
		if told[id] = true; !x.told[id] {
			fresh = append(fresh, f.Problem)
		}
	}
	x.problems, x.told = problems, told
	return fresh
}

// otherName is the shortest clear name for path in a message about dir.
func otherName(path, dir string) string {
	if filepath.Dir(path) == dir {
		return filepath.Base(path)
	}
	return path
}
