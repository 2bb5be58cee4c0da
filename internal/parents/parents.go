// Package parents remembers under which storage key each key was loaded, in one
// small file per user. A key file does not say it, and a TPM that was cleared
// looks like one that never knew the key. The memory tells a cleared TPM from a
// damaged key file, and since when; and it exposes a device on the bus that
// offers a storage key of its own.
//
// Nothing breaks without the memory: a file that is missing, garbled or
// unreadable counts as empty.
package parents

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// Date is a day in the user's time zone, as 2006-01-02; "" is none.
type Date string

// Key identifies a key and the version of its file.
type Key struct {
	Fingerprint string // SHA256:…
	Private     string // a short hash of the wrapped private part, in hexadecimal
}

// KeyOf returns the Key of a key file.
func KeyOf(public ssh.PublicKey, file *keyfile.TPMKey) Key {
	hash := sha256.Sum256(file.Privkey)
	return Key{ssh.FingerprintSHA256(public), hex.EncodeToString(hash[:8])}
}

// Parent is a storage key in one place of one TPM.
type Parent struct {
	Name []byte
	At   string // the place: "owner", "0x81000001"
	TPM  string // identifies the TPM
	// First and Last are the days on which it was seen there. Gone is the day
	// since which it is missing.
	First, Last, Gone Date
	Keys              []Key // that were loaded under it
}

// same reports whether p and other are one storage key in one place.
func (p *Parent) same(other *Parent) bool {
	return bytes.Equal(p.Name, other.Name) && p.At == other.At && p.TPM == other.TPM
}

// Memory holds storage keys and the keys under them, in the order in which they
// were last seen.
type Memory struct{ parents []*Parent }

// Parents returns all storage keys.
func (m *Memory) Parents() []*Parent { return m.parents }

// Of returns the storage key under which a key was loaded, or nil. It prefers
// one in the given TPM. It reports changed if the key file had a different
// private part then.
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

// Latest returns the storage key that was seen last in a place, or nil.
func (m *Memory) Latest(at, tpm string) *Parent {
	for _, p := range slices.Backward(m.parents) {
		if p.At == at && p.TPM == tpm {
			return p
		}
	}
	return nil
}

// Seen records that today a storage key was in the place that p names, and that
// key, unless it is the zero Key, was loaded under it. It reports whether that
// is news. A hierarchy has one storage key, so others there are gone.
func (m *Memory) Seen(p Parent, key Key, today Date) (news bool) {
	hierarchy := !strings.HasPrefix(p.At, "0x")
	for _, other := range m.parents {
		switch {
		case other.TPM != p.TPM:
		case bytes.Equal(other.Name, p.Name) && other.Gone != "":
			other.Gone, news = "", true
		case !bytes.Equal(other.Name, p.Name) && hierarchy && other.At == p.At && other.Gone == "":
			other.Gone, news = today, true
		}
	}
	here := m.Latest(p.At, p.TPM)
	if here == nil || !here.same(&p) || here.Last != today {
		here = &Parent{Name: bytes.Clone(p.Name), At: p.At, TPM: p.TPM, First: today}
		if i := slices.IndexFunc(m.parents, p.same); i >= 0 {
			here = m.parents[i]
			m.parents = slices.Delete(m.parents, i, i+1)
		}
		here.Last = today
		m.parents = append(m.parents, here)
		news = true
	}
	if key == (Key{}) {
		return news
	}
	if old, changed := m.Of(key, p.TPM); old != nil && !changed && old.TPM == p.TPM && bytes.Equal(old.Name, p.Name) {
		return news
	}
	// Now it moves here.
	for _, other := range m.parents {
		other.Keys = slices.DeleteFunc(other.Keys, func(k Key) bool { return k.Fingerprint == key.Fingerprint })
	}
	here.Keys = append(here.Keys, key)
	return true
}

// Missed records that today the TPM no longer has the storage key of this Name.
// It reports whether that is news.
func (m *Memory) Missed(name []byte, tpm string, today Date) (news bool) {
	for _, p := range m.parents {
		if bytes.Equal(p.Name, name) && p.TPM == tpm && p.Gone == "" {
			p.Gone, news = today, true
		}
	}
	return news
}

// merge adds what old knows of keys that m does not know. What m knows itself
// counts as more recent.
func (m *Memory) merge(old *Memory) {
	for _, p := range old.parents {
		p.Keys = slices.DeleteFunc(p.Keys, func(k Key) bool { known, _ := m.Of(k, ""); return known != nil })
		if i := slices.IndexFunc(m.parents, p.same); i >= 0 {
			m.parents[i].First = min(m.parents[i].First, p.First)
			m.parents[i].Keys = append(m.parents[i].Keys, p.Keys...)
			continue
		}
		i := slices.IndexFunc(m.parents, func(other *Parent) bool { return other.Last >= p.Last })
		if i < 0 {
			i = len(m.parents)
		}
		m.parents = slices.Insert(m.parents, i, p)
	}
}
