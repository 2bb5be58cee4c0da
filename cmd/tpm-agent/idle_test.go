package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"
)

// running is an agent that a test has started.
type running struct {
	t      *testing.T
	pid    int
	socket string
	public ssh.PublicKey // of a software key in the agent
}

// startLimited starts an agent and adds a software key. limit is a shell command
// that runs first, such as ulimit.
func startLimited(t *testing.T, limit string) *running {
	t.Helper()
	cmd := program(t)
	socket := filepath.Join(cmd.Dir, "s")
	shell := exec.Command("/bin/sh", "-c", limit+` exec "$@"`, "sh", cmd.Path, "serve", "--socket", socket, "--log-level", "error")
	shell.Env, shell.Dir = cmd.Env, cmd.Dir
	var log bytes.Buffer
	shell.Stderr = &log
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		shell.Process.Kill()
		shell.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, socket)
	defer conn.Close()
	if err := sshagent.NewClient(conn).Add(sshagent.AddedKey{PrivateKey: private}); err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return &running{t, shell.Process.Pid, socket, key}
}

// dial makes a connection and requests a list over it.
func (r *running) dial() (net.Conn, error) {
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(longEnough))
	if _, err := conn.Write([]byte{0, 0, 0, 1, 11}); err != nil {
		conn.Close()
		return nil, err
	}
	answer := make([]byte, 4096)
	n, err := conn.Read(answer)
	if err != nil || n < 9 || answer[4] != 12 {
		conn.Close()
		return nil, fmt.Errorf("the list is %x, %v", answer[:n], err)
	}
	return conn, nil
}

// sign requests n signatures over one connection.
func (r *running) sign(n int) error {
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := sshagent.NewClient(conn)
	for i := range n {
		data := []byte(strconv.Itoa(i))
		sig, err := client.Sign(r.public, data)
		if err != nil {
			return err
		}
		if err := r.public.Verify(data, sig); err != nil {
			return err
		}
	}
	return nil
}

// descriptors returns the number of open descriptors of the agent.
func (r *running) descriptors() int {
	r.t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.pid))
	if errors.Is(err, fs.ErrPermission) {
		r.t.Skip("only root can read /proc of the agent")
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return len(files)
}

// resident returns the resident memory of the agent in KiB.
func (r *running) resident() int {
	r.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.pid))
	if err != nil {
		r.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		r.t.Fatal(err)
	}
	return kib
}

// awaitDescriptors waits until the agent has at most n open descriptors.
func (r *running) awaitDescriptors(n int) {
	r.t.Helper()
	for start := time.Now(); r.descriptors() > n; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > longEnough {
			r.t.Fatalf("%d descriptors are open, want %d", r.descriptors(), n)
		}
	}
}

// TestThousandIdle checks that an agent with 1000 idle and 64 busy connections closes
// their descriptors when they end, and that its memory does not grow from one round of
// connections to the next.
func TestThousandIdle(t *testing.T) {
	t.Parallel()
	r := startLimited(t, "")
	before := r.descriptors()
	var peaks []int
	for range 4 {
		var idle []net.Conn
		for range 1000 {
			conn, err := r.dial()
			if err != nil {
				t.Fatal(err)
			}
			idle = append(idle, conn)
		}
		var busy sync.WaitGroup
		for range 64 {
			busy.Go(func() {
				if err := r.sign(20); err != nil {
					t.Error(err)
				}
			})
		}
		busy.Wait()
		peaks = append(peaks, r.resident())
		for _, conn := range idle {
			conn.Close()
		}
		r.awaitDescriptors(before)
	}
	t.Logf("resident with 1000 idle connections, in KiB: %v", peaks)
	if last := peaks[3]; !raceDetector && (last > 96<<10 || last > slices.Max(peaks[:3])*5/4) {
		t.Errorf("resident memory grows, in KiB: %v", peaks)
	}
}

// TestFewDescriptors checks that an agent with 48 descriptors serves 200 clients that
// stay connected: it closes the connections that were idle the longest. After the
// clients have gone, it works as before.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	r := startLimited(t, "ulimit -n 48;")
	before := r.descriptors()
	var idle []net.Conn
	for i := range 200 {
		conn, err := r.dial()
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		idle = append(idle, conn)
	}
	if err := r.sign(3); err != nil {
		t.Error(err)
	}
	idle[0].SetDeadline(time.Now().Add(longEnough))
	if n, err := idle[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the first client is still connected and reads %d bytes, %v", n, err)
	}
	for _, conn := range idle {
		conn.Close()
	}
	r.awaitDescriptors(before)
	if err := r.sign(3); err != nil {
		t.Error(err)
	}
}
