package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/keyfile"
)

// passwd runs tpm-agent passwd for a key of the scene, on a terminal.
func (s *scene) passwd(key string, args ...string) *seat {
	s.t.Helper()
	return sit(s.t, s.command("tpm-agent", append([]string{"passwd", "keys/" + key + ".tpm"}, args...)...))
}

// tried signs with a key file of the scene, and returns the output and whether it
// succeeded.
func (s *scene) tried(key, pin string) (string, bool) {
	s.t.Helper()
	cmd := s.command("signs", "keys/"+key+".tpm", pin)
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

// mustTry fails the test unless a key signs with the PIN.
func (s *scene) mustTry(key, pin string) {
	s.t.Helper()
	if out, ok := s.tried(key, pin); !ok {
		s.t.Errorf("%s does not sign: %s", key, out)
	}
}

// content returns the content of a key file of the scene.
func (s *scene) content(key string) string {
	s.t.Helper()
	return string(must(os.ReadFile(filepath.Join(s.keys, key+".tpm"))))
}

// TestPasswdOnTerminal checks that passwd does not show PINs, shows how many tries are
// left after a wrong one, and asks before the last try. The same wrong PIN costs only
// one try, even if it is typed twice.
func TestPasswdOnTerminal(t *testing.T) {
	t.Parallel()
	s := newScene(t, lockoutParameters{3, 24 * time.Hour}, "")
	changed := s.wrong(20)
	s.costs(1, func() {
		p := s.passwd("id")
		mistake := s.wrong(8)
		p.WaitFor("3 tries left before the TPM locks itself.")
		p.secretly("Enter old PIN for keys/id.tpm: ", mistake)
		p.WaitFor("Wrong PIN. 2 tries left before the TPM locks itself.")
		p.secretly("Enter old PIN for keys/id.tpm: ", mistake) // costs nothing
		p.WaitFor("Wrong PIN. 2 tries left before the TPM locks itself.")
		p.secretly("Enter old PIN for keys/id.tpm: ", s.pin)
		p.secretly("Enter new PIN (empty for no PIN): ", changed)
		p.secretly("Enter same PIN again: ", s.wrong(5))
		p.WaitFor("PINs do not match.  Try again.")
		p.secretly("Enter new PIN (empty for no PIN): ", changed)
		p.secretly("Enter same PIN again: ", changed)
		p.WaitFor("The PIN of keys/id.tpm was changed.")
		p.WaitFor("with the old PIN.")
		p.ends(0)
	})
	s.mustTry("id", changed)
	// Without a yes, passwd does not use the last try.
	before := s.content("id")
	s.costs(1, func() {
		p := s.passwd("id")
		p.secretly("Enter old PIN for keys/id.tpm: ", s.wrong(8))
		p.WaitFor("Wrong PIN. One more locks the TPM.")
		p.WaitFor("Type yes to go on")
		p.Type("\x03")
		p.ends(130)
	})
	for _, answer := range []string{"y\n", "no\n", "\n", "yes!\n"} {
		s.costs(0, func() {
			p := s.passwd("id")
			p.WaitFor("One more wrong PIN locks the TPM.")
			p.WaitFor("Try the PIN of keys/id.tpm anyway?")
			p.WaitFor("Type yes to go on, anything else to stop: ")
			p.Type(answer)
			p.WaitFor("the last try was not used: refused at the prompt")
			p.WaitFor("hint: nothing was changed; wait 24 hours until the TPM gives back a try")
			p.ends(1)
		})
	}
	s.costs(1, func() {
		p := s.passwd("id")
		p.WaitFor("Type yes to go on, anything else to stop: ")
		p.Type("yes\n")
		p.secretly("Enter old PIN ", s.wrong(8))
		p.WaitFor("wrong PIN; the TPM is locked after too many wrong PINs, of any program on this machine")
		p.WaitFor("the next try is possible in at most 24h0m0s")
		p.WaitFor("tpm2_dictionarylockout --clear-lockout")
		p.ends(1)
	})
	p := s.passwd("id")
	p.WaitFor("the TPM is locked")
	p.WaitFor("hint: wait 24 hours; keys without a PIN keep working")
	p.ends(1)
	if s.content("id") != before {
		t.Error("the key file has changed")
	}
}

// TestPasswdRecovers checks that the TPM accepts PINs again after the time that passwd
// shows in a lockout.
func TestPasswdRecovers(t *testing.T) {
	t.Parallel()
	s := newScene(t, lockoutParameters{1, time.Hour}, "")
	p := s.passwd("id")
	p.WaitFor("One more wrong PIN locks the TPM.")
	p.WaitFor("Type yes to go on, anything else to stop: ")
	p.Type("yes\n")
	p.secretly("Enter old PIN ", s.wrong(8))
	p.WaitFor("the TPM is locked")
	p.WaitFor("1h0m0s")
	p.ends(1)
	s.setLockout(lockoutParameters{1, time.Second}) // this ends the hour at once
	for start := time.Now(); s.counter() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > longEnough {
			t.Fatal("the TPM stays locked")
		}
	}
	s.mustTry("id", s.pin)
}

