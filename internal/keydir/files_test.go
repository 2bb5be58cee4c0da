package keydir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

func TestAnyNameIsAKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	names := []string{"-dash", "config", "id", "id.pem", "id.pub", "key-cert.pub", "with space", "ü\n"}
	for _, name := range names {
		write(t, dir+"/"+name, append([]byte("A text before the block.\r\n"), newKey(t).pem...))
	}
	write(t, dir+"/.hidden", newKey(t).pem)
	write(t, dir+"/.tpm-agent-new-ABC", newKey(t).pem)
	b := start(t, dir)
	b.want(names...)
	b.wantReports()
	for _, e := range b.Entries() {
		if e.Comment == "" || strings.ContainsAny(e.Comment, "\n\r") {
			t.Errorf("%q has the comment %q", e.Path, e.Comment)
		}
	}
}

// TestNotForUs checks that files which have nothing to do with a TPM are not
// reported.
func TestNotForUs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/empty", nil)
	write(t, dir+"/id_ed25519", pemBlock("OPENSSH PRIVATE KEY", []byte("something")))
	write(t, dir+"/id_ed25519.pub", []byte("garbage"))
	write(t, dir+"/id_ed25519-cert.pub", []byte("garbage"))
	write(t, dir+"/known_hosts", []byte(strings.Repeat("host ssh-ed25519 AAAA\n", 20_000)))
	random := make([]byte, 5000)
	rand.Read(random)
	write(t, dir+"/random", random)
	must(t, os.Mkdir(dir+"/agent", 0o700))
	must(t, unix.Mkfifo(dir+"/fifo", 0o600))
	listenAt(t, dir+"/control")
	must(t, os.Symlink("/dev/zero", dir+"/zero"))
	must(t, os.Symlink("/proc/self/mem", dir+"/mem"))
	must(t, os.Symlink(".", dir+"/dot"))
	write(t, dir+"/id.tpm", newKey(t).pem)
	b := start(t, dir)
	b.want("id.tpm")
	for _, p := range b.Problems() {
		if p.Path != dir+"/mem" { // a read error may be reported
			t.Errorf("%v", p)
		}
	}
}

func listenAt(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
}

// badFiles makes files with the name of a key that are not one.
var badFiles = []struct {
	name string
	make func(t *testing.T, path string, good []byte)
	want string
	is   error
}{
	{"empty", func(t *testing.T, p string, _ []byte) { write(t, p, nil) }, "no TSS2 PRIVATE KEY block", keyfile.ErrNoKey},
	{"truncated", func(t *testing.T, p string, g []byte) { write(t, p, g[:len(g)/2]) }, "no END line", keyfile.ErrFormat},
	{"random", func(t *testing.T, p string, _ []byte) { write(t, p, pemBlock("TSS2 PRIVATE KEY", []byte(rand.Text()))) }, "malformed", keyfile.ErrFormat},
	{"legacy", func(t *testing.T, p string, _ []byte) { write(t, p, pemBlock("TSS2 KEY BLOB", []byte("x"))) }, "legacy", keyfile.ErrLegacy},
	{"tpm12", func(t *testing.T, p string, _ []byte) { write(t, p, pemBlock("TSS KEY BLOB", []byte("x"))) }, "TPM 1.2", keyfile.ErrLegacy},
	{"sealed", func(t *testing.T, p string, _ []byte) {
		data, err := os.ReadFile("../../keyfile/testdata/sealed.tpm")
		must(t, err)
		write(t, p, data)
	}, "sealed", keyfile.ErrSealed},
	{"long", func(t *testing.T, p string, g []byte) { write(t, p, append(g, make([]byte, 64<<10)...)) }, "longer than", keyfile.ErrFormat},
	{"huge", func(t *testing.T, p string, _ []byte) {
		f, err := os.Create(p)
		must(t, err)
		must(t, f.Truncate(1<<30))
		must(t, f.Close())
	}, "no TSS2 PRIVATE KEY block", keyfile.ErrNoKey},
	{"fifo", func(t *testing.T, p string, _ []byte) { must(t, unix.Mkfifo(p, 0o600)) }, "FIFO", keyfile.ErrNotRegular},
	{"socket", func(t *testing.T, p string, _ []byte) { listenAt(t, p) }, "socket", keyfile.ErrNotRegular},
	{"directory", func(t *testing.T, p string, _ []byte) { must(t, os.Mkdir(p, 0o700)) }, "directory", keyfile.ErrNotRegular},
	{"device", func(t *testing.T, p string, _ []byte) { must(t, os.Symlink("/dev/null", p)) }, "device", keyfile.ErrNotRegular},
	{"dangling", func(t *testing.T, p string, _ []byte) { must(t, os.Symlink("nowhere", p)) }, "nowhere", fs.ErrNotExist},
	{"loop", func(t *testing.T, p string, _ []byte) { must(t, os.Symlink(p, p)) }, "too many levels", unix.ELOOP},
}

