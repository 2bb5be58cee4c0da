package restrict

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"

	client "golang.org/x/crypto/ssh/agent"
)

// hostNames stands for a known_hosts file with the hosts A and B.
func hostNames(key ssh.PublicKey) string {
	switch {
	case sshkey.Same(key, sshtest.HostA().PublicKey()):
		return "a.example"
	case sshkey.Same(key, sshtest.HostB().PublicKey()):
		return "b.example"
	}
	return ""
}

// sshsig encodes what ssh-keygen -Y sign would have signed, for valid fields.
func sshsig(namespace, hash string, sum []byte, rest ...byte) []byte {
	return ssh.Marshal(struct {
		Magic                     [6]byte
		Namespace, Reserved, Hash string
		Sum                       []byte
		Rest                      []byte `ssh:"rest"`
	}{[6]byte([]byte(magicSSHSIG)), namespace, "", hash, sum, rest})
}

func TestUseOfSSHSIG(t *testing.T) {
	t.Parallel()
	sum256, sum512 := make([]byte, 32), make([]byte, 64)
	reserved := sshsig("git", "sha512", sum512)
	reserved = slices.Insert(reserved, 17, []byte("new")...)
	reserved[16] = 3
	for name, test := range map[string]struct {
		data []byte
		want string // the namespace; "": not an SSHSIG
	}{
		"git":              {sshsig("git", "sha512", sum512), "git"},
		"sha256":           {sshsig("file", "sha256", sum256), "file"},
		"NUL at the end":   {sshsig("git\x00", "sha512", sum512), "git"},
		"reserved":         {reserved, "git"},
		"no namespace":     {sshsig("", "sha512", sum512), ""},
		"NUL":              {sshsig("\x00git", "sha512", sum512), ""},
		"other hash":       {sshsig("git", "sha1", make([]byte, 20)), ""},
		"no hash":          {sshsig("git", "", nil), ""},
		"short hash":       {sshsig("git", "sha512", sum256), ""},
		"something behind": {sshsig("git", "sha512", sum512, 0), ""},
		"other magic":      {append([]byte("SSHSIH"), sshsig("git", "sha512", sum512)[6:]...), ""},
		"nothing":          {nil, ""},
	} {
		want := ask.Use{Kind: ask.UseSignature, Namespace: test.want}
		if test.want == "" {
			want.Kind = ask.UseUnknown
		}
		if got := UseOf(new(Bindings), scenePlain().public, test.data, hostNames, ""); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	whole := sshsig("git", "sha512", sum512)
	for n := range whole {
		if got := UseOf(new(Bindings), scenePlain().public, whole[:n], hostNames, ""); got.Kind != ask.UseUnknown {
			t.Errorf("%d bytes of %d are %+v", n, len(whole), got)
		}
	}
}

// TestUseOfLogin checks that a host is named only if it is proven.
func TestUseOfLogin(t *testing.T) {
	t.Parallel()
	key, a, b, c := scenePlain().public, sshtest.HostA().PublicKey(), sshtest.HostB().PublicKey(), sshtest.HostC().PublicKey()
	printA, printB, printC := ssh.FingerprintSHA256(a), ssh.FingerprintSHA256(b), ssh.FingerprintSHA256(c)
	certC := sshtest.Certify(sshtest.HostC(), sshtest.HostCA(), []string{"c"}, nil)
	refused := sshtest.BindBody(sshtest.HostA(), "9", true)[:70]
	login := func(id string, host ssh.PublicKey) []byte { return sshtest.Login(key, id, "u", host) }
	for name, test := range map[string]struct {
		binds       [][]byte
		data        []byte
		destination string
		want        ask.Use
	}{
		"not bound":              {nil, login("1", a), "", ask.Use{}},
		"bound":                  {[][]byte{sshtest.BindBody(sshtest.HostA(), "1", false)}, login("1", a), "", ask.Use{Host: "a.example", HostKey: printA}},
		"method of RFC 4252":     {[][]byte{sshtest.BindBody(sshtest.HostA(), "1", false)}, login("1", nil), "", ask.Use{Host: "a.example", HostKey: printA}},
		"other identifier":       {[][]byte{sshtest.BindBody(sshtest.HostA(), "1", false)}, login("2", a), "", ask.Use{}},
		"other host":             {[][]byte{sshtest.BindBody(sshtest.HostA(), "1", false)}, login("1", b), "", ask.Use{}},
		"no name":                {[][]byte{sshtest.BindBody(sshtest.HostC(), "1", false)}, login("1", c), "", ask.Use{HostKey: printC}},
		"name of destination":    {[][]byte{sshtest.BindBody(sshtest.HostC(), "1", false)}, login("1", c), "c.example", ask.Use{Host: "c.example", HostKey: printC}},
		"name of both":           {[][]byte{sshtest.BindBody(sshtest.HostA(), "1", false)}, login("1", a), "alias", ask.Use{Host: "a.example", HostKey: printA}},
		"destination, not bound": {nil, login("1", c), "c.example", ask.Use{}},
		"certificate":            {[][]byte{sshtest.BindBody(certC, "1", false)}, login("1", certC.PublicKey()), "", ask.Use{HostKey: printC}},
		"bind refused":           {[][]byte{refused}, login("1", a), "", ask.Use{Forwarded: true, Via: []string{""}}},
		"forwarded, not bound behind it": {
			[][]byte{sshtest.BindBody(sshtest.HostA(), "1", true)},
			login("2", b), "",
			ask.Use{Forwarded: true, Via: []string{"a.example"}},
		},
		"to the forwarding host": {
			[][]byte{sshtest.BindBody(sshtest.HostA(), "1", true)},
			login("1", a), "",
			ask.Use{Forwarded: true, Via: []string{"a.example"}},
		},
		"forwarded": {
			[][]byte{sshtest.BindBody(sshtest.HostA(), "1", true), sshtest.BindBody(sshtest.HostB(), "2", false)},
			login("2", b), "",
			ask.Use{Host: "b.example", HostKey: printB, Forwarded: true, Via: []string{"a.example"}},
		},
		"forwarded, host not in data": {
			[][]byte{sshtest.BindBody(sshtest.HostA(), "1", true), sshtest.BindBody(sshtest.HostB(), "2", false)},
			login("2", nil), "",
			ask.Use{Forwarded: true, Via: []string{"a.example"}},
		},
		"two hops": {
			[][]byte{sshtest.BindBody(sshtest.HostB(), "1", true), sshtest.BindBody(sshtest.HostC(), "2", true), sshtest.BindBody(sshtest.HostA(), "3", false)},
			login("3", a), "",
			ask.Use{Host: "a.example", HostKey: printA, Forwarded: true, Via: []string{"b.example", printC}},
		},
		"forwarded by a certificate": {
			[][]byte{sshtest.BindBody(certC, "1", true)},
			login("2", a), "",
			ask.Use{Forwarded: true, Via: []string{printC}},
		},
		"refused in between": {
			[][]byte{sshtest.BindBody(sshtest.HostB(), "1", true), refused, sshtest.BindBody(sshtest.HostA(), "3", false)},
			login("3", a), "",
			ask.Use{Host: "a.example", HostKey: printA, Forwarded: true, Via: []string{"b.example", ""}},
		},
		"refused behind it": {
			[][]byte{sshtest.BindBody(sshtest.HostA(), "1", false), sshtest.BindBody(sshtest.HostB(), "2", true)},
			login("1", a), "",
			ask.Use{Host: "a.example", HostKey: printA, Forwarded: true, Via: []string{""}},
		},
	} {
		var bound Bindings
		for _, body := range test.binds {
			_ = bound.Bind(body) // some must be refused
		}
		test.want.Kind, test.want.User = ask.UseLogin, "u"
		if got := UseOf(&bound, key, test.data, hostNames, test.destination); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

func TestUseOfOtherKey(t *testing.T) {
	t.Parallel()
	key := scenePlain().public
	for name, data := range map[string][]byte{
		"login of another key":     sshtest.Login(sshtest.PublicOf(sshtest.P384()), "1", "u", nil),
		"login of its certificate": sshtest.Login(sceneCertified().public, "1", "u", nil),
		"certificate of another":   unsigned(&ssh.Certificate{Key: key, CertType: ssh.UserCert, SignatureKey: sshtest.PublicOf(sshtest.P384())}),
		"certificate of no type":   unsigned(&ssh.Certificate{Key: key, SignatureKey: key}),
		"certificate with more":    append(unsigned(&ssh.Certificate{Key: key, CertType: ssh.UserCert, SignatureKey: key}), 0),
		"certificate, signed":      sceneCertified().public.Marshal(),
		"a public key":             key.Marshal(),
		"a hash":                   make([]byte, 32),
		"nothing":                  nil,
	} {
		if got := UseOf(new(Bindings), key, data, nil, ""); !reflect.DeepEqual(got, ask.Use{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// unsigned returns the data of a certificate's signature.
func unsigned(cert *ssh.Certificate) []byte {
	signed := *cert
	signed.Signature = &ssh.Signature{Format: "x"}
	blob := signed.Marshal()
	return blob[:len(blob)-wire.LengthSize-len(ssh.Marshal(signed.Signature))]
}

func TestUseOfCertificate(t *testing.T) {
	t.Parallel()
	key := scenePlain().public
	for name, test := range map[string]struct {
		cert ssh.Certificate
		want ask.Use
	}{
		"user":    {ssh.Certificate{KeyId: "alice", CertType: ssh.UserCert, ValidPrincipals: []string{"root", "www"}}, ask.Use{KeyID: "alice", Principals: []string{"root", "www"}}},
		"host":    {ssh.Certificate{KeyId: "h", CertType: ssh.HostCert, ValidPrincipals: []string{"h.example"}}, ask.Use{KeyID: "h", Principals: []string{"h.example"}, HostCert: true}},
		"for all": {ssh.Certificate{CertType: ssh.UserCert}, ask.Use{}},
		"options": {
			ssh.Certificate{CertType: ssh.UserCert, Permissions: ssh.Permissions{
				CriticalOptions: map[string]string{"force-command": "x"}, Extensions: map[string]string{"permit-pty": ""},
			}}, ask.Use{},
		},
	} {
		test.want.Kind = ask.UseCertificate
		for _, subject := range []ssh.PublicKey{key, sshtest.PublicOf(sshtest.RSA2048()), sshtest.HostA().PublicKey()} {
			test.cert.Key, test.cert.SignatureKey = subject, key
			if got := UseOf(new(Bindings), key, unsigned(&test.cert), nil, ""); !reflect.DeepEqual(got, test.want) {
				t.Errorf("%s, %s: %+v, want %+v", name, subject.Type(), got, test.want)
			}
		}
	}
}

// overheard is an agent of x/crypto that records what it signs.
type overheard struct {
	client.ExtendedAgent
	mu   sync.Mutex
	uses []ask.Use
}

func (o *overheard) SignWithFlags(key ssh.PublicKey, data []byte, flags client.SignatureFlags) (*ssh.Signature, error) {
	o.mu.Lock()
	o.uses = append(o.uses, UseOf(new(Bindings), key, data, nil, ""))
	o.mu.Unlock()
	return o.ExtendedAgent.SignWithFlags(key, data, flags)
}

// take returns what was recorded since the last call.
func (o *overheard) take() []ask.Use {
	o.mu.Lock()
	defer o.mu.Unlock()
	uses := o.uses
	o.uses = nil
	return uses
}

// TestUseOfOpenSSH checks that the data that ssh-keygen has signed are recognised.
func TestUseOfOpenSSH(t *testing.T) {
	t.Parallel()
	needs.Programs(t, "ssh-keygen")
	dir := t.TempDir()
	heard := &overheard{ExtendedAgent: client.NewKeyring().(client.ExtendedAgent)}
	if err := heard.Add(client.AddedKey{PrivateKey: sshtest.P256()}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer l.Close()
	work.Go(func() {
		for {
			nc, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			work.Go(func() { defer nc.Close(); _ = client.ServeAgent(heard, nc) })
		}
	})
	for name, key := range map[string]ssh.PublicKey{"ca.pub": sshtest.PublicOf(sshtest.P256()), "k.pub": sshtest.HostA().PublicKey()} {
		if err := os.WriteFile(filepath.Join(dir, name), ssh.MarshalAuthorizedKey(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for args, want := range map[string]ask.Use{
		"-Y sign -n git -f ca.pub":                    {Kind: ask.UseSignature, Namespace: "git"},
		"-Y sign -n file -O hashalg=sha256 -f ca.pub": {Kind: ask.UseSignature, Namespace: "file"},
		"-Us ca.pub -I alice -n root,www k.pub":       {Kind: ask.UseCertificate, KeyID: "alice", Principals: []string{"root", "www"}},
		"-Us ca.pub -I all -O clear k.pub":            {Kind: ask.UseCertificate, KeyID: "all"},
		"-Us ca.pub -h -I h -n h.example k.pub":       {Kind: ask.UseCertificate, KeyID: "h", Principals: []string{"h.example"}, HostCert: true},
	} {
		cmd := exec.Command("ssh-keygen", strings.Fields(args)...)
		cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "SSH_AUTH_SOCK=" + l.Addr().String()}
		cmd.Stdin = strings.NewReader("a message")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen %s: %v\n%s", args, err, out)
		}
		if got := heard.take(); !reflect.DeepEqual(got, []ask.Use{want}) {
			t.Errorf("ssh-keygen %s: %+v, want %+v", args, got, want)
		}
	}
}

// FuzzUse checks that a use has only the fields of its kind, and that each comes
// from the data or was proven.
func FuzzUse(f *testing.F) {
	key, host := sshtest.FixedHost().PublicKey(), sshtest.Must(ssh.ParsePublicKey(sshtest.FixedHost().PublicKey().Marshal()))
	f.Add(sshtest.Login(key, "1", "u", host))
	f.Add(sshtest.Login(key, "1", "u", nil))
	f.Add(sshtest.Login(key, "2", "u", host))
	f.Add(sshsig("git", "sha512", make([]byte, 64)))
	f.Add(sshsig("file", "sha256", make([]byte, 32)))
	f.Add(unsigned(&ssh.Certificate{Key: key, CertType: ssh.UserCert, SignatureKey: key, KeyId: "a", ValidPrincipals: []string{"b", "c"}}))
	f.Add(unsigned(&ssh.Certificate{Key: key, CertType: ssh.HostCert, SignatureKey: key}))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		bound := boundTo(t, sshtest.BindBody(sshtest.FixedHost(), "1", false))
		use := UseOf(bound, key, data, func(ssh.PublicKey) string { return "h" }, "")
		if !bytes.Equal(before, data) {
			t.Error("the data were changed")
		}
		for _, said := range append(use.Principals, use.User, use.Namespace, use.KeyID) {
			if !bytes.Contains(data, []byte(said)) {
				t.Errorf("%q is not in the data", said)
			}
		}
		want := ask.Use{Kind: use.Kind}
		switch use.Kind {
		case ask.UseLogin:
			want.User = use.User
			if bytes.HasPrefix(data, []byte("\x00\x00\x00\x011")) {
				want.Host, want.HostKey = "h", ssh.FingerprintSHA256(key)
			}
			if r, err := parseUserauth(data, key); err != nil || r.hostKey != nil && !sshkey.Same(r.hostKey, key) {
				want.Host, want.HostKey = "", ""
			}
		case ask.UseSignature:
			want.Namespace = use.Namespace
		case ask.UseCertificate:
			want.KeyID, want.Principals, want.HostCert = use.KeyID, use.Principals, use.HostCert
		}
		if !reflect.DeepEqual(use, want) {
			t.Errorf("%+v, want %+v", use, want)
		}
	})
}
