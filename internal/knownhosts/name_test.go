package knownhosts

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// hashedHosts writes a file whose names ssh-keygen hashes.
func hashedHosts(t *testing.T, content string) string {
	t.Helper()
	path := write(t, fill(t, content))
	if out, err := exec.Command(needs.Program(t, "ssh-keygen"), "-H", "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func TestNameOf(t *testing.T) {
	t.Parallel()
	plain := write(t, fill(t, table+"\nnegated.example,!neg*,not.negated.example %30\n"))
	hashed := hashedHosts(t, "hidden.example %40\n[hidden.example]:2222,192.0.2.9 %41\n@revoked gone.example %42\n")
	for _, test := range []struct {
		key     byte
		guesses []string
		want    string // "": none
	}{
		{1, nil, "plain.example"},
		{2, nil, "plain.example"},
		{2, []string{"other.example"}, "other.example"},
		{2, []string{"x", "OTHER.example", "192.0.2.7"}, "other.example"}, // although it is not the first guess
		{2, []string{"a.wild.example"}, "plain.example"},
		{3, nil, "indented.example"},
		{4, nil, ""},
		{4, []string{"a.wild.example"}, ""}, // a pattern is not a name
		{5, []string{"host.example"}, ""},
		{6, nil, "[ports.example]:2222"},
		{6, []string{"ports.example"}, "[ports.example]:2222"},
		{7, nil, "ports.example"},
		{8, nil, "[2001:db8::1]:22022"},
		{8, []string{"[2001:db8::2]:22022"}, "[2001:db8::2]:22022"},
		{9, nil, "2001:db8::3"},
		{10, nil, ""},
		{11, nil, ""},
		{12, []string{"host.ca.example"}, ""},
		{13, nil, "host.ca.example"},
		{14, []string{"bad.example"}, ""},
		{15, nil, "bad.example"},
		{16, nil, ""},
		{17, nil, ""},
		{19, nil, "crlf.example"},
		{20, nil, "crlf.example"},
		{21, nil, ""},
		{22, nil, "empty.example"},
		{23, nil, ""},
		{24, nil, ""},
		{26, nil, "last.example"},
		{30, nil, "not.negated.example"},
		{40, nil, ""},
		{40, []string{"elsewhere", "Hidden.Example"}, "hidden.example"},
		{41, []string{"hidden.example"}, ""},
		{41, []string{"hidden.example", "[hidden.example]:2222"}, "[hidden.example]:2222"},
		{42, []string{"gone.example"}, ""},
		{43, []string{"hidden.example", "plain.example"}, ""},
	} {
		got, found := NameOf([]string{filepath.Join(t.TempDir(), "none"), plain, hashed}, key(t, test.key), test.guesses...)
		if got != test.want || found != (got != "") {
			t.Errorf("key %d, guesses %q: %q, want %q", test.key, test.guesses, got, test.want)
		}
	}
}

// TestNameOfAsSSHKeygen checks that OpenSSH finds the key under each name that
// NameOf returns.
func TestNameOfAsSSHKeygen(t *testing.T) {
	t.Parallel()
	path := write(t, fill(t, table))
	named, known := 0, make(map[string][]string)
	for n := byte(1); n < 30; n++ {
		for _, guess := range hosts() {
			name, found := NameOf([]string{path}, key(t, n), guess)
			if !found {
				continue
			}
			named++
			if known[name] == nil {
				known[name] = wanted(t, path, name)
			}
			if want := ssh.FingerprintSHA256(key(t, n)); !slices.Contains(known[name], want) {
				t.Errorf("key %d is named %q, for which ssh-keygen finds other keys", n, name)
			}
		}
	}
	if named < 100 {
		t.Errorf("only %d names were found", named)
	}
}

// signer returns the private part of key(n).
func signer(t testing.TB, n byte) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNameOfCertificate(t *testing.T) {
	t.Parallel()
	path := write(t, fill(t, "@cert-authority *.ca.example %2\nplain.example %3\n@cert-authority x.example %4\n@revoked * %4\nca.example %5\n"))
	hashed := hashedHosts(t, "@cert-authority h.example %6\n")
	hour := uint64(time.Hour / time.Second)
	now := uint64(time.Now().Unix())
	good := func(principals ...string) ssh.Certificate {
		return ssh.Certificate{CertType: ssh.HostCert, ValidPrincipals: principals, ValidAfter: now - hour, ValidBefore: now + hour}
	}
	with := func(change func(*ssh.Certificate)) ssh.Certificate {
		cert := good("a.ca.example")
		change(&cert)
		return cert
	}
	for name, test := range map[string]struct {
		cert    ssh.Certificate
		key, ca byte
		guess   string
		want    string
	}{
		"good":                {good("a.ca.example"), 1, 2, "", "a.ca.example"},
		"second name":         {good("a.example", "B.ca.example", "c.ca.example"), 1, 2, "", "b.ca.example"},
		"guess":               {good("b.ca.example", "a.ca.example"), 1, 2, "a.ca.example", "a.ca.example"},
		"guess not certified": {good("b.ca.example"), 1, 2, "a.ca.example", "b.ca.example"},
		"other names":         {good("a.example"), 1, 2, "", ""},
		"wildcard":            {good("*.ca.example"), 1, 2, "a.ca.example", ""},
		"no name":             {good(), 1, 2, "a.ca.example", ""},
		"long name":           {good(strings.Repeat("a", 300) + ".ca.example"), 1, 2, "", ""},
		"plain key":           {good("a.example"), 3, 2, "", "plain.example"},
		"other authority":     {good("a.ca.example"), 1, 7, "", ""},
		"key as authority":    {good("ca.example"), 1, 5, "", ""},
		"authority revoked":   {good("x.example"), 1, 4, "", ""},
		"hashed":              {good("h.example"), 1, 6, "", "h.example"},
		"user":                {with(func(c *ssh.Certificate) { c.CertType = ssh.UserCert }), 1, 2, "", ""},
		"expired":             {with(func(c *ssh.Certificate) { c.ValidBefore = now - 1 }), 1, 2, "", ""},
		"not yet":             {with(func(c *ssh.Certificate) { c.ValidAfter = now + hour }), 1, 2, "", ""},
		"critical option":     {with(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"x": ""} }), 1, 2, "", ""},
	} {
		test.cert.Key = key(t, test.key)
		if err := test.cert.SignCert(rand.Reader, signer(t, test.ca)); err != nil {
			t.Fatal(err)
		}
		if got, _ := NameOf([]string{path, hashed}, &test.cert, test.guess); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// TestNameOfFiles checks that only regular files are read, and that broken lines
// are skipped.
func TestNameOfFiles(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(fifo, os.O_RDWR, 0) // it is open and never written to
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	giant := write(t, "")
	if err := os.Truncate(giant, maxFile+1); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 200_000)
	path := write(t, fill(t, "broken\n"+long+" %1\nx "+long+"\n"+strings.Repeat("n", maxName+1)+" %1\nh %1\n"))
	if got, _ := NameOf([]string{fifo, t.TempDir(), "a\x00b", giant, "/dev/zero", path}, key(t, 1)); got != "h" {
		t.Errorf("found %q", got)
	}
	revoked := write(t, fill(t, "@revoked other %1\n"))
	for _, files := range [][]string{{path, revoked}, {revoked, path}} {
		if got, found := NameOf(files, key(t, 1)); found {
			t.Errorf("a revoked key has the name %q", got)
		}
	}
}

