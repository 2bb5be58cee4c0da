package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// told runs a script, gives the PIN, and returns the text of the prompt.
func (d *agentRun) told(a *askpass, command, done string) string {
	d.t.Helper()
	cmd := d.as(command)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	q := a.next()
	q.does("say", d.pin)
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), done) {
		d.t.Errorf("%s: %v\n%s\n%s", command, err, &out, d.logged())
	}
	return q.text
}

// TestPromptWording checks that the prompt tells the user what a program wants to sign
// and for which host. The agent knows this from the data to sign, and from hosts that
// have proven their identity.
func TestPromptWording(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	s.programs()
	s.write("forward", `#!/bin/sh
# forward COMMAND: runs a command on the host with the agent forwarded. ssh kills sshd
# before sshd can remove the socket of the forwarded agent from /tmp.
cd "${0%/*}" && exec ./login plain -A "$*; status=\$?; rm -rf \"\${SSH_AUTH_SOCK%/*}\"; exit \$status"
`, 0o700)
	if err := os.MkdirAll(filepath.Join(s.home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	user := strings.TrimSpace(s.mustRun("id", "-un"))
	host := strings.TrimSpace(string(must(os.ReadFile(filepath.Join(s.home, "host.pub")))))
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(host))
	if err != nil {
		t.Fatal(err)
	}
	hostPrint := ssh.FingerprintSHA256(public)
	a := newAskpass(t)
	d := s.serve(a.env())
	begin := fmt.Sprintf("Enter PIN for ~/%s/id.tpm\n  (id@test (not protected: software TPM))\n%s\n", must(filepath.Rel(s.home, s.keys)), ssh.FingerprintSHA256(s.public))

	for _, test := range []struct {
		known         string // the content of the known_hosts file
		hash          bool
		command, done string
		want          string // the text of the prompt, with PID for the pid
	}{
		{"", false, "./login id true", "", "To log in as " + user + " to an unknown host with the key\n  " + hostPrint + "\nRequested by ssh (pid PID)\n"},
		{"first.example,server.example " + host, false, "./login id true", "", "To log in as " + user + "@server.example\nRequested by ssh (pid PID)\n"},
		{"first.example,other.example " + host, false, "./login id true", "", "To log in as " + user + "@first.example\nRequested by ssh (pid PID)\n"},
		{"first.example,server.example " + host, true, "./login id true", "", "To log in as " + user + "@server.example\nRequested by ssh (pid PID)\n"},
		{"", false, "./sign id", `Good "file" signature`, "To sign a file (namespace file)\nRequested by ssh-keygen (pid PID)\n"},
		{"", false, "./gitcommit", "commit G", "To sign a commit, tag or push (namespace git)\nRequested by git → ssh-keygen (pid PID)\n"},
		{"server.example " + host, false, "./forward " + s.home + "/sign id", `Good "file" signature`, "FORWARDED from server.example\nTo sign a file (namespace file)\nForwarded by ssh (pid PID)\n"},
		{"server.example " + host, false, "./forward " + s.home + "/login id true", "", "FORWARDED from server.example\nTo log in as " + user + "@server.example\nForwarded by ssh (pid PID)\n"},
	} {
		s.write(".ssh/known_hosts", test.known+"\n", 0o600)
		if test.hash {
			s.mustRun("ssh-keygen", "-q", "-H", "-f", filepath.Join(s.home, ".ssh/known_hosts"))
		}
		text := d.told(a, test.command, test.done)
		if rest, ok := strings.CutPrefix(text, begin); !ok || !strings.HasPrefix(withoutPID(rest), test.want) {
			t.Errorf("%s: got\n%s\nwant\n%s%s", test.command, text, begin, test.want)
		}
	}
}

// withoutPID replaces the pid with PID.
func withoutPID(text string) string {
	before, rest, ok := strings.Cut(text, "(pid ")
	if !ok {
		return text
	}
	return before + "(pid PID" + strings.TrimLeft(rest, "0123456789")
}
