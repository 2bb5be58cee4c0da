package keydir

import (
	"fmt"
	"maps"
	"slices"
)

// A finding may turn out to be a Problem.
type finding struct {
	Problem
	version *content // of the file: new content is reported again
	// blob is the key that a public key or certificate belongs to. It is no
	// problem if that is the key of a different key file.
	blob string
}

type problemID struct {
	path, text string
	version    *content
}

// assemble makes the lists from the files that the directories know, and
// returns the problems that are new.
func (x *Index) assemble() (fresh []Problem) {
	var entries []*Entry
	var findings []finding
	first := make(map[string]*Entry) // by key blob
	for _, d := range x.dirs {
		findings = append(findings, d.findings()...)
		for _, name := range slices.Sorted(maps.Keys(d.files)) {
			f := d.files[name]
			switch f.content.kind {
			case kindBroken:
				findings = append(findings, finding{Problem: Problem{d.join(name), f.content.err}, version: f.content})
			case kindKey:
				d.link(name, f)
				if other := first[f.content.blob]; other != nil {
					err := fmt.Errorf("%w: %s", ErrDuplicate, other.Path)
					findings = append(findings, finding{Problem: Problem{f.entry.Path, err}, version: f.content})
					continue
				}
				first[f.content.blob] = f.entry
				entries = append(entries, f.entry)
				findings = append(findings, f.findings...)
			}
		}
	}
	if !slices.Equal(entries, x.entries) {
		x.entries = entries
	}
	seen := make(map[problemID]bool)
	x.problems = nil
	for _, f := range findings {
		id := problemID{f.Path, f.Err.Error(), f.version}
		if first[f.blob] != nil || seen[id] {
			continue
		}
		x.problems = append(x.problems, f.Problem)
		if seen[id] = true; !x.reported[id] {
			fresh = append(fresh, f.Problem)
		}
	}
	x.reported = seen
	return fresh
}
