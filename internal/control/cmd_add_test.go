package control

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

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"

	"github.com/tpm-agent/tpm-agent/internal/knownhosts"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

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
	t.Parallel()
	needs.Programs(t, "ssh-keygen", "ssh-add")
	hosts := hostKeysFile(t)
	private := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", private).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := sshtest.StartScripted(t, sshtest.Framed(6))
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
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+s.Path)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", specs, err, out)
		}
		theirs := (<-s.Requests).Message
		k, err := AddOptions{Lifetime: "1h", Confirm: true, Destinations: specs, HostKeys: []string{hosts}}.limits(&term.System{Environ: []string{"HOME=/nowhere"}})
		if err != nil {
			t.Fatalf("%q: %v", specs, err)
		}
		ours := k.constraints()
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
	t.Parallel()
	needs.Programs(t, "ssh-keygen")
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
		_, err := parseDestination(spec, []string{hosts})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", spec, err, want)
			continue
		}
		var unknown *knownhosts.NotFoundError
		var report strings.Builder
		status := term.Report(&report, "add", err)
		if isUnknown := errors.As(err, &unknown); isUnknown != (status == 1) {
			t.Errorf("%s: status %d for %v", spec, status, err)
		}
		if !strings.Contains(report.String(), "\nhint: ") {
			t.Errorf("%s: no hint", spec)
		}
	}
	// Brackets mean nothing without a port. A name may have an @, a host not;
	// OpenSSH before 9.9 took the first.
	for spec, user := range map[string]string{"[gate.example]": "", "me@[gate.example]": "me", "a@b@gate.example": "a@b"} {
		d, err := parseDestination(spec, []string{hosts})
		if err != nil || d.To.User != user || d.To.Host != "gate.example" || len(d.To.Keys) != 3 {
			t.Errorf("%s: %+v, %v", spec, d, err)
		}
	}
}

func TestHostKeyFiles(t *testing.T) {
	t.Parallel()
	sys := &term.System{Environ: []string{"HOME=/home/me"}}
	for _, test := range []struct{ asked, want []string }{
		{nil, []string{"/home/me/.ssh/known_hosts", "/home/me/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"}},
		{[]string{"a", "~/b", "/c"}, []string{"a", "/home/me/b", "/c"}},
	} {
		if got, err := sys.KnownHosts(test.asked); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := sys.KnownHosts([]string{""}); err == nil {
		t.Error("an empty name was taken")
	}
	if _, err := (&term.System{}).KnownHosts(nil); err == nil {
		t.Error("no HOME")
	}
}

func TestAgentSocket(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ asked, authSock, runtime, want string }{
		{"/asked", "/auth", "/run/me", "/asked"},
		{"", "/auth", "/run/me", "/auth"},
		{"", "", "/run/me", "/run/me/tpm-agent/agent.sock"},
		{"", "", "", ""},
	} {
		sys := &term.System{Environ: []string{"SSH_AUTH_SOCK=" + test.authSock, "XDG_RUNTIME_DIR=" + test.runtime}}
		if got, err := agentSocket(sys, test.asked); got != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%+v: %q, %v", test, got, err)
		}
	}
}

// TestAskHere: the request arrives whole, with a descriptor, whatever its size.
func TestAskHere(t *testing.T) {
	t.Parallel()
	s := sshtest.StartScripted(t, sshtest.Framed(29, 7))
	c, err := Dial(t.Context(), &term.System{}, s.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, size := range []int{1, 1000, wire.MaxMessage} {
		message := bytes.Repeat([]byte{27}, size)
		answer, err := c.exchange(t.Context(), message, agentPatience)
		if err != nil || !bytes.Equal(answer, []byte{29, 7}) {
			t.Fatalf("%d bytes: %v, %v", size, answer, err)
		}
		if got := <-s.Requests; !bytes.Equal(got.Message, message) || !got.Local {
			t.Errorf("%d bytes: %d came, local %v", size, len(got.Message), got.Local)
		}
	}
	if _, err := c.exchange(t.Context(), make([]byte, wire.MaxMessage+1), agentPatience); err == nil || len(s.Requests) != 0 {
		t.Errorf("a request that is too long: %v, %d came", err, len(s.Requests))
	}
}

func TestStrangeAgents(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer []byte
		want   string
	}{
		"hangs up":         {nil, "closed the connection"},
		"no length":        {sshtest.Framed(), "impossible message length 0"},
		"endless":          {[]byte{0xff, 0xff, 0xff, 0xff}, "impossible message length 4294967295"},
		"one byte too big": {binary.BigEndian.AppendUint32(nil, wire.MaxMessage+1), "impossible message length 262145"},
	} {
		s := sshtest.StartScripted(t, test.answer)
		c, err := Dial(t.Context(), &term.System{}, s.Path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.exchange(t.Context(), []byte{27}, agentPatience); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), s.Path) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
		c.Close()
	}
}

// TestSilentAgent: Ctrl-C ends the waiting for an agent that never answers.
func TestSilentAgent(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	c, err := Dial(ctx, &term.System{}, l.Addr().String())
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
	if _, err := c.exchange(ctx, []byte{27}, agentPatience); !errors.Is(err, stopped) {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := c.Keys(ctx); !errors.Is(err, stopped) {
		t.Errorf("after that: %v", err)
	}
	err = c.failed(t.Context(), os.ErrDeadlineExceeded)
	if want := "the agent at " + c.path + " does not answer"; err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestNoAgent(t *testing.T) {
	t.Parallel()
	_, err := Dial(t.Context(), &term.System{}, "/nowhere/agent.sock")
	if err == nil || err.Error() != "no agent can be reached at /nowhere/agent.sock: no such file or directory" {
		t.Errorf("%v", err)
	}
}

func TestLifetimes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint32{"": 0, "0": 0, "1": 1, "1h": 3600, "4294967295": 1<<32 - 1} {
		k, err := AddOptions{Lifetime: text}.limits(&term.System{Environ: []string{"HOME=/h"}})
		if err != nil || (k.Lifetime != nil) != (want > 0) || want > 0 && *k.Lifetime != want {
			t.Errorf("-t %q: %v, %v", text, k.Lifetime, err)
		}
	}
	for _, text := range []string{"x", "-1", "4294967296", "1y"} {
		_, err := AddOptions{Lifetime: text}.limits(&term.System{Environ: []string{"HOME=/h"}})
		if term.Report(io.Discard, "", err) != 2 || !strings.HasPrefix(err.Error(), "-t: ") {
			t.Errorf("-t %s: %v", text, err)
		}
	}
}

func TestPINTTLOfKey(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"off": 0, "session": restrict.Forever, "15m": 15 * time.Minute, "90": 90 * time.Second} {
		k, err := AddOptions{PINTTL: &text}.limits(&term.System{Environ: []string{"HOME=/h"}})
		if err != nil || k.PINLife == nil || *k.PINLife != want {
			t.Errorf("--pin-ttl %q: %v, %v", text, k.PINLife, err)
		}
	}
	for _, text := range []string{"", "0", "x", "-1", "OFF"} {
		_, err := AddOptions{PINTTL: &text}.limits(&term.System{Environ: []string{"HOME=/h"}})
		if term.Report(io.Discard, "", err) != 2 || !strings.HasPrefix(err.Error(), "--pin-ttl: ") {
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

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
