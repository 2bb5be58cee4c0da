package peer

import (
	"fmt"
	"slices"
	"syscall"
)

// Limits of Chain.
const (
	maxChain     = 5  // names
	maxAncestors = 32 // processes that are looked at: several may have one name
)

// Chain is the names of the processes that led to the request, outermost
// first, the peer last: git, ssh. It begins below the leader of the peer's
// session, which is the shell that the user types to, or a service; and below
// a process of another user. It has at most five names, those nearest to the
// peer; several processes of one name in a row are named once. It is empty
// where the peer is not known or has gone.
//
// It is read anew at every call. Processes choose their names: good to tell a
// user who is asking, not to decide by.
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

// Process is one that runs.
type Process struct {
	Stat
	UID uint32
}

// isFrom says whether parent has started p and belongs to the chain. One that
// is in another session took over an orphan; one that is younger has the pid
// of a parent that has gone.
func (p Process) isFrom(parent Process) bool {
	return parent.PID > 1 && parent.Session == p.Session && parent.PID != parent.Session &&
		parent.UID == p.UID && parent.Start <= p.Start
}

// LookAt reads from /proc. The directory stays that of one process, whatever
// becomes of its pid; its owner is the process's user, which that of the files
// in it is not if it may not be traced.
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
	var line [1024]byte // of which the kernel fills some 300
	n, err := syscall.Read(fd, line[:])
	if err != nil {
		return p, false
	}
	p.UID = owner.Uid
	p.Stat, err = Parse(line[:n])
	return p, err == nil
}
