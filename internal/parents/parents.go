// Package parents remembers which storage key each key was loaded under, in a
// small file beside the keys. A key file does not say it, and a TPM that was
// cleared looks like one that never knew the key: with the memory they can be
// told apart from a damaged file, with the day on which it happened; and
// something on the bus that offers a storage key of its own is found out.
//
// The memory is worth something while it is there, and nothing breaks when it
// is not: what is lost, garbled or not to be had counts as nothing remembered.
// Who can write to it can write to the key files, too.
package parents

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// FileName is the name of the memory in a directory with keys.
const FileName = ".tpm-agent-parents"

// The bounds of a memory. Beyond them the oldest is forgotten.
const (
	maxParents = 64
	maxKeys    = 8192 // under all parents together
)

// Date is a day in the user's time zone, as 2006-01-02; "" is none.
type Date string

// DateOf returns the day of t.
func DateOf(t time.Time) Date { return Date(t.Format(time.DateOnly)) }

// Key is a key and the version of its file.
type Key struct {
	Fingerprint string // SHA256:…
	Private     string // of the private part, which is wrapped: a short hash in hexadecimal
}

// KeyOf returns the Key of a key file.
func KeyOf(public ssh.PublicKey, file *keyfile.TPMKey) Key {
	hash := sha256.Sum256(file.Privkey)
	return Key{ssh.FingerprintSHA256(public), hex.EncodeToString(hash[:8])}
}

// Parent is a storage key in one place of one TPM.
type Parent struct {
	Name []byte
	At   string // a word for the place: "owner", "0x81000001"
	TPM  string // its address
	// First and Last are the days on which it was seen there. Gone is the day
	// on which it was not there any more, and has not been since.
	First, Last, Gone Date
	Keys              []Key // that were loaded under it
}

// Memory is what is remembered, from the oldest to what was seen last.
type Memory struct{ parents []*Parent }

// Parents returns all storage keys.
func (m *Memory) Parents() []*Parent { return m.parents }

// Of returns the storage key that a key was loaded under, nil when none is
// remembered; where there is a choice, that in the TPM with this address.
// changed says that the key's file had another private part then.
func (m *Memory) Of(key Key, tpm string) (found *Parent, changed bool) {
	for _, p := range m.parents {
		for _, k := range p.Keys {
			if k.Fingerprint == key.Fingerprint && (found == nil || found.TPM != tpm || p.TPM == tpm) {
				found, changed = p, k.Private != key.Private
			}
		}
	}
	return found, changed
}

// Latest returns the storage key that was seen last in a place, nil if there was
// none.
func (m *Memory) Latest(at, tpm string) *Parent {
	for _, p := range slices.Backward(m.parents) {
		if p.At == at && p.TPM == tpm {
			return p
		}
	}
	return nil
}

// Seen notes that today a storage key was where p says, and that key, unless it
// is the zero Key, was loaded under it. It reports whether that is news. What
// was in the same hierarchy until then is gone: there is one key for each
// template.
func (m *Memory) Seen(p Parent, key Key, today Date) bool {
	news := m.seenParent(p, today)
	if key == (Key{}) {
		return news
	}
	return m.seenKey(p, key) || news
}

func (m *Memory) seenParent(p Parent, today Date) (news bool) {
	var here *Parent
	for _, other := range m.parents {
		same := bytes.Equal(other.Name, p.Name) && other.TPM == p.TPM
		switch {
		case same && other.Gone != "":
			other.Gone, news = "", true
		case !same && other.At == p.At && other.TPM == p.TPM && other.Gone == "" && !strings.HasPrefix(p.At, "0x"):
			other.Gone, news = today, true
		}
		if same && other.At == p.At {
			here = other
		}
	}
	if here == nil {
		here = &Parent{Name: bytes.Clone(p.Name), At: p.At, TPM: p.TPM, First: today}
		m.parents, news = append(m.parents, here), true
	}
	if here.Last != today || m.Latest(p.At, p.TPM) != here {
		here.Last, news = today, true
		m.parents = append(slices.DeleteFunc(m.parents, func(p *Parent) bool { return p == here }), here)
	}
	return news
}

// seenKey puts a key under a storage key that seenParent has noted. A key has
// one at a time.
func (m *Memory) seenKey(p Parent, key Key) bool {
	if old, changed := m.Of(key, p.TPM); old != nil && !changed && old.TPM == p.TPM && bytes.Equal(old.Name, p.Name) {
		return false
	}
	for _, other := range m.parents {
		other.Keys = slices.DeleteFunc(other.Keys, func(k Key) bool { return k.Fingerprint == key.Fingerprint })
	}
	here := m.Latest(p.At, p.TPM)
	here.Keys = append(here.Keys, key)
	return true
}

// Missed notes that today the TPM with this address has the storage key of this
// Name no more. It reports whether that is news.
func (m *Memory) Missed(name []byte, tpm string, today Date) (news bool) {
	for _, p := range m.parents {
		if bytes.Equal(p.Name, name) && p.TPM == tpm && p.Gone == "" {
			p.Gone, news = today, true
		}
	}
	return news
}

// trim forgets what is beyond the bounds: storage keys without keys first, then
// the oldest.
func (m *Memory) trim() {
	for len(m.parents) > maxParents {
		i := max(0, slices.IndexFunc(m.parents, func(p *Parent) bool { return len(p.Keys) == 0 }))
		m.parents = slices.Delete(m.parents, i, i+1)
	}
	keys := 0
	for _, p := range m.parents {
		keys += len(p.Keys)
	}
	for _, p := range m.parents {
		drop := min(len(p.Keys), max(0, keys-maxKeys))
		p.Keys = p.Keys[drop:]
		keys -= drop
	}
}