// FuzzNameOf checks that Lookup finds the key under each name that NameOf
// returns.
func FuzzNameOf(f *testing.F) {
	for line := range strings.Lines(fill(f, strings.NewReplacer("%1", "%2", "%2", "%1").Replace(table))) {
		f.Add([]byte(line), "plain.example")
	}
	f.Add([]byte(fill(f, "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= %1\n")), "192.168.1.61")
	f.Add([]byte(fill(f, "@cert-authority *.example %2\nx %1")), "a.example")
	cert := &ssh.Certificate{Key: key(f, 1), CertType: ssh.HostCert, ValidPrincipals: []string{"a.example", "b"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, signer(f, 2)); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, content []byte, guess string) {
		for _, public := range []ssh.PublicKey{key(t, 1), cert} {
			n := newNaming(public, []string{guess})
			n.read(content)
			name, found := n.result()
			if !found {
				continue
			}
			l := lookup{host: name, revoked: make(map[string]bool)}
			l.read(content)
			if !slices.ContainsFunc(l.keys, func(k Key) bool { return same(k.Public, key(t, 1)) || k.CA && same(k.Public, key(t, 2)) }) {
				t.Errorf("%q has the name %q, for which Lookup finds %+v", public.Type(), name, l.keys)
			}
		}
	})
}

func BenchmarkNameOf(b *testing.B) {
	var file strings.Builder
	for n := range 10000 {
		fmt.Fprintf(&file, "host%d.example,192.0.2.%d %s\n", n, n%256, text(b, byte(n%100)))
	}
	path := write(b, file.String()+"last "+text(b, 101))
	for b.Loop() {
		if name, _ := NameOf([]string{path}, key(b, 101)); name != "last" {
			b.Fatal(name)
		}
	}
}
