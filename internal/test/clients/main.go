// Command clients logs in as a Go program does, with golang.org/x/crypto/ssh
// and the keys of the agent in $SSH_AUTH_SOCK. The script run uses it as one of
// its clients.
//
//	clients HOST PORT USER KNOWN_HOSTS COMMAND
//
// It logs in eight times at once over one connection to the agent, as programs
// do that work on many hosts, and runs COMMAND over the first of these logins.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sync/errgroup"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 5 {
		return errors.New("usage: clients HOST PORT USER KNOWN_HOSTS COMMAND")
	}
	address, user, command := net.JoinHostPort(args[0], args[1]), args[2], args[4]
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		return fmt.Errorf("calling the agent: %w", err)
	}
	defer conn.Close()
	known, err := knownhosts.New(args[3])
	if err != nil {
		return fmt.Errorf("reading known hosts: %w", err)
	}
	config := &ssh.ClientConfig{
		User:            user,
		Auth:            []ssh.AuthMethod{ssh.PublicKeysCallback(agent.NewClient(conn).Signers)},
		HostKeyCallback: known,
		// The host's key in known_hosts is of this type, and the library asks
		// for others first.
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		Timeout:           20 * time.Second,
	}
	var all errgroup.Group
	for i := range 8 {
		all.Go(func() error { return login(address, config, i == 0, command) })
	}
	return all.Wait()
}

// login logs in, and runs the command if it is to.
func login(address string, config *ssh.ClientConfig, first bool, command string) error {
	client, err := ssh.Dial("tcp", address, config)
	if err != nil {
		return fmt.Errorf("logging in: %w", err)
	}
	defer client.Close()
	if !first {
		return nil
	}
	session, err := client.NewSession()
	if err != nil {
		return fmt.Errorf("opening a session: %w", err)
	}
	defer session.Close()
	session.Stdout = os.Stdout
	if err := session.Run(command); err != nil {
		return fmt.Errorf("running %s: %w", command, err)
	}
	return nil
}
