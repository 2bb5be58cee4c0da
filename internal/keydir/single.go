package keydir

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// ReadEntry reads a key file that the user named, and the files beside it, by
// the rules of an Index. The problems are about the files beside it.
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
		for _, beside := range []string{stem, stem + ".pub", stem + "-cert.pub"} {
			if _, err := os.Stat(d.join(beside)); err == nil && beside != name {
				d.files[beside] = &file{content: read(d.join(beside))}
			}
		}
	}
	d.link(name, f)
	var problems []Problem
	for _, finding := range f.findings {
		problems = append(problems, finding.Problem)
	}
	return f.entry, problems, nil
}
