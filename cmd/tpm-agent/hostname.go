package main

import (
	"fmt"
	"io"
	"os"
	"slices"
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
	return func(key ssh.PublicKey, peer agent.Peer) string {
		name, _ := knownhosts.NameOf(files, key, hostGuesses(arguments(peer.PID))...)
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

// maxGuesses bounds the names that are compared with hashes.
const maxGuesses = 128

// hostGuesses are the names that ssh may have been told in its arguments. Which
// of them are any is left to who compares them: where known_hosts has hashes,
// nothing else says what they are of.
func hostGuesses(args []string) (guesses []string) {
	var hosts, ports []string
	for i, arg := range args {
		if i == 0 {
			continue // the program
		}
		if strings.HasPrefix(arg, "-") { // -Jgate, -p2222, -oHostName=host
			arg = arg[min(2, len(arg)):]
		}
		_, value, is := strings.Cut(arg, "=")
		if is {
			arg = value
		}
		for word := range strings.SplitSeq(arg, ",") {
			host, port := hostPort(word)
			if isPort(host) {
				ports = append(ports, host)
			} else if host != "" {
				hosts = append(hosts, host)
			}
			if port != "" {
				ports = append(ports, port)
			}
		}
	}
	for _, host := range hosts {
		for _, port := range ports {
			guesses = append(guesses, "["+host+"]:"+port)
		}
		guesses = append(guesses, host)
	}
	slices.Sort(guesses)
	guesses = slices.Compact(guesses)
	return guesses[:min(len(guesses), maxGuesses)]
}

// hostPort takes user@host, host:port, [host]:port and ssh://user@host:port/
// apart.
func hostPort(word string) (host, port string) {
	if rest, isURL := strings.CutPrefix(word, "ssh://"); isURL {
		word, _, _ = strings.Cut(rest, "/")
	}
	host = word[strings.LastIndexByte(word, '@')+1:]
	if rest, bracket := strings.CutPrefix(host, "["); bracket {
		host, port, _ = strings.Cut(rest, "]")
		port = strings.TrimPrefix(port, ":")
	} else if strings.Count(host, ":") == 1 { // more of them are of an address
		host, port, _ = strings.Cut(host, ":")
	}
	if len(host) > 255 || strings.ContainsAny(host, " \t\r\n'\"/\\") {
		return "", ""
	}
	if !isPort(port) {
		port = ""
	}
	return host, port
}

func isPort(s string) bool {
	return s != "" && len(s) <= 5 && strings.Trim(s, "0123456789") == ""
}
