package prompt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
)

// process is what proc_pid_stat(5) says of a process and its terminal.
type process struct {
	pid        int
	group      int    // process group
	terminal   uint64 // device number of the controlling terminal; 0: it has none
	foreground int    // process group in the foreground of that
	started    string // when, in ticks since boot: tells it from a later process of that number
}

// readProcess reads /proc/PID/stat.
func readProcess(pid int) (process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	p, err := parseStat(stat)
	if err == nil && p.pid != pid {
		err = errors.New("it is of another process")
	}
	if err != nil {
		return process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return p, nil
}

// parseStat takes a line of proc_pid_stat(5) apart. The second field, the name
// of the program, may hold anything, so fields are counted from its end.
func parseStat(stat []byte) (p process, err error) {
	number, rest, ok := bytes.Cut(stat, []byte(" ("))
	end := bytes.LastIndexByte(rest, ')')
	if !ok || end < 0 {
		return p, errors.New("it has no name in brackets")
	}
	fields := strings.Fields(string(rest[end+1:])) // from the third on: the state
	if len(fields) < 20 {
		return p, fmt.Errorf("it has %d fields", len(fields)+2)
	}
	var terminal int
	for _, number := range []struct {
		into *int
		text string
	}{{&p.pid, string(number)}, {&p.group, fields[2]}, {&terminal, fields[4]}, {&p.foreground, fields[5]}} {
		if *number.into, err = strconv.Atoi(number.text); err != nil {
			return process{}, err
		}
	}
	p.terminal = deviceNumber(uint32(int32(terminal)))
	p.started = fields[19]
	return p, nil
}

// deviceNumber makes a device number of the kernel's 32 bits: minor in 31..20
// and 7..0, major in 19..8.
func deviceNumber(packed uint32) uint64 {
	return unix.Mkdev(packed>>8&0xfff, packed&0xff|packed>>12&0xfff00)
}

// inForeground says whether what is typed on its terminal is for this process.
func (p process) inForeground() bool {
	return p.terminal != 0 && p.group == p.foreground
}

// ownClient checks that a client is a process of this user on this machine, so
// that what /proc says of it can be relied upon as much as on the user.
func ownClient(q agent.Question) error {
	us := os.Geteuid()
	switch {
	case q.Peer.PID <= 0:
		return errors.New("the client is not known")
	case q.Peer.UID != us:
		return errors.New("the client is another user's")
	case q.Use.Forwarded:
		return errors.New("the request was forwarded from another machine")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", q.Peer.PID))
	if err != nil {
		return errors.New("the client has gone")
	}
	if !ownedBy(status, us) {
		return errors.New("the client is another user's")
	}
	return nil
}

// ownedBy says whether all the user ids in a proc_pid_status(5) are uid.
func ownedBy(status []byte, uid int) bool {
	for line := range bytes.Lines(status) {
		ids, found := bytes.CutPrefix(line, []byte("Uid:"))
		if !found {
			continue
		}
		fields := strings.Fields(string(ids))
		for _, id := range fields {
			if id != strconv.Itoa(uid) {
				return false
			}
		}
		return len(fields) == 4
	}
	return false
}
