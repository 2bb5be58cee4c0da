package softkey

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// These tests search for private keys in all the memory of a process that has
// held them. It is the test binary, started again, and it receives the keys as
// an agent does. Only this process has the numbers to compare with.

// TestHolder is that process. Each command is one byte.
func TestHolder(t *testing.T) {
	t.Parallel()
	if os.Getenv(sshtest.HolderEnv) == "" {
		t.Skip("runs as a child of TestResidue")
	}
	var keys []*Addition
	for {
		var command [1]byte
		if _, err := os.Stdin.Read(command[:]); err != nil {
			return
		}
		switch command[0] {
		case 'a': // adds the key in the frame that follows
			request := sshtest.ReadFrame(t)
			a := added(t, request)
			clear(request)
			keys = append(keys, a)
			fmt.Println("held", address(a.Key.secret.b), len(a.Key.secret.b))
		case 's': // signs with all keys
			for _, a := range keys {
				signsWith(t, a.Key, a.Public)
			}
			fmt.Println("signed")
		case 'w': // wipes them
			for _, a := range keys {
				a.Key.Wipe()
			}
			fmt.Println("wiped")
		case 'g':
			runtime.GC()
			fmt.Println("collected")
		}
		if t.Failed() {
			return
		}
	}
}

// hold sends a key to the holder and returns the place of its PKCS #8.
func hold(h *sshtest.Holder, request []byte) sshtest.Region {
	words := h.Do("a"+string(wire.Frame(request)), "held")
	start := sshtest.Must(strconv.ParseUint(words[0], 10, 64))
	return sshtest.Region{Start: uintptr(start), End: uintptr(start) + uintptr(sshtest.Must(strconv.Atoi(words[1])))}
}

// TestResidue checks that nothing of wiped keys is left where they were held,
// and nothing at all in a build that erases temporaries. Before that it checks
// that the search finds what is there.
func TestResidue(t *testing.T) {
	t.Parallel()
	h := sshtest.StartHolder(t)
	w := new(sshtest.Wanted)
	var places []sshtest.Region
	var names []string
	for _, s := range sshtest.Signers() {
		for name, number := range sshtest.SecretsOf(s) {
			w.Want(name, number)
			names = append(names, name)
		}
		for name, number := range sshtest.DerivedFrom(s) {
			w.Want(name, number)
		}
		for _, cert := range []*ssh.Certificate{nil, sshtest.CertFor(s)} {
			places = append(places, hold(h, sshtest.Adding(s, cert)))
		}
	}
	h.Do("s", "signed")
	in, elsewhere := w.Search(t, h.PID, places)
	for _, name := range names {
		if in[name] == 0 {
			t.Errorf("%s is not found where it is held", name)
		}
	}
	t.Logf("left elsewhere by parsing and signing: %s", elsewhere)

	h.Do("w", "wiped")
	in, elsewhere = w.Search(t, h.PID, places)
	if len(in) > 0 {
		t.Errorf("left where it was held, after Wipe: %s", in)
	}
	// What the standard library caches for a key is freed one collection after
	// the key, and the collector may need several.
	for tries := 0; len(elsewhere) > 0 && (tries == 0 || eraseAll && tries < 10); tries++ {
		h.Do("g", "collected")
		h.Do("g", "collected")
		_, elsewhere = w.Search(t, h.PID, places)
	}
	switch {
	case len(elsewhere) == 0:
		t.Log("nothing is left")
	case eraseAll:
		t.Errorf("left after wiping and collecting: %s", elsewhere)
	default:
		t.Logf("left in a build that does not erase temporaries: %s", elsewhere)
	}
}
