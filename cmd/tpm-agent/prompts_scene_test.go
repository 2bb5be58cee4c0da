package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
)

// scene is a TPM with two keys, one with a PIN and one without, and a home for the
// programs of a test. They do not use the user's files.
type scene struct {
	t       *testing.T
	tpm     *tpmtest.SWTPM
	tap     *tpmtest.Tap
	home    string
	keys    string // the directory of the key files
	env     []string
	pin     string
	public  ssh.PublicKey // of the key with the PIN, keys/id
	pinless ssh.PublicKey // of keys/plain

	daemons []int // the tmux servers, which are not descendants of the test

	// secrets are the PIN and the wrong PINs. When the test ends, keepsSecrets
	// searches for them, on the bus for the first octets of each. Four octets
	// match by chance once in a few thousand tests, so most tests use eight.
	secrets []string
	octets  int
}

// patient has enough tries for a test, and gives none back while it runs.
var patient = lockoutParameters{tries: 31, recovery: 24 * time.Hour}

// lockoutParameters are the lockout settings of a TPM.
type lockoutParameters struct {
	tries    int
	recovery time.Duration
}

// newScene makes a scene whose key has the PIN. If pin is empty, it uses 20 random
// characters.
func newScene(t *testing.T, p lockoutParameters, pin string) *scene {
	t.Helper()
	if pin == "" {
		pin = randomPIN(20)
	}
	s := &scene{t: t, tpm: tpmtest.Start(t), home: t.TempDir(), pin: pin, secrets: []string{pin}, octets: 8}
	s.tpm.Tool("tpm2_dictionarylockout", "--setup-parameters", fmt.Sprintf("--max-tries=%d", p.tries),
		fmt.Sprintf("--recovery-time=%d", int(p.recovery.Seconds())), fmt.Sprintf("--lockout-recovery-time=%d", int(p.recovery.Seconds())))
	s.tap = s.tpm.Tap(t)
	t.Cleanup(s.keepsSecrets)
	s.keys = filepath.Join(s.home, "keys")
	run := filepath.Join(s.home, "run")
	for _, dir := range []string{s.keys, run} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.env = []string{
		"HOME=" + s.home, "XDG_RUNTIME_DIR=" + run, "XDG_STATE_HOME=" + s.home, "TMPDIR=" + s.home,
		"PATH=" + os.Getenv("PATH"), "SHELL=/bin/sh", "LC_ALL=C.UTF-8", "TPM_AGENT_TPM=" + s.tap.Address(),
		"GOCOVERDIR=" + os.Getenv("GOCOVERDIR"), "GIT_CONFIG_NOSYSTEM=1",
		"DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent/bus",
		"GORACE=atexit_sleep_ms=0", // without it, each program waits a second at its end
	}
	s.public, s.pinless = s.keygen("id", pin), s.keygen("plain", "")
	return s
}

// randomPIN returns n random characters, which occur in no other test, program or
// file.
func randomPIN(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return base32.StdEncoding.EncodeToString(b)[:n]
}

// wrong returns a wrong PIN of n characters.
func (s *scene) wrong(n int) string {
	pin := randomPIN(n)
	s.secrets = append(s.secrets, pin)
	return pin
}

// command returns a command that runs a program in the scene.
func (s *scene) command(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Env = s.home, slices.Clone(s.env)
	return cmd
}

// keygen makes a key in the key directory.
func (s *scene) keygen(name, pin string) ssh.PublicKey {
	s.t.Helper()
	file := filepath.Join(s.keys, name)
	if out, err := s.command("tpm-agent", "keygen", "-q", "-N", pin, "-C", name+"@test", "-f", file).CombinedOutput(); err != nil {
		s.t.Fatalf("keygen: %v\n%s", err, out)
	}
	line, err := os.ReadFile(file + ".pub")
	if err != nil {
		s.t.Fatal(err)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		s.t.Fatal(err)
	}
	return public
}

// counter returns the TPM's own count of wrong auth values.
func (s *scene) counter() int {
	s.t.Helper()
	l, err := s.tap.Lockout()
	if err != nil {
		s.t.Fatal(err)
	}
	return l.Counter
}

// costs fails the test unless f adds exactly want to the TPM's count.
func (s *scene) costs(want int, f func()) {
	s.t.Helper()
	before := s.counter()
	f()
	if got := s.counter() - before; got != want {
		s.t.Errorf("the TPM counted %d wrong tries, want %d", got, want)
	}
}

