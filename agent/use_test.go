package agent

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
	client "golang.org/x/crypto/ssh/agent"
)

// hostNames are a known_hosts file in which hosts A and B are, and nobody else.
func hostNames(key ssh.PublicKey) string {
	switch {
	case sameKey(key, hostA().PublicKey()):
		return "a.example"
	case sameKey(key, hostB().PublicKey()):
		return "b.example"
	}
	return ""
}

// sshsig is data that ssh-keygen -Y sign would have signed, unless something
// is wrong with it.
func sshsig(namespace, hash string, sum []byte, rest ...byte) []byte {
	return ssh.Marshal(struct {
		Magic                     [6]byte
		Namespace, Reserved, Hash string
		Sum                       []byte
		Rest                      []byte `ssh:"rest"`
	}{[6]byte([]byte(magicSSHSIG)), namespace, "", hash, sum, rest})
}

func TestUseOfSSHSIG(t *testing.T) {
	sum256, sum512 := make([]byte, 32), make([]byte, 64)
	reserved := sshsig("git", "sha512", sum512)
	reserved = slices.Insert(reserved, 17, []byte("new")...)
	reserved[16] = 3
	for name, test := range map[string]struct {
		data []byte
		want string // "": no SSHSIG
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
		want := Use{Kind: UseSignature, Namespace: test.want}
		if test.want == "" {
			want.Kind = UseUnknown
		}
		if got := useOf(new(bindings), scenePlain().Public, test.data, hostNames, ""); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	whole := sshsig("git", "sha512", sum512)
	for n := range whole {
		if got := useOf(new(bindings), scenePlain().Public, whole[:n], hostNames, ""); got.Kind != UseUnknown {
			t.Errorf("%d bytes of %d are %+v", n, len(whole), got)
		}
	}
}

// TestUseOfLogin: the host is named where it has proven to be the one, and
// nowhere else.
func TestUseOfLogin(t *testing.T) {
	key, a, b, c := scenePlain().Public, hostA().PublicKey(), hostB().PublicKey(), hostC().PublicKey()
	printA, printB, printC := ssh.FingerprintSHA256(a), ssh.FingerprintSHA256(b), ssh.FingerprintSHA256(c)
	certC := certify(hostC(), hostCA(), []string{"c"}, nil)
	refused := bindBody(hostA(), "9", true)[:70]
	login := func(id string, host ssh.PublicKey) []byte { return login(key, id, "u", host) }
	for name, test := range map[string]struct {
		binds       [][]byte
		data        []byte
		destination string
		want        Use
	}{
		"not bound":              {nil, login("1", a), "", Use{}},
		"bound":                  {[][]byte{bindBody(hostA(), "1", false)}, login("1", a), "", Use{Host: "a.example", HostKey: printA}},
		"method of RFC 4252":     {[][]byte{bindBody(hostA(), "1", false)}, login("1", nil), "", Use{Host: "a.example", HostKey: printA}},
		"other session":          {[][]byte{bindBody(hostA(), "1", false)}, login("2", a), "", Use{}},
		"other host":             {[][]byte{bindBody(hostA(), "1", false)}, login("1", b), "", Use{}},
		"no name":                {[][]byte{bindBody(hostC(), "1", false)}, login("1", c), "", Use{HostKey: printC}},
		"name of destination":    {[][]byte{bindBody(hostC(), "1", false)}, login("1", c), "c.example", Use{Host: "c.example", HostKey: printC}},
		"name of both":           {[][]byte{bindBody(hostA(), "1", false)}, login("1", a), "alias", Use{Host: "a.example", HostKey: printA}},
		"destination, not bound": {nil, login("1", c), "c.example", Use{}},
		"certificate":            {[][]byte{bindBody(certC, "1", false)}, login("1", certC.PublicKey()), "", Use{HostKey: printC}},
		"bind refused":           {[][]byte{refused}, login("1", a), "", Use{Forwarded: true, Via: []string{""}}},
		"forwarded, not bound behind it": {
			[][]byte{bindBody(hostA(), "1", true)},
			login("2", b), "",
			Use{Forwarded: true, Via: []string{"a.example"}},
		},
		"to who forwards": {
			[][]byte{bindBody(hostA(), "1", true)},
			login("1", a), "",
			Use{Forwarded: true, Via: []string{"a.example"}},
		},
		"forwarded": {
			[][]byte{bindBody(hostA(), "1", true), bindBody(hostB(), "2", false)},
			login("2", b), "",
			Use{Host: "b.example", HostKey: printB, Forwarded: true, Via: []string{"a.example"}},
		},
		"forwarded, host not in data": {
			[][]byte{bindBody(hostA(), "1", true), bindBody(hostB(), "2", false)},
			login("2", nil), "",
			Use{Forwarded: true, Via: []string{"a.example"}},
		},
		"two hops": {
			[][]byte{bindBody(hostB(), "1", true), bindBody(hostC(), "2", true), bindBody(hostA(), "3", false)},
			login("3", a), "",
			Use{Host: "a.example", HostKey: printA, Forwarded: true, Via: []string{"b.example", printC}},
		},
		"forwarded by a certificate": {
			[][]byte{bindBody(certC, "1", true)},
			login("2", a), "",
			Use{Forwarded: true, Via: []string{printC}},
		},
		"refused in between": {
			[][]byte{bindBody(hostB(), "1", true), refused, bindBody(hostA(), "3", false)},
			login("3", a), "",
			Use{Host: "a.example", HostKey: printA, Forwarded: true, Via: []string{"b.example", ""}},
		},
		"refused behind it": {
			[][]byte{bindBody(hostA(), "1", false), bindBody(hostB(), "2", true)},
			login("1", a), "",
			Use{Host: "a.example", HostKey: printA, Forwarded: true, Via: []string{""}},
		},
	} {
		var bound bindings
		for _, body := range test.binds {
			_ = bound.bind(body) // some are to be refused
		}
		test.want.Kind, test.want.User = UseLogin, "u"
		if got := useOf(&bound, key, test.data, hostNames, test.destination); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

func TestUseOfOtherKey(t *testing.T) {
	key := scenePlain().Public
	for name, data := range map[string][]byte{
		"login of another key":     login(publicOf(p384()), "1", "u", nil),
		"login of its certificate": login(sceneCertified().Public, "1", "u", nil),
		"certificate of another":   unsigned(&ssh.Certificate{Key: key, CertType: ssh.UserCert, SignatureKey: publicOf(p384())}),
		"certificate of no type":   unsigned(&ssh.Certificate{Key: key, SignatureKey: key}),
		"certificate with more":    append(unsigned(&ssh.Certificate{Key: key, CertType: ssh.UserCert, SignatureKey: key}), 0),
		"certificate, signed":      sceneCertified().Public.Marshal(),
		"a public key":             key.Marshal(),
		"a hash":                   make([]byte, 32),
		"nothing":                  nil,
	} {
		if got := useOf(new(bindings), key, data, nil, ""); !reflect.DeepEqual(got, Use{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// unsigned is what a certificate's signature is made of.
func unsigned(cert *ssh.Certificate) []byte {
	signed := *cert
	signed.Signature = &ssh.Signature{Format: "x"}
	blob := signed.Marshal()
	return blob[:len(blob)-lengthSize-len(ssh.Marshal(signed.Signature))]
}

func TestUseOfCertificate(t *testing.T) {
	key := scenePlain().Public
	for name, test := range map[string]struct {
		cert ssh.Certificate
		want Use
	}{
		"user":    {ssh.Certificate{KeyId: "alice", CertType: ssh.UserCert, ValidPrincipals: []string{"root", "www"}}, Use{KeyID: "alice", Principals: []string{"root", "www"}}},
		"host":    {ssh.Certificate{KeyId: "h", CertType: ssh.HostCert, ValidPrincipals: []string{"h.example"}}, Use{KeyID: "h", Principals: []string{"h.example"}, HostCert: true}},
		"for all": {ssh.Certificate{CertType: ssh.UserCert}, Use{}},
		"options": {
			ssh.Certificate{CertType: ssh.UserCert, Permissions: ssh.Permissions{
				CriticalOptions: map[string]string{"force-command": "x"}, Extensions: map[string]string{"permit-pty": ""},
			}}, Use{},
		},
	} {
		test.want.Kind = UseCertificate
		for _, subject := range []ssh.PublicKey{key, publicOf(rsa2k()), hostA().PublicKey()} {
			test.cert.Key, test.cert.SignatureKey = subject, key
			if got := useOf(new(bindings), key, unsigned(&test.cert), nil, ""); !reflect.DeepEqual(got, test.want) {
				t.Errorf("%s, %s: %+v, want %+v", name, subject.Type(), got, test.want)
			}
		}
	}
}

// overheard is an agent of x/crypto that remembers what it was to sign.
type overheard struct {
	client.ExtendedAgent
	mu   sync.Mutex
	uses []Use
}

func (o *overheard) SignWithFlags(key ssh.PublicKey, data []byte, flags client.SignatureFlags) (*ssh.Signature, error) {
	o.mu.Lock()
	o.uses = append(o.uses, useOf(new(bindings), key, data, nil, ""))
	o.mu.Unlock()
	return o.ExtendedAgent.SignWithFlags(key, data, flags)
}

// TestUseOfOpenSSH: what OpenSSH's programs have signed is known for what it
// is.
func TestUseOfOpenSSH(t *testing.T) {
	dir := t.TempDir()
	heard := &overheard{ExtendedAgent: client.NewKeyring().(client.ExtendedAgent)}
	if err := heard.Add(client.AddedKey{PrivateKey: p256()}); err != nil {
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
	for name, key := range map[string]ssh.PublicKey{"ca.pub": publicOf(p256()), "k.pub": hostA().PublicKey()} {
		if err := os.WriteFile(filepath.Join(dir, name), ssh.MarshalAuthorizedKey(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for args, want := range map[string]Use{
		"-Y sign -n git -f ca.pub":                    {Kind: UseSignature, Namespace: "git"},
		"-Y sign -n file -O hashalg=sha256 -f ca.pub": {Kind: UseSignature, Namespace: "file"},
		"-Us ca.pub -I alice -n root,www k.pub":       {Kind: UseCertificate, KeyID: "alice", Principals: []string{"root", "www"}},
		"-Us ca.pub -I all -O clear k.pub":            {Kind: UseCertificate, KeyID: "all"},
		"-Us ca.pub -h -I h -n h.example k.pub":       {Kind: UseCertificate, KeyID: "h", Principals: []string{"h.example"}, HostCert: true},
	} {
		heard.uses = nil
		cmd := exec.Command("ssh-keygen", strings.Fields(args)...)
		cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "SSH_AUTH_SOCK=" + l.Addr().String()}
		cmd.Stdin = strings.NewReader("a message")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen %s: %v\n%s", args, err, out)
		}
		if !reflect.DeepEqual(heard.uses, []Use{want}) {
			t.Errorf("ssh-keygen %s: %+v, want %+v", args, heard.uses, want)
		}
	}
}

// FuzzUse: nothing is more than one thing, and what is said stands in the data
// or was proven.
func FuzzUse(f *testing.F) {
	key, host := fixedHost().PublicKey(), must(ssh.ParsePublicKey(fixedHost().PublicKey().Marshal()))
	f.Add(login(key, "1", "u", host))
	f.Add(login(key, "1", "u", nil))
	f.Add(login(key, "2", "u", host))
	f.Add(sshsig("git", "sha512", make([]byte, 64)))
	f.Add(sshsig("file", "sha256", make([]byte, 32)))
	f.Add(unsigned(&ssh.Certificate{Key: key, CertType: ssh.UserCert, SignatureKey: key, KeyId: "a", ValidPrincipals: []string{"b", "c"}}))
	f.Add(unsigned(&ssh.Certificate{Key: key, CertType: ssh.HostCert, SignatureKey: key}))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		bound := boundTo(t, bindBody(fixedHost(), "1", false))
		use := useOf(bound, key, data, func(ssh.PublicKey) string { return "h" }, "")
		if !bytes.Equal(before, data) {
			t.Error("the data were changed")
		}
		for _, said := range append(use.Principals, use.User, use.Namespace, use.KeyID) {
			if !bytes.Contains(data, []byte(said)) {
				t.Errorf("%q came from nowhere", said)
			}
		}
		want := Use{Kind: use.Kind}
		switch use.Kind {
		case UseLogin:
			want.User = use.User
			if bytes.HasPrefix(data, []byte("\x00\x00\x00\x011")) {
				want.Host, want.HostKey = "h", ssh.FingerprintSHA256(key)
			}
			if r, err := parseUserauth(data, key); err != nil || r.hostKey != nil && !sameKey(r.hostKey, key) {
				want.Host, want.HostKey = "", ""
			}
		case UseSignature:
			want.Namespace = use.Namespace
		case UseCertificate:
			want.KeyID, want.Principals, want.HostCert = use.KeyID, use.Principals, use.HostCert
		}
		if !reflect.DeepEqual(use, want) {
			t.Errorf("%+v, want %+v", use, want)
		}
	})
}
