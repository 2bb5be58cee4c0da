package sshtest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// Regions returns the parts of the memory of a process.
func Regions(t testing.TB, pid int) (all []Region) {
	t.Helper()
	smaps := Must(os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid)))
	for line := range strings.Lines(string(smaps)) {
		words := strings.Fields(line)
		start, end, isRange := strings.Cut(words[0], "-")
		switch {
		case isRange:
			r := Region{Name: strings.Join(words[5:], " "), Readable: words[1][0] == 'r'}
			r.Start = uintptr(Must(strconv.ParseUint(start, 16, 64)))
			r.End = uintptr(Must(strconv.ParseUint(end, 16, 64)))
			all = append(all, r)
		case words[0] == "Rss:" || words[0] == "Swap:":
			all[len(all)-1].Present = all[len(all)-1].Present || words[1] != "0"
		case words[0] == "VmFlags:":
			all[len(all)-1].Flags = strings.Join(words[1:], " ")
		}
	}
	return all
}

// A Region is a part of a process's memory.
type Region struct {
	Start, End uintptr
	Name       string
	Present    bool // some of it is in use
	Readable   bool
	Flags      string // VmFlags in /proc/PID/smaps
}

// Has reports whether an address is in the region.
func (r Region) Has(a uintptr) bool { return r.Start <= a && a < r.End }
