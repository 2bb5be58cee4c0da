package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// pinSource is where a PIN comes from when nobody is to be asked.
type pinSource struct {
	spec string // as it was given
	fd   int    // a descriptor of ours; -1: a file
	path string // of the file
	// granted: the file is one that the service manager gave us, which knows
	// who may read it, and may have said so by an access control list.
	granted bool
	stdin   *os.File
}

// pinSources are the forms that parsePINSource takes, for help texts.
const pinSources = "fd:N, file:PATH or credential:NAME"

// parsePINSource reads fd:N, file:PATH or credential:NAME. Nothing is opened.
func (s system) parsePINSource(spec string) (*pinSource, error) {
	kind, rest, _ := strings.Cut(spec, ":")
	p := &pinSource{spec: spec, fd: -1, stdin: s.stdin}
	var err error
	switch {
	case kind == "fd":
		p.fd, err = parseDescriptor(rest)
	case kind == "file" && rest == "":
		err = errors.New("the name of the file is missing")
	case kind == "file":
		p.path, err = filepath.Abs(rest)
	case kind == "credential":
		p.path, err = s.credentialPath(rest)
		p.granted = true
	default:
		return nil, usage("%q is no source of a PIN: %s", plain(spec), pinSources)
	}
	if err != nil {
		return nil, &usageError{p.failed(err)}
	}
	return p, nil
}

// parseDescriptor reads the number of a descriptor that can have been passed
// for a PIN: the output streams cannot.
func parseDescriptor(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	switch {
	case err != nil || n > math.MaxInt32:
		return -1, errors.New("a descriptor is a number: fd:3")
	case n == 1 || n == 2:
		return -1, errors.New("descriptors 1 and 2 are for output: use fd:0, or one from 3 on")
	}
	return int(n), nil
}

// credentialPath is where systemd has put a credential (systemd.exec(5),
// CREDENTIALS).
func (s system) credentialPath(name string) (string, error) {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || !unicode.IsPrint(r) }):
		return "", errors.New("that is no name of a credential")
	case !filepath.IsAbs(s.getenv("CREDENTIALS_DIRECTORY")):
		return "", withHint(errors.New("CREDENTIALS_DIRECTORY is not set: there are no credentials"),
			"they come from systemd: LoadCredential=%s:/path/to/pin in the unit's [Service]", name)
	}
	return filepath.Join(s.getenv("CREDENTIALS_DIRECTORY"), name), nil
}

// failed puts the source before an error of it.
func (p *pinSource) failed(err error) error { return fmt.Errorf("%s: %w", plain(p.spec), err) }

// once says whether the source gives its PIN only to the first who reads it.
func (p *pinSource) once() bool { return p.fd >= 0 }

// read takes the PIN out of the source; the caller wipes it. version tells one
// content of a file from another and nothing about it. What a descriptor waits
// for may never come: the end of ctx is the end of waiting.
func (p *pinSource) read(ctx context.Context) (pin []byte, version string, err error) {
	var file *os.File
	if p.once() {
		file, err = p.descriptor()
	} else {
		file, version, err = p.open()
	}
	if err == nil {
		pin, err = p.take(ctx, file)
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err // the name is said already
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, "", context.Cause(ctx)
	case err != nil:
		return nil, "", fmt.Errorf("taking the PIN from %w", p.failed(err))
	}
	return pin, version, nil
}

// descriptor is the open file that was passed to this process. One that is
// closed at the next exec is not: it is Go's.
func (p *pinSource) descriptor() (*os.File, error) {
	var stat unix.Stat_t
	err := unix.Fstat(p.fd, &stat)
	flags, flagsErr := unix.FcntlInt(uintptr(p.fd), unix.F_GETFD, 0)
	switch {
	case err != nil || flagsErr != nil || p.fd > 0 && flags&unix.FD_CLOEXEC != 0:
		return nil, withHint(fmt.Errorf("descriptor %d is not open", p.fd), "pass it on to the program, as the shell does with %d<FILE; it can be read once", p.fd)
	case stat.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, errors.New("it is a directory")
	case listening(p.fd):
		return nil, errors.New("it is a socket to listen on, the agent's own perhaps")
	case p.fd == 0:
		if isTerminal(p.stdin) {
			return nil, withHint(errors.New("it is the terminal, where the PIN would be seen"), "without --pin-from it is asked for there, unseen")
		}
		return p.stdin, nil
	}
	return os.NewFile(uintptr(p.fd), p.spec), nil
}

