package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh/agent"
)

// swtpm is a software TPM of our own on a unix socket.
type swtpm struct {
	cmd    *exec.Cmd
	socket string
}

func (b *bench) startTPM(name string) (*swtpm, error) {
	state := filepath.Join(b.dir, name)
	if err := os.Mkdir(state, 0o700); err != nil {
		return nil, err
	}
	s := &swtpm{socket: filepath.Join(b.dir, name+".sock")}
	s.cmd = exec.CommandContext(b.ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--server", "type=unixio,path="+s.socket,
		"--flags", "not-need-init,startup-clear")
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting swtpm (Debian package swtpm): %w", err)
	}
	return s, await("swtpm", func() bool {
		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}

func (s *swtpm) address() string { return "swtpm:path=" + s.socket }

func (s *swtpm) stop() error { return stop(s.cmd) }

// daemon is a running "tpm-agent serve".
type daemon struct {
	cmd     *exec.Cmd
	socket  string
	startup time.Duration // until the first list was answered
}

func (b *bench) startDaemon(tpm, keys string, options ...string) (*daemon, error) {
	d := &daemon{socket: filepath.Join(b.dir, "run", fmt.Sprintf("agent-%d.sock", time.Now().UnixNano()))}
	arguments := append([]string{"--tpm", tpm, "serve", "--socket", d.socket, "--key-dir", keys}, options...)
	d.cmd = exec.CommandContext(b.ctx, b.program, arguments...)
	d.cmd.Env = append(os.Environ(), "SSH_ASKPASS="+filepath.Join(b.dir, "askpass"), "SSH_ASKPASS_REQUIRE=force")
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) }
	log, err := os.OpenFile(filepath.Join(b.dir, "serve.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd.Stderr = log
	start := time.Now()
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s (run make build first): %w", b.program, err)
	}
	err = await("tpm-agent serve", func() bool { _, err := d.list(); return err == nil })
	d.startup = time.Since(start)
	return d, err
}

// list connects, lists, and hangs up, as "ssh-add -l" does.
func (d *daemon) list() (int, error) {
	client, err := d.dial()
	if err != nil {
		return 0, err
	}
	defer client.Close()
	keys, err := client.List()
	return len(keys), err
}

// client is a connection to the daemon.
type client struct {
	agent.ExtendedAgent
	net.Conn
}

func (c *client) Close() error { return c.Conn.Close() }

func (d *daemon) dial() (*client, error) {
	conn, err := net.Dial("unix", d.socket)
	if err != nil {
		return nil, err
	}
	return &client{agent.NewClient(conn), conn}, nil
}

// resident returns the daemon's resident memory in KiB.
func (d *daemon) resident() (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		}
	}
	return 0, errors.New("no VmRSS in /proc/PID/status")
}

func (d *daemon) stop() error { return stop(d.cmd) }

// stop ends a process and waits for it. How it ends is its own affair.
func stop(cmd *exec.Cmd) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_ = cmd.Wait()
	return nil
}

func await(what string, ready func() bool) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if ready() {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("%s did not get ready", what)
}
