package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// memoryPIN is the length of the longest PIN that is not hashed before use.
const memoryPIN = 32

// inMemory searches all memory of a process for any eight octets of a PIN, and returns
// the places. It skips the test unless root runs it.
func inMemory(t *testing.T, pid int, pin string) (found []string) {
	t.Helper()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if errors.Is(err, fs.ErrPermission) {
		t.Skip("only root can read the memory of an agent")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for range 10 {
		if found, err = searchMemory(t, pid, mem, pin); !errors.Is(err, unix.EIO) {
			break // on EIO the process has freed memory during the search: try again
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// searchMemory searches once.
func searchMemory(t *testing.T, pid int, mem io.ReaderAt, pin string) (found []string, err error) {
	for _, r := range memoryInUse(t, pid) {
		b := make([]byte, r.end-r.start)
		n, err := mem.ReadAt(b, int64(r.start))
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("reading %x-%x %s: %w", r.start, r.end, r.name, err)
		}
		const piece = 8
		for at := 0; at+piece <= len(pin); at += piece {
			for offset := range occurrences(b[:n], pin[at:at+piece]) {
				around := b[max(0, offset-16):min(n, offset+40)]
				found = append(found, fmt.Sprintf("octet %d on at %x in %q, in %q", at, r.start+uint64(offset), r.name, around))
			}
		}
	}
	return found, nil
}

// memoryRange is a range of a process's memory.
type memoryRange struct {
	start, end uint64
	name       string
}

// memoryInUse returns the readable pages of a process that exist, as ranges. The race
// detector reserves terabytes of other pages.
func memoryInUse(t *testing.T, pid int) (all []memoryRange) {
	t.Helper()
	pages := must(os.Open(fmt.Sprintf("/proc/%d/pagemap", pid)))
	defer pages.Close()
	size := uint64(os.Getpagesize())
	for line := range strings.Lines(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))))) {
		words := strings.Fields(line)
		from, to, _ := strings.Cut(words[0], "-")
		start, end := must(strconv.ParseUint(from, 16, 64)), must(strconv.ParseUint(to, 16, 64))
		name := strings.Join(words[5:], " ")
		if words[1][0] != 'r' || strings.HasPrefix(name, "[v") || end-start > 1<<35 {
			continue
		}
		entries := make([]byte, (end-start)/size*8)
		if _, err := pages.ReadAt(entries, int64(start/size*8)); err != nil {
			t.Fatal(err)
		}
		for at := start; at < end; at += size {
			entry := binary.LittleEndian.Uint64(entries[(at-start)/size*8:])
			switch last := len(all) - 1; {
			case entry>>62 == 0: // neither present nor swapped out
			case last >= 0 && all[last].end == at && all[last].name == name:
				all[last].end += size
			default:
				all = append(all, memoryRange{at, at + size, name})
			}
		}
	}
	return all
}

// occurrences yields the offsets of text in b.
func occurrences(b []byte, text string) iter.Seq[int] {
	return func(yield func(int) bool) {
		for at := 0; ; at++ {
			i := bytes.Index(b[at:], []byte(text))
			if i < 0 || !yield(at+i) {
				return
			}
			at += i
		}
	}
}

// TestPromptMemory checks that after a signature the agent's memory contains no part of
// a PIN that is not remembered, neither the right one nor a wrong one.
func TestPromptMemory(t *testing.T) {
	t.Parallel()
	for _, n := range []int{memoryPIN, 100} {
		t.Run(fmt.Sprintf("%d octets", n), func(t *testing.T) {
			s := newScene(t, patient, randomPIN(n))
			a := newAskpass(t)
			known := randomPIN(n)
			d := s.serve(append(a.env(), "KNOWN="+known))
			if len(inMemory(t, d.cmd.Process.Pid, known)) == 0 {
				t.Fatal("the search does not find a text that is in memory")
			}
			wrong := s.wrong(n)
			if _, err := d.asked(a, s.public, "say "+wrong, "say "+s.pin); err != nil {
				t.Fatal(err, d.logged())
			}
			digest := sha256.Sum256([]byte(s.pin)) // replaces a long PIN, so it is as secret
			for what, pin := range map[string]string{"the PIN": s.pin, "a wrong one": wrong, "its digest": string(digest[:])} {
				if found := inMemory(t, d.cmd.Process.Pid, pin); len(found) > 0 {
					t.Errorf("%s is in memory:\n%s", what, strings.Join(slices.Compact(found), "\n"))
				}
			}
		})
	}
}
