package prompt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/agent"
)

func TestParseWays(t *testing.T) {
	for list, want := range map[string][]Way{
		"auto":                              nil,
		"none":                              {},
		"askpass":                           {Askpass},
		"terminal,pinentry":                 {Terminal, Pinentry},
		"pinentry,askpass,terminal,systemd": {Pinentry, Askpass, Terminal, Systemd},
	} {
		if got, err := ParseWays(list); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %#v, %v", list, got, err)
		}
	}
	for list, why := range map[string]string{
		"":                  `"" is no way to ask`,
		"tty":               `"tty" is no way to ask: they are pinentry, askpass, terminal and systemd`,
		"askpass,":          `"" is no way to ask`,
		"askpass, terminal": `" terminal" is no way to ask`,
		"none,askpass":      `"none" is no way to ask`,
		"auto,askpass":      `"auto" is no way to ask`,
		"askpass,askpass":   "askpass is named twice",
	} {
		if got, err := ParseWays(list); err == nil || !strings.HasPrefix(err.Error(), why) {
			t.Errorf("%q: got %v, %v; want %s", list, got, err, why)
		}
	}
}

func TestOrder(t *testing.T) {
	for require, first := range map[Require]Way{Auto: Pinentry, Never: Pinentry, Prefer: Askpass, Force: Askpass} {
		p := New(Options{Require: require})
		if got := p.options.Ways; len(got) != 4 || got[0] != first {
			t.Errorf("%q: %v", require, got)
		}
	}
	if p := New(Options{Ways: []Way{}}); len(p.options.Ways) != 0 {
		t.Errorf("none: %v", p.options.Ways)
	}
}

// scripts is a Prompter whose pinentry and askpass are shell scripts. The
// directory is $DIR to them.
func scripts(t *testing.T, pinentry, askpass string, o Options) (*Prompter, string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, body string, mode os.FileMode) {
		// A program that another test starts meanwhile would hold the file open,
		// and what is open for writing cannot be run.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("pinentry", "#!/bin/sh\n"+pinentry+"\n", 0o700)
	write("askpass", "#!/bin/sh\n"+askpass+"\n", 0o700)
	write("gpg-agent.conf", "pinentry-program "+dir+"/pinentry\n", 0o600)
	o.Askpass = filepath.Join(dir, "askpass")
	o.Environ = append([]string{"PATH=" + os.Getenv("PATH"), "GNUPGHOME=" + dir, "DIR=" + dir}, o.Environ...)
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	return New(o), dir
}

// speaker is a pinentry that answers with a line what is asked, and writes down
// what it was told.
func speaker(getpin, confirm string) string {
	return fmt.Sprintf(`echo OK ready
while read -r line; do
	echo "$line" >>$DIR/told
	case "$line" in
	GETPIN*) %s;;
	CONFIRM*|MESSAGE*) %s;;
	GETINFO*) printf 'D qt\nOK\n';;
	BYE*) echo OK; exit;;
	*) echo OK;;
	esac
done`, getpin, confirm)
}

const x11 = "DISPLAY=:77"

