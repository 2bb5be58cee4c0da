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

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/peer"
)

// listen creates a socket.
func listen(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func privateRuntime(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestBorrowDisplay tests what is taken from a client's environment.
func TestBorrowDisplay(t *testing.T) {
	t.Parallel()
	runtime, open := privateRuntime(t), t.TempDir()
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	listen(t, filepath.Join(runtime, "wayland-0"))
	listen(t, filepath.Join(open, "wayland-0"))
	x11 := t.TempDir()
	listen(t, filepath.Join(x11, "X7"))
	const display = ":7"
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
		"gone":          {"XDG_RUNTIME_DIR=" + runtime, "WAYLAND_DISPLAY=wayland-9 DISPLAY=:99", ""},
		"elsewhere":     {"A=1", "DISPLAY=localhost:10.0", ""},
		"over TCP":      {"A=1", "DISPLAY=192.0.2.1:0", ""},
		"a path":        {"XDG_RUNTIME_DIR=" + runtime, "WAYLAND_DISPLAY=../" + filepath.Base(runtime) + "/wayland-0 DISPLAY=:../X7", ""},
		"nothing":       {"A=1", "B=2", ""},
	} {
		t.Run(name, func(t *testing.T) {
			own := []string{test.own}
			got, err := borrowDisplay(slices.Clone(own), strings.Fields(test.theirs), x11)
			var want []string
			for _, entry := range own {
				if !strings.Contains(test.want, "XDG_RUNTIME_DIR") || !strings.HasPrefix(entry, "XDG_RUNTIME_DIR") {
					want = append(want, entry)
				}
			}
			want = append(want, strings.Fields(test.want)...)
			if (err == nil) != (test.want != "") || !reflect.DeepEqual(got, want) {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
		})
	}
}

// The client's display is used if the agent has none, and if the request comes
// from this machine. Nothing else is taken from the client.
func TestClientDisplay(t *testing.T) {
	t.Parallel()
	runtime := privateRuntime(t)
	listen(t, filepath.Join(runtime, "wayland-7"))
	client := exec.Command("sleep", "1000")
	client.Env = []string{"WAYLAND_DISPLAY=wayland-7", "XDG_RUNTIME_DIR=" + runtime, "OTHER=theirs"}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Process.Kill(); _ = client.Wait() })
	q := ask.Question{Peer: peer.Peer{PID: client.Process.Pid, UID: os.Getuid()}}
	s := Settings{Environ: []string{"OTHER=own", "DISPLAY="}}
	want := append(slices.Clone(s.Environ), "WAYLAND_DISPLAY=wayland-7", "XDG_RUNTIME_DIR="+runtime)
	if got, err := s.Display(q); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	q.Use.Forwarded = true
	if got, err := s.Display(q); err == nil || !slices.Equal(got, s.Environ) {
		t.Errorf("forwarded: got %q, %v", got, err)
	}
	q.Use.Forwarded, q.Peer.UID = false, os.Getuid()+1
	if got, err := s.Display(q); err == nil || !slices.Equal(got, s.Environ) {
		t.Errorf("of another user: got %q, %v", got, err)
	}
	q.Peer.UID = os.Getuid()
	s.Environ = append(s.Environ, "DISPLAY=:agent")
	if got, err := s.Display(q); err != nil || !slices.Equal(got, s.Environ) {
		t.Errorf("the agent has its own: got %q, %v", got, err)
	}
}
