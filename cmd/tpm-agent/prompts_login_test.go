package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// These are programs that users run: ssh, into an sshd of the test; ssh-keygen
// -Y sign; and git, which signs a commit.
const (
	loginScript = `#!/bin/sh
# login KEY COMMAND: through sshd, over a pipe; what is typed ahead is the shell's
cd "${0%/*}" || exit
key=$1; shift
exec ssh -n -F none -o HostKeyAlias=server.example -o UserKnownHostsFile="$PWD/known_hosts" -o StrictHostKeyChecking=yes \
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
git commit -q -S --allow-empty -m signed && git --no-pager log -1 --format='commit %G? by %GS'
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
	{"./login id 'echo $((6*7))in'", "42in"}, // the line itself does not have it
	{"./sign id", "Good \"file\" signature"},
	{"./gitcommit", "commit G by somebody@example.org"},
}

// as runs one of the programs in the environment of the agent, without a
// terminal.
func (d *agentRun) as(command string) *exec.Cmd {
	d.t.Helper()
	cmd := d.command("setsid", "-w", "sh", "-c", "exec "+command)
	cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+d.socket)
	return cmd
}

// TestPromptByAskpass: login, signature and commit, with a PIN from a program,
// and with none because somebody said no.
func TestPromptByAskpass(t *testing.T) {
	s := newScene(t, patient, "")
	s.programs()
	a := newAskpass(t)
	d := s.serve(a.env())
	defer s.watchProcesses()()
	s.costs(0, func() {
		for _, use := range uses {
			if out, err := d.answered(a, use.command, "say "+s.pin); err != nil || !strings.Contains(out, use.done) {
				t.Errorf("%s: %v\n%s\n%s", use.command, err, out, d.logged())
			}
			if out, err := d.answered(a, use.command, "cancel"); err == nil {
				t.Errorf("%s: done, though cancelled\n%s", use.command, out)
			}
			d.whySays("refused at the prompt")
		}
	})
}

// answered runs one of the programs, and answers the question that comes of it.
func (d *agentRun) answered(a *askpass, command, answer string) (string, error) {
	d.t.Helper()
	cmd := d.as(command)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	a.next().does(answer)
	err := cmd.Wait()
	return out.String(), err
}

// TestPromptNobody: without a terminal and without a display each fails at once,
// and `why` says what to install or set.
func TestPromptNobody(t *testing.T) {
	s := newScene(t, patient, "")
	s.programs()
	s.pinentry("pinentry-curses")
	// Systemd's way would ask whoever answers on this machine. Who waits for the
	// limit is never done.
	d := s.serve(nil, "--prompt", "pinentry,askpass,terminal", "--prompt-timeout", "1000h")
	s.costs(0, func() {
		for _, use := range uses {
			if out, err := d.as(use.command).CombinedOutput(); err == nil {
				t.Errorf("%s: done without a PIN\n%s", use.command, out)
			}
			d.whySays("no way to ask")
			d.whySays("pinentry")
			d.whySays("SSH_ASKPASS")
			d.whySays("terminal")
			d.whySays("tpm-agent unlock")
		}
		d.signs(s.pinless)
	})
}

// watchProcesses looks again and again for a PIN of the scene in the arguments and
// environments of its processes. stop ends that, and fails the test if a PIN was
// found.
func (s *scene) watchProcesses() (stop func()) {
	over, result := make(chan struct{}), make(chan []string)
	pins, roots := slices.Clone(s.secrets), append(slices.Clone(s.daemons), os.Getpid())
	go func() {
		var found []string
		for {
			for _, root := range roots {
				found = append(found, processesWith(root, pins)...)
			}
			select {
			case <-over:
				result <- found
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() {
		close(over)
		if found := <-result; len(found) > 0 {
			s.t.Errorf("a PIN was seen in %q", slices.Compact(found))
		}
	}
}

// processesWith lists the processes from root on that have one of the texts in
// their arguments or environment.
func processesWith(root int, texts []string) (found []string) {
	for _, pid := range descendants(root) {
		for _, kind := range []string{"cmdline", "environ"} {
			path := fmt.Sprintf("/proc/%d/%s", pid, kind)
			data, err := os.ReadFile(path)
			if err == nil && slices.ContainsFunc(texts, func(text string) bool { return bytes.Contains(data, []byte(text)) }) {
				found = append(found, path)
			}
		}
	}
	return found
}

// What must not be in a process's arguments or environment is found there.
func TestPromptProcessesAreWatched(t *testing.T) {
	for _, cmd := range []*exec.Cmd{
		exec.Command("sh", "-c", "read line", "first"),
		{Path: must(exec.LookPath("sh")), Args: []string{"sh", "-c", "read line"}, Env: []string{"PIN=second"}},
	} {
		pin := randomPIN(20)
		for _, list := range [][]string{cmd.Args, cmd.Env} {
			for i := range list {
				list[i] = strings.NewReplacer("first", pin, "second", pin).Replace(list[i])
			}
		}
		stdin := must(cmd.StdinPipe())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if found := processesWith(os.Getpid(), []string{randomPIN(20), pin}); len(found) != 1 {
			t.Errorf("found in %q", found)
		}
		stdin.Close()
		_ = cmd.Wait()
	}
}
