package knownhosts

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxGuesses bounds the names that are compared with hashes.
const maxGuesses = 4096

// maxConfigs bounds the files of a configuration.
const maxConfigs = 128

// Guesses returns the hosts that an ssh may be talking to which was started with
// args, the program's name first, and reads the files configs (ssh_config(5)) and
// those that they include; home is that of its user. They are as known_hosts
// writes them, at most 4096, and for [NameOf]: where known_hosts has hashes,
// nothing else says what they are of. What cannot be read is passed over.
func Guesses(args []string, home string, configs ...string) []string {
	var words []string
	for _, path := range configs {
		a := aliases{home: home, dir: filepath.Dir(path), files: make(map[string]bool)}
		a.read(path)
		words = append(words, a.words...)
	}
	return guess(args, words)
}

// aliases are the names and the ports that a configuration has for other names:
// what is behind HostName, HostKeyAlias and Port. Whose they are, and under which
// conditions files are included, does not matter for guesses.
type aliases struct {
	words []string
	home  string
	dir   string          // where the files are that are included without one
	files map[string]bool // that were read: one may include itself
}

func (a *aliases) read(path string) {
	if a.files[path] || len(a.files) == maxConfigs {
		return
	}
	a.files[path] = true
	for line := range strings.Lines(readConfig(path)) {
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
	}
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(a.dir, pattern)
	}
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return // it is no pattern
	}
	for _, path := range paths {
		a.read(path)
	}
}

// readConfig is the content of a regular file, or nothing.
func readConfig(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return ""
	}
	return string(text)
}

// guess is Guesses with what the configuration has for other names, %h being
// what ssh was told.
func guess(args, aliases []string) []string {
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
