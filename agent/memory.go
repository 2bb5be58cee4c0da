package agent

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
)

// errWiped is a signature that was asked for when the key had just been
// removed.
var errWiped = errors.New("the key was removed from the agent")

// madvDontDump is MADV_DONTDUMP of Linux, which package syscall does not name.
const madvDontDump = 16

// memory holds a secret outside of Go's heap, where no copies are made that
// nobody knows of, and where it can be overwritten and given back at a moment
// of our choice. It stays out of core dumps and, as far as RLIMIT_MEMLOCK goes,
// out of swap. Each secret has pages of its own: what goes wrong elsewhere, by
// a few bytes, does not reach it.
type memory struct {
	mu    sync.Mutex
	b     []byte // nil when it is gone
	users int
	wiped bool // it goes with its last user
}

// newMemory makes a memory of n bytes, and has fill write them.
func newMemory(n int, fill func(b []byte)) (*memory, error) {
	b, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("taking %d bytes of memory for a key: %w", n, err)
	}
	// Neither is worth refusing the key for: the lock has a small limit on
	// many machines, and kernels may be built without the advice.
	syscall.Mlock(b)
	syscall.Madvise(b, madvDontDump)
	fill(b)
	return &memory{b: b}, nil
}

// use calls fn with the secret, which stays until fn is done. fn must not keep
// it, nor parts of it.
func (m *memory) use(fn func(b []byte) error) error {
	b, err := m.enter()
	if err != nil {
		return err
	}
	defer m.leave()
	return fn(b)
}

func (m *memory) enter() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wiped {
		return nil, errWiped
	}
	m.users++
	return m.b, nil
}

func (m *memory) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.users--
	m.free()
}

// wipe overwrites the secret and gives its memory back: at once if nobody uses
// it, else when the last user is done. There are no new users from now on. It
// may be called again.
func (m *memory) wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wiped = true
	m.free()
}

func (m *memory) free() {
	if !m.wiped || m.users > 0 || m.b == nil {
		return
	}
	clear(m.b)
	// Only a slice that is no mapping could make this fail.
	syscall.Munmap(m.b)
	m.b = nil
}
