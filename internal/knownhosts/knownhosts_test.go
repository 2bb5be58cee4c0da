package knownhosts

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// key returns the n-th key of these tests.
func key(t testing.TB, n byte) ssh.PublicKey {
	t.Helper()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
	public, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// text returns the n-th key as a file has it.
func text(t testing.TB, n byte) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key(t, n))), "\n")
}

// table has all kinds of lines. %N stands for the N-th key.
const table = `# a comment, and an empty line

plain.example %1
PLAIN.example,Other.example,192.0.2.7	%2	with a comment
  indented.example %3
*.wild.example,!not.wild.example %4
h?st.example %5 a comment of four words
[ports.example]:2222 %6
ports.example %7
[2001:db8::1]:22022,[2001:db8::2]:22022 %8
2001:db8::3 %9
*,!*.example,!*.wild.example %10
@cert-authority *.ca.example %11
@cert-authority * %12
host.ca.example %13
@revoked bad.example %14
bad.example %14
bad.example %15
@revoked *.mixed.example %16
a.mixed.example %16
@unknown plain.example %17
@revoked @cert-authority plain.example %17
plain.example
plain.example ssh-ed25519
plain.example ssh-ed25519 #
plain.example ssh-ed25519 AAAA
plain.example ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIAaa
plain.example 1024 35 1234567890
|1|broken %18
|1||| %18
|2|MTIzNDU2Nzg5MDEyMzQ1Njc4OTA=|MTIzNDU2Nzg5MDEyMzQ1Njc4OTA= %18
|1|c2hvcnQ=|MTIzNDU2Nzg5MDEyMzQ1Njc4OTA= %18
crlf.example %19` + "\r\n" + `crlf.example %20 with a comment` + "\r\n" + `,, %21
empty.example,,more.example %22
* %23
!negated.example,* %24
**.example %25
last.example %26`

// fill writes keys in place of %N.
func fill(t testing.TB, table string) string {
	for n := 99; n > 0; n-- {
		table = strings.ReplaceAll(table, fmt.Sprintf("%%%d", n), text(t, byte(n)))
	}
	return table
}

func write(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// hosts returns the names to look up in the table.
func hosts() []string {
	return []string{
		"plain.example", "other.example", "192.0.2.7", "Plain.Example", "indented.example",
		"a.wild.example", "not.wild.example", "a.b.wild.example", "wild.example",
		"host.example", "hst.example", "hoost.example",
		"ports.example", "[ports.example]:2222", "[ports.example]:22", "[ports.example]:2223",
		"[2001:db8::1]:22022", "[2001:db8::2]:22022", "2001:db8::1", "2001:db8::3",
		"elsewhere", "host.ca.example", "x.ca.example", "ca.example",
		"bad.example", "a.mixed.example", "b.mixed.example",
		"crlf.example", "empty.example", "more.example", "negated.example", "last.example", "example",
	}
}

// found lists what Lookup finds, as wanted does.
func found(t *testing.T, files []string, host string) []string {
	t.Helper()
	keys, err := Lookup(files, host)
	var none *NotFoundError
	if err != nil && !errors.As(err, &none) {
		t.Fatal(err)
	}
	var list []string
	for _, k := range keys {
		marker := ""
		if k.CA {
			marker = "CA "
		}
		list = append(list, marker+ssh.FingerprintSHA256(k.Public))
	}
	return list
}

// wanted lists what ssh-keygen finds and does not find revoked.
func wanted(t *testing.T, path, host string) []string {
	t.Helper()
	out, err := exec.Command(needs.Program(t, "ssh-keygen"), "-l", "-F", host, "-f", path).Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatal(err)
	}
	var list []string
	revoked, marker := make(map[string]bool), ""
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if fields[0] == "#" { // "# Host NAME found: line N", and its marker
			marker = strings.Join(fields[6:], "")
			continue
		}
		switch fingerprint := fields[2]; marker {
		case "":
			list = append(list, fingerprint)
		case "CA":
			list = append(list, "CA "+fingerprint)
		case "REVOKED":
			revoked[fingerprint] = true
		default:
			t.Fatalf("ssh-keygen prints %q", out)
		}
	}
	return slices.DeleteFunc(list, func(s string) bool { return revoked[strings.TrimPrefix(s, "CA ")] })
}

// TestAsSSHKeygen compares with OpenSSH on plain and hashed names.
func TestAsSSHKeygen(t *testing.T) {
	t.Parallel()
	plain := write(t, fill(t, table))
	hashed := hashedHosts(t, "plain.example %1\n[ports.example]:2222,ports.example %2\n192.0.2.7,other.example %3\n@revoked bad.example %4\n")
	some := 0
	for _, path := range []string{plain, hashed} {
		for _, host := range hosts() {
			got, want := found(t, []string{path}, host), wanted(t, path, strings.ToLower(host))
			if !slices.Equal(got, want) {
				t.Errorf("%s: found %q, ssh-keygen %q", host, got, want)
			}
			some += len(want)
		}
	}
	if some < 100 {
		t.Errorf("only %d keys were compared", some)
	}
}

