package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/prompt/askpass"
	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

func TestParseWays(t *testing.T) {
	t.Parallel()
	for list, want := range map[string][]string{
		"auto":                              nil,
		"none":                              {},
		"askpass":                           {"askpass"},
		"terminal,pinentry":                 {"terminal", "pinentry"},
		"pinentry,askpass,terminal,systemd": {"pinentry", "askpass", "terminal", "systemd"},
	} {
		if got, err := parseWays(list); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %#v, %v", list, got, err)
		}
	}
	for list, why := range map[string]string{
		"":                  `"" is not a way to ask`,
		"tty":               `"tty" is not a way to ask: they are pinentry, askpass, terminal, systemd; or auto, or none`,
		"askpass,":          `"" is not a way to ask`,
		"askpass, terminal": `" terminal" is not a way to ask`,
		"none,askpass":      `"none" is not a way to ask`,
		"auto,askpass":      `"auto" is not a way to ask`,
		"askpass,askpass":   "askpass is named twice",
	} {
		if got, err := parseWays(list); err == nil || !strings.HasPrefix(err.Error(), why) {
			t.Errorf("%q: got %v, %v; want %s", list, got, err, why)
		}
	}
}

// TestOrder tests the order in which the ways are tried.
func TestOrder(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		options prompts
		want    string
	}{
		{prompts{}, "pinentry askpass terminal systemd"},
		{prompts{require: askpass.Never}, "pinentry askpass terminal systemd"},
		{prompts{require: askpass.Prefer}, "askpass pinentry terminal systemd"},
		{prompts{require: askpass.Force}, "askpass pinentry terminal systemd"},
		{prompts{require: askpass.Force, names: []string{"terminal", "askpass"}}, "terminal askpass"},
		{prompts{names: []string{}}, ""},
	} {
		var names []string
		for _, w := range test.options.ways() {
			names = append(names, w.Name())
		}
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("%+v: got %s", test.options, got)
		}
	}
}

// scripts returns a Prompter whose pinentry and askpass are shell scripts, and the
// directory that is $DIR to them.
func scripts(t *testing.T, pinentry, askpass string, o prompts) (*prompt.Prompter, string) {
	t.Helper()
	dir := t.TempDir()
	for name, body := range map[string]string{
		"pinentry":       "#!/bin/sh\n" + pinentry + "\n",
		"askpass":        "#!/bin/sh\n" + askpass + "\n",
		"gpg-agent.conf": "pinentry-program " + dir + "/pinentry\n",
	} {
		// A program that another test starts now would inherit the open file, and
		// a file that is open for writing cannot be run.
		syscall.ForkLock.RLock()
		err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o700)
		syscall.ForkLock.RUnlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	o.askpass = filepath.Join(dir, "askpass")
	o.Environ = append([]string{"PATH=" + os.Getenv("PATH"), "GNUPGHOME=" + dir, "DIR=" + dir}, o.Environ...)
	if o.Timeout == 0 {
		o.Timeout, o.Grace = 2*time.Minute, 2*time.Second
	}
	return prompt.New(o.ways(), slog.New(slog.DiscardHandler)), dir
}

// speaker is a pinentry that answers with a shell command when it is asked for a
// PIN, and notes what it was told.
func speaker(getpin string) string {
	return fmt.Sprintf(`echo OK ready
while read -r line; do
	echo "$line" >>$DIR/told
	case "$line" in
	GETPIN*) %s;;
	GETINFO*) printf 'D qt\nOK\n';;
	BYE*) echo OK; exit;;
	*) echo OK;;
	esac
done`, getpin)
}

// inWindows are options for these ways, with a display. Only a dialog that is
// never answered has a short time.
func inWindows(test string, ways ...string) prompts {
	o := prompts{names: ways}
	o.Environ, o.Timeout, o.Grace = []string{"DISPLAY=:77"}, time.Hour, time.Minute
	if test == "never answers" {
		o.Timeout, o.Grace = 100*time.Millisecond, 100*time.Millisecond
	}
	return o
}

func pin(ctx context.Context, p *prompt.Prompter) (string, error) {
	got, err := p.AuthValue(ctx, ask.AuthPrompt{Question: ask.Question{Name: "id.tpm"}, TriesLeft: -1})
	return string(got), err
}

// TestNextWay tests after which answers of a pinentry the next way is tried.
func TestNextWay(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		pinentry string
		want     error // nil: askpass was asked
	}{
		"says no":         {speaker("echo ERR 83886179 canceled"), ask.ErrRefused},
		"times out":       {speaker("echo ERR 83886142 timeout"), ask.ErrNoAnswer},
		"never answers":   {speaker("sleep 600"), ask.ErrNoAnswer},
		"no display":      {speaker("echo ERR 83918950 no such device"), nil},
		"crashes":         {"kill -9 $$", nil},
		"crashes, asking": {speaker("kill -9 $$"), nil},
		"ends":            {"exit 0", nil},
		"garbage":         {"while :; do echo 0123456789; done", nil},
		"no newline":      {"head -c 100000 /dev/zero", nil},
		"not a program":   {"#!/nowhere", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _ := scripts(t, test.pinentry, "echo from askpass", inWindows(name, "pinentry", "askpass"))
			got, err := pin(t.Context(), p)
			if test.want == nil && (err != nil || got != "from askpass") || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %q, %v; want %v", got, err, test.want)
			}
		})
	}
}

