package keydir

import (
	"fmt"
	"path/filepath"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// ReadEntry reads the key file at path and what is beside it, by the rules of
// an Index, but without one: it is for a file that the user names. What is
// beside it and of no use is among the problems.
func ReadEntry(path string) (*Entry, []Problem, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read key file %s: %w", path, err)
	}
	k, err := keyfile.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	c := keyContent(k)
	if c.err != nil {
		return nil, nil, fmt.Errorf("read key file %s: %w", path, c.err)
	}
	name, f := filepath.Base(abs), &file{content: c}
	d := &directory{path: filepath.Dir(abs), files: map[string]*file{name: f}}
	for _, stem := range stems(name) {
		d.readBeside(stem)
		d.readBeside(stem + ".pub")
		d.readBeside(stem + "-cert.pub")
	}
	d.link(name, f)
	var problems []Problem
	for _, finding := range f.findings {
		problems = append(problems, finding.Problem)
	}
	return f.entry, problems, nil
}

// readBeside takes name into d if it is there.
func (d *directory) readBeside(name string) {
	if d.files[name] != nil {
		return
	}
	if _, err := statStamp(d.join(name)); err == nil {
		d.files[name] = &file{content: read(d.join(name))}
	}
}
