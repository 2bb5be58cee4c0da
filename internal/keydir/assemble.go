package keydir

import (
	"fmt"
	"maps"
	"slices"
)

// A finding may turn out to be a Problem.
type finding struct {
	Problem
	// blob is the key that a public key or certificate belongs to. It is no
	// problem if that is the key of a different key file.
	blob string
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
				findings = append(findings, finding{Problem: Problem{d.join(name), f.content.err}})
			case kindKey:
				d.link(name, f)
				if other := first[f.content.blob]; other != nil {
					err := fmt.Errorf("%w: %s", ErrDuplicate, other.Path)
					findings = append(findings, finding{Problem: Problem{f.entry.Path, err}})
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
	seen := make(map[string]bool)
	x.problems = nil
	for _, f := range findings {
		text := f.String()
		if first[f.blob] != nil || seen[text] {
			continue
		}
		x.problems = append(x.problems, f.Problem)
		if seen[text] = true; !x.reported[text] {
			fresh = append(fresh, f.Problem)
		}
	}
	x.reported = seen
	return fresh
}
