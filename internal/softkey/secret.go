package softkey

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
)

// ErrWiped is returned by a use of a secret that has just been wiped.
var ErrWiped = errors.New("the key was removed from the agent")

// madvDontDump is MADV_DONTDUMP of Linux, which package syscall lacks.
const madvDontDump = 16

// A Secret is kept outside of Go's heap, where the runtime does not copy it and
// where it can be overwritten and unmapped at once. It stays out of core dumps
// and, as far as RLIMIT_MEMLOCK allows, out of swap. Each Secret has its own
// pages, so that an overrun elsewhere does not reach it.
type Secret struct {
	mu    sync.Mutex
	b     []byte // nil when unmapped
	users int
	wiped bool // the last user unmaps it
}

// NewSecret copies secret, which the caller should overwrite.
func NewSecret(secret []byte) (*Secret, error) {
	b, err := syscall.Mmap(-1, 0, len(secret), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes for a secret: %w", len(secret), err)
	}
	// Neither failure is a reason to refuse the key: many machines have a small
	// limit for locked memory, and a kernel may be built without the advice.
	syscall.Mlock(b)
	syscall.Madvise(b, madvDontDump)
	copy(b, secret)
	return &Secret{b: b}, nil
}

// Use calls fn with the secret, which stays mapped until fn returns. fn must
// keep no part of b.
func (s *Secret) Use(fn func(b []byte) error) error {
	s.mu.Lock()
	if s.wiped {
		s.mu.Unlock()
		return ErrWiped
	}
	s.users++
	s.mu.Unlock()
	defer s.leave()
	return fn(s.b) // which nothing changes while there are users
}

func (s *Secret) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
	s.free()
}

// Wipe refuses new uses, and overwrites and unmaps the secret: at once if it is
// not in use, otherwise when the last use ends. Wipe may be called again.
func (s *Secret) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wiped = true
	s.free()
}

func (s *Secret) free() {
	if !s.wiped || s.users > 0 || s.b == nil {
		return
	}
	clear(s.b)
	syscall.Munmap(s.b) // fails only for a slice that was never mapped
	s.b = nil
}