// TestPasswdCancelled checks that Ctrl-C and Ctrl-D at each question end passwd and
// change nothing.
func TestPasswdCancelled(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	before := s.content("id")
	for _, end := range []struct {
		typed  string
		status int
		says   string
	}{{"\x03", 130, "interrupted"}, {"\x04", 1, "refused at the prompt"}} {
		for questions := range 3 {
			p := s.passwd("id")
			for _, question := range []string{"Enter old PIN for keys/id.tpm: ", "Enter new PIN (empty for no PIN): "}[:questions] {
				p.secretly(question, s.pin)
			}
			p.WaitFor([]string{"Enter old PIN", "Enter new PIN", "Enter same PIN again: "}[questions])
			p.Type(end.typed)
			p.WaitFor(end.says)
			p.ends(end.status)
		}
	}
	if s.content("id") != before || s.counter() != 0 {
		t.Errorf("passwd changed the key: %v; it cost %d tries", s.content("id") != before, s.counter())
	}
	p := s.passwd("id")
	for range 3 {
		p.secretly("Enter old PIN", s.wrong(8))
	}
	p.WaitFor("tpm-agent: changing the PIN of keys/id.tpm: wrong PIN (28 tries left before the TPM locks)")
	p.ends(1)
}

// TestPasswdUnprotected checks that passwd warns if the lockout would not protect the
// PIN of a key, and offers to make a new key.
func TestPasswdUnprotected(t *testing.T) {
	t.Parallel()
	const question = "Make a new key with a PIN, set the PIN anyway, or stop? (new/anyway/stop) [new]: "
	t.Run("new", func(t *testing.T) {
		s := newScene(t, patient, "")
		before := s.content("plain")
		p := s.passwd("plain")
		p.WaitFor("keys/plain.tpm was made without a PIN, and is exempt from the TPM's lockout")
		p.WaitFor(question)
		p.Type("new\n")
		p.WaitFor("Enter file in which to save the key (keys/plain-pin): ")
		p.Type("\n")
		p.secretly("Enter PIN of the new key: ", "")
		p.secretly("Enter same PIN again: ", "")
		p.secretly("Enter PIN of the new key: ", s.pin)
		p.secretly("Enter same PIN again: ", s.pin)
		p.WaitFor("Your identification has been saved in keys/plain-pin.tpm")
		p.WaitFor("keys/plain.tpm is unchanged.")
		p.WaitFor("ssh-copy-id -f -i keys/plain-pin.pub user@host")
		p.WaitFor("rm keys/plain.tpm keys/plain.pub")
		p.ends(0)
		if s.content("plain") != before {
			t.Error("the old key has changed")
		}
		s.mustTry("plain-pin", s.pin)
		key := must(keyfile.ReadFile(filepath.Join(s.keys, "plain-pin.tpm")))
		if key.EmptyAuth || key.Public.Attributes.NoDA() || key.Public.KeyBits != 256 {
			t.Errorf("the new key: %+v", key.Public)
		}
		if public := string(must(os.ReadFile(filepath.Join(s.keys, "plain-pin.pub")))); !strings.HasSuffix(public, " plain@test\n") {
			t.Errorf("the new key does not have the comment of the old one: %s", public)
		}
		// Again: passwd proposes another name, and refuses a typed name that is in use.
		p = s.passwd("plain")
		p.WaitFor(question)
		p.Type("\n")
		p.WaitFor("Enter file in which to save the key (keys/plain-pin2): ")
		p.Type("keys/id\n")
		p.WaitFor("keys/id.tpm already exists; no key was made, and nothing was changed")
		p.ends(1)
	})
	t.Run("anyway", func(t *testing.T) {
		s := newScene(t, patient, "")
		p := s.passwd("plain")
		p.WaitFor(question)
		p.Type("a\n")
		p.secretly("Enter new PIN (empty for no PIN): ", s.pin)
		p.secretly("Enter same PIN again: ", s.pin)
		p.WaitFor("keys/plain.tpm has a PIN now.")
		p.WaitFor("The TPM does not count wrong PINs of this key")
		p.ends(0)
		s.mustTry("plain", s.pin)
		s.costs(0, func() {
			p := s.passwd("plain")
			p.secretly("Enter old PIN for keys/plain.tpm: ", s.wrong(8))
			p.WaitFor("Wrong PIN.")
			p.secretly("Enter old PIN for keys/plain.tpm: ", s.pin)
			p.secretly("Enter new PIN (empty for no PIN): ", "")
			p.secretly("Enter same PIN again: ", "")
			p.WaitFor("keys/plain.tpm has no PIN any more")
			p.ends(0)
		})
	})
	t.Run("stop", func(t *testing.T) {
		s := newScene(t, patient, "")
		before := s.content("plain")
		p := s.passwd("plain", "-N", s.pin)
		p.WaitFor(question)
		p.Type("s\n")
		p.WaitFor("tpm-agent: changing the PIN of keys/plain.tpm: nothing was changed")
		p.ends(1)
		if s.content("plain") != before {
			t.Error("the key has changed")
		}
	})
}

