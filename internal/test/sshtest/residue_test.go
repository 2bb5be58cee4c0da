package sshtest

import (
	"crypto/rand"
	"slices"
	"testing"
)

// TestResidueIsFound checks that the search finds a part of a number in both byte
// orders, and nothing else.
func TestResidueIsFound(t *testing.T) {
	t.Parallel()
	secret := make([]byte, 40)
	rand.Read(secret)
	w := new(Wanted)
	w.Want("number", secret)
	found := Residue{}
	count := func(_ int, name string) { found[name]++ }
	b := make([]byte, 1000)
	w.Find(b, count)
	copy(b[3:], secret[8:30])
	w.Find(b, count)
	slices.Reverse(b)
	w.Find(b, count)
	if found["number"] != 1 || found["number in limbs"] != 1 || len(found) != 2 {
		t.Error(found)
	}
}
