// Package tcti opens TPMs by the address strings that users of tpm2-tools know, and
// carries commands to them: to the kernel's devices, to the sockets of swtpm and
// Microsoft's simulator, and to a private software TPM, which it runs.
//
// It handles frames, deadlines and descriptors, and does not look into commands. It
// promises that an answer belongs to the command that was sent: it closes a
// connection on which the two could be out of step.
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

// kind is the part of an address before the colon.
type kind string

const (
	kindAuto     kind = "auto"
	kindDevice   kind = "device"
	kindSWTPM    kind = "swtpm"
	kindMSSIM    kind = "mssim"
	kindSoftware kind = "software"
)

// forms lists all forms of addresses, for error messages.
const forms = "auto, device:PATH, swtpm:path=SOCKET, swtpm:host=HOST,port=PORT, mssim:host=HOST,port=PORT, software"

// An Address selects a TPM. The zero value is auto.
type Address struct {
	kind kind
	path string // device, swtpm
	host string // swtpm, mssim; without brackets
	port uint16 // swtpm, mssim
}

// Parse reads an address. Its errors name what is wrong and list the accepted forms.
func Parse(s string) (a Address, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("TPM address %q: %w (accepted: %s)", s, err, forms)
		}
	}()
	if strings.ContainsRune(s, 0) {
		return Address{}, errors.New("it contains a NUL character")
	}
	name, rest, colon := strings.Cut(s, ":")
	switch k := kind(name); k {
	case kindAuto, kindSoftware:
		if colon {
			return Address{}, fmt.Errorf("%s takes no arguments", k)
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

// parseSocket reads pairs KEY=VALUE in any order, each key at most once. A value
// cannot hold a comma, as in tpm2-tools.
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
	path, host, port := values["path"], values["host"], values["port"]
	switch {
	case path != "" && len(values) > 1:
		return Address{}, errors.New("path excludes host and port")
	case path != "":
		return Address{kind: k, path: path}, nil
	case host == "" || port == "":
		return Address{}, errors.New("host and port are both needed")
	}
	return parseHostPort(k, host, port)
}

func parseHostPort(k kind, host, port string) (Address, error) {
	bare := host
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") && strings.Contains(host, ":") {
		bare = host[1 : len(host)-1]
	}
	if strings.ContainsAny(bare, "[]") {
		return Address{}, fmt.Errorf("host %q: only an IPv6 address can be in brackets", host)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Address{}, fmt.Errorf("port %q is not a number from 1 to 65535", port)
	}
	if k == kindMSSIM && n == 65535 {
		return Address{}, errors.New("port 65535 leaves no room for the platform port above it")
	}
	return Address{kind: k, host: bare, port: uint16(n)}, nil
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

// Abs returns the address with an absolute path, for a process that will change its
// working directory.
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

// Software reports whether the TPM is a program, whose keys are protected only by
// the modes of its files. swtpm and mssim addresses always lead to such programs.
func (a Address) Software() bool {
	return a.kind == kindSoftware || a.kind == kindSWTPM || a.kind == kindMSSIM
}

// Open opens the TPM. If another program holds the TPM, Open waits. ctx bounds only
// Open; every Send has a context of its own.
func (a Address) Open(ctx context.Context) (c *Conn, err error) {
	switch {
	case a.kind == kindDevice:
		c, err = thisSystem.openDevice(ctx, a.path)
	case a.kind == kindSWTPM && a.path != "":
		c, err = openSWTPM(ctx, "unix", a.path)
	case a.kind == kindSWTPM:
		c, err = openSWTPM(ctx, "tcp", a.hostPort(0))
	case a.kind == kindMSSIM:
		c, err = openMSSIM(ctx, a.hostPort(0), a.hostPort(1))
	case a.kind == kindSoftware:
		c, err = openSoftware(ctx)
	default:
		c, err = thisSystem.openAuto(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the TPM %v: %w", a, err)
	}
	c.name = a.String()
	return c, nil
}

// hostPort returns the host and the port plus offset, in the notation of package net.
func (a Address) hostPort(offset int) string {
	return net.JoinHostPort(a.host, strconv.Itoa(int(a.port)+offset))
}
