package keydir

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	unix.Umask(0o022) // one test lets user nobody read a directory
	goleak.VerifyTestMain(m)
}

// A clock stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A bench is an index on a directory, with its reports.
type bench struct {
	*Index
	t     testing.TB
	dir   string
	clock *clock

	mu       sync.Mutex
	reported []Problem
}

func (b *bench) report(p Problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reported = append(b.reported, p)
}

// take returns the reports since the last call, as "name: error".
func (b *bench) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []string
	for _, p := range b.reported {
		list = append(list, fmt.Sprintf("%s: %v", filepath.Base(p.Path), p.Err))
	}
	b.reported = nil
	return list
}

func start(t testing.TB, dir string, change ...func(*system)) *bench {
	t.Helper()
	c := &clock{now: time.Now()}
	sys := host()
	sys.now = c.Now
	for _, f := range change {
		f(&sys)
	}
	b := &bench{t: t, dir: dir, clock: c}
	x, err := open([]string{dir}, b.report, sys)
	if err != nil {
		t.Fatal(err)
	}
	b.Index = x
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) write(name string, data []byte) {
	b.t.Helper()
	write(b.t, b.path(name), data)
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want checks the names of the key files that are listed.
func (b *bench) want(names ...string) {
	b.t.Helper()
	var got []string
	for _, e := range b.Entries() {
		got = append(got, filepath.Base(e.Path))
	}
	if !slices.Equal(got, names) {
		b.t.Fatalf("listed are %q, want %q", got, names)
	}
}

// wantReports checks the reports since the last call: each must contain its
// piece of text.
func (b *bench) wantReports(pieces ...string) {
	b.t.Helper()
	b.Entries()
	got := b.take()
	ok := len(got) == len(pieces)
	for i := range min(len(got), len(pieces)) {
		ok = ok && strings.Contains(got[i], pieces[i])
	}
	if !ok {
		b.t.Fatalf("reported were\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(pieces, "\n\t"))
	}
}

func (b *bench) only() *Entry {
	b.t.Helper()
	list := b.Entries()
	if len(list) != 1 {
		b.t.Fatalf("%d keys are listed, want 1", len(list))
	}
	return list[0]
}
