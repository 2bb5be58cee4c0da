package main

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// TestMain makes tpm-agent a command of the tests and scripts. It runs in its own
// process, as users run it.
func TestMain(m *testing.M) {
	testscript.Main(steady{m}, map[string]func(){"tpm-agent": main, "hardened": hardened, "signs": signs})
}

// steady runs the tests with a fixed umask, and with a short directory for temporary
// files: the agent refuses key directories that others can write to, and the path of
// a socket, which contains the name of the test, must fit into 108 octets.
type steady struct{ *testing.M }

// Run implements [testscript.TestingM].
func (s steady) Run() int {
	unix.Umask(0o022)
	if len(os.TempDir()) > len("/tmp/12345678") {
		if err := os.Setenv("TMPDIR", "/tmp"); err != nil {
			panic(err)
		}
	}
	return s.M.Run()
}

// TestScripts runs the scripts in testdata/script. Each has its own home and software
// TPM; none uses the user's home.
func TestScripts(t *testing.T) {
	t.Parallel()
	needs.Programs(t, "swtpm", "ssh-keygen", "ssh-add")
	// Without WorkdirRoot, a run of only some scripts leaves a directory behind.
	root, err := os.MkdirTemp("", "scripts")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	testscript.Run(t, testscript.Params{
		Dir:         "testdata/script",
		WorkdirRoot: root,
		Setup: func(env *testscript.Env) error {
			home := filepath.Join(env.WorkDir, "h")
			run := filepath.Join(home, "run")
			repository, err := filepath.Abs("../..")
			if err != nil {
				return err
			}
			env.Vars = append(env.Vars,
				"HOME="+home, "XDG_RUNTIME_DIR="+run, "XDG_STATE_HOME="+filepath.Join(home, "state"),
				"SOCK="+filepath.Join(run, "tpm-agent", "agent.sock"),
				"REPOSITORY="+repository,
				"TPM_AGENT_TPM=software", "SHELL=/bin/sh", "LC_ALL=C.UTF-8", "USER=tester",
				"GIT_CONFIG_GLOBAL="+filepath.Join(home, "gitconfig"), "GIT_CONFIG_NOSYSTEM=1",
				"DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent/bus",
			)
			env.Values[daemonsKey{}] = make(map[string]*daemonProcess)
			env.Defer(func() { endForked(home) })
			return os.MkdirAll(run, 0o700)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"start":  cmdStart,
			"signal": cmdSignal,
			"ended":  cmdEnded,
			"status": cmdStatus,
			"mode":   cmdMode,
			"await":  cmdAwait,
			"readme": cmdReadme,
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Getuid() == 0, nil
			}
			return false, errors.New("unknown condition " + cond)
		},
	})
}

// endForked kills the agents in the background that have a socket below home. A script
// that fails does not end them itself.
func endForked(home string) {
	_ = filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() != fs.ModeSocket {
			return nil
		}
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return nil
		}
		defer conn.Close()
		raw, err := conn.SyscallConn()
		if err != nil {
			return nil
		}
		return raw.Control(func(fd uintptr) {
			peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			if err == nil && int(peer.Pid) != os.Getpid() {
				_ = unix.Kill(int(peer.Pid), unix.SIGKILL)
			}
		})
	})
}

// longEnough is the time after which a test that hangs fails. It is long because a
// machine can be busy.
const longEnough = 2 * time.Minute

// A daemonProcess is a program that a script runs in the background.
type daemonProcess struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// cmdStart starts a program in the background, and waits until something
// accepts connections on $SOCK: start NAME PROGRAM [ARG...]. Its output goes to
// NAME.out and NAME.log.
func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: start NAME PROGRAM [ARG...]")
	}
	path, err := exec.LookPath(args[1])
	ts.Check(err)
	d := &daemonProcess{cmd: exec.Command(path, args[2:]...), done: make(chan struct{})}
	d.cmd.Args[0] = args[1]
	d.cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{
		"HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "TPM_AGENT_TPM", "SHELL", "PATH", "TMPDIR", "LC_ALL", "WORK",
		"SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM", "NOTIFY_SOCKET", "GOCOVERDIR", "DBUS_SYSTEM_BUS_ADDRESS",
	} {
		if value := ts.Getenv(name); value != "" {
			d.cmd.Env = append(d.cmd.Env, name+"="+value)
		}
	}
	d.cmd.Stdout, err = os.Create(ts.MkAbs(args[0] + ".out"))
	ts.Check(err)
	d.cmd.Stderr, err = os.Create(ts.MkAbs(args[0] + ".log"))
	ts.Check(err)
	ts.Check(d.cmd.Start())
	go func() { _ = d.cmd.Wait(); close(d.done) }()
	ts.Defer(func() { _ = d.cmd.Process.Kill(); <-d.done })
	ts.Setenv("PID_"+args[0], strconv.Itoa(d.cmd.Process.Pid))
	daemons(ts)[args[0]] = d
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(time.Millisecond) {
		if conn, err := net.Dial("unix", ts.Getenv("SOCK")); err == nil {
			conn.Close()
			return
		}
		select {
		case <-d.done:
			ts.Fatalf("%s ended: %v\n%s", args[0], d.cmd.ProcessState, ts.ReadFile(args[0]+".log"))
		default:
		}
	}
	ts.Fatalf("%s does not answer on $SOCK", args[0])
}

// daemons returns the programs that the script has started, by name.
func daemons(ts *testscript.TestScript) map[string]*daemonProcess {
	return ts.Value(daemonsKey{}).(map[string]*daemonProcess)
}

// daemonsKey is the key of the script's daemons in its values.
type daemonsKey struct{}

// cmdSignal sends a signal to a daemon: signal NAME TERM|HUP|INT|KILL|USR1|USR2.
func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2}
	if neg || len(args) != 2 || signals[args[1]] == 0 || daemons(ts)[args[0]] == nil {
		ts.Fatalf("usage: signal NAME TERM|HUP|INT|KILL|USR1|USR2")
	}
	ts.Check(daemons(ts)[args[0]].cmd.Process.Signal(signals[args[1]]))
}

// cmdEnded waits for a daemon to end, and checks its exit status: ended NAME
// STATUS. The status is -1 if a signal ended it.
func cmdEnded(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || daemons(ts)[args[0]] == nil {
		ts.Fatalf("usage: ended NAME STATUS")
	}
	d := daemons(ts)[args[0]]
	select {
	case <-d.done:
	case <-time.After(longEnough):
		ts.Fatalf("%s does not end\n%s", args[0], ts.ReadFile(args[0]+".log"))
	}
	if got := strconv.Itoa(d.cmd.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s ended with %s, want %s\n%s", args[0], got, args[1], ts.ReadFile(args[0]+".log"))
	}
}

// cmdStatus runs a program and checks its exit status: status N PROGRAM
// [ARG...]. stdout and stderr can be compared as after exec.
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("%s ended with %d, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// cmdMode checks the mode of a file: mode 600 FILE.
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode OCTAL FILE")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := strconv.FormatInt(int64(info.Mode().Perm()), 8); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

// cmdAwait waits until a file contains a text: await FILE TEXT.
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE TEXT")
	}
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(time.Millisecond) {
		if data, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && strings.Contains(string(data), args[1]) {
			return
		}
	}
	ts.Fatalf("%q does not appear in %s", args[1], args[0])
}
