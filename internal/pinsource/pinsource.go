// Package pinsource reads PINs from files, descriptors and credentials.
package pinsource

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

// Forms are the forms that Parse takes, for help texts.
const Forms = "fd:N, file:PATH or credential:NAME"

// maxPIN is the longest PIN, in octets: see [term.CheckPIN].
const maxPIN = 1024

// A Source is where a PIN comes from if the user must not be asked.
type Source struct {
	Spec string // as it was given
	FD   int    // a descriptor of ours; -1: a file
	path string // of the file
	// granted: the file is one that the service manager gave us. It knows who
	// may read it, and may have said so by an access control list.
	granted bool
	stdin   *os.File
}

// Parse reads fd:N, file:PATH or credential:NAME. Nothing is opened.
func Parse(sys *term.System, spec string) (*Source, error) {
	kind, rest, _ := strings.Cut(spec, ":")
	p := &Source{Spec: spec, FD: -1, stdin: sys.Stdin}
	var err error
	switch {
	case kind == "fd":
		p.FD, err = parseDescriptor(rest)
	case kind == "file" && rest == "":
		err = errors.New("the name of the file is missing")
	case kind == "file":
		p.path, err = filepath.Abs(rest)
	case kind == "credential":
		p.granted = true
		p.path, err = credentialPath(sys.Getenv("CREDENTIALS_DIRECTORY"), rest)
	default:
		return nil, term.Usage("%q is no source of a PIN: %s", term.Plain(spec), Forms)
	}
	if err != nil {
		return nil, term.Usage("%s: %w", term.Plain(spec), err)
	}
	return p, nil
}

// parseDescriptor reads the number of a descriptor that can have been passed
// for a PIN: the output streams cannot.
func parseDescriptor(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	switch {
	case err != nil:
		return -1, errors.New("a descriptor is a number: fd:3")
	case n == 1 || n == 2:
		return -1, errors.New("descriptors 1 and 2 are for output: use fd:0, or one from 3 on")
	}
	return int(n), nil
}

// credentialPath returns where systemd has put a credential (systemd.exec(5),
// CREDENTIALS).
func credentialPath(dir, name string) (string, error) {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || !unicode.IsPrint(r) }):
		return "", errors.New("that is no name of a credential")
	case !filepath.IsAbs(dir):
		return "", term.Hint(errors.New("CREDENTIALS_DIRECTORY is not set: there are no credentials"),
			"they come from systemd: LoadCredential=%s:/path/to/pin in the unit's [Service]", name)
	}
	return filepath.Join(dir, name), nil
}

// Once reports whether the source can be read only once.
func (p *Source) Once() bool { return p.FD >= 0 }

// Read takes the PIN out of the source; the caller wipes it. version tells one
// content of a file from another and nothing about it. A descriptor may never
// deliver a PIN: the end of ctx ends the wait.
func (p *Source) Read(ctx context.Context) (pin []byte, version string, err error) {
	var file *os.File
	if p.Once() {
		file, err = p.descriptor()
	} else {
		file, version, err = p.open()
	}
	if err == nil {
		pin, err = p.take(ctx, file)
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err // the message has the name already
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, "", context.Cause(ctx)
	case err != nil:
		return nil, "", fmt.Errorf("taking the PIN from %s: %w", term.Plain(p.Spec), err)
	}
	return pin, version, nil
}

