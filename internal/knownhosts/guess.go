package knownhosts

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
)

// maxGuesses bounds the names that are compared with hashes.
const maxGuesses = 4096

// maxConfigs bounds the files of a configuration.
const maxConfigs = 128

// Guesses returns the hosts that an ssh with these arguments (the program's name
// first) may be talking to, for [NameOf]: those in its arguments, and all that
// the files configs (ssh_config(5)) and the files they include name in HostName
// and HostKeyAlias, with and without each port that is named anywhere. It needs
// home for included files, and skips files that it cannot read.
func Guesses(args []string, home string, configs ...string) []string {
	var g guesses
	for _, arg := range args[min(1, len(args)):] {
		if strings.HasPrefix(arg, "-") { // -Jgate, -p2222, -oHostName=host
			arg = arg[min(2, len(arg)):]
		}
		for word := range strings.SplitSeq(arg[strings.IndexByte(arg, '=')+1:], ",") {
			g.add(word)
		}
	}
	told := append(slices.Clone(g.hosts[:min(len(g.hosts), 8)]), "") // one of them may be %h
	for _, config := range configs {
		a := aliases{home: home, dir: filepath.Dir(config), read: make(map[string]bool)}
		a.add(config)
		for _, word := range a.words {
			for _, host := range told {
				g.add(strings.ReplaceAll(word, "%h", host))
			}
		}
	}
	return g.all()
}

// guesses are hosts and ports.
type guesses struct{ hosts, ports []string }

// add takes a port, or a host as in user@host, host:port, [host]:port or
// ssh://user@host:port/.
func (g *guesses) add(word string) {
	word, _, _ = strings.Cut(strings.TrimPrefix(word, "ssh://"), "/")
	word = word[strings.LastIndexByte(word, '@')+1:]
	host, port, err := net.SplitHostPort(word)
	switch {
	case isPort(word):
		host, port = "", word
	case err != nil:
		host, port = strings.Trim(word, "[]"), ""
	}
	if host != "" && len(host) <= 255 && !strings.Contains(host, " ") && len(g.hosts) < maxGuesses/2 && !slices.Contains(g.hosts, host) {
		g.hosts = append(g.hosts, host)
	}
	if isPort(port) && len(g.ports) < maxGuesses/2 && !slices.Contains(g.ports, port) {
		g.ports = append(g.ports, port)
	}
}

func isPort(s string) bool {
	return s != "" && len(s) <= 5 && strings.Trim(s, "0123456789") == ""
}

// all returns the hosts without a port, then with each.
func (g *guesses) all() []string {
	all := slices.Clone(g.hosts)
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

// aliases are the words behind HostName, HostKeyAlias and Port in a
// configuration, whatever host they are for.
type aliases struct {
	words     []string
	home, dir string          // relative names of files are below them
	read      map[string]bool // files, of which one may include itself
}

func (a *aliases) add(file string) {
	if a.read[file] || len(a.read) == maxConfigs {
		return
	}
	a.read[file] = true
	text, err := readRegular(file)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n=\"", r) })
		if len(fields) < 2 {
			continue
		}
		switch strings.ToLower(fields[0]) {
		case "hostname", "hostkeyalias", "port":
			a.words = append(a.words, fields[1])
		case "include":
			for _, pattern := range fields[1:] {
				a.include(pattern)
			}
		}
	}
}

func (a *aliases) include(pattern string) {
	if below, inHome := strings.CutPrefix(pattern, "~/"); inHome {
		pattern = filepath.Join(a.home, below)
	} else if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(a.dir, pattern)
	}
	files, _ := filepath.Glob(pattern) // no files for a broken pattern
	for _, file := range files {
		a.add(file)
	}
}