// listening says whether a descriptor is a socket that can only be accepted
// from, as the service manager passes it.
func listening(fd int) bool {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && n != 0
}

// open opens the file and looks at what was opened, which nobody can exchange
// any more.
func (p *pinSource) open() (*os.File, string, error) {
	file, err := os.OpenFile(p.path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, "", p.hint(err)
	}
	version, err := p.inspect(file)
	if err != nil {
		file.Close()
		return nil, "", err
	}
	return file, version, nil
}

// hint says what to do about a file that cannot be opened.
func (p *pinSource) hint(err error) error {
	switch {
	case p.granted && errors.Is(err, fs.ErrNotExist):
		return withHint(errors.New("there is no such credential"), "LoadCredential=%s:/path/to/pin in the unit's [Service]", filepath.Base(p.path))
	case errors.Is(err, fs.ErrNotExist):
		return withHint(fs.ErrNotExist, "make it, readable for you alone: (umask 077; cat > %s), with the PIN as its only line", shQuote(p.path))
	case errors.Is(err, fs.ErrPermission):
		return withHint(fs.ErrPermission, "look who may read it: ls -l %s", shQuote(p.path))
	}
	return err
}

// inspect refuses a file that holds no secret, or not ours.
func (p *pinSource) inspect(file *os.File) (version string, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return "", err
	}
	var stat unix.Stat_t
	var statErr error
	if err := raw.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &stat) }); err != nil || statErr != nil {
		return "", errors.Join(err, statErr)
	}
	others := uint32(0o077)
	if p.granted {
		others = 0o007
	}
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return "", errors.New("it is not a regular file")
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return "", withHint(fmt.Errorf("it belongs to another user (uid %d), who may have chosen the PIN", stat.Uid), "make it yours: sudo chown \"$USER\" %s", shQuote(p.path))
	case stat.Mode&others != 0:
		return "", withHint(fmt.Errorf("others than you may read or write it (mode %04o)", stat.Mode&0o7777), "chmod 600 %s", shQuote(p.path))
	}
	return fmt.Sprintf("%d:%d:%d:%d.%d:%d.%d", stat.Dev, stat.Ino, stat.Size,
		stat.Mtim.Sec, stat.Mtim.Nsec, stat.Ctim.Sec, stat.Ctim.Nsec), nil
}

// take reads the PIN and closes what it was read from, but for standard input,
// which belongs to others, too. The read of a descriptor cannot be called back;
// what then still comes is wiped.
func (p *pinSource) take(ctx context.Context, file *os.File) ([]byte, error) {
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

// content is the PIN in a file, or the first line of what comes through a
// descriptor.
func (p *pinSource) content(r io.Reader) ([]byte, error) {
	buf := make([]byte, maxPIN+3) // one too many, and the end of a line
	defer clear(buf)
	read := readSecret
	if p.once() {
		read = readSecretLine
	}
	n, err := read(r, buf)
	if err != nil {
		return nil, err
	}
	pin, newline := bytes.CutSuffix(buf[:n], []byte("\n"))
	if newline {
		pin = bytes.TrimSuffix(pin, []byte("\r"))
	}
	switch {
	case len(pin) == 0:
		return nil, errors.New("it is empty")
	case bytes.IndexByte(pin, '\n') >= 0:
		return nil, errors.New("it has more than one line, and a PIN is one")
	}
	if err := checkPIN(pin); err != nil {
		return nil, err
	}
	return bytes.Clone(pin), nil
}

// readSecret reads to the end, or until buf is full.
func readSecret(r io.Reader, buf []byte) (n int, err error) {
	n, err = io.ReadFull(r, buf)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}

// readSecretLine reads a line octet by octet: what comes after it is for
// another reader, and is not waited for.
func readSecretLine(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && (n == 0 || buf[n-1] != '\n') && err == nil {
		var m int
		m, err = r.Read(buf[n : n+1])
		n += m
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
