// Package peer identifies the process at the other end of a connection.
package peer

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"syscall"
)

// Peer is the process at the other end of a connection.
type Peer struct {
	PID, UID int // -1: unknown
	// Program is the name of its program when it connected; "" if that is
	// unknown. A process chooses its name, so it is only for logs and users.
	Program string
}

// Limits of Chain.
const (
	maxChain     = 5  // names
	maxAncestors = 32 // processes to look at: several may have the same name
)

// Chain returns the names of the processes that led to the request, outermost
// first, the peer last: git, ssh. It begins below the leader of the peer's login
// session, which is the user's shell or a service, and below any process of
// another user. It has at most five names, the nearest to the peer; processes in
// a row with the same name appear once. It is empty if the peer is unknown or
// gone.
//
// Each call reads the processes again. They choose their names, which may inform
// a user but must not decide anything.
func (p Peer) Chain() []string {
	var names []string
	child, ok := LookAt(p.PID)
	for range maxAncestors {
		if !ok {
			break
		}
		if len(names) == 0 || names[len(names)-1] != child.Name {
			names = append(names, child.Name)
		}
		if len(names) == maxChain {
			break
		}
		var next Process
		next, ok = LookAt(child.Parent)
		ok = ok && child.isFrom(next)
		child = next
	}
	slices.Reverse(names)
	return names
}

// Process is a running process.
type Process struct {
	Stat
	UID uint32
}

// isFrom reports whether parent started p and belongs to the chain. A parent in a
// different session has adopted an orphan; one that is younger has the recycled
// pid of a parent that is gone.
func (p Process) isFrom(parent Process) bool {
	return parent.PID > 1 && parent.Session == p.Session && parent.PID != parent.Session &&
		parent.UID == p.UID && parent.Start <= p.Start
}

// LookAt reads a process from /proc. An open directory stays that of its process
// even if the pid is recycled. Its owner is the user of the process; the files in
// it belong to root if the process may not be traced.
func LookAt(pid int) (p Process, ok bool) {
	if pid <= 0 {
		return p, false
	}
	dir, err := syscall.Open(fmt.Sprintf("/proc/%d", pid), syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return p, false
	}
	defer syscall.Close(dir)
	var owner syscall.Stat_t
	if syscall.Fstat(dir, &owner) != nil {
		return p, false
	}
	fd, err := syscall.Openat(dir, "stat", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return p, false
	}
	defer syscall.Close(fd)
	var line [1024]byte // the kernel fills some 300
	n, err := syscall.Read(fd, line[:])
	if err != nil {
		return p, false
	}
	p.UID = owner.Uid
	p.Stat, err = parse(line[:n])
	return p, err == nil
}

// Instance identifies a process, and no later one with the same pid.
type Instance struct {
	PID   int
	Start uint64 // in ticks since boot
}

// Instance returns that of the peer; nil if it is unknown.
func (p Peer) Instance() *Instance {
	if running, ok := LookAt(p.PID); ok {
		return &Instance{running.PID, running.Start}
	}
	return nil
}

// Stat is the content of /proc/PID/stat, proc_pid_stat(5).
type Stat struct {
	PID        int
	Name       string // of the program, at most 15 octets: whatever the process chose
	Parent     int    // its pid
	Group      int    // the process group
	Session    int    // the pid of its leader
	Terminal   uint32 // tty_nr, the controlling terminal's device number as the kernel packs it; 0: none
	Foreground int    // the process group in the foreground of that
	Start      uint64 // in ticks since boot: tells a process from a later one with its number
}

// The fields behind the name, the state of the process being the first.
const (
	fieldParent     = 1
	fieldGroup      = 2
	fieldSession    = 3
	fieldTerminal   = 4
	fieldForeground = 5
	fieldStart      = 19
)

// parse reads the line of a process. The name may have anything in it, blanks, newlines and
// parentheses too; behind it there are none.
func parse(line []byte) (Stat, error) {
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return Stat{}, errors.New("it has no name in parentheses")
	}
	fields := bytes.Fields(line[end+1:])
	if len(fields) <= fieldStart || len(fields[0]) != 1 {
		return Stat{}, fmt.Errorf("it has %d fields", len(fields)+2)
	}
	s := Stat{Name: string(line[open+1 : end])}
	var terminal int
	for _, number := range []struct {
		into *int
		text []byte
	}{
		{&s.PID, bytes.TrimSpace(line[:open])},
		{&s.Parent, fields[fieldParent]},
		{&s.Group, fields[fieldGroup]},
		{&s.Session, fields[fieldSession]},
		{&terminal, fields[fieldTerminal]},
		{&s.Foreground, fields[fieldForeground]},
	} {
		var err error
		if *number.into, err = strconv.Atoi(string(number.text)); err != nil {
			return Stat{}, err
		}
	}
	s.Terminal = uint32(int32(terminal))
	var err error
	if s.Start, err = strconv.ParseUint(string(fields[fieldStart]), 10, 64); err != nil {
		return Stat{}, err
	}
	return s, nil
}
