package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh/agent"
)

// hook is added to the measured program, as a file of its package main.
//
//go:embed testdata/hook.go
var hook []byte

const hookFile = "zz_paths_hook.go"

// pin is the PIN of the key that has one.
const pin = "2580"

// rig has a measured program in a temporary home.
type rig struct {
	root, dir string
	program   string
}

func newRig(ctx context.Context, root string) (*rig, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "paths-")
	if err != nil {
		return nil, err
	}
	r := &rig{root: root, dir: dir, program: filepath.Join(dir, "tpm-agent")}
	if err := r.prepare(ctx); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rig) close() error { return os.RemoveAll(r.dir) }

// prepare builds the program and makes its home.
func (r *rig) prepare(ctx context.Context) error {
	for _, name := range []string{"run", "home", "home/state"} {
		if err := os.Mkdir(filepath.Join(r.dir, name), 0o700); err != nil {
			return err
		}
	}
	askpass := "#!/bin/sh\necho " + pin + "\n"
	if err := os.WriteFile(filepath.Join(r.dir, "askpass"), []byte(askpass), 0o700); err != nil {
		return err
	}
	if err := r.copySources(); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false",
		"-cover", "-covermode=atomic", "-coverpkg=./...", "-o", r.program, "./cmd/tpm-agent")
	build.Dir, build.Env = r.sources(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	return nil
}

func (r *rig) sources() string { return filepath.Join(r.dir, "module") }

// copySources copies what the program is built from, and adds the hook. (go
// build -overlay would need no copy, but does not work with -cover.)
func (r *rig) copySources() error {
	source := os.DirFS(r.root)
	err := fs.WalkDir(source, ".", func(path string, d fs.DirEntry, err error) error {
		target := filepath.Join(r.sources(), path)
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (name == "testdata" || name == "build" || name == "bin" || strings.HasPrefix(name, ".") && path != "."):
			return fs.SkipDir
		case d.IsDir():
			return os.Mkdir(target, 0o700)
		case !d.Type().IsRegular() || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		data, err := fs.ReadFile(source, path)
		return errors.Join(err, os.WriteFile(target, data, 0o600))
	})
	return errors.Join(err, os.WriteFile(filepath.Join(r.sources(), "cmd", "tpm-agent", hookFile), hook, 0o600))
}

// environment returns the environment of the program. Nothing in it leads out of the home.
func (r *rig) environment(more ...string) []string {
	home := filepath.Join(r.dir, "home")
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_RUNTIME_DIR=" + filepath.Join(r.dir, "run"),
		"XDG_STATE_HOME=" + filepath.Join(home, "state"), "TMPDIR=" + r.dir, "TPM_AGENT_TPM=software", "LC_ALL=C.UTF-8",
		"SSH_ASKPASS=" + filepath.Join(r.dir, "askpass"), "SSH_ASKPASS_REQUIRE=force",
		"DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent/bus",
	}, more...)
}

// newDir makes a directory for counters or keys.
func (r *rig) newDir(name string) (string, error) { return os.MkdirTemp(r.dir, name+"-") }

// command runs a command of the agent to its end.
func (r *rig) command(ctx context.Context, counters string, arguments ...string) error {
	cmd := exec.CommandContext(ctx, r.program, arguments...)
	cmd.Env = r.environment("GOCOVERDIR=" + counters)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tpm-agent %s: %w: %s", strings.Join(arguments, " "), err, out)
	}
	return nil
}

// daemon is a running agent whose counters can be cleared and read.
type daemon struct {
	cmd    *exec.Cmd
	socket string
	hook   string // socket of the hook; no file, because the agent may execute itself again
	log    bytes.Buffer
}

func (r *rig) serve(ctx context.Context, counters, keys string) (*daemon, error) {
	d := &daemon{socket: filepath.Join(r.dir, "run", "agent.sock"), hook: "@" + filepath.Join(r.dir, "hook")}
	d.cmd = exec.CommandContext(ctx, r.program, "serve", "--socket", d.socket, "--key-dir", keys)
	d.cmd.Env = r.environment("GOCOVERDIR="+counters, "PATHS_SOCKET="+d.hook)
	d.cmd.Stderr = &d.log
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) }
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	err := until(ctx, func() error {
		conn, err := net.Dial("unix", d.socket)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = agent.NewClient(conn).List()
		return err
	})
	if err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

// until calls a function until it succeeds, for a minute at most.
func until(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// ask sends a line to the hook: a directory to write the counters to, or an
// empty line to clear them.
func (d *daemon) ask(dir string) error {
	conn, err := net.Dial("unix", d.hook)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, dir); err != nil {
		return err
	}
	reply, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && reply != "<nil>\n" {
		err = errors.New(reply)
	}
	return err
}

// stop ends the agent. Its exit status does not matter here.
func (d *daemon) stop() error {
	err := d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
	return err
}
