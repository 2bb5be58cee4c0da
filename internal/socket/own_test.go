package socket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// killed starts a child that listens in dir, kills it, and returns the socket
// that it leaves.
func killed(t *testing.T, how, dir string) string {
	t.Helper()
	c := startChild(t, self(t), how, dir)
	path := c.line()
	must(t, c.cmd.Process.Kill())
	c.cmd.Wait()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the killed process left no socket: %v", err)
	}
	return path
}

func TestListenOwn(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	l, err := ListenOwn(dir + "/made")
	must(t, err)
	want := fmt.Sprintf("%s/made/agent.%d.sock", dir, os.Getpid())
	if got := l.Addr().String(); got != want {
		t.Errorf("listens on %s, want %s", got, want)
	}
	must(t, answers(want))
	if fi, err := os.Stat(want); err != nil || fi.Mode().String() != "Srw-------" {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	// A process with the same number in a different namespace would get this.
	inUse := (*InUseError)(nil)
	if _, err := ListenOwn(dir + "/made"); !errors.As(err, &inUse) || inUse.PID != os.Getpid() {
		t.Errorf("a second listener gives %v", err)
	}
	must(t, l.Close())
	if left := files(t, dir+"/made"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestCleanStale(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	dead := killed(t, "own", dir)
	living := startChild(t, self(t), "own", dir)
	alive := living.line()
	removed, err := CleanStale(dir)
	if err != nil || !slices.Equal(removed, []string{dead}) {
		t.Errorf("CleanStale = %v, %v, want %s", removed, err, dead)
	}
	must(t, answers(alive))
	if got := files(t, dir); got != filepath.Base(alive) {
		t.Errorf("the directory contains %q", got)
	}
	living.end()
	if removed, err := CleanStale(dir + "/none"); err != nil || removed != nil {
		t.Errorf("without a directory: %v, %v", removed, err)
	}
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	if _, err := CleanStale(dir + "/file"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("in a file: %v", err)
	}
}

// TestCleanStaleLeaves checks that only stale sockets of ours are removed.
func TestCleanStaleLeaves(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	for _, name := range []string{
		"agent.sock", "agent.0.sock", "agent.012.sock", "agent.-1.sock", "agent.1x.sock", "agent.1.sock2",
		"xagent.1.sock", "agent..sock", "agent.1\n.sock", "Agent.1.sock",
	} {
		staleSocket(t, dir+"/"+name)
	}
	must(t, os.WriteFile(dir+"/agent.2.sock", []byte("precious"), 0o600))
	must(t, os.Mkdir(dir+"/agent.3.sock", 0o700))
	must(t, unix.Mkfifo(dir+"/agent.4.sock", 0o600))
	must(t, os.Symlink("agent.sock", dir+"/agent.5.sock"))
	must(t, os.Symlink("nowhere", dir+"/agent.6.sock"))
	stream, err := net.Listen("unix", dir+"/agent.7.sock") // uses no lock
	must(t, err)
	defer stream.Close()
	datagram, err := net.ListenPacket("unixgram", dir+"/agent.8.sock")
	must(t, err)
	defer datagram.Close()
	if os.Geteuid() == 0 {
		staleSocket(t, dir+"/agent.10.sock")
		must(t, os.Chown(dir+"/agent.10.sock", 65534, -1))
	}
	before := files(t, dir)
	removed, err := CleanStale(dir)
	if err != nil || removed != nil {
		t.Errorf("CleanStale = %v, %v", removed, err)
	}
	if after := files(t, dir); after != before {
		t.Errorf("before: %s\nafter:  %s", before, after)
	}
}

// TestCleanStaleRace cleans while this process keeps starting in the place of a
// dead one with the same number.
func TestCleanStaleRace(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := fmt.Sprintf("%s/agent.%d.sock", dir, os.Getpid())
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := CleanStale(dir); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for round := range 300 {
		if round%2 == 0 {
			lock, err := lockDir(dir) // so that no cleaner sees the live one end
			must(t, err)
			staleSocket(t, path)
			must(t, lock.Close())
		}
		l, err := ListenOwn(dir)
		must(t, err)
		for range 3 {
			must(t, answers(path))
		}
		must(t, l.Close())
	}
	close(stop)
	wg.Wait()
	if _, err := CleanStale(dir); err != nil || files(t, dir) != "" {
		t.Errorf("left behind: %s, %v", files(t, dir), err)
	}
}

func TestListenTemp(t *testing.T) {
	t.Parallel()
	temp := shortDir(t)
	l, err := ListenTemp(temp)
	must(t, err)
	path := l.Addr().String()
	must(t, answers(path))
	if fi, err := os.Stat(filepath.Dir(path)); err != nil || fi.Mode().String() != "drwx------" {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	must(t, l.Close())
	if left := files(t, temp); left != "" {
		t.Errorf("left behind: %s", left)
	}

	l, err = ListenTemp(temp)
	must(t, err)
	precious := filepath.Join(filepath.Dir(l.Addr().String()), "precious")
	must(t, os.WriteFile(precious, nil, 0o600))
	must(t, l.Close())
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}

	long := temp + "/" + strings.Repeat("x", 100)
	must(t, os.Mkdir(long, 0o700))
	if _, err := ListenTemp(long); err == nil || !strings.Contains(err.Error(), "bytes long") {
		t.Errorf("with a long name: %v", err)
	}
	if left := files(t, long); left != "" {
		t.Errorf("left behind: %s", left)
	}
	if _, err := ListenTemp(temp + "/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
}

func TestCleanStaleTemp(t *testing.T) {
	t.Parallel()
	temp := shortDir(t)
	dead := killed(t, "temp", temp)
	living := startChild(t, self(t), "temp", temp)
	alive := living.line()
	kept := killed(t, "temp", temp)
	must(t, os.WriteFile(filepath.Dir(kept)+"/precious", nil, 0o600))
	must(t, os.Mkdir(temp+"/"+tempPrefix+"empty", 0o700))
	open := temp + "/" + tempPrefix + "open"
	must(t, os.Mkdir(open, 0o755))
	staleSocket(t, open+"/agent.1.sock")
	must(t, os.Symlink("tpm-agent.open", temp+"/"+tempPrefix+"link"))
	other := temp + "/other"
	must(t, os.Mkdir(other, 0o700))
	staleSocket(t, other+"/agent.1.sock")

	removed, err := CleanStale(temp)
	slices.Sort(removed)
	want := []string{dead, kept}
	slices.Sort(want)
	if err != nil || !slices.Equal(removed, want) {
		t.Errorf("CleanStale = %v, %v, want %v", removed, err, want)
	}
	must(t, answers(alive))
	for path, there := range map[string]bool{
		filepath.Dir(dead): false, kept: false, filepath.Dir(kept) + "/precious": true, temp + "/" + tempPrefix + "empty": true,
		open + "/agent.1.sock": true, other + "/agent.1.sock": true,
	} {
		if _, err := os.Lstat(path); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}
	living.end()
}

func TestCleanStaleLeaks(t *testing.T) {
	dir := shortDir(t)
	must(t, os.WriteFile(dir+"/agent.5.sock", nil, 0o600))
	once := func() {
		staleSocket(t, dir+"/agent.1.sock")
		l := listen(t, dir+"/agent.2.sock")
		if removed, err := CleanStale(dir); len(removed) != 1 || err != nil {
			t.Errorf("CleanStale = %v, %v", removed, err)
		}
		must(t, l.Close())
	}
	once()
	before := descriptors(t)
	for range 20 {
		once()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, want %d", after, before)
	}
}
