package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SIGUSR1 makes the agent forget the keys that were added. Whoever has sent it
// and then asks must not find them any more, so the signal has to take its
// place among the requests. os/signal tells of a signal some time after it was
// sent. A signalfd that is read before each request has no such gap, but works
// only if the signal is blocked in every thread, which a Go program can have
// only from the start, as something that it has inherited.

// startedBlocked is in the environment of the program that blockForget starts.
const startedBlocked = "_TPM_AGENT_SIGUSR1"

// noPreemption keeps Go's runtime from interrupting goroutines with signals. The
// registers of who is interrupted are written to memory that nobody overwrites,
// and 16 octets of a PIN fit into one. Go knows no other way to set it but the
// environment, and at the start.
const noPreemption = "asyncpreemptoff=1"

// blockForget returns true if SIGUSR1 is blocked in all threads. If it is not,
// the program is started again in its own place, with its process id and its
// descriptors, and this does not return; where that is not possible, it
// returns false, and os/signal has to do.
func blockForget(sys system) bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.Sigset_t
	if unix.PthreadSigmask(unix.SIG_BLOCK, forgetSignal(), &before) != nil {
		return false
	}
	if blocksForget(&before) {
		return true
	}
	program, err := os.Executable()
	if err == nil && sys.getenv(startedBlocked) == "" {
		_ = unix.Exec(program, os.Args, sys.restarted())
	}
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	return false
}

// restarted is the environment of that program.
func (s system) restarted() []string {
	environ := slices.DeleteFunc(slices.Clone(s.environ), func(entry string) bool { return strings.HasPrefix(entry, "GODEBUG=") })
	setting := noPreemption
	if own := s.getenv("GODEBUG"); own != "" {
		setting = own + "," + setting
	}
	return append(environ, startedBlocked+"=1", "GODEBUG="+setting)
}

// unrestarted makes GODEBUG in environ, for a child, what it was before.
func unrestarted(environ []string) []string {
	for i, entry := range environ {
		if own, ok := strings.CutSuffix(entry, noPreemption); ok && strings.HasPrefix(entry, "GODEBUG=") {
			environ[i] = strings.TrimSuffix(own, ",")
		}
	}
	return slices.DeleteFunc(environ, func(entry string) bool { return entry == "GODEBUG=" })
}

// forgetSignal is the set of SIGUSR1 alone. Its words are of 32 or of 64 bits.
func forgetSignal() *unix.Sigset_t {
	var set unix.Sigset_t
	word, bit := forgetBit(&set)
	set.Val[word] |= 1 << bit
	return &set
}

func blocksForget(set *unix.Sigset_t) bool {
	word, bit := forgetBit(set)
	return set.Val[word]&(1<<bit) != 0
}

func forgetBit(set *unix.Sigset_t) (word, bit int) {
	size := 1024 / len(set.Val)
	n := int(unix.SIGUSR1) - 1
	return n / size, n % size
}

// withSignals calls start, which starts a process, with SIGUSR1 as it is in
// other programs: a process inherits what its parent blocks.
func withSignals(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_UNBLOCK, forgetSignal(), &before); err != nil {
		return fmt.Errorf("unblocking SIGUSR1: %w", err)
	}
	return errors.Join(start(), unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil))
}

// forgetting looks for SIGUSR1 and does what it asks for.
type forgetting struct {
	file   *os.File // a signalfd; nil: the signal comes another way
	raw    syscall.RawConn
	forget func()

	mu sync.Mutex // held from when a signal is taken until it is done
}

func newForgetting(blocked bool) (*forgetting, error) {
	f := new(forgetting)
	if !blocked {
		return f, nil
	}
	fd, err := unix.Signalfd(-1, forgetSignal(), unix.SFD_NONBLOCK|unix.SFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("waiting for SIGUSR1: %w", err)
	}
	f.file = os.NewFile(uintptr(fd), "signalfd")
	if f.raw, err = f.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, f.file.Close())
	}
	return f, nil
}

// start calls forget for each signal, when it comes, until close; and for one
// that has come already.
func (f *forgetting) start(forget func()) {
	f.forget = forget
	if f.file == nil {
		return
	}
	go func() {
		// The error is that of close.
		_ = f.raw.Read(func(fd uintptr) bool { f.take(int(fd)); return false })
	}()
}

// check does what the signals that have been sent before this moment ask for.
// It is called before each request.
func (f *forgetting) check() {
	if f.file == nil {
		return
	}
	// It fails when close was called, and the agent ends.
	_ = f.raw.Control(func(fd uintptr) { f.take(int(fd)) })
}

func (f *forgetting) close() {
	if f.file != nil {
		f.file.Close()
	}
}

func (f *forgetting) take(fd int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var info [unsafe.Sizeof(unix.SignalfdSiginfo{})]byte
	for {
		switch _, err := unix.Read(fd, info[:]); err {
		case nil:
			f.forget()
		case unix.EINTR:
		default:
			return
		}
	}
}
