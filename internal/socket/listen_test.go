package socket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestModes(t *testing.T) {
	for _, umask := range []string{"000", "022", "077", "777"} {
		t.Run(umask, func(t *testing.T) {
			dir := shortDir(t)
			path := dir + "/made/deeper/agent.sock"
			c := startChild(t, self(t), "listen", umask, path)
			if got := c.line(); got != "Srw-------" {
				t.Errorf("the socket is %s", got)
			}
			for p, want := range map[string]string{
				dir + "/made": "drwx------", dir + "/made/deeper": "drwx------", path + ".lock": "-rw-------",
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

// TestNoWindow: the mode is right when the file appears, not a moment later.
func TestNoWindow(t *testing.T) {
	path := shortDir(t) + "/s"
	c := startChild(t, self(t), "bind", "000", path)
	if got := c.line(); got != "Srw-------" {
		t.Errorf("bound under umask 0, the socket is %s", got)
	}
	c.end()
}

func TestPaths(t *testing.T) {
	dir := shortDir(t)
	fill := func(n int) string { return dir + "/" + strings.Repeat("x", n-len(dir)-1) }
	for path, want := range map[string]string{
		"":               "empty",
		"@abstract":      "not a path",
		"a\x00b":         "not a path",
		dir + "/":        "directory",
		fill(108):        "108 bytes long, a socket's path can have 107",
		dir + "/no\x00/": "not a path",
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
	base := shortDir(t)
	for _, test := range []struct {
		name string
		mode os.FileMode
		uid  int
		want string // "" is fine
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
		t.Errorf("the first one is hurt: %v", err)
	}
	c.end()
	must(t, listen(t, path).Close())
}

// TestLiveOfAnother has a program that knows nothing of our lock.
func TestLiveOfAnother(t *testing.T) {
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
	if _, err := Listen(dir + "/link"); !errors.As(err, &inUse) {
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

// TestFullQueue: a listener that accepts nobody is live all the same.
func TestFullQueue(t *testing.T) {
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
	path := shortDir(t) + "/s"
	staleSocket(t, path)
	l := listen(t, path)
	must(t, answers(path))
	must(t, l.Close())
}

func TestKilled(t *testing.T) {
	path := shortDir(t) + "/s"
	c := startChild(t, self(t), "listen", "077", path)
	c.line()
	must(t, c.cmd.Process.Kill())
	c.cmd.Wait()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the killed process leaves no socket: %v", err)
	}
	l := listen(t, path)
	must(t, l.Close())
	if left := files(t, filepath.Dir(path)); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// TestNotASocket: what is not a socket is refused and stays.
func TestNotASocket(t *testing.T) {
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

// TestRace has many starts at once, over a stale socket and over none, and
// closing ones between them.
func TestRace(t *testing.T) {
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
					t.Errorf("a loser gets %v", err)
				case inUse.PID != os.Getpid() && inUse.PID != 0:
					t.Errorf("a loser is told of process %d", inUse.PID)
				}
			})
		}
		close(begin)
		wg.Wait()
		if len(winners) != 1 {
			t.Fatalf("%d of 20 starts have won", len(winners))
		}
		must(t, answers(path))
		must(t, winners[0].Close())
	}
}

// TestTakingTurns: whoever opens and closes never hurts another's socket.
func TestTakingTurns(t *testing.T) {
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
					t.Error("two hold the socket")
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

// TestLockFileReplaced: the holder removes the lock file, so one who has just
// opened it may come to lock a file that is no longer the one.
func TestLockFileReplaced(t *testing.T) {
	path := shortDir(t) + "/s"
	var wg sync.WaitGroup
	var holder sync.Mutex
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				lk, err := takeLock(path)
				if err != nil {
					continue
				}
				if !holder.TryLock() {
					t.Error("two hold the lock")
					return
				}
				for range 20 { // time for others to open the file
					runtime.Gosched()
				}
				holder.Unlock()
				must(t, lk.release())
			}
		})
	}
	wg.Wait()
}

func TestReplacedStays(t *testing.T) {
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
		t.Errorf("Close has removed what took its place: %v", err)
	}
	other.Close()

	l = listen(t, path)
	must(t, os.Remove(path))
	must(t, os.Remove(path+".lock"))
	must(t, l.Close()) // that all is gone is no error
}

// TestForeignLock: in a directory such as /tmp the lock file may be a trap.
func TestForeignLock(t *testing.T) {
	dir := shortDir(t)
	path := dir + "/s"
	for name, put := range map[string]func() error{
		"link": func() error {
			return errors.Join(os.WriteFile(dir+"/precious", []byte("text"), 0o600), os.Symlink("precious", path+".lock"))
		},
		"fifo":      func() error { return unix.Mkfifo(path+".lock", 0o600) },
		"directory": func() error { return os.Mkdir(path+".lock", 0o700) },
		"theirs": func() error {
			if os.Geteuid() != 0 {
				return nil
			}
			return errors.Join(os.WriteFile(path+".lock", nil, 0o666), os.Chown(path+".lock", 65534, -1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, put())
			if _, err := os.Lstat(path + ".lock"); err != nil {
				t.Skip("only root can give a file away")
			}
			if l, err := Listen(path); err == nil {
				l.Close()
				t.Error("Listen takes it")
			}
			if text, err := os.ReadFile(dir + "/precious"); err == nil && string(text) != "text" {
				t.Error("a file behind the link was written")
			}
			must(t, os.Remove(path+".lock"))
		})
	}
}

func TestInUseError(t *testing.T) {
	if got := (&InUseError{Path: "/s"}).Error(); got != "socket /s is in use by another process" {
		t.Errorf("without a pid the error is %q", got)
	}
	// A start that holds the lock and does not listen yet is named by its file.
	path := shortDir(t) + "/s"
	lk, err := takeLock(path)
	must(t, err)
	var inUse *InUseError
	if _, err := Listen(path); !errors.As(err, &inUse) || inUse.PID != os.Getpid() {
		t.Errorf("Listen while another starts gives %v", err)
	}
	must(t, os.WriteFile(path+".lock", []byte("garbage"), 0o600))
	if _, err := Listen(path); !errors.As(err, &inUse) || inUse.PID != 0 {
		t.Errorf("Listen with garbage in the lock file gives %v", err)
	}
	must(t, lk.release())
}

func TestNoLeaks(t *testing.T) {
	dir := shortDir(t)
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	once := func() {
		l := listen(t, dir+"/s")
		if _, err := Listen(dir + "/s"); err == nil {
			t.Error("two listen")
		}
		if _, err := Listen(dir + "/file"); err == nil {
			t.Error("a file was taken")
		}
		must(t, l.Close())
	}
	once() // the runtime opens its own descriptors at the first use
	before := descriptors(t)
	for range 20 {
		once()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}
