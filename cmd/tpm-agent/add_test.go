package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/knownhosts"
	"github.com/tpm-agent/tpm-agent/internal/socket"
)

// A scripted agent gives the same answer to everything, and keeps what it was
// asked.
type scripted struct {
	path     string
	requests chan request
}

type request struct {
	message []byte // without its length
	local   bool   // a descriptor came with it
}

// startScripted starts one. Each request gets answer, which has its length in
// front; an empty one ends the connection.
func startScripted(t *testing.T, answer []byte) *scripted {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := socket.Listen(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{path: filepath.Join(dir, "s"), requests: make(chan request, 100)}
	ended := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.serve(c, answer)
		}
	}()
	return s
}

func (s *scripted) serve(c net.Conn, answer []byte) {
	defer c.Close()
	for {
		message, err := readFrame(c)
		if err != nil {
			return
		}
		s.requests <- request{message, c.(*socket.Conn).Local()}
		if len(answer) == 0 {
			return
		}
		c.Write(answer)
	}
}

func framed(message ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
}

// hostKeysFile is a known_hosts with keys of every kind for the destinations
// below.
func hostKeysFile(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var file strings.Builder
	for i, line := range []string{
		"gate.example", "gate.example,192.0.2.1", "*.inner.example", "[odd.example]:2222",
		"@cert-authority *.example", "@cert-authority many.inner.example,!gate.example", "odd.example",
	} {
		kinds := [][]string{{"ed25519"}, {"rsa", "-b", "2048"}, {"ecdsa"}}
		path := filepath.Join(dir, "key"+string(rune('a'+i)))
		args := append([]string{"-q", "-N", "", "-C", "comment", "-f", path, "-t"}, kinds[i%len(kinds)]...)
		if out, err := exec.Command("ssh-keygen", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		public, err := os.ReadFile(path + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		file.WriteString(line + " " + string(public))
	}
	path := filepath.Join(dir, "known_hosts")
	write(t, path, []byte(file.String()))
	return path
}

// TestDestinationsAsSSHAdd compares the constraints that are sent with those
// that ssh-add sends for the same options, byte for byte.
func TestDestinationsAsSSHAdd(t *testing.T) {
	hosts := hostKeysFile(t)
	private := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", private).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := startScripted(t, framed(6))
	for _, specs := range [][]string{
		{"gate.example"},
		{"me@gate.example"},
		{"w?ld*@many.inner.example"},
		{"gate.example", "gate.example>a.inner.example", "a.inner.example>root@many.inner.example"},
		{"[odd.example]:2222"},
		{"me@[odd.example]:2222", "[odd.example]:2222>odd.example"},
		{"only.example"},
		{"192.0.2.1"},
		{"@gate.example"},
		{"GATE.example"},
	} {
		cmd := exec.Command("ssh-add", "-q", "-t", "1h", "-c", "-H", hosts)
		for _, spec := range specs {
			cmd.Args = append(cmd.Args, "-h", spec)
		}
		cmd.Args = append(cmd.Args, private)
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+s.path)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", specs, err, out)
		}
		theirs := (<-s.requests).message
		k, err := addOptions{lifetime: "1h", confirm: true, destinations: specs, hostKeys: []string{hosts}}.limits(system{environ: []string{"HOME=/nowhere"}})
		if err != nil {
			t.Fatalf("%q: %v", specs, err)
		}
		ours := k.Marshal()
		head := []byte{1, 0, 0, 0x0e, 0x10, 2, 255} // 3600 seconds, confirm, an extension
		i, j := bytes.LastIndex(theirs, head), bytes.LastIndex(ours, head)
		if i < 0 || j < 0 || len(ours)-j < 100 {
			t.Fatalf("%q: no constraints in\n%q\n%q", specs, theirs, ours)
		}
		if !bytes.Equal(theirs[i:], ours[j:]) {
			t.Errorf("%q: ssh-add sends\n%q, we\n%q", specs, theirs[i:], ours[j:])
		}
	}
}

