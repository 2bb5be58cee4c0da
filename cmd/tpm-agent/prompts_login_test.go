package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// These scripts do what users do: log in with ssh to an sshd of the test, sign a file
// with ssh-keygen -Y sign, and sign a commit with git.
const (
	loginScript = `#!/bin/sh
# login KEY COMMAND: through sshd, over a pipe. -n leaves typed input to the shell.
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

// programs writes the scripts and their files into the home. The first argument of
// login and sign names the key; git uses the key with the PIN.
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
		// sshd needs this empty directory if root runs it. The service creates it at boot.
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

// write writes a file in the home. No program that another test starts now inherits
// the open file: a script that is open for writing cannot be run.
func (s *scene) write(name, text string, mode os.FileMode) {
	s.t.Helper()
	syscall.ForkLock.RLock()
	err := os.WriteFile(filepath.Join(s.home, name), []byte(text), mode)
	syscall.ForkLock.RUnlock()
	if err != nil {
		s.t.Fatal(err)
	}
}

// mustRun runs a program that must succeed, and returns its output.
func (s *scene) mustRun(name string, args ...string) string {
	s.t.Helper()
	out, err := s.command(name, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// uses are the scripts' command lines, with the output that shows success.
var uses = []struct{ command, done string }{
	{"./login id 'echo $((6*7))in'", "42in"}, // the command line itself does not contain this
	{"./sign id", "Good \"file\" signature"},
	{"./gitcommit", "commit G by somebody@example.org"},
}

// as returns a command that runs one of the scripts with the agent's socket and
// without a terminal.
func (d *agentRun) as(command string) *exec.Cmd {
	d.t.Helper()
	cmd := d.command("setsid", "-w", "sh", "-c", "exec "+command)
	cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+d.socket)
	return cmd
}

// TestPromptByAskpass checks that login, signature and commit succeed with a PIN from
// an askpass program, and fail if the user cancels.
func TestPromptByAskpass(t *testing.T) {
	t.Parallel()
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
				t.Errorf("%s: succeeded after the user cancelled\n%s", use.command, out)
			}
			d.whySays("refused at the prompt")
		}
	})
}

// answered runs one of the scripts and answers its prompt.
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

// TestPromptNoWay checks that without a terminal and a display the scripts fail at
// once, and that `why` says what to install or set.
func TestPromptNoWay(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	s.programs()
	s.pinentry("pinentry-curses")
	// Leave out systemd, which could ask the user of this machine. The long timeout
	// makes the test hang if a prompt waits.
	d := s.serve(nil, "--prompt", "pinentry,askpass,terminal", "--prompt-timeout", "1000h")
	s.costs(0, func() {
		for _, use := range uses {
			if out, err := d.as(use.command).CombinedOutput(); err == nil {
				t.Errorf("%s: succeeded without a PIN\n%s", use.command, out)
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

// watchProcesses keeps searching the arguments and environments of the scene's
// processes for a PIN. stop ends the search, and fails the test if it found one.
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

// processesWith searches the arguments and environments of root and its descendants
// for the texts, and returns the files in /proc that contain one.
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

// TestPromptProcessSearch checks that processesWith finds a text in a process's
// arguments and in its environment.
func TestPromptProcessSearch(t *testing.T) {
	t.Parallel()
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
			t.Errorf("found the PIN in %q, want one place", found)
		}
		stdin.Close()
		_ = cmd.Wait()
	}
}
