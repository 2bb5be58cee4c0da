// Package procstat reads what Linux says of a process in /proc/PID/stat,
// proc_pid_stat(5).
package peer

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// Stat is what is known of a process.
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

// Parse reads the line. The name may have anything in it, blanks, newlines and
// parentheses too; behind it there are none.
func Parse(line []byte) (Stat, error) {
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