func TestBadDestinations(t *testing.T) {
	hosts := hostKeysFile(t)
	for spec, want := range map[string]string{
		"":                             `-h "": a host is missing`,
		"me@":                          "a host is missing",
		">gate.example":                "a host is missing",
		"gate.example>":                "a host is missing",
		"[]":                           "a host is missing",
		"me@gate.example>only.example": "there is a user before the >",
		"gate.example>a.inner.example>b.inner.example": "more than one >",
		"nowhere":              `-h nowhere: no host keys found for "nowhere"`,
		"gate.example>nowhere": `no host keys found for "nowhere"`,
		"nowhere>gate.example": `no host keys found for "nowhere"`,
		"[gate.example]:2222":  `no host keys found for "[gate.example]:2222"`,
	} {
		_, err := parseDestinations([]string{"gate.example", spec}, []string{hosts})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", spec, err, want)
			continue
		}
		var wrong *usageError
		var unknown *knownhosts.NotFoundError
		if errors.As(err, &wrong) == errors.As(err, &unknown) {
			t.Errorf("%s: %v is a usage error, or not", spec, err)
		}
		if unknown != nil && len(hints(err)) != 1 {
			t.Errorf("%s: no hint", spec)
		}
	}
	// Brackets mean nothing without a port. A name may have an @, a host not;
	// OpenSSH before 9.9 took the first.
	for spec, user := range map[string]string{"[gate.example]": "", "me@[gate.example]": "me", "a@b@gate.example": "a@b"} {
		list, err := parseDestinations([]string{spec}, []string{hosts})
		if err != nil || list[0].To.User != user || list[0].To.Host != "gate.example" || len(list[0].To.Keys) != 3 {
			t.Errorf("%s: %+v, %v", spec, list, err)
		}
	}
}

func TestHostKeyFiles(t *testing.T) {
	sys := system{environ: []string{"HOME=/home/me"}}
	for _, test := range []struct{ asked, want []string }{
		{nil, []string{"/home/me/.ssh/known_hosts", "/home/me/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"}},
		{[]string{"a", "~/b", "/c"}, []string{"a", "/home/me/b", "/c"}},
	} {
		if got, err := sys.hostKeyFiles(test.asked); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := sys.hostKeyFiles([]string{""}); err == nil {
		t.Error("an empty name was taken")
	}
	if _, err := (system{}).hostKeyFiles(nil); err == nil {
		t.Error("no HOME")
	}
}

func TestAgentSocket(t *testing.T) {
	for _, test := range []struct{ asked, authSock, runtime, want string }{
		{"/asked", "/auth", "/run/me", "/asked"},
		{"", "/auth", "/run/me", "/auth"},
		{"", "", "/run/me", "/run/me/tpm-agent/agent.sock"},
		{"", "", "", ""},
	} {
		sys := system{environ: []string{"SSH_AUTH_SOCK=" + test.authSock, "XDG_RUNTIME_DIR=" + test.runtime}}
		if got, err := sys.agentSocket(test.asked); got != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%+v: %q, %v", test, got, err)
		}
	}
}

// TestAskHere: the request arrives whole, with a descriptor, whatever its size.
func TestAskHere(t *testing.T) {
	s := startScripted(t, framed(29, 7))
	c, err := dialAgent(t.Context(), system{}, s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, size := range []int{1, 1000, maxFrame} {
		message := bytes.Repeat([]byte{27}, size)
		answer, err := c.askHere(t.Context(), message)
		if err != nil || !bytes.Equal(answer, []byte{29, 7}) {
			t.Fatalf("%d bytes: %v, %v", size, answer, err)
		}
		if got := <-s.requests; !bytes.Equal(got.message, message) || !got.local {
			t.Errorf("%d bytes: %d came, local %v", size, len(got.message), got.local)
		}
	}
	if _, err := c.askHere(t.Context(), make([]byte, maxFrame+1)); err == nil || len(s.requests) != 0 {
		t.Errorf("a request that is too long: %v, %d came", err, len(s.requests))
	}
}

func TestStrangeAgents(t *testing.T) {
	for name, test := range map[string]struct {
		answer []byte
		want   string
	}{
		"hangs up":         {nil, "closed the connection"},
		"no length":        {framed(), "an answer of 0 bytes"},
		"endless":          {[]byte{0xff, 0xff, 0xff, 0xff}, "an answer of 4294967295 bytes"},
		"one byte too big": {binary.BigEndian.AppendUint32(nil, maxFrame+1), "an answer of 262145 bytes"},
	} {
		s := startScripted(t, test.answer)
		c, err := dialAgent(t.Context(), system{}, s.path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.askHere(t.Context(), []byte{27}); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), s.path) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
		c.Close()
	}
}

