package agent

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
	client "golang.org/x/crypto/ssh/agent"
)

const (
	sessionBind         = "session-bind@openssh.com"
	restrictDestination = "restrict-destination-v00@openssh.com"
)

// theirs is OpenSSH's agent.
type theirs struct {
	path string
	nc   *net.UnixConn // bound to nothing
}

func newTheirs(t *testing.T) *theirs {
	t.Helper()
	path := sshAgent(t)
	return &theirs{path, dialUnix(t, path)}
}

// add leaves id as the only key, and says whether it was taken. No body is no
// constraint.
func (th *theirs) add(t *testing.T, id Identity, body []byte) bool {
	t.Helper()
	if a := ask(t, th.nc, []byte{msgRemoveAllIdentities}); !bytes.Equal(a, succeeded) {
		t.Fatalf("remove all: %x", a)
	}
	k := client.AddedKey{PrivateKey: id.Key.(*softKey).Signer}
	k.Certificate, _ = id.Public.(*ssh.Certificate)
	if body != nil {
		k.ConstraintExtensions = []client.ConstraintExtension{{ExtensionName: restrictDestination, ExtensionDetails: body}}
	}
	nc := dialUnix(t, th.path) // the client reads ahead
	defer nc.Close()
	return client.NewClient(nc).Add(k) == nil
}

// TestDestinationsLikeOpenSSH: the same constraints are taken and refused.
func TestDestinationsLikeOpenSSH(t *testing.T) {
	th := newTheirs(t)
	newer := map[string]bool{ // the limit of user patterns came with 10.4
		"user of 257":         true,
		"user of 256 and NUL": true,
	}
	for name, tt := range destinationBodies() {
		_, err := parseDestinations(tt.body)
		if took := th.add(t, scenePlain(), tt.body); took != (err == nil) && !newer[name] {
			t.Errorf("%s: ssh-agent took it: %v, we: %v", name, took, err)
		}
	}
}

// verdicts are what can be seen of an agent's over one connection.
type verdicts struct {
	Bound  []bool
	Listed bool
	Signed []bool
}

func (s *scene) ours() (v verdicts) {
	var b bindings
	for _, body := range s.binds {
		v.Bound = append(v.Bound, b.bind(body) == nil)
	}
	v.Listed = visible(s.ds, &b, time.Now()) == nil
	for _, l := range s.logins {
		_, _, err := maySign(s.ds, &b, s.identity().Public, l.data, time.Now())
		v.Signed = append(v.Signed, err == nil)
	}
	return v
}

func (s *scene) theirs(t *testing.T, th *theirs) (v verdicts) {
	t.Helper()
	id := s.identity()
	if !th.add(t, id, marshalDestinations(s.ds)) {
		t.Fatal("ssh-agent did not take the key")
	}
	nc := dialUnix(t, th.path)
	defer nc.Close()
	for _, body := range s.binds {
		v.Bound = append(v.Bound, bytes.Equal(ask(t, nc, extension(sessionBind, body)), succeeded))
	}
	v.Listed = countListed(t, ask(t, nc, listThem)) == 1
	for _, l := range s.logins {
		answer := ask(t, nc, signMessage(id.Public.Marshal(), l.data, 0))
		v.Signed = append(v.Signed, answer[0] == msgSignResponse)
	}
	return v
}

func TestVerdictsLikeOpenSSH(t *testing.T) {
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

// TestRandomVerdictsLikeOpenSSH makes scenes of few hosts, so that destinations
// and bindings often meet.
func TestRandomVerdictsLikeOpenSSH(t *testing.T) {
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
		t.Errorf("of %d scenes %d were listed, with %d signatures: they say little", n, listed, signed)
	}
}

func randomScene(r *rand.Rand) scene {
	names := []string{"a", "b"}
	hosts := []ssh.Signer{
		hostA(), hostB(),
		certify(hostD(), hostCA(), names[:1+r.IntN(2)], nil), certify(hostB(), hostCA(), names[1:], nil),
	}
	pick := func() ssh.Signer { return hosts[r.IntN(len(hosts))] }
	hop := func() Hop {
		user := []string{"", "", "u", "*", "?x"}[r.IntN(5)]
		h := toHost(user, names[r.IntN(2)], hosts[r.IntN(2)])
		if r.IntN(2) == 0 {
			h.Keys = append(h.Keys, HostKey{Key: hostCA().PublicKey(), CA: r.IntN(4) > 0})
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
	// The first bind is a good one: see scene.older.
	var last ssh.Signer
	for i := range 1 + r.IntN(3) {
		last = pick()
		body := bindBody(last, fmt.Sprint(r.IntN(4)), r.IntN(4) > 0)
		if i > 0 && r.IntN(8) == 0 {
			body = bindBody(last, "x", false)[:100]
		}
		s.binds = append(s.binds, body)
	}
	last = hosts[r.IntN(len(hosts))]
	for id := range 4 {
		for _, host := range []ssh.PublicKey{nil, pick().PublicKey(), last.PublicKey()} {
			user := []string{"u", "v", "vx", ""}[r.IntN(4)]
			s.logins = append(s.logins, sceneLogin{data: login(scenePlain().Public, fmt.Sprint(id), user, host)})
		}
	}
	return s
}

// TestFromSSHAdd parses what ssh-add -h sends, and makes the same bytes.
func TestFromSSHAdd(t *testing.T) {
	dir := t.TempDir()
	knownHosts := filepath.Join(dir, "known_hosts")
	var lines bytes.Buffer
	line := func(prefix string, k ssh.Signer) {
		fmt.Fprintf(&lines, "%s %s", prefix, ssh.MarshalAuthorizedKey(k.PublicKey()))
	}
	line("a.example", hostA())
	line("a.example", hostB())
	line("b.example", hostC())
	line("@cert-authority *.ca.example", hostCA())
	writeFile(t, knownHosts, lines.Bytes())
	keyFile := filepath.Join(dir, "key")
	writeFile(t, keyFile, privatePEM(t))

	body := destinationsOf(t, dir, "-H", knownHosts, "-h", "a.example", "-h", "ro?t@b.example",
		"-h", "a.example>bob@b.example", "-h", "b.example>h.ca.example", keyFile)
	a, b := toHost("", "a.example", hostA(), hostB()), toHost("", "b.example", hostC())
	want := marshalDestinations([]Destination{
		direct(a), direct(toHost("ro?t", "b.example", hostC())),
		onward(a, toHost("bob", "b.example", hostC())), onward(b, byAuthority("", "h.ca.example", hostCA())),
	})
	ds, err := parseDestinations(body)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(marshalDestinations(ds), body) || !bytes.Equal(body, want) {
		t.Errorf("ssh-add sent\n%x, we make\n%x\nand of it\n%x", body, want, marshalDestinations(ds))
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
			m, err := tryRecv(nc)
			if err != nil {
				return
			}
			if m[0] == msgAddIDConstrained {
				sent <- m
			}
			nc.Write(frame([]byte{msgSuccess}))
		}
	}()
	cmd := exec.Command("ssh-add", args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "SSH_AUTH_SOCK=" + socket}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %v\n%s", err, out)
	}
	l.Close()
	message := <-sent
	marker := append([]byte{255}, ssh.Marshal(wireString{S: []byte(restrictDestination)})...)
	_, after, found := bytes.Cut(message, marker)
	var body wireString
	if err := ssh.Unmarshal(after, &body); !found || err != nil || len(body.Rest) > 0 {
		t.Fatalf("ssh-add sent %x", message)
	}
	return body.S
}

func privatePEM(t *testing.T) []byte {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(p256(), "scene")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}
