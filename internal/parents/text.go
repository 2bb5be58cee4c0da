package parents

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
)

// heading tells people what the file is.
const heading = `# Which storage key of which TPM the keys in this directory were loaded under:
# Name, place, TPM, first seen, last seen, gone since, keys. tpm-agent inspect
# shows it. Without this file nothing breaks, and nothing is remembered.
`

// marshal returns the text of a memory.
func (m *Memory) marshal() []byte {
	m.trim()
	var b strings.Builder
	b.WriteString(heading)
	for _, p := range m.parents {
		gone := "-"
		if p.Gone != "" {
			gone = string(p.Gone)
		}
		words := []string{hex.EncodeToString(p.Name), p.At, escape(p.TPM), string(p.First), string(p.Last), gone}
		for _, k := range p.Keys {
			words = append(words, k.Fingerprint+"="+k.Private)
		}
		b.WriteString(strings.Join(words, " ") + "\n")
	}
	return []byte(b.String())
}

// parse reads the text of a memory. A line that makes no sense counts as not
// there, as does a second one about the same storage key.
func parse(text []byte) *Memory {
	m := new(Memory)
	for line := range strings.Lines(string(text)) {
		p := parseLine(line)
		if p == nil || slices.ContainsFunc(m.parents, p.same) {
			continue
		}
		m.parents = append(m.parents, p)
	}
	m.trim()
	return m
}

func (p *Parent) same(other *Parent) bool {
	return string(p.Name) == string(other.Name) && p.At == other.At && p.TPM == other.TPM
}

// parseLine returns nil for what is no line about a storage key.
func parseLine(line string) *Parent {
	words := strings.Fields(line)
	if len(words) < 6 {
		return nil
	}
	name, err := hex.DecodeString(words[0])
	tpm, tpmErr := url.PathUnescape(words[2])
	if err != nil || len(name) < 2 || len(name) > 66 || tpmErr != nil || !isPlace(words[1]) {
		return nil
	}
	p := &Parent{Name: name, At: words[1], TPM: tpm, First: Date(words[3]), Last: Date(words[4])}
	if words[5] != "-" {
		p.Gone = Date(words[5])
	}
	if !p.First.valid() || !p.Last.valid() || p.Gone != "" && !p.Gone.valid() {
		return nil
	}
	for _, word := range words[6:] {
		if k, ok := parseKey(word); ok {
			p.Keys = append(p.Keys, k)
		}
	}
	return p
}

// parseKey reads SHA256:…=….
func parseKey(word string) (k Key, ok bool) {
	i := strings.LastIndexByte(word, '=')
	if i < 0 {
		return k, false
	}
	k = Key{word[:i], word[i+1:]}
	digest, prefixed := strings.CutPrefix(k.Fingerprint, "SHA256:")
	raw, err := base64.RawStdEncoding.DecodeString(digest)
	private, privateErr := hex.DecodeString(k.Private)
	return k, prefixed && err == nil && len(raw) == 32 && privateErr == nil && len(private) == 8
}

// isPlace says whether a word can be a place: some letters, digits and dashes.
func isPlace(s string) bool {
	return len(s) <= 32 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func (d Date) valid() bool {
	_, err := time.Parse(time.DateOnly, string(d))
	return err == nil
}

// escape makes one word of an address: those of sockets may have blanks.
func escape(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool {
		return r == '%' || r == unicode.ReplacementChar || !unicode.IsGraphic(r) || unicode.IsSpace(r)
	}) {
		return strings.ReplaceAll(url.PathEscape(s), "%2F", "/")
	}
	return s
}