// agentRun is a running agent.
type agentRun struct {
	*scene
	cmd    *exec.Cmd
	socket string
	log    string        // the file with its standard error
	ended  chan struct{} // closed when the agent has ended
	err    error         // how it ended
}

// serve starts an agent for the keys of the scene. env is added to its
// environment.
func (s *scene) serve(env []string, args ...string) *agentRun {
	s.t.Helper()
	n := must(os.MkdirTemp(s.home, "d"))
	d := &agentRun{scene: s, socket: filepath.Join(n, "s"), log: filepath.Join(n, "log")}
	d.cmd = s.command("tpm-agent", append([]string{"serve", "--socket", d.socket, "--key-dir", s.keys, "-v"}, args...)...)
	d.cmd.Env = append(d.cmd.Env, env...)
	d.cmd.Stderr = must(os.Create(d.log))
	// A new session has no terminal: the agent must not ask on that of the test run.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	d.ended = make(chan struct{})
	go func() { d.err = d.cmd.Wait(); close(d.ended) }()
	s.t.Cleanup(d.stop)
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(time.Millisecond) {
		if conn, err := net.Dial("unix", d.socket); err == nil {
			conn.Close()
			return d
		}
		select {
		case <-d.ended:
			s.t.FailNow()
		default:
		}
	}
	s.t.Fatal("the agent does not start")
	return nil
}

// stop ends the agent with SIGTERM, so that it leaves nothing in the TPM.
func (d *agentRun) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	killed := time.AfterFunc(longEnough, func() { _ = d.cmd.Process.Kill() })
	defer killed.Stop()
	if <-d.ended; d.err != nil {
		d.t.Errorf("the agent ended with %v\n%s", d.err, d.logged())
	}
}

// logged returns the agent's log.
func (d *agentRun) logged() string {
	d.t.Helper()
	return string(must(os.ReadFile(d.log)))
}

// sign requests a signature over a new connection, and verifies it.
func (d *agentRun) sign(key ssh.PublicKey) error {
	conn := connect(d.t, d.socket)
	defer conn.Close()
	data := []byte(time.Now().String())
	sig, err := sshagent.NewClient(conn).Sign(key, data)
	if err != nil {
		return err
	}
	return key.Verify(data, sig)
}

// signs fails the test unless the agent signs.
func (d *agentRun) signs(key ssh.PublicKey) {
	d.t.Helper()
	if err := d.sign(key); err != nil {
		d.t.Errorf("no signature: %v\n%s", err, d.logged())
	}
}

// askpass plays the user at a desktop. It is a program for SSH_ASKPASS that reports
// its question and waits for the test to answer.
type askpass struct {
	t    *testing.T
	dir  string
	seen map[string]bool
}

// askpassProgram makes a pipe for the answer, reads a line from it, and does what the
// first word says. The PIN is never in its arguments or environment.
const askpassProgram = `#!/bin/sh
cd "${0%/*}" || exit 9
printf '%s' "$1" >"text.$$" && printf '%s' "$SSH_ASKPASS_PROMPT" >"kind.$$" &&
	mkfifo "pipe.$$" && mv "pipe.$$" "open.$$" || exit 9
read -r word line <"open.$$"
case $word in
say) printf '%s\n' "$line" ;;
cancel) exit 1 ;;
nothing) ;;
crash) printf '%s' "$line"; kill -SEGV $$ ;;
big) head -c 1048576 /dev/zero | tr '\000' x ;;
nul) printf '%s\000%s\n' "$line" "$line" ;;
stubborn) trap '' TERM HUP INT; : >"deaf.$$"; while :; do sleep 600; done ;;
*) exit 9 ;;
esac
`

// newAskpass installs an askpass program in a new directory.
func newAskpass(t *testing.T) *askpass {
	t.Helper()
	a := &askpass{t: t, dir: t.TempDir(), seen: map[string]bool{}}
	if err := os.WriteFile(filepath.Join(a.dir, "askpass"), []byte(askpassProgram), 0o700); err != nil {
		t.Fatal(err)
	}
	return a
}

// env returns the environment that makes an agent use the program.
func (a *askpass) env() []string {
	return []string{"SSH_ASKPASS=" + filepath.Join(a.dir, "askpass"), "SSH_ASKPASS_REQUIRE=force"}
}

// dialog is an open question of askpass.
type dialog struct {
	a    *askpass
	pid  string
	text string
	kind string // SSH_ASKPASS_PROMPT: confirm, none, or empty for a PIN
}

