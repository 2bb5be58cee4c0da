package main

import (
	"net"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// TestAllowSHA1 checks that the agent makes ssh-rsa signatures with SHA-1 only with
// --allow-sha1.
func TestAllowSHA1(t *testing.T) {
	t.Parallel()
	for option, want := range map[string]bool{"--verbose": false, "--allow-sha1": true} {
		t.Run(option, func(t *testing.T) {
			cmd := program(t, "serve", option)
			file := filepath.Join(cmd.Dir, "rsa")
			if out, err := exec.Command("ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", file).CombinedOutput(); err != nil {
				t.Fatalf("%v, %s", err, out)
			}
			path := filepath.Join(cmd.Dir, "tpm-agent", "agent.sock")
			startAndWait(t, cmd, path)
			add := exec.Command("ssh-add", "-q", file)
			add.Env = append(cmd.Environ(), "SSH_AUTH_SOCK="+path)
			if out, err := add.CombinedOutput(); err != nil {
				t.Fatalf("%v, %s", err, out)
			}
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			client := agent.NewClient(conn)
			keys, err := client.List()
			if err != nil || len(keys) != 1 {
				t.Fatal(keys, err)
			}
			sig, err := client.SignWithFlags(keys[0], []byte("data"), 0)
			if (err == nil) != want {
				t.Errorf("with SHA-1: %v, %v", sig, err)
			}
			if err == nil && (sig.Format != ssh.KeyAlgoRSA || keys[0].Verify([]byte("data"), sig) != nil) {
				t.Errorf("the signature is %v", sig)
			}
			if _, err := client.SignWithFlags(keys[0], []byte("data"), agent.SignatureFlagRsaSha256); err != nil {
				t.Errorf("with SHA-256: %v", err)
			}
		})
	}
}
