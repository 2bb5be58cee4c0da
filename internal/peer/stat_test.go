package peer

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestParse(t *testing.T) {
	const after = " S 1 7 300 34817 8 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3\n"
	for _, name := range []string{"ssh", "a b", "a) R 9 9", ") (", "\n", ""} {
		got, err := parse([]byte("42 (" + name + ")" + after))
		want := Stat{PID: 42, Name: name, Parent: 1, Group: 7, Session: 300, Terminal: 34817, Foreground: 8, Start: 987654}
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v", name, got, err)
		}
	}
	if got, err := parse([]byte("42 (x) S 1 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 5")); err != nil || got.Terminal != 0 || got.Foreground != -1 {
		t.Errorf("no terminal: got %+v, %v", got, err)
	}
	for _, line := range []string{"", ")(", "1 (a) S", "x (a)" + after, "1 (a) SS" + after[2:], "1 (a)" + strings.Replace(after, "987654", "-1", 1)} {
		if got, err := parse([]byte(line)); err == nil {
			t.Errorf("%q: got %+v", line, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, pid := range []int{1, os.Getpid()} {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
		s, err := parse(line)
		if err != nil || s.PID != pid || pid > 1 && (s.Parent != os.Getppid() || s.Group != syscall.Getpgrp()) {
			f.Errorf("%s is %+v, %v", line, s, err)
		}
	}
	f.Add([]byte("1 (a) b) S 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"))
	f.Add([]byte("1 (a\n) S 2 3"))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, line []byte) {
		s, err := parse(line)
		if err != nil && s != (Stat{}) {
			t.Errorf("%q: %+v with %v", line, s, err)
		}
		if err == nil && !strings.Contains(string(line), "("+s.Name+")") {
			t.Errorf("%q is named %q", line, s.Name)
		}
	})
}