func TestPinentryWay(t *testing.T) {
	p, dir := scripts(t, speaker(`printf 'D 12%%2534\nOK\n'`, "echo OK"), "exit 1", Options{Ways: []Way{Pinentry}, Environ: []string{x11}})
	pin, err := p.AuthValue(t.Context(), agent.AuthPrompt{Question: agent.Question{Name: "id.tpm", Fingerprint: "SHA256:x"}, Retry: true, TriesLeft: 2})
	if err != nil || string(pin) != "12%34" {
		t.Errorf("got %q, %v", pin, err)
	}
	told, err := os.ReadFile(filepath.Join(dir, "told"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"SETDESC Enter PIN for id.tpm", "SETERROR Wrong PIN.", "SETTIMEOUT 60", "SETTITLE tpm-agent"} {
		if !strings.Contains(string(told), want) {
			t.Errorf("it was not told %q, but\n%s", want, told)
		}
	}
}

// The consent of three dialogs, button by button; a closed window is a no, in
// each of them.
func TestPinentryGrants(t *testing.T) {
	const ok, other, closed = "OK", "ERR 83886194 not confirmed", "ERR 83886179 canceled"
	for _, test := range []struct {
		answers []string
		want    agent.Grant
	}{
		{[]string{ok}, agent.GrantOnce},
		{[]string{closed}, agent.GrantNo},
		{[]string{other, ok}, agent.GrantProcess},
		{[]string{other, closed}, agent.GrantNo},
		{[]string{other, other, ok}, agent.GrantMinutes},
		{[]string{other, other, other}, agent.GrantUntilLocked},
		{[]string{other, other, closed}, agent.GrantNo},
	} {
		p, dir := scripts(t, speaker("echo ERR 1", `{ head -n 1 $DIR/answers; sed -i 1d $DIR/answers; }`), "exit 1", Options{Ways: []Way{Pinentry}, Environ: []string{x11}})
		if err := os.WriteFile(filepath.Join(dir, "answers"), []byte(strings.Join(test.answers, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := p.Confirm(t.Context(), agent.ConfirmPrompt{Question: agent.Question{Name: "id.tpm"}})
		if got != test.want || (err == nil) != (test.want != agent.GrantNo) || err != nil && !errors.Is(err, agent.ErrRefused) {
			t.Errorf("%v: got %d, %v", test.answers, got, err)
		}
		if rest, err := os.ReadFile(filepath.Join(dir, "answers")); err != nil || len(rest) != 0 {
			t.Errorf("%v: %q was not asked, %v", test.answers, rest, err)
		}
	}
}

// Only a typed yes is a go, whatever buttons a pinentry has.
func TestPinentryLastTry(t *testing.T) {
	for answer, goes := range map[string]bool{
		`D yes\nOK\n`: true, `D YES\nOK\n`: true, `OK\n`: false, `D 1234\nOK\n`: false, `D yes1\nOK\n`: false, `ERR 83886179 canceled\n`: false,
	} {
		p, _ := scripts(t, speaker("printf '"+answer+"'", "echo OK"), "exit 0", Options{Ways: []Way{Pinentry, Askpass}, Environ: []string{x11}})
		err := p.LastTry(t.Context(), agent.AuthPrompt{Question: agent.Question{Name: "id.tpm"}, TriesLeft: 1})
		if goes && err != nil || !goes && !errors.Is(err, agent.ErrRefused) {
			t.Errorf("%s: got %v", answer, err)
		}
	}
}

// byName asks in these ways. The limits are short where nobody answers; where
// somebody does they play no part, however slow the machine is.
func byName(test string, ways ...Way) Options {
	o := Options{Ways: ways, Environ: []string{x11}, Timeout: time.Hour, Grace: time.Minute}
	if test == "never answers" {
		o.Timeout, o.Grace = 100*time.Millisecond, 100*time.Millisecond
	}
	return o
}

// What a pinentry does, and whether the askpass program behind it is asked.
func TestFallThrough(t *testing.T) {
	for name, test := range map[string]struct {
		pinentry string
		want     error // nil: askpass was asked
	}{
		"says no":         {speaker("echo ERR 83886179 canceled", ""), agent.ErrRefused},
		"times out":       {speaker("echo ERR 83886142 timeout", ""), agent.ErrNoAnswer},
		"never answers":   {speaker("sleep 600", ""), agent.ErrNoAnswer},
		"no display":      {speaker("echo ERR 83918950 no such device", ""), nil},
		"crashes":         {"kill -9 $$", nil},
		"crashes, asking": {speaker("kill -9 $$", ""), nil},
		"ends":            {"exit 0", nil},
		"garbage":         {"while :; do echo 0123456789; done", nil},
		"no newline":      {"head -c 100000 /dev/zero", nil},
		"not a program":   {"#!/nowhere", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _ := scripts(t, test.pinentry, "echo from askpass", byName(name, Pinentry, Askpass))
			got, err := ask(t.Context(), p, "?")
			if test.want == nil && (err != nil || string(got) != "from askpass") || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %q, %v; want %v", got, err, test.want)
			}
		})
	}
}

// A no at the askpass program, and one that nobody answered, are the end of it;
// one that could not show its window is not.
func TestFallThroughAskpass(t *testing.T) {
	for name, test := range map[string]struct {
		askpass string
		want    error // nil: pinentry was asked
	}{
		"says no":        {"exit 1", agent.ErrRefused},
		"never answers":  {"trap '' TERM; sleep 600 & wait; wait", agent.ErrNoAnswer},
		"no display":     {"echo 'Gtk-WARNING **: cannot open display: :7' >&2; exit 1", nil},
		"no display, Qt": {"echo 'qt.qpa.xcb: could not connect to display :7' >&2; kill -ABRT $$", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _ := scripts(t, speaker(`printf 'D from pinentry\nOK\n'`, ""), test.askpass, byName(name, Askpass, Pinentry))
			got, err := ask(t.Context(), p, "?")
			if test.want == nil && (err != nil || string(got) != "from pinentry") || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %q, %v; want %v", got, err, test.want)
			}
		})
	}
}

