//go:build vmtest

package vm

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const program = "/bin/tpm-agent"

// patience bounds every wait of these tests. It is long because the machine is
// emulated.
const patience = time.Minute

// A home is one user's directory, TPM and keys.
type home struct {
	dir string
	tpm string
	env []string
}

func newHome(t *testing.T, device string) *home {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{".ssh", "run"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &home{
		dir: dir,
		tpm: "device:" + device,
		env: []string{
			"PATH=/bin", "HOME=" + dir, "XDG_RUNTIME_DIR=" + filepath.Join(dir, "run"), "TMPDIR=/tmp",
		},
	}
}

func (h *home) command(args ...string) *exec.Cmd {
	cmd := exec.Command(program, append([]string{"--tpm", h.tpm}, args...)...)
	cmd.Env = h.env
	return cmd
}

// keygen creates a key in the TPM and returns its public half from the file.
func (h *home) keygen(t *testing.T, name, pin string, flags ...string) ssh.PublicKey {
	t.Helper()
	file := filepath.Join(h.dir, ".ssh", name)
	args := append([]string{"keygen", "-f", file, "-N", pin, "-C", name}, flags...)
	if out, err := h.command(args...).CombinedOutput(); err != nil {
		t.Fatalf("keygen: %v\n%s", err, out)
	}
	line, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key, comment, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		t.Fatal(err)
	}
	if comment != name {
		t.Errorf("%s.pub has comment %q, want %q", name, comment, name)
	}
	return key
}

// askpass answers the agent's prompts with pin.
func (h *home) askpass(t *testing.T, pin string) {
	t.Helper()
	script := filepath.Join(h.dir, "askpass")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho '"+pin+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.env = append(h.env, "SSH_ASKPASS="+script, "SSH_ASKPASS_REQUIRE=force")
}

// A daemon is a running agent.
type daemon struct {
	socket string
	cmd    *exec.Cmd
	log    *bytes.Buffer // complete once the process is gone
}

// serve starts an agent, waits until it answers, and ends it with the test. At the
// end it must have left nothing in the TPM.
func (h *home) serve(t *testing.T, name string) *daemon {
	t.Helper()
	d := &daemon{socket: filepath.Join(h.dir, name, "agent.sock"), log: new(bytes.Buffer)}
	d.cmd = h.command("serve", "--socket", d.socket, "--key-dir", filepath.Join(h.dir, ".ssh"))
	d.cmd.Stderr = d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.stop(t) })
	eventually(t, "the agent's socket", func() error {
		conn, err := net.Dial("unix", d.socket)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return d
}

func (d *daemon) stop(t *testing.T) {
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	if t.Failed() {
		t.Logf("the agent's log:\n%s", d.log)
	}
}

// client opens a connection to the agent, which is closed with the test.
func (d *daemon) client(t *testing.T) agent.ExtendedAgent {
	t.Helper()
	conn, err := net.Dial("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return agent.NewClient(conn)
}

// openDevices lists the TPM devices that the agent has open.
func (d *daemon) openDevices() ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var open []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(target, "/dev/tpm") {
			open = append(open, target)
		}
	}
	return open, nil
}

// idle returns an error while the agent has its device open.
func (d *daemon) idle() error {
	open, err := d.openDevices()
	if err == nil && len(open) > 0 {
		err = fmt.Errorf("still has %v open", open)
	}
	return err
}

// algorithm returns the signature algorithm that a client requests for a key.
func algorithm(key ssh.PublicKey, n int) (name string, flags agent.SignatureFlags) {
	switch {
	case key.Type() != ssh.KeyAlgoRSA:
		return key.Type(), 0
	case n%2 == 0:
		return ssh.KeyAlgoRSASHA256, agent.SignatureFlagRsaSha256
	default:
		return ssh.KeyAlgoRSASHA512, agent.SignatureFlagRsaSha512
	}
}

// login signs the data of a login, and verifies the answer as a server does.
func login(a agent.ExtendedAgent, key ssh.PublicKey, n int) error {
	name, flags := algorithm(key, n)
	data := ssh.Marshal(struct {
		Session                       []byte
		Kind                          byte
		User, Service, Method, Signed string
		Algorithm                     string
		Key                           []byte
	}{
		bytes.Repeat([]byte{byte(n)}, 32), 50,
		"demo", "ssh-connection", "publickey", "\x01",
		name, key.Marshal(),
	})
	signature, err := a.SignWithFlags(key, data, flags)
	if err != nil {
		return fmt.Errorf("signature %d: %w", n, err)
	}
	if signature.Format != name {
		return fmt.Errorf("signature %d is %s, want %s", n, signature.Format, name)
	}
	if err := key.Verify(data, signature); err != nil {
		return fmt.Errorf("signature %d: %w", n, err)
	}
	return nil
}

// eventually calls a function until it returns no error. It is for events that
// have no notification.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v, after %v", what, err, patience)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// leavesNothing waits until the idle agent has closed the TPM, and checks that it
// has left nothing there.
func (d *daemon) leavesNothing(t *testing.T) {
	t.Helper()
	eventually(t, "an idle agent", d.idle)
	eventually(t, "the TPM after the agent's work", func() error {
		left, err := handles()
		if errors.Is(err, syscall.EBUSY) {
			return err
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			return fmt.Errorf("handles %x are left", left)
		}
		return nil
	})
}