// TestSilentAgent: Ctrl-C ends the waiting for an agent that never answers.
func TestSilentAgent(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	c, err := dialAgent(ctx, system{}, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	stopped := errors.New("stopped")
	go func() {
		io.ReadFull(there, make([]byte, 5)) // the request is there: the answer is waited for
		cancel(stopped)
	}()
	if _, err := c.askHere(ctx, []byte{27}); !errors.Is(err, stopped) {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := c.keys(ctx); !errors.Is(err, stopped) {
		t.Errorf("after that: %v", err)
	}
	err = c.failed(t.Context(), os.ErrDeadlineExceeded)
	if want := "the agent at " + c.path + " does not answer"; err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestNoAgent(t *testing.T) {
	_, err := dialAgent(t.Context(), system{}, "/nowhere/agent.sock")
	if err == nil || err.Error() != "no agent can be reached at /nowhere/agent.sock: no such file or directory" || len(hints(err)) != 1 {
		t.Errorf("%v", err)
	}
}

// TestNotAdded: an agent that does not know the request is told from one that
// has a reason.
func TestNotAdded(t *testing.T) {
	c := &client{path: "/s"}
	for err, want := range map[error]string{
		agent.ErrNoKeyFiles:   "adding k.tpm to the agent at /s: the agent takes no key files",
		errors.New("no good"): "adding k.tpm to the agent at /s: no good",
	} {
		got := notAdded(c, "k.tpm", err)
		if got.Error() != want || (len(hints(got)) == 1) != errors.Is(got, agent.ErrNoKeyFiles) {
			t.Errorf("%v, %q, want %s", got, hints(got), want)
		}
	}
}

func TestLifetimes(t *testing.T) {
	for text, want := range map[string]uint32{"": 0, "0": 0, "1": 1, "1h": 3600, "4294967295": 1<<32 - 1} {
		k, err := addOptions{lifetime: text}.limits(system{environ: []string{"HOME=/h"}})
		if err != nil || (k.Lifetime != nil) != (want > 0) || want > 0 && *k.Lifetime != want {
			t.Errorf("-t %q: %v, %v", text, k.Lifetime, err)
		}
	}
	for _, text := range []string{"x", "-1", "4294967296", "1y"} {
		_, err := addOptions{lifetime: text}.limits(system{environ: []string{"HOME=/h"}})
		var wrong *usageError
		if !errors.As(err, &wrong) || !strings.HasPrefix(err.Error(), "-t: ") {
			t.Errorf("-t %s: %v", text, err)
		}
	}
}

func TestPINTTLOfKey(t *testing.T) {
	for text, want := range map[string]time.Duration{"off": 0, "session": agent.Forever, "15m": 15 * time.Minute, "90": 90 * time.Second} {
		k, err := addOptions{pinTTL: &text}.limits(system{environ: []string{"HOME=/h"}})
		if err != nil || k.PINLife == nil || *k.PINLife != want {
			t.Errorf("--pin-ttl %q: %v, %v", text, k.PINLife, err)
		}
	}
	for _, text := range []string{"", "0", "x", "-1", "OFF"} {
		_, err := addOptions{pinTTL: &text}.limits(system{environ: []string{"HOME=/h"}})
		var wrong *usageError
		if !errors.As(err, &wrong) || !strings.HasPrefix(err.Error(), "--pin-ttl: ") {
			t.Errorf("--pin-ttl %q: %v", text, err)
		}
	}
}

// FuzzDestination: what is taken names a host at each end, and no more than
// was written.
func FuzzDestination(f *testing.F) {
	line, err := os.ReadFile(filepath.Join("testdata", "known_host"))
	if err != nil {
		f.Fatal(err)
	}
	hosts := filepath.Join(f.TempDir(), "known_hosts")
	if err := os.WriteFile(hosts, line, 0o600); err != nil {
		f.Fatal(err)
	}
	for _, spec := range []string{"a", "a>b", "u@a", "a>u@b", "[a]:22>x@y@[b]", ">", "@", "u@a>b", "a>b>c", "[]", "[>]"} {
		f.Add(spec)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		d, err := parseDestination(spec, []string{hosts})
		if err != nil {
			return
		}
		if d.To.Host == "" || len(d.To.Keys) == 0 || d.From.User != "" || (d.From.Host == "") != (len(d.From.Keys) == 0) {
			t.Errorf("%q gives %+v", spec, d)
		}
		if strings.Contains(spec, ">") != (d.From.Host != "") || len(d.From.Host)+len(d.To.User)+len(d.To.Host) > len(spec) {
			t.Errorf("%q gives %+v", spec, d)
		}
	})
}
