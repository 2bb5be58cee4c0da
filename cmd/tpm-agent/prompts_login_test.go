package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// These are programs that users run: ssh, into an sshd of the test; ssh-keygen
// -Y sign; and git, which signs a commit.
const (
	loginScript = `#!/bin/sh
# login KEY COMMAND: through sshd, over a pipe
cd "${0%/*}" || exit
key=$1; shift
exec ssh -F none -o HostKeyAlias=server.example -o UserKnownHostsFile="$PWD/known_hosts" -o StrictHostKeyChecking=yes \
	-o IdentitiesOnly=yes -o IdentityFile="$PWD/keys/$key.pub" -o BatchMode=yes -o PreferredAuthentications=publickey \
	-o ProxyCommand="$(command -v sshd || echo /usr/sbin/sshd) -i -f $PWD/sshd_config -E $PWD/sshd.log" \
	"$(id -un)@server.example" "$@"
`
	signScript = `#!/bin/sh
cd "${0%/*}" && rm -f text.sig && echo text >text &&
ssh-keygen -Y sign -n file -f "keys/$1.pub" text && ssh-keygen -Y check-novalidate -n file -s text.sig <text
`
	gitScript = `#!/bin/sh
cd "${0%/*}/repository" &&
git commit -q -S --allow-empty -m signed && git log -1 --format='commit %G? by %GS'
`
)

// programs writes them into the home, with what they need, for the key that is
// named in their first argument; git's is the key with the PIN.
func (s *scene) programs() {
	s.t.Helper()
	for name, text := range map[string]string{"login": loginScript, "sign": signScript, "gitcommit": gitScript} {
		s.write(name, text, 0o700)
	}
	host := filepath.Join(s.home, "host")
	s.mustRun("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host)
	s.write("known_hosts", "server.example "+string(must(os.ReadFile(host+".pub"))), 0o600)
	keys := string(must(os.ReadFile(filepath.Join(s.keys, "id.pub")))) + string(must(os.ReadFile(filepath.Join(s.keys, "plain.pub"))))
	s.write("authorized_keys", keys, 0o600)
	s.write("sshd_config", strings.ReplaceAll(`HostKey HOME/host
AuthorizedKeysFile HOME/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
`, "HOME", s.home), 0o600)
	if os.Getuid() == 0 {
		// sshd of root wants its empty directory, which the service makes at boot.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	signer := filepath.Join(s.keys, "id.pub")
	s.write("signers", "somebody@example.org "+string(must(os.ReadFile(signer))), 0o600)
	s.write(".gitconfig", "[user]\nname = Somebody\nemail = somebody@example.org\nsigningkey = "+signer+
		"\n[gpg]\nformat = ssh\n[gpg \"ssh\"]\nallowedSignersFile = "+filepath.Join(s.home, "signers")+"\n", 0o600)
	s.mustRun("git", "init", "-q", "repository")
}

func (s *scene) write(name, text string, mode os.FileMode) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.home, name), []byte(text), mode); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) mustRun(name string, args ...string) string {
	s.t.Helper()
	out, err := s.command(name, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// uses are what users do, and what shows that it was done.
var uses = []struct{ command, done string }{
	{"./login id echo logged in", "logged in"},
	{"./sign id", "Good \"file\" signature"},
	{"./gitcommit", "commit G by somebody@example.org"},
}

// as runs one of the programs in the environment of the agent, without a
// terminal.
func (d *agentRun) as(command string) *exec.Cmd {
	d.t.Helper()
	words := strings.Fields(command)
	cmd := d.command("sh", "-c", `cd "$HOME" && exec setsid "$@"`, "sh")
	cmd.Args = append(cmd.Args, words...)
	cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+d.socket)
	return cmd
}

// TestPromptByAskpass: login, signature and commit, with a PIN from a program.
func TestPromptByAskpass(t *testing.T) {
	s := newScene(t, patient, "")
	s.programs()
	a := newAskpass(t)
	d := s.serve(a.env())
	s.costs(0, func() {
		for _, use := range uses {
			cmd := d.as(use.command)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			a.next().does("say", s.pin)
			if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), use.done) {
				t.Errorf("%s: %v\n%s\n%s", use.command, err, &out, d.logged())
			}
		}
	})
}