// If nobody can be asked, the error has each way with its reason, in order, and
// what helps.
func TestNobodyToAsk(t *testing.T) {
	p, _ := scripts(t, "exit 0", "exit 1", Options{Ways: []Way{Systemd, Askpass, Terminal, Pinentry}, Require: Never, Environ: []string{"XDG_RUNTIME_DIR=/nowhere"}})
	p.options.Environ = setenv(p.options.Environ, "PATH", "/nowhere")
	p.options.Terminal = "/nowhere/tty"
	t.Setenv("PATH", "/nowhere")
	_, err := p.AuthValue(t.Context(), agent.AuthPrompt{Question: agent.Question{Name: "id.tpm", Peer: agent.Peer{PID: -1, UID: -1}}})
	want := `asking for the PIN of id.tpm: no way to ask the user; ` +
		`systemd: exec: "systemd-ask-password": executable file not found in $PATH; ` +
		`askpass: SSH_ASKPASS_REQUIRE=never; ` +
		`terminal: the client is not known, and the agent has no terminal (open /nowhere/tty: no such file or directory); ` +
		`pinentry: there is no display, and the client is not known; ` +
		`what helps: DISPLAY or WAYLAND_DISPLAY for the agent, with a pinentry or SSH_ASKPASS, or a terminal in which the client runs and nothing else reads`
	if err == nil || err.Error() != want || !errors.Is(err, agent.ErrNoPrompt) {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	_, err = ask(t.Context(), New(Options{Ways: []Way{}}), "?")
	if !errors.Is(err, agent.ErrNoPrompt) || err.Error() != "no way to ask the user: serve --prompt none asks nobody" {
		t.Errorf("got %v", err)
	}
}

// A hung prompter that takes no signal but one is gone after the limit, with
// all that it started.
func TestHungPromptersEnd(t *testing.T) {
	const hang = `trap '' TERM; sleep 600 & echo $! >$DIR/child; echo $$ >$DIR/pid.new; mv $DIR/pid.new $DIR/pid; while :; do wait; done`
	for _, way := range []Way{Pinentry, Askpass} {
		p, dir := scripts(t, speaker(hang, hang), hang, Options{Ways: []Way{way}, Environ: []string{x11}, Timeout: 100 * time.Millisecond, Grace: 100 * time.Millisecond})
		hung := errors.New("not yet")
		for hung != nil { // on a slow machine it takes longer until it hangs
			if _, err := ask(t.Context(), p, "?"); !errors.Is(err, agent.ErrNoAnswer) {
				t.Fatalf("%s: got %v", way, err)
			}
			_, hung = os.Stat(filepath.Join(dir, "pid"))
			p.options.Timeout *= 2
		}
		awaitGone(t, await(t, filepath.Join(dir, "pid")))
		awaitGone(t, await(t, filepath.Join(dir, "child")))
	}
}

func TestPinentryEndsWithContext(t *testing.T) {
	p, dir := scripts(t, speaker(`echo $$ >$DIR/pid; exec sleep 600`, ""), "", Options{Ways: []Way{Pinentry, Askpass}, Environ: []string{x11}})
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client gone")
	done := make(chan error, 1)
	go func() {
		_, err := ask(ctx, p, "?")
		done <- err
	}()
	pid := await(t, filepath.Join(dir, "pid"))
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	awaitGone(t, pid)
}

// A notice is shown by the first way that can show one, until it is read or has
// no meaning any more.
func TestInform(t *testing.T) {
	notice := agent.Notice{Question: agent.Question{Name: "id.tpm"}}
	for _, way := range []Way{Pinentry, Askpass} {
		p, dir := scripts(t, speaker("echo ERR 1", `echo "$line" >$DIR/shown; echo OK`), `echo "$SSH_ASKPASS_PROMPT: $1" >$DIR/shown; exit 1`, Options{Ways: []Way{Systemd, way}, Environ: []string{x11}})
		p.Inform(t.Context(), notice)
		if _, err := os.Stat(filepath.Join(dir, "shown")); err != nil {
			t.Errorf("%s: nothing was shown", way)
		}
	}
	p, dir := scripts(t, "", `echo $$ >$DIR/pid; exec sleep 600`, Options{Ways: []Way{Askpass}, Environ: []string{x11}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		p.Inform(ctx, notice)
		close(done)
	}()
	pid := await(t, filepath.Join(dir, "pid"))
	cancel()
	<-done
	awaitGone(t, pid)
	New(Options{Ways: []Way{Systemd}}).Inform(t.Context(), notice) // cannot, and says nothing
}

func TestMissing(t *testing.T) {
	dir := t.TempDir()
	o := Options{Ways: []Way{Pinentry, Askpass, Terminal, Systemd}, Askpass: dir + "/gone", Environ: []string{"GNUPGHOME=" + dir}}
	if err := os.WriteFile(filepath.Join(dir, "gpg-agent.conf"), []byte("pinentry-program /nowhere/pinentry\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	got := o.Missing()
	if len(got) != 3 || !strings.HasPrefix(got[0], "pinentry: ") || !strings.HasPrefix(got[1], "askpass: ") || !strings.HasPrefix(got[2], "systemd: ") {
		t.Errorf("got %q", got)
	}
	o.Ways = nil // all of them, so none by name
	if got := o.Missing(); len(got) != 0 {
		t.Errorf("got %q", got)
	}
	o.Ways, o.Askpass = []Way{Askpass}, ""
	if got := o.Missing(); len(got) != 1 || got[0] != "askpass: SSH_ASKPASS is not set, and no ssh-askpass is installed" {
		t.Errorf("got %q", got)
	}
}