// TestNextWayAfterAskpass tests the same for an askpass program.
func TestNextWayAfterAskpass(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		askpass string
		want    error // nil: pinentry was asked
	}{
		"says no":       {"exit 1", ask.ErrRefused},
		"never answers": {"trap '' TERM; sleep 600 & wait; wait", ask.ErrNoAnswer},
		"no display":    {"echo 'Gtk-WARNING **: cannot open display: :7' >&2; exit 1", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _ := scripts(t, speaker(`printf 'D from pinentry\nOK\n'`), test.askpass, inWindows(name, "askpass", "pinentry"))
			got, err := pin(t.Context(), p)
			if test.want == nil && (err != nil || got != "from pinentry") || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %q, %v; want %v", got, err, test.want)
			}
		})
	}
}

// A pinentry that is killed leaves the terminal as it was to the next way.
func TestNextWayOnTerminal(t *testing.T) {
	for name, setting := range map[string]string{"tty": "-echo -icanon", "curses": "raw -echo"} {
		killed := speaker(`stty -F "$(sed -n 's/^OPTION ttyname=//p' $DIR/told)" ` + setting + `; kill -9 $$`)
		prompter, _ := scripts(t, killed, "", prompts{names: []string{"pinentry", "terminal"}})
		p := ptytest.New(t)
		before := p.Settings()
		client := p.Run(exec.Command("sleep", "1000")).Process.Pid
		done := make(chan string, 1)
		go func() {
			got, err := prompter.AuthValue(t.Context(), ask.AuthPrompt{Question: ask.Question{Peer: peer.Peer{PID: client, UID: os.Getuid()}}})
			done <- fmt.Sprintf("%s, %v", got, err)
		}()
		p.WaitFor("Enter PIN for ")
		p.WaitFor("PIN: ")
		p.Type("1234\n")
		if got := <-done; got != "1234, <nil>" {
			t.Errorf("%s: got %s", name, got)
		}
		if p.Settings() != before {
			t.Errorf("%s: the terminal was %+v, and is %+v", name, before, p.Settings())
		}
	}
}

// TestNoWay tests that the error has each way with its reason, in order, and what
// helps.
func TestNoWay(t *testing.T) {
	o := prompts{names: []string{"systemd", "askpass", "terminal", "pinentry"}, require: askpass.Never, terminal: "/nowhere/tty"}
	o.Environ = []string{"XDG_RUNTIME_DIR=/nowhere"}
	p, dir := scripts(t, "exit 0", "exit 1", o)
	t.Setenv("PATH", "/nowhere")
	_, err := p.AuthValue(t.Context(), ask.AuthPrompt{Question: ask.Question{Name: "id.tpm", Peer: peer.Peer{PID: -1, UID: -1}}})
	want := `asking for the PIN of id.tpm: no way to ask the user; ` +
		`systemd: exec: "systemd-ask-password": executable file not found in $PATH; ` +
		`askpass: SSH_ASKPASS_REQUIRE=never; ` +
		`terminal: the client is not known, and the agent has no terminal (open /nowhere/tty: no such file or directory); ` +
		`pinentry: there is no display, and the client is not known; ` +
		`what helps: DISPLAY or WAYLAND_DISPLAY for the agent, with a pinentry or SSH_ASKPASS, or a terminal in which the client runs and nothing else reads`
	if err == nil || err.Error() != want || !errors.Is(err, ask.ErrNoPrompt) {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "told")); err == nil {
		t.Error("the pinentry was started")
	}
	_, err = pin(t.Context(), prompt.New(nil, slog.New(slog.DiscardHandler)))
	if !errors.Is(err, ask.ErrNoPrompt) || err.Error() != "asking for the PIN of id.tpm: no way to ask the user: serve --prompt none turns prompts off" {
		t.Errorf("got %v", err)
	}
}

// await waits until a file exists and returns the number in it.
func await(t *testing.T, path string) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if data, err := os.ReadFile(path); err == nil {
			if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
				return n
			}
		}
	}
	t.Fatalf("%s did not appear", path)
	return 0
}

// awaitGone waits until a process has ended.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %d still runs", pid)
}

