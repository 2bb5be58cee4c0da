package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
	client "golang.org/x/crypto/ssh/agent"
)

// at is the upstream on a socket.
func at(path string) Upstream {
	return Upstream{Name: filepath.Base(filepath.Dir(path)), Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
}

// relayTo is a relay of a client to upstreams on sockets, with a log.
func relayTo(t testing.TB, paths ...string) (*relay, *record) {
	t.Helper()
	list := make([]Upstream, len(paths))
	for i, p := range paths {
		list[i] = at(p)
	}
	u, log := upstreamsOf(list...)
	return newRelay(t, u), log
}

func upstreamsOf(list ...Upstream) (*upstreams, *record) {
	log := new(record)
	return newUpstreams(list, slog.New(slog.NewTextHandler(log, nil))), log
}

func newRelay(t testing.TB, u *upstreams) *relay {
	r := u.relay()
	t.Cleanup(r.close)
	return r
}

// fake is an upstream that does what a test wants.
type fake struct {
	path string
	l    net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	got   [][][]byte // the messages of each connection
}

// pretend listens, and calls serve for each connection, which is closed when
// serve returns.
func pretend(t testing.TB, serve func(f *fake, n int, nc net.Conn)) *fake {
	t.Helper()
	f := &fake{path: filepath.Join(t.TempDir(), "s")}
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	f.l = l
	f.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			n := len(f.conns)
			f.conns, f.got = append(f.conns, nc), append(f.got, nil)
			f.mu.Unlock()
			f.wg.Go(func() { defer nc.Close(); serve(f, n, nc) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.mu.Lock()
		for _, nc := range f.conns {
			nc.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

// answering is a fake that gives each message the answer that says returns;
// nil closes the connection.
func answering(t testing.TB, says func(message []byte) []byte) *fake {
	return pretend(t, func(f *fake, n int, nc net.Conn) {
		for {
			m := f.next(n, nc)
			if m == nil {
				return
			}
			answer := says(m)
			if answer == nil {
				return
			}
			if _, err := nc.Write(answer); err != nil {
				return
			}
		}
	})
}

// next notes the next message of connection n, and is nil at its end.
func (f *fake) next(n int, nc net.Conn) []byte {
	m, err := tryRecv(nc)
	if err != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got[n] = append(f.got[n], m)
	return m
}

func (f *fake) received() [][][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([][][]byte(nil), f.got...)
}

func (f *fake) has(message []byte) bool {
	for _, c := range f.received() {
		for _, m := range c {
			if bytes.Equal(m, message) {
				return true
			}
		}
	}
	return false
}

// listOf is the answer to a list request.
func listOf(keys ...listed) []byte {
	b := []byte{msgIdentitiesAnswer, 0, 0, byte(len(keys) >> 8), byte(len(keys))}
	for _, k := range keys {
		b = appendString(appendString(b, k.blob), k.comment)
	}
	return frame(b)
}

// bindOf is a whole session-bind request.
func bindOf(host ssh.Signer, sessionID string, forwarding bool) []byte {
	return append(bindHeader(), bindBody(host, sessionID, forwarding)...)
}

// realAgent is OpenSSH's agent, to be stopped, killed and started again.
type realAgent struct {
	path string
	cmd  *exec.Cmd
}

func startAgent(t testing.TB) *realAgent {
	t.Helper()
	a := &realAgent{path: filepath.Join(t.TempDir(), "s")}
	a.start(t)
	t.Cleanup(a.kill)
	return a
}

func (a *realAgent) start(t testing.TB) {
	t.Helper()
	os.Remove(a.path)
	a.cmd = exec.Command("ssh-agent", "-D", "-a", a.path)
	a.cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	if err := a.cmd.Start(); err != nil {
		t.Skipf("needs ssh-agent: %v", err)
	}
	soon(t, "ssh-agent listens", func() bool {
		nc, err := net.Dial("unix", a.path)
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
}

func (a *realAgent) kill() {
	a.cmd.Process.Kill()
	a.cmd.Wait()
}

func (a *realAgent) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := a.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	if s != syscall.SIGSTOP {
		return
	}
	// It stops when it next runs.
	soon(t, "ssh-agent has stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(stat, []byte(") T "))
	})
}

func (a *realAgent) add(t testing.TB, comment string, key any) {
	t.Helper()
	nc, err := net.Dial("unix", a.path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := client.NewClient(nc).Add(client.AddedKey{PrivateKey: key, Comment: comment}); err != nil {
		t.Fatal(err)
	}
}

// names are the comments of what a relay lists.
func names(keys []listed) string {
	var b []byte
	for _, k := range keys {
		b = append(append(b, k.comment...), ' ')
	}
	return string(bytes.TrimSpace(b))
}

// openFiles counts this process's descriptors.
func openFiles(t testing.TB) int {
	t.Helper()
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	all, err := d.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return len(all) - 1
}

// noEnd reads and answers nothing.
func noEnd(_ *fake, _ int, nc net.Conn) { io.Copy(io.Discard, nc) }
