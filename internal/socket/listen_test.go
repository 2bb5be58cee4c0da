package socket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestModes(t *testing.T) {
	t.Parallel()
	for _, umask := range []string{"000", "022", "077", "777"} {
		t.Run(umask, func(t *testing.T) {
			dir := shortDir(t)
			path := dir + "/made/deeper/agent.sock"
			c := startChild(t, self(t), "listen", umask, path)
			if got := c.line(); got != "Srw-------" {
				t.Errorf("the socket is %s", got)
			}
			for p, want := range map[string]string{
				dir + "/made": "drwx------", dir + "/made/deeper": "drwx------",
			} {
				fi, err := os.Stat(p)
				must(t, err)
				if fi.Mode().String() != want {
					t.Errorf("%s is %v, want %s", p, fi.Mode(), want)
				}
			}
			c.end()
			if left := files(t, filepath.Dir(path)); left != "" {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

// TestNoWindow checks that the mode is right from the moment the file exists.
func TestNoWindow(t *testing.T) {
	t.Parallel()
	path := shortDir(t) + "/s"
	c := startChild(t, self(t), "bind", "000", path)
	if got := c.line(); got != "Srw-------" {
		t.Errorf("bound under umask 0, the socket is %s", got)
	}
	c.end()
}

func TestPaths(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	fill := func(n int) string { return dir + "/" + strings.Repeat("x", n-len(dir)-1) }
	for path, want := range map[string]string{
		"":              "empty",
		"@abstract":     "not a path",
		dir + "/a\x00b": "invalid argument",
		dir + "/":       "stays",
		fill(108):       "108 bytes long, a socket's path can have 107",
	} {
		if l, err := Listen(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Listen(%q) = %v, %v, want an error with %q", path, l, err, want)
		}
	}
	l := listen(t, fill(107))
	must(t, answers(fill(107)))
	must(t, l.Close())
	if left := files(t, dir); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestRelativePath(t *testing.T) {
	dir := shortDir(t)
	t.Chdir(dir)
	l := listen(t, "agent.sock")
	t.Chdir("/")
	must(t, l.Close())
	if left := files(t, dir); left != "" {
		t.Errorf("left behind after a chdir: %s", left)
	}
}

func TestDirectories(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	for _, test := range []struct {
		name string
		mode os.FileMode
		uid  int
		want string // "" means success
	}{
		{"private", 0o700, -1, ""},
		{"readable", 0o755, -1, ""},
		{"group", 0o770, -1, "chmod go-w"},
		{"world", 0o777, -1, "chmod go-w"},
		{"sticky", 0o777 | os.ModeSticky, -1, ""},
		{"theirs", 0o755, 65534, "belongs to uid 65534"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := base + "/" + test.name
			must(t, os.Mkdir(dir, 0o700))
			must(t, os.Chmod(dir, test.mode))
			if test.uid >= 0 {
				if os.Geteuid() != 0 {
					t.Skip("only root can give a directory away")
				}
				must(t, os.Chown(dir, test.uid, -1))
			}
			l, err := Listen(dir + "/s")
			if err == nil {
				must(t, l.Close())
			}
			if got := fmt.Sprint(err); (test.want == "") != (err == nil) || !strings.Contains(got, test.want) {
				t.Errorf("Listen gives %q, want %q", got, test.want)
			}
			if left := files(t, dir); left != "" {
				t.Errorf("left behind: %s", left)
			}
		})
	}
	must(t, os.WriteFile(base+"/file", nil, 0o600))
	if _, err := Listen(base + "/file/s"); !errors.Is(err, unix.ENOTDIR) && !strings.Contains(fmt.Sprint(err), "not a directory") {
		t.Errorf("Listen below a file gives %v", err)
	}
	must(t, os.Symlink("nowhere", base+"/dangling"))
	if _, err := Listen(base + "/dangling/s"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Listen below a dangling link gives %v", err)
	}
}

func TestLive(t *testing.T) {
	t.Parallel()
	path := shortDir(t) + "/s"
	c := startChild(t, self(t), "listen", "077", path)
	c.line()
	l, err := Listen(path)
	var inUse *InUseError
	if !errors.As(err, &inUse) || inUse.PID != c.cmd.Process.Pid || inUse.Path != path {
		t.Fatalf("Listen on the socket of process %d = %v, %v", c.cmd.Process.Pid, l, err)
	}
	if want := fmt.Sprintf("in use by process %d", inUse.PID); !strings.Contains(err.Error(), want) {
		t.Errorf("the error %q does not say %q", err, want)
	}
	if err := answers(path); err != nil {
		t.Errorf("the first listener does not answer: %v", err)
	}
	c.end()
	must(t, listen(t, path).Close())
}

// TestLiveOfAnother listens with a program that does not use our lock.
func TestLiveOfAnother(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := dir + "/s"
	stranger, err := net.Listen("unix", path)
	must(t, err)
	defer stranger.Close()
	var inUse *InUseError
	if _, err := Listen(path); !errors.As(err, &inUse) || inUse.PID != os.Getpid() {
		t.Errorf("Listen gives %v", err)
	}
	must(t, os.Symlink("s", dir+"/link"))
	if _, err := Listen(dir + "/link"); err == nil || !strings.Contains(err.Error(), "stays") {
		t.Errorf("Listen on a link to it gives %v", err)
	}
	datagram, err := net.ListenPacket("unixgram", dir+"/d")
	must(t, err)
	defer datagram.Close()
	if _, err := Listen(dir + "/d"); !errors.As(err, &inUse) || inUse.PID != 0 {
		t.Errorf("Listen on a datagram socket gives %v", err)
	}
	if got := files(t, dir); got != "d link s" {
		t.Errorf("what is there is %q", got)
	}
}

// TestFullQueue checks that a listener which accepts no connection counts as live.
func TestFullQueue(t *testing.T) {
	t.Parallel()
	path := shortDir(t) + "/s"
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	must(t, unix.Listen(fd, 0))
	for {
		c, err := net.Dial("unix", path)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		must(t, err)
		defer c.Close()
	}
	var inUse *InUseError
	if _, err := Listen(path); !errors.As(err, &inUse) {
		t.Errorf("Listen gives %v", err)
	}
}

func TestStale(t *testing.T) {
	t.Parallel()
	path := shortDir(t) + "/s"
	staleSocket(t, path)
	l := listen(t, path)
	must(t, answers(path))
	must(t, l.Close())
}

func TestKilled(t *testing.T) {
	t.Parallel()
	path := shortDir(t) + "/s"
	c := startChild(t, self(t), "listen", "077", path)
	c.line()
	must(t, c.cmd.Process.Kill())
	c.cmd.Wait()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the killed process left no socket: %v", err)
	}
	l := listen(t, path)
	must(t, l.Close())
	if left := files(t, filepath.Dir(path)); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// TestNotASocket checks that Listen never replaces a file of a different kind.
func TestNotASocket(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := dir + "/s"
	for name, put := range map[string]func() error{
		"file":      func() error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"directory": func() error { return os.Mkdir(path, 0o700) },
		"fifo":      func() error { return unix.Mkfifo(path, 0o600) },
		"dangling":  func() error { return os.Symlink("nowhere", path) },
		"loop":      func() error { return os.Symlink("s", path) },
		"link to a file": func() error {
			return errors.Join(os.WriteFile(dir+"/target", nil, 0o600), os.Symlink("target", path))
		},
		"link to a stale socket": func() error {
			staleSocket(t, dir+"/target")
			return os.Symlink("target", path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, put())
			before, err := os.Lstat(path)
			must(t, err)
			if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "stays") {
				t.Errorf("Listen gives %v", err)
			}
			after, err := os.Lstat(path)
			must(t, err)
			if !os.SameFile(before, after) {
				t.Error("it was replaced")
			}
			must(t, os.Remove(path))
			os.Remove(dir + "/target")
			if left := files(t, dir); left != "" {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

// TestRace starts many listeners at once, with and without a stale socket, and
// closes the winner.
func TestRace(t *testing.T) {
	t.Parallel()
	path := shortDir(t) + "/s"
	for round := range 50 {
		if round%2 == 0 {
			staleSocket(t, path)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		var winners []*Listener
		begin := make(chan struct{})
		for range 20 {
			wg.Go(func() {
				<-begin
				l, err := Listen(path)
				var inUse *InUseError
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					winners = append(winners, l)
				case !errors.As(err, &inUse):
					t.Errorf("a loser got %v", err)
				case inUse.PID != os.Getpid() && inUse.PID != 0:
					t.Errorf("a loser was told of process %d", inUse.PID)
				}
			})
		}
		close(begin)
		wg.Wait()
		if len(winners) != 1 {
			t.Fatalf("%d of 20 starts won", len(winners))
		}
		must(t, answers(path))
		must(t, winners[0].Close())
	}
}

// TestTakingTurns checks that listeners which come and go never remove each
// other's sockets.
func TestTakingTurns(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := dir + "/s"
	var wg sync.WaitGroup
	var holder sync.Mutex
	for range 8 {
		wg.Go(func() {
			for range 100 {
				l, err := Listen(path)
				if err != nil {
					continue
				}
				if !holder.TryLock() {
					t.Error("two listeners hold the socket")
					continue
				}
				if err := answers(path); err != nil {
					t.Errorf("the holder's socket does not answer: %v", err)
				}
				holder.Unlock()
				must(t, l.Close())
			}
		})
	}
	wg.Wait()
	if left := files(t, dir); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestReplacedStays(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := dir + "/s"
	l := listen(t, path)
	must(t, os.Remove(path))
	other, err := net.Listen("unix", path)
	must(t, err)
	defer other.Close()
	must(t, l.Close())
	must(t, l.Close())
	if err := answers(path); err != nil {
		t.Errorf("Close removed the socket that replaced ours: %v", err)
	}
	other.Close()

	l = listen(t, path)
	must(t, os.Remove(path))
	must(t, l.Close()) // a missing socket is no error
}

// TestLockedDirectory has Listen wait for a process that holds the lock.
func TestLockedDirectory(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	lock, err := lockDir(dir)
	must(t, err)
	done := make(chan error, 1)
	go func() {
		l, err := Listen(dir + "/s")
		if err == nil {
			err = l.Close()
		}
		done <- err
	}()
	for range 20 { // time for Listen to get ahead, if it did not wait
		time.Sleep(time.Millisecond)
		if left := files(t, dir); left != "" {
			t.Errorf("Listen did not wait for the lock, and made %s", left)
		}
	}
	must(t, lock.Close())
	must(t, <-done)
}

func TestInUseError(t *testing.T) {
	t.Parallel()
	if got := (&InUseError{Path: "/s"}).Error(); got != "socket /s is in use by another process" {
		t.Errorf("without a pid the error is %q", got)
	}
}

func TestNoLeaks(t *testing.T) {
	dir := shortDir(t)
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	once := func() {
		l := listen(t, dir+"/s")
		if _, err := Listen(dir + "/s"); err == nil {
			t.Error("two listeners share a socket")
		}
		if _, err := Listen(dir + "/file"); err == nil {
			t.Error("a file was replaced")
		}
		must(t, l.Close())
	}
	once() // the runtime opens descriptors of its own at the first use
	before := descriptors(t)
	for range 20 {
		once()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, want %d", after, before)
	}
}
