package softkey

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
)

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// TestSecretMapping checks that the mapping is not dumped, and that it is locked.
// It is not parallel: all keys of a process share the limit for locked memory.
func TestSecretMapping(t *testing.T) {
	s := sshtest.Must(NewSecret([]byte("secret")))
	defer s.Wipe()
	var flags string
	for _, r := range sshtest.Regions(t, os.Getpid()) {
		if r.Has(address(s.b)) {
			flags = r.Flags
		}
	}
	for _, flag := range []string{" dd ", " lo "} {
		if !strings.Contains(" "+flags+" ", flag) {
			t.Errorf("flags of the mapping: %q, without %s", flags, flag)
		}
	}
}

func TestSecretWipe(t *testing.T) {
	t.Parallel()
	s := sshtest.Must(NewSecret([]byte("secret")))
	err := s.Use(func(b []byte) error {
		s.Wipe()
		s.Wipe()
		if string(b) != "secret" {
			t.Errorf("%q while it is used", b)
		}
		// A second use is refused and does not end the first.
		if err := s.Use(func([]byte) error { return nil }); !errors.Is(err, ErrWiped) {
			t.Errorf("use after wipe: %v", err)
		}
		if string(b) != "secret" {
			t.Errorf("%q while it is used", b)
		}
		return os.ErrClosed
	})
	if !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if s.b != nil {
		t.Error("still mapped after its last use")
	}
	s.Wipe()
}

// TestSecretOfDroppedKey checks that a key that was dropped without Wipe is
// wiped by the garbage collector.
func TestSecretOfDroppedKey(t *testing.T) {
	t.Parallel()
	a, err := ParseAddition(sshtest.Adding(sshtest.P256(), nil))
	if err != nil {
		t.Fatal(err)
	}
	s := a.Key.secret
	a = nil
	sshtest.Soon(t, "the key is wiped", func() bool {
		runtime.GC()
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.wiped && s.b == nil
	})
}