// A program that hangs and ignores SIGTERM is gone after the time limit, with all
// that it started.
func TestHungProgramsEnd(t *testing.T) {
	t.Parallel()
	const hang = `trap '' TERM; sleep 600 & echo $! >$DIR/child; echo $$ >$DIR/pid.new; mv $DIR/pid.new $DIR/pid; while :; do wait; done`
	for _, name := range []string{"pinentry", "askpass"} {
		for timeout := 100 * time.Millisecond; ; timeout *= 2 { // on a slow machine it takes longer until it hangs
			o := inWindows("never answers", name)
			o.Timeout = timeout
			p, dir := scripts(t, speaker(hang), hang, o)
			if _, err := pin(t.Context(), p); !errors.Is(err, ask.ErrNoAnswer) {
				t.Fatalf("%s: got %v", name, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "pid")); err == nil {
				awaitGone(t, await(t, filepath.Join(dir, "pid")))
				awaitGone(t, await(t, filepath.Join(dir, "child")))
				break
			}
		}
	}
}

func TestProgramsEndWithContext(t *testing.T) {
	t.Parallel()
	const hang = `echo $$ >$DIR/pid; exec sleep 600`
	for _, name := range []string{"pinentry", "askpass"} {
		p, dir := scripts(t, speaker(hang), hang, inWindows("", name, "terminal"))
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("client gone")
		done := make(chan error, 1)
		go func() {
			_, err := pin(ctx, p)
			done <- err
		}()
		pid := await(t, filepath.Join(dir, "pid"))
		cancel(gone)
		if err := <-done; !errors.Is(err, gone) {
			t.Errorf("%s: got %v", name, err)
		}
		awaitGone(t, pid)
	}
}

func TestClientGoneBefore(t *testing.T) {
	t.Parallel()
	p, dir := scripts(t, "", "touch $DIR/ran", inWindows("", "askpass"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pin(ctx, p); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("a dialog was shown though its client had gone")
	}
}

// TestKinds tests each kind of question from the Prompter's method to the program.
func TestKinds(t *testing.T) {
	t.Parallel()
	p, dir := scripts(t, "", `printf '%s: %s' "$SSH_ASKPASS_PROMPT" "$1" >$DIR/told; echo $ANSWER`, inWindows("", "systemd", "askpass"))
	q := ask.Question{Name: "id\x1b[31m\u202egnp.tpm", Comment: "me@here\n", Fingerprint: "SHA256:abc"}
	told := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(dir, "told")); err != nil || !strings.HasPrefix(string(got), want) {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	if _, err := p.AuthValue(t.Context(), ask.AuthPrompt{Question: q, Retry: true, TriesLeft: 2}); err != nil {
		t.Error(err)
	}
	told(": Wrong PIN. 2 tries left before the TPM locks itself.\nEnter PIN for id[31mgnp.tpm (me@here)\nSHA256:abc\n")
	if err := p.LastTry(t.Context(), ask.AuthPrompt{Question: q, TriesLeft: 1}); err != nil {
		t.Error(err)
	}
	told("confirm: One more wrong PIN locks the TPM.\n")
	if grant, err := p.Confirm(t.Context(), ask.ConfirmPrompt{Question: q}); err != nil || grant != ask.GrantOnce {
		t.Errorf("got %d, %v", grant, err)
	}
	told("confirm: Allow use of key id[31mgnp.tpm (me@here)?\n")
	p.Inform(t.Context(), ask.Notice{Question: q})
	told("none: The TPM is locked")

	refusing, _ := scripts(t, "", "exit 1", inWindows("", "askpass"))
	if _, err := refusing.AuthValue(t.Context(), ask.AuthPrompt{Question: q}); !errors.Is(err, ask.ErrRefused) || !strings.Contains(err.Error(), "PIN of id[31mgnp.tpm") {
		t.Errorf("got %v", err)
	}
	if grant, err := refusing.Confirm(t.Context(), ask.ConfirmPrompt{Question: q}); grant != ask.GrantNo || !errors.Is(err, ask.ErrRefused) || !strings.Contains(err.Error(), "(me@here) may be used") {
		t.Errorf("got %d, %v", grant, err)
	}
	prompt.New(prompts{names: []string{"systemd"}}.ways(), slog.New(slog.DiscardHandler)).Inform(t.Context(), ask.Notice{Question: q}) // cannot, and says nothing
}

func TestMissing(t *testing.T) {
	dir := t.TempDir()
	o := prompts{names: []string{"pinentry", "askpass", "terminal", "systemd"}, askpass: dir + "/gone"}
	o.Environ = []string{"GNUPGHOME=" + dir}
	if err := os.WriteFile(filepath.Join(dir, "gpg-agent.conf"), []byte("pinentry-program /nowhere/pinentry\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	got := o.missing()
	if len(got) != 3 || !strings.HasPrefix(got[0], "pinentry: ") || !strings.HasPrefix(got[1], "askpass: ") || !strings.HasPrefix(got[2], "systemd: ") {
		t.Errorf("got %q", got)
	}
	o.names = nil // then the user has named none
	if got := o.missing(); len(got) != 0 {
		t.Errorf("got %q", got)
	}
	o.names, o.askpass = []string{"askpass"}, ""
	if got := o.missing(); len(got) != 1 || got[0] != "askpass: SSH_ASKPASS is not set, and no ssh-askpass is installed" {
		t.Errorf("got %q", got)
	}
}
