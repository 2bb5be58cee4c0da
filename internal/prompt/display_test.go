package prompt

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// listen makes a socket.
func listen(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// x11Server is a display on which something listens.
func x11Server(t *testing.T) (display string) {
	t.Helper()
	if err := os.MkdirAll(x11Sockets, 0o1777); err != nil {
		t.Fatal(err)
	}
	for _, number := range []string{"7701", "7702", "7703", "7704"} {
		path := filepath.Join(x11Sockets, "X"+number)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		listen(t, path)
		return ":" + number
	}
	t.Skip("no display number is free")
	return ""
}

func privateRuntime(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What is taken of a client's environment, and what is not.
func TestBorrowDisplay(t *testing.T) {
	runtime, open := privateRuntime(t), t.TempDir()
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	listen(t, filepath.Join(runtime, "wayland-0"))
	listen(t, filepath.Join(open, "wayland-0"))
	display := x11Server(t)
	for name, test := range map[string]struct {
		own, theirs, want string // want: what is added to own; "": there is no display
	}{
		"X11":           {"A=1", "DISPLAY=" + display + " SSH_ASKPASS=/evil LD_PRELOAD=/evil PATH=/evil", "DISPLAY=" + display},
		"screen":        {"A=1", "DISPLAY=" + display + ".0", "DISPLAY=" + display + ".0"},
		"cookies":       {"A=1", "DISPLAY=" + display + " XAUTHORITY=/x/y", "DISPLAY=" + display + " XAUTHORITY=/x/y"},
		"cookies, here": {"A=1", "DISPLAY=" + display + " XAUTHORITY=x/y", "DISPLAY=" + display},
		"Wayland":       {"XDG_RUNTIME_DIR=" + runtime, "WAYLAND_DISPLAY=wayland-0", "WAYLAND_DISPLAY=wayland-0 XDG_RUNTIME_DIR=" + runtime},
		"their runtime": {"A=1", "WAYLAND_DISPLAY=wayland-0 XDG_RUNTIME_DIR=" + runtime, "WAYLAND_DISPLAY=wayland-0 XDG_RUNTIME_DIR=" + runtime},
		"ours first":    {"XDG_RUNTIME_DIR=" + t.TempDir(), "WAYLAND_DISPLAY=wayland-0 XDG_RUNTIME_DIR=" + runtime, ""},
		"open to all":   {"A=1", "WAYLAND_DISPLAY=wayland-0 XDG_RUNTIME_DIR=" + open, ""},
		"both":          {"XDG_RUNTIME_DIR=" + runtime, "WAYLAND_DISPLAY=wayland-0 DISPLAY=" + display, "WAYLAND_DISPLAY=wayland-0 XDG_RUNTIME_DIR=" + runtime + " DISPLAY=" + display},
		"gone":          {"XDG_RUNTIME_DIR=" + runtime, "WAYLAND_DISPLAY=wayland-9 DISPLAY=:7799", ""},
		"elsewhere":     {"A=1", "DISPLAY=localhost:10.0", ""},
		"over TCP":      {"A=1", "DISPLAY=192.0.2.1:0", ""},
		"a path":        {"XDG_RUNTIME_DIR=" + runtime, "WAYLAND_DISPLAY=../" + filepath.Base(runtime) + "/wayland-0 DISPLAY=:../X7701", ""},
		"nothing":       {"A=1", "B=2", ""},
	} {
		t.Run(name, func(t *testing.T) {
			own := []string{test.own}
			got, found := borrowDisplay(slices.Clone(own), strings.Fields(test.theirs))
			var want []string
			for _, entry := range own {
				if !strings.Contains(test.want, "XDG_RUNTIME_DIR") || !strings.HasPrefix(entry, "XDG_RUNTIME_DIR") {
					want = append(want, entry)
				}
			}
			want = append(want, strings.Fields(test.want)...)
			if found != (test.want != "") || !reflect.DeepEqual(got, want) {
				t.Errorf("got %q, %t; want %q", got, found, want)
			}
		})
	}
}

// The display of the client is used if the agent has none, for a request of this
// machine; the program gets it, and nothing else of the client.
func TestClientDisplay(t *testing.T) {
	display := x11Server(t)
	client := exec.Command("sleep", "1000")
	client.Env = []string{"DISPLAY=" + display, "OTHER=theirs"}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Process.Kill(); _ = client.Wait() })
	p, _ := script(t, `echo "$DISPLAY $OTHER $MARK"`)
	p.options.Require = Auto
	p.options.Environ = append(setenv(setenv(p.options.Environ, "DISPLAY", ""), "WAYLAND_DISPLAY", ""), "OTHER=own")
	q := askedBy(client.Process.Pid)
	if got := <-askPIN(t.Context(), p, q); got.err != nil || string(got.pin) != display+" own given" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	q.Use.Forwarded = true
	if got := <-askPIN(t.Context(), p, q); got.err == nil || !strings.Contains(got.err.Error(), "there is no display") {
		t.Errorf("forwarded: got %q, %v", got.pin, got.err)
	}
	q.Use.Forwarded = false
	p.options.Environ = append(p.options.Environ, "DISPLAY=:agent")
	if got := <-askPIN(t.Context(), p, q); got.err != nil || string(got.pin) != ":agent own given" {
		t.Errorf("the agent's own: got %q, %v", got.pin, got.err)
	}
}