// next waits for the next question.
func (a *askpass) next() *dialog {
	a.t.Helper()
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(time.Millisecond) {
		if d := a.poll(); d != nil {
			return d
		}
	}
	a.t.Fatal("the agent does not ask")
	return nil
}

// poll returns a question that was not returned yet, or nil if there is none.
func (a *askpass) poll() *dialog {
	a.t.Helper()
	for _, path := range must(filepath.Glob(filepath.Join(a.dir, "open.*"))) {
		if !a.seen[path] {
			a.seen[path] = true
			pid := strings.TrimPrefix(filepath.Ext(path), ".")
			return &dialog{a, pid, a.wrote("text", pid), a.wrote("kind", pid)}
		}
	}
	return nil
}

// wrote returns what the program with that pid wrote to a file.
func (a *askpass) wrote(name, pid string) string {
	return string(must(os.ReadFile(filepath.Join(a.dir, name+"."+pid))))
}

// does sends words to the program, which then does what they say.
func (d *dialog) does(words ...string) {
	d.a.t.Helper()
	var pipe *os.File
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		var err error
		// O_NONBLOCK does not wait for a reader, which may have ended.
		if pipe, err = os.OpenFile(filepath.Join(d.a.dir, "open."+d.pid), os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			break
		}
		if !errors.Is(err, unix.ENXIO) || !alive(d.pid) || time.Since(start) > longEnough {
			d.a.t.Errorf("the program of the question has ended: %v\n%s", err, d.text)
			return
		}
	}
	defer pipe.Close()
	if _, err := pipe.WriteString(strings.Join(words, " ") + "\n"); err != nil {
		d.a.t.Error(err)
	}
}

// asked requests a signature, and answers the questions with lines, each a command of
// askpassProgram. It fails the test if there are more or fewer questions. It returns
// what was shown, including notices.
func (d *agentRun) asked(a *askpass, key ssh.PublicKey, lines ...string) (shown []*dialog, err error) {
	d.t.Helper()
	done := make(chan error, 1)
	go func() { done <- d.sign(key) }()
	for {
		select {
		case err := <-done:
			if len(lines) > 0 {
				d.t.Errorf("the agent asked %d questions less than expected: %v\n%s", len(lines), err, d.logged())
			}
			return shown, err
		case <-time.After(time.Millisecond):
		}
		q := a.poll()
		if q == nil {
			continue
		}
		shown = append(shown, q)
		switch {
		case q.kind == "none":
			q.does("nothing")
		case len(lines) == 0:
			d.t.Errorf("unexpected question: %s", q.text)
			q.does("cancel")
		default:
			q.does(lines[0])
			lines = lines[1:]
		}
	}
}

// requestSignature asks for a signature and does not wait for the answer.
func requestSignature(t *testing.T, conn net.Conn, key ssh.PublicKey) {
	t.Helper()
	if _, err := conn.Write(frame(ssh.Marshal(struct {
		Number     byte
		Blob, Data []byte
		Flags      uint32
	}{13, key.Marshal(), []byte("data"), 0}))); err != nil {
		t.Fatal(err)
	}
}

// awaitRead waits until the agent has read all requests on conns, and has had time to
// act on them.
func (d *agentRun) awaitRead(conns []net.Conn) {
	d.t.Helper()
	for _, conn := range conns {
		raw, err := conn.(*net.UnixConn).SyscallConn()
		if err != nil {
			d.t.Fatal(err)
		}
		for start, left := time.Now(), 1; left > 0; time.Sleep(time.Millisecond) {
			if err := raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil {
				d.t.Fatal(err)
			}
			if time.Since(start) > longEnough {
				d.t.Fatalf("the agent does not read: %d octets, %v", left, err)
			}
		}
	}
	for range 3 {
		d.signs(d.pinless)
	}
}

// gone waits until the program of the question has ended.
func (d *dialog) gone() {
	d.a.t.Helper()
	for start := time.Now(); alive(d.pid); time.Sleep(time.Millisecond) {
		if time.Since(start) > longEnough {
			d.a.t.Errorf("process %s does not end", d.pid)
			return
		}
	}
}

// await waits until the program has written a file with this name.
func (d *dialog) await(name string) {
	d.a.t.Helper()
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(d.a.dir, name+"."+d.pid)); err == nil {
			return
		}
	}
	d.a.t.Errorf("the program did not write %s", name)
}

// alive reports whether a process exists and is not a zombie.
func alive(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

// must returns v, or panics on an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
