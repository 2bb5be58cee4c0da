package restrict

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"

	client "golang.org/x/crypto/ssh/agent"
)

const (
	sessionBind         = "session-bind@openssh.com"
	restrictDestination = "restrict-destination-v00@openssh.com"
)

// theirs is OpenSSH's agent.
type theirs struct {
	path string
	nc   *net.UnixConn // without bindings
}

func newTheirs(t *testing.T) *theirs {
	t.Helper()
	path := sshtest.SshAgent(t)
	return &theirs{path, sshtest.DialUnix(t, path)}
}

// add makes id the only key and reports whether it was accepted. A nil body is no
// constraint.
func (th *theirs) add(t *testing.T, id identity, body []byte) bool {
	t.Helper()
	if a := sshtest.Exchange(t, th.nc, []byte{wire.MsgRemoveAllIdentities}); !bytes.Equal(a, sshtest.Succeeded) {
		t.Fatalf("remove all: %x", a)
	}
	k := client.AddedKey{PrivateKey: id.signer}
	k.Certificate, _ = id.public.(*ssh.Certificate)
	if body != nil {
		k.ConstraintExtensions = []client.ConstraintExtension{{ExtensionName: restrictDestination, ExtensionDetails: body}}
	}
	nc := sshtest.DialUnix(t, th.path) // the client reads ahead
	defer nc.Close()
	return client.NewClient(nc).Add(k) == nil
}

// TestDestinationsLikeOpenSSH checks that we take and refuse the same constraints
// as ssh-agent.
func TestDestinationsLikeOpenSSH(t *testing.T) {
	t.Parallel()
	th := newTheirs(t)
	newer := map[string]bool{ // the limit of user patterns came with 10.4
		"user of 257":         true,
		"user of 256 and NUL": true,
	}
	for name, tt := range destinationBodies() {
		_, err := parseDestinations(tt.body)
		if took := th.add(t, scenePlain(), tt.body); took != (err == nil) && !newer[name] {
			t.Errorf("%s: taken by ssh-agent: %v; we: %v", name, took, err)
		}
	}
}

// verdicts are those that a client sees over one connection.
type verdicts struct {
	Bound  []bool
	Listed bool
	Signed []bool
}

func (s *scene) ours() (v verdicts) {
	var b Bindings
	for _, body := range s.binds {
		v.Bound = append(v.Bound, b.Bind(body) == nil)
	}
	v.Listed = Visible(s.ds, &b, time.Now()) == nil
	for _, l := range s.logins {
		_, err := MaySign(s.ds, &b, s.identity().public, l.data, time.Now())
		v.Signed = append(v.Signed, err == nil)
	}
	return v
}

func (s *scene) theirs(t *testing.T, th *theirs) (v verdicts) {
	t.Helper()
	id := s.identity()
	if !th.add(t, id, marshalDestinations(s.ds)) {
		t.Fatal("ssh-agent refused the key")
	}
	nc := sshtest.DialUnix(t, th.path)
	defer nc.Close()
	for _, body := range s.binds {
		v.Bound = append(v.Bound, bytes.Equal(sshtest.Exchange(t, nc, sshtest.Extension(sessionBind, body)), sshtest.Succeeded))
	}
	v.Listed = sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)) == 1
	for _, l := range s.logins {
		answer := sshtest.Exchange(t, nc, sshtest.SignMessage(id.public.Marshal(), l.data, 0))
		v.Signed = append(v.Signed, answer[0] == wire.MsgSignResponse)
	}
	return v
}

func TestVerdictsLikeOpenSSH(t *testing.T) {
	t.Parallel()
	th := newTheirs(t)
	for name, s := range scenes() {
		t.Run(name, func(t *testing.T) {
			ours, theirs := fmt.Sprintf("%+v", s.ours()), fmt.Sprintf("%+v", s.theirs(t, th))
			switch {
			case ours == theirs:
			case s.older != "":
				t.Logf("this ssh-agent: %s; %s, we %s", s.older, theirs, ours)
			default:
				t.Errorf("ssh-agent: %s, we: %s", theirs, ours)
			}
		})
	}
}

// TestRandomVerdictsLikeOpenSSH uses few hosts, so that destinations and bindings
// often match.
func TestRandomVerdictsLikeOpenSSH(t *testing.T) {
	t.Parallel()
	th := newTheirs(t)
	n := 200
	if testing.Short() {
		n = 40
	}
	var listed, signed int
	for seed := range uint64(n) {
		s := randomScene(rand.New(rand.NewPCG(seed, 3)))
		o := s.ours()
		if ours, theirs := fmt.Sprintf("%+v", o), fmt.Sprintf("%+v", s.theirs(t, th)); ours != theirs {
			t.Errorf("seed %d: ssh-agent: %s, we: %s", seed, theirs, ours)
		}
		if o.Listed {
			listed++
		}
		for _, s := range o.Signed {
			if s {
				signed++
			}
		}
	}
	if listed < n/10 || listed > n*9/10 || signed < n/20 {
		t.Errorf("of %d scenes %d were listed, with %d signatures: too few or too many", n, listed, signed)
	}
}

