package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

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
	config := filepath.Join(filepath.Dir(files[0]), "config")
	return func(key ssh.PublicKey, peer agent.Peer) string {
		args := arguments(peer.PID)
		name, _ := knownhosts.NameOf(files, key, hostGuesses(args, aliases(config))...)
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

// aliases are the names and the ports that the user's configuration of ssh has
// for other names: what is behind HostName, HostKeyAlias and Port. Whose they
// are, and what is in other files, does not matter for guesses.
func aliases(path string) (words []string) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n=\"", r) })
		if len(fields) < 2 {
			continue
		}
		switch strings.ToLower(fields[0]) {
		case "hostname", "hostkeyalias", "port":
			words = append(words, fields[1])
		}
	}
	return words
}

// maxGuesses bounds the names that are compared with hashes.
const maxGuesses = 4096

// hostGuesses are the names that ssh may have been told in its arguments, or
// has for these, %h being what it was told. Which of them are any is left to
// who compares them: where known_hosts has hashes, nothing else says what they
// are of.
func hostGuesses(args, aliases []string) []string {
	var g guesses
	for _, arg := range args[min(1, len(args)):] { // behind the program
		if strings.HasPrefix(arg, "-") { // -Jgate, -p2222, -oHostName=host
			arg = arg[min(2, len(arg)):]
		}
		if _, value, is := strings.Cut(arg, "="); is {
			arg = value
		}
		for word := range strings.SplitSeq(arg, ",") {
			g.take(word)
		}
	}
	told := g.hosts
	for _, alias := range aliases {
		if !strings.Contains(alias, "%h") {
			g.take(alias)
			continue
		}
		for _, host := range told[:min(len(told), 8)] { // one of them is the host
			g.take(strings.ReplaceAll(alias, "%h", host))
		}
	}
	return g.all()
}

// guesses are hosts, and ports that may be theirs.
type guesses struct{ hosts, ports []string }

func (g *guesses) take(word string) {
	host, port := hostPort(word)
	if isPort(host) {
		host, port = "", host
	}
	if host != "" && len(g.hosts) < maxGuesses/2 && !slices.Contains(g.hosts, host) {
		g.hosts = append(g.hosts, host)
	}
	if port != "" && len(g.ports) < maxGuesses/2 && !slices.Contains(g.ports, port) {
		g.ports = append(g.ports, port)
	}
}

// all returns each host with and without each port, the first ones if they are
// too many.
func (g *guesses) all() (all []string) {
	all = slices.Clone(g.hosts)
	for _, port := range g.ports {
		for _, host := range g.hosts {
			if len(all) == maxGuesses {
				return all
			}
			all = append(all, "["+host+"]:"+port)
		}
	}
	return all
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