// TestBadFiles checks that a bad file is reported once, is a problem as long as
// it exists, and does not affect other files.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	for _, bad := range badFiles {
		for _, when := range []string{"before", "after"} {
			t.Run(bad.name+" "+when, func(t *testing.T) {
				dir, good := t.TempDir(), newKey(t)
				write(t, dir+"/good", good.pem)
				path := dir + "/bad.tpm"
				if when == "before" {
					bad.make(t, path, newKey(t).pem)
				}
				b := start(t, dir)
				if when == "after" {
					bad.make(t, path, newKey(t).pem)
				}
				b.want("good")
				b.wantReports(bad.want)
				b.Rescan()
				b.wantReports()
				p := b.Problems()
				if len(p) != 1 || p[0].Path != path || !errors.Is(p[0].Err, bad.is) || strings.Contains(p[0].Err.Error(), dir+"/bad.tpm:") {
					t.Errorf("problems are %v", p)
				}
				must(t, os.RemoveAll(path))
				if p := b.Problems(); len(p) != 0 {
					t.Errorf("problems are %v after the removal", p)
				}
				b.want("good")
			})
		}
	}
}

func TestReportedAgain(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	k := newKey(t)
	b.write("id", k.pem[:100])
	b.wantReports("no END line")
	b.write("id", k.pem[:100])
	b.wantReports() // the same content
	b.write("id", k.pem[:101])
	b.wantReports() // different content, the same cause
	b.write("id", []byte("-----BEGIN TSS2 KEY BLOB-----\n"))
	b.wantReports("legacy") // a different cause
	b.write("id", k.pem)
	b.want("id")
	b.wantReports()
	b.write("id", k.pem[:100])
	b.wantReports("no END line") // changed, and changed back
}

func TestComment(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	k, stranger := newKey(t), newKey(t)
	wantComment := func(want string) {
		t.Helper()
		if got := b.only().Comment; got != want {
			t.Errorf("the comment is %q, want %q", got, want)
		}
	}
	b.write("id.tpm", k.pem)
	wantComment("id.tpm")
	b.write("id.tpm.pub", []byte(k.line("long name")))
	wantComment("long name")
	b.write("id.pub", []byte(k.line("me at  home \x1b[31m")))
	wantComment("me at  home [31m")
	b.write("id.pub", []byte(strings.TrimSpace(k.line(""))))
	wantComment("long name")
	b.write("id.pub", []byte(k.line(strings.Repeat("ü", 1000))))
	wantComment(strings.Repeat("ü", maxComment/2))
	b.wantReports()

	b.write("id.pub", []byte(stranger.line("another")))
	wantComment("long name") // the other .pub matches
	b.wantReports("id.pub: the public key of a different key than id.tpm")
	must(t, os.Remove(b.path("id.tpm.pub")))
	wantComment("id.tpm")
	b.wantReports()
	b.write("id.pub", []byte("no public key at all\n"))
	wantComment("id.tpm")
	b.wantReports("id.pub: not an SSH public key")
	must(t, os.Remove(b.path("id.pub")))
	wantComment("id.tpm")
	if p := b.Problems(); len(p) != 0 {
		t.Errorf("problems are %v", p)
	}
}

func TestDescription(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	parsed, err := keyfile.Parse(k.pem)
	must(t, err)
	parsed.Description = "kept\tin the \x07file"
	d := newDirectory("/nowhere", host())
	d.files["id"] = &file{content: keyContent(parsed)}
	d.link("id", d.files["id"])
	if got := d.files["id"].entry.Comment; got != "kept in the file" {
		t.Errorf("the comment is %q", got)
	}
}

