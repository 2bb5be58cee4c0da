package parents

import (
	"encoding/hex"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// heading explains the file to people who open it.
const heading = `# Which storage key of which TPM your SSH keys were loaded under: Name, place,
# TPM, first seen, last seen, gone since, keys. tpm-agent inspect shows it. You
# can remove this file; then nothing is remembered.
`

// linePattern matches a line about a storage key.
var linePattern = regexp.MustCompile(`^([0-9a-f]{4,132}) ([0-9a-z-]{1,32}) (\S+) ([0-9-]{10}) ([0-9-]{10}) ([0-9-]{10}|-)((?: SHA256:[^\s=]{43}=[0-9a-f]{16})*)\n?$`)

// marshal returns the text of a memory. It leaves out the oldest storage keys
// if there is no room for them.
func (m *Memory) marshal() []byte {
	var b strings.Builder
	for _, p := range m.parents {
		gone := "-"
		if p.Gone != "" {
			gone = string(p.Gone)
		}
		tpm := url.URL{Path: p.TPM} // the path of a socket may contain blanks
		words := []string{hex.EncodeToString(p.Name), p.At, tpm.EscapedPath(), string(p.First), string(p.Last), gone}
		for _, k := range p.Keys {
			words = append(words, k.Fingerprint+"="+k.Private)
		}
		b.WriteString(strings.Join(words, " ") + "\n")
	}
	text := b.String()
	for len(heading)+len(text) > maxFile {
		_, text, _ = strings.Cut(text, "\n")
	}
	return []byte(heading + text)
}

// parse reads the text of a memory. It skips lines that are not valid, and a
// second line about the same storage key.
func parse(text []byte) *Memory {
	m := new(Memory)
	for line := range strings.Lines(string(text)) {
		if p := parseLine(line); p != nil && !slices.ContainsFunc(m.parents, p.same) {
			m.parents = append(m.parents, p)
		}
	}
	return m
}

// parseLine returns nil for a line that is not valid.
func parseLine(line string) *Parent {
	w := linePattern.FindStringSubmatch(line)
	if w == nil {
		return nil
	}
	name, err := hex.DecodeString(w[1])
	tpm, tpmErr := url.PathUnescape(w[3])
	if err != nil || tpmErr != nil {
		return nil
	}
	p := &Parent{Name: name, At: w[2], TPM: tpm, First: Date(w[4]), Last: Date(w[5]), Gone: Date(strings.TrimPrefix(w[6], "-"))}
	for _, word := range strings.Fields(w[7]) {
		fingerprint, private, _ := strings.Cut(word, "=")
		p.Keys = append(p.Keys, Key{fingerprint, private})
	}
	return p
}
