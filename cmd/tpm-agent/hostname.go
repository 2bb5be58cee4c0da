package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/knownhosts"
)

// hostNames returns what looks up the name of a host for a prompt, in the files
// that ssh keeps them in, or nil if there are none. The files are read each
// time: prompts are rare, and new hosts are not.
func (s system) hostNames() func(key ssh.PublicKey, peer agent.Peer) string {
	files, err := s.hostKeyFiles(nil)
	if err != nil {
		return nil
	}
	dir := filepath.Dir(files[0])
	return func(key ssh.PublicKey, peer agent.Peer) string {
		guesses := knownhosts.Guesses(arguments(peer.PID), filepath.Dir(dir), filepath.Join(dir, "config"), "/etc/ssh/ssh_config")
		name, _ := knownhosts.NameOf(files, key, guesses...)
		return name
	}
}

// arguments are those that a process was started with, as far as it is there
// and they are not too many: what ssh is to run on the host comes last.
func arguments(pid int) []string {
	if pid <= 0 {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	line, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil || len(line) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
}
