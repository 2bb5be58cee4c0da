package control

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/internal/wire"
	"github.com/tpm-agent/tpm-agent/keyfile"
)

const (
	// agentPatience is how long an agent may take for an answer that needs
	// neither the TPM nor the user.
	agentPatience = 30 * time.Second

	// tpmPatience is how long it may take for one that needs the TPM, which
	// others may be using.
	tpmPatience = 2 * time.Minute

	// heldPatience is how long it may take for a page of its list, which
	// includes the time that it gives its upstream agents.
	heldPatience = 10 * time.Second
)

// A Client is a connection to a running agent. Use either exchange or ordinary,
// never both: ordinary consumes all input.
type Client struct {
	*net.UnixConn
	path string
	stop func() bool
	ssh  sshagent.Agent // see ordinary
}

// ordinary returns a client for requests that every agent knows.
func (c *Client) ordinary(ctx context.Context) sshagent.Agent {
	c.within(ctx, agentPatience)
	if c.ssh == nil {
		c.ssh = sshagent.NewClient(c.UnixConn)
	}
	return c.ssh
}

// Dial connects to an agent: at the socket asked for, else that of all SSH programs,
// else the one of tpm-agent. The end of ctx ends all that is done with the
// connection.
func Dial(ctx context.Context, sys *term.System, socket string) (*Client, error) {
	path, err := agentSocket(sys, socket)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, term.Hint(fmt.Errorf("no agent can be reached at %s: %w", term.Plain(path), cause(err)),
			"start it (tpm-agent serve, or systemctl --user start tpm-agent.socket), or say where it is with --socket PATH")
	}
	c := &Client{UnixConn: conn, path: path}
	c.stop = context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return c, nil
}

func agentSocket(sys *term.System, asked string) (string, error) {
	return sys.SocketPath(cmp.Or(asked, sys.Getenv("SSH_AUTH_SOCK")))
}

// cause returns what the system said, without the path and the call.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// Close ends the connection.
func (c *Client) Close() error {
	c.stop()
	return c.UnixConn.Close()
}

// within gives the agent time for the next answers.
func (c *Client) within(ctx context.Context, patience time.Duration) {
	if ctx.Err() == nil {
		c.SetDeadline(time.Now().Add(patience))
	}
}

// failed puts the agent's name before an error of talking to it.
func (c *Client) failed(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the agent at %s does not answer", term.Plain(c.path))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("the agent at %s closed the connection", term.Plain(c.path))
	}
	return fmt.Errorf("asking the agent at %s: %w", term.Plain(c.path), err)
}

const (
	// notOwnerHint follows the refusal of a request that only the agent's owner may make.
	notOwnerHint = "is it tpm-agent? (--socket PATH chooses another.) One that is locked does not do this (ssh-add -X unlocks it), nor one that is reached through ssh -A"

	lockedHint = "an agent that is locked (ssh-add -x) shows no keys and removes none: ssh-add -X unlocks it"
)

// refused explains why an agent did not take a request for its owner. what says
// what it does not do.
func (c *Client) refused(ctx context.Context, err error, what string) error {
	if errors.Is(err, ErrNotOwner) {
		return term.Hint(fmt.Errorf("the agent at %s does not %s, or not over this connection", term.Plain(c.path), what), notOwnerHint)
	}
	return c.failed(ctx, err)
}

// Keys returns the agent's list.
func (c *Client) Keys(ctx context.Context) ([]*sshagent.Key, error) {
	keys, err := c.ordinary(ctx).List()
	if err != nil {
		return nil, c.failed(ctx, err)
	}
	return keys, nil
}

// exchange sends a request with a descriptor, which no forwarded connection
// carries: so the agent knows that it comes from this machine. The message is
// without its length, and so is the answer. No copy of the message is left, for it
// may have a PIN in it.
func (c *Client) exchange(ctx context.Context, message []byte, patience time.Duration) ([]byte, error) {
	if len(message) > wire.MaxMessage {
		return nil, fmt.Errorf("the request has %d KiB, and agents take %d", len(message)>>10, wire.MaxMessage>>10)
	}
	c.within(ctx, patience)
	frame := make([]byte, 4, 4+len(message))
	binary.BigEndian.PutUint32(frame, uint32(len(message)))
	frame = append(frame, message...)
	defer clear(frame)
	err := c.writeWithDescriptor(frame)
	var answer []byte
	if err == nil {
		answer, err = (&wire.Reader{From: c}).ReadMessage(func() {})
	}
	if err != nil {
		return nil, c.failed(ctx, err)
	}
	return answer, nil
}

// writeWithDescriptor passes a descriptor on with the first bytes. The agent closes
// it.
func (c *Client) writeWithDescriptor(b []byte) error {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer f.Close()
	n, _, err := c.WriteMsgUnix(b, unix.UnixRights(int(f.Fd())), nil)
	if err != nil {
		return err
	}
	_, err = c.Write(b[n:]) // what did not fit at once
	return err
}

// FingerprintOf returns the fingerprint of the plain key, which a certificate
// shares with the key that it certifies.
func FingerprintOf(k *sshagent.Key) string {
	var public ssh.PublicKey = k
	if known, err := ssh.ParsePublicKey(k.Blob); err == nil {
		public = known
	}
	if cert, ok := public.(*ssh.Certificate); ok {
		public = cert.Key
	}
	return ssh.FingerprintSHA256(public)
}

// fingerprintNamed returns the fingerprint of the key that a user names.
func fingerprintNamed(name string) (string, error) {
	if hash, ok := strings.CutPrefix(name, "SHA256:"); ok {
		return "SHA256:" + strings.TrimRight(hash, "="), nil
	}
	public, err := publicOf(name)
	if err != nil {
		return "", err
	}
	return FingerprintOf(&sshagent.Key{Blob: public.Marshal()}), nil
}

// publicOf returns the public key of a key file, or what a .pub file has: a public
// key or a certificate.
func publicOf(name string) (ssh.PublicKey, error) {
	_, public, err := inspect.ReadKey(name)
	if !errors.Is(err, keyfile.ErrNoKey) {
		return public, err
	}
	data, _ := inspect.ReadSmall(name)
	line, _, _ := bytes.Cut(bytes.TrimLeft(data, " \t\r\n"), []byte("\n"))
	if public, _, _, _, err := ssh.ParseAuthorizedKey(line); err == nil {
		return public, nil
	}
	return nil, term.Hint(err, "name the key file, its .pub file or its fingerprint (SHA256:...); ssh-add -l lists what the agent has")
}
