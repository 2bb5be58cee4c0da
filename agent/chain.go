package agent

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
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
	child, ok := lookAt(p.PID)
	for range maxAncestors {
		if !ok {
			break
		}
		if len(names) == 0 || names[len(names)-1] != child.name {
			names = append(names, child.name)
		}
		if len(names) == maxChain {
			break
		}
		var next process
		next, ok = lookAt(child.parent)
		ok = ok && child.isFrom(next)
		child = next
	}
	slices.Reverse(names)
	return names
}

// process is what a Chain needs of one.
type process struct {
	pid     int
	name    string
	parent  int
	session int    // pid of its leader
	start   uint64 // in ticks since the machine was started
	uid     uint32
}

// isFrom says whether parent has started p and belongs to the chain. One that
// is in another session took over an orphan; one that is younger has the pid
// of a parent that has gone.
func (p process) isFrom(parent process) bool {
	return parent.pid > 1 && parent.session == p.session && parent.pid != parent.session &&
		parent.uid == p.uid && parent.start <= p.start
}

// lookAt reads from /proc. The directory stays that of one process, whatever
// becomes of its pid; its owner is the process's user, which that of the files
// in it is not if it may not be traced.
func lookAt(pid int) (p process, ok bool) {
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
	p, ok = parseStat(line[:n])
	p.uid = owner.Uid
	return p, ok
}

// parseStat reads a line of /proc/PID/stat, proc_pid_stat(5). The name may
// have anything in it, blanks, newlines and parentheses too; behind it there
// are none.
func parseStat(line []byte) (p process, ok bool) {
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return p, false
	}
	p.name = string(line[open+1 : end])
	const state, parent, session, start = 0, 1, 3, 19 // of the fields behind the name
	fields := bytes.Fields(line[end+1:])
	if len(fields) <= start || len(fields[state]) != 1 {
		return p, false
	}
	var errs [4]error
	p.pid, errs[0] = strconv.Atoi(string(bytes.TrimSpace(line[:open])))
	p.parent, errs[1] = strconv.Atoi(string(fields[parent]))
	p.session, errs[2] = strconv.Atoi(string(fields[session]))
	p.start, errs[3] = strconv.ParseUint(string(fields[start]), 10, 64)
	return p, errs == [4]error{}
}
