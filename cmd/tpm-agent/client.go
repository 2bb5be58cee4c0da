package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	sshagent "golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"
)

const (
	// maxFrame is the longest message that agents and clients take, in bytes.
	maxFrame = 256 << 10

	// agentPatience is how long an agent may take for its answers where they
	// need neither the TPM nor the user.
	agentPatience = 30 * time.Second

	// tpmPatience is how long it may take for those that need the TPM, which
	// others may be using.
	tpmPatience = 2 * time.Minute
)

// client is a connection to a running agent. It is used either by askHere or
// by ordinary: who speaks through that reads all that comes.
type client struct {
	*net.UnixConn
	path string
	stop func() bool
	ssh  sshagent.Agent // see ordinary
}

// ordinary is for requests that every agent knows.
func (c *client) ordinary() sshagent.Agent {
	if c.ssh == nil {
		c.ssh = sshagent.NewClient(c.UnixConn)
	}
	return c.ssh
}

// agentFlag adds the option by which a command is told of an agent to talk to;
// see agentSocket.
func agentFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", "", "`PATH` of the agent's socket (default $SSH_AUTH_SOCK,\nelse $XDG_RUNTIME_DIR/tpm-agent/agent.sock)")
}

// agentSocket is the socket of the agent to talk to: the one that was asked
// for, else that of all SSH programs, else the one of tpm-agent.
func (s system) agentSocket(asked string) (string, error) {
	if asked == "" {
		asked = s.getenv("SSH_AUTH_SOCK")
	}
	return s.socketPath(asked)
}

// dialAgent connects to the agent. The end of ctx ends all that is done with
// the connection.
func dialAgent(ctx context.Context, sys system, asked string) (*client, error) {
	path, err := sys.agentSocket(asked)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, withHint(fmt.Errorf("no agent can be reached at %s: %w", plain(path), cause(err)),
			"start it (tpm-agent serve, or systemctl --user start tpm-agent.socket), or say where it is with --socket PATH")
	}
	c := &client{UnixConn: conn, path: path}
	c.stop = context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return c, nil
}

// cause is what the system said, without the path and the call.
func cause(err error) error {
	var op *net.OpError
	var sys *os.SyscallError
	switch {
	case errors.As(err, &sys):
		return sys.Err
	case errors.As(err, &op):
		return op.Err
	}
	return err
}

// Close ends the connection.
func (c *client) Close() error {
	c.stop()
	return c.UnixConn.Close()
}

// failed puts the agent's name before an error of talking to it.
func (c *client) failed(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the agent at %s does not answer", plain(c.path))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("the agent at %s closed the connection", plain(c.path))
	}
	return fmt.Errorf("asking the agent at %s: %w", plain(c.path), err)
}

// notOwnerHint is for agents that do not take what is for their owner only.
const notOwnerHint = "is it tpm-agent? (--socket PATH chooses another.) One that is locked does not do this (ssh-add -X unlocks it), nor one that is reached through ssh -A"

// patient gives the agent time for the next answers.
func (c *client) patient(ctx context.Context) {
	if ctx.Err() == nil {
		c.SetDeadline(time.Now().Add(agentPatience))
	}
}

// keys is the agent's list.
func (c *client) keys(ctx context.Context) ([]*sshagent.Key, error) {
	c.patient(ctx)
	keys, err := c.ordinary().List()
	if err != nil {
		return nil, c.failed(ctx, err)
	}
	return keys, nil
}

// askHere sends a request in a way that shows that it is from this machine:
// with a descriptor, which no forwarded connection carries. The message is
// without its length, and so is the answer.
func (c *client) askHere(ctx context.Context, message []byte) ([]byte, error) {
	c.patient(ctx)
	return c.exchange(ctx, message)
}

// askTPM is askHere for what needs the TPM.
func (c *client) askTPM(ctx context.Context, message []byte) ([]byte, error) {
	if ctx.Err() == nil {
		c.SetDeadline(time.Now().Add(tpmPatience))
	}
	return c.exchange(ctx, message)
}

// exchange leaves no copy of the message, which may have a PIN in it.
func (c *client) exchange(ctx context.Context, message []byte) ([]byte, error) {
	if len(message) > maxFrame {
		return nil, fmt.Errorf("the request has %d KiB, and agents take %d", len(message)>>10, maxFrame>>10)
	}
	frame := make([]byte, 4, 4+len(message))
	binary.BigEndian.PutUint32(frame, uint32(len(message)))
	frame = append(frame, message...)
	defer clear(frame)
	if err := c.writeWithDescriptor(frame); err != nil {
		return nil, c.failed(ctx, err)
	}
	answer, err := readFrame(c)
	if err != nil {
		return nil, c.failed(ctx, err)
	}
	return answer, nil
}

// writeWithDescriptor passes one on with the first bytes; which does not
// matter, the agent closes it.
func (c *client) writeWithDescriptor(b []byte) error {
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

// readFrame reads a message, and gives it without its length.
func readFrame(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n == 0 || n > maxFrame {
		return nil, fmt.Errorf("an answer of %d bytes", n)
	}
	message := make([]byte, n)
	_, err := io.ReadFull(r, message)
	return message, err
}