func TestRevoked(t *testing.T) {
	t.Parallel()
	path := write(t, fill(t, "bad %1\nbad %2\n"))
	other := write(t, fill(t, "@revoked b* %1\n@revoked good %2\n"))
	want := []string{ssh.FingerprintSHA256(key(t, 2))}
	if got := found(t, []string{path, other}, "bad"); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	one, two := write(t, fill(t, "h %1\nh %2\n")), write(t, fill(t, "h %1\n@cert-authority h %3\n"))
	missing := filepath.Join(t.TempDir(), "none")
	a, b := ssh.FingerprintSHA256(key(t, 1)), ssh.FingerprintSHA256(key(t, 2))
	want := []string{a, b, a, "CA " + ssh.FingerprintSHA256(key(t, 3))}
	if got := found(t, []string{one, missing, two, one + "/x"}, "h"); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	for path, words := range map[string]string{
		t.TempDir(): "is a directory",
		"a\x00b":    "invalid argument",
	} {
		if _, err := Lookup([]string{path}, "h"); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// TestFIFO checks that Lookup does not wait for a writer.
func TestFIFO(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Lookup([]string{path}, "h"); err == nil {
		t.Error("found something in an empty FIFO")
	}
}

func TestNotFound(t *testing.T) {
	t.Parallel()
	path := write(t, fill(t, "h %1\nbroken\nalso broken\n"))
	_, err := Lookup([]string{"/nowhere/known_hosts", path}, "g")
	want := fmt.Sprintf("no host keys found for %q in /nowhere/known_hosts, %s (2 lines could not be read)", "g", path)
	var none *NotFoundError
	if !errors.As(err, &none) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if none != nil && (none.Host != "g" || none.Broken != 2) {
		t.Errorf("%+v", none)
	}
	for broken, want := range map[string]string{"": "known_hosts", "x\n": "(one line could not be read)"} {
		if _, err := Lookup([]string{write(t, broken)}, "g"); !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v, want …%s", err, want)
		}
	}
}

func TestLongLines(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 200_000)
	path := write(t, fill(t, long+" %1\nh %2\nh "+long+"\n"+long))
	keys, err := Lookup([]string{path}, "h")
	if err != nil || len(keys) != 1 {
		t.Errorf("%d keys, %v", len(keys), err)
	}
}

func TestTooLong(t *testing.T) {
	t.Parallel()
	path := write(t, "")
	if err := os.Truncate(path, maxFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Lookup([]string{path}, "h"); err == nil || !strings.Contains(err.Error(), "larger than 64 MiB") {
		t.Errorf("a file that is too long: %v", err)
	}
}

func TestMatchesPattern(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		s, pattern string
		want       bool
	}{
		{"", "", true},
		{"", "*", true},
		{"", "?", false},
		{"a", "", false},
		{"abc", "a*c", true},
		{"abc", "a*b", false},
		{"abcbc", "a*bc", true},
		{"abc", "a**c*", true},
		{"abc", "???", true},
		{"abc", "??", false},
		{"aXbXc", "*X?X*", true},
		{"mississippi", "m*iss*ip?i", true},
		{"mississippi", "m*iss*ip", false},
		{strings.Repeat("a", 5000), strings.Repeat("*a", 2000) + "b", false},
	} {
		if got := matchesPattern(test.s, test.pattern); got != test.want {
			t.Errorf("matchesPattern(%.20q, %.20q) = %v", test.s, test.pattern, got)
		}
	}
}

func FuzzLookup(f *testing.F) {
	for line := range strings.Lines(fill(f, table)) { // one line each, because the engine would minimize them slowly
		f.Add([]byte(line), "plain.example")
	}
	f.Add([]byte(fill(f, "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= %1\n")), "192.168.1.61")
	f.Add([]byte("@revoked\n@ x y\nx\n|\n"), "x")
	f.Fuzz(func(t *testing.T, content []byte, host string) {
		l := lookup{host: host, revoked: make(map[string]bool)}
		l.read(content)
		lines := bytes.Count(content, []byte("\n")) + 1
		if len(l.keys)+len(l.revoked)+l.broken > lines {
			t.Errorf("%d lines gave %d keys, %d revoked, %d broken", lines, len(l.keys), len(l.revoked), l.broken)
		}
		for _, k := range l.keys {
			if !bytes.Contains(content, []byte(k.Public.Type())) {
				t.Errorf("a key has the type %s, which is not in the file", k.Public.Type())
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	var file strings.Builder
	for n := range 10000 {
		fmt.Fprintf(&file, "host%d.example,192.0.2.%d %s\n", n, n%256, text(b, byte(n)))
	}
	path := write(b, file.String())
	for b.Loop() {
		if _, err := Lookup([]string{path}, "host9999.example"); err != nil {
			b.Fatal(err)
		}
	}
}