// TestPublicOfAnother checks that a .pub which does not match is no problem if it
// belongs to a different private key.
func TestPublicOfAnother(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	one, two, software := newKey(t), newKey(t), newKey(t)
	b.write("id", one.pem)
	b.write("id.pem", two.pem)
	b.write("id.pub", []byte(one.line("one")))
	b.want("id", "id.pem")
	b.write("shared.pem", newKey(t).pem)
	stays := newKey(t)
	b.write("shared.tpm", stays.pem)
	b.write("shared.pub", []byte(stays.line("of one of the two")))
	b.want("id", "id.pem", "shared.pem", "shared.tpm")
	b.wantReports()
	b.write("shared.tpm", newKey(t).pem)
	b.want("id", "id.pem", "shared.pem", "shared.tpm")
	b.wantReports("different key than shared.pem", "different key than shared.tpm")
	must(t, os.Remove(b.path("shared.pem")))
	must(t, os.Remove(b.path("shared.tpm")))
	b.write("soft", pemBlock("OPENSSH PRIVATE KEY", []byte("x")))
	b.write("soft.pub", []byte(software.line("soft")))
	b.write("soft-cert.pub", []byte(software.certificate(t, newCA(t), 1)))
	b.write("soft.tpm", newKey(t).pem)
	b.want("id", "id.pem", "soft.tpm")
	b.wantReports()
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	k, ca := newKey(t), newCA(t)
	want := func(serials ...uint64) {
		t.Helper()
		var got []uint64
		for _, c := range b.only().Certificates {
			got = append(got, c.Serial)
		}
		if fmt.Sprint(got) != fmt.Sprint(serials) {
			t.Errorf("certificates are %v, want %v", got, serials)
		}
	}
	b.write("id.tpm", k.pem)
	want()
	e := b.only()
	b.write("id-cert.pub", []byte(k.certificate(t, ca, 7)))
	want(7)
	if b.only() == e || len(e.Certificates) != 0 {
		t.Error("an entry changed after it was returned")
	}
	b.write("id-cert.pub", []byte(k.certificate(t, ca, 8)))
	want(8)
	b.write("id.tpm-cert.pub", []byte(k.certificate(t, ca, 9)))
	want(8, 9)
	must(t, os.Remove(b.path("id.tpm-cert.pub")))
	b.wantReports()
	for _, bad := range []struct{ text, want string }{
		{newKey(t).certificate(t, ca, 1), "id-cert.pub: a certificate for a different key than id.tpm"},
		{k.line("plain"), "id-cert.pub: a plain public key"},
		{"ssh-garbage AAAA\n", "id-cert.pub: not an SSH certificate"},
	} {
		b.write("id-cert.pub", []byte(bad.text))
		want()
		b.wantReports(bad.want)
		b.Rescan()
		b.wantReports()
	}
	must(t, os.Remove(b.path("id-cert.pub")))
	want()
	far := t.TempDir() + "/cert"
	write(t, far, []byte(k.certificate(t, ca, 10)))
	must(t, os.Symlink(far, b.path("id-cert.pub")))
	want(10)
	write(t, far, []byte(k.certificate(t, ca, 11)))
	want(11)
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	first, second := t.TempDir(), t.TempDir()
	k := newKey(t)
	write(t, first+"/b", k.pem)
	write(t, first+"/c", k.pem)
	write(t, second+"/a", k.pem)
	var got []string
	x, err := Open([]string{first, second}, func(p Problem) { got = append(got, p.String()) })
	must(t, err)
	defer x.Close()
	if list := x.Entries(); len(list) != 1 || list[0].Path != first+"/b" {
		t.Errorf("entries are %v", list)
	}
	want := []string{
		first + "/c: the same key as in another file: " + first + "/b",
		second + "/a: the same key as in another file: " + first + "/b",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("reported were %q, want %q", got, want)
	}
	if p := x.Problems(); len(p) != 2 || !errors.Is(p[0].Err, ErrDuplicate) {
		t.Errorf("problems are %v", p)
	}
	got = nil
	must(t, os.Remove(first+"/b"))
	must(t, os.Remove(first+"/c"))
	if list := x.Entries(); len(list) != 1 || list[0].Path != second+"/a" {
		t.Errorf("entries are %v", list)
	}
	if p := x.Problems(); len(got) != 0 || len(p) != 0 {
		t.Errorf("reported were %q, problems are %v", got, p)
	}
}

// TestUnreadable runs as nobody in a child if it is run by root, to whom modes
// do not apply.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		unreadable(t, t.TempDir())
		return
	}
	dir, err := os.MkdirTemp("", "keydir-test-") // nobody cannot enter t.TempDir
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o777))
	exe := dir + "/test"
	data, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	// Another test that starts a program now must not inherit the open file: one
	// that is open for writing cannot be run.
	syscall.ForkLock.RLock()
	err = os.WriteFile(exe, data, 0o755)
	syscall.ForkLock.RUnlock()
	must(t, err)
	cmd := exec.Command(exe, "-test.run=^TestUnreadable$", "-test.v")
	cmd.Dir, cmd.Env = dir, []string{"TMPDIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestUnreadable") {
		t.Errorf("as user nobody: %v\n%s", err, out)
	}
}

func unreadable(t *testing.T, dir string) {
	b := start(t, dir)
	b.write("id", newKey(t).pem)
	b.want("id")
	must(t, os.Chmod(b.path("id"), 0))
	b.want()
	b.wantReports("id: permission denied")
	if p := b.Problems(); len(p) != 1 || !errors.Is(p[0].Err, fs.ErrPermission) {
		t.Errorf("problems are %v", p)
	}
	must(t, os.Chmod(b.path("id"), 0o400))
	b.want("id")
	for _, mode := range []fs.FileMode{0, 0o300, 0o600} { // one report for the directory, none for its files
		must(t, os.Chmod(dir, mode))
		b.Rescan()
		b.want()
		b.wantReports("permission denied")
		must(t, os.Chmod(dir, 0o700))
		b.want("id")
	}
	b.wantReports()
}