// TestPasswdCost checks that passwd costs no try with the right PIN and one try with a
// wrong one. At its end the scene checks that no PIN crossed the bus.
func TestPasswdCost(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	long := s.wrong(40)
	s.costs(0, func() {
		if out, err := s.command("tpm-agent", "passwd", "-P", s.pin, "-N", long, "keys/id.tpm").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	})
	s.mustTry("id", long)
	for _, wrong := range []string{s.pin, ""} {
		s.costs(1, func() {
			out, err := s.command("tpm-agent", "passwd", "-P", wrong, "-N", s.pin, "keys/id.tpm").CombinedOutput()
			if status(t, err) != 1 || !strings.Contains(string(out), "wrong PIN (") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	s.costs(0, func() {
		if out, err := s.command("tpm-agent", "passwd", "-P", long, "--remove", "keys/id.tpm").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	})
	s.mustTry("id", "")
}

// TestPasswdTPMGone checks that passwd changes nothing if the TPM disappears between
// two questions.
func TestPasswdTPMGone(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	before := s.content("id")
	p := s.passwd("id")
	p.secretly("Enter old PIN ", s.pin)
	p.WaitFor("Enter new PIN ")
	s.tpm.Kill()
	p.Type(s.pin + "\n")
	p.secretly("Enter same PIN again: ", s.pin)
	p.WaitFor("tpm-agent: changing the PIN of keys/id.tpm: ")
	p.ends(1)
	if s.content("id") != before {
		t.Error("the key file has changed")
	}
	s.tpm.Restart()
	s.mustTry("id", s.pin)
}

// TestPasswdChangedMeanwhile checks that passwd does not overwrite a change by another
// process.
func TestPasswdChangedMeanwhile(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	p := s.passwd("id")
	p.secretly("Enter old PIN ", s.pin)
	p.WaitFor("Enter new PIN ")
	other := s.content("plain")
	if err := os.WriteFile(filepath.Join(s.keys, "id.tpm"), []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Type(s.pin + "\n")
	p.secretly("Enter same PIN again: ", s.pin)
	p.WaitFor("keys/id.tpm was changed meanwhile")
	p.WaitFor("hint: nothing was changed here")
	p.ends(1)
	if s.content("id") != other {
		t.Error("passwd overwrote the key file of another process")
	}
}

// TestPasswdRemembers checks that passwd remembers the storage key for the new file,
// even if it was given a symbolic link.
func TestPasswdRemembers(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	if err := os.Symlink("keys/id.tpm", filepath.Join(s.home, "link.tpm")); err != nil {
		t.Fatal(err)
	}
	changed := s.wrong(20)
	if out, err := s.command("tpm-agent", "passwd", "-P", s.pin, "-N", changed, "link.tpm").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	key := must(keyfile.ReadFile(filepath.Join(s.keys, "id.tpm")))
	known := must(parents.Store{Path: filepath.Join(s.home, "tpm-agent", "storage-keys")}.Read(s.keys))
	if p, changed := known.Of(parents.KeyOf(s.public, key), ""); p == nil || changed {
		t.Errorf("the remembered storage key is %v, for a different file: %v", p, changed)
	}
	s.mustTry("id", changed)
}

// TestPasswdFullDisk checks that passwd on a disk that is too small changes nothing.
func TestPasswdFullDisk(t *testing.T) {
	t.Parallel()
	full, done := 0, 0
	for pages := range 4 {
		dir := needs.SmallDisk(t, pages+4)
		home := program(t).Dir
		run := func(args ...string) (string, error) {
			cmd := program(t, args...)
			cmd.Dir, cmd.Env = home, inOneHome(cmd.Env, home)
			out, err := cmd.CombinedOutput()
			return string(out), err
		}
		path := filepath.Join(dir, "id.tpm")
		if out, err := run("keygen", "-q", "-N", "old", "-f", filepath.Join(dir, "id")); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		before := must(os.ReadFile(path))
		fill(t, dir, pages)
		out, err := run("passwd", "-P", "old", "-N", "new", path)
		after := must(os.ReadFile(path))
		switch {
		case err == nil:
			done++
			if bytes.Equal(before, after) {
				t.Errorf("%d pages: passwd succeeded but changed nothing", pages)
			}
		case !strings.Contains(out, "no space left on device") || !strings.Contains(out, "nothing was changed"):
			t.Errorf("%d pages: passwd reports %s", pages, out)
		default:
			full++
			if !bytes.Equal(before, after) {
				t.Errorf("%d pages: passwd failed but changed the file", pages)
			}
		}
		for _, name := range list(t, dir) {
			if keyfile.IsTemporary(name) {
				t.Errorf("%d pages: left behind %s", pages, name)
			}
		}
	}
	if full < 1 || done < 1 {
		t.Errorf("%d disks were too small and %d were large enough: the test needs both", full, done)
	}
}

// inOneHome returns an environment with home, for programs that share it.
func inOneHome(environ []string, home string) []string {
	return append(environ, "HOME="+home, "XDG_RUNTIME_DIR="+home, "XDG_STATE_HOME="+home)
}

// TestPasswdInterrupted sends SIGINT to passwd at many moments. It checks that the key
// keeps the old PIN or gets the new one, and that no temporary file is left.
func TestPasswdInterrupted(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	pins := [2]string{s.pin, s.wrong(20)}
	for delay := time.Duration(0); delay < 40*time.Millisecond; delay += 3 * time.Millisecond {
		before := s.content("id")
		cmd := s.command("tpm-agent", "passwd", "-q", "-P", pins[0], "-N", pins[1], "keys/id.tpm")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay) // any moment will do; the test waits for no event
		_ = cmd.Process.Signal(os.Interrupt)
		err := cmd.Wait()
		if s.content("id") != before {
			pins[0], pins[1] = pins[1], pins[0]
		} else if err == nil {
			t.Errorf("after %v: passwd succeeded but changed nothing", delay)
		}
		for _, name := range list(t, s.keys) {
			if keyfile.IsTemporary(name) {
				t.Errorf("after %v: left behind %s", delay, name)
			}
		}
		s.mustTry("id", pins[0])
	}
	if n := s.counter(); n != 0 {
		t.Errorf("the TPM counted %d wrong tries, want 0", n)
	}
}

// TestPasswdWhileAgentRuns checks that an agent that has already used the key accepts
// only the new PIN after passwd, also if the key file is behind a symbolic link.
func TestPasswdWhileAgentRuns(t *testing.T) {
	t.Parallel()
	for _, linked := range []bool{false, true} {
		s := newScene(t, patient, "")
		if linked {
			if err := os.Mkdir(filepath.Join(s.home, "elsewhere"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(s.keys, "id.tpm"), filepath.Join(s.home, "elsewhere", "id.tpm")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("../elsewhere/id.tpm", filepath.Join(s.keys, "id.tpm")); err != nil {
				t.Fatal(err)
			}
		}
		a := newAskpass(t)
		d := s.serve(a.env())
		if _, err := d.asked(a, s.public, "say "+s.pin); err != nil {
			t.Fatalf("%v\n%s", err, d.logged())
		}
		changed := s.wrong(20)
		s.costs(0, func() {
			if out, err := s.command("tpm-agent", "passwd", "-P", s.pin, "-N", changed, "keys/id.tpm").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		})
		s.costs(1, func() {
			if _, err := d.asked(a, s.public, "say "+s.pin, "say "+changed); err != nil {
				t.Errorf("linked %v: %v\n%s", linked, err, d.logged())
			}
		})
		d.stop()
	}
}

// TestPasswdWrongEmptyAuth checks that passwd works with key files that wrongly claim
// to have a PIN or to have none. Finding out costs at most one try.
func TestPasswdWrongEmptyAuth(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		key  string
		cost int
		args []string
	}{
		{"the file denies its PIN", "id", 1, []string{"-P", "old"}},
		{"the file claims a PIN", "plain", 0, []string{"--without-lockout"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t, patient, "")
			path := filepath.Join(s.keys, test.key+".tpm")
			key := must(keyfile.ReadFile(path))
			key.EmptyAuth = !key.EmptyAuth
			if err := os.WriteFile(path, must(key.Marshal()), 0o600); err != nil {
				t.Fatal(err)
			}
			for i, arg := range test.args {
				if arg == "old" {
					test.args[i] = s.pin
				}
			}
			changed := s.wrong(20)
			s.costs(test.cost, func() {
				if out, err := s.command("tpm-agent", append([]string{"passwd", "-N", changed, path}, test.args...)...).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			})
			s.mustTry(test.key, changed)
			if must(keyfile.ReadFile(path)).EmptyAuth {
				t.Error("the new file claims that it has no PIN")
			}
		})
	}
}

// TestPasswdReadOnlyDisk checks that passwd reports a read-only file system before it
// asks for a PIN.
func TestPasswdReadOnlyDisk(t *testing.T) {
	t.Parallel()
	dir := needs.SmallDisk(t, 4)
	cmd := program(t, "keygen", "-q", "-N", "old", "-f", filepath.Join(dir, "id"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	out, err := program(t, "passwd", filepath.Join(dir, "id.tpm")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "id.tpm: read-only file system") || !strings.Contains(string(out), "hint: the file system is mounted read-only") || strings.Contains(string(out), "Enter") {
		t.Errorf("passwd ended with %v and reports %s", err, out)
	}
}
