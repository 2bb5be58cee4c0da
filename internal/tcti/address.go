// Package tcti opens TPMs by the address strings that tpm2-tools users know,
// and carries commands to them: the kernel's devices, swtpm's and Microsoft's
// simulator's sockets, and a private software TPM.
//
// It knows frames, deadlines and descriptors; what a command means is none of
// its business. Its one promise is that an answer belongs to the command that
// was sent: whatever could put the two out of step closes the connection.
package tcti

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// kind is what stands before the colon of an address.
type kind string

const (
	kindAuto     kind = "auto"
	kindDevice   kind = "device"
	kindSWTPM    kind = "swtpm"
	kindMSSIM    kind = "mssim"
	kindSoftware kind = "software"
)

// forms lists every address there is, for error messages.
const forms = "auto, device:PATH, swtpm:path=SOCKET, swtpm:host=HOST,port=PORT, mssim:host=HOST,port=PORT, software"

// Address says which TPM to use. The zero value is auto.
type Address struct {
	kind kind
	path string // device, swtpm
	host string // swtpm, mssim; without brackets
	port uint16 // swtpm, mssim
}

// Parse reads an address. Every error names what is wrong and lists the forms
// that are accepted.
func Parse(s string) (Address, error) {
	a, err := parse(s)
	if err != nil {
		return Address{}, fmt.Errorf("TPM address %q: %w (accepted: %s)", s, err, forms)
	}
	return a, nil
}

func parse(s string) (Address, error) {
	if strings.ContainsRune(s, 0) {
		return Address{}, errors.New("a NUL character")
	}
	name, rest, colon := strings.Cut(s, ":")
	switch k := kind(name); k {
	case kindAuto, kindSoftware:
		if colon {
			return Address{}, fmt.Errorf("%s takes nothing after it", k)
		}
		return Address{kind: k}, nil
	case kindDevice:
		if rest == "" {
			return Address{}, errors.New("the path of the device is missing")
		}
		return Address{kind: k, path: rest}, nil
	case kindSWTPM, kindMSSIM:
		return parseSocket(k, rest)
	case "":
		return Address{}, errors.New("no kind of TPM")
	}
	return Address{}, fmt.Errorf("unknown kind of TPM %q", name)
}

// parseSocket reads key=value pairs, each key at most once, in any order. A
// value cannot hold a comma, as in tpm2-tools.
func parseSocket(k kind, s string) (Address, error) {
	values := make(map[string]string)
	for pair := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || value == "" {
			return Address{}, fmt.Errorf("%q is not KEY=VALUE", pair)
		}
		if key != "host" && key != "port" && (key != "path" || k != kindSWTPM) {
			return Address{}, fmt.Errorf("unknown key %q", key)
		}
		if _, twice := values[key]; twice {
			return Address{}, fmt.Errorf("%s is given twice", key)
		}
		values[key] = value
	}
	if path, ok := values["path"]; ok {
		if len(values) > 1 {
			return Address{}, errors.New("path excludes host and port")
		}
		return Address{kind: k, path: path}, nil
	}
	return parseHostPort(k, values["host"], values["port"])
}

func parseHostPort(k kind, host, port string) (Address, error) {
	if host == "" || port == "" {
		return Address{}, errors.New("host and port are both needed")
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok || !strings.Contains(host, ":") {
			return Address{}, fmt.Errorf("%q is not an IPv6 address in brackets", "["+inner)
		}
	}
	if strings.ContainsAny(host, "[]") {
		return Address{}, fmt.Errorf("host %q", host)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Address{}, fmt.Errorf("port %q is not a number from 1 to 65535", port)
	}
	// The simulator's platform port is the one above.
	if k == kindMSSIM && n == 65535 {
		return Address{}, errors.New("port 65535 leaves no room for the platform port above it")
	}
	return Address{kind: k, host: host, port: uint16(n)}, nil
}

// String returns the address as Parse reads it.
func (a Address) String() string {
	switch {
	case a.kind == "":
		return string(kindAuto)
	case a.kind == kindDevice:
		return "device:" + a.path
	case a.path != "":
		return string(a.kind) + ":path=" + a.path
	case a.host != "":
		return fmt.Sprintf("%s:host=%s,port=%d", a.kind, a.host, a.port)
	}
	return string(a.kind)
}

// Abs returns the address with an absolute path, for a process that is about to
// change its working directory.
func (a Address) Abs() (Address, error) {
	if a.path == "" {
		return a, nil
	}
	path, err := filepath.Abs(a.path)
	if err != nil {
		return Address{}, fmt.Errorf("TPM address %v: %w", a, err)
	}
	a.path = path
	return a, nil
}

// Software reports whether this is a program that plays TPM, whose keys nothing
// protects but the modes of its files. Only such programs listen where swtpm and
// mssim addresses point.
func (a Address) Software() bool {
	return a.kind == kindSoftware || a.kind == kindSWTPM || a.kind == kindMSSIM
}

// Open opens the TPM. The context bounds opening only, which can wait for
// another program to let go of the TPM; every Send has a context of its own.
func (a Address) Open(ctx context.Context) (*Conn, error) {
	w, err := a.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM %v: %w", a, err)
	}
	return &Conn{name: a.String(), wire: w}, nil
}

func (a Address) open(ctx context.Context) (wire, error) {
	switch a.kind {
	case kindDevice:
		return thisSystem.openDevice(ctx, a.path)
	case kindSWTPM:
		if a.path != "" {
			return dialSWTPM(ctx, "unix", a.path)
		}
		return dialSWTPM(ctx, "tcp", a.hostPort(0))
	case kindMSSIM:
		return dialMSSIM(ctx, a.hostPort(0), a.hostPort(1))
	case kindSoftware:
		return openSoftware(ctx)
	}
	return thisSystem.openAuto(ctx)
}

// hostPort returns host and port, plus offset, in the notation of package net.
func (a Address) hostPort(offset int) string {
	return net.JoinHostPort(a.host, strconv.Itoa(int(a.port)+offset))
}