// descriptor returns the open file that was passed to this process. One that is
// closed at the next exec was not passed: it is Go's.
func (p *Source) descriptor() (*os.File, error) {
	var stat unix.Stat_t
	err := unix.Fstat(p.FD, &stat)
	flags, flagsErr := unix.FcntlInt(uintptr(p.FD), unix.F_GETFD, 0)
	accepts, _ := unix.GetsockoptInt(p.FD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	switch {
	case err != nil || flagsErr != nil || p.FD > 0 && flags&unix.FD_CLOEXEC != 0:
		return nil, term.Hint(fmt.Errorf("descriptor %d is not open", p.FD), "pass it on to the program, as the shell does with %d<FILE; it can be read once", p.FD)
	case stat.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, errors.New("it is a directory")
	case accepts != 0:
		return nil, errors.New("it is a socket to listen on, perhaps the agent's own")
	case p.FD > 0:
		return os.NewFile(uintptr(p.FD), p.Spec), nil
	case term.IsTerminal(p.stdin):
		return nil, term.Hint(errors.New("it is the terminal, where the PIN would be seen"), "without --pin-from it is asked for there, unseen")
	}
	return p.stdin, nil
}

// open opens the file, and refuses one that holds no secret, or not ours. It checks
// what it has opened, which cannot be exchanged any more.
func (p *Source) open() (file *os.File, version string, err error) {
	fd, err := unix.Open(p.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist) && p.granted:
		return nil, "", term.Hint(errors.New("there is no such credential"), "LoadCredential=%s:/path/to/pin in the unit's [Service]", filepath.Base(p.path))
	case errors.Is(err, fs.ErrNotExist):
		return nil, "", term.Hint(fs.ErrNotExist, "make it, readable for you alone: (umask 077; cat > %s), with the PIN as its only line", term.Quote(p.path))
	case errors.Is(err, fs.ErrPermission):
		return nil, "", term.Hint(fs.ErrPermission, "check who may read it: ls -l %s", term.Quote(p.path))
	case err != nil:
		return nil, "", err
	}
	file = os.NewFile(uintptr(fd), p.path)
	var stat unix.Stat_t
	others := uint32(0o077)
	if p.granted {
		others = 0o007
	}
	switch err = unix.Fstat(fd, &stat); {
	case err != nil:
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		err = errors.New("it is not a regular file")
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		err = term.Hint(fmt.Errorf("it belongs to another user (uid %d), who may have chosen the PIN", stat.Uid), "make it yours: sudo chown \"$USER\" %s", term.Quote(p.path))
	case stat.Mode&others != 0:
		err = term.Hint(fmt.Errorf("others than you may read or write it (mode %04o)", stat.Mode&0o7777), "chmod 600 %s", term.Quote(p.path))
	default:
		return file, fmt.Sprint(stat.Dev, stat.Ino, stat.Size, stat.Mtim, stat.Ctim), nil
	}
	file.Close()
	return nil, "", err
}

// take reads the PIN and closes what it was read from, except standard input, which
// belongs to others, too. The read of a descriptor cannot be interrupted; what then
// still comes is wiped.
func (p *Source) take(ctx context.Context, file *os.File) ([]byte, error) {
	type content struct {
		pin []byte
		err error
	}
	got := make(chan content)
	go func() {
		pin, err := p.content(file)
		if file != p.stdin {
			file.Close()
		}
		select {
		case got <- content{pin, err}:
		case <-ctx.Done():
			clear(pin)
		}
	}()
	select {
	case read := <-got:
		return read.pin, read.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// content returns the PIN in a file, or the first line of what comes through a
// descriptor. It reads octet by octet: what follows the line is for another reader.
func (p *Source) content(r io.Reader) ([]byte, error) {
	buf := make([]byte, 0, maxPIN+3) // one too many, and the end of a line
	defer func() { clear(buf[:cap(buf)]) }()
	octet := make([]byte, 1)
	for len(buf) < cap(buf) {
		n, err := r.Read(octet)
		if n > 0 && len(buf) > 0 && buf[len(buf)-1] == '\n' {
			return nil, errors.New("it has more than one line, and a PIN is one")
		}
		buf = append(buf, octet[:n]...)
		if errors.Is(err, io.EOF) || p.Once() && n > 0 && octet[0] == '\n' {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	clear(octet)
	pin, newline := bytes.CutSuffix(buf, []byte("\n"))
	if newline {
		pin = bytes.TrimSuffix(pin, []byte("\r"))
	}
	if len(pin) == 0 {
		return nil, errors.New("it is empty")
	}
	if err := term.CheckPIN(pin); err != nil {
		return nil, err
	}
	return bytes.Clone(pin), nil
}

// Harden keeps PINs out of core files, and other processes of the user out of this
// one's memory. Only the soft limit is set: a COMMAND may raise it again.
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keeping others out of the agent's memory: %w", err)
	}
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_CORE, &limit)
	if err == nil {
		limit.Cur = 0
		err = unix.Setrlimit(unix.RLIMIT_CORE, &limit)
	}
	if err != nil {
		return fmt.Errorf("turning off core files: %w", err)
	}
	return nil
}