func randomScene(r *rand.Rand) scene {
	names := []string{"a", "b"}
	hosts := []ssh.Signer{
		sshtest.HostA(), sshtest.HostB(),
		sshtest.Certify(sshtest.HostD(), sshtest.HostCA(), names[:1+r.IntN(2)], nil), sshtest.Certify(sshtest.HostB(), sshtest.HostCA(), names[1:], nil),
	}
	pick := func() ssh.Signer { return hosts[r.IntN(len(hosts))] }
	hop := func() Hop {
		user := []string{"", "", "u", "*", "?x"}[r.IntN(5)]
		h := toHost(user, names[r.IntN(2)], hosts[r.IntN(2)])
		if r.IntN(2) == 0 {
			h.Keys = append(h.Keys, HostKey{Key: sshtest.HostCA().PublicKey(), CA: r.IntN(4) > 0})
		}
		return h
	}
	var s scene
	for range 1 + r.IntN(4) {
		if r.IntN(2) == 0 {
			s.ds = append(s.ds, direct(hop()))
		} else {
			s.ds = append(s.ds, onward(hop(), hop()))
		}
	}
	// The first bind is valid: see scene.older.
	var last ssh.Signer
	for i := range 1 + r.IntN(3) {
		last = pick()
		body := sshtest.BindBody(last, fmt.Sprint(r.IntN(4)), r.IntN(4) > 0)
		if i > 0 && r.IntN(8) == 0 {
			body = sshtest.BindBody(last, "x", false)[:100]
		}
		s.binds = append(s.binds, body)
	}
	last = hosts[r.IntN(len(hosts))]
	for id := range 4 {
		for _, host := range []ssh.PublicKey{nil, pick().PublicKey(), last.PublicKey()} {
			user := []string{"u", "v", "vx", ""}[r.IntN(4)]
			s.logins = append(s.logins, sceneLogin{data: sshtest.Login(scenePlain().public, fmt.Sprint(id), user, host)})
		}
	}
	return s
}

// TestFromSSHAdd parses what ssh-add -h sends, and encodes it again.
func TestFromSSHAdd(t *testing.T) {
	t.Parallel()
	needs.Programs(t, "ssh-keygen", "ssh-add")
	dir := t.TempDir()
	knownHosts := filepath.Join(dir, "known_hosts")
	var lines bytes.Buffer
	line := func(prefix string, k ssh.Signer) {
		fmt.Fprintf(&lines, "%s %s", prefix, ssh.MarshalAuthorizedKey(k.PublicKey()))
	}
	line("a.example", sshtest.HostA())
	line("a.example", sshtest.HostB())
	line("b.example", sshtest.HostC())
	line("@cert-authority *.ca.example", sshtest.HostCA())
	writeFile(t, knownHosts, lines.Bytes())
	keyFile := filepath.Join(dir, "key")
	writeFile(t, keyFile, privatePEM(t))

	body := destinationsOf(t, dir, "-H", knownHosts, "-h", "a.example", "-h", "ro?t@b.example",
		"-h", "a.example>bob@b.example", "-h", "b.example>h.ca.example", keyFile)
	a, b := toHost("", "a.example", sshtest.HostA(), sshtest.HostB()), toHost("", "b.example", sshtest.HostC())
	want := marshalDestinations([]Destination{
		direct(a), direct(toHost("ro?t", "b.example", sshtest.HostC())),
		onward(a, toHost("bob", "b.example", sshtest.HostC())), onward(b, byAuthority("", "h.ca.example", sshtest.HostCA())),
	})
	ds, err := parseDestinations(body)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(marshalDestinations(ds), body) || !bytes.Equal(body, want) {
		t.Errorf("ssh-add sent\n%x, want\n%x\nparsed and encoded\n%x", body, want, marshalDestinations(ds))
	}
}

func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// destinationsOf runs ssh-add and returns the body of the constraint that it
// sends.
func destinationsOf(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make(chan []byte, 1)
	go func() {
		defer close(sent)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		for {
			m, err := sshtest.TryRecv(nc)
			if err != nil {
				return
			}
			if m[0] == wire.MsgAddIDConstrained {
				sent <- m
			}
			nc.Write(wire.Frame([]byte{wire.MsgSuccess}))
		}
	}()
	cmd := exec.Command("ssh-add", args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "SSH_AUTH_SOCK=" + socket}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %v\n%s", err, out)
	}
	l.Close()
	message := <-sent
	marker := append([]byte{255}, wire.AppendString(nil, []byte(restrictDestination))...)
	_, after, found := bytes.Cut(message, marker)
	p := wire.Parser{Rest: after}
	body := p.Bytes()
	if err := p.Whole(); !found || err != nil {
		t.Fatalf("ssh-add sent %x", message)
	}
	return body
}

func privatePEM(t *testing.T) []byte {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(sshtest.P256(), "scene")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}
